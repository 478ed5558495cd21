"""Policy gradients, against values worked by hand."""

import math

import pytest
import torch

from pipeline.objectives.policy_gradient import (
    group_advantages,
    grpo_loss,
    leave_one_out_advantages,
    ppo_clip_loss,
    reinforce_loss,
    token_rewards,
)


def test_token_rewards_by_hand():
    """beta 0.5, log-ratios 0.2, -0.4, 0.6: KL rewards -0.1, 0.2, -0.3, and the score 2 at the last token.

    The second row ends after two tokens: its score -1 stands there. The third has no token: nothing.
    """
    log_ratio = torch.tensor([[0.2, -0.4, 0.6]] * 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0, 5.0]), log_ratio, torch.zeros(3, 3), mask, beta=0.5)
    assert rewards[0].tolist() == pytest.approx([-0.1, 0.2, 1.7])
    assert rewards[1].tolist() == pytest.approx([-0.1, -0.8, 0.0])
    assert rewards[2].tolist() == [0.0, 0.0, 0.0]


def test_the_score_is_at_the_last_token_of_a_mask_with_holes():
    """A tool's answer in the middle and padding behind: chosen are tokens 0, 1 and 4 of six, so the score 2 is at 4,
    not at place 2, which is where as many tokens without a hole would end; the KL counts at the chosen tokens only.
    """
    log_ratio = torch.full((1, 6), 0.2)
    mask = torch.tensor([[1, 1, 0, 0, 1, 0]])
    rewards = token_rewards(torch.tensor([2.0]), log_ratio, torch.zeros(1, 6), mask, beta=0.5)
    assert rewards[0].tolist() == pytest.approx([-0.1, -0.1, 0.0, 0.0, 1.9, 0.0])


def test_group_advantages_by_hand():
    """Rewards 0, 0, 3: mean 1, deviations -1, -1, 2; unbiased deviation sqrt(6/2) = sqrt 3."""
    rewards = torch.tensor([[0.0, 0.0, 3.0]])
    assert group_advantages(rewards, scale=False)[0].tolist() == [-1.0, -1.0, 2.0]
    scaled = group_advantages(rewards, scale=True)[0]
    assert scaled.tolist() == pytest.approx([x / (math.sqrt(3) + 1e-4) for x in (-1.0, -1.0, 2.0)])


def test_leave_one_out_by_hand():
    """Rewards 0, 0, 3: the others' means are 1.5, 1.5, 0. It is the group advantage times N/(N-1) = 3/2."""
    rewards = torch.tensor([[0.0, 0.0, 3.0]])
    assert leave_one_out_advantages(rewards)[0].tolist() == [-1.5, -1.5, 3.0]


def test_leave_one_out_passes_over_what_was_not_scored():
    """Rewards 1, nan, 4: the others' means are 4 and 1, so -3, 0, 3. A single scored sample has no baseline: 0."""
    nan = float("nan")
    rewards = torch.tensor([[1.0, nan, 4.0], [nan, 2.0, nan]])
    assert leave_one_out_advantages(rewards).tolist() == [[-3.0, 0.0, 3.0], [0.0, 0.0, 0.0]]


def test_reinforce_gradient_is_the_advantage():
    """d(-A log pi) / d log pi = -A, and no gradient flows into A."""
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[0.5]], requires_grad=True)
    reinforce_loss(log_probs, advantages).sum().backward()
    assert log_probs.grad[0].tolist() == [-0.5, -0.5]
    assert advantages.grad is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: REINFORCE
        (1.5, 2.0, -2.4, 0.0),  # above 1.2 with A > 0: clipped, no push
        (0.5, 2.0, -1.0, -1.0),  # below with A > 0: pulled back up
        (0.5, -2.0, 1.6, 0.0),  # below 0.8 with A < 0: clipped, no push
        (1.5, -2.0, 3.0, 3.0),  # above with A < 0: pushed down
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, loss, gradient):
    """-min(r A, clip(r, 0.8, 1.2) A); the gradient to log pi is -r A where the unclipped term is the smaller."""
    log_probs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = ppo_clip_loss(log_probs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2, 0.2)
    result.sum().backward()
    assert result.item() == pytest.approx(loss)
    assert log_probs.grad.item() == pytest.approx(gradient)


def test_two_sided_clip_may_be_asymmetric():
    """epsilon_high 0.5: a ratio of 1.5 with A > 0 is still inside, 1.6 is not."""
    advantages = torch.ones(1, 1)
    inside = ppo_clip_loss(torch.tensor([[math.log(1.5)]]), torch.zeros(1, 1), advantages, 0.2, 0.5)
    outside = ppo_clip_loss(torch.tensor([[math.log(1.6)]]), torch.zeros(1, 1), advantages, 0.2, 0.5)
    assert inside.item() == outside.item() == pytest.approx(-1.5)


def test_grpo_loss_by_hand():
    """pi = 0.6, pi_old = 0.5, pi_ref = 0.3, A = 2: ratio 1.2, clip term -2.4; k3 = 0.3 / 0.6 - 1 + log 2 = 0.193147.
    At beta 0.5: -2.4 + 0.5 * 1.2 * 0.193147 = -2.284112; without the ratio -2.4 + 0.5 * 0.193147 = -2.303426; at beta
    0 the clip term alone.
    """
    logs = [torch.tensor([[p]], dtype=torch.float64).log() for p in (0.6, 0.5, 0.3)]
    advantages = torch.tensor([[2.0]], dtype=torch.float64)
    found = [
        grpo_loss(*logs, advantages, beta, corrected=corrected).item()
        for beta, corrected in ((0.5, True), (0.5, False), (0.0, True))
    ]
    assert found == pytest.approx([-2.284112, -2.303426, -2.4], abs=1e-6)


def test_the_correction_makes_the_gradient_that_of_the_reverse_kl():
    """On policy (pi_old = pi) with A = 0: the corrected term's gradient to log pi is `beta log(pi / pi_ref)` =
    0.5 log 2, since k3 + dk3 = (r - 1 - log r) + (1 - r) = -log r with r = pi_ref / pi; alone it is beta (1 - r) =
    0.25.
    """
    found = []
    for corrected in (True, False):
        log_probs = torch.tensor([[0.6]], dtype=torch.float64).log().requires_grad_()
        reference = torch.tensor([[0.3]], dtype=torch.float64).log()
        grpo_loss(log_probs, log_probs.detach(), reference, torch.zeros(1, 1), 0.5, corrected=corrected).backward()
        found.append(log_probs.grad.item())
    assert found == pytest.approx([0.5 * math.log(2), 0.25])
