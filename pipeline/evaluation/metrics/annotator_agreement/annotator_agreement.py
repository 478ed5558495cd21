"""Disagreement of two annotators, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.objectives.statistics import agreement_figures

DESCRIPTION = """\
How often two annotators give the same label, with Wilson's 95% interval, and Cohen's kappa, agreement beyond chance:
(p - p_chance) / (1 - p_chance), with a bootstrap interval. There is no kappa where chance alone agrees always."""

INPUTS = """\
Args:
    predictions: labels of one annotator (a model, or a person).
    references: labels of the other.
Returns:
    agreement, kappa, each with _low and _high; chance, the agreement expected of independent labels.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/annotator_agreement")
    >>> metric.compute(predictions=["a", "a", "b", "b"], references=["a", "b", "b", "b"])["agreement"]
    0.75
"""


class AnnotatorAgreement(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        return agreement_figures(list(predictions), list(references))
