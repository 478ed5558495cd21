"""Supervised fine-tuning: the pretraining loss (9), on answers only.

    L(theta) = - sum_t log pi_theta(y_t | x, y_<t)        (t over the answer's tokens; the prompt is masked)

    accelerate launch pipeline/sft.py --config configs/quickstart/sft.yaml

Data: messages, prompt + completion, or text; with image or images, for a model that sees. Of prompt + completion the
completion is learned, of messages the assistant's turns (content and end-of-turn token), of text every token; the
stage prints which share of the tokens that is. assistant_only_loss: false learns every token,
completion_only_loss: false the prompts too, weight: 0 on a turn leaves it out.

Paper: Part 2 names SFT as the source of pi_ref and as the second half of rejection sampling.
Loss: `objectives.likelihood.negative_log_likelihood` (tests/stages/test_losses.py::test_sft).
"""

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("sft", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "sft")
        from trl import SFTConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import learned_of, supervised, templated, within_positions
        from pipeline.inference.retrieval.arguments import RetrievalArguments
        from pipeline.inference.retrieval.context import with_passages
        from pipeline.inference.stopping import declare_stops
        from pipeline.model.policy import ModelArguments, load_policy, read_start
        from pipeline.model.vision import trained_with
        from pipeline.training.session import train_and_save
        from pipeline.training.trainers import SFTTrainer, vision_collator

        own, data_args, retrieval, model_args, config = run.parse(
            StageArguments, ChatDataArguments, RetrievalArguments, ModelArguments, SFTConfig
        )
        base, tokenizer = read_start(
            model_args, trust_remote_code=config.trust_remote_code, eos_token=config.eos_token
        )
        within_positions(run, config, base)
        rows = load_data(data_args, "sft", config.seed)
        run.add_data(rows.sources)
        rows = templated(rows, tokenizer, run, "sft", data_args, config.chat_template_path)
        rows = with_passages(run, rows, retrieval, tokenizer, "sft", config.max_length)
        data = supervised(rows, tokenizer, config, run, learned_of(run, config), skip=data_args.skip_bad_rows)
        policy = load_policy(model_args, run, tokenizer, trust_remote_code=config.trust_remote_code)
        declare_stops(policy.model, tokenizer, rows.train[0])
        processing = trained_with(tokenizer)
        trainer = SFTTrainer(
            model=policy.model,
            args=config,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            data_collator=vision_collator(processing, config, data.train.column_names),
            processing_class=processing,
            peft_config=policy.peft_config,
        )
        train_and_save(run, trainer, own, policy.finish)


FLAGS = {
    "max_length": "maximum tokens per row; the rest is cut [1024]",
    "packing": "pack several rows into one sequence [false]",
    "assistant_only_loss": "of messages learn the assistant's turns; false: every token [true]",
}

if __name__ == "__main__":
    entry(main, StageArguments, __doc__, flags=FLAGS)
