"""Checks of what is to be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length, column_or_1d


def check_row_weights(y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and weights of the same length, weights finite and not negative."""
    y = column_or_1d(y)
    weights = np.asarray(column_or_1d(sample_weight), dtype=np.float64)
    check_consistent_length(y, weights)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(
            "sample_weight must hold finite numbers >= 0; the smallest is "
            f"{weights.min()}."
        )
    return y, weights


def check_cost_table(cost: Any, *, n_rows: int) -> np.ndarray:
    """Return a cost matrix (n, m) of finite numbers, a row for each row of the data."""
    table = np.asarray(cost, dtype=np.float64)
    if table.ndim != 2 or len(table) != n_rows or not np.isfinite(table).all():
        raise ValueError(
            f"cost has shape {table.shape}; expected finite numbers of shape "
            f"(n_samples, n_points) with n_samples = {n_rows}."
        )
    return table


def check_point_labels(point_labels: Any, *, n_points: int) -> np.ndarray:
    """Return the labels of the points of Q, one each."""
    labels = column_or_1d(point_labels)
    if len(labels) != n_points:
        raise ValueError(
            f"{len(labels)} point_labels were given for the {n_points} columns of "
            "cost: give one per point."
        )
    return labels


def check_is_of_training(n_rows: int, n_weights: int) -> None:
    """Raise unless rows come with a weight each."""
    if n_rows != n_weights:
        raise ValueError(
            f"{n_rows} rows were given, but the estimator was fitted on {n_weights}: "
            "give the X and y of fit, whose weights it knows."
        )
