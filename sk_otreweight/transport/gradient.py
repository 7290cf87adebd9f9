"""The transport cost of Eq. 10 and its exact gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sk_otreweight._validation import check_reg
from sk_otreweight.transport.adjoint import positive, solve_for_columns
from sk_otreweight.transport.arrays import as_tensor, library_of
from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    warn_unconverged,
)
from sk_otreweight.transport.problem import Problem, result_dtype, unflattened
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
    batch = C.shape[:-2]

    def flat(x: Tensor) -> Tensor:
        return x.double().reshape(-1, *x.shape[len(batch) :])

    with torch.no_grad():
        C, solution = flat(C), solution.map(flat)
        p, q = adjoint_potentials(C, solution)
        grad_b = _column_gradient(C, solution, reg, p, q)
        grad_C = cost_gradient(C, solution, reg, p, q)
        return tuple(unflattened(x, batch) for x in (centred(p), grad_b, grad_C))


def adjoint_potentials(C: Any, solution: TransportPlan) -> tuple[Any, Any]:
    """Return the adjoint potentials p (..., n) and q (..., m) at solved problems.

    Those of :func:`transport_gradient`, up to a constant; `centred` p is the gradient
    with respect to the masses of the rows. q has no meaning for columns without mass.

    Parameters
    ----------
    C : array of shape (n, m) or Tensor of shape (P, n, m)
        In float64.
    solution : TransportPlan
        Of arrays or tensors alike.
    """
    plan, S, row_cost = solution.plan, solution.conditional, solution.row_cost
    matmul = library_of(C).matmul
    r = row_cost[..., None]
    mass = positive(plan.sum(-2)[..., None])
    if plan.shape[-1] <= plan.shape[-2]:
        right = ((C - r) * plan).sum(-2)[..., None]
        q = solve_for_columns(plan, S, mass, right, refine=True)
    else:
        a = plan.sum(-1)[..., None]
        of_columns = (plan / mass.swapaxes(-1, -2)).swapaxes(-1, -2)
        s = (C * plan).sum(-2)[..., None] / mass
        right = a * r - matmul(plan, s)
        transposed = plan.swapaxes(-1, -2)
        p = solve_for_columns(transposed, of_columns, positive(a), right, refine=True)
        q = s - matmul(of_columns, p)
    # Of rows without mass as well, which the system knows nothing of.
    return (r - matmul(S, q))[..., 0], q[..., 0]


def centred(x: Any) -> Any:
    """Return a gradient on the simplex, determined up to a constant, of mean zero."""
    return x - (x.sum(-1) / x.shape[-1])[..., None]


def _column_gradient(
    C: Tensor, solution: TransportPlan, reg: float, p: Tensor, q: Tensor
) -> Tensor:
    """Return the gradient (P, m) with respect to the masses of the columns."""
    logits = (solution.f[..., None] - C) / reg
    lone = ((C - p[..., None]) * torch.softmax(logits, -2)).sum(-2)
    return centred(torch.where(solution.plan.sum(-2) > 0, q, lone))


def cost_gradient(
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
        problem = Problem.of(C, a, b, init, on_arrays=solver.takes_arrays)
        solution = _solved(problem, reg, solver)
        to_output = partial(unflattened, batch=C.shape[:-2], dtype=result_dtype(C))
        needs_C, needs_a, needs_b = needs = ctx.needs_input_grad[:3]
        if any(needs):
            p, q = adjoint_potentials(problem.C, solution)
            grad_C = grad_a = grad_b = None
            if needs_a:
                grad_a = to_output(centred(p))
            if needs_b or needs_C:
                C_flat, whole = as_tensor(problem.C), solution.map(as_tensor)
                of_all = C_flat, whole, reg, as_tensor(p), as_tensor(q)
                grad_C = to_output(cost_gradient(*of_all)) if needs_C else None
                grad_b = to_output(_column_gradient(*of_all)) if needs_b else None
            ctx.save_for_backward(grad_C, grad_a, grad_b)
            ctx.shapes = C.shape, a.shape, b.shape
        return to_output(solution.cost)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        row = grad.unsqueeze(-1)
        factors = row.unsqueeze(-1), row, row
        saved = zip(factors, ctx.saved_tensors, ctx.shapes, strict=True)
        grads = (
            None if x is None else (factor * x).sum_to_size(shape)
            for factor, x, shape in saved
        )
        return *grads, None, None, None


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
    Its gradient is exact at convergence (see the user guide), and takes one
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


def transport_value_and_grad(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float = 0.1,
    *,
    solver: TransportSolver | None = None,
    init: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the transport cost ``<C, T>`` and its gradient with respect to `a`.

    The same numbers as :func:`transport_cost` and its backward pass, in one call and
    without a graph: for a loop that steps the masses itself.

    Parameters
    ----------
    C, a, b, reg, solver, init
        As in :func:`transport_cost`.

    Returns
    -------
    cost : Tensor of shape (...,)
    grad : Tensor of shape (..., n)
        Of mean zero, as the masses live on a simplex.

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
    >>> from sk_otreweight import transport_value_and_grad
    >>> C = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> a, b = torch.full((3,), 1 / 3), torch.tensor([0.5, 0.5])
    >>> cost, grad = transport_value_and_grad(C, a, b, reg=0.05)
    >>> grad
    tensor([ 0.3333,  0.3333, -0.6667])
    """
    solver = SinkhornSolver() if solver is None else solver
    problem = Problem.of(C, a, b, init, on_arrays=solver.takes_arrays)
    solution = _solved(problem, reg, solver)
    grad = centred(adjoint_potentials(problem.C, solution)[0])
    to_output = partial(unflattened, batch=C.shape[:-2], dtype=result_dtype(C))
    return to_output(solution.cost), to_output(grad)


def _solved(problem: Problem, reg: float, solver: TransportSolver) -> TransportPlan:
    """Return the solution, and warn if it is none."""
    solver.check_parameters()
    check_reg(reg)
    solution = solver.solve_problem(problem, reg)
    if not solution.converged:
        warn_unconverged(solution, max_iter=solver.max_iter, tol=solver.tol, reg=reg)
    return solution
