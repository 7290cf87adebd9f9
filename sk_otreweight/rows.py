"""The rows that a method of an estimator is given, in any form, checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch.utils.data import Dataset

from sk_otreweight._validation import (
    check_comparable,
    check_inputs,
    check_inputs_like,
    check_labels,
    check_meta_arguments,
    check_meta_columns,
    check_meta_inputs,
    check_meta_labels,
    check_meta_mask,
    check_n_labels,
    check_same_kind,
    check_table,
    is_array_like,
    labels_like,
    warn_other_steps,
)
from sk_otreweight.inputs import (
    concatenated,
    dataset_inputs,
    dataset_labels,
    n_rows,
    row_shapes,
    take,
    unpack_slices,
)


class GivenMeta(NamedTuple):
    """The forms that meta data may be given in; at most one is."""

    meta: Any
    X_meta: Any
    y_meta: Any
    meta_mask: Any


class TrainingRows(NamedTuple):
    """Rows of a call to fit: those to train on, and what was set apart from them.

    Attributes
    ----------
    X : inputs
    y : ndarray of shape (n,)
    held_out : ndarray of bool or None
        Which of the given rows are meta rows, if a mask said so.
    meta : tuple (X_meta, y_meta) or None
    n_meta_rows : int
        How many rows at the end are the meta rows.
    """

    X: Any
    y: np.ndarray
    held_out: np.ndarray | None
    meta: tuple[Any, Any] | None
    n_meta_rows: int = 0


def check_training_rows(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    given: GivenMeta,
    *,
    reset: bool,
    is_stream: bool,
) -> TrainingRows:
    """Check the rows of a call to fit or partial_fit, and set the meta rows apart.

    Parameters
    ----------
    estimator : BaseReweightedClassifier
        Is given ``n_features_in_`` and ``feature_names_in_`` if there are such.
    X, y : inputs and labels
    given : GivenMeta
    reset : bool
        Whether these are the first rows, that later ones must be like.
    is_stream : bool
        Whether these are a chunk, that may look different from the meta rows.
    """
    columns = getattr(X, "columns", None)
    X, y = check_labelled_rows(estimator, X, y, reset=reset)
    pair = check_meta_arguments(*given, n_rows=len(y), in_folds=True)
    if pair is not None:
        names = getattr(estimator, "feature_names_in_", columns)
        lost_names = check_meta_columns(pair[0], names)
        pair = _check_meta_rows(*pair)
        check_inputs_like(row_shapes(pair[0]), row_shapes(X), name="X_meta")
        if not is_stream:
            warn_other_steps(pair[0], X, lost_names=lost_names)
    held_out = None
    if given.meta_mask is not None:
        held_out = check_meta_mask(given.meta_mask, n_rows=len(y))
        pair = take(X, held_out), y[held_out]
        X, y = take(X, ~held_out), y[~held_out]
    return TrainingRows(X, y, held_out, pair)


def with_meta_rows(rows: TrainingRows) -> TrainingRows:
    """Return the training rows with the meta rows, if there are some, added to them.

    Raises
    ------
    ValueError
        If their labels are of another type.
    """
    if rows.meta is None:
        return rows
    X_meta, y_meta = rows.meta
    check_same_kind(rows.X, X_meta)
    y_meta = labels_like(y_meta, rows.y, name="y_meta")
    return rows._replace(
        X=concatenated(rows.X, X_meta),
        y=np.concatenate([rows.y, y_meta]),
        n_meta_rows=len(y_meta),
    )


def check_labelled_rows(
    estimator: BaseEstimator, X: Any, y: Any, *, reset: bool
) -> tuple[Any, np.ndarray]:
    """Check inputs of any form, and their labels."""
    X = unpack_slices(X)
    if isinstance(X, Dataset) and y is None:
        y = dataset_labels(X, name="X")
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    if is_array_like(X):
        X, y = _check_array(estimator, X, y, reset=reset)
        check_comparable(y)
    else:
        X, y = check_rows(estimator, X, reset=reset), check_labels(y)
        check_n_labels(y, n_rows=n_rows(X))
    check_classification_targets(y)
    return X, y


def check_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Check inputs of any form."""
    X = unpack_slices(X)
    if is_array_like(X):
        return _check_array(estimator, X, reset=reset)
    if isinstance(X, Dataset):
        X = dataset_inputs(X, name="X")
    if estimator.net is None:
        check_table(X)
    if not isinstance(X, Dataset):
        X = check_inputs(X, name="X")
    if isinstance(X, Tensor):
        _check_shape(estimator, X, reset=reset)
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    elif reset:
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return X


def _check_array(estimator: BaseEstimator, *X_and_y: Any, reset: bool) -> Any:
    _check_shape(estimator, X_and_y[0], reset=reset)
    is_table = estimator.net is None
    return validate_data(
        estimator, *X_and_y, reset=reset, dtype="numeric", allow_nd=not is_table
    )


def _check_shape(estimator: BaseEstimator, X: Any, *, reset: bool) -> None:
    """Compare the shape of images, of which scikit-learn sees one dimension."""
    known = () if reset else estimator._input_shape
    if isinstance(known, tuple) and len(known) > 1:
        check_inputs_like(tuple(np.shape(X)[1:]), known, name="X")


def _check_meta_rows(X_meta: Any, y_meta: Any) -> tuple[Any, np.ndarray]:
    if isinstance(X_meta, Dataset):
        y_meta = dataset_labels(X_meta, name="meta") if y_meta is None else y_meta
        X_meta = dataset_inputs(X_meta, name="meta")
    else:
        X_meta = check_meta_inputs(X_meta)
    return X_meta, check_meta_labels(y_meta, n_rows=n_rows(X_meta))
