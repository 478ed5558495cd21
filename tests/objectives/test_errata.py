"""Where the paper's statements had to be corrected: each correct statement, and that the printed one fails.

The numbers in the names are those of docs/errata.md.
"""

import itertools
import math

import pytest
import torch

from pipeline.objectives.divergences import (
    best_of_n_law,
    exact_kl,
    kl_k1,
    kl_k3,
    log_partition,
    softmax_selection_law,
    tilted_law,
    total_variation,
)
from pipeline.objectives.policy import ppo_clip_loss, reinforce_loss
from pipeline.objectives.preference import dpo_loss


def random_task(outcomes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference law and rewards over `outcomes` completions, both (outcomes,) in float64."""
    generator = torch.Generator().manual_seed(seed)
    law = (torch.randn(outcomes, generator=generator, dtype=torch.float64) * 0.7).softmax(0)
    return law, torch.randn(outcomes, generator=generator, dtype=torch.float64)


def test_1_the_dpo_reward_is_beta_log_ratio_plus_beta_log_z():
    """At the optimum `R = beta log(pi / pi_ref) + beta log Z`, so preferences are `sigma(R+ - R-)`, as L_DPO has it.

    The printed `R = beta^-1 log(pi / pi_ref) + C` differs by beta^2 between two completions.
    """
    beta = 0.4
    reference, rewards = random_task(5)
    log_star = tilted_law(reference.log(), rewards, beta)
    implied = beta * (log_star - reference.log())
    torch.testing.assert_close(implied + beta * log_partition(reference.log(), rewards, beta), rewards)
    loss = dpo_loss(log_star[0], log_star[1], reference[0].log(), reference[1].log(), beta)
    assert math.exp(-loss) == pytest.approx(torch.sigmoid(rewards[0] - rewards[1]).item())
    printed = (log_star - reference.log()) / beta
    assert ((printed[0] - printed[1]) / (rewards[0] - rewards[1])).item() == pytest.approx(beta**-2)


def test_1_the_dpo_loss_is_stationary_at_the_optimum():
    """Preferences drawn by Bradley-Terry on R: the expected L_DPO has gradient 0 at pi* and not at pi_ref."""
    beta = 0.4
    reference, rewards = random_task(4, seed=1)
    prefer = torch.sigmoid(rewards[:, None] - rewards[None])  # P(row beats column)

    def gradient(log_policy):
        logits = log_policy.clone().requires_grad_()
        log_probs, ref = logits.log_softmax(0), reference.log()
        loss = sum(
            prefer[i, j] * dpo_loss(log_probs[i], log_probs[j], ref[i], ref[j], beta)
            for i, j in itertools.permutations(range(4), 2)
        )
        return torch.autograd.grad(loss, logits)[0].abs().max().item()

    assert gradient(tilted_law(reference.log(), rewards, beta)) < 1e-12
    assert gradient(reference.log()) > 0.1


def test_2_best_of_n_tends_to_the_argmax_and_softmax_selection_to_the_tilted_law():
    """Total variation to pi* at tau = 1: falling monotonically to 0 for softmax(tau), and not for best-of-N."""
    reference, rewards = random_task(30, seed=2)
    star = tilted_law(reference.log(), rewards, 1.0).exp()
    counts = [2**k for k in range(11)]
    soft = [total_variation(softmax_selection_law(reference, rewards, n, 1.0), star).item() for n in counts]
    assert all(later < earlier for earlier, later in itertools.pairwise(soft))
    assert soft[-1] < 0.003
    best = best_of_n_law(reference, rewards, 4096)
    assert best[rewards.argmax()].item() > 0.999
    assert total_variation(best, star).item() > 0.5


def test_13_iterating_without_the_correction_sharpens_and_with_it_stays():
    """K rounds of weights exp(R / tau) give pi_ref exp(K R / tau); with R/tau + log pi_ref - log pi_k round 2 changes
    nothing once the target is met, and meets it from any law.
    """
    reference, rewards = random_task(12, seed=3)
    tau = 0.8
    star = tilted_law(reference.log(), rewards, tau)
    naive = reference.log()
    for _ in range(3):
        naive = tilted_law(naive, rewards, tau)
    torch.testing.assert_close(naive, tilted_law(reference.log(), rewards, tau / 3))
    for policy in (star, naive, torch.full_like(star, -math.log(12))):
        corrected = (policy + rewards / tau + reference.log() - policy).log_softmax(0)
        torch.testing.assert_close(corrected, star)


# 9: two tokens from a vocabulary of three, every completion enumerated, gradients exact.

VOCABULARY = 3
BETA = 0.5


class TwoTokens:
    """A tabular policy: logits of the first token, then of the second given the first. Everything in float64."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.reference = torch.randn(VOCABULARY + 1, VOCABULARY, generator=generator, dtype=torch.float64)
        self.rewards = 2 * torch.rand(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def token_log_probs(self, logits):
        """Log-probabilities of both tokens of every completion, (V, V) each."""
        log_p = logits.log_softmax(-1)
        return log_p[0][:, None].expand(VOCABULARY, VOCABULARY), log_p[1:]

    def law(self, logits):
        first, second = self.token_log_probs(logits)
        return (first + second).exp()

    def objective(self, logits):
        law = self.law(logits)
        return (law * self.rewards).sum() - BETA * exact_kl(law.flatten(), self.law(self.reference).flatten())

    def from_law(self, law):
        """Logits of the policy whose completions follow `law` (V, V)."""
        return torch.cat([law.sum(1).log()[None], law.log() - law.sum(1, keepdim=True).log()])

    def star(self):
        log_reference = self.law(self.reference).log().flatten()
        return self.from_law(
            tilted_law(log_reference, self.rewards.flatten(), BETA).exp().view(VOCABULARY, VOCABULARY)
        )

    def gradient(self, logits, method):
        """Exact expected on-policy gradient of a loss: sampling weights are held fixed, as samples are."""
        logits = logits.clone().requires_grad_()
        weight = self.law(logits).detach()
        tokens, references = self.token_log_probs(logits), self.token_log_probs(self.reference)
        if method == "kl in the reward":
            to_go = self.rewards.clone()
            loss = 0.0
            for log_p, log_ref in zip(reversed(tokens), reversed(references)):
                to_go = to_go - BETA * kl_k1(log_p, log_ref).detach()
                loss = loss + (weight * reinforce_loss(log_p, to_go)).sum()
        else:
            loss = sum((weight * reinforce_loss(log_p, self.rewards)).sum() for log_p in tokens)
            for log_p, log_ref in zip(tokens, references):
                ratio = torch.exp(log_p - log_p.detach()) if method == "k3 corrected" else 1.0
                loss = loss + BETA * (weight * ratio * kl_k3(log_p, log_ref)).sum()
        return torch.autograd.grad(loss, logits)[0]

    def prefix_law(self, corrected):
        """The fixed point of a KL inside the loss: per prefix, from the last token to the first."""
        second = self._one_step(self.reference[1:].softmax(-1), self.rewards, corrected)
        continuation = (second * self.rewards).sum(-1)
        first = self._one_step(self.reference[0].softmax(-1), continuation, corrected)
        return torch.cat([first[None], second]).log()

    @staticmethod
    def _one_step(reference, q, corrected):
        if corrected:
            return (reference.log() + q / BETA).softmax(-1)
        low, high = q.amax(-1, keepdim=True), q.amax(-1, keepdim=True) + BETA  # c > max Q and sum pi(c) = 1
        for _ in range(200):
            middle = (low + high) / 2
            too_much = (BETA * reference / (middle - q)).sum(-1, keepdim=True) > 1
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        return BETA * reference / (high - q)


@pytest.mark.parametrize("seed", range(3))
def test_9_only_a_kl_in_the_reward_is_stationary_at_the_optimum(seed):
    """At pi* the gradient of the KL-in-reward surrogate is 0; both forms of k3 in the loss push away from it."""
    task = TwoTokens(seed)
    star = task.star()
    assert task.gradient(star, "kl in the reward").abs().max() < 1e-12
    assert task.gradient(star, "k3 corrected").abs().max() > 1e-3
    assert task.gradient(star, "k3 alone").abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_9_a_kl_in_the_loss_has_the_per_prefix_fixed_points(seed):
    """Corrected: pi_ref exp(Q / beta) per prefix. Uncorrected: beta pi_ref / (c - Q). The corrected one is the nearer
    to the optimum, and neither reaches it.
    """
    task = TwoTokens(seed)
    corrected, alone = task.prefix_law(corrected=True), task.prefix_law(corrected=False)
    assert task.gradient(corrected, "k3 corrected").abs().max() < 1e-12
    assert task.gradient(alone, "k3 alone").abs().max() < 1e-9
    optimum = task.objective(task.star())
    at_reference = optimum - task.objective(task.reference)
    left = [((optimum - task.objective(law)) / at_reference).item() for law in (corrected, alone)]
    assert 1e-3 < left[0] < left[1] < 0.6


@pytest.mark.parametrize("seed", range(3))
def test_9_the_kl_in_the_reward_is_the_gradient_of_the_objective(seed):
    """Autograd through the exact objective gives the same gradient, at the reference and away from it; on the first
    minibatch the clipped ratio is that of REINFORCE.
    """
    task = TwoTokens(seed)
    for logits in (task.reference, task.reference + 0.3 * task.rewards.mean()):
        exact = logits.clone().requires_grad_()
        (objective_gradient,) = torch.autograd.grad(task.objective(exact), exact)
        torch.testing.assert_close(-task.gradient(logits, "kl in the reward"), objective_gradient)
    log_probs = torch.randn(2, 3, requires_grad=True)
    advantages = torch.randn(2, 3)
    (clip,) = torch.autograd.grad(ppo_clip_loss(log_probs, log_probs.detach(), advantages, 0.2, 0.2).sum(), log_probs)
    (reinforce,) = torch.autograd.grad(reinforce_loss(log_probs, advantages).sum(), log_probs)
    torch.testing.assert_close(clip, reinforce)
