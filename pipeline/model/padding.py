"""Sequences of token ids as one batch."""

from collections.abc import Sequence
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
