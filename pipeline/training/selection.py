"""Which of a prompt's candidates are imitated, and what the selection does to their distribution; pure functions.

Best-of-N tends to the argmax as N grows, not to the paper's tilted distribution, and its KL is bounded by
``log N - (N-1)/N``. Drawing one with weights ``softmax(R/tau)`` tends to ``pi_ref exp(R/tau)``. From the second round
on the candidates come from ``pi_k``, so the weights are ``R/tau + log pi_ref - log pi_k``: otherwise K rounds would
give ``pi_ref exp(K R/tau)`` (docs/errata.md, 2 and 13).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch

from pipeline.objectives.divergences import (
    best_of_candidates,
    best_of_n_bound,
    best_of_n_kl,
    effective_sample_size,
    exact_kl,
)
from pipeline.runtime.errors import UserError

Rule = Literal["best", "top_k", "threshold", "softmax"]
Candidate = dict[str, Any]  # prompt, completion, reward (None: not scored), and where sampled token_ids, log_ratio


@dataclass(frozen=True)
class Selection:
    """How candidates are chosen.

    Attributes:
        rule: ``best`` of N; ``top_k`` of N; all with a reward of at least ``threshold``; or one drawn by
            ``softmax((R/tau + log pi_ref - log pi_k))``.
        draws: how many are drawn (with replacement) under ``softmax``.
    """

    rule: Rule
    top_k: int = 1
    threshold: float | None = None
    tau: float | None = None
    draws: int = 1

    def __post_init__(self):
        if self.rule == "threshold" and self.threshold is None:
            raise UserError("select: threshold needs a number: set threshold")
        if self.rule == "softmax" and not (self.tau and self.tau > 0):
            raise UserError("select: softmax needs a temperature above 0: set tau")
        if self.top_k < 1 or self.draws < 1:
            raise UserError("top_k and draws must be at least 1")


def selection_probabilities(
    rewards: torch.Tensor, rule: Selection, log_ratio: torch.Tensor | None = None
) -> torch.Tensor:
    """Probability that a draw of the selection is each of N candidates, (N,) -> (N,); zeros where none is acceptable.

    Args:
        rewards: nan where there is no score; such a candidate is never selected.
        rule: how to choose. Of several best, the first drawn.
        log_ratio: ``log pi_ref - log pi_k`` of each candidate (softmax only); None when they were drawn from pi_ref.
    """
    known = ~rewards.isnan()
    probabilities = torch.zeros_like(rewards)
    if not known.any():
        return probabilities
    if rule.rule == "softmax":
        logits = rewards / rule.tau + (0.0 if log_ratio is None else log_ratio)
        return torch.where(known, logits, -torch.inf).softmax(0)
    if rule.rule == "threshold":
        probabilities[known & (rewards >= rule.threshold)] = 1.0
    else:
        count = 1 if rule.rule == "best" else min(rule.top_k, int(known.sum()))
        order = torch.where(known, rewards, -torch.inf).argsort(descending=True, stable=True)
        probabilities[order[:count]] = 1.0
    return probabilities / probabilities.sum().clamp(min=1)


def select(probabilities: torch.Tensor, rule: Selection, generator: torch.Generator) -> list[int]:
    """Indices of candidates by ``selection_probabilities``: drawn under softmax, else all above 0."""
    if not probabilities.any():
        return []
    if rule.rule == "softmax":
        return torch.multinomial(probabilities, rule.draws, replacement=True, generator=generator).tolist()
    return probabilities.nonzero().squeeze(1).tolist()


def selection_metrics(groups: Sequence[Sequence[Candidate]], rule: Selection, rounds: int = 1) -> dict[str, float]:
    """What a round's selection did, as means over prompts.

    ``reward_before`` and ``reward_after`` (the mean under the selection's probabilities), ``effective_sample_size`` of
    these, ``no_acceptable_share``, ``equal_share`` (of prompts whose scored candidates all have one reward, so that
    nothing is preferred), ``unscored_share`` (of all candidates), ``selection_kl_bound`` for N^rounds, and
    ``selection_kl`` in nats: for best-of-N the exact KL of the best of N to a single draw at the candidates' own
    distribution of rewards, ties counted; for the other rules the KL of the probabilities to equal ones, which the KL
    of the distributions of answers does not exceed.
    """
    before, after, sizes, kls, empty, equal, widest = [], [], [], [], 0, 0, 1
    for group in groups:
        rewards, log_ratio = reward_tensors(group)
        probabilities = selection_probabilities(rewards, rule, log_ratio)
        known = ~rewards.isnan()
        widest = max(widest, len(group))
        if known.any():
            before.append(rewards[known].mean().item())
        equal += len(rewards[known].unique()) <= 1
        if not probabilities.any():
            empty += 1
            continue
        after.append((probabilities * rewards.nan_to_num()).sum().item())
        sizes.append(effective_sample_size(probabilities.log()).item())
        even = torch.full_like(rewards[known], 1 / int(known.sum()))
        kls.append(
            best_of_n_kl(even, rewards[known], len(even)).item()
            if rule.rule == "best"
            else exact_kl(probabilities[known], even).item()
        )
    every = [candidate for group in groups for candidate in group]
    return {
        "reward_before": fmean(before or [math.nan]),
        "reward_after": fmean(after or [math.nan]),
        "effective_sample_size": fmean(sizes or [math.nan]),
        "selection_kl": fmean(kls or [math.nan]),
        "selection_kl_bound": best_of_n_bound(widest, rounds),
        "no_acceptable_share": empty / max(1, len(groups)),
        "equal_share": equal / max(1, len(groups)),
        "unscored_share": sum(c["reward"] is None for c in every) / max(1, len(every)),
    }


def best_of_n_curve(groups: Sequence[Sequence[Candidate]]) -> list[dict[str, float]]:
    """``n``, ``kl`` and ``reward`` of the best of n (see ``best_of_candidates``), and the ``bound`` of that KL.

    For powers of two up to the largest group; means over prompts that have a scored candidate.
    """
    known = [rewards[~rewards.isnan()] for rewards in (reward_tensors(group)[0] for group in groups)]
    known = [rewards for rewards in known if len(rewards)]
    curve = []
    for n in (2**k for k in range(max(map(len, known), default=0).bit_length())):
        kls, means = zip(*(map(float, best_of_candidates(rewards, n)) for rewards in known))
        curve.append({"n": n, "kl": fmean(kls), "reward": fmean(means), "bound": best_of_n_bound(n)})
    return curve


def reward_tensors(group: Sequence[Candidate]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rewards of a prompt's candidates, nan where there is none, and their log-ratios, (N,) each."""
    rewards = torch.tensor([math.nan if c["reward"] is None else c["reward"] for c in group], dtype=torch.float64)
    if any(c.get("log_ratio") is None for c in group):
        return rewards, None
    return rewards, torch.tensor([c["log_ratio"] for c in group], dtype=torch.float64)
