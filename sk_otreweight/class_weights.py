"""Weights of classes by how many rows they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sk_otreweight._validation import (
    check_beta,
    check_choice,
    check_class_counts,
    check_real,
)

NORMALIZATIONS = ("classes", "samples", None)


def inverse_frequency_weights(
    class_counts: Sequence[float] | Tensor,
    gamma: float = 1.0,
    *,
    normalize: str | None = "classes",
) -> Tensor:
    r"""Return class weights in inverse proportion to the class counts.

    .. math:: w_k \propto n_k^{-\gamma}

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Training rows of each class, all > 0.
    gamma : float, default=1.0
        0 weighs all classes alike; 0.5, the square root, is gentler than 1, which at
        strong imbalance makes early training unstable.
    normalize : {"classes", "samples", None}, default="classes"
        Scale to mean 1 over the classes; to mean 1 over the rows, which leaves the step
        size as it is and is scikit-learn's ``class_weight="balanced"``; or
        not at all.

    Returns
    -------
    weights : Tensor of shape (n_classes,)
        In float64.

    Raises
    ------
    ValueError
        If a class has no rows, or a parameter is not valid.

    Examples
    --------
    >>> from sk_otreweight.class_weights import inverse_frequency_weights
    >>> inverse_frequency_weights([30, 10], normalize="samples")
    tensor([0.6667, 2.0000], dtype=torch.float64)
    """
    counts = check_class_counts(class_counts)
    check_real(gamma, name="gamma")
    # Relative to the largest class, no power leaves the range of a float.
    return _normalized((counts / counts.max()) ** -gamma, counts, normalize)


def effective_number_weights(
    class_counts: Sequence[float] | Tensor,
    beta: float | str = 0.9999,
    *,
    normalize: str | None = "classes",
) -> Tensor:
    r"""Return class weights by the effective number of rows.

    .. math:: w_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

    of Cui et al., CVPR 2019: weights saturate for classes of more than
    :math:`1 / (1 - \beta)` rows.

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Training rows of each class, all > 0.
    beta : float or "auto", default=0.9999
        In [0, 1). 0 weighs all classes alike; towards 1 the weights become the inverse
        frequencies. "auto" (ours, not the paper's) is ``1 - 1 / n`` with n the
        median of the class counts, so that half of the classes saturate.
    normalize : {"classes", "samples", None}, default="classes"
        As in :func:`inverse_frequency_weights`.

    Returns
    -------
    weights : Tensor of shape (n_classes,)
        In float64.

    Raises
    ------
    ValueError
        If a class has no rows, or a parameter is not valid.

    Examples
    --------
    >>> from sk_otreweight.class_weights import effective_number_weights
    >>> effective_number_weights([10_000, 100], beta=0.999)
    tensor([0.1739, 1.8261], dtype=torch.float64)
    """
    counts = check_class_counts(class_counts)
    check_beta(beta)
    if beta == "auto":
        beta = float(1 - 1 / counts.median())
    if beta == 0:
        return _normalized(torch.ones_like(counts), counts, normalize)
    # 1 - beta^n would cancel as beta tends to 1.
    log_beta = torch.log1p(torch.tensor(beta - 1, dtype=counts.dtype))
    return _normalized((beta - 1) / torch.expm1(counts * log_beta), counts, normalize)


def _normalized(weights: Tensor, counts: Tensor, normalize: str | None) -> Tensor:
    check_choice(normalize, name="normalize", choices=NORMALIZATIONS)
    if normalize is None:
        return weights
    if normalize == "classes":
        return weights * (len(weights) / weights.sum())
    return weights * (counts.sum() / (weights * counts).sum())
