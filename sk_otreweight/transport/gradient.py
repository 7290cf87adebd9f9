"""The transport cost of Eq. 10 and its exact gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sk_otreweight._validation import check_transport_shapes
from sk_otreweight.transport.adjoint import root_of, solve_columns, symmetric_plan
from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    warn_unconverged,
)
from sk_otreweight.transport.sinkhorn import SinkhornSolver


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
    shape, problem = C.shape, C.shape[-2:]
    with torch.no_grad():
        C = C.double().reshape(-1, *problem)
        batch = shape[:-2]
        solution = solution.map(
            lambda x: x.reshape(-1, *x.shape[len(batch) :]).double()
        )
        p, q = adjoint_potentials(C, solution)
        grad_b = _column_gradient(C, solution, reg, p, q)
        grad_C = _cost_gradient(C, solution, reg, p, q)
        return tuple(
            x.reshape(batch + x.shape[1:]) for x in (centred(p), grad_b, grad_C)
        )


def adjoint_potentials(C: Tensor, solution: TransportPlan) -> tuple[Tensor, Tensor]:
    """Return the adjoint potentials p (P, n) and q (P, m) at P solved problems.

    Those of :func:`transport_gradient`, up to a constant; `centred` p is the gradient
    with respect to the masses of the rows. q has no meaning for columns without mass.

    Parameters
    ----------
    C : Tensor of shape (P, n, m)
        In float64.
    solution : TransportPlan
        In float64.
    """
    plan, S, r = solution.plan, solution.conditional, solution.row_cost[..., None]
    a, b = plan.sum(-1, keepdim=True), plan.sum(-2)[..., None]
    root_a, root_b = root_of(a), root_of(b)
    M = symmetric_plan(plan, root_a, root_b)
    if M.shape[-1] <= M.shape[-2]:
        right = ((C - r) * plan).sum(-2)[..., None] / root_b
        q = solve_columns(M, root_b, right, refine=True) / root_b
    else:
        s = (C * plan).sum(-2)[..., None] / (root_b * root_b)
        right = root_a * torch.baddbmm(r, S, s, alpha=-1)
        x = solve_columns(M.mT, root_a, right, refine=True)
        q = s - torch.bmm(M.mT, x) / root_b
    # Of rows without mass as well, which the system knows nothing of.
    p = torch.baddbmm(r, S, q, alpha=-1)
    return p[..., 0], q[..., 0]


def centred(x: Tensor) -> Tensor:
    """Return a gradient on the simplex, determined up to a constant, of mean zero."""
    return x - x.mean(-1, keepdim=True)


def _column_gradient(
    C: Tensor, solution: TransportPlan, reg: float, p: Tensor, q: Tensor
) -> Tensor:
    """Return the gradient (P, m) with respect to the masses of the columns."""
    logits = (solution.f[..., None] - C) / reg
    lone = ((C - p[..., None]) * torch.softmax(logits, -2)).sum(-2)
    return centred(torch.where(solution.plan.sum(-2) > 0, q, lone))


def _cost_gradient(
    C: Tensor, solution: TransportPlan, reg: float, p: Tensor, q: Tensor
) -> Tensor:
    """Return ``T (1 + (p + q - C) / reg)`` (P, n, m)."""
    return solution.plan * (1 + (p[..., None] + q[..., None, :] - C) / reg)


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
        ctx.save_for_backward(C)
        ctx.reg, ctx.shapes = reg, (a.shape, b.shape)
        # As one batch of problems, which is what solver and gradient work on.
        check_transport_shapes(C, a, b)
        batch, (n, m) = C.shape[:-2], C.shape[-2:]
        C = C.reshape(-1, n, m)
        a, b = (x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1]) for x in (a, b))
        if init is not None:
            init = init.expand(*batch, m).reshape(-1, m)
        ctx.solution = solution = solver.solve(C, a, b, reg, init)
        if not solution.converged:
            warn_unconverged(
                solution,
                max_iter=solver.max_iter,
                tol=solver.tol,
                reg=reg,
            )
        return solution.cost.reshape(batch).to(C.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        (C,) = ctx.saved_tensors
        batch, dtype, reg, solution = C.shape[:-2], C.dtype, ctx.reg, ctx.solution
        C = C.double().reshape(-1, *C.shape[-2:])
        p, q = adjoint_potentials(C, solution)

        def scaled(x: Tensor) -> Tensor:
            x = x.reshape(batch + x.shape[1:])
            return (grad.reshape(batch + (1,) * (x.ndim - len(batch))) * x).to(dtype)

        needs_C, needs_a, needs_b = ctx.needs_input_grad[:3]
        grad_C = grad_a = grad_b = None
        if needs_C:
            grad_C = scaled(_cost_gradient(C, solution, reg, p, q))
        if needs_a:
            grad_a = scaled(centred(p)).sum_to_size(ctx.shapes[0])
        if needs_b:
            grad_b = scaled(_column_gradient(C, solution, reg, p, q))
            grad_b = grad_b.sum_to_size(ctx.shapes[1])
        return grad_C, grad_a, grad_b, None, None, None


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
