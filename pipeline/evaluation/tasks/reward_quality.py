"""How good a reward model is on held-out comparisons, and a plot of the calibration of its probabilities.

Pure functions on scores. A reward is identified only up to a constant of each prompt, so everything here compares
answers to one prompt: margins of pairs, and rank correlations within a prompt.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.evaluation.statistics import preference_figures, wilson_interval, with_interval

BINS = 10


def reward_figures(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_lengths: Sequence[int],
    rejected_lengths: Sequence[int],
    true_margins: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """``accuracy`` (with interval, and the Bayes accuracy where the true reward is known), ``margin``, ``ece`` and
    ``length_correlation`` of a reward model's scores on held-out pairs.
    """
    margins = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    longer = np.asarray(chosen_lengths, dtype=np.float64) - np.asarray(rejected_lengths, dtype=np.float64)
    return {
        **preference_figures(margins.tolist(), true_margins),
        "margin": float(margins.mean()),
        "ece": expected_calibration_error(margins, seed=seed),
        "length_correlation": correlation(margins, longer),
        "pairs": len(margins),
    }


def label_figures(scores: Sequence[float], labels: Sequence[bool]) -> dict[str, float]:
    """Of a binary classifier's scores on labelled answers: ``accuracy`` at 0 (with interval), ``majority`` (that of
    always giving the commoner label), ``auc`` (the share of good and bad answers in the right order, a tie a half; nan
    where there is one kind only) and ``ece`` of ``sigma(score)``.
    """
    scores, good = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    accuracy = float(((scores > 0) == good).mean())
    positive, negative = int(good.sum()), int((~good).sum())
    ranks = average_ranks(scores)[good].sum() - positive * (positive + 1) / 2
    table = reliability(0.5 * (1 + np.tanh(scores / 2)), good.astype(np.float64))
    return {
        **with_interval("accuracy", accuracy, wilson_interval(accuracy * len(good), len(good))),
        "majority": max(positive, negative) / len(good),
        "auc": float(ranks / (positive * negative)) if positive and negative else float("nan"),
        "ece": calibration_error(table),
        "answers": len(good),
    }


def randomised_order(margins: Sequence[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """P(first preferred) and whether it was, for pairs put in random order: (pairs,) each.

    Chosen first, every label would be 1, and a model that always said 1 would be calibrated.
    """
    margins = np.asarray(margins, dtype=np.float64)
    chosen_first = np.random.default_rng(seed).random(len(margins)) < 0.5
    probabilities = 0.5 * (1 + np.tanh(np.where(chosen_first, margins, -margins) / 2))  # sigma, without overflow
    return probabilities, chosen_first.astype(np.float64)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """For each filled bin of equal width: mean ``predicted`` probability, ``observed`` share, number of ``rows``."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    filled = [place == b for b in range(bins)]
    return [
        {"predicted": float(probabilities[i].mean()), "observed": float(labels[i].mean()), "rows": int(i.sum())}
        for i in filled
        if i.any()
    ]


def expected_calibration_error(margins: Sequence[float], bins: int = BINS, seed: int = 0) -> float:
    """Mean over pairs of |predicted - observed| of their bin (Naeini et al., 2015), the pairs in random order."""
    return calibration_error(reliability(*randomised_order(margins, seed), bins))


def calibration_error(table: Sequence[dict[str, float]]) -> float:
    """|predicted - observed| of every bin of a ``reliability`` table, weighted by its rows."""
    total = sum(bin["rows"] for bin in table)
    return sum(abs(bin["predicted"] - bin["observed"]) * bin["rows"] for bin in table) / total


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; nan where one of them is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, the smallest first; equal values share the mean of their ranks."""
    values = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation with ties; nan where one of them is constant."""
    return correlation(average_ranks(x), average_ranks(y))


def within_prompt_spearman(scores: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> float:
    """Mean over prompts of the rank correlation of score and true reward; prompts where one is constant are left out.

    Raises:
        ValueError: no prompt has two different scores and two different true rewards.
    """
    each = [spearman(x, y) for x, y in zip(scores, truth, strict=True)]
    known = [value for value in each if not np.isnan(value)]
    if not known:
        raise ValueError("no prompt has both different scores and different true rewards")
    return float(np.mean(known))


def plot_reliability(margins: Sequence[float], path: Path, seed: int = 0) -> Path:
    """The reliability diagram of held-out pairs in random order, as an image; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    error = expected_calibration_error(margins, seed=seed)
    table = reliability(*randomised_order(margins, seed))
    predicted, observed, counts = (
        np.array([bin[name] for bin in table]) for name in ("predicted", "observed", "rows")
    )
    figure, axes = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    half = 1.96 * np.sqrt(observed * (1 - observed) / counts)
    axes.errorbar(predicted, observed, yerr=half, color="#0072B2", marker="o", capsize=3, label="reward model, 95%")
    for x, y, count in zip(predicted, observed, counts):
        axes.annotate(str(count), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8, color="0.35")
    axes.set(
        xlabel="predicted P(first answer preferred)",
        ylabel="observed share",
        xlim=(0, 1),
        ylim=(0, 1),
        title=f"Calibration on {len(margins)} held-out pairs (ECE {error:.3f})",
    )
    axes.title.set_fontsize(10)
    axes.legend(loc="upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
