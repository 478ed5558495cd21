"""Whether a run had a gradient at all, also over a resume."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from pipeline.training.learning import WatchGradients, could_learn
from pipeline.training.session import stop_where_done
from pipeline.training.state import Resumable


class Fading(torch.nn.Module):
    """Its loss has a gradient in the first ``alive`` steps, and none after them."""

    def __init__(self, alive: int):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))
        self.alive, self.calls = alive, 0

    def forward(self, x):
        self.calls += 1
        return {"loss": (self.w * x).mean() * (self.calls <= self.alive)}


class ResumableTrainer(Resumable, Trainer):
    """Trainer whose checkpoints hold the state of its callbacks."""


def train(folder: Path, alive: int, resume: Path | None = None) -> Trainer:
    """Four steps, a checkpoint after each."""
    config = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=1, save_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = ResumableTrainer(Fading(alive), config, train_dataset=[{"x": torch.ones(1)}] * 16)
    trainer.add_callback(WatchGradients(trainer))
    stop_where_done(trainer)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


@pytest.mark.parametrize("alive", [0, 1])
@pytest.mark.parametrize("step", [None, 2, 4])
def test_a_resumed_run_knows_what_the_steps_before_it_showed(alive, step, tmp_path):
    """A gradient in step 1 only, or never; the steps after the resume have none, and after step 4 there are none."""
    assert could_learn(train(tmp_path / "whole", alive)) == bool(alive)
    if step is not None:
        resumed = train(tmp_path / "again", 0, tmp_path / "whole" / f"checkpoint-{step}")
        assert resumed.state.global_step == 4
        assert could_learn(resumed) == bool(alive)
