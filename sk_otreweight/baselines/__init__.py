"""What people compare with: the methods of the paper's tables as estimators."""

from sk_otreweight.baselines.balms import BALMSClassifier
from sk_otreweight.baselines.base import BaselineClassifier
from sk_otreweight.baselines.bbn import BBNClassifier
from sk_otreweight.baselines.decoupled import (
    CRTClassifier,
    DisAlignClassifier,
    LWSClassifier,
    MetaHeadClassifier,
)
from sk_otreweight.baselines.example_weights import Hu2019Classifier
from sk_otreweight.baselines.influence import (
    InfluenceBalancedCBClassifier,
    InfluenceBalancedClassifier,
    InfluenceBalancedFocalClassifier,
)
from sk_otreweight.baselines.learned import (
    L2RWClassifier,
    MetaClassifier,
    MetaClassWeightClassifier,
)
from sk_otreweight.baselines.losses import (
    BalancedSoftmaxClassifier,
    ClassBalancedFocalClassifier,
    FocalClassifier,
    LogitAdjustmentClassifier,
)
from sk_otreweight.baselines.margins import LDAMClassifier, LDAMDRWClassifier
from sk_otreweight.baselines.meta_weight_net import MetaWeightNetClassifier
from sk_otreweight.baselines.metasaug import MetaSAugClassifier
from sk_otreweight.baselines.oltr import OLTRClassifier
from sk_otreweight.baselines.posthoc import (
    NearestClassMeanClassifier,
    OTPosthocClassifier,
    PosthocLogitAdjustmentClassifier,
    TauNormClassifier,
)
from sk_otreweight.baselines.weighting import (
    ClassBalancedClassifier,
    CrossEntropyClassifier,
    CrossEntropyWithMetaClassifier,
    InverseFrequencyClassifier,
)

BASELINES: dict[str, type[BaselineClassifier]] = {
    baseline.short_name: baseline
    for baseline in (
        CrossEntropyClassifier,
        CrossEntropyWithMetaClassifier,
        InverseFrequencyClassifier,
        ClassBalancedClassifier,
        FocalClassifier,
        ClassBalancedFocalClassifier,
        LDAMClassifier,
        LDAMDRWClassifier,
        LogitAdjustmentClassifier,
        BalancedSoftmaxClassifier,
        InfluenceBalancedClassifier,
        InfluenceBalancedCBClassifier,
        InfluenceBalancedFocalClassifier,
        PosthocLogitAdjustmentClassifier,
        TauNormClassifier,
        NearestClassMeanClassifier,
        OTPosthocClassifier,
        CRTClassifier,
        LWSClassifier,
        DisAlignClassifier,
        MetaHeadClassifier,
        L2RWClassifier,
        MetaWeightNetClassifier,
        MetaClassWeightClassifier,
        Hu2019Classifier,
        MetaSAugClassifier,
        BALMSClassifier,
        BBNClassifier,
        OLTRClassifier,
    )
}

__all__ = [
    "BASELINES",
    "BALMSClassifier",
    "BBNClassifier",
    "BalancedSoftmaxClassifier",
    "BaselineClassifier",
    "CRTClassifier",
    "ClassBalancedClassifier",
    "ClassBalancedFocalClassifier",
    "CrossEntropyClassifier",
    "CrossEntropyWithMetaClassifier",
    "DisAlignClassifier",
    "FocalClassifier",
    "Hu2019Classifier",
    "InfluenceBalancedCBClassifier",
    "InfluenceBalancedClassifier",
    "InfluenceBalancedFocalClassifier",
    "InverseFrequencyClassifier",
    "L2RWClassifier",
    "LDAMClassifier",
    "LDAMDRWClassifier",
    "LWSClassifier",
    "LogitAdjustmentClassifier",
    "MetaClassWeightClassifier",
    "MetaClassifier",
    "MetaHeadClassifier",
    "MetaSAugClassifier",
    "MetaWeightNetClassifier",
    "NearestClassMeanClassifier",
    "OLTRClassifier",
    "OTPosthocClassifier",
    "PosthocLogitAdjustmentClassifier",
    "TauNormClassifier",
]
