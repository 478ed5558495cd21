"""Whether a training run could learn at all: whether any of its steps had a gradient."""

import torch
from transformers import Trainer, TrainerCallback

from pipeline.runtime.distributed import agreed


class WatchGradients(TrainerCallback):
    """Notice the first step whose gradient is not zero.

    With equal rewards everywhere (GRPO, RLOO) every advantage is zero, and then so is every gradient: such a run
    finishes, its adapter as it began, and that is no fault of saving.

    Attributes:
        found: True after such a step; False where all gradients so far were zero; None where none was seen (no step
            yet, or DeepSpeed, which keeps them to itself).

    Args:
        trainer: a trainer may have a method ``saves(name)`` that says which parameters are the policy's.
    """

    def __init__(self, trainer: Trainer):
        self.found: bool | None = None
        self._counts = getattr(trainer, "saves", lambda name: True)

    def state_dict(self) -> dict[str, bool | None]:
        """What the steps so far showed."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, bool | None]) -> None:
        """Take over what the steps before the checkpoint showed; where it is not recorded, they may have learned."""
        self.found = state.get("found", True)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        """Look at the gradients until one is found, on all processes alike."""
        if self.found or model is None:
            return
        gradients = [p.grad for name, p in model.named_parameters() if p.grad is not None and self._counts(name)]
        if agreed(bool(gradients)):
            self.found = agreed(any(bool(_local(gradient).any()) for gradient in gradients))


def could_learn(trainer: Trainer) -> bool:
    """Whether the run made steps of which any may have had a gradient."""
    watchers = [c for c in trainer.callback_handler.callbacks if isinstance(c, WatchGradients)]
    return trainer.state.global_step > 0 and all(watcher.found is not False for watcher in watchers)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
