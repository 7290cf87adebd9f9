"""The scikit-learn contract of the re-weighting classifiers, written once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.utils.data import Dataset

from sk_otreweight._validation import (
    MetaData,
    check_can_distribute,
    check_choice,
    check_count,
    check_inputs_like,
    check_real,
    check_resume,
    check_same_classes,
    check_target_prior,
    check_two_classes,
    encode_labels,
    warn_missing_meta_classes,
)
from sk_otreweight.audit import suspicious_rows
from sk_otreweight.copies import restored_on_error
from sk_otreweight.display import mime_bundle, short_repr
from sk_otreweight.extraction import extract_features, training_features
from sk_otreweight.features import Head
from sk_otreweight.fingerprint import data_digest
from sk_otreweight.inputs import (
    LabelledDataset,
    cast,
    dataset_labels,
    in_memory,
    n_features,
    row_shapes,
    take,
)
from sk_otreweight.nets import is_bare
from sk_otreweight.persistence import FitCheckpoint, SaveMixin
from sk_otreweight.prediction import predict_proba, returns_scores
from sk_otreweight.prepare import find_net_head, prepare_net, probe, replays
from sk_otreweight.priors import named_prior, with_prior
from sk_otreweight.processes import Processes, device_of
from sk_otreweight.progress import Progress
from sk_otreweight.randomness import draw_seed, seeded, untouched
from sk_otreweight.restore import kept_on_error
from sk_otreweight.rows import (
    GivenMeta,
    TrainingRows,
    check_labelled_rows,
    check_rows,
    check_training_rows,
    with_meta_rows,
)
from sk_otreweight.stage2 import Stage2Data, Stage2Step
from sk_otreweight.training import TrainingRun


class BaseReweightedClassifier(SaveMixin, ClassifierMixin, BaseEstimator, ABC):
    """Base of classifiers that train a net in two stages, the second with weights.

    Subclasses store their parameters, among them `net`, `finetune`, `head`,
    `max_epochs`, `lr`, `train_on_meta`, `target_prior`, `random_state` and `verbose`,
    and write the hooks below.
    """

    can_stream: ClassVar[bool] = True
    # What others may have trained for it: the "net" as configured, also the rest of the
    # "training", or None.
    begins_with: ClassVar[str | None] = "net"
    # Whether several processes may share the rows of a batch.
    can_distribute: ClassVar[bool] = False
    # Whether classes that the meta rows lack would be missed.
    needs_meta: ClassVar[bool] = True

    _columns: Mapping[str, float] = {}
    # Whether the net predicts scores; None if it was saved before that was known.
    _returns_scores: bool | None = None

    def __repr__(self, N_CHAR_MAX: int = 120) -> str:
        return short_repr(self, N_CHAR_MAX)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return mime_bundle(self)

    def _repr_html_(self) -> str | None:
        return mime_bundle(self).get("text/html")

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
    def _make_components(self, seed: int, is_stream: bool) -> None:
        """Make what stage 2 uses, or keep it if this is a later chunk of a stream."""

    @abstractmethod
    def _make_step(self, data: Stage2Data) -> Stage2Step:
        """Return the step of stage 2, ready for its first epoch."""

    @abstractmethod
    def _sample_weight(self, step: Stage2Step, data: Stage2Data) -> Tensor:
        """Return the weights (n,) of the training rows, of mean 1."""

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        """Return the epochs of both stages."""
        return (
            self.net_.max_epochs if stage_one else 0,
            1 if is_stream else self.max_epochs,
        )

    def _stage_one_step(self) -> Stage2Step | None:
        """Return what has the losses of stage 1; None is the net itself."""
        return None

    def _restarts(self) -> bool:
        """Return whether stage 2 begins with the net as it was before stage 1."""
        return False

    def _adapt_net(self) -> None:  # noqa: B027 - optional hook
        """Change the net, built or copied, before it is trained."""

    def _finish(self, data: Stage2Data) -> None:  # noqa: B027 - optional hook
        """Do what is to be done after the training."""

    def _probabilities(self, X: Any) -> np.ndarray:
        """Return the class probabilities (n, K) of inputs in the dtype of the net."""
        return predict_proba(self.net_, X, are_scores=self._returns_scores)

    def _assumed_prior(self) -> np.ndarray:
        """Return the shares (K,) of the classes that the net learned to expect."""
        return self._class_mass / self._class_mass.sum()

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        meta: tuple[Any, Any] | None = None,
        X_meta: Any = None,
        y_meta: Any = None,
        meta_mask: Any = None,
        checkpoint: Any = None,
        resume: bool = False,
    ) -> BaseReweightedClassifier:
        """Train the net in two stages.

        Stage 1 trains it as it is configured, for its own number of epochs; stage 2
        goes on for `max_epochs` with re-weighted losses.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_samples
            Training inputs, (n_samples, n_features) or of more dimensions if the net
            takes them. Tensors stay on their device. A dict holds the arguments of the
            module's forward. The items of a Dataset are pairs (inputs, label).
        y : array-like of shape (n_samples,)
            Class labels of any type. None reads them off the items of a Dataset.
        meta : tuple (X_meta, y_meta) or Dataset, default=None
            A small balanced set of trusted rows, apart from the training rows. With
            none, it is drawn from the training rows, balanced, anew in every epoch
            (appendix E).
        X_meta, y_meta : array-like, default=None
            The same as two arguments, for pipelines that transform ``X_meta``.
        meta_mask : array-like of bool of shape (n_samples,), default=None
            The same as a mask: these rows of X are the meta set and are not trained
            on.
        checkpoint : path, default=None
            A file to write the state of the training to after every epoch, whole or
            not at all.
        resume : bool, default=False
            Go on from `checkpoint` if that file is there, else begin. On a CPU the
            result is that of a fit that was not interrupted, bit for bit.

        Returns
        -------
        self : BaseReweightedClassifier

        Raises
        ------
        ValueError
            If an argument or parameter is not valid; the message says what was given
            and what is expected. If the checkpoint is of other data, parameters or
            versions; the message says which.
        FileExistsError
            If there is a checkpoint, and `resume` is False.
        OSError
            If the checkpoint cannot be written.
        FloatingPointError
            If the loss becomes NaN; the estimator stays as it was before.
        """
        self._check_common_parameters()
        check_choice(resume, name="resume", choices=(True, False))
        check_resume(resume, checkpoint)
        given = GivenMeta(meta, X_meta, y_meta, meta_mask)
        with kept_on_error(self):
            rows = check_training_rows(self, X, y, given, reset=True, is_stream=False)
            if self.train_on_meta:
                rows = with_meta_rows(rows)
            self.classes_ = np.unique(rows.y)
            check_two_classes(self.classes_)
            seed = self._agreed_seed(rows.y)
            file = None
            if checkpoint is not None:
                file = FitCheckpoint.of(self, rows, checkpoint, resume=resume)
                seed = file.seed(seed)
            with seeded(seed, self._device()):
                is_trained = self._prepare(rows.X)
                self._train(rows, seed, stage_one=not is_trained, checkpoint=file)
        return self

    @available_if(lambda estimator: estimator.can_stream)
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

        No rows are kept, only an entry of ``history_`` per chunk (of the last one with
        its batches), and a chunk may lack classes. Without a
        `fit` before (and unless `net` is a ``FrozenEstimator``) there is no trained
        extractor, so the whole net is trained, whatever `finetune` says.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_chunk
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
        given = GivenMeta(meta, X_meta, y_meta, meta_mask)
        net_kept = nullcontext() if first else restored_on_error(self.net_)
        with kept_on_error(self), net_kept:
            rows = check_training_rows(self, X, y, given, reset=first, is_stream=True)
            if self.train_on_meta:
                rows = with_meta_rows(rows)
            if not first:
                check_inputs_like(row_shapes(rows.X), self._input_shape, name="X")
                self._begin_chunk()
            if first:
                self.classes_ = np.unique(np.asarray(classes))
                check_two_classes(self.classes_)
            # Another order of the rows, other noise and another draw in every chunk.
            n_seen = 0 if first else int(self.class_counts_.sum())
            seed = self._agreed_seed(rows.y) + n_seen
            with seeded(seed, self._device()):
                if first:
                    self._extractor_is_trained = self._prepare(rows.X)
                    self._n_fit_epochs = len(self.net_.history)
                self._train(rows, seed, is_stream=True)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_samples

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In float64, in the order of ``classes_``. They are those of data in which
            the classes have the shares `target_prior`, or else ``prior_``: what the
            weights made of the training set, not the frequencies in it.
        """
        check_is_fitted(self)
        target = check_target_prior(self.target_prior, n_classes=len(self.classes_))
        X = check_rows(self, X, reset=False)
        check_inputs_like(row_shapes(X), self._input_shape, name="X")
        probabilities = self._probabilities(cast(self.net_, X, name="X"))
        if target is None:
            return probabilities
        if isinstance(target, str):
            target = named_prior(target, self.class_counts_)
        return with_prior(probabilities, self.prior_, target)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_samples

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        probabilities = self.predict_proba(X)
        threshold = getattr(self.net_, "threshold", None)  # of skorch's binary nets
        if threshold is not None and len(self.classes_) == 2:
            return self.classes_[(probabilities[:, 1] > threshold).astype(int)]
        return self.classes_[probabilities.argmax(axis=1)]

    @untouched()
    def suspicious_rows(self, X: Any, y: Any, *, as_frame: bool = False) -> Any:
        """Rank rows by how unlike their class they are, for a look at their labels.

        By optimal transport between the features of the rows and the prototypes of the
        classes; see :func:`suspicious_rows`, the same for features of any origin.
        Prototypes are those of the meta rows if some of each class were given.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_samples
            The training rows, or others.
        y : array-like of shape (n_samples,)
            Their labels, some of which may be wrong.
        as_frame : bool, default=False
            Return a pandas DataFrame.

        Returns
        -------
        rows : Bunch or DataFrame
            ``index``, ``label``, ``nearest_class`` and ``score`` of each row, the most
            suspicious first.
        """
        check_is_fitted(self)
        X, y = check_labelled_rows(self, X, y, reset=False)
        encode_labels(y, self.classes_, name="y")  # or raise
        X = cast(self.net_, X, name="X")
        net, head = self.net_, self._head_for(X)
        meta = None
        if self._meta is not None and np.isin(y, self.classes_[self._meta.y]).all():
            rows = np.isin(self.classes_[self._meta.y], y)
            trusted = extract_features(net, head, take(self._meta.X, rows))
            meta = trusted, self.classes_[self._meta.y[rows]]
        features = extract_features(net, head, X)
        return suspicious_rows(features, y, meta=meta, as_frame=as_frame)

    def _check_common_parameters(self) -> None:
        check_choice(self.finetune, name="finetune", choices=("head", "all"))
        check_count(self.max_epochs, name="max_epochs", minimum=0)
        if self.lr is not None:
            check_real(self.lr, name="lr")
        check_choice(self.verbose, name="verbose", choices=(0, 1, 2))
        check_choice(self.train_on_meta, name="train_on_meta", choices=(True, False))
        check_target_prior(self.target_prior)
        self._check_parameters()

    def _agreed_seed(self, y: np.ndarray) -> int:
        """Return a seed that all processes have, if these have the same labels."""
        processes = Processes.of(self.net)
        if processes.are_several:
            check_can_distribute(type(self).__name__, self.can_distribute)
            labels = int(data_digest(y)[:15], 16)
            processes.check_alike(n_rows=len(y), labels=labels)
        return processes.first(draw_seed(self.random_state))

    def _device(self) -> Any:
        """Return the device that the net, which may not be built yet, is trained on."""
        # A skorch net says so; a module may have a device too, and is trained on a CPU.
        return "cpu" if is_bare(self.net) else device_of(self.net) or "cpu"

    def _begin_chunk(self) -> None:
        """Make ready for another chunk of a stream."""
        # An endless stream must not fill the memory with the batches of its history.
        # Its epochs stay: schedules count them.
        if len(self.net_.history) > self._n_fit_epochs:
            self.net_.history[-1]["batches"] = []

    def _prepare(self, X: Any) -> bool:
        """Build the net, try it on a few rows, and return whether it is trained."""
        net, is_trained, head = prepare_net(
            self.net,
            X,
            sizes=n_features(X) | {"n_classes": len(self.classes_)},
            verbose=int(self.verbose == 1),  # 2 is a bar in the place of the table
            head=self.head,
            needs_head=self._needs_head() or self.finetune == "head",
        )
        self.net_, self._head = net, head
        self._input_shape = row_shapes(X)
        self.class_counts_ = np.zeros(len(self.classes_), dtype=np.int64)
        self._class_mass = np.zeros(len(self.classes_))
        self._meta = None
        self._returns_scores = False
        self._adapt_net()
        return is_trained

    def _train(
        self,
        rows: TrainingRows,
        seed: int,
        *,
        stage_one: bool = False,
        is_stream: bool = False,
        checkpoint: FitCheckpoint | None = None,
    ) -> None:
        """Run both stages, or a pass of the second over a chunk of a stream."""
        net = self.net_
        labels = self._encode(rows, is_stream)
        X = cast(net, rows.X, name="X")
        targets = self._targets(labels, X)
        if isinstance(X, Dataset):
            X = LabelledDataset(X, targets)
        if self._needs_head() or self.finetune == "head":
            self._head = self._head_for(X)

        def encoded(dataset: Dataset) -> Dataset:
            given = dataset_labels(dataset, name="the validation set")
            codes = encode_labels(given, self.classes_, name="The validation set")
            return LabelledDataset(dataset, codes.astype(targets.dtype))

        epochs = self._epochs(stage_one=stage_one, is_stream=is_stream)
        # No bar within the net's own table, nor anew for every chunk of a stream.
        show_bar = self.verbose == 2 and not net.verbose and not is_stream
        show_bar = show_bar and Processes.of(net).rank == 0
        self._make_components(seed, is_stream)
        begin = None
        if stage_one and self._restarts():
            begin = copy.deepcopy(net.module_.state_dict())
        step = None
        with (
            Progress(epochs, show_bar=show_bar) as progress,
            TrainingRun(
                net, X, targets, self._columns, progress, encoded, checkpoint
            ) as run,
        ):
            if stage_one:
                run.stage_one(epochs[0], self._stage_one_step())
            data = self._stage_two_data(
                X, labels, targets, is_stream, epochs[1], seed, run.train_rows
            )
            step = self._make_step(data)
            run.stage_two(
                epochs[1],
                step,
                head=self._head,
                cached=data.features if data.is_cached else None,
                freeze=data.features is not None,
                lr=self.lr,
                begin=begin,
            )
        if not self._returns_scores:  # a later chunk may show it
            self._returns_scores = Processes.of(net).any(returns_scores(net, X))
        if step is None:  # interrupted while the features were extracted
            weights = torch.ones(len(labels))
        else:
            weights = self._sample_weight(step, data)
            self._finish(data)
        self._set_weights(weights, labels, rows)
        had_stage_two = is_stream or (step is not None and epochs[1] > 0)
        if (
            not had_stage_two
            and self.begins_with != "training"
            and self._stage_one_step() is None
        ):
            # The net expects the classes as stage 1 showed them.
            self.prior_ = self.class_counts_ / self.class_counts_.sum()
        self.history_ = net.history
        if not is_stream:
            self._n_fit_epochs = len(net.history)

    def _encode(self, rows: TrainingRows, is_stream: bool) -> np.ndarray:
        """Encode and count the labels, and keep the meta rows if there are some."""
        labels = encode_labels(rows.y, self.classes_, name="y")
        counts = np.bincount(labels, minlength=len(self.classes_))
        self.class_counts_ = self.class_counts_ + counts
        if rows.meta is not None:
            self._meta = self._encode_meta(*rows.meta)
        if not is_stream:
            self._check_meta(self._meta, counts)
            self._extractor_is_trained = True
        return labels

    def _head_for(self, X: Any) -> Head:
        """Return the head of the net, which inputs may have to show."""
        if self._head is not None:
            return self._head
        return find_net_head(self.net_, X, self.head, n_classes=len(self.classes_))

    def _stage_two_data(
        self,
        X: Any,
        labels: np.ndarray,
        targets: np.ndarray,
        is_stream: bool,
        epochs: int,
        seed: int,
        train_rows: Tensor | None = None,
    ) -> Stage2Data:
        net, head = self.net_, self._head
        freeze = self.finetune == "head" and self._extractor_is_trained
        if freeze and head.can_replay and not replays(net, head, X):
            # A branch beside the head has come to life in stage 1.
            self._head = head = replace(head, activation=None)
        return Stage2Data(
            net=net,
            head=head,
            X=X,
            labels=torch.from_numpy(labels).to(device_of(net)),
            train_rows=torch.arange(len(labels)) if train_rows is None else train_rows,
            target_dtype=torch.from_numpy(targets[:0]).dtype,
            class_counts=torch.from_numpy(self.class_counts_),
            meta=self._meta,
            features=training_features(net, head, X) if freeze else None,
            is_stream=is_stream,
            epochs=epochs,
            seed=seed,
        )

    def _targets(self, labels: np.ndarray, X: Any) -> np.ndarray:
        """Return labels as the criterion takes them: floats for a single score."""
        output = probe(self.net_, X)
        return labels.astype(np.float32) if output.numel() == len(output) else labels

    def _encode_meta(self, X: Any, y: Any) -> MetaData:
        labels = encode_labels(y, self.classes_, name="y_meta")
        if self.needs_meta:
            warn_missing_meta_classes(labels, self.classes_)
        if isinstance(X, Dataset):
            X = in_memory(self.net_, X)
        return MetaData(cast(self.net_, X, name="X_meta"), labels)

    def _set_weights(
        self, weights: Tensor, labels: np.ndarray, rows: TrainingRows
    ) -> None:
        """Set the weights of the rows and their means by class."""
        weights = weights.double().cpu().numpy()
        counts = np.bincount(labels, minlength=len(self.classes_))
        sums = np.bincount(labels, weights, minlength=len(self.classes_))
        with np.errstate(invalid="ignore"):
            self.class_weight_ = sums / counts  # NaN for classes a chunk lacks
        self._class_mass = self._class_mass + sums
        self.prior_ = self._assumed_prior()
        own, of_meta = np.split(weights, [len(weights) - rows.n_meta_rows])
        if rows.held_out is None:
            self.sample_weight_ = own
        else:
            self.sample_weight_ = np.zeros(len(rows.held_out))
            self.sample_weight_[~rows.held_out] = own
            if rows.n_meta_rows:
                self.sample_weight_[rows.held_out] = of_meta
