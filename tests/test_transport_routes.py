from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    assert_same,
    assert_same_gradient,
    assert_transports,
    naive_sinkhorn,
    unrolled_cost,
)
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transport_problems import (
    block_flow,
    random_mass,
    random_problem,
    seeded,
    two_blocks,
    uniform,
)

from sk_otreweight import (
    POTSolver,
    SinkhornSolver,
    sinkhorn,
    transport_cost,
    transport_value_and_grad,
)
from sk_otreweight.transport import transport_gradient
from sk_otreweight.transport.domains import Domain, KernelDomain, LogDomain

REG = 0.1
EXACT = SinkhornSolver(max_iter=5000, tol=1e-12)


# --- the routes -----------------------------------------------------------------------


def always(C):
    return True


def never(C):
    return False


TRANSPORT = "sk_otreweight.transport."
ON_ARRAYS = {TRANSPORT + "problem.is_small": always}
ON_TENSORS = {TRANSPORT + "problem.is_small": never}
IN_CHUNKS = {TRANSPORT + "problem._CHUNK_ENTRIES": 1}
BY_LOGARITHMS = {TRANSPORT + "domains.KernelDomain.max_span": -1.0}


class Route(NamedTuple):
    """A way in which a batch of problems (P, n, m) is solved.

    `alone`: one problem after the other. `start`: from which potentials, a function of
    those of the solution. `patches`: what is changed in the package.
    """

    alone: bool = False
    start: Callable[[Tensor], Tensor] | None = None
    patches: dict[str, Any] = {}


def own(g):
    return g


def of_a_neighbour(g):
    return g.roll(1, 0)


ROUTES = {
    "as it comes, alone": Route(alone=True),
    "arrays": Route(alone=True, patches=ON_ARRAYS),
    "arrays, from its own g": Route(alone=True, start=own, patches=ON_ARRAYS),
    "arrays, logarithms": Route(alone=True, patches=ON_ARRAYS | BY_LOGARITHMS),
    "tensors": Route(alone=True, patches=ON_TENSORS),
    "tensors, from a neighbour's g": Route(
        alone=True, start=of_a_neighbour, patches=ON_TENSORS
    ),
    "tensors, logarithms": Route(alone=True, patches=ON_TENSORS | BY_LOGARITHMS),
    "batch": Route(),
    "batch, from its own g": Route(start=own),
    "batch, from a neighbour's g": Route(start=of_a_neighbour),
    "batch, logarithms": Route(patches=BY_LOGARITHMS),
    "batch, logarithms, from a neighbour's g": Route(
        start=of_a_neighbour, patches=BY_LOGARITHMS
    ),
    "chunks": Route(patches=IN_CHUNKS),
    "chunks, from a neighbour's g": Route(start=of_a_neighbour, patches=IN_CHUNKS),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@contextmanager
def patched(patches):
    with ExitStack() as stack:
        for target, value in patches.items():
            stack.enter_context(mock.patch(target, value))
        yield


def on(route, function, C, a, b, reg=REG):
    """Return what ``function(C, a, b, init)`` returns for a batch, on a route."""
    init = None if route.start is None else route.start(EXACT.solve(C, a, b, reg).g)
    with patched(route.patches):
        if not route.alone:
            return function(C, a, b, init)
        problems = zip(C, a, b, [None] * len(C) if init is None else init, strict=True)
        found = [function(*problem) for problem in problems]
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True))


class Spy(SinkhornSolver):
    """Notes what it is given."""

    def _solve(self, C, a, b, reg, init):
        self.calls.append((type(C), init is not None))
        return super()._solve(C, a, b, reg, init)


def watched(owner, method):
    """Watch the calls of a method without changing what it does."""
    return mock.patch.object(
        owner, method, autospec=True, side_effect=getattr(owner, method)
    )


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_is_what_its_name_says(name):
    spy = Spy()
    spy.calls = []

    def plan(C, a, b, init):
        return (spy.solve(C, a, b, REG, init).plan,)

    with watched(LogDomain, "_prepare") as logarithms:
        on(ROUTES[name], plan, *random_problem(3, 6, 4))
    kind = np.ndarray if name.startswith(("arrays", "as it comes")) else Tensor
    n_calls = 1 if name.startswith("batch") else 3
    assert spy.calls == [(kind, "from" in name)] * n_calls
    assert logarithms.called is ("logarithms" in name)


# --- all lead to the same plan and gradients ------------------------------------------

# The first two are tiny, so that products of a batch are laid out in another way; the
# last one is too large for arrays, and not copied when it is alone.
ROUTE_SHAPES = [(4, 16, 10), (4, 10, 16), (3, 40, 15), (3, 15, 40), (1, 260, 256)]


@cache
def problem_of(shape, has_empty_rows):
    C, a, b = random_problem(*shape)
    if has_empty_rows:
        a[..., ::5] = 0
    return C, a / a.sum(-1, keepdim=True), b


@cache
def solution_of(shape, has_empty_rows):
    """Return plans, where the mass of each row goes, costs and gradients.

    Of the textbook, sweep by sweep.
    """
    found = []
    for C, a, b in zip(*problem_of(shape, has_empty_rows), strict=True):
        leaves = [x.clone().requires_grad_() for x in (C, a, b)]
        n_sweeps = 100 if C.numel() < 1000 else 40
        cost = unrolled_cost(*leaves, REG, n_sweeps)
        gradients = torch.autograd.grad(cost, leaves)
        plan, _, v = naive_sinkhorn(C, a, b, REG, n_sweeps)
        assert_transports(plan, a, b, atol=1e-13)
        conditional = torch.softmax(v.log() - C / REG, -1)
        found.append((plan, conditional, cost.detach(), *gradients))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


every_problem = pytest.mark.parametrize(
    ("shape", "has_empty_rows"),
    [(shape, has_empty) for shape in ROUTE_SHAPES for has_empty in (False, True)],
)


@every_problem
@every_route
def test_every_route_leads_to_the_plan(route, shape, has_empty_rows):
    C, a, b = problem_of(shape, has_empty_rows)

    def solved(C, a, b, init):
        solution = EXACT.solve(C, a, b, REG, init)
        assert solution.converged
        return tuple(x for x in vars(solution).values() if isinstance(x, Tensor))

    plan, conditional, row_cost, cost, f, g, error = on(route, solved, C, a, b)
    expected = solution_of(shape, has_empty_rows)
    assert_same(plan, expected[0], atol=1e-11)
    assert_same(conditional, expected[1], atol=1e-9)
    assert_same(row_cost, (C * expected[1]).sum(-1), atol=1e-9)
    assert_same(cost, expected[2], atol=1e-11)
    assert_same(torch.exp((f[..., None] + g[..., None, :] - C) / REG), plan, atol=1e-13)
    assert_same(error, (plan.sum(-2) - b).abs().sum(-1), atol=1e-14)
    assert (error <= 1e-12).all()


def assert_gradients(found, expected):
    grad_a, grad_b, grad_C = found
    assert_same_gradient(grad_C, expected[3], rtol=1e-8)
    assert_same_gradient(grad_a, expected[4], rtol=1e-8, up_to_constant=True)
    assert_same_gradient(grad_b, expected[5], rtol=1e-8, up_to_constant=True)


@every_problem
@every_route
def test_every_route_leads_to_the_gradients(route, shape, has_empty_rows):
    problem = problem_of(shape, has_empty_rows)
    expected = solution_of(shape, has_empty_rows)

    def at_the_solution(C, a, b, init):
        return transport_gradient(C, EXACT.solve(C, a, b, REG, init), REG)

    def by_autograd(C, a, b, init):
        leaves = [x.clone().requires_grad_() for x in (C, a, b)]
        cost = transport_cost(*leaves, REG, solver=EXACT, init=init)
        grad_C, grad_a, grad_b = torch.autograd.grad(cost.sum(), leaves)
        return cost.detach(), grad_a, grad_b, grad_C

    def at_once(C, a, b, init):
        return transport_value_and_grad(C, a, b, REG, solver=EXACT, init=init)

    assert_gradients(on(route, at_the_solution, *problem), expected)
    cost, *gradients = on(route, by_autograd, *problem)
    assert_same(cost, expected[2], atol=1e-11)
    assert_gradients(gradients, expected)
    cost, grad_a = on(route, at_once, *problem)
    assert_same(cost, expected[2], atol=1e-11)
    assert_same(grad_a, gradients[0], atol=1e-11)


def test_the_comparison_with_the_textbook_can_fail():
    C, a, b = problem_of((4, 16, 10), False)
    plan, *_, grad_a, _ = solution_of((4, 16, 10), False)
    other = EXACT.solve(C, a, b, 1.0001 * REG)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(other.plan, plan, atol=1e-7)
    other_a = transport_gradient(C, other, 1.0001 * REG)[0]
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same_gradient(other_a, grad_a, rtol=1e-6, up_to_constant=True)


@pytest.mark.parametrize("patches", [{}, IN_CHUNKS, BY_LOGARITHMS, ON_TENSORS])
@pytest.mark.parametrize("grid", [(2, 3), (6, 1), (1, 2, 3)])
def test_leading_dimensions_are_those_of_the_result(grid, patches):
    problem = random_problem(6, 9, 4)
    of_grid = [x.unflatten(0, grid) for x in problem]
    flat = EXACT.solve(*problem, REG)
    with patched(patches):
        for init in (None, flat.g.unflatten(0, grid)):
            solution = EXACT.solve(*of_grid, REG, init)
            for field in fields(solution):
                value = getattr(solution, field.name)
                if isinstance(value, Tensor):
                    expected = getattr(flat, field.name).unflatten(0, grid)
                    if field.name not in "fg":  # determined up to a constant
                        assert_same(value, expected, atol=1e-10)
            cost, grad = transport_value_and_grad(*of_grid, REG, solver=EXACT)
            assert_same(cost, solution.cost, atol=1e-10)
            expected = transport_gradient(of_grid[0], solution, REG)[0]
            assert_same(grad, expected, atol=1e-9)


@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
@pytest.mark.parametrize("patches", [ON_ARRAYS, ON_TENSORS], ids=["arrays", "tensors"])
def test_leading_dimensions_of_one_problem(patches, leading):
    C, a, b = random_problem(9, 4)
    expected = EXACT.solve(C, a, b, REG)
    with patched(patches):
        C = C.expand(*leading, 9, 4)
        wide = a.expand(*leading, 9), b.expand(*leading, 4)
        for masses in ((a, b), wide):
            solution = EXACT.solve(C, *masses, REG)
            assert_same(solution.plan, expected.plan.expand(C.shape), atol=1e-10)
            assert solution.cost.shape == solution.marginal_error.shape == leading
            cost, grad = transport_value_and_grad(C, *masses, REG)
            assert cost.shape == leading
            assert grad.shape == (*leading, 9)


@every_route
def test_strides_are_of_no_account(route):
    def plan(C, a, b, init):
        C = C.mT.contiguous().mT
        a, b = (x.repeat_interleave(2, -1)[..., ::2] for x in (a, b))
        assert not any(x.is_contiguous() for x in (C, a, b))
        return (EXACT.solve(C, a, b, REG, init).plan,)

    (found,) = on(route, plan, *problem_of((4, 16, 10), True))
    assert_same(found, solution_of((4, 16, 10), True)[0], atol=1e-11)


@st.composite
def problems(draw):
    """Any scale of cost and reg, and masses of which some are zero."""
    n, m = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    generator = seeded(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
    C = scale * torch.rand(n, m, generator=generator, dtype=torch.float64)
    masses = []
    for size in (n, m):
        mass = random_mass(size, generator=generator, skew=2.0, floor=1e-6)
        n_empty = draw(st.integers(0, size - 1))
        mass[torch.randperm(size, generator=generator)[:n_empty]] = 0
        masses.append(mass / mass.sum())
    return C, *masses, 10 ** draw(st.floats(-3, 1))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(problem=problems())
def test_arrays_are_as_good_as_tensors(problem):
    """And as silent: numpy would warn of what torch divides by zero."""
    *problem, reg = problem
    found = []
    solver = SinkhornSolver(tol=1e-10)
    for patches in (ON_ARRAYS, ON_TENSORS):
        with patched(patches):
            plan = solver.solve(*problem, reg).plan
            cost, grad = transport_value_and_grad(*problem, reg, solver=solver)
        found.append((plan, cost, grad))
    arrays, tensors = found
    scale = problem[0].max().item()
    for x, other, size in zip(arrays, tensors, (1.0, scale, scale), strict=True):
        assert_same(x, other, atol=1e-9 * size)


@pytest.mark.parametrize("max_iter", [1, 11])
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_arrays_are_silent_where_nothing_is_solved(shape, accelerate, max_iter):
    """Kernels whose rows are almost zero, and masses that are."""
    solver = SinkhornSolver(max_iter=max_iter, tol=0.0, accelerate=accelerate)
    for seed in range(6):
        C, a, b = random_problem(*shape, seed=seed)
        a[: seed % 4], b[: seed % 3] = 0, 0
        problem = 299 * C / C.max(), a / a.sum(), b / b.sum()
        found = []
        for patches in (ON_ARRAYS, ON_TENSORS):
            with patched(patches):
                found.append(solver.solve(*problem, 1.0).plan)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    transport_value_and_grad(*problem, 1.0, solver=solver)
        assert_same(*found, atol=1e-9)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (3, 20, 12)])
def test_kernels_are_right_up_to_where_logarithms_take_over(shape):
    C, a, b = random_problem(*shape)
    reg = C.max().item() / KernelDomain.max_span * (1 + 1e-12)
    found = []
    for patches in ({}, BY_LOGARITHMS):
        with patched(patches), watched(LogDomain, "_prepare") as logarithms:
            found.append(SinkhornSolver(tol=1e-11).solve(C, a, b, reg))
        assert logarithms.called is bool(patches)
        assert found[-1].converged
    assert_same(found[0].plan, found[1].plan, atol=1e-9)
    assert_same(found[0].row_cost, found[1].row_cost, atol=1e-9)


# --- batches that are not solved all at once ------------------------------------------

SURPLUSES = [1e-3, -1e-3, 1e-2, -0.2, 3e-2]


def some_hard(hard, sizes, n_problems=8):
    """Classes that are almost separate, among problems that ten sweeps solve."""
    C, a, b, _ = two_blocks(0.0, sizes)
    C = C / 20 + random_problem(n_problems, *C.shape)[0] / 9
    a, b = (x.repeat(n_problems, 1) for x in (a, b))
    for place, surplus in zip(hard, SURPLUSES, strict=False):
        C[place], a[place], _, _ = two_blocks(surplus, sizes)
    return C, a, b


SIZES = pytest.mark.parametrize("sizes", [(7, 4), (150, 90)], ids=["tiny", "larger"])


@every_route
@SIZES
@pytest.mark.parametrize("hard", [[0], [1, 2, 7], [0, 1, 2, 5, 6]], ids=str)
def test_hard_problems_of_a_batch_are_solved_as_the_easy_ones_are(hard, sizes, route):
    C, a, b = some_hard(hard, sizes)

    def solved(C, a, b, init):
        _, grad = transport_value_and_grad(C, a, b, REG, solver=EXACT, init=init)
        return EXACT.solve(C, a, b, REG, init).plan, grad

    plans, gradients = on(route, solved, C, a, b)
    for place in range(8):
        plan, gradient = plans[place], gradients[place]
        if place in hard:
            flow, slope = block_flow(SURPLUSES[hard.index(place)], 2.0, REG)
            assert plan[: sizes[0], 1].sum().item() == pytest.approx(flow, abs=1e-10)
            difference = (gradient[0] - gradient[-1]).item()
            assert difference == pytest.approx(2.0 * (2 * slope - 1), rel=1e-6)
        else:
            expected = naive_sinkhorn(C[place], a[place], b[place], REG, 100)[0]
            assert_same(plan, expected, atol=1e-11)


@SIZES
@pytest.mark.parametrize("hard", [[0], [1, 2, 7], [0, 1, 2, 5, 6]], ids=str)
def test_the_solved_leave_a_batch(hard, sizes):
    problem = some_hard(hard, sizes)
    is_hard = torch.zeros(8, dtype=torch.bool)
    is_hard[hard] = True
    ten_sweeps = SinkhornSolver(max_iter=10, accelerate=False)
    assert torch.equal(ten_sweeps.solve(*problem, REG).marginal_error > 1e-3, is_hard)
    with watched(Domain, "subset") as subset:
        EXACT.solve(*problem, REG)
    left = [int(call.args[1].sum()) for call in subset.call_args_list]
    assert left
    assert left == sorted(left, reverse=True)
    assert left[0] <= min(len(hard), 4)


@pytest.mark.parametrize("patches", [{}, BY_LOGARITHMS], ids=["kernel", "logarithms"])
def test_those_that_stay_are_swept_as_if_they_were_alone(patches):
    C, a, b = random_problem(8, 9, 4)
    C = C * torch.linspace(0.1, 1.2, 8).double()[:, None, None]  # ever slower
    plain = SinkhornSolver(max_iter=5000, tol=1e-9, accelerate=False)
    with patched(patches):
        with watched(Domain, "subset") as subset:
            batch = plain.solve(C, a, b, 0.05)
        alone = [plain.solve(*problem, 0.05) for problem in zip(C, a, b, strict=True)]
    assert subset.call_count == 3  # 4, 2 and 1 of them are left
    n_sweeps = [solution.n_iter for solution in alone]
    assert n_sweeps[0] < n_sweeps[-1] == max(n_sweeps) == batch.n_iter
    assert_same(batch.plan[-1], alone[-1].plan, atol=1e-14)
    assert batch.converged
    for place in range(8):
        assert batch.marginal_error[place] <= alone[place].marginal_error + 1e-15
        assert_same(batch.plan[place], alone[place].plan, atol=1e-8)


def test_sweeps_before_the_others_left_count():
    C, a, b = some_hard([3], (7, 4))
    plain = SinkhornSolver(max_iter=50, tol=1e-4, accelerate=False)
    with watched(Domain, "subset") as subset:
        solution = plain.solve(C, a, b, REG)
    assert subset.called
    assert solution.n_iter == 50
    expected, *_ = naive_sinkhorn(C[3], a[3], b[3], REG, 50)
    assert_same(solution.plan[3], expected, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 9, 4), (3, 40, 15)])
@pytest.mark.parametrize("kind", ["arrays", "tensors", "logarithms"])
def test_trials_of_a_step_are_computed_one_by_one(kind, shape):
    C, a, b = random_problem(*shape)
    steps = torch.randn(3, shape[-1], 4, generator=seeded(1), dtype=torch.float64)
    if kind == "arrays":
        C, a, b, steps = (x[0].numpy() for x in (C, a, b, steps))
    domain = (LogDomain if kind == "logarithms" else KernelDomain)(C, a, b, REG)
    trials = domain.move(domain.start(None), steps)
    sums = torch.as_tensor(domain.column_sums(trials))
    for k in range(4):
        trial = trials[..., k : k + 1]
        expected = torch.as_tensor((domain.a * domain.conditional(trial)).sum(-2))
        assert_same(sums[..., k], expected, atol=1e-14)
        alone = torch.as_tensor(domain.column_sums(trial))
        assert_same(alone[..., 0], expected, atol=1e-14)


# --- problems that are not solved -----------------------------------------------------


def one_solved(n_problems=6):
    """The first costs the same everywhere, which one sweep solves."""
    C, a, b = random_problem(n_problems, 9, 4)
    C[0] = 0.5
    return C, a, b


@every_route
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_errors_of_an_unfinished_batch_are_kept(accelerate, route):
    C, a, b = one_solved()
    solver = SinkhornSolver(max_iter=3, tol=1e-13, accelerate=accelerate)

    def unsolved(C, a, b, init):
        # From its own g, nothing would be left to do.
        init = None if init is None else init.flip(-1)
        solution = solver.solve(C, a, b, 0.01, init)
        converged = torch.tensor(solution.converged)
        return solution.plan, solution.marginal_error, converged.expand(C.shape[:-2])

    plan, error, converged = on(route, unsolved, C, a, b, reg=0.01)
    assert_same(plan.sum(-1), a, atol=1e-15)
    assert_same(error, (plan.sum(-2) - b).abs().sum(-1), atol=1e-15)
    is_solved = [True] + [False] * 5
    assert (error <= 1e-13).tolist() == is_solved
    assert converged.tolist() == (is_solved if route.alone else [False] * 6)


@pytest.mark.parametrize("patches", [{}, IN_CHUNKS], ids=["batch", "chunks"])
def test_three_sweeps_are_three_sweeps(patches):
    C, a, b = one_solved()
    solver = SinkhornSolver(max_iter=3, tol=1e-9, accelerate=False)
    with patched(patches):
        solution = solver.solve(C, a, b, 0.05)
        with pytest.warns(ConvergenceWarning) as caught:
            cost, grad = transport_value_and_grad(C, a, b, 0.05, solver=solver)
    assert not solution.converged
    assert solution.n_iter == 3
    assert (solution.marginal_error <= 1e-9).tolist() == [True] + [False] * 5
    for place in range(6):
        expected = naive_sinkhorn(C[place], a[place], b[place], 0.05, 3)[0]
        assert_same(solution.plan[place], expected, atol=1e-14)
    assert len(caught) == 1
    assert f"{solution.marginal_error.max().item():.2e}" in str(caught[0].message)
    assert_same(cost, solution.cost, atol=1e-14)
    assert_same(grad, transport_gradient(C, solution, 0.05)[0], atol=1e-12)


# --- what goes in and what comes out --------------------------------------------------


@every_route
def test_nothing_that_is_given_is_changed(route):
    problem = random_problem(3, 9, 4)
    inits = []

    def solved(C, a, b, init):
        inits.append((init, None if init is None else init.clone()))
        solution = EXACT.solve(C, a, b, REG, init)
        before = solution.map(torch.clone)
        transport_gradient(C, solution, REG)
        transport_value_and_grad(C, a, b, REG, solver=EXACT, init=init)
        for field, value in vars(solution).items():
            if isinstance(value, Tensor):
                assert torch.equal(value, getattr(before, field))
                value.zero_()
        leaves = [x.clone().requires_grad_() for x in (C, a, b)]
        transport_cost(*leaves, REG, solver=EXACT, init=init).sum().backward()
        return ()

    before, versions = [x.clone() for x in problem], [x._version for x in problem]
    on(route, solved, *problem)
    for x, kept, version in zip(problem, before, versions, strict=True):
        assert torch.equal(x, kept)
        assert x._version == version
    for init, kept in inits:
        assert init is None or torch.equal(init, kept)


@every_route
def test_results_are_ordinary_tensors(route):
    """Of a kind that autograd may save, and nobody else's memory."""

    def solved(C, a, b, init):
        solution = EXACT.solve(C, a, b, REG, init)
        results = [x for x in vars(solution).values() if isinstance(x, Tensor)]
        results += transport_gradient(C, solution, REG)
        results += transport_value_and_grad(C, a, b, REG, solver=EXACT, init=init)
        kept = [x.clone() for x in results]
        for place, x in enumerate(results):
            assert not x.is_inference()
            assert not x.requires_grad
            leaf = torch.ones_like(x, requires_grad=True)
            (leaf * x).sum().backward()
            assert torch.equal(leaf.grad, x)
            x.add_(1.0)
            kept[place] += 1.0
            for result, expected in zip(results, kept, strict=True):
                assert torch.equal(result, expected)
        return ()

    on(route, solved, *random_problem(3, 9, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@every_route
def test_the_dtype_of_the_input_comes_back(route, dtype):
    C = random_problem(3, 16, 8)[0].to(dtype)
    a, b = (uniform(n, dtype).expand(3, -1) for n in (16, 8))  # without rounding

    def narrow(C, a, b, init):
        leaves = [x.clone().requires_grad_() for x in (C, a, b)]
        cost = transport_cost(*leaves, REG, init=init)
        gradients = torch.autograd.grad(cost.sum(), leaves)
        results = transport_value_and_grad(C, a, b, REG, init=init)
        results += (cost.detach(), *gradients, sinkhorn(C, a, b, REG, init=init).plan)
        assert {x.dtype for x in results} == {dtype}
        return results

    def wide(C, a, b, init):
        return transport_value_and_grad(C.double(), a, b, REG, init=init)

    cost, grad, other_cost, _, other_grad, *_ = on(route, narrow, C, a, b)
    exact_cost, exact_grad = on(route, wide, C, a, b)
    assert torch.equal(cost, other_cost)
    assert torch.equal(grad, other_grad)
    assert_same(cost, exact_cost, atol=torch.finfo(dtype).eps)
    assert_same(grad, exact_grad, atol=torch.finfo(dtype).eps)


def test_one_small_problem_in_bfloat16():
    C = random_problem(16, 8)[0].bfloat16()
    a, b = uniform(16), uniform(8)
    found = transport_value_and_grad(C, a, b, REG)
    expected = transport_value_and_grad(C.double(), a, b, REG)
    for x, other in zip(found, expected, strict=True):
        assert x.dtype == torch.bfloat16
        assert_same(x, other, atol=torch.finfo(torch.bfloat16).eps)


def test_inference_mode_is_left_as_it_was():
    problem = random_problem(3, 9, 4)
    expected = transport_value_and_grad(*problem, REG)
    with torch.inference_mode():
        found = transport_value_and_grad(*problem, REG)
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
    for x, other in zip(found, expected, strict=True):
        assert torch.equal(x, other)


class TensorsOnly(SinkhornSolver):
    """A solver that was written before there were arrays."""

    takes_arrays = False

    def _solve(self, C, a, b, reg, init):
        assert all(isinstance(x, Tensor) for x in (C, a, b))
        assert (C.ndim, a.ndim, b.ndim) == (3, 2, 2)
        return super()._solve(C, a, b, reg, init)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (1, 9, 4), (2, 3, 9, 4)])
@pytest.mark.parametrize(
    "solver", [POTSolver(max_iter=100_000, tol=1e-13), TensorsOnly(tol=1e-12)]
)
def test_solvers_that_take_no_arrays(solver, shape):
    C, a, b = random_problem(*shape)
    solution, expected = (s.solve(C, a, b, REG) for s in (solver, EXACT))
    assert_same(solution.plan, expected.plan, atol=1e-10)
    found = transport_value_and_grad(C, a, b, REG, solver=solver)
    exact = transport_value_and_grad(C, a, b, REG, solver=EXACT)
    for x, other in zip(found, exact, strict=True):
        assert_same(x, other, atol=1e-9)
    leaf = a.clone().requires_grad_()
    transport_cost(C, leaf, b, REG, solver=solver).sum().backward()
    assert_same(leaf.grad, found[1], atol=1e-12)


# --- how much is called ---------------------------------------------------------------


class Calls(TorchFunctionMode):
    """Counts the calls of torch, and those that wait for what they return.

    On a CUDA device, a call launches a kernel or two, or none. Numbers that come from
    the device or go there wait, and so does a mask as an index, until it is known how
    much it chooses.
    """

    waiting = {"item", "tolist", "numpy", "cpu", "nonzero", "new_tensor", "tensor"}
    waiting |= {"__bool__", "__int__", "__float__", "__index__"}

    def __init__(self):
        super().__init__()
        self.n_calls = self.n_waits = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if name != "__get__":  # an attribute
            self.n_calls += 1
            by_mask = name in ("__getitem__", "__setitem__") and is_mask(args[1])
            self.n_waits += name in self.waiting or by_mask
        return function(*args, **(kwargs or {}))


def is_mask(index):
    return isinstance(index, Tensor) and index.dtype == torch.bool


def calls_of(solver, C, a, b, reg):
    with Calls() as calls:
        solution = solver.solve(C, a, b, reg)
    return calls, solution


def allowed(n_sweeps, n_halvings=0):
    """Return calls and waits that are allowed: about a quarter more than there are."""
    n_looks = n_sweeps / 10
    return 40 + 150 * n_looks + 60 * n_halvings, 6 + 4 * n_looks + 7 * n_halvings


def copies(shape, n_problems):
    C, a, b = random_problem(*shape)
    return C.expand(n_problems, *shape), a, b


def test_ten_sweeps_take_few_calls():
    problem = random_problem(8, 16, 10)
    calls, solution = calls_of(SinkhornSolver(tol=1e-6), *problem, 1.0)
    assert (solution.n_iter, solution.converged) == (10, True)
    assert 40 <= calls.n_calls <= 165  # two products and two quotients each sweep
    assert 2 <= calls.n_waits <= 6


@pytest.mark.parametrize("reg", [1.0, 0.05, 0.02])
@pytest.mark.parametrize("shape", [(16, 10), (10, 16), (40, 15)])
def test_a_batch_takes_a_bounded_number_of_calls(shape, reg):
    calls, solution = calls_of(SinkhornSolver(), *copies(shape, 8), reg)
    assert solution.converged
    n_calls, n_waits = allowed(solution.n_iter)
    assert calls.n_calls <= n_calls
    assert calls.n_waits <= n_waits


@pytest.mark.parametrize("reg", [1.0, 0.05, 0.02])
def test_calls_do_not_grow_with_the_number_of_problems(reg):
    found = set()
    for n_problems in (2, 8, 64):
        calls, _ = calls_of(SinkhornSolver(), *copies((16, 10), n_problems), reg)
        found.add((calls.n_calls, calls.n_waits))
    assert len(found) == 1


@pytest.mark.parametrize("n_problems", [8, 64])
@pytest.mark.parametrize("hard", [[0], [1, 2, 7], [0, 1, 2, 5, 6]], ids=str)
def test_leaving_a_batch_takes_a_bounded_number_of_calls(hard, n_problems):
    problem = some_hard(hard, (7, 4), n_problems)
    with watched(Domain, "subset") as subset:
        calls, solution = calls_of(SinkhornSolver(), *problem, REG)
    assert solution.converged
    assert 1 <= subset.call_count <= 3
    n_calls, n_waits = allowed(solution.n_iter, subset.call_count)
    assert calls.n_calls <= n_calls
    assert calls.n_waits <= n_waits


def test_plain_sweeps_wait_once_in_ten():
    problem = random_problem(8, 16, 10)
    few, many = (SinkhornSolver(n, tol=0.0, accelerate=False) for n in (50, 100))
    fifty, _ = calls_of(few, *problem, 0.05)
    hundred, _ = calls_of(many, *problem, 0.05)
    assert hundred.n_waits - fifty.n_waits == 5


def test_waits_are_counted():
    x = torch.tensor([1.0, 2.0, 3.0])
    with Calls() as calls:
        assert bool((x > 0).all())
        assert int(x.sum()) == 6
        assert x.max().item() == 3
        assert len(x[x > 1]) == 2
        x[x > 2] = x.new_tensor(0.0)
    assert calls.n_waits == 6
    with Calls() as calls:
        x[1:] = x[:2] + x.mean()
        assert x.shape == (3,)
    assert calls.n_waits == 0
    assert calls.n_calls == 4


def test_costs_of_integers_give_fractions():
    C = torch.tensor([[0, 1], [1, 0], [2, 1]])
    a, b = uniform(3), uniform(2)
    expected = transport_value_and_grad(C.double(), a, b, REG)
    found = transport_value_and_grad(C, a, b, REG)
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == torch.get_default_dtype()
        assert_same(value, other, atol=1e-6)
