"""The closed form: the best weights of all rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sk_otreweight._validation import check_columns, check_reg
from sk_otreweight.transport.memory import in_fitting_parts
from sk_otreweight.transport.problem import result_dtype

# Rows, and cost entries, held at a time by the closed form; few enough for the cache.
_BLOCK_ROWS = 2**14
_BLOCK_ENTRIES = 2**20
# Costs that are kept from the first pass over the rows for the second.
_KEPT_BYTES = 2**26
# Rows that are put side by side to find the least entry of each column.
_SIDE_BY_SIDE = 64


def semirelaxed_weights(
    C: Tensor | Callable[[slice], Tensor],
    b: Tensor,
    reg: float = 0.1,
    *,
    n_rows: int | None = None,
) -> Tensor:
    r"""Return the row masses that minimise the entropic transport problem.

    When the masses of the rows are free as well, the problem has a closed form:
    column j spreads its mass over the rows by a softmax of its costs,

    .. math:: w_i = \sum_j b_j \, \frac{\exp(-C_{ij} / \lambda)}
                                      {\sum_l \exp(-C_{lj} / \lambda)} .

    Two passes over blocks of rows; beyond the result and `C`, the memory in use does
    not depend on the number of rows.

    Parameters
    ----------
    C : Tensor of shape (..., n, m), or callable
        Cost, or a function that returns the cost of a slice of the rows, each time in
        a new tensor. It is called for one block of rows after another: the first
        64 MiB of costs are kept, the others are asked for twice.
    b : Tensor of shape (..., m)
        Mass of the columns.
    reg : float, default=0.1
        Weight of the entropy, > 0.
    n_rows : int, default=None
        Number of rows n, needed if `C` is callable.

    Returns
    -------
    weights : Tensor of shape (..., n)
        Row masses; their sum is that of `b`.

    Raises
    ------
    ValueError
        If `reg` is not positive.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import semirelaxed_weights
    >>> C = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> semirelaxed_weights(C, torch.tensor([0.5, 0.5]), reg=0.01)
    tensor([0.2500, 0.2500, 0.5000])
    """
    return solve_semirelaxed(C, b, reg, n_rows=n_rows)[0]


def solve_semirelaxed(
    C: Tensor | Callable[[slice], Tensor],
    b: Tensor,
    reg: float,
    *,
    n_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weights of :func:`semirelaxed_weights` and ``<C, T>`` of their plan.

    Parameters
    ----------
    C, b, reg, n_rows
        As in :func:`semirelaxed_weights`.

    Returns
    -------
    weights : Tensor of shape (..., n)
    cost : Tensor of shape (...,)
    """
    check_reg(reg)
    check_columns(C, b, n_rows)
    if isinstance(C, Tensor):
        n_rows = C.shape[-2]
        block_of = partial(_matrix_block, C)
    else:
        block_of = C
    size = max(1, min(_BLOCK_ROWS, _BLOCK_ENTRIES // max(b.shape[-1], 1)))

    def solve(block_rows: int) -> tuple[Tensor, Tensor]:
        blocks = _Blocks(block_of, n_rows, block_rows)
        if block_rows < size:  # there is no memory to spare
            blocks.room = 0
        return _solve(blocks, b.double(), reg)

    return in_fitting_parts(solve, size)


def _solve(blocks: _Blocks, b: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Return the weights and the cost, in two passes over the blocks."""
    memory = None
    # Column sums of exp((shift - C) / reg), with the least cost so far as shift: no
    # exponent is above 0, and one of each column is 0.
    shift, total = torch.finfo(torch.float64).max, 0.0
    for _, block in blocks:
        memory = _memory(block, b, memory)
        least = _column_minima(block.detach()).double().clamp(max=shift)
        fade = ((least - shift) / reg).exp()
        shift, total = least, total * fade + _kernel(block, least, reg, memory).sum(-2)
    shares = (b / total)[..., None]
    dtype = result_dtype(block)
    weights = block.new_empty(*shares.shape[:-2], blocks.n_rows, dtype=dtype)
    cost = 0.0
    for rows, block in blocks:
        kernel = _kernel(block, shift, reg, memory)
        weights[..., rows] = (kernel @ shares)[..., 0]
        kernel_cost = torch.mul(kernel, block, out=None if memory is None else kernel)
        cost = cost + (kernel_cost @ shares).sum((-2, -1))
    return weights, cost.to(dtype)


class _Blocks:
    """The cost, one block of rows after another; the first ones are kept.

    Parameters
    ----------
    block_of : callable
        Returns the cost of a slice of the rows.
    n_rows, size : int
        Rows in all, and of a block.
    """

    def __init__(self, block_of: Callable[[slice], Tensor], n_rows: int, size: int):
        self.n_rows = n_rows
        starts = range(0, n_rows, size)
        self.slices = [slice(start, min(start + size, n_rows)) for start in starts]
        self.block_of = block_of
        self.kept: list[Tensor] = []
        self.room = _KEPT_BYTES

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield each block with its rows."""
        n_kept = len(self.kept)
        yield from zip(self.slices, self.kept, strict=False)
        for rows in self.slices[n_kept:]:
            block = self.block_of(rows)
            self.room -= block.nbytes
            if self.room >= 0:
                self.kept.append(block)
            yield rows, block


def _matrix_block(C: Tensor, rows: slice) -> Tensor:
    return C[..., rows, :]


def _memory(block: Tensor, b: Tensor, memory: Tensor | None) -> Tensor | None:
    """Return the memory of all kernels in turn, or None if gradients need each."""
    if torch.is_grad_enabled() and (block.requires_grad or b.requires_grad):
        return None
    if memory is None:
        return torch.empty(block.numel(), dtype=torch.float64, device=block.device)
    return memory


def _kernel(C: Tensor, shift: Tensor, reg: float, memory: Tensor | None) -> Tensor:
    """Return ``exp((shift - C) / reg)`` in float64."""
    if memory is None:
        exponents = C.to(torch.float64, copy=True)
    else:
        exponents = memory[: C.numel()].view(C.shape).copy_(C)
    return exponents.sub_(shift[..., None, :]).mul_(-1 / reg).exp_()


def _column_minima(C: Tensor) -> Tensor:
    """Return the least entry of each column (..., m)."""
    *batch, n, m = C.shape
    # Minima over long rows are many times faster than those over short ones.
    k = math.gcd(n, _SIDE_BY_SIDE)
    return C.reshape(*batch, n // k, k * m).amin(-2).reshape(*batch, k, m).amin(-2)
