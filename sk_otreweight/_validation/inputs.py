"""Inputs: arrays, tensors, dicts of these, and data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor
from torch.utils.data import Dataset


def map_arrays(function: Callable[[Any, str], Any], X: Any, *, name: str) -> Any:
    """Apply ``function(array, name)`` to an array, or to each array of a dict."""
    if isinstance(X, Mapping):
        return {key: function(x, f"{name}[{key!r}]") for key, x in X.items()}
    return function(X, name)


def check_inputs(X: Any, *, name: str) -> Any:
    """Return inputs as numeric and finite arrays; tensors stay where they are."""

    def check(x: Any, name: str) -> np.ndarray | Tensor:
        if isinstance(x, Tensor):
            return check_tensor(x, name=name)
        return check_array(
            x, dtype="numeric", ensure_2d=False, allow_nd=True, input_name=name
        )

    X = map_arrays(check, X, name=name)
    if isinstance(X, dict):
        check_same_lengths({key: len(x) for key, x in X.items()}, name=name)
    return X


def is_array_like(X: Any) -> bool:
    """Return whether scikit-learn's checks of arrays are the right ones for `X`."""
    is_sparse = hasattr(X, "toarray")  # one of scipy's formats is a dict as well
    return is_sparse or not isinstance(X, (Tensor, Mapping, Dataset))


def check_table(X: Any) -> None:
    """Raise unless the net for tables can take `X`, which is no plain array."""
    row = X[0][0] if isinstance(X, Dataset) else None
    shape = X.shape[1:] if isinstance(X, Tensor) else np.shape(row)
    if isinstance(X, Mapping) or len(shape) != 1:
        rows = "a dict" if isinstance(X, Mapping) else f"rows of shape {tuple(shape)}"
        raise ValueError(
            f"net=None is a net for tables, with a vector per row, but X is {rows}. "
            "Pass a net whose forward takes such inputs."
        )


def check_tensor(x: Tensor, *, name: str) -> Tensor:
    """Return a tensor without its graph; raise if it holds NaN or infinity."""
    if x.is_sparse or x.layout is not torch.strided:
        raise TypeError(f"{name} is a sparse tensor: pass {name}.to_dense() instead.")
    if x.is_meta:
        raise ValueError(
            f"{name} is a tensor on the device 'meta', which holds no numbers: pass "
            "one with data."
        )
    if x.is_complex():
        raise ValueError(f"Complex data not supported: {name} has dtype {x.dtype}.")
    if x.ndim == 1 and name == "X":
        raise ValueError(
            f"Expected one row per sample, got X of shape {tuple(x.shape)}: use "
            "X.reshape(-1, 1) for a single feature, X.reshape(1, -1) for a single row."
        )
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"Found 0 samples in {name}, of shape {tuple(x.shape)}.")
    x = x.detach()
    # A sum is finite only if all terms are; it spares a mask as large as the data.
    if x.is_floating_point() and not bool(x.sum().isfinite() or x.isfinite().all()):
        raise ValueError(
            f"Input {name} contains NaN or infinity. Remove these rows, or impute the "
            "values, for instance with sklearn.impute.SimpleImputer."
        )
    return x


def check_same_lengths(lengths: Mapping[str, int], *, name: str) -> None:
    """Raise unless all arrays of a dict have as many rows."""
    if not lengths:
        raise ValueError(f"{name} is an empty dict: give an array for each input.")
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The arrays of {name} differ in their number of rows: {dict(lengths)}. "
            "Each must have one row per sample."
        )


def check_dataset(dataset: Dataset, *, name: str) -> None:
    """Raise unless a data set can say how many items it has, and has some."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{name} is a {type(dataset).__name__} without a length: re-weighting must "
            "know its rows. Give a data set with __len__ and __getitem__."
        )
    if len(dataset) == 0:
        raise ValueError(f"Found 0 items in the data set {name}: give it some.")


def check_n_tensors(n_tensors: int, *, name: str) -> None:
    """Raise if a TensorDataset has more than inputs and labels."""
    if n_tensors > 2:
        raise ValueError(
            f"The TensorDataset {name} holds {n_tensors} tensors, of which one can be "
            "the inputs and one the labels. Pass several inputs as a dict, with the "
            "labels as y."
        )


def check_dataset_item(item: Any, *, name: str) -> None:
    """Raise unless an item of a data set is a pair."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(
            f"An item of the data set {name} is a {type(item).__name__}: it must be a "
            "pair (inputs, label), also when the labels are given as y."
        )


def check_inputs_like(shapes: Any, expected: Any, *, name: str) -> None:
    """Raise unless rows have the shapes of the training rows; None is not known."""
    if shapes is not None and expected is not None and shapes != expected:
        raise ValueError(
            f"Rows of {name} have shape {shapes}, those that were trained on have "
            f"{expected}: they must pass the same preprocessing."
        )


def check_same_kind(X: Any, X_meta: Any) -> None:
    """Raise unless the meta rows can be put to the training rows."""
    for kind in (Dataset, Mapping):
        if isinstance(X, kind) != isinstance(X_meta, kind):
            raise TypeError(
                f"X is a {type(X).__name__} and X_meta a {type(X_meta).__name__}: to "
                "be trained on together they must be of the same form."
            )


def check_cast(x: Any, dtype: torch.dtype, *, name: str) -> Any:
    """Return an array or a tensor in another dtype, or raise if values leave its range.

    Parameters
    ----------
    x : ndarray or Tensor
    dtype : torch.dtype
    name : str
    """
    if isinstance(x, Tensor):
        cast = x.to(dtype)
    else:
        with np.errstate(over="ignore"):
            cast = x.astype(torch.empty(0, dtype=dtype).numpy().dtype, copy=False)
    is_narrower = x.dtype.itemsize > cast.dtype.itemsize
    if is_narrower and not bool(torch.as_tensor(cast).isfinite().all()):
        raise ValueError(
            f"{name} holds values that are infinity in {cast.dtype}, the dtype of the "
            "net. Scale the inputs, or use a net with float64 parameters."
        )
    return cast
