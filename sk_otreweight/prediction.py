"""Probabilities of a row that do not depend on its company."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor
from torch.utils.data import Dataset

from sk_otreweight.inputs import LabelledDataset, copied, n_bytes, n_rows, padded
from sk_otreweight.loaders import RowLoader
from sk_otreweight.randomness import untouched
from sk_otreweight.wrappers import variant

# Batches are filled up to a multiple of this: other numbers of rows round differently.
_UNIT_ROWS = 128
# A call of the net has a price of its own: a batch has as many rows as have so many
# bytes together, or as a training batch. More would be slower on a CPU, as they leave
# its cache. Elsewhere, where a call waits longer, it has as many as so many of these.
_BATCH_BYTES, _MOST_ROWS, _TRAINING_BATCHES = 2**19, 2**12, 8
# Probabilities that are scaled at a time, so that they stay in the cache.
_BLOCK_ENTRIES = 2**15


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
    n = n_rows(X)
    if _is_configured(net) or isinstance(X, Dataset):  # its loader makes the batches
        with untouched():
            outputs = net.predict_proba(_filled_up(net, X))
    else:
        device = next(net.module_.parameters(), torch.empty(0)).device
        least = net.batch_size * (1 if device.type == "cpu" else _TRAINING_BATCHES)
        batches = _Batches(X, least)
        loaded = variant(net, get_iterator=lambda *args, **kwargs: batches)
        outputs = loaded.predict_proba(X)
    return as_probabilities(outputs[:n])


def _is_configured(net: NeuralNet) -> bool:
    """Return whether the user has a say in how rows to predict are loaded."""
    return (
        net.iterator_valid is not RowLoader
        or "batch_size" in net.get_params_for("iterator_valid")
        or type(net).get_iterator is not NeuralNet.get_iterator
    )


def _filled_up(net: NeuralNet, X: Any) -> Any:
    """Return as many rows as fill the net's own batches."""
    n = n_rows(X)
    if isinstance(X, Dataset):
        X = LabelledDataset(X, np.zeros(n, dtype=np.int64))  # labels may be missing
    size = net.get_params_for("iterator_valid").get("batch_size", net.batch_size)
    return padded(X, max(size, 1) * -(-n // max(size, 1)))


class _Batches:
    """Batches to predict, in order; the last one is filled up.

    Parameters
    ----------
    X : inputs
        Not a data set.
    least : int
        Rows that a batch has at least, if there are as many.
    """

    def __init__(self, X: Any, least: int):
        self.X, self.n = X, n_rows(X)
        rows = min(_MOST_ROWS, _BATCH_BYTES * self.n // max(n_bytes(X), 1))
        rows = max(rows, least)
        self.rows = _UNIT_ROWS * max(1, rows // _UNIT_ROWS)
        # What skorch stands in for labels when only predicting.
        self.labels = torch.zeros(min(self.rows, _UNIT_ROWS * -(-self.n // _UNIT_ROWS)))

    def __len__(self) -> int:
        return -(-self.n // self.rows)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for start in range(0, self.n, self.rows):
            stop = min(start + self.rows, self.n)
            batch = copied(self.X, slice(start, stop))
            if (stop - start) % _UNIT_ROWS:
                filled = _UNIT_ROWS * -(-(stop - start) // _UNIT_ROWS)
                batch = padded(batch, filled)
            yield batch, self.labels[: n_rows(batch)]


def as_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return outputs as probabilities in float64, by a softmax if they are scores.

    skorch knows how to make probabilities under some criteria; under all others it
    returns what the module does.

    Parameters
    ----------
    outputs : ndarray of shape (n, K), or (n,) or (n, 1) for two classes
    """
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1).astype(np.float64)
        if (second < 0).any() or (second > 1).any():
            second = torch.from_numpy(second).sigmoid().numpy()
        return np.stack([1 - second, second], axis=1)
    n, n_classes = outputs.shape
    probabilities, ones = np.empty((n, n_classes)), np.ones(n_classes)
    n_together = max(1, _BLOCK_ENTRIES // n_classes)
    for start in range(0, n, n_together):
        rows = slice(start, start + n_together)
        block = probabilities[rows]
        block[:] = outputs[rows]
        totals = block @ ones
        if block.min() < 0 or np.abs(totals - 1).max() > 1e-2:
            return torch.from_numpy(outputs.astype(np.float64)).softmax(1).numpy()
        block /= totals[:, None]
    return probabilities
