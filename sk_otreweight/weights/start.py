"""Where the weights start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sk_otreweight._validation import check_choice
from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)


def start_uniform(counts: Tensor) -> Tensor:
    """Return the same weight for every class (K,)."""
    return torch.ones_like(counts)


def start_inverse(counts: Tensor) -> Tensor:
    """Return the inverse class frequency (K,)."""
    return inverse_frequency_weights(counts, normalize=None)


def start_class_balanced(counts: Tensor) -> Tensor:
    """Return the inverse effective number of rows (K,) of Cui et al., CVPR 2019.

    Where the released code of the paper starts.
    """
    return effective_number_weights(counts, normalize=None)


START_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": start_uniform,
    "class_balanced": start_class_balanced,
    "inverse": start_inverse,
}


def class_start_weights(init_weights: str, counts: Tensor) -> Tensor:
    """Return the start weight of each class, of mean 1 over the training rows.

    Parameters
    ----------
    init_weights : {"uniform", "class_balanced", "inverse"}
    counts : Tensor of shape (K,)
        Training rows of each class.

    Returns
    -------
    weights : Tensor of shape (K,)
        In float64.
    """
    check_choice(init_weights, name="init_weights", choices=tuple(START_WEIGHTS))
    counts, present = counts.double(), counts > 0
    weights = torch.zeros_like(counts)  # of classes without rows
    weights[present] = START_WEIGHTS[init_weights](counts[present])
    return weights * counts.sum() / (weights * counts).sum()
