"""Which way a figure is better: every figure that is shown is in the table, and differences by hand."""

import pytest

from pipeline.reporting.directions import BETTER, DOWN, NEITHER, UP, difference, direction
from pipeline.reporting.history import GOALS
from pipeline.reporting.stage_charts import CHARTS

# What the evaluations of the registry report, as the records of the quickstart and of docs/unified.md have it.
REPORTED = """
corpus/loss corpus/perplexity corpus/tokens facts/accuracy facts/never_asked/accuracy facts/accuracy_lenient
facts/timeouts facts/unscored facts/prompts facts/finished sums/pass@1 sums/pass@8_lenient sums/majority
preference/accuracy preference/bayes_accuracy preference/share_of_bayes preference/margin
preference/chosen_log_likelihood_gain preference/pairs true_reward/reward true_reward/tokens_per_completion
J_of_sums/reward J_of_sums/reward_se J_of_sums/kl J_of_sums/kl_sampled J_of_sums/objective J_of_sums/beta
best_of_n/reward best_of_n/reference_reward best_of_n/best_of_n_reward best_of_n/advantage best_of_n/true_reward
best_of_n/reference_true_reward best_of_n/best_of_n_true_reward best_of_n/true_reward_advantage best_of_n/kl
best_of_n/equal_n best_of_n/best_of_n_kl best_of_n/candidates
objective/exact/regret objective/exact/regret_nats objective/exact/regret_removed objective/exact/kl_to_optimum
objective/exact/optimum objective/exact/identity_gap objective/exact/mass
"""


@pytest.mark.parametrize("name", REPORTED.split())
def test_every_figure_that_is_shown_is_in_the_table(name):
    assert direction(name) is not None


@pytest.mark.parametrize("name", [name for name, _ in GOALS] + [line[0] for _, _, lines in CHARTS for line in lines])
def test_every_figure_of_training_is_in_the_table(name):
    assert direction(name) is not None


def test_no_figure_is_in_the_table_twice():
    names = [name for names in BETTER.values() for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("sums/pass@8", UP),
        ("sums/pass@8_lenient", UP),
        ("corpus/loss", DOWN),
        ("first_eval_loss", DOWN),
        ("eval_rewards/accuracies", UP),
        ("held_out_ece", DOWN),
        ("ppo/kl", NEITHER),
        ("mine/reward_parts/anything", UP),
        ("mine/oddness", None),
    ],
)
def test_directions(name, better):
    assert direction(name) == better


def test_what_was_expected_of_a_figure_says_which_way_is_better():
    claim = {"metric": "reading/without/accuracy", "claim": "reading/without/accuracy < 0.2"}
    assert direction("reading/without/accuracy", [claim]) == DOWN
    assert direction("reading/with/accuracy", [claim]) == UP
    bound = {"metric": "best_of_n/kl", "claim": "best_of_n/kl <= 1.5"}
    assert direction("best_of_n/kl", [bound]) == NEITHER
    assert direction("mine/oddness", [{"metric": "mine/oddness", "claim": "mine/oddness >= 3"}]) == UP


def figures(value, low, high):
    return {"a/accuracy": value, "a/accuracy_low": low, "a/accuracy_high": high}


def test_a_difference_by_hand():
    """0.7 (0.66 to 0.73) after 0.5 (0.47 to 0.54): 0.2, less hypot(0.04, 0.04), more hypot(0.03, 0.03)."""
    found = difference("a/accuracy", figures(0.7, 0.66, 0.73), figures(0.5, 0.47, 0.54))
    assert (found.value, found.kind) == (pytest.approx(0.2), "gain")
    assert found.low == pytest.approx(0.2 - 0.04 * 2**0.5)
    assert found.high == pytest.approx(0.2 + 0.03 * 2**0.5)
    assert difference("a/accuracy", figures(0.5, 0.47, 0.54), figures(0.7, 0.66, 0.73)).kind == "loss"
    assert difference("a/accuracy", figures(0.52, 0.48, 0.56), figures(0.5, 0.47, 0.54)).kind == "same"
    assert difference("a/accuracy", figures(0.5, 0.47, 0.54), {"a/accuracy": 0.7}) is None
