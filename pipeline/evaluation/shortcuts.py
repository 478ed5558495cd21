"""Evaluations named on the command line, without YAML: `--tasks perplexity,accuracy --dataset_name …`."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.registry import EVALUATIONS, Entry, get_evaluation, options_of
from pipeline.runtime.errors import UserError, did_you_mean

ALIASES = {"perplexity": "loss"}
# What an evaluation needs and few give: used where neither the flags nor the model's run record say otherwise.
USUAL = {"max_new_tokens": 256}


def shortcut_entries(tasks: Sequence[str], given: Mapping[str, object], recorded: Mapping[str, object]) -> list[Entry]:
    """One entry per task, with those of the given options that its evaluation takes.

    Without a dataset the rows are those that the model's own run held out.

    Args:
        tasks: names of evaluations, also several in one word with commas between them.
        given: options by name; None for one that was not given.
        recorded: what the model's run says of an option, such as its reward.

    Raises:
        UserError: an unknown task, or a given option that no task takes.
    """
    names = task_names(tasks)
    options = {name: given[name] for name in _given(given)}
    options.setdefault("split", "test" if "dataset" in options else "held_out")
    entries, used = [], {"split"}
    for name in names:
        kind = ALIASES.get(name, name)
        known = options_of(get_evaluation(kind))
        needed = {name for name, option in known.items() if option.default is option.empty}
        entry = {name: value for name, value in options.items() if name in known}
        used |= set(entry)
        for option in needed - set(entry):
            value = recorded.get(option, USUAL.get(option))
            if value is not None:
                entry[option] = value
        entries.append({"name": name, "type": kind, **entry})
    if not names and _given(given):
        raise UserError(f"{_given(given)[0]} belongs to --tasks, and none is named")
    if unused := sorted(set(options) - used):
        raise UserError(f"{unused[0]}: none of the tasks {', '.join(names)} takes it; leave it out")
    return entries


def task_names(words: Sequence[str]) -> list[str]:
    """The tasks that are named, also several in one word with commas between them.

    Raises:
        UserError: there is no such task.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    known = [*ALIASES, *EVALUATIONS]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(known)}")
            raise UserError(f"tasks: there is no task {name!r}{hint}")
    return names


def lm_eval_entries(tasks: Sequence[str], include_path: str | None, limit: int | None) -> list[Entry]:
    """The entry that ``--lm_eval`` adds, if it names a task, also several in one word with commas between them.

    Raises:
        UserError: a folder of tasks and no task.
    """
    names = [name.strip() for word in tasks for name in word.split(",") if name.strip()]
    if not names:
        if include_path is not None:
            raise UserError("lm_eval_include_path belongs to --lm_eval, and no task is named")
        return []
    options = {"include_path": include_path, "limit": limit}
    given = {name: value for name, value in options.items() if value is not None}
    return [{"name": "lm_eval", "type": "lm_eval", "tasks": names, **given}]


def _given(given: Mapping[str, object]) -> list[str]:
    """The options that were given."""
    return [name for name, value in given.items() if value is not None]
