"""Training with a loss made for imbalance in the place of the net's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import Tensor

from sk_otreweight._validation import (
    check_beta,
    check_choice,
    check_real,
    check_returns_scores,
)
from sk_otreweight.baselines.base import (
    BaselineClassifier,
    LossStep,
    effective_prior,
)
from sk_otreweight.baselines.heads import linear_head
from sk_otreweight.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    FocalLoss,
    LogitAdjustedLoss,
)
from sk_otreweight.prediction import predict_proba
from sk_otreweight.stage2 import Stage2Data, Stage2Step
from sk_otreweight.wrappers import variant


@dataclass(eq=False, repr=False, kw_only=True)
class FocalClassifier(BaselineClassifier):
    """Focal loss: rows that are classified well count less.

    See :class:`FocalLoss` (Lin et al., ICCV 2017).

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    gamma : float, default=2.0
        Exponent; 0 is cross-entropy.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import FocalClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = FocalClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "focal"
    paper = "Lin et al., ICCV 2017"

    gamma: float = 2.0

    def _check_parameters(self) -> None:
        check_real(self.gamma, name="gamma")

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return LossStep(data, FocalLoss(self.gamma))


@dataclass(eq=False, repr=False, kw_only=True)
class ClassBalancedFocalClassifier(BaselineClassifier):
    """Class-balanced focal loss, by default with a sigmoid for each class.

    See :class:`ClassBalancedLoss` (Cui et al., CVPR 2019). With the link "sigmoid" the
    probabilities are the sigmoids, scaled to a sum of 1, and the biases of the last
    layer begin at ``-log(K - 1)`` unless the net is trained already.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.
    gamma : float, default=1.0
        Exponent of the focal loss.
    link : {"sigmoid", "softmax"}, default="sigmoid"
        The paper's is "sigmoid", for nets that return scores.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import ClassBalancedFocalClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = ClassBalancedFocalClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "cb_focal"
    paper = "Cui et al., CVPR 2019"
    needs = frozenset({"counts"})

    beta: float | str = 0.9999
    gamma: float = 1.0
    link: str = "sigmoid"

    def _check_parameters(self) -> None:
        check_beta(self.beta)
        check_real(self.gamma, name="gamma")
        check_choice(self.link, name="link", choices=("sigmoid", "softmax"))

    def _needs_head(self) -> bool:
        return self.link == "sigmoid"

    def _adapt_net(self) -> None:
        if self.link == "softmax":
            return
        check_returns_scores(self._head.activation)
        layer = linear_head(self.net_, self._head)
        if layer.bias is not None and not isinstance(self.net, FrozenEstimator):
            with torch.no_grad():
                layer.bias.fill_(-math.log(layer.out_features - 1))

    def _probabilities(self, X: Any) -> np.ndarray:
        if self.link == "softmax":
            return super()._probabilities(X)
        net = variant(self.net_, predict_nonlinearity=sigmoid_shares)
        return predict_proba(net, X, are_scores=False)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        loss = ClassBalancedLoss(self._counts(), self.beta, self.gamma, self.link)
        return LossStep(data, loss)

    def _assumed_prior(self) -> np.ndarray:
        return effective_prior(self.class_counts_, self.beta)


@dataclass(eq=False, repr=False, kw_only=True)
class LogitAdjustmentClassifier(BaselineClassifier):
    """Logit adjustment in the loss: cross-entropy of ``z + tau log pi``.

    See :class:`LogitAdjustedLoss` (Menon et al., ICLR 2021). Predictions are those of
    the scores z as they are, so for classes of equal shares.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    tau : float, default=1.0
        Strength; 0 is cross-entropy.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import LogitAdjustmentClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = LogitAdjustmentClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "logit_adjustment"
    paper = "Menon et al., ICLR 2021"
    needs = frozenset({"counts"})

    tau: float = 1.0

    def _check_parameters(self) -> None:
        check_real(self.tau, name="tau")

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return LossStep(data, LogitAdjustedLoss(self._counts(), self.tau))

    def _assumed_prior(self) -> np.ndarray:
        return adjusted_prior(self.class_counts_, self.tau)


@dataclass(eq=False, repr=False, kw_only=True)
class BalancedSoftmaxClassifier(BaselineClassifier):
    """Balanced softmax: cross-entropy of ``z + log n``.

    See :class:`BalancedSoftmaxLoss` (Ren et al., NeurIPS 2020); the same as
    :class:`LogitAdjustmentClassifier` with ``tau=1``.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import BalancedSoftmaxClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = BalancedSoftmaxClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "balanced_softmax"
    paper = "Ren et al., NeurIPS 2020"
    needs = frozenset({"counts"})

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return LossStep(data, BalancedSoftmaxLoss(self._counts()))

    def _assumed_prior(self) -> np.ndarray:
        return adjusted_prior(self.class_counts_, 1.0)


def sigmoid_shares(scores: Tensor) -> Tensor:
    """Return the sigmoids of class scores (n, K), scaled to a sum of 1."""
    return scores.sigmoid() / scores.sigmoid().sum(1, keepdim=True)


def adjusted_prior(class_counts: np.ndarray, tau: float) -> np.ndarray:
    """Return the class shares that are left after an adjustment by ``pi^tau``."""
    present = class_counts > 0
    shares = np.zeros(len(class_counts))
    shares[present] = (class_counts[present] / class_counts.sum()) ** (1 - tau)
    return shares / shares.sum()
