"""Every check of user input, and the message it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_array
from torch import Tensor


class MetaData(NamedTuple):
    """Meta rows and their encoded labels.

    Attributes
    ----------
    X : ndarray of shape (n_meta, ...)
        Inputs, in the form the net takes them.
    y : ndarray of shape (n_meta,)
        Labels, encoded as 0 ... K-1.
    """

    X: np.ndarray
    y: np.ndarray


def resolve(
    value: Any,
    *,
    slot: str,
    table: Mapping[str, type],
    base: type,
    wrap: Callable[[Any], Any] | None = None,
) -> Any:
    """Turn what a user put in a slot (name, instance, callable) into a component.

    Parameters
    ----------
    value : str, instance of `base` or callable
        What was given. Instances are cloned, so that what the user holds is
        never changed.
    slot : str
        Name of the parameter, for the message.
    table : mapping of str to class
        The names that are known and the class each stands for.
    base : type
        Base class of the components of this slot.
    wrap : callable, default=None
        Makes a component of any other callable.

    Returns
    -------
    component : instance of `base`

    Raises
    ------
    ValueError
        If `value` is neither of these; the message lists the valid names.
    """
    if isinstance(value, str) and value in table:
        return table[value]()
    if isinstance(value, base):
        return clone(value)
    if wrap is not None and callable(value) and not isinstance(value, str):
        return wrap(value)
    also = " or a callable" if wrap is not None else ""
    raise ValueError(
        f"{slot}={value!r} is not known. Valid names are {sorted(table)}; "
        f"an instance of {base.__name__}{also} is accepted as well."
    )


def check_choice(value: Any, *, name: str, choices: Sequence[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"{name}={value!r} is not known. Valid are {list(choices)}.")


def check_real(
    value: Any, *, name: str, minimum: float = 0.0, maximum: float = np.inf
) -> None:
    """Raise unless `value` is a finite number between `minimum` and `maximum`."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not (good and np.isfinite(value) and minimum <= value <= maximum):
        limit = "" if maximum == np.inf else f" and <= {maximum:g}"
        raise ValueError(
            f"{name}={value!r} is not valid: give a finite number >= {minimum:g}"
            f"{limit}."
        )


def check_reg(reg: Any) -> None:
    """Raise unless `reg`, the weight of the entropy, is a positive number."""
    if isinstance(reg, Real) and not isinstance(reg, bool) and 0 < reg < np.inf:
        return
    raise ValueError(
        f"reg={reg!r} is not valid: the weight of the entropy must be a finite "
        "number > 0. The paper uses 0.1; 0.01 to 1 is the usual range."
    )


def check_count(value: Any, *, name: str, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or (value < minimum):
        raise ValueError(
            f"{name}={value!r} is not valid: give an integer >= {minimum}."
        )


def check_transport_shapes(C: Tensor, a: Tensor, b: Tensor) -> None:
    """Raise unless marginals `a` and `b` fit the cost matrix `C`."""
    fits = C.ndim >= 2 and _expands(a, C.shape[:-1])
    if not fits or not _expands(b, (*C.shape[:-2], C.shape[-1])):
        raise ValueError(
            f"C of shape {tuple(C.shape)}, a of shape {tuple(a.shape)} and b of shape "
            f"{tuple(b.shape)} do not fit: expected C (..., n, m), a (..., n) and "
            "b (..., m)."
        )


def _expands(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether `x` can be expanded to `shape` along its leading dimensions."""
    if x.ndim == 0 or x.ndim > len(shape) or x.shape[-1] != shape[-1]:
        return False
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    return all(size in (1, full) for size, full in pairs)


def check_finite_cost(largest: float) -> None:
    """Raise if the largest entry of a cost matrix is NaN or infinite."""
    if not np.isfinite(largest):
        raise ValueError(
            f"C holds {largest}: costs must be finite. Look for NaN in the features; a "
            "forbidden pair can be given a large finite cost instead."
        )


def check_columns(C: Any, b: Tensor, n_rows: int | None) -> None:
    """Raise unless `b` has an entry per column, and the number of rows is known."""
    if not isinstance(C, Tensor):
        if n_rows is None:
            raise ValueError("n_rows=None: say how many rows the callable C has.")
    elif C.ndim < 2 or not _expands(b, (*C.shape[:-2], C.shape[-1])):
        raise ValueError(
            f"C of shape {tuple(C.shape)} and b of shape {tuple(b.shape)} do not fit: "
            "expected C (..., n, m) and b (..., m)."
        )


def check_same_mass(a: Tensor, b: Tensor) -> None:
    """Raise if `a` and `b` are no masses, or differ in their total."""
    total_a, total_b = a.sum(-1), b.sum(-1)
    for name, mass, total in (("a", a, total_a), ("b", b, total_b)):
        if not bool((mass >= 0).all()) or not bool((total > 0).all()):
            raise ValueError(
                f"{name} ranges from {mass.min().item():.4g} to "
                f"{mass.max().item():.4g}: masses must be >= 0, with a total > 0."
            )
    if not torch.allclose(total_a, total_b, rtol=1e-5):
        raise ValueError(
            f"a sums to {_span(total_a)} and b to {_span(total_b)}, so no transport "
            "plan has these marginals. Divide each by its sum."
        )


def _span(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.6g}" if low == high else f"{low:.6g} ... {high:.6g}"


def check_cost_matrix(C: Any, *, n_rows: int, n_columns: int, name: str) -> None:
    """Raise unless a cost returned a finite, non-negative matrix of this shape."""
    hint = f"the cost {name} must return a Tensor of shape ({n_rows}, {n_columns})"
    if not isinstance(C, Tensor):
        raise TypeError(f"Got a {type(C).__name__}: {hint}, training rows x meta rows.")
    if C.shape != (n_rows, n_columns):
        raise ValueError(
            f"Got shape {tuple(C.shape)}: {hint}, training rows x meta rows."
        )
    if not bool(torch.isfinite(C).all()):
        raise ValueError(
            f"{hint} without NaN or infinity. Look for a division by zero, a square "
            "root of zero, or NaN in the features."
        )
    if bool((C < 0).any()):
        raise ValueError(
            f"{hint} with entries >= 0, got {C.min().item():.4g}. Similarities must "
            "be turned into costs, for instance 1 - similarity."
        )


def check_inputs_like(X: np.ndarray, shape: tuple[int, ...], *, name: str) -> None:
    """Raise unless rows of `X` have the shape of the training rows."""
    if X.shape[1:] != shape:
        raise ValueError(
            f"Rows of {name} have shape {X.shape[1:]}, those that were trained on have "
            f"{shape}: they must pass the same preprocessing."
        )


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
    if not isinstance(meta, tuple) or len(meta) != 2:
        size = f" of length {len(meta)}" if hasattr(meta, "__len__") else ""
        raise ValueError(
            f"meta must be a pair (X_meta, y_meta), got a {type(meta).__name__}{size}."
        )
    return meta


def _unpack_single(value: Any) -> Any:
    """Unpack a one-element tuple, the form that cross-validation never indexes."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


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
    if hasattr(X_meta, "__len__") and len(X_meta) == 0:
        raise ValueError(
            "Found 0 samples in X_meta: give some rows of each class, or leave the "
            "meta data out to have it drawn from the training rows."
        )
    X_meta = check_array(
        X_meta, dtype=dtype, ensure_2d=False, allow_nd=True, input_name="X_meta"
    )
    X_meta = np.require(X_meta, requirements=["C", "W"])  # as torch wants it
    y_meta = np.asarray(y_meta)
    if y_meta.ndim == 2 and y_meta.shape[1] == 1:
        y_meta = y_meta[:, 0]
    if y_meta.ndim != 1 or len(y_meta) != len(X_meta):
        raise ValueError(
            f"The meta set has {len(X_meta)} rows and labels of shape {y_meta.shape}: "
            "give one label per row."
        )
    if y_meta.dtype.kind == "f" and not np.isfinite(y_meta).all():
        raise ValueError("y_meta holds NaN or infinity: give one class label per row.")
    return X_meta, y_meta


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


def check_cast(X: np.ndarray, dtype: np.dtype, *, name: str) -> np.ndarray:
    """Return `X` in the dtype of the net, or raise if values leave its range."""
    if X.dtype == dtype:
        return X
    with np.errstate(over="ignore"):
        cast = X.astype(dtype)
    if X.dtype.itemsize > cast.dtype.itemsize and not np.isfinite(cast).all():
        raise ValueError(
            f"{name} holds values that are infinity in {dtype}, the dtype of the net. "
            "Scale the inputs, or use a net with float64 parameters."
        )
    return cast


def check_meta_classes(present: np.ndarray, classes: np.ndarray) -> str | None:
    """Return the text of a warning if some classes have no meta row."""
    missing = np.setdiff1d(np.arange(len(classes)), present)
    if not missing.size:
        return None
    return (
        f"No meta row is of class {classes[missing][:10].tolist()} "
        f"({missing.size} of {len(classes)} classes). These classes get no share of "
        "the balanced distribution, so their training rows get low weights. Add meta "
        "rows of these classes, or pass no meta data to have it drawn from X."
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


def check_output_width(output: Tensor, *, n_rows: int, n_classes: int) -> None:
    """Raise unless a net returns K scores per row, or one score if K = 2."""
    width = output.numel() // max(n_rows, 1)
    fits = output.ndim <= 2 and output.shape[0] == n_rows
    if fits and (width == n_classes or (width == 1 and n_classes == 2)):
        return
    also = " (or one, for two classes)" if n_classes == 2 else ""
    raise ValueError(
        f"The net returned an output of shape {tuple(output.shape)} for {n_rows} rows, "
        f"but y has {n_classes} classes: it must return {n_classes} scores per "
        f"row{also}. Change the width of the net's last layer."
    )


def check_losses(losses: Tensor, *, n_rows: int) -> Tensor:
    """Return one loss per row, or raise if the net reduced them already."""
    if losses.numel() != n_rows or (losses.ndim == 0 and n_rows > 1):
        raise ValueError(
            f"The net's loss has shape {tuple(losses.shape)} for a batch of {n_rows} "
            "rows: re-weighting needs one loss per row. Let the criterion have a "
            "`reduction` attribute that can be set to 'none', and let get_loss return "
            "what the criterion returns without averaging it."
        )
    return losses.reshape(n_rows)


def check_finite_loss(loss: Tensor, *, stage: int, epoch: int, batch: int) -> None:
    """Raise as soon as a training loss is NaN or infinite."""
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"The training loss became {loss.item()} in stage {stage}, epoch {epoch}, "
            f"batch {batch}. The parameters were not updated with it. Lower the "
            "learning rate (the net's `lr` for stage 1, `lr` for stage 2), scale the "
            "inputs, or clip the gradients."
        )


def component_repr(component: Any) -> str:
    """Return a short name of a component, for messages."""
    if isinstance(component, BaseEstimator):
        return repr(component)
    return getattr(component, "__name__", type(component).__name__)
