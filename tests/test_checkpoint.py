"""Fits that are cut short, and go on from a checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import (
    NormDropoutMLP,
    OneLogitMLP,
    long_tailed_digits,
    small_net,
)
from safetensors import SafetensorError
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
    OTReweightedClassifier,
    SemiRelaxedWeights,
    WeightNet,
    load,
)
from sk_otreweight.persistence import FitCheckpoint
from sk_otreweight.persistence.file import opened
from sk_otreweight.persistence.state import has_state_dict

TIMES = {"dur", "event_left"}


class Cut(Exception):
    """Stands for whatever ends a process."""


def cut_after(n_epochs):
    """Let a fit end when it has written its checkpoint for the n-th time."""
    written, save = [], FitCheckpoint.save

    def save_and_end(self, *args, **kwargs):
        save(self, *args, **kwargs)
        written.append(1)
        if len(written) == n_epochs:
            raise Cut

    return mock.patch.object(FitCheckpoint, "save", save_and_end)


def assert_same(one, other, place=""):
    """Compare containers of numbers and arrays, bit by bit; NaN is NaN."""
    kinds = dict, list, tuple, torch.Tensor
    assert [isinstance(one, kind) for kind in kinds] == [
        isinstance(other, kind) for kind in kinds
    ], place
    if isinstance(one, dict):
        assert one.keys() - TIMES == other.keys() - TIMES, place
        for name in one.keys() - TIMES:
            assert_same(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        np.testing.assert_array_equal(one, other, err_msg=place)


def assert_same_fit(clf, other, X):
    def state(fit):
        own = {k: x for k, x in vars(fit).items() if isinstance(x, np.ndarray)}
        parts = {k: x for k, x in vars(fit.net_).items() if has_state_dict(x)}
        return own | {k: dict(x.state_dict()) for k, x in parts.items()}

    assert_same(state(clf), state(other))
    assert_same(list(clf.history_), list(other.history_), "history")
    np.testing.assert_array_equal(clf.predict_proba(X), other.predict_proba(X))


def assert_goes_on(make, data, path, *, n_epochs):
    """Compare a whole fit with one that was cut after some epochs."""
    X, y, meta = data
    whole = make().fit(X, y, meta=meta)
    with cut_after(n_epochs), pytest.raises(Cut):
        make().fit(X, y, meta=meta, checkpoint=path)
    resumed = make().fit(X, y, meta=meta, checkpoint=path, resume=True)
    assert_same_fit(resumed, whole, X)
    assert list(path.parent.iterdir()) == [path]


def net_with(*callbacks, **params):
    return small_net(
        **{"max_epochs": 3, "batch_size": 16, "callbacks": list(callbacks)} | params
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


# --- what is refused ------------------------------------------------------------------


@pytest.fixture
def begun(few, tmp_path):
    """A checkpoint of two epochs, and the data."""
    X, y, meta = few
    path = tmp_path / "run"
    with cut_after(2), pytest.raises(Cut):
        quick(net_with()).fit(X, y, meta=meta, checkpoint=path)
    return path, X, y, meta


def test_a_checkpoint_is_not_overwritten(begun):
    path, X, y, meta = begun
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="Pass resume=True to go on from it"):
        quick(net_with()).fit(X, y, meta=meta, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reg": 0.3}, "reg was 0.1, and is 0.3"),
        ({"max_epochs": 4, "lr": 0.1}, "lr was None, and is 0.1; max_epochs was 2"),
        ({"random_state": 1}, "random_state was 0, and is 1"),
        ({"net": net_with(lr=0.5)}, "net is another"),
        ({"weights": "net"}, "weights was 'semirelaxed', and is 'net'"),
    ],
)
def test_other_parameters(changed, message, begun):
    path, X, y, meta = begun
    clf = quick(**({"net": net_with()} | changed))
    with pytest.raises(ValueError, match=f"it is of another fit. .*{message}"):
        clf.fit(X, y, meta=meta, checkpoint=path, resume=True)
    assert not hasattr(clf, "classes_")


def test_other_data(begun):
    path, X, y, meta = begun
    clf = quick(net_with())
    for args, names in (
        ((X * 1.01, y, meta), "X is another"),
        ((X[:-1], y[:-1], meta), "X is another; y is another"),
        ((X, y, (meta[0] * 1.01, meta[1])), "X_meta is another"),
        ((X, y, None), "X_meta is another; y_meta is another"),
    ):
        with pytest.raises(ValueError, match=f"another fit. {names}. Fit as it was"):
            clf.fit(*args[:2], meta=args[2], checkpoint=path, resume=True)


def test_another_estimator_and_another_version(begun):
    path, X, y, meta = begun
    with pytest.raises(ValueError, match="estimator was OTReweightedClassifier, and"):
        BASELINES["ce"](net_with()).fit(X, y, checkpoint=path, resume=True)
    with (
        mock.patch("sk_otreweight.persistence.checkpoint.version", return_value="9.9"),
        pytest.raises(ValueError, match=r"version of torch was .*, and is 9\.9"),
    ):
        quick(net_with()).fit(X, y, meta=meta, checkpoint=path, resume=True)


def test_verbose_may_be_another(begun, capsys):
    path, X, y, meta = begun
    clf = quick(net_with(), verbose=2)
    clf.fit(X, y, meta=meta, checkpoint=path, resume=True)
    assert "5/5" in capsys.readouterr().err  # with the two that were done


def test_other_rows_are_held_out(few, tmp_path):
    X, y, meta = few
    net = net_with(train_split=ValidSplit(0.3))  # draws anew, from numpy's generator
    np.random.seed(0)  # noqa: NPY002
    quick(net).fit(X, y, meta=meta, checkpoint=tmp_path / "run")
    np.random.seed(1)  # noqa: NPY002
    with pytest.raises(ValueError, match="train_split now holds out other rows"):
        quick(net).fit(X, y, meta=meta, checkpoint=tmp_path / "run", resume=True)


def test_a_file_that_is_no_checkpoint(few, tmp_path):
    X, y, meta = few
    path = tmp_path / "model"
    clf = quick().fit(X, y, meta=meta)
    clf.save(path)
    with pytest.raises(ValueError, match="it is a saved model, not a checkpoint"):
        clf.fit(X, y, meta=meta, checkpoint=path, resume=True)
    path.write_bytes(b"1234567890")
    with pytest.raises(ValueError, match="it is no model that was saved"):
        clf.fit(X, y, meta=meta, checkpoint=path, resume=True)


def test_a_damaged_checkpoint(begun):
    path, X, y, meta = begun
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        quick(net_with()).fit(X, y, meta=meta, checkpoint=path, resume=True)


def test_a_checkpoint_is_no_model(begun):
    with pytest.raises(ValueError, match="it is a checkpoint"):
        load(begun[0])


def test_resume_without_a_file(few):
    with pytest.raises(ValueError, match="pass checkpoint=path as well"):
        quick().fit(few[0], few[1], resume=True)
    with pytest.raises(ValueError, match="resume='yes'"):
        quick().fit(few[0], few[1], checkpoint="run", resume="yes")


def test_no_folder_is_noticed_before_training(few, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        quick().fit(few[0], few[1], checkpoint=tmp_path / "none" / "run")


FULL = OSError(28, "No space left on device")


def test_a_write_that_fails_later_is_a_warning(few, tmp_path):
    X, y, meta = few
    writes = mock.Mock(side_effect=[None, FULL, None, FULL])
    with (
        mock.patch("sk_otreweight.persistence.checkpoint.write", writes),
        pytest.warns(
            UserWarning, match="No space left .* The training goes on"
        ) as found,
    ):
        clf = quick(max_epochs=1).fit(X, y, meta=meta, checkpoint=tmp_path / "run")
    assert len(found) == 2
    assert len(clf.history_) == 3


@pytest.mark.parametrize("error", [FULL, SafetensorError("No space left")])
def test_a_write_that_fails_at_once_is_an_error(error, few, tmp_path):
    clf = quick()
    with (
        mock.patch("sk_otreweight.persistence.checkpoint.write", side_effect=error),
        pytest.raises(OSError, match="No space left"),
    ):
        clf.fit(few[0], few[1], checkpoint=tmp_path / "run")
    assert not hasattr(clf, "classes_")


def test_a_callback_that_cannot_be_written(few, tmp_path):
    class Schedule(Callback):
        def on_train_begin(self, net, **kwargs):
            self.schedule_ = torch.optim.lr_scheduler.LambdaLR(net.optimizer_, Factor())

    class Factor:
        def __init__(self):
            self.path = object()

        def __call__(self, epoch):
            return 1.0

    clf = quick(net_with(("schedule", Schedule())))
    with pytest.raises(TypeError, match="The callback 'schedule' cannot be written"):
        clf.fit(few[0], few[1], checkpoint=tmp_path / "run")


# --- real faults ----------------------------------------------------------------------

N_KILLS = 20
FORKS = multiprocessing.get_context("fork")


def kill_fit():
    """Return a fit that is long enough to be killed in the midst of."""
    net = small_net(NormDropoutMLP, max_epochs=12, batch_size=16)
    return OTReweightedClassifier(net, weights="vector", max_epochs=12, random_state=0)


def fit_digits(path, resume, started=None):
    data = long_tailed_digits(0)
    if started is not None:
        started.set()
    clf = kill_fit()
    clf.fit(data.X, data.y, meta=data.meta, checkpoint=path, resume=resume)
    return clf, data


@pytest.mark.slow
def test_a_fit_that_is_killed_goes_on(tmp_path, record_property):
    """SIGKILL at random moments, each in a process of its own."""
    start = time.perf_counter()
    whole, data = fit_digits(tmp_path / "whole", resume=False)
    duration = time.perf_counter() - start
    rng, stages = np.random.default_rng(0), []
    for number in range(N_KILLS):
        path = tmp_path / str(number)
        started = FORKS.Event()
        process = FORKS.Process(target=fit_digits, args=(path, False, started))
        process.start()
        assert started.wait(60)
        time.sleep(rng.uniform(0, duration))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if path.exists():
            with opened(path) as (content, _):  # whole, or this raises
                stages.append(content["checkpoint"]["stage"])
        resumed, _ = fit_digits(path, resume=True)
        assert_same_fit(resumed, whole, data.X)
    assert {1, 2} <= set(stages)
    assert sorted(tmp_path.iterdir()) == sorted(
        [tmp_path / "whole", *(tmp_path / str(number) for number in range(N_KILLS))]
    )
    record_property("fits killed and resumed", N_KILLS)


def test_a_full_disk_does_not_end_the_training(few, tmp_path):
    """The limit on the size of files is that of a process of its own."""
    context = FORKS.SimpleQueue()

    def fit():
        X, y, meta = few
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        grown = BatchHistory()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            clf = quick(net_with(("grown", grown)), max_epochs=3)
            clf.fit(X, y, meta=meta, checkpoint=tmp_path / "run")
        context.put([str(w.message) for w in found] + [len(clf.history_)])

    process = FORKS.Process(target=fit)
    process.start()
    *messages, n_epochs = context.get()
    process.join()
    assert n_epochs == 6
    assert any("The training goes on" in message for message in messages)
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    with opened(tmp_path / "run") as (content, _):
        assert content["checkpoint"]["n_epochs"] >= 1


class BatchHistory(Callback):
    """Makes the file of a later epoch larger than that of the first."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) > 2:
            self.rows = np.zeros(2**16)


def test_a_file_that_cannot_be_written_is_noticed_before_training(few, tmp_path):
    def fit(found):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**9, 2**9))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            quick().fit(few[0], few[1], checkpoint=tmp_path / "run")
        except OSError as error:
            found.put(str(error))

    found = FORKS.SimpleQueue()
    process = FORKS.Process(target=fit, args=(found,))
    process.start()
    assert "cannot be written" in found.get()
    process.join()
    assert os.listdir(tmp_path) == []
