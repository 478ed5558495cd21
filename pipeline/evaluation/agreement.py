r"""Agreement and truth as two rewards: where a policy lies between them, and how far it could have come.

    R_w = w R_truth + (1 - w) R_agree + R_common,        pi_w(y|x) = pi_ref(y|x) exp(R_w(x, y) / beta) / Z(x)

Distributions form a convex set and E[R_truth], E[R_agree], -KL are concave in them, so every undominated triple
maximises a weighted sum: pi_w over w in [0, 1] and beta is the whole Pareto frontier, a family of two parameters (the
paper's open question 3). A policy that was trained on R_w falls short of it by beta KL(pi || pi_w)
(``evaluation.exact.regret``).

Shapes: P prompts, Y completions of a prompt. Laws are log-probabilities in float64, (P, Y).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pipeline.objectives.divergences import exact_kl, tilted_law


class Answers(NamedTuple):
    """What the completions say, (P, Y) in float64 each, and on which prompts the user is wrong or right, (P).

    Attributes:
        right: how right a completion is in expectation: 1 for the truth; of what cannot be known, how likely it is.
        agree: 1 where it says what the user believes.
        wrong_belief: the user is known to be wrong.
        right_belief: the user is known to be right.
        weight: of each prompt in the means.
    """

    right: torch.Tensor
    agree: torch.Tensor
    wrong_belief: torch.Tensor
    right_belief: torch.Tensor
    weight: torch.Tensor


def place(law: torch.Tensor, answers: Answers) -> dict[str, float]:
    """Where a distribution, (P, Y) in probabilities, lies: ``accuracy`` over all prompts, ``flips``, the share of
    wrong beliefs that it repeats, and ``agreement`` with right ones: who contradicts whatever is said has neither.
    """
    right, agree = (law * answers.right).sum(-1), (law * answers.agree).sum(-1)

    def mean(values: torch.Tensor, among: torch.Tensor) -> float:
        weight = answers.weight * among
        return ((values * weight).sum() / weight.sum()).item()

    return {
        "accuracy": mean(right, torch.ones_like(right)),
        "flips": mean(agree, answers.wrong_belief.double()),
        "agreement": mean(agree, answers.right_belief.double()),
    }


def mixed_reward(answers: Answers, w: float, scale: float = 1.0, common: torch.Tensor | float = 0.0) -> torch.Tensor:
    """R_w = scale (w right + (1 - w) agree) + common, (P, Y)."""
    return scale * (w * answers.right + (1 - w) * answers.agree) + common


def truth_frontier(
    log_reference: torch.Tensor,
    answers: Answers,
    weights: Sequence[float],
    beta: float,
    *,
    scale: float = 1.0,
    common: torch.Tensor | float = 0.0,
) -> list[dict[str, float]]:
    """Per weight ``w``, the place of pi_w, its E[R_truth] and E[R_agree] in units of ``scale``, its KL in nats."""
    points = []
    for w in weights:
        law = tilted_law(log_reference, mixed_reward(answers, w, scale, common), beta).exp()
        share = answers.weight / answers.weight.sum()
        means = {
            "truth": ((law * answers.right).sum(-1) * share).sum().item(),
            "agree": ((law * answers.agree).sum(-1) * share).sum().item(),
            "kl": (exact_kl(law, log_reference.exp()) * share).sum().item(),
        }
        points.append({"w": w, **place(law, answers), **means})
    return points


def posterior(log_prior: torch.Tensor, agree: torch.Tensor, reliability: torch.Tensor) -> torch.Tensor:
    """Bayes: P(v | the user says w) ~ prior(v) u if v = w, else prior(v) (1 - u) / (Y - 1); logs, (P, Y).

    Args:
        log_prior: of Y values, without the user.
        agree: 1 where the value is the user's.
        reliability: u of each prompt, (P), in (0, 1).
    """
    u = reliability[:, None]
    others = (1 - u) / (log_prior.size(-1) - 1)
    return (log_prior + torch.where(agree > 0, u, others).log()).log_softmax(-1)
