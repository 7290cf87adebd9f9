"""A long-tailed training set with a balanced meta set, drawn from any data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_random_state, column_or_1d


def make_long_tailed(
    X: ArrayLike,
    y: ArrayLike,
    imbalance_factor: float = 100,
    *,
    meta_per_class: int = 10,
    n_max: int | None = None,
    label_noise: float = 0.0,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    r"""Draw a long-tailed training set and a small balanced meta set.

    The meta rows are drawn first, `meta_per_class` of each class. From the rows
    that are left, class :math:`k = 0, \dots, K - 1` (in sorted order) keeps

    .. math:: n_k = \max(1, \lfloor n_{\max} \, IF^{-k / (K - 1)} \rfloor)

    rows for training, so the first class is the largest and the last one is
    :math:`IF` times smaller.

    Parameters
    ----------
    X : array-like or DataFrame of shape (n_samples, ...)
        Samples of any shape; rows are taken from it as they are.
    y : array-like of shape (n_samples,)
        Class labels, two classes or more.
    imbalance_factor : float, default=100
        Size of the largest class divided by the size of the smallest, at least 1.
    meta_per_class : int, default=10
        Number of meta rows per class. They are taken out of the training rows.
        With 0 the meta set is empty.
    n_max : int or None, default=None
        Number of training rows of the first class. With `None`, what the
        smallest class has left without its meta rows: every class can supply
        its count then.
    label_noise : float, default=0.0
        Share of the training labels, in [0, 1), that are replaced by another
        class, each of the others being equally likely (symmetric noise). The
        meta labels stay clean.
    random_state : int, RandomState instance or None, default=None
        Determines the rows, their order and the noise. `None` gives different
        rows at every call; numpy's global generator is never used.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        X, X_meta : array or DataFrame of shape (n_train, ...) and (n_meta, ...)
            Training and meta samples, shuffled, of the same kind as the given `X`
            (lists become arrays). ``n_meta = n_classes * meta_per_class``.
        y, y_meta : ndarray of shape (n_train,) and (n_meta,)
            Their labels; `y` with the noise if there is any.
        train_indices, meta_indices : ndarray of shape (n_train,) and (n_meta,)
            Their row numbers in the given `X`.
        classes : ndarray of shape (n_classes,)
            The class labels, sorted.
        class_counts : ndarray of shape (n_classes,)
            Training rows of each class by their true label.
        y_clean : ndarray of shape (n_train,)
            True training labels. Only if `label_noise` is positive.
        flipped : ndarray of shape (n_train,), dtype bool
            Where `y` differs from `y_clean`. Only if `label_noise` is positive.

    Raises
    ------
    ValueError
        If `X` and `y` differ in length; if `y` has a single class, missing labels
        or several columns; if `imbalance_factor` is below 1, `meta_per_class`
        leaves a class without training rows, a class has too few rows for
        `n_max`, or `label_noise` is not in [0, 1).

    See Also
    --------
    load_fashion_mnist : Images to make a long-tailed set of.

    Notes
    -----
    With the same `random_state` and `meta_per_class` the meta rows do not depend
    on the other parameters, and the rows and their order do not depend on
    `label_noise`: the noise can be studied alone.

    Of the labels ``round(label_noise * n_train)`` are flipped; a class of very few
    rows can lose all of them.

    References
    ----------
    .. [1] K. Cao, C. Wei, A. Gaidon, N. Arechiga, T. Ma, "Learning imbalanced
       datasets with label-distribution-aware margin loss", NeurIPS 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight.datasets import make_long_tailed
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X, y, imbalance_factor=20, random_state=0)
    >>> data.class_counts
    array([164, 117,  84,  60,  43,  31,  22,  15,  11,   8])
    >>> data.X.shape, data.X_meta.shape
    ((555, 64), (100, 64))
    """
    labels = column_or_1d(y)
    _check_lengths(X, labels)
    _check_settings(imbalance_factor, meta_per_class, n_max, label_noise)
    classes, codes = _encode(labels)
    _check_classes(classes, np.bincount(codes), meta_per_class)
    if random_state is None:
        random_state = int(np.random.SeedSequence().generate_state(1)[0])
    rng = check_random_state(random_state)

    rows = [rng.permutation(np.flatnonzero(codes == k)) for k in range(len(classes))]
    meta_indices = _shuffled_heads(rows, [meta_per_class] * len(rows), rng)
    rest = [of_class[meta_per_class:] for of_class in rows]
    available = np.array([len(of_class) for of_class in rest])
    largest = available.min() if n_max is None else n_max
    counts = _long_tail(largest, imbalance_factor, len(classes))
    _check_available(classes, counts, available, meta_per_class)
    train_indices = _shuffled_heads(rest, counts, rng)

    data = Bunch(
        X=_take_rows(X, train_indices),
        y=labels[train_indices],
        X_meta=_take_rows(X, meta_indices),
        y_meta=labels[meta_indices],
        train_indices=train_indices,
        meta_indices=meta_indices,
        classes=classes,
        class_counts=counts,
    )
    if label_noise > 0:
        noisy = _flip(codes[train_indices], len(classes), label_noise, rng)
        flipped = noisy != codes[train_indices]
        data.update(y=classes[noisy], y_clean=data.y, flipped=flipped)
    return data


def _check_lengths(X: Any, labels: NDArray[Any]) -> None:
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if n_rows != len(labels):
        raise ValueError(
            f"X has {n_rows} rows and y has {len(labels)} labels; one label per row is "
            "expected. Check that both hold the same samples."
        )


def _check_settings(
    imbalance_factor: Any, meta_per_class: Any, n_max: Any, label_noise: Any
) -> None:
    # `not a <= x` instead of `x < a`: NaN must not pass.
    if not isinstance(imbalance_factor, Real) or not 1 <= imbalance_factor < math.inf:
        raise ValueError(
            f"imbalance_factor={imbalance_factor!r} was given; a finite number of at "
            "least 1 is expected. Pass largest class / smallest class, 1 for equals."
        )
    if not isinstance(meta_per_class, Integral) or meta_per_class < 0:
        raise ValueError(
            f"meta_per_class={meta_per_class!r} was given; an integer of at least 0 is "
            "expected. Use 0 for no meta set."
        )
    if n_max is not None and (not isinstance(n_max, Integral) or n_max < 1):
        raise ValueError(
            f"n_max={n_max!r} was given; an integer of at least 1 or None is expected. "
            "Use None for the largest size that every class can supply."
        )
    if not isinstance(label_noise, Real) or not 0 <= label_noise < 1:
        raise ValueError(
            f"label_noise={label_noise!r} was given; a share in [0, 1) is expected. "
            "Use 0.2 to flip 20 % of the training labels."
        )


def _encode(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    try:
        classes, codes = np.unique(labels, return_inverse=True)
        missing = bool(np.any(classes != classes))
    except TypeError:
        # None, pandas' NA and mixed types cannot be sorted.
        missing = True
    if missing:
        raise ValueError(
            "y has missing labels or labels of several types; labels of one type, one "
            "for each row, are expected. Drop the rows without a label."
        )
    return classes, codes


def _check_classes(
    classes: NDArray[Any], sizes: NDArray[np.int64], meta_per_class: int
) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"y has the classes {classes.tolist()}; at least two are expected. Check "
            "that the rows were not filtered by class."
        )
    smallest = sizes.argmin()
    if meta_per_class >= sizes[smallest]:
        raise ValueError(
            f"meta_per_class={meta_per_class} was given, but class "
            f"{classes.tolist()[smallest]!r} has {sizes[smallest]} row(s), of which at "
            "least one must stay for training. Pass meta_per_class="
            f"{sizes[smallest] - 1} or less, or drop the class."
        )


def _check_available(
    classes: NDArray[Any],
    counts: NDArray[np.int64],
    available: NDArray[np.int64],
    meta_per_class: int,
) -> None:
    short = np.flatnonzero(counts > available)
    if len(short):
        k = short[0]
        raise ValueError(
            f"n_max={counts[0]} was given, which needs {counts[k]} training rows of "
            f"class {classes.tolist()[k]!r}; it has {available[k]} beside its "
            f"{meta_per_class} meta row(s). Lower n_max (None always fits: "
            f"{available.min()} here), lower meta_per_class or raise imbalance_factor."
        )


def _take_rows(X: Any, indices: NDArray[np.int64]) -> Any:
    if hasattr(X, "iloc"):
        return X.iloc[indices]
    return (X if hasattr(X, "shape") else np.asarray(X))[indices]


def _long_tail(
    n_max: int, imbalance_factor: float, n_classes: int
) -> NDArray[np.int64]:
    profile = n_max * float(imbalance_factor) ** -np.linspace(0, 1, n_classes)
    # 98 * 49.0**-1 is 1.9999999999999998, and the count is 2.
    return np.maximum(np.floor(profile * (1 + 1e-12)), 1).astype(np.int64)


def _shuffled_heads(
    rows: list[NDArray[np.int64]],
    counts: Sequence[int] | NDArray[np.int64],
    rng: np.random.RandomState,
) -> NDArray[np.int64]:
    heads = [of_class[:n] for of_class, n in zip(rows, counts, strict=True)]
    return rng.permutation(np.concatenate(heads))


def _flip(
    codes: NDArray[np.int64],
    n_classes: int,
    label_noise: float,
    rng: np.random.RandomState,
) -> NDArray[np.int64]:
    n_flipped = round(label_noise * len(codes))
    chosen = rng.permutation(len(codes))[:n_flipped]
    noisy = codes.copy()
    noisy[chosen] += rng.randint(1, n_classes, size=n_flipped)
    return noisy % n_classes
