"""The strategies by name."""

from __future__ import annotations

from typing import Any

from sk_otreweight._validation import resolve
from sk_otreweight.weights.base import WeightStrategy
from sk_otreweight.weights.nets import AttentionWeightNet, ModuleWeights, WeightNet
from sk_otreweight.weights.semirelaxed import SemiRelaxedWeights
from sk_otreweight.weights.vector import WeightVector

WEIGHTS: dict[str, type[WeightStrategy]] = {
    "vector": WeightVector,
    "net": WeightNet,
    "attention": AttentionWeightNet,
    "semirelaxed": SemiRelaxedWeights,
}


def resolve_weights(weights: Any) -> WeightStrategy:
    """Return the strategy that a name, an instance or a module class stands for."""
    return resolve(
        weights, slot="weights", table=WEIGHTS, base=WeightStrategy, wrap=ModuleWeights
    )
