"""How well a model predicts held-out text: the loss per token and the perplexity."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.inference.likelihood import token_log_probabilities
from pipeline.model.tokens import encode_row
from pipeline.objectives.statistics import ratio_with_interval
from pipeline.runtime.errors import UserError


def loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    batch_size: int = 16,
    **data: object,
) -> Result:
    """Mean negative log-likelihood per token in nats (eq. 9) and its exponential, the perplexity.

    Rows are ``text`` (every token after the first is scored), ``messages`` (what the assistant says) or ``prompt`` +
    ``completion`` (the completion). The interval resamples rows: tokens of one row are not independent.

    Args:
        max_length: longer rows are cut into pieces of this many tokens; default: the model's positions, at most 1024.
        batch_size: rows per forward pass.
        data: which rows, see ``rows.read_rows``.
    """
    rows, source = read_rows(kind="sft", **data)
    length = max_length or default_length(model)
    pieces, owner = [], []
    for number, row in enumerate(rows):
        for piece in cut(*encode_row(tokenizer, row), length):
            pieces.append(piece)
            owner.append(number)
    logs = token_log_probabilities(model, [ids for ids, _ in pieces], batch_size=batch_size)
    scored = [-values[torch.tensor(mark[1:])].double() for values, (_, mark) in zip(logs, pieces) if len(mark) > 1]
    owner = [o for o, (_, mark) in zip(owner, pieces) if len(mark) > 1]
    return Result(loss_metrics([float(s.sum()) for s in scored], [len(s) for s in scored], owner), data=[source])


def loss_metrics(sums: Sequence[float], counts: Sequence[int], owner: Sequence[int]) -> dict[str, float]:
    """``loss`` with its interval over rows, ``perplexity``, ``tokens``, from pieces of rows.

    Args:
        sums: -log p summed over each piece's tokens.
        counts: how many tokens each piece has.
        owner: the row each piece was cut from.

    Raises:
        UserError: no token is scored.
    """
    if not sum(counts):
        raise UserError("no token is scored: the rows are empty or a single token long")
    rows = max(owner) + 1
    return ratio_with_interval(
        np.bincount(owner, weights=sums, minlength=rows).tolist(),
        np.bincount(owner, weights=counts, minlength=rows).astype(int).tolist(),
    )


def cut(ids: list[int], mark: list[bool], length: int) -> list[tuple[list[int], list[bool]]]:
    """A row in pieces of at most ``length`` tokens, each next piece starting at the last token of the one before.

    So every token but the row's first is predicted exactly once.
    """
    step = max(length - 1, 1)
    starts = range(0, max(len(ids) - 1, 1), step)
    # The token shared by two pieces is context in the second one, whose first position is never scored.
    return [(ids[start : start + step + 1], mark[start : start + step + 1]) for start in starts]


def default_length(model: PreTrainedModel) -> int:
    """The model's positions, at most 1024."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return min(getattr(config, "max_position_embeddings", None) or 1024, 1024)
