"""What is wrong with an assessment by its arguments and files: reported in a second, before torch is imported."""

from collections.abc import Sequence
from typing import Protocol

from pipeline.data.loading import look_at
from pipeline.data.sources import Source
from pipeline.evaluation.expectations import parse_claims
from pipeline.evaluation.registry import Entry, label
from pipeline.evaluation.shortcuts import task_names
from pipeline.rewards.resolve import resolve
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.errors import UserError


class AssessFields(Protocol):
    """The fields of the stage that are read here; `assess.AssessArguments` says what they mean."""

    model_name_or_path: str
    reference_model_name_or_path: str | None
    evaluations: list[Entry] | None
    tasks: list[str] | None
    dataset_name: str | None
    dataset_split: str | None
    reward: str | None
    expect: Sequence[str] | None
    baseline: str | None
    allow_unsafe_code_execution: bool


def refuse_mistakes(args: AssessFields) -> None:
    """Refuse names that do not exist: of models, tasks, types, rewards and datasets; and claims that cannot be read.

    Raises:
        UserError: for the first of them.
    """
    require_model_folder(args.model_name_or_path)
    if args.reference_model_name_or_path:
        require_model_folder(args.reference_model_name_or_path, "reference_model_name_or_path")
    task_names(args.tasks or [])
    parse_claims(args.expect or [], has_baseline=args.baseline is not None)
    if args.reward:
        resolve(args.reward, allow_unsafe_code_execution=args.allow_unsafe_code_execution)
    if args.dataset_name:
        look_at(Source(args.dataset_name, args.dataset_split or "test"))
    for entry in args.evaluations or []:
        dataset, split = entry.get("dataset"), entry.get("split") or "test"
        if isinstance(dataset, str) and split != "held_out":
            try:
                look_at(Source(dataset, str(split)))
            except UserError as error:
                raise UserError(f"evaluation {label(entry)}: {error}") from None
