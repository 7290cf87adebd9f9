"""Checkpoints under real faults: processes that are killed, disks that are full."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import warnings

import numpy as np
import pytest
from checkpoint_helpers import assert_same_fit, net_with
from classifier_helpers import quick
from nets_for_tests import (
    NormDropoutMLP,
    long_tailed_digits,
    small_net,
)
from skorch.callbacks import (
    Callback,
)

from sk_otreweight import (
    OTReweightedClassifier,
)
from sk_otreweight.persistence.file import opened

N_KILLS = 20
FORKS = multiprocessing.get_context("fork")


def kill_fit():
    """Return a fit that is long enough to be killed in the midst of."""
    net = small_net(NormDropoutMLP, max_epochs=6, batch_size=16)
    return OTReweightedClassifier(net, weights="vector", max_epochs=6, random_state=0)


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
