"""Meta rows, and the forms they are given in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from sk_otreweight._validation.inputs import check_inputs, map_arrays
from sk_otreweight._validation.warning import warn_user


class MetaData(NamedTuple):
    """Meta rows and their encoded labels.

    Attributes
    ----------
    X : inputs
        Arrays or a dict of them, in the form the net takes them.
    y : ndarray of shape (n_meta,)
        Labels, encoded as 0 ... K-1.
    """

    X: Any
    y: np.ndarray


def check_meta_arguments(
    meta: Any, X_meta: Any, y_meta: Any, meta_mask: Any, *, n_rows: int
) -> tuple[Any, Any] | None:
    """Find out in which form meta data was given, and whether it was one form only.

    Returns
    -------
    meta : tuple (X_meta, y_meta), or None if none was given or a mask was
    """
    given = {
        "meta": meta is not None,
        "X_meta/y_meta": X_meta is not None or y_meta is not None,
        "meta_mask": meta_mask is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise ValueError(
            f"Meta data was given as {' and as '.join(names)}: pass one of them only."
        )
    if given["X_meta/y_meta"]:
        if X_meta is None or y_meta is None:
            missing = "X_meta" if X_meta is None else "y_meta"
            raise ValueError(f"{missing} is missing: X_meta and y_meta go together.")
        return _unpack_single(X_meta), _unpack_single(y_meta)
    if meta is None:
        return None
    if isinstance(meta, list) and len(meta) == 1 and n_rows == 2:
        raise ValueError(
            "meta arrived as a list of one element: scikit-learn took the pair for "
            "one value per row of X, which has two rows here. Pass X_meta= and y_meta="
            " as one-element tuples."
        )
    if isinstance(meta, Dataset):
        return meta, None
    if not isinstance(meta, tuple) or len(meta) != 2:
        size = f" of length {len(meta)}" if hasattr(meta, "__len__") else ""
        raise ValueError(
            f"meta must be a pair (X_meta, y_meta), got a {type(meta).__name__}{size}."
        )
    return meta


def check_meta_mask(meta_mask: Any, *, n_rows: int) -> np.ndarray:
    """Return `meta_mask` as a boolean array with one entry per row of X."""
    mask = np.asarray(meta_mask)
    if mask.shape != (n_rows,):
        raise ValueError(
            f"meta_mask has shape {mask.shape}, X has {n_rows} rows: give one boolean "
            "per row of X. A mask cannot pass a sampler that changes the rows; use "
            "meta=(X_meta, y_meta) there."
        )
    if mask.dtype != bool:
        raise ValueError(
            f"meta_mask must be boolean, got dtype {mask.dtype}. Row numbers are "
            "turned into a mask by np.isin(np.arange(len(X)), rows)."
        )
    if mask.all() or not mask.any():
        raise ValueError(
            f"meta_mask marks {int(mask.sum())} of {n_rows} rows: some rows must be "
            "meta rows and some must remain for training."
        )
    return mask


def check_meta_arrays(X_meta: Any, y_meta: Any, *, dtype: Any) -> tuple[Any, Any]:
    """Return meta inputs and labels as finite arrays of the same length."""
    X_meta = check_meta_inputs(X_meta)
    return X_meta, check_meta_labels(y_meta, n_rows=len(X_meta))


def check_meta_inputs(X_meta: Any) -> Any:
    """Return meta inputs as finite arrays that torch can share."""
    if hasattr(X_meta, "__len__") and len(X_meta) == 0:
        raise ValueError(
            "Found 0 samples in X_meta: give some rows of each class, or leave the "
            "meta data out to have it drawn from the training rows."
        )

    def require(x: Any, _: str) -> Any:
        return x if isinstance(x, Tensor) else np.require(x, requirements=["C", "W"])

    return map_arrays(require, check_inputs(X_meta, name="X_meta"), name="X_meta")


def check_meta_labels(y_meta: Any, *, n_rows: int) -> np.ndarray:
    """Return meta labels as an array with one label per meta row."""
    if isinstance(y_meta, Tensor):
        y_meta = y_meta.cpu()
    y_meta = np.asarray(y_meta)
    if y_meta.ndim == 2 and y_meta.shape[1] == 1:
        y_meta = y_meta[:, 0]
    if y_meta.ndim != 1 or len(y_meta) != n_rows:
        raise ValueError(
            f"The meta set has {n_rows} rows and labels of shape {y_meta.shape}: "
            "give one label per row."
        )
    if y_meta.dtype.kind == "f" and not np.isfinite(y_meta).all():
        raise ValueError("y_meta holds NaN or infinity: give one class label per row.")
    return y_meta


def check_meta_columns(X_meta: Any, names: np.ndarray | None) -> None:
    """Raise if a meta frame has other columns than the frame X, or another order."""
    columns = getattr(X_meta, "columns", None)
    if columns is None or names is None:
        return
    if list(columns) != list(names):
        raise ValueError(
            f"The columns of X_meta, {list(columns)[:5]}..., are not the columns of X, "
            f"{list(names)[:5]}..., in the same order. Select them by "
            "X_meta[X.columns]."
        )


def warn_missing_meta_classes(present: np.ndarray, classes: np.ndarray) -> None:
    """Warn if some classes have no meta row."""
    missing = np.setdiff1d(np.arange(len(classes)), present)
    if missing.size:
        warn_user(
            f"No meta row is of class {classes[missing][:10].tolist()} "
            f"({missing.size} of {len(classes)} classes). These classes get no share "
            "of the balanced distribution, so their training rows get low weights. Add "
            "meta rows of these classes, or pass no meta data to have it drawn from X."
        )


def check_drawable(counts: np.ndarray, classes: np.ndarray) -> None:
    """Raise if a meta set cannot be drawn because a class has a single row."""
    single = np.flatnonzero(counts == 1)
    if single.size:
        raise ValueError(
            f"Class {classes[single][:10].tolist()} has a single row and no meta data "
            "was given: the row would be compared with itself alone. Pass "
            "meta=(X_meta, y_meta), or use cost='label', which needs no meta rows, or "
            "leave the class out."
        )


def _unpack_single(value: Any) -> Any:
    """Unpack a one-element tuple, the form that cross-validation never indexes."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value
