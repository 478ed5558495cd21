"""Omega(theta, theta_k) of eq. (12): what changing the trainable parameters costs, as pure functions.

    theta_{k+1} = argmin_theta [ L_{k+1}(theta_frozen, theta) + lambda Omega(theta, theta_k) ]                   (12)

`B` batch, `T` time, `D` hidden, `V` vocabulary. Parameters are dictionaries name -> tensor; every result is a scalar
that is 0 at its least and differentiable in the new parameters (or in what the new parameters compute).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.objectives.divergences import full_kl
from pipeline.objectives.value import masked_mean

Tensors = Mapping[str, torch.Tensor]


def l2(parameters: Tensors, previous: Tensors) -> torch.Tensor:
    """`1/2 sum (theta - theta_k)^2`. On a loss with Hessian H and minimum a its optimum is a ridge regression:
    `theta - theta_k = (H + lambda I)^-1 H (a - theta_k)`, which falls as 1/lambda.
    """
    return 0.5 * sum(((value - previous[name]) ** 2).sum() for name, value in parameters.items())


def ewc(parameters: Tensors, previous: Tensors, fisher: Tensors) -> torch.Tensor:
    """`1/2 sum F (theta - theta_k)^2` with a diagonal Fisher F >= 0 of what was learned before (Kirkpatrick et al.,
    arXiv:1612.00796); a parameter that F does not name is free.
    """
    terms = [
        (fisher[name] * (value - previous[name]) ** 2).sum() for name, value in parameters.items() if name in fisher
    ]
    return 0.5 * sum(terms) if terms else next(iter(parameters.values())).sum() * 0.0


def diagonal_fisher(gradients: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Mean square of the gradients of single rows' losses: the diagonal of the empirical Fisher matrix."""
    return {name: torch.stack([g[name] ** 2 for g in gradients]).mean(0) for name in gradients[0]}


def online_fisher(old: Tensors, new: Tensors, decay: float) -> dict[str, torch.Tensor]:
    """`decay F_old + F_new` (Schwarz et al., arXiv:1805.06370), each normalised to a mean of 1 over all parameters.

    Normalised, because the gradients of a corpus learned by heart all but vanish: lambda then has l2's scale, and no
    corpus counts for more because it was learned less well.
    """
    new = normalised(new)
    return {name: decay * old[name] + value if name in old else value for name, value in new.items()}


def normalised(fisher: Tensors) -> dict[str, torch.Tensor]:
    """The Fisher divided by its mean over all parameters; as it is where it is 0 everywhere."""
    mean = sum(value.sum() for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    return {name: value / mean if mean > 0 else value for name, value in fisher.items()}


def hidden_distillation(
    hidden: torch.Tensor,  # (B, T, D)
    previous: torch.Tensor,  # (B, T, D)
    mask: torch.Tensor,  # (B, T)
) -> torch.Tensor:
    """`E |F_theta(E) - F_theta_k(E)|^2 / E |F_theta_k(E)|^2` over the real tokens of the anchors E: the paper's own
    wording of Omega. A share of the signal, so lambda means the same at every width.
    """
    moved, size = ((hidden - previous) ** 2).sum(-1), (previous**2).sum(-1)
    return masked_mean(moved, mask) / masked_mean(size, mask).clamp(min=torch.finfo(size.dtype).tiny)


def logit_distillation(
    logits: torch.Tensor,  # (B, T, V)
    previous: torch.Tensor,  # (B, T, V)
    mask: torch.Tensor,  # (B, T)
) -> torch.Tensor:
    """`E KL(pi_theta_k || pi_theta)` of the next-token distributions, mean over the anchors' real tokens, in nats."""
    return masked_mean(full_kl(previous, logits), mask)


def orthogonality(new: Tensors, old: Tensors) -> torch.Tensor:
    """`sum_modules |A_old A_new^T|_F^2`: 0 where the rows of every new LoRA A (r, inputs) are orthogonal to those of
    the old ones (O-LoRA, arXiv:2310.14152): then the new adapter reads nothing that the old ones read.
    """
    return sum(((old[name] @ value.T) ** 2).sum() for name, value in new.items() if name in old)


def reservoir(kept: Sequence[Any], seen: int, rows: Sequence[Any], size: int, draw: random.Random) -> tuple[list, int]:
    """Algorithm R (Vitter, 1985): after any number of rows each has been kept with the same probability `size / seen`.

    Args:
        kept: what the reservoir holds.
        seen: how many rows it has seen so far.
        rows: what streams past now.
        size: how many rows it holds at most.
        draw: the generator, used once per row.

    Returns:
        What it holds now, and how many rows it has seen.
    """
    kept = list(kept)
    for row in rows:
        seen += 1
        if len(kept) < size:
            kept.append(row)
        elif (place := draw.randrange(seen)) < size:
            kept[place] = row
    return kept, seen


def span_share(new: torch.Tensor, old: Sequence[torch.Tensor]) -> float:
    """`|P g|^2 / |g|^2`: the share of the new gradient g, (P,), that lies in the span of the old tasks' gradients.

    The paper's account of forgetting: where it is 0 a small step changes no old loss. By the Gram matrix's
    pseudo-inverse, so parallel old gradients do no harm; 0 where there is no old or no new gradient.
    """
    total = float(new.double() @ new.double())
    if not old or total == 0:
        return 0.0
    basis = torch.stack([g.double() for g in old])
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    along = basis @ new.double()
    coefficients = torch.linalg.pinv(basis @ basis.T, rtol=1e-10, hermitian=True) @ along
    return min(1.0, max(0.0, float(along @ coefficients) / total))
