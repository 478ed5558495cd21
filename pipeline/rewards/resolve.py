"""From what ``--reward`` says to one callable, the same in every stage.

A reward is a name of the registry, one of TRL's (``trl:accuracy``), a weighted sum of names,
``package.module:function`` (or ``file.py:function``), or the folder of a reward model. Several are weighed by
``--reward_weights``: their sum is what every stage and evaluation optimises or reports.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.rewards.judging import Reward
from pipeline.rewards.registry import WeightedSum, get_reward, name_apart, names
from pipeline.rewards.spec import weighed
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json, file_sha256
from pipeline.runtime.record import Run
from pipeline.runtime.registry import import_function


def reward_spec(text: str) -> str:
    """What the registry calls a reward that a user named: a folder is a reward model, all else stays as it is."""
    is_folder = text not in names() and Path(text).expanduser().is_dir()
    return f"reward_model(model={text!r})" if is_folder else text


def resolve(
    spec: str | Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    rows: Sequence[Json] | None = None,
    allow_unsafe_code_execution: bool = False,
    **options: Any,
) -> Reward:
    """The reward that ``spec`` names (a list is a weighted sum), checked before any model of it is loaded.

    Args:
        spec: see the module's docstring.
        weights: of a list, one for each; 1 where none are given. One of weight 0 is scored and reported only.
        rows: those that it will score; they must have the columns that it reads.
        allow_unsafe_code_execution: let the parts that run code run it without a sandbox where none can be had.
        options: of a single reward, such as ``limit`` of ``length``.

    Raises:
        UserError: an unknown name or option, a function that cannot be imported, a sum that cannot be read, no model,
            no sandbox, not as many weights as rewards, a missing column.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    unsafe = allow_unsafe_code_execution
    if len(specs) == 1 and weights is None:
        reward = get_reward(reward_spec(specs[0]), allow_unsafe_code_execution=unsafe, **options)
    elif options:
        raise UserError(f"reward: write the options of several behind each, like 'length(limit=128)', not {options}")
    else:
        reward = weighted(resolve_each(specs, weights, allow_unsafe_code_execution=unsafe), weights)
    if rows is not None:
        reward.require_columns(rows)
    return reward


def resolve_each(
    specs: Sequence[str], weights: Sequence[float] | None = None, *, allow_unsafe_code_execution: bool = False
) -> list[Reward]:
    """Each of several rewards by itself, under names of their own, for trainers that weigh them.

    Raises:
        UserError: as ``resolve``.
    """
    if weights is not None and len(weights) != len(specs):
        raise UserError(
            f"reward_weights: {len(weights)} given for {len(specs)} rewards ({', '.join(specs)}): give one for each"
        )
    if weights is not None and not any(weights):
        raise UserError(
            "reward_weights: all are 0, so there is nothing to optimise; 0 is for a reward that is watched"
        )
    rewards = [get_reward(reward_spec(s), allow_unsafe_code_execution=allow_unsafe_code_execution) for s in specs]
    name_apart(rewards)
    return rewards


def weighted(rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> Reward:
    """The sum of several rewards as one; a single one of weight 1 is itself."""
    weights = [1.0] * len(rewards) if weights is None else [float(weight) for weight in weights]
    if len(rewards) == 1 and weights == [1.0]:
        return rewards[0]
    return WeightedSum(list(zip(weights, rewards, strict=True)))


def verdict_counts(rewards: Sequence[Reward]) -> dict[str, int]:
    """``verdicts/<verdict>`` of one reward, ``verdicts/<name>/<verdict>`` of several: how often each was given."""
    return {
        f"verdicts/{verdict}" if len(rewards) == 1 else f"verdicts/{reward.__name__}/{verdict}": count
        for reward in rewards
        for verdict, count in getattr(reward, "counts", {}).items()
    }


def record_reward(run: Run, reward: Reward) -> None:
    """Put what a reward is made of into the record of a run: its models as parents, the files of a user's functions as
    ``code``, what programs run in as ``sandbox``. Called after the policy is loaded, whose start is the first parent.
    """
    for part in parts_of(reward):
        if part.__name__ == "reward_model":
            run.add_parent(part.options["model"])
        if (file := _source_file(part)) is not None:
            run.note("code", file_sha256(file), entry=str(file))
    run.note("sandbox", reward.sandbox or run.record.get("sandbox"))


def _source_file(reward: Reward) -> Path | None:
    """The file of a user's function; None of TRL's rewards and ours, which a version names."""
    module = getattr(reward, "path", "trl:").partition(":")[0]
    if module == "trl" or module.startswith("pipeline."):
        return None
    return Path(inspect.getsourcefile(import_function(reward.path, "reward")))


def parts_of(reward: Reward) -> Iterator[Reward]:
    """The terms of a weighted sum, or the reward itself."""
    if isinstance(reward, WeightedSum):
        for _, part in reward.parts:
            yield from parts_of(part)
    else:
        yield reward


def weighted_spec(specs: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """Several rewards and their weights (TRL's ``reward_weights``) as one sum; a weight of 0 leaves its reward out.

    Raises:
        UserError: not as many weights as rewards, or a sum that cannot be read.
    """
    weights = [1.0] * len(specs) if weights is None else [float(weight) for weight in weights]
    terms = [weighed(reward_spec(text), weight) for text, weight in zip(specs, weights, strict=True) if weight]
    return " + ".join(terms).replace("+ -", "- ")


def strict_metric(
    rewards: Sequence[Callable[..., list[float | None]]], weights: Sequence[float] | None = None
) -> str | None:
    """The metric that TRL's trainers log for the verifier among several rewards; None where that is the reward itself.

    A verifier counts before a reward that is only watched (weight 0), and that before the verifier inside a sum.
    """
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    pairs = list(zip(rewards, weights, strict=True))
    learned = [reward for reward, weight in pairs if weight]
    if len(learned) == 1 and _verifies(learned[0]):
        return None
    for reward, _ in pairs:
        if _verifies(reward):
            return f"rewards/{reward.__name__}/mean"
    for reward, weight in pairs:
        if not weight:
            return f"rewards/{reward.__name__}/mean"
    return next((metric for reward in learned if (metric := getattr(reward, "strict_metric", None))), None)


def _verifies(reward: Callable[..., list[float | None]]) -> bool:
    return getattr(reward, "verifies", False)
