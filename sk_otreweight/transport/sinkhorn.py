"""Sinkhorn's iteration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sk_otreweight._validation import check_cost_range
from sk_otreweight.transport.adjoint import positive, solve_for_columns
from sk_otreweight.transport.arrays import as_array, library_of
from sk_otreweight.transport.domains import Domain, KernelDomain, LogDomain
from sk_otreweight.transport.plan import TransportPlan, TransportSolver
from sk_otreweight.transport.problem import Problem

# Sinkhorn looks at its error every so many sweeps: a look waits for the device.
_CHECK_EVERY = 10
# Longest moves of log-potentials that are tried where a full Newton step is too long,
# as between blocks of the plan that are almost separate, and the largest system that is
# worth a step.
_NEWTON_REACHES, _NEWTON_MAX_SIZE = (10.0, 3.0, 1.0), 1024
# L1 error from which on a Newton step is tried at the first look.
_NEAR = 0.03
# Share of the mass by which the totals of the marginals may differ by rounding.
_SAME_MASS = 1e-5
# As shares of the largest cost: reg below which it is lowered step by step at once, the
# value this begins with; and the factor of a step, a second one if that was too quick.
_ANNEAL_BELOW, _ANNEAL_FROM, _ANNEAL_FACTORS = 0.01, 0.1, (0.7, 0.9)


class SinkhornSolver(TransportSolver):
    """Sinkhorn's iteration, helped where it is slow.

    A sweep is two matrix products with the kernel ``exp(-C / reg)``; where `reg` is
    so small that float64 does not hold the kernel, it is done on logarithms, with the
    same result.

    Plain sweeps slow down when `reg` is small against the costs, and when the plan is
    almost block diagonal, as it is near the best weights, where mass hardly flows
    between the classes. So after every ten sweeps a Newton step on the potentials is
    tried, and kept if it lowers the error; and where that is not enough, or `reg` is
    very small, `reg` is lowered to its value step by step.

    Parameters
    ----------
    max_iter : int, default=200
        Most sweeps (one update of each potential) at the final `reg`; 200 is the
        paper's.
    tol : float, default=1e-9
        Largest L1 error of the column sums. Newton steps square the error, so that a
        small one costs little, and gradients need it where classes hardly mix.
    accelerate : bool, default=True
        Whether to help; if not, the iterates are those of the textbook's algorithm.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import SinkhornSolver
    >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> half = torch.tensor([0.5, 0.5])
    >>> SinkhornSolver(tol=1e-9).solve(C, half, half, reg=1.0).plan
    tensor([[0.3655, 0.1345],
            [0.1345, 0.3655]], dtype=torch.float64)
    """

    takes_arrays = True

    def __init__(self, max_iter: int = 200, tol: float = 1e-9, accelerate: bool = True):
        self.max_iter = max_iter
        self.tol = tol
        self.accelerate = accelerate

    def _solve(self, C: Any, a: Any, b: Any, reg: float, init: Any) -> TransportPlan:
        accelerate = self.accelerate and min(C.shape[-2:]) <= _NEWTON_MAX_SIZE
        largest_cost = C.max().item()  # NaN if any entry is
        check_cost_range(C.min().item(), largest_cost)
        iterate = partial(_iterate, C, a, b, span=largest_cost)
        finish = partial(iterate, reg, max_iter=self.max_iter, tol=self.tol)
        if not accelerate or init is not None or reg >= _ANNEAL_BELOW * largest_cost:
            solution = finish(init, accelerate=accelerate)
            if solution.converged or not accelerate:
                return solution
        for factor in _ANNEAL_FACTORS:
            g, sweeps = None, 0
            for level in _levels(largest_cost, reg, factor):
                rough = iterate(
                    level, g, max_iter=_CHECK_EVERY, tol=0.0, accelerate=True
                )
                g, sweeps = rough.g, sweeps + rough.n_iter
            solution = finish(g, accelerate=True)
            if solution.converged:
                break
        return replace(solution, n_iter=sweeps + solution.n_iter)


def _levels(largest_cost: float, reg: float, factor: float) -> list[float]:
    """Return the values through which `reg` is lowered to its own, the last left out.

    Between blocks of the plan that a small `reg` keeps apart, neither sweeps nor Newton
    steps move potentials that are far off.
    """
    levels, level = [], largest_cost * _ANNEAL_FROM
    while level > reg:
        levels.append(level)
        level *= factor
    return levels


@np.errstate(all="ignore")  # as torch does
def _iterate(
    C: Any,
    a: Any,
    b: Any,
    reg: float,
    g: Any,
    *,
    span: float,
    max_iter: int,
    tol: float,
    accelerate: bool,
) -> TransportPlan:
    """Sweep until the error of the column sums is at most `tol`."""
    if span <= KernelDomain.max_span * reg:
        domain = KernelDomain(C, a, b, reg)
    elif isinstance(C, Tensor):
        domain = LogDomain(C, a, b, reg)
    else:  # logarithms have no arrays
        problem = Problem(C, a, b, g).tensors()
        options = {"max_iter": max_iter, "tol": tol, "accelerate": accelerate}
        C, a, b, g = problem
        return _iterate(C, a, b, reg, g, span=span, **options).map(as_array)
    # Exponents are rounded by about 1e-16 of their size.
    tols = tol + _rounding(domain.a, domain.b) + 1e-15 * span / reg
    # A sweep updates columns, then rows. As only the columns' potential is held, a cold
    # start is the first half of a sweep.
    v, error, n_iter = _sweep(
        domain, domain.start(g), int(g is None), max_iter, tols, accelerate
    )
    f, g = domain.potentials(v)
    # Masses below zero may be transported as well, but have no logarithm.
    is_solved = (error <= tols) & (f == f).all(-1) & (g == g).all(-1)
    return TransportPlan.of(
        C,
        a,
        domain.conditional(v),
        f=f,
        g=g,
        n_iter=n_iter,
        converged=bool(is_solved.all()),
        marginal_error=error + 0,  # a tensor that knows of gradients
    )


@torch.inference_mode()  # spares small problems the book-keeping of gradients
def _sweep(
    domain: Domain,
    v: Any,
    n_done: int,
    max_iter: int,
    tols: Any,
    accelerate: bool,
) -> tuple[Any, Any, int]:
    """Sweep until the errors are at most `tols` (...,).

    Returns potentials, errors and sweeps, of which `n_done` were done before.
    """
    n_iter, count = 0, library_of(v).count
    while True:
        n_sweeps = min(_CHECK_EVERY, max_iter - n_iter)
        v = domain.sweep(v, n_sweeps - n_done)
        n_iter, n_done = n_iter + n_sweeps, 0
        columns = domain.column_sums(v)
        error = _error(columns, domain.b)[..., 0]
        n_open = domain.n_problems - count(error <= tols)  # NaN is no solution
        # Far from the solution, sweeps get further in the time of a Newton step.
        is_first = n_iter == _CHECK_EVERY < max_iter
        is_far = is_first and bool(error.max() > _NEAR)
        if accelerate and n_open and not is_far:
            v, error = _newton_step(domain, v, columns, error)
            n_open = domain.n_problems - count(error <= tols)
        if not n_open or n_iter == max_iter:
            return v, error, n_iter
        if 2 * n_open <= domain.n_problems:  # go on with these alone
            is_open = ~(error <= tols)
            rest, most = domain.subset(is_open), max_iter - n_iter
            solved = _sweep(rest, v[is_open], 0, most, tols[is_open], accelerate)
            v[is_open], error[is_open] = solved[:2]
            return v, error, n_iter + solved[2]


def _rounding(a: Any, b: Any) -> Any:
    """Return by how much the totals of the marginals differ, if by rounding only.

    No plan comes closer to them than that.
    """
    total = a.sum(-2)[..., 0]
    gap = 1.01 * abs(total - b.sum(-2)[..., 0])
    return library_of(a).where(gap <= _SAME_MASS * total, gap, 0.0)


def _error(columns: Any, b: Any) -> Any:
    """Return the L1 error of the column sums (..., k) of k trials."""
    return abs(columns - b).sum(-2)


def _newton_step(domain: Domain, v: Any, columns: Any, error: Any) -> tuple[Any, Any]:
    """Move the potentials along a Newton step, as far as the error is least."""
    library = library_of(v)
    direction = _newton_direction(domain, v, columns)
    full = domain.move(v, direction)
    full_error = _error(domain.column_sums(full), domain.b)
    if library.count(full_error[..., 0] < error) == domain.n_problems:
        return full, full_error[..., 0]
    extent = {"axis": -2, "keepdims": True}
    length = library.amax(direction, **extent) - library.amin(direction, **extent)
    # All are not longer than the full step, and the last one is to stay.
    steps = (library.row(_NEWTON_REACHES, like=v) / length).clip(0, 1)
    trials = library.cat([full, domain.move(v, direction * steps), v], -1)
    errors = _error(domain.column_sums(trials), domain.b)
    errors = library.where(errors == errors, errors, np.inf)  # a NaN is never least
    best = errors.argmin(-1)
    v = library.choose(trials, best)
    return v, library.amin(errors, axis=-1)


def _newton_direction(domain: Domain, v: Any, columns: Any) -> Any:
    """Return the change of the columns' log-potentials that solves a linearisation."""
    library = library_of(v)
    conditional, mass = domain.conditional(v), positive(columns)
    plan, lack = domain.a * conditional, domain.b - columns
    if plan.shape[-1] <= plan.shape[-2]:
        direction = solve_for_columns(plan, conditional, mass, lack)
    else:
        lack = lack / mass
        of_columns = (plan / mass.swapaxes(-1, -2)).swapaxes(-1, -2)
        right = -library.matmul(plan, lack)
        transposed = plan.swapaxes(-1, -2)
        p = solve_for_columns(transposed, of_columns, positive(domain.a), right)
        direction = lack - library.matmul(of_columns, p)
    return direction
