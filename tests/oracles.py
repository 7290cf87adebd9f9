"""Independent computations that the tests compare the package with.

Nothing here imports the package. Every assertion helper is shown to fail on a wrong
input in `test_oracles.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def naive_sinkhorn(
    C: Tensor, a: Tensor, b: Tensor, reg: float, n_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Textbook Sinkhorn on the kernel itself; returns the plan and both scalings.

    One problem, rows updated last; autograd can unroll it.
    """
    K = torch.exp(-C / reg)
    u = torch.ones_like(a)
    for _ in range(n_iter):
        v = b / (K.T @ u)
        u = a / (K @ v)
    return u[:, None] * K * v, u, v


def unrolled_cost(C: Tensor, a: Tensor, b: Tensor, reg: float, n_iter: int) -> Tensor:
    """``<C, T>`` of the textbook's plan, differentiable through every sweep."""
    return (C * naive_sinkhorn(C, a, b, reg, n_iter)[0]).sum()


def entropic_objective(C: Tensor, plan: Tensor, reg: float) -> Tensor:
    """``<C, T> - reg * H(T)`` with ``H(T) = -sum T log T``."""
    return (C * plan).sum((-2, -1)) + reg * torch.xlogy(plan, plan).sum((-2, -1))


def assert_same(actual: Tensor, expected: Tensor, *, atol: float) -> None:
    """Same shape, and no entry further away than `atol`; NaN is never the same."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not actual.numel():
        return
    worst = (actual.double() - expected.double()).abs().max().item()
    assert worst <= atol, f"an entry is off by {worst:.3e} > {atol:.0e}"


def assert_transports(plan: Tensor, a: Tensor, b: Tensor, *, atol: float) -> None:
    """Non-negative, row sums `a` and column sums `b` within `atol` in L1."""
    assert torch.isfinite(plan).all()
    assert (plan >= 0).all()
    for sums, mass in ((plan.sum(-1), a), (plan.sum(-2), b)):
        worst = (sums.double() - mass.double()).abs().sum(-1).max().item()
        assert worst <= atol, f"a marginal is off by {worst:.3e} > {atol:.0e}"


def simplex_directions(size: int) -> Tensor:
    """Directions (size - 1, size) that leave the total mass as it is."""
    return (torch.eye(size).double() - torch.eye(size).double().roll(1, 1))[:-1]


def finite_differences(
    function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, step: float
) -> Tensor:
    """Derivatives of a scalar function along `directions` (k, *x.shape).

    Central differences of fourth order in float64.
    """
    assert x.dtype == torch.float64
    with torch.no_grad():
        slopes = []
        for move in step * directions:
            near = function(x + move) - function(x - move)
            far = function(x + 2 * move) - function(x - 2 * move)
            slopes.append((8 * near - far) / (12 * step))
    return torch.stack(slopes)


def assert_slopes(gradient: Tensor, slopes: Tensor, directions: Tensor, *, rtol: float):
    """The gradient has these `slopes` along `directions`, relative to the largest."""
    predicted = (directions * gradient).flatten(1).sum(1)
    worst = (predicted - slopes).abs().max().item()
    scale = slopes.abs().max().item()
    assert worst <= rtol * scale, f"a slope is off by {worst / scale:.3e} > {rtol:.0e}"


def assert_same_gradient(
    actual: Tensor, expected: Tensor, *, rtol: float, up_to_constant: bool = False
) -> None:
    """Relative to the largest entry; `up_to_constant` along the last dimension."""
    if up_to_constant:
        actual = actual - actual.mean(-1, keepdim=True)
        expected = expected - expected.mean(-1, keepdim=True)
    scale = expected.abs().max().item()
    assert_same(actual, expected, atol=rtol * scale)


def assert_class_constant(weights: Tensor, labels: Tensor, *, rtol: float) -> None:
    """All rows of a class have the same weight."""
    for k in labels.unique():
        of_class = weights[labels == k]
        spread = (of_class.max() - of_class.min()).item()
        assert spread <= rtol * of_class.mean().item(), f"class {k}: {of_class}"


def assert_global_rng_untouched(function: Callable[[], object]) -> None:
    """Calling `function` draws nothing from torch's global generator."""
    before = torch.random.get_rng_state()
    function()
    assert torch.equal(before, torch.random.get_rng_state())
