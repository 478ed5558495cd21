"""Which law rejection sampling selects, exactly: best-of-N against its bound, softmax against the tilted law.

    python benchmarks/selection.py        # seconds; writes docs/figures/selection.png and prints the numbers

Exact laws of a reference over 200 outcomes with normal rewards (one seed), by the closed forms of
pipeline/objectives/divergences.py: nothing is sampled.
"""

import argparse
from pathlib import Path

import torch

from pipeline.objectives.divergences import (
    best_of_n_bound,
    best_of_n_law,
    exact_kl,
    log_partition,
    softmax_selection_law,
    tilted_law,
    total_variation,
)

TAU = 0.5
COUNTS = [2**k for k in range(11)]


def figures(seed: int = 0) -> dict[str, list[float]]:
    """For each N of COUNTS: KL, reward and distance to the tilted law of both selections, and best-of-N's bound."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(200, generator=generator, dtype=torch.float64).softmax(0)
    rewards = torch.randn(200, generator=generator, dtype=torch.float64)
    star = tilted_law(reference.log(), rewards, TAU).exp()
    found: dict[str, list[float]] = {"bound": [best_of_n_bound(n) for n in COUNTS]}
    for name, law_of in (
        ("best", lambda n: best_of_n_law(reference, rewards, n)),
        ("softmax", lambda n: softmax_selection_law(reference, rewards, n, TAU)),
    ):
        laws = [law_of(n) for n in COUNTS]
        found[f"{name}_kl"] = [exact_kl(law, reference).item() for law in laws]
        found[f"{name}_reward"] = [(law * rewards).sum().item() for law in laws]
        found[f"{name}_distance"] = [total_variation(law, star).item() for law in laws]
    betas = torch.logspace(1.5, -1.2, 80, dtype=torch.float64).tolist()
    frontier = [tilted_law(reference.log(), rewards, beta).exp() for beta in betas]
    found["frontier_kl"] = [exact_kl(law, reference).item() for law in frontier]
    found["frontier_reward"] = [(law * rewards).sum().item() for law in frontier]
    found["optimum"] = [log_partition(reference.log(), rewards, TAU).item() * TAU]
    return found


def draw(found: dict[str, list[float]], path: Path) -> None:
    """Three panels: KL over N, distance to the tilted law over N, reward over KL."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blue, orange = "#0072B2", "#D55E00"
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    left.plot(COUNTS, found["bound"], color="0.5", linestyle="--", label="log N - (N-1)/N")
    left.plot(COUNTS, found["best_kl"], color=blue, marker="o", label="best of N")
    left.plot(COUNTS, found["softmax_kl"], color=orange, marker="s", label=f"softmax, tau {TAU}")
    left.set(xscale="log", xlabel="N, candidates per prompt", ylabel="KL(selection, pi_ref), nats")
    middle.plot(COUNTS, found["best_distance"], color=blue, marker="o", label="best of N")
    middle.plot(COUNTS, found["softmax_distance"], color=orange, marker="s", label=f"softmax, tau {TAU}")
    middle.set(xscale="log", yscale="log", xlabel="N, candidates per prompt", ylabel="total variation to pi*(tau)")
    right.plot(found["frontier_kl"], found["frontier_reward"], color="0.5", linestyle="--", label="optimum, all beta")
    right.plot(found["best_kl"], found["best_reward"], color=blue, marker="o", label="best of N")
    right.plot(found["softmax_kl"], found["softmax_reward"], color=orange, marker="s", label=f"softmax, tau {TAU}")
    right.set(xlabel="KL to pi_ref, nats", ylabel="E[R]", xlim=(0, max(found["best_kl"]) * 1.05))
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/selection.png"))
    options = parser.parse_args()
    found = figures()
    names = ("bound", "best_kl", "softmax_kl", "best_distance", "softmax_distance")
    print(f"{'N':>6s}" + "".join(f"{name:>18s}" for name in names))
    for i, n in enumerate(COUNTS):
        print(f"{n:6d}" + "".join(f"{found[name][i]:18.4f}" for name in names))
    draw(found, options.out)


if __name__ == "__main__":
    main()
