"""A transport problem, or a batch of them, in the form that solvers work on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sk_otreweight._validation import check_transport_shapes
from sk_otreweight.transport.arrays import as_tensor, is_small

# Cost entries of the problems that are solved together.
_CHUNK_ENTRIES = 2**18


class Problem(NamedTuple):
    """P problems as tensors in float64, or a single one as arrays without the P.

    Attributes
    ----------
    C : Tensor of shape (P, n, m) or array of shape (n, m)
    a : Tensor of shape (P, n) or array of shape (n,)
    b : Tensor of shape (P, m) or array of shape (m,)
    init : as `b`, or None
        Dual potential of the columns to start from.
    """

    C: Any
    a: Any
    b: Any
    init: Any

    @classmethod
    def of(
        cls, C: Tensor, a: Tensor, b: Tensor, init: Tensor | None, *, on_arrays: bool
    ) -> Problem:
        """Take problems of any leading dimensions.

        Parameters
        ----------
        C : Tensor of shape (..., n, m)
        a : Tensor of shape (..., n)
        b : Tensor of shape (..., m)
        init : Tensor of shape (..., m) or None
        on_arrays : bool
            Whether a single small problem may be given as arrays.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        check_transport_shapes(C, a, b)
        if on_arrays and is_small(C):
            vectors = (None if x is None else _as_array(x, 1) for x in (a, b, init))
            return cls(_as_array(C, 2), *vectors)

        def flat(x: Tensor) -> Tensor:
            x = x.detach().double().expand(*C.shape[:-2], -1)
            return x.reshape(-1, x.shape[-1])

        matrices = C.detach().double().reshape(-1, *C.shape[-2:])
        return cls(matrices, *(None if x is None else flat(x) for x in (a, b, init)))

    def normalised(self) -> Problem:
        """Return the same with the rows' masses divided by their total."""
        return self._replace(a=self.a / self.a.sum(-1)[..., None])

    def tensors(self) -> Problem:
        """Return the same on tensors."""
        return Problem(*(None if x is None else as_tensor(x) for x in self))

    def chunks(self) -> list[Problem]:
        """Return parts of a batch, each as large as is solved together."""
        if self.C.ndim == 2:
            return [self]
        parts = problem_chunks(*self.C.shape)
        if len(parts) == 1:
            return [self]
        return [Problem(*(x if x is None else x[part] for x in self)) for part in parts]


def problem_chunks(n_problems: int, n_rows: int, n_columns: int) -> list[slice]:
    """Return slices of so many problems as are solved together.

    More would not be faster, and the memory in use would not be bounded.
    """
    size = max(1, _CHUNK_ENTRIES // max(1, n_rows * n_columns))
    return [slice(i, i + size) for i in range(0, n_problems, size)]


def result_dtype(C: Tensor) -> torch.dtype:
    """Return the dtype of results: that of the cost, unless it holds integers."""
    return C.dtype if C.is_floating_point() else torch.get_default_dtype()


def unflattened(
    x: Any, batch: torch.Size, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return a part of a solution with the leading dimensions of the problems."""
    x = as_tensor(x)
    return x.reshape(batch + x.shape[1:]).to(dtype)


def _as_array(x: Tensor, ndim: int) -> np.ndarray:
    """Return the only problem's part as an array, without leading dimensions."""
    array = x.detach().double().numpy()
    return array if array.ndim == ndim else array.reshape(array.shape[-ndim:])
