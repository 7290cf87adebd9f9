"""Each oracle accepts what is right and rejects what is slightly wrong."""

from __future__ import annotations

import ot
import pytest
import torch
from oracles import (
    assert_class_constant,
    assert_global_rng_untouched,
    assert_same,
    assert_same_gradient,
    assert_slopes,
    assert_transports,
    entropic_objective,
    finite_differences,
    naive_sinkhorn,
    simplex_directions,
    unrolled_cost,
)

REG = 0.2


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    C = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    a = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    return C, a / a.sum(), torch.full((4,), 0.25, dtype=torch.float64)


def gradients(C, a, b, cost):
    leaves = [x.clone().requires_grad_() for x in (C, a, b)]
    return torch.autograd.grad(cost(*leaves), leaves)


@pytest.fixture(scope="module")
def right(problem):
    return gradients(*problem, lambda C, a, b: unrolled_cost(C, a, b, REG, 400))


@pytest.fixture(scope="module")
def truncated(problem):
    """Differentiates the last sweep only: plausible, fast and wrong."""

    def cost(C, a, b):
        return ot.solve(
            C, a, b, reg=REG, reg_type="entropy", tol=1e-13, max_iter=5000,
            grad="last_step",
        ).value_linear  # fmt: skip

    return gradients(*problem, cost)


def flip_one_sign(gradient):
    wrong = gradient.clone()
    worst = wrong.abs().argmin()
    wrong.view(-1)[worst] *= -1
    return wrong


def slopes_of(problem, place):
    x = problem[place]
    if place == 0:
        directions = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    else:
        directions = simplex_directions(len(x))

    def cost(moved):
        arguments = list(problem)
        arguments[place] = moved
        return unrolled_cost(*arguments, REG, 400)

    return finite_differences(cost, x, directions, 1e-4), directions


@pytest.mark.parametrize("place", [0, 1, 2], ids=["C", "a", "b"])
def test_finite_differences_accept_the_right_gradient_only(
    problem, right, truncated, place
):
    slopes, directions = slopes_of(problem, place)
    assert_slopes(right[place], slopes, directions, rtol=1e-9)
    for wrong in (
        flip_one_sign(right[place]),
        truncated[place],
        right[place] * (1 + 1e-5),
        torch.full_like(right[place], torch.nan),
    ):
        with pytest.raises(AssertionError, match="a slope is off"):
            assert_slopes(wrong, slopes, directions, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["C", "a", "b"])
def test_gradient_comparison_accepts_the_right_gradient_only(right, truncated, place):
    gradient, on_simplex = right[place], place > 0
    shifted = gradient + 1.0
    assert_same_gradient(gradient, gradient, rtol=1e-12)
    assert_same_gradient(shifted, gradient, rtol=1e-12, up_to_constant=True)
    wrongs = [flip_one_sign(gradient), truncated[place], gradient * (1 + 1e-5)]
    for wrong in wrongs:
        with pytest.raises(AssertionError, match="an entry is off"):
            assert_same_gradient(wrong, gradient, rtol=1e-6, up_to_constant=on_simplex)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same_gradient(shifted, gradient, rtol=1e-6)


def test_finite_differences_are_of_fourth_order():
    x = torch.tensor([0.3, 0.7], dtype=torch.float64)
    directions = torch.eye(2, dtype=torch.float64)
    errors = [
        (finite_differences(lambda x: x.exp().sum(), x, directions, step) - x.exp())
        .abs()
        .max()
        for step in (0.1, 0.05)
    ]
    assert 15 < errors[0] / errors[1] < 17


def test_finite_differences_refuse_single_precision():
    with pytest.raises(AssertionError):
        finite_differences(torch.sum, torch.ones(2), torch.eye(2), 1e-3)


def test_simplex_directions_span_what_keeps_the_mass():
    directions = simplex_directions(5)
    assert directions.sum(1).tolist() == [0.0] * 4
    assert torch.linalg.matrix_rank(directions) == 4


def test_plan_comparison_can_fail(problem):
    plan, _, _ = naive_sinkhorn(*problem, REG, 400)
    assert_same(plan, plan.clone(), atol=0.0)
    wrong = plan.clone()
    wrong[0, 0] += 2e-8
    too_few_sweeps, _, _ = naive_sinkhorn(*problem, REG, 2)
    for other in (wrong, too_few_sweeps, plan * torch.nan):
        with pytest.raises(AssertionError, match="an entry is off"):
            assert_same(other, plan, atol=1e-8)
    with pytest.raises(AssertionError):
        assert_same(plan.T, plan, atol=1.0)
    with pytest.raises(AssertionError):
        assert_same(plan[:1], plan, atol=1.0)


def test_marginal_check_can_fail(problem):
    C, a, b = problem
    plan, _, _ = naive_sinkhorn(C, a, b, REG, 400)
    assert_transports(plan, a, b, atol=1e-12)
    unfinished, _, _ = naive_sinkhorn(C, a, b, REG, 1)  # right rows, wrong columns
    negative = plan.clone()
    negative[:2, :2] += torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    for wrong in (unfinished, negative, plan * torch.nan):
        with pytest.raises(AssertionError):
            assert_transports(wrong, a, b, atol=1e-6)
    with pytest.raises(AssertionError, match="a marginal is off"):
        assert_transports(plan, a.flip(0), b, atol=1e-6)


def test_entropic_objective_is_least_at_the_plan(problem):
    C, a, b = problem
    plan, _, _ = naive_sinkhorn(C, a, b, REG, 400)
    least = entropic_objective(C, plan, REG)
    circulation = torch.zeros_like(plan)
    circulation[:2, :2] = 1e-3 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    for sign in (1, -1):
        assert entropic_objective(C, plan + sign * circulation, REG) > least
    assert entropic_objective(C, a[:, None] * b, REG) > least


def test_class_constant_check_can_fail():
    labels = torch.tensor([0, 0, 1, 1])
    assert_class_constant(torch.tensor([1.0, 1.0, 2.0, 2.0]), labels, rtol=1e-6)
    with pytest.raises(AssertionError, match="class 1"):
        assert_class_constant(torch.tensor([1.0, 1.0, 2.0, 2.1]), labels, rtol=1e-6)


def test_generator_check_can_fail():
    assert_global_rng_untouched(lambda: torch.rand(2, generator=torch.Generator()))
    with pytest.raises(AssertionError):
        assert_global_rng_untouched(lambda: torch.rand(2))
