"""Probabilities of a row that do not depend on its company."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from torch.utils.data import Dataset

from sk_otreweight.extraction import replaced
from sk_otreweight.inputs import LabelledDataset, n_rows, padded, take
from sk_otreweight.loaders import RowLoader

# Batches are filled up to a multiple of this: other numbers of rows round differently.
_UNIT_ROWS = 128
# Rows of a batch, as a multiple of those of a training batch: without a graph they take
# less memory, and a call of the net has a price of its own.
_TRAINING_BATCHES = 8


def predict_proba(net: NeuralNet, X: Any) -> np.ndarray:
    """Return the class probabilities (n, K) of some rows, in float64.

    In batches of the size that the user configured for ``iterator_valid``, or else of a
    size chosen here.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    X : inputs
        In the dtype of the net.
    """
    n, configured = n_rows(X), _configured_rows(net)
    if isinstance(X, Dataset):  # its loader makes the batches; labels may be missing
        X = LabelledDataset(X, np.zeros(n, dtype=np.int64))
        configured = configured or net.batch_size
    rows = unit = configured
    if configured is None:
        unit = _UNIT_ROWS
        rows = unit * max(1, _TRAINING_BATCHES * net.batch_size // unit)
    rows, unit = (size if size > 0 else max(n, 1) for size in (rows, unit))
    n_whole = n - n % rows
    outputs = []
    if n_whole:
        with nullcontext() if configured else replaced(net, batch_size=rows):
            outputs.append(net.predict_proba(take(X, slice(n_whole))))
    if n > n_whole:
        rest = take(X, slice(n_whole, n))
        rest = padded(rest, unit * -(-n_rows(rest) // unit))
        with nullcontext() if configured else replaced(net, batch_size=n_rows(rest)):
            outputs.append(net.predict_proba(rest)[: n - n_whole])
    return as_probabilities(np.concatenate(outputs).astype(np.float64))


def _configured_rows(net: NeuralNet) -> int | None:
    """Return the batch size of a user's own loader, None if we may choose."""
    given = net.get_params_for("iterator_valid").get("batch_size")
    if given is None and net.iterator_valid is not RowLoader:
        return net.batch_size
    return given


def as_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return outputs as probabilities, by a softmax if they are scores.

    skorch knows how to make probabilities under some criteria; under all others it
    returns what the module does.

    Parameters
    ----------
    outputs : ndarray of shape (n, K), or (n,) or (n, 1) for two classes
    """
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1)
        if (second < 0).any() or (second > 1).any():
            second = torch.from_numpy(second).sigmoid().numpy()
        return np.stack([1 - second, second], axis=1)
    totals = outputs.sum(axis=1, keepdims=True)
    if (outputs < 0).any() or (np.abs(totals - 1) > 1e-2).any():
        return torch.from_numpy(outputs).softmax(1).numpy()
    return outputs / totals
