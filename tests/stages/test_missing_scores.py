"""Rewards that give no score, the same one, or no numbers: a right result, or one line that says what is wrong."""

import json
import math

import pytest
from safetensors.torch import load_file

from pipeline.grpo import main as grpo
from pipeline.ppo import main as ppo
from pipeline.rsft import main as rsft
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, write_rows

HERE = "tests.stages.test_missing_scores"
STAGES = {
    "grpo": (grpo, {"num_generations": 4, "max_steps": 3}),
    "ppo": (ppo, {"num_generations": 2, "max_steps": 3, "num_iterations": 1, "critic": "none"}),
    "rsft": (rsft, {"num_candidates": 2, "max_steps": 2}),
}
SIZES = {"grpo": 4, "ppo": 2, "rsft": 4}


def nothing(prompts, completions, **columns):
    """No score for any completion."""
    return [None] * len(completions)


def nan(prompts, completions, **columns):
    """A number that is none."""
    return [math.nan] * len(completions)


def short(prompts, completions, **columns):
    """Too few numbers."""
    return [1.0]


def broken(prompts, completions, **columns):
    """A column that the data does not have."""
    return [columns["gold"][i] for i in range(len(completions))]


def strings(prompts, completions, **columns):
    """Numbers as text."""
    return ["1"] * len(completions)


def same(prompts, completions, **columns):
    """The same number for all, as a numpy array."""
    import numpy as np

    return np.full(len(completions), 0.5)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """Runs a stage with LoRA on three sums, the first of which has a gold answer that is no number."""
    rows = [{"prompt": f"What is {a} plus 1?", "answer": gold} for a, gold in enumerate(("not known", "2", "3"))]
    data = write_rows(tmp_path_factory.mktemp("three") / "rows.jsonl", rows)

    def start(stage, reward, model=tiny_model):
        main, given = STAGES[stage]
        folder = tmp_path_factory.mktemp("runs") / "run"
        main(
            flags(
                model_name_or_path=model, dataset_name=data, output_dir=folder, eval_rows=0, reward=reward,
                use_peft=True, lora_target_modules="all-linear", max_completion_length=4, save_steps=100,
                **given | {"per_device_train_batch_size": SIZES[stage]},
            )
        )  # fmt: skip
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "completed"
        return folder, record

    return start


@pytest.mark.parametrize("stage", STAGES)
def test_a_prompt_that_cannot_be_judged_does_not_stop_the_others(run, stage):
    """GRPO and PPO see one prompt per step: one of the three log lines has no score, the others have 0. RSFT keeps
    the candidates of two prompts in three.
    """
    folder, record = run(stage, "numeric")
    if stage == "rsft":
        assert record["metrics"]["round_1_unscored_share"] == pytest.approx(1 / 3)
        assert record["metrics"]["round_1_no_acceptable_share"] == pytest.approx(1 / 3)
        return
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    key = "reward" if stage == "grpo" else "objective/scores"
    rewards = [entry[key] for entry in history if key in entry]
    assert sorted(rewards, key=str) == [0.0, 0.0, None]


@pytest.mark.parametrize(
    ("stage", "reward", "message"),
    [
        ("grpo", "nothing", r"reward '{0}' gave none of 12 completions a score \(12 times: it returned None\)"),
        ("ppo", "nan", r"reward '{0}' gave none of 6 completions a score \(6 times: it returned nan\)"),
        ("rsft", "nothing", r"nothing to select from: reward '{0}' gave none of 6 completions a score"),
        ("grpo", "short", r"reward '{0}' returned 1 scores for 4 completions"),
        ("rsft", "broken", r"reward '{0}' failed: KeyError: 'gold' \(.*test_missing_scores.py, line \d+\); columns it "
                           r"was given: answer, completion_ids"),
        ("ppo", "strings", r"reward '{0}' returned '1' for completion 0: return a number or None"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_one_line_that_names_the_reward(run, stage, reward, message, caplog):
    with pytest.raises(UserError, match=message.format(f"{HERE}:{reward}")) as caught:
        run(stage, f"{HERE}:{reward}")
    assert "\n" not in str(caught.value)
    assert "All reward functions returned None" not in caplog.text


@pytest.mark.parametrize(("stage", "base"), [("grpo", "tiny_model"), ("grpo", "foreign_model"), ("ppo", "tiny_model")])
def test_equal_rewards_finish_and_say_that_nothing_was_learned(run, request, stage, base, capsys):
    """Every advantage and so every gradient is zero: LoRA's B is as it began, which is no fault of saving."""
    folder, record = run(stage, f"{HERE}:same", request.getfixturevalue(base))
    assert record["nothing_learned"] is True
    assert "warning: nothing was learned: the gradient of every one of 3 steps was zero" in capsys.readouterr().out
    adapter = load_file(folder / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def test_equal_rewards_are_no_reason_not_to_imitate(run):
    """RSFT's first candidate of each prompt is kept, and learned: its gradient is that of its log-likelihood."""
    folder, record = run("rsft", f"{HERE}:same")
    assert "nothing_learned" not in record
    adapter = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
