"""One skorch training run with two stages.

Stage 1 trains the net as it is. Stage 2 lets skorch do the step as well (optimizer,
callbacks, gradient hooks) and replaces only the loss, for the duration of the step: a
`Stage2Step` is asked for the weights of the batch's losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Checkpoint, EarlyStopping
from skorch.dataset import Dataset
from skorch.history import History
from skorch.utils import to_tensor
from torch import Tensor
from torch.utils.data import Subset

from sk_otreweight._validation import (
    check_finite_loss,
    check_finite_parameters,
    check_losses,
    warn_lost_stage,
)
from sk_otreweight.extraction import batch_features
from sk_otreweight.features import Head, differentiable, extractor_parameters
from sk_otreweight.inputs import batch_of, dataset_labels
from sk_otreweight.loaders import (
    RowBatch,
    UnnumberedLoader,
    innermost,
    loaded_batches,
    plan_epoch,
    row_numbers,
    training_batches,
)
from sk_otreweight.persistence import FitCheckpoint
from sk_otreweight.processes import Processes, device_of
from sk_otreweight.progress import Progress
from sk_otreweight.stage2 import Stage2Step, StepBatch
from sk_otreweight.wrappers import alone, eager, original, replaced


class TrainingRun:
    """The epochs of one training run, in stages.

    Use as a context manager: callbacks are told of the begin and end of the run, once.
    A KeyboardInterrupt ends the training, and what was learned is kept; one that a
    callback raises at the end of an epoch (early stopping) ends the stage only.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    X : inputs
        In the dtype of the net; a data set must hand out the labels `y`.
    y : array of shape (n,)
        Encoded labels.
    columns : mapping
        History entries of the epochs before stage 2, so that skorch's table has the
        same columns throughout.
    progress : Progress
        Is told of every stage and epoch.
    encoded : callable, default=identity
        ``encoded(dataset)`` returns a validation set that is no part of `X` with its
        labels encoded as `y` is.
    checkpoint : FitCheckpoint, default=None
        Is told of every epoch, and may know of some that are done.
    """

    def __init__(
        self,
        net: NeuralNet,
        X: Any,
        y: Any,
        columns: Mapping[str, float],
        progress: Progress,
        encoded: Callable[[Any], Any] = lambda dataset: dataset,
        checkpoint: FitCheckpoint | None = None,
    ) -> None:
        self.net = net
        self.X, self.y = X, y
        self.columns = columns
        self.progress = progress
        self.encoded = encoded
        self.checkpoint = checkpoint
        self.interrupted = False
        self.is_stage_one_plain = True
        self.processes = Processes.of(net)

    def __enter__(self) -> TrainingRun:
        net = self.net
        net.check_data(self.X, self.y)
        net.check_training_readiness()
        self._check_loss()
        net.notify("on_train_begin", X=self.X, y=self.y)
        self.processes.check_is_wrapped(net.module_)
        self.train, self.valid = net.get_split_datasets(self.X, self.y)
        # A split of one's own may hand out other rows than those it was given.
        self.knows_rows = self.valid is None or self._is_part(self.train)
        if self.valid is not None and not self._is_part(self.valid):
            self.valid = self.encoded(self.valid)
        if self.checkpoint is not None:
            self.checkpoint.begin(net, row_numbers(self.train))
        return self

    def __exit__(self, kind: type | None, error: Any, trace: Any) -> bool:
        is_interrupt = kind is KeyboardInterrupt  # between the stages
        if kind is None or is_interrupt:
            history = self.net.history  # a checkpoint may load one that ends earlier
            self.net.notify("on_train_end", X=self.X, y=self.y)
            self._warn_of_lost_stage(history)
        return is_interrupt

    def _warn_of_lost_stage(self, history: History) -> None:
        """Warn if a checkpoint loaded the parameters of a plain stage 1."""
        if not len(history) or _stage(history[-1]) == 1 or not self.is_stage_one_plain:
            return
        for _, callback in self.net.callbacks_:
            if isinstance(callback, Checkpoint) and callback.load_best:
                saved = [row for row in history if row.get(callback.event_name)]
                if saved and _stage(saved[-1]) == 1:
                    warn_lost_stage(saved[-1]["epoch"])

    def _check_loss(self) -> None:
        """Find out before stage 1 whether stage 2 will get one loss per row."""
        net = self.net
        rows = to_tensor(batch_of(net, self.X, slice(2)), device=device_of(net))
        labels = to_tensor(self.y[:2], device=device_of(net))
        with torch.no_grad(), eager(net), alone(net), _unreduced(net.criterion_):
            output = net.evaluation_step((rows, None))
            losses = net.get_loss(output, labels, X=rows, training=False)
        check_losses(losses, n_rows=len(self.y[:2]))

    def stage_one(self, epochs: int, step: Stage2Step | None = None) -> None:
        """Train the net as it is configured, with its own loss.

        Parameters
        ----------
        epochs : int
        step : Stage2Step, default=None
            Losses in the place of the net's own.
        """

        def own_step(batch: Any) -> dict[str, Any]:
            with replaced(self.net, get_loss=_checked_loss(self.net)):
                return self.net.train_step(batch)

        batches, train_step = self._batches(self.train), own_step
        self.is_stage_one_plain = step is None
        if step is not None:
            train_step = _WeightedStep(self.net, step, stage=1)
        self._run(1, epochs, step, lambda: batches, train_step)
        if self.interrupted:
            return
        # Now, as the features that stage 2 begins with are those of the parameters.
        self._restart_early_stopping()
        if self.checkpoint is not None:
            self.checkpoint.leave(1, self.net)

    def stage_two(
        self,
        epochs: int,
        step: Stage2Step,
        *,
        head: Head | None,
        cached: Tensor | None = None,
        freeze: bool = False,
        lr: float | None = None,
        begin: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Train with the losses weighed by `step`.

        Parameters
        ----------
        epochs : int
        step : Stage2Step
        head : Head or None
            Where features are read; None if nothing needs them.
        cached : Tensor of shape (n, d), default=None
            Features of all rows: the head alone is run, on these.
        freeze : bool, default=False
            Train the head's side of the net only. The rest keeps its
            parameters and, in evaluation mode, its buffers.
        lr : float, default=None
            Learning rate; None keeps the optimizer's.
        begin : mapping, default=None
            State of the module to begin with; None goes on.
        """
        if begin is not None and epochs and not self.interrupted:
            self.net.module_.load_state_dict(begin)
            self.net.optimizer_.state.clear()  # in place: schedules hold the optimizer
        if lr is not None:
            for group in self.net.optimizer_.param_groups:
                group["lr"] = lr
        if not self.knows_rows:
            cached = None
        weighted = _WeightedStep(
            self.net, step, head=head, is_cached=cached is not None, freeze=freeze
        )
        train, load = self.train, self._batches
        if cached is not None:
            train = self._cached_dataset(cached)
            load = partial(loaded_batches, self.net)
        loader = load(train)
        labels = self._train_labels() if step.draws_rows else None

        def batches() -> Any:
            if labels is None:
                return loader
            return load(Subset(train, step.draw_rows(labels).numpy()))

        with ExitStack() as stack:
            if freeze:
                stack.enter_context(_frozen(self.net, head, self.X))
                module = self.net.module_
                stack.enter_context(self.processes.averaged_gradients(module))
            self._run(2, epochs, step, batches, weighted)

    @property
    def train_rows(self) -> Tensor:
        """The rows (n_train,) that the net's split leaves; all, if it made others."""
        rows = row_numbers(self.train) if self.knows_rows else None
        return torch.arange(len(self.y)) if rows is None else rows

    def _restart_early_stopping(self) -> None:
        """Let early stopping load its best parameters, and watch stage 2 afresh."""
        for _, callback in self.net.callbacks_:
            if isinstance(callback, EarlyStopping):
                if callback.load_best and len(self.net.history):
                    callback.on_train_end(self.net, X=self.X, y=self.y)
                callback.on_train_begin(self.net, X=self.X, y=self.y)

    def _is_part(self, dataset: Any) -> bool:
        base = innermost(dataset)
        return base is self.X or getattr(base, "X", None) is self.X

    def _batches(self, dataset: Any) -> Any:
        batches = training_batches(self.net, dataset)
        return batches if self.knows_rows else UnnumberedLoader(batches)

    def _train_labels(self) -> Tensor:
        """Return the labels of the rows that are trained on, without a split's rest."""
        if not self.knows_rows:
            return torch.from_numpy(dataset_labels(self.train, name="the training set"))
        return torch.from_numpy(self.y).long()[self.train_rows]

    def _cached_dataset(self, features: Tensor) -> Any:
        """Return the training rows with features in the place of inputs."""
        dataset, rows = Dataset(features, self.y), row_numbers(self.train)
        return dataset if rows is None else Subset(dataset, rows.numpy())

    def _run(
        self,
        stage: int,
        epochs: int,
        step: Stage2Step | None,
        batches: Callable[[], Any],
        train_step: Callable[[Any], dict[str, Any]],
    ) -> None:
        """Run the epochs of a stage, each on the batches that are made for it."""
        if self.interrupted:
            return
        net, checkpoint, n_done = self.net, self.checkpoint, 0
        if checkpoint is not None:
            n_done = checkpoint.enter(stage, epochs, net, step)
        self.progress.begin_stage(stage, n_done)
        datasets = {"dataset_train": self.train, "dataset_valid": self.valid}
        validation = None
        if self.valid is not None:
            validation = net.get_iterator(self.valid, training=False)

        def epoch() -> None:
            net.notify("on_epoch_begin", **datasets)
            net.history.record("stage", stage)
            planned, rows = plan_epoch(batches())
            if stage == 2:
                step.begin_epoch(rows)
            net.run_single_epoch(
                planned,
                training=True,
                prefix="train",
                step_fn=self._averaged(train_step),
            )
            check_finite_parameters(net.module_, stage=stage, epoch=len(net.history))
            columns = step.record() if stage == 2 else self.columns
            for name, value in columns.items():
                net.history.record(name, value)
            net.run_single_epoch(
                validation,
                training=False,
                prefix="valid",
                step_fn=self._averaged(net.validation_step),
            )
            self.progress.end_epoch(net)

        for number in range(n_done, epochs):
            try:
                epoch()
            except KeyboardInterrupt:
                self.interrupted = True
                return
            is_over = False
            try:
                net.notify("on_epoch_end", **datasets)
            except KeyboardInterrupt:
                is_over = True
            is_over = self.processes.any(is_over)
            if is_over:
                self.progress.stop_stage()
            if checkpoint is not None:
                checkpoint.save(
                    net, stage=stage, n_epochs=number + 1, is_over=is_over, step=step
                )
            if is_over:
                break

    def _averaged(
        self, step: Callable[[Any], dict[str, Any]]
    ) -> Callable[[Any], dict[str, Any]]:
        """Return a step whose loss is the mean over the processes.

        So that callbacks come to the same decisions in all of them.
        """
        if not self.processes.are_several:
            return step

        def averaged(batch: Any) -> dict[str, Any]:
            result = step(batch)
            return result | {"loss": self.processes.mean(result["loss"].detach())}

        return averaged


class _WeightedStep:
    """skorch's training step with the losses weighed."""

    def __init__(
        self,
        net: NeuralNet,
        step: Stage2Step,
        *,
        head: Head | None = None,
        is_cached: bool = False,
        freeze: bool = False,
        stage: int = 2,
    ) -> None:
        self.net, self.step, self.head = net, step, head
        self.is_cached, self.freeze, self.stage = is_cached, freeze, stage
        self.are_several = Processes.of(net).are_several

    def __call__(self, batch: RowBatch) -> dict[str, Any]:
        net, weights = self.net, None
        own_loss, own_infer = net.get_loss, net.infer

        def infer(X: Any, **fit_params: Any) -> Any:
            if self.is_cached:
                features = to_tensor(X, device=device_of(net))
                return self.head.replay(original(net.module_), features)
            if self.freeze:
                net.module_.eval()
            return own_infer(X, **fit_params)

        def loss(y_pred: Any, y_true: Any, X: Any = None, **kwargs: Any) -> Tensor:
            nonlocal weights

            def losses_of(outputs: Any) -> Tensor:
                return own_loss(outputs, y_true, X=X, **kwargs)

            given = self._batch(batch, X, y_true, tap, y_pred, losses_of)
            losses = self.step.losses(given)
            losses = check_losses(losses, n_rows=len(y_true))
            if self.step.needs_losses:
                _check_batch(net, losses, self.stage)
            if weights is None:  # once, also if the optimizer asks for the loss again
                weights = self.step.weigh(given._replace(losses=losses))
            total = (weights * losses).mean()
            extra = self.step.extra_batch()
            if extra is not None:
                factor, X_extra, y_extra = extra
                scores = net.infer(to_tensor(X_extra, device=device_of(net)))
                total = total + factor * own_loss(scores, y_extra, training=True).mean()
            _check_batch(
                net, total, self.stage
            )  # not finite if a loss or a weight is not
            return total

        with ExitStack() as stack:
            tap = None
            is_tapped = self.step.needs_features and not self.is_cached
            # What averages gradients does not know that some are frozen; it lets hooks
            # work, which compiled modules overlook.
            runs_eagerly = self.freeze if self.are_several else is_tapped
            if runs_eagerly:
                stack.enter_context(eager(net))
            if is_tapped:
                tap = stack.enter_context(self.head.tap(original(net.module_)))
            stack.enter_context(replaced(net, get_loss=loss, infer=infer))
            stack.enter_context(_unreduced(net.criterion_))
            if self.step.differentiates_twice:
                stack.enter_context(differentiable(net.module_))
            return net.train_step(batch)

    def _batch(
        self,
        batch: RowBatch,
        X: Any,
        y_true: Any,
        tap: Any,
        outputs: Any,
        own_losses: Callable[[Any], Tensor],
    ) -> StepBatch:
        labels = to_tensor(y_true, device=device_of(self.net)).long()
        features = None
        if self.is_cached:
            features = to_tensor(X, device=device_of(self.net))
        elif self.step.needs_features and self.head.function is not None:
            features = batch_features(self.net, self.head, X)
        elif self.step.needs_features:
            features = tap.features()
        rows = batch.rows
        rows = None if rows is None else rows.to(device_of(self.net))
        return StepBatch(X, features, labels, rows, outputs, own_losses)


def _stage(row: Mapping[str, Any]) -> int:
    """Return the stage of an epoch; those of a run before are as good as stage 1."""
    return row.get("stage", 1)


def _checked_loss(net: NeuralNet) -> Callable[..., Tensor]:
    own_loss = net.get_loss

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        value = own_loss(*args, **kwargs)
        _check_batch(net, value, stage=1)
        return value

    return loss


def _check_batch(net: NeuralNet, losses: Tensor, stage: int = 2) -> None:
    # Before the optimizer's step, so that the parameters stay finite.
    check_finite_loss(
        losses.detach() if losses.ndim == 0 else losses.detach().sum(),
        stage=stage,
        epoch=len(net.history),
        batch=len(net.history[-1]["batches"]),
    )


@contextmanager
def _unreduced(criterion: Any) -> Iterator[None]:
    """Let a criterion return one loss per row for a while."""
    criterion = original(criterion)
    before = getattr(criterion, "reduction", None)
    if before is not None:
        criterion.reduction = "none"
    try:
        yield
    finally:
        if before is not None:
            criterion.reduction = before


@contextmanager
def _frozen(net: NeuralNet, head: Head, X: Any) -> Iterator[None]:
    """Exclude the extractor's parameters from training for a while."""
    rows = to_tensor(batch_of(net, X, slice(2)), device=device_of(net))
    with eager(net):
        net.module_.eval()
        module = net.module_
        names = extractor_parameters(head, module, net.infer, rows)
    frozen = [p for name, p in module.named_parameters() if name in names]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None  # optimizers pass over parameters without a gradient
    try:
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "finetune='head' leaves no parameter to train: the features depend on "
                "all of them (is the head's weight tied to another layer?). Use "
                "finetune='all', or pass another head."
            )
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
