"""The weights themselves: the closed form on the columns of X."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from sk_otreweight._validation import (
    check_drawable,
    check_labels,
    check_meta_arguments,
    check_meta_labels,
    encode_labels,
    warn_missing_meta_classes,
    warn_other_steps,
)
from sk_otreweight.costs import CombinedCost
from sk_otreweight.meta_sets import draw_rows
from sk_otreweight.randomness import draw_seed
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.sample_weight.columns import StandardisedColumns


def compute_ot_sample_weight(
    X: Any,
    y: Any,
    *,
    X_meta: Any = None,
    y_meta: Any = None,
    cost: Any = None,
    meta_set: Any = "prototype",
    reg: float = 0.1,
    random_state: Any = None,
) -> np.ndarray:
    """Return weights of the rows that bring them close to a balanced distribution.

    The closed form of :class:`SemiRelaxedWeights`, with the columns of X as features.
    Columns are standardised first, because distances between rows mean little
    when the columns differ in scale: the mean and the standard deviation of X become 0
    and 1, constant columns count as 0, and NaN as the mean of its column.

    Parameters
    ----------
    X : array-like or DataFrame of shape (n_samples, n_features)
        Numeric rows, which may hold NaN. A cost that looks at labels only never looks
        at X, so that anything with a length will do.
    y : array-like of shape (n_samples,)
        Class labels of any type.
    X_meta : array-like or DataFrame of shape (n_meta, n_features), default=None
        A small balanced set of trusted rows. With none, it is drawn from the rows of X.
    y_meta : array-like of shape (n_meta,), default=None
        Labels of the meta rows; goes with `X_meta`.
    cost : str, Cost or callable, default=None
        ``"label"`` (Eq. 7), ``"feature"`` (8), ``"combined"`` (9), ``"sqeuclidean"``,
        a :class:`Cost`, or a function (see :class:`FunctionCost`). None is
        ``CombinedCost(mix=0.9)``, in which features count a fifth: columns that no net
        has learned tell less about how typical a row is.
    meta_set : str or MetaSet, default="prototype"
        ``"prototype"`` (12), ``"whole"`` (5), ``"random"``, or a :class:`MetaSet`,
        whose `per_class` says how many rows are drawn when no meta set is given.
    reg : float, default=0.1
        Weight lambda of the entropy (10), in units of the cost.
    random_state : int, RandomState instance or None, default=None
        Seed of what is drawn. The global generators stay untouched.

    Returns
    -------
    weights : ndarray of shape (n_samples,)
        In float64, of mean 1.

    Raises
    ------
    ValueError
        If an argument is not valid, X holds infinity or columns that are not numeric
        and the cost looks at them, or a class has a single row and no meta set is
        given.

    See Also
    --------
    OTReweightedEstimator : Computes these weights and fits a classifier with them.

    References
    ----------
    Guo, Li, Zheng, Zhao, Zhou, Zha, "Learning to re-weight examples with optimal
    transport for imbalanced classification", NeurIPS 2022.

    Examples
    --------
    With the label cost and a small `reg` these are inverse class frequencies.

    >>> from sk_otreweight import compute_ot_sample_weight
    >>> y = ["common", "common", "common", "rare"]
    >>> compute_ot_sample_weight(y, y, cost="label", reg=0.01).round(3)
    array([0.667, 0.667, 0.667, 2.   ])
    """
    reweighter = new_reweighter(cost, meta_set, reg, random_state)
    y = check_row_labels(X, y)
    meta = check_meta_arguments(None, X_meta, y_meta, None, n_rows=len(y))
    return row_weights(reweighter, X, y, meta)


def new_reweighter(cost: Any, meta_set: Any, reg: float, state: Any) -> Reweighter:
    """Return a reweighter that solves the closed form, with a seed of its own."""
    seed = draw_seed(state)
    cost = CombinedCost(mix=0.9) if cost is None else cost
    return Reweighter(cost, "semirelaxed", meta_set, reg=reg, random_state=seed)


def check_row_labels(X: Any, y: Any) -> np.ndarray:
    """Return labels as an array with one class label per row of X."""
    y = check_labels(y)
    check_consistent_length(X, y)
    check_classification_targets(y)
    return y


def row_weights(
    reweighter: Reweighter, X: Any, y: np.ndarray, meta: tuple[Any, Any] | None
) -> np.ndarray:
    """Return the weights (n,) of the rows, of mean 1."""
    classes, labels = np.unique(y, return_inverse=True)
    labels = torch.from_numpy(labels)
    meta_labels = torch.arange(len(classes))
    if meta is not None:
        meta_labels = _encode_meta_labels(*meta, classes)
    features = meta_features = None
    if reweighter.needs_meta_features:
        columns = StandardisedColumns(cost=repr(reweighter.cost_))
        features = columns.fit_transform(X)
        if meta is None:
            rows = _draw_meta_rows(reweighter, labels, classes)
            meta_features, meta_labels = features[rows], labels[rows]
        else:
            meta_features = columns.transform(meta[0])
            warn_other_steps(meta_features, features, lost_names=False)
        meta_points = reweighter.meta_set_.inputs(meta_features, meta_labels)
        meta_features, meta_labels = meta_points
    reweighter.set_meta(meta_labels, meta_features)
    weights = reweighter.set_training_set(labels, features).sample_weight()
    weights = weights.double().numpy()
    return weights * (len(weights) / weights.sum())


def _draw_meta_rows(
    reweighter: Reweighter, labels: Tensor, classes: np.ndarray
) -> Tensor:
    check_drawable(np.bincount(labels), classes)
    return draw_rows(labels, reweighter.meta_set_.per_class, reweighter.generator)


def _encode_meta_labels(X_meta: Any, y_meta: Any, classes: np.ndarray) -> Tensor:
    check_consistent_length(X_meta, y_meta)
    if len(y_meta) == 0:
        raise ValueError("Found 0 samples in X_meta: give some rows of each class.")
    y_meta = check_meta_labels(y_meta, n_rows=len(y_meta))
    labels = encode_labels(y_meta, classes, name="y_meta")
    warn_missing_meta_classes(labels, classes)
    return torch.from_numpy(labels)
