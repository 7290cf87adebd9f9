"""Sinkhorn's iteration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sk_otreweight._validation import check_finite_cost
from sk_otreweight.transport.adjoint import root_of, solve_columns, symmetric_plan
from sk_otreweight.transport.domains import Domain, KernelDomain, LogDomain
from sk_otreweight.transport.plan import TransportPlan, TransportSolver

# Sinkhorn looks at its error every so many sweeps: a look waits for the device.
_CHECK_EVERY = 10
# Longest moves of log-potentials by a Newton step that are tried (between blocks of the
# plan that are almost separate the full step is far too long; 0 stays), and the
# largest system worth a step.
_NEWTON_REACHES = (float("inf"), 10.0, 3.0, 1.0, 0.0)
_NEWTON_MAX_SIZE = 1024
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
    tol : float, default=1e-6
        Largest L1 error of the column sums.
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

    def __init__(self, max_iter: int = 200, tol: float = 1e-6, accelerate: bool = True):
        self.max_iter = max_iter
        self.tol = tol
        self.accelerate = accelerate

    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        accelerate = self.accelerate and min(C.shape[-2:]) <= _NEWTON_MAX_SIZE
        largest_cost = C.max().item()  # NaN if any entry is
        check_finite_cost(largest_cost)
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


def _iterate(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float,
    g: Tensor | None,
    *,
    span: float,
    max_iter: int,
    tol: float,
    accelerate: bool,
) -> TransportPlan:
    """Sweep until the error of the column sums is at most `tol`."""
    kind = KernelDomain if span <= KernelDomain.max_span * reg else LogDomain
    domain = kind(C, a, b, reg)
    # A sweep updates columns, then rows. As only the columns' potential is held, a cold
    # start is the first half of a sweep.
    v, error, n_iter = _sweep(
        domain, domain.start(g), int(g is None), max_iter, tol, accelerate
    )
    f, g = domain.potentials(v)
    return TransportPlan.of(
        C,
        a,
        domain.conditional(v),
        f=f,
        g=g,
        n_iter=n_iter,
        converged=bool((error <= tol).all()),
        marginal_error=error,
    )


def _sweep(
    domain: Domain,
    v: Tensor,
    n_done: int,
    max_iter: int,
    tol: float,
    accelerate: bool,
) -> tuple[Tensor, Tensor, int]:
    """Return potentials, errors and sweeps; `n_done` sweeps count as done before."""
    n_iter = 0
    while True:
        n_sweeps = min(_CHECK_EVERY, max_iter - n_iter)
        v = domain.sweep(v, n_sweeps - n_done)
        n_iter, n_done = n_iter + n_sweeps, 0
        columns = domain.column_sums(v)
        error = (columns - domain.b).abs_().sum((-2, -1))
        is_open = ~(error <= tol)  # true of NaN
        if accelerate and bool(is_open.any()):
            v, error = _newton_step(domain, v, columns)
            is_open = ~(error <= tol)
        n_open = int(is_open.sum())
        if not n_open or n_iter == max_iter:
            return v, error, n_iter
        if 2 * n_open <= len(v):  # go on with these alone
            rest = domain.subset(is_open)
            solved = _sweep(rest, v[is_open], 0, max_iter - n_iter, tol, accelerate)
            v[is_open], error[is_open] = solved[:2]
            return v, error, n_iter + solved[2]


def _newton_step(domain: Domain, v: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Move the potentials along a Newton step, as far as the error is least."""
    root_a, root_b = root_of(domain.a), root_of(columns)
    M = symmetric_plan(domain.a * domain.conditional(v), root_a, root_b)
    right = (domain.b - columns) / root_b
    if M.shape[-1] <= M.shape[-2]:
        y = solve_columns(M, root_b, right)
    else:
        x = solve_columns(M.mT, root_a, -(M @ right))
        y = torch.baddbmm(right, M.mT, x, alpha=-1)
    direction = (y / root_b).nan_to_num_(0.0, 0.0, 0.0)
    length = direction.amax(-2, keepdim=True) - direction.amin(-2, keepdim=True)
    reaches = torch.tensor(_NEWTON_REACHES, dtype=v.dtype, device=v.device)
    steps = (reaches / length.clamp_(min=1e-300)).clamp_(max=1)
    trials = domain.move(v, direction * steps)
    errors = (domain.column_sums(trials) - domain.b).abs_().sum(-2, keepdim=True)
    error, best = errors.nan_to_num_(torch.inf).min(-1, keepdim=True)
    v = trials.gather(-1, best.expand_as(v))
    return v, error[..., 0, 0]
