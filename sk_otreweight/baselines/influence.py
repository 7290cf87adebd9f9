"""The influence-balanced loss and its variants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sk_otreweight._validation import check_beta, check_choice, check_real
from sk_otreweight.baselines.base import (
    BaselineClassifier,
    LossStep,
    weighed_prior,
)
from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)
from sk_otreweight.losses import InfluenceBalancedLoss
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


@dataclass(eq=False, repr=False, kw_only=True)
class InfluenceBalancedClassifier(BaselineClassifier):
    """Rows that move the classifier much count less, in the last part of training.

    See :class:`InfluenceBalancedLoss` (Park et al., ICCV 2021), here with the inverse
    frequencies as class weights. The training begins with the net's own loss. The
    learning rate is not cut when the loss comes in, as the released script does.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    alpha : float or "auto", default="auto"
        Scale of the loss; the released code takes 1000.
    start : float, default=0.5
        Part of the epochs after which the loss is used, in the last one at the latest;
        1 is never.
    detach : bool, default=True
        Take the influence as a constant; the released code does not, and diverges on
        nets without batch normalisation.

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
    detach: bool = True

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
        return weighed_prior(self.class_counts_, self._class_weight().numpy())


@dataclass(eq=False, repr=False, kw_only=True)
class InfluenceBalancedCBClassifier(InfluenceBalancedClassifier):
    """The influence-balanced loss with class-balanced weights (IB + CB).

    Park et al., ICCV 2021, with the weights of Cui et al., CVPR 2019, in the place of
    the inverse frequencies.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
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
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
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
