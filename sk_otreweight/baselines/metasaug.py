"""Semantic augmentation with covariances that are learned from meta rows (MetaSAug)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from sk_otreweight._validation import check_beta, check_choice, check_real
from sk_otreweight.baselines.augmentation import ClassCovariances, Spread, spread
from sk_otreweight.baselines.base import effective_prior, two_stage_epochs
from sk_otreweight.baselines.heads import linear_head
from sk_otreweight.baselines.learned import STAGE_TWO_LOSSES, MetaClassifier, MetaStep
from sk_otreweight.baselines.meta_gradient import HeadGradient, Named, derivative
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.features import FeatureExtractor
from sk_otreweight.losses import LDAMLoss
from sk_otreweight.losses.focal import focal, focal_derivatives
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch
from sk_otreweight.wrappers import original

# Numbers in the covariances of all classes, above which "auto" keeps variances only.
_MOST_ENTRIES = 10**7
# Rows whose features are taken into the covariances at a time, if they are kept.
_ROWS_TOGETHER = 1024


@dataclass(eq=False, repr=False, kw_only=True)
class MetaSAugClassifier(MetaClassifier):
    """Features are augmented along directions learned from meta rows (MetaSAug).

    Li et al., CVPR 2021: in stage 2 the loss is a bound for features that vary as those
    of their class do, weighed by class. In each step the covariances move against the
    gradient of the loss on the meta rows.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`. The net must end in an ``nn.Linear``.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`.
    loss : {"cross_entropy", "focal", "ldam"}, default="cross_entropy"
        Of the augmented scores. The margins of "ldam" are subtracted from scores of
        a plain linear layer, as in the released code.
    covariance : {"auto", "full", "diag"}, default="auto"
        "diag" keeps the variances only. "auto" is what the authors take: "diag" for
        features that are kept (``finetune="head"``) and for covariances of more than
        10 million entries, else "full".
    strength : float, default=0.75
        Value of lambda at the end of stage 2; it grows by an equal part in each epoch
        of that. The paper tries 0.25 to 1. In its code for CIFAR lambda grows over both
        stages, and is 0.8 to 1 of its value in stage 2.
    covariance_lr : float, default=0.1
        Step size of the covariances; 0 leaves them as they were estimated.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import MetaSAugClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = MetaSAugClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "metasaug"
    paper = "Li et al., CVPR 2021"
    needs = frozenset({"counts", "meta", "features"})
    stages = "2"
    begins_with = "net"
    can_stream = False  # the covariances are those of one training set

    loss: str = "cross_entropy"
    covariance: str = "auto"
    strength: float = 0.75
    covariance_lr: float = 0.1
    beta: float | str = 0.9999

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.loss, name="loss", choices=tuple(STAGE_TWO_LOSSES))
        choices = ("auto", "full", "diag")
        check_choice(self.covariance, name="covariance", choices=choices)
        check_real(self.strength, name="strength")
        check_real(self.covariance_lr, name="covariance_lr")
        check_beta(self.beta)

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        return two_stage_epochs(self, stage_one=stage_one, is_stream=is_stream)

    def _adapt_net(self) -> None:
        linear_head(self.net_, self._head)  # or raise before the training

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _MetaSAugStep(data, self, self._counts())

    def _assumed_prior(self) -> np.ndarray:
        return effective_prior(self.class_counts_, self.beta)


class _MetaSAugStep(MetaStep):
    """The bound as loss; see `MetaSAugClassifier`."""

    stateful = ("covariances",)

    def __init__(
        self, data: Stage2Data, settings: MetaSAugClassifier, class_counts: np.ndarray
    ):
        super().__init__(data, settings._meta_rows())
        self.needs_features, self.needs_losses = True, False
        self.settings = settings
        self.layer = linear_head(data.net, data.head)
        weights = effective_number_weights(class_counts, settings.beta)
        self.class_weight = weights.to(data.labels.device, self.layer.weight.dtype)
        self.gamma = 2.0 if settings.loss == "focal" else 0.0
        self.margins = None
        if settings.loss == "ldam":
            self.margins = LDAMLoss(class_counts).margins.to(self.class_weight)
        n_classes, n_features = self.layer.weight.shape
        is_large = n_classes * n_features**2 > _MOST_ENTRIES
        diagonal = settings.covariance == "diag" or (
            settings.covariance == "auto" and (data.is_cached or is_large)
        )
        self.covariances = ClassCovariances(
            n_classes, n_features, diagonal, self.layer.weight
        )
        self.are_final = False

    @property
    def strength(self) -> float:
        """Return lambda in this epoch."""
        return self.settings.strength * (self.epoch + 1) / self.data.epochs

    def begin_epoch(self, batches: Sequence[Tensor] | None) -> None:
        """Count the epoch; take the covariances of features that are kept, once."""
        super().begin_epoch(batches)
        if self.data.is_cached and batches is not None and self.covariances.is_empty:
            device = self.data.labels.device
            for rows in torch.cat(list(batches)).to(device).split(_ROWS_TOGETHER):
                self.covariances.update(
                    self.data.features[rows], self.data.labels[rows]
                )
            self.are_final = True

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,) under the moved covariances."""
        self.draw_meta()
        scores = class_scores(self.data.net, batch.outputs)
        weight, covariance = self.layer.weight, self.covariances.covariance
        forms = spread(weight, batch.labels, covariance, self.strength)
        targets = torch.zeros_like(scores).scatter_(1, batch.labels[:, None], 1.0)
        loss = _RowLoss(targets, self.gamma, self.margins)
        weights = self.class_weight[batch.labels]
        self.shares = weights / weights.sum()
        if self.settings.covariance_lr and not self.covariances.is_empty:
            with torch.no_grad():
                self._move(forms, loss, scores, batch)
        if not self.are_final:
            self.covariances.update(batch.features.detach(), batch.labels)
        return _Bound.apply(scores, weight, forms, loss)

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of the classes of the rows, of mean 1 in the batch."""
        return len(self.shares) * self.shares

    def _move(
        self, forms: Spread, loss: _RowLoss, scores: Tensor, batch: StepBatch
    ) -> None:
        """Move the covariances against the gradient of the meta loss.

        That is taken after a virtual step. Covariances act through the head alone. So
        the derivative of the batch's loss in the direction of the meta gradient is one
        at the head, in which the features move as they do when the extractor's
        parameters move in that direction.
        """
        shares = self.shares[:, None]
        at = loss(forms.augment(scores))
        errors = shares * at.slopes
        direction, moves = self._directions(batch, errors, forms.slope(errors))
        changes = shares * at.along(moves + forms.along(direction))
        # The sign is that of the virtual step.
        size = -self.lr * self.settings.covariance_lr
        forms.descend(errors, changes, direction, size)

    def _directions(
        self, batch: StepBatch, errors: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the meta gradient of the head's weight (K, d), and what it does.

        That is how the scores (n, K) of the batch move along the whole meta gradient.

        Parameters
        ----------
        errors : Tensor of shape (n, K)
            Gradient of the batch's loss with respect to the scores.
        slope : Tensor of shape (K, d)
            Gradient with respect to the head's weight, as far as it acts through the
            covariances.
        """
        features = batch.features.detach()
        weight, prefix = self.layer.weight.detach(), self._prefix()
        own = {
            f"{prefix}weight": errors.T @ features + slope,
            f"{prefix}bias": errors.sum(0),
        }
        parameters = self.meta.parameters()
        others = {name: p for name, p in parameters.items() if name not in own}
        if others:
            grads = torch.autograd.grad(
                batch.features,
                list(others.values()),
                grad_outputs=errors @ weight,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            own |= dict(zip(others, grads, strict=True))
        moved = {
            name: torch.sub(p, own[name], alpha=self.lr)
            for name, p in parameters.items()
        }
        along = self.meta.direction(moved)
        direction = along.get(f"{prefix}weight", torch.zeros_like(weight))
        moves = F.linear(features, direction, along.get(f"{prefix}bias"))
        others = {name: p.detach() for name, p in others.items() if name in along}
        if others:
            moves = moves + self._feature_moves(batch, others, along) @ weight.T
        return direction, moves

    def _feature_moves(self, batch: StepBatch, at: Named, along: Named) -> Tensor:
        net, head = self.data.net, self.data.head
        extractor = FeatureExtractor(original(net.module_), head, net.infer)

        def features(named: Named) -> Tensor:
            buffers = {name: x.clone() for name, x in extractor.named_buffers()}
            return functional_call(extractor, named | buffers, (batch.X,))

        return derivative(features, at, {name: along[name] for name in at})

    def _prefix(self) -> str:
        """Return what the names of the head's parameters begin with."""
        if isinstance(self.meta, HeadGradient):
            return ""
        return f"module.{self.data.head.name}." if self.data.head.name else "module."


class _Bound(torch.autograd.Function):
    """The losses (n,) of augmented scores, with the slopes of the forms."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, weight: Tensor, forms: Spread, loss: _RowLoss
    ) -> Tensor:
        ctx.forms, ctx.at = forms, loss(forms.augment(scores))
        return ctx.at.losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        errors = grad[:, None] * ctx.at.slopes
        slope = ctx.forms.slope(errors) if ctx.needs_input_grad[1] else None
        return errors, slope, None, None


class _RowLoss:
    """Focal loss of scores less margins: cross-entropy, without the two.

    Parameters
    ----------
    targets : Tensor of shape (n, K)
        The labels, one-hot.
    gamma : float, default=0.0
    margins : Tensor of shape (K,), default=None
        Subtracted from the score of the row's own class.
    """

    def __init__(
        self, targets: Tensor, gamma: float = 0.0, margins: Tensor | None = None
    ):
        self.targets, self.gamma = targets, gamma
        self.margins = None if margins is None else margins * targets

    def __call__(self, scores: Tensor) -> _LossAt:
        """Return the losses at some scores (n, K), with their derivatives."""
        if self.margins is not None:
            scores = scores - self.margins
        return _LossAt(scores.log_softmax(1), self.targets, self.gamma)


class _LossAt:
    """A loss ``f(log p_y)`` of each row at its scores.

    Parameters
    ----------
    log_p, targets : Tensor of shape (n, K)
    gamma : float

    Attributes
    ----------
    losses : Tensor of shape (n,)
    slopes : Tensor of shape (n, K)
        Gradients with respect to the scores.
    """

    def __init__(self, log_p: Tensor, targets: Tensor, gamma: float):
        own = (log_p * targets).sum(1)
        self.losses = focal(own, gamma)
        self.p = log_p.exp()
        self.slopes = self.rest = self.p - targets
        self.first = self.second = None  # of cross-entropy -1 and 0
        if gamma > 0:
            self.first, self.second = focal_derivatives(own[:, None], gamma)
            self.slopes = -self.first * self.rest

    def along(self, moves: Tensor) -> Tensor:
        """Return how the slopes change (n, K) when the scores move (n, K)."""
        parts = self.p * moves
        changes = parts - self.p * parts.sum(1, keepdim=True)
        if self.first is None:
            return changes
        own = (self.rest * moves).sum(1, keepdim=True)
        return self.second * own * self.rest - self.first * changes
