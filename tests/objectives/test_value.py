"""GAE, value loss and whitening, against values worked by hand."""

import pytest
import torch

from pipeline.objectives.value import clipped_value_loss, explained_variance, gae, masked_mean, masked_moments, whiten


def test_gae_by_hand():
    """Rewards 1, 2, 3; values 0.5, 1, 2; gamma 0.9, lambda 0.5.

    delta_3 = 3 - 2 = 1; delta_2 = 2 + 0.9*2 - 1 = 2.8; delta_1 = 1 + 0.9*1 - 0.5 = 1.4.
    A_3 = 1; A_2 = 2.8 + 0.45*1 = 3.25; A_1 = 1.4 + 0.45*3.25 = 2.8625. Returns: A + V = 3.3625, 4.25, 3.
    """
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 1.0, 2.0]]), torch.ones(1, 3), gamma=0.9, lam=0.5
    )
    assert advantages[0].tolist() == pytest.approx([2.8625, 3.25, 1.0])
    assert returns[0].tolist() == pytest.approx([3.3625, 4.25, 3.0])


def test_gae_skips_padding_and_holes():
    """The same three tokens with a tool's answer between the first two and padding behind: the same advantages."""
    rewards = torch.tensor([[1.0, 99.0, 2.0, 3.0, 99.0]])
    values = torch.tensor([[0.5, 99.0, 1.0, 2.0, 99.0]])
    advantages, returns = gae(rewards, values, torch.tensor([[1, 0, 1, 1, 0]]), gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([2.8625, 0.0, 3.25, 1.0, 0.0])
    assert returns[0].tolist() == pytest.approx([3.3625, 0.0, 4.25, 3.0, 0.0])


def test_gae_limits():
    """lambda = 1, gamma = 1, V = 0 is the reward-to-go (6, 5, 3); lambda = 0 is the one-step error delta."""
    rewards, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    advantages, _ = gae(rewards, torch.zeros(1, 3), mask, gamma=1.0, lam=1.0)
    assert advantages[0].tolist() == [6.0, 5.0, 3.0]
    advantages, _ = gae(rewards, torch.tensor([[0.5, 1.0, 2.0]]), mask, gamma=1.0, lam=0.0)
    assert advantages[0].tolist() == pytest.approx([1.5, 3.0, 1.0])


def test_value_loss_by_hand():
    """Old value 0, clip 0.2. V = 0.1, G = 1: inside, 0.405. V = 1, G = 1: the clipped 0.2 is worse, 0.32.
    V = -1, G = 1: the unclipped is worse, 2.
    """
    loss = clipped_value_loss(torch.tensor([[0.1, 1.0, -1.0]]), torch.zeros(1, 3), torch.ones(1, 3), cliprange=0.2)
    assert loss[0].tolist() == pytest.approx([0.405, 0.32, 2.0])


def test_value_loss_stops_pushing_beyond_the_clip():
    """A value that has already moved 1.0 towards its return gets no gradient; one that moved away does: V - G = -2."""
    values = torch.tensor([[1.0, -1.0]], requires_grad=True)
    clipped_value_loss(values, torch.zeros(1, 2), torch.ones(1, 2), cliprange=0.2).sum().backward()
    assert values.grad[0].tolist() == [0.0, -2.0]


def test_moments_and_whitening_by_hand():
    """1, 2, 3 and a masked 100: mean 2, unbiased variance 1, so -1, 0, 1; without the shift 1, 2, 3."""
    x, mask = torch.tensor([[1.0, 2.0, 3.0, 100.0]]), torch.tensor([[1, 1, 1, 0]])
    mean, variance = masked_moments(x, mask)
    assert (mean.item(), variance.item()) == (2.0, 1.0)
    assert whiten(x, mask)[0].tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0], abs=1e-6)
    assert whiten(x, mask, shift_mean=False)[0].tolist() == pytest.approx([1.0, 2.0, 3.0, 0.0], abs=1e-6)


def test_whitening_with_the_moments_of_all_processes():
    """Two halves whitened with the moments of the whole are the whole, whitened."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 5)
    moments = masked_moments(x, mask)
    halves = torch.cat([whiten(part, part_mask, moments) for part, part_mask in zip(x.split(2), mask.split(2))])
    torch.testing.assert_close(halves, whiten(x, mask))


def test_empty_masks_give_zero_not_nan():
    """A batch whose every completion is left out must not poison the step."""
    x, mask = torch.ones(2, 3), torch.zeros(2, 3)
    assert masked_mean(x, mask).item() == 0.0
    assert whiten(x, mask).abs().sum().item() == 0.0
    advantages, returns = gae(x, x, mask, gamma=1.0, lam=1.0)
    assert advantages.abs().sum().item() == returns.abs().sum().item() == 0.0


def test_explained_variance_by_hand():
    """Returns 1, 2, 3 have variance 1. Values 1, 2, 3: 1. A constant: 0. Values 3, 2, 1: residuals of variance 4."""
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask).item() == 0.0
    assert explained_variance(returns.flip(1), returns, mask).item() == pytest.approx(-3.0)
