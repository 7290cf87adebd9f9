"""The two array libraries that the solver runs on, and what they call differently.

A call of torch takes a microsecond or two before anything is computed, which is most of
the time of a problem of a mini-batch's size; numpy takes less than that. So a single
small problem on a CPU is solved on arrays (n, m), all others on tensors (P, n, m), by
the same functions: they use operators, the axes -1 and -2, and what is collected here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

# Entries of the cost up to which a problem is small: numpy's matrix products take no
# threads then, which would get in the way of torch's.
_SMALL = 2**12


class Torch:
    """What tensors need."""

    exp, log, matmul, where = torch.exp, torch.log, torch.bmm, torch.where
    amax, amin, cat = torch.amax, torch.amin, torch.cat

    @staticmethod
    def add_diagonal(matrix: Tensor, values: Tensor) -> None:
        """Add values (P, m, 1) to the diagonals of matrices (P, m, m), in place."""
        matrix.diagonal(0, -2, -1).add_(values.squeeze(-1))

    @staticmethod
    def factor(matrix: Tensor) -> Tensor:
        """Return a Cholesky factor; what it is worth if there is none, is open."""
        return torch.linalg.cholesky_ex(matrix)[0]

    @staticmethod
    def solve(factor: Tensor, right: Tensor) -> Tensor:
        """Solve a system by its Cholesky factor."""
        return torch.cholesky_solve(right, factor)

    @staticmethod
    def row(values: Sequence[float], like: Tensor) -> Tensor:
        """Return numbers as a tensor, beside another one."""
        return like.new_tensor(values)

    @staticmethod
    def count(mask: Tensor) -> int:
        """Return how many are true; waits for the device."""
        return int(mask.sum())

    @staticmethod
    def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function that multiplies vectors by a matrix."""
        return partial(torch.bmm, matrix)

    @staticmethod
    def contiguous(x: Tensor) -> Tensor:
        """Return a tensor whose rows lie one after the other."""
        return x.contiguous()

    @staticmethod
    def choose(trials: Tensor, best: Tensor) -> Tensor:
        """Return one column (P, m, 1) of each matrix (P, m, k)."""
        index = best.reshape(-1, 1, 1).expand(*trials.shape[:-1], 1)
        return trials.gather(-1, index)


class Numpy:
    """What arrays need."""

    exp, log, matmul, where = np.exp, np.log, np.dot, np.where
    amax, amin, cat = np.amax, np.amin, np.concatenate
    contiguous = np.ascontiguousarray

    @staticmethod
    def row(values: Sequence[float], like: np.ndarray) -> np.ndarray:
        """Return numbers as an array."""
        return np.array(values)

    @staticmethod
    def count(mask: np.bool) -> int:
        """Return 1 for true: an array holds one problem."""
        return int(mask)

    @staticmethod
    def times(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that multiplies vectors by a matrix."""
        return matrix.dot

    @staticmethod
    def add_diagonal(matrix: np.ndarray, values: np.ndarray) -> None:
        """Add values (m, 1) to the diagonal of a matrix (m, m), in place."""
        matrix.flat[:: len(matrix) + 1] += values[:, 0]

    @staticmethod
    def factor(matrix: np.ndarray) -> np.ndarray:
        """Return a Cholesky factor; what it is worth if there is none, is open."""
        return lapack.dpotrf(matrix.T, lower=1, clean=0)[0]

    @staticmethod
    def solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Solve a system by its Cholesky factor."""
        return lapack.dpotrs(factor, right, lower=1)[0]

    @staticmethod
    def choose(trials: np.ndarray, best: int) -> np.ndarray:
        """Return one column (m, 1) of a matrix (m, k)."""
        return trials[:, best, None]


def library_of(x: Any) -> type[Torch] | type[Numpy]:
    """Return what belongs to an array or tensor."""
    return Torch if isinstance(x, Tensor) else Numpy


def is_small(C: Tensor) -> bool:
    """Return whether this is one problem that is better solved on arrays."""
    n_entries = C.numel()
    is_one = n_entries == C.shape[-2] * C.shape[-1]
    return is_one and n_entries <= _SMALL and C.device.type == "cpu"


def as_array(x: Tensor) -> np.ndarray:
    """Return the array behind the only problem of a batch."""
    return x.numpy()[0]


def as_tensor(x: np.ndarray | Tensor) -> Tensor:
    """Return an array as that of a batch of one problem; a Tensor as it is."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x)[None])
