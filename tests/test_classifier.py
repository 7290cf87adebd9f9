"""`OTReweightedClassifier`: what it learns and what it shows."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from classifier_helpers import (
    STRATEGIES,
    WEIGHT_COLUMNS,
    quick,
    tail_recall,
)
from nets_for_tests import (
    MeanWeights,
    NormDropoutMLP,
    long_tailed_digits,
    small_net,
)
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import recall_score
from skorch import NeuralNetClassifier
from torch import nn
from torch.utils.data import Subset, TensorDataset

from sk_otreweight import (
    LabelCost,
    OTReweightedClassifier,
    PrototypeMetaSet,
    SemiRelaxedWeights,
    WeightVector,
    WholeMetaSet,
)
from sk_otreweight.randomness import seeded

# Learning


def fit_learner(seed, **params):
    data = long_tailed_digits(seed)
    clf = quick(small_net(max_epochs=8), random_state=seed, **params)
    return clf.fit(data.X, data.y, meta=data.meta)


def mean_tail_recall(**params):
    return np.mean(
        [
            tail_recall(fit_learner(seed, **params), long_tailed_digits(seed))
            for seed in (0, 1)
        ]
    )


@pytest.fixture(scope="module")
def plain_tail():
    return mean_tail_recall(loss="net", max_epochs=0)


@pytest.fixture(scope="module")
def longer_tail():
    """As many epochs as with weights, to see what the weights do by themselves."""
    uniform = {"weights": WeightVector(lr=0), "max_epochs": 6}
    return {
        finetune: mean_tail_recall(finetune=finetune, **uniform)
        for finetune in ("head", "all")
    }


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize(
    ("weights", "gain"),
    [("vector", 0.1), ("net", 0.0), ("attention", 0.0), ("semirelaxed", 0.25)],
)
def test_rare_classes_gain(weights, gain, finetune, plain_tail, longer_tail):
    recall = mean_tail_recall(weights=weights, finetune=finetune, max_epochs=6)
    assert recall > longer_tail[finetune] + gain
    assert recall > plain_tail + 0.1 + gain


def test_who_leaves_the_defaults_alone_sees_the_gain():
    recalls = []
    for params in ({"loss": "net", "max_epochs": 0}, {}):
        for seed in (0, 1):
            data = long_tailed_digits(seed)
            clf = OTReweightedClassifier(random_state=seed, **params)
            clf.fit(data.X, data.y, meta=data.meta)
            balanced = clf.predict(data.X_test)
            balanced = recall_score(data.y_test, balanced, average="macro")
            recalls.append((balanced, tail_recall(clf, data)))
    plain, weighted = np.split(np.array(recalls), 2)
    assert (weighted[:, 0] > plain[:, 0]).all()
    assert (weighted - plain)[:, 1].mean() > 0.05


# Fitted attributes


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_fitted_attributes(weights, finetune, few):
    X, y, meta = few
    clf = quick(small_net(max_epochs=2, batch_size=16), weights=weights)
    clf.set_params(finetune=finetune, max_epochs=3)
    assert clf.fit(X, y, meta=meta) is clf
    assert clf.classes_.tolist() == [4, 7, 8, 9]
    assert clf.n_features_in_ == 64
    assert clf.sample_weight_.shape == y.shape
    assert clf.sample_weight_.dtype == np.float64
    assert clf.sample_weight_.mean() == pytest.approx(1)
    assert clf.sample_weight_.min() >= 0
    means = [clf.sample_weight_[y == label].mean() for label in clf.classes_]
    np.testing.assert_allclose(clf.class_weight_, means, rtol=1e-6)
    counts = [(y == label).sum() for label in clf.classes_]
    np.testing.assert_array_equal(clf.class_counts_, counts)
    assert isinstance(clf.net_, NeuralNetClassifier)
    assert clf.net_.module_.head.out_features == 4
    assert type(clf.weights_).__name__ in str(clf.weights_)
    assert clf.cost_.mix == 0.5
    assert isinstance(clf.meta_set_, PrototypeMetaSet)


def test_sample_weight_is_aligned_with_the_rows(few):
    X, y, meta = few
    order = np.random.default_rng(0).permutation(len(X))
    net = small_net(max_epochs=0)  # features do not depend on the order of the rows
    first = quick(net, cost="feature", max_epochs=1).fit(X, y, meta=meta)
    second = quick(net, cost="feature", max_epochs=1).fit(X[order], y[order], meta=meta)
    assert first.sample_weight_.std() > 0.1
    np.testing.assert_allclose(
        second.sample_weight_, first.sample_weight_[order], rtol=1e-4
    )


def test_weight_vector_learns_the_row_it_is_told(few):
    """A cost that is low for one row only moves the weight of that row."""
    X, y, meta = few
    special = 17

    def cost(features, labels, meta_features, meta_labels):
        is_special = (features == row).all(1)
        return (~is_special).float()[:, None].expand(-1, len(meta_labels)) + 0.1

    net = FrozenEstimator(nn.Sequential(nn.Identity(), nn.Linear(64, 4)))
    row = torch.from_numpy(X[special])
    clf = quick(net, weights="vector", cost=cost, max_epochs=3).fit(X, y, meta=meta)
    assert clf.sample_weight_.argmax() == special
    others = np.delete(clf.sample_weight_, special)
    assert clf.sample_weight_[special] > 1.5 * others.max()


@pytest.mark.parametrize("weights", STRATEGIES)
def test_history(weights, few):
    X, y, meta = few
    clf = quick(weights=weights, max_epochs=3).fit(X, y, meta=meta)
    history = clf.history_
    assert history is clf.net_.history
    assert history[:, "epoch"] == [1, 2, 3, 4, 5]
    assert history[:, "stage"] == [1, 1, 2, 2, 2]
    assert len(history[:, "train_loss"]) == 5
    for column in WEIGHT_COLUMNS:
        assert len(history[:, column]) == 5
    assert history[:2, "weights_ess"] == [1.0, 1.0]
    assert history[:2, "weights_kl"] == [0.0, 0.0]
    assert np.isnan(history[:2, "ot_cost"]).all()
    assert all(0 < value < 1 for value in history[2:, "weights_ess"])
    assert all(value > 0 for value in history[2:, "weights_kl"])
    assert all(value > 0 for value in history[2:, "ot_cost"])


def test_statistics_of_the_weights_are_those_of_the_weights(few):
    X, y, meta = few
    clf = quick(small_net(max_epochs=1, batch_size=-1)).fit(X, y, meta=meta)
    w = clf.sample_weight_
    ess = w.sum() ** 2 / (len(w) * (w**2).sum())
    assert clf.history_[-1, "weights_ess"] == pytest.approx(ess, rel=1e-5)
    kl = (w * np.log(w)).mean()
    assert clf.history_[-1, "weights_kl"] == pytest.approx(kl, rel=1e-4)


# Randomness


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_same_random_state_same_result(weights, finetune, few):
    X, y, _ = few
    net = small_net(NormDropoutMLP, max_epochs=2, batch_size=16)
    clf = quick(net, weights=weights, finetune=finetune)
    first = clf.fit(X, y).predict_proba(X)
    weight = clf.sample_weight_
    torch.rand(3), np.random.rand(3)  # noqa: NPY002 - must not matter
    again = clone(clf).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), first)
    np.testing.assert_array_equal(again.sample_weight_, weight)
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), first)
    other = clone(clf).set_params(random_state=1).fit(X, y)
    assert (other.predict_proba(X) != first).any()


@pytest.mark.parametrize("weights", STRATEGIES)
@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generators_stay_untouched(random_state, weights, few):
    X, y, _ = few
    net = small_net(NormDropoutMLP, max_epochs=1)
    clf = quick(net, random_state=random_state, weights=weights, meta_set="random")
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()  # noqa: NPY002
    clf.fit(X, y).predict_proba(X)
    clf.partial_fit(X[:20], y[:20])
    clone(clf).partial_fit(X, y, classes=[4, 7, 8, 9])
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(numpy_after[1], numpy_before[1])
    assert numpy_after[2] == numpy_before[2]


class OneGenerator:
    """What torch has for a device, with a seed as the state of its generator."""

    def __init__(self, takes_device):
        self.state, self.takes_device, self.seen = 7, takes_device, []

    def get_rng_state(self, *device):
        assert len(device) == self.takes_device
        return self.state

    def set_rng_state(self, state, *device):
        assert len(device) == self.takes_device
        self.state = state

    def manual_seed(self, seed):
        self.state = seed

    @contextmanager
    def device(self, device):
        self.seen.append(device)
        yield


@pytest.mark.parametrize(("kind", "device"), [("mps", "mps"), ("xpu", "xpu:1")])
def test_the_device_of_the_net_is_seeded_and_restored(kind, device, monkeypatch):
    module = OneGenerator(takes_device=kind != "mps")
    monkeypatch.setattr(torch, kind, module)
    with seeded(3, device):
        assert module.state == 3
    assert module.state == 7
    assert module.seen == ([torch.device(device)] if module.takes_device else [])


def test_other_devices_are_not_seeded(monkeypatch):
    """Their generators would not be restored."""
    seeded_all = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_all.append)
    with seeded(3):
        drawn = torch.rand(5)
    assert not seeded_all
    assert torch.equal(drawn, torch.rand(5, generator=torch.Generator().manual_seed(3)))


def test_loaders_do_not_draw_from_the_global_generator(few):
    X, y, meta = few
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    rows = Subset(rows, range(len(y)))  # goes through a DataLoader
    before = torch.get_rng_state()
    clf = quick().fit(rows, None, meta=meta)
    clf.predict(rows)
    clf.suspicious_rows(rows, y)
    clf.transport_problem(rows, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_random_state_differs_from_fit_to_fit(few):
    X, y, meta = few
    clf = quick(random_state=None)
    first = clf.fit(X, y, meta=meta).predict_proba(X)
    assert (clf.fit(X, y, meta=meta).predict_proba(X) != first).any()


def test_a_random_state_instance_moves_on(few):
    X, y, meta = few
    clf = quick(random_state=np.random.RandomState(3))
    first = clf.fit(X, y, meta=meta).predict_proba(X)
    assert (clf.fit(X, y, meta=meta).predict_proba(X) != first).any()
    again = quick(random_state=np.random.RandomState(3)).fit(X, y, meta=meta)
    np.testing.assert_array_equal(again.predict_proba(X), first)


# Components of one's own


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_module_class_as_weight_net(finetune, digits):
    clf = quick(weights=MeanWeights, finetune=finetune)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    assert isinstance(clf.weights_.module_, MeanWeights)
    assert clf.history_[-1, "weights_kl"] > 0
    assert clf.class_weight_[-3:].mean() > clf.class_weight_[:3].mean()


@pytest.mark.parametrize("weights", STRATEGIES)
def test_callable_cost(weights, digits):
    def manhattan(features, labels, meta_features, meta_labels):
        distance = torch.cdist(features, meta_features, 1) / features.shape[1]
        return distance + (labels[:, None] != meta_labels[None, :])

    clf = quick(cost=manhattan, weights=weights, loss="net")
    clf.fit(digits.X, digits.y, meta=digits.meta)
    assert clf.class_weight_[-3:].mean() > clf.class_weight_[:3].mean()


@pytest.mark.parametrize("weights", ["vector", "net"])
def test_pot_solver_gives_the_same_weights(weights, few):
    X, y, meta = few
    ours, pot = (
        quick(weights=weights, solver=solver, random_state=0).fit(X, y, meta=meta)
        for solver in ("sinkhorn", "pot")
    )
    np.testing.assert_allclose(pot.sample_weight_, ours.sample_weight_, rtol=1e-3)
    assert ours.history_[-1, "weights_kl"] > 1e-3


@pytest.mark.parametrize("reg", [0.1, 1.0])
def test_pot_solver_converges(reg, digits):
    """In float32, which the net computes in, as well: no warning, no 10000 sweeps."""
    net = small_net(max_epochs=1, batch_size=-1)
    clf = quick(net, weights="vector", solver="pot", reg=reg, max_epochs=1)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    same = clone(clf).set_params(solver="sinkhorn")
    same.fit(digits.X, digits.y, meta=digits.meta)
    np.testing.assert_allclose(clf.sample_weight_, same.sample_weight_, rtol=1e-3)


def test_components_are_cloned(few):
    X, y, meta = few
    parts = {
        "weights": SemiRelaxedWeights(),
        "cost": LabelCost(),
        "meta_set": WholeMetaSet(),
    }
    clf = quick(**parts).fit(X, y, meta=meta)
    assert clf.weights_ is not parts["weights"]
    assert clf.weights is parts["weights"]
    assert not hasattr(parts["weights"], "values_")
