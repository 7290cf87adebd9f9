"""Class-balanced loss: weights by the effective number of rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.losses.base import class_vector
from sk_otreweight.losses.focal import FocalLoss


class ClassBalancedLoss(FocalLoss):
    """Class-balanced cross-entropy or focal loss (Cui et al., CVPR 2019).

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Rows of each class in the whole training set.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.
    gamma : float, default=0.0
        Exponent of the focal loss; 0 is cross-entropy.
    link : {"softmax", "sigmoid"}, default="softmax"
        The paper's focal and sigmoid losses are those of "sigmoid": its network
        ends in one sigmoid per class.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"

    Raises
    ------
    ValueError
        If a class has no rows, or a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import ClassBalancedLoss
    >>> loss = ClassBalancedLoss([900, 100], beta=0.999)
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    tensor(0.6931)
    """

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        beta: float | str = 0.9999,
        gamma: float = 0.0,
        link: str = "softmax",
        reduction: str = "mean",
    ):
        weights = class_vector(effective_number_weights(class_counts, beta))
        super().__init__(gamma, weights, link, reduction)
        self.class_counts = class_counts
        self.beta = beta
