"""How far the weights of an epoch have moved, and what transport cost is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sk_otreweight.weights import Rows

# Batches, and rows of them, that are held until they are summed up, which takes several
# calls. Large ones are summed up at once: held, they would scatter the memory.
_MOST_HELD, _MOST_ROWS = 64, 2**12


class WeightStatistics:
    """Sums over the weights that batches were given since the last summary."""

    def __init__(self) -> None:
        self._last_cost = float("nan")
        self._forget()

    def add_weights(self, weights: Tensor, rows: Rows, *, per_batch: bool) -> None:
        """Take in the weights of some rows, that may be scaled to mean 1 as a batch."""
        # Copies: whoever has the weights or labels may change them in place.
        rows = rows._replace(features=None, labels=rows.labels.clone(), index=None)
        self._weights.append((weights.clone(), rows, per_batch))
        self._n_held += weights.numel()
        if len(self._weights) == _MOST_HELD or self._n_held >= _MOST_ROWS:
            self._sum_up_weights()

    def add_costs(self, costs: Any) -> None:
        """Take in the transport costs of some batches: an array or Tensor (...,)."""
        self._costs.append(costs)
        if len(self._costs) == _MOST_HELD:
            self._sum_up_costs()

    def summary(self) -> dict[str, float]:
        """Return the statistics of :meth:`Reweighter.statistics`, and begin anew."""
        self._sum_up_weights()
        self._sum_up_costs()
        n, total, squares, log_ratio, start = self._sums
        if n == 0:
            ess, divergence = 1.0, 0.0
        else:
            ess = float(total**2 / (n * squares))
            divergence = float(log_ratio / total - torch.log(total / start))
        n_costs, cost = self._cost_sums
        if n_costs:  # a closed form is not solved anew in every epoch
            self._last_cost = float(cost / n_costs)
        self._forget()
        return {
            "weights_ess": ess,
            "weights_kl": max(divergence, 0.0),
            "ot_cost": self._last_cost,
        }

    def _forget(self) -> None:
        self._weights: list[tuple[Tensor, Rows, bool]] = []
        self._n_held = 0
        self._costs: list[Any] = []
        self._sums: tuple[Any, ...] = (0, 0.0, 0.0, 0.0, 0.0)
        self._cost_sums: tuple[Any, ...] = (0, 0.0)

    def _sum_up_weights(self) -> None:
        if not self._weights:
            return
        weights = torch.cat([weights for weights, *_ in self._weights])
        start = torch.cat([_start(*others) for _, *others in self._weights])
        self._weights, self._n_held = [], 0
        log_ratio = torch.special.xlogy(weights, weights / start)
        sums = weights.sum(), weights.square().sum(), log_ratio.sum(), start.sum()
        self._sums = _added(self._sums, (len(weights), *sums))

    def _sum_up_costs(self) -> None:
        if not self._costs:
            return
        costs = torch.cat([torch.as_tensor(x).flatten() for x in self._costs])
        self._costs = []
        self._cost_sums = _added(self._cost_sums, (len(costs), costs.sum()))


def _start(rows: Rows, per_batch: bool) -> Tensor:
    """Return the start weights, scaled as the weights are."""
    start = rows.start
    return len(start) * start / start.sum() if per_batch else start


def _added(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x + y for x, y in zip(old, new, strict=True))
