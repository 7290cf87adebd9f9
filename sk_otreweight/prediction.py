"""Probabilities of a row that do not depend on its company."""

from __future__ import annotations

from typing import Any

import numpy as np
from skorch import NeuralNet
from torch.utils.data import Dataset

from sk_otreweight.inputs import n_rows, padded, take

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
    probabilities = np.concatenate(outputs).astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)
