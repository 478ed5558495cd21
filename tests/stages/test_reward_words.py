"""What the stages that learn from rewards say of them: the default, each of several, and that none is better."""

import re
from types import SimpleNamespace

import pytest
import torch

from pipeline.grpo import main as grpo
from pipeline.rsft import main as rsft
from pipeline.training.held_out import HeldOut, in_words
from tests.stages.conftest import flags, read_metrics, write_rows

HERE = "tests.stages.test_reward_words"


def quarter(completions, **columns):
    """The same for every completion."""
    return [0.25] * len(completions)


def letters(completions, **columns):
    """The share of letters."""
    texts = [y if isinstance(y, str) else y[-1]["content"] for y in completions]
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in texts]


@pytest.fixture(params=["tiny_model", "foreign_model"])
def given(request, tmp_path):
    """Twelve sums, four of them held out, and two steps."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{a} plus 1?", "answer": str(a + 1)} for a in range(12)])
    return {
        "model_name_or_path": request.getfixturevalue(request.param), "dataset_name": rows, "eval_rows": 4,
        "max_steps": 1, "max_completion_length": 4, "output_dir": tmp_path / "run",
    }  # fmt: skip


def test_the_default_reward_is_said_and_recorded(given, capsys):
    """As if it had been given: an assessment of the run finds it by the record."""
    from pipeline.evaluation.recorded import recorded_objective

    grpo(flags(**given, num_generations=2, guard_patience=0))
    assert "grpo: not given: reward numeric (" in capsys.readouterr().out
    assert recorded_objective(str(given["output_dir"]))["reward"] == "numeric"


def test_each_of_several_rewards_has_its_held_out_figure_at_the_end(given, capsys):
    """A sum of rewards of weights 1 and 2 is the letters' share plus half; the line of the end names both."""
    rewards = [f"{HERE}:letters", f"{HERE}:quarter"]
    grpo(flags(**given, reward=rewards, reward_weights=[1, 2], num_generations=2, guard_patience=0))
    found = read_metrics(given["output_dir"])
    share = found["held_out_reward_parts/letters"]
    assert found["held_out_reward_parts/quarter"] == 0.25
    assert found["held_out_reward"] == pytest.approx(share + 0.5)
    assert re.search(rf"held out: reward .* on 4 rows; letters {share:.4g}; quarter 0.25\n", capsys.readouterr().out)


def test_figures_of_rewards_by_hand():
    """Completions with (1, 0) and (0, no score), weights 1 and 2: sums 1 and 0, means 0.5 and 0; a third without any
    score is in no mean."""
    trainer = SimpleNamespace(
        _calculate_rewards=None, reward_weights=torch.tensor([1.0, 2.0]), reward_func_names=["a", "b"], eval_dataset=[]
    )
    nan = float("nan")
    figures = HeldOut(trainer)._reward_figures(torch.tensor([[1.0, 0.0], [0.0, nan], [nan, nan]]))
    assert (figures["reward"], figures["reward_parts/a"], figures["reward_parts/b"]) == (0.5, 0.5, 0.0)
    said = in_words({f"held_out_{name}": value for name, value in figures.items()} | {"held_out_rows": 3})
    assert said.endswith(" on 3 rows; a 0.5; b 0")


@pytest.mark.parametrize(("reward", "expected"), [("quarter", True), ("letters", False)])
def test_rejection_sampling_says_when_no_candidate_is_better(given, capsys, reward, expected):
    rsft(flags(**given, reward=f"{HERE}:{reward}", num_candidates=4))
    warned = "warning: all candidates of each prompt have the same reward (mean 0.25)" in capsys.readouterr().out
    assert warned is expected
    assert (read_metrics(given["output_dir"])["round_1_equal_share"] == 1) is expected
