"""Re-weighting of training examples with optimal transport, for imbalanced data."""

from sk_otreweight.audit import suspicious_rows
from sk_otreweight.baselines import BASELINES
from sk_otreweight.classifier import OTReweightedClassifier
from sk_otreweight.comparison import compare
from sk_otreweight.costs import (
    CombinedCost,
    Cost,
    FeatureCost,
    FunctionCost,
    LabelCost,
    SquaredEuclideanCost,
)
from sk_otreweight.datasets import (
    load_cifar,
    load_fashion_mnist,
    load_modelnet10,
    load_movie_reviews,
    make_long_tailed,
    make_solids,
)
from sk_otreweight.meta_sets import (
    MetaSet,
    PrototypeMetaSet,
    RandomMetaSet,
    WholeMetaSet,
)
from sk_otreweight.persistence import load
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.sample_weight import (
    OTReweightedEstimator,
    compute_ot_sample_weight,
)
from sk_otreweight.transport import (
    POTSolver,
    SinkhornSolver,
    TransportPlan,
    TransportSolver,
    semirelaxed_weights,
    sinkhorn,
    transport_cost,
    transport_value_and_grad,
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
    "BASELINES",
    "AttentionWeightNet",
    "CombinedCost",
    "Cost",
    "FeatureCost",
    "FunctionCost",
    "LabelCost",
    "MetaSet",
    "ModuleWeights",
    "OTReweightedClassifier",
    "OTReweightedEstimator",
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
    "compare",
    "compute_ot_sample_weight",
    "load",
    "load_cifar",
    "load_fashion_mnist",
    "load_modelnet10",
    "load_movie_reviews",
    "make_long_tailed",
    "make_solids",
    "semirelaxed_weights",
    "sinkhorn",
    "suspicious_rows",
    "transport_cost",
    "transport_value_and_grad",
]
