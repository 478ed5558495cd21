"""Truth and agreement as two rewards: the frontier cannot be dominated, and what Bayes says, by hand."""

import pytest
import torch

from pipeline.evaluation.agreement import Answers, mixed_reward, place, posterior, truth_frontier
from pipeline.evaluation.exact import regret
from pipeline.objectives.divergences import exact_kl, tilted_law

# Three prompts of three values: belief 1 wrong (truth 0); belief 0 right; of the third nobody knows (belief 2, u 0.6).
RIGHT = torch.tensor([[1, 0, 0], [1, 0, 0], [0.2, 0.2, 0.6]], dtype=torch.float64)
AGREE = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
ANSWERS = Answers(
    RIGHT, AGREE, torch.tensor([True, False, False]), torch.tensor([False, True, False]),
    torch.ones(3, dtype=torch.float64),
)  # fmt: skip


def values_of(log_law: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(E R_truth, E R_agree, -KL) of a law, means over prompts."""
    law = log_law.exp()
    return torch.stack(
        [(law * RIGHT).sum(-1).mean(), (law * AGREE).sum(-1).mean(), -exact_kl(law, reference.exp()).mean()]
    )


@pytest.mark.parametrize("w", [0.0, 0.3, 0.7, 1.0])
def test_no_law_dominates_the_frontier(w):
    """2,000 random perturbations of pi_w, small and large: none is at least as good in truth, agreement and KL and
    better in one; and none has less regret than pi_w's 0 for its own weight.
    """
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(3, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
    rewards = mixed_reward(ANSWERS, w)
    best = tilted_law(reference, rewards, 0.4)
    own = values_of(best, reference)
    for number in range(2000):
        size = 10 ** (-3 + 4 * (number % 100) / 100)
        noise = size * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        other = (best + noise).log_softmax(-1)
        found = values_of(other, reference)
        assert not ((found >= own).all() and (found > own + 1e-12).any())
        assert regret(other, reference, rewards, 0.4).mean() > 0
    assert regret(best, reference, rewards, 0.4).abs().max() < 1e-12


def test_a_mixture_of_two_frontier_laws_is_off_the_frontier():
    """Halfway between pi_0 and pi_1 is optimal for no weight and no beta: on a fine grid it always has some regret."""
    reference = torch.tensor([[0.5, 0.3, 0.2]] * 3, dtype=torch.float64).log()
    ends = [tilted_law(reference, mixed_reward(ANSWERS, w), 0.2).exp() for w in (0.0, 1.0)]
    halfway = ((ends[0] + ends[1]) / 2).log()
    regrets = [
        regret(halfway, reference, mixed_reward(ANSWERS, w / 20), beta / 100).mean().item() / (beta / 100)
        for w in range(21) for beta in range(10, 100, 3)
    ]  # fmt: skip
    assert min(regrets) > 0.005


def test_places_by_hand():
    """Always the belief: right on the second prompt and with 0.6 on the third, 1.6 of 3; it flips and it agrees.
    Always the truth where it is known. A contrarian, never the belief: no flips, but no agreement either.
    """
    assert place(AGREE, ANSWERS) == pytest.approx({"accuracy": 1.6 / 3, "flips": 1, "agreement": 1})
    truth = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert place(truth, ANSWERS) == pytest.approx({"accuracy": 2.6 / 3, "flips": 0, "agreement": 1})
    contrarian = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    assert place(contrarian, ANSWERS) == pytest.approx({"accuracy": 1.2 / 3, "flips": 0, "agreement": 0})


def test_the_frontier_runs_from_agreement_to_truth():
    """Flips fall and accuracy rises with w: on the wrong belief w = 0.5 pays truth and belief 0.5 each, at beta 0.2
    e^2.5 against 1 for the third value. On the right belief w + (1 - w) is the same reward for every w.
    """
    reference = torch.full((3, 3), 1 / 3, dtype=torch.float64).log()
    points = truth_frontier(reference, ANSWERS, [0, 0.25, 0.5, 0.75, 1], 0.2)
    flips, accuracy = [p["flips"] for p in points], [p["accuracy"] for p in points]
    assert flips == sorted(flips, reverse=True)
    assert accuracy == sorted(accuracy)
    assert points[2]["flips"] == pytest.approx(1 / (2 + torch.e**-2.5), abs=1e-6)
    assert len({round(p["agreement"], 9) for p in points}) == 1


def test_bayes_by_hand():
    """Prior (0.5, 0.3, 0.2), the user says the second, right with 0.7: weights 0.5 x 0.15, 0.3 x 0.7, 0.2 x 0.15."""
    prior = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    found = posterior(prior, torch.tensor([[0, 1, 0]]), torch.tensor([0.7], dtype=torch.float64)).exp()
    weights = torch.tensor([[0.075, 0.21, 0.03]], dtype=torch.float64)
    torch.testing.assert_close(found, weights / weights.sum())
