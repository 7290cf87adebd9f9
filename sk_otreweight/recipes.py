"""Named sets of parameters of `OTReweightedClassifier`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sk_otreweight.costs import FeatureCost, FunctionCost
from sk_otreweight.meta_sets import PrototypeMetaSet
from sk_otreweight.weights import SemiRelaxedWeights, WeightVector


def released_code_cost(
    features: Tensor, labels: Tensor, meta_features: Tensor, meta_labels: Tensor
) -> Tensor:
    """Return the combined cost (n, m) of the paper's released code.

    The mean of the cosine distance and of the mean squared difference between one-hot
    labels, which is 2 / K where two labels differ.
    """
    cosine = FeatureCost()(features, labels, meta_features, meta_labels)
    mismatch = (labels[:, None] != meta_labels).to(cosine.dtype)
    return cosine / 2 + mismatch / len(meta_labels.unique())


def _paper() -> dict[str, Any]:
    return {
        "cost": "combined",
        "weights": WeightVector(lr=1e-3, update="sgd"),
        "meta_set": "prototype",
        "reg": 0.1,
        "finetune": "all",
        "loss": "net",
        "virtual_step": "first_order",
    }


def _released_code() -> dict[str, Any]:
    return {
        "cost": FunctionCost(released_code_cost),
        "weights": WeightVector(lr=1e-2, update="sgd"),
        "meta_set": PrototypeMetaSet(space="input"),
        "reg": 0.1,
        "finetune": "head",
        "loss": "net",
        "init_weights": "class_balanced",
        "meta_loss_weight": 10.0,
    }


def _adjusted() -> dict[str, Any]:
    return {
        "cost": "combined",
        "weights": SemiRelaxedWeights(per_class=True),
        "meta_set": "prototype",
        "reg": 0.1,
        "finetune": "all",
        "loss": "logit_adjusted",
        "sampling": "square_root",
        "train_on_meta": True,
    }


def _robust() -> dict[str, Any]:
    return _adjusted() | {"reg": 0.2, "restart": True}


def _pretrained() -> dict[str, Any]:
    return _adjusted() | {"reg": 0.025, "sampling": "instance"}


# Each returns new components, so that no two estimators share one.
RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "paper": _paper,
    "released-code": _released_code,
    "adjusted": _adjusted,
    "robust": _robust,
    "pretrained": _pretrained,
}
