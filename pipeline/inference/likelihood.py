"""Log-likelihoods of given text under a causal LM: what loss, perplexity and implicit rewards are made of.

Shapes: B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.model.batching import pad_right


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Documents as pretraining reads them: the tokenizer's own start (bos, if it has one), the text, one eos."""
    eos = tokenizer.eos_token_id
    return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in tokenizer(list(texts))["input_ids"]] if texts else []


@torch.no_grad()
def token_log_probabilities(model: Any, sequences: Sequence[list[int]], *, batch_size: int = 16) -> list[torch.Tensor]:
    """``log pi(x_t | x_<t)`` for t = 1..T-1 of every sequence (eq. 9's summands), in input order, float32 on the CPU.

    Sequences of similar length share a batch; padding stands on the right, where a causal model cannot see it.
    """
    device = next(model.parameters()).device
    result: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if len(sequences[batch[0]]) < 2:
                continue  # one token alone predicts nothing
            ids, mask = pad_right([sequences[i] for i in batch], device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            for row, i in enumerate(batch):  # one row at a time: (T, V) in float32 at most beside the logits
                kept = len(sequences[i]) - 1
                loss = torch.nn.functional.cross_entropy(
                    logits[row, :kept].float(), ids[row, 1 : kept + 1], reduction="none"
                )
                result[i] = -loss.cpu()
    finally:
        model.train(was_training)
    return result


def answer_log_likelihoods(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int = 16
) -> list[float]:
    """``log pi(y | x)``: the sum over the completion's tokens, for (prompt ids, completion ids) pairs."""
    logs = token_log_probabilities(model, [prompt + answer for prompt, answer in pairs], batch_size=batch_size)
    return [
        float(values[-len(answer) :].double().sum()) if answer else 0.0
        for values, (_, answer) in zip(logs, pairs, strict=True)
    ]
