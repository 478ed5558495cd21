"""pass@k from the scores of several completions per prompt, as an ``evaluate.Metric``."""

import datasets
import evaluate

from pipeline.evaluation.verified import pass_at_k_figures

DESCRIPTION = """\
The probability that at least one of k completions is right, by the unbiased estimator 1 - C(n-c, k) / C(n, k) from n
scored completions per prompt, with a 95% bootstrap interval over prompts."""

CITATION = """\
@article{chen2021codex,
  title={Evaluating Large Language Models Trained on Code},
  author={Mark Chen and others},
  journal={arXiv:2107.03374},
  year={2021}
}"""

INPUTS = """\
Args:
    predictions: for each prompt, the scores of its completions; 1 is right, less is wrong.
    k: for which k; each prompt needs at least so many completions.
Returns:
    pass@k, pass@k_low, pass@k_high for every k.
Examples:
    >>> metric = evaluate.load("pipeline/evaluation/metrics/pass_at_k")
    >>> metric.compute(predictions=[[1.0, 0.0], [0.0, 0.0]], k=[1, 2])["pass@2"]
    0.5
"""


class PassAtK(evaluate.Metric):
    """See ``DESCRIPTION``."""

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, k=(1,)):
        if short := [len(row) for row in predictions if len(row) < max(k)]:
            raise ValueError(f"pass@{max(k)} needs at least {max(k)} samples per prompt, one has {min(short)}")
        return pass_at_k_figures(predictions, k)
