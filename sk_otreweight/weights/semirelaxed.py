"""Weights in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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

    Examples
    --------
    >>> from sk_otreweight import OTReweightedClassifier, SemiRelaxedWeights
    >>> clf = OTReweightedClassifier(weights=SemiRelaxedWeights())
    """

    needs = frozenset({"training_set", "index"})

    def start(self, rows: Rows, seed: int) -> None:
        """Weigh all rows alike until solved."""
        self.values_ = torch.ones_like(rows.start)

    def solve(
        self, cost: Callable[[slice], Tensor], mass: Tensor, reg: float, n_rows: int
    ) -> Tensor:
        """Solve the closed form."""
        weights, transport_cost = solve_semirelaxed(cost, mass, reg, n_rows=n_rows)
        self.values_ = (n_rows / weights.sum() * weights).to(self.values_.dtype)
        return transport_cost
