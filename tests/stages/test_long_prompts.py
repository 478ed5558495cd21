"""Prompts that leave no room for a completion in the model's positions are left out, counted, or refused."""

import json

import pytest

from pipeline.grpo import main as grpo
from pipeline.ppo import main as ppo
from pipeline.rsft import main as rsft
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, write_rows

HERE = "tests.stages.test_long_prompts"
STAGES = {
    "grpo": (grpo, {"num_generations": 2, "prefilter_samples": 3, "guard_patience": 0}),
    "ppo": (ppo, {"num_generations": 2, "critic": "none", "num_iterations": 1, "guard_patience": 0}),
    "rsft": (rsft, {"num_candidates": 2}),
}
seen: list[tuple] = []


def watched(prompts, completions, **columns):
    """Half of the completions are right; which prompts were sampled is kept."""
    seen.extend(len(prompt) for prompt in prompts)
    return [float(i % 2) for i in range(len(completions))]


def given(model, data, folder, stage):
    """Flags of a stage with completions of 8 tokens; the model has 256 positions."""
    common = {"model_name_or_path": model, "dataset_name": data, "output_dir": folder, "reward": f"{HERE}:watched"}
    common |= {"max_completion_length": 8, "max_steps": 1, "per_device_train_batch_size": 4, "eval_rows": 0}
    return common | STAGES[stage][1]


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
@pytest.mark.parametrize("stage", STAGES)
def test_prompts_beyond_the_positions_are_left_out_and_counted(request, stage, base, tmp_path, capsys):
    """Six prompts, two of them of 300 tokens or more: those are never sampled."""
    model = request.getfixturevalue(base)
    short = [{"prompt": f"What is {a} plus 1?"} for a in range(4)]
    rows = [*short[:2], {"prompt": "1 2 3 4 5 6 " * 50}, *short[2:], {"prompt": "What is 1 plus 1? " * 60}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    seen.clear()
    STAGES[stage][0](flags(**given(model, data, tmp_path / "run", stage)))
    assert seen
    assert max(seen) < 30
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["prompts_too_long"] == 2
    assert f"{stage}: left out: 2 of 6 train prompts (the longest has " in capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_data_of_which_nothing_is_left_is_refused(stage, tiny_model, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i} 2 3 4 5 6 " * 50} for i in range(4)])
    message = (
        r"4 of 4 train prompts .* completion of 8 tokens do not fit into the model's 256 positions: no row is left"
    )
    with pytest.raises(UserError, match=message):
        STAGES[stage][0](flags(**given(tiny_model, data, tmp_path / "run", stage)))
