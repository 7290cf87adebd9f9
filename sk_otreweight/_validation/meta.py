"""Meta rows, and the forms they are given in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from sk_otreweight._validation.inputs import check_inputs, map_arrays
from sk_otreweight._validation.warning import warn_user

# What is compared to see whether X_meta passed the same steps as X.
_ROWS, _COLUMNS = 2000, 1000
_FEWEST_ROWS = 10
_FAR = 5.0


class MetaData(NamedTuple):
    """Meta rows and their encoded labels.

    Attributes
    ----------
    X : inputs
        Arrays, a dict of them, or a data set, in the form the net takes them.
    y : ndarray of shape (n_meta,)
        Labels, encoded as 0 ... K-1.
    """

    X: Any
    y: np.ndarray


def check_meta_arguments(
    meta: Any,
    X_meta: Any,
    y_meta: Any,
    meta_mask: Any,
    *,
    n_rows: int,
    in_folds: bool = False,
) -> tuple[Any, Any] | None:
    """Find out in which form meta data was given, and whether it was one form only.

    Parameters
    ----------
    meta, X_meta, y_meta, meta_mask : object
        As they were given.
    n_rows : int
        Rows of X.
    in_folds : bool, default=False
        Whether cross-validation may have handed over a part of the rows.

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
        if in_folds:
            _warn_indexed(X_meta=X_meta, y_meta=y_meta, n_rows=n_rows)
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


def check_meta_inputs(X_meta: Any) -> Any:
    """Return meta inputs as finite arrays that torch can share."""
    if _length(X_meta) == 0:
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


def check_meta_columns(X_meta: Any, names: np.ndarray | None) -> bool:
    """Raise if a meta frame has other columns than the frame X, or another order.

    Returns
    -------
    lost_names : bool
        Whether the meta frame has names and X, with `names` None, has not.
    """
    columns = getattr(X_meta, "columns", None)
    if columns is None:
        return False
    if names is None:
        return all(isinstance(column, str) for column in columns)
    if list(columns) != list(names):
        raise ValueError(
            f"The columns of X_meta, {list(columns)[:5]}..., are not the columns of X, "
            f"{list(names)[:5]}..., in the same order. Select them by "
            "X_meta[X.columns]."
        )
    return False


def warn_other_steps(X_meta: Any, X: Any, *, lost_names: bool) -> None:
    """Warn if X seems to have passed steps that the meta rows have not.

    Parameters
    ----------
    X_meta, X : array-like of shape (n_meta, n_features) and (n_samples, n_features)
        Other inputs, such as images and dicts, are not compared.
    lost_names : bool
        Whether the meta rows have column names and X has none.
    """
    if lost_names:
        sign = (
            "X_meta has column names and X has none (if no step made an array of X, "
            "pass X_meta.to_numpy())"
        )
    elif (distance := _distance(X_meta, X)) > _FAR:
        sign = (
            f"in a quarter of the columns the mean of X_meta is {distance:.3g} "
            "standard deviations of X or more away from the mean of X"
        )
    else:
        return
    warn_user(
        f"X seems to have passed steps that the meta rows have not: {sign}. A pipeline "
        "transforms X only. Pass X_meta= and y_meta= through "
        'Pipeline(steps, transform_input=["X_meta"]), or mark rows of X by meta_mask=, '
        "or leave the meta data out to have it drawn from X."
    )


def warn_missing_meta_classes(present: np.ndarray, classes: np.ndarray) -> None:
    """Warn if some classes have no meta row."""
    missing = np.setdiff1d(np.arange(len(classes)), present)
    if missing.size:
        warn_user(
            f"No meta row is of class {classes[missing][:10].tolist()} "
            f"({missing.size} of {len(classes)} classes). These classes get no share "
            "of the balanced distribution: weights that balance the classes are low "
            "for them, and weights within them say little. Add meta rows of these "
            "classes, or pass no meta data to have it drawn from X."
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


def check_can_average(X: Any) -> None:
    """Raise unless meta inputs are a tensor of numbers whose mean makes sense."""
    if isinstance(X, Tensor) and X.is_floating_point():
        return
    kind = (
        f"a tensor of {X.dtype}" if isinstance(X, Tensor) else f"a {type(X).__name__}"
    )
    raise ValueError(
        f"PrototypeMetaSet(space='input') averages the inputs of each class, which are "
        f"{kind}: the mean of tokens, or of several inputs, is none. Use "
        "space='feature'."
    )


def _warn_indexed(*, n_rows: int, **given: Any) -> None:
    """Warn of arrays that cross-validation takes for one value per row of X."""
    names = [
        name
        for name, value in given.items()
        if not isinstance(value, (tuple, Dataset)) and _length(value) == n_rows
    ]
    if names:
        warn_user(
            f"{' and '.join(names)}: {n_rows} entries, as many as X has rows here. "
            "Within cross-validation or a search scikit-learn may have taken them for "
            "one value per row of X, and picked only those at the positions of the "
            "training rows. Pass meta=(X_meta, y_meta), or one-element tuples, "
            "X_meta=(X_meta,) and y_meta=(y_meta,), which are never picked from."
        )


def _length(value: Any) -> int | None:
    """Return the number of rows, or None if there are no rows."""
    if hasattr(value, "shape"):
        return value.shape[0] if value.shape else None
    return len(value) if hasattr(value, "__len__") else None


def _distance(X_meta: Any, X: Any) -> float:
    """Return how far the means are apart, in standard deviations of X.

    The upper quartile over the columns that vary: raw columns around 0 look as if they
    were scaled, and a rare class may have single columns far from the others'.
    """
    if isinstance(X, (Mapping, Dataset)) or isinstance(X_meta, Dataset):
        return 0.0
    if X.ndim != 2 or len(X) < _FEWEST_ROWS:
        return 0.0
    columns = slice(None, None, X.shape[1] // _COLUMNS + 1)
    X = _as_floats(X[:: len(X) // _ROWS + 1, columns])
    X_meta = _as_floats(X_meta[:, columns])
    varies = X.min(axis=0) < X.max(axis=0)
    if not varies.any():
        return 0.0
    X, X_meta = X[:, varies], X_meta[:, varies]
    # Subnormal columns vary, but their standard deviation is 0.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        shifts = np.abs(X_meta.mean(axis=0) - X.mean(axis=0)) / X.std(axis=0)
    shifts = shifts[np.isfinite(shifts)]
    return float(np.quantile(shifts, 0.75)) if len(shifts) else 0.0


def _as_floats(x: np.ndarray | Tensor) -> np.ndarray:
    return x.cpu().double().numpy() if isinstance(x, Tensor) else x.astype(np.float64)
