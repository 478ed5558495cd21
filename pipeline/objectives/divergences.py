"""How far a law is from another: KL estimators, exact KL, the laws of selection, effective sample size.

`Y` outcomes of a law that can be enumerated, `V` vocabulary. All figures are in nats.
"""

import math

import torch


def kl_k1(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """`log(pi / pi_ref)` at samples of pi: unbiased for KL(pi || pi_ref), of high variance, may be negative."""
    return log_probs - reference_log_probs


def kl_k2(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """`1/2 log(pi / pi_ref)^2`: biased, of low variance; its gradient is unbiased for the KL's."""
    return 0.5 * (log_probs - reference_log_probs) ** 2


def kl_k3(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """`pi_ref / pi - 1 - log(pi_ref / pi)`: unbiased, never negative; its gradient is *not* the KL's."""
    log_ratio = reference_log_probs - log_probs
    return torch.expm1(log_ratio) - log_ratio


def full_kl(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """KL of two next-token laws over the whole vocabulary, (..., V) -> (...): no sampling noise at a given prefix."""
    log_p, log_q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def exact_kl(law: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`sum p log(p / q)` of two laws given by probabilities, (..., Y) -> (...); outcomes with p = 0 count nothing."""
    return (torch.xlogy(law, law) - torch.xlogy(law, reference)).sum(-1)


def total_variation(law: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Half the sum of absolute differences, (..., Y) -> (...)."""
    return 0.5 * (law - reference).abs().sum(-1)


def log_partition(log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """`log Z(x) = log sum_y pi_ref(y|x) exp(R(x, y) / beta)`, (..., Y) -> (...). The optimum is `J* = beta log Z`."""
    return (log_reference + rewards / beta).logsumexp(-1)


def tilted_law(log_reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """Log of `pi*(y|x) = pi_ref(y|x) exp(R(x, y) / beta) / Z(x)`, (..., Y) -> (..., Y): the optimum."""
    return (log_reference + rewards / beta).log_softmax(-1)


def effective_sample_size(log_weights: torch.Tensor) -> torch.Tensor:
    """`(sum w)^2 / sum w^2`, (..., N) -> (...): how many equal weights these are worth, from 1 to N (Kish, 1965)."""
    return torch.exp(2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1))


def best_of_n_law(law: torch.Tensor, rewards: torch.Tensor, count: float) -> torch.Tensor:
    """Exact law of the best of `count` independent draws, (Y,) -> (Y,); the first of several best is taken.

    With F the distribution function of the reward, a level of mass p gets `F(level)^N - F(below)^N`, shared among its
    outcomes as in the law itself. `count` need not be whole: the formula bridges the whole numbers.
    """
    levels, level = rewards.unique(return_inverse=True)
    mass = law.new_zeros(len(levels)).index_add_(0, level, law)
    upto = mass.cumsum(0)
    selected = upto**count - (upto - mass).clamp(min=0) ** count
    return law * (selected / mass.clamp(min=torch.finfo(law.dtype).tiny))[level]


def best_of_n_kl(law: torch.Tensor, rewards: torch.Tensor, count: int) -> torch.Tensor:
    """Exact `KL(best of N || law)`, ties counted: never above `best_of_n_bound(count)`."""
    return exact_kl(best_of_n_law(law, rewards, count), law)


def best_of_candidates(
    rewards: torch.Tensor,  # (N,) of candidates drawn from a law, which they stand for
    count: float,
    other: torch.Tensor | None = None,  # (N,) another reward of the same candidates
) -> tuple[torch.Tensor, torch.Tensor]:  # (), ()
    """Of the best of `count` draws from candidates: the exact KL to their law, and the mean reward (or `other`)."""
    even = torch.full_like(rewards, 1 / len(rewards))
    law = best_of_n_law(even, rewards, count)
    return exact_kl(law, even), (law * (rewards if other is None else other)).sum()


def best_of_n_bound(count: int, rounds: int = 1) -> float:
    """`log M - (M - 1) / M` with `M = count ** rounds`: the KL of the best of M untied draws, the most it can be.

    Selecting the best of N in K rounds, each from the law selected before, is selecting the best of N^K.
    """
    total = float(count) ** rounds
    return math.log(total) - (total - 1) / total


def softmax_selection_law(law: torch.Tensor, rewards: torch.Tensor, count: int, tau: float) -> torch.Tensor:
    """Exact law of drawing one of `count` samples with weights `exp(R / tau)`, (Y,) -> (Y,) in float64.

    It is `N p(y) w(y) E[1 / (w(y) + S)]`, S the weight of the N-1 others; with `1/a = int exp(-a t) dt` the
    expectation is an integral over t of `exp(-w(y) t) E[exp(-w t)]^(N-1)`, taken by the trapezoidal rule in log t,
    where it converges geometrically. As N grows the law tends to `tilted_law`; best-of-N tends to the argmax.
    """
    law, rewards = law.double(), rewards.double()
    weights = torch.exp((rewards - rewards.max()) / tau).clamp(min=1e-12)
    log_t = torch.linspace(-40.0, math.log(50.0 / float(weights.min())), 4000, dtype=torch.float64)
    t = log_t.exp()
    decay = torch.exp(-t[:, None] * weights)  # (points, Y)
    others = (decay @ law) ** (count - 1)
    expectation = torch.trapezoid(decay * (others * t)[:, None], log_t, dim=0)
    selected = count * law * weights * expectation
    return selected / selected.sum()  # the rule's error, below 1e-9
