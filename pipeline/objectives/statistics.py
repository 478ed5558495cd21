"""From single scores to a figure with its uncertainty: intervals, pass@k, majority vote, preferences, calibration.

Pure functions on numbers. A score is in [0, 1], or None where it is not known: those are counted apart and never
taken for a zero.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean

import numpy as np

BINS = 10  # of equal width, in a reliability table
Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


def wilson_interval(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): sensible at 0, at 1 and for small n.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = successes / n. ``successes`` may be fractional
    (a tie counts a half). It begins at 0 where nothing succeeded and ends at 1 where everything did.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends centre and half agree only up to rounding, which would be printed as 3e-17.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return max(0.0, low), min(1.0, high)


def bootstrap_interval(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean; the values, one per prompt, are resampled."""
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        return (float(values[0]),) * 2 if values.size else (math.nan, math.nan)
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // values.size)  # at most 16 MB of indices at a time
    means = np.concatenate(
        [
            values[generator.integers(values.size, size=(min(rows, resamples - start), values.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean: Wilson's where every value is 0 or 1, so that a few equal ones are no certainty; else
    the bootstrap's."""
    if all(value in (0, 1) for value in values):
        return wilson_interval(sum(values), len(values))
    return bootstrap_interval(values)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate, from n samples, that at least one of k is right: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Raises:
        ValueError: k is not within 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples per prompt, there are {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_score(answers: Sequence[Hashable | None], scores: Sequence[float]) -> float:
    """Score of the most frequent answer (self-consistency, Wang et al. 2022).

    Samples without an answer (None) do not vote; with no votes at all the score is 0. Equally frequent answers share:
    the expected score of picking one of them at random.
    """
    votes: dict[Hashable, list[float]] = defaultdict(list)
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            votes[answer].append(score)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    leaders = [sum(group) / most for group in votes.values() if len(group) == most]
    return fmean(leaders)


def preference_accuracy(margins: Sequence[float]) -> float:
    """Share of pairs whose chosen answer has the higher reward; margin = r_chosen - r_rejected, a tie is a half."""
    margins = np.asarray(margins, dtype=np.float64)
    return float(((margins > 0) + 0.5 * (margins == 0)).mean())


def preference_figures(margins: Sequence[float], true_margins: Sequence[float] | None = None) -> dict[str, float]:
    """``accuracy`` with Wilson's interval; with the true reward's margins also ``bayes_accuracy``, ``share_of_bayes``.

    The Bayes accuracy is that of the true reward on the same pairs: another reward exceeds it by chance only.
    """
    accuracy, n = preference_accuracy(margins), len(margins)
    figures = with_interval("accuracy", accuracy, wilson_interval(accuracy * n, n))
    if true_margins is not None:
        bayes = preference_accuracy(true_margins)
        figures |= {"bayes_accuracy": bayes, "share_of_bayes": accuracy / bayes if bayes else 0.0}
    return figures


def ratio_with_interval(sums: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """``loss`` = total / count with a bootstrap interval over rows, ``perplexity`` = exp(loss), ``tokens``.

    Args:
        sums: -log p summed over each row's tokens.
        counts: how many tokens each row has.

    Raises:
        ValueError: there is no token.
    """
    tokens = sum(counts)
    if not tokens:
        raise ValueError("there is no token to score")
    mean, interval = ratio_interval(sums, counts)
    figures = with_interval("loss", mean, interval)
    return {**figures, "perplexity": math.exp(min(mean, 700.0)), "tokens": tokens}


def ratio_interval(
    sums: Sequence[float], counts: Sequence[float], *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """``sum(sums) / sum(counts)``, which is not 0, with a 95% bootstrap interval over rows.

    The ratio's spread is that of its linear approximation: row r moves it by (sum_r - ratio count_r) / mean count.
    """
    total, number = math.fsum(sums), math.fsum(counts)
    mean, average = total / number, number / len(counts)
    moved = [mean + (value - mean * count) / average for value, count in zip(sums, counts, strict=True)]
    return mean, bootstrap_interval(moved, seed=seed)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """For each filled bin of equal width: mean ``predicted`` probability, ``observed`` share, number of ``rows``."""
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    filled = [place == b for b in range(bins)]
    return [
        {"predicted": float(probabilities[i].mean()), "observed": float(labels[i].mean()), "rows": int(i.sum())}
        for i in filled
        if i.any()
    ]


def calibration_error(table: Sequence[dict[str, float]]) -> float:
    """|predicted - observed| of every bin of a ``reliability`` table, weighted by its rows."""
    total = sum(bin["rows"] for bin in table)
    return sum(abs(bin["predicted"] - bin["observed"]) * bin["rows"] for bin in table) / total


def logistic_coefficients(features: np.ndarray, targets: np.ndarray, *, steps: int = 50) -> np.ndarray:
    """The w that maximises sum_n t_n log sigma(x_n w) + (1 - t_n) log sigma(-x_n w), by Newton's method, (K,).

    Without an intercept, as a difference of two answers has none. A tiny ridge (1e-6 per row) gives a direction that
    no row moves along the coefficient 0.

    Args:
        features: (N, K).
        targets: (N,), probabilities.
    """
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(features @ weights / 2))
        gradient = features.T @ (targets - p) - 1e-6 * len(features) * weights
        curvature = (features * (p * (1 - p))[:, None]).T @ features + 1e-6 * len(features) * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights = weights + step / max(1.0, float(np.abs(step).max()) / 5)
        if np.abs(step).max() < 1e-10:
            break
    return weights


def agreement_figures(first: Sequence[Hashable], second: Sequence[Hashable], *, seed: int = 0) -> dict[str, float]:
    """``agreement`` of two annotators' labels, what independent labels would reach by ``chance``, and Cohen's kappa
    (Cohen 1960), (p - p_chance) / (1 - p_chance), with intervals over items; {} without labels.

    There is no ``kappa`` where both give one and the same label only.
    """
    n = len(first)
    if not n:
        return {}
    names = {label: i for i, label in enumerate(dict.fromkeys([*first, *second]))}
    labels = np.array([[names[a], names[b]] for a, b in zip(first, second, strict=True)])

    def measure(pairs: np.ndarray) -> tuple[float, float]:
        shares = [np.bincount(side, minlength=len(names)) / len(pairs) for side in pairs.T]
        return float((pairs[:, 0] == pairs[:, 1]).mean()), float(shares[0] @ shares[1])

    same, chance = measure(labels)
    figures = with_interval("agreement", same, wilson_interval(same * n, n)) | {"chance": chance}
    if chance < 1:
        generator = np.random.default_rng(seed)
        tried = [measure(labels[generator.integers(n, size=n)]) for _ in range(2000)]
        kappas = [(p - by_chance) / (1 - by_chance) for p, by_chance in tried if by_chance < 1]
        low, high = np.quantile(kappas, [0.025, 0.975])
        figures |= with_interval("kappa", (same - chance) / (1 - chance), (float(low), float(high)))
    return figures


def with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    """``{name, name_low, name_high}``: how every figure with an interval is named in a run record."""
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}
