"""Copies of nets that go on logging to where the user's net logs."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_DATA = (
    *(type(None), bool, int, float, complex, str, bytes, os.PathLike, type),
    *(np.ndarray, np.generic, Tensor),
)
_TRAINED = (BaseEstimator, nn.Module, Optimizer, LRScheduler)


def clone_net(net: NeuralNet) -> NeuralNet:
    """Return an uninitialised net with the same parameters.

    As scikit-learn's ``clone``, but callbacks are copied. They need not be made for
    ``clone``, may refer to each other, and what they log to (a run, a writer, a client)
    is the same object, not a copy: the user would never see what a copy gets, and many
    cannot be copied. Their state is reset when the net is initialised, as always.
    """
    params = net.get_params(deep=False)
    own = [name for name in params if name.split("__")[0] == "callbacks"]
    callbacks = {name: params.pop(name) for name in own}
    # An accelerator stands for processes, of which there are no copies.
    shared = {name: params.pop(name) for name in ("accelerator",) if name in params}
    cloned = {name: clone(value, safe=False) for name, value in params.items()}
    callbacks = copy.deepcopy(callbacks, _shared(callbacks))
    return type(net)(**cloned, **shared, **callbacks)


def copy_net(net: NeuralNet) -> NeuralNet:
    """Return a deep copy of an initialised net that logs to the same objects.

    Attribute by attribute: skorch's own way is by pickle, which parametrized modules
    refuse.
    """
    copied = object.__new__(type(net))
    known = _shared([net.callbacks_, net.callbacks]) | {id(net): copied}
    vars(copied).update(copy.deepcopy(vars(net), known))
    return copied


@contextmanager
def restored_on_error(net: NeuralNet) -> Iterator[None]:
    """Give a net its parameters, its optimizer's state and its history back on errors.

    What a chunk of a stream costs beside its training; a copy of the whole net would
    cost more, and optimizers such as LBFGS cannot be copied.
    """
    parts = [part for part in vars(net).values() if _has_state(part)]
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    epochs = list(net.history)
    try:
        yield
    except BaseException:
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        net.history[:] = epochs
        raise


def _has_state(part: Any) -> bool:
    return hasattr(part, "load_state_dict") and not isinstance(part, type)


def _shared(callbacks: Any) -> dict[int, Any]:
    """Return what is outside of the training as deepcopy's memory of what is copied."""
    return {id(handle): handle for handle in _handles(callbacks)}


def _handles(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the objects outside of the training that callbacks refer to."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (*_DATA, *_TRAINED)):
        return
    seen.add(id(value))
    parts = _parts(value)
    if parts is None:
        yield value
        return
    for part in parts:
        yield from _handles(part, seen)


def _parts(value: Any) -> Iterable[Any] | None:
    """Return what a value consists of, or None if it is to be taken as a whole."""
    if isinstance(value, Callback):
        return [
            part
            for name, part in vars(value).items()
            if not (name.endswith("_") and _can_be_copied(part))  # state
        ]
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set)):
        return value
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return None


def _can_be_copied(value: Any) -> bool:
    if isinstance(value, (*_DATA, *_TRAINED)):
        return True
    try:
        copy.deepcopy(value)
    except Exception:  # what an open file or a connection raises is its own choice
        return False
    return True
