from __future__ import annotations

import math

import pytest
import torch
from oracles import assert_same, entropic_objective
from transport_problems import DTYPES, random_problem, seeded, uniform

from sk_otreweight import semirelaxed_weights, sinkhorn
from sk_otreweight.transport import semirelaxed, solve_semirelaxed

# --- the closed form ------------------------------------------------------------------


def naive_semirelaxed(C, b, reg):
    n, m = C.shape
    weights = [0.0] * n
    for j in range(m):
        kernel = [math.exp(-C[i, j].item() / reg) for i in range(n)]
        for i in range(n):
            weights[i] += b[j].item() * kernel[i] / sum(kernel)
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("reg", [0.02, 0.1, 1.0, 10.0])
def test_closed_form_is_the_naive_formula(reg):
    C, _, b = random_problem(13, 4)
    weights = semirelaxed_weights(C, b, reg)
    assert_same(weights, naive_semirelaxed(C, b, reg), atol=1e-14)
    over_rows = (torch.softmax(-C / reg, 1) * b).sum(1)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(weights, over_rows / over_rows.sum(), atol=1e-3)


def solve_recorded(C, b, reg, n_rows=None):
    """Solve with a callable; returns the result and the rows of each call."""
    calls = []

    def cost(rows):
        calls.append(range(C.shape[-2])[rows])
        return C[..., rows, :].clone()

    return solve_semirelaxed(cost, b, reg, n_rows=n_rows or C.shape[-2]), calls


@pytest.mark.parametrize("kept", [0, 500, 2**26], ids=lambda size: f"{size} bytes")
@pytest.mark.parametrize("entries", [1, 7, 20, 1000])
def test_blocks_of_rows_change_nothing(entries, kept, monkeypatch):
    C, _, b = random_problem(3, 23, 5)
    whole = solve_semirelaxed(C, b, 0.1)
    monkeypatch.setattr(semirelaxed, "_BLOCK_ENTRIES", entries)
    monkeypatch.setattr(semirelaxed, "_KEPT_BYTES", kept)
    in_blocks, calls = solve_recorded(C, b, 0.1)
    for solved in (in_blocks, solve_semirelaxed(C, b, 0.1)):
        for found, expected in zip(solved, whole, strict=True):
            assert_same(found, expected, atol=1e-12)
    assert max(map(len, calls)) <= max(1, entries // 5)


@pytest.mark.parametrize(
    ("n_kept", "second_pass"), [(0, range(23)), (2, range(8, 23)), (6, range(0))]
)
def test_costs_that_fit_are_kept_for_the_second_pass(n_kept, second_pass, monkeypatch):
    C, _, b = random_problem(23, 5)
    monkeypatch.setattr(semirelaxed, "_BLOCK_ENTRIES", 4 * 5)
    monkeypatch.setattr(semirelaxed, "_KEPT_BYTES", n_kept * 4 * 5 * 8)
    _, calls = solve_recorded(C, b, 0.1)
    assert [row for rows in calls for row in rows] == [*range(23), *second_pass]


def test_no_row_beyond_the_last_is_asked_for():
    C, _, b = random_problem(23, 5)
    (weights, _), _ = solve_recorded(C, b, 0.1, n_rows=20)
    assert_same(weights, semirelaxed_weights(C[:20], b, 0.1), atol=1e-14)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("entries", [5, 15, 1000])
def test_exponents_far_apart_are_summed_block_by_block(
    entries, descending, monkeypatch
):
    """The least cost of a column may be in the first block or in the last."""
    C, _, b = random_problem(23, 5)
    C = 1e3 * C.sort(0, descending=descending).values
    monkeypatch.setattr(semirelaxed, "_BLOCK_ENTRIES", entries)
    expected = (torch.softmax(-C / 1e-3, 0) * b).sum(1)
    assert_same(semirelaxed_weights(C, b, 1e-3), expected, atol=1e-12)


@pytest.mark.parametrize("n_rows", [1, 50, 63, 64, 192])
def test_column_minima(n_rows):
    C, _, _ = random_problem(2, n_rows, 3)
    assert_same(semirelaxed._column_minima(C), C.amin(-2), atol=0.0)


@pytest.mark.parametrize("entries", [9, 1000])
@pytest.mark.parametrize("moved", ["costs", "masses"])
def test_gradients_are_those_of_the_formula(moved, entries, monkeypatch):
    monkeypatch.setattr(semirelaxed, "_BLOCK_ENTRIES", entries)
    C, toward, b = random_problem(13, 4)
    leaf = (C if moved == "costs" else b).requires_grad_()
    weights, cost = solve_semirelaxed(C, b, 0.1)
    (found,) = torch.autograd.grad((weights * toward).sum() + cost, leaf)
    plan = torch.softmax(-C / 0.1, 0) * b
    value = (plan.sum(1) * toward).sum() + (C * plan).sum()
    (expected,) = torch.autograd.grad(value, leaf)
    assert_same(found, expected, atol=1e-12)


def test_closed_form_of_a_batch():
    C, _, b = random_problem(2, 3, 8, 4)
    weights = semirelaxed_weights(C, b, 0.1)
    assert weights.shape == (2, 3, 8)
    for i in range(2):
        for j in range(3):
            expected = naive_semirelaxed(C[i, j], b[i, j], 0.1)
            assert_same(weights[i, j], expected, atol=1e-14)
    shared = semirelaxed_weights(C, b[0, 0], 0.1)
    assert_same(shared[1, 2], naive_semirelaxed(C[1, 2], b[0, 0], 0.1), atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reg", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("largest_cost", [0.0, 1.0, 1e3])
def test_closed_form_is_finite_and_sums_to_the_mass(largest_cost, reg, dtype):
    C, _, b = random_problem(50, 7)
    weights, cost = solve_semirelaxed((C * largest_cost).to(dtype), 3 * b, reg)
    assert weights.dtype == cost.dtype == dtype
    assert torch.isfinite(cost)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_closed_form_of_costs_that_are_no_floats(dtype):
    C = (random_problem(13, 4)[0] > 0.5).to(dtype)
    b = uniform(4, torch.float32)
    for cost in (C, lambda rows: C[rows]):
        weights, total = solve_semirelaxed(cost, b, 0.1, n_rows=13)
        expected = solve_semirelaxed(C.float(), b, 0.1)
        assert weights.dtype == total.dtype == torch.float32
        assert_same(weights, expected[0], atol=0.0)
        assert_same(total, expected[1], atol=0.0)


def test_closed_form_reports_the_cost_of_its_plan():
    C, _, b = random_problem(13, 4)
    _, cost = solve_semirelaxed(C, b, 0.1)
    expected = (C * torch.softmax(-C / 0.1, 0) * b).sum()
    assert_same(cost, expected, atol=1e-14)


def test_label_cost_gives_inverse_class_frequencies():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2])
    C = (labels[:, None] != torch.arange(3)).double()
    expected = 1 / (3 * labels.bincount()[labels].double())
    distances = [
        (semirelaxed_weights(C, uniform(3), reg) - expected).abs().max().item()
        for reg in (1.0, 0.3, 0.1, 0.02)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-15


def test_no_entropy_weight_left_gives_uniform_weights():
    C, _, b = random_problem(20, 4)
    assert_same(semirelaxed_weights(C, b, 1e9), uniform(20), atol=1e-9)


@pytest.mark.parametrize("reg", [0.05, 0.3])
def test_closed_form_minimises_over_the_row_masses(reg):
    C, _, b = random_problem(9, 4)
    generator = seeded(3)

    def objective(a):
        return entropic_objective(C, sinkhorn(C, a, b, reg, tol=1e-12).plan, reg).item()

    best = semirelaxed_weights(C, b, reg)
    least = objective(best)
    # Duality gives the value: sum_j b_j (-reg log sum_i exp(-C_ij / reg) + reg log b_j)
    value = reg * (b * (b.log() - torch.logsumexp(-C / reg, 0))).sum()
    assert least == pytest.approx(value.item(), abs=1e-10)
    for size in (1e-2, 0.1, 1.0):
        for _ in range(5):
            noise = torch.randn(9, generator=generator).double()
            other = best * (size * noise).exp()
            assert objective(other / other.sum()) > least
    assert objective(uniform(9)) > least


def test_gradient_descent_on_the_row_masses_finds_the_closed_form():
    """With the entropy, the potential of the rows is the gradient."""
    C, a, b = random_problem(9, 4)
    for _ in range(60):
        f = sinkhorn(C, a, b, 0.3, tol=1e-12).f
        a = a * torch.exp(-2.0 * (f - f.mean()))
        a = a / a.sum()
    assert_same(a, semirelaxed_weights(C, b, 0.3), atol=1e-8)


def test_closed_form_at_scale_keeps_a_bounded_working_set(monkeypatch):
    monkeypatch.setattr(semirelaxed, "_BLOCK_ENTRIES", 2**12)
    largest = 0

    def cost(rows):
        nonlocal largest
        block = torch.arange(rows.start, min(rows.stop, 20_000)) % 8
        C = (block[:, None] != torch.arange(8)).float()
        largest = max(largest, C.numel())
        return C

    weights = semirelaxed_weights(cost, uniform(8), 0.01, n_rows=20_000)
    assert largest <= 2**12
    assert_same(weights, uniform(20_000), atol=1e-9)
