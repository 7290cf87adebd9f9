"""Weights of rows that are learned from a meta set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sk_otreweight._validation import (
    check_beta,
    check_choice,
    check_count,
    check_real,
)
from sk_otreweight.baselines.base import (
    BaselineClassifier,
    BaselineStep,
    effective_prior,
    two_stage_epochs,
)
from sk_otreweight.baselines.heads import CosineHead, replace_head
from sk_otreweight.baselines.meta_gradient import RowLosses, meta_gradient
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.inputs import take
from sk_otreweight.losses import FocalLoss, LDAMLoss
from sk_otreweight.meta_rows import loss_inputs, meta_rows
from sk_otreweight.priors import named_prior
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


@dataclass(eq=False, repr=False, kw_only=True)
class MetaClassifier(BaselineClassifier):
    """Base of the methods that look at the loss on meta rows in each step.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    finetune : {"all", "head"}, default="all"
        "head" trains the last layer alone, on the features of a net that was trained
        as it is configured: two stages, and a fraction of the time.
    per_class : int, default=10
        Rows of each class that are drawn from the training rows if there are no meta
        rows.
    meta_batch_size : int or None, default=100
        Meta rows that a step looks at, drawn anew for each if there are more; None
        takes all.

    Examples
    --------
    >>> from sk_otreweight.baselines import L2RWClassifier, MetaClassifier
    >>> isinstance(L2RWClassifier(finetune="head"), MetaClassifier)
    True
    """

    needs: ClassVar[frozenset[str]] = frozenset({"meta"})
    needs_meta = True

    finetune: str = "all"
    per_class: int = 10
    meta_batch_size: int | None = 100

    @property
    def begins_with(self) -> str | None:
        """Return what others may have trained for it."""
        return "net" if self.finetune == "head" else None

    def _check_parameters(self) -> None:
        check_count(self.per_class, name="per_class")
        if self.meta_batch_size is not None:
            check_count(self.meta_batch_size, name="meta_batch_size")

    def _meta_rows(self) -> MetaRows:
        return MetaRows(self.per_class, self.meta_batch_size)

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        first, second = super()._epochs(stage_one=stage_one, is_stream=is_stream)
        if self.finetune == "head" and stage_one:
            return self.net_.max_epochs, second - self.net_.max_epochs
        return first, second

    def _assumed_prior(self) -> np.ndarray:
        return named_prior("uniform", self.class_counts_)


class MetaRows(NamedTuple):
    """How many meta rows are drawn: of a class, if none were given, and for a step."""

    per_class: int
    batch_size: int | None


class MetaStep(BaselineStep):
    """A step that knows how the meta loss changes with the weight of a row.

    Parameters
    ----------
    data : Stage2Data
    rows : MetaRows
    loss : nn.Module, default=None
        Of the training rows; None is the net's own.
    """

    needs_losses = True

    def __init__(self, data: Stage2Data, rows: MetaRows, loss: nn.Module | None = None):
        super().__init__(data)
        self.rows = rows
        self.loss = None if loss is None else loss.to(data.labels.device)
        self.generator = torch.Generator().manual_seed(data.seed)
        self.needs_features = data.is_cached
        self._set_meta()

    def _set_meta(self) -> None:
        X, labels = meta_rows(self.data, self.rows.per_class, self.generator)
        self.meta_set = loss_inputs(self.data, X), labels
        self.meta = meta_gradient(self.data, *self.meta_set)

    def begin_epoch(self, batches: Any) -> None:
        """Count the epoch, and draw other meta rows if none were given."""
        super().begin_epoch(batches)
        if self.data.meta is None and self.epoch > 0:
            self._set_meta()

    def draw_meta(self) -> None:
        """Draw the meta rows that the step looks at, if there are more."""
        X, labels = self.meta_set
        size = self.rows.batch_size
        if size is not None and len(labels) > size:
            drawn = torch.randperm(len(labels), generator=self.generator)[:size]
            X = take(X, drawn.numpy())
            self.meta = meta_gradient(self.data, X, labels[drawn.to(labels.device)])

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,)."""
        self.draw_meta()
        return self.row_losses(batch)(batch.outputs)

    def row_losses(self, batch: StepBatch) -> RowLosses:
        """Return a function from outputs for the batch to the loss of each row."""
        if self.loss is None:
            return batch.own_losses
        return lambda outputs: self.loss(
            class_scores(self.data.net, outputs), batch.labels
        )

    def products(self, batch: StepBatch, steps: Tensor | None = None) -> Tensor:
        """Return the products of :meth:`MetaGradient.products`."""
        return self.meta.products(batch, self.row_losses(batch), steps)

    @property
    def lr(self) -> float:
        """Return the learning rate of the net, for virtual steps."""
        return self.data.net.optimizer_.param_groups[0]["lr"]


# What a second stage may have as its loss, made from the class counts; None is the
# net's own.
STAGE_TWO_LOSSES: dict[str, Callable[[np.ndarray], nn.Module | None]] = {
    "cross_entropy": lambda counts: None,
    "focal": lambda counts: FocalLoss(reduction="none"),
    "ldam": lambda counts: LDAMLoss(counts, reduction="none"),
}


@dataclass(eq=False, repr=False, kw_only=True)
class L2RWClassifier(MetaClassifier):
    """Rows count by how much a step on them would lower the loss on meta rows (L2RW).

    Ren et al., ICML 2018: in each batch the weights are the products of the rows'
    gradients with that of the meta rows, those below 0 set to 0, scaled to a sum of 1.
    If all are 0 the batch has no loss, and momentum alone moves the net.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import L2RWClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = L2RWClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "l2rw"
    paper = "Ren et al., ICML 2018"

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _L2RWStep(data, self._meta_rows())


class _L2RWStep(MetaStep):
    def batch_weights(self, batch: StepBatch) -> Tensor:
        weights = self.products(batch).clamp(min=0)
        total = weights.sum()
        return weights * (len(weights) / total.where(total > 0, torch.ones_like(total)))


@dataclass(eq=False, repr=False, kw_only=True)
class MetaClassWeightClassifier(MetaClassifier):
    """Class weights with a correction for each row, learned from meta rows.

    Jamal et al., CVPR 2020: stage 2 weighs a row by the class-balanced weight of its
    class and a term that is estimated in each batch from the meta rows.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`.
    loss : {"cross_entropy", "focal", "ldam"}, default="cross_entropy"
        Loss of the rows in stage 2; "cross_entropy" is the net's own.
    eps_lr : float, default=0.01
        Step size of the corrections. These are ``eps_lr * lr * product of gradients``,
        for a learning rate of 1e-3 next to nothing: what is left are the class weights.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Attributes
    ----------
    correction_ : float
        Root mean square of the corrections over the class weights, in the last epoch.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import MetaClassWeightClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = MetaClassWeightClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "meta_class_weight"
    paper = "Jamal et al., CVPR 2020"
    needs = frozenset({"counts", "meta"})
    stages = "2"

    loss: str = "cross_entropy"
    eps_lr: float = 0.01
    beta: float | str = 0.9999

    @property
    def begins_with(self) -> str | None:
        """Return what others may have trained for it."""
        return None if self.loss == "ldam" else "net"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.loss, name="loss", choices=tuple(STAGE_TWO_LOSSES))
        check_real(self.eps_lr, name="eps_lr")
        check_beta(self.beta)

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        return two_stage_epochs(self, stage_one=stage_one, is_stream=is_stream)

    def _needs_head(self) -> bool:
        return self.loss == "ldam"

    def _adapt_net(self) -> None:
        if self.loss == "ldam":
            replace_head(self.net_, self._head, CosineHead)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        self._step = _MetaClassWeightStep(
            data,
            self._meta_rows(),
            STAGE_TWO_LOSSES[self.loss](self._counts()),
            effective_number_weights(self._counts(), self.beta),
            self.eps_lr,
        )
        return self._step

    def _finish(self, data: Stage2Data) -> None:
        self.correction_ = self._step.correction
        del self._step

    def _assumed_prior(self) -> np.ndarray:
        return effective_prior(self.class_counts_, self.beta)


class _MetaClassWeightStep(MetaStep):
    """Class weights and their corrections; see `MetaClassWeightClassifier`."""

    def __init__(
        self,
        data: Stage2Data,
        rows: MetaRows,
        loss: nn.Module | None,
        class_weight: Tensor,
        eps_lr: float,
    ):
        super().__init__(data, rows, loss)
        self.class_weight = class_weight.to(data.labels.device)
        self.eps_lr = eps_lr
        self.squares: list[Tensor] = []

    def begin_epoch(self, batches: Any) -> None:
        """Count the epoch and forget the corrections of the last."""
        super().begin_epoch(batches)
        self.squares = []

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of the classes, corrected row by row."""
        weights = self.class_weight.to(batch.losses.dtype)[batch.labels]
        products = self.products(batch, self.lr * weights)
        corrections = self.eps_lr * self.lr * products
        self.squares.append((corrections / weights).square().mean())
        return weights + corrections

    @property
    def correction(self) -> float:
        """Return the root mean square of the corrections over the class weights."""
        return float(torch.stack(self.squares).mean().sqrt()) if self.squares else 0.0
