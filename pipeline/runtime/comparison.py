"""Whether a recorded run and what is given now are the same run: by parsed values, and only those that decide it.

Imports nothing heavy, so the fields' types are not known here. They are read off the record, which holds the given
values as they were parsed, every argument, and the defaults of those that were given.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.checkpoints import require_checkpoint
from pipeline.runtime.coercion import FALSE, NOTHING, TRUE, is_true
from pipeline.runtime.distributed import processes
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, files_sha256, path_sha256, setup_sha256, weights_sha256
from pipeline.runtime.run_json import read_record

# Values that do not change what is learned: changing them never makes a run another.
COSMETIC = {
    "output_dir", "force", "logging_steps", "logging_strategy", "logging_dir", "logging_first_step", "report_to",
    "run_name", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_nan_inf_filter",
    "log_completions", "num_completions_to_print", "log_unique_prompts", "project", "trackio_space_id",
    "save_total_limit", "save_only_model", "push_to_hub", "hub_model_id", "hub_strategy", "hub_token",
    "hub_private_repo", "hub_revision", "hub_always_push", "dataloader_num_workers", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "dataloader_pin_memory", "dataset_num_proc", "skip_memory_metrics",
    "accelerate_config", "resume_from_checkpoint", "guard_patience", "max_kl", "token", "vllm_api_key",
    # Recomputing activations gives the same gradients; transformers is renaming it.
    "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs",
}  # fmt: skip
# How held-out rows are evaluated and when checkpoints are written. That decides the weights only where one of several
# checkpoints is chosen by it, or if the evaluation samples and so draws random numbers.
EVALUATING = {
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size",
    "eval_accumulation_steps", "eval_do_concat_batches", "batch_eval_metrics", "prediction_loss_only",
    "metric_for_best_model", "greater_is_better", "save_steps", "save_strategy",
}  # fmt: skip
# How long a run trains. What was trained so far is a part of the longer run.
LENGTH = {"max_steps", "num_train_epochs"}
CHOOSING = ("load_best_model_at_end", "early_stopping_patience")
SAMPLING_STAGES = ("grpo", "ppo")
# Rows per process and accumulation step, with Trainer's defaults.
BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
_MISSING = object()


def changed_inputs(record: Json, given: Mapping[str, object]) -> list[str]:
    """What differs between a recorded run and what is given now: arguments, parents' weights, local data files."""
    changes = changed_arguments(record, given)
    changes += [change for parent in record.get("parents", []) for change in _changed_parent(parent)]
    for source in record.get("data", []):
        path = Path(str(source.get("name", "")))
        if "files" in source:  # a dataset: the files of one split, which may be a part of a folder
            files = [Path(file) for file in source["files"]]
            if all(file.exists() for file in files) and files_sha256(files) != source["fingerprint"]:
                changes.append(f"the data in {path} has changed")
        elif source.get("fingerprint") and path.exists() and path_sha256(path) != source["fingerprint"]:
            changes.append(f"the data in {path} has changed")
    for file, sha256 in record.get("code", {}).items():
        if path_sha256(Path(file)) != sha256:
            changes.append(f"the code in {file} has changed")
    return changes


def _changed_parent(parent: Json) -> list[str]:
    """What differs in a recorded model's folder, and in that of the base below an adapter."""
    changes = _changed_parent(parent["base"]) if "base" in parent else []
    if "path" not in parent:
        return changes
    folder = Path(parent["path"]).expanduser()
    if parent["sha256"] and weights_sha256(folder) != parent["sha256"]:
        changes.append(f"the weights in {parent['path']} have changed")
    elif parent.get("setup_sha256") and setup_sha256(folder) != parent["setup_sha256"]:
        changes.append(f"the tokenizer, template or config in {parent['path']} has changed")
    return changes


def changed_data(then: Sequence[Json], now: Sequence[Json]) -> list[str]:
    """The datasets that are read again and hold something else, in words: a file was added to a folder, or rows."""
    changes = []
    for source in now:
        place = {key: source.get(key) for key in ("name", "split", "role")}
        earlier = [old for old in then if {key: old.get(key) for key in place} == place]
        if earlier and all(old.get("fingerprint") != source.get("fingerprint") for old in earlier):
            changes.append(f"the data in {source.get('name')} has changed")
    return changes


def changed_arguments(record: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """The arguments that decide the weights and differ, each in words: ``beta: 0.1 then, 0.2 now``.

    Args:
        record: a run record, or as much of one as ``stage``, ``given``, ``arguments``, ``defaults`` and ``processes``.
        given: what is given now, as ``read_given`` or ``typed`` returns it.
    """
    old = record.get("given", {})
    ignored = _not_decisive(record, given)
    if _rows_per_step(old, record.get("processes", 1)) == _rows_per_step(given, processes()):
        ignored |= BATCH.keys()  # the same rows per step, split differently over processes
    changes = []
    for key in sorted((old.keys() | given.keys()) - ignored):
        if key in given:
            same = any(_same(given[key], then) for then in _then(record, key))
        else:
            default = record.get("defaults", {}).get(key, _MISSING)
            same = default is not _MISSING and _same(default, old[key])
        if not same:
            then = old[key] if key in old else record.get("arguments", {}).get(key)
            now = given[key] if key in given else record.get("defaults", {}).get(key)
            changes.append(f"{key}: {then!r} then, {_as_then(now, then)!r} now")
    return changes


def only_length(changes: list[str]) -> bool:
    """Whether the changes are of how long the run trains, and of nothing else."""
    return all(change.partition(":")[0] in LENGTH for change in changes)


def refusal(folder: Path, changes: list[str], checkpoint: Path | None) -> str:
    """Why a folder is not used for a run of other inputs, and what to do: the message of an error."""
    said = f"output_dir: {folder} holds a run of other inputs ({'; '.join(changes[:3])}); "
    if checkpoint is not None and only_length(changes):
        return f"{said}to train longer, choose another folder and --resume_from_checkpoint {checkpoint}"
    return f"{said}choose another folder, or --force to rename it and start again"


def _not_decisive(record: Mapping[str, object], given: Mapping[str, object]) -> set[str]:
    chooses = any(is_true(kept.get(CHOOSING[0])) or kept.get(CHOOSING[1]) for kept in (record.get("given", {}), given))
    return COSMETIC if chooses else COSMETIC | EVALUATING - _sampled(record)


def _sampled(record: Mapping[str, object]) -> set[str]:
    """What of EVALUATING decides in a stage whose evaluation samples; saving draws no random numbers anywhere."""
    return EVALUATING - {"save_steps", "save_strategy"} if record.get("stage") in SAMPLING_STAGES else set()


def _then(record: Mapping[str, object], key: str) -> list[object]:
    """What a key was: as it was given and as the stage took it. Text is the field's own type, so it alone counts."""
    taken = record.get("arguments", {}).get(key, _MISSING)
    if isinstance(taken, str):
        return [taken]
    return [value for value in (record.get("given", {}).get(key, _MISSING), taken) if value is not _MISSING]


def _same(now: object, then: object) -> bool:
    """Whether a value given now is the recorded one, whose type says how the text is read."""
    if isinstance(then, list) or isinstance(now, list):
        now, then = (value if isinstance(value, list) else [value] for value in (now, then))
        return len(now) == len(then) and all(_same(a, b) for a, b in zip(now, then))
    if isinstance(then, dict):
        return isinstance(now, dict) and now.keys() == then.keys() and all(_same(now[k], then[k]) for k in then)
    if isinstance(then, bool):
        return str(now).lower() in (TRUE if then else FALSE)
    if then is None:
        return now is None or (isinstance(now, str) and now.lower() in NOTHING | {"none"})
    if isinstance(then, (int, float)):
        number = _number(now)
        return number is not None and number == then
    return _same_text("" if now is None else str(now), str(then))


def _same_text(now: str, then: str) -> bool:
    """Paths are compared as places: ``runs/sft/`` is ``runs/sft``."""
    if now == then:
        return True
    return "/" in now + then and os.path.abspath(os.path.expanduser(now)) == os.path.abspath(os.path.expanduser(then))


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_then(now: object, then: object) -> Any:
    """A value for a message, as a number where the other one is."""
    number = _number(now) if isinstance(then, (int, float)) and not isinstance(then, bool) else None
    return now if number is None else int(number) if isinstance(then, int) and number.is_integer() else number


def _rows_per_step(given: Mapping[str, object], count: int) -> float | None:
    """Rows that enter one optimizer step, on all processes together; None where a value is no number."""
    numbers = [_number(given.get(name, default)) for name, default in BATCH.items()]
    return None if None in numbers else count * math.prod(numbers)


def named_checkpoint(value: object, folder: Path, stage: str, given: Json) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` names, resolved; None where it asks for the newest.

    It may be that of a shorter run.

    Args:
        value: of ``resume_from_checkpoint``.
        folder: the output folder of the run that is to resume.
        stage: its stage.
        given: its arguments.

    Raises:
        UserError: it is no complete checkpoint, or it belongs to another run.
    """
    if value is None or is_true(value) or value == "latest":
        return None
    where = f"resume_from_checkpoint: {value}"
    path = require_checkpoint(str(value))
    if folder.resolve() in path.parents:
        return path
    if stage in ("rsft", "continual"):
        raise UserError(f"{where}: {stage} resumes only from output_dir; leave it out")
    other = read_record(path.parent)
    if other is not None:
        changes = changed_arguments(other, given) if other["stage"] == stage else [f"a {other['stage']}"]
        if not only_length(changes):
            raise UserError(
                f"{where} is a checkpoint of another run ({changes[0]}); to start from its weights, name it as "
                "model_name_or_path"
            )
    return path
