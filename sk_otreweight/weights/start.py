"""Where the weights start."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sk_otreweight._validation import check_choice


def start_uniform(counts: Tensor) -> Tensor:
    """Return the same weight for every class (K,)."""
    return torch.ones_like(counts)


def start_inverse(counts: Tensor) -> Tensor:
    """Return the inverse class frequency (K,); 0 for classes without rows."""
    return torch.where(counts > 0, 1 / counts.clamp(min=1), torch.zeros_like(counts))


def start_class_balanced(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return the inverse effective number of rows (K,) of Cui et al., CVPR 2019.

    ``(1 - beta) / (1 - beta^n)``, where the released code of the paper starts.
    """
    effective = -torch.expm1(counts * torch.log(torch.tensor(beta, dtype=counts.dtype)))
    effective = effective / (1 - beta)
    return torch.where(
        counts > 0, 1 / effective.clamp(min=1e-12), torch.zeros_like(counts)
    )


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
    counts = counts.double()
    weights = START_WEIGHTS[init_weights](counts)
    return weights * counts.sum() / (weights * counts).sum()
