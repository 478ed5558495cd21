"""Equation (9): the negative log-likelihood of the next token, which pretraining, SFT and RSFT minimise."""

import torch

IGNORED = -100  # the label of a token that is not learned, as in transformers


def negative_log_likelihood(
    logits: torch.Tensor,  # (B, T, V)
    labels: torch.Tensor,  # (B, T) token ids, IGNORED where a token is not learned
) -> torch.Tensor:
    """`- sum_t log pi(x_{t+1} | x_{1:t})` divided by the number of terms, in nats per learned token.

    The logits at position t predict the token at t + 1, so the first label never counts. The mean is taken over the
    tokens of the batch and not over its rows. 0 where nothing is learned.
    """
    targets = labels[:, 1:]
    learned = targets != IGNORED
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, targets.where(learned, 0)[..., None])[..., 0]
    return -(log_probs * learned).sum() / learned.sum().clamp(min=1)
