"""Several processes that train one net come to what one process does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nets_for_tests import small_net
from processes_for_tests import left_behind, run
from sklearn.datasets import make_classification
from torch import nn

from sk_otreweight import BASELINES, OTReweightedClassifier, WeightStrategy
from sk_otreweight.processes import Processes, device_of

WORKER = Path(__file__).parent / "distributed_worker.py"
EXAMPLE = Path(__file__).parent.parent / "examples" / "several_gpus.py"
# Other problems, or other rows in a batch, than a single process has.
DIFFERENT = ("vector, apart", "net, apart", "no seed", "batch norm", "uneven")
FIGURES = ("weights", "probabilities", "losses", "ess")


def launch(script, *arguments, processes, **variables):
    """Run a script in some processes and return what it printed."""
    launcher = "-m", "torch.distributed.run", "--standalone"
    launcher += "--nproc-per-node", processes
    return run(*launcher, script, *arguments, **variables)


# One test, so that the fits are made once.
@pytest.mark.slow
def test_two_processes_come_to_what_one_does(tmp_path):
    for processes in (1, 2):
        launch(WORKER, tmp_path, processes=processes)
        assert not left_behind(WORKER.name, str(tmp_path))
    launch(WORKER, tmp_path / "bf16", processes=1, ACCELERATE_MIXED_PRECISION="bf16")
    names = ("1_0", "2_0", "2_1", "bf16/1_0")
    found = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    one, *two, lower = found
    check_same_as_one(one, two)
    check_same_in_both(*two)
    check_messages(one, two)
    check_lower_precision(one, lower)


def check_same_as_one(one, two):
    names = set(one) - {"messages", *DIFFERENT}
    assert len(names) >= 15
    for name in names:
        for found in two:
            assert found[name]["epochs"] == one[name]["epochs"]
            for figure in FIGURES:
                np.testing.assert_allclose(
                    found[name][figure],
                    one[name][figure],
                    rtol=1e-5,
                    atol=1e-5,
                    err_msg=f"{name}: {figure}",
                )


def check_same_in_both(first, second):
    for name in set(first) - {"messages"}:
        assert first[name] == second[name], name
    assert np.isfinite(first["uneven"]["weights"]).all()
    # Problems of half a batch have other solutions.
    apart, together = first["vector, apart"], first["vector"]
    assert np.abs(np.subtract(apart["weights"], together["weights"])).max() > 0.1


def check_messages(one, two):
    """What processes cannot do together is an error in all of them."""
    assert one["messages"] == [None, None, None]
    for found in two:
        data, step, baseline = found["messages"]
        assert "'n_rows': [512, 511]" in data
        assert "virtual_step='exact'" in step
        assert baseline.startswith("CrossEntropyClassifier trains in one process")


def check_lower_precision(one, lower):
    assert len(lower) == 4
    for name, found in lower.items():
        assert found != one[name]
        np.testing.assert_allclose(
            found["probabilities"], one[name]["probabilities"], atol=0.05
        )


@pytest.mark.slow
def test_the_example_trains_in_two_processes_and_prints_once():
    one, two = (launch(EXAMPLE, processes=n, CUDA_VISIBLE_DEVICES="") for n in (1, 2))
    assert one.count("balanced accuracy") == two.count("balanced accuracy") == 1
    scores = [float(text.split(":")[1]) for text in (one, two)]
    assert min(scores) > 0.8
    assert not left_behind(str(EXAMPLE))


class TwoProcesses:
    """Stands for an accelerator: the other process has the same, and 1 more."""

    num_processes, process_index = 2, 0
    device = torch.device("cpu")

    def gather(self, x):
        return torch.cat([x, x + 1])

    def reduce(self, x, reduction):
        assert reduction == "mean"
        return x + 0.5


def two_processes(net):
    net.accelerator = TwoProcesses()
    return net


def test_one_process_has_all_by_itself():
    alone, x = Processes.of(nn.Linear(1, 1)), torch.arange(3)
    assert (alone.n, alone.rank, alone.are_several) == (1, 0, False)
    assert alone.gather(x) is alone.own(x) is alone.mean(x) is x
    assert (alone.first(7), alone.mean_of(0.5), alone.any(False)) == (7, 0.5, False)
    alone.check_alike(n_rows=3)
    alone.check_is_wrapped(nn.Linear(1, 1))


def test_what_processes_exchange():
    both = Processes(TwoProcesses())
    x = torch.tensor([1.0, 2.0])
    assert both.gather(x).tolist() == [1.0, 2.0, 2.0, 3.0]
    assert both.own(both.gather(x)).tolist() == [1.0, 2.0]
    assert (both.first(7), both.mean_of(0.5), both.any(False)) == (7, 1.0, True)


def test_gradients_are_averaged_where_no_wrapper_does():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    with Processes(TwoProcesses()).averaged_gradients(module):
        module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad.tolist() == [[1.5, 1.5]]
    module.zero_grad()
    module(torch.ones(1, 2)).sum().backward()  # no longer
    assert module.weight.grad.tolist() == [[1.0, 1.0]]


def test_data_that_differ_between_processes_are_named():
    with pytest.raises(ValueError, match=r"\{'n_rows': \[5, 6\]\}"):
        Processes(TwoProcesses()).check_alike(n_rows=5)


def test_a_net_that_no_wrapper_averages_is_an_error():
    with pytest.raises(ValueError, match="unwrap_after_train=False"):
        Processes(TwoProcesses()).check_is_wrapped(nn.Linear(1, 1))


def test_estimators_that_train_in_one_process_say_so():
    X, y = make_classification(60, weights=[0.8], random_state=0)
    clf = BASELINES["ce"](two_processes(small_net()))
    with pytest.raises(ValueError, match="CrossEntropyClassifier trains in one"):
        clf.fit(X, y)
    clf = OTReweightedClassifier(two_processes(small_net()), virtual_step="exact")
    with pytest.raises(ValueError, match="virtual_step='exact' is not available"):
        clf.fit(X, y)


def test_a_strategy_that_cannot_exchange_says_what_to_do():
    class Own(WeightStrategy):
        def log_weights(self, rows):
            return torch.zeros(len(rows.labels))

    with pytest.raises(NotImplementedError, match="gather_features=True"):
        Own().synchronise(None, Processes())


def test_the_device_is_that_of_the_accelerator_if_the_net_names_none():
    net = two_processes(small_net())
    assert device_of(net) == "cpu"
    net.device = None
    assert device_of(net) == torch.device("cpu")
    assert device_of(nn.Linear) is None
