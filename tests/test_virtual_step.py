"""Batch and meta rows pass the virtually updated net together where they can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import DoubleMLP, SmallMLP, small_net
from skorch import NeuralNetClassifier

from sk_otreweight import virtual_step as module
from sk_otreweight.virtual_step import VirtualStep


@pytest.mark.parametrize("virtual_step", ["first_order", "exact"])
def test_together_and_apart(digits, virtual_step, monkeypatch):
    passes = []
    pass_net = VirtualStep._features

    def counted(self, X):
        passes.append(len(X))
        return pass_net(self, X)

    monkeypatch.setattr(VirtualStep, "_features", counted)

    def fitted():
        passes.clear()
        clf = quick(
            small_net(DoubleMLP, max_epochs=1),
            weights="vector",
            finetune="all",
            virtual_step=virtual_step,
            max_epochs=2,
        )
        clf.fit(digits.X, digits.y, meta=digits.meta)
        return clf, list(passes)

    together, of_both = fitted()
    monkeypatch.setattr(module, "_are_alike", lambda batches: False)
    apart, of_each = fitted()
    n_meta = len(digits.meta[1])
    assert of_each[1::2] == [n_meta] * len(of_both)
    assert [n - n_meta for n in of_both] == of_each[::2]
    np.testing.assert_allclose(together.sample_weight_, apart.sample_weight_, rtol=1e-8)
    assert np.ptp(together.sample_weight_) > 0.01


PLAIN = {
    "criterion": torch.nn.CrossEntropyLoss, "lr": 0.1, "max_epochs": 1,
    "train_split": None, "verbose": 0,
}  # fmt: skip


class FrozenBody(SmallMLP):
    def __init__(self, n_features, n_classes):
        super().__init__(n_features, n_classes)
        self.body.requires_grad_(False)


class HeadStepper(NeuralNetClassifier):
    """Has the head stepped alone."""

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.SGD(self.module_.head.parameters(), lr=self.lr)
        return self


@pytest.mark.parametrize(
    ("kind", "body"),
    [(NeuralNetClassifier, FrozenBody), (HeadStepper, SmallMLP)],
)
def test_an_extractor_that_is_not_trained_is_not_moved(kind, body, digits):
    found = []
    for virtual_step in (None, "first_order", "exact"):
        net = kind(body, **PLAIN)
        params = {"weights": "vector", "finetune": "all", "virtual_step": virtual_step}
        clf = quick(net, **params).fit(digits.X, digits.y, meta=digits.meta)
        found.append(clf.sample_weight_)
    assert np.ptp(found[0]) > 0.01
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_array_equal(found[2], found[1])


class TwoOptimizers(NeuralNetClassifier):
    """Steps the head by an optimizer of its own, and the bias of the body by none."""

    def initialize_optimizer(self, *args, **kwargs):
        self.optimizer_ = torch.optim.SGD([self.module_.body[0].weight], lr=self.lr)
        self.head_optimizer_ = torch.optim.SGD(self.module_.head.parameters(), lr=0.5)
        return self

    def train_step(self, batch, **fit_params):
        self.head_optimizer_.zero_grad()
        result = super().train_step(batch, **fit_params)
        self.head_optimizer_.step()
        return result


@pytest.mark.parametrize("virtual_step", ["first_order", "exact"])
def test_a_net_of_two_optimizers(digits, virtual_step):
    net = TwoOptimizers(SmallMLP, **PLAIN)
    clf = quick(net, weights="vector", finetune="all", virtual_step=virtual_step)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    assert np.ptp(clf.sample_weight_) > 0.001
    module_, rates = clf.net_.module_, module._learning_rates(clf.net_)
    assert rates == {
        id(module_.body[0].weight): 0.1,
        id(module_.head.weight): 0.5,
        id(module_.head.bias): 0.5,
    }


@pytest.mark.parametrize(
    ("other", "are_alike"),
    [
        (torch.ones(5, 3), True),
        (torch.ones(5, 3, dtype=torch.float64), False),
        (torch.ones(5, 2), False),
        (torch.ones(5, 3, 1), False),
        ({"x": torch.ones(5, 3)}, False),
    ],
)
def test_batches_that_can_be_put_together(other, are_alike):
    assert module._are_alike([torch.ones(2, 3), other]) == are_alike
