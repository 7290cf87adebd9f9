"""Copies of nets that go on logging to where the user's net logs."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import clone
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

_DATA = (
    *(type(None), bool, int, float, complex, str, bytes, os.PathLike),
    *(list, tuple, dict, set, np.ndarray, np.generic, Tensor, nn.Module, type),
)


def clone_net(net: NeuralNet) -> NeuralNet:
    """Return an uninitialised net with the same parameters.

    As scikit-learn's ``clone``, except that what a callback logs to (a run, a writer, a
    client) is the same object, not a copy: the user would never see what a copy gets,
    and many cannot be copied.
    """
    params = net.get_params(deep=False)
    callbacks = params.pop("callbacks", None)
    if isinstance(callbacks, (list, tuple)):
        callbacks = [_clone_entry(entry) for entry in callbacks]
    copied = {name: clone(value, safe=False) for name, value in params.items()}
    return type(net)(**copied, callbacks=callbacks)


def copy_net(net: NeuralNet) -> NeuralNet:
    """Return a deep copy of an initialised net that logs to the same objects."""
    callbacks = [callback for _, callback in net.callbacks_]
    if isinstance(net.callbacks, (list, tuple)):
        callbacks += [_callback_of(entry) for entry in net.callbacks]
    shared = [handle for callback in callbacks for handle in _handles(callback)]
    return copy.deepcopy(net, {id(handle): handle for handle in shared})


def _clone_entry(entry: Any) -> Any:
    """Clone an entry of a list of callbacks: a callback, or a name and a callback."""
    callback = _callback_of(entry)
    if isinstance(callback, Callback):
        shared = list(_handles(callback))
        params = {
            name: value
            if any(value is handle for handle in shared)
            else clone(value, safe=False)
            for name, value in callback.get_params(deep=False).items()
        }
        callback = type(callback)(**params)
    return (entry[0], callback) if isinstance(entry, (list, tuple)) else callback


def _callback_of(entry: Any) -> Any:
    return entry[1] if isinstance(entry, (list, tuple)) else entry


def _handles(callback: Any) -> Iterator[Any]:
    """Yield the parameters of a callback that are objects outside of the training."""
    if isinstance(callback, Callback):
        for value in callback.get_params(deep=False).values():
            if not isinstance(value, _DATA) and not hasattr(value, "get_params"):
                yield value
