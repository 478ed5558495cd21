"""The objective from samples: expected values by hand, and expectations over a model whose completions are known."""

import pytest
import torch

from pipeline.evaluation.tasks.objective import estimates, summary
from pipeline.inference.likelihood import sequence_divergences
from tests import enumerable_task as task

BETA = 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A policy and a reference: two random models of the enumerable task."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(task.load(task.saved_model(folder / str(seed), seed)) for seed in (0, 1))


def test_both_estimates_of_the_kl_are_unbiased_and_the_full_one_is_the_quieter(models):
    """Weighted by the exact law of the policy, each of the two has the exact KL as its mean; the full-vocabulary one
    has the smaller variance and is never negative. Completions of different lengths, padding in between.
    """
    model, other = models
    law, reference = task.exact_law(model).exp()[:1], task.exact_law(other).exp()[:1]
    kl = (law * (law.log() - reference.log())).sum().item()
    ids = task.tokenizer()(task.PROMPTS[0])["input_ids"]
    sampled, full = sequence_divergences(model, other, [(ids, list(y)) for y in task.COMPLETIONS], batch_size=100)
    assert (law[0] * sampled).sum().item() == pytest.approx(kl, abs=1e-4)
    assert (law[0] * full).sum().item() == pytest.approx(kl, abs=1e-4)
    spread = [(law[0] * (x - kl) ** 2).sum().item() for x in (sampled, full)]
    assert spread[1] < spread[0]
    assert full.min() >= -1e-6


def test_standard_errors_by_hand():
    """Two prompts, beta 1, one completion not scored. Prompt 1: R = (1, 3), KL = (0.5, 0.5): mean R 2 with squared
    error 2/1/2 = 1, KL 0.5 with 0, J = (0.5, 2.5), 1.5 with 1. Prompt 2: R = (0, 2), KL = (1, 0, 0.5): R 1 with 1, KL
    0.5 with 0.5/2/3 = 1/12, J = (-1, 2), 0.5 with 4.5/1/2 = 2.25. So R = 1.5 +- sqrt(2)/2, KL = 0.5 +- sqrt(1/12)/2,
    J = 1 +- sqrt(3.25)/2.
    """
    found = estimates([[1, 3], [0, 2, None]], [[1, 0], [1, 1, 1]], [[0.5, 0.5], [1, 0, 0.5]], 1.0)
    figures = summary(found, all_prompts=True)
    for name, mean, error in (
        ("reward", 1.5, 2**0.5 / 2),
        ("kl", 0.5, (1 / 12) ** 0.5 / 2),
        ("objective", 1.0, 3.25**0.5 / 2),
    ):
        assert figures[name] == pytest.approx(mean)
        assert figures[f"{name}_se"] == pytest.approx(error)
        assert figures[f"{name}_high"] == pytest.approx(mean + 1.959964 * error)
    assert figures["kl_sampled"] == pytest.approx(0.75)
    single = summary(estimates([[1], [3]], [[0], [0]], [[0], [0]], 1.0))
    assert "reward_se" not in single  # one sample tells nothing of its error
    assert 1 <= single["reward_low"] <= 2 <= single["reward_high"] <= 3
