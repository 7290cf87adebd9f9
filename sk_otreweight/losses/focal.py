"""Focal loss: rows that are classified well count less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sk_otreweight._validation import check_choice, check_class_vector, check_real
from sk_otreweight.losses.base import ClassificationLoss, class_vector

LINKS = ("softmax", "sigmoid")


def focal(log_p: Tensor, gamma: float) -> Tensor:
    """Return ``(1 - p)^gamma (-log p)``."""
    if gamma == 0:
        return -log_p
    # Where p rounds to 1 the true gradient is 0, but that of a power of 0 is NaN.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return -(rest**gamma) * log_p


def focal_derivatives(log_p: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the first two derivatives of :func:`focal` with respect to log p."""
    p = log_p.exp()
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    inner, lower = p * log_p, gamma * rest ** (gamma - 1)
    first = lower * inner - rest**gamma
    second = lower * (inner + 2 * p)
    return first, second - gamma * (gamma - 1) * rest ** (gamma - 2) * p * inner


class FocalLoss(ClassificationLoss):
    r"""Focal loss (Lin et al., ICCV 2017).

    .. math:: \ell = \alpha_y (1 - p_y)^\gamma (-\log p_y)

    Parameters
    ----------
    gamma : float, default=2.0
        How fast rows that are classified well lose weight; 0 is cross-entropy.
    alpha : array-like of shape (n_classes,), default=None
        Weight of each class; None weighs them alike. A single number would only scale
        the step size, and is an error.
    link : {"softmax", "sigmoid"}, default="softmax"
        "sigmoid" sees each class on its own, own class against not, and sums
        the terms of all classes, each weighed by the weight of the row's class.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"
        "weighted_mean" divides by the sum of the rows' alphas.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import FocalLoss
    >>> scores = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> FocalLoss(gamma=1.0)(scores, torch.tensor([0, 1]))
    tensor(0.1809)
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Sequence[float] | Tensor | None = None,
        link: str = "softmax",
        reduction: str = "mean",
    ):
        check_real(gamma, name="gamma")
        check_choice(link, name="link", choices=LINKS)
        if alpha is not None:
            alpha = class_vector(check_class_vector(alpha, name="alpha"))
        super().__init__(alpha, reduction=reduction)
        self.gamma = gamma
        self.link = link

    @property
    def alpha(self) -> Tensor | None:
        """Weight of each class (n_classes,)."""
        return self.weight

    def row_losses(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row (n,), without class weights."""
        if self.link == "softmax":
            log_p = input.log_softmax(1).gather(1, target[:, None])[:, 0]
            return focal(log_p, self.gamma)
        signs = torch.where(F.one_hot(target, input.shape[1]).bool(), 1.0, -1.0)
        return focal(F.logsigmoid(signs.to(input.dtype) * input), self.gamma).sum(1)
