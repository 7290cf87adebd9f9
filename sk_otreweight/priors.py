"""Probabilities for data in which the classes have other shares."""

from __future__ import annotations

import numpy as np


def named_prior(name: str, class_counts: np.ndarray) -> np.ndarray:
    """Return the class shares (K,) that "uniform" or "train" stands for."""
    if name == "uniform":
        return np.full(len(class_counts), 1 / len(class_counts))
    return class_counts / class_counts.sum()


def with_prior(
    probabilities: np.ndarray, assumed: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Return the probabilities under other class shares, by Bayes' rule.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K)
    assumed : ndarray of shape (K,)
        Shares of the classes that the probabilities assume.
    target : ndarray of shape (K,)
        Shares where they are used; classes of share 0 get probability 0.
    """
    # A class that was never seen has no share to divide by: it stays as it is.
    factors = np.divide(target, assumed, out=target.copy(), where=assumed > 0)
    shifted = probabilities * factors
    totals = shifted.sum(axis=1, keepdims=True)
    # Where all that is left has probability 0, the shares themselves are the answer.
    return np.where(totals > 0, shifted / np.where(totals > 0, totals, 1), target)
