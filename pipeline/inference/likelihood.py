"""Forward passes over given rows: log-likelihoods, laws over candidates, hidden states, divergences of two models.

They are what loss, perplexity, implicit rewards, drift and KL are made of. Shapes: B batch, T time, V vocabulary,
D hidden, N rows, C candidates of a prompt, S samplers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from pipeline.inference.filters import filtered_probabilities
from pipeline.model.batching import Batch, evaluating, forward_rows, pad_right
from pipeline.objectives.divergences import full_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    from pipeline.inference.decoding import Completion

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids


class Predicted(NamedTuple):
    """Of every token of a row but the first: its log-likelihood in nats, and whether it is the likeliest; (T - 1,)."""

    log_probs: torch.Tensor
    likeliest: torch.Tensor


def predict_tokens(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    temperature: float = 1.0,
    pixels: Sequence[torch.Tensor | None] | None = None,
) -> list[Predicted]:
    """How well each token is predicted from those before it, in input order, in float32 on the CPU.

    Args:
        rows: token ids; a row of fewer than two tokens predicts nothing.
        batch_size: rows per forward pass.
        temperature: divides the logits.
        pixels: of each row's images, as `forward_rows` takes them.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[Predicted]:
        for row, length in enumerate(batch.lengths):  # one at a time: (T, V) in float32 beside the logits
            logits, targets = output.logits[row, : length - 1].float() / temperature, batch.ids[row, 1:length]
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            yield Predicted(-loss.cpu(), (logits.argmax(-1) == targets).cpu())

    readable = [row for row in rows if len(row) > 1]
    seen = [own for own, row in zip(pixels, rows, strict=True) if len(row) > 1] if pixels else None
    found = iter(forward_rows(model, readable, read, batch_size=batch_size, pixels=seen, use_cache=False))
    nothing = Predicted(torch.empty(0), torch.empty(0, dtype=torch.bool))
    return [next(found) if len(row) > 1 else nothing for row in rows]


def token_log_probabilities(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 16
) -> list[torch.Tensor]:
    """``log pi(x_t | x_<t)`` for t = 1..T-1 of every row (eq. 9's summands), in input order, float32 on the CPU."""
    return [predicted.log_probs for predicted in predict_tokens(model, rows, batch_size=batch_size)]


def answer_log_likelihoods(
    model: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 16,
    temperature: float = 1.0,
    pixels: Sequence[torch.Tensor | None] | None = None,
) -> list[float]:
    """``log pi(y | x)`` in nats: the sum over the completion's tokens, at a sampling temperature.

    Args:
        pixels: of each pair's images, as `forward_rows` takes them.
    """
    rows = [prompt + answer for prompt, answer in pairs]
    predicted = predict_tokens(model, rows, batch_size=batch_size, temperature=temperature, pixels=pixels)
    return [
        float(found.log_probs[-len(answer) :].double().sum()) if answer else 0.0
        for found, (_, answer) in zip(predicted, pairs, strict=True)
    ]


class Sampler(NamedTuple):
    """How tokens are drawn, as options of ``decoding.sample`` of the same names: what a distribution depends on."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """The distribution that tokens are drawn from, (..., V), in float64; -inf for a token that is filtered out."""
        if self == Sampler(self.temperature):
            return (logits.double() / self.temperature).log_softmax(-1)
        kept = filtered_probabilities(logits, **self._asdict())
        return (kept / kept.sum(-1, keepdim=True)).log()


PLAIN = Sampler()


def candidate_log_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    samplers: Sequence[Sampler] = (PLAIN,),
    normalised: bool = False,
    batch_size: int = 64,
) -> list[torch.Tensor]:
    """``log P(y | x)`` of every candidate y of every prompt x by teacher forcing, without sampling noise.

    The distribution after each prefix is computed once and shared by all candidates that begin with it (candidates of
    one token cost one forward pass per prompt), so that the probabilities of a complete set of candidates sum to 1 to
    the rounding of float64 in any dtype of the model.

    Args:
        model: any causal LM; used in eval mode and left as found.
        prompts: token ids of each prompt, at least one.
        candidates: token ids of each prompt's candidates, at least one candidate of at least one token
            (``model.tokens.encode_candidates`` makes both).
        samplers: temperature and filters of every step; one forward pass serves all of them.
        normalised: divide by the candidates' total, which gives the distribution given that one of them is said
            (-inf where a filter leaves none of them).
        batch_size: rows per forward pass.

    Returns:
        Per prompt (S, C), samplers and candidates, in float64 on the CPU.

    Raises:
        ValueError: to be normalised, of candidates one of which begins with another: they do not exclude
            each other.
    """
    twice = (begins_with_another([tuple(y) for y in answers]) for answers in candidates if normalised)
    for one, other in filter(None, twice):
        raise ValueError(f"the candidate {other} begins with the candidate {one}: end both by a token")
    rows, starts, edges, place = _shared_prefixes(prompts, candidates)

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[dict[tuple[int, int], torch.Tensor]]:
        for i, row in enumerate(batch.places):
            steps = sorted({before for before, _ in edges[row]})  # a prefix that rows share is in one of them
            logits = output.logits[i, [starts[row] + step for step in steps]]
            laws = torch.stack([sampler.log_probs(logits) for sampler in samplers])  # (S, steps, V)
            wanted = torch.tensor([(steps.index(before), token) for before, token in edges[row]], device=laws.device).T
            yield dict(zip(edges[row], laws[:, wanted[0], wanted[1]].T.cpu()))

    found = forward_rows(model, rows, read, batch_size=batch_size, use_cache=False)
    laws = []
    for answers, places in zip(candidates, place):
        sums = []
        for y in answers:
            steps = [(places[tuple(y[:t])], token) for t, token in enumerate(y)]
            sums.append(sum(found[row][before, token] for (row, before), token in steps))
        law = torch.stack(sums, dim=1)
        total = law.logsumexp(-1, keepdim=True)
        laws.append(torch.where(total.isneginf(), law, law - total) if normalised else law)
    return laws


class _Prefixes(NamedTuple):
    """Rows that hold every prefix of every candidate, each prefix once.

    Attributes:
        rows: token ids.
        starts: of each row where the logits after its prompt are.
        edges: of each row what is read off: (tokens of the candidate before it, token).
        place: of each prompt: prefix -> row, tokens before.
    """

    rows: list[list[int]]
    starts: list[int]
    edges: list[dict[tuple[int, int], None]]
    place: list[dict[tuple[int, ...], tuple[int, int]]]


def _shared_prefixes(prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]) -> _Prefixes:
    rows, starts, edges, place = found = _Prefixes([], [], [], [])
    for x, answers in zip(prompts, candidates, strict=True):
        prefixes = list(dict.fromkeys(tuple(y[:t]) for y in answers for t in range(len(y))))
        inner = {s[:t] for s in prefixes for t in range(len(s))}
        place.append({})
        for s in (s for s in prefixes if s not in inner):  # every prefix is the start of one of these
            for t in range(len(s) + 1):
                place[-1].setdefault(s[:t], (len(rows), t))
            rows.append([*x, *s])
            starts.append(len(x) - 1)
            edges.append({})
        for y in answers:
            for t, token in enumerate(y):
                row, before = place[-1][tuple(y[:t])]
                edges[row][before, token] = None
    return found


def begins_with_another(answers: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The first two candidates of which one is the beginning of the other, or both are equal."""
    ordered = sorted(answers)  # what begins with a candidate comes right after it
    return next(((a, b) for a, b in itertools.pairwise(ordered) if b[: len(a)] == a), None)


def last_hidden_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 64
) -> list[torch.Tensor]:
    """Last hidden states F_theta(E) of every row, (T, D) each, in float32 on the CPU."""

    def read(output: CausalLMOutput, batch: Batch) -> list[torch.Tensor]:
        last = output.hidden_states[-1]
        return [last[row, :length].float().cpu() for row, length in enumerate(batch.lengths)]

    return forward_rows(model, rows, read, batch_size=batch_size, output_hidden_states=True, use_cache=False)


def pairs_of(prompts: Sequence[list[int]], drawn: Sequence[Sequence[Completion]]) -> list[Pair]:
    """Token ids of each prompt with each of its completions, one prompt after the other."""
    return [(ids, one.token_ids) for ids, group in zip(prompts, drawn, strict=True) for one in group]


def sequence_divergences(
    model: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[Pair], *, batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two unbiased estimates of ``KL(pi || pi_ref)`` per completion, of completions sampled by ``model``: (N,), (N,).

    The first is ``log pi(y|x) - log pi_ref(y|x)``. The second is ``sum_t KL(pi(.|x, y_<t) || pi_ref(.|x, y_<t))`` over
    the vocabulary: the expectation of each summand of the first at its prefix, so of lower variance (Rao-Blackwell),
    and never negative.

    Args:
        pairs: a completion of no token has divergence 0.
        batch_size: rows per forward pass.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[tuple[float, float]]:
        other = reference(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
        for row, place in enumerate(batch.places):  # one at a time: (T, V) in float32 beside the logits, not (B, T, V)
            part = slice(len(pairs[place][0]) - 1, batch.lengths[row] - 1)
            p, q = (logits[row, part].float().log_softmax(-1) for logits in (output.logits, other))
            tokens = batch.ids[row, part.start + 1 : part.stop + 1, None]
            yield (p - q).gather(-1, tokens).double().sum().item(), full_kl(p, q).double().sum().item()

    rows = [prompt + answer for prompt, answer in pairs]
    with evaluating(reference):
        found = forward_rows(model, rows, read, batch_size=batch_size, use_cache=False)
    sampled, full = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).T
    return sampled, full


class Divergence(NamedTuple):
    """How far two contexts are apart along one continuation of T tokens.

    Attributes:
        kl: (T,), KL of the next-token distributions, in nats: the first one's to the second's.
        hidden: (L + 1, T), |h' - h| / |h| of the embeddings and of every layer, where the token is predicted.
    """

    kl: torch.Tensor
    hidden: torch.Tensor


def context_divergences(
    model: PreTrainedModel,
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
) -> list[Divergence]:
    """What is left, step by step, of the difference of two contexts, where both are followed by the same tokens.

    In expectation over continuations drawn after the first context, the sum of ``kl`` over the steps is the KL of the
    two distributions over continuations (chain rule). Float32 on the CPU; the last layer is after the final norm.

    Args:
        first: ids of each context, at least one token.
        second: ids of the other.
        continuations: ids that follow both, at least one token.
        batch_size: rows per forward pass.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[Divergence]:
        others = [[*second[place], *continuations[place]] for place in batch.places]
        ids, mask = pad_right(others, batch.ids.device)
        other = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        for row, place in enumerate(batch.places):
            steps = len(continuations[place])
            parts = [slice(len(context[place]) - 1, len(context[place]) - 1 + steps) for context in (first, second)]
            kl = full_kl(*(found.logits[row, part].float() for found, part in zip((output, other), parts)))
            h, moved = (
                torch.stack([layer[row, part].float() for layer in found.hidden_states])
                for found, part in zip((output, other), parts)
            )
            size = h.norm(dim=-1).clamp(min=torch.finfo(h.dtype).tiny)  # the embedding of a pad token may be 0
            yield Divergence(kl.cpu(), ((moved - h).norm(dim=-1) / size).cpu())

    rows = [[*x, *y] for x, y in zip(first, continuations, strict=True)]
    return forward_rows(model, rows, read, batch_size=batch_size, output_hidden_states=True, use_cache=False)
