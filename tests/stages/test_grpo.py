"""GRPO end to end on a tiny model: the reward rises, the reference stays, one seed gives one result."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.grpo import main
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows

SAMPLING = {
    "num_generations": 8, "max_completion_length": 4, "per_device_train_batch_size": 32, "beta": 0.01,
    "scale_rewards": "none", "loss_type": "dr_grpo", "temperature": 1.0, "save_steps": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Eight prompts with an answer column."""
    rows = [{"prompt": f"What is {a} plus 1?", "answer": str(a + 1)} for a in range(8)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def test_the_reward_rises_and_beta_means_a_kl(tiny_model, prompts, tmp_path):
    """The reward is the share of letters in a completion: easy to raise, and given by dotted path."""
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
            max_steps=25, reward="tests.stages.test_grpo:share_of_letters", **SAMPLING,
        )
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "reward" in entry]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)  # pi = pi_ref before the first update
    assert steps[-1]["kl"] > 0.5
    assert sum(step["reward"] for step in steps[:2]) / 2 < 0.5
    assert sum(step["reward"] for step in steps[-2:]) / 2 > 0.9
    assert read_metrics(tmp_path / "run")["steps"] == 25


def test_only_the_adapter_moves(tiny_model, prompts, tmp_path):
    before = load_file(tiny_model / "model.safetensors")
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
            max_steps=2, reward="tests.stages.test_grpo:share_of_letters", use_peft=True,
            lora_target_modules="all-linear", **SAMPLING,
        )
    )  # fmt: skip
    after = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def share_of_letters(prompts, completions, **columns):
    """A reward of our own, by dotted path: the share of letters among a completion's characters."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]


def test_a_misspelt_reward_is_told_before_any_model_is_loaded(tiny_model, prompts, tmp_path):
    with pytest.raises(UserError, match="numerical"):
        main(
            flags(
                model_name_or_path="./nowhere",
                dataset_name=prompts,
                output_dir=tmp_path / "run",
                reward="numerical",
                **SAMPLING,
            )
        )
