"""Weights in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sk_otreweight._validation import check_choice
from sk_otreweight.transport import solve_semirelaxed
from sk_otreweight.weights.base import Rows
from sk_otreweight.weights.rows import RowWeights


class SemiRelaxedWeights(RowWeights):
    """The best weights in closed form, over the whole training set.

    Minimising the transport problem over the plan *and* the weights drops the
    constraint on the rows, and what is left has a closed form (see
    :func:`semirelaxed_weights`): every point of Q spreads its mass over the rows that
    cost it least. No iteration, no step size, no batch that lacks a class. With the
    label cost and ``reg -> 0`` these are inverse class frequencies.

    Parameters
    ----------
    per_class : bool, default=False
        Scale the weights to mean 1 in each class: they tell the rows of a class apart,
        typical ones from those that look wrong, and leave the balance of the classes to
        the loss (``loss="logit_adjusted"``).

    Examples
    --------
    >>> from sk_otreweight import OTReweightedClassifier, SemiRelaxedWeights
    >>> clf = OTReweightedClassifier(weights=SemiRelaxedWeights())
    """

    needs = frozenset({"training_set", "index"})

    def __init__(self, per_class: bool = False):
        self.per_class = per_class

    def check_parameters(self) -> None:
        """Raise if `per_class` is neither True nor False."""
        check_choice(self.per_class, name="per_class", choices=(True, False))

    def start(self, rows: Rows, seed: int) -> None:
        """Weigh all rows alike until solved."""
        self.values_ = torch.ones_like(rows.start)
        self.labels_ = rows.labels if self.per_class else None

    def learned_state(self) -> dict[str, Any]:
        """Return the weights; the labels are needed only while they are solved for."""
        state = super().learned_state()
        state.pop("labels_", None)
        return state

    def solve(
        self, cost: Callable[[slice], Tensor], mass: Tensor, reg: float, n_rows: int
    ) -> Tensor:
        """Solve the closed form."""
        weights, transport_cost = solve_semirelaxed(cost, mass, reg, n_rows=n_rows)
        if self.per_class:
            weights = weights / mean_weights(weights, self.labels_)[self.labels_]
        self.values_ = (n_rows / weights.sum() * weights).to(self.values_.dtype)
        return transport_cost


def mean_weights(weights: Tensor, labels: Tensor) -> Tensor:
    """Return the mean weight of the rows of each class (K,), 1 if all are 0."""
    counts = labels.bincount()
    sums = weights.new_zeros(len(counts)).index_add_(0, labels, weights)
    means = sums / counts.clamp(min=1)
    return means.where(means > 0, torch.ones_like(means))
