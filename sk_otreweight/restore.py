"""What an estimator was before something went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sklearn.base import BaseEstimator


@contextmanager
def kept_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give an estimator back the attributes it had if something goes wrong."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
