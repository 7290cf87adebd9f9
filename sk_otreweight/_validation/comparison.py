"""What is compared, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator, is_classifier

from sk_otreweight._validation.parameters import check_count


def check_seeds(seeds: Any) -> list[int]:
    """Return the seeds, of which a number n stands for 0 ... n - 1."""
    if not isinstance(seeds, Sequence) or isinstance(seeds, str):
        check_count(seeds, name="seeds")
        return list(range(seeds))
    for seed in seeds:
        check_count(seed, name="seeds", minimum=0)
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r} is not valid: give different integers.")
    return list(seeds)


def check_compared(pairs: list[tuple[str, Any]], *, known: list[str]) -> None:
    """Raise unless all that is compared are classifiers with different names."""
    if not pairs:
        raise ValueError("No estimators were given: give names or classifiers.")
    for name, estimator in pairs:
        if estimator is None:
            raise ValueError(f"{name!r} is not known. Valid names are {known}.")
        is_estimator = isinstance(estimator, BaseEstimator)
        if not (is_estimator and is_classifier(estimator)):
            raise ValueError(
                f"{name!r} is no classifier, but {estimator!r}: give an instance."
            )
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Several estimators are called {twice}: give a dict of names and "
            "estimators."
        )
