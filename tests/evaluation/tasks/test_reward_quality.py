"""Figures of a reward model, against values worked by hand."""

import math

import numpy as np
import pytest

from pipeline.evaluation.tasks.reward_quality import (
    average_ranks,
    comparisons,
    correlation,
    expected_calibration_error,
    label_figures,
    plot_reliability,
    price_figures,
    randomised_order,
    reward_figures,
    spearman,
    within_prompt_spearman,
)
from pipeline.objectives.statistics import calibration_error, reliability


def test_average_ranks_by_hand():
    """3, 1, 3, 2: ranks 3.5, 1, 3.5, 2."""
    assert average_ranks([3, 1, 3, 2]).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_by_hand():
    """1, 2, 3, 4 against 1, 2, 4, 3: 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15) = 0.8; any increasing map leaves it."""
    assert spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)
    assert spearman([1, 2, 3, 4], [math.exp(x) for x in (1, 2, 4, 3)]) == pytest.approx(0.8)


def test_spearman_with_ties_is_pearson_on_ranks():
    """Ranks 1, 2.5, 2.5 against 1, 2, 3: covariance 1.5, variances 1.5 and 2: 1.5 / sqrt(3) = 0.866025."""
    assert spearman([0, 5, 5], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)


def test_within_prompt_ignores_the_prompts_constant():
    """Two prompts with offsets of 100 and -7: 1.0 and 0.8 all the same; a prompt with equal truths is left out."""
    scores = [[100.1, 100.2, 100.3], [-7 + x for x in (1, 2, 3, 4)], [1.0, 2.0, 3.0]]
    truth = [[1, 2, 3], [1, 2, 4, 3], [5, 5, 5]]
    assert within_prompt_spearman(scores, truth) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no prompt"):
        within_prompt_spearman([[1.0, 2.0]], [[3.0, 3.0]])


def test_reliability_and_ece_by_hand():
    """Probabilities 0.1, 0.1, 0.9, 0.9 with labels 0, 1, 1, 1 in two bins: |0.1 - 0.5| and |0.9 - 1|, mean 0.25."""
    table = reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0]), bins=2)
    assert table == [
        {"predicted": pytest.approx(0.1), "observed": 0.5, "rows": 2},
        {"predicted": pytest.approx(0.9), "observed": 1.0, "rows": 2},
    ]
    assert calibration_error(table) == pytest.approx(0.25)


def test_order_is_random_so_overconfidence_shows():
    """Pairs drawn from Bradley-Terry at margin log 4 (80%): the true margin is calibrated, a threefold one is not. In
    the given order the latter would have looked better than the truth.
    """
    generator = np.random.default_rng(1)
    true = np.full(20000, math.log(4)) * np.where(generator.random(20000) < 0.8, 1, -1)  # chosen minus rejected
    assert expected_calibration_error(true) < 0.01
    # sigma(3 log 4) = 64/65 = 0.985 against an observed 0.8
    assert expected_calibration_error(3 * true) == pytest.approx(64 / 65 - 0.8, abs=0.01)
    _, labels = randomised_order(true)
    assert 0.48 < labels.mean() < 0.52


def test_extreme_margins_do_not_overflow():
    """A margin of 1000 is a probability of 1, its opposite 0."""
    probabilities, labels = randomised_order([1000.0, 1000.0, 1000.0, 1000.0])
    assert probabilities.tolist() == labels.tolist()


def test_reward_figures_by_hand():
    """Margins 1, -1, 2, 0: accuracy (2 + 1/2) / 4, mean 0.5; lengths longer by 1, -1, 2, 0: correlation 1. The true
    reward is right in three of the four.
    """
    figures = reward_figures([1, 0, 2, 1], [0, 1, 0, 1], [3, 2, 5, 4], [2, 3, 3, 4], true_margins=[1, 1, 1, -1])
    assert figures["accuracy"] == pytest.approx(0.625)
    assert figures["margin"] == pytest.approx(0.5)
    assert figures["length_correlation"] == pytest.approx(1.0)
    assert figures["bayes_accuracy"] == pytest.approx(0.75)
    assert figures["accuracy_low"] < 0.625 < figures["accuracy_high"]
    assert math.isnan(correlation([1, 1], [1, 2]))


def test_the_plot_is_an_image(tmp_path):
    """Written where asked, folder included, and larger than an empty canvas's header."""
    path = plot_reliability(np.random.default_rng(0).normal(1, 1, 300), tmp_path / "plots" / "reliability.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000


def test_label_figures_by_hand():
    """Good answers at 2 and -1, bad ones at -3 and -1: all but the good one at -1 are on their side of 0, 3 / 4; of
    the four pairs of a good and a bad one three are in order and one is tied: 3.5 / 4.
    """
    figures = label_figures([2.0, -1.0, -3.0, -1.0], [True, True, False, False])
    assert (figures["accuracy"], figures["majority"], figures["auc"]) == (0.75, 0.5, 0.875)
    assert figures["accuracy_low"] < 0.75 < figures["accuracy_high"]
    assert math.isnan(label_figures([1.0, 2.0], [True, True])["auc"])
    # 100 answers at log 3, three quarters of them good: calibrated.
    assert label_figures([math.log(3)] * 100, [i % 4 != 0 for i in range(100)])["ece"] == pytest.approx(0)


def test_comparisons_leave_ties_out():
    """Ranks 1, 2, 2: the first against each of the others; without ranks all three pairs; a pair is one."""
    assert comparisons({"ranked": ["a", "b", "c"], "ranks": [1, 2, 2]}) == [("a", "b"), ("a", "c")]
    assert comparisons({"ranked": ["a", "b", "c"]}) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert comparisons({"chosen": "a", "rejected": "b"}) == [("a", "b")]


def test_prices_of_a_reward_by_hand():
    """A reward of 2.5 right + 4 agree + style on random pairs: its own prices, and an exchange rate of 4 / 2.5 = 1.6
    for agreeing and 0.4 for style, within their intervals; twice the reward has twice the prices and the same rates.
    """
    r = np.random.default_rng(1)
    parts = {name: r.integers(-1, 2, size=400).tolist() for name in ("right", "agree", "style")}
    margins = 2.5 * np.array(parts["right"]) + 4 * np.array(parts["agree"]) + np.array(parts["style"])
    got = price_figures(margins.tolist(), parts)
    assert [got[f"price_{name}"] for name in parts] == pytest.approx([2.5, 4, 1], abs=1e-3)
    assert (got["exchange_agree"], got["exchange_style"]) == pytest.approx((1.6, 0.4), abs=1e-3)
    assert got["exchange_agree_low"] <= got["exchange_agree"] + 1e-6
    doubled = price_figures((2 * margins).tolist(), parts)
    assert doubled["price_agree"] == pytest.approx(8, abs=0.01)
    assert doubled["exchange_agree"] == pytest.approx(1.6, abs=1e-2)
