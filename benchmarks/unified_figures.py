"""Table and figures of docs/unified.md from what benchmarks/unified.py found.

    python benchmarks/unified_figures.py      # seconds

The table needs only benchmarks/unified.jsonl. The figures show seed 0; they also read the laws in the benchmark's work
folder, which is not committed.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from pipeline.evaluation.exact import exact_figures, frontier, prefix_law
from pipeline.objectives.divergences import best_of_n_bound, best_of_n_kl, best_of_n_law, tilted_law
from pipeline.worlds import enumerable

ROOT = Path(__file__).resolve().parents[1]
# Okabe and Ito's colours, and a marker each: told apart without colour too.
STYLE = {
    "ppo": ("PPO", "#0072B2", "o"),
    "rloo": ("RLOO", "#56B4E9", "s"),
    "dpo": ("DPO", "#D55E00", "^"),
    "rsft_softmax": ("RSFT, softmax", "#009E73", "D"),
    "rsft_best": ("RSFT, best of 16", "#E69F00", "v"),
    "grpo": ("GRPO, corrected", "#CC79A7", "P"),
    "grpo_uncorrected": ("GRPO, uncorrected", "#000000", "X"),
    "sft": ("SFT on samples of pi*", "0.55", "*"),
}
SHOWN_BETA, SHOWN_SEED = 0.5, 0
GREY = "0.45"


def table(results: list[dict[str, Any]]) -> str:
    """Medians over seeds, a row a method and a column a beta: share of pi_ref's regret removed, range; seeds."""
    betas = sorted({r["beta"] for r in results})
    cells: dict[tuple[str, float], list[dict]] = defaultdict(list)
    for result in results:
        cells[result["method"], result["beta"]].append(result)
    lines = [
        "| method | " + " | ".join(f"beta {b:g}" for b in betas) + " | seconds per run |",
        "|---" * (len(betas) + 2) + "|",
    ]
    for method, (label, *_) in STYLE.items():
        row = [label]
        for beta in betas:
            found = [100 * r["regret_removed"] for r in cells[method, beta]]
            row.append(
                f"**{statistics.median(found):.2f}** ({min(found):.2f} to {max(found):.2f}; {len(found)})"
                if found
                else ""
            )
        seconds = [r["cpu_seconds"] for r in results if r["method"] == method]
        lines.append("| " + " | ".join(row) + f" | {statistics.median(seconds):.0f} |" if seconds else "")
    lines += [
        "",
        "| GRPO's own law removes, and its distance in nats to | " + " | ".join(f"beta {b:g}" for b in betas) + " |",
    ]
    lines.append("|---" * (len(betas) + 1) + "|")
    for method in ("grpo", "grpo_uncorrected"):
        own, other = ("corrected", "uncorrected") if method == "grpo" else ("uncorrected", "corrected")
        for name, key in (
            ("own law removes, %", f"{own}_law_removes"), ("run minus own law, points", None),
            ("KL to own law", f"kl_to_{own}_law"), ("KL to the other's law", f"kl_to_{other}_law"),
            ("KL to pi*", "kl_to_optimum"),
        ):  # fmt: skip
            row = []
            for beta in betas:
                of = cells[method, beta]
                if key is None:
                    values = [100 * (r["regret_removed"] - r[f"{own}_law_removes"]) for r in of]
                else:
                    values = [r[key] * (100 if "removes" in key else 1) for r in of]
                row.append(f"{statistics.median(values):.3g}" if values else "")
            lines.append(f"| {STYLE[method][0]}: {name} | " + " | ".join(row) + " |")
    gap = max(r["identity_gap"] for r in results)
    mass = max(r["mass"] for r in results)
    lines += [
        "",
        f"{len(results)} runs. Largest gap of the identity: {gap:.1e}. Largest distance of a mass from 1: {mass:.1e}.",
    ]
    return "\n".join(lines)


def axes_of(columns: int, height: float = 3.4, width: float = 9.0):
    """A row of panels that are legible at the width of a README."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")


def draw_frontier(results: list[dict], laws: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
    """Reward over KL. Left: the methods at one beta and the line J = J*; right: all beta, and best of N's curve."""
    reference, rewards = next(iter(laws.values()))["reference"], enumerable.rewards(SHOWN_SEED)
    betas = torch.logspace(1.2, -1.5, 200, dtype=torch.float64).tolist()
    optima = frontier(reference, rewards, betas)
    curve = {name: [point[name] for point in optima] for name in ("kl", "reward")}
    figure, (left, right) = axes_of(2, 3.8)
    mine = [r for r in results if r["seed"] == SHOWN_SEED]
    shown = [r for r in mine if r["beta"] == SHOWN_BETA]
    left.plot(curve["kl"], curve["reward"], color=GREY, label="optimum, all beta")
    star = exact_figures(tilted_law(reference, rewards, SHOWN_BETA), reference, rewards, SHOWN_BETA)
    left.axline((star["kl"], star["reward"]), slope=SHOWN_BETA, color=GREY, lw=0.8, ls=":", label="J = J*")
    left.plot(star["kl"], star["reward"], "o", mfc="none", mec="black", ms=11, label="pi*")
    for result in sorted(shown, key=lambda r: list(STYLE).index(r["method"])):
        label, color, marker = STYLE[result["method"]]
        left.plot(result["kl"], result["reward"], marker, color=color, label=label, ms=6)
    low, high = min(r["kl"] for r in shown) - 0.1, max(r["kl"] for r in shown) + 0.1
    bottom = min(r["reward"] for r in shown) - 0.05
    left.set(xlim=(low, high), ylim=(bottom, max(r["reward"] for r in shown) + 0.08), title=f"beta {SHOWN_BETA}")
    left.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(-0.02, 1.02), ncols=2)
    left.set_ylim(top=bottom + 1.7 * (left.get_ylim()[1] - bottom))
    counts = [2**k for k in range(9)]
    best = [best_of_n(reference, rewards, n) for n in counts]
    color = STYLE["rsft_best"][1]
    right.plot(curve["kl"], curve["reward"], color=GREY, label="optimum, all beta")
    right.plot([kl for kl, _ in best], [r for _, r in best], "v-", color=color, label="best of N, exact law", ms=5)
    bound = [best_of_n_bound(n) for n in counts]
    right.plot(bound, [r for _, r in best], "--", color=color, label="the same at its bound log N - (N-1)/N")
    for n, (kl, r) in zip(counts, best):
        if n in (2, 4, 16, 64, 256):
            right.annotate(f"N={n}", (kl, r), (6, -10), textcoords="offset points", fontsize=7.5)
    for beta in (1.0, 0.5, 0.1):
        at = exact_figures(tilted_law(reference, rewards, beta), reference, rewards, beta)
        right.plot(at["kl"], at["reward"], "o", mfc="none", mec=GREY, ms=8)
        right.annotate(f"beta {beta:g}", (at["kl"], at["reward"]), (-38, 6), textcoords="offset points", fontsize=7.5)
    for result in shown:
        if result["method"] == "rsft_best":
            right.plot(result["kl"], result["reward"], "*", color="black", ms=10, label="model trained on best of 16")
    right.set(xlim=(-0.35, None), title="best of N")  # room for a label
    right.legend(frameon=False, fontsize=7.5, loc="lower right")
    for axes in (left, right):
        axes.set(xlabel="KL to pi_ref, nats per completion", ylabel="E[R], deviations of the reward")
    figure.savefig(folder / "unified_frontier.png", dpi=130)


def best_of_n(reference: torch.Tensor, rewards: torch.Tensor, n: int) -> tuple[float, float]:
    """Exact KL and reward of best-of-N from pi_ref, means over prompts."""
    laws = [best_of_n_law(p, r, n) for p, r in zip(reference.exp(), rewards)]
    kl = statistics.fmean(best_of_n_kl(p, r, n).item() for p, r in zip(reference.exp(), rewards))
    return kl, statistics.fmean((law * r).sum().item() for law, r in zip(laws, rewards))


def draw_trajectories(results: list[dict], folder: Path) -> None:
    """J, E[R] and KL over the completions drawn (DPO: judged in pairs), one seed, one beta."""
    figure, panels = axes_of(3, 3.5, 10.5)
    shown = [r for r in results if r["beta"] == SHOWN_BETA and r["seed"] == SHOWN_SEED and r["trajectory"]]
    for axes, name, label in zip(
        panels,
        ("objective", "reward", "kl"),
        ("J, deviations of the reward", "E[R], deviations of the reward", "KL to pi_ref, nats per completion"),
    ):
        for result in shown:
            text, color, marker = STYLE[result["method"]]
            rows = result["trajectory"]
            axes.plot(
                [r["drawn"] for r in rows],
                [r[name] for r in rows],
                marker=marker,
                ms=4,
                color=color,
                label=text,
                lw=1.2,
            )
        axes.set(xscale="log", xlabel="completions drawn, thousands", ylabel=label)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([20e3, 50e3, 100e3, 200e3, 500e3], ["20", "50", "100", "200", "500"])
    if shown:
        panels[0].axhline(shown[0]["optimum"], color=GREY, lw=1)
        panels[0].annotate(
            "J*",
            (1, shown[0]["optimum"]),
            (-12, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=GREY,
        )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.savefig(folder / "unified_trajectories.png", dpi=130)


def draw_scatter(laws: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
    """log pi against log pi* of every completion, a panel a method."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(2, 4, figsize=(10.5, 5.6), layout="constrained", sharex=True, sharey=True)
    for axes, (method, (label, color, _)) in zip(panels.flat, STYLE.items()):
        axes.set_title(label, fontsize=9)
        if method not in laws:
            continue
        star, law = laws[method]["star"].flatten(), laws[method]["law"].flatten()
        axes.plot([-13, 0], [-13, 0], color=GREY, lw=1)
        axes.plot(star, law, ".", color=color, ms=3, alpha=0.7)
        axes.set(xlim=(-13, 0), ylim=(-13, 0), xticks=range(-12, 1, 4), yticks=range(-12, 1, 4))
    for axes in panels[1]:
        axes.set_xlabel("log pi*(y|x), nats")
    for axes in panels[:, 0]:
        axes.set_ylabel("log pi(y|x), nats")
    figure.savefig(folder / "unified_scatter.png", dpi=130)


def two_tokens(tasks: int = 200, beta: float = 0.5) -> dict[bool, float]:
    """The exact check: mean share of the regret that each law of a KL inside the loss leaves, on random tasks of two
    tokens of a vocabulary of three, pi_ref with normal logits, rewards even in [0, 2]."""
    generator = torch.Generator().manual_seed(0)
    leaves = [(a, b) for a in range(3) for b in range(3)]
    first, second = torch.randn(2, tasks, 3, 3, generator=generator, dtype=torch.float64)
    reference = (first[:, 0].log_softmax(-1)[..., None] + second.log_softmax(-1)).flatten(1)
    rewards = 2 * torch.rand(tasks, 9, generator=generator, dtype=torch.float64)
    left = {}
    for corrected in (True, False):
        law = prefix_law(reference, rewards, leaves, beta, corrected=corrected)
        left[corrected] = 1 - exact_figures(law, reference, rewards, beta)["regret_removed"]
    return left


def draw_grpo(results: list[dict], folder: Path) -> None:
    """Distance of both GRPO variants to three laws, and the share of the regret that run and law remove."""
    figure, (left, right) = axes_of(2, 3.6)
    betas = sorted({r["beta"] for r in results if r["method"].startswith("grpo")})
    targets = {
        "kl_to_corrected_law": ("corrected law", "#CC79A7", ""),
        "kl_to_uncorrected_law": ("uncorrected law", "#000000", "//"),
        "kl_to_optimum": ("pi*", "#0072B2", ".."),
    }
    ticks = []
    for row, method in enumerate(("grpo", "grpo_uncorrected")):
        for column, beta in enumerate(betas):
            of = [r for r in results if r["method"] == method and r["beta"] == beta]
            place = 4 * (row * len(betas) + column) + row
            run = ("corrected", "uncorrected")[row] if 2 * column == len(betas) - 1 or len(betas) == 2 else ""
            ticks.append((place + 1, f"beta {beta:g}\n{run}"))
            for i, (name, (label, color, hatch)) in enumerate(targets.items()):
                value = statistics.median(r[name] for r in of) if of else 0.0
                named = label if row == column == 0 else None
                left.bar(place + i, value, 0.9, color=color, alpha=0.8, hatch=hatch, edgecolor="white", label=named)
    left.set(ylabel="KL of the run to a law, nats per completion", yscale="log")
    left.set_xticks([p for p, _ in ticks], [name for _, name in ticks], fontsize=8)
    left.set_ylim(top=6 * left.get_ylim()[1])
    left.legend(frameon=False, fontsize=8, title="distance of the run to", title_fontsize=8, ncols=3, loc="upper left")
    lows = []
    for method, key in (("grpo", "corrected"), ("grpo_uncorrected", "uncorrected")):
        label, color, marker = STYLE[method]
        of = [r for r in results if r["method"] == method]
        x, y = [100 * r[f"{key}_law_removes"] for r in of], [100 * r["regret_removed"] for r in of]
        lows += [*x, *y]
        right.plot(x, y, marker, color=color, ms=6, alpha=0.8, label=label)
    low = min(lows, default=0) - 2
    right.plot([low, 100], [low, 100], color=GREY, lw=1, label="run = law")
    right.fill_between([low, 100], [low - 2, 98], [low, 100], color=GREY, alpha=0.15, lw=0, label="within 2 points")
    right.set(xlabel="its own law removes, % of pi_ref's regret", ylabel="the run removes, % of pi_ref's regret")
    right.set(xlim=(low, 100), ylim=(low - 1, 100))
    right.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "unified_grpo.png", dpi=130)


def main() -> None:
    """Print the tables, draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "unified.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "unified_benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args()
    results = [json.loads(line) for line in options.results.read_text().splitlines()]
    print(table(results))
    left = two_tokens()
    print(f"Two tokens, exact: corrected, {left[True]:.1%} of the regret is left; uncorrected, {left[False]:.1%}.")
    laws = {}
    for method in STYLE:
        path = options.work / f"{method}-{SHOWN_SEED}-{SHOWN_BETA}.pt"
        if path.is_file():
            laws[method] = torch.load(path)
    if laws:
        draw_frontier(results, laws, options.out)
        draw_scatter(laws, options.out)
    draw_trajectories(results, options.out)
    draw_grpo(results, options.out)


if __name__ == "__main__":
    main()
