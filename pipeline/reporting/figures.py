"""The figures of the assessments as tables: which models have them, which way is better, and what moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reporting.charts import interval_bar
from pipeline.reporting.directions import ARROWS, NEITHER, WORDS, Difference, difference, direction
from pipeline.reporting.history import RunView, evaluated_before
from pipeline.runtime.files import Json
from pipeline.runtime.formatting import number

VERDICTS = {True: ("good", "✓"), False: ("bad", "✗")}
ALSO_SHOWN = ("perplexity", "bayes_accuracy", "share_of_bayes")


@dataclass
class Table:
    """Figures of evaluations that the same models have: its columns, and a group of rows per evaluation."""

    runs: Sequence[RunView]
    groups: list[Json]


@dataclass
class Assessed:
    """The figures of all assessments: those with an interval or a claim first, the rest folded."""

    main: list[Table]
    others: list[Table]


def assessed(runs: Sequence[RunView], every: Sequence[RunView] = ()) -> Assessed | None:
    """Figures by evaluation: a row per metric, a column per evaluated model; None where there is nothing.

    Args:
        runs: the assessments.
        every: all runs, which say what a model was made from and so what its figures were before.
    """
    if not runs:
        return None
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    claimed = {claim["metric"] for run in runs for claim in run.record.get("expected") or []}
    plain = [n for n in names if not (n.endswith(("_low", "_high")) and n.rpartition("_")[0] in names)]
    main = [n for n in plain if f"{n}_low" in names or n in claimed or n.rpartition("/")[2] in ALSO_SHOWN]
    # A lenient score that equals the strict one everywhere adds nothing.
    main = [
        n
        for n in main
        if not n.endswith("_lenient")
        or any(run.metrics.get(n) != run.metrics.get(n.removesuffix("_lenient")) for run in runs)
    ]
    rest = [n for n in plain if n not in main]
    before = {run.name: evaluated_before(run, every or runs) for run in runs}
    return Assessed(figure_tables(runs, main, before, bars=True), figure_tables(runs, rest, before, bars=False))


def figure_tables(
    runs: Sequence[RunView], names: Sequence[str], before: Mapping[str, Json], *, bars: bool
) -> list[Table]:
    """The named metrics in tables without empty columns: evaluations that the same models have are in one."""
    by_evaluation: dict[str, list[str]] = {}
    for name in names:
        by_evaluation.setdefault(name.partition("/")[0], []).append(name)
    tables: dict[tuple[str, ...], Table] = {}
    for evaluation, metrics in by_evaluation.items():
        having = [run for run in runs if any(run.metrics.get(name) is not None for name in metrics)]
        if not having:
            continue
        table = tables.setdefault(tuple(run.name for run in having), Table(having, []))
        rows = [figure_row(having, name, before, bars=bars) for name in metrics]
        how = describe_evaluation(having, evaluation)
        table.groups.append({"name": evaluation, "how": how, "rows": [row for row in rows if any(row["cells"])]})
    return list(tables.values())


def figure_row(runs: Sequence[RunView], name: str, before: Mapping[str, Json], *, bars: bool) -> Json:
    """One metric: its name, which way it is better, and a cell per model."""
    scale = scale_of(runs, name) if bars else None
    claims = [claim for run in runs for claim in run.record.get("expected") or []]
    known = direction(name, claims)
    better = known or NEITHER
    return {
        "metric": name.partition("/")[2].replace("_", " ").replace("/", ": "),
        "arrow": ARROWS[better],
        "better": "" if known is None else WORDS[better],
        "cells": [cell(run, name, scale, before.get(run.name) or {}, claims) for run in runs],
    }


def cell(
    run: RunView, name: str, scale: tuple[float, float] | None, before: Json, claims: Sequence[Json]
) -> Json | None:
    """One figure with its interval, its bar, how far it is from what it was before, and the expectations about it."""
    value = run.metrics.get(name)
    if value is None:
        return None
    low, high = run.metrics.get(f"{name}_low"), run.metrics.get(f"{name}_high")
    verdicts = []
    for claim in run.record.get("expected") or []:
        if claim["metric"] == name:
            kind, sign = VERDICTS.get(claim["met"], ("", "?"))
            verdicts.append((kind, f"{sign} {claim['claim'].replace(name, '', 1).strip()}"))
    bounded = low is not None and high is not None
    return {
        "value": number(value),
        "low": number(low) if bounded else None,
        "high": number(high) if bounded else None,
        "bar": interval_bar(value, low, high, scale) if scale is not None and not isinstance(value, int) else "",
        "moved": own_verdict(name, value, low, high) or moved(difference(name, run.metrics, before, claims)),
        "verdicts": verdicts,
    }


def own_verdict(name: str, value: float, low: float | None, high: float | None) -> Json | None:
    """Of an advantage, which is a difference already, whether its interval leaves 0 out; None of any other figure."""
    if not name.endswith("advantage") or low is None or high is None:
        return None
    kind = "gain" if low > 0 else "loss" if high < 0 else "same"
    word = {"gain": "better than best-of-N", "loss": "worse than best-of-N", "same": "no clear difference"}[kind]
    return {"kind": kind, "text": "", "interval": f"{low:+.3f} to {high:+.3f}", "word": word}


def moved(change: Difference | None) -> Json | None:
    """A difference as the page writes it: its sign, its interval, and whether that is better."""
    if change is None or not change.value:
        return None
    return {
        "kind": change.kind,
        "text": f"{change.value:+.3f}".replace("-", "−"),
        "interval": f"{change.low:+.3f} to {change.high:+.3f}".replace("-", "−"),
        "word": {"gain": "better", "loss": "worse", "same": "no clear change", "moved": ""}[change.kind],
    }


def scale_of(runs: Sequence[RunView], name: str) -> tuple[float, float]:
    """The track of a row's bars: 0..1 for shares, else from 0 to the largest value in the row."""
    last = name.rpartition("/")[2]
    values = [run.metrics.get(f"{name}{end}") for run in runs for end in ("", "_low", "_high")]
    finite = [value for value in values if value is not None]
    if all(0 <= value <= 1 for value in finite) and last not in ("loss", "reward", "margin"):
        return 0.0, 1.0
    return min(0.0, *finite), max(0.0, *finite) or 1.0


def describe_evaluation(runs: Sequence[RunView], name: str) -> str:
    """What an evaluation measures on what, from the arguments of the last assessment that has it."""
    for run in reversed(runs):
        for entry in (run.record.get("arguments") or {}).get("evaluations") or []:
            if isinstance(entry, dict) and entry.get("name", entry.get("type")) == name:
                parts = [str(entry.get("type", ""))]
                if entry.get("dataset"):
                    parts.append(f"{entry['dataset']}, split {entry.get('split', 'test')}")
                if entry.get("reward"):
                    parts.append(f"scored by {entry['reward']}")
                if entry.get("temperature"):
                    parts.append(f"{entry.get('n', 1)} samples per prompt at τ = {entry['temperature']:g}")
                elif entry.get("type") == "accuracy":
                    parts.append("greedy")
                return " · ".join(parts)
    return ""
