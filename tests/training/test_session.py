"""What all training stages share: LoRA+'s two learning rates."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.runtime.errors import UserError
from pipeline.training.session import apply_loraplus


class Adapter(torch.nn.Module):
    """One LoRA pair beside a bias, and a trainer's way to make an optimizer of them."""

    def __init__(self):
        super().__init__()
        self.lora_A, self.lora_B = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(2))


def trainer_of(model: torch.nn.Module) -> SimpleNamespace:
    """As much of a trainer as is asked: two groups, with and without decay."""

    def create_optimizer():
        groups = [
            {"params": [model.lora_A.weight, model.lora_B.weight], "weight_decay": 0.1},
            {"params": [model.bias], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3)

    return SimpleNamespace(model=model, create_optimizer=create_optimizer)


def test_lora_plus_divides_the_trainers_own_groups():
    """With a ratio of 16 the B matrix has 16e-3, decays as before, and everything else stays at 1e-3."""
    model = Adapter()
    trainer = trainer_of(model)
    apply_loraplus(trainer, 16.0)
    groups = trainer.create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0), (16e-3, 0.1)]
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(model.lora_A.weight)], [id(model.bias)], [id(model.lora_B.weight)],
    ]  # fmt: skip


def test_without_a_ratio_nothing_changes_and_without_lora_it_is_refused():
    trainer = trainer_of(Adapter())
    before = trainer.create_optimizer
    apply_loraplus(trainer, None)
    assert trainer.create_optimizer is before
    with pytest.raises(UserError, match="together with use_peft"):
        apply_loraplus(SimpleNamespace(model=torch.nn.Linear(1, 1)), 16.0)
    with pytest.raises(UserError, match="above 0"):
        apply_loraplus(trainer, 0.0)
