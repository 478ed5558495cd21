"""Continual learning: corpora one after another, new knowledge in, old knowledge kept, the backbone untouched.

    theta_{k+1} = argmin_theta [ L_{k+1}(theta_frozen, theta) + lambda Omega(theta, theta_k) ]                   (12)

    accelerate launch pipeline/continual.py --config configs/continual/world.yaml

Data: --corpora a.jsonl b.jsonl in the order they come (or --dataset_name, one on top of the last output; `datasets:`
in YAML says more about each): text, messages, prompt + completion (--kind text | sft), or pairs (--kind preference).
Theta is LoRA, bias deltas, norms or bottlenecks; Omega any of l2, ewc, function (hidden states and logits on rows it
remembers), orthogonal and replay. After every corpus all of them are judged, so the card says what was forgotten;
Omega's memory is saved with the weights.

Paper: Part 4, section 1. It leaves Omega open but for its purpose, "changes that would distort previously learned
hidden representations": that is `function`. `full` (all weights, the naive baseline) and PEFT's `osf` are to compare.
Loss: `objectives.regularisers` added to that of SFT, text or DPO (tests/stages/test_losses.py::test_continual).
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run


@dataclass
class ContinualArguments(StageArguments):
    """What is trained, what it is held by, and what is judged; everything else is TRL's SFTConfig (or DPOConfig)."""

    kind: Literal["sft", "text", "preference"] = field(default="sft", metadata={"help": "The data, and so the loss."})
    corpora: list[str] | None = field(
        default=None, metadata={"help": "The corpora in order, named as dataset_name is; or datasets in YAML."}
    )
    method: Literal["lora", "bias", "layernorm", "bottleneck", "osf", "full"] = field(
        default="lora", metadata={"help": "What is trained; lora takes the lora_* flags."}
    )
    adapters: Literal["shared", "stacked", "routed"] = field(
        default="shared",
        metadata={"help": "One adapter carried on, a new one over the frozen sum of the old, or one each, routed."},
    )
    omega: list[str] = field(
        default_factory=list, metadata={"help": "Terms of Omega: l2, ewc, function, orthogonal, replay."}
    )
    omega_weight: list[float] = field(default_factory=list, metadata={"help": "lambda of each term, in order."})
    distill: Literal["both", "hidden", "logits"] = field(default="both", metadata={"help": "What function holds."})
    memory_rows: int = field(default=256, metadata={"help": "Rows that Omega may remember, of all corpora together."})
    memory_batch_size: int = field(default=16, metadata={"help": "Of those, drawn a step for function and replay."})
    replay_source: Literal["memory", "model"] = field(
        default="memory",
        metadata={
            "help": "Remembered rows, or what the model writes itself: answers to the remembered prompts, or whole "
            "texts (kind text, for which nothing is remembered)."
        },
    )
    replay_max_new_tokens: int = field(default=128, metadata={"help": "Tokens of what the model writes itself."})
    old_dataset_name: str | None = field(
        default=None, metadata={"help": "What the model knew before: fills the memory at first, and is judged too."}
    )
    anchor_dataset_name: str | None = field(
        default=None, metadata={"help": "Text that function holds the model's reading of, in place of memory rows."}
    )
    anchor_rows: int = field(default=1024, metadata={"help": "Rows of it, drawn once."})
    fisher_decay: float = field(default=0.9, metadata={"help": "Of ewc's old Fisher when a corpus joins it."})
    bottleneck_size: int = field(default=16, metadata={"help": "Width of a bottleneck adapter."})
    retained: list[dict[str, Any]] | None = field(
        default=None, metadata={"help": "In YAML: evaluations as in assess.py, run before and after every corpus."}
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("continual", argv) as run:
        if run.done:
            return
        from trl import DPOConfig, SFTConfig

        from pipeline.data.arguments import DataArguments
        from pipeline.data.preparation import learned_of, templated
        from pipeline.evaluation.tasks.sequence import Judge
        from pipeline.model.loading import load_tokenizer
        from pipeline.model.policy import ChatModelArguments, ModelArguments, start_name
        from pipeline.training.regularised import Corpus, refuse_split
        from pipeline.training.session import train_and_save

        config_class = DPOConfig if run.given.get("kind") == "preference" else SFTConfig
        model_class = ModelArguments if config_class is SFTConfig else ChatModelArguments
        own, data_args, model_args, config = run.parse(ContinualArguments, DataArguments, model_class, config_class)
        check(own, data_args, run.push)
        refuse_split(own)
        tokenizer = load_tokenizer(start_name(model_args), config.trust_remote_code)
        path = (model_args if own.kind == "preference" else config).chat_template_path
        learned = learned_of(run, config) if own.kind != "preference" else None
        skip = data_args.skip_bad_rows
        ready = partial(templated, tokenizer=tokenizer, run=run, kind=own.kind, path=path, learned=learned, skip=skip)
        judge = Judge(run, own, data_args, model_args, config, ready)
        for number, corpus in enumerate(judge.corpora, 1):
            here = Corpus(run, number, len(judge.corpora), own, model_args, config, tokenizer.chat_template)
            if here.done():
                continue
            policy = here.policy()
            judge.before(number, policy)
            omega = here.omega(judge.old_rows, corpus.train, judge.anchors, policy)
            trainer = here.trainer(policy, corpus, omega, judge.callbacks(number, policy.tokenizer))

            def finish(folder: Path, here=here, trainer=trainer, policy=policy, corpus=corpus, number=number) -> None:
                here.finish(folder, trainer, policy, list(corpus.train))
                model, router = trainer.model, None
                if own.adapters == "routed":
                    model, router = here.route(folder, model, *judge.prompts(number, policy.tokenizer))
                judge.after(number, model, policy.tokenizer, folder, router)
                here.mark()

            if number < len(judge.corpora):
                here.train(trainer)
                if run.is_main:
                    finish(here.folder)
                trainer.accelerator.wait_for_everyone()
            else:
                train_and_save(run, trainer, own, finish)


def check(own: ContinualArguments, data_args: Any, push: bool) -> None:
    """Refuse what cannot be run, before anything is loaded."""
    terms = ("l2", "ewc", "function", "orthogonal", "replay")
    if unknown := [name for name in own.omega if name not in terms]:
        raise UserError(f"omega: there is no term {unknown[0]!r}; choose of {', '.join(terms)}")
    if len(own.omega) != len(own.omega_weight) or len(set(own.omega)) != len(own.omega):
        raise UserError("omega and omega_weight must be lists of one length, each term once: l2 ewc and 0.1 100")
    if any(weight < 0 for weight in own.omega_weight):
        raise UserError("omega_weight: a lambda below 0 would reward forgetting")
    if "orthogonal" in own.omega and (own.method != "lora" or own.adapters != "stacked"):
        raise UserError("omega orthogonal keeps a new adapter away from the old ones: use lora and --adapters stacked")
    if own.adapters != "shared" and own.method != "lora":
        raise UserError(f"adapters {own.adapters} is for several LoRA adapters; with method {own.method} use shared")
    if own.adapters == "routed":
        check_routed(own, push)
    if own.adapters == "stacked" and "ewc" in own.omega:
        raise UserError("omega ewc weighs the parameters of one adapter carried on: use --adapters shared")
    if own.corpora and (data_args.datasets or data_args.dataset_name):
        raise UserError("give the corpora once: as corpora, as datasets in YAML, or one as dataset_name")
    if own.memory_rows < 1 or own.anchor_rows < 1:
        raise UserError("memory_rows and anchor_rows must be at least 1")
    if own.replay_source == "model" and not {"replay", "function", "ewc"} & set(own.omega):
        raise UserError("replay_source model: no term of omega reads it; add replay, function or ewc")
    if own.replay_source == "model" and own.kind == "preference":
        raise UserError("replay_source model: pairs cannot be sampled; use kind sft or text")
    if own.anchor_dataset_name and "function" not in own.omega:
        raise UserError("anchor_dataset_name: only function reads anchors; add it to omega, or leave the anchors out")
    if own.anchor_dataset_name and own.kind == "preference":
        raise UserError(
            "anchor_dataset_name: anchors are text, not pairs; leave it out: function then holds memory rows"
        )


def check_routed(own: ContinualArguments, push: bool) -> None:
    """Refuse what does not go with one adapter per corpus."""
    if own.omega:
        raise UserError("adapters routed leaves every earlier adapter as it is, so there is nothing for omega to hold")
    if own.kind == "text":
        raise UserError("adapters routed chooses by the prompt, and text has none: use kind sft or preference")
    if own.retained or push:
        raise UserError(
            "adapters routed: retained and push_to_hub take one model, not several adapters with a router; leave them "
            "out, assess one of the routes, and push the finished folder with python -m pipeline.publish.hub"
        )


FLAGS = {
    "learning_rate": "peak, of every corpus anew [2e-4 with LoRA, else 2e-5]",
    "num_train_epochs": "passes over each corpus [3]",
}

if __name__ == "__main__":
    entry(main, ContinualArguments, __doc__, flags=FLAGS)
