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
        raise ValueError(
            f"{name} holds labels of the types {_types(y)}, which cannot be compared "
            f"with the classes of y, {classes[:10].tolist()}. Give one class label per "
            "row."
        ) from error
    if unseen.size:
        raise ValueError(
            f"{name} holds labels that are unknown: {unseen[:10].tolist()}; the "
            f"classes of y are {classes[:10].tolist()}. "
            + _remedy(unseen, classes, is_meta=name != "y")
        )
    return np.searchsorted(classes, y).astype(np.int64)


def labels_like(labels: np.ndarray, y: np.ndarray, *, name: str) -> np.ndarray:
    """Return labels in the type of those of `y`, which may lack their classes.

    Raises
    ------
    ValueError
        If they are of another type.
    """
    classes = np.unique(y)
    given, expected = _plain(labels), _plain(classes)
    if given.dtype.kind == expected.dtype.kind:
        return given.astype(object) if y.dtype == object else given
    if _are_numbers(given, expected):
        with np.errstate(invalid="ignore"):
            cast = given.astype(y.dtype)
        if np.array_equal(cast, given):
            return cast
    return classes[encode_labels(labels, classes, name=name)]  # or raise


def _plain(labels: np.ndarray) -> np.ndarray:
    """Return labels that came as objects, as those of a frame do, in their own type."""
    return np.asarray(labels.tolist()) if labels.dtype == object else labels


def _are_numbers(*labels: np.ndarray) -> bool:
    return all(values.dtype.kind in "iufb" for values in labels)


def check_labels(y: Any) -> np.ndarray:
    """Return labels as an array (n,) without missing values."""
    if y is None:
        raise ValueError("y=None: give one class label per row.")
    y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    check_comparable(y)
    return column_or_1d(y, warn=True)


def check_comparable(y: np.ndarray) -> None:
    """Raise if labels cannot be sorted, such as strings and None."""
    if y.dtype != object:
        return
    try:
        np.unique(y)
    except TypeError as error:
        raise ValueError(
            f"y holds labels of the types {_types(y)}, which cannot be compared with "
            "each other. Give one class label per row, all of one type."
        ) from error


def _types(y: Any) -> list[str]:
    return sorted({type(label).__name__ for label in np.asarray(y).tolist()})


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


def _remedy(unseen: np.ndarray, classes: np.ndarray, *, is_meta: bool) -> str:
    """Return what to do about labels that are not among the classes of y."""
    unseen, expected = _plain(unseen), _plain(classes)
    same_kind = _are_numbers(unseen, expected) or (
        unseen.dtype.kind == expected.dtype.kind
    )
    if same_kind:
        remedy = "Remove these rows, or add training rows of these classes."
    else:
        remedy = "The labels are of another type than those of y."
    may_be_encoded = classes.tolist() == list(range(len(classes)))
    if is_meta and (may_be_encoded or not same_kind):
        remedy += (
            " If bagging or voting encoded y as 0, 1, ..., which leaves the meta "
            "labels as they are: encode both before by one LabelEncoder, or pass "
            "meta_mask=, or leave the meta data out. OneVsRestClassifier makes two "
            "classes of y: pass meta_mask= there, or none. StackingClassifier takes no "
            "meta data: pass none, or stack fitted classifiers with cv='prefit'."
        )
    return remedy
