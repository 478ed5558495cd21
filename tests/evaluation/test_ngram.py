"""The interpolated trigram baseline by hand and by its invariants."""

import numpy as np
import pytest

from pipeline.evaluation.ngram import BUCKETS, count, fit_weights, log_probabilities


def only(part: int) -> np.ndarray:
    """Weights that use one of p3, p2, p1, 1/V alone, whatever the context."""
    weights = np.zeros((BUCKETS, 4))
    weights[:, part] = 1.0
    return weights


def test_each_part_is_the_relative_frequency():
    """Training 0 1 2 and 0 1 3 and 1 2: predicted tokens 1,2 / 1,3 / 2.

    p3(2 | 0,1) = 1/2; p2(2 | 1) = 2/3 (1->2, 1->3, 1->2); p1(2) = 2/5; uniform 1/4.
    """
    counts = count([[0, 1, 2], [0, 1, 3], [1, 2]], vocabulary=4)
    for part, expected in enumerate((1 / 2, 2 / 3, 2 / 5, 1 / 4)):
        assert np.exp(log_probabilities(counts, only(part), [[0, 1, 2]])[1]) == pytest.approx(expected)
    # The first predicted token has only one token before it: (-1, 0) was seen twice, both times before 1.
    assert np.exp(log_probabilities(counts, only(0), [[0, 1, 2]])[0]) == pytest.approx(1.0)


def test_probabilities_sum_to_one_for_a_seen_context():
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 5, 30).tolist() for _ in range(20)]
    counts = count(sequences, vocabulary=5)
    weights = fit_weights(counts, [generator.integers(0, 5, 30).tolist() for _ in range(5)])
    assert weights.sum(axis=1) == pytest.approx(np.ones(BUCKETS))
    total = sum(np.exp(log_probabilities(counts, weights, [[3, 1, token]])[1]) for token in range(5))
    assert total == pytest.approx(1.0)


def test_tuned_weights_beat_every_single_part_on_validation():
    """A second-order source with noise: EM's optimum is at least as good as the corners of the simplex."""
    generator = np.random.default_rng(1)

    def draw(rows: int) -> list[list[int]]:
        found = []
        for _ in range(rows):
            s = [0, 1]
            for _ in range(40):
                s.append((s[-1] + s[-2] + 1) % 7 if generator.random() < 0.7 else int(generator.integers(7)))
            found.append(s)
        return found

    counts, validation = count(draw(60), vocabulary=7), draw(10)
    tuned = log_probabilities(counts, fit_weights(counts, validation), validation).mean()
    corners = [0.999 * only(part) + 0.001 * only(3) for part in range(4)]
    assert all(tuned > log_probabilities(counts, corner, validation).mean() for corner in corners)


def test_a_token_never_seen_has_a_finite_loss():
    counts = count([[0, 1, 0, 1, 0, 1]], vocabulary=9)
    weights = fit_weights(counts, [[0, 1, 0, 1]])
    assert np.isfinite(log_probabilities(counts, weights, [[7, 8, 5]])).all()
    assert log_probabilities(counts, weights, [[3]]).size == 0
