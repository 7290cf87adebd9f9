"""What a checkpoint is not resumed from, and when none can be written."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from checkpoint_helpers import Cut, cut_after, net_with
from classifier_helpers import quick
from safetensors import SafetensorError
from skorch.callbacks import (
    Callback,
)
from skorch.dataset import ValidSplit

from sk_otreweight import (
    BASELINES,
    load,
)


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
        mock.patch("sk_otreweight.fingerprint.version", return_value="9.9"),
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
