"""TRL's own rewards by name: ``trl:accuracy`` is ``trl.rewards.accuracy_reward``, called as TRL's trainers call it.

What is in ``trl.rewards`` is looked up there, so that a later TRL's rewards have names as well. A function that makes
a reward, such as ``get_soft_overlong_punishment``, takes the options: ``trl:soft_overlong_punishment(…=…)``.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.rewards.spec import Options
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.messages import assistant_turn, text_of

PREFIX = "trl:"
_MAKES = "get_"  # of the functions that return a reward
_VERIFIERS = ("accuracy_reward", "reasoning_accuracy_reward")  # say whether an answer is right
_OF_THE_SAMPLE = ("prompts", "completions", "completion_ids")


class TRLReward(NamedTuple):
    """A reward of TRL's: the function, the columns that it cannot do without, whether it says what is right."""

    function: Callable[..., list[float | None]]
    columns: tuple[str, ...]
    verifies: bool


def names() -> dict[str, str]:
    """The names after ``trl:`` and the names in ``trl.rewards``: ``accuracy`` for ``accuracy_reward``."""
    import trl.rewards

    found = [name for name in dir(trl.rewards) if not name.startswith("_") and callable(getattr(trl.rewards, name))]
    return {name.removeprefix(_MAKES).removesuffix("_reward"): name for name in found}


def load(name: str, options: Options) -> TRLReward:
    """The reward of a name after ``trl:``, or of its name in ``trl.rewards``.

    Raises:
        UserError: no such reward, an option that it does not take or that is missing, or a package that it needs.
    """
    import trl.rewards

    known = names()
    full = name if name in known.values() else known.get(name)
    if full is None:
        what = f"unknown name '{PREFIX}{name}'" if name else f"'{PREFIX}' names no reward"
        listed = ", ".join(PREFIX + short for short in sorted(known))
        raise UserError(f"reward: {what}; TRL has {listed}{did_you_mean(PREFIX + name, [PREFIX + n for n in known])}")
    found = getattr(trl.rewards, full)
    made = full.startswith(_MAKES)
    columns = () if made else _columns(found)
    _check_options(name, found, options, columns)
    try:
        function = found(**options) if made else found
        columns = _columns(function)
        given = {} if made else options
        function(prompts=[], completions=[], completion_ids=[], **{column: [] for column in columns}, **given)
    except (ImportError, ValueError, TypeError) as cause:  # TRL looks for the packages it needs when it is called
        raise UserError(f"reward '{PREFIX}{name}': {' '.join(str(cause).split())}") from cause

    def call(prompts: list | None, completions: list, **data: Any) -> list[float | None]:
        if "completion_ids" in inspect.signature(function).parameters and "completion_ids" not in data:
            raise UserError(
                f"reward '{PREFIX}{name}' counts tokens: give the rows a column completion_ids, or --tokenizer_name"
            )
        turns = [y if isinstance(y, list) else assistant_turn(text_of(y)) for y in completions]
        return function(prompts=prompts, completions=turns, **data, **given)

    return TRLReward(call, columns, full in _VERIFIERS)


def _columns(function: Callable) -> tuple[str, ...]:
    """The parameters without a default that are columns of the data."""
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    return tuple(name for name in needed if name not in _OF_THE_SAMPLE)


def _check_options(name: str, function: Callable, options: Options, columns: tuple[str, ...]) -> None:
    """Refuse options that a reward does not take, and one that needs some which are not given."""
    taken = {
        p.name: p
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.VAR_KEYWORD and p.name not in (*_OF_THE_SAMPLE, *columns, "log_extra", "log_metric")
    }
    for option in options:
        if option not in taken:
            listed = f"it takes {', '.join(taken) or 'none'}"
            raise UserError(
                f"reward '{PREFIX}{name}': unknown option '{option}'; {listed}{did_you_mean(option, taken)}"
            )
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in options]
    if missing:
        written = ", ".join(f"{option}=…" for option in missing)
        raise UserError(f"reward '{PREFIX}{name}' needs options: write it as {PREFIX}{name}({written})")
