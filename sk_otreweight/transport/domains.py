"""How Sinkhorn's iteration holds its potentials: as factors, or as logarithms.

Both hold one potential, that of the columns, for a batch of problems and for several
trials of each at once; the other follows from the rows' masses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Entries below which a matrix is tiny, and above which it is not copied for nothing.
_TINY_MATRIX, _LARGE_MATRIX = 400, 2**16


class Domain(ABC):
    """A batch of transport problems in one of the two domains.

    Parameters
    ----------
    C : Tensor of shape (P, n, m)
        Costs of P problems, in float64.
    a : Tensor of shape (P, n)
    b : Tensor of shape (P, m)
    reg : float
    """

    def __init__(self, C: Tensor, a: Tensor, b: Tensor, reg: float):
        self.reg = reg
        self.C = C
        self.a, self.b = a[..., None], b[..., None]
        self._prepare()

    def subset(self, problems: Tensor) -> Domain:
        """Return some of the problems, chosen by a mask (P,)."""
        chosen = (x[problems] for x in (self.C, self.a[..., 0], self.b[..., 0]))
        return type(self)(*chosen, self.reg)

    @abstractmethod
    def _prepare(self) -> None:
        """Compute what the sweeps need of the costs."""

    @abstractmethod
    def start(self, g: Tensor | None) -> Tensor:
        """Return the columns' potential (P, m, 1) for `g` (P, m).

        With none, that to which one update leads from a zero potential of the rows.
        """

    @abstractmethod
    def sweep(self, v: Tensor, n_sweeps: int) -> Tensor:
        """Return the columns' potential after some sweeps."""

    @abstractmethod
    def move(self, v: Tensor, steps: Tensor) -> Tensor:
        """Return k trials (P, m, k): `v` with each of `steps` added to its log."""

    @abstractmethod
    def column_sums(self, v: Tensor) -> Tensor:
        """Return the column sums (P, m, k) of the plans of k trials."""

    @abstractmethod
    def conditional(self, v: Tensor) -> Tensor:
        """Return ``plan / a`` (P, n, m), whose rows sum to 1."""

    @abstractmethod
    def potentials(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (P, n) and g (P, m), in units of the cost."""


class KernelDomain(Domain):
    """Potentials as factors of the kernel ``exp(-C / reg)``: matrix products only.

    Exact as long as the kernel and the factors, whose logarithms span as much as
    ``C / reg`` does, stay far from the ends of float64.
    """

    max_span = 300.0

    def _prepare(self) -> None:
        self.kernel = torch.mul(self.C, -1 / self.reg).exp_()
        n_problems, n, m = self.C.shape
        # On a CPU the product with a batch of vectors takes a fraction of the time if
        # they are rows and not columns; the opposite holds for tiny matrices.
        self.as_rows = n_problems > 1 and n * m >= _TINY_MATRIX
        self.transposed = self.kernel.mT
        if n_problems > 1 or n * m < _LARGE_MATRIX:
            self.transposed = self.transposed.contiguous()

    def _times(self, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        if self.as_rows:
            return torch.bmm(x.mT, transposed).mT
        return torch.bmm(matrix, x)

    def _rows(self, v: Tensor) -> Tensor:
        return self._times(self.kernel, self.transposed, v)

    def _columns(self, u: Tensor) -> Tensor:
        return self._times(self.transposed, self.kernel, u)

    def start(self, g: Tensor | None) -> Tensor:
        """Return ``exp(g / reg)``, scaled to at most 1, or ``b / K' 1``."""
        if g is None:
            return self.b / self.kernel.sum(-2)[..., None]
        return ((g - g.amax(-1, keepdim=True)) / self.reg).exp()[..., None]

    def sweep(self, v: Tensor, n_sweeps: int) -> Tensor:
        """Rescale rows and columns in turn."""
        for _ in range(n_sweeps):
            v = self.b / self._columns(self.a / self._rows(v))
        return v

    def move(self, v: Tensor, steps: Tensor) -> Tensor:
        """Multiply by the exponentials of the steps."""
        return v * steps.exp()

    def column_sums(self, v: Tensor) -> Tensor:
        """Return ``v * K' (a / K v)``."""
        return v * self._columns(self.a / self._rows(v))

    def conditional(self, v: Tensor) -> Tensor:
        """Return ``K v / sum(K v)``."""
        return (self.kernel * v.mT).div_(self._rows(v))

    def potentials(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms, times `reg`."""
        u = self.a / self._rows(v)
        return self.reg * u.log()[..., 0], self.reg * v.log()[..., 0]


class LogDomain(Domain):
    """Potentials as logarithms: right for any costs, and several times slower."""

    def _prepare(self) -> None:
        self.logits = self.C / -self.reg
        self.log_a, self.log_b = self.a.log(), self.b.log()

    def start(self, g: Tensor | None) -> Tensor:
        """Return ``g / reg``, or the logarithm of ``b / K' 1``."""
        if g is None:
            return self._columns(torch.zeros_like(self.a))
        return (g / self.reg)[..., None]

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
        trials = (trial[..., None] for trial in v.unbind(-1))
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
        return self.log_b - torch.logsumexp(self.logits + u, -2)[..., None]
