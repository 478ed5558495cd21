"""How good a reward model is on held-out comparisons, and a plot of the calibration of its probabilities.

Functions of a reward model on held-out rows, and pure functions on scores. A reward is identified only up to a
constant of each prompt, so everything here compares answers to one prompt: margins of pairs, and rank correlations
within a prompt.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.images import opened
from pipeline.model.tokens import encode_exchange
from pipeline.model.vision import pixels_of
from pipeline.objectives.statistics import (
    BINS,
    calibration_error,
    logistic_coefficients,
    preference_figures,
    reliability,
    wilson_interval,
    with_interval,
)
from pipeline.rewards.learned import load_reward_model, score_sequences
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, text_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Parts = Callable[..., Mapping[str, Sequence[float]]]  # (prompts, completions) -> a number per answer, by name


def saved_model_figures(
    folder: Path,
    held_out: "Dataset",
    truth: Callable[..., list[float]] | None,
    ranked: Iterable[Json],
    parts: Parts | None = None,
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """The figures of the reward model that was saved in a folder, loaded anew, and its curves by name.

    Args:
        folder: gets the reliability diagram of comparisons, in ``plots``.
        held_out: rows of ``chosen`` and ``rejected``, of ``ranked``, or of ``completion`` and ``label``.
        truth: see `held_out_figures`.
        ranked: see `held_out_figures`.
        parts: see `held_out_figures`.
    """
    load_reward_model.cache_clear()  # the folder may hold other weights than when it was read before
    model, tokenizer = load_reward_model(str(folder))
    if "label" in held_out.column_names:
        return held_out_label_figures(model, tokenizer, held_out), {}
    figures, table = held_out_figures(model, tokenizer, held_out, truth, ranked, folder / "plots", parts)
    return figures, {"held-out pairs": table}


def held_out_label_figures(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", held_out: "Dataset"
) -> dict[str, float]:
    """``label_figures`` of a reward model on held-out rows of ``prompt``, ``completion`` and ``label``."""
    ids = [encode_exchange(tokenizer, row["prompt"], row["completion"], row) for row in held_out]
    return label_figures(score_sequences(model, ids, tokenizer.pad_token_id), held_out["label"])


def held_out_figures(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    held_out: "Dataset",
    truth: Callable[..., list[float]] | None,
    ranked: Iterable[Json],
    plots: Path,
    parts: Parts | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """``reward_figures`` of a reward model on held-out comparisons, and its ``reliability`` table.

    Args:
        model: scores prompt and answer.
        tokenizer: the model's.
        held_out: rows of ``chosen`` and ``rejected``, or of ``ranked``.
        truth: the known reward of embedded data.
        ranked: rows of ``prompt`` and ``ranked``, on which the rank correlation with ``truth`` is measured.
        plots: folder of the reliability diagram.
        parts: gives parts of an answer's worth by name, whose prices in the learned reward are then measured.
    """
    sides = [(row, answer) for row in held_out for pair in comparisons(row) for answer in pair]
    ids = [encode_exchange(tokenizer, row["prompt"], answer, row) for row, answer in sides]
    seen = [pixels_of(tokenizer, opened(row["images"])) if row.get("images") else None for row, _ in sides]
    scores, lengths = score_sequences(model, ids, tokenizer.pad_token_id, pixels=seen), [len(x) for x in ids]
    true_margins = None
    if truth:
        known = truth(prompts=[row["prompt"] for row, _ in sides], completions=[text_of(y) for _, y in sides])
        true_margins = [better - worse for better, worse in zip(known[::2], known[1::2])]
    figures = reward_figures(scores[::2], scores[1::2], lengths[::2], lengths[1::2], true_margins)
    margins = [a - b for a, b in zip(scores[::2], scores[1::2])]
    plot_reliability(margins, plots / "reliability.png")
    if parts:
        found = parts(prompts=[row["prompt"] for row, _ in sides], completions=[text_of(y) for _, y in sides])
        figures |= price_figures(margins, {n: [a - b for a, b in zip(x[::2], x[1::2])] for n, x in found.items()})
    if truth and ranked:
        groups = [[(row["prompt"], text_of(answer)) for answer in row["ranked"]] for row in ranked]
        flat = [pair for group in groups for pair in group]
        ids = [encode_exchange(tokenizer, prompt, text) for prompt, text in flat]
        scored = iter(score_sequences(model, ids, tokenizer.pad_token_id))
        known = iter(truth(prompts=[prompt for prompt, _ in flat], completions=[text for _, text in flat]))
        scored, known = ([[next(values) for _ in group] for group in groups] for values in (scored, known))
        figures["true_reward_spearman"] = within_prompt_spearman(scored, known)
    return figures, reliability(*randomised_order(margins))


def comparisons(row: Json) -> list[tuple[Turn, Turn]]:
    """The (better, worse) pairs that a held-out row states."""
    if "ranked" not in row:
        return [(row["chosen"], row["rejected"])]
    ranks = row.get("ranks") or range(len(row["ranked"]))
    ranked = list(zip(ranks, row["ranked"]))
    return [(y, z) for i, (a, y) in enumerate(ranked) for b, z in ranked[i + 1 :] if a < b]


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


def price_figures(
    margins: Sequence[float], differences: Mapping[str, Sequence[float]], *, resamples: int = 200, seed: int = 0
) -> dict[str, float]:
    """What a reward pays for each part of an answer: ``price_<part>``, the coefficients of a logistic regression of
    its preferences sigma(margin) on the differences in the parts, and ``exchange_<part>``, each in units of the first
    part's, with a 95% bootstrap interval over pairs.
    """
    names = list(differences)
    features = np.array([differences[name] for name in names], dtype=np.float64).T
    targets = 0.5 * (1 + np.tanh(np.asarray(margins, dtype=np.float64) / 2))
    prices = logistic_coefficients(features, targets)
    figures = {f"price_{name}": float(price) for name, price in zip(names, prices)}
    draws = np.random.default_rng(seed).integers(len(features), size=(resamples, len(features)))
    drawn = np.array([logistic_coefficients(features[rows], targets[rows]) for rows in draws])
    for k, name in enumerate(names[1:], start=1):
        if prices[0] and np.all(drawn[:, 0] != 0):
            low, high = np.quantile(drawn[:, k] / drawn[:, 0], [0.025, 0.975])
            figures |= with_interval(f"exchange_{name}", float(prices[k] / prices[0]), (float(low), float(high)))
    return figures


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


def expected_calibration_error(margins: Sequence[float], bins: int = BINS, seed: int = 0) -> float:
    """Mean over pairs of |predicted - observed| of their bin (Naeini et al., 2015), the pairs in random order."""
    return calibration_error(reliability(*randomised_order(margins, seed), bins))


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
