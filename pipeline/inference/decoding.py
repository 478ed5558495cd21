r"""Sampling completions, batched and with a KV cache: eqs. (1) and (10), one token at a time.

    x_{t+1} ~ softmax((W_out s_t + b_out) / tau),   tau -> 0: argmax

Shapes: B batch, T time, V vocabulary.

Why not ``model.generate``: it draws from the global random state, so a completion depends on what else was sampled and
on its batch. Here every (prompt, sample, token) has one uniform number, drawn from its seed, and the token is where
the cumulative distribution passes that number. The same call gives the same completions whatever the batch size and
with or without a cache (up to the rounding of the logits). Rows that ended leave the batch.

Filters and their order: `filters`. Where a completion ends: `stopping`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from pipeline.inference.filters import check_options, draw, filtered_probabilities, penalised
from pipeline.inference.stopping import (
    COMPLETE,
    NO_STOPS,
    Signals,
    Stops,
    Watch,
    cut_at,
    signals,
    stop_tail,
    stop_token_ids,
)
from pipeline.model.batching import accepted_arguments, cache_argument, evaluating
from pipeline.model.loading import position_limit
from pipeline.model.tokens import encode_prompts
from pipeline.model.vision import images_of, pixels_of
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn, is_dialogue


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        text: without special tokens, and without a stop string and what comes after it.
        token_ids: all that were drawn, the stop token too, so that its log-likelihood is that of the complete answer.
        finish_reason: eos, stop_string, length, eos_probability, low_entropy, high_entropy, low_variance, repetition.
        log_prob: in nats at temperature 1, where another sampler reports one.
        cropped: tokens at the beginning of the context that the last of its tokens was drawn without.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    log_prob: float | None = None
    cropped: int = 0

    @property
    def finished(self) -> bool:
        """Whether it ended by itself: not at the limit, nor by a rule that cuts off what is no use."""
        return self.finish_reason in COMPLETE


class Step(NamedTuple):
    """One step of the first completion, for whoever looks at how it came about.

    Attributes:
        logits: (V,), raw.
        probabilities: (V,), what the token was drawn from; at temperature 0 the softmax at tau = 1.
        token: the one that was taken.
    """

    logits: torch.Tensor
    probabilities: torch.Tensor
    token: int


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
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stops: Stops = NO_STOPS,
    batch_size: int = 64,
    seed: int | Sequence[int] = 0,
    crop: bool = False,
    use_cache: bool = True,
    streamer: BaseStreamer | None = None,
    trace: Callable[[Step], None] | None = None,
) -> list[list[Completion]]:
    """Draw ``n`` completions of each prompt, in input order.

    Args:
        model: any Hugging Face causal LM with a KV cache, PEFT-wrapped or not; used in eval mode and left as found.
        prompts: strings, or message lists (rendered with the chat template and its generation prompt; a final
            assistant message is continued), whose parts may hold images.
        temperature: tau; 0 is greedy, and then all ``n`` completions of a prompt are equal.
        top_p, top_k, min_p: which tokens are kept (`filtered_probabilities`).
        repetition_penalty: what makes tokens of prompt and completion less likely (`penalised`).
        stops: where a completion ends beside its end tokens.
        batch_size: sequences decoded together; completions do not depend on it.
        seed: of the uniform numbers: one for the call, or one per prompt, whose completions then depend on nothing but
            the prompt and its seed. The global random state is neither read nor changed.
        crop: a context longer than the model's positions is cut to its last tokens at each step, as in Listing 4, and
            its positions start anew; a BOS is cut like any other token, and images cannot be cut. There is no cache
            then: every hidden state changes with the cut.
        use_cache: whether keys and values are kept; without, each step reads the complete context.
        streamer: transformers' ``TextStreamer``, given the first completion token by token as it is drawn.
        trace: called at each step of the first completion.

    Raises:
        UserError: an option out of range, an empty prompt, or a prompt with no room left in the model's positions.
    """
    check_options(
        n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, batch_size=batch_size,
    )  # fmt: skip
    prompts = list(prompts)
    if not prompts:
        return []
    encoded = encode_prompts(tokenizer, prompts)
    limit = position_limit(model.config)
    if crop and any(map(images_of, prompts)):
        raise UserError("crop: a context with images cannot be cut; leave it out")
    if not crop:
        check_lengths(limit, encoded, max_new_tokens)
    rule = _Rule(
        ends=stop_token_ids(model, tokenizer, chat=any(map(is_dialogue, prompts))),
        special={tokenizer.get_vocab()[word] for word in stops.strings if word in tokenizer.all_special_tokens},
        stops=stops, tokenizer=tokenizer, max_new_tokens=max_new_tokens, temperature=temperature,
        repetition_penalty=repetition_penalty, kept={"top_p": top_p, "top_k": top_k, "min_p": min_p},
        limit=limit if crop else None, use_cache=use_cache,
    )  # fmt: skip
    copies = n if temperature > 0 else 1
    pixels = [pixels_of(tokenizer, images) if (images := images_of(prompt)) else None for prompt in prompts]
    rows = [
        _Row(list(ids), Watch(stops), pixels=own)
        for ids, own in zip(encoded, pixels, strict=True)
        for _ in range(copies)
    ]
    rows[0].streamer, rows[0].trace = streamer, trace
    numbers = _uniforms(seed, len(prompts), copies, max_new_tokens) if temperature > 0 else None
    _decode_all(model, rows, rule, numbers, batch_size)
    if streamer is not None:
        streamer.end()
    done = _completions(rows, rule)
    return [done[i : i + n] for i in range(0, len(done), n)] if temperature > 0 else [[one] * n for one in done]


class _Rule(NamedTuple):
    """How tokens are drawn, and when a row ends."""

    ends: list[int]
    special: set[int]  # stop strings that are one token
    stops: Stops
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    temperature: float
    repetition_penalty: float
    kept: dict[str, float]
    limit: int | None  # of a context, which is cropped to it
    use_cache: bool


@dataclass
class _Row:
    """One completion on its way: the ids of its prompt, those drawn, and why it ended."""

    prompt: list[int]
    watch: Watch
    drawn: list[int] = field(default_factory=list)
    reason: str | None = None
    streamer: BaseStreamer | None = None
    trace: Callable[[Step], None] | None = None
    pixels: torch.Tensor | None = None  # (I, C, Y, X) of the prompt's images

    def take(self, token: int, seen: Signals | None, forced: bool, rule: _Rule) -> None:
        """Add a token, and set the reason if it is the last one."""
        self.drawn.append(token)
        if self.streamer is not None:
            self.streamer.put(torch.tensor([token]))
        if forced:
            self.reason = "eos_probability"
        elif token in rule.special:
            self.reason = "stop_string"
        elif token in rule.ends:
            self.reason = "eos"
        elif rule.stops.strings and self._has_string(rule):
            self.reason = "stop_string"
        else:
            at_limit = "length" if len(self.drawn) == rule.max_new_tokens else None
            self.reason = self.watch.reason(self.drawn, seen) or at_limit

    def _has_string(self, rule: _Rule) -> bool:
        strings, tokens = rule.stops.strings, self.drawn[-stop_tail(rule.stops.strings) :]
        tail = _texts(rule.tokenizer, [tokens])[0]
        return (
            any(word in tail for word in strings)
            and cut_at(*_texts(rule.tokenizer, [self.drawn]), strings) is not None
        )


def _texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]) -> list[str]:
    return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _completions(rows: Sequence[_Row], rule: _Rule) -> list[Completion]:
    """The finished rows, each with its text up to a stop string."""
    done = []
    for row, text in zip(rows, _texts(rule.tokenizer, [row.drawn for row in rows]), strict=True):
        cut = cut_at(text, rule.stops.strings)
        lost = max(0, len(row.prompt) + len(row.drawn) - 1 - rule.limit) if rule.limit else 0
        reason = row.reason if cut is None else "stop_string"
        done.append(Completion(text if cut is None else cut, row.drawn, str(reason), cropped=lost))
    return done


def _uniforms(seed: int | Sequence[int], prompts: int, n: int, steps: int) -> torch.Tensor:
    """One number in [0, 1) per completion and step, (prompts * n, steps), float64.

    Of a seed per prompt: its first completion has the numbers of that seed, the others those of a hash of seed and
    sample; more steps or samples change none of them.
    """

    def numbers(start: int, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(start), dtype=torch.float64)

    if isinstance(seed, int):
        return numbers(seed, prompts * n, steps)
    return torch.stack([numbers(_seed_of(one, j), steps) for one in seed for j in range(n)])


def _seed_of(seed: int, sample: int) -> int:
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    return seed if sample == 0 else int.from_bytes(digest[:7], "big")


def _decode_all(
    model: PreTrainedModel, rows: list[_Row], rule: _Rule, uniforms: torch.Tensor | None, batch_size: int
) -> None:
    """Draw the tokens of all rows in batches, the longest first, so that memory fails at once if it does."""
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row].prompt))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            _decode(model, [rows[row] for row in batch], rule, None if uniforms is None else uniforms[batch])


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    rows: list[_Row],
    rule: _Rule,
    uniforms: torch.Tensor | None,  # (B, max_new_tokens); None for greedy
) -> None:
    """Draw the tokens of a batch of rows, step by step, until each has a reason to end."""
    forward = _Forward(model, rule)
    running = list(range(len(rows)))  # those in the batch; some of them have ended
    for step in range(rule.max_new_tokens):
        batch = [rows[i] for i in running]
        raw = forward(batch)
        logits = raw
        if rule.repetition_penalty != 1:
            logits = penalised(raw, [row.prompt + row.drawn for row in batch], rule.repetition_penalty)
        probabilities = None
        if uniforms is None:
            tokens = logits.argmax(-1)
        else:
            probabilities = filtered_probabilities(logits, temperature=rule.temperature, **rule.kept)
            tokens = draw(probabilities, uniforms[running, step].to(logits.device))
        seen = signals(raw, rule.ends) if rule.stops.reads_logits else [None] * len(batch)
        q = rule.stops.eos_probability
        for place, (row, token, seen_here) in enumerate(zip(batch, tokens.tolist(), seen, strict=True)):
            if row.reason is not None:
                continue
            forced = q is not None and seen_here.eos_probability >= q
            if forced:
                token = max(rule.ends, key=lambda end: float(raw[place, end]))
            if row.trace is not None:
                law = logits[place].double().softmax(-1) if probabilities is None else probabilities[place]
                row.trace(Step(raw[place], law / law.sum(), token))
            row.take(token, seen_here, forced, rule)
        keep = [place for place, row in enumerate(batch) if row.reason is None]
        if not keep:
            return
        # Copying the cache costs about one step of attention.
        if 2 * len(keep) <= len(running) or forward.cache is None:
            forward.keep(keep)
            running = [running[place] for place in keep]


class _Forward:
    """Logits (B, V) of the next token of rows that grow by one token per call.

    With a cache each call feeds the last token. Without one, and from where a context is cropped, the complete rows.
    """

    def __init__(self, model: PreTrainedModel, rule: _Rule):
        self.model, self.rule, self.cache = model, rule, None
        self.mask = self.position = None
        self.device = next(model.parameters()).device
        self.accepted = accepted_arguments(model)
        self.cache_name = cache_argument(model)
        self.cached = rule.use_cache

    def __call__(self, rows: Sequence[_Row]) -> torch.Tensor:
        limit = self.rule.limit
        if limit and max(len(row.prompt) + len(row.drawn) for row in rows) > limit:
            self.cached, self.cache = False, None
        if self.cache is None:
            ids = self._left_padded([(row.prompt + row.drawn)[-limit if limit else 0 :] for row in rows])
        else:
            ids = torch.tensor([[row.drawn[-1]] for row in rows], device=self.device)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], dim=1)
            self.position = self.position[:, -1:] + 1
        extra = {"position_ids": self.position, "logits_to_keep": 1}
        extra = {name: value for name, value in extra.items() if name in self.accepted}
        seen = [row.pixels for row in rows if row.pixels is not None] if self.cache is None else []
        if seen:
            extra["pixel_values"] = torch.cat(seen).to(self.device)
        if self.cached:
            extra[self.cache_name] = self.cache
        output = self.model(input_ids=ids, attention_mask=self.mask, use_cache=self.cached, **extra)
        if self.cached:
            self.cache = getattr(output, "cache" if "cache" in output else "past_key_values")
        return output.logits[:, -1, :]

    def keep(self, places: list[int]) -> None:
        """Go on with these rows of the batch."""
        if self.cache is not None:
            kept = torch.tensor(places, device=self.device)
            self.cache.batch_select_indices(kept)
            self.mask, self.position = self.mask[kept], self.position[kept]

    def _left_padded(self, contexts: list[list[int]]) -> torch.Tensor:
        width, pad = max(map(len, contexts)), self.rule.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(c)) + c for c in contexts], device=self.device)
        self.mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=self.device)
        self.position = (self.mask.cumsum(-1) - 1).clamp(min=0)
        return ids


def check_lengths(limit: int | None, encoded: list[list[int]], max_new_tokens: int) -> None:
    """Check that the longest prompt leaves room for a completion.

    Args:
        limit: tokens that the model has positions for; None where there is no limit.
        encoded: ids of each prompt.

    Raises:
        UserError: it does not.
    """
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]))
    if limit and len(encoded[longest]) + max_new_tokens > limit:
        raise UserError(
            f"prompt {longest} has {len(encoded[longest])} tokens and max_new_tokens is {max_new_tokens}, but the "
            f"model takes {limit} in all: shorten the prompt or lower max_new_tokens"
        )
