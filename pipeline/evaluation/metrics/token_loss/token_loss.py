"""Held-out loss and perplexity from token log-probabilities, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.objectives.statistics import ratio_with_interval

DESCRIPTION = """\
Mean negative log-likelihood per token (nats) and its exponential, the perplexity, with a 95% bootstrap interval over
documents."""

INPUTS = """\
Args:
    predictions: for each document, the log-probabilities (natural logarithm) of its tokens.
Returns:
    loss, loss_low, loss_high, perplexity, tokens.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/token_loss")
    >>> metric.compute(predictions=[[-1.0, -3.0], [-2.0]])["loss"]
    2.0
"""


class TokenLoss(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions):
        return ratio_with_interval([-sum(row) for row in predictions], [len(row) for row in predictions])
