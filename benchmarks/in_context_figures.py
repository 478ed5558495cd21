"""Table and figure of docs/experiments.md (open question 4) from what benchmarks/in_context.py found.

The table replaces the one on the page, between its two markers.

python benchmarks/in_context_figures.py      # seconds
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD = 0.2  # above copying an earlier value
T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantile of Student's t with n - 1 degrees of freedom, by n
MARKERS = ("<!-- in_context_figures.py: begin -->\n", "<!-- in_context_figures.py: end -->")
SWEEPS = {  # the cells of each line of the cross; all share its middle, depth-2
    "depth": ("depth-1", "depth-2", "depth-3", "depth-4"),
    "width": ("width-32", "depth-2", "width-128", "depth-1-width-128"),
    "training maps": ("maps-4", "maps-16", "maps-64", "maps-256", "depth-2"),
    "repetition": ("once", "maps-4-once", "depth-2"),
}


def over_seeds(values: list[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95% interval by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return statistics.fmean(values), None
    return statistics.fmean(values), T975[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def passes(rows: list[dict[str, Any]]) -> bool | None:
    """Whether the lower bound of the accuracy above copying exceeds the threshold; None with a single seed."""
    mean, half = over_seeds([row["new"]["over_copy"] for row in rows])
    return None if half is None else mean - half > THRESHOLD


def by_cell(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each cell that has any, in the order of the sweeps."""
    order = dict.fromkeys(cell for cells in SWEEPS.values() for cell in cells)
    found = {cell: [row for row in results if row["cell"] == cell] for cell in order}
    return {cell: rows for cell, rows in found.items() if rows}


def table(results: list[dict[str, Any]]) -> str:
    """A row per cell: means over its seeds, the interval of the statistic, and whether it passes the threshold."""
    lines = [
        "| cell | L | d | maps | keys recur | seeds | at the floor after | loss above the floor | new maps: accuracy "
        "| copying | above copying, 95% | passes | own maps: accuracy | induction score |",
        "|" + "---|" * 14,
    ]
    for cell, rows in by_cell(results).items():
        first, reached = rows[0], [str(row["steps"]) for row in rows if row["reached"]]
        mean, half = over_seeds([row["new"]["over_copy"] for row in rows])
        interval = f"{mean:.2f}" if half is None else f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"
        own = f"{average(rows, 'own', 'accuracy'):.2f}" if "own" in first else ""
        steps = ", ".join(reached) if reached else "never"
        if reached and len(reached) < len(rows):
            steps += f" ({len(reached)} of {len(rows)})"
        cells = [
            cell, first["depth"], first["width"], first["count"] or "new", "no" if first["once"] else "yes", len(rows),
            steps, f"{statistics.fmean(row['loss'] - row['floor'] for row in rows):.2f}",
            f"{average(rows, 'new', 'accuracy'):.2f}", f"{average(rows, 'new', 'copy_baseline'):.2f}", interval,
            {True: "yes", False: "no", None: "one seed"}[passes(rows)], own,
            f"{average(rows, 'new', 'induction'):.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def section(results: list[dict[str, Any]]) -> str:
    """The page's table, and below it how many runs it is of and what they took."""
    minutes = sum(row["cpu_seconds"] for row in results) / 60
    return f"\n{table(results)}\n\n{len(results)} runs, {minutes:.1f} minutes of one core.\n\n"


def average(rows: list[dict[str, Any]], maps: str, name: str) -> float:
    """The mean over seeds of one figure, on new maps or on the cell's own."""
    return statistics.fmean(row[maps][name] for row in rows)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy on new maps and induction score of every run; the lines are copying, and copying + threshold."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    cells = by_cell(results)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8.5, 5), layout="constrained", sharex=True)
    for place, rows in enumerate(cells.values()):
        for axes, name, color in ((upper, "accuracy", "#0072B2"), (lower, "induction", "#D55E00")):
            axes.plot([place] * len(rows), [row["new"][name] for row in rows], "o", color=color, ms=6, alpha=0.7)
        passed = passes(rows)
        mark = {True: "passes", False: "below", None: "one seed"}[passed]
        upper.annotate(mark, (place, 1.04), ha="center", fontsize=7.5, color="0.3", annotation_clip=False)
    copied = statistics.fmean(row["new"]["copy_baseline"] for row in results)
    even = statistics.fmean(row["new"]["induction_uniform"] for row in results)
    upper.axhline(copied, color="0.45", lw=1, label="copying an earlier value")
    upper.axhline(copied + THRESHOLD, color="0.45", lw=1, ls="--", label=f"copying + {THRESHOLD}")
    lower.axhline(even, color="0.45", lw=1, label="even attention")
    upper.set(ylabel="accuracy on new maps", ylim=(0, 1.08))
    lower.set(ylabel="induction score, best head", ylim=(0, 1.02))
    lower.set_xticks(range(len(cells)), list(cells), rotation=30, ha="right")
    for axes in (upper, lower):
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "in_context.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "experiments.md")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "in_context.png")
    options = parser.parse_args()
    results = [json.loads(line) for line in options.results.read_text().splitlines()]
    block = section(results)
    print(block)
    before, rest = options.page.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    options.page.write_text(before + MARKERS[0] + block + MARKERS[1] + after, encoding="utf-8")
    draw(results, options.out)


if __name__ == "__main__":
    main()
