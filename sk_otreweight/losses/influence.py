"""Influence-balanced loss: rows that move the classifier much count less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sk_otreweight._validation import (
    check_class_vector,
    check_features,
    check_real,
)
from sk_otreweight.losses.base import ClassificationLoss, class_vector
from sk_otreweight.losses.focal import focal


class InfluenceBalancedLoss(ClassificationLoss):
    r"""Influence-balanced loss (Park et al., ICCV 2021).

    .. math::
        \ell = \lambda_y \frac{\alpha}{\lVert p - e_y \rVert_1 \lVert h \rVert_1
        + \varepsilon} \, (1 - p_y)^\gamma (-\log p_y)

    The denominator is the L1 norm of the gradient of the cross-entropy with respect to
    the weights of the last layer, whose input are the features h. Meant for the second
    part of a training that begins with cross-entropy.

    Parameters
    ----------
    weight : array-like of shape (n_classes,), default=None
        Class weights lambda: the paper's are the inverse frequencies, those of its
        variant IB + CB the inverse effective numbers, both of mean 1
        (:func:`inverse_frequency_weights`, :func:`effective_number_weights`).
    alpha : float or "auto", default="auto"
        Scale of the loss. The released code uses 1000 for its ResNets on CIFAR; what is
        right depends on the size of the features. "auto" (ours) is the mean influence
        of the rows seen in training so far, which keeps the level of cross-entropy.
    gamma : float, default=0.0
        Exponent of the focal loss, for IB + focal (there 1).
    detach : bool, default=True
        Take the influence as a constant, as "weight" suggests. The released code
        differentiates it as well: then larger features make a smaller loss, and
        without batch normalisation nothing keeps them from growing until the
        training diverges.
    epsilon : float, default=1e-3
        Added to the influence.
    reduction : {"mean", "weighted_mean", "sum", "none"}, default="mean"

    Raises
    ------
    ValueError
        If no features are given, or a parameter is not valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.losses import InfluenceBalancedLoss
    >>> loss = InfluenceBalancedLoss(alpha=1.0)
    >>> scores, features = torch.zeros(1, 2), torch.ones(1, 4)
    >>> loss(scores, torch.tensor([0]), features)
    tensor(0.1732)
    """

    mean_influence: Tensor
    n_seen: Tensor

    def __init__(
        self,
        weight: Sequence[float] | Tensor | None = None,
        alpha: float | str = "auto",
        gamma: float = 0.0,
        detach: bool = True,
        epsilon: float = 1e-3,
        reduction: str = "mean",
    ):
        if alpha != "auto":
            check_real(alpha, name="alpha")
        check_real(gamma, name="gamma")
        check_real(epsilon, name="epsilon")
        if weight is not None:
            weight = class_vector(check_class_vector(weight, name="weight"))
        super().__init__(weight, reduction=reduction)
        self.alpha = alpha
        self.gamma = gamma
        self.detach = detach
        self.epsilon = epsilon
        self.register_buffer("mean_influence", torch.ones(()))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        input: Tensor | tuple[Tensor, Tensor],
        target: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        input : Tensor of shape (n, n_classes), or tuple of it and the features
            Class scores before a softmax. As a criterion of a skorch net, the loss is
            given what the module returns: let that be the tuple.
        target : Tensor of shape (n,)
        features : Tensor of shape (n, d), default=None
            Input of the last layer.

        Returns
        -------
        loss : Tensor of shape (), or (n,) if `reduction` is "none"
        """
        if isinstance(input, tuple) and features is None:
            input, features = input
        check_features(features, n_rows=len(target))
        self._check(input, target)
        return self._reduced(self.row_losses(input, target, features), target)

    def row_losses(self, input: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """Return the loss of each row (n,), without class weights."""
        log_p = input.log_softmax(1).gather(1, target[:, None])[:, 0]
        # The L1 norm of p - e_y is 2 (1 - p_y).
        influence = -2 * torch.expm1(log_p) * features.abs().sum(1)
        if self.detach:
            influence = influence.detach()
        return (
            self._alpha(influence)
            / (influence + self.epsilon)
            * focal(log_p, self.gamma)
        )

    def _alpha(self, influence: Tensor) -> float | Tensor:
        if self.alpha != "auto":
            return self.alpha
        if self.training:
            with torch.no_grad():
                self.n_seen += len(influence)
                change = (influence - self.mean_influence).sum() / self.n_seen
                self.mean_influence += change
        return self.mean_influence.clone()
