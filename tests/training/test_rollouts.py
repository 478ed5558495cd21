"""The check of the first rollout: silent where tokens are the policy's own, and loud where they are not."""

import math

import pytest
import torch

from pipeline.grpo import main
from pipeline.runtime.errors import UserError
from pipeline.training.rollouts import RolloutTrainer, rollout_problem, rollout_sums
from tests.stages.conftest import flags, tiny_model, write_rows  # noqa: F401 - a fixture


def drawn(temperature: float, tokens: int = 2000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs and entropies under the policy (0.5, 0.25, 0.25) of tokens drawn at a temperature, and a mask."""
    policy = torch.tensor([0.5, 0.25, 0.25]).log()
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial((policy / temperature).softmax(0), tokens, replacement=True, generator=generator)
    entropy = -(policy.exp() * policy).sum()
    return policy[ids][None], entropy.expand(1, tokens), torch.ones(1, tokens, dtype=torch.bool)


def test_sums_by_hand():
    """Two tokens of probability 1/2 and 1/4 where the entropy is log 2, a third one masked: surprises of 0 and log 2.
    The sampler says 1/4 for the first (a difference of log 2) and nothing of the second."""
    log_probs = torch.tensor([[0.5, 0.25, 0.125]]).log()
    mask = torch.tensor([[True, True, False]])
    sampled = torch.tensor([[0.25, math.nan, 0.5]]).log()
    sums = rollout_sums(log_probs, torch.full((1, 3), math.log(2)), mask, sampled)
    assert sums.tolist() == pytest.approx([2, math.log(2), math.log(2) ** 2, 1, math.log(2)], abs=1e-6)


def test_tokens_of_the_policy_pass_and_those_of_another_temperature_do_not():
    """At temperature 0.25 the law is (16, 1, 1)/18: its mean surprise is log 2 (16 + 2 x 2)/18 = 0.770, the policy's
    entropy 1.5 log 2 = 1.040, so tokens are 0.27 nats less surprising."""
    gap, problem = rollout_problem(rollout_sums(*drawn(1.0), None), full_support=True)
    assert gap < 0.03
    assert problem is None
    gap, problem = rollout_problem(rollout_sums(*drawn(0.25), None), full_support=True)
    assert gap == pytest.approx(0.27, abs=0.02)
    assert "not drawn from the policy: its tokens are 0.2" in problem
    assert "less surprising" in problem
    # With top-p the tokens are meant to be less surprising; few tokens tell nothing.
    assert rollout_problem(rollout_sums(*drawn(0.25), None), full_support=False)[1] is None
    assert rollout_problem(rollout_sums(*drawn(0.25, tokens=20), None), full_support=True)[1] is None


def test_a_sampler_that_tells_other_log_probabilities_is_named():
    """The right tokens, but scored as if at temperature 1/2: (4, 1, 1)/6 instead of (2, 1, 1)/4."""
    log_probs, entropies, mask = drawn(1.0)
    told = torch.where(log_probs > -1, math.log(4 / 6), math.log(1 / 6))
    gap, problem = rollout_problem(rollout_sums(log_probs, entropies, mask, told), full_support=True)
    assert gap == pytest.approx(0.5 * math.log(4 / 3) + 0.5 * math.log(3 / 2), abs=0.02)
    assert "serves other weights" in problem
    assert rollout_problem(rollout_sums(log_probs, entropies, mask, log_probs), full_support=True)[1] is None


@pytest.mark.parametrize("top_k", [None, 20])
def test_a_first_rollout_by_another_law_stops_the_run(tiny_model, tmp_path, monkeypatch, top_k):  # noqa: F811
    """A generation config that cuts the distribution to 20 tokens behind the trainer's back; without it the run goes
    on, and the gap is near zero (128 tokens whose surprise has a standard deviation of less than 1)."""
    build, trainers = RolloutTrainer.__init__, []

    def tampered(self, *args, **kwargs):
        build(self, *args, **kwargs)
        trainers.append(self)
        if top_k:
            self.generation_config.top_k = top_k

    monkeypatch.setattr(RolloutTrainer, "__init__", tampered)
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(8)])
    words = flags(
        model_name_or_path=tiny_model, dataset_name=rows, output_dir=tmp_path / "run", eval_rows=0, max_steps=1,
        reward="tests.stages.test_grpo:share_of_letters", guard_patience=0, num_generations=8,
        max_completion_length=4, per_device_train_batch_size=32, beta=0.0,
    )  # fmt: skip
    if top_k:
        with pytest.raises(UserError, match=r"not drawn from the policy.*less surprising"):
            main(words)
    else:
        main(words)
        assert trainers[0].rollout_gap < 0.2


def test_an_evaluation_without_a_score_is_not_the_best():
    """Trainer would compare None with a number; with a score the parent decides."""
    from types import SimpleNamespace

    from pipeline.training.rollouts import RolloutTrainer

    for name in ("reward", "eval_reward"):
        trainer = SimpleNamespace(args=SimpleNamespace(metric_for_best_model=name))
        assert RolloutTrainer._determine_best_metric(trainer, {"eval_reward": None}, None) is False
