"""The closed form: the best weights of all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sk_otreweight._validation import check_columns, check_reg

# Rows, and cost entries, held at a time by the closed form.
_BLOCK_ROWS = 2**16
_BLOCK_ENTRIES = 2**23


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
        Cost, or a function that returns the cost of a slice of the rows; it is called
        twice for each block.
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
    b = b.double()
    total = None
    for rows in _row_blocks(n_rows, b.shape[-1]):
        part = torch.logsumexp(block_of(rows).double() / -reg, -2)
        total = part if total is None else torch.logaddexp(total, part)
    weights, costs = [], []
    for rows in _row_blocks(n_rows, b.shape[-1]):
        block = block_of(rows)
        share = (block.double() / -reg - total[..., None, :]).exp()
        weights.append((share @ b[..., None])[..., 0].to(block.dtype))
        costs.append(((block * share).sum(-2) * b).sum(-1))
    return torch.cat(weights, -1), torch.stack(costs).sum(0).to(block.dtype)


def _matrix_block(C: Tensor, rows: slice) -> Tensor:
    return C[..., rows, :]


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = min(_BLOCK_ROWS, max(1, _BLOCK_ENTRIES // max(n_columns, 1)))
    return (slice(start, start + size) for start in range(0, n_rows, size))
