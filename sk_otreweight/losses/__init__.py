"""Losses for imbalanced classes: plain modules, for any training loop."""

from sk_otreweight.losses.class_balanced import ClassBalancedLoss
from sk_otreweight.losses.deferred import DeferredReweightingLoss
from sk_otreweight.losses.focal import FocalLoss
from sk_otreweight.losses.influence import InfluenceBalancedLoss
from sk_otreweight.losses.ldam import CosineLinear, LDAMLoss
from sk_otreweight.losses.logit_adjusted import BalancedSoftmaxLoss, LogitAdjustedLoss

__all__ = [
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "CosineLinear",
    "DeferredReweightingLoss",
    "FocalLoss",
    "InfluenceBalancedLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
]
