"""TRL's trainers as the stages use them: their checkpoints hold everything that a run must remember, and a pair whose
two rewards are equal counts as half right, as everywhere here: before its first step a policy has 0.5, not 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl
from accelerate import Accelerator
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from pipeline.runtime.compat import require
from pipeline.training.state import Resumable

require("DPOTrainer")
require("RewardTrainer")


class SFTTrainer(Resumable, trl.SFTTrainer):
    """Next-token loss on the tokens that ``labels`` name."""


class VisionCollator(DataCollatorForVisionLanguageModeling):
    """TRL's batches of rows with images, in which the places of images are no labels: (9) has no target there.

    TRL's loss does not go through the model's own, which would leave them out.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask, labels (B, T), and pixel_values where a row has an image."""
        output = super().torch_call([dict(example) for example in examples])
        output["labels"][output["labels"] == self.processor.image_token_id] = -100
        return output


def vision_collator(processing: Any, config: trl.SFTConfig, columns: list[str]) -> VisionCollator | None:
    """The collator for rows with these columns; None for rows of text, of which TRL's own is right."""
    if "images" not in columns:
        return None
    return VisionCollator(
        processor=processing,
        completion_only_loss=bool(config.completion_only_loss),
        assistant_only_loss=config.assistant_only_loss,
        dataset_text_field="text",
    )


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
def gathered(accelerator: Accelerator) -> Iterator[list[torch.Tensor]]:
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
