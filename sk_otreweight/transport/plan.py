"""The result of a transport problem, and what every solver has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

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

# Cost entries of the problems that are solved together.
_CHUNK_ENTRIES = 2**18


@dataclass(frozen=True)
class TransportPlan:
    """Solution of an entropic transport problem, or of a batch of them.

    Attributes
    ----------
    plan : Tensor of shape (..., n, m)
        Transported mass T; its rows sum to `a` exactly, its columns to `b` within
        `marginal_error`.
    conditional : Tensor of shape (..., n, m)
        Where the mass of each row goes, ``plan / a``; defined for rows without mass
        as well.
    row_cost : Tensor of shape (..., n)
        Mean cost of the mass of each row.
    cost : Tensor of shape (...,)
        ``<C, T>``, without the entropy (Eq. 10).
    f : Tensor of shape (..., n)
        Dual potential of the rows, in units of the cost; ``-inf`` for rows without
        mass.
    g : Tensor of shape (..., m)
        Dual potential of the columns; ``T = exp((f + g - C) / reg)``.
    n_iter : int
        Sinkhorn sweeps done; of a batch, those of its slowest part.
    converged : bool
        Whether every problem of the batch reached the tolerance.
    marginal_error : Tensor of shape (...,)
        L1 distance between the column sums of `plan` and `b`.
    """

    plan: Tensor
    conditional: Tensor
    row_cost: Tensor
    cost: Tensor
    f: Tensor
    g: Tensor
    n_iter: int
    converged: bool
    marginal_error: Tensor

    @classmethod
    def of(
        cls, C: Tensor, a: Tensor, conditional: Tensor, **others: Any
    ) -> TransportPlan:
        """Return the solution that sends the mass of each row where it goes."""
        plan = conditional * a[..., None]
        row_cost = (C * conditional).sum(-1)
        return cls(plan, conditional, row_cost, (a * row_cost).sum(-1), **others)

    def to(self, dtype: torch.dtype) -> TransportPlan:
        """Return the same solution with tensors of another dtype."""
        return self.map(lambda x: x.to(dtype))

    def map(self, function: Callable[[Tensor], Tensor]) -> TransportPlan:
        """Return the solution with a function applied to its tensors."""
        return TransportPlan(
            *(
                function(x) if isinstance(x, Tensor) else x
                for x in (getattr(self, field.name) for field in fields(self))
            )
        )


def joined(solutions: Sequence[TransportPlan]) -> TransportPlan:
    """Return the solutions of parts of a batch as one."""
    columns = zip(*(vars(part).values() for part in solutions), strict=True)
    parts = dict(zip(vars(solutions[0]), columns, strict=True))
    tensors = {
        name: torch.cat(values)
        for name, values in parts.items()
        if isinstance(values[0], Tensor)
    }
    return TransportPlan(
        **tensors, n_iter=max(parts["n_iter"]), converged=all(parts["converged"])
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
        batch, (n_rows, n_columns) = C.shape[:-2], C.shape[-2:]

        def flat(x: Tensor) -> Tensor:
            x = x.double().expand(*batch, x.shape[-1])
            return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])

        with torch.no_grad():
            C = C.double()
            if C.ndim != 3:
                C = C.reshape(-1, n_rows, n_columns)
            a, b = flat(a), flat(b)
            init = None if init is None else flat(init)
            chunks = problem_chunks(*C.shape)
            if len(chunks) == 1:
                solution = self._solve(C, a, b, reg, init)
            else:
                solution = joined(
                    [
                        self._solve(
                            *(x[part] for x in (C, a, b)),
                            reg,
                            None if init is None else init[part],
                        )
                        for part in chunks
                    ]
                )
            if not solution.converged:
                check_same_mass(a, b)
            if len(batch) == 1:
                return solution
            return solution.map(lambda x: x.reshape(batch + x.shape[1:]))

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        check_count(self.max_iter, name="max_iter")
        check_real(self.tol, name="tol")

    @abstractmethod
    def _solve(
        self, C: Tensor, a: Tensor, b: Tensor, reg: float, init: Tensor | None
    ) -> TransportPlan:
        """Solve some problems: C (P, n, m), a (P, n), b (P, m), init (P, m) or None."""


def problem_chunks(n_problems: int, n_rows: int, n_columns: int) -> list[slice]:
    """Return slices of so many problems as are solved together.

    More would not be faster, and the memory in use would not be bounded.
    """
    size = max(1, _CHUNK_ENTRIES // max(1, n_rows * n_columns))
    return [slice(i, i + size) for i in range(0, n_problems, size)]


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
