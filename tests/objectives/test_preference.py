"""Losses on comparisons, against values worked by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.objectives.preference import (
    MAX_TIED,
    binary_reward_loss,
    bradley_terry_loss,
    dpo_loss,
    plackett_luce_loss,
)

WEIGHTS_321 = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64).log()


def test_bradley_terry_by_hand():
    """R+ - R- = 1: log(1 + 1/e) = 0.313262. With a margin of 1 the difference is 0: log 2."""
    loss = bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.5]))
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert bradley_terry_loss(torch.tensor([1.5]), torch.tensor([0.5]), 1.0).item() == pytest.approx(math.log(2))


def test_dpo_by_hand():
    """Log-ratios: chosen -1 - (-1.5) = 0.5, rejected -2 - (-1.2) = -0.8; at beta 0.1: log(1 + e^-0.13) = 0.630258."""
    loss = dpo_loss(*(torch.tensor([x]) for x in (-1.0, -2.0, -1.5, -1.2)), beta=0.1)
    assert loss.item() == pytest.approx(0.630258, abs=1e-6)


def test_dpo_gradient_by_hand():
    """At equal log-ratios the gradient to log pi(y+) is -beta sigma(0) = -beta / 2, to log pi(y-) its opposite."""
    chosen, rejected = (torch.tensor([-3.0], requires_grad=True) for _ in range(2))
    dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-3.0]), beta=0.4).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.2)
    assert rejected.grad.item() == pytest.approx(0.2)


def test_plackett_luce_by_hand():
    """Weights 3, 2, 1 in that order: 3/6 * 2/3 * 1/1 = 1/3. In the opposite order: 1/6 * 2/5 * 1 = 1/15."""
    assert plackett_luce_loss(WEIGHTS_321).item() == pytest.approx(math.log(3))
    assert plackett_luce_loss(WEIGHTS_321.flip(1)).item() == pytest.approx(math.log(15))


@pytest.mark.parametrize(
    ("ranks", "probability"),
    [
        ([1, 1, 2], 3 / 6 * 2 / 3 + 2 / 6 * 3 / 4),  # both orders of the first two: 1/3 + 1/4 = 7/12
        ([1, 2, 2], 3 / 6),  # the last two in any order
        ([2, 1, 1], (2 / 6) * (1 / 4) + (1 / 6) * (2 / 5)),  # weights 2 and 1 before 3
        ([5, 5, 5], 1.0),  # a tie of all says nothing
        ([3, 2, 1], 1 / 15),  # ranks, not positions, decide the order
    ],
)
def test_plackett_luce_ties_by_hand(ranks, probability):
    """A tied block's likelihood is the sum over its orders; the factors stand beside each case."""
    loss = plackett_luce_loss(WEIGHTS_321, ranks=torch.tensor([ranks]))
    assert loss.item() == pytest.approx(-math.log(probability), abs=1e-12)


def test_two_items_are_bradley_terry_with_its_gradient():
    """P(first) = exp(a) / (exp(a) + exp(b)) = sigma(a - b)."""
    scores = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    plackett_luce_loss(a).sum().backward()
    bradley_terry_loss(b[:, 0], b[:, 1]).sum().backward()
    torch.testing.assert_close(plackett_luce_loss(a), bradley_terry_loss(b[:, 0], b[:, 1]))
    torch.testing.assert_close(a.grad, b.grad)


def test_padding_changes_neither_loss_nor_gradient():
    """The row of three, padded to five with absurd scores, is worth what it is alone; the padding gets no gradient."""
    padded = torch.cat([WEIGHTS_321, torch.tensor([[50.0, -50.0]])], 1).requires_grad_()
    mask = torch.tensor([[True, True, True, False, False]])
    for ranks in (None, torch.tensor([[1, 2, 3, 0, 0]])):
        loss = plackett_luce_loss(padded, mask, ranks)
        assert loss.item() == pytest.approx(math.log(3))
        (gradient,) = torch.autograd.grad(loss.sum(), padded)
        assert gradient[0, 3:].tolist() == [0.0, 0.0]
        # to the last item: -1 + 1/6 + 1/3 + 1 = 1/2 of a draw more than it won
        assert gradient[0, 2].item() == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=2, max_size=5), st.data())
def test_ties_equal_the_sum_over_all_orders(scores, data):
    """Against brute force: sum the strict likelihoods of every permutation that respects the ranks."""
    ranks = data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores)))
    row = torch.tensor(scores, dtype=torch.float64)
    permutations = itertools.permutations(range(len(scores)))
    orders = [p for p in permutations if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(p))]
    total = sum(math.exp(-plackett_luce_loss(row[list(order)][None]).item()) for order in orders)
    loss = plackett_luce_loss(row[None], ranks=torch.tensor([ranks])).item()
    assert math.exp(-loss) == pytest.approx(total, rel=1e-9)


def test_too_many_ties_are_refused():
    """2^13 terms a row would stall training: the caller is told the limit."""
    ranks = torch.tensor([[0] * (MAX_TIED + 1) + [1]])
    with pytest.raises(ValueError, match="13 items are tied, more than the 12"):
        plackett_luce_loss(torch.zeros(1, MAX_TIED + 2), ranks=ranks)


@pytest.mark.parametrize("last", [1, 13, 40])
def test_any_number_may_be_tied_last(last):
    """The last block takes what is left, in any order, with probability one: weight 3 before ``last`` of weight 1 is
    3 / (3 + last), whatever MAX_TIED is, and its gradient is finite.
    """
    scores = torch.tensor([[3.0] + [1.0] * last], dtype=torch.float64).log().requires_grad_()
    loss = plackett_luce_loss(scores, ranks=torch.tensor([[1] + [2] * last]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-math.log(3 / (3 + last)))
    assert scores.grad[0, 0].item() == pytest.approx(3 / (3 + last) - 1)


def test_binary_reward_by_hand():
    """R = log 3 is P(good) = 3/4: a good answer costs log 4/3, a bad one log 4. The expected loss of an answer that is
    good with probability 3/4 has gradient 0 at that R.
    """
    score = torch.tensor([math.log(3)] * 2, dtype=torch.float64, requires_grad=True)
    losses = binary_reward_loss(score, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])
    (0.75 * losses[0] + 0.25 * losses[1]).backward()
    assert score.grad.sum().item() == pytest.approx(0)
