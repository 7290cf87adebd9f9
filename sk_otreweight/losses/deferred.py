"""Deferred re-weighting: class weights that are switched on late in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from sk_otreweight._validation import (
    check_class_vector,
    check_losses,
    check_real,
)
from sk_otreweight.losses.base import ClassificationLoss, class_vector


class DeferredReweightingLoss(ClassificationLoss):
    """Any loss, with class weights in the last part of training (Cao et al., 2019).

    Features are learned best without weights, which make a few rows count much; the
    classifier profits from them.

    Parameters
    ----------
    loss : nn.Module
        A loss with an attribute `reduction`; it is copied.
    weight : array-like of shape (n_classes,)
        Class weights of the last part, for instance from
        :func:`effective_number_weights`.
    start : float, default=0.8
        Part of the training after which the weights count.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"

    Attributes
    ----------
    progress : float
        Part of the training that is over: set it at the begin of every epoch, to
        ``epoch / n_epochs``. 0 at first.

    Raises
    ------
    ValueError
        If the loss has no `reduction`, or a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sk_otreweight.losses import DeferredReweightingLoss
    >>> loss = DeferredReweightingLoss(nn.CrossEntropyLoss(), [0.5, 1.5])
    >>> scores, target = torch.zeros(1, 2), torch.tensor([1])
    >>> loss(scores, target)
    tensor(0.6931)
    >>> loss.progress = 0.8
    >>> loss(scores, target)
    tensor(1.0397)
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: Sequence[float] | Tensor,
        start: float = 0.8,
        reduction: str = "mean",
    ):
        check_real(start, name="start", maximum=1.0)
        if not isinstance(loss, nn.Module) or not hasattr(loss, "reduction"):
            raise ValueError(
                f"loss={loss!r} is not valid: give a torch loss with an attribute "
                "`reduction` that can be set to 'none', such as nn.CrossEntropyLoss()."
            )
        weight = class_vector(check_class_vector(weight, name="weight"))
        super().__init__(weight, reduction=reduction)
        self.loss = copy.deepcopy(loss)
        self.loss.reduction = "none"
        self.start = start
        self.progress = 0.0

    def row_losses(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row (n,), without the class weights."""
        return check_losses(self.loss(input, target), n_rows=len(target))

    def class_weight(self) -> Tensor | None:
        """Return the class weights, or None before they count."""
        return self.weight if self.progress >= self.start else None
