"""Callbacks of skorch go on working: both stages are one training run."""

from __future__ import annotations

import io
import pickle
import re
from collections import Counter
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classifier_helpers import (
    STRATEGIES,
    WEIGHT_COLUMNS,
    Recorder,
    assert_same_state,
    quick,
    state,
)
from nets_for_tests import SmallMLP, small_net
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    ParamMapper,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    Unfreezer,
    WandbLogger,
)
from skorch.dataset import ValidSplit
from torch import nn

from sk_otreweight.training import TrainingRun
from sk_otreweight.weights import WEIGHTS

SPLIT = ValidSplit(3, stratified=True)


def make_net(callbacks=None, module=SmallMLP, **params):
    """Return a net that sees the 43 rows of `few` in three batches."""
    given = {"callbacks": callbacks, "max_epochs": 2, "batch_size": 16}
    return small_net(module, **(given | params))


def fit(few, callbacks, epochs=(2, 2), *, net=None, **params):
    """Train with some callbacks for some epochs of each stage."""
    X, y, meta = few
    net = make_net(callbacks, max_epochs=epochs[0], **(net or {}))
    return quick(net, max_epochs=epochs[1], **params).fit(X, y, meta=meta)


def fitted_net(few, callbacks=None, **params):
    """Return a net that was trained without us."""
    X, y, _ = few
    sizes = {"module__n_features": 64, "module__n_classes": 4}
    return make_net(callbacks, **(sizes | params)).fit(X, encoded(y))


def encoded(y):
    return np.unique(y, return_inverse=True)[1]


def callback_of(clf, name):
    return dict(clf.net_.callbacks_)[name]


class Snapshots(Callback):
    """Keeps the parameters at the begin and at the end of each epoch."""

    def initialize(self):
        self.begin_, self.end_ = [], []
        return self

    def on_epoch_begin(self, net, **kwargs):
        self.begin_.append(state(net.module_))

    def on_epoch_end(self, net, **kwargs):
        self.end_.append(state(net.module_))


class Scripted(Callback):
    """Records given scores, so that it is known which epoch is the best."""

    def __init__(self, scores):
        self.scores = scores

    def on_epoch_end(self, net, **kwargs):
        scores = self.scores[: len(net.history)]
        net.history.record("score", scores[-1])
        net.history.record("score_best", scores[-1] > max([0, *scores[:-1]]))


class NoteLr(Callback):
    """Records the learning rates that the steps are made with."""

    def on_epoch_begin(self, net, **kwargs):
        net.history.record("lr_used", net.optimizer_.param_groups[0]["lr"])

    def on_grad_computed(self, net, **kwargs):
        net.history.record_batch("lr_used", net.optimizer_.param_groups[0]["lr"])


# What holds because the stages are one run, shown to fail when they are two


def a_schedule_by_epoch(few, folder):
    scheduler = LRScheduler("StepLR", step_size=2, gamma=0.1)
    for finetune in ("head", "all"):
        callbacks = [scheduler, NoteLr()]
        clf = fit(few, callbacks, (4, 4), net={"lr": 0.1}, finetune=finetune)
        expected = np.repeat([0.1, 0.01, 1e-3, 1e-4], 2)
        np.testing.assert_allclose(clf.history_[:, "lr_used"], expected, rtol=1e-6)
        recorded = clf.history_[:, "event_lr"]
        np.testing.assert_allclose(recorded, expected, rtol=1e-6)


def a_schedule_by_batch(few, folder):
    scheduler = LRScheduler("StepLR", step_size=5, gamma=0.1, step_every="batch")
    clf = fit(few, [scheduler, NoteLr()], net={"lr": 0.1})
    rates = np.ravel(clf.history_[:, "batches", :, "lr_used"])
    np.testing.assert_allclose(rates, scheduler.simulate(12, 0.1), rtol=1e-6)


def a_cosine_schedule(few, folder):
    """It counts the batches of both stages."""
    scheduler = LRScheduler("CosineAnnealingLR", T_max=12, step_every="batch")
    clf = fit(few, [scheduler, NoteLr()], net={"lr": 0.1})
    rates = np.ravel(clf.history_[:, "batches", :, "lr_used"])
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose(rates, scheduler.simulate(12, 0.1), rtol=1e-6)


def one_cycle(few, folder):
    policy = torch.optim.lr_scheduler.OneCycleLR
    scheduler = LRScheduler(policy, max_lr=0.1, total_steps=12, step_every="batch")
    clf = fit(few, [scheduler, NoteLr()])
    assert clf.history_[:, "stage"] == [1, 1, 2, 2]
    rates = np.ravel(clf.history_[:, "batches", :, "lr_used"])
    np.testing.assert_allclose(rates, scheduler.simulate(12, 0.01), rtol=1e-6)
    assert rates.argmax() == 3
    assert rates[-1] < 0.01


def a_plateau_across_the_stages(few, folder):
    """Epochs 2, 3 and 4 are no better than the first: the last is one too many."""
    policy = "ReduceLROnPlateau"
    scheduler = LRScheduler(policy, monitor="score", mode="max", patience=2)
    scores = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
    callbacks = [Scripted(scores), scheduler, NoteLr()]
    clf = fit(few, callbacks, (2, 4), net={"lr": 0.1})
    expected = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(clf.history_[:, "lr_used"], expected)


def early_stopping_beside_a_schedule(few, folder):
    """Each stage stops by itself, and the schedule goes on."""
    stopping = EarlyStopping(monitor="stage", patience=2, lower_is_better=True)
    scheduler = LRScheduler("StepLR", step_size=5, gamma=0.1, step_every="batch")
    clf = fit(few, [stopping, scheduler, NoteLr()], (6, 6), net={"lr": 0.1})
    assert clf.history_[:, "stage"] == [1, 1, 1, 2, 2, 2]
    rates = np.ravel(clf.history_[:, "batches", :, "lr_used"])
    np.testing.assert_allclose(rates, scheduler.simulate(18, 0.1), rtol=1e-6)


def stage_two_goes_on_from_stage_one(few, folder):
    """A checkpoint is loaded at the end of the training only."""
    said = []
    checkpoint = Checkpoint(
        monitor="score_best", load_best=True, dirname=folder, sink=said.append
    )
    callbacks = [Scripted([0.5, 0.4, 0.6, 0.3]), checkpoint, Snapshots()]
    clf = fit(few, callbacks)
    snapshots = callback_of(clf, "Snapshots")
    assert_same_state(snapshots.begin_[2], snapshots.end_[1])
    assert_same_state(state(clf.net_.module_), snapshots.end_[2])
    assert said.count("Loading best checkpoint after training.") == 1


def a_checkpoint_at_the_end(few, folder):
    said = []
    checkpoint = TrainEndCheckpoint(dirname=folder, sink=said.append)
    clf = fit(few, [checkpoint])
    assert said == ["Final checkpoint triggered"]
    net = fitted_net(few, max_epochs=0)
    net.load_params(folder / "train_end_params.pt")
    assert_same_state(state(net.module_), state(clf.net_.module_))
    net.load_params(f_history=folder / "train_end_history.json")
    assert net.history[:, "stage"] == [1, 1, 2, 2]


def one_begin_and_one_end(few, folder):
    for finetune in ("head", "all"):
        net = {"batch_size": -1}
        clf = fit(few, [Recorder()], (2, 3), net=net, finetune=finetune)
        epoch = ["epoch_begin", "grad", "epoch_end"]
        events = callback_of(clf, "Recorder").events_
        assert events == ["train_begin", *(5 * epoch), "train_end"]


def a_writer_is_closed_once_and_last(few, folder):
    writer = Writer()
    fit(few, [TensorBoard(writer)])
    assert writer.calls.count("close") == 1
    assert writer.calls[-1] == "close"
    assert writer.values("stage") == [1, 1, 2, 2]


def a_run_watches_the_module_once(few, folder):
    run = Run()
    fit(few, [WandbLogger(run, save_model=False)])
    assert run.calls == ["watch", *4 * ["log"]]


def a_run_is_terminated_once_and_last(few, folder):
    client = Client()
    fit(few, [MlflowLogger(A_RUN, client, log_on_batch_end=True)])
    assert client.calls.count("set_terminated") == 1
    assert client.calls[-1] == "set_terminated"
    assert client.calls.count("log_artifact") == 4
    steps = client.steps["train_batch_size_batch"]
    assert steps == list(range(1, 13))  # counted through


ONE_RUN = [
    a_schedule_by_epoch,
    a_schedule_by_batch,
    a_cosine_schedule,
    one_cycle,
    a_plateau_across_the_stages,
    early_stopping_beside_a_schedule,
    stage_two_goes_on_from_stage_one,
    a_checkpoint_at_the_end,
    one_begin_and_one_end,
    a_writer_is_closed_once_and_last,
    a_run_watches_the_module_once,
    a_run_is_terminated_once_and_last,
]


def name_of(check):
    return check.__name__


@pytest.fixture
def no_restart(monkeypatch):
    """Do not tell early stopping that stage 2 begins."""
    monkeypatch.setattr(TrainingRun, "_restart_early_stopping", lambda run: None)


@pytest.fixture
def two_runs(monkeypatch, no_restart):
    """Let each stage be a training run, as when one fit follows another."""
    stage_two = TrainingRun.stage_two

    def a_run_of_its_own(run, *args, **kwargs):
        run.net.notify("on_train_end", X=run.X, y=run.y)
        run.net.notify("on_train_begin", X=run.X, y=run.y)
        stage_two(run, *args, **kwargs)

    monkeypatch.setattr(TrainingRun, "stage_two", a_run_of_its_own)


@pytest.mark.parametrize("check", ONE_RUN, ids=name_of)
def test_in_one_run(check, few, tmp_path):
    check(few, tmp_path)


@pytest.mark.parametrize("check", ONE_RUN, ids=name_of)
@pytest.mark.usefixtures("two_runs")
def test_not_in_two_runs(check, few, tmp_path):
    with pytest.raises(AssertionError):
        check(few, tmp_path)


# What early stopping needs besides: to be told that stage 2 begins


def each_stage_stops(few):
    """The stage number is best in the first epoch of a stage: stop two later."""
    stopping = EarlyStopping(monitor="stage", patience=2, lower_is_better=True)
    clf = fit(few, [stopping], (6, 6))
    assert clf.history_[:, "stage"] == [1, 1, 1, 2, 2, 2]


def misses_are_counted_anew(few):
    """One miss in stage 1 and two in stage 2 are not three."""
    scores = [0.5, 0.4, 0.3, 0.2, 0.4, 0.1, 0.1]
    stopping = EarlyStopping(monitor="score", patience=3, lower_is_better=False)
    clf = fit(few, [Scripted(scores), stopping], (2, 5))
    assert len(clf.history_) == 7


def each_stage_has_its_best_parameters(few):
    scores = [0.5, 0.7, 0.6, 0.2, 0.4, 0.3]
    stopping = EarlyStopping(monitor="score", lower_is_better=False, load_best=True)
    clf = fit(few, [Scripted(scores), stopping, Snapshots()], (3, 3), finetune="all")
    snapshots = callback_of(clf, "Snapshots")
    assert_same_state(snapshots.begin_[3], snapshots.end_[1])
    assert_same_state(state(clf.net_.module_), snapshots.end_[4])


def weights_are_those_of_the_best_parameters(few):
    """Stage 1 of three epochs, of which the first is best, is as one of one epoch."""
    stopping = EarlyStopping(monitor="score", lower_is_better=False, load_best=True)
    callbacks = [Scripted([0.5, 0.4, 0.3, 0.9]), stopping]
    in_order = {"iterator_train__shuffle": False}
    for params in ({"finetune": "head"}, {"finetune": "all"}, {"restart": True}):
        best = fit(few, callbacks, (3, 1), net=in_order, **params)
        one = fit(few, None, (1, 1), net=in_order, **params)
        np.testing.assert_array_equal(best.sample_weight_, one.sample_weight_)


RESTART = [
    each_stage_stops,
    misses_are_counted_anew,
    each_stage_has_its_best_parameters,
    weights_are_those_of_the_best_parameters,
]


@pytest.mark.parametrize("check", RESTART, ids=name_of)
def test_early_stopping(check, few):
    check(few)


@pytest.mark.parametrize("check", RESTART, ids=name_of)
@pytest.mark.usefixtures("no_restart")
def test_early_stopping_is_not_right_without_a_restart(check, few):
    with pytest.raises(AssertionError):
        check(few)


def test_a_stop_ends_the_stage_only(few):
    clf = fit(few, [StopAt((2, 4)), Recorder()], (5, 5))
    assert clf.history_[:, "stage"] == [1, 1, 2, 2]
    events = callback_of(clf, "Recorder").events_
    assert events.count("train_begin") == events.count("train_end") == 1


class StopAt(Callback):
    """Stops training as early stopping does, at the ends of some epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) in self.epochs:
            raise KeyboardInterrupt


def test_a_cosine_schedule_by_epoch(few):
    scheduler = LRScheduler("CosineAnnealingLR", T_max=8)
    clf = fit(few, [scheduler, NoteLr()], (4, 4), net={"lr": 0.1})
    rates = clf.history_[:, "lr_used"]
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose(rates, scheduler.simulate(8, 0.1), rtol=1e-6)


def test_warm_restarts(few):
    """At the fifth epoch, the second of stage 2."""
    scheduler = LRScheduler("WarmRestartLR", min_lr=0.01, max_lr=0.1, base_period=3)
    clf = fit(few, [scheduler, NoteLr()], (3, 4), net={"lr": 0.1})
    rates = clf.history_[:, "lr_used"]
    np.testing.assert_allclose(rates, scheduler.simulate(7, 0.1), rtol=1e-6)
    assert rates[4] == rates[0] == max(rates)


# Checkpoints


def checkpoints(folder, scores, **params):
    params = {"monitor": "score_best", "load_best": True, "dirname": folder} | params
    return [Scripted(scores), Checkpoint(**params), Snapshots()]


@pytest.mark.parametrize("f_history", ["history.json", None])
def test_a_checkpoint_that_throws_stage_two_away(f_history, few, tmp_path):
    callbacks = checkpoints(tmp_path, [0.6, 0.5, 0.4, 0.3], f_history=f_history)
    with pytest.warns(UserWarning, match="epoch 1, which is of stage 1.*lost"):
        clf = fit(few, callbacks, loss="net")
    best = callback_of(clf, "Snapshots").end_[0]
    assert_same_state(state(clf.net_.module_), best)
    # The history that a checkpoint loads ends at the best epoch.
    assert len(clf.history_) == (1 if f_history else 4)
    assert clf.history_ is clf.net_.history


def test_a_checkpoint_of_a_stage_one_that_balances_the_classes(few, tmp_path):
    """No warning: stage 1 is as good as stage 2 where it is the better one."""
    clf = fit(few, checkpoints(tmp_path, [0.6, 0.5, 0.4, 0.3]))
    assert clf.history_[:, "stage"] == [1]


def test_a_checkpoint_of_stage_two(few, tmp_path):
    """No warning, which would be an error here."""
    clf = fit(few, checkpoints(tmp_path, [0.4, 0.3, 0.6, 0.5]))
    snapshots = callback_of(clf, "Snapshots")
    assert_same_state(state(clf.net_.module_), snapshots.end_[2])
    assert clf.history_[:, "stage"] == [1, 1, 2]


def test_a_checkpoint_of_a_net_that_came_trained(few, tmp_path):
    """Its own epochs are as good as stage 1."""
    X, y, meta = few
    callbacks = checkpoints(tmp_path, [0.3, 0.6, 0.5, 0.4], f_history=None)
    net = fitted_net(few, callbacks)
    with pytest.warns(UserWarning, match="epoch 2, which is of stage 1"):
        clf = quick(FrozenEstimator(net)).fit(X, y, meta=meta)
    assert_same_state(state(clf.net_.module_), state(net.module_))
    quick(FrozenEstimator(net), max_epochs=0).fit(X, y, meta=meta)


def test_the_advice_of_the_warning(digits, tmp_path, monkeypatch):
    """Its callbacks, taken from its text, keep stage 2 where the loss does not."""
    monkeypatch.chdir(tmp_path)
    rows = digits.X, digits.y, digits.meta
    net = {"train_split": SPLIT, "batch_size": 64}
    given = {"epochs": (20, 10), "net": net, "loss": "net"}
    with pytest.warns(UserWarning, match="Monitor balanced accuracy") as caught:
        fit(rows, [Checkpoint(load_best=True)], **given)
    advice = str(caught[0].message).partition("instead: ")[2]
    calls = re.findall(r"(?:EpochScoring|Checkpoint)\(.*?\)", advice)
    scoring, checkpoint = (eval(call) for call in calls)
    clf = fit(rows, [scoring, checkpoint], **given)
    assert clf.history_[-1, "stage"] == 2
    score = balanced_accuracy_score(*valid_labels(clf, rows))
    assert score == pytest.approx(clf.history_[-1, "valid_bal"])


def test_checkpoints(few, tmp_path):
    clf = fit(few, [Checkpoint(monitor=None, dirname=tmp_path)])
    loaded = fitted_net(few, max_epochs=0)
    loaded.load_params(checkpoint=Checkpoint(monitor=None, dirname=tmp_path))
    assert_same_state(state(loaded.module_), state(clf.net_.module_))


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_nets_that_are_pickled_in_the_middle(finetune, few, tmp_path):
    X, y, _ = few
    checkpoint = Checkpoint(
        monitor=None, f_pickle="net_{last_epoch[epoch]}.pkl", dirname=tmp_path
    )
    clf = fit(few, [Snapshots(), checkpoint], finetune=finetune)
    files = [tmp_path / f"net_{epoch}.pkl" for epoch in (1, 2, 3, 4)]
    nets = [pickle.loads(file.read_bytes()) for file in files]
    ends = callback_of(clf, "Snapshots").end_
    for epoch, (net, end) in enumerate(zip(nets, ends, strict=True), start=1):
        assert_same_state(state(net.module_), end)
        net.partial_fit(X, encoded(y), epochs=1)  # a skorch net as any other
        assert len(net.history) == epoch + 1


def test_a_checkpoint_in_memory(few):
    """The buffer is the user's own."""
    buffer = io.BytesIO()
    files = dict.fromkeys(("f_optimizer", "f_criterion", "f_history"))
    clf = fit(few, [TrainEndCheckpoint(f_params=buffer, **files)])
    buffer.seek(0)
    assert_same_state(torch.load(buffer), state(clf.net_.module_))


def test_training_that_is_taken_up_again(few, tmp_path):
    """Both callbacks hold one checkpoint, and so do their copies."""
    X, y, meta = few
    end = TrainEndCheckpoint(dirname=tmp_path)
    net = make_net([end, LoadInitState(end), Snapshots()])
    first = quick(net).fit(X, y, meta=meta)
    second = quick(net).fit(X, y, meta=meta)
    assert second.history_[:, "epoch"] == list(range(1, 9))
    assert second.history_[:, "stage"] == 2 * [1, 1, 2, 2]
    begin = callback_of(second, "Snapshots").begin_
    assert_same_state(begin[0], state(first.net_.module_))
    second.partial_fit(X, y)  # goes on, and loads nothing
    assert len(second.history_) == 9
    snapshots = callback_of(second, "Snapshots")
    assert_same_state(snapshots.begin_[4], snapshots.end_[3])


# Scores


def valid_labels(clf, few):
    """Return the labels of the validation rows, and their predictions."""
    X, y, _ = few
    rows = clf.net_.get_split_datasets(X, encoded(y))[1].indices
    return y[rows], clf.predict(X[rows])


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("use_caching", [True, False])
def test_scores_of_the_validation_rows(use_caching, finetune, few):
    params = {"lower_is_better": False, "use_caching": use_caching}
    callbacks = [
        EpochScoring("accuracy", name="by_epoch", **params),
        BatchScoring("accuracy", name="by_batch", **params),
    ]
    clf = fit(few, callbacks, net={"train_split": SPLIT}, finetune=finetune)
    expected = accuracy_score(*valid_labels(clf, few))
    for name in ("by_epoch", "by_batch", "valid_acc"):
        assert len(clf.history_[:, name]) == 4
        assert clf.history_[-1, name] == pytest.approx(expected)
    assert 0 < expected <= 1


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("use_caching", [True, False])
def test_scores_of_the_training_rows(use_caching, finetune, few):
    """Scoring callbacks see inputs and labels although the head alone is trained."""
    X, y, _ = few
    scoring = EpochScoring(
        "accuracy", on_train=True, name="train_acc", use_caching=use_caching,
        lower_is_better=False,
    )  # fmt: skip
    clf = fit(few, [scoring], (2, 3), finetune=finetune)
    accuracies = clf.history_[:, "train_acc"]
    assert len(accuracies) == 5
    if not use_caching:
        assert accuracies[-1] == pytest.approx(clf.score(X, y))


class NoteBatch(Callback):
    """Records the mean of the inputs of each batch, and how many they are."""

    def on_batch_end(self, net, batch, training, y_pred, **kwargs):
        X, y = batch
        assert len(X) == len(y) == len(y_pred)
        if training:
            net.history.record_batch("mean_input", float(X.mean()))
            net.history.record_batch("width", X.shape[1])


def test_scores_of_batches(few):
    """The average is that of the rows: batches of 16, 16 and 11."""
    scoring = BatchScoring(
        "accuracy", on_train=True, name="batch_acc", lower_is_better=False
    )
    passed = PassthroughScoring("mean_input", on_train=True, lower_is_better=None)
    clf = fit(few, [NoteBatch(), scoring, passed], finetune="all")
    for row in clf.history_:
        scores = [batch["batch_acc"] for batch in row["batches"]]
        n_right = np.dot(scores, [16, 16, 11])
        assert n_right == pytest.approx(round(n_right))
        assert row["batch_acc"] == pytest.approx(n_right / 43)
        assert row["mean_input"] == pytest.approx(few[0].mean(), rel=1e-5)


def test_batches_of_a_frozen_extractor_hold_features(few):
    clf = fit(few, [NoteBatch()], finetune="head")
    widths = np.array(clf.history_[:, "batches", :, "width"])
    np.testing.assert_array_equal(widths[:2], 64)
    np.testing.assert_array_equal(widths[2:], clf.net_.module_.head.in_features)


# What is shown


def test_printed_table_is_aligned(capsys, few):
    fit(few, None, net={"verbose": 1, "train_split": SPLIT}, finetune="all")
    text = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    header, dashes, *rows = [line for line in text.splitlines() if line.strip()]
    assert {"epoch", "stage", *WEIGHT_COLUMNS} <= set(header.split())
    assert len(rows) == 4
    widths = [len(group) for group in dashes.split()]
    assert len(widths) == len(header.split())
    for row in rows:
        assert len(row.split()) == len(widths)
        assert len(row) == len(header) == len(dashes)
    stage = header.split().index("stage")
    assert [row.split()[stage] for row in rows] == ["1", "1", "2", "2"]


def test_a_table_of_ones_own(few):
    lines = []
    table = PrintLog(keys_ignored=["dur", "ot_cost"], sink=lines.append)
    fit(few, [("PrintLog", table)], net={"callbacks__print_log": None})
    assert len(lines) == 6
    assert "stage" in lines[0]
    assert "ot_cost" not in lines[0]


class Bars(ProgressBar):
    """Keeps how far each bar came."""

    def initialize(self):
        self.bars_ = []
        return super().initialize()

    def on_epoch_end(self, net, **kwargs):
        self.bars_.append((self.pbar_.n, self.pbar_.total))
        super().on_epoch_end(net, **kwargs)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("kind", ["auto", "count"])
def test_progress_bars(kind, finetune, few, capsys):
    """Of 28 rows to train on and 15 to validate."""
    bars = Bars(batches_per_epoch=kind)
    clf = fit(few, [bars], net={"train_split": SPLIT}, finetune=finetune)
    first = None if kind == "count" else 3
    assert callback_of(clf, "Bars").bars_ == [(3, first), (3, 3), (3, 3), (3, 3)]
    shown = capsys.readouterr().err
    assert shown.count("| 0/3 [") == (3 if kind == "count" else 4)


# What changes parameters and gradients


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_gradient_clipping_acts_in_stage_two(finetune, few):
    """Gradients clipped to 0: with plain SGD nothing moves."""
    net = {"optimizer": torch.optim.SGD, "lr": 0.1}
    clipping = [GradientNormClipping(gradient_clip_value=1e-12)]
    before = state(fit(few, clipping, (2, 0), net=net).net_.module_)
    clipped = fit(few, clipping, (2, 3), net=net, finetune=finetune)
    for name, value in clipped.net_.module_.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-9)
    free = fit(few, None, (2, 3), net=net, finetune=finetune).net_.module_
    assert not torch.equal(free.head.weight, before["head.weight"])


def moved(snapshots, name):
    """Return in which epochs a parameter was changed."""
    return [
        not torch.equal(begin[name], end[name])
        for begin, end in zip(snapshots.begin_, snapshots.end_, strict=True)
    ]


def test_freezing_and_unfreezing_by_epoch(few):
    """Epochs are counted through, so that 3 is the first of stage 2."""
    frozen = fit(few, [Freezer("body*", at=3), Snapshots()], finetune="all")
    snapshots = callback_of(frozen, "Snapshots")
    assert moved(snapshots, "body.0.weight") == [True, True, False, False]
    assert moved(snapshots, "head.weight") == [True, True, True, True]
    callbacks = [Freezer("body*"), Unfreezer("body*", at=3), Snapshots()]
    snapshots = callback_of(fit(few, callbacks, finetune="all"), "Snapshots")
    assert moved(snapshots, "body.0.weight") == [False, False, True, True]


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_what_was_frozen_stays_frozen(finetune, few):
    clf = fit(few, [Freezer("body*")], finetune=finetune)
    trained = {n for n, p in clf.net_.module_.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias"}


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_parameters_that_are_set_by_epoch(finetune, few):
    epochs = []

    def note_epoch(net):
        epochs.append(len(net.history))
        return torch.Tensor.detach  # leaves a parameter as it is

    callbacks = [
        Initializer("head.weight", fn=nn.init.zeros_, at=1),
        ("again", Initializer("head.weight", fn=nn.init.zeros_, at=3)),
        ParamMapper("head.*", schedule=note_epoch),
        Snapshots(),
    ]
    clf = fit(few, callbacks, finetune=finetune)
    begin = callback_of(clf, "Snapshots").begin_
    zero = [not parameters["head.weight"].any() for parameters in begin]
    assert zero == [True, False, True, False]
    assert epochs == [1, 2, 3, 4]


class InputDimMLP(SmallMLP):
    def __init__(self, input_dim=1):
        super().__init__(input_dim, n_classes=4)


def test_input_shapes(few):
    X, y, meta = few
    clf = quick(make_net([InputShapeSetter()], module=InputDimMLP))
    for width in (64, 30):
        cut = X[:, :width], y, (meta[0][:, :width], meta[1])
        clf.fit(*cut[:2], meta=cut[2])
        assert clf.net_.module_.body[0].in_features == width
        assert clf.predict(cut[0]).shape == y.shape
    assert clf.net.get_params(deep=False).get("module__input_dim") is None


# Loggers


class Handle:
    """Something outside of the training, as loggers hold: it cannot be copied."""

    def __init__(self):
        self.calls, self.columns, self.steps = [], {}, {}

    def __deepcopy__(self, memo):
        raise TypeError("a connection cannot be copied")

    def __reduce_ex__(self, protocol):
        raise TypeError("a connection cannot be pickled")

    def note(self, call, column, value, step=None):
        self.calls.append(call)
        self.columns.setdefault(column, []).append(value)
        self.steps.setdefault(column, []).append(step)

    def values(self, column):
        return self.columns.get(column, [])


class Writer(Handle):
    """As `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag, scalar_value, global_step):
        self.note("add_scalar", tag.removeprefix("Loss/"), scalar_value, global_step)

    def close(self):
        self.calls.append("close")


class Run(Handle):
    """As a run of Weights & Biases."""

    def watch(self, module):
        self.calls.append("watch")

    def log(self, row):
        self.calls.append("log")
        for column, value in row.items():
            self.columns.setdefault(column, []).append(value)


class Client(Handle):
    """As a client of MLflow."""

    def log_metric(self, run_id, key, value, step):
        self.note("log_metric", key.removesuffix("_epoch"), value, step)

    def log_artifact(self, run_id, path):
        assert Path(path).stat().st_size
        self.calls.append("log_artifact")

    def set_terminated(self, run_id):
        self.calls.append("set_terminated")


class Experiment(Handle):
    """As an experiment of Sacred."""

    def log_scalar(self, name, value, step):
        self.note("log_scalar", name, value, step)


class OwnLogger(Callback):
    """What a user may write: nothing here is made for ``clone``."""

    def __init__(self, target):
        self.handles = {"main": [target]}
        self.log = target.note
        self.count = 0

    def initialize(self):
        self.lock_ = Lock()  # cannot be copied either
        self.target_ = self.handles["main"][0]
        return self

    def on_epoch_end(self, net, **kwargs):
        self.count += 1
        for column in ("stage", "train_loss"):
            if column in net.history[-1]:
                self.log("log", column, net.history[-1, column], len(net.history))


class Holder(Callback):
    """Passes on to a callback of its own."""

    def __init__(self, inner):
        self.inner = inner

    def initialize(self):
        self.inner.initialize()
        return self

    def on_epoch_end(self, net, **kwargs):
        self.inner.on_epoch_end(net, **kwargs)


A_RUN = SimpleNamespace(info=SimpleNamespace(run_id="a run"))

LOGGERS = {
    "tensorboard": (Writer, TensorBoard),
    "wandb": (Run, lambda run: WandbLogger(run, save_model=False)),
    "mlflow": (Client, lambda client: MlflowLogger(A_RUN, client)),
    "sacred": (Experiment, SacredLogger),
    "own": (Handle, OwnLogger),
    "nested": (Writer, lambda writer: Holder(TensorBoard(writer))),
}


@pytest.fixture(params=LOGGERS)
def logger(request):
    """Return a handle, and a callback that logs to it."""
    make_handle, make_callback = LOGGERS[request.param]
    handle = make_handle()
    return handle, make_callback(handle)


def test_loggers_get_every_epoch_once(logger, few):
    X, y, _ = few
    handle, callback = logger
    clf = fit(few, [callback])
    assert handle.values("stage") == [1, 1, 2, 2]
    assert handle.values("train_loss") == clf.history_[:, "train_loss"]
    clf.partial_fit(X, y).partial_fit(X, y)
    assert handle.values("stage") == [1, 1, 2, 2, 2, 2]
    assert len(handle.values("train_loss")) == 6


def test_loggers_of_a_net_that_came_trained(logger, few):
    X, y, meta = few
    handle, callback = logger
    net = fitted_net(few, [callback])
    assert handle.values("stage") == []
    assert len(handle.values("train_loss")) == 2
    clf = quick(FrozenEstimator(net)).fit(X, y, meta=meta)
    assert handle.values("stage") == [2, 2]
    assert handle.values("train_loss") == clf.history_[:, "train_loss"]
    clf.partial_fit(X, y)
    assert handle.values("stage") == [2, 2, 2]
    quick(net).fit(X, y, meta=meta)  # not frozen: both stages, on a net anew
    assert handle.values("stage") == [2, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("form", ["class", "parameter", "replaced"])
def test_handles_that_are_given_by_name(form, few):
    X, y, meta = few
    writer = Writer()
    if form == "class":
        net = make_net([("board", TensorBoard)], callbacks__board__writer=writer)
    else:
        net = make_net([("board", TensorBoard(None))])
        given = {
            "parameter": {"callbacks__board__writer": writer},
            "replaced": {"callbacks__board": TensorBoard(writer)},
        }[form]
        net.set_params(**given)
    quick(net).fit(X, y, meta=meta)
    assert writer.values("stage") == [1, 1, 2, 2]


def test_clone_copies_as_it_does_for_skorch(few):
    """`sklearn.base.clone` copies a handle if it can and raises if it cannot."""
    X, y, meta = few
    with pytest.raises(TypeError, match="a connection cannot be copied"):
        clone(make_net([TensorBoard(Writer())]))
    with pytest.raises(TypeError, match="a connection cannot be copied"):
        clone(quick(make_net([TensorBoard(Writer())])))

    class Copyable(Writer):
        __deepcopy__ = None
        __reduce_ex__ = object.__reduce_ex__

    writer = Copyable()
    clf = clone(quick(make_net([TensorBoard(writer)])))
    clf.fit(X, y, meta=meta)
    assert writer.calls == []
    assert clf.net.callbacks[0].writer.values("stage") == [1, 1, 2, 2]


# Forms in which callbacks are given


def test_classes_instances_and_names(few):
    callbacks = [Recorder, ("named", Recorder()), Recorder(), ("by_class", Recorder)]
    clf = fit(few, callbacks)
    names = ("Recorder_1", "named", "Recorder_2", "by_class")
    events = [callback_of(clf, name).events_ for name in names]
    assert events[0].count("epoch_end") == 4
    assert all(each == events[0] for each in events)


def test_parameters_of_callbacks(few):
    X, y, meta = few
    stopping = EarlyStopping(monitor="stage", patience=9)
    clf = quick(make_net([("stop", stopping)], max_epochs=5), max_epochs=5)
    clf.set_params(net__callbacks__stop__patience=1)
    clf.fit(X, y, meta=meta)
    assert clf.history_[:, "stage"] == [1, 1, 2, 2]
    off = make_net([("stop", stopping)], max_epochs=5, callbacks__stop=None)
    clf = quick(off, max_epochs=5).fit(X, y, meta=meta)
    assert clf.history_[:, "stage"] == 5 * [1] + 5 * [2]
    by_class = make_net(
        [("stop", EarlyStopping)],
        max_epochs=5,
        callbacks__stop__monitor="stage",
        callbacks__stop__patience=2,
    )
    clf = quick(by_class, max_epochs=5).fit(X, y, meta=meta)
    assert clf.history_[:, "stage"] == [1, 1, 1, 2, 2, 2]


def test_callbacks_that_are_switched_off(few):
    clf = fit(few, "disable", (2, 3))
    assert clf.history_[:, "stage"] == [1, 1, 2, 2, 2]
    assert "train_loss" not in clf.history_[-1]


@pytest.mark.parametrize("form", ["uninitialised", "initialised", "frozen"])
def test_callbacks_of_the_user_are_not_changed(form, few, tmp_path):
    X, y, meta = few
    callbacks = [
        Recorder(),
        EpochScoring("accuracy", lower_is_better=False),
        Scripted([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        Checkpoint(dirname=tmp_path),
        EarlyStopping(monitor="score", load_best=True, lower_is_better=False),
        Freezer("nothing*", at=3),
        LRScheduler("ExponentialLR", gamma=0.5),
    ]
    params = {"module__n_features": 64, "module__n_classes": 4, "train_split": SPLIT}
    net = make_net(callbacks, **params)
    if form != "uninitialised":
        net.fit(X, encoded(y))
    before = [dict(vars(callback)) for callback in callbacks]
    events = list(getattr(callbacks[0], "events_", []))
    given = FrozenEstimator(net) if form == "frozen" else net
    clf = quick(given).fit(X, y, meta=meta).partial_fit(X, y)
    for callback, kept in zip(callbacks, before, strict=True):
        assert vars(callback).keys() == kept.keys()
        assert all(vars(callback)[name] is value for name, value in kept.items())
    assert getattr(callbacks[0], "events_", []) == events
    used = [callback for _, callback in clf.net_.callbacks_]
    assert not {id(callback) for callback in callbacks} & {id(c) for c in used}


def test_methods_of_a_callback_are_those_of_its_copy(few):
    """Once initialised, a Freezer holds methods of its own."""
    net = fitted_net(few, [Freezer("body*", at=2)])
    X, y, meta = few
    clf = quick(net, finetune="all").fit(X, y, meta=meta)
    freezer = callback_of(clf, "Freezer")
    assert freezer is not net.callbacks[0]
    assert freezer.schedule.__self__ is freezer
    assert freezer.at.func.__self__ is freezer
    assert not clf.net_.module_.body[0].weight.requires_grad


class KeepsNet(Callback):
    """Keeps the net of its first training."""

    def on_train_end(self, net, **kwargs):
        if not hasattr(self, "net_"):
            self.net_, self.optimizer_ = net, net.optimizer_


def test_callbacks_of_a_copy_know_the_copy(few):
    X, y, meta = few
    clf = quick(FrozenEstimator(fitted_net(few, [KeepsNet()])), max_epochs=0)
    net = clf.fit(X, y, meta=meta).net_
    assert net is not clf.net.estimator
    keeper = dict(net.callbacks_)["KeepsNet"]
    assert keeper.net_ is net
    assert keeper.optimizer_ is net.optimizer_


# Ctrl-C


class TripLinear(nn.Linear):
    """Raises what Ctrl-C raises, inside of the forward pass."""

    is_armed = False

    def forward(self, X):
        if self.is_armed:
            self.is_armed = False
            raise KeyboardInterrupt
        return super().forward(X)


class TripMLP(SmallMLP):
    def __init__(self, n_features, n_classes):
        super().__init__(n_features, n_classes)
        self.head = TripLinear(32, n_classes)


class InterruptAt(Callback):
    """Interrupts the second batch of an epoch."""

    def __init__(self, epoch, where="batch_end"):
        self.epoch, self.where = epoch, where

    def initialize(self):
        self.events_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.events_.append("begin")

    def on_train_end(self, net, **kwargs):
        self.events_.append("end")

    def on_batch_begin(self, net, training, **kwargs):
        if self.where == "forward" and self._is_now(net, training):
            net.module_.head.is_armed = True

    def on_batch_end(self, net, training, **kwargs):
        if self.where == "batch_end" and self._is_now(net, training):
            raise KeyboardInterrupt

    def _is_now(self, net, training):
        is_second = len(net.history[-1]["batches"]) == 2
        return training and is_second and len(net.history) == self.epoch


def check_interrupted(few, where, epoch, stage, **params):
    X, y, meta = few
    net = {"module": TripMLP}
    clf = fit(few, [InterruptAt(epoch, where)], (2, 3), net=net, **params)
    assert callback_of(clf, "InterruptAt").events_ == ["begin", "end"]
    assert clf.history_[:, "epoch"] == list(range(1, epoch + 1))
    assert clf.history_[:, "stage"] == [1, 1, 2, 2][:epoch]
    columns = [row.keys() for row in clf.history_]
    assert all(kept == columns[0] for kept in columns[:-1])
    start = fit(few, None, (0, 0), net=net, **params)
    before, after = state(start.net_.module_), state(clf.net_.module_)
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert clf.predict(X).shape == y.shape
    assert clf.sample_weight_.mean() == pytest.approx(1)
    if stage == 1:  # stage 2 has not begun
        without = fit(few, [InterruptAt(epoch, where)], (2, 0), net=net, **params)
        assert_same_state(state(without.net_.module_), after)
    # What was interrupted can go on, and can start anew.
    callback_of(clf, "InterruptAt").epoch = -1
    clf.partial_fit(X, y)
    assert len(clf.history_) == epoch + 1
    assert clf.history_[-1, "stage"] == 2
    clf.set_params(net__callbacks=None).fit(X, y, meta=meta)
    assert clf.history_[:, "stage"] == [1, 1, 2, 2, 2]


EPOCHS = [(1, 1), (2, 1), (3, 2), (4, 2)]


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
@pytest.mark.parametrize(("epoch", "stage"), EPOCHS)
def test_interrupt_keeps_what_was_learned(epoch, stage, weights, finetune, few):
    check_interrupted(
        few, "batch_end", epoch, stage, weights=weights, finetune=finetune
    )


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize(("epoch", "stage"), EPOCHS)
def test_interrupt_in_the_forward_pass(epoch, stage, finetune, few):
    check_interrupted(few, "forward", epoch, stage, finetune=finetune)


class InterruptBetweenStages(Callback):
    """Interrupts the first forward pass after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        def interrupt(module, args):
            handle.remove()
            raise KeyboardInterrupt

        if len(net.history) == self.epoch:
            handle = net.module_.register_forward_pre_hook(interrupt)


@pytest.mark.parametrize("weights", STRATEGIES)
def test_interrupt_between_the_stages(weights, few):
    clf = fit(few, [InterruptBetweenStages(2)], (2, 3), weights=weights)
    assert clf.history_[:, "stage"] == [1, 1]
    assert (clf.sample_weight_ == 1).all()
    assert isinstance(clf.weights_, WEIGHTS[weights])
    stage_one = fit(few, [], (2, 0), weights=weights)
    assert_same_state(state(clf.net_.module_), state(stage_one.net_.module_))
    clf.partial_fit(*few[:2])
    assert clf.history_[:, "stage"] == [1, 1, 2]


def test_interrupt_at_the_end_of_an_epoch_is_a_stop(few):
    """It cannot be told from that of early stopping: the stage ends, complete."""
    clf = fit(few, [StopAt((1, 2))])
    assert clf.history_[:, "stage"] == [1, 2]
    assert clf.history_[0].keys() == clf.history_[1].keys()
    assert clf.predict(few[0]).shape == few[1].shape


# The history


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("train_split", [None, SPLIT], ids=["no split", "split"])
def test_history_has_the_same_columns_throughout(train_split, finetune, few, tmp_path):
    callbacks = [
        EpochScoring("accuracy", on_train=True, name="train_acc"),
        BatchScoring("accuracy", on_train=True, name="batch_acc"),
        Scripted([0.1, 0.2, 0.3, 0.4, 0.5]),
        Checkpoint(monitor="score_best", dirname=tmp_path),
        LRScheduler("ExponentialLR", gamma=0.9),
    ]
    net = {"train_split": train_split}
    clf = fit(few, callbacks, (2, 3), net=net, finetune=finetune)
    assert clf.history_[:, "epoch"] == [1, 2, 3, 4, 5]
    assert clf.history_[:, "stage"] == [1, 1, 2, 2, 2]
    columns = Counter(name for row in clf.history_ for name in row)
    assert {"stage", "event_cp", "event_lr", *WEIGHT_COLUMNS} <= columns.keys()
    assert set(columns.values()) == {5}
