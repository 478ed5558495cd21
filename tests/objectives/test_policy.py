"""Policy gradients, against values worked by hand."""

import math

import pytest
import torch

from pipeline.objectives.policy import (
    group_advantages,
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
