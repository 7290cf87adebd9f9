"""Entropic optimal transport: plan, exact gradient, and a closed form.

All functions take leading batch dimensions, follow the dtype and device of their
input, and compute in float64: with a cost of 1000 and ``reg=1e-3`` the exponents
reach 1e6, where float32 keeps no digit behind the point.

Notation follows the paper (section 3): ``C`` (n, m) is the cost, ``a`` (n,) the mass
of the training rows, ``b`` (m,) that of the balanced distribution Q, ``T`` (n, m) the
plan and ``reg`` the weight lambda of the entropy.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sk_otreweight._validation import (
    check_count,
    check_real,
    check_reg,
    check_same_mass,
    check_transport_shapes,
)

# Sinkhorn looks at its error every so many sweeps: a look waits for the device.
_CHECK_EVERY = 10
# Longest moves of log-potentials by a Newton step that are tried (between blocks of the
# plan that are almost separate the full step is far too long), and the largest
# system worth a step.
_NEWTON_REACHES = (float("inf"), 10.0, 3.0, 1.0)
_NEWTON_MAX_SIZE = 1024
# Below 1 % of the largest cost, reg is lowered step by step by this factor.
_ANNEAL_BELOW, _ANNEAL_FACTOR = 0.01, 0.7
# Below this, directions of the adjoint system hold rounding noise only.
_RIDGE = 1e-12
# Cost entries of a block of rows held at a time by the closed form (64 MiB).
_BLOCK_ENTRIES = 2**23


@dataclass(frozen=True)
class TransportPlan:
    """Solution of an entropic transport problem.

    Attributes
    ----------
    plan : Tensor of shape (..., n, m)
        Transported mass T; its rows sum to `a` exactly, its columns to `b` within
        `marginal_error`.
    f : Tensor of shape (..., n)
        Dual potential of the rows, in units of the cost; ``-inf`` for rows without
        mass.
    g : Tensor of shape (..., m)
        Dual potential of the columns; ``T = exp((f + g - C) / reg)``.
    n_iter : int
        Sinkhorn sweeps done.
    converged : bool
        Whether every problem of the batch reached the tolerance.
    marginal_error : Tensor of shape (...,)
        L1 distance between the column sums of `plan` and `b`.
    cost : Tensor of shape (...,)
        ``<C, T>``, without the entropy (Eq. 10).
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    n_iter: int
    converged: bool
    marginal_error: Tensor
    cost: Tensor

    def to(self, dtype: torch.dtype) -> TransportPlan:
        """Return the same solution with tensors of another dtype."""
        return TransportPlan(
            self.plan.to(dtype),
            self.f.to(dtype),
            self.g.to(dtype),
            self.n_iter,
            self.converged,
            self.marginal_error.to(dtype),
            self.cost.to(dtype),
        )


class TransportSolver(BaseEstimator, ABC):
    """Base of the solvers of the entropic problem; subclasses write `_solve`."""

    def solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None = None
    ) -> TransportPlan:
        """Solve ``min_T <C, T> - reg * H(T)`` subject to ``T 1 = a``, ``T' 1 = b``.

        Parameters
        ----------
        C : Tensor of shape (..., n, m)
            Cost, non-negative.
        a : Tensor of shape (..., n)
            Mass of the rows; zero entries are allowed.
        b : Tensor of shape (..., m)
            Mass of the columns, with the same total.
        reg : float
            Weight of the entropy, > 0.
        init : Tensor of shape (..., m), default=None
            Dual potential `g` to start from.

        Returns
        -------
        solution : TransportPlan
            Tensors in float64; no gradient flows through them.
        """
        check_reg(reg)
        check_transport_shapes(C, a, b)
        with torch.no_grad():
            C, a, b = C.double(), a.double(), b.double()
            batch = C.shape[:-2]
            a = a.expand(*batch, C.shape[-2])
            b = b.expand(*batch, C.shape[-1])
            solution = self._solve(C, a, b, reg, init)
            if not solution.converged:
                check_same_mass(a, b)
        return solution

    @abstractmethod
    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        """Solve with float64 tensors of matching leading dimensions."""


class SinkhornSolver(TransportSolver):
    """Sinkhorn's iteration in the log domain, helped where it is slow.

    Plain sweeps slow down when `reg` is small against the costs, and when the plan is
    almost block diagonal, as it is near the best weights, where mass hardly flows
    between the classes. So `reg` is lowered to its value step by step if it is very
    small, and after every ten sweeps a Newton step on the potentials is
    tried, and kept if it lowers the error.

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
        check_count(self.max_iter, name="max_iter")
        check_real(self.tol, name="tol")
        accelerate = self.accelerate and min(C.shape[-2:]) <= _NEWTON_MAX_SIZE
        g, sweeps = init, 0
        if accelerate and init is None:
            for level in _annealing_levels(C.max().item(), reg):
                solution = _iterate(C, a, b, level, g, _CHECK_EVERY, 0.0, accelerate)
                g, sweeps = solution.g, sweeps + solution.n_iter
        solution = _iterate(C, a, b, reg, g, self.max_iter, self.tol, accelerate)
        return replace(solution, n_iter=sweeps + solution.n_iter)


def _annealing_levels(largest_cost: float, reg: float) -> list[float]:
    """Return the values of reg to go through before `reg`, from large to small."""
    levels = []
    if reg < _ANNEAL_BELOW * largest_cost:
        level = largest_cost / 10
        while level > reg:
            levels.append(level)
            level *= _ANNEAL_FACTOR
    return levels


def _iterate(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float,
    g: Tensor | None,
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
        plan, error = _plan_and_error(logits, u, v, b)
        if bool((error <= tol).all()):
            break
        if accelerate:
            u, v = _newton_step(logits, log_a, a, b, u, v, plan, error)
            plan, error = _plan_and_error(logits, u, v, b)
    converged = bool((error <= tol).all())
    cost = (C * plan).sum((-2, -1))
    return TransportPlan(plan, u * reg, v * reg, n_iter, converged, error, cost)


def _row_update(logits: Tensor, log_a: Tensor, v: Tensor) -> Tensor:
    return log_a - torch.logsumexp(logits + v[..., None, :], -1)


def _plan_and_error(
    logits: Tensor, u: Tensor, v: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    plan = (logits + u[..., None] + v[..., None, :]).exp()
    return plan, (plan.sum(-2) - b).abs().sum(-1)


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
    _, direction = _solve_coupled(S, R, a, column, torch.zeros_like(a), lack)
    length = (direction.amax(-1) - direction.amin(-1)).clamp(min=1e-300)[..., None]
    best_u, best_v, best_error = u, v, error
    for reach in _NEWTON_REACHES:
        new_v = v + (reach / length).clamp(max=1) * direction
        new_u = _row_update(logits, log_a, new_v)
        _, new_error = _plan_and_error(logits, new_u, new_v, b)
        better = (new_error < best_error)[..., None]  # False for NaN
        best_u = torch.where(better, new_u, best_u)
        best_v = torch.where(better, new_v, best_v)
        best_error = torch.where(better[..., 0], new_error, best_error)
    return best_u, best_v


class POTSolver(TransportSolver):
    """POT's ``ot.bregman.sinkhorn_log``, one problem after the other.

    A second opinion on the default solver: slower, and by the authors of the Python
    Optimal Transport library.

    Parameters
    ----------
    max_iter : int, default=10000
        Most sweeps.
    tol : float, default=1e-9
        Stopping threshold of POT, on the Euclidean norm of the error of the column
        sums.
    """

    def __init__(self, max_iter: int = 10_000, tol: float = 1e-9):
        self.max_iter = max_iter
        self.tol = tol

    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        flat = (C.flatten(0, -3) if C.ndim > 2 else C[None],)
        flat += (a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
        solved = [self._solve_one(*problem, reg) for problem in zip(*flat, strict=True)]
        u, v = (torch.stack(potential) for potential in zip(*solved, strict=True))
        u, v = u.reshape(a.shape), v.reshape(b.shape)
        plan, error = _plan_and_error(C / -reg, u, v, b)
        converged = bool((error <= max(10 * self.tol, 1e-8)).all())
        cost = (C * plan).sum((-2, -1))
        return TransportPlan(
            plan, u * reg, v * reg, self.max_iter, converged, error, cost
        )

    def _solve_one(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float
    ) -> tuple[Tensor, Tensor]:
        from ot.bregman import sinkhorn_log

        _, log = sinkhorn_log(
            a, b, C, reg, numItermax=self.max_iter, stopThr=self.tol, log=True,
            warn=False,
        )  # fmt: skip
        return log["log_u"], log["log_v"]


SOLVERS: dict[str, type[TransportSolver]] = {
    "sinkhorn": SinkhornSolver,
    "pot": POTSolver,
}


def sinkhorn(
    C: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float = 0.1,
    *,
    max_iter: int = 200,
    tol: float = 1e-6,
    init: Tensor | None = None,
) -> TransportPlan:
    """Solve the entropic transport problem with Sinkhorn's iteration.

    Minimises ``<C, T> - reg * H(T)`` with ``H(T) = -sum T log T`` over the plans with
    row sums `a` and column sums `b` (Eq. 10), in the log domain.

    Parameters
    ----------
    C : Tensor of shape (..., n, m)
        Cost, non-negative.
    a : Tensor of shape (..., n)
        Mass of the rows; zero entries are allowed.
    b : Tensor of shape (..., m)
        Mass of the columns, with the same total.
    reg : float, default=0.1
        Weight of the entropy, in units of the cost, > 0.
    max_iter : int, default=200
        Most sweeps.
    tol : float, default=1e-6
        Largest L1 error of the column sums.
    init : Tensor of shape (..., m), default=None
        Dual potential `g` to start from, for instance that of a similar problem.

    Returns
    -------
    solution : TransportPlan
        In the dtype of `C`.

    Raises
    ------
    ValueError
        If `reg` is not positive, the shapes do not fit, or the masses differ.

    Warns
    -----
    ConvergenceWarning
        If `tol` is not reached within `max_iter` sweeps.

    References
    ----------
    Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport",
    NeurIPS 2013.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import sinkhorn
    >>> solution = sinkhorn(torch.zeros(2, 3), torch.ones(2) / 2, torch.ones(3) / 3)
    >>> solution.plan
    tensor([[0.1667, 0.1667, 0.1667],
            [0.1667, 0.1667, 0.1667]])
    """
    solution = SinkhornSolver(max_iter=max_iter, tol=tol).solve(C, a, b, reg, init)
    if not solution.converged:
        warnings.warn(
            convergence_message(
                error=solution.marginal_error.max().item(),
                tol=tol,
                max_iter=max_iter,
                reg=reg,
            ),
            ConvergenceWarning,
            stacklevel=2,
        )
    return solution.to(C.dtype)


def convergence_message(*, error: float, tol: float, max_iter: int, reg: float) -> str:
    """Return what to say of a problem that was not solved to the tolerance."""
    return (
        f"Sinkhorn's iteration left a marginal error of {error:.2e} (tol={tol:g}) "
        f"after {max_iter} sweeps. Raise reg (now {reg:g}) or max_iter, or accept the "
        "error by raising tol."
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
        p, q = _solve_coupled(S, R, *masses, mean_row, mean_column)
        grad_C = plan * (1 + (p[..., :, None] + q[..., None, :] - C) / reg)
        return p - p.mean(-1, keepdim=True), q - q.mean(-1, keepdim=True), grad_C


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _solve_coupled(
    S: Tensor, R: Tensor, a: Tensor, b: Tensor, right_row: Tensor, right_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve ``p + S q = right_row, R' p + q = right_column`` by the smaller side.

    S (n, m) and R (n, m) are a plan's row and column conditionals, `a` and `b` its
    marginals. The solution is determined up to a constant, added to p and taken from q.
    """
    if S.shape[-1] <= S.shape[-2]:
        q = _solve_reduced(S, R, b, right_column - _apply(R.mT, right_row))
        p = right_row - _apply(S, q)
        return p, right_column - _apply(R.mT, p)
    p = _solve_reduced(R.mT, S.mT, a, right_row - _apply(S, right_column))
    q = right_column - _apply(R.mT, p)
    return right_row - _apply(S, q), q


def _solve_reduced(S: Tensor, R: Tensor, mass: Tensor, right: Tensor) -> Tensor:
    """Solve ``(I - R' S) q = right``, q up to a constant.

    ``R' S`` is the transition matrix of a reversible Markov chain with stationary
    distribution `mass`, so scaling by its root makes the system symmetric, with
    the root in the null space. A rank-one term fills that; the ridge keeps the system
    positive when the plan is almost block diagonal, and one step of iterative
    refinement takes its effect out of every direction that is not noise.
    """
    root = mass.sqrt()
    kernel = (S * R).sqrt()
    identity = torch.eye(mass.shape[-1], dtype=S.dtype, device=S.device)
    unit = root / root.norm(dim=-1, keepdim=True)
    system = identity - kernel.mT @ kernel + unit[..., :, None] * unit[..., None, :]
    factor, _ = torch.linalg.cholesky_ex(system + _RIDGE * identity)
    scaled_right = (root * right)[..., None]
    scaled = torch.cholesky_solve(scaled_right, factor)
    residual = scaled_right - system @ scaled
    scaled = scaled + torch.cholesky_solve(residual, factor)
    q = scaled[..., 0] / root
    return torch.where(root > 0, q, torch.zeros_like(q))


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


def semirelaxed_weights(
    C: Tensor | Callable[[slice], Tensor],
    b: Tensor,
    reg: float = 0.1,
    *,
    n_rows: int | None = None,
) -> Tensor:
    r"""Return the row masses that minimise the entropic transport problem.

    When the masses of the rows are free as well, the problem has a closed form:
    column j spreads its mass over the rows by a softmax of its costs,

    .. math:: w_i = \sum_j b_j \, \frac{\exp(-C_{ij} / \lambda)}
                                      {\sum_l \exp(-C_{lj} / \lambda)} .

    Two passes over blocks of rows; beyond the result and `C`, the memory in use does
    not depend on the number of rows.

    Parameters
    ----------
    C : Tensor of shape (..., n, m), or callable
        Cost, or a function that returns the cost of a slice of the rows; it is called
        twice for each block.
    b : Tensor of shape (..., m)
        Mass of the columns.
    reg : float, default=0.1
        Weight of the entropy, > 0.
    n_rows : int, default=None
        Number of rows n, needed if `C` is callable.

    Returns
    -------
    weights : Tensor of shape (..., n)
        Row masses; their sum is that of `b`.

    Raises
    ------
    ValueError
        If `reg` is not positive.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import semirelaxed_weights
    >>> C = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> semirelaxed_weights(C, torch.tensor([0.5, 0.5]), reg=0.01)
    tensor([0.2500, 0.2500, 0.5000])
    """
    return solve_semirelaxed(C, b, reg, n_rows=n_rows)[0]


def solve_semirelaxed(
    C: Tensor | Callable[[slice], Tensor],
    b: Tensor,
    reg: float,
    *,
    n_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weights of :func:`semirelaxed_weights` and ``<C, T>`` of their plan.

    Parameters
    ----------
    C, b, reg, n_rows
        As in :func:`semirelaxed_weights`.

    Returns
    -------
    weights : Tensor of shape (..., n)
    cost : Tensor of shape (...,)
    """
    check_reg(reg)
    if isinstance(C, Tensor):
        n_rows = C.shape[-2]
        block_of = partial(_matrix_block, C)
    else:
        block_of = C
    b = b.double()
    total = None
    for rows in _row_blocks(n_rows, b.shape[-1]):
        part = torch.logsumexp(block_of(rows).double() / -reg, -2)
        total = part if total is None else torch.logaddexp(total, part)
    weights, costs = [], []
    for rows in _row_blocks(n_rows, b.shape[-1]):
        block = block_of(rows)
        share = (block.double() / -reg - total[..., None, :]).exp()
        weights.append(_apply(share, b).to(block.dtype))
        costs.append(((block * share).sum(-2) * b).sum(-1))
    return torch.cat(weights, -1), torch.stack(costs).sum(0).to(block.dtype)


def _matrix_block(C: Tensor, rows: slice) -> Tensor:
    return C[..., rows, :]


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ENTRIES // max(n_columns, 1))
    return (slice(start, start + size) for start in range(0, n_rows, size))
