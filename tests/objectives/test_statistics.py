"""Statistics against hand-derived values and enumeration."""

import itertools
import math

import numpy as np
import pytest

from pipeline.objectives.statistics import (
    bootstrap_interval,
    logistic_coefficients,
    majority_score,
    mean_interval,
    pass_at_k,
    preference_accuracy,
    preference_figures,
    ratio_with_interval,
    wilson_interval,
)


def test_wilson_interval_by_hand():
    """8 of 10, z = 2: centre (0.8 + 0.2) / 1.4 = 0.714286; half 2 sqrt(0.016 + 0.01) / 1.4 = 0.230350."""
    low, high = wilson_interval(8, 10, z=2.0)
    assert low == pytest.approx(1 / 1.4 - 2 * math.sqrt(0.026) / 1.4, abs=1e-12)
    assert high == pytest.approx(1 / 1.4 + 2 * math.sqrt(0.026) / 1.4, abs=1e-12)


def test_wilson_interval_at_the_ends():
    """0 of n: the upper end is z^2 / (n + z^2), the lower exactly 0; all of n mirrors it; nothing known is [0, 1]."""
    assert wilson_interval(0, 16, z=2.0) == (0.0, pytest.approx(0.2))
    assert wilson_interval(16, 16, z=2.0) == (pytest.approx(0.8), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 400):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    """400 values of standard deviation 1: mean +- 1.96 / 20; the percentile interval agrees within a tenth of it."""
    values = np.random.default_rng(5).normal(3.0, 1.0, 400)
    values = (values - values.mean()) / values.std() + 3.0
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(3.0 - 0.098, abs=0.01)
    assert high == pytest.approx(3.0 + 0.098, abs=0.01)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one():
    """For every n <= 6, c and k: counted over all subsets of k of n samples."""
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="pass@3 needs at least 3"):
        pass_at_k(2, 1, 3)


def test_majority_vote():
    assert majority_score(["4", "5", "4"], [1.0, 0.0, 1.0]) == 1.0
    assert majority_score(["5", "5", "4"], [0.0, 0.0, 1.0]) == 0.0
    assert majority_score(["4", "5"], [1.0, 0.0]) == 0.5  # a tie: one of the two at random
    assert majority_score([None, None, "4"], [0.0, 0.0, 1.0]) == 1.0  # no answer is no vote
    assert majority_score([None, None], [0.0, 0.0]) == 0.0


def test_preference_accuracy_counts_ties_as_half():
    assert preference_accuracy([0.5, 0.0, -1.0, 2.0]) == 0.625
    assert preference_accuracy([0.0] * 7) == 0.5


def test_share_of_the_bayes_accuracy():
    """The true reward orders 3 of 4 pairs as the labels do; the judged one 2 of 4 and ties on none: 0.5 / 0.75."""
    figures = preference_figures([1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 0.5, -2.0])
    assert (figures["accuracy"], figures["bayes_accuracy"]) == (0.5, 0.75)
    assert figures["share_of_bayes"] == pytest.approx(2 / 3)
    assert figures["accuracy_low"] < 0.5 < figures["accuracy_high"]
    assert "bayes_accuracy" not in preference_figures([1.0])


def test_loss_weighs_tokens_not_rows():
    """Sums 4 over 2 tokens and 5 over 1: loss 9 / 3 = 3, not the mean of the rows' 2 and 5."""
    figures = ratio_with_interval([4.0, 5.0], [2, 1])
    assert (figures["loss"], figures["tokens"]) == (3.0, 3)
    assert figures["perplexity"] == pytest.approx(math.e**3)
    assert figures["loss_low"] <= 3.0 <= figures["loss_high"]
    # The ratio's linear approximation moves row 1 by (4 - 3 * 2) / 1.5 and row 2 by (5 - 3 * 1) / 1.5; of two rows the
    # bootstrap's ends are both rows twice: 3 - 4/3 and 3 + 4/3.
    assert (figures["loss_low"], figures["loss_high"]) == (pytest.approx(5 / 3), pytest.approx(13 / 3))
    equal = ratio_with_interval([4.0, 2.0], [2, 1])  # both rows have loss 2: no spread
    assert (equal["loss_low"], equal["loss_high"]) == (2.0, 2.0)


def test_the_interval_of_a_loss_is_that_of_the_ratio():
    """400 rows of 1 to 20 tokens: the interval is the resampled ratio's own (total over total), within a tenth of its
    width, and not that of the rows' mean losses, which weighs a short row as much as a long one.
    """
    generator = np.random.default_rng(3)
    counts = generator.integers(1, 21, 400)
    sums = counts * (1.0 + 2.0 / counts + 0.3 * generator.normal(size=400))  # short rows are harder
    rows = generator.integers(400, size=(4000, 400))
    ratios = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    figures = ratio_with_interval(sums.tolist(), counts.tolist())
    assert figures["loss_low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert figures["loss_high"] == pytest.approx(high, abs=0.1 * (high - low))
    assert not low < (sums / counts).mean() < high


def test_a_mean_of_zeros_and_ones_is_a_proportion():
    """Four zeros: Wilson's interval ends at z^2 / (4 + z^2) = 3.8415 / 7.8415 = 0.4899, the bootstrap's at 0."""
    low, high = mean_interval([0.0] * 4)
    assert low == 0
    assert high == pytest.approx(0.4899, abs=1e-4)
    values = [0.1, 0.4, 0.7, 0.2]
    assert mean_interval(values) == bootstrap_interval(values)


def test_logistic_coefficients_are_those_that_drew_the_targets():
    """Targets that are sigma(x w) exactly give w back; a direction that no row moves along has 0; and by hand one
    feature of 1 with three wins in four: logit 0.75 = log 3.
    """
    features = np.random.default_rng(0).normal(size=(200, 3))
    features[:, 2] = 0
    weights = np.array([2.5, 4.0, 0.0])
    targets = 1 / (1 + np.exp(-features @ weights))
    assert logistic_coefficients(features, targets) == pytest.approx(weights, abs=1e-3)
    won = logistic_coefficients(np.ones((4, 1)), np.array([1.0, 1, 1, 0]))
    assert won == pytest.approx([math.log(3)], abs=1e-4)
