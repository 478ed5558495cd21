"""Starts that the tests of PPO share."""

import pytest
import torch
from peft import get_peft_model

from tests import enumerable_task as task
from tests.training.ppo_runs import lora, randomise


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> str:
    """The saved pi_ref of the task."""
    return task.saved_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="session")
def start_adapter(start, tmp_path_factory) -> str:
    """A LoRA adapter of the start with random weights, as an earlier stage would leave it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(5)
    model = get_peft_model(task.load(start), lora())
    randomise(model, "lora_B", 0.3)
    model.save_pretrained(folder)
    return str(folder)
