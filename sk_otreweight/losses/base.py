"""What the losses have in common: class weights, and how rows are summed up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sk_otreweight._validation import check_choice, check_class_scores

REDUCTIONS = ("mean", "weighted_mean", "sum", "none")


class ClassificationLoss(nn.Module, ABC):
    """Base of the losses: subclasses write the loss of each row.

    Parameters
    ----------
    weight : Tensor of shape (n_classes,), default=None
        Factor of the losses of each class.
    n_classes : int, default=None
        What the scores are checked against; None if any number will do.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"
        "mean" divides by the number of rows, "weighted_mean" by the sum of their
        weights, as torch's weighted cross-entropy does: then a batch of one row has no
        class weight, and the same row counts differently from batch to batch.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        n_classes: int | None = None,
        reduction: str = "mean",
    ):
        super().__init__()
        check_choice(reduction, name="reduction", choices=REDUCTIONS)
        self.register_buffer("weight", weight)
        self.n_classes = n_classes if weight is None else len(weight)
        self.reduction = reduction

    @abstractmethod
    def row_losses(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row (n,), without class weights."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        input : Tensor of shape (n, n_classes)
            Class scores before a softmax.
        target : Tensor of shape (n,)
            Labels 0 ... n_classes - 1.

        Returns
        -------
        loss : Tensor of shape (), or (n,) if `reduction` is "none"
        """
        self._check(input, target)
        return self._reduced(self.row_losses(input, target), target)

    def _check(self, input: Tensor, target: Tensor) -> None:
        check_class_scores(input, target, n_classes=self.n_classes)

    def _reduced(self, losses: Tensor, target: Tensor) -> Tensor:
        weight = self.class_weight()
        weights = None if weight is None else weight.to(losses.dtype)[target]
        return reduced(losses, weights, self.reduction)

    def class_weight(self) -> Tensor | None:
        """Return the factors of the losses of each class (n_classes,), if any."""
        return self.weight


def reduced(losses: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Return the losses of rows (n,), weighed and summed up as `reduction` says."""
    weighed = losses if weights is None else weights * losses
    if reduction == "none":
        return weighed
    if reduction == "sum":
        return weighed.sum()
    if reduction == "mean" or weights is None:
        return weighed.mean()
    return weighed.sum() / weights.sum()


def class_vector(values: Sequence[float] | Tensor | Any) -> Tensor:
    """Return a value per class in torch's default dtype."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
