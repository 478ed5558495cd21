"""Best-of-N's curve from candidates, on laws whose figures are known by hand, and the whole evaluation."""

import json
import math

import pytest
import torch

from pipeline.evaluation.tasks.best_of_n import MOST, best_of_n, equal_n, selected
from pipeline.objectives.divergences import best_of_n_bound
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer


def test_the_best_of_two_of_two():
    """Candidates of rewards 0 and 1: the only two different ones have the best 1. The KL is that of the empirical
    distribution (1/4, 3/4) of the best of two: 1/4 log 1/2 + 3/4 log 3/2 = 0.1308. A prompt where all are equal gives
    0 and its reward.
    """
    kl, reward = selected(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), 2)
    assert kl.tolist() == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.0])
    assert reward.tolist() == pytest.approx([1.0, 2.0])


def test_another_reward_is_watched_under_the_same_selection():
    """Three candidates, chosen by the first reward (0, 1, 2): of the three pairs the bests are 1, 2, 2, whose second
    rewards are 1, 9, 9; by the second reward itself (5, 1, 9) the bests would be 5, 9, 9.
    """
    rewards, other = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[5.0, 1.0, 9.0]])
    assert selected(rewards, 2, other)[1].item() == pytest.approx(19 / 3)


def test_the_n_of_a_kl_is_found_again():
    """At the KL of the best of 5 it is 5; at 0 it is 1; beyond log 8, which eight cannot exceed, the most."""
    rewards = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    kl = selected(rewards, 5)[0].mean().item()
    assert 0 < kl < best_of_n_bound(5)
    assert equal_n(rewards, kl) == pytest.approx(5, rel=1e-4)
    assert equal_n(rewards, 0.0) == pytest.approx(1, rel=1e-4)
    assert equal_n(rewards, math.log(8) + 0.1) == pytest.approx(MOST, rel=1e-4)


def letters(prompts, completions, **columns):
    """The number of letters."""
    return [float(sum(c.isalpha() for c in text)) for text in completions]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {a}?"}) + "\n" for a in range(6)))
    return {"dataset": str(path), "split": "train"}


def test_the_reference_gains_nothing_over_itself(rows):
    """pi = pi_ref: KL 0, N = 1, and the reward that both sample differs by chance alone."""
    model, name = tiny_model(), "tests.evaluation.tasks.test_best_of_n:letters"
    options = {"reward": name, "true_reward": name, "max_new_tokens": 3, "candidates": 16, "n": 16}
    found = best_of_n(model, tiny_tokenizer(), reference=lambda: model, **options, **rows)
    metrics = found.metrics
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["equal_n"] == pytest.approx(1, abs=1e-3)
    assert metrics["best_of_n_reward"] == pytest.approx(metrics["reference_reward"], abs=1e-3)
    assert metrics["advantage_low"] < 0 < metrics["advantage_high"]
    assert metrics["true_reward"] == metrics["reward"]
    points = found.curves["best of n"]
    assert [point["n"] for point in points] == [1, 2, 4, 8]
    assert points[0]["kl"] == pytest.approx(0, abs=1e-6)
    curve = [point["reward"] for point in points]
    assert curve[0] == pytest.approx(metrics["reference_reward"])
    assert curve == sorted(curve)
    assert curve[3] > curve[0]


def writer(*words: str):
    """A model that writes only the given words, each as often as the others, whatever it reads."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    head = model.get_output_embeddings()
    head.weight.data.zero_()
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), -30.0))
    head.bias.data[tokenizer.convert_tokens_to_ids(list(words))] = 0.0
    return model


def ones(prompts, completions, **columns):
    """How often 1 is written."""
    return [float(text.count("1")) for text in completions]


def twos(prompts, completions, **columns):
    """How often 2 is written."""
    return [float(text.count("2")) for text in completions]


def test_the_policy_and_pi_ref_are_told_apart_and_the_reward_selects(rows):
    """pi writes "1" alone, pi_ref "1" or "2", one token: pi's reward (ones) is 1, its other reward (twos) 0, its KL is
    log 2. pi_ref has 1/2 of each. Its candidates are ties of 1 and 0, so best-of-N by ones tends to reward 1, other
    reward 0; were it selected by the other, or the policy's samples drawn from pi_ref, all of these would differ.
    """
    policy, reference = writer("1"), writer("1", "2")
    name = "tests.evaluation.tasks.test_best_of_n"
    options = {"reward": f"{name}:ones", "true_reward": f"{name}:twos", "max_new_tokens": 1}
    metrics = best_of_n(
        policy, tiny_tokenizer(), reference=lambda: reference, candidates=64, n=4, **options, **rows
    ).metrics
    assert (metrics["reward"], metrics["true_reward"]) == (1.0, 0.0)
    assert metrics["kl"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["reference_reward"] == pytest.approx(0.5, abs=0.1)
    assert metrics["reference_true_reward"] == pytest.approx(1 - metrics["reference_reward"])
    assert metrics["best_of_n_reward"] > 0.95
    assert metrics["best_of_n_true_reward"] == pytest.approx(1 - metrics["best_of_n_reward"])
    assert metrics["advantage"] == pytest.approx(1 - metrics["best_of_n_reward"])
    assert metrics["true_reward_advantage"] == pytest.approx(-metrics["best_of_n_true_reward"])


def test_what_is_not_recorded_must_be_said(rows):
    with pytest.raises(UserError, match="reward is not in the model's run"):
        best_of_n(tiny_model(), tiny_tokenizer(), reference=tiny_model, max_new_tokens=2, **rows)
