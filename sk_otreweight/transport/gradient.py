"""The transport cost of Eq. 10 and its exact gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sk_otreweight.transport.adjoint import solve_coupled
from sk_otreweight.transport.log_domain import SinkhornSolver
from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    warn_unconverged,
)


def transport_gradient(
    C: Tensor, solution: TransportPlan, reg: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the exact gradient of ``<C, T(a, b, C)>`` at a solved problem.

    Differentiates the optimality conditions instead of unrolling the iterations
    (implicit function theorem). With the row conditionals ``S = T / a`` and the column
    conditionals ``R = T / b`` the adjoint potentials p (n,) and q (m,) solve

        p + S q = sum_j C S,        R' p + q = sum_i C R,

    and ``dL/da = p``, ``dL/db = q``, ``dL/dC = T (1 + (p + q - C) / reg)``. One of
    the two unknowns is eliminated, whichever leaves the smaller system.

    Parameters
    ----------
    C : Tensor of shape (..., n, m)
        Cost of the problem.
    solution : TransportPlan
        Its solution.
    reg : float
        Weight of the entropy it was solved with.

    Returns
    -------
    grad_a : Tensor of shape (..., n)
        Gradient on the simplex: it is determined up to a constant, the one of mean
        zero is returned.
    grad_b : Tensor of shape (..., m)
        Likewise for `b`.
    grad_C : Tensor of shape (..., n, m)
    """
    with torch.no_grad():
        C = C.double()
        f, g, plan = (x.double() for x in (solution.f, solution.g, solution.plan))
        # Softmax instead of T / a and T / b: defined for rows without mass as well.
        S = torch.softmax((g[..., None, :] - C) / reg, -1)
        R = torch.softmax((f[..., :, None] - C) / reg, -2)
        mean_row, mean_column = (C * S).sum(-1), (C * R).sum(-2)
        masses = plan.sum(-1), plan.sum(-2)
        p, q = solve_coupled(S, R, *masses, mean_row, mean_column)
        grad_C = plan * (1 + (p[..., :, None] + q[..., None, :] - C) / reg)
        return p - p.mean(-1, keepdim=True), q - q.mean(-1, keepdim=True), grad_C


class _TransportCost(torch.autograd.Function):
    """``<C, T(a, b, C)>`` with the gradient of `transport_gradient`."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        C: Tensor,
        a: Tensor,
        b: Tensor,
        reg: float,
        solver: TransportSolver,
        init: Tensor | None,
    ) -> Tensor:
        solution = solver.solve(C, a, b, reg, init)
        if not solution.converged:
            warn_unconverged(
                solution,
                max_iter=solver.max_iter,
                tol=solver.tol,
                reg=reg,
            )
        ctx.save_for_backward(C)
        ctx.solution, ctx.reg = solution, reg
        ctx.shapes = a.shape, b.shape
        return solution.cost.to(C.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        (C,) = ctx.saved_tensors
        grad_a, grad_b, grad_C = transport_gradient(C, ctx.solution, ctx.reg)
        grad = grad.double()
        shape_a, shape_b = ctx.shapes
        return (
            (grad[..., None, None] * grad_C).to(C.dtype),
            (grad[..., None] * grad_a).sum_to_size(shape_a).to(C.dtype),
            (grad[..., None] * grad_b).sum_to_size(shape_b).to(C.dtype),
            None,
            None,
            None,
        )


def transport_cost(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float = 0.1,
    *,
    solver: TransportSolver | None = None,
    init: Tensor | None = None,
) -> Tensor:
    """Return the transport cost ``<C, T>`` of the entropic plan, differentiable.

    This is the loss of Eq. 10: the cost of the entropic plan *without* the entropy.
    Its gradient is exact at convergence, see :func:`transport_gradient`, and takes one
    linear system of size min(n, m) instead of the unrolled iterations.

    Parameters
    ----------
    C : Tensor of shape (..., n, m)
        Cost, non-negative.
    a : Tensor of shape (..., n)
        Mass of the rows; zero entries are allowed.
    b : Tensor of shape (..., m)
        Mass of the columns, with the same total.
    reg : float, default=0.1
        Weight of the entropy, > 0.
    solver : TransportSolver, default=None
        Solver of the plan; None for ``SinkhornSolver()``.
    init : Tensor of shape (..., m), default=None
        Dual potential `g` to start from.

    Returns
    -------
    cost : Tensor of shape (...,)
        Differentiable once with respect to `C`, `a` and `b`. The gradients with respect
        to `a` and `b` have mean zero: the masses live on a simplex.

    Raises
    ------
    ValueError
        If `reg` is not positive, the shapes do not fit, or the masses differ.

    Warns
    -----
    ConvergenceWarning
        If the solver does not reach its tolerance: the gradient is inexact then.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import transport_cost
    >>> C = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> a = torch.full((3,), 1 / 3, requires_grad=True)
    >>> transport_cost(C, a, torch.tensor([0.5, 0.5]), reg=0.05).backward()
    >>> a.grad  # more mass for the rare third row lowers the cost
    tensor([ 0.3333,  0.3333, -0.6667])
    """
    solver = SinkhornSolver() if solver is None else solver
    return _TransportCost.apply(C, a, b, reg, solver, init)
