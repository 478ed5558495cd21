"""The exact objective: expected values by hand, and on a model whose every completion is known."""

import math

import pytest
import torch

from pipeline.evaluation.exact import (
    exact_figures,
    exact_law,
    frontier,
    objective,
    prefix_law,
    regret,
)
from pipeline.objectives.divergences import tilted_law
from tests import enumerable_task as task

BETA = 0.5


def logs(*rows: list[float]) -> torch.Tensor:
    """Logarithms of rows of probabilities, (P, Y) in float64."""
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A policy and a reference: two random models of the enumerable task."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(task.load(task.saved_model(folder / str(seed), seed)) for seed in (0, 1))


def test_two_completions_by_hand():
    """pi_ref = (1/2, 1/2), R = (log 3, 0), beta = 1: Z = (3 + 1)/2 = 2, pi* = (3/4, 1/4), J* = log 2.

    pi = (1, 0): E[R] = log 3, KL = log 2, J = log(3/2), regret = log 2 - log(3/2) = log(4/3), which is
    KL(pi, pi*) = log(1 / (3/4)). pi_ref: J = log(3)/2 = 0.5493, regret 0.1438; so pi has removed 1 - 0.2877/0.1438 =
    -1 of it: it is further from the optimum than where it started.
    """
    reference, rewards = logs([0.5, 0.5]), torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    assert tilted_law(reference, rewards, 1.0).exp()[0].tolist() == pytest.approx([0.75, 0.25])
    pi = logs([1.0, 1e-300])
    assert objective(pi, reference, rewards, 1.0).item() == pytest.approx(math.log(1.5))
    found = exact_figures(pi, reference, rewards, 1.0)
    assert found["optimum"] == pytest.approx(math.log(2))
    assert found["regret"] == pytest.approx(math.log(4 / 3))
    assert found["kl_to_optimum"] == pytest.approx(math.log(4 / 3))
    assert found["kl"] == pytest.approx(math.log(2))
    assert found["regret_removed"] == pytest.approx(1 - math.log(4 / 3) / (math.log(2) - math.log(3) / 2))


def test_regret_in_reward_units_and_in_nats():
    """Rewards and beta times 10: pi* stays, J and regret grow tenfold, the regret in nats stays."""
    generator = torch.Generator().manual_seed(0)
    pi, reference = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    rewards = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    one, ten = exact_figures(pi, reference, rewards, 0.3), exact_figures(pi, reference, 10 * rewards, 3.0)
    assert ten["regret"] == pytest.approx(10 * one["regret"])
    assert ten["regret_nats"] == pytest.approx(one["regret_nats"])
    assert ten["regret_removed"] == pytest.approx(one["regret_removed"])
    star = tilted_law(reference, rewards, 0.3)
    at_star = exact_figures(star, reference, rewards, 0.3)
    assert at_star["regret"] == pytest.approx(0.0, abs=1e-12)
    assert at_star["regret_removed"] == pytest.approx(1.0)
    assert (regret(pi, reference, rewards, 0.3) > 0).all()


def test_what_is_no_law_is_refused():
    """Masses that sum to 0.9: regret and KL to pi* part by 0.1 of log Z, and the identity says so."""
    reference, rewards = logs([0.5, 0.5]), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="do not sum to 1"):
        exact_figures(logs([0.5, 0.4]), reference, rewards, BETA)


def test_the_mass_is_that_of_the_worse_law():
    """2e-6 too much in the policy, or in the reference: either shows, and is not enough to be refused."""
    rewards, half = torch.tensor([[0.1, 0.0]], dtype=torch.float64), logs([0.5, 0.5])
    off = logs([0.5, 0.500002])
    assert exact_figures(off, half, rewards, BETA)["mass"] == pytest.approx(2e-6, rel=1e-3)
    assert exact_figures(half, off, rewards, BETA)["mass"] == pytest.approx(2e-6, rel=1e-3)
    assert exact_figures(half, half, rewards, BETA)["mass"] == pytest.approx(0, abs=1e-12)


def test_prefix_laws_by_hand():
    """One token, two outcomes, pi_ref = (1/2, 1/2), R = (1, 0), beta = 1/2.

    Corrected is pi* = softmax(2, 0) = (0.8808, 0.1192). Uncorrected is beta/2 / (c - R): 0.25/(c - 1) + 0.25/c = 1
    gives c^2 - 1.5 c + 0.25 = 0, c = (1.5 + sqrt(1.25))/2 = 1.30902, so (0.80902, 0.19098). With groups of two, whose
    mean holds the sample itself, beta counts double: corrected softmax(1, 0) = (0.73106, 0.26894).
    """
    reference, rewards = logs([0.5, 0.5]), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    leaves = [(0,), (1,)]
    corrected = prefix_law(reference, rewards, leaves, BETA, corrected=True).exp()[0]
    assert corrected.tolist() == pytest.approx([0.8808, 0.1192], abs=1e-4)
    alone = prefix_law(reference, rewards, leaves, BETA, corrected=False).exp()[0]
    assert alone.tolist() == pytest.approx([0.80902, 0.19098], abs=1e-5)
    pairs = prefix_law(reference, rewards, leaves, BETA, corrected=True, group=2).exp()[0]
    assert pairs.tolist() == pytest.approx([0.73106, 0.26894], abs=1e-5)


def test_prefix_laws_count_no_later_kl():
    """Two tokens of {0, 1}, pi_ref even, R(0, 0) = log 9, else 0, beta 1. Last token after 0: 9 to 1; after 1: even.

    pi*: masses 9:1:1:1, so P(first = 0) = 10/12. The corrected law takes E_pi[R | 0] = 0.9 log 9 = 1.9775 for the
    value of 0 where pi* has log mean exp R = log 5 = 1.6094: P(first = 0) = e^1.9775 / (e^1.9775 + 1) = 0.87842, too
    sure.
    """
    reference = logs([0.25] * 4)
    rewards = torch.tensor([[math.log(9), 0.0, 0.0, 0.0]], dtype=torch.float64)
    leaves = [(0, 0), (0, 1), (1, 0), (1, 1)]
    law = prefix_law(reference, rewards, leaves, 1.0, corrected=True).exp()[0]
    assert (law[0] + law[1]).item() == pytest.approx(0.87842, abs=1e-5)
    assert (law[0] / (law[0] + law[1])).item() == pytest.approx(0.9)
    star = tilted_law(reference, rewards, 1.0).exp()[0]
    assert (star[0] + star[1]).item() == pytest.approx(10 / 12)


def test_prefix_laws_are_stationary_on_the_whole_task(models):
    """On 43 completions of four prompts: the expected on-policy gradient of the loss with k3 in it is 0 at its own
    law and not at the other's; both laws sum to 1, both leave some of the regret, and the uncorrected one leaves more.
    """
    reference, rewards = task.exact_law(models[0]), task.rewards()
    laws = {c: prefix_law(reference, rewards, task.COMPLETIONS, BETA, corrected=c) for c in (True, False)}
    for law in laws.values():
        assert law.exp().sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-9)
    left = [1 - exact_figures(laws[c], reference, rewards, BETA)["regret_removed"] for c in (True, False)]
    assert 0.001 < left[0] < left[1] < 0.9
    for corrected in (True, False):
        own, other = (token_gradient(laws[c], reference, rewards, corrected) for c in (corrected, not corrected))
        assert own < 1e-6
        assert other > 1e-3


def token_gradient(log_law, log_reference, rewards, corrected: bool) -> float:
    """Largest entry of the expected gradient of -R log pi + beta k3 with respect to every prefix's logits."""
    worst = 0.0
    prefixes = sorted({ids[:t] for ids in task.COMPLETIONS for t in range(len(ids))}, key=len)
    law = log_law.exp()
    below = {s: [i for i, ids in enumerate(task.COMPLETIONS) if ids[: len(s)] == s] for s in prefixes}
    for s in prefixes:
        branches = [[i for i in below[s] if task.COMPLETIONS[i][len(s)] == a] for a in range(task.VOCABULARY)]
        mass = torch.stack([law[:, b].sum(1) for b in branches], 1)  # (P, V), joint with the prefix
        value = torch.stack([(law[:, b] * rewards[:, b]).sum(1) for b in branches], 1) / mass
        log_p = (mass / mass.sum(1, keepdim=True)).log()
        log_q = torch.stack([log_reference[:, b].logsumexp(1) for b in branches], 1).log_softmax(1)
        # d/d logit_a of sum_a pi(a) [ -Q(a) log pi(a) + beta k3 ], sampling weights held fixed: pi (coef - mean coef).
        slope = log_p - log_q if corrected else 1 - (log_q - log_p).exp()
        coefficient = log_p.exp() * (BETA * slope - value)
        gradient = coefficient - log_p.exp() * coefficient.sum(1, keepdim=True)
        worst = max(worst, gradient.abs().max().item())
    return worst


def test_exact_law_is_the_model_s(models):
    """Masses of all completions sum to 1 within 1e-9 though the model computes in float32; the batch size does not
    matter; one completion's is the product of its tokens' probabilities.
    """
    model = models[0]
    law = task.exact_law(model)
    assert law.exp().sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-9)
    ids = task.tokenizer()(task.PROMPTS[2])["input_ids"]
    small = exact_law(model, [ids], task.COMPLETIONS[:20], batch_size=3)
    torch.testing.assert_close(small[0], law[2, :20], atol=1e-5, rtol=0)
    completion = (3, 4)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *completion]])).logits[0].double().log_softmax(-1)
    by_hand = sum(logits[len(ids) - 1 + t, token] for t, token in enumerate(completion))
    assert law[2, task.INDEX[completion]].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_frontier_is_above_every_policy(models):
    """At pi*'s own beta the frontier has its KL and reward; a policy of the same KL has less reward."""
    reference, rewards = task.exact_law(models[0]), task.rewards()
    low, same, high = curve = frontier(reference, rewards, [0.2, BETA, 2.0])
    assert low["kl"] > same["kl"] > high["kl"] > 0
    star = exact_figures(tilted_law(reference, rewards, BETA), reference, rewards, BETA)
    assert (same["kl"], same["reward"]) == pytest.approx((star["kl"], star["reward"]))
    other = exact_figures(task.exact_law(models[1]), reference, rewards, BETA)
    for point in curve:
        assert other["reward"] - point["beta"] * other["kl"] < point["reward"] - point["beta"] * point["kl"]
