"""What all baselines have in common: how they train, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sk_otreweight._validation import MetaData, check_drawable
from sk_otreweight.base import BaseReweightedClassifier
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.sampling import balanced_rows
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


class BaselineStep(Stage2Step):
    """Stage 2 as plain training; counts the epochs and remembers the weights.

    Attributes
    ----------
    progress : float
        Part of the training that is over, for schedules; of a stream, all of it.
    row_weights : Tensor of shape (n,)
        The weight that each training row was last given.
    """

    def __init__(self, data: Stage2Data):
        self.data = data
        self.epoch = -1
        self.row_weights = torch.ones(len(data.labels), device=data.labels.device)

    @property
    def progress(self) -> float:
        """Return which part of the training is over."""
        if self.data.is_stream:
            return 1.0
        return max(self.epoch, 0) / max(self.data.epochs, 1)

    def has_begun(self, start: float) -> bool:
        """Return whether the last part of the training is on, with 1 as start never.

        Short trainings have it too: it begins with the last epoch at the latest.
        """
        n_epochs = max(self.data.epochs, 1)
        return start < 1 and self.progress >= min(start, (n_epochs - 1) / n_epochs)

    def begin_epoch(self, batches: Sequence[Tensor] | None) -> None:
        """Count the epoch."""
        self.epoch += 1

    def weigh(self, batch: StepBatch) -> Tensor:
        """Return the factors (n,) of the batch's losses."""
        weights = self.batch_weights(batch)
        if batch.rows is not None:
            self.row_weights[batch.rows] = weights.to(self.row_weights.dtype)
        return weights

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the factors (n,) of the batch's losses: here ones."""
        return torch.ones_like(batch.losses)


class BalancedStep(BaselineStep):
    """Plain training on rows that are drawn from all classes alike.

    Parameters
    ----------
    data : Stage2Data
    """

    draws_rows = True

    def __init__(self, data: Stage2Data):
        super().__init__(data)
        self.generator = torch.Generator().manual_seed(data.seed)

    def draw_rows(self, labels: Tensor) -> Tensor:
        """Return as many rows as there are, the classes alike."""
        return balanced_rows(labels, len(labels), self.generator)


class ClassWeightStep(BaselineStep):
    """The net's own loss, weighed by class.

    Parameters
    ----------
    data : Stage2Data
    class_weight : Tensor of shape (K,)
    """

    def __init__(self, data: Stage2Data, class_weight: Tensor):
        super().__init__(data)
        self.class_weight = class_weight.to(data.labels.device)

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of the classes of the rows."""
        return self.class_weight.to(batch.losses.dtype)[batch.labels]


class LossStep(BaselineStep):
    """A loss in the place of the net's own.

    Parameters
    ----------
    data : Stage2Data
    loss : nn.Module
        Of scores (n, K) and labels (n,); what it learned of the data is its own.
    start : float, default=0.0
        Part of the training after which it takes the place of the net's own, as in
        :meth:`has_begun`.
    """

    def __init__(self, data: Stage2Data, loss: nn.Module, start: float = 0.0):
        super().__init__(data)
        self.loss = loss.to(data.labels.device)
        self.loss.reduction = "none"
        self.start = start

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,)."""
        if not self.has_begun(self.start):
            return super().losses(batch)
        return self.row_losses(class_scores(self.data.net, batch.outputs), batch)

    def row_losses(self, scores: Tensor, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,) from the class scores."""
        return self.loss(scores, batch.labels)


# The parameters of an estimator are the fields of a dataclass: the constructor stores
# them, as scikit-learn asks for, and subclasses add theirs.
@dataclass(eq=False, repr=False, kw_only=True)
class BaselineClassifier(BaseReweightedClassifier):
    """Base of the methods to compare with.

    By default a baseline trains the whole net in one go, for as many epochs as both
    stages of :class:`OTReweightedClassifier` have together.

    Parameters
    ----------
    net : skorch net, nn.Module class or instance, FrozenEstimator or None, default=None
        What to train, as in :class:`OTReweightedClassifier`.
    head : str or callable, default=None
        Dotted name of the layer that produces the class scores, or
        ``head(module, X)`` returning its input; None finds it.
    max_epochs : int, default=10
        Epochs in addition to the net's own. In methods of two stages, those of stage 2.
    lr : float, default=None
        Learning rate of these; None keeps the optimizer's. In methods of
        one stage, of all epochs.
    train_on_meta, target_prior
        As in :class:`OTReweightedClassifier`.
    random_state : int, RandomState instance or None, default=None
    verbose : {0, 1, 2}, default=0

    Attributes
    ----------
    classes_, n_features_in_, feature_names_in_, net_, history_
        As in :class:`OTReweightedClassifier`.
    sample_weight_ : ndarray of shape (n_samples,)
        The weight that each row was last given, of mean 1, unless all are 0; 1 for
        methods that give no weights, or have class weights in a loss of their own.
    class_counts_ : ndarray of shape (n_classes,)
        Training rows of each class.
    class_weight_ : ndarray of shape (n_classes,)
        Mean weight of the rows of each class.
    prior_ : ndarray of shape (n_classes,)
        Shares of the classes that the probabilities assume.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import make_long_tailed
    >>> from sk_otreweight.baselines import BaselineClassifier, FocalClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = FocalClassifier(max_epochs=2, random_state=0).fit(data.X, data.y)
    >>> isinstance(clf, BaselineClassifier)
    True
    """

    # What the table of methods says about one.
    short_name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()  # of "counts", "meta", "features"
    stages: ClassVar[str] = "1"
    begins_with = None
    needs_meta = False

    finetune = "all"

    net: Any = field(default=None, kw_only=False)
    head: Any = None
    max_epochs: int = 10
    lr: float | None = None
    train_on_meta: bool = False
    target_prior: Any = None
    random_state: Any = None
    verbose: int = 0

    def _check_parameters(self) -> None:
        pass

    def _needs_head(self) -> bool:
        return "features" in self.needs

    def _check_meta(self, meta: MetaData | None, counts: np.ndarray) -> None:
        if self.needs_meta and meta is None:
            check_drawable(counts, self.classes_)

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        first, second = super()._epochs(stage_one=stage_one, is_stream=is_stream)
        return 0, first + second

    def _make_components(self, seed: int, is_stream: bool) -> None:
        pass

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return BaselineStep(data)

    def _sample_weight(self, step: BaselineStep, data: Stage2Data) -> Tensor:
        weights = step.row_weights.double()
        total = weights.sum()
        return weights * len(weights) / total if total > 0 else weights

    def _counts(self) -> np.ndarray:
        """Return the rows of each class, at least one: a stream may not have had it."""
        return np.maximum(self.class_counts_, 1)


class TwoStageClassifier(BaselineClassifier):
    """Base of the methods that begin with a net trained as it is configured."""

    stages = "2"
    begins_with = "net"

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        return two_stage_epochs(self, stage_one=stage_one, is_stream=is_stream)


def two_stage_epochs(
    estimator: BaselineClassifier, *, stage_one: bool, is_stream: bool
) -> tuple[int, int]:
    """Return the net's own epochs for stage 1, and `max_epochs` for stage 2."""
    return BaseReweightedClassifier._epochs(
        estimator, stage_one=stage_one, is_stream=is_stream
    )


def weighed_prior(class_counts: np.ndarray, class_weight: np.ndarray) -> np.ndarray:
    """Return the shares of the classes in the weighed training set."""
    mass = class_counts * class_weight
    return mass / mass.sum()


def effective_prior(class_counts: np.ndarray, beta: float | str) -> np.ndarray:
    """Return the shares of the classes, weighed by their effective numbers of rows."""
    counts = np.maximum(class_counts, 1)
    return weighed_prior(class_counts, effective_number_weights(counts, beta).numpy())
