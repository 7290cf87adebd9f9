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
    weighed_prior,
)
from sk_otreweight.baselines.heads import CosineHead, linear_head, replace_head
from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)
from sk_otreweight.extraction import replaced
from sk_otreweight.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    DeferredReweightingLoss,
    FocalLoss,
    InfluenceBalancedLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


@dataclass(eq=False, repr=False, kw_only=True)
class FocalClassifier(BaselineClassifier):
    """Focal loss: rows that are classified well count less.

    See :class:`FocalLoss` (Lin et al., ICCV 2017).

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
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
    net, head, max_epochs, lr, target_prior, random_state, verbose
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
        with replaced(self.net_, predict_nonlinearity=sigmoid_shares):
            return super()._probabilities(X)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        loss = ClassBalancedLoss(self._counts(), self.beta, self.gamma, self.link)
        return LossStep(data, loss)

    def _assumed_prior(self) -> np.ndarray:
        return weighed_prior(self._class_counts, _effective(self._counts(), self.beta))


@dataclass(eq=False, repr=False, kw_only=True)
class LogitAdjustmentClassifier(BaselineClassifier):
    """Logit adjustment in the loss: cross-entropy of ``z + tau log pi``.

    See :class:`LogitAdjustedLoss` (Menon et al., ICLR 2021). Predictions are those of
    the scores z as they are, so for classes of equal shares.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
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
        return adjusted_prior(self._class_counts, self.tau)


@dataclass(eq=False, repr=False, kw_only=True)
class BalancedSoftmaxClassifier(BaselineClassifier):
    """Balanced softmax: cross-entropy of ``z + log n``.

    See :class:`BalancedSoftmaxLoss` (Ren et al., NeurIPS 2020); the same as
    :class:`LogitAdjustmentClassifier` with ``tau=1``.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
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
        return adjusted_prior(self._class_counts, 1.0)


@dataclass(eq=False, repr=False, kw_only=True)
class LDAMClassifier(BaselineClassifier):
    """Larger margins for rarer classes, on a cosine head.

    See :class:`LDAMLoss` (Cao et al., NeurIPS 2019). The last layer of the net, an
    ``nn.Linear``, is replaced by a :class:`CosineLinear` with the same weights.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    max_margin : float, default=0.5
        Margin of the rarest class.
    scale : float, default=30.0
        Factor of the cosines.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import LDAMClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = LDAMClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ldam"
    paper = "Cao et al., NeurIPS 2019"
    needs = frozenset({"counts", "features"})

    max_margin: float = 0.5
    scale: float = 30.0

    def _check_parameters(self) -> None:
        check_real(self.max_margin, name="max_margin")
        check_real(self.scale, name="scale")

    def _adapt_net(self) -> None:
        replace_head(self.net_, self._head, CosineHead, scale=self.scale)

    def _loss(self) -> LDAMLoss:
        return LDAMLoss(self._counts(), self.max_margin, self.scale)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return LossStep(data, self._loss())


@dataclass(eq=False, repr=False, kw_only=True)
class LDAMDRWClassifier(LDAMClassifier):
    """LDAM with deferred re-weighting: class weights in the last part of training.

    Cao et al., NeurIPS 2019, with the class-balanced weights of the released code.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    max_margin, scale
        See :class:`LDAMClassifier`.
    start : float, default=0.8
        Part of the epochs after which the weights count; 0.8 is the paper's 160 of 200.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import LDAMDRWClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = LDAMDRWClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ldam_drw"

    start: float = 0.8
    beta: float | str = 0.9999

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real(self.start, name="start", maximum=1.0)
        check_beta(self.beta)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        weights = effective_number_weights(self._counts(), self.beta)
        loss = DeferredReweightingLoss(self._loss(), weights, self.start)
        return _DeferredStep(data, loss)

    def _assumed_prior(self) -> np.ndarray:
        if self.start == 1:
            return super()._assumed_prior()
        return weighed_prior(self._class_counts, _effective(self._counts(), self.beta))


class _DeferredStep(LossStep):
    """Tells the loss how much of the training is over."""

    def row_losses(self, scores: Tensor, batch: StepBatch) -> Tensor:
        self.loss.progress = self.progress
        return super().row_losses(scores, batch)


@dataclass(eq=False, repr=False, kw_only=True)
class InfluenceBalancedClassifier(BaselineClassifier):
    """Rows that move the classifier much count less, in the last part of training.

    See :class:`InfluenceBalancedLoss` (Park et al., ICCV 2021), here with the inverse
    frequencies as class weights. The training begins with the net's own loss.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    alpha : float or "auto", default="auto"
        Scale of the loss; the released code takes 1000.
    start : float, default=0.5
        Part of the epochs after which the loss is used.
    detach : bool, default=False
        Take the influence as a constant; the released code does not.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import InfluenceBalancedClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = InfluenceBalancedClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ib"
    paper = "Park et al., ICCV 2021"
    needs = frozenset({"counts", "features"})
    gamma = 0.0

    alpha: float | str = "auto"
    start: float = 0.5
    detach: bool = False

    def _check_parameters(self) -> None:
        if self.alpha != "auto":
            check_real(self.alpha, name="alpha")
        check_real(self.start, name="start", maximum=1.0)
        check_choice(self.detach, name="detach", choices=(True, False))

    def _class_weight(self) -> Tensor:
        return inverse_frequency_weights(self._counts())

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        loss = InfluenceBalancedLoss(
            self._class_weight(), self.alpha, self.gamma, self.detach
        )
        return _InfluenceStep(data, loss, self.start)

    def _assumed_prior(self) -> np.ndarray:
        if self.start == 1:
            return super()._assumed_prior()
        return weighed_prior(self._class_counts, self._class_weight().numpy())


@dataclass(eq=False, repr=False, kw_only=True)
class InfluenceBalancedCBClassifier(InfluenceBalancedClassifier):
    """The influence-balanced loss with class-balanced weights (IB + CB).

    Park et al., ICCV 2021, with the weights of Cui et al., CVPR 2019, in the place of
    the inverse frequencies.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    alpha, start, detach
        See :class:`InfluenceBalancedClassifier`.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import InfluenceBalancedCBClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = InfluenceBalancedCBClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ib_cb"

    beta: float | str = 0.9999

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_beta(self.beta)

    def _class_weight(self) -> Tensor:
        return effective_number_weights(self._counts(), self.beta)


@dataclass(eq=False, repr=False, kw_only=True)
class InfluenceBalancedFocalClassifier(InfluenceBalancedClassifier):
    """The influence-balanced loss of the focal loss (IB + focal).

    Park et al., ICCV 2021, with the focal loss of Lin et al., ICCV 2017.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    alpha, start, detach
        See :class:`InfluenceBalancedClassifier`.
    gamma : float, default=1.0
        Exponent of the focal loss; 0 is the plain form.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import InfluenceBalancedFocalClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = InfluenceBalancedFocalClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ib_focal"

    gamma: float = 1.0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real(self.gamma, name="gamma")


class _InfluenceStep(LossStep):
    """Gives the loss the features that the head was given."""

    needs_features = True

    def row_losses(self, scores: Tensor, batch: StepBatch) -> Tensor:
        return self.loss(scores, batch.labels, batch.features)


def sigmoid_shares(scores: Tensor) -> Tensor:
    """Return the sigmoids of class scores (n, K), scaled to a sum of 1."""
    return scores.sigmoid() / scores.sigmoid().sum(1, keepdim=True)


def adjusted_prior(class_counts: np.ndarray, tau: float) -> np.ndarray:
    """Return the class shares that are left after an adjustment by ``pi^tau``."""
    present = class_counts > 0
    shares = np.zeros(len(class_counts))
    shares[present] = (class_counts[present] / class_counts.sum()) ** (1 - tau)
    return shares / shares.sum()


def _effective(class_counts: np.ndarray, beta: float | str) -> np.ndarray:
    return effective_number_weights(class_counts, beta).numpy()
