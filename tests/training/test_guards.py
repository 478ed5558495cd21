"""Each guard fires where it is provoked and is silent in a healthy run."""

import math
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from pipeline.runtime.errors import UserError
from pipeline.training.guards import Guards

STATE = SimpleNamespace(global_step=7, is_world_process_zero=True)
ARGS = SimpleNamespace(fp16=False, output_dir="runs/x")


def healthy(step):
    """A run as it should be: reward and strict score rise from 0.5 to 0.95, entropy falls because of it, KL grows."""
    reward = 0.5 + 0.45 * min(1.0, step / 60) + 0.02 * math.sin(step)
    return {
        "loss": 0.01, "grad_norm": 0.5, "reward": reward, "reward_std": 0.4, "rewards/numeric/mean": reward,
        "frac_reward_zero_std": min(0.97, reward), "completions/clipped_ratio": 0.02, "kl": 0.001 * step,
        "entropy": 1.0 * 0.95**step,
    }  # fmt: skip


def stopped_after(guards, lines):
    """How many log lines it took to stop the run; None if it went on."""
    control = TrainerControl()
    for count, logs in enumerate(lines, start=1):
        guards.on_log(ARGS, STATE, control, logs=logs)
        if control.should_training_stop:
            assert control.should_save
            return count
    return None


def test_a_healthy_run_is_left_alone(capsys):
    assert stopped_after(Guards("rewards/numeric/mean"), (healthy(step) for step in range(200))) is None
    assert capsys.readouterr().out == ""


PROVOKED = {
    "all equal in groups": ({}, lambda n: {"frac_reward_zero_std": 1.0}, "nothing can be learned"),
    "all equal in the batch": ({"grouped": False}, lambda n: {"reward_std": 0.0}, "nothing can be learned"),
    "nothing scored": ({}, lambda n: {"reward": float("nan")}, "no completion could be scored"),
    "nothing scored, as TRL logs it": ({}, lambda n: {"reward": None}, "no completion could be scored"),
    "truncated": ({}, lambda n: {"completions/clipped_ratio": 0.95}, "max_completion_length"),
    "kl of tokens": ({}, lambda n: {"kl": 1.5}, "kl is 1.5, above 1"),
    "kl of completions": ({}, lambda n: {"objective/kl": 60.0, "kl": 0.1}, "objective/kl is 60, above 50"),
    "kl above a ceiling of its own": ({"max_kl": 0.2}, lambda n: {"kl": 0.3}, "above 0.2"),
    "entropy": (
        {},
        lambda n: {"entropy": 0.5 if n == 0 else 0.001, "reward": 0.5, "rewards/numeric/mean": 0.5},
        "explor",
    ),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_a_guard_warns_at_once_and_stops_after_its_patience(name, capsys):
    """Bad from line 0 (entropy from line 1, since the first line is its measure); patience 4."""
    options, change, message = PROVOKED[name]
    guards = Guards("rewards/numeric/mean", patience=4, **options)
    lines = [{**healthy(0), **change(n)} for n in range(20)]
    assert stopped_after(guards, lines) == (5 if name == "entropy" else 4)
    assert message in guards.message
    assert capsys.readouterr().out.count("warning: step 7:") == 1
    with pytest.raises(UserError, match=r"stopped by a guard: .*; the last checkpoint is in runs/x"):
        guards.on_train_end(ARGS, STATE, TrainerControl())


def test_a_good_line_starts_the_patience_anew():
    guards = Guards(patience=3)
    lines = [{**healthy(0), "kl": 0.0 if n % 3 == 2 else 9.0} for n in range(30)]
    assert stopped_after(guards, lines) is None


def test_hacking_is_a_rising_reward_with_a_falling_strict_score():
    """Reward 0.5 + 0.02 n, strict 0.5 - 0.02 n. In means over 5 lines both moved by 0.02 k after k more lines than 5:
    beyond the margin of 0.1 first at k = 6, line 11; with patience 3 the run stops at line 13."""
    lines = [{**healthy(0), "reward": 0.5 + 0.02 * n, "rewards/numeric/mean": 0.5 - 0.02 * n} for n in range(30)]
    guards = Guards("rewards/numeric/mean", patience=3, window=5)
    assert stopped_after(guards, lines) == 13
    assert "at the expense of the task (reward hacking)" in guards.message


@pytest.mark.parametrize(("reward", "strict"), [(0.02, 0.02), (-0.02, -0.02), (0.02, 0.0), (0.0, -0.02)])
def test_other_movements_of_the_two_scores_are_no_hacking(reward, strict):
    lines = [{**healthy(0), "reward": 0.5 + reward * n, "rewards/numeric/mean": 0.5 + strict * n} for n in range(25)]
    assert stopped_after(Guards("rewards/numeric/mean", patience=3), lines) is None


def test_certainty_that_comes_with_a_better_reward_is_no_collapse():
    lines = [{**healthy(0), "entropy": 0.5 if n == 0 else 0.001, "reward": 0.5 if n == 0 else 0.9} for n in range(30)]
    assert stopped_after(Guards(patience=3), lines) is None


def test_lines_of_evaluation_and_the_summary_are_not_judged():
    lines = [{"eval_reward": 0.0, "eval_kl": 99.0}, {"train_loss": float("nan"), "train_runtime": 1.0}] * 20
    assert stopped_after(Guards(patience=1), lines) is None


def test_no_patience_warns_and_never_stops(capsys):
    lines = [{**healthy(0), "kl": 9.0}] * 30
    assert stopped_after(Guards(patience=0), lines) is None
    assert capsys.readouterr().out.count("warning: step 7:") == 1
    with pytest.raises(UserError, match="patience"):
        Guards(patience=-1)
