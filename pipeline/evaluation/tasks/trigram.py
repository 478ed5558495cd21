"""The loss of a trigram model on held-out text: the baseline that a language model has to beat."""

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation import ngram
from pipeline.evaluation.registry import Result
from pipeline.evaluation.rows import read_rows
from pipeline.evaluation.tasks.loss import cut, default_length, loss_metrics
from pipeline.model.tokens import encode_row
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json


def trigram(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_split: str = "train",
    validation_rows: int = 1000,
    max_length: int | None = None,
    **data: object,
) -> Result:
    """Loss of an interpolated trigram model on the tokens that ``loss`` scores: what the model has to beat.

    Its weights are tuned on the last ``validation_rows`` rows of the training split, with the counts of the others;
    then all training rows are counted, as the language model saw them all. Test rows that occur in the training split
    word for word are an error.

    Args:
        train_split: where the counts come from.
        validation_rows: how many of its last rows fit the interpolation weights.
        max_length: as in ``loss``, so that both score the same tokens.
        data: which test rows, see ``rows.read_rows``.

    Raises:
        UserError: too few training rows, or test rows among them.
    """
    test, source = read_rows(kind="text", **data)
    train, train_source = read_rows(kind="text", **{**data, "split": train_split, "limit": None, "where": None})
    if not 0 < validation_rows < len(train):
        raise UserError(f"validation_rows is {validation_rows}, the split {train_split} has {len(train)} rows")
    if leaked := {row["text"] for row in test} & {row["text"] for row in train}:
        raise UserError(
            f"{len(leaked)} test rows are in the split {train_split} too: the baseline would have counted them"
        )
    length = max_length or default_length(model)

    def encode(rows: list[Json]) -> list[list[int]]:
        return [piece for row in rows for piece, _ in cut(*encode_row(tokenizer, row), length)]

    held, kept = encode(train[-validation_rows:]), encode(train[:-validation_rows])
    vocabulary = len(tokenizer)
    weights = ngram.fit_weights(ngram.count(kept, vocabulary), held)
    tested = [(number, piece) for number, row in enumerate(test) for piece in encode([row]) if len(piece) > 1]
    logs = ngram.log_probabilities(ngram.count(kept + held, vocabulary), weights, [piece for _, piece in tested])
    ends = np.cumsum([len(piece) - 1 for _, piece in tested])
    sums = [float(-part.sum()) for part in np.split(logs, ends[:-1])]
    metrics = loss_metrics(sums, [len(piece) - 1 for _, piece in tested], [number for number, _ in tested])
    return Result(metrics, data=[source, train_source | {"role": "counts of the trigram baseline"}])
