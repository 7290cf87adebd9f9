"""What the tests of the classifier share."""

from __future__ import annotations

import numpy as np
import torch
from nets_for_tests import (
    small_net,
)
from sklearn.metrics import recall_score

from sk_otreweight import (
    OTReweightedClassifier,
)

STRATEGIES = ("vector", "net", "attention", "semirelaxed")
WEIGHT_COLUMNS = ("weights_ess", "weights_kl", "ot_cost")


def quick(net=None, **params):
    """Return a classifier that takes few epochs."""
    if net is None:
        net = small_net(max_epochs=2)
    return OTReweightedClassifier(
        net, **({"max_epochs": 2, "random_state": 0} | params)
    )


def state(module):
    """Return a copy of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(first, second, names=None):
    names = first.keys() if names is None else names
    assert len(names)
    for name in names:
        assert torch.equal(first[name], second[name]), name


def tail_recall(clf, data):
    """Return the mean recall of the three rarest classes."""
    recalls = recall_score(data.y_test, clf.predict(data.X_test), average=None)
    return recalls[-3:].mean()


def chunks(data, size=60, seed=0):
    order = np.random.default_rng(seed).permutation(len(data.X))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield data.X[rows], data.y[rows]
