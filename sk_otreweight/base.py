"""The scikit-learn contract of the re-weighting classifiers, written once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from skorch import NeuralNet
from torch import Tensor

from sk_otreweight._validation import (
    MetaData,
    check_cast,
    check_choice,
    check_count,
    check_inputs_like,
    check_meta_arguments,
    check_meta_arrays,
    check_meta_columns,
    check_meta_mask,
    check_output_width,
    check_real,
    check_same_classes,
    check_two_classes,
    encode_labels,
    warn_missing_meta_classes,
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
    target_dtype : torch.dtype
        In which the net's loss takes labels.
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
    target_dtype: torch.dtype
    class_counts: Tensor
    meta: MetaData | None
    features: Tensor | None
    is_stream: bool
    seed: int


class _CheckedRows(NamedTuple):
    """Rows of a call to fit: training rows, and what was set apart from them."""

    X: np.ndarray
    y: np.ndarray
    held_out: np.ndarray | None
    meta: tuple[Any, Any] | None


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
            rows = self._check_data(X, y, meta, X_meta, y_meta, meta_mask)
            self.classes_ = np.unique(rows.y)
            check_two_classes(self.classes_)
            seed = _draw_seed(self.random_state)
            with seeded(seed, getattr(self.net, "device", None) or "cpu"):
                is_trained = self._prepare(rows.X)
                self._train(rows, seed, stage_one=not is_trained)
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

        Nothing whose size grows with the rows seen is kept (``history_`` holds the
        epochs of `fit` and the last chunk's), and a chunk may lack classes. Without a
        `fit` before (and unless `net` is a ``FrozenEstimator``) there is no trained
        extractor, so the whole net is trained, whatever `finetune` says.

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
            rows = self._check_data(X, y, meta, X_meta, y_meta, meta_mask, reset=first)
            if not first:
                check_inputs_like(rows.X, self._input_shape, name="X")
                self._copy_learned()
            if first:
                self.classes_ = np.unique(np.asarray(classes))
                check_two_classes(self.classes_)
            seed = _draw_seed(self.random_state)
            with seeded(seed, getattr(self.net, "device", None) or "cpu"):
                if first:
                    self._extractor_is_trained = self._prepare(rows.X)
                    self._n_fit_epochs = len(self.net_.history)
                # Another order of the rows, and another draw, in every chunk.
                n_seen = int(self._class_counts.sum())
                self._train(rows, seed + n_seen, is_stream=True)
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
        check_inputs_like(X, self._input_shape, name="X")
        X = check_cast(X, input_dtype(self.net_, X), name="X")
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
    ) -> _CheckedRows:
        """Check the rows of a call and set the meta rows apart."""
        X, y = validate_data(self, X, y, reset=reset, **self._input_checks())
        check_classification_targets(y)
        pair = check_meta_arguments(meta, X_meta, y_meta, meta_mask, n_rows=len(X))
        if pair is not None:
            check_meta_columns(pair[0], getattr(self, "feature_names_in_", None))
            pair = check_meta_arrays(*pair, dtype="numeric")
            check_inputs_like(pair[0], X.shape[1:], name="X_meta")
        held_out = None
        if meta_mask is not None:
            held_out = check_meta_mask(meta_mask, n_rows=len(X))
            pair = X[held_out], y[held_out]
            X, y = X[~held_out], y[~held_out]
        return _CheckedRows(X, y, held_out, pair)

    def _copy_learned(self) -> None:
        """Go on with copies, so that an error leaves what was learned before."""
        self.net_ = copy.deepcopy(self.net_)
        # An endless stream must not fill the memory with its history.
        del self.net_.history[self._n_fit_epochs :]

    def _prepare(self, X: np.ndarray) -> bool:
        """Build the net, try it on a few rows, and return whether it is trained."""
        sizes = {"n_features": X.shape[1], "n_classes": len(self.classes_)}
        build = partial(build_net, self.net, sizes=sizes, verbose=self.verbose)
        net, is_trained = build()
        if not is_trained:
            net.initialize()
        output = _probe(net, X)
        check_output_width(
            output, n_rows=len(X[:_PROBE_ROWS]), n_classes=len(self.classes_)
        )
        if output.numel() == len(output) and is_bare(self.net):
            net, is_trained = build(one_output=True)
            net.initialize()
        self._head = None
        if self._needs_head() or self.finetune == "head":
            rows = torch.from_numpy(_first_rows(net, X)).to(net.device)
            net.module_.eval()
            self._head = find_head(net.module_, net.infer, rows, self.head)
        self.net_ = net
        self._input_shape = X.shape[1:]
        self._class_counts = np.zeros(len(self.classes_), dtype=np.int64)
        self._meta = None
        return is_trained

    def _train(
        self,
        rows: _CheckedRows,
        seed: int,
        *,
        stage_one: bool = False,
        is_stream: bool = False,
    ) -> None:
        """Run both stages, or a pass of the second over a chunk of a stream."""
        net, head = self.net_, self._head
        X = check_cast(rows.X, input_dtype(net, rows.X), name="X")
        labels = encode_labels(rows.y, self.classes_, name="y")
        counts = np.bincount(labels, minlength=len(self.classes_))
        self._class_counts = self._class_counts + counts
        if rows.meta is not None:
            self._meta = self._encode_meta(*rows.meta, X.dtype)
        if not is_stream:
            self._check_meta(self._meta, counts)
            self._extractor_is_trained = True
        freeze = self.finetune == "head" and self._extractor_is_trained
        targets = self._targets(labels, X)
        with TrainingRun(net, X, targets, self._columns) as run:
            if stage_one:
                run.stage_one(net.max_epochs)
            data = Stage2Data(
                net=net,
                head=head,
                X=X,
                labels=torch.from_numpy(labels).to(net.device),
                target_dtype=torch.from_numpy(targets[:0]).dtype,
                class_counts=torch.from_numpy(self._class_counts),
                meta=self._meta,
                features=extract_features(net, head, X) if freeze else None,
                is_stream=is_stream,
                seed=seed,
            )
            step = self._make_step(data)
            run.stage_two(
                1 if is_stream else self.max_epochs,
                step,
                head=head,
                cached=data.features if head and head.can_replay else None,
                freeze=freeze,
                lr=self.lr,
            )
        self._set_weights(self._sample_weight(step, data), labels, rows.held_out)
        self.history_ = net.history
        if not is_stream:
            self._n_fit_epochs = len(net.history)

    def _targets(self, labels: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Return labels as the criterion takes them: floats for a single score."""
        output = _probe(self.net_, X)
        return labels.astype(np.float32) if output.numel() == len(output) else labels

    def _encode_meta(self, X: Any, y: Any, dtype: np.dtype) -> MetaData:
        labels = encode_labels(y, self.classes_, name="y_meta")
        warn_missing_meta_classes(labels, self.classes_)
        return MetaData(check_cast(X, dtype, name="X_meta"), labels)

    def _set_weights(
        self, weights: Tensor, labels: np.ndarray, held_out: np.ndarray | None
    ) -> None:
        """Set the weights of the rows and their means by class."""
        weights = weights.double().cpu().numpy()
        counts = np.bincount(labels, minlength=len(self.classes_))
        sums = np.bincount(labels, weights, minlength=len(self.classes_))
        with np.errstate(invalid="ignore"):
            self.class_weight_ = sums / counts  # NaN for classes a chunk lacks
        if held_out is None:
            self.sample_weight_ = weights
        else:
            self.sample_weight_ = np.zeros(len(held_out))
            self.sample_weight_[~held_out] = weights


def _probe(net: NeuralNet, X: np.ndarray) -> Tensor:
    """Return the scores of a few rows."""
    return first_output(net.evaluation_step((_first_rows(net, X), None)))


def _first_rows(net: NeuralNet, X: np.ndarray) -> np.ndarray:
    """Return a copy of a few rows, in the dtype of the net."""
    return check_cast(X[:_PROBE_ROWS].copy(), input_dtype(net, X), name="X")


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
