"""Accuracy by a verifier of the rewards' registry, strict and lenient, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.evaluation.verified import verified_figures
from pipeline.rewards.resolve import resolve

DESCRIPTION = """\
Share of completions that a verifier finds right, with Wilson's 95% interval. A verifier with a lenient score beside
its strict one (numeric: the last number where there is no marker) gives accuracy_lenient too. What cannot be judged is
counted in unscored and left out."""

INPUTS = """\
Args:
    predictions: completions, as text.
    references: gold answers, as text.
    verifier: a name in the registry of rewards (numeric, exact, choice, math, logic, ...); default numeric.
Returns:
    accuracy, accuracy_low, accuracy_high, the same with _lenient where there is one, timeouts, unscored.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/verified_accuracy")
    >>> metric.compute(predictions=["so 6*7 is #### 42", "about 41"], references=["42", "41"])["accuracy"]
    0.5
"""


class VerifiedAccuracy(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references, verifier="numeric"):
        judgements = resolve(verifier).judge(None, list(predictions), answer=list(references))
        return verified_figures([[judgement] for judgement in judgements])
