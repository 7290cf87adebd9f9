"""Random and degenerate problems, thousands of them: nothing is NaN, all is optimal."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ot.bregman import sinkhorn_log
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

from sk_otreweight import (
    Reweighter,
    semirelaxed_weights,
    sinkhorn,
    transport_value_and_grad,
)

N_PLANS, N_CLOSED = 4_000, 6_000
plans = settings(derandomize=True, max_examples=N_PLANS, deadline=None, database=None)
few = settings(derandomize=True, max_examples=200, deadline=None, database=None)

SUBNORMAL = 1e-310
seeds = st.integers(0, 2**32 - 1)


def costs(rng, kind, n, m):
    """A cost matrix of some kind, in float64."""
    C = rng.random((n, m))
    return {
        "any": C,
        "few values": (C * 3).round(),
        "zero": np.zeros((n, m)),
        "one": np.ones((n, m)),
        "huge": C * 1e6,
        "huge or zero": (C > 0.5) * 1e6,
        "all scales": 10 ** (12 * C - 6),
        "subnormal": C * SUBNORMAL,
        "duplicate rows": C[rng.integers(0, n, n)],
        "duplicate columns": C[:, rng.integers(0, m, m)],
    }[kind]


KINDS = (
    "any", "few values", "zero", "one", "huge", "huge or zero", "all scales",
    "subnormal", "duplicate rows", "duplicate columns",
)  # fmt: skip


def masses(rng, kind, n):
    mass = rng.random(n) + 1e-3
    if kind == "some zero":
        mass[rng.random(n) < 0.5] = 0
        mass[rng.integers(n)] = 1
    elif kind == "skewed":
        mass = 10 ** rng.uniform(-12, 0, n)
    elif kind == "uniform":
        mass = np.ones(n)
    return mass / mass.sum()


@st.composite
def problems(draw):
    """Any problem of up to 12 rows and 8 columns, one of either included."""
    rng = np.random.default_rng(draw(seeds))
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    mass = st.sampled_from(["any", "some zero", "skewed", "uniform"])
    C = costs(rng, draw(st.sampled_from(KINDS)), n, m)
    a, b = (masses(rng, draw(mass), size) for size in (n, m))
    return C, a, b, 10 ** draw(st.floats(-4, 3))


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def solved(solve, *args, **kwargs):
    """Solve; that a problem did not converge is told, and no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solve(*args, **kwargs)


@pytest.mark.slow
def test_plans_are_optimal(record_property):
    """A plan is the optimum if it has its form and the right marginals.

    The form is exp((f_i + g_j - C_ij) / reg), for some potentials.
    """
    counts = dict.fromkeys(("all", "optimal", "with POT"), 0)

    @plans
    @given(problem=problems())
    def check(problem):
        C, a, b, reg = problem
        solution = solved(sinkhorn, *tensors(C, a, b), reg, max_iter=1_000, tol=1e-10)
        T = solution.plan.numpy()
        assert np.isfinite(T).all()
        assert (T >= 0).all()
        np.testing.assert_allclose(T.sum(1), a, atol=1e-12)
        assert np.isfinite(float(solution.cost))
        counts["all"] += 1
        if not solution.converged:
            return
        counts["optimal"] += 1
        # Exponents have 16 digits: beside a large cost / reg few are left.
        digits = 1e-15 * max(1, np.abs(C).max() / reg)
        np.testing.assert_allclose(T.sum(0), b, atol=1e-9 + 2 * digits)
        f, g = solution.f.numpy(), solution.g.numpy()
        has_mass = (a > 0)[:, None] & (b > 0)
        with np.errstate(over="ignore", invalid="ignore"):
            form = np.where(has_mass, np.exp((f[:, None] + g - C) / reg), 0)
        np.testing.assert_allclose(T, form, rtol=1e-6 + 100 * digits, atol=1e-12)
        # Where hardly any mass flows between blocks, plans with nearly the same sums
        # differ: there POT's would be no measure.
        if np.ptp(C) / reg < 15 and min(a.min(), b.min()) > 1e-6:
            counts["with POT"] += 1
            expected = sinkhorn_log(
                a, b, C, reg, numItermax=20_000, stopThr=1e-13, warn=False
            )
            if np.abs(expected.sum(1) - a).max() < 1e-11:
                np.testing.assert_allclose(T, expected, atol=1e-8)

    check()
    assert counts["all"] >= N_PLANS
    assert counts["optimal"] > 0.8 * N_PLANS
    assert counts["with POT"] > 0.1 * N_PLANS
    record_property("random transport problems solved", counts["all"])


@pytest.mark.slow
def test_closed_forms_and_gradients(record_property):
    n_done = 0

    @settings(plans, max_examples=N_CLOSED)
    @given(problem=problems())
    def check(problem):
        nonlocal n_done
        C, a, b, reg = problem
        weights = semirelaxed_weights(*tensors(C, b), reg).numpy()
        with np.errstate(divide="ignore"):
            log_T = np.log(b) - C / reg - logsumexp(-C / reg, axis=0)
        digits = 1e-15 * max(1, np.abs(C).max() / reg)
        expected = np.exp(log_T).sum(1)
        np.testing.assert_allclose(
            weights, expected, rtol=1e-9 + 100 * digits, atol=1e-12
        )
        value, gradient = solved(transport_value_and_grad, *tensors(C, a, b), reg)
        assert np.isfinite(float(value))
        assert torch.isfinite(gradient).all()
        n_done += 1

    check()
    assert n_done >= N_CLOSED
    record_property("random transport problems solved", n_done)


# --- weights --------------------------------------------------------------------------

FEATURES = ("any", "zero", "same", "huge", "tiny", "subnormal", "sparse")


def features_of(rng, kind, shape, dtype):
    z = rng.normal(size=shape)
    z = {
        "any": z,
        "zero": 0 * z,
        "same": np.broadcast_to(z[:1], shape),
        "huge": z * (1e3 if dtype == torch.float16 else 1e15),
        "tiny": z * (1e-4 if dtype == torch.float16 else 1e-15),
        "subnormal": z * {torch.float16: 1e-7, torch.float32: 1e-42}.get(dtype, 1e-310),
        "sparse": z * (rng.random(shape) < 0.2),
    }[kind]
    return torch.from_numpy(np.ascontiguousarray(z)).to(dtype)


@st.composite
def training_sets(draw):
    """Features of any scale, labels of which some are rare, and a meta row of each."""
    rng = np.random.default_rng(draw(seeds))
    n, n_classes = draw(st.integers(2, 30)), draw(st.integers(2, 4))
    d = draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    kind = draw(st.sampled_from(FEATURES))
    z = features_of(rng, kind, (n, d), dtype)
    z_meta = features_of(rng, kind, (n_classes, d), dtype)
    labels = np.minimum(rng.geometric(0.5, n) - 1, n_classes - 1)
    return z, torch.from_numpy(labels), z_meta, 10 ** draw(st.floats(-4, 3))


def weights_of(problem, cost, strategy, **params):
    z, labels, z_meta, reg = problem
    reweighter = Reweighter(cost, strategy, reg=reg, **params)
    reweighter.set_meta(torch.arange(len(z_meta)), z_meta)
    reweighter.set_training_set(labels, z)
    rows = torch.arange(len(labels))
    for _ in range(2):
        solved(reweighter, z, labels, rows)
    return reweighter.sample_weight(z)


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["label", "feature", "combined"])
@pytest.mark.parametrize("strategy", ["semirelaxed", "vector", "net", "attention"])
def test_weights_are_finite_and_of_mean_one(strategy, cost, record_property):
    n_done = 0

    @few
    @given(problem=training_sets())
    def check(problem):
        nonlocal n_done
        weights = weights_of(problem, cost, strategy).double()
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()
        tolerance = 1e-2 if problem[0].dtype == torch.float16 else 1e-4
        assert abs(float(weights.mean()) - 1) < tolerance
        n_done += 1

    check()
    record_property("training sets weighed", n_done)


@given(problem=training_sets(), seed=seeds)
@settings(few, max_examples=60)
def test_permuted_rows_have_permuted_weights(problem, seed):
    z, labels, z_meta, reg = problem
    z, z_meta = z.double(), z_meta.double()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(z)))
    for strategy in ("semirelaxed", "vector"):
        plain = weights_of((z, labels, z_meta, reg), "combined", strategy)
        permuted = weights_of(
            (z[order], labels[order], z_meta, reg), "combined", strategy
        )
        torch.testing.assert_close(permuted, plain[order], rtol=1e-6, atol=1e-9)


@given(problem=training_sets(), scale=st.floats(1e-3, 1e3))
@settings(few, max_examples=60)
def test_the_scale_of_features_does_not_matter_to_a_cosine(problem, scale):
    z, labels, z_meta, reg = problem
    z, z_meta = z.double(), z_meta.double()
    plain = weights_of((z, labels, z_meta, reg), "feature", "semirelaxed")
    if min(1, scale) * z.norm(dim=1).min() < 1e-6:  # close to 0 there is no direction
        return
    scaled = weights_of(
        (z * scale, labels, z_meta * scale, reg), "feature", "semirelaxed"
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-9)
