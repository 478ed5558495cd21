"""Numbers that are not finite end every training stage before they reach the weights, whatever it trains."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from pipeline.runtime.errors import DivergedError
from pipeline.training.finite import StopWhenNotFinite


class Line(torch.nn.Module):
    """y = w x with w = 1; the loss is not finite from forward pass ``broken`` (counted from 1) on."""

    def __init__(self, broken):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))
        self.broken, self.calls = broken, 0

    def forward(self, x):
        self.calls += 1
        loss = ((self.w * x) ** 2).mean()
        return {"loss": loss * float("nan") if self.calls >= self.broken else loss}


def trainer_of(folder, broken, watched=True, **options):
    """Six steps of SGD at 0.1 on x = 1, a checkpoint after each."""
    options = {"max_grad_norm": 0.0, "learning_rate": 0.1, "save_strategy": "steps"} | options
    config = TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=1, save_steps=1, logging_steps=1, optim="sgd",
        lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(Line(broken), config, train_dataset=[{"x": torch.ones(1)}] * 16)
    if watched:
        trainer.add_callback(StopWhenNotFinite(trainer, "demo"))
    return trainer


def saved_weights(folder):
    """{step: w} of the checkpoints."""
    return {
        int(path.parent.name.partition("-")[2]): load_file(path)["w"].item()
        for path in Path(folder).glob("checkpoint-*/model.safetensors")
    }


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_step_is_not_made_and_the_checkpoints_before_it_are_kept(tmp_path, clip):
    """w is 1, then 0.8 and 0.64 after steps 1 and 2 (w - 0.1 * 2 w); clipped to 1 the gradient gives 0.9 and 0.8.
    Step 3 breaks."""
    trainer = trainer_of(tmp_path, 3, max_grad_norm=clip)
    with pytest.raises(DivergedError, match=r"demo diverged: step 3 was not made: its loss is nan.*learning_rate"):
        trainer.train()
    first, second = (0.9, 0.8) if clip else (0.8, 0.64)
    assert saved_weights(tmp_path) == {1: pytest.approx(first), 2: pytest.approx(second)}
    assert trainer.model.w.item() == pytest.approx(second)


def test_one_of_several_accumulated_losses_is_enough(tmp_path):
    """Two forward passes a step: the third is the first of step 2, and the fourth is not finite either."""
    trainer = trainer_of(tmp_path, 4, gradient_accumulation_steps=2)
    with pytest.raises(DivergedError, match="step 2 was not made"):
        trainer.train()
    assert sorted(saved_weights(tmp_path)) == [1]


def test_without_it_trainer_goes_on_saves_what_is_not_finite_and_logs_a_loss_of_zero(tmp_path):
    """The reason for it: if this fails, Trainer has learned to stop by itself."""
    trainer = trainer_of(tmp_path, 1, watched=False)
    trainer.train()
    assert math.isnan(saved_weights(tmp_path)[6])
    assert trainer.state.log_history[0]["loss"] == 0


def test_a_finite_run_trains_as_without_it(tmp_path):
    trainer_of(tmp_path, 99).train()
    assert saved_weights(tmp_path)[6] == pytest.approx(0.8**6)


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
def test_weights_that_a_finite_gradient_overflows_are_not_saved(tmp_path, strategy):
    """1 - 2 * 3e38 is beyond float32: step 1's gradient is finite and its weight is not. It is seen before a
    checkpoint of it; without checkpoints by the next loss."""
    trainer = trainer_of(tmp_path, 99, learning_rate=3e38, save_strategy=strategy)
    with pytest.raises(DivergedError, match=r"weights are not finite after step 1|step 2 was not made"):
        trainer.train()
    assert saved_weights(tmp_path) == {}


def test_an_evaluation_that_is_not_finite_stops_too(tmp_path):
    trainer = trainer_of(tmp_path, 99)
    watch = StopWhenNotFinite(trainer, "demo")
    watch.on_evaluate(trainer.args, TrainerState(global_step=4), TrainerControl(), metrics={"eval_loss": 1.0})
    with pytest.raises(DivergedError, match="eval_loss is nan after step 4"):
        watch.on_evaluate(
            trainer.args, TrainerState(global_step=4), TrainerControl(), metrics={"eval_loss": float("nan")}
        )
