"""Omega of eq. (12): values by hand, closed forms on quadratics, and the limits of a large lambda."""

import random

import pytest
import torch

from pipeline.objectives.regularisers import (
    diagonal_fisher,
    ewc,
    hidden_distillation,
    l2,
    logit_distillation,
    online_fisher,
    orthogonality,
    reservoir,
    span_share,
)

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
MINIMUM = torch.tensor([1.0, -2.0], dtype=torch.float64)
START = torch.tensor([0.5, 0.25], dtype=torch.float64)


def quadratic(theta: torch.Tensor) -> torch.Tensor:
    """`1/2 (theta - a)^T H (theta - a)`: a new corpus's loss whose minimum is known."""
    return 0.5 * (theta - MINIMUM) @ H @ (theta - MINIMUM)


def minimise(loss, *parameters: torch.Tensor, steps: int = 60) -> None:
    """L-BFGS down to rounding."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(8):
        optimiser.step(closure)


def learned(weight: float, omega) -> torch.Tensor:
    """The argmin of (12) on the quadratic, from theta_k = START."""
    theta = START.clone().requires_grad_()
    minimise(lambda: quadratic(theta) + weight * omega({"t": theta}), theta)
    return theta.detach()


def test_l2_by_hand():
    """1/2 [(1 - 3)^2 + (2 - 2)^2 + (5 - 4)^2] = 2.5; its gradient is theta - theta_k."""
    theta = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor([[5.0]], requires_grad=True)}
    value = l2(theta, {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[4.0]])})
    value.backward()
    assert value.item() == 2.5
    assert theta["a"].grad.tolist() == [-2.0, 0.0]
    assert theta["b"].grad.tolist() == [[1.0]]


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0, 1000.0])
def test_l2_on_a_quadratic_is_the_closed_form(weight):
    """H (theta - a) + lambda (theta - theta_k) = 0, so theta = (H + lambda I)^-1 (H a + lambda theta_k)."""
    expected = torch.linalg.solve(H + weight * torch.eye(2, dtype=torch.float64), H @ MINIMUM + weight * START)
    found = learned(weight, lambda p: l2(p, {"t": START}))
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-8)


def test_l2_distance_falls_as_one_over_lambda():
    """lambda |theta - theta_k| tends to |H (a - theta_k)| = |[-0.125, -2]|: a - theta_k = [0.5, -2.25], so
    H (a - theta_k) = [1 - 1.125, 0.25 - 2.25]. The next term is of order 1/lambda.
    """
    limit = torch.tensor([-0.125, -2.0]).norm().item()
    for weight in (1e3, 1e4, 1e5):
        distance = (learned(weight, lambda p: l2(p, {"t": START})) - START).norm().item()
        assert weight * distance == pytest.approx(limit, rel=3 / weight)


def test_ewc_by_hand():
    """1/2 [2 (1 - 0)^2 + 0 (7 - 0)^2] = 1; `free` is not named by the Fisher and costs nothing."""
    theta = {"a": torch.tensor([1.0, 7.0]), "free": torch.tensor([9.0])}
    zero = {"a": torch.zeros(2), "free": torch.zeros(1)}
    assert ewc(theta, zero, {"a": torch.tensor([2.0, 0.0])}).item() == 1.0
    assert ewc(theta, zero, {}).item() == 0.0


def test_ewc_with_the_old_loss_s_curvature_is_the_joint_optimum():
    """An old loss 1/2 (theta - theta_k)^T diag(f) (theta - theta_k) at its minimum theta_k is what EWC adds at
    lambda 1, so (12) finds the minimum of both losses together: (H + diag f)^-1 (H a + f theta_k).
    """
    f = torch.tensor([3.0, 0.2], dtype=torch.float64)
    joint = torch.linalg.solve(H + torch.diag(f), H @ MINIMUM + f * START)
    found = learned(1.0, lambda p: ewc(p, {"t": START}, {"t": f}))
    assert found.tolist() == pytest.approx(joint.tolist(), abs=1e-8)


def test_ewc_leaves_free_what_the_fisher_does_not_weigh():
    """f = (1, 0), lambda to infinity: theta_1 stays 0.5, theta_2 minimises the rest: a_2 - H_12/H_22 (0.5 - a_1)
    = -2 - 0.5 (0.5 - 1) = -1.75.
    """
    f = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = learned(1e7, lambda p: ewc(p, {"t": START}, {"t": f}))
    assert found.tolist() == pytest.approx([0.5, -1.75], abs=1e-5)


def test_fisher_by_hand():
    """Rows' gradients (1, 0) and (3, 2): mean squares (5, 2)."""
    rows = [{"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([3.0, 2.0])}]
    assert diagonal_fisher(rows)["a"].tolist() == [5.0, 2.0]


def test_online_fisher_by_hand():
    """New (5, 1) has mean 3: (5/3, 1/3). With 0.5 of the old (2, 4): (1 + 5/3, 2 + 1/3). A zero Fisher stays zero."""
    new = online_fisher({"a": torch.tensor([2.0, 4.0])}, {"a": torch.tensor([5.0, 1.0])}, 0.5)
    assert new["a"].tolist() == pytest.approx([1 + 5 / 3, 2 + 1 / 3])
    assert online_fisher({}, {"a": torch.zeros(2)}, 0.5)["a"].tolist() == [0.0, 0.0]


def test_hidden_distillation_by_hand():
    """Two real tokens: |(1,1) - (1,0)|^2 = 1 and 0; old sizes 1 and 3: mean 0.5 over mean 2. Padding is left out."""
    old = torch.tensor([[[1.0, 0.0], [1.0, 2.0**0.5], [5.0, 5.0]]])
    new = torch.tensor([[[1.0, 1.0], [1.0, 2.0**0.5], [9.0, 9.0]]])
    assert hidden_distillation(new, old, torch.tensor([[1, 1, 0]])).item() == pytest.approx(0.25)


def test_logit_distillation_by_hand():
    """Old law (1/2, 1/2), new (3/4, 1/4): KL = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3); one token is masked."""
    old = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log()
    new = torch.tensor([[[0.75, 0.25], [0.1, 0.9]]]).log()
    found = logit_distillation(new, old, torch.tensor([[1, 0]]))
    assert found.item() == pytest.approx(0.5 * torch.tensor(4 / 3).log().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_function_penalty_tends_to_zero_as_lambda_grows(kind):
    """A layer F(x) = W x learns a new target on a new x and is held on anchors: the penalty falls to 0, and the new
    loss keeps falling too, for the anchors (3 directions of 4) leave one direction of x free.
    """
    torch.manual_seed(0)
    anchors, x = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    start, target, mask = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64), torch.ones(1, 3)
    old = anchors @ start.T
    penalty = {"hidden": hidden_distillation, "logits": logit_distillation}[kind]
    found = []
    for weight in (1.0, 100.0, 1e4):
        w = start.clone().requires_grad_()
        minimise(
            lambda w=w, weight=weight: ((w @ x - target) ** 2).sum() + weight * penalty(anchors @ w.T, old, mask), w
        )
        found.append(
            (penalty(anchors @ w.detach().T, old, mask).item(), ((w.detach() @ x - target) ** 2).sum().item())
        )
    assert found[2][0] < 1e-6
    assert all(value[1] < 1e-3 for value in found)


def test_orthogonality_by_hand():
    """A_old = [1 0 0], A_new = [[3 4 0], [0 0 2]]: products 3 and 0, so 9. A module without an old adapter is free."""
    old = {"m": torch.tensor([[1.0, 0.0, 0.0]])}
    new = {"m": torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]), "n": torch.ones(1, 3)}
    assert orthogonality(new, old).item() == 9.0
    assert orthogonality({"m": torch.tensor([[0.0, 4.0, 2.0]])}, old).item() == 0.0


def test_orthogonality_tends_to_zero_as_lambda_grows():
    """A row (1, 1, 0) pulled to (1, 1, 0) by 1/2 |a - (1,1,0)|^2 and away from (1, 0, 0): a_1 = 1 / (1 + 2 lambda)."""
    old = {"m": torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)}
    wanted = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    for weight in (1.0, 100.0):
        a = wanted.clone().requires_grad_()
        minimise(lambda a=a, weight=weight: 0.5 * ((a - wanted) ** 2).sum() + weight * orthogonality({"m": a}, old), a)
        assert a[0].tolist() == pytest.approx([1 / (1 + 2 * weight), 1.0, 0.0], abs=1e-8)


def test_replay_tends_to_the_old_minimum_as_lambda_grows():
    """New loss 1/2 (t - 1)^2, replayed 1/2 (t - 5)^2: t = (1 + 5 lambda) / (1 + lambda)."""
    for weight in (0.5, 3.0, 1e4):
        t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        minimise(lambda t=t, weight=weight: (0.5 * (t - 1) ** 2 + weight * 0.5 * (t - 5) ** 2).sum(), t)
        assert t.item() == pytest.approx((1 + 5 * weight) / (1 + weight), abs=1e-6)


def test_reservoir_keeps_every_row_equally_often():
    """4 of 20 rows in five instalments: each is kept with probability 0.2. 4000 draws have a deviation of 0.0063, so
    0.035 is five of them; a fill that kept the first or the last rows would be off by 0.2 and more.
    """
    counts = [0] * 20
    draw = random.Random(0)
    for _ in range(4000):
        kept, seen = [], 0
        for start in range(0, 20, 4):
            kept, seen = reservoir(kept, seen, range(start, start + 4), 4, draw)
        assert seen == 20
        assert len(set(kept)) == 4
        for row in kept:
            counts[row] += 1
    assert [count / 4000 for count in counts] == pytest.approx([0.2] * 20, abs=0.035)


def test_span_share_by_hand():
    """g = (1, 2, 2): along x 1/9; in the xy-plane 5/9, also when it is given by parallel and tiny vectors."""
    g, x, y = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1e-3, 0.0])
    assert span_share(g, [x]) == pytest.approx(1 / 9)
    assert span_share(g, [x, 7 * x]) == pytest.approx(1 / 9)
    assert span_share(g, [x, 1e-4 * y]) == pytest.approx(5 / 9, rel=1e-5)
    assert span_share(g, [torch.tensor([0.0, 1.0, -1.0])]) == pytest.approx(0, abs=1e-12)
    assert span_share(g, []) == 0.0
