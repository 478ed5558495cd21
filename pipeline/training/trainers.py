"""TRL's trainers as the stages use them: their checkpoints hold everything that a run must remember, and a pair whose
two rewards are equal counts as half right, as everywhere here: before its first step a policy has 0.5, not 0.
"""

from contextlib import contextmanager
from typing import Any

import torch
import trl

from pipeline.runtime.compat import require
from pipeline.training.state import Resumable

require("DPOTrainer")
require("RewardTrainer")


class SFTTrainer(Resumable, trl.SFTTrainer):
    """Next-token loss on the tokens that ``labels`` name."""


class DPOTrainer(Resumable, trl.DPOTrainer):
    """The DPO losses on preference pairs."""

    def _compute_loss(self, model: torch.nn.Module, inputs: dict, return_outputs: bool) -> Any:
        """The parent's; half of the ties are added to the accuracy that it logs (see the module's docstring)."""
        with gathered(self.accelerator) as seen:
            result = super()._compute_loss(model, inputs, return_outputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        mean = metrics["rewards/margins"][-1]
        # The margins are gathered to be logged; the last of what was gathered whose mean that is are they.
        margins = next((x for x in reversed(seen) if x.is_floating_point() and x.mean().item() == mean), None)
        if margins is not None:
            metrics["rewards/accuracies"][-1] += 0.5 * (margins == 0).float().mean().item()
        return result


class RewardTrainer(Resumable, trl.RewardTrainer):
    """The Bradley-Terry loss on preference pairs."""

    def compute_loss(self, model: torch.nn.Module, inputs: dict, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The parent's; half of the ties are added to the accuracy that it logs (see the module's docstring)."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        chosen, rejected = outputs.logits.detach().squeeze(-1).chunk(2)
        ties = self.accelerator.gather_for_metrics((chosen == rejected).float().mean()).mean().item()
        self._metrics["train" if self.model.training else "eval"]["accuracy"][-1] += 0.5 * ties
        return (loss, outputs) if return_outputs else loss


@contextmanager
def gathered(accelerator: Any):
    """What ``accelerator.gather`` returns while the context is open, in order."""
    gather, seen = accelerator.gather, []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(gather(tensor))
        return seen[-1]

    accelerator.gather = kept
    try:
        yield seen
    finally:
        del accelerator.gather
