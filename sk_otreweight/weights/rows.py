"""Strategies that hold a weight for each training row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sk_otreweight.weights.base import Rows, WeightStrategy, positive


class RowWeights(WeightStrategy):
    """Base of the strategies that hold the weights themselves, as ``values_`` (n,)."""

    needs = frozenset({"index"})

    values_: Tensor

    def log_weights(self, rows: Rows) -> Tensor:
        """Return the log of the rows' weights."""
        return self.masses(rows).log()

    def masses(self, rows: Rows) -> Tensor:
        """Return the rows' weights, those that are zero a little above it."""
        return positive(self.loss_weights(rows))

    def synchronise(self, rows: Rows, processes: Any) -> None:
        """Give all processes the weights of each other's rows."""
        index = processes.gather(rows.index)
        self.values_[index] = processes.gather(self.values_[rows.index])

    def loss_weights(self, rows: Rows) -> Tensor:
        """Return the rows' weights (n,), of mean 1 over the training set."""
        # A copy: what was handed out stays as it is when the weights move on.
        return self.values_.clone() if rows.index is None else self.values_[rows.index]
