"""The scikit-learn contract of the re-weighting classifiers, written once."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from skorch import NeuralNet
from torch import Tensor

from sk_otreweight._validation import (
    MetaData,
    check_choice,
    check_count,
    check_inputs_like,
    check_meta_arguments,
    check_meta_arrays,
    check_meta_classes,
    check_meta_mask,
    check_output_width,
    check_real,
    check_same_classes,
    check_two_classes,
    encode_labels,
)
from sk_otreweight.features import Head, find_head, first_output
from sk_otreweight.nets import build_net, input_dtype, is_bare
from sk_otreweight.randomness import seeded
from sk_otreweight.training import Stage2Step, TrainingRun, extract_features

# Prediction batches have this many rows always: matrix products of another number of
# rows round differently, and a row's probabilities must not depend on its company.
_PREDICTION_ROWS = 128
_PROBE_ROWS = 4


@dataclass
class Stage2Data:
    """What a method may use to make its stage-2 step.

    Attributes
    ----------
    net : skorch.NeuralNet
        Initialised.
    head : Head or None
        Where features are read; None if the method said it needs none.
    X : ndarray of shape (n, ...)
        Training inputs, in the dtype of the net.
    labels : Tensor of shape (n,)
        Encoded training labels, on the net's device.
    class_counts : Tensor of shape (K,)
        Rows of each class seen so far.
    meta : MetaData or None
        Meta rows if some were given.
    features : Tensor of shape (n, d) or None
        Features of the training rows if the extractor is frozen.
    is_stream : bool
        Whether this is a chunk of a stream.
    seed : int
    """

    net: NeuralNet
    head: Head | None
    X: np.ndarray
    labels: Tensor
    class_counts: Tensor
    meta: MetaData | None
    features: Tensor | None
    is_stream: bool
    seed: int


class BaseReweightedClassifier(ClassifierMixin, BaseEstimator, ABC):
    """Base of classifiers that train a net in two stages, the second with weights.

    Subclasses store their parameters, among them `net`, `finetune`, `head`,
    `max_epochs`, `lr`, `random_state` and `verbose`, and write the hooks below.
    """

    _columns: Mapping[str, float] = {}

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise on parameters that are not valid, before anything is trained."""

    @abstractmethod
    def _needs_head(self) -> bool:
        """Return whether stage 2 reads features."""

    @abstractmethod
    def _check_meta(self, meta: MetaData | None, counts: np.ndarray) -> None:
        """Raise if the meta rows, or the lack of them, do not do."""

    @abstractmethod
    def _make_step(self, data: Stage2Data) -> Stage2Step:
        """Return the step of stage 2, ready for its first epoch."""

    @abstractmethod
    def _sample_weight(self, step: Stage2Step, data: Stage2Data) -> Tensor:
        """Return the weights (n,) of the training rows, of mean 1."""

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        meta: tuple[Any, Any] | None = None,
        X_meta: Any = None,
        y_meta: Any = None,
        meta_mask: Any = None,
    ) -> BaseReweightedClassifier:
        """Train the net in two stages.

        Stage 1 trains it as it is configured, for its own number of epochs; stage 2
        goes on for `max_epochs` with re-weighted losses.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training inputs; more than two dimensions need a net that takes them.
        y : array-like of shape (n_samples,)
            Class labels of any type.
        meta : tuple (X_meta, y_meta), default=None
            A small balanced set of trusted rows, apart from the training rows. With
            none, it is drawn from the training rows, balanced, anew in every epoch
            (appendix E).
        X_meta, y_meta : array-like, default=None
            The same as two arguments, for pipelines that transform ``X_meta``.
        meta_mask : array-like of bool of shape (n_samples,), default=None
            The same as a mask: these rows of X are the meta set and are not trained
            on.

        Returns
        -------
        self : BaseReweightedClassifier

        Raises
        ------
        ValueError
            If an argument or parameter is not valid; the message says what was given
            and what is expected.
        FloatingPointError
            If the loss becomes NaN; the estimator stays as it was before.
        """
        self._check_common_parameters()
        with _kept_on_error(self):
            X, y, held_out, meta_rows = self._check_data(
                X, y, meta, X_meta, y_meta, meta_mask
            )
            self.classes_ = np.unique(y)
            check_two_classes(self.classes_)
            seed = _draw_seed(self.random_state)
            with seeded(seed, getattr(self.net, "device", None) or "cpu"):
                self._fit(X, y, held_out, meta_rows, seed)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        *,
        meta: tuple[Any, Any] | None = None,
        X_meta: Any = None,
        y_meta: Any = None,
        meta_mask: Any = None,
    ) -> BaseReweightedClassifier:
        """Take one pass of stage-2 steps over a chunk of a stream.

        Nothing whose size grows with the rows seen is kept, and a chunk may lack
        classes. Without a `fit` before (and unless `net` is a ``FrozenEstimator``)
        there is no trained extractor, so the whole net is trained, whatever `finetune`
        says.

        Parameters
        ----------
        X : array-like of shape (n_chunk, n_features) or (n_chunk, ...)
        y : array-like of shape (n_chunk,)
        classes : array-like of shape (n_classes,), default=None
            All classes of the stream; needed at the first call.
        meta, X_meta, y_meta, meta_mask
            As in `fit`. A meta set once given is kept for later chunks.

        Returns
        -------
        self : BaseReweightedClassifier
        """
        self._check_common_parameters()
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError(
                "classes=None at the first call of partial_fit: give all class labels "
                "of the stream, as a chunk may lack some."
            )
        if classes is not None and not first:
            check_same_classes(np.unique(np.asarray(classes)), self.classes_)
        with _kept_on_error(self):
            X, y, held_out, meta_rows = self._check_data(
                X, y, meta, X_meta, y_meta, meta_mask, reset=first
            )
            if first:
                self.classes_ = np.unique(np.asarray(classes))
                check_two_classes(self.classes_)
            seed = _draw_seed(self.random_state)
            with seeded(seed, getattr(self.net, "device", None) or "cpu"):
                self._partial_fit(X, y, held_out, meta_rows, seed, first)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In float64, in the order of ``classes_``. They are those of the
            re-weighted problem, in which all classes are about equally frequent.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, **self._input_checks())
        if X.shape[1:] != self._input_shape:
            check_inputs_like(X, self._input_shape, name="X")
        X = X.astype(input_dtype(self.net_, X), copy=False)
        batches = [
            self._predict_batch(X[start : start + _PREDICTION_ROWS])
            for start in range(0, len(X), _PREDICTION_ROWS)
        ]
        probabilities = np.concatenate(batches)
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _predict_batch(self, X: np.ndarray) -> np.ndarray:
        lacking = _PREDICTION_ROWS - len(X)
        padded = np.concatenate([X, np.repeat(X[-1:], lacking, axis=0)])
        return self.net_.predict_proba(padded)[: len(X)].astype(np.float64)

    def _check_common_parameters(self) -> None:
        check_choice(self.finetune, name="finetune", choices=("head", "all"))
        check_count(self.max_epochs, name="max_epochs", minimum=0)
        if self.lr is not None:
            check_real(self.lr, name="lr")
        self._check_parameters()

    def _input_checks(self) -> dict[str, Any]:
        return {"dtype": "numeric", "allow_nd": self.net is not None}

    def _check_data(
        self,
        X: Any,
        y: Any,
        meta: Any,
        X_meta: Any,
        y_meta: Any,
        meta_mask: Any,
        reset: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[Any, Any] | None]:
        """Return training rows and labels, the mask that was held out, meta rows."""
        X, y = validate_data(self, X, y, reset=reset, **self._input_checks())
        check_classification_targets(y)
        pair = check_meta_arguments(meta, X_meta, y_meta, meta_mask, n_rows=len(X))
        if pair is not None:
            pair = check_meta_arrays(*pair, dtype="numeric")
            check_inputs_like(pair[0], X.shape[1:], name="X_meta")
        held_out = None
        if meta_mask is not None:
            held_out = check_meta_mask(meta_mask, n_rows=len(X))
            pair = X[held_out], y[held_out]
            X, y = X[~held_out], y[~held_out]
        return X, y, held_out, pair

    def _fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        held_out: np.ndarray | None,
        meta_rows: tuple[Any, Any] | None,
        seed: int,
    ) -> None:
        net, is_trained, head = self._prepare_net(X)
        self._input_shape = X.shape[1:]
        X = X.astype(input_dtype(net, X), copy=False)
        labels = encode_labels(y, self.classes_, name="y")
        self._class_counts = np.bincount(labels, minlength=len(self.classes_))
        meta = self._encode_meta(meta_rows, X.dtype)
        self._check_meta(meta, self._class_counts)
        targets = self._targets(net, labels, X)
        with TrainingRun(net, X, targets, self._columns) as run:
            run.stage_one(0 if is_trained else net.max_epochs)
            self._extractor_is_trained = True
            data, step = self._start_stage_two(
                net, head, X, labels, meta, seed, freeze=self.finetune == "head"
            )
            run.stage_two(
                self.max_epochs,
                step,
                head=head,
                cached=self._cacheable(data),
                freeze=self.finetune == "head",
                lr=self.lr,
            )
        self._finish(net, head, meta, step, data, held_out)

    def _partial_fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        held_out: np.ndarray | None,
        meta_rows: tuple[Any, Any] | None,
        seed: int,
        first: bool,
    ) -> None:
        if first:
            net, is_trained, head = self._prepare_net(X)
            self._input_shape = X.shape[1:]
            self._extractor_is_trained = is_trained
            self._class_counts = np.zeros(len(self.classes_), dtype=np.int64)
            meta = None
        else:
            net, head, meta = self.net_, self._head, self._meta
        X = X.astype(input_dtype(net, X), copy=False)
        labels = encode_labels(y, self.classes_, name="y")
        counts = np.bincount(labels, minlength=len(self.classes_))
        self._class_counts = self._class_counts + counts
        if meta_rows is not None:
            meta = self._encode_meta(meta_rows, X.dtype)
        freeze = self.finetune == "head" and self._extractor_is_trained
        with TrainingRun(net, X, self._targets(net, labels, X), self._columns) as run:
            data, step = self._start_stage_two(
                net, head, X, labels, meta, seed, freeze=freeze, is_stream=True
            )
            run.stage_two(
                1,
                step,
                head=head,
                cached=self._cacheable(data),
                freeze=freeze,
                lr=self.lr,
            )
        self._finish(net, head, meta, step, data, held_out)

    def _prepare_net(self, X: np.ndarray) -> tuple[NeuralNet, bool, Head | None]:
        """Build and initialise the net, and try it on a few rows."""
        sizes = {"n_features": X.shape[1], "n_classes": len(self.classes_)}
        net, is_trained = build_net(self.net, sizes=sizes, verbose=self.verbose)
        if not is_trained:
            net.initialize()
        output = _probe(net, X)
        width = output.numel() // len(output)
        check_output_width(output, n_rows=len(output), n_classes=len(self.classes_))
        if width == 1 and is_bare(self.net):
            net, is_trained = build_net(
                self.net, sizes=sizes, verbose=self.verbose, one_output=True
            )
            net.initialize()
        head = None
        if self._needs_head() or self.finetune == "head":
            rows = X[:_PROBE_ROWS].astype(input_dtype(net, X))
            net.module_.eval()
            head = find_head(net.module_, net.infer, rows, self.head)
        return net, is_trained, head

    def _targets(self, net: NeuralNet, labels: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Return labels as the criterion takes them: floats for a single score."""
        output = _probe(net, X)
        return labels.astype(np.float32) if output.numel() == len(output) else labels

    def _encode_meta(
        self, rows: tuple[Any, Any] | None, dtype: np.dtype
    ) -> MetaData | None:
        if rows is None:
            return None
        X, y = rows
        labels = encode_labels(y, self.classes_, name="y_meta")
        message = check_meta_classes(labels, self.classes_)
        if message is not None:
            warnings.warn(message, UserWarning, stacklevel=5)
        return MetaData(X.astype(dtype, copy=False), labels)

    def _start_stage_two(
        self,
        net: NeuralNet,
        head: Head | None,
        X: np.ndarray,
        labels: np.ndarray,
        meta: MetaData | None,
        seed: int,
        *,
        freeze: bool,
        is_stream: bool = False,
    ) -> tuple[Stage2Data, Stage2Step]:
        features = extract_features(net, head, X) if freeze else None
        data = Stage2Data(
            net=net,
            head=head,
            X=X,
            labels=torch.from_numpy(labels).to(net.device),
            class_counts=torch.from_numpy(self._class_counts),
            meta=meta,
            features=features,
            is_stream=is_stream,
            seed=seed,
        )
        return data, self._make_step(data)

    @staticmethod
    def _cacheable(data: Stage2Data) -> Tensor | None:
        """Return the features if the head can be trained on them alone."""
        return data.features if data.head and data.head.can_replay else None

    def _finish(
        self,
        net: NeuralNet,
        head: Head | None,
        meta: MetaData | None,
        step: Stage2Step,
        data: Stage2Data,
        held_out: np.ndarray | None,
    ) -> None:
        """Set the fitted attributes."""
        self.net_ = net
        self._head, self._meta = head, meta
        weights = self._sample_weight(step, data).double().cpu().numpy()
        labels = data.labels.cpu().numpy()
        counts = np.bincount(labels, minlength=len(self.classes_))
        sums = np.bincount(labels, weights, minlength=len(self.classes_))
        with np.errstate(invalid="ignore"):
            self.class_weight_ = sums / counts  # NaN for classes a chunk lacks
        if held_out is not None:
            weights, trained = np.zeros(len(held_out)), weights
            weights[~held_out] = trained
        self.sample_weight_ = weights
        self.history_ = net.history


def _probe(net: NeuralNet, X: np.ndarray) -> Tensor:
    """Return the scores of a few rows."""
    rows = X[:_PROBE_ROWS].astype(input_dtype(net, X))
    return first_output(net.evaluation_step((rows, None)))


def _draw_seed(random_state: Any) -> int:
    """Return a seed; None takes one from the system, not from numpy's generator."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


@contextmanager
def _kept_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give an estimator back the attributes it had if something goes wrong."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
