"""Re-weighting of training examples with optimal transport, for imbalanced data."""

from sk_otreweight.classifier import OTReweightedClassifier
from sk_otreweight.costs import (
    CombinedCost,
    Cost,
    FeatureCost,
    FunctionCost,
    LabelCost,
    SquaredEuclideanCost,
)
from sk_otreweight.datasets import load_fashion_mnist, make_long_tailed
from sk_otreweight.meta_sets import (
    MetaSet,
    PrototypeMetaSet,
    RandomMetaSet,
    WholeMetaSet,
)
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.transport import (
    POTSolver,
    SinkhornSolver,
    TransportPlan,
    TransportSolver,
    semirelaxed_weights,
    sinkhorn,
    transport_cost,
)
from sk_otreweight.weights import (
    AttentionWeightNet,
    ModuleWeights,
    SemiRelaxedWeights,
    WeightNet,
    WeightStrategy,
    WeightVector,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionWeightNet",
    "CombinedCost",
    "Cost",
    "FeatureCost",
    "FunctionCost",
    "LabelCost",
    "MetaSet",
    "ModuleWeights",
    "OTReweightedClassifier",
    "POTSolver",
    "PrototypeMetaSet",
    "RandomMetaSet",
    "Reweighter",
    "SemiRelaxedWeights",
    "SinkhornSolver",
    "SquaredEuclideanCost",
    "TransportPlan",
    "TransportSolver",
    "WeightNet",
    "WeightStrategy",
    "WeightVector",
    "WholeMetaSet",
    "load_fashion_mnist",
    "make_long_tailed",
    "semirelaxed_weights",
    "sinkhorn",
    "transport_cost",
]
