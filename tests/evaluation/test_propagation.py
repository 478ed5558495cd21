"""rho, merging steps and their curve, by hand."""

import pytest

from pipeline.evaluation.propagation import merging_step, propagation_figures, share_merged


def test_rho_by_hand():
    """P(w | injected) 0.9 and 0.5, P(w | clean) 0.1 and 0.3: rho = (0.8 + 0.2) / (0.9 + 0.7) = 0.625."""
    got = propagation_figures([0.9, 0.5], [0.1, 0.3], prefix="exact_")
    assert got["exact_rho"] == pytest.approx(0.625)
    assert (got["exact_again"], got["exact_again_clean"]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert got["exact_rho_low"] <= 0.625 <= got["exact_rho_high"]


def test_rho_of_no_effect_of_a_copy_and_of_no_room():
    assert propagation_figures([0.1, 0.3], [0.1, 0.3])["rho"] == 0
    assert propagation_figures([1.0, 1.0], [0.2, 0.0])["rho"] == 1
    assert propagation_figures([0.0], [0.5])["rho"] == -1  # the error makes itself less likely
    assert "rho" not in propagation_figures([1.0], [1.0])


@pytest.mark.parametrize(
    ("first", "second", "step"),
    [
        ([5, 6, 7], [5, 6, 7], 0),
        ([5, 6, 7], [4, 6, 7], 1),
        ([5, 6, 7], [5, 9, 7], 2),  # they agree at step 0 and again from step 2 on
        ([5, 6, 7], [5, 6, 8], None),
        ([5, 6, 2], [6, 2], None),  # the same words one step apart
        ([], [], None),
    ],
)
def test_merging_steps(first, second, step):
    assert merging_step(first, second) == step


def test_the_curve_by_hand():
    """Two prompts of two pairs, limit 4, hold 1: steps 0 and 2 of the first; 3 and 4 of the second, of which 4 lies in
    the tokens before the limit and counts only if the pair has ended there (last 4). By k = 0, 1, 2, 3 the shares are
    1/4, 1/4, 2/4, 3/4.
    """
    curve = share_merged([[0, 2], [3, 4]], [[3, 3], [3, 3]], 3)
    assert [share for share, _ in curve] == [0.25, 0.25, 0.5, 0.75]
    assert all(low <= share <= high for share, (low, high) in curve)
    assert share_merged([[0, 2], [3, 4]], [[3, 3], [3, 4]], 4)[-1][0] == 1
