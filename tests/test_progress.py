from __future__ import annotations

import copy
import math
import pickle
import re
from itertools import count

import pytest
import tqdm.std
from classifier_helpers import quick
from nets_for_tests import SmallMLP, small_net
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback, EarlyStopping, TensorBoard
from skorch.dataset import ValidSplit

from sk_otreweight.progress import Progress


@pytest.fixture
def bars(monkeypatch):
    """Return a list that will hold every bar that is made."""
    made = []

    class Recorded(tqdm.std.tqdm):
        def __init__(self, **params):
            super().__init__(**params)
            made.append(self)
            self.titles, self.losses, self.is_closed = [], [], False

        def set_description(self, title, **params):
            super().set_description(title, **params)
            self.titles.append(title)

        def set_postfix(self, train_loss, **params):
            super().set_postfix(train_loss=train_loss, **params)
            self.losses.append(train_loss)

        def close(self):
            super().close()
            self.is_closed = True

    monkeypatch.setattr("tqdm.auto.tqdm", Recorded)
    return made


@pytest.fixture
def clock(monkeypatch):
    """Let ten minutes pass between any two looks at the clock."""
    monkeypatch.setattr("sk_otreweight.progress.perf_counter", count(0, 600).__next__)


class Raising(Callback):
    """Raises in the second epoch."""

    def __init__(self, error, stage=1):
        self.error = error
        self.stage = stage

    def on_batch_end(self, net, **kwargs):
        stages = net.history[:, "stage"]
        if stages.count(self.stage) == 2:
            raise self.error


def table_lines(out):
    """Return the lines of skorch's table without the colours."""
    return re.sub(r"\x1b\[\d+m", "", out).splitlines()


# The bar


def test_one_bar_over_both_stages(bars, few):
    X, y, meta = few
    net = small_net(max_epochs=3, train_split=ValidSplit(3))
    clf = quick(net, max_epochs=2, verbose=2).fit(X, y, meta=meta)
    (bar,) = bars
    assert bar.total == bar.n == 5
    assert bar.titles == ["stage 1", "stage 2"]
    assert bar.is_closed
    assert bar.losses == pytest.approx(clf.history_[:, "train_loss"], rel=1e-6)


def test_what_the_bar_prints(capsys, few):
    X, y, meta = few
    clf = quick(SmallMLP, max_epochs=2, verbose=2).fit(X, y, meta=meta)
    out, err = capsys.readouterr()
    assert out == ""  # the bar takes the place of the table
    loss = clf.history_[-1, "train_loss"]
    n_epochs = len(clf.history_)
    last = err.rstrip("\n").split("\r")[-1]
    assert last.startswith("stage 2: 100%")
    assert f" {n_epochs}/{n_epochs} [" in last
    assert f"train_loss={loss:.3g}]" in last
    assert err.count("\n") == 1


def test_a_trained_net_has_one_stage(bars, few):
    X, y, meta = few
    trained = quick(small_net()).fit(X, y, meta=meta).net_
    quick(FrozenEstimator(trained), max_epochs=3, verbose=2).fit(X, y, meta=meta)
    (bar,) = bars
    assert bar.total == bar.n == 3
    assert bar.titles == ["stage 2"]


def test_without_callbacks(bars, few):
    X, y, meta = few
    quick(small_net(callbacks="disable"), verbose=2).fit(X, y, meta=meta)
    (bar,) = bars
    assert bar.total == bar.n == len(bar.losses)
    assert all(map(math.isfinite, bar.losses))


def test_early_stopping_shortens_the_bar(bars, few):
    X, y, meta = few
    stopping = EarlyStopping(monitor="train_loss", patience=2, threshold=0.99)
    net = small_net(max_epochs=20, callbacks=[stopping])
    clf = quick(net, max_epochs=30, verbose=2).fit(X, y, meta=meta)
    stages = clf.history_[:, "stage"]
    assert stages.count(1) < 20
    assert stages.count(2) < 30
    (bar,) = bars
    assert bar.total == bar.n == len(stages)
    assert bar.is_closed


def test_early_stopping_of_the_first_stage_is_known_at_once(bars, few):
    X, y, meta = few
    stopping = EarlyStopping(monitor="train_loss", patience=2, threshold=0.99)
    totals = []

    class Watch(Callback):
        def on_epoch_begin(self, net, **kwargs):
            totals.append(bars[0].total)

    net = small_net(max_epochs=20, callbacks=[stopping, Watch()])
    clf = quick(net, max_epochs=1, verbose=2).fit(X, y, meta=meta)
    n_first = clf.history_[:, "stage"].count(1)
    assert totals == [21] * n_first + [n_first + 1]


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupt_closes_the_bar(bars, few, stage):
    X, y, meta = few
    net = small_net(max_epochs=4, callbacks=[Raising(KeyboardInterrupt(), stage)])
    clf = quick(net, max_epochs=3, verbose=2).fit(X, y, meta=meta)
    assert len(clf.predict(X)) == len(X)
    (bar,) = bars
    assert bar.is_closed
    assert bar.total == 7  # what was planned stays visible
    assert bar.n == (1 if stage == 1 else 5)
    assert len(bar.titles) == stage


def test_an_error_closes_the_bar(bars, few):
    X, y, meta = few
    net = small_net(callbacks=[Raising(RuntimeError("out of coffee"))])
    with pytest.raises(RuntimeError, match="out of coffee"):
        quick(net, verbose=2).fit(X, y, meta=meta)
    (bar,) = bars
    assert bar.is_closed


def test_nothing_of_the_bar_is_left_in_the_net(bars, few):
    X, y, meta = few
    quiet = quick(small_net()).fit(X, y, meta=meta)
    clf = quick(small_net(), verbose=2).fit(X, y, meta=meta)
    assert len(bars) == 1
    assert vars(clf.net_).keys() == vars(quiet.net_).keys()
    names = [name for name, _ in clf.net_.callbacks_]
    assert names == [name for name, _ in quiet.net_.callbacks_]
    for other in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        assert (other.predict_proba(X) == quiet.predict_proba(X)).all()
    assert not clone(clf.net_).initialized_
    assert clone(clf).get_params()["verbose"] == 2


def test_no_bar_within_the_table_of_a_net(bars, capsys, few):
    """A user's net keeps its own `verbose`, and its table is not cut by a bar."""
    X, y, meta = few
    net = small_net(verbose=1, max_epochs=2)
    clf = quick(net, max_epochs=1, verbose=2).fit(X, y, meta=meta)
    assert bars == []
    assert len(table_lines(capsys.readouterr().out)) == 2 + 3
    assert clf.net_.verbose == 1


def test_no_bar_for_the_chunks_of_a_stream(bars, few):
    X, y, meta = few
    clf = quick(verbose=2).partial_fit(X, y, classes=[4, 7, 8, 9], meta=meta)
    assert bars == []
    assert len(clf.history_) == 1


# The table


def test_nothing_is_printed_without_verbose(bars, capsys, few):
    X, y, meta = few
    for net in (SmallMLP, small_net()):
        clf = quick(net, verbose=0).fit(X, y, meta=meta)
        assert "event_left" not in clf.history_[-1]
    assert capsys.readouterr() == ("", "")
    assert bars == []


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("train_split", [None, ValidSplit(3)])
def test_the_table_stays_aligned(capsys, few, train_split):
    """Header, rule and rows are equally wide, and numbers end below their title."""
    X, y, meta = few
    net = small_net(verbose=1, max_epochs=3, train_split=train_split)
    quick(net, max_epochs=2).fit(X, y, meta=meta)
    header, rule, *rows = table_lines(capsys.readouterr().out)
    assert len(rows) == 5
    assert {len(line) for line in rows} == {len(header)} == {len(rule)}
    end = header.index("left") + len("left")
    shown = [row[:end].split()[-1] for row in rows]
    assert shown == ["2400", "1800", "1200", "600", "0"]
    assert header.split()[-2:] == ["left", "dur"]


@pytest.mark.usefixtures("clock")
def test_seconds_left_by_the_pace_of_the_stage(few):
    X, y, meta = few
    clf = quick(small_net(verbose=1, max_epochs=2), max_epochs=3).fit(X, y, meta=meta)
    assert clf.history_[:, "event_left"] == [2400, 1800, 1200, 600, 0]


def test_seconds_left_forgets_the_pace_of_the_stage_before(monkeypatch):
    """Slow epochs in stage 1, quick ones in stage 2."""
    times = iter([10, 110, 210, 1000, 1001, 1004])
    monkeypatch.setattr("sk_otreweight.progress.perf_counter", times.__next__)
    net = small_net()  # silent: it is told of epochs, but records nothing
    progress, left = Progress((2, 3)), []
    for stage in (1, 2):
        progress.begin_stage(stage)
        for _ in range(2):
            progress.end_epoch(net)
            left.append(progress.seconds_left())
    assert left == [400, 300, 2, 2]


def test_callbacks_that_log_numbers_leave_the_column_out(few):
    X, y, meta = few
    logged = set()

    class Writer:
        def add_scalar(self, tag, scalar_value, global_step):
            logged.add(tag)

        def close(self):
            pass

    net = small_net(verbose=1, max_epochs=1, callbacks=[TensorBoard(Writer())])
    clf = quick(net, max_epochs=1).fit(X, y, meta=meta)
    assert clf.history_[:, "event_left"] == [pytest.approx(0, abs=60), 0]
    assert "Loss/train_loss" in logged
    assert not any("left" in tag for tag in logged)
