"""Pretraining's one deviation from transformers' Trainer."""

from typing import Any

from transformers import Trainer


class PackedTrainer(Trainer):
    """Trainer for packed blocks: no KV cache in the forward pass.

    Models of the library build one by default, also in training, and a forward pass with a cache does not look for
    the document boundaries in ``position_ids``: packed documents would see each other.
    """

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The parent's loss, with ``use_cache=False``."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)
