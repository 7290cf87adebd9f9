"""The batches of an epoch, known beforehand as row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from sk_otreweight.transport import problem_chunks

# Batches whose row numbers are put together.
_BLOCK_BATCHES = 2**8


def are_distinct(batches: Sequence[Tensor], n_rows: int) -> bool:
    """Return whether none of `n_rows` is in more than one batch, or in one twice."""
    is_seen = torch.zeros(n_rows, dtype=torch.bool, device=batches[0].device)
    for start in range(0, len(batches), _BLOCK_BATCHES):
        is_seen[torch.cat(list(batches[start : start + _BLOCK_BATCHES]))] = True
    return int(is_seen.count_nonzero()) == sum(map(len, batches))


def stacked(batches: Sequence[Tensor], width: int) -> Iterator[Tensor]:
    """Yield batches of one size as rows (P, batch_size) of as many as fit together.

    Parameters
    ----------
    batches : sequence of Tensor of shape (batch_size,)
    width : int
        Numbers per row of the training set that what is computed of them needs.
    """
    for size, group in groupby(batches, len):
        group = list(group)
        for part in problem_chunks(len(group), size, width):
            yield torch.stack(group[part])
