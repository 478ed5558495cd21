"""Policy gradients: the KL in the reward, group baselines, REINFORCE, and the clipped ratio of PPO.

All log-probabilities are those of the sampled tokens. `B` batch, `T` time, `N` candidates of one prompt.
"""

import torch

from pipeline.objectives.divergences import kl_k3


def token_rewards(
    scores: torch.Tensor,  # (B,) R(x, y)
    log_probs: torch.Tensor,  # (B, T) of the policy that sampled
    reference_log_probs: torch.Tensor,  # (B, T)
    mask: torch.Tensor,  # (B, T) true at the tokens the policy chose
    beta: float,
) -> torch.Tensor:  # (B, T)
    """The KL as a per-token reward: `-beta log(pi / pi_ref)` at every token, and the score at the last one.

    Their sum is `R - beta log(pi(y|x) / pi_ref(y|x))`, whose expectation is the paper's objective. A row without any
    token gets no reward.
    """
    mask = mask.bool()
    rewards = -beta * (log_probs - reference_log_probs) * mask
    position = torch.arange(mask.size(1), device=mask.device)
    last = (position * mask).amax(1)
    return rewards + scores[:, None] * ((position == last[:, None]) & mask)


def group_advantages(rewards: torch.Tensor, scale: bool) -> torch.Tensor:
    """GRPO's advantages, (B, N) -> (B, N): the group's mean is the baseline, its deviation (plus 1e-4) the scale.

    The mean includes the sample itself, which shrinks the gradient by (N-1)/N (Shao et al., 2024).
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """RLOO's advantages, (B, N) -> (B, N): the baseline is the mean of the others, N >= 2 (Ahmadian et al., 2024).

    nan is a sample that could not be scored: it is in no baseline, and its own advantage is 0, as is that of a sample
    without scored others.
    """
    known = ~rewards.isnan()
    count = known.sum(-1, keepdim=True)
    mean = rewards.nansum(-1, keepdim=True) / count.clamp(min=1)
    advantages = (rewards - mean) * count / (count - 1).clamp(min=1)
    return advantages.where(known, 0.0)


def reinforce_loss(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """`-A log pi` per token: its gradient is the policy gradient. Shapes (B, T), or advantages (B, 1)."""
    return -advantages.detach() * log_probs


def ppo_clip_loss(
    log_probs: torch.Tensor,  # (B, T)
    old_log_probs: torch.Tensor,  # (B, T)
    advantages: torch.Tensor,  # (B, T) or (B, 1)
    epsilon_low: float,
    epsilon_high: float,
) -> torch.Tensor:  # (B, T)
    """`-min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)` with `r = pi / pi_old` (Schulman et al., 2017)."""
    ratio = torch.exp(log_probs - old_log_probs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)


def grpo_loss(
    log_probs: torch.Tensor,  # (B, T)
    old_log_probs: torch.Tensor,  # (B, T) of the policy that sampled
    reference_log_probs: torch.Tensor,  # (B, T)
    advantages: torch.Tensor,  # (B, 1)
    beta: float,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    corrected: bool = True,
) -> torch.Tensor:  # (B, T)
    """`ppo_clip_loss + beta k3` per token: GRPO's loss with the KL inside it (Shao et al., 2024).

    `corrected` multiplies k3 by the ratio `pi / pi_old` (TRL's `use_bias_correction_kl`), which makes its gradient
    that of the reverse KL at each prefix. What either form tends to is in docs/errata.md, line 9. `loss_type` decides
    by what the sum over tokens is divided.
    """
    kl = kl_k3(log_probs, reference_log_probs)
    if corrected:
        kl = kl * torch.exp(log_probs - old_log_probs)
    return ppo_clip_loss(log_probs, old_log_probs, advantages, epsilon_low, epsilon_high) + beta * kl
