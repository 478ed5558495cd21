r"""A policy whose every completion is known: its objective, its regret, and the optimum, all exact.

    J(pi) = E_x [ E_{y ~ pi} R(x, y)  -  beta KL(pi(.|x) || pi_ref(.|x)) ]
    pi*(y|x) = pi_ref(y|x) exp(R(x, y) / beta) / Z(x),      J* = E_x beta log Z(x)
    J* - J(pi) = beta E_x KL(pi || pi*)                      the regret

(end of the paper's Part 2). Shapes: ``P`` prompts, ``Y`` completions of a prompt, ``V`` vocabulary. Distributions are
log-probabilities in float64, (P, Y); KL is in nats per completion, J and regret in units of the reward.
"""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pipeline.inference.likelihood import candidate_log_probabilities
from pipeline.objectives.divergences import exact_kl, log_partition, tilted_law

TOLERANCE = 1e-5  # of the identity J* - J = beta KL(pi || pi*), in reward units


def exact_law(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    batch_size: int = 1024,
) -> torch.Tensor:
    """``log pi(y | x)`` of every completion of every prompt by teacher forcing, (P, Y) in float64 on the CPU.

    The probabilities of a complete set of completions sum to 1 (``candidate_log_probabilities``).

    Args:
        model: any causal LM; used in eval mode and left as found.
        prompts: token ids of each prompt, at least one.
        completions: token ids of each completion, the eos that ends it included.
        batch_size: sequences per forward pass.
    """
    return torch.cat(candidate_log_probabilities(model, prompts, [completions] * len(prompts), batch_size=batch_size))


def objective(log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """``E[R] - beta KL(pi || pi_ref)`` of each prompt, (P, Y) -> (P,)."""
    law = log_law.exp()
    return (law * rewards).sum(-1) - beta * exact_kl(law, log_reference.exp())


def regret(log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """``J* - J(pi)`` of each prompt, (P, Y) -> (P,): never below 0, and 0 at pi* alone."""
    return beta * log_partition(log_reference, rewards, beta) - objective(log_law, log_reference, rewards, beta)


def exact_figures(
    log_law: torch.Tensor, log_reference: torch.Tensor, rewards: torch.Tensor, beta: float
) -> dict[str, float]:
    """Every figure that enumeration gives of a policy, as means over the prompts.

    ``reward``, ``kl``, ``objective``; ``optimum`` J*; ``regret`` in reward units and ``regret_nats``, the same
    divided by beta; ``regret_removed``, the share of pi_ref's regret that is gone (1 at pi*, 0 at pi_ref);
    ``kl_to_optimum``, computed independently; ``identity_gap``, |regret - beta kl_to_optimum|;
    ``mass``, the largest distance of a distribution's sum from 1.

    Raises:
        ValueError: the identity does not hold to 1e-5, so these are no distributions over the completions.
    """
    law = log_law.exp()
    star = tilted_law(log_reference, rewards, beta)
    left = regret(log_law, log_reference, rewards, beta).mean().item()
    at_reference = regret(log_reference, log_reference, rewards, beta).mean().item()
    to_optimum = (law * (log_law - star)).sum(-1).mean().item()
    gap = abs(left - beta * to_optimum)
    if not gap <= TOLERANCE:
        raise ValueError(f"J* - J(pi) = {left} but beta KL(pi, pi*) = {beta * to_optimum}: the masses do not sum to 1")
    return {
        "reward": (law * rewards).sum(-1).mean().item(),
        "kl": exact_kl(law, log_reference.exp()).mean().item(),
        "objective": objective(log_law, log_reference, rewards, beta).mean().item(),
        "optimum": (beta * log_partition(log_reference, rewards, beta)).mean().item(),
        "regret": left,
        "regret_nats": left / beta,
        "regret_removed": 1 - left / at_reference if at_reference > 0 else math.nan,
        "kl_to_optimum": to_optimum,
        "identity_gap": gap,
        "mass": max((x.exp().sum(-1) - 1).abs().max().item() for x in (log_law, log_reference)),
    }


def prefix_law(
    log_reference: torch.Tensor,  # (P, Y)
    rewards: torch.Tensor,  # (P, Y)
    completions: Sequence[Sequence[int]],
    beta: float,
    *,
    corrected: bool,
    group: int | None = None,
) -> torch.Tensor:  # (P, Y)
    """Log of the distribution that a KL *inside the loss* (GRPO) tends to, instead of pi*; last prefixes first.

    With ``Q(s, a) = E_pi[R | s, a]``: ``pi(a|s) ~ pi_ref(a|s) exp(Q(s, a) / beta)`` with TRL's importance correction
    (``use_bias_correction_kl``), ``pi(a|s) = beta pi_ref(a|s) / (c(s) - Q(s, a))`` without, c(s) from normalising.
    Neither counts the KL of later tokens, so both are pi* for completions of one token only (docs/errata.md, 9).

    Args:
        completions: token ids; together they must be every leaf of a tree in which each prefix has equally many
            next tokens.
        corrected: which of the two losses.
        group: N, where the baseline is a group's mean that includes the sample itself: beta becomes beta N/(N-1).
    """
    if group is not None:
        beta = beta * group / (group - 1)
    leaf = {tuple(ids): number for number, ids in enumerate(completions)}
    prefixes = sorted({ids[:t] for ids in leaf for t in range(len(ids))}, key=len, reverse=True)
    children: dict[tuple, list[tuple]] = {prefix: [] for prefix in prefixes}
    for node in {*prefixes, *leaf} - {()}:
        children[node[:-1]].append(node)
    value = {ids: rewards[:, number] for ids, number in leaf.items()}
    log_mass = {ids: log_reference[:, number] for ids, number in leaf.items()}
    step: dict[tuple, torch.Tensor] = {}  # log pi(a | s) of each node s + (a,)
    for depth in sorted({len(prefix) for prefix in prefixes}, reverse=True):
        level = [prefix for prefix in prefixes if len(prefix) == depth]
        if len({len(children[prefix]) for prefix in level}) != 1:
            raise ValueError("the completions are not the leaves of a tree with equally many next tokens everywhere")
        masses = torch.stack([torch.stack([log_mass[node] for node in children[s]], -1) for s in level])
        q = torch.stack([torch.stack([value[node] for node in children[s]], -1) for s in level])  # (S, P, V)
        conditional = _one_step(masses.log_softmax(-1), q, beta, corrected)
        for number, prefix in enumerate(level):
            log_mass[prefix] = masses[number].logsumexp(-1)
            value[prefix] = (conditional[number].exp() * q[number]).sum(-1)
            step |= {node: conditional[number, :, i] for i, node in enumerate(children[prefix])}
    return torch.stack([sum(step[ids[: t + 1]] for t in range(len(ids))) for ids in leaf], 1)


def _one_step(log_reference: torch.Tensor, q: torch.Tensor, beta: float, corrected: bool) -> torch.Tensor:
    """Fixed point at one prefix, (..., V) -> (..., V), in logs."""
    if corrected:
        return (log_reference + q / beta).log_softmax(-1)
    # sum_a beta pi_ref / (c - Q) falls in c from infinity at max Q to below 1 at max Q + beta: bisection in c - max Q.
    top = q.amax(-1, keepdim=True)
    low, high = torch.zeros_like(top), torch.full_like(top, beta)
    for _ in range(100):
        middle = (low + high) / 2
        too_much = (beta * log_reference.exp() / (middle + top - q)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (math.log(beta) + log_reference - (high + top - q).log()).log_softmax(-1)


def frontier(log_reference: torch.Tensor, rewards: torch.Tensor, betas: Sequence[float]) -> list[dict[str, float]]:
    """``beta``, ``kl`` and ``reward`` of pi* for each beta, means over prompts: no policy lies above this curve."""
    points = []
    for beta in betas:
        star = tilted_law(log_reference, rewards, beta).exp()
        kl, reward = exact_kl(star, log_reference.exp()), (star * rewards).sum(-1)
        points.append({"beta": beta, "kl": kl.mean().item(), "reward": reward.mean().item()})
    return points
