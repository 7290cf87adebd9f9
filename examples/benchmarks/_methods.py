"""The methods of the tables: every baseline, and the recipes of this package."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.base import BaseEstimator

from sk_otreweight import BASELINES, OTReweightedClassifier

# What a sceptic asks for first.
CONTROLS = (
    "ce",
    "ce_meta",
    "meta_head",
    "inverse",
    "logit_adjustment",
    "logit_adjustment_posthoc",
)

DEFAULT = "within (the default): logit-adjusted loss, weights within classes"


class AdjustedInStageTwo(OTReweightedClassifier):
    """The defaults, but for stage 1, which `compare` gives it as cross-entropy."""

    begins_with = "net"


def baselines(names: Sequence[str] = tuple(BASELINES)) -> dict[str, BaseEstimator]:
    """Return baselines by name, with their defaults.

    But for one: Hu et al. take a backward pass per row, so their method trains the head
    alone.
    """
    params = {"hu2019": {"finetune": "head"}}
    return {name: BASELINES[name](**params.get(name, {})) for name in names}


def control() -> dict[str, BaseEstimator]:
    """Return what "adjusted" and "robust" are without transport.

    The same loss on the same rows: without it, what the meta rows are worth in training
    would be taken for a gain of the weights.
    """
    method = BASELINES["logit_adjustment"](train_on_meta=True)
    return {"logit_adjustment + meta rows": method}


def ours() -> dict[str, BaseEstimator]:
    """Return what this package offers: the defaults, and the recipes."""
    recipes = {
        "ot_paper": "paper",
        "ot_released_code": "released-code",
        "ot_adjusted": "adjusted",
        "ot_robust": "robust",
    }
    return {"ot": OTReweightedClassifier()} | {
        name: OTReweightedClassifier.from_recipe(recipe)
        for name, recipe in recipes.items()
    }


def pretrained() -> dict[str, BaseEstimator]:
    """Return the recipe for features of a pretrained encoder."""
    return {"ot_pretrained": OTReweightedClassifier.from_recipe("pretrained")}


def balances(lr: float) -> dict[str, BaseEstimator]:
    """Return trials of what balances the classes, weights or the loss.

    Parameters
    ----------
    lr : float
        Learning rate of the net.
    """
    return {
        "between: weights between classes": OTReweightedClassifier(loss="net"),
        "between, stage 2 at half the rate": OTReweightedClassifier(
            loss="net", lr=lr / 2
        ),
        DEFAULT: OTReweightedClassifier(),
        "within, in stage 2 alone": AdjustedInStageTwo(),
    }
