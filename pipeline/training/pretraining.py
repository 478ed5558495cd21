"""Pretraining's deviations from transformers' Trainer: no cache in the forward pass, a stream that resumes."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, default_data_collator

from pipeline.data.images import has_images
from pipeline.data.packing import pack
from pipeline.data.seen import captions
from pipeline.data.streaming import PackedStream, pack_stream
from pipeline.model.vision import trained_with
from pipeline.training.session import require_rows
from pipeline.training.state import Resumable
from pipeline.training.trainers import VisionCollator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from pipeline.data.arguments import DataArguments
    from pipeline.data.loading import Data


def batches_of(
    data: "Data",
    arguments: "DataArguments",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    config: "TrainingArguments",
) -> dict[str, Any]:
    """The trainer's datasets and collator: packed blocks of text, or one row per document where there are images.

    Raises:
        UserError: less text than one block, or a row with images that is longer or that the model cannot see.
    """
    if has_images(getattr(data.train, "column_names", ())):
        data = captions(data, tokenizer, max_length)
        config.remove_unused_columns = False  # the collator makes the model's columns of them
        collator = VisionCollator(processor=trained_with(tokenizer), dataset_text_field="text")
        return {"train_dataset": data.train, "eval_dataset": data.evaluation, "data_collator": collator}
    if arguments.dataset_streaming:
        train = pack_stream(data.train, tokenizer, max_length, config.max_steps)
    else:
        train = pack(data.train, tokenizer, max_length)
    require_rows(train, f"{arguments.dataset_name}: less text than one block of {max_length} tokens")
    return {
        "train_dataset": train,
        "eval_dataset": pack(data.evaluation, tokenizer, max_length) if data.evaluation is not None else None,
        "data_collator": default_data_collator,  # no attention mask: it would switch document masking off
    }


class PackedTrainer(Resumable, Trainer):
    """Trainer for packed blocks: no KV cache in the forward pass, and a `PackedStream` resumes without reading again.

    Models of the library build a cache by default, also in training, and a forward pass with a cache does not look for
    the document boundaries in ``position_ids``: packed documents would see each other.
    """

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The parent's loss, with ``use_cache=False``."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream's next block begins; nothing for blocks in memory, which Trainer skips at no cost."""
        if not isinstance(self.train_dataset, PackedStream):
            return {}
        per_step = self._blocks_per_step()
        return {
            "blocks_per_step": per_step,
            "stream": self.train_dataset.fingerprint,
            "position": self.train_dataset.position(self.state.global_step * per_step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the stream continue where the checkpoint stopped.

        Where the checkpoint has no position of this very stream (other arguments, workers that read by themselves),
        the stream starts at its beginning and Trainer's own skip finds the place by reading again.
        """
        stream = self.train_dataset
        if not isinstance(stream, PackedStream) or self.args.dataloader_num_workers or not state.get("position"):
            return
        if (state["stream"], state["blocks_per_step"]) == (stream.fingerprint, self._blocks_per_step()):
            stream.fast_forward(state["position"])

    def _blocks_per_step(self) -> int:
        """Blocks that all processes together take for one optimizer step."""
        args = self.args
        processes = 1 if args.accelerator_config.split_batches else args.world_size
        return args.gradient_accumulation_steps * args.train_batch_size * processes
