"""Features made of the columns of X."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array, gen_batches
from torch import Tensor

from sk_otreweight._validation import check_meta_columns

# Entries of X that are standardised at a time (8 MiB in float64).
_BLOCK_ENTRIES = 2**20
# A deviation this small, relative to the mean, is how a constant column is rounded.
_ROUNDING = 1e-13


# Meta rows farther from the mean, in standard deviations, overflow when squared.
_LARGEST = 1e15


class StandardisedColumns:
    """Columns of X, scaled to mean 0 and standard deviation 1.

    Constant columns become 0, and so does NaN, which is left out of mean and deviation.

    Parameters
    ----------
    cost : str
        Name of the cost that compares the columns, for messages.
    """

    def __init__(self, cost: str):
        self.cost = cost

    def fit_transform(self, X: Any) -> Tensor:
        """Return the features (n, d) in float32; needs one more copy of X at most."""
        array = self._check(X, name="X")
        self._names = getattr(X, "columns", None)
        self._mean, self._factor = _mean_and_factor(array)
        return self._scale(array)

    def transform(self, X_meta: Any) -> Tensor:
        """Return the features (n_meta, d) of meta rows, on the scale of X."""
        check_meta_columns(X_meta, self._names)
        array = self._check(X_meta, name="X_meta")
        if array.shape[1] != len(self._mean):
            raise ValueError(
                f"X_meta has {array.shape[1]} columns, X has {len(self._mean)}: they "
                "must pass the same preprocessing."
            )
        features = self._scale(array)
        if not bool((features.abs() < _LARGEST).all()):
            raise ValueError(
                "X_meta holds values that are too far from those of X: up to "
                f"{float(features.abs().max()):.3g} standard deviations. Remove these "
                "rows, or pass them through the same steps as X."
            )
        return features

    def _scale(self, array: np.ndarray) -> Tensor:
        features = torch.empty(array.shape, dtype=torch.float32)
        for rows, block in _blocks(array):
            block = (block - self._mean) * self._factor
            features[rows] = torch.from_numpy(np.nan_to_num(block, copy=False))
        return features

    def _check(self, X: Any, *, name: str) -> np.ndarray:
        """Return X as a numeric array, finite or NaN."""
        if isinstance(X, Tensor):
            X = X.detach().cpu()
        if hasattr(X, "columns") and hasattr(X, "dtypes"):
            bad = [column for column in X.columns if not _is_numeric(X[column])]
            if bad:
                raise ValueError(
                    f"{self.cost} compares the columns of {name}, but {bad[:10]} are "
                    "not numeric. Use cost='label', which does not look at them, or "
                    "encode them, for instance by sklearn.preprocessing.OneHotEncoder."
                )
        return check_array(
            X, dtype="numeric", ensure_all_finite="allow-nan", input_name=name
        )


def _is_numeric(column: Any) -> bool:
    """Return whether a column of a frame holds numbers, and not codes of categories."""
    if hasattr(column.dtype, "kind"):  # numpy and pandas
        is_object = column.dtype == np.dtype(object)
        return column.dtype.kind in "biuf" or (is_object and _converts(column))
    return column.dtype.is_numeric() or np.asarray(column).dtype == bool


def _converts(column: Any) -> bool:
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _mean_and_factor(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each column and 1 / its deviation, 0 if it is constant."""
    counts = sum((~np.isnan(block)).sum(axis=0) for _, block in _blocks(array))
    counts = np.maximum(counts, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(np.nansum(block, axis=0) for _, block in _blocks(array)) / counts
        squares = sum(
            np.nansum((block - mean) ** 2, axis=0) for _, block in _blocks(array)
        )
    if not np.isfinite(squares).all():
        raise ValueError(
            f"X holds values as large as {np.nanmax(np.abs(array)):.3g}, whose squares "
            "are infinite: divide such columns by a constant."
        )
    deviation = np.sqrt(squares / counts)
    varies = deviation > _ROUNDING * np.abs(mean)
    return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def _blocks(array: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of rows in float64."""
    n_rows = max(1, _BLOCK_ENTRIES // array.shape[1])
    for rows in gen_batches(len(array), n_rows):
        yield rows, array[rows].astype(np.float64)
