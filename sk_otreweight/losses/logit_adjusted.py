"""Logit adjustment: scores that have to win against the class frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from sk_otreweight._validation import (
    check_class_counts,
    check_real,
    check_shares,
)
from sk_otreweight.losses.base import ClassificationLoss, class_vector


class LogitAdjustedLoss(ClassificationLoss):
    r"""Cross-entropy of adjusted scores (Menon et al., ICLR 2021).

    .. math:: \ell = CE(z + \tau \log \pi - \log \pi^*, y)

    with class frequencies :math:`\pi`. What is learned are scores z for data in which
    the classes have the shares :math:`\pi^*`: predict with z as it is.

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Rows of each class in the whole training set, or their shares.
    tau : float, default=1.0
        Strength; 0 is cross-entropy.
    target_prior : array-like of shape (n_classes,), default=None
        Shares > 0 of the classes where the model will be used; None is uniform.
    reduction : {"mean", "sum", "none"}, default="mean"

    Raises
    ------
    ValueError
        If a class has no rows, or a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import LogitAdjustedLoss
    >>> LogitAdjustedLoss([90, 10])(torch.zeros(1, 2), torch.tensor([1]))
    tensor(2.3026)
    """

    shift: Tensor

    def __init__(
        self,
        class_counts: Sequence[float] | Tensor,
        tau: float = 1.0,
        target_prior: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
    ):
        check_real(tau, name="tau")
        counts = check_class_counts(class_counts)
        super().__init__(n_classes=len(counts), reduction=reduction)
        self.class_counts = class_counts
        self.tau = tau
        self.target_prior = target_prior
        shift = tau * (counts / counts.sum()).log()
        if target_prior is not None:
            prior = check_shares(
                target_prior, name="target_prior", n_classes=len(counts)
            )
            shift = shift - prior.log()
        self.register_buffer("shift", class_vector(shift))

    def row_losses(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row (n,)."""
        shifted = input + self.shift.to(input.dtype)
        return F.cross_entropy(shifted, target, reduction="none")


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """Balanced softmax (Ren et al., NeurIPS 2020), ``CE(z + log n, y)``.

    The same as :class:`LogitAdjustedLoss` with ``tau=1``, for a softmax does not see
    what is added to all scores.

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Rows of each class in the whole training set.
    reduction : {"mean", "sum", "none"}, default="mean"

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import BalancedSoftmaxLoss
    >>> BalancedSoftmaxLoss([90, 10])(torch.zeros(1, 2), torch.tensor([1]))
    tensor(2.3026)
    """

    def __init__(self, class_counts: Sequence[float] | Tensor, reduction: str = "mean"):
        super().__init__(class_counts, reduction=reduction)
