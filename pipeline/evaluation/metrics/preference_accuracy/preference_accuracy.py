"""Preference accuracy from reward margins, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.objectives.statistics import preference_figures

DESCRIPTION = """\
Share of pairs whose chosen answer has the higher reward, a tie counting a half, with Wilson's 95% interval. With the
margins of the true reward beside them, also the Bayes accuracy (what the true reward itself reaches on these pairs)
and the share of it that is reached."""

INPUTS = """\
Args:
    predictions: reward(chosen) - reward(rejected) of every pair, under the model that is evaluated.
    true_margins: the same under the true reward, where it is known.
Returns:
    accuracy, accuracy_low, accuracy_high; with true_margins also bayes_accuracy and share_of_bayes.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/preference_accuracy")
    >>> metric.compute(predictions=[0.5, 0.0, -1.0, 2.0])["accuracy"]
    0.625
"""


class PreferenceAccuracy(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, true_margins=None):
        return preference_figures(predictions, true_margins)
