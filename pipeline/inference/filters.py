"""From logits to a token: penalty, temperature, top-k, top-p and min-p in the order of transformers, and the draw.

Shapes: B batch, V vocabulary. Tests compare each filter with transformers' own logits processor.
"""

from collections.abc import Sequence

import torch

from pipeline.runtime.errors import UserError


def check_options(
    *,
    n: int = 1,
    max_new_tokens: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    batch_size: int = 1,
) -> None:
    """Check the options of `decoding.sample`.

    Raises:
        UserError: one that is out of range.
    """
    for name, value, low in (("n", n, 1), ("max_new_tokens", max_new_tokens, 1), ("batch_size", batch_size, 1)):
        if value < low:
            raise UserError(f"{name} is {value}: give {low} or more")
    if not temperature >= 0:
        raise UserError(f"temperature is {temperature}: give 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}: give a number above 0 and at most 1 (1 keeps every token)")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}: give 0 (keep every token) or more")
    if not 0 <= min_p <= 1:
        raise UserError(f"min_p is {min_p}: give a number from 0 (keep every token) to 1")
    if not repetition_penalty > 0:
        raise UserError(f"repetition_penalty is {repetition_penalty}: give a number above 0 (1 is no penalty)")


def penalised(logits: torch.Tensor, contexts: Sequence[Sequence[int]], penalty: float) -> torch.Tensor:
    """Logits in which the tokens of each row's context are less likely: z / penalty where z > 0, else z * penalty.

    Args:
        logits: (B, V).
        contexts: the ids of each row, prompt and completion so far.
        penalty: above 1 less likely, below 1 more likely (Keskar et al. 2019, "CTRL").
    """
    result = logits.clone()
    for row, ids in enumerate(contexts):
        seen = torch.tensor(sorted(set(ids)), device=logits.device)
        values = logits[row, seen]
        result[row, seen] = torch.where(values < 0, values * penalty, values / penalty)
    return result


def filtered_probabilities(
    logits: torch.Tensor, *, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> torch.Tensor:
    """``softmax(logits / tau)`` with everything outside top-k, the top-p nucleus and min-p at 0; not normalised again.

    Args:
        logits: (B, V).
        temperature: tau, above 0.
        top_p: keep the smallest set of tokens whose share of what top-k left reaches it (1 keeps all).
        top_k: keep the k likeliest tokens and those as likely as the last of them (0 keeps all).
        min_p: keep the tokens that are at least this many times as likely as the likeliest (0 keeps all).

    Returns:
        (B, V), float64.
    """
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_k:
        smallest = probabilities.topk(min(top_k, probabilities.size(-1)), dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < smallest, 0.0)
    if top_p < 1:
        ranked, index = probabilities.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked  # the mass of likelier tokens: the first token always stays
        ranked = ranked.masked_fill(before >= top_p * ranked.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, index, ranked)
    if min_p:
        largest = probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < min_p * largest, 0.0)
    return probabilities


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: the first token whose cumulative mass exceeds ``u`` times the total.

    Args:
        probabilities: (B, V), >= 0, any positive total; tokens of mass 0 are never drawn.
        uniforms: (B,), in [0, 1).

    Returns:
        Token ids, (B,).
    """
    cumulative = probabilities.cumsum(-1)
    return torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
