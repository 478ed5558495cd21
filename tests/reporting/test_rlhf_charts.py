"""The report's charts of RLHF: drawn from what a run recorded, and from nothing else."""

import re
from pathlib import Path

from pipeline.reporting.history import RunView
from pipeline.reporting.rlhf_charts import against_best_of_n, binned, frontier, own_charts


def view(record=None, history=(), metrics=None, parents=()):
    return RunView(
        "run", Path("run"), "completed", (record or {}) | {"metrics": metrics or {}}, list(history), [], list(parents)
    )


def test_a_run_without_such_figures_has_no_chart():
    assert own_charts(view(history=[{"step": i, "rewards/only/mean": i} for i in range(3)])) == []
    assert against_best_of_n([view(metrics={"corpus/loss": 1.0})]) == []


def test_a_reward_model_is_drawn_against_the_diagonal():
    """Two bins are two dots; the diagonal is a second line; the calibration error stands above."""
    bins = [{"predicted": 0.2, "observed": 0.25, "rows": 40}, {"predicted": 0.8, "observed": 0.75, "rows": 60}]
    recorded = {"curves": {"reliability": {"held-out pairs": bins}}}
    (chart,) = own_charts(view(recorded, metrics={"held_out_ece": 0.05}))
    assert chart.caption == "calibration on held-out pairs (ECE 0.050)"
    assert chart.svg.count("<polyline") == 2
    assert chart.svg.count("<circle") == 2


def test_ppos_rewards_stand_side_by_side_over_the_kl():
    """The learned one and the watched one, each by its own name and from 0: while the KL rises and falls between 0 and
    6, the learned one is the KL and the true one minus it. Seven points are a cloud; the line is the mean of the
    lowest four and of the other three: (1.5, 1.5) and (5, 5).
    """
    kls = (0, 6, 1, 5, 2, 4, 3)
    rows = [
        {"step": i, "objective/kl": kl, "rewards/rm/mean": kl, "rewards/true/mean": 5 - kl} for i, kl in enumerate(kls)
    ]
    (chart,) = own_charts(view(history=rows))
    assert chart.svg.count('<circle class="cloud') == 14
    learned, true = re.findall(r'points="([^"]+)"', chart.svg)
    assert binned([(kl, kl) for kl in kls], 2) == [(1.5, 1.5), (5.0, 5.0)]
    (up, higher), (down, lower) = ([[*map(float, p.split(","))] for p in line.split()] for line in (learned, true))
    assert up[0] == down[0] < higher[0] == lower[0]
    assert higher[1] < up[1] < down[1] < lower[1]  # y grows downwards
    assert ">rm<" in chart.svg
    assert ">true<" in chart.svg


def test_rounds_of_rejection_sampling_stand_against_the_bound():
    """Two charts: each round's reward over its KL, and its KL over n with the bound as one line more."""
    curve = [{"n": n, "kl": 0.1 * n, "reward": 1.0 * n, "bound": 0.2 * n} for n in (1, 2, 4)]
    won, far = own_charts(view({"curves": {"selection": {"round 1": curve, "round 2": curve}}}))
    assert (won.svg.count("<polyline"), far.svg.count("<polyline")) == (2, 3)
    assert "round 2" in won.svg


def test_a_policy_is_a_point_over_best_of_n():
    """Three dots of the curve and one of the policy; what it gains, with its interval, stands above."""
    curve = [{"n": n, "kl": 1.0 * n, "reward": 1.0 * n} for n in (1, 2, 4)]
    gain = {
        "bon/kl": 1.5,
        "bon/reward": 2.0,
        "bon/advantage": 0.25,
        "bon/advantage_low": -0.1,
        "bon/advantage_high": 0.6,
    }
    (chart,) = against_best_of_n([view({"curves": {"bon": {"best of n": curve}}}, metrics=gain, parents=["ppo"])])
    assert chart.svg.count("<circle") == 4
    assert chart.caption == "ppo: +0.250 (-0.100 to +0.600) over best-of-N at the same KL"


def test_policies_stand_on_one_frontier_an_evaluation():
    """Two policies are two named points; the optima at two betas, known to the first, are the curve above them.

    Estimates of what is known exactly are not drawn a second time.
    """
    optima = [{"beta": b, "kl": kl, "reward": r} for b, kl, r in ((0.5, 0.9, 2.0), (2, 0.1, 1.0))]
    assessments = [
        view(
            {
                "curves": curves,
                "tables": {"o": {"policy": [{"kl": 9.0, "reward": 9.0}, {"kl": kl, "reward": reward}]}},
            },
            parents=[model],
        )
        for model, curves, kl, reward in (("ppo", {"o": {"optima": optima}}, 0.5, 0.8), ("pi_ref", {}, 0.0, 0.0))
    ]
    (chart,) = frontier(assessments)  # the exact figures, not their estimates beside them
    assert chart.svg.count("<circle") == 2
    assert chart.svg.count("<polyline") == 3
    assert ">ppo</text>" in chart.svg
    assert ">pi_ref</text>" in chart.svg
    assert "pi* at any beta" in chart.svg
    assert chart.caption == "o"
    assert not re.search(r"<text class=.tick.[^>]*>9<", chart.svg)  # an axis that reached the estimates would have it
    assert frontier([view(metrics={"o/objective": 1.0, "o/kl": 1.0, "o/reward": 1.0})]) == []
