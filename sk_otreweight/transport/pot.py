"""The Python Optimal Transport library as a solver."""

from __future__ import annotations

import torch
from torch import Tensor

from sk_otreweight.transport.plan import TransportPlan, TransportSolver


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

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import POTSolver
    >>> C, half = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.full((2,), 0.5)
    >>> POTSolver().solve(C, half, half, reg=0.1).plan.round(decimals=3)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """

    def __init__(self, max_iter: int = 10_000, tol: float = 1e-9):
        self.max_iter = max_iter
        self.tol = tol

    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        problems = zip(C, a, b, strict=True)
        solved = [self._solve_one(*problem, reg) for problem in problems]
        u, v = (torch.stack(potential) for potential in zip(*solved, strict=True))
        conditional = torch.softmax(v[..., None, :] - C / reg, -1)
        error = (torch.bmm(a[:, None], conditional)[:, 0] - b).abs().sum(-1)
        return TransportPlan.of(
            C,
            a,
            conditional,
            f=u * reg,
            g=v * reg,
            n_iter=self.max_iter,
            converged=bool((error <= max(10 * self.tol, 1e-8)).all()),
            marginal_error=error,
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
