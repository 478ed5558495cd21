"""Divergences and the laws of selection, against values worked by hand and exact enumeration."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.divergences import (
    best_of_candidates,
    best_of_n_bound,
    best_of_n_kl,
    best_of_n_law,
    effective_sample_size,
    exact_kl,
    full_kl,
    kl_k1,
    kl_k2,
    kl_k3,
    log_partition,
    softmax_selection_law,
    tilted_law,
    total_variation,
)

P = torch.tensor([0.5, 0.5], dtype=torch.float64)
Q = torch.tensor([0.25, 0.75], dtype=torch.float64)
KL_PQ = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # 0.143841


def test_estimators_by_hand():
    """log pi - log pi_ref = log 2: k1 = 0.693147, k2 = 0.240227, k3 = 1/2 - 1 + log 2 = 0.193147."""
    log_p, log_q = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert kl_k1(log_p, log_q).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_k2(log_p, log_q).item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_k3(log_p, log_q).item() == pytest.approx(0.193147, abs=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """Their expectations under P, taken exactly: k1 and k3 give KL = 0.143841; k2 gives (0.240227 + 0.082201) / 2."""
    expectation = [float((P * estimator(P.log(), Q.log())).sum()) for estimator in (kl_k1, kl_k2, kl_k3)]
    assert expectation[0] == pytest.approx(KL_PQ)
    assert expectation[2] == pytest.approx(KL_PQ)
    assert expectation[1] == pytest.approx((math.log(2) ** 2 + math.log(2 / 3) ** 2) / 4)


def test_gradients_of_the_estimators_differ():
    """Mean gradient to the logit of a two-way softmax at P = (1/2, 1/2) against Q.

    The KL's is p1 p2 (log(p1/q1) - log(p2/q2)) = log(3) / 4 = 0.274653, which k2 has. k1's is E[grad log pi] = 0.
    k3's is that of the other KL, KL(Q || P): p1 - q1 = 1/4.
    """

    def mean_gradient(estimator):
        logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        (P * estimator(logits.log_softmax(0), Q.log())).sum().backward()
        return logits.grad[0].item()

    assert mean_gradient(kl_k1) == pytest.approx(0.0, abs=1e-12)
    assert mean_gradient(kl_k2) == pytest.approx(math.log(3) / 4)
    assert mean_gradient(kl_k3) == pytest.approx(0.25)


def test_exact_divergences_by_hand():
    """KL(P || Q) = 0.143841 from probabilities and from logits; total variation 1/4; an impossible outcome is 0."""
    assert exact_kl(P, Q).item() == pytest.approx(KL_PQ)
    assert full_kl(P.log() + 3.0, Q.log() - 1.0).item() == pytest.approx(KL_PQ)
    assert total_variation(P, Q).item() == pytest.approx(0.25)
    assert exact_kl(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])).item() == pytest.approx(math.log(2))


def test_tilted_law_by_hand():
    """pi_ref = (1/2, 1/2), R = (log 3, 0), beta 1: pi* = (3/4, 1/4), Z = 2. At beta 1/2: weights 9 : 1, Z = 5."""
    log_ref, rewards = P.log(), torch.tensor([math.log(3), 0.0], dtype=torch.float64)
    assert tilted_law(log_ref, rewards, 1.0).exp().tolist() == pytest.approx([0.75, 0.25])
    assert tilted_law(log_ref, rewards, 0.5).exp().tolist() == pytest.approx([0.9, 0.1])
    assert log_partition(log_ref, rewards, 1.0).item() == pytest.approx(math.log(2))
    assert log_partition(log_ref, rewards, 0.5).item() == pytest.approx(math.log(5))


def test_effective_sample_size_by_hand():
    """Equal weights: 4. Weights 3, 1: 16 / 10. One weight alone: 1. A common factor changes nothing."""
    assert effective_sample_size(torch.full((4,), 7.0)).item() == pytest.approx(4.0)
    assert effective_sample_size(torch.tensor([math.log(3), 0.0])).item() == pytest.approx(1.6)
    assert effective_sample_size(torch.tensor([0.0, -100.0, -100.0])).item() == pytest.approx(1.0)


def test_best_of_two_by_hand():
    """Three outcomes, (1/2, 1/4, 1/4), rewards 0, 1, 2: the best of two is 0 with 1/4, 1 with 9/16 - 1/4 = 5/16,
    2 with 7/16. With the last two tied they share the 3/4 equally.
    """
    law = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert best_of_n_law(law, torch.tensor([0.0, 1.0, 2.0]), 2).tolist() == pytest.approx([1 / 4, 5 / 16, 7 / 16])
    assert best_of_n_law(law, torch.tensor([0.0, 1.0, 1.0]), 2).tolist() == pytest.approx([1 / 4, 3 / 8, 3 / 8])
    # KL of the tied law: 1/4 log(1/2) + 3/4 log(3/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert best_of_n_kl(law, torch.tensor([0.0, 1.0, 1.0]), 2).item() == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_best_of_n_stays_below_its_bound(count):
    """On 200 random outcomes with ties; without ties and with many outcomes the bound is nearly met."""
    generator = torch.Generator().manual_seed(count)
    law = torch.rand(200, generator=generator, dtype=torch.float64).softmax(0)
    tied = torch.randint(0, 5, (200,), generator=generator).double()
    assert 0 < best_of_n_kl(law, tied, count).item() < best_of_n_bound(count)
    fine = torch.full((20000,), 1 / 20000, dtype=torch.float64)
    kl = best_of_n_kl(fine, torch.arange(20000.0), count).item()
    assert best_of_n_bound(count) * 0.98 < kl < best_of_n_bound(count)


def test_the_bound_by_hand_and_over_rounds():
    """log 4 - 3/4 = 0.636294; two rounds of the best of 2 are the best of 4, in the bound and in the law."""
    assert best_of_n_bound(4) == pytest.approx(0.636294, abs=1e-6)
    assert best_of_n_bound(2, rounds=2) == best_of_n_bound(4)
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rewards = torch.tensor([3.0, 1.0, 1.0, 0.0])
    twice = best_of_n_law(best_of_n_law(law, rewards, 2), rewards, 2)
    torch.testing.assert_close(twice, best_of_n_law(law, rewards, 4))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4),
    st.integers(1, 4),
    st.sampled_from([0.25, 1.0, 3.0]),
)
def test_softmax_selection_law_equals_enumeration(masses, count, tau):
    """Against the sum over all sequences of `count` draws, each giving its members their share of the weight."""
    law = torch.tensor(masses, dtype=torch.float64)
    law = law / law.sum()
    rewards = torch.arange(len(masses)).double() / 2
    weights = (rewards / tau).exp()
    expected = torch.zeros_like(law)
    for draws in itertools.product(range(len(masses)), repeat=count):
        probability = math.prod(float(law[i]) for i in draws)
        total = sum(float(weights[i]) for i in draws)
        for i in draws:
            expected[i] += probability * float(weights[i]) / total
    torch.testing.assert_close(softmax_selection_law(law, rewards, count, tau), expected, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("spread", [1.0, 27.6, 100.0, 3000.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_softmax_selection_of_a_wide_range_of_rewards(spread, count):
    """Rewards 0, 0.4 and 1 times ``spread``, tau 1, against enumeration in logs: to 1e-12 for any spread."""
    law = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    rewards = spread * torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for draws in itertools.product(range(3), repeat=count):
        probability = math.prod(float(law[i]) for i in draws)
        for i, share in zip(draws, rewards[list(draws)].softmax(0)):
            expected[i] += probability * share
    torch.testing.assert_close(softmax_selection_law(law, rewards, count, 1.0), expected, atol=1e-12, rtol=0)


def test_an_impossible_outcome_is_never_selected():
    """Masses 1/2, 0, 1/2 with rewards 0, 1, 2: the middle level has no mass, which is 0 / 0 unless it is kept apart.
    Best of two: 1/4, 0, 3/4; its KL counts nothing for what cannot happen; a count of 1.5 bridges: 0.5^1.5 = 0.353553.
    """
    law, rewards = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0])
    assert best_of_n_law(law, rewards, 2).tolist() == pytest.approx([0.25, 0.0, 0.75])
    assert best_of_n_law(law, rewards, 1.5).tolist() == pytest.approx([0.353553, 0.0, 0.646447], abs=1e-6)
    assert best_of_n_kl(law, rewards, 2).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert softmax_selection_law(law, rewards, 3, 1.0)[1].item() == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_best_of_candidates_is_the_mean_over_all_subsets(count):
    """Five candidates, two of them tied, against the list of all their subsets: of tied bests each is selected equally
    often, which the other reward shows. One of one is the plain mean; of a count above five the best of all five.
    """
    rewards = torch.tensor([2.0, 0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    other = torch.tensor([1.0, 5.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    bests, others = [], []
    for subset in itertools.combinations(range(5), count):
        best = max(rewards[i] for i in subset)
        tied = [i for i in subset if rewards[i] == best]
        bests.append(float(best))
        others.append(sum(float(other[i]) for i in tied) / len(tied))
    assert best_of_candidates(rewards, count)[1].item() == pytest.approx(sum(bests) / len(bests))
    assert best_of_candidates(rewards, count, other)[1].item() == pytest.approx(sum(others) / len(others))
    assert best_of_candidates(rewards, 9, other)[1].item() == pytest.approx(2.5)
    assert best_of_candidates(rewards, 9)[1].item() == 2.0


def test_the_best_of_candidates_is_unbiased():
    """Three candidates from a law of three outcomes, all 27 draws weighed: the mean estimate of the best of two is the
    best of two's reward under the law itself, 1/4 0 + 5/16 1 + 7/16 4 = 33/16; with replacement it would be less.
    """
    law = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    expected = with_replacement = 0.0
    for draws in itertools.product(range(3), repeat=3):
        probability = math.prod(float(law[i]) for i in draws)
        drawn = rewards[list(draws)]
        expected += probability * best_of_candidates(drawn, 2)[1].item()
        even = torch.full_like(drawn, 1 / 3)
        with_replacement += probability * float((best_of_n_law(even, drawn, 2) * drawn).sum())
    assert expected == pytest.approx(33 / 16)
    assert with_replacement < 33 / 16 - 0.1


def test_the_best_of_candidates_between_the_whole_numbers():
    """Monotone in the count, and between its neighbours: 1, 1.5, 2, 2.5, …, 6 of six candidates."""
    rewards = torch.tensor([0.0, 1.0, 3.0, 7.0, 8.0, 20.0], dtype=torch.float64)
    means = [best_of_candidates(rewards, 1 + k / 2)[1].item() for k in range(11)]
    assert means == sorted(means)
    assert (means[0], means[-1]) == (pytest.approx(39 / 6), pytest.approx(20.0))
