"""Direct Preference Optimization: fit the policy to preference pairs, without a reward model and without RL.

    L_DPO = -log sigma( beta [ log pi(y+|x)/pi(y-|x) - log pi_ref(y+|x)/pi_ref(y-|x) ] )

    accelerate launch pipeline/dpo.py --config configs/quickstart/dpo.yaml

Data: prompt + chosen + rejected, with image or images for a model that sees. Any of TRL's loss_type values; beta is
the temperature of the KL in the objective E[R] - beta KL(pi || pi_ref) whose optimum this loss is the
maximum-likelihood estimate of.

Paper: Part 2, section 1. The paper prints R = beta^-1 log(pi/pi_ref) + C; from its own objective it is
R = beta log(pi/pi_ref) + beta log Z, which is what the loss above uses.
Loss: `objectives.preference.dpo_loss` (tests/stages/test_losses.py::test_dpo).
"""

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("dpo", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, "preference")
        from trl import DPOConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.comparisons import settle_pairs
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import templated, within_positions
        from pipeline.data.seen import pairs_within_length
        from pipeline.inference.stopping import declare_stops
        from pipeline.model.policy import ChatModelArguments, load_policy, read_start
        from pipeline.training.callbacks import WarnWhenChosenFalls
        from pipeline.training.session import train_and_save
        from pipeline.training.trainers import DPOTrainer

        own, data_args, model_args, config = run.parse(
            StageArguments, ChatDataArguments, ChatModelArguments, DPOConfig
        )
        base, tokenizer = read_start(model_args, trust_remote_code=config.trust_remote_code)
        within_positions(run, config, base)
        data = load_data(data_args, "preference", config.seed)
        run.add_data(data.sources)
        data = templated(data, tokenizer, run, "preference", data_args, model_args.chat_template_path)
        pairs_within_length(data, tokenizer, config)
        policy = load_policy(model_args, run, tokenizer, trust_remote_code=config.trust_remote_code, reference=True)
        declare_stops(policy.model, tokenizer, data.train[0])
        trainer = DPOTrainer(
            model=policy.model,
            args=config,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            processing_class=policy.processing,
            peft_config=policy.peft_config,
            callbacks=[WarnWhenChosenFalls()],
        )
        settle_pairs(trainer, data, run)
        train_and_save(run, trainer, own, policy.finish)


FLAGS = {
    "beta": "strength of the KL to pi_ref; smaller moves further [0.1]",
    "loss_type": "sigmoid (the paper's), ipo, hinge, robust, … [sigmoid]",
    "max_length": "maximum tokens of prompt and answer; the rest is cut [1024]",
}

if __name__ == "__main__":
    entry(main, StageArguments, __doc__, flags=FLAGS)
