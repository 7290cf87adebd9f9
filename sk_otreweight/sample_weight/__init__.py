"""Optimal transport weights for every classifier that takes `sample_weight`."""

from sk_otreweight.sample_weight.estimator import OTReweightedEstimator
from sk_otreweight.sample_weight.weights import compute_ot_sample_weight

__all__ = ["OTReweightedEstimator", "compute_ot_sample_weight"]
