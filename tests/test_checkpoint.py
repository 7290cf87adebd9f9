"""Fits that are cut short, and go on from a checkpoint."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from checkpoint_helpers import assert_goes_on, assert_same_fit, net_with
from classifier_helpers import quick
from nets_for_tests import (
    NormDropoutMLP,
    OneLogitMLP,
)
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet, NeuralNetBinaryClassifier
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    LRScheduler,
)
from skorch.dataset import ValidSplit
from torch.utils.data import DataLoader

from sk_otreweight import (
    BASELINES,
    SemiRelaxedWeights,
    WeightNet,
)

FITS = {
    "defaults": {},
    "head": {"finetune": "head"},
    "vector": {"weights": "vector"},
    "vector, head": {"weights": "vector", "finetune": "head"},
    "label cost": {"cost": "label", "weights": "vector"},
    "exact": {"weights": "vector", "virtual_step": "exact"},
    "net": {"weights": "net"},
    "net with Adam": {"weights": WeightNet(0.01, optimizer=torch.optim.Adam)},
    "attention": {"weights": "attention", "finetune": "head"},
    "random meta set": {"meta_set": "random", "weights": "vector"},
    "restart": {"restart": True, "weights": SemiRelaxedWeights(per_class=True)},
    "other rows": {"sampling": "square_root", "loss": "logit_adjusted"},
    "meta rows too": {"train_on_meta": True, "meta_loss_weight": 1.0},
    "another rate": {"lr": 1e-3},
    "no seed": {"random_state": np.random.RandomState(3)},  # noqa: NPY002
}


@pytest.mark.parametrize(
    "converted",
    [lambda X: X.bfloat16(), lambda X: X.requires_grad_()],
    ids=["bfloat16", "requires grad"],
)
def test_rows_that_numpy_does_not_take(converted, few, tmp_path):
    X, y, (X_meta, y_meta) = few
    X, X_meta = (converted(torch.tensor(x)) for x in (X, X_meta))
    data = X, y, (X_meta, y_meta)
    assert_goes_on(lambda: quick(net_with()), data, tmp_path / "run", n_epochs=2)


@pytest.mark.parametrize("n_epochs", [2, 4])
@pytest.mark.parametrize("name", FITS)
def test_a_fit_goes_on_as_if_it_had_not_been_cut(name, n_epochs, few, tmp_path):
    def make():
        net = net_with(module=NormDropoutMLP)
        return quick(net, **({"max_epochs": 3} | FITS[name]))

    seed = FITS[name].get("random_state")
    state = None if seed is None else seed.get_state()

    def made():
        if state is not None:
            seed.set_state(state)
        return make()

    assert_goes_on(made, few, tmp_path / "run", n_epochs=n_epochs)


NETS = {
    "steps": {"callbacks": [LRScheduler("MultiStepLR", milestones=[2, 4])]},
    "one cycle": {
        "callbacks": [
            LRScheduler(
                torch.optim.lr_scheduler.OneCycleLR,
                max_lr=0.1,
                total_steps=60,
                step_every="batch",
            )
        ]
    },
    "plateau": {
        "callbacks": [LRScheduler("ReduceLROnPlateau", patience=0)],
        "train_split": ValidSplit(3, stratified=True),
    },
    "early stopping": {
        "callbacks": [
            EarlyStopping(
                "valid_bal", patience=1, load_best=True, lower_is_better=False
            )
        ],
        "train_split": ValidSplit(3, stratified=True),
    },
    "loader": {"iterator_train": DataLoader, "iterator_train__num_workers": 0},
    "momentum": {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
}


@pytest.mark.parametrize("n_epochs", [2, 4])
@pytest.mark.parametrize("name", NETS)
def test_what_belongs_to_the_net_goes_on_too(name, n_epochs, few, tmp_path):
    params = dict(NETS[name])
    scoring = EpochScoring("balanced_accuracy", False, name="valid_bal")
    before = [scoring] if "train_split" in params else []
    callbacks = [*before, *params.pop("callbacks", [])]

    def make():
        return quick(net_with(*callbacks, **params), max_epochs=3, weights="vector")

    assert_goes_on(make, few, tmp_path / "run", n_epochs=n_epochs)


@pytest.mark.parametrize("n_epochs", [2, 3, 4])
def test_the_best_parameters_of_stage_one_go_on(n_epochs, few, tmp_path):
    """Also after a cut between the stages, or in the second one."""

    class Worse(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("score", len(net.history))

    def make():
        stopping = EarlyStopping("score", patience=5, load_best=True)
        return quick(net_with(Worse(), stopping), max_epochs=3, finetune="head")

    assert_goes_on(make, few, tmp_path / "run", n_epochs=n_epochs)


@pytest.mark.slow
@pytest.mark.parametrize("n_epochs", [2, 5])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_goes_on(name, n_epochs, few, tmp_path):
    params = {"finetune": "head"} if name == "hu2019" else {}

    def make():
        net = net_with(module=NormDropoutMLP)
        return BASELINES[name](net, max_epochs=3, random_state=0, **params)

    assert_goes_on(make, few, tmp_path / "run", n_epochs=n_epochs)


@pytest.mark.parametrize("n_epochs", [1, 3, 6])
def test_a_fit_goes_on_at_the_ends_of_its_stages(n_epochs, few, tmp_path):
    def make():
        return quick(net_with(), max_epochs=3, weights="vector")

    assert_goes_on(make, few, tmp_path / "run", n_epochs=n_epochs)


def test_a_net_that_was_trained_before_goes_on(few, tmp_path):
    net = FrozenEstimator(quick(net_with()).fit(*few[:2]).net_)
    assert_goes_on(lambda: quick(net, max_epochs=3), few, tmp_path / "run", n_epochs=1)


def test_one_score_for_two_classes_goes_on(few, tmp_path):
    X, y, _ = few
    net = NeuralNetBinaryClassifier(
        OneLogitMLP, module__n_features=64, max_epochs=3, train_split=None, verbose=0
    )
    data = X, (y == 4).astype(int), None
    assert_goes_on(lambda: quick(net, max_epochs=3), data, tmp_path / "run", n_epochs=4)


def test_a_finished_fit_is_read_from_its_checkpoint(few, tmp_path):
    X, y, meta = few
    clf = quick().fit(X, y, meta=meta, checkpoint=tmp_path / "run")
    with mock.patch.object(NeuralNet, "train_step", side_effect=AssertionError):
        again = quick().fit(X, y, meta=meta, checkpoint=tmp_path / "run", resume=True)
    assert_same_fit(again, clf, X)


def test_without_a_seed_the_drawn_one_is_kept(few, tmp_path):
    X, y, meta = few
    clf = quick(random_state=None).fit(X, y, meta=meta, checkpoint=tmp_path / "run")
    again = quick(random_state=None)
    again.fit(X, y, meta=meta, checkpoint=tmp_path / "run", resume=True)
    assert_same_fit(again, clf, X)


def test_resume_begins_where_there_is_no_file_yet(few, tmp_path):
    X, y, meta = few
    clf = quick().fit(X, y, meta=meta, checkpoint=tmp_path / "run", resume=True)
    assert_same_fit(clf, quick().fit(X, y, meta=meta), X)


def test_an_interrupt_keeps_what_was_learned_and_the_checkpoint(few, tmp_path):
    X, y, meta = few
    whole = quick(net_with(), max_epochs=3).fit(X, y, meta=meta)
    with mock.patch.object(
        NeuralNet, "run_single_epoch", autospec=True, side_effect=_interrupting(8)
    ):
        clf = quick(net_with(), max_epochs=3)
        clf.fit(X, y, meta=meta, checkpoint=tmp_path / "run")
    assert 0 < len(clf.history_) < 6
    clf.fit(X, y, meta=meta, checkpoint=tmp_path / "run", resume=True)
    assert_same_fit(clf, whole, X)


def _interrupting(at):
    own, calls = NeuralNet.run_single_epoch, []

    def run(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    return run
