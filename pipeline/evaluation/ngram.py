r"""The interpolated trigram model: the baseline that a language model's held-out loss has to beat.

    p(c | a, b) = l3 p3(c | a, b) + l2 p2(c | b) + l1 p1(c) + l0 / V        (Jelinek and Mercer 1980)

p3, p2 and p1 are relative frequencies in the training tokens. The weights l depend on how often the context (a, b)
was seen, and are fitted by expectation maximisation on validation rows that are in neither the training nor the test
tokens. A token without two tokens before it has context ids -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BUCKETS = 12  # contexts seen 0, 1, 2-3, 4-7, … times


@dataclass(frozen=True)
class Counts:
    """How often each trigram, bigram and token occurs, and each context; keys are sorted, ids packed in base V + 1."""

    vocabulary: int
    trigrams: tuple[np.ndarray, np.ndarray]
    pairs_before: tuple[np.ndarray, np.ndarray]
    bigrams: tuple[np.ndarray, np.ndarray]
    singles_before: tuple[np.ndarray, np.ndarray]
    tokens: np.ndarray


def count(sequences: Sequence[Sequence[int]], vocabulary: int) -> Counts:
    """Count the predicted tokens of ``sequences`` (each one's second token on) with their contexts."""
    a, b, c = _windows(sequences)
    base = vocabulary + 1
    return Counts(
        vocabulary=vocabulary,
        trigrams=np.unique(((a + 1) * base + b) * base + c, return_counts=True),
        pairs_before=np.unique((a + 1) * base + b, return_counts=True),
        bigrams=np.unique(b * base + c, return_counts=True),
        singles_before=np.unique(b, return_counts=True),
        tokens=np.bincount(c, minlength=vocabulary),
    )


def fit_weights(counts: Counts, validation: Sequence[Sequence[int]], *, rounds: int = 30) -> np.ndarray:
    """Interpolation weights by EM: (BUCKETS, 4), rows sum to 1, columns l3, l2, l1, l0.

    A bucket that validation never visits gets the weights fitted on all of validation.
    """
    parts, bucket = _parts(counts, validation)
    overall = _fit(parts, np.full(4, 0.25), rounds)
    rows = [_fit(parts[bucket == i], overall, rounds) for i in range(BUCKETS)]
    return np.stack(rows)


def log_probabilities(counts: Counts, weights: np.ndarray, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """``log p`` of every predicted token of ``sequences``, in order, float64."""
    parts, bucket = _parts(counts, sequences)
    return np.log((parts * weights[bucket]).sum(axis=1))


def _windows(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token two before or -1, token before, token) for every predicted token."""
    kept = [s for s in sequences if len(s) > 1]
    if not kept:
        return (np.zeros(0, np.int64),) * 3
    flat = np.concatenate([np.asarray(s, dtype=np.int64) for s in kept])
    ends = np.cumsum([len(s) for s in kept])
    starts = ends - np.array([len(s) for s in kept])
    before = np.concatenate([[-1], flat[:-1]])
    two_before = np.concatenate([[-1, -1], flat[:-2]])
    two_before[starts + 1] = -1
    predicted = np.ones(len(flat), dtype=bool)
    predicted[starts] = False
    return two_before[predicted], before[predicted], flat[predicted]


def _parts(counts: Counts, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Per predicted token: the four probabilities (tokens, 4) and the bucket of its context's count (tokens,)."""
    a, b, c = _windows(sequences)
    base = counts.vocabulary + 1
    pair_seen = _look_up(counts.pairs_before, (a + 1) * base + b)
    single_seen = _look_up(counts.singles_before, b)
    p3 = _look_up(counts.trigrams, ((a + 1) * base + b) * base + c) / np.maximum(pair_seen, 1)
    p2 = _look_up(counts.bigrams, b * base + c) / np.maximum(single_seen, 1)
    p1 = counts.tokens[c] / max(counts.tokens.sum(), 1)
    parts = np.stack([p3, p2, p1, np.full(len(c), 1 / counts.vocabulary)], axis=1)
    bucket = np.minimum(np.ceil(np.log2(pair_seen + 1)).astype(int), BUCKETS - 1)
    return parts, bucket


def _look_up(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> np.ndarray:
    known, numbers = table
    if not len(known):
        return np.zeros(len(keys), dtype=np.int64)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, numbers[place], 0)


def _fit(parts: np.ndarray, start: np.ndarray, rounds: int) -> np.ndarray:
    weights = start
    for _ in range(rounds if len(parts) else 0):
        share = parts * weights
        weights = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    # EM may drive l0 to 0 where validation has no unseen token; the test tokens may have one.
    weights = np.maximum(weights, 1e-6)
    return weights / weights.sum()
