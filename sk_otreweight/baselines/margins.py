"""Larger margins for rarer classes, and class weights late in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sk_otreweight._validation import check_beta, check_real
from sk_otreweight.baselines.base import (
    BaselineClassifier,
    LossStep,
    effective_prior,
)
from sk_otreweight.baselines.heads import CosineHead, replace_head
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.losses import DeferredReweightingLoss, LDAMLoss
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


@dataclass(eq=False, repr=False, kw_only=True)
class LDAMClassifier(BaselineClassifier):
    """Larger margins for rarer classes, on a cosine head.

    See :class:`LDAMLoss` (Cao et al., NeurIPS 2019). The last layer of the net, an
    ``nn.Linear``, is replaced by a :class:`CosineLinear` with the same weights.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
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

    Cao et al., NeurIPS 2019, with the class-balanced weights of the released code. That
    divides the loss of a batch by the sum of their weights, here it is by their number.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    max_margin, scale
        See :class:`LDAMClassifier`.
    start : float, default=0.8
        Part of the epochs after which the weights count, in the last one at the
        latest; 0.8 is the paper's 160 of 200, and 1 is never.
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
        return effective_prior(self.class_counts_, self.beta)


class _DeferredStep(LossStep):
    """Tells the loss when its weights count."""

    def row_losses(self, scores: Tensor, batch: StepBatch) -> Tensor:
        self.loss.progress = float(self.has_begun(self.loss.start))
        return super().row_losses(scores, batch)
