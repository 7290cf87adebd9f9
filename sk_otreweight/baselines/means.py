"""Mean features of the classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sk_otreweight.extraction import BlockFeatures

# Rows that are looked at at a time, in case their features are not kept.
_BLOCK_ROWS = 2**14


def class_means(
    features: Tensor | BlockFeatures,
    labels: Tensor,
    n_classes: int,
    transform: Callable[[Tensor], Tensor] = lambda points: points,
) -> Tensor:
    """Return the mean of each class (K, d) in float64.

    Parameters
    ----------
    features : Tensor of shape (n, d) or BlockFeatures
    labels : Tensor of shape (n,)
        0 ... K-1; classes without rows have mean 0.
    n_classes : int
    transform : callable, default=identity
        What is done to the features of a block (n_block, d), in float64.
    """
    sums = torch.zeros(
        (n_classes, features.shape[1]), dtype=torch.float64, device=features.device
    )
    for start in range(0, len(labels), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        sums.index_add_(0, labels[rows], transform(features[rows].double()))
    counts = labels.bincount(minlength=n_classes).clamp(min=1)
    return sums / counts[:, None]
