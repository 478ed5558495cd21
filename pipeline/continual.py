"""Continual learning: corpora one after another, new knowledge in, old knowledge kept, the backbone untouched.

    theta_{k+1} = argmin_theta [ L_{k+1}(theta_frozen, theta) + lambda Omega(theta, theta_k) ]                   (12)

    accelerate launch pipeline/continual.py --config configs/continual/world.yaml

Data: --corpora a.jsonl b.jsonl in the order they come (or --dataset_name, one on top of the last output; `datasets:`
in YAML says more about each): text, messages, prompt + completion (--kind text | sft), or pairs (--kind preference).
Theta is LoRA, bias deltas, norms or bottlenecks; Omega any of l2, ewc, distillation (hidden states and logits on rows
it remembers), orthogonal and replay. After every corpus all of them are evaluated, so the card says what was
forgotten; Omega's memory is saved with the weights.

Paper: Part 4, section 1. It leaves Omega open but for its purpose, "changes that would distort previously learned
hidden representations": that is `distillation`. `full` (all weights, the naive baseline) and PEFT's `osf` are there to
compare with.
Loss: `objectives.regularisers` added to that of SFT, text or DPO (tests/stages/test_losses.py::test_continual).
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.data.arguments import DataArguments
from pipeline.runtime.arguments import StageArguments, part
from pipeline.runtime.coercion import is_true
from pipeline.runtime.entry import entry
from pipeline.runtime.record import Run
from pipeline.training import corpora_rules
from pipeline.training.mistakes import refuse_mistakes

if TYPE_CHECKING:
    from pipeline.data.loading import Data
    from pipeline.evaluation.tasks.sequence import SequenceEvaluation
    from pipeline.training.corpora import Corpus


@dataclass
class ContinualArguments(StageArguments):
    """What is trained, which penalties hold it, and what is evaluated; the rest is TRL's SFTConfig (or DPOConfig)."""

    kind: Literal["sft", "text", "preference"] = field(
        default="sft", metadata={"help": "Kind of the data, which decides the loss."}
    )
    corpora: list[str] | None = field(
        default=None,
        metadata={
            "help": "Corpora in the order they are learned, each named as dataset_name is; or datasets in YAML."
        },
    )
    method: Literal["lora", "bias", "layernorm", "bottleneck", "osf", "full"] = field(
        default="lora", metadata={"help": "Parameters that are trained; lora takes the lora_* flags."}
    )
    adapters: Literal["shared", "stacked", "routed"] = field(
        default="shared",
        metadata={
            "help": "One adapter for all corpora, a new one per corpus over the frozen sum of the old ones, or one "
            "per corpus with a router that chooses among them."
        },
    )
    omega: list[str] = field(
        default_factory=list, metadata={"help": "Terms of Omega: l2, ewc, distillation, orthogonal, replay."}
    )
    omega_weight: list[float] = field(
        default_factory=list, metadata={"help": "Weight lambda of each term of omega, in the same order."}
    )
    distill: Literal["both", "hidden", "logits"] = field(
        default="both", metadata={"help": "Which outputs are distilled: hidden states, logits or both."}
    )
    memory_rows: int = field(
        default=256, metadata={"help": "Maximum number of rows that Omega remembers, over all corpora."}
    )
    memory_batch_size: int = field(
        default=16, metadata={"help": "Number of remembered rows that distillation and replay use per step."}
    )
    replay_source: Literal["memory", "model"] = field(
        default="memory",
        metadata={
            "help": "Replay remembered rows, or what the model writes: answers to the remembered prompts, or complete "
            "texts (kind text, for which nothing is remembered)."
        },
    )
    replay_max_new_tokens: int = field(
        default=128, metadata={"help": "Maximum tokens per text that the model writes for replay."}
    )
    old_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data that the model learned before the first corpus: fills the memory, and is evaluated."},
    )
    anchor_dataset_name: str | None = field(
        default=None, metadata={"help": "Text on which distillation compares the models, in place of memory rows."}
    )
    anchor_rows: int = field(default=1024, metadata={"help": "Number of anchor rows, sampled once at the start."})
    fisher_decay: float = field(
        default=0.9, metadata={"help": "Decay of the accumulated Fisher when a corpus is added (online EWC)."}
    )
    bottleneck_size: int = field(default=16, metadata={"help": "Width of a bottleneck adapter."})
    retained: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "In YAML: evaluations as in assess.py, run before and after every corpus."}
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("continual", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, lambda own: own.kind, ContinualArguments, partial(check, run))
        from trl import DPOConfig, SFTConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.loading import load_data
        from pipeline.data.preparation import learned_of, templated, within_positions
        from pipeline.evaluation.registry import check_entries
        from pipeline.evaluation.tasks.sequence import SequenceEvaluation
        from pipeline.model.loading import load_tokenizer, model_config
        from pipeline.model.policy import ChatModelArguments, ModelArguments, start_name
        from pipeline.training import corpora

        config_class = DPOConfig if run.given.get("kind") == "preference" else SFTConfig
        model_class = ModelArguments if config_class is SFTConfig else ChatModelArguments
        own, data_args, model_args, config = run.parse(
            ContinualArguments, ChatDataArguments, model_class, config_class
        )
        corpora.check_split(own)
        if own.retained:
            check_entries(own.retained)
        within_positions(run, config, model_config(start_name(model_args), config.trust_remote_code))
        eos_token = getattr(config, "eos_token", None)  # TRL's DPOConfig has none
        tokenizer = load_tokenizer(start_name(model_args), config.trust_remote_code, eos_token=eos_token)
        path = (model_args if own.kind == "preference" else config).chat_template_path
        learned = learned_of(run, config) if own.kind != "preference" else None
        ready = partial(
            templated, tokenizer=tokenizer, run=run, kind=own.kind, given=data_args, path=path, learned=learned
        )
        names, parts = zip(*corpora.corpus_arguments(own, data_args))
        sequence = [
            ready(load_data(part, own.kind, config.seed), name=f"corpus {k}") for k, part in enumerate(parts, 1)
        ]
        old = anchors = None
        if own.old_dataset_name:
            old = ready(load_data(corpora.old_arguments(own, data_args), own.kind, config.seed), name="memory")
            run.add_data([source | {"role": "memory"} for source in old.sources])
        if own.anchor_dataset_name:
            anchors = corpora.load_anchors(own, config.seed)
            run.add_data([source | {"role": "anchors"} for source in anchors.sources])
        for data in sequence:
            run.add_data(data.sources)
        evaluation = SequenceEvaluation(run, own, model_args.model_name_or_path, config, sequence, names, old)
        for k, data in enumerate(sequence, 1):
            corpus = corpora.Corpus(run, k, len(sequence), own, model_args, config, tokenizer.chat_template)
            if not corpus.done():
                learn(corpus, data, old, anchors, evaluation)


def check(run: Run, own: ContinualArguments) -> None:
    """Refuse what does not go together, before anything is imported."""
    corpora_rules.check(own, part(run.argv, DataArguments), is_true(run.given.get("push_to_hub")))


def learn(
    corpus: "Corpus", data: "Data", old: "Data | None", anchors: "Data | None", evaluation: "SequenceEvaluation"
) -> None:
    """One corpus by eq. (12): theta_k, Omega, training, and every corpus evaluated with theta_{k+1}."""
    policy = corpus.policy()
    evaluation.before(corpus.number, policy)
    omega = corpus.omega(policy, data.train, old, anchors)
    callbacks = evaluation.callbacks(corpus.number, policy.tokenizer)
    trainer = corpus.trainer(policy, data, omega, callbacks)

    def finish(folder: Path) -> None:
        corpus.finish(folder, trainer, policy, list(data.train))
        model, router = trainer.model, None
        if corpus.own.adapters == "routed":
            model, router = corpus.route(folder, model, *evaluation.prompts(corpus.number, policy.tokenizer))
        evaluation.after(corpus.number, model, policy.tokenizer, folder, router)

    corpus.train(trainer, corpus.own, finish)


FLAGS = {
    "learning_rate": "peak learning rate; the schedule restarts for each corpus [2e-4 with LoRA, else 2e-5]",
    "num_train_epochs": "passes over each corpus [3]",
}

if __name__ == "__main__":
    entry(main, ContinualArguments, __doc__, flags=FLAGS)
