"""The result of a transport problem, and what every solver has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sk_otreweight._validation import (
    check_count,
    check_real,
    check_reg,
    check_same_mass,
    warn_user,
)
from sk_otreweight.transport.problem import Problem, unflattened


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

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import sinkhorn
    >>> C, half = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.full((2,), 0.5)
    >>> solution = sinkhorn(C, half, half, reg=0.1)
    >>> solution.converged
    True
    >>> solution.conditional.round(decimals=3)
    tensor([[1., 0.],
            [0., 1.]])
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
    def of(cls, C: Any, a: Any, conditional: Any, **others: Any) -> TransportPlan:
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
            **{
                name: x if name in ("n_iter", "converged") else function(x)
                for name, x in vars(self).items()
            }
        )


def joined(solutions: Sequence[TransportPlan]) -> TransportPlan:
    """Return the solutions of parts of a batch as one."""
    if len(solutions) == 1:
        return solutions[0]
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

    Examples
    --------
    Sweeps without logarithms, for a `reg` that is not small:

    >>> from sk_otreweight import OTReweightedClassifier, TransportPlan, TransportSolver
    >>> class PlainSweeps(TransportSolver):
    ...     def __init__(self, max_iter=100, tol=1e-6):
    ...         self.max_iter = max_iter
    ...         self.tol = tol
    ...
    ...     def _solve(self, C, a, b, reg, init):
    ...         kernel, v = (-C / reg).exp(), b.new_ones(b.shape)[..., None]
    ...         for _ in range(self.max_iter):
    ...             u = a[..., None] / (kernel @ v)
    ...             v = b[..., None] / (kernel.mT @ u)
    ...         conditional = kernel * v.mT / (kernel @ v)
    ...         error = ((a[..., None] * conditional).sum(-2) - b).abs().sum(-1)
    ...         f, g = (reg * x[..., 0].log() for x in (a[..., None] / (kernel @ v), v))
    ...         return TransportPlan.of(
    ...             C, a, conditional, f=f, g=g, n_iter=self.max_iter,
    ...             converged=bool((error <= self.tol).all()), marginal_error=error,
    ...         )
    >>> clf = OTReweightedClassifier(weights="vector", solver=PlainSweeps())
    """

    takes_arrays: ClassVar[bool] = False

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
        problem = Problem.of(C, a, b, init, on_arrays=self.takes_arrays)
        solution = self.solve_problem(problem, reg)
        return solution.map(partial(unflattened, batch=C.shape[:-2]))

    def solve_problem(self, problem: Problem, reg: float) -> TransportPlan:
        """Solve as `solve` does, unchecked parameters, and return arrays for arrays."""
        with torch.no_grad():
            solution = joined(
                [
                    self._solve(part.C, part.a, part.b, reg, part.init)
                    for part in problem.chunks()
                ]
            )
        if not solution.converged:
            _, a, b, _ = problem.tensors()
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
        """Solve some problems: C (P, n, m), a (P, n), b (P, m), init (P, m) or None.

        In float64. If the solver `takes_arrays`, a single problem may come as arrays
        (n, m), (n,), (m,) and (m,), and the solution is to hold arrays then.
        """


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
