"""Sinkhorn's iteration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sk_otreweight._validation import check_finite_cost
from sk_otreweight.transport.adjoint import solve_coupled
from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    plan_and_error,
)

# Sinkhorn looks at its error every so many sweeps: a look waits for the device.
_CHECK_EVERY = 10
# Longest moves of log-potentials by a Newton step that are tried (between blocks of the
# plan that are almost separate the full step is far too long), and the largest
# system worth a step.
_NEWTON_REACHES = (float("inf"), 10.0, 3.0, 1.0)
_NEWTON_MAX_SIZE = 1024
# As shares of the largest cost: reg below which it is lowered step by step at once, the
# value this begins with; and the factor of a step, a second one if that was too quick.
_ANNEAL_BELOW, _ANNEAL_FROM, _ANNEAL_FACTORS = 0.01, 0.1, (0.7, 0.9)


class SinkhornSolver(TransportSolver):
    """Sinkhorn's iteration in the log domain, helped where it is slow.

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
        finish = partial(_iterate, C, a, b, reg, max_iter=self.max_iter, tol=self.tol)
        largest_cost = C.max().item()  # NaN if any entry is
        check_finite_cost(largest_cost)
        if not accelerate or init is not None or reg >= _ANNEAL_BELOW * largest_cost:
            solution = finish(init, accelerate=accelerate)
            if solution.converged or not accelerate:
                return solution
        for factor in _ANNEAL_FACTORS:
            g, sweeps = _anneal(C, a, b, reg, largest_cost, factor)
            solution = finish(g, accelerate=True)
            if solution.converged:
                break
        return replace(solution, n_iter=sweeps + solution.n_iter)


def _anneal(
    C: Tensor, a: Tensor, b: Tensor, reg: float, largest_cost: float, factor: float
) -> tuple[Tensor | None, int]:
    """Return potentials that are nearly right for `reg`, and the sweeps this took.

    `reg` is lowered step by step: between blocks of the plan that a small `reg` keeps
    apart, neither sweeps nor Newton steps move potentials that are far off.
    """
    level, g, sweeps = largest_cost * _ANNEAL_FROM, None, 0
    while level > reg:
        solution = _iterate(
            C, a, b, level, g, max_iter=_CHECK_EVERY, tol=0.0, accelerate=True
        )
        g, sweeps = solution.g, sweeps + solution.n_iter
        level *= factor
    return g, sweeps


def _iterate(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float,
    g: Tensor | None,
    *,
    max_iter: int,
    tol: float,
    accelerate: bool,
) -> TransportPlan:
    """Sweep until the error of the column sums is at most `tol`."""
    logits, log_a, log_b = C / -reg, a.log(), b.log()
    u = torch.zeros_like(a)
    if g is not None:
        u = _row_update(logits, log_a, g.double().expand_as(b) / reg)
    for n_iter in range(1, max_iter + 1):
        v = log_b - torch.logsumexp(logits + u[..., None], -2)
        u = _row_update(logits, log_a, v)
        if n_iter % _CHECK_EVERY and n_iter != max_iter:
            continue
        plan, error = plan_and_error(logits, u, v, b)
        if bool((error <= tol).all()):
            break
        if accelerate:
            u, v = _newton_step(logits, log_a, a, b, u, v, plan, error)
            plan, error = plan_and_error(logits, u, v, b)
    converged = bool((error <= tol).all())
    cost = (C * plan).sum((-2, -1))
    return TransportPlan(plan, u * reg, v * reg, n_iter, converged, error, cost)


def _row_update(logits: Tensor, log_a: Tensor, v: Tensor) -> Tensor:
    return log_a - torch.logsumexp(logits + v[..., None, :], -1)


def _newton_step(
    logits: Tensor,
    log_a: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor,
    v: Tensor,
    plan: Tensor,
    error: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move the potentials along a Newton step, as far as the error is least."""
    S = torch.softmax(logits + v[..., None, :], -1)
    R = torch.softmax(logits + u[..., None], -2)
    column = plan.sum(-2)
    lack = torch.where(column > 0, (b - column) / column, torch.zeros_like(b))
    _, direction = solve_coupled(S, R, a, column, torch.zeros_like(a), lack)
    length = (direction.amax(-1) - direction.amin(-1)).clamp(min=1e-300)[..., None]
    best_u, best_v, best_error = u, v, error
    for reach in _NEWTON_REACHES:
        new_v = v + (reach / length).clamp(max=1) * direction
        new_u = _row_update(logits, log_a, new_v)
        _, new_error = plan_and_error(logits, new_u, new_v, b)
        better = (new_error < best_error)[..., None]  # False for NaN
        best_u = torch.where(better, new_u, best_u)
        best_v = torch.where(better, new_v, best_v)
        best_error = torch.where(better[..., 0], new_error, best_error)
    return best_u, best_v
