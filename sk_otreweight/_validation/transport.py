"""Costs and marginals of transport problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_transport_shapes(C: Tensor, a: Tensor, b: Tensor) -> None:
    """Raise unless marginals `a` and `b` fit the cost matrix `C`."""
    fits = C.ndim >= 2 and _expands(a, C.shape[:-1])
    if not fits or not _expands(b, (*C.shape[:-2], C.shape[-1])):
        raise ValueError(
            f"C of shape {tuple(C.shape)}, a of shape {tuple(a.shape)} and b of shape "
            f"{tuple(b.shape)} do not fit: expected C (..., n, m), a (..., n) and "
            "b (..., m)."
        )
    check_some_entries(C)


def check_some_entries(C: Tensor) -> None:
    """Raise if a cost matrix has no rows or no columns."""
    if C.numel() == 0:
        raise ValueError(
            f"C of shape {tuple(C.shape)} is empty: transport needs a row and a column "
            "at least, and a batch a problem."
        )


def check_cost_range(smallest: float, largest: float) -> None:
    """Raise if the entries of a cost matrix are NaN, infinite or negative."""
    if smallest < 0:
        raise ValueError(
            f"C holds {smallest}: costs must be >= 0. Subtract the smallest entry from "
            "all; the plan stays the same."
        )
    if not np.isfinite(largest):
        raise ValueError(
            f"C holds {largest}: costs must be finite. Look for NaN in the features; a "
            "forbidden pair can be given a large finite cost instead."
        )


def check_columns(C: Any, b: Tensor, n_rows: int | None) -> None:
    """Raise unless `b` has an entry per column, and the number of rows is known."""
    if not isinstance(C, Tensor):
        if not n_rows:
            raise ValueError(f"n_rows={n_rows}: say how many rows the callable C has.")
        return
    if C.ndim < 2 or not _expands(b, (*C.shape[:-2], C.shape[-1])):
        raise ValueError(
            f"C of shape {tuple(C.shape)} and b of shape {tuple(b.shape)} do not fit: "
            "expected C (..., n, m) and b (..., m)."
        )
    check_some_entries(C)


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


def _expands(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether `x` can be expanded to `shape` along its leading dimensions."""
    if x.ndim == 0 or x.ndim > len(shape) or x.shape[-1] != shape[-1]:
        return False
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    return all(size in (1, full) for size, full in pairs)


def _span(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.6g}" if low == high else f"{low:.6g} ... {high:.6g}"
