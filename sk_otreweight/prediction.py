"""Probabilities of a row that do not depend on its company."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from torch import Tensor, nn
from torch.utils.data import Dataset

from sk_otreweight.inputs import (
    LabelledDataset,
    copied,
    n_bytes,
    n_rows,
    padded,
    take,
)
from sk_otreweight.loaders import RowLoader
from sk_otreweight.randomness import untouched
from sk_otreweight.wrappers import alone, original, variant

# Batches are filled up to a multiple of this: other numbers of rows round differently.
_UNIT_ROWS = 128
# A call of the net has a price of its own: a batch has as many rows as have so many
# bytes together, or as a training batch. More would be slower on a CPU, as they leave
# its cache. Elsewhere, where a call waits longer, it has as many as so many of these.
_BATCH_BYTES, _MOST_ROWS, _TRAINING_BATCHES = 2**19, 2**12, 8
# Probabilities that are scaled at a time, so that they stay in the cache.
_BLOCK_ENTRIES = 2**15
# Rows that are looked at to see whether a net returns scores or probabilities.
_SEEN_ROWS = 2**10
# Criteria under which skorch makes probabilities of what the module returns.
_KNOWN_CRITERIA = nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.BCELoss


def predict_proba(
    net: NeuralNet, X: Any, *, are_scores: bool | None = None
) -> np.ndarray:
    """Return the class probabilities (n, K) of some rows, in float64.

    In batches of the size that the user configured for ``iterator_valid``, or else of a
    size chosen here.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    X : inputs
        In the dtype of the net.
    are_scores : bool, default=None
        What `returns_scores` said of the training rows; None asks the rows of `X`.
    """
    outputs = _outputs(net, X)
    if are_scores is None:
        are_scores = _are_scores(outputs)
    return as_probabilities(outputs, are_scores)


def returns_scores(net: NeuralNet, X: Any) -> bool:
    """Return whether what a net predicts are scores, not probabilities.

    skorch knows how to make probabilities under some criteria. Under all others it
    returns what the module does, which is known by the values: once for all rows,
    as a few of them may have scores that could be probabilities.

    Parameters
    ----------
    net : skorch.NeuralNet
        Trained.
    X : inputs
        The training rows.
    """
    if _has_known_probabilities(net):
        return False
    every = slice(None, None, -(-n_rows(X) // _SEEN_ROWS))
    with alone(net):
        return _are_scores(_outputs(net, take(X, every)))


def _has_known_probabilities(net: NeuralNet) -> bool:
    """Return whether skorch makes probabilities by the criterion."""
    modules = [part for part in vars(net).values() if isinstance(part, nn.Module)]
    return (
        isinstance(original(net.criterion_), _KNOWN_CRITERIA)
        and len(modules) == 2  # no second criterion
        and net.predict_nonlinearity == "auto"
        and type(net).predict_proba.__module__.startswith("skorch.")
    )


def _outputs(net: NeuralNet, X: Any) -> np.ndarray:
    """Return what the net predicts for some rows, (n, K) or (n,)."""
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
    return outputs[:n]


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


def _are_scores(outputs: np.ndarray) -> bool:
    """Return whether outputs cannot be probabilities."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return bool(((outputs < 0) | (outputs > 1)).any())
    totals = outputs.sum(1, dtype=np.float64)
    return bool((outputs < 0).any() or (np.abs(totals - 1) > 1e-2).any())


def as_probabilities(outputs: np.ndarray, are_scores: bool) -> np.ndarray:
    """Return outputs as probabilities in float64, by a softmax if they are scores.

    Parameters
    ----------
    outputs : ndarray of shape (n, K), or (n,) or (n, 1) for two classes
    are_scores : bool
    """
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1).astype(np.float64)
        # A softmax takes rows one by one, a sigmoid of few is rounded differently.
        first = np.zeros_like(second) if are_scores else 1 - second
        outputs = np.stack([first, second], axis=1)
        if not are_scores:
            return outputs
    if are_scores:
        return torch.from_numpy(outputs.astype(np.float64)).softmax(1).numpy()
    n, n_classes = outputs.shape
    probabilities, ones = np.empty((n, n_classes)), np.ones(n_classes)
    n_together = max(1, _BLOCK_ENTRIES // n_classes)
    for start in range(0, n, n_together):
        rows = slice(start, start + n_together)
        block = probabilities[rows]
        block[:] = outputs[rows]
        block /= (block @ ones)[:, None]
    return probabilities
