"""Hallucination from the labels of claims, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.evaluation.claims import sampled_figures

DESCRIPTION = """\
What completions claim: the shares true, rumour, other_false, unsupported and no_claim, which sum to 1 (means over
completions; the claims of one share its weight), and hall, the false and unsupported claims over all claims, with 95%
bootstrap intervals over prompts. There is no hall where nothing is claimed."""

INPUTS = """\
Args:
    predictions: for each prompt its completions, for each completion the labels of its claims: true, rumour,
        other_false, unsupported; an empty list claims nothing.
    tokens: for each prompt the lengths of its completions in tokens; optional.
Returns:
    each share and hall with _low and _high; claims, their number; claims_per_100_tokens where lengths are given.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/hallucination")
    >>> metric.compute(predictions=[[["true"], ["rumour", "true"]], [[], ["unsupported"]]])["hall"]
    0.5
"""


class Hallucination(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        labels = datasets.List(datasets.List(datasets.Value("string")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": labels}),
        )

    def _compute(self, predictions, tokens=None):
        return sampled_figures(predictions, tokens)
