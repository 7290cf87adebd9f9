"""Label-distribution-aware margins, and the cosine head they need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sk_otreweight._validation import (
    check_class_counts,
    check_class_vector,
    check_count,
    check_real,
)
from sk_otreweight.losses.base import ClassificationLoss, class_vector


class CosineLinear(nn.Module):
    """Scaled cosines between features and a vector for each class.

    Parameters
    ----------
    in_features : int
    out_features : int
        Number of classes.
    scale : float, default=30.0
        Factor of the cosines: bounded by 1, they could not be told apart by a softmax.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import CosineLinear
    >>> CosineLinear(8, 3)(torch.randn(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0):
        super().__init__()
        check_count(in_features, name="in_features")
        check_count(out_features, name="out_features")
        check_real(scale, name="scale")
        self.in_features = in_features
        self.out_features = out_features
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class vectors anew."""
        nn.init.normal_(self.weight)  # directions of no preference

    def forward(self, input: Tensor) -> Tensor:
        """Return the scores (n, out_features) of features (n, in_features)."""
        return self.scale * F.linear(F.normalize(input), F.normalize(self.weight))


class LDAMLoss(ClassificationLoss):
    r"""Cross-entropy with larger margins for rarer classes (Cao et al., NeurIPS 2019).

    .. math::
        \ell = CE(z - s \Delta_y e_y, y), \quad
        \Delta_k = \Delta_{max} \left( \frac{n_{min}}{n_k} \right)^{1/4}

    for scores z that are s times a cosine, as of :class:`CosineLinear`: with unbounded
    scores margins have no meaning, and a scale of 30 ends in NaN. There is no margin
    in prediction.

    Parameters
    ----------
    class_counts : array-like of shape (n_classes,)
        Rows of each class in the whole training set.
    max_margin : float, default=0.5
        Margin of the rarest class, as a difference of cosines. The authors use 0.3 for
        large data sets.
    scale : float, default=30.0
        Factor s, the same as that of the head.
    weight : array-like of shape (n_classes,), default=None
        Class weights, as in the second part of deferred re-weighting.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"

    Raises
    ------
    ValueError
        If a class has no rows, or a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import CosineLinear, LDAMLoss
    >>> head, loss = CosineLinear(8, 2), LDAMLoss([900, 100])
    >>> bool(loss(head(torch.randn(5, 8)), torch.tensor([0, 0, 0, 1, 1])) > 0)
    True
    """

    margins: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
    ):
        check_real(max_margin, name="max_margin")
        check_real(scale, name="scale")
        counts = check_class_counts(class_counts)
        if weight is not None:
            weight = check_class_vector(weight, name="weight", n_classes=len(counts))
            weight = class_vector(weight)
        super().__init__(weight, n_classes=len(counts), reduction=reduction)
        self.class_counts = class_counts
        self.max_margin = max_margin
        self.scale = scale
        margins = max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", class_vector(margins))

    def row_losses(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row (n,), without class weights."""
        own = self.scale * self.margins.to(input.dtype)[target]
        scores = input.scatter_add(1, target[:, None], -own[:, None])
        return F.cross_entropy(scores, target, reduction="none")
