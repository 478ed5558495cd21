"""One step of generation as a table: logits, softmax at temperature tau, and the token taken. Eqs. (1) and (10)."""

import math

from transformers import PreTrainedTokenizerBase

from pipeline.inference.decoding import Step


def step_table(tokenizer: PreTrainedTokenizerBase, number: int, step: Step, shown: int = 5) -> str:
    """The likeliest tokens of a step and, marked by ``>``, the one that was taken.

    The heading has the entropy of softmax(z), in nats and as a share of log V, and the sum over all tokens of pi^tau,
    the distribution after penalty, temperature and filters that the token was drawn from.
    """
    log_p = step.logits.double().log_softmax(-1)
    entropy = -float((log_p.exp() * log_p.clamp(min=-1e30)).sum())
    size = len(log_p)
    order = step.logits.argsort(descending=True).tolist()
    ranks = {token: rank for rank, token in enumerate(order, 1)}
    lines = [
        f"step {number}: H {entropy:.3f} nats ({entropy / math.log(size):.3f} of log V), "
        f"sum of pi^tau {float(step.probabilities.sum()):.6f}",
        f"  {'rank':>5}  {'logit':>9}  {'pi^tau':>8}  token",
    ]
    for token in dict.fromkeys([*order[:shown], step.token]):
        text = repr(tokenizer.decode([token]))
        lines.append(
            f"{'>' if token == step.token else ' '} {ranks[token]:>5}  {float(step.logits[token]):>9.4f}  "
            f"{float(step.probabilities[token]):>8.6f}  {token} {text}"
        )
    return "\n".join(lines)
