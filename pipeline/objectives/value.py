"""What a critic needs: advantages (GAE), the clipped value loss, whitening, explained variance.

`B` batch, `T` time. Every `mask` is (B, T), true at the tokens that the policy chose; the others are skipped, be they
padding or the answer of a tool in the middle.
"""

import torch


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `x` over the true entries of `mask` (same shape); 0 where there is none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def masked_moments(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of `x` over the true entries of `mask` (same shape)."""
    count = mask.sum()
    mean = masked_mean(x, mask)
    return mean, (((x - mean) ** 2) * mask).sum() / (count - 1).clamp(min=1)


def whiten(
    x: torch.Tensor,  # (B, T)
    mask: torch.Tensor,  # (B, T)
    moments: tuple[torch.Tensor, torch.Tensor] | None = None,
    shift_mean: bool = True,
) -> torch.Tensor:  # (B, T)
    """Scale `x` to variance 1, and shift it to mean 0 unless `shift_mean` is false; 0 outside the mask.

    `moments` are the mean and variance to use when the batch is spread over several processes.
    """
    mean, variance = masked_moments(x, mask) if moments is None else moments
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def gae(
    rewards: torch.Tensor,  # (B, T)
    values: torch.Tensor,  # (B, T) V(s_t) before token t
    mask: torch.Tensor,  # (B, T)
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # (B, T), (B, T)
    """Generalised advantage estimation (Schulman et al., 2016): advantages, and the returns the critic is fitted to.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, `return_t = A_t + V_t`, where `t + 1`
    is the next token inside the mask, and V is 0 after the last. Both results are 0 outside the mask.
    """
    mask = mask.bool()
    advantage = next_value = values.new_zeros(values.size(0))
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.size(1))):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = advantage * here
    return advantages, (advantages + values) * mask


def clipped_value_loss(
    values: torch.Tensor,  # (B, T)
    old_values: torch.Tensor,  # (B, T)
    returns: torch.Tensor,  # (B, T)
    cliprange: float,
) -> torch.Tensor:  # (B, T)
    """`1/2 max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)` per token (Schulman et al., 2017)."""
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`1 - Var(G - V) / Var(G)`: 1 for a perfect critic, 0 for a constant one, negative for a harmful one."""
    _, residual = masked_moments(returns - values, mask)
    _, total = masked_moments(returns, mask)
    return 1 - residual / total.clamp(min=1e-8)
