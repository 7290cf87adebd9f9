"""How Sinkhorn's iteration holds its potentials: as factors, or as logarithms.

Both hold one potential, that of the columns, for one problem or a batch of them, and
for several trials of each at once; the other follows from the rows' masses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sk_otreweight.transport.arrays import library_of

# Entries below which a matrix is tiny, and above which it is not copied for nothing.
_TINY_MATRIX, _LARGE_MATRIX = 400, 2**16


class Domain(ABC):
    """A transport problem, or a batch of them, in one of the two domains.

    Vectors are columns: potentials of the columns (..., m, 1), k trials (..., m, k).

    Parameters
    ----------
    C : array or Tensor of shape (..., n, m)
        In float64: an array (n, m), or a Tensor (P, n, m) of P problems.
    a : array or Tensor of shape (..., n)
    b : array or Tensor of shape (..., m)
    reg : float
    """

    def __init__(self, C: Any, a: Any, b: Any, reg: float):
        self.reg = reg
        self.C = C
        self.a, self.b = a[..., None], b[..., None]
        self.n_problems = 1 if C.ndim == 2 else len(C)
        self._prepare()

    def subset(self, problems: Tensor) -> Domain:
        """Return some problems of a batch, chosen by a mask (P,)."""
        chosen = (x[problems] for x in (self.C, self.a[..., 0], self.b[..., 0]))
        return type(self)(*chosen, self.reg)

    @abstractmethod
    def _prepare(self) -> None:
        """Compute what the sweeps need of the costs."""

    @abstractmethod
    def start(self, g: Any) -> Any:
        """Return the columns' potential (..., m, 1) for `g` (..., m).

        With none, that to which one update leads from a zero potential of the rows.
        """

    @abstractmethod
    def sweep(self, v: Any, n_sweeps: int) -> Any:
        """Return the columns' potential after some sweeps."""

    @abstractmethod
    def move(self, v: Any, steps: Any) -> Any:
        """Return k trials (..., m, k): `v` with each of `steps` added to its log."""

    @abstractmethod
    def column_sums(self, v: Any) -> Any:
        """Return the column sums (..., m, k) of the plans of k trials."""

    @abstractmethod
    def conditional(self, v: Any) -> Any:
        """Return ``plan / a`` (..., n, m), whose rows sum to 1."""

    @abstractmethod
    def potentials(self, v: Any) -> tuple[Any, Any]:
        """Return f (..., n) and g (..., m), in units of the cost."""


class KernelDomain(Domain):
    """Potentials as factors of the kernel ``exp(-C / reg)``: matrix products only.

    Exact as long as the kernel and the factors, whose logarithms span as much as
    ``C / reg`` does, stay far from the ends of float64.
    """

    max_span = 300.0

    def _prepare(self) -> None:
        self.library = library = library_of(self.C)
        self.kernel = kernel = library.exp(self.C * (-1 / self.reg))
        n, m = self.C.shape[-2:]
        transposed = kernel.swapaxes(-1, -2)
        if self.n_problems > 1 or n * m < _LARGE_MATRIX:
            transposed = library.contiguous(transposed)
        self._rows, self._columns = library.times(kernel), library.times(transposed)
        if self.n_problems > 1 and n * m >= _TINY_MATRIX:
            # On a CPU the product with a batch of vectors takes a fraction of the time
            # if they are rows and not columns; not so for tiny matrices.
            self._rows = lambda v: torch.bmm(v.mT, transposed).mT
            self._columns = lambda u: torch.bmm(u.mT, kernel).mT

    def start(self, g: Any) -> Any:
        """Return ``exp(g / reg)``, scaled to at most 1, or ``b / K' 1``."""
        if g is None:
            return self.b / self.kernel.sum(-2)[..., None]
        g = g[..., None] - self.library.amax(g[..., None], axis=-2, keepdims=True)
        return self.library.exp(g / self.reg)

    def sweep(self, v: Any, n_sweeps: int) -> Any:
        """Rescale rows and columns in turn."""
        for _ in range(n_sweeps):
            v = self.b / self._columns(self.a / self._rows(v))
        return v

    def move(self, v: Any, steps: Any) -> Any:
        """Multiply by the exponentials of the steps."""
        return v * self.library.exp(steps)

    def column_sums(self, v: Any) -> Any:
        """Return ``v * K' (a / K v)``."""
        return v * self._columns(self.a / self._rows(v))

    def conditional(self, v: Any) -> Any:
        """Return ``K v / sum(K v)``."""
        conditional = self.kernel * v.swapaxes(-1, -2)
        conditional /= self._rows(v)
        return conditional

    def potentials(self, v: Any) -> tuple[Any, Any]:
        """Return the logarithms, times `reg`."""
        log, u = self.library.log, self.a / self._rows(v)
        return self.reg * log(u[..., 0]), self.reg * log(v[..., 0])


class LogDomain(Domain):
    """Potentials as logarithms, on tensors: right for any costs, and slower."""

    def _prepare(self) -> None:
        self.logits = self.C / -self.reg
        self.log_a, self.log_b = self.a.log(), self.b.log()

    def start(self, g: Tensor | None) -> Tensor:
        """Return ``g / reg``, or the logarithm of ``b / K' 1``."""
        if g is None:
            return self._columns(torch.zeros_like(self.a))
        return (g / self.reg).unsqueeze(-1)

    def sweep(self, v: Tensor, n_sweeps: int) -> Tensor:
        """Rescale rows and columns in turn."""
        for _ in range(n_sweeps):
            v = self._columns(self._rows(v))
        return v

    def move(self, v: Tensor, steps: Tensor) -> Tensor:
        """Add the steps."""
        return v + steps

    def column_sums(self, v: Tensor) -> Tensor:
        """Return the column sums of ``a * conditional``, trial by trial."""
        trials = (trial.unsqueeze(-1) for trial in v.unbind(-1))
        sums = [(self.conditional(trial).mul_(self.a)).sum(-2) for trial in trials]
        return torch.stack(sums, -1)

    def conditional(self, v: Tensor) -> Tensor:
        """Return the softmax of each row."""
        return torch.softmax(self.logits + v.mT, -1)

    def potentials(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the potentials in units of the cost."""
        return self.reg * self._rows(v)[..., 0], self.reg * v[..., 0]

    def _rows(self, v: Tensor) -> Tensor:
        return self.log_a - torch.logsumexp(self.logits + v.mT, -1, keepdim=True)

    def _columns(self, u: Tensor) -> Tensor:
        return self.log_b - torch.logsumexp(self.logits + u, -2).unsqueeze(-1)
