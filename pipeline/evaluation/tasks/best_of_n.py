"""Is training worth more than choosing? A policy's reward against that of best-of-N from pi_ref at the same KL.

Of each held-out prompt pi_ref gives a set of candidates. The reward of the best of n is the mean over all subsets of n
of them (order statistics without replacement), which is unbiased; the KL of the best of n to pi_ref is exact at the
candidates' empirical distribution, ties counted. Both are defined for every real n >= 1. The n whose mean KL is the
policy's is found by bisection; what the policy gains over it is the figure.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.completions import Drawn
from pipeline.evaluation.registry import Result, require_recorded
from pipeline.evaluation.rows import read_rows
from pipeline.inference.decoding import sample
from pipeline.inference.likelihood import pairs_of, sequence_divergences
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.divergences import best_of_candidates
from pipeline.objectives.statistics import bootstrap_interval, with_interval
from pipeline.rewards.judging import Reward, score
from pipeline.rewards.resolve import resolve
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json

MOST = 2.0**20  # from here on best of n is the argmax


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: Callable[[], PreTrainedModel] | None = None,
    reward: str | Sequence[str] | None = None,
    reward_weights: Sequence[float] | None = None,
    true_reward: str | Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    candidates: int = 32,
    n: int = 8,
    batch_size: int = 256,
    seed: int = 0,
    allow_unsafe_code_execution: bool = False,
    **data: object,
) -> Result:
    """Reward and KL of a policy, and the reward of best-of-N from pi_ref at that KL, on held-out prompts.

    ``reward`` and ``kl`` of the policy (full vocabulary, nats per completion); ``reference_reward``;
    ``best_of_n_reward`` at the same KL, where ``equal_n`` is N; ``advantage``, the policy's reward minus that, with a
    bootstrap interval over prompts (both on the same ones). With ``true_reward`` the same figures of it, still
    selected by ``reward``: over-optimisation of a learned reward shows there. The curve ``best of n`` has ``n``,
    ``kl`` and ``reward`` for powers of two up to half the candidates.

    Args:
        reference: loads pi_ref; default: the one in the model's run record.
        reward: what was optimised, and what selects; default: from the run record, with its weights.
        reward_weights: of several rewards, one each.
        true_reward: a reward that is only watched.
        max_new_tokens: longest completion in tokens; default: from the run record.
        candidates: completions of pi_ref per prompt. Where the policy's KL is near log(candidates) or above, the
            comparison is with the best of them all.
        n: completions of the policy per prompt.
        batch_size: sequences per forward pass.
        seed: random seed of all samples.
        allow_unsafe_code_execution: see ``resolve``.
        data: which prompts, see ``rows.read_rows``.

    Raises:
        UserError: something is neither given nor recorded, or some completion could not be scored.
    """
    require_recorded(reference=reference, reward=reward, max_new_tokens=max_new_tokens)
    rows, source = read_rows(kind="prompt", **data)
    specs = [(reward, reward_weights), (true_reward, None)] if true_reward else [(reward, reward_weights)]
    rewards = [resolve(*spec, rows=rows, allow_unsafe_code_execution=allow_unsafe_code_execution) for spec in specs]
    prompts, pi_ref = [row["prompt"] for row in rows], reference()
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    # Different seeds: the same random numbers would correlate policy and pi_ref, and make the interval too narrow.
    drawn = sample(model, tokenizer, prompts, n=n, seed=seed, **options)
    kept = sample(pi_ref, tokenizer, prompts, n=candidates, seed=seed + 1, **options)
    policy_scores = [_scores(each, rows, drawn) for each in rewards]  # (P, n) each
    candidate_scores = [_scores(each, rows, kept) for each in rewards]  # (P, candidates) each
    pairs = pairs_of(encode_prompts(tokenizer, prompts), drawn)
    kl = sequence_divergences(model, pi_ref, pairs, batch_size=batch_size)[1].mean().item()
    metrics = at_equal_kl(policy_scores, candidate_scores, kl, seed)
    metrics |= {"prompts": len(rows), "candidates": candidates}
    return Result(metrics, data=[source], curves={"best of n": best_of_n_curve(candidate_scores[0])})


def at_equal_kl(
    policy: Sequence[torch.Tensor],  # (P, n) each: rewards of the policy's samples
    candidates: Sequence[torch.Tensor],  # (P, N) each: of pi_ref's samples
    kl: float,
    seed: int,
) -> dict[str, float]:
    """The figures of the policy and of the best of n at its KL: of the reward that selects, and of the true one if it
    is there.
    """
    equal = equal_n(candidates[0], kl)
    best_kl, best = selected(candidates[0], equal)
    metrics = compared("reward", policy[0], candidates[0], best, seed)
    if len(policy) > 1:
        best = selected(candidates[0], equal, candidates[1])[1]
        metrics |= compared("true_reward", policy[1], candidates[1], best, seed, "true_reward_")
    return metrics | {"kl": kl, "equal_n": equal, "best_of_n_kl": best_kl.mean().item()}


def compared(
    name: str,
    policy: torch.Tensor,  # (P, n) rewards of the policy's samples
    candidates: torch.Tensor,  # (P, N) rewards of pi_ref's samples
    best: torch.Tensor,  # (P,) reward of the best of n
    seed: int,
    prefix: str = "",
) -> dict[str, float]:
    """``<name>`` of the policy, pi_ref and the best of n, and ``<prefix>advantage``, the policy over the best of n."""
    own, gained = policy.mean(1).tolist(), (policy.mean(1) - best).tolist()
    return {
        **with_interval(name, policy.mean().item(), bootstrap_interval(own, seed=seed)),
        f"reference_{name}": candidates.mean().item(),
        f"best_of_n_{name}": best.mean().item(),
        **with_interval(f"{prefix}advantage", fmean(gained), bootstrap_interval(gained, seed=seed)),
    }


def best_of_n_curve(
    rewards: torch.Tensor,  # (P, N) of each prompt's candidates, drawn from pi_ref
) -> list[dict[str, float]]:
    """``n``, ``kl`` and ``reward`` of the best of n, n = 1, 2, 4, … up to half the candidates; means over prompts."""
    points = []
    for count in (2**k for k in range(int(math.log2(rewards.shape[1])))):
        kl, reward = selected(rewards, count)
        points.append({"n": count, "kl": kl.mean().item(), "reward": reward.mean().item()})
    return points


def selected(
    rewards: torch.Tensor,  # (P, N) of each prompt's candidates, drawn from pi_ref
    count: float,
    other: torch.Tensor | None = None,  # (P, N) another reward of the same candidates
) -> tuple[torch.Tensor, torch.Tensor]:  # (P,), (P,)
    """``best_of_candidates`` of every prompt, in float64."""
    other = rewards if other is None else other
    found = [best_of_candidates(r, count, o) for r, o in zip(rewards.double(), other.double())]
    return tuple(torch.stack(part) for part in zip(*found))


def equal_n(rewards: torch.Tensor, kl: float) -> float:
    """The real n >= 1 at which best-of-n's mean KL is ``kl``; MOST where it never is (ties, or few candidates)."""
    low, high = 0.0, math.log2(MOST)
    for _ in range(24):
        middle = (low + high) / 2
        if selected(rewards, 2**middle)[0].mean().item() < kl:
            low = middle
        else:
            high = middle
    return 2 ** ((low + high) / 2)


def _scores(reward: Reward, rows: Sequence[Json], drawn: Drawn) -> torch.Tensor:
    """(P, N) scores of N completions per prompt; equal completions are scored once, so that ties are ties."""
    different = {(i, tuple(c.token_ids)): c for i, group in enumerate(drawn) for c in group}
    chosen = list(different.values())
    scores = score(reward, [rows[i] for i, _ in different], [c.text for c in chosen], [c.token_ids for c in chosen])
    if any(value is None for value in scores):
        raise UserError("a reward gave some completions no score: this comparison needs one that always can")
    known = dict(zip(different, scores))
    return torch.tensor([[known[i, tuple(c.token_ids)] for c in group] for i, group in enumerate(drawn)]).double()
