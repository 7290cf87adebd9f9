from __future__ import annotations

import math

import ot
import pytest
import torch
from oracles import (
    assert_class_constant,
    assert_same,
    assert_same_gradient,
    assert_slopes,
    finite_differences,
    simplex_directions,
)
from transport_problems import (
    SHAPES,
    block_flow,
    random_problem,
    seeded,
    two_blocks,
    uniform,
)

from sk_otreweight import POTSolver, SinkhornSolver, sinkhorn, transport_cost
from sk_otreweight.transport import TransportPlan, transport_gradient

EXACT = SinkhornSolver(max_iter=5000, tol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (6, 1), (1, 4)])
def test_gradient_of_a_forced_plan(shape):
    C, a, b = random_problem(*shape)
    grad_a, grad_b, grad_C = transport_gradient(C, sinkhorn(C, a, b), 0.1)
    assert_same(grad_C, a[:, None] * b, atol=1e-12)  # the plan cannot change
    if shape[1] == 1:
        assert_same(grad_a, (C - C.mean(0))[:, 0], atol=1e-12)
    if shape[0] == 1:
        assert_same(grad_b, (C.T - C.mean(1))[:, 0], atol=1e-12)


# --- the gradient ---------------------------------------------------------------------


def gradients(C, a, b, reg, solver=EXACT, weight=None):
    leaves = [x.detach().clone().requires_grad_() for x in (C, a, b)]
    cost = transport_cost(*leaves, reg, solver=solver)
    weight = torch.ones_like(cost) if weight is None else weight
    return torch.autograd.grad((weight * cost).sum(), leaves)


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_agree_with_finite_differences(shape, reg):
    problem = random_problem(*shape)
    weight = torch.rand(shape[:-2], generator=seeded(1), dtype=torch.float64) + 0.5
    found = gradients(*problem, reg, weight=weight)
    generator = seeded(2)
    for place, (x, gradient) in enumerate(zip(problem, found, strict=True)):
        if place == 0:
            directions = torch.randn(12, *shape, generator=generator).double()
        else:
            basis = simplex_directions(x.shape[-1])
            mixed = torch.randn(10, *x.shape[:-1], len(basis), generator=generator)
            directions = mixed.double() @ basis

        def cost(moved, place=place):
            arguments = list(problem)
            arguments[place] = moved
            return (weight * transport_cost(*arguments, reg, solver=EXACT)).sum()

        slopes = finite_differences(cost, x, directions, 2e-5 if reg < 0.1 else 2e-4)
        assert_slopes(gradient, slopes, directions, rtol=1e-6)


def pot_gradients(C, a, b, reg, grad="autodiff"):
    leaves = [x.clone().requires_grad_() for x in (C, a, b)]
    result = ot.solve(
        *leaves, reg=reg, reg_type="entropy", grad=grad, max_iter=20_000, tol=1e-14
    )
    return torch.autograd.grad(result.value_linear, leaves)


@pytest.mark.parametrize("reg", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_gradients_agree_with_unrolled_pot(shape, reg):
    problem = random_problem(*shape)
    grad_C, grad_a, grad_b = gradients(*problem, reg)
    pot_C, pot_a, pot_b = pot_gradients(*problem, reg)
    assert_same_gradient(grad_C, pot_C, rtol=1e-6)
    assert_same_gradient(grad_a, pot_a, rtol=1e-6, up_to_constant=True)
    assert_same_gradient(grad_b, pot_b, rtol=1e-6, up_to_constant=True)


@pytest.mark.parametrize("grad", ["last_step", "envelope"])
def test_gradients_are_not_the_approximate_ones_of_pot(grad):
    problem = random_problem(9, 4)
    if grad == "envelope":  # the gradient of the value with the entropy
        leaf = problem[1].clone().requires_grad_()
        value = ot.solve(
            problem[0], leaf, problem[2], reg=0.1, reg_type="entropy", grad=grad,
            tol=1e-12,
        ).value  # fmt: skip
        (approximate,) = torch.autograd.grad(value, leaf)
    else:
        approximate = pot_gradients(*problem, 0.1, grad)[1]
    _, grad_a, _ = gradients(*problem, 0.1)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same_gradient(approximate, grad_a, rtol=1e-2, up_to_constant=True)


def test_gradients_have_mean_zero_and_the_dtype_of_the_input():
    problem = random_problem(2, 9, 4)
    exact = gradients(*problem, 0.1)
    found = gradients(*(x.float() for x in problem), 0.1, solver=None)
    for gradient, expected in zip(found, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert_same_gradient(gradient, expected, rtol=1e-4)
    for gradient in exact[1:]:
        assert gradient.mean(-1).abs().max() < 1e-15


def test_gradient_of_a_marginal_shared_by_the_batch_is_the_sum():
    C, a, b = random_problem(3, 6, 4)
    _, grad_a, grad_b = gradients(C, a[0], b[0], 0.1)
    parts = [gradients(C[i], a[0], b[0], 0.1) for i in range(3)]
    assert_same_gradient(grad_a, sum(part[1] for part in parts), rtol=1e-9)
    assert_same_gradient(grad_b, sum(part[2] for part in parts), rtol=1e-9)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_gradient_of_a_row_without_mass_is_the_limit(shape):
    """What the first bit of mass there would cost."""
    C, a, b = random_problem(*shape)

    def grad_a(mass):
        moved = a.clone()
        moved[0] = 0
        moved = moved / moved.sum() * (1 - mass)
        moved[0] = mass
        return gradients(C, moved, b, 0.1)[1]

    assert_same_gradient(grad_a(0.0), grad_a(1e-9), rtol=1e-6)
    assert abs(grad_a(0.0)[0]) > 1e-3


def test_the_chain_rule_reaches_the_features():
    z, z_meta = (torch.rand(k, 3, generator=seeded(k)).double() for k in (6, 4))
    z.requires_grad_()
    a, b = uniform(6), uniform(4)

    def cost(points):
        C = torch.cdist(points, z_meta).square()
        return transport_cost(C, a, b, 0.2, solver=EXACT)

    (gradient,) = torch.autograd.grad(cost(z), z)
    directions = torch.eye(18).double().reshape(18, 6, 3)
    slopes = finite_differences(cost, z.detach(), directions, 1e-4)
    assert_slopes(gradient, slopes, directions, rtol=1e-6)


def test_only_what_asks_for_a_gradient_gets_one():
    C, a, b = random_problem(6, 4)
    a.requires_grad_()
    transport_cost(C, a, b).backward()
    assert C.grad is None
    assert b.grad is None
    assert not transport_cost(C, a.detach(), b).requires_grad


def test_a_second_derivative_is_not_to_be_had():
    C, a, b = random_problem(6, 4)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(transport_cost(C, a, b), a, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("solver", [SinkhornSolver(), POTSolver(tol=1e-13)])
def test_any_solver_serves_the_cost(solver):
    problem = random_problem(2, 9, 4)
    for gradient, expected in zip(
        gradients(*problem, 0.1, solver=solver),
        gradients(*problem, 0.1),
        strict=True,
    ):
        assert_same_gradient(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("surplus", [1e-3, -1e-3, 1e-2, -0.2])
@pytest.mark.parametrize("solver", [None, EXACT], ids=["default", "exact"])
def test_gradient_between_almost_separate_classes(solver, surplus):
    C, a, b, labels = two_blocks(surplus)
    grad_C, grad_a, _ = gradients(C, a, b, 0.1, solver=solver)
    x, slope = block_flow(surplus, 2.0, 0.1)
    expected = 2.0 * (2 * slope - 1)
    assert abs(expected) == pytest.approx(2.0, abs=1e-9)  # the difference of the costs
    assert_class_constant(grad_a + 5, labels, rtol=1e-9)
    assert (grad_a[0] - grad_a[-1]).item() == pytest.approx(expected, rel=1e-5)
    # What crosses has no choice, so only its cost counts.
    assert grad_C[labels == 0, 1].sum().item() == pytest.approx(x, abs=2e-6)


@pytest.mark.parametrize("cost", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("surplus", [0.0, 1e-3, 0.1])
def test_gradient_of_two_classes_has_a_closed_form(cost, surplus):
    C, a, b, _ = two_blocks(surplus, cost=cost)
    _, grad_a, _ = gradients(C, a, b, 0.1)
    _, slope = block_flow(surplus, cost, 0.1)
    expected = cost * (2 * slope - 1)
    assert (grad_a[0] - grad_a[-1]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("surplus", [3e-10, -3e-10, 1e-9, 1e-8, 1e-6])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 2)])
def test_gradient_while_classes_exchange_next_to_nothing(sizes, surplus):
    """A billionth of the mass flows; the solution is exact, put together by hand."""
    C, a, b, labels = two_blocks(surplus, sizes)
    x, slope = block_flow(surplus, 2.0, 0.1)
    assert x < 2e-6
    ratio = x / (0.5 + surplus - x) * math.exp(20)  # exp of (g_2 - g_1) / reg
    g = torch.tensor([0.0, 0.1 * math.log(ratio)], dtype=torch.float64)
    plan = a[:, None] * torch.softmax((g - C) / 0.1, -1)
    assert_same(plan.sum(0), b, atol=1e-15)
    f = 0.1 * (a.log() - torch.logsumexp((g - C) / 0.1, -1))
    rest = {"n_iter": 1, "converged": True, "marginal_error": torch.zeros(())}
    solution = TransportPlan.of(C, a, plan / a[:, None], f=f, g=g, **rest)
    grad_a, _, _ = transport_gradient(C, solution, 0.1)
    expected = 2.0 * (2 * slope - 1)
    assert 0.1 < abs(expected) <= 2.0
    assert (grad_a[0] - grad_a[-1]).item() == pytest.approx(expected, rel=1e-4)
