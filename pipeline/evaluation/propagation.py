"""Figures of an injected error: rho, and where two coupled continuations become one. Pure functions on numbers."""

from collections.abc import Sequence
from statistics import fmean

from pipeline.objectives.statistics import bootstrap_interval, mean_interval, ratio_interval, with_interval


def propagation_figures(
    injected: Sequence[float], clean: Sequence[float], *, prefix: str = "", seed: int = 0
) -> dict[str, float]:
    """``rho`` = sum (P(w | injected) - P(w | clean)) / sum (1 - P(w | clean)), and ``again`` and ``again_clean``, the
    means of the two probabilities, with bootstrap intervals over prompts.

    rho is 0 where the error says nothing about what comes, and 1 where it always comes again.

    Args:
        injected: P(w again | injected) of each prompt.
        clean: P(w | clean) of each prompt; without rho where it is 1 of all.
        prefix: in front of the names.
        seed: of the bootstrap.
    """
    figures = {}
    room = [1 - p for p in clean]
    if sum(room) > 0:
        moved = [p - q for p, q in zip(injected, clean, strict=True)]
        figures |= with_interval(f"{prefix}rho", *ratio_interval(moved, room, seed=seed))
    for name, values in (("again", injected), ("again_clean", clean)):
        figures |= with_interval(f"{prefix}{name}", fmean(values), bootstrap_interval(values, seed=seed))
    return figures


def merging_step(first: Sequence[int], second: Sequence[int]) -> int | None:
    """The first step from which on two continuations have the same tokens to the end of both; None if they never do.

    Continuations of different lengths end at different steps: they never merge.
    """
    if len(first) != len(second) or not first or first[-1] != second[-1]:
        return None
    step = len(first)
    while step and first[step - 1] == second[step - 1]:
        step -= 1
    return step


def share_merged(
    merged: Sequence[Sequence[int | None]], lasts: Sequence[Sequence[int]], steps: int
) -> list[tuple[float, tuple[float, float]]]:
    """Of each step k = 0..steps: the share of pairs that have merged by k, with an interval over prompts.

    Args:
        merged: the merging step of each pair of each prompt.
        lasts: until which step a pair may count, so that the last tokens before a limit are no merging.
        steps: the last step.
    """
    curve = []
    for k in range(steps + 1):
        shares = [
            fmean(step is not None and step <= min(k, last) for step, last in zip(group, ends, strict=True))
            for group, ends in zip(merged, lasts, strict=True)
        ]
        curve.append((fmean(shares), mean_interval(shares)))
    return curve
