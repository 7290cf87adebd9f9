from __future__ import annotations

import math
import warnings
from dataclasses import FrozenInstanceError, fields

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    assert_class_constant,
    assert_same,
    assert_same_gradient,
    assert_transports,
    naive_sinkhorn,
)
from ot.bregman import sinkhorn_log
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from transport_problems import (
    DTYPES,
    SHAPES,
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
    TransportSolver,
    semirelaxed_weights,
    sinkhorn,
    transport_cost,
    transport_value_and_grad,
)
from sk_otreweight.transport import transport_gradient

EXACT = SinkhornSolver(max_iter=5000, tol=1e-12)


@st.composite
def problems(draw, max_rows=200, max_columns=50):
    """Any cost in [0, 1], any marginals, some rows without mass, any usual reg."""
    n = draw(st.integers(1, max_rows))
    m = draw(st.integers(1, max_columns))
    generator = seeded(draw(st.integers(0, 2**32 - 1)))
    C = torch.rand(n, m, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # few distinct costs
        C = (C * 4).round() / 4
    skew = draw(st.sampled_from([0.0, 1.0, 3.0]))
    a = random_mass(n, generator=generator, skew=skew, floor=1e-4)
    b = random_mass(m, generator=generator, skew=skew, floor=1e-4)
    empty = draw(st.integers(0, n - 1))
    a[torch.randperm(n, generator=generator)[:empty]] = 0
    return C, a / a.sum(), b, 10 ** draw(st.floats(-2, 1))


# --- the plan: against POT and against the textbook -----------------------------------


@settings(derandomize=True, max_examples=500, deadline=None)
@given(problem=problems())
def test_sinkhorn_agrees_with_pot(problem):
    C, a, b, reg = problem
    solution = sinkhorn(C, a, b, reg, max_iter=20_000, tol=1e-12)
    expected = sinkhorn_log(a, b, C, reg, numItermax=200_000, stopThr=1e-13, warn=False)
    assert_same(solution.plan, expected, atol=1e-8)
    assert_transports(solution.plan, a, b, atol=1e-11)
    torch.testing.assert_close(solution.cost, (C * expected).sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("n_sweeps", [1, 2, 3, 9, 10, 11, 25])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (1, 3), (3, 1)])
def test_unaccelerated_sweeps_are_the_textbooks(shape, n_sweeps):
    C, a, b = random_problem(*shape)
    solver = SinkhornSolver(max_iter=n_sweeps, tol=0.0, accelerate=False)
    solution = solver.solve(C, a, b, 0.05)
    plan, u, v = naive_sinkhorn(C, a, b, 0.05, n_sweeps)
    assert solution.n_iter <= n_sweeps
    assert_same(solution.plan, plan, atol=1e-14)
    assert_same(solution.f, 0.05 * u.log(), atol=1e-12)
    assert_same(solution.g, 0.05 * v.log(), atol=1e-12)


def test_every_sweep_counts_for_the_textbook():
    C, a, b = random_problem(7, 4)
    one, two = (
        SinkhornSolver(max_iter=n, tol=0.0, accelerate=False).solve(C, a, b, 0.05)
        for n in (1, 2)
    )
    assert (one.n_iter, two.n_iter) == (1, 2)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(one.plan, two.plan, atol=1e-6)


@pytest.mark.parametrize("reg", [0.003, 0.1, 1.0])
def test_help_does_not_change_what_is_found(reg):
    C, a, b = random_problem(3, 12, 6)
    plain = SinkhornSolver(max_iter=100_000, tol=1e-12, accelerate=False)
    helped, textbook = (s.solve(C, a, b, reg) for s in (EXACT, plain))
    assert helped.converged
    assert textbook.converged
    assert_same(helped.plan, textbook.plan, atol=1e-9)
    if reg < 0.01:
        assert helped.n_iter < textbook.n_iter / 2


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_solvers_agree(shape, reg):
    C, a, b = random_problem(*shape)
    a[..., 0] = 0
    a = a / a.sum(-1, keepdim=True)
    ours = EXACT.solve(C, a, b, reg)
    pots = POTSolver(max_iter=100_000, tol=1e-13).solve(C, a, b, reg)
    assert ours.converged
    assert pots.converged
    for name in ("plan", "cost"):
        assert_same(getattr(ours, name), getattr(pots, name), atol=1e-9)
    expected = transport_gradient(C, pots, reg)
    for gradient, other in zip(transport_gradient(C, ours, reg), expected, strict=True):
        assert_same_gradient(gradient, other, rtol=1e-6)


def test_a_batch_is_solved_as_its_problems_are():
    C, a, b = random_problem(2, 3, 6, 4)
    together = sinkhorn(C, a, b, 0.05, tol=1e-10)
    assert together.plan.shape == (2, 3, 6, 4)
    assert together.cost.shape == together.marginal_error.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = sinkhorn(C[i, j], a[i, j], b[i, j], 0.05, tol=1e-10)
            assert_same(together.plan[i, j], alone.plan, atol=1e-9)
            assert_same(together.cost[i, j], alone.cost, atol=1e-9)


def test_one_marginal_serves_a_batch():
    C, a, _ = random_problem(3, 6, 4)
    shared = sinkhorn(C, a[0], uniform(4), 0.1)
    spelled_out = sinkhorn(C, a[0].expand(3, 6), uniform(4).expand(3, 4), 0.1)
    assert_same(shared.plan, spelled_out.plan, atol=0.0)


def test_a_good_start_saves_sweeps_and_changes_nothing():
    C, a, b = random_problem(30, 10)
    cold = sinkhorn(C, a, b, 0.03, tol=1e-10)
    warm = sinkhorn(C, a, b, 0.03, tol=1e-10, init=cold.g)
    assert warm.n_iter < cold.n_iter
    assert_same(warm.plan, cold.plan, atol=1e-9)
    elsewhere = sinkhorn(C, a, b, 0.03, tol=1e-10, init=cold.g.flip(0))
    assert_same(elsewhere.plan, cold.plan, atol=1e-9)


# --- the plan: finite and right over the whole range ----------------------------------


def entropy(mass):
    return -torch.special.xlogy(mass.double(), mass.double()).sum()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest_cost", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("reg", [1e-3, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(25, 6), (6, 25), (8, 8)])
def test_finite_and_right(shape, reg, largest_cost, dtype):
    C, a, b = random_problem(*shape)
    a[::3] = 0
    C, a, b = (x.to(dtype) for x in (C * largest_cost, a / a.sum(), b))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = sinkhorn(C, a, b, reg)
    assert len(caught) == (not solution.converged)
    for field in ("plan", "cost", "marginal_error", "f", "g"):
        assert getattr(solution, field).dtype == dtype
        assert getattr(solution, field).device == C.device
    assert_transports(solution.plan, a, b, atol=solution.marginal_error.item() + 1e-6)
    assert (solution.marginal_error <= 1e-6).item() is solution.converged
    assert (solution.plan[::3] == 0).all()
    assert (solution.f[::3] == -math.inf).all()
    for gradient in transport_gradient(C, solution, reg):
        assert torch.isfinite(gradient).all()
    if solution.converged:
        # <C, T> exceeds the least cost by reg (H(T) - H(T*)) at most, and the
        # entropy of a plan lies between those of its marginals and their sum.
        least = ot.emd2(*(x.double().numpy() for x in (a, b, C)), check_marginals=False)
        excess = solution.cost.item() - least
        slack = 3e-6 * largest_cost
        assert -slack <= excess <= reg * min(entropy(a), entropy(b)) + slack


def test_the_whole_range_converges_with_the_defaults():
    for reg in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        for largest_cost in (0.0, 1e-3, 1.0, 1e3):
            C, a, b = random_problem(25, 6)
            assert sinkhorn(C * largest_cost, a, b, reg).converged  # or it would warn


@pytest.mark.parametrize("reg", [1e-3, 0.1, 10.0])
def test_the_plan_is_made_of_the_potentials(reg):
    C, a, b = random_problem(2, 8, 5)
    solution = sinkhorn(C * 10, a, b, reg)
    logits = (solution.f[..., None] + solution.g[..., None, :] - C * 10) / reg
    torch.testing.assert_close(solution.plan, logits.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        solution.cost, (C * 10 * solution.plan).sum((-2, -1)), rtol=1e-12, atol=0
    )
    error = (solution.plan.sum(-2) - b).abs().sum(-1)
    assert_same(solution.marginal_error, error, atol=1e-15)


def test_single_precision_is_rounded_only_at_the_end():
    C, a, b = (x.float() for x in random_problem(20, 7))
    single = sinkhorn(C, a, b, 1e-3)
    double = sinkhorn(C.double(), a.double(), b.double(), 1e-3)
    assert_same(single.plan, double.plan.float(), atol=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_device_is_kept(dtype):
    C, a, b = (x.to(dtype) for x in random_problem(3, 20, 7))
    host = sinkhorn(C, a, b, 0.05)
    C, a, b = (x.cuda().requires_grad_() for x in (C, a, b))
    solution = sinkhorn(C, a, b, 0.05)
    assert solution.plan.is_cuda
    assert_same(solution.plan.cpu(), host.plan, atol=1e-9)
    transport_cost(C, a, b, 0.05).sum().backward()
    assert C.grad.is_cuda
    assert a.grad.dtype == dtype
    assert semirelaxed_weights(C, b, 0.1).is_cuda


@pytest.mark.parametrize("reg", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("level", [0.0, 1.0, 1e3])
def test_constant_cost_gives_the_product_coupling(level, reg):
    _, a, b = random_problem(6, 4)
    solution = sinkhorn(torch.full_like(a[:, None] * b, level), a, b, reg)
    assert_same(solution.plan, a[:, None] * b, atol=1e-9)  # exponents reach 1e6
    for gradient in transport_gradient(torch.full((6, 4), level), solution, reg)[:2]:
        assert gradient.abs().max() <= 1e-9 * max(level, 1.0)


def test_the_more_entropy_the_closer_to_the_product_coupling():
    C, a, b = random_problem(6, 4)
    distances = [
        (sinkhorn(C, a, b, reg, tol=1e-14).plan - a[:, None] * b).abs().max().item()
        for reg in (1.0, 10.0, 100.0, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-2] < 2e-3 * distances[0] * 10
    assert distances[-1] < 1e-7


def test_the_less_entropy_the_closer_to_the_least_cost():
    C, a, b = random_problem(12, 7)
    least = ot.emd2(a.numpy(), b.numpy(), C.numpy())
    excesses = [
        sinkhorn(C, a, b, reg, tol=1e-9).cost.item() - least
        for reg in (1.0, 0.1, 0.01, 1e-3)
    ]
    assert excesses == sorted(excesses, reverse=True)
    assert 0 <= excesses[-1] + 1e-8 < 1e-3 * excesses[0] + 1e-8


def test_one_row_and_one_column():
    _, a, b = random_problem(6, 4)
    one = uniform(1)
    assert_same(sinkhorn(torch.rand(1, 1).double(), one, one).plan, one[None], atol=0.0)
    column = sinkhorn(torch.rand(6, 1).double(), a, one)
    assert_same(column.plan, a[:, None], atol=1e-15)
    row = sinkhorn(torch.rand(1, 4).double(), one, b)
    assert_same(row.plan, b[None], atol=1e-15)


@pytest.mark.parametrize("reg", [1e-2, 0.5])
def test_splitting_a_row_splits_its_mass(reg):
    C, a, b = random_problem(5, 4)
    twice = torch.tensor([0, 1, 2, 3, 4, 4, 0])
    share = torch.tensor([0.3, 1, 1, 1, 0.5, 0.5, 0.7], dtype=torch.float64)
    split = sinkhorn(C[twice], a[twice] * share, b, reg, tol=1e-12)
    whole = sinkhorn(C, a, b, reg, tol=1e-12)
    assert_same(split.plan, whole.plan[twice] * share[:, None], atol=1e-10)
    (p, _, _), (q, _, _) = (
        transport_gradient(cost, plan, reg)
        for cost, plan in ((C[twice], split), (C, whole))
    )
    assert_same_gradient(p, q[twice], rtol=1e-8, up_to_constant=True)


laws = settings(derandomize=True, max_examples=60, deadline=None)


def solve_exactly(C, a, b, reg):
    return sinkhorn(C, a, b, reg, max_iter=5000, tol=1e-12)


@laws
@given(problem=problems(12, 8), scale=st.floats(1e-3, 1e3))
def test_scaling_cost_and_reg_leaves_the_plan(problem, scale):
    C, a, b, reg = problem
    plain, scaled = solve_exactly(*problem), solve_exactly(C * scale, a, b, reg * scale)
    assert_same(scaled.plan, plain.plan, atol=1e-9)
    assert_same(scaled.cost / scale, plain.cost, atol=1e-9)


@laws
@given(problem=problems(12, 8), seed=st.integers(0, 2**32 - 1))
def test_shifting_rows_and_columns_leaves_the_plan(problem, seed):
    C, a, b, reg = problem
    rows = torch.rand(len(a), 1, generator=seeded(seed), dtype=torch.float64)
    columns = torch.rand(len(b), generator=seeded(seed), dtype=torch.float64)
    shifted = solve_exactly(C + 3 * rows + columns, a, b, reg)
    assert_same(shifted.plan, solve_exactly(*problem).plan, atol=1e-9)


@laws
@given(problem=problems(12, 8), seed=st.integers(0, 2**32 - 1))
def test_permuting_rows_and_columns_permutes_the_plan(problem, seed):
    C, a, b, reg = problem
    rows = torch.randperm(len(a), generator=seeded(seed))
    columns = torch.randperm(len(b), generator=seeded(seed))
    permuted = solve_exactly(C[rows][:, columns], a[rows], b[columns], reg)
    assert_same(
        permuted.plan, solve_exactly(*problem).plan[rows][:, columns], atol=1e-9
    )


@laws
@given(problem=problems(12, 8))
def test_transposing_the_problem_transposes_the_plan(problem):
    C, a, b, reg = problem
    transposed = solve_exactly(C.T, b, a, reg)
    assert_same(transposed.plan.T, solve_exactly(*problem).plan, atol=1e-9)


# --- warnings and errors --------------------------------------------------------------


def test_one_warning_with_the_error_and_the_remedies():
    C, a, b = random_problem(4, 20, 12)
    with pytest.warns(ConvergenceWarning) as caught:
        solution = sinkhorn(C, a, b, 0.003, max_iter=1, tol=1e-7)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not solution.converged
    assert solution.marginal_error.max() > 1e-7
    message = str(caught[0].message)
    assert f"{solution.marginal_error.max().item():.2e}" in message
    for part in ("tol=1e-07", "reg (now 0.003)", "max_iter", "after 1 sweeps"):
        assert part in message
    assert_transports(solution.plan, solution.plan.sum(-1), b, atol=10.0)
    assert_same(solution.plan.sum(-1), a, atol=1e-14)


@pytest.mark.parametrize("reg", [0, -0.1, math.nan, math.inf, "0.1", None, True])
def test_reg_must_be_positive(reg):
    C, a, b = random_problem(3, 2)
    for call in (
        lambda: sinkhorn(C, a, b, reg),
        lambda: transport_cost(C, a, b, reg),
        lambda: semirelaxed_weights(C, b, reg),
    ):
        with pytest.raises(ValueError, match="reg=.* must be a finite number > 0"):
            call()


@pytest.mark.parametrize(
    ("C", "a", "b"),
    [
        ((3, 2), (2,), (3,)),
        ((3, 2), (3,), (3,)),
        ((3,), (3,), (3,)),
        ((4, 3, 2), (4, 2), (2,)),
    ],
)
def test_shapes_must_fit(C, a, b):
    C, a, b = torch.ones(C), torch.ones(a), torch.ones(b)
    for call in (sinkhorn, transport_cost):
        with pytest.raises(
            ValueError, match=r"do not fit: expected C \(\.\.\., n, m\)"
        ):
            call(C, a, b)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 3, 2), (2, 0, 2)], ids=str)
def test_costs_must_have_entries(shape):
    C, a, b = torch.ones(shape), torch.ones(shape[:-1]), torch.ones(shape[-1])
    for call in (
        lambda: sinkhorn(C, a, b),
        lambda: transport_cost(C, a, b),
        lambda: transport_value_and_grad(C, a, b),
        lambda: semirelaxed_weights(C, b),
    ):
        with pytest.raises(ValueError, match=r"C of shape .* is empty: .* a row and"):
            call()


@pytest.mark.parametrize("solver", [SinkhornSolver(), POTSolver(max_iter=100)])
def test_masses_must_be_the_same(solver):
    C, a, b = random_problem(3, 2)
    with pytest.raises(ValueError, match=r"a sums to 2 and b to 1,.*Divide each"):
        solver.solve(C, 2 * a, b, 0.1)
    with pytest.raises(ValueError, match=r"a sums to 1 \.\.\. 3 and b to 1"):
        solver.solve(C.expand(2, 3, 2), torch.stack([a, 3 * a]), b, 0.1)


@pytest.mark.parametrize("max_iter", [0, -1, 2.5, True])
def test_max_iter_must_be_a_count(max_iter):
    with pytest.raises(ValueError, match=r"max_iter=.* give an integer >= 1"):
        sinkhorn(*random_problem(3, 2), max_iter=max_iter)


@pytest.mark.parametrize("tol", [-1e-6, math.nan, "small"])
def test_tol_must_not_be_negative(tol):
    with pytest.raises(ValueError, match=r"tol=.* give a finite number >= 0"):
        sinkhorn(*random_problem(3, 2), tol=tol)


def test_an_unfinished_solution_says_so():
    C, a, b = random_problem(20, 12)
    for solver in (SinkhornSolver(max_iter=1), POTSolver(max_iter=1)):
        solution = solver.solve(C, a, b, 0.003)
        assert not solution.converged
        assert solution.marginal_error > 1e-6


def test_solvers_can_be_cloned_and_searched():
    solver = clone(SinkhornSolver(max_iter=7, tol=1e-3, accelerate=False))
    assert solver.get_params() == {"max_iter": 7, "tol": 1e-3, "accelerate": False}
    assert clone(POTSolver(tol=1e-3)).tol == 1e-3
    with pytest.raises(TypeError, match="abstract"):
        TransportSolver()


def test_a_solution_is_frozen_and_carries_no_graph():
    C, a, b = (x.requires_grad_() for x in random_problem(3, 2))
    solution = sinkhorn(C, a, b)
    single = solution.to(torch.float32)
    assert (single.n_iter, single.converged) == (solution.n_iter, True)
    for field in fields(solution):
        value = getattr(single, field.name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.float32
            assert not getattr(solution, field.name).requires_grad
    with pytest.raises(FrozenInstanceError):
        solution.plan = None


# --- almost block diagonal: where plain Sinkhorn crawls -------------------------------


@pytest.mark.parametrize("surplus", [1e-3, -1e-3, 1e-2, -0.2])
@pytest.mark.parametrize("sizes", [(7, 4), (1, 1), (1, 40)])
def test_almost_separate_classes_converge_with_the_defaults(sizes, surplus):
    C, a, b, labels = two_blocks(surplus, sizes)
    solution = sinkhorn(C, a, b, 0.1)  # a warning would be an error
    x, _ = block_flow(surplus, 2.0, 0.1)
    assert solution.n_iter <= 200
    assert solution.plan[labels == 0, 1].sum().item() == pytest.approx(x, abs=2e-6)
    assert solution.cost.item() == pytest.approx(2 * (2 * x - surplus), abs=4e-6)
    assert_class_constant(solution.plan[:, 0], labels, rtol=1e-12)


@pytest.mark.parametrize("cost", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("surplus", [0.0, 1e-3, 0.1])
def test_two_classes_have_a_closed_form(cost, surplus):
    C, a, b, labels = two_blocks(surplus, cost=cost)
    solution = sinkhorn(C, a, b, 0.1, tol=1e-12)
    x, _ = block_flow(surplus, cost, 0.1)
    assert solution.plan[labels == 0, 1].sum().item() == pytest.approx(x, rel=1e-6)


def test_the_closed_form_of_two_classes_is_the_textbooks_plan():
    C, a, b, labels = two_blocks(0.1, cost=0.5)
    plan, _, _ = naive_sinkhorn(C, a, b, 0.1, 2000)
    x, slope = block_flow(0.1, 0.5, 0.1)
    assert plan[labels == 0, 1].sum().item() == pytest.approx(x, rel=1e-9)
    step = 1e-5
    moved = [block_flow(0.1 + sign * step, 0.5, 0.1)[0] for sign in (1, -1)]
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)


# Cost in percent, masses in percent before they are divided by their sum, and reg:
# a row or column has hardly a kernel entry that is not zero, and a Newton step on the
# potentials may go very far.
STEEP = [
    ([[26, 68, 43], [96, 3, 76]], [88, 12], [1, 64, 36], 0.0108),
    ([[50, 100], [50, 50]], [68, 32], [30, 70], 0.01235),
    ([[50, 25], [99, 75], [50, 75], [50, 25],
      [0, 99]], [1, 3, 1, 10, 86], [38, 62], 0.0155),
    ([[24, 98], [72, 9], [63, 10]], [25, 26, 14], [32, 57], 0.011),
    ([[88, 51], [10, 84], [33, 4]], [23, 16, 8], [21, 43], 0.011),
    ([[91, 70], [4, 78]], [94, 59], [40, 60], 0.01),
    ([[38, 85], [88, 6]], [62, 7], [81, 10], 0.01),
    ([[96, 38], [6, 61]], [50, 50], [13, 11], 0.011),
    ([[98, 6], [21, 45]], [9, 22], [33, 13], 0.01),
]  # fmt: skip


@pytest.mark.parametrize("problem", STEEP, ids=lambda problem: str(problem[-1]))
@pytest.mark.parametrize("tol", [1e-6, 1e-12])
def test_steep_kernels(problem, tol):
    C, a, b = (torch.tensor(x, dtype=torch.float64) / 100 for x in problem[:-1])
    reg = problem[-1]
    a, b = a / a.sum(), b / b.sum()
    solution = sinkhorn(C, a, b, reg, tol=tol)
    assert_transports(solution.plan, a, b, atol=tol)
    least = ot.emd2(a.numpy(), b.numpy(), C.numpy())
    assert -2 * tol <= solution.cost.item() - least <= reg * math.log(2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("feature_cost", [0.0, 0.5])
@pytest.mark.parametrize("surplus", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("reg", [1e-3, 3e-3, 0.01, 0.02, 0.05])
def test_labels_and_little_entropy_converge_with_the_defaults(
    reg, surplus, feature_cost, seed
):
    generator = seeded(seed)
    labels = torch.arange(60) % (4 + 2 * seed)
    C = (labels[:, None] != labels.unique()).double()
    C = C + feature_cost * torch.rand(C.shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(60, generator=generator, dtype=torch.float64) - 0.5
    a = (1 + surplus * noise) / labels.bincount()[labels]
    a, b = a / a.sum(), uniform(C.shape[1])
    solution = sinkhorn(C, a, b, reg)
    assert_transports(solution.plan, a, b, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("feature_cost", [0.0, 0.5])
@pytest.mark.parametrize("n_classes", [10, 40])
def test_weights_near_their_best_converge_with_the_defaults(
    n_classes, feature_cost, seed
):
    generator = seeded(seed)
    labels = torch.randint(n_classes, (128,), generator=generator)
    labels[:n_classes] = torch.arange(n_classes)
    C = 2.0 * (labels[:, None] != torch.arange(n_classes)).double()
    C = C + feature_cost * torch.rand(C.shape, generator=generator, dtype=torch.float64)
    a = 1 / labels.bincount()[labels].double()
    a = a * (1 + 1e-3 * torch.randn(128, generator=generator).double())
    a = a / a.sum()
    solution = sinkhorn(C, a, uniform(n_classes), 0.1)
    assert_transports(solution.plan, a, uniform(n_classes), atol=1e-6)


def test_one_hard_problem_does_not_spoil_the_batch():
    C, a, b, _ = two_blocks(1e-3)
    easy, hard = torch.full_like(C, 0.5), C
    both = sinkhorn(torch.stack([easy, hard]), a, b, 0.1)
    assert_same(both.plan[0], a[:, None] * b, atol=1e-9)
    assert_same(both.plan[1], sinkhorn(hard, a, b, 0.1).plan, atol=2e-6)
