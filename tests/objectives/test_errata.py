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
from pipeline.objectives.policy_gradient import grpo_loss, ppo_clip_loss, reinforce_loss
from pipeline.objectives.preference import bradley_terry_loss, dpo_loss
from pipeline.training.selection import Selection, selection_probabilities
from tests.conftest import ROOT


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
    # By the selection that the stage uses, from candidates in which each outcome occurs as often as pi_k draws it.
    for counts in ([1] * 12, [13 - i for i in range(12)], [1 + 7 * (i % 3) for i in range(12)]):
        drawn = torch.repeat_interleave(torch.arange(12), torch.tensor(counts))
        log_policy = (torch.tensor(counts, dtype=torch.float64) / len(drawn)).log()
        for log_ratio, target in ((reference.log() - log_policy, star), (None, tilted_law(log_policy, rewards, tau))):
            ratio = None if log_ratio is None else log_ratio[drawn]
            weights = selection_probabilities(rewards[drawn], Selection("softmax", tau=tau), ratio)
            selected = torch.zeros(12, dtype=torch.float64).index_add_(0, drawn, weights)
            torch.testing.assert_close(selected, target.exp())


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


# 17: completions (eos), (a, eos) and (a, b) under an even pi_ref; two logits, each of one token against the other.


def two_lengths(logits: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Log-probabilities of the tokens of each completion, and the probability of each, (3,)."""
    one, other = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    tokens = [one[:1], torch.stack([other[0], one[1]]), torch.stack([other[0], other[1]])]
    return tokens, torch.stack([t.sum() for t in tokens]).exp()


def grpo_fixed_point(rewards: torch.Tensor, beta: float, per_length: bool) -> torch.Tensor:
    """The distribution at which the expected on-policy gradient of GRPO's loss is 0, tokens weighed by 1 or 1/|y|."""
    logits = torch.zeros(2, dtype=torch.float64)
    for _ in range(300):
        logits.requires_grad_()
        tokens, probabilities = two_lengths(logits)
        weights = probabilities.detach()  # sampling weights are held fixed, as samples are
        advantages = rewards - weights @ rewards
        total = 0.0
        for t, weight, advantage in zip(tokens, weights, advantages):
            reference = torch.full_like(t, math.log(0.5)).detach()
            loss = grpo_loss(t[None], t[None].detach(), reference[None], advantage.view(1, 1), beta).sum()
            total = total + weight * loss / (len(t) if per_length else 1)
        (gradient,) = torch.autograd.grad(total, logits)
        logits = logits.detach() - 2 * gradient
    assert gradient.abs().max() < 1e-8
    return two_lengths(logits)[1].detach()


def test_17_the_fixed_points_of_line_9_need_a_constant_denominator():
    """Rewards 1, 0, 0 at beta 1/2. Constant: after `a` both are worth 0, so eos against `a` is softmax(2, 0) =
    0.88080, and the rest is shared. Divided by the length of the answer (loss_type grpo) it is another distribution:
    0.85314.
    """
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    constant, by_length = (grpo_fixed_point(rewards, 0.5, per_length) for per_length in (False, True))
    assert constant.tolist() == pytest.approx([0.88080, 0.05960, 0.05960], abs=1e-5)
    assert by_length[0].item() == pytest.approx(0.85314, abs=1e-5)
    assert total_variation(constant, by_length).item() == pytest.approx(0.02766, abs=1e-5)


def test_17_the_preset_with_a_kl_meets_the_conditions():
    """A constant denominator, rewards not rescaled, one step per rollout, and a KL at all."""
    import yaml

    given = yaml.safe_load((ROOT / "configs" / "grpo" / "with_kl.yaml").read_text())
    assert (given["loss_type"], given["scale_rewards"], given["num_iterations"]) == ("dr_grpo", "none", 1)
    assert given["beta"] > 0
    assert given["use_bias_correction_kl"]
    assert (
        given.get("steps_per_generation", given["gradient_accumulation_steps"])
        == (given["gradient_accumulation_steps"])
    )


def test_18_a_reward_must_read_the_prompt():
    """Of two prompts the first prefers y1 to y2, the second y2 to y1. A reward of y alone has one difference for both:
    its least Bradley-Terry loss is log 2, at a difference of 0; a reward of x and y fits both.
    """
    difference = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = (bradley_terry_loss(difference, 0.0) + bradley_terry_loss(-difference, 0.0)) / 2
    (slope,) = torch.autograd.grad(loss, difference)
    assert (loss.item(), slope.item()) == (pytest.approx(math.log(2)), 0.0)
    assert bradley_terry_loss(torch.tensor(1.0), -1.0).item() > math.log(2) / 6  # convex: 0 is its minimum
    assert bradley_terry_loss(torch.tensor(20.0), 0.0).item() < 1e-8


def test_18_the_token_level_kl_is_the_sequence_s_in_expectation():
    """On all nine completions of two tokens: E sum_t log(pi_t / pi_ref,t) is the KL of the completions."""
    task = TwoTokens(0)
    logits = task.reference + task.rewards.mean() * torch.eye(4, 3, dtype=torch.float64)
    tokens, references = task.token_log_probs(logits), task.token_log_probs(task.reference)
    by_token = sum((task.law(logits) * kl_k1(p, q)).sum() for p, q in zip(tokens, references))
    exact = exact_kl(task.law(logits).flatten(), task.law(task.reference).flatten())
    assert exact.item() > 0.01
    torch.testing.assert_close(by_token, exact)


def test_18_with_the_kl_the_shift_towards_a_reward_is_finite_and_known():
    """Agreement is worth 0.6 more at beta 0.3: its log-odds rise by exactly 2, from 1:1 to e^2:1. Without the KL (beta
    to 0) the optimum agrees always, which is Part 4, section 2 as it is printed.
    """
    even, rewards = torch.tensor([0.5, 0.5], dtype=torch.float64).log(), torch.tensor([0.6, 0.0], dtype=torch.float64)
    log_odds = tilted_law(even, rewards, 0.3)
    assert (log_odds[0] - log_odds[1]).item() == pytest.approx(2.0)
    assert tilted_law(even, rewards, 1e-3).exp()[0].item() == pytest.approx(1.0)


def test_the_backward_recursion_of_the_soft_values_gives_the_tilted_law():
    """The induced decision process of Part 3, section 1: states are prefixes, V(y) = R(y) at the end, and backwards
    `V(s) = beta log sum_a pi_ref(a|s) exp(V(s, a) / beta)`. The policy `pi_ref(a|s) exp((V(s, a) - V(s)) / beta)` is
    pi*, token by token, and V at the start is beta log Z.
    """
    task = TwoTokens(1)
    first, second = task.reference[0].log_softmax(0), task.reference[1:].log_softmax(1)
    values = BETA * (second + task.rewards / BETA).logsumexp(1)
    start = BETA * (first + values / BETA).logsumexp(0)
    policy_second = second + (task.rewards - values[:, None]) / BETA
    policy_first = first + (values - start) / BETA
    log_reference = task.law(task.reference).log().flatten()
    star = tilted_law(log_reference, task.rewards.flatten(), BETA).view(VOCABULARY, VOCABULARY)
    torch.testing.assert_close(policy_first[:, None] + policy_second, star)
    torch.testing.assert_close(start, BETA * log_partition(log_reference, task.rewards.flatten(), BETA))
    greedy = first + task.rewards.mean(1) / BETA  # the mean reward as the value is another policy
    assert (greedy.log_softmax(0) - policy_first).abs().max() > 1e-2
