"""Rows of token ids through a model, many at a time: the one loop under forward passes over rows.

Shapes: B batch, T time.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from transformers.utils import ModelOutput

R = TypeVar("R")


class Batch(NamedTuple):
    """Rows padded on the right: their places among all rows, their lengths, ids (B, T) and attention mask (B, T)."""

    places: list[int]
    lengths: list[int]
    ids: torch.Tensor
    mask: torch.Tensor


def pad_right(
    rows: Sequence[Sequence[int]], device: torch.device | str, value: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ids (B, T) and attention mask (B, T), both integers.

    Padding is on the right, where a causal model cannot see it.
    """
    lengths = torch.tensor([len(row) for row in rows])
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def padded_batches(
    rows: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device | str,
    pad_token_id: int = 0,
    by_length: bool = True,
) -> Iterator[Batch]:
    """The rows in batches, by length and longest first (memory runs out at once or never), or in their order."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i])) if by_length else range(len(rows))
    for start in range(0, len(order), batch_size):
        places = list(order[start : start + batch_size])
        batch = [rows[i] for i in places]
        yield Batch(places, [len(row) for row in batch], *pad_right(batch, device, pad_token_id))


@torch.no_grad()
def forward_rows(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    read: Callable[[ModelOutput, Batch], Iterable[R]],
    *,
    batch_size: int,
    pad_token_id: int = 0,
    by_length: bool = True,
    device: torch.device | str | None = None,
    pixels: Sequence[torch.Tensor | None] | None = None,
    **options: object,
) -> list[R]:
    """What ``read`` takes from the model's output for each row, in the order of the rows; nothing is trained.

    Args:
        model: any model of token ids; used in evaluation mode and left as found.
        rows: token ids of each row.
        read: the output of a batch, and the batch -> one result per row of the batch, in its order.
        batch_size: rows per forward pass.
        pad_token_id: what fills a shorter row (a sequence classifier finds the last token by it).
        by_length: rows of similar length share a batch. Rollouts keep their order, so that the same rows always
            share a batch and a run can be repeated to the bit.
        device: where the ids go; default: the device of the model's first parameter.
        pixels: (I, C, Y, X) of each row's images, or None for a row without.
        options: passed to the model: ``output_hidden_states``, ``use_cache``, ...
    """
    device = next(model.parameters()).device if device is None else device
    found: dict[int, R] = {}
    with evaluating(model):
        for batch in padded_batches(rows, batch_size, device, pad_token_id, by_length):
            seen = [pixels[i] for i in batch.places if pixels[i] is not None] if pixels else []
            images = {"pixel_values": torch.cat(seen).to(device)} if seen else {}
            output = model(input_ids=batch.ids, attention_mask=batch.mask, **images, **options)
            found |= dict(zip(batch.places, read(output, batch), strict=True))
    return [found[i] for i in range(len(rows))]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, and the model's own mode again after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def accepted_arguments(model: nn.Module) -> set[str]:
    """Names that the causal LM's ``forward`` takes (a PEFT wrapper's own signature hides them)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


def cache_argument(model: nn.Module) -> str:
    """The name under which the causal LM's ``forward`` takes its KV cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in accepted_arguments(model) else "past_key_values"
