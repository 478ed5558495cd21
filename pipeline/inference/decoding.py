r"""Sampling completions, batched and with a KV cache: eqs. (1) and (10), one token at a time.

    x_{t+1} ~ softmax((W_out s_t + b_out) / tau),   tau -> 0: argmax

Shapes: B batch, T time, V vocabulary.

Why not ``model.generate``: it draws from the global random state, so a completion depends on what else was sampled and
on its batch. Here every (prompt, sample, token) has one uniform number, drawn once per call from its
seed, and the token is where the cumulative distribution passes that number. The same call gives the same completions
whatever the batch size (up to the rounding of the logits). Rows that ended leave the batch.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from pipeline.inference.stopping import stop_token_ids
from pipeline.model.batching import evaluating
from pipeline.model.loading import position_limit
from pipeline.model.tokens import encode_prompts
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn, is_dialogue


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    ``text`` has no special tokens; ``token_ids`` holds the stop token where one was drawn, so that its log-likelihood
    is that of the complete answer; ``finished`` is False where ``max_new_tokens`` cut it off; ``log_prob`` is its
    log-probability in nats at temperature 1 where another sampler reports one.
    """

    text: str
    token_ids: list[int]
    finished: bool
    log_prob: float | None = None


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turn],
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    streamer: BaseStreamer | None = None,
) -> list[list[Completion]]:
    """Draw ``n`` completions of each prompt, in input order.

    Args:
        model: any Hugging Face causal LM with a KV cache, PEFT-wrapped or not; used in eval mode and left as found.
        prompts: strings, or message lists (rendered with the chat template and its generation prompt; a final
            assistant message is continued).
        temperature: tau; 0 is greedy, and then all ``n`` completions of a prompt are equal.
        top_p: keep the smallest set of tokens whose probability reaches it (1 keeps all).
        top_k: keep the k likeliest tokens (0 keeps all).
        batch_size: sequences decoded together; completions do not depend on it.
        seed: random seed of the uniform numbers; the global random state is neither read nor changed.
        streamer: transformers' ``TextStreamer``, given the first completion token by token as it is drawn.

    Raises:
        UserError: an option out of range, an empty prompt, or a prompt with no room left in the model's positions.
    """
    check_options(n, max_new_tokens, temperature, top_p, top_k, batch_size)
    prompts = list(prompts)
    if not prompts:
        return []
    encoded = encode_prompts(tokenizer, prompts)
    _check_lengths(model, encoded, max_new_tokens)
    stop = stop_token_ids(model, tokenizer, chat=any(map(is_dialogue, prompts)))
    rule = _Rule(stop, tokenizer.pad_token_id or 0, max_new_tokens, temperature, top_p, top_k)
    copies = n if temperature > 0 else 1
    rows = [ids for ids in encoded for _ in range(copies)]
    drawn = _draw_rows(model, rows, rule, batch_size, seed, streamer)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    done = [Completion(text, ids, ids[-1] in stop) for text, ids in zip(texts, drawn, strict=True)]
    if temperature == 0:
        return [[completion] * n for completion in done]
    return [done[i : i + n] for i in range(0, len(done), n)]


class _Rule(NamedTuple):
    """How tokens are drawn, and when a row ends."""

    stop: list[int]
    pad_id: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int


def _draw_rows(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    rule: _Rule,
    batch_size: int,
    seed: int,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """The drawn token ids of each row of prompt ids; those of the first row go to the streamer as they are drawn."""
    uniforms = None
    if rule.temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand((len(rows), rule.max_new_tokens), generator=generator, dtype=torch.float64)
    drawn: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # longest first: memory fails at once or never
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            numbers = None if uniforms is None else uniforms[batch]
            for running, tokens in _decode(model, [rows[row] for row in batch], rule, numbers):
                for index, token in zip(running, tokens, strict=True):
                    drawn[batch[index]].append(token)
                    if streamer is not None and batch[index] == 0:
                        streamer.put(torch.tensor([token]))
    if streamer is not None:
        streamer.end()
    return drawn


def filtered_probabilities(logits: torch.Tensor, *, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    """``softmax(logits / tau)`` with everything outside top-k and the top-p nucleus at 0; not normalised again.

    Args:
        logits: (B, V).

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


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    rule: _Rule,
    uniforms: torch.Tensor | None,  # (B, max_new_tokens); None for greedy
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield, step by step, the rows still running and the token that each of them drew."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[rule.pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    stops = torch.tensor(rule.stop, device=device)
    if uniforms is not None:
        uniforms = uniforms.to(device)
    accepted = _accepted_arguments(model)
    cache_name = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
    rows = torch.arange(len(prompts), device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = None

    for step in range(rule.max_new_tokens):
        extra = {"position_ids": position, "logits_to_keep": 1}
        extra = {name: value for name, value in extra.items() if name in accepted}
        output = model(input_ids=ids, attention_mask=mask, use_cache=True, **{cache_name: cache}, **extra)
        cache = getattr(output, "cache" if "cache" in output else "past_key_values")
        logits = output.logits[:, -1, :]
        if uniforms is None:
            tokens = logits.argmax(-1)
        else:
            probabilities = filtered_probabilities(
                logits, temperature=rule.temperature, top_p=rule.top_p, top_k=rule.top_k
            )
            tokens = draw(probabilities, uniforms[rows, step])
        yield rows[running].tolist(), tokens[running].tolist()

        running = running & ~torch.isin(tokens, stops)
        left = int(running.sum())
        if not left or step + 1 == rule.max_new_tokens:
            return
        if 2 * left <= len(rows):  # copying the cache costs about one step of attention
            keep = running.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            rows, tokens, mask, position, running = (x[keep] for x in (rows, tokens, mask, position, running))
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position = position[:, -1:] + 1


def _accepted_arguments(model: PreTrainedModel) -> set[str]:
    """Names that the causal LM's ``forward`` takes (a PEFT wrapper's own signature hides them)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


def check_options(
    n: int, max_new_tokens: int, temperature: float, top_p: float, top_k: int, batch_size: int = 1
) -> None:
    """Check the options of `sample`.

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


def _check_lengths(model: PreTrainedModel, encoded: list[list[int]], max_new_tokens: int) -> None:
    limit = position_limit(model.config)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if limit and len(encoded[longest]) + max_new_tokens > limit:
        raise UserError(
            f"prompt {longest} has {len(encoded[longest])} tokens and max_new_tokens is {max_new_tokens}, but the "
            f"model takes {limit} in all: shorten the prompt or lower max_new_tokens"
        )
