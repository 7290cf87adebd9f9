"""The Python Optimal Transport library as a solver."""

from __future__ import annotations

import torch
from torch import Tensor

from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    plan_and_error,
)


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
        plan, error = plan_and_error(C / -reg, u, v, b)
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
