"""What goes wrong around a fit: it ends in an error, and what was before stays."""

from __future__ import annotations

import gc
import multiprocessing
import os

import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import SmallMLP, small_net
from skorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

from sk_otreweight import (
    Reweighter,
    SinkhornSolver,
    WeightVector,
    load,
    semirelaxed_weights,
)


class BadGradient(torch.autograd.Function):
    """Returns what it is given, and a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


class BrokenMLP(SmallMLP):
    """Has infinite gradients from some training step on, and finite losses."""

    def __init__(self, n_features, n_classes, fails_at):
        super().__init__(n_features, n_classes)
        self.fails_at, self.n_steps = fails_at, 0

    def forward(self, X):
        scores = super().forward(X)
        if self.training and torch.is_grad_enabled():
            self.n_steps += 1
            if self.n_steps >= self.fails_at:
                return BadGradient.apply(scores)
        return scores


class RaiseAt(Callback):
    """Raises in an epoch, at a place."""

    def __init__(self, epoch, place):
        self.epoch, self.place = epoch, place

    def _raise(self, net, place):
        if place == self.place and len(net.history) == self.epoch:
            raise ZeroDivisionError("a fault of the callback")

    def on_batch_begin(self, net, training, **kwargs):
        self._raise(net, "batch")

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self._raise(net, "gradient")

    def on_epoch_end(self, net, **kwargs):
        self._raise(net, "epoch")


class BadRows(Dataset):
    """Ends the process that asks for a row, or raises."""

    def __init__(self, X, y, bad_row, dies):
        self.X, self.y, self.bad_row, self.dies = X, y, bad_row, dies

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        if row == self.bad_row and torch.utils.data.get_worker_info() is not None:
            if self.dies:
                os._exit(3)
            raise OSError("the file of this row is gone")
        return self.X[row], self.y[row]


def assert_keeps_what_was(clf, broken, few, error, match, **fit_params):
    """Fit a good net, then one that fails: the first goes on as if nothing had been."""
    X, y, meta = few
    clf.fit(X, y, meta=meta)
    before, attributes = clf.predict_proba(X), dict(vars(clf))
    clf.set_params(net=broken)
    with pytest.raises(error, match=match):
        clf.fit(**{"X": X, "y": y, "meta": meta} | fit_params)
    assert {k: v for k, v in vars(clf).items() if k != "net"} == {
        k: v for k, v in attributes.items() if k != "net"
    }
    np.testing.assert_array_equal(clf.predict_proba(X), before)


@pytest.mark.parametrize(
    ("n_steps", "stage", "finetune"),
    [(1, 1, "all"), (6, 1, "head"), (6, 1, "all"), (7, 2, "all"), (12, 2, "all")],
)
def test_gradients_that_are_not_finite(n_steps, stage, finetune, few):
    """Also in the last step of all, after which no loss would tell."""
    X = few[0]
    size = -(-len(X) // 3)
    broken = small_net(
        BrokenMLP, module__fails_at=n_steps, max_epochs=2, batch_size=size
    )
    clf = quick(finetune=finetune)
    match = f"(parameter .* became|loss became).* stage {stage}"
    assert_keeps_what_was(clf, broken, few, FloatingPointError, match)


@pytest.mark.parametrize("place", ["batch", "gradient", "epoch"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_callback_that_raises(epoch, place, few):
    broken = small_net(max_epochs=2, callbacks=[RaiseAt(epoch, place)])
    assert_keeps_what_was(quick(), broken, few, ZeroDivisionError, "a fault of the")


@pytest.mark.parametrize(
    ("dies", "error", "match"),
    [
        (True, RuntimeError, "worker .* exited unexpectedly"),
        (False, OSError, "the file of this row is gone"),
    ],
)
def test_a_loader_whose_worker_fails(dies, error, match, few):
    X, y, _ = few
    before = set(multiprocessing.active_children())
    broken = small_net(
        max_epochs=2, iterator_train=DataLoader, iterator_train__num_workers=1
    )
    rows = BadRows(X, y, bad_row=len(y) - 1, dies=dies)
    assert_keeps_what_was(quick(), broken, few, error, match, X=rows, y=None)
    gc.collect()  # what the traceback held
    assert set(multiprocessing.active_children()) <= before


def test_a_model_that_was_cut_off_while_it_was_copied(few, tmp_path):
    path = tmp_path / "model"
    quick().fit(*few[:2]).save(path)
    content = path.read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="damaged"):
            load(path)


# --- a device that is full ------------------------------------------------------------


def full_above(size, compute):
    """Return a function that runs out of memory for more than `size` rows."""

    def limited(rows):
        result = compute(rows)
        if len(result) > size:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return result

    return limited


@pytest.mark.parametrize("size", [1, 7, 60])
def test_the_closed_form_takes_smaller_blocks_on_a_full_device(size):
    C = torch.rand(100, 5, generator=torch.Generator().manual_seed(0))
    b = torch.full((5,), 0.2)
    cost = full_above(size, lambda rows: C[rows])
    found = semirelaxed_weights(cost, b, 0.1, n_rows=100)
    torch.testing.assert_close(found, semirelaxed_weights(C, b, 0.1))


def test_a_device_that_is_full_says_what_to_do():
    cost = full_above(0, lambda rows: torch.ones(100, 5)[rows])
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        semirelaxed_weights(cost, torch.full((5,), 0.2), 0.1, n_rows=100)
    assert "fewer points" in caught.value.__notes__[0]


class SmallDevice(SinkhornSolver):
    """Runs out of memory for more problems at a time than `most`."""

    most = 3

    def solve_problem(self, problem, reg):
        n_problems = len(problem.C) if problem.C.ndim == 3 else 1
        if n_problems > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return super().solve_problem(problem, reg)


@pytest.mark.parametrize("most", [1, 3])
def test_batches_are_solved_apart_on_a_full_device(most, monkeypatch):
    monkeypatch.setattr(SmallDevice, "most", most)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(80, 4, generator=generator), torch.arange(80) % 3
    found = []
    for solver in (SinkhornSolver(), SmallDevice()):
        reweighter = Reweighter(weights=WeightVector(n_steps=2), solver=solver)
        reweighter.set_meta(torch.arange(3), features[:3])
        reweighter.set_training_set(labels, features)
        reweighter.update_epoch(features, list(torch.arange(80).split(8)))
        found.append(reweighter.weights(features, labels))
    torch.testing.assert_close(found[1], found[0])
    assert found[0].std() > 0.01
    monkeypatch.setattr(SmallDevice, "most", 0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        reweighter.update_epoch(features, list(torch.arange(80).split(8)))
