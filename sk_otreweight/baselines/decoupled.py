"""A trained net whose classifier is learned anew, or corrected, on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sk_otreweight._validation import check_count, check_real
from sk_otreweight.baselines.base import (
    BalancedStep,
    BaselineStep,
    ClassWeightStep,
    TwoStageClassifier,
)
from sk_otreweight.baselines.heads import head_layer, linear_head, replace_head
from sk_otreweight.baselines.losses import adjusted_prior
from sk_otreweight.class_weights import inverse_frequency_weights
from sk_otreweight.features import ReplacedHead
from sk_otreweight.meta_rows import loss_inputs, meta_rows
from sk_otreweight.priors import named_prior
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


class ScaledHead(ReplacedHead):
    """A linear layer with a factor for each class, ``f_k (w_k h + b_k)``.

    Parameters
    ----------
    linear : nn.Linear
        Stays as it is.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.factor = nn.Parameter(torch.ones(linear.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the class scores (n, K)."""
        return self.factor * self.linear(features)


class DisAlignHead(ReplacedHead):
    r"""A linear layer with a calibration that each row takes part of.

    .. math:: \hat z = \sigma(x) (a \odot z + b) + (1 - \sigma(x)) z

    with ``a = 1 + delta`` and the confidence ``sigma(x) = sigmoid(v h + c)``. It begins
    as the identity, and weight decay leads back to it.

    Parameters
    ----------
    linear : nn.Linear
        Stays as it is.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.confidence = nn.Linear(linear.in_features, 1)
        nn.init.zeros_(self.confidence.weight)
        nn.init.zeros_(self.confidence.bias)
        self.delta = nn.Parameter(torch.zeros(linear.out_features))
        self.shift = nn.Parameter(torch.zeros(linear.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the class scores (n, K)."""
        scores = self.linear(features)
        confidence = self.confidence(features).sigmoid()
        return scores + confidence * (self.delta * scores + self.shift)


class _Decoupled(TwoStageClassifier):
    """Base: stage 2 trains the head's side alone, for classes of equal shares."""

    needs: ClassVar[frozenset[str]] = frozenset({"counts", "features"})
    can_stream = False

    finetune = "head"

    def _assumed_prior(self) -> np.ndarray:
        return named_prior("uniform", self.class_counts_)


@dataclass(eq=False, repr=False, kw_only=True)
class CRTClassifier(_Decoupled):
    """Classifier re-training: a new last layer on frozen features (cRT).

    Kang et al., ICLR 2020: the last layer begins anew and sees rows that are drawn from
    all classes alike.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import CRTClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = CRTClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "crt"
    paper = "Kang et al., ICLR 2020"

    def _adapt_net(self) -> None:
        linear_head(self.net_, self._head)  # or raise before the training

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        layer = linear_head(self.net_, self._head)
        layer.reset_parameters()
        for parameter in layer.parameters():
            self.net_.optimizer_.state.pop(parameter, None)
        return BalancedStep(data)


@dataclass(eq=False, repr=False, kw_only=True)
class LWSClassifier(_Decoupled):
    """Learnable weight scaling: a factor for the scores of each class (LWS).

    Kang et al., ICLR 2020: the net stays as it is, and the factors are learned from
    rows that are drawn from all classes alike.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import LWSClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = LWSClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "lws"
    paper = "Kang et al., ICLR 2020"

    def _adapt_net(self) -> None:
        train_around_linear(replace_head(self.net_, self._head, ScaledHead), False)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        train_around_linear(head_layer(self.net_, self._head), True)
        return BalancedStep(data)


@dataclass(eq=False, repr=False, kw_only=True)
class DisAlignClassifier(_Decoupled):
    r"""Distribution alignment: scores are calibrated, row by row (DisAlign).

    Zhang et al., CVPR 2021. The scores z of a row with features h become

    .. math:: \hat z = \sigma(v h + c) (a \odot z + b) + (1 - \sigma(v h + c)) z

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    rho : float, default=1.0
        Exponent of the inverse class frequencies that weigh the losses. The paper's is
        tuned for each data set, 1.2 for ImageNet-LT with a ResNeXt-50.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import DisAlignClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = DisAlignClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "disalign"
    paper = "Zhang et al., CVPR 2021"

    rho: float = 1.0

    def _check_parameters(self) -> None:
        check_real(self.rho, name="rho")

    def _adapt_net(self) -> None:
        train_around_linear(replace_head(self.net_, self._head, DisAlignHead), False)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        train_around_linear(head_layer(self.net_, self._head), True)
        weights = inverse_frequency_weights(self._counts(), self.rho)
        return _WeightedMeanStep(data, weights)

    def _assumed_prior(self) -> np.ndarray:
        return adjusted_prior(self.class_counts_, self.rho)


class _WeightedMeanStep(ClassWeightStep):
    """Class weights that are scaled to mean 1 in every batch."""

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of the classes of the rows."""
        weights = super().batch_weights(batch)
        return weights / weights.mean()


@dataclass(eq=False, repr=False, kw_only=True)
class MetaHeadClassifier(_Decoupled):
    """The last layer trained on the meta rows alone, on frozen features.

    What the meta rows can do by themselves. Each step sees all of them; there are as
    many steps as the other methods take.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    per_class : int, default=10
        Rows of each class that are drawn from the training rows if there are no
        meta rows.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import MetaHeadClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = MetaHeadClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "meta_head"
    paper = "control"
    needs = frozenset({"meta", "features"})
    needs_meta = True

    per_class: int = 10

    def _check_parameters(self) -> None:
        check_count(self.per_class, name="per_class")

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _MetaOnlyStep(data, self.per_class)


class _MetaOnlyStep(BaselineStep):
    """The loss on the meta rows in the place of that on the batch."""

    def __init__(self, data: Stage2Data, per_class: int):
        super().__init__(data)
        generator = torch.Generator().manual_seed(data.seed)
        X, labels = meta_rows(data, per_class, generator)
        self.meta = loss_inputs(data, X), labels.to(data.target_dtype)

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(batch.losses)

    def extra_batch(self) -> tuple[float, Any, Any]:
        """Return the meta rows."""
        return 1.0, *self.meta


def train_around_linear(head: nn.Module, is_on: bool) -> None:
    """Let stage 2 train what a head adds to its linear layer, or stage 1 the layer."""
    for name, parameter in head.named_parameters():
        is_added = not name.startswith("linear.")
        parameter.requires_grad_(is_added == is_on)
        parameter.grad = None  # optimizers pass over parameters without a gradient
