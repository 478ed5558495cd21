"""Which arguments of continual learning go together; imports no torch, so that a mistake shows at once."""

from typing import Any, Protocol

from pipeline.data.arguments import DataArguments
from pipeline.runtime.errors import UserError

TERMS = ("l2", "ewc", "distillation", "orthogonal", "replay")  # of Omega


class CorpusFields(Protocol):
    """The fields of the stage that are read here; `continual.ContinualArguments` says what they mean."""

    kind: str
    corpora: list[str] | None
    method: str
    adapters: str
    omega: list[str]
    omega_weight: list[float]
    distill: str
    memory_rows: int
    memory_batch_size: int
    replay_source: str
    replay_max_new_tokens: int
    old_dataset_name: str | None
    anchor_dataset_name: str | None
    anchor_rows: int
    fisher_decay: float
    bottleneck_size: int
    retained: list[dict[str, Any]] | None


def check(own: CorpusFields, data_args: DataArguments, push: bool) -> None:
    """Refuse what cannot be run, before anything is loaded.

    Raises:
        UserError: arguments that exclude each other, or a term of Omega that does not exist.
    """
    if unknown := [name for name in own.omega if name not in TERMS]:
        hint = " (function is now called distillation)" if unknown[0] == "function" else ""
        raise UserError(f"omega: there is no term {unknown[0]!r}{hint}; choose one of {', '.join(TERMS)}")
    if len(own.omega) != len(own.omega_weight) or len(set(own.omega)) != len(own.omega):
        raise UserError(
            "omega and omega_weight must have the same length and no repeated term, e.g. --omega l2 ewc "
            "--omega_weight 0.1 100"
        )
    if any(weight < 0 for weight in own.omega_weight):
        raise UserError("omega_weight: a lambda below 0 would reward forgetting")
    if "orthogonal" in own.omega and (own.method != "lora" or own.adapters != "stacked"):
        raise UserError("omega orthogonal keeps a new adapter away from the old ones: use lora and --adapters stacked")
    if own.adapters != "shared" and own.method != "lora":
        raise UserError(f"adapters {own.adapters} is for several LoRA adapters; with method {own.method} use shared")
    if own.adapters == "routed":
        check_routed(own, push)
    if own.adapters == "stacked" and "ewc" in own.omega:
        raise UserError("omega ewc weighs the parameters of one continued adapter: use --adapters shared")
    if own.corpora and (data_args.datasets or data_args.dataset_name):
        raise UserError("give the corpora once: as corpora, as datasets in YAML, or one as dataset_name")
    if own.memory_rows < 1 or own.anchor_rows < 1:
        raise UserError("memory_rows and anchor_rows must be at least 1")
    if own.replay_source == "model" and not {"replay", "distillation", "ewc"} & set(own.omega):
        raise UserError("replay_source model: no term of omega reads it; add replay, distillation or ewc")
    if own.replay_source == "model" and own.kind == "preference":
        raise UserError("replay_source model: pairs cannot be sampled; use kind sft or text")
    if own.anchor_dataset_name and "distillation" not in own.omega:
        raise UserError(
            "anchor_dataset_name: only distillation reads anchors; add it to omega, or leave the anchors out"
        )
    if own.anchor_dataset_name and own.kind == "preference":
        raise UserError(
            "anchor_dataset_name: anchors are text, not pairs; leave it out: distillation then holds memory rows"
        )


def check_routed(own: CorpusFields, push: bool) -> None:
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
