"""Figures that tell how well rare classes are recognised, and if scores can be trusted.

All are functions of labels and predictions; ``sklearn.metrics.make_scorer`` makes
scorers of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_otreweight._validation import (
    check_choice,
    check_count,
    check_probabilities,
    check_thresholds,
)

GROUPS = ("many", "medium", "few")


class GroupRecall(NamedTuple):
    """Mean recall of the classes with many, some and few training rows.

    Attributes
    ----------
    many, medium, few : float
        NaN for a group that has no class.

    Examples
    --------
    >>> from sk_otreweight.metrics import many_medium_few_recall
    >>> y_train = [0] * 200 + [1] * 50 + [2] * 5
    >>> many_medium_few_recall([0, 1, 2, 2], [0, 1, 2, 0], y_train=y_train).few
    0.5
    """

    many: float
    medium: float
    few: float


def class_recall(y_true: Any, y_pred: Any, *, labels: Any = None) -> np.ndarray:
    """Return the recall of each class.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)
    labels : array-like of shape (n_classes,), default=None
        The classes, in the order of the result; None are those in `y_true`, sorted.

    Returns
    -------
    recall : ndarray of shape (n_classes,)
        NaN for classes that `y_true` lacks.

    Examples
    --------
    >>> from sk_otreweight.metrics import class_recall
    >>> class_recall([0, 0, 1, 1], [0, 1, 1, 1])
    array([0.5, 1. ])
    """
    y_true, y_pred = column_or_1d(y_true), column_or_1d(y_pred)
    check_consistent_length(y_true, y_pred)
    classes = np.unique(y_true) if labels is None else column_or_1d(labels)
    # What is predicted beside these classes counts as wrong.
    seen = np.unique(np.concatenate([classes, y_true, y_pred]))
    matrix = confusion_matrix(y_true, y_pred, labels=seen)
    rows = np.searchsorted(seen, classes)
    with np.errstate(invalid="ignore"):
        return matrix[rows, rows] / matrix[rows].sum(axis=1)


def many_medium_few_recall(
    y_true: Any,
    y_pred: Any,
    *,
    y_train: Any,
    thresholds: tuple[float, float] = (20, 100),
    by: str = "count",
) -> GroupRecall:
    """Return the mean recall of classes with many, some and few training rows.

    As in OLTR (Liu et al., CVPR 2019): "few" are classes of at most 20 training rows,
    "many" those of at least 100.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)
    y_train : array-like of shape (n_train,)
        The labels that the model was trained on.
    thresholds : tuple of two float, default=(20, 100)
        Most rows of a "few" class and least rows of a "many" class. If `by` is
        "quantile", two quantiles of the class counts.
    by : {"count", "quantile"}, default="count"
        "quantile" for small data, as with ``thresholds=(1/3, 2/3)``.

    Returns
    -------
    recall : GroupRecall
        NaN for a group that has no class in `y_true`.

    Raises
    ------
    ValueError
        If a class of `y_true` is not in `y_train`, or an argument is not valid.

    Examples
    --------
    >>> from sk_otreweight.metrics import many_medium_few_recall
    >>> many_medium_few_recall([0, 0, 1, 1], [0, 0, 0, 1], y_train=[0] * 100 + [1])
    GroupRecall(many=1.0, medium=nan, few=0.5)
    """
    classes, groups = _class_groups(y_true, y_train, thresholds, by)
    recall = class_recall(y_true, y_pred, labels=classes)
    means = []
    for group in GROUPS:
        known = recall[(groups == group) & ~np.isnan(recall)]
        means.append(float(known.mean()) if len(known) else float("nan"))
    return GroupRecall(*means)


def group_recall(
    y_true: Any,
    y_pred: Any,
    *,
    y_train: Any,
    group: str = "few",
    thresholds: tuple[float, float] = (20, 100),
    by: str = "count",
) -> float:
    """Return one of the figures of :func:`many_medium_few_recall`, for a scorer.

    Parameters
    ----------
    y_true, y_pred, y_train
        As in :func:`many_medium_few_recall`.
    group : {"many", "medium", "few"}, default="few"
    thresholds, by
        As in :func:`many_medium_few_recall`.

    Returns
    -------
    recall : float

    Examples
    --------
    >>> from sklearn.metrics import make_scorer
    >>> from sk_otreweight.metrics import group_recall
    >>> few = make_scorer(group_recall, y_train=[0] * 100 + [1], group="few")
    """
    check_choice(group, name="group", choices=GROUPS)
    recall = many_medium_few_recall(
        y_true, y_pred, y_train=y_train, thresholds=thresholds, by=by
    )
    return getattr(recall, group)


def balanced_error(y_true: Any, y_pred: Any) -> float:
    """Return the mean error rate of the classes, 1 - balanced accuracy.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)

    Returns
    -------
    error : float

    Examples
    --------
    >>> from sk_otreweight.metrics import balanced_error
    >>> balanced_error([0, 0, 0, 1], [0, 0, 0, 0])
    0.5
    """
    return float(1 - class_recall(y_true, y_pred).mean())


def geometric_mean_recall(y_true: Any, y_pred: Any) -> float:
    """Return the geometric mean of the recalls: 0 if a class is never recognised.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_samples,)

    Returns
    -------
    recall : float

    Examples
    --------
    >>> from sk_otreweight.metrics import geometric_mean_recall
    >>> geometric_mean_recall([0, 1, 1, 1, 1], [0, 1, 0, 0, 0])
    0.5
    """
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(class_recall(y_true, y_pred)).mean()))


def expected_calibration_error(
    y_true: Any, y_proba: Any, *, labels: Any = None, n_bins: int = 15
) -> float:
    """Return how far confidence and accuracy are apart, on average.

    Predictions are sorted into `n_bins` bins of equal width by the probability of the
    predicted class; the gaps between the mean of it and the accuracy in a bin are
    averaged over the predictions (Guo et al., ICML 2017).

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
    y_proba : array-like of shape (n_samples, n_classes), or (n_samples,) if binary
        Probabilities; those of the second class if they are 1-dimensional.
    labels : array-like of shape (n_classes,), default=None
        Classes of the columns; None are those in `y_true`, sorted.
    n_bins : int, default=15

    Returns
    -------
    error : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If `y_proba` is no table of probabilities, or has other columns than classes.

    Examples
    --------
    >>> from sk_otreweight.metrics import expected_calibration_error
    >>> expected_calibration_error([0, 1], [[0.75, 0.25], [0.75, 0.25]])
    0.25
    """
    check_count(n_bins, name="n_bins")
    y_true = column_or_1d(y_true)
    classes = np.unique(y_true) if labels is None else column_or_1d(labels)
    y_proba = check_probabilities(y_proba, n_rows=len(y_true), n_classes=len(classes))
    confidence = y_proba.max(axis=1)
    is_right = classes[y_proba.argmax(axis=1)] == y_true
    # Bins are closed on the right; a confidence of 0 belongs to the first.
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, confidence - is_right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y_true))


def _class_groups(
    y_true: Any, y_train: Any, thresholds: tuple[float, float], by: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and the group of each."""
    check_choice(by, name="by", choices=("count", "quantile"))
    low, high = check_thresholds(thresholds, most=1.0 if by == "quantile" else np.inf)
    classes, counts = np.unique(column_or_1d(y_train), return_counts=True)
    unknown = np.setdiff1d(column_or_1d(y_true), classes)
    if len(unknown):
        raise ValueError(
            f"y_true has classes that y_train lacks: {unknown.tolist()}. Pass the "
            "labels that the model was trained on as y_train."
        )
    if by == "quantile":
        low, high = np.quantile(counts, [low, high])
    return classes, np.select(
        [counts <= low, counts >= high], ["few", "many"], "medium"
    )
