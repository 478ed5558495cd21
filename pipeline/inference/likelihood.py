"""Forward passes over given rows: log-likelihoods, hidden states, divergences of two models.

They are what loss, perplexity, implicit rewards, drift and KL are made of. Shapes: B batch, T time, V vocabulary,
D hidden, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from pipeline.model.batching import Batch, evaluating, forward_rows
from pipeline.objectives.divergences import full_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

Pair = tuple[list[int], list[int]]  # prompt ids, completion ids


class Predicted(NamedTuple):
    """Of every token of a row but the first: its log-likelihood in nats, and whether it is the likeliest; (T - 1,)."""

    log_probs: torch.Tensor
    likeliest: torch.Tensor


def predict_tokens(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 16, temperature: float = 1.0
) -> list[Predicted]:
    """How well each token is predicted from those before it, in input order, in float32 on the CPU.

    Args:
        rows: token ids; a row of fewer than two tokens predicts nothing.
        batch_size: rows per forward pass.
        temperature: divides the logits.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[Predicted]:
        for row, length in enumerate(batch.lengths):  # one at a time: (T, V) in float32 beside the logits
            logits, targets = output.logits[row, : length - 1].float() / temperature, batch.ids[row, 1:length]
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
            yield Predicted(-loss.cpu(), (logits.argmax(-1) == targets).cpu())

    readable = [row for row in rows if len(row) > 1]
    found = iter(forward_rows(model, readable, read, batch_size=batch_size, use_cache=False))
    nothing = Predicted(torch.empty(0), torch.empty(0, dtype=torch.bool))
    return [next(found) if len(row) > 1 else nothing for row in rows]


def token_log_probabilities(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 16
) -> list[torch.Tensor]:
    """``log pi(x_t | x_<t)`` for t = 1..T-1 of every row (eq. 9's summands), in input order, float32 on the CPU."""
    return [predicted.log_probs for predicted in predict_tokens(model, rows, batch_size=batch_size)]


def answer_log_likelihoods(
    model: PreTrainedModel, pairs: Sequence[Pair], *, batch_size: int = 16, temperature: float = 1.0
) -> list[float]:
    """``log pi(y | x)`` in nats: the sum over the completion's tokens, at a sampling temperature."""
    rows = [prompt + answer for prompt, answer in pairs]
    predicted = predict_tokens(model, rows, batch_size=batch_size, temperature=temperature)
    return [
        float(found.log_probs[-len(answer) :].double().sum()) if answer else 0.0
        for found, (_, answer) in zip(predicted, pairs, strict=True)
    ]


def next_token_log_probs(
    model: PreTrainedModel, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, batch_size: int = 64
) -> list[torch.Tensor]:
    """``log pi(. | x, y_<=t)`` for t = 0..T of every answer of T tokens, (T + 1, V) each, in float64 on the CPU.

    Args:
        prompt: token ids, at least one.
        answers: token ids of each answer.
        batch_size: rows per forward pass.
    """

    def read(output: CausalLMOutput, batch: Batch) -> Iterator[torch.Tensor]:
        for row, length in enumerate(batch.lengths):
            yield output.logits[row, len(prompt) - 1 : length].double().log_softmax(-1).cpu()

    rows = [[*prompt, *answer] for answer in answers]
    return forward_rows(model, rows, read, batch_size=batch_size, use_cache=False)


def last_hidden_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int = 64
) -> list[torch.Tensor]:
    """Last hidden states F_theta(E) of every row, (T, D) each, in float32 on the CPU."""

    def read(output: CausalLMOutput, batch: Batch) -> list[torch.Tensor]:
        last = output.hidden_states[-1]
        return [last[row, :length].float().cpu() for row, length in enumerate(batch.lengths)]

    return forward_rows(model, rows, read, batch_size=batch_size, output_hidden_states=True, use_cache=False)


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
