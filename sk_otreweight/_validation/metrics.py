"""Arguments of the metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_array


def check_thresholds(thresholds: Any, *, most: float) -> tuple[float, float]:
    """Return two numbers 0 <= low <= high <= `most`."""
    given = np.asarray(thresholds)
    fits = given.shape == (2,) and given.dtype.kind in "iuf"
    if not (fits and 0 <= given[0] <= given[1] <= most):
        limit = "" if most == np.inf else f" <= {most:g}"
        raise ValueError(
            f"thresholds={thresholds!r} is not valid: give two numbers, "
            f"0 <= low <= high{limit}."
        )
    return float(given[0]), float(given[1])


def check_probabilities(y_proba: Any, *, n_rows: int, n_classes: int) -> np.ndarray:
    """Return probabilities as a table (n, K), whose rows sum up to 1."""
    table = check_array(y_proba, ensure_2d=False, dtype=[np.float64, np.float32])
    if table.ndim == 1:
        table = np.stack([1 - table, table], axis=1)
    if table.shape != (n_rows, n_classes):
        raise ValueError(
            f"y_proba has shape {table.shape} for {n_rows} labels of {n_classes} "
            "classes: give one row per label and one column per class. Pass labels= "
            "if y_true lacks some class."
        )
    if (table < 0).any() or np.abs(table.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError(
            "y_proba must hold probabilities: entries >= 0, rows that sum up to 1."
        )
    return table
