"""How the weights of the training rows are represented and moved (section 4.3).

A strategy knows nothing of transport: it says which weights a batch has, and takes the
gradient of the transport cost with respect to the batch's probabilities.
"""

from sk_otreweight.weights.base import Rows, WeightStrategy
from sk_otreweight.weights.nets import AttentionWeightNet, ModuleWeights, WeightNet
from sk_otreweight.weights.semirelaxed import SemiRelaxedWeights
from sk_otreweight.weights.start import START_WEIGHTS, class_start_weights
from sk_otreweight.weights.strategies import WEIGHTS, resolve_weights
from sk_otreweight.weights.vector import WeightVector

__all__ = [
    "AttentionWeightNet",
    "ModuleWeights",
    "Rows",
    "START_WEIGHTS",
    "SemiRelaxedWeights",
    "WEIGHTS",
    "WeightNet",
    "WeightStrategy",
    "WeightVector",
    "class_start_weights",
    "resolve_weights",
]
