"""The rows of a training set that look least like their class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

from sk_otreweight._validation import (
    check_inputs,
    check_labels,
    check_meta_labels,
    check_reg,
    check_tensor,
    encode_labels,
)
from sk_otreweight.costs import FeatureCost
from sk_otreweight.meta_sets import class_means

if TYPE_CHECKING:
    import pandas as pd

# Numbers of a block of rows held at a time, features and costs together (8 MiB).
_BLOCK_ENTRIES = 2**20


def suspicious_rows(
    features: Any,
    y: Any,
    *,
    meta: tuple[Any, Any] | None = None,
    reg: float = 0.1,
    as_frame: bool = False,
) -> Bunch | pd.DataFrame:
    r"""Rank the rows of a training set by how unlike their class they are.

    Each class sends a mass of as many units as it has rows, :math:`n_j`, from its
    prototype to all rows, at the least entropic transport cost (the closed form of
    :func:`semirelaxed_weights`). A row that is like its class gets most of its mass
    from there; the share that comes from other classes is its score:

    .. math:: T_{ij} = n_j \frac{\exp(-C_{ij} / \lambda)}
                                {\sum_l \exp(-C_{lj} / \lambda)}, \qquad
              \mathrm{score}_i = 1 - \frac{T_{i y_i}}{\sum_j T_{ij}} .

    :math:`C_{ij}` is the cosine distance (Eq. 8) of row and prototype as seen from
    the mean of the prototypes, so that adding a constant to a feature changes nothing.

    Parameters
    ----------
    features : array-like or Tensor of shape (n_samples, n_features)
        One vector per row, such as the input of a classifier head, on any device.
    y : array-like of shape (n_samples,)
        Their class labels of any type, some of which may be wrong.
    meta : tuple (features, labels), default=None
        Trusted rows, at least one of each class: prototypes are their class means.
        With none, prototypes are the means of the rows of each class, wrong labels
        included. Worth having if some classes are rare.
    reg : float, default=0.1
        Weight lambda of the entropy, in units of the cost. The larger, the closer are
        all scores to the share of rows that other classes have.
    as_frame : bool, default=False
        Return a pandas DataFrame.

    Returns
    -------
    rows : Bunch or DataFrame
        An entry per row, the most suspicious first, equals in the order of the rows:

        index : ndarray of shape (n_samples,)
            Position of the row in `features`.
        label : ndarray of shape (n_samples,)
            Its label in `y`.
        nearest_class : ndarray of shape (n_samples,)
            The class that it gets most mass from.
        score : ndarray of shape (n_samples,)
            Share of its mass that comes from other classes, in [0, 1].

    Raises
    ------
    ValueError
        If `features` and `y` differ in length, values are missing, there is a single
        class, a class has a single row or `meta` lacks one, or `reg` is not positive.
    ImportError
        If a DataFrame is asked for and pandas is not installed.

    Notes
    -----
    A score compares a row with the other rows; it is not the probability that its label
    is wrong. The longer a net has learned wrong labels by heart, the fewer of them its
    features show: prefer few epochs.

    Memory beyond the features is that of a block of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sk_otreweight import suspicious_rows
    >>> X, y = load_wine(return_X_y=True)
    >>> y[[10, 100]] = 2  # two wrong labels
    >>> rows = suspicious_rows(StandardScaler().fit_transform(X), y)
    >>> rows.index[:2]
    array([ 10, 100])
    >>> rows.nearest_class[:2]
    array([0, 1])
    """
    check_reg(reg)
    z = _check_features(features, name="features")
    y = _check_labels(y, n_rows=len(z))
    classes, codes = np.unique(y, return_inverse=True)
    prototypes = _prototypes(z, codes, classes, meta)
    labels = torch.from_numpy(codes).to(z.device)
    with torch.no_grad():
        odds, nearest = _log_odds(z, labels, prototypes, reg)
    # Log-odds rank the rows that a small reg gives a score of 0 or 1, too.
    order = odds.argsort(descending=True, stable=True)
    index = order.cpu().numpy()
    rows = Bunch(
        index=index,
        label=y[index],
        nearest_class=classes[nearest[order].cpu().numpy()],
        score=odds[order].sigmoid().cpu().numpy(),
    )
    return _as_frame(rows) if as_frame else rows


def _log_odds(
    z: Tensor, labels: Tensor, prototypes: Tensor, reg: float
) -> tuple[Tensor, Tensor]:
    """Return log-odds (n,) of other classes against the own, and the nearest class."""
    logits = _logits(z, labels, prototypes, reg)
    size = max(1, _BLOCK_ENTRIES // (z.shape[1] + len(prototypes)))
    blocks = [slice(start, start + size) for start in range(0, len(z), size)]
    totals = torch.stack([logits(rows).logsumexp(0) for rows in blocks]).logsumexp(0)
    potential = labels.bincount().double().log() - totals
    odds, nearest = [], []
    for rows in blocks:
        log_plan = logits(rows) + potential
        own = labels[rows, None]
        others = log_plan.scatter(1, own, -torch.inf).logsumexp(1)
        odds.append(others - log_plan.gather(1, own)[:, 0])
        nearest.append(log_plan.argmax(1))
    return torch.cat(odds), torch.cat(nearest)


def _logits(
    z: Tensor, labels: Tensor, prototypes: Tensor, reg: float
) -> Callable[[slice], Tensor]:
    """Return a function of a slice of the rows: ``-C / reg``, in float64."""
    origin = prototypes.mean(0)
    points = prototypes - origin
    classes = torch.arange(len(prototypes), device=z.device)

    def logits(rows: slice) -> Tensor:
        C = FeatureCost()(z[rows] - origin, labels[rows], points, classes)
        return C.double() / -reg

    return logits


def _prototypes(z: Tensor, codes: np.ndarray, classes: np.ndarray, meta: Any) -> Tensor:
    """Return the class means (K, d) of the rows themselves or of trusted ones."""
    if len(classes) < 2:
        raise ValueError(
            f"y holds 1 class, {classes.tolist()}: a row is suspicious if it is nearer "
            "to another class. Give rows of at least two classes."
        )
    if meta is None:
        single = np.flatnonzero(np.bincount(codes) == 1)
        if single.size:
            raise ValueError(
                f"Class {classes[single][:10].tolist()} has a single row, which would "
                "be compared with itself. Leave the class out, or pass trusted rows as "
                "meta=(features, labels)."
            )
        points = z
    else:
        points, codes = _check_meta(meta, classes, n_features=z.shape[1])
        check_tensor(points.to(z), name="the meta features")
    return class_means(points.to(z), torch.from_numpy(codes).to(z.device))[0]


def _check_meta(
    meta: Any, classes: np.ndarray, *, n_features: int
) -> tuple[Tensor, np.ndarray]:
    if not isinstance(meta, tuple) or len(meta) != 2:
        raise ValueError(
            f"meta must be a pair (features, labels), got a {type(meta).__name__}."
        )
    points = _check_features(meta[0], name="the meta features")
    codes = check_meta_labels(meta[1], n_rows=len(points))
    codes = encode_labels(codes, classes, name="The meta set")
    if points.shape[1] != n_features:
        raise ValueError(
            f"The meta rows have {points.shape[1]} features, the rows {n_features}: "
            "take both from the same layer of the same net."
        )
    missing = np.setdiff1d(np.arange(len(classes)), codes)
    if missing.size:
        raise ValueError(
            f"No meta row is of class {classes[missing][:10].tolist()}: a class needs "
            "one for its prototype. Add some, or leave meta out."
        )
    return points, codes


def _check_features(features: Any, *, name: str) -> Tensor:
    """Return features as a finite tensor (n, d) of single or double precision."""
    z = check_inputs(features, name=name)
    if not isinstance(z, Tensor):
        z = torch.from_numpy(np.require(z, requirements=["C", "W"]))
    if z.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(z.shape)}: give a vector of features per row, "
            "shape (n, d)."
        )
    return z if z.dtype == torch.float64 else z.float()


def _check_labels(y: Any, *, n_rows: int) -> np.ndarray:
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    y = check_labels(y)
    if len(y) != n_rows:
        raise ValueError(
            f"features has {n_rows} rows and y {len(y)} labels: give one label per row."
        )
    return y


def _as_frame(rows: Bunch) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "as_frame=True needs pandas, which is not installed: run `pip install "
            "pandas`, or leave as_frame out."
        ) from error
    return pd.DataFrame(dict(rows))
