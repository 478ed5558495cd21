"""Losses on comparisons and labels: Bradley-Terry, Plackett-Luce with ties, a binary classifier, DPO.

Scores and log-probabilities are those of complete completions. `B` batch, `N` candidates of one prompt.
"""

import torch
import torch.nn.functional as F

MAX_TIED = 12  # a block of m tied items needs 2^m terms


def bradley_terry_loss(
    chosen: torch.Tensor,  # (B,)
    rejected: torch.Tensor,  # (B,)
    margin: torch.Tensor | float = 0.0,  # (B,) or a number
) -> torch.Tensor:  # (B,)
    """`-log sigma(R+ - R- - margin)` in nats (Bradley and Terry, 1952)."""
    return -F.logsigmoid(chosen - rejected - margin)


def binary_reward_loss(
    scores: torch.Tensor,  # (B,)
    labels: torch.Tensor,  # (B,) 1 for a good answer, 0 for a bad one
) -> torch.Tensor:  # (B,)
    """`-log sigma(R)` of a good answer, `-log(1 - sigma(R))` of a bad one, in nats: a classifier of single answers.

    Its minimum is `R = log P(good | x, y) / P(bad | x, y)`: unlike Bradley-Terry's it has no free constant per prompt.
    """
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none")


def dpo_loss(
    policy_chosen: torch.Tensor,  # (B,) log pi(y+|x)
    policy_rejected: torch.Tensor,  # (B,) log pi(y-|x)
    reference_chosen: torch.Tensor,  # (B,) log pi_ref(y+|x)
    reference_rejected: torch.Tensor,  # (B,) log pi_ref(y-|x)
    beta: float,
) -> torch.Tensor:  # (B,)
    """The paper's L_DPO: Bradley-Terry on the implicit rewards `beta log(pi / pi_ref)` (Rafailov et al., 2023)."""
    return bradley_terry_loss(beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected))


def plackett_luce_loss(
    scores: torch.Tensor,  # (B, N), best first unless `ranks` says otherwise
    mask: torch.Tensor | None = None,  # (B, N) true where there is an item
    ranks: torch.Tensor | None = None,  # (B, N) smaller is better, equal is tied
) -> torch.Tensor:  # (B,)
    """Negative log-likelihood of a ranking in nats (Luce, 1959; Plackett, 1975).

    The best item is drawn with probability `softmax(scores)`, then the next among those left. Of a tied block the
    order is unknown, so the probabilities of all its orders are summed. Two items give Bradley-Terry exactly.

    Raises:
        ValueError: a block of more than MAX_TIED tied items that is not the last (the last block costs nothing).
    """
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    if ranks is not None:
        return torch.stack([_tied_loss(row[keep], rank[keep]) for row, keep, rank in zip(scores, mask, ranks)])
    absent = scores.masked_fill(~mask, -1e30)  # not -inf, whose gradient through logcumsumexp is nan
    remaining = absent.flip(-1).logcumsumexp(-1).flip(-1)  # log of the mass that is left before each draw
    return ((remaining - scores) * mask).sum(-1)


def _tied_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of one ranking with ties; both arguments (N,), the result a scalar."""
    loss = scores.sum() * 0.0  # keeps the graph where nothing is left to explain
    for rank in ranks.unique()[:-1]:  # the last block takes what is left, in any order: probability one
        block, rest = scores[ranks == rank], scores[ranks > rank]
        loss = loss - _block_log_likelihood(block, rest)
    return loss


def _block_log_likelihood(block: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Log-probability that the items of `block` (m,), in any order, are drawn before all of `rest` (r,).

    `f(A)`, the probability that the first draws are exactly the subset A, obeys
    `f(A) = sum_{i in A} f(A - i) exp(s_i) / mass(everything but A - i)`.
    """
    size = len(block)
    if size > MAX_TIED:
        raise ValueError(f"{size} items are tied, more than the {MAX_TIED} whose orders can be summed")
    tail = rest.logsumexp(0)
    log_f = [block.new_zeros(())]
    log_mass = []
    for subset in range(1 << size):
        outside = [i for i in range(size) if not subset >> i & 1]
        log_mass.append(torch.logaddexp(tail, block[outside].logsumexp(0)) if outside else tail)
        if subset:
            members = [i for i in range(size) if subset >> i & 1]
            terms = [log_f[subset ^ 1 << i] + block[i] - log_mass[subset ^ 1 << i] for i in members]
            log_f.append(torch.stack(terms).logsumexp(0))
    return log_f[-1]
