"""Which training rows are drawn, and in what order."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, column_or_1d

from sk_otreweight._validation import check_is_of_training


def training_rows(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    """Return labels, weights, costs and points of the rows that a classifier knows.

    Parameters
    ----------
    estimator : OTReweightedClassifier
    X, y : inputs and labels that it was fitted on
    """
    check_is_fitted(estimator, "sample_weight_")
    y = column_or_1d(y)
    check_is_of_training(len(y), len(estimator.sample_weight_))
    problem = estimator.transport_problem(X, y)
    return {"y": y, "sample_weight": estimator.sample_weight_, **problem}


def shown_rows(y: np.ndarray, sample_weight: np.ndarray, max_rows: int) -> np.ndarray:
    """Return row numbers by class, and by weight within a class.

    Frequent classes come first, and rows of small weight. If there are more than
    `max_rows`, the most frequent classes are thinned out evenly, down to as many rows
    as the others have, and so on.

    Parameters
    ----------
    y : ndarray of shape (n_samples,)
    sample_weight : ndarray of shape (n_samples,)
    max_rows : int
        Each class keeps one row in any case.

    Returns
    -------
    rows : ndarray of shape (n_shown,)
    """
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    most = _most_of_a_class(counts, max_rows)
    shown = []
    for k in np.argsort(-counts, kind="stable"):
        rows = np.flatnonzero(codes == k)
        rows = rows[np.argsort(sample_weight[rows], kind="stable")]
        places = np.linspace(0, len(rows) - 1, min(most, len(rows)))
        shown.append(rows[np.round(places).astype(int)])
    return np.concatenate(shown)


def _most_of_a_class(counts: np.ndarray, max_rows: int) -> int:
    """Return how many rows of a class are kept so that all are at most `max_rows`."""
    sizes = np.arange(1, counts.max() + 1)
    ordered = np.sort(counts)
    # Rows that are left if at most so many of a class are kept.
    is_small = np.searchsorted(ordered, sizes, side="right")
    sums = np.concatenate([[0], np.cumsum(ordered)])
    left = sums[is_small] + (len(counts) - is_small) * sizes
    return max(1, int((left <= max_rows).sum()))


def class_spans(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the label, the first place and the place after the last of each run."""
    starts = np.flatnonzero(np.r_[True, y[1:] != y[:-1]])
    return y[starts], starts, np.r_[starts[1:], len(y)]
