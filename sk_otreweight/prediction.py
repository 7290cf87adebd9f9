"""Probabilities of a row that do not depend on its company."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from torch.utils.data import Dataset

from sk_otreweight.inputs import LabelledDataset, n_rows, padded, take

# Batches have this many rows always, the last one is filled up: matrix products of
# another number of rows round differently.
_BATCH_ROWS = 128


def predict_proba(net: NeuralNet, X: Any) -> np.ndarray:
    """Return the class probabilities (n, K) of some rows, in float64.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    X : inputs
        In the dtype of the net.
    """
    n = n_rows(X)
    if isinstance(X, Dataset):  # its loader makes the batches
        size = net.get_params_for("iterator_valid").get("batch_size", net.batch_size)
        X = LabelledDataset(X, np.zeros(n, dtype=np.int64))  # labels may be missing
        whole = padded(X, max(size, 1) * -(-n // max(size, 1)))
        outputs = [net.predict_proba(whole)[:n]]
    else:
        batches = (
            take(X, slice(start, start + _BATCH_ROWS))
            for start in range(0, n, _BATCH_ROWS)
        )
        outputs = [
            net.predict_proba(padded(batch, _BATCH_ROWS))[: n_rows(batch)]
            for batch in batches
        ]
    return as_probabilities(np.concatenate(outputs).astype(np.float64))


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
