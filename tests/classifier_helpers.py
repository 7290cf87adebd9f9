"""What the tests of the classifier share."""

from __future__ import annotations

import numpy as np
import torch
from nets_for_tests import (
    small_net,
)
from sklearn.metrics import recall_score
from skorch.callbacks import Callback

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


class Recorder(Callback):
    """Notes what it is told of, and checks what it is given."""

    def initialize(self):
        self.events_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.events_.append("train_begin")

    def on_train_end(self, net, **kwargs):
        self.events_.append("train_end")

    def on_epoch_begin(self, net, **kwargs):
        self.events_.append("epoch_begin")

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.events_.append("epoch_end")
        assert len(dataset_train) > 0

    def on_batch_end(self, net, batch, training, y_pred, loss, **kwargs):
        assert not (training and y_pred.shape[0] != len(batch[0]))

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.events_.append("grad")
