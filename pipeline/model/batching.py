"""Sequences of token ids as one batch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def pad_right(rows: Sequence[Sequence[int]], device: Any, value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as ids (B, T) and attention mask (B, T), both integers.

    Padding stands on the right, where a causal model cannot see it.
    """
    lengths = torch.tensor([len(row) for row in rows])
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def padded_batches(
    pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, device: Any
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """(prompt ids, completion ids) by length, longest first, padded on the right: indices, ids (B, T), mask (B, T)."""
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield batch, *pad_right([pairs[i][0] + pairs[i][1] for i in batch], device)
