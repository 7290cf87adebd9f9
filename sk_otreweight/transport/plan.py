"""The result of a transport problem, and what every solver has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

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
    warn_user,
)


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
    """Base of the solvers of the entropic problem; subclasses write `_solve`.

    Every solver has the parameters `max_iter` and `tol`.
    """

    max_iter: int
    tol: float

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
        self.check_parameters()
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

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        check_count(self.max_iter, name="max_iter")
        check_real(self.tol, name="tol")

    @abstractmethod
    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        """Solve with float64 tensors of matching leading dimensions."""


def plan_and_error(
    logits: Tensor, u: Tensor, v: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the plan (..., n, m) of log-potentials, and the error of its columns."""
    plan = (logits + u[..., None] + v[..., None, :]).exp()
    return plan, (plan.sum(-2) - b).abs().sum(-1)


def warn_unconverged(
    solution: TransportPlan, *, max_iter: int, tol: float, reg: float
) -> None:
    """Warn that a problem was not solved to the tolerance, and say what to change."""
    warn_user(
        "Sinkhorn's iteration left a marginal error of "
        f"{solution.marginal_error.max().item():.2e} (tol={tol:g}) after {max_iter} "
        f"sweeps. Raise reg (now {reg:g}) or max_iter, or accept the error by raising "
        "tol.",
        ConvergenceWarning,
    )
