"""Fits that are cut short, and compared with whole ones."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from nets_for_tests import (
    small_net,
)

from sk_otreweight.persistence import FitCheckpoint
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
