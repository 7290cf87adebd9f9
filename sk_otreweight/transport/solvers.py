"""The solvers by name, and the function that most people call."""

from __future__ import annotations

from torch import Tensor

from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    warn_unconverged,
)
from sk_otreweight.transport.pot import POTSolver
from sk_otreweight.transport.problem import result_dtype
from sk_otreweight.transport.sinkhorn import SinkhornSolver

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
    tol: float = 1e-9,
    init: Tensor | None = None,
) -> TransportPlan:
    """Solve the entropic transport problem with Sinkhorn's iteration.

    Minimises ``<C, T> - reg * H(T)`` with ``H(T) = -sum T log T`` over the plans with
    row sums `a` and column sums `b` (Eq. 10); see :class:`SinkhornSolver`.

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
    tol : float, default=1e-9
        Largest L1 error of the column sums. Newton steps square the error, so that a
        small one costs little, and gradients need it where classes hardly mix.
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
        warn_unconverged(solution, max_iter=max_iter, tol=tol, reg=reg)
    return solution.to(result_dtype(C))
