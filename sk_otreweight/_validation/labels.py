"""Class labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_array, column_or_1d


def encode_labels(y: np.ndarray, classes: np.ndarray, *, name: str) -> np.ndarray:
    """Encode labels as positions in the sorted array `classes`.

    Raises
    ------
    ValueError
        If a label is not in `classes`.
    """
    try:
        unseen = np.setdiff1d(y, classes)
    except TypeError as error:  # labels that cannot be sorted, such as None
        kinds = sorted({type(label).__name__ for label in np.asarray(y).tolist()})
        raise ValueError(
            f"{name} holds labels of the types {kinds}, which cannot be compared with "
            f"the classes of y, {classes[:10].tolist()}. Give one class label per row."
        ) from error
    if unseen.size:
        same_kind = unseen.dtype.kind in "iufb" and classes.dtype.kind in "iufb"
        remedy = (
            "Remove these rows, or add training rows of these classes."
            if same_kind or unseen.dtype.kind == classes.dtype.kind
            else "The labels are of another type than those of y: a meta-estimator "
            "(bagging, voting, stacking) may have encoded y. Encode the meta labels "
            "likewise."
        )
        raise ValueError(
            f"{name} holds labels that are unknown: {unseen[:10].tolist()}; the "
            f"classes of y are {classes[:10].tolist()}. {remedy}"
        )
    return np.searchsorted(classes, y).astype(np.int64)


def check_labels(y: Any) -> np.ndarray:
    """Return labels as an array (n,) without missing values."""
    if y is None:
        raise ValueError("y=None: give one class label per row.")
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    return column_or_1d(y, warn=True)


def check_n_labels(y: np.ndarray, *, n_rows: int) -> None:
    """Raise unless there is a label per row."""
    if len(y) != n_rows:
        raise ValueError(
            f"X has {n_rows} rows and y {len(y)} labels: give one label per row."
        )


def check_two_classes(classes: np.ndarray) -> None:
    """Raise unless there are at least two classes."""
    if len(classes) < 2:
        raise ValueError(
            f"Classifier can't be trained when only one class is present: y holds "
            f"1 class, {classes.tolist()}. Give rows of at least two classes."
        )


def check_same_classes(given: np.ndarray, classes: np.ndarray) -> None:
    """Raise if other classes are given than those of the first call."""
    if not np.array_equal(given, classes):
        raise ValueError(
            f"classes={given.tolist()} are not those of the first call of partial_fit "
            f"or fit, {classes.tolist()}. Leave classes out, or call fit to start anew."
        )
