"""How well a model predicts held-out text: token loss and perplexity, and the trigram baseline on the same tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.statistics import ratio_with_interval
from pipeline.evaluation.tasks import trigram as ngram
from pipeline.inference.likelihood import encode_documents, token_log_probabilities
from pipeline.model.tokens import encode_row
from pipeline.runtime.errors import UserError


def loss(model: Any, tokenizer: Any, *, max_length: int | None = None, batch_size: int = 16, **data: Any) -> Result:
    """Mean negative log-likelihood a token in nats (eq. 9) and its exponential, the perplexity.

    Rows are ``text`` (every token after the first is scored), ``messages`` (what the assistant says) or ``prompt`` +
    ``completion`` (the completion). The interval resamples rows: tokens of one row are not independent.

    Args:
        max_length: longer rows are cut into pieces of this many tokens; default: the model's positions, at most 1024.
        batch_size: rows a forward pass.
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


def trigram(
    model: Any,
    tokenizer: Any,
    *,
    train_split: str = "train",
    validation_rows: int = 1000,
    max_length: int | None = None,
    **data: Any,
) -> Result:
    """Loss of an interpolated trigram model on the tokens that ``loss`` scores: what the model has to beat.

    Its weights are tuned on the last ``validation_rows`` rows of the training split, with the counts of the others;
    then all training rows are counted, as the language model saw them all. Test rows that occur in the training split
    word for word are an error.

    Args:
        train_split: where the counts come from.
        validation_rows: held out of them for the interpolation weights.
        max_length: as in ``loss``, so that both score the same tokens.
        data: which test rows, see ``rows.read_rows``.
    """
    test, source = read_rows(kind="text", **data)
    train, train_source = read_rows(kind="text", **{**data, "split": train_split, "limit": None, "where": None})
    if not 0 < validation_rows < len(train):
        raise UserError(f"validation_rows is {validation_rows}, the split {train_split} has {len(train)} rows")
    if leaked := {row["text"] for row in test} & {row["text"] for row in train}:
        raise UserError(f"{len(leaked)} test rows stand in the split {train_split} too: the baseline would know them")
    length = max_length or default_length(model)

    def encode(rows: list[dict[str, Any]]) -> list[list[int]]:
        documents = encode_documents(tokenizer, [row["text"] for row in rows])
        return [piece for ids in documents for piece, _ in cut(ids, [True] * len(ids), length)]

    held, kept = encode(train[-validation_rows:]), encode(train[:-validation_rows])
    vocabulary = len(tokenizer)
    weights = ngram.fit_weights(ngram.count(kept, vocabulary), held)
    tested = [(number, piece) for number, row in enumerate(test) for piece in encode([row]) if len(piece) > 1]
    logs = ngram.log_probabilities(ngram.count(kept + held, vocabulary), weights, [piece for _, piece in tested])
    ends = np.cumsum([len(piece) - 1 for _, piece in tested])
    sums = [float(-part.sum()) for part in np.split(logs, ends[:-1])]
    metrics = loss_metrics(sums, [len(piece) - 1 for _, piece in tested], [number for number, _ in tested])
    return Result(metrics, data=[source, train_source | {"role": "counts of the trigram baseline"}])


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


def default_length(model: Any) -> int:
    """The model's positions, at most 1024."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return min(getattr(config, "max_position_embeddings", None) or 1024, 1024)
