"""Tables and figures of docs/sycophancy.md from what benchmarks/sycophancy.py found.

python benchmarks/sycophancy_figures.py      # seconds; rewrites the marked part of the page
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sycophancy import BETA, SCALE, STRENGTHS, WEIGHTS, answers

from pipeline.worlds import enumerable_sycophancy as task

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- sycophancy_figures.py: begin -->", "<!-- sycophancy_figures.py: end -->"
LABELS = {"ppo": "PPO", "dpo": "DPO", "dpo_per_label": "DPO, knowledge per label"}
STYLE = {"ppo": ("#0072B2", "o"), "dpo": ("#D55E00", "^"), "dpo_per_label": ("#009E73", "s")}


def slope_of(runs: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Least-squares slope of the measured shift against the prediction over runs (each the mean of its prompts), with
    an intercept; its standard error; how many runs.
    """
    x = np.array([run["predicted"] for run in runs])
    y = np.array([statistics.fmean(run["shifts"]) for run in runs])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = float(np.sqrt(left @ left / max(1, len(x) - 2) / (centred @ centred)))
    return slope, error, len(runs)


def slopes(results: list[dict[str, Any]]) -> list[str]:
    """A table of slopes: all seeds together and one by one."""
    lines = [
        "| method | runs | slope (standard error) | by seed | a cell's mean, farthest from its prediction |",
        "|---|---|---|---|---|",
    ]
    for method, label in LABELS.items():
        runs = [r for r in results if r["method"] == method]
        if len({r["predicted"] for r in runs}) < 3:
            continue
        slope, error, count = slope_of(runs)
        seeds = sorted({r["seed"] for r in runs})
        each = ", ".join(f"{slope_of([r for r in runs if r['seed'] == s])[0]:.3f}" for s in seeds)
        lines.append(f"| {label} | {count} | {slope:.3f} ({error:.3f}) | {each} | {worst(runs):.2f} nats |")
    return lines


def cells(runs: list[dict[str, Any]]) -> dict[tuple, list[float]]:
    """(a, kappa) -> the mean shift of each seed."""
    found: dict[tuple, list[float]] = {}
    for run in runs:
        found.setdefault((run["agree"], run["knowledge"]), []).append(statistics.fmean(run["shifts"]))
    return found


def worst(runs: list[dict[str, Any]]) -> float:
    """The largest distance of a cell's mean over seeds from its prediction."""
    predicted = {(r["agree"], r["knowledge"]): r["predicted"] for r in runs}
    return max(abs(statistics.fmean(values) - predicted[cell]) for cell, values in cells(runs).items())


def grid(results: list[dict[str, Any]]) -> list[str]:
    """A table of predictions and means over seeds, a row per cell."""
    by = {method: [r for r in results if r["method"] == method] for method in LABELS}
    found = {method: cells(runs) for method, runs in by.items()}
    lines = ["| a | kappa | (a - 2.5 kappa)/beta | PPO | DPO | per label | DPO |", "|---|---|---|---|---|---|---|"]
    for a in task.AGREEABLENESS:
        for k in task.KNOWLEDGE:
            row = [f"{a:g}", f"{k:g}", f"{task.predicted_shift(a, k, BETA):.2f}"]
            for method in ("ppo", "dpo"):
                row.append(shown(found[method].get((a, k))))
            row.append(f"{task.predicted_shift(a, k, BETA, per_label=True):.2f}")
            row.append(shown(found["dpo_per_label"].get((a, k))))
            lines.append("| " + " | ".join(row) + " |")
    return lines


def shown(values: list[float] | None) -> str:
    """Mean and range over seeds."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.2f} (one seed)"
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def sweep(results: list[dict[str, Any]]) -> list[str]:
    """A table of the policies trained on w R_truth + (1 - w) R_agree: the place of each beside its optimum's, and its
    regret.
    """
    lines = [
        "| w | seeds | accuracy (pi_w) | flips (pi_w) | agreement with right beliefs (pi_w) | regret, largest |",
        "|---|---|---|---|---|---|",
    ]
    for w in WEIGHTS:
        runs = [r for r in results if r["method"] == "frontier" and r["w"] == w]
        if runs:
            row = []
            for name in ("accuracy", "flips", "agreement"):
                trained, best = (statistics.fmean(p[name] for p in of) for of in (runs, [r["best"] for r in runs]))
                row.append(f"{trained:.3f} ({best:.3f})")
            lines.append(f"| {w:g} | {len(runs)} | {' | '.join(row)} | {max(r['regret'] for r in runs):.3f} |")
    return lines if len(lines) > 2 else ["The sweep over w was not run."]


def draw_shifts(results: list[dict[str, Any]], path: Path) -> None:
    """Measured against predicted shift, a point per run, beside the line of slope 1."""
    figure, axes = plt.subplots(figsize=(4.6, 4.2))
    ends = [-2.9, 4.4]
    axes.plot(ends, ends, color="0.6", lw=1)
    for method, label in LABELS.items():
        runs = [r for r in results if r["method"] == method]
        colour, marker = STYLE[method]
        axes.scatter([r["predicted"] for r in runs], [statistics.fmean(r["shifts"]) for r in runs], s=22,
                     color=colour, marker=marker, label=label, alpha=0.8)  # fmt: skip
    axes.set_xlabel("predicted shift of log-odds (agree : truth), nats")
    axes.set_ylabel("measured, mean of nine wrong beliefs")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw_frontier(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and agreement with right beliefs over flips: frontiers of seed 0, trained policies, Bayes."""
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.8), sharex=True)
    known = answers()
    (of_seed,) = [r for r in results if r["method"] == "curves" and r["seed"] == 0]
    for strength in STRENGTHS:
        points, shade = of_seed["frontiers"][f"{strength:g}"], "0.35" if strength == SCALE else "0.7"
        for panel, name in zip(panels, ("accuracy", "agreement")):
            panel.plot([p["flips"] for p in points], [p[name] for p in points], color=shade, lw=1,
                       label=f"frontier at strength {strength:g}")  # fmt: skip
    weight = known.weight / known.weight.sum()
    best = (known.right.max(-1).values * weight).sum().item()
    for panel, name, top in zip(panels, ("accuracy", "agreement"), (best, 1.0)):
        for method, label in (("frontier", "PPO on R_w"), ("ppo", "PPO on annotators"), ("dpo", "DPO")):
            runs = [r for r in results if r["method"] == method]
            colour, marker = STYLE.get(method, ("#CC79A7", "D"))
            panel.scatter([r["flips"] for r in runs], [r[name] for r in runs], s=18, color=colour, marker=marker,
                          label=label, alpha=0.8)  # fmt: skip
        panel.scatter([0], [top], marker="*", s=90, color="black", label="Bayes", zorder=5)
        panel.set_xlabel("flips: wrong beliefs repeated")
    panels[0].set_ylabel("accuracy over all prompts")
    panels[1].set_ylabel("agreement with right beliefs")
    panels[1].legend(frameon=False, fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def block(results: list[dict[str, Any]]) -> str:
    """The marked part of the page."""
    seconds = sum(r["cpu_seconds"] for r in results)
    end = f"{sum(r['method'] != 'curves' for r in results)} runs, {seconds / 60:.0f} minutes of one core."
    return "\n\n".join("\n".join(part) for part in (slopes(results), grid(results), sweep(results), [end]))


def main() -> None:
    """Write the tables into the page and the figures beside it."""
    results: list[dict[str, Any]] = [
        json.loads(line) for line in (ROOT / "benchmarks" / "sycophancy.jsonl").read_text().splitlines()
    ]
    page = ROOT / "docs" / "sycophancy.md"
    text = page.read_text(encoding="utf-8")
    marked = f"{BEGIN}\n\n{block(results)}\n\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: marked, text, flags=re.DOTALL), encoding="utf-8")
    draw_shifts(results, ROOT / "docs" / "figures" / "sycophancy_shift.png")
    draw_frontier(results, ROOT / "docs" / "figures" / "sycophancy_frontier.png")
    print(block(results))


if __name__ == "__main__":
    main()
