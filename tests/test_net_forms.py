"""What `OTReweightedClassifier` takes as net."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import (
    STRATEGIES,
    Recorder,
    assert_same_state,
    quick,
    state,
)
from nets_for_tests import (
    DoubleMLP,
    NormDropoutMLP,
    OneLogitMLP,
    SmallCNN,
    SmallMLP,
    SoftmaxMLP,
    small_net,
)
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetBinaryClassifier
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

from sk_otreweight import (
    OTReweightedClassifier,
)

# Forms of the net


def test_net_none_is_a_small_mlp(few):
    X, y, meta = few
    clf = OTReweightedClassifier(max_epochs=1, random_state=0).fit(X, y, meta=meta)
    assert len(clf.history_) == clf.net_.max_epochs + 1
    assert clf.net is None


def test_module_class_and_skorch_net_of_the_same(few):
    X, y, meta = few
    bare = quick(SmallMLP).fit(X, y, meta=meta)
    # The settings that the docstring names.
    net = small_net(lr=3e-3, max_epochs=30, batch_size=32)
    skorch = quick(net).fit(X, y, meta=meta)
    np.testing.assert_array_equal(bare.predict_proba(X), skorch.predict_proba(X))


def test_module_factory(few):
    X, y, meta = few

    def factory(n_features, n_classes):
        return SmallMLP(n_features, n_classes, hidden=5)

    clf = quick(factory).fit(X, y, meta=meta)
    assert clf.net_.module_.head.in_features == 5


def test_lazy_module(few):
    X, y, meta = few

    def lazy():
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))

    clf = quick(lazy, weights="vector").fit(X, y, meta=meta)
    assert clf.net_.module_[0].in_features == 64
    instance = quick(lazy()).fit(X, y, meta=meta)
    assert instance.net_.module_[2].in_features == 8


def test_module_instance_starts_pretrained_and_is_not_changed(few):
    X, y, meta = few
    module = NormDropoutMLP(64, 4)
    module.eval()
    module.body[0].weight.requires_grad_(False)
    before = state(module)
    clf = quick(module, max_epochs=2, finetune="all")
    clf.fit(X, y, meta=meta)
    assert_same_state(before, module.state_dict())
    assert not module.training
    after = clf.net_.module_.state_dict()
    assert torch.equal(after["body.0.weight"], before["body.0.weight"])
    assert not clf.net_.module_.body[0].weight.requires_grad
    assert not torch.equal(after["body.4.weight"], before["body.4.weight"])
    # Without training it is the same function.
    untrained = small_net(module, max_epochs=0)
    clf = quick(untrained, max_epochs=0).fit(X, y, meta=meta)
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).double().softmax(1)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


class KnowsDevice(SmallMLP):
    """Tells its device, as modules of Lightning and Hugging Face do."""

    @property
    def device(self):
        return torch.device("meta")  # not where it is trained


@pytest.mark.parametrize("net", [KnowsDevice, KnowsDevice(64, 4)], ids=["class", "own"])
def test_a_module_that_tells_its_device(net, few):
    X, y, meta = few
    clf = quick(net, max_epochs=1).fit(X, y, meta=meta)
    clf.partial_fit(X, y)
    assert clf.net_.device == "cpu"
    quick(FrozenEstimator(KnowsDevice(64, 4)), max_epochs=1).fit(X, y, meta=meta)


@pytest.mark.parametrize("form", ["uninitialised", "initialised", "over_instance"])
def test_skorch_net_is_not_changed(form, few):
    X, y, meta = few
    module = SmallMLP(64, 4) if form == "over_instance" else SmallMLP
    sizes = (
        {}
        if form == "over_instance"
        else {
            "module__n_features": 64,
            "module__n_classes": 4,
        }
    )
    net = small_net(module, max_epochs=1, callbacks=[Recorder()], **sizes)
    if form == "initialised":
        net.fit(X, np.searchsorted([4, 7, 8, 9], y))
    if form == "uninitialised":
        clf = quick(net).fit(X, y, meta=meta)
        assert not net.initialized_
        assert not hasattr(net.callbacks[0], "events_")
        assert clf.net_ is not net
        return
    inner = net.module_ if form == "initialised" else net.module
    before, events = state(inner), list(getattr(net.callbacks[0], "events_", []))
    clf = quick(net).fit(X, y, meta=meta)
    assert_same_state(before, inner.state_dict())
    assert getattr(net.callbacks[0], "events_", []) == events
    assert len(net.history_ or []) == (1 if form == "initialised" else 0)
    assert len(clf.history_) == 3
    # An instance brings its weights along, an initialised net does not.
    start = quick(clone(net).set_params(max_epochs=0), max_epochs=0)
    start = start.fit(X, y, meta=meta).net_.module_.state_dict()
    is_same = torch.equal(start["head.weight"], before["head.weight"])
    assert is_same == (form == "over_instance")


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_frozen_skorch_net_skips_stage_one(finetune, few):
    X, y, meta = few
    net = small_net(max_epochs=5, module__n_features=64, module__n_classes=4)
    net.fit(X, np.searchsorted([4, 7, 8, 9], y))
    before, n_epochs = state(net.module_), len(net.history)
    clf = quick(FrozenEstimator(net), finetune=finetune, max_epochs=3)
    clf.fit(X, y, meta=meta)
    assert len(clf.history_) == 8
    assert clf.history_[-3:, "stage"] == [2, 2, 2]
    assert clf.history_[:, "epoch"] == list(range(1, 9))
    assert len(net.history) == n_epochs
    assert_same_state(before, net.module_.state_dict())
    after = clf.net_.module_.state_dict()
    body_is_same = torch.equal(after["body.0.weight"], before["body.0.weight"])
    assert body_is_same == (finetune == "head")
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_frozen_module_skips_stage_one(few):
    X, y, meta = few
    module = NormDropoutMLP(64, 4)
    before = state(module)
    clf = quick(FrozenEstimator(module), finetune="head").fit(X, y, meta=meta)
    assert clf.history_[:, "stage"] == [2, 2]
    assert_same_state(before, module.state_dict())
    after = clf.net_.module_.state_dict()
    assert_same_state(before, after, [name for name in before if "body" in name])
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ("bare", "semirelaxed"),
        ("instance", "semirelaxed"),
        *(("skorch", weights) for weights in STRATEGIES),
    ],
)
def test_one_score_for_two_classes(form, weights, finetune, digits):
    y, y_meta = digits.y > 5, digits.y_meta > 5  # few are
    names = np.array(["common", "rare"])
    net = {
        "bare": OneLogitMLP,
        "instance": OneLogitMLP(64),
        "skorch": NeuralNetBinaryClassifier(
            OneLogitMLP,
            optimizer=torch.optim.Adam,
            lr=0.01,
            max_epochs=3,
            train_split=None,
            verbose=0,
        ),
    }[form]
    clf = quick(net, weights=weights, finetune=finetune, meta_loss_weight=0.1)
    clf.fit(
        digits.X, names[y.astype(int)], meta=(digits.X_meta, names[y_meta.astype(int)])
    )
    assert isinstance(clf.net_, NeuralNetBinaryClassifier)
    probabilities = clf.predict_proba(digits.X_test)
    assert probabilities.shape == (len(digits.X_test), 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    if weights in ("vector", "semirelaxed"):  # few steps do for these
        assert clf.class_weight_[1] > clf.class_weight_[0]
    assert set(clf.predict(digits.X_test)) <= set(names)
    clf.partial_fit(digits.X[:50], names[y[:50].astype(int)])


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_probabilities_with_nll_loss(finetune, digits):
    net = small_net(SoftmaxMLP, criterion=nn.NLLLoss)
    clf = quick(net, finetune=finetune, weights="vector")
    clf.fit(digits.X, digits.y, meta=digits.meta)
    same = quick(small_net(), finetune=finetune, weights="vector")
    same.fit(digits.X, digits.y, meta=digits.meta)
    np.testing.assert_allclose(
        clf.predict_proba(digits.X_test), same.predict_proba(digits.X_test), atol=1e-4
    )


def test_probabilities_are_in_float64_and_sum_to_1(digits):
    for net in (small_net(), small_net(SoftmaxMLP, criterion=nn.NLLLoss)):
        clf = quick(net).fit(digits.X, digits.y, meta=digits.meta)
        probabilities = clf.predict_proba(digits.X_test)
        assert probabilities.dtype == np.float64
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(
            clf.classes_[probabilities.argmax(1)], clf.predict(digits.X_test)
        )


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_float64_net(weights, finetune, few):
    X, y, meta = few
    clf = quick(small_net(DoubleMLP, max_epochs=2), weights=weights, finetune=finetune)
    clf.fit(X, y, meta=meta)
    assert clf.net_.module_.head.weight.dtype is torch.float64
    clf.partial_fit(X[:20], y[:20])
    assert clf.predict_proba(X).shape == (len(X), 4)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_images(weights, finetune, digits):
    def images(X):
        return X.reshape(-1, 1, 8, 8)

    meta = images(digits.X_meta), digits.y_meta
    clf = quick(small_net(SmallCNN, max_epochs=4), weights=weights, finetune=finetune)
    clf.fit(images(digits.X), digits.y, meta=meta)
    assert clf.score(images(digits.X_test), digits.y_test) > 0.6
    clf.partial_fit(images(digits.X[:30]), digits.y[:30])


def test_own_data_loader(digits):
    net = small_net(
        iterator_train__num_workers=0,
        iterator_train__drop_last=True,
        iterator_train__shuffle=True,
    )
    for weights in STRATEGIES:
        clf = quick(net, weights=weights, loss="net")
        clf.fit(digits.X, digits.y, meta=digits.meta)
        assert clf.net_.iterator_train is DataLoader
        assert clf.history_[-1, "train_batch_count"] == len(digits.X) // 64
        sizes = [batch["train_batch_size"] for batch in clf.history_[-1]["batches"]]
        assert set(sizes) == {64}
        assert clf.sample_weight_.shape == digits.y.shape
        assert clf.class_weight_[-3:].mean() > clf.class_weight_[:3].mean()


def test_own_sampler(digits):
    """Only the rows that the sampler picks get other weights, and they are aligned."""
    picked = np.arange(0, len(digits.X), 2)
    net = small_net(
        iterator_train__shuffle=False, iterator_train__sampler=picked.tolist()
    )
    clf = quick(net, weights="vector").fit(digits.X, digits.y, meta=digits.meta)
    moved = clf.sample_weight_ != np.median(clf.sample_weight_[1::2])
    np.testing.assert_array_equal(moved[1::2], False)
    assert moved[picked].mean() > 0.9
    sampler = RandomSampler(range(len(digits.X)), num_samples=100)
    net.set_params(iterator_train__sampler=sampler)
    clf = quick(net, weights="vector").fit(digits.X, digits.y, meta=digits.meta)
    assert clf.history_[-1, "train_batch_count"] == 2


def test_own_collate(digits):
    """A user's collate_fn sees items (X, y) as in any other training."""
    net = small_net(iterator_train__collate_fn=collate_pairs)
    clf = quick(net, weights="vector").fit(digits.X, digits.y, meta=digits.meta)
    assert clf.sample_weight_.shape == digits.y.shape


class OwnLoader:
    """No DataLoader, so nobody knows which rows its batches hold."""

    def __init__(self, dataset, batch_size, shuffle=False):
        self.loader = DataLoader(dataset, batch_size, shuffle)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader)


def test_own_loader_will_do_for_a_weight_net(digits):
    net = small_net(iterator_train=OwnLoader)
    clf = quick(net, weights="net").fit(digits.X, digits.y, meta=digits.meta)
    assert clf.sample_weight_.mean() == pytest.approx(1)


def test_own_loader_cannot_serve_a_weight_per_row(digits):
    net = small_net(iterator_train=OwnLoader)
    with pytest.raises(ValueError, match="without row numbers.*DataLoader"):
        quick(net, weights="vector").fit(digits.X, digits.y, meta=digits.meta)


def collate_pairs(items):
    X, y = zip(*items, strict=True)
    return torch.as_tensor(np.stack(X)), torch.as_tensor(y)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_validation_split(weights, finetune, digits):
    scoring = EpochScoring("balanced_accuracy", lower_is_better=False, name="balanced")
    net = small_net(
        train_split=ValidSplit(3, stratified=True),
        callbacks=[("balanced", scoring)],
        max_epochs=2,
    )
    clf = quick(net, weights=weights, finetune=finetune)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    assert len(clf.history_[:, ("valid_loss", "balanced", "valid_acc")]) == 4
    assert clf.sample_weight_.shape == digits.y.shape
    if weights == "vector":  # rows of the split are never trained on
        valid = clf.net_.get_split_datasets(digits.X, digits.y)[1].indices
        assert len(np.unique(clf.sample_weight_[valid])) == 1
    if finetune == "head":
        train = [
            batch["train_batch_size"]
            for batch in clf.history_[-1]["batches"]
            if "train_batch_size" in batch
        ]
        assert sum(train) == pytest.approx(len(digits.X) * 2 / 3, abs=8)


def split_of_a_split(dataset, y=None, **kwargs):
    rest = Subset(dataset, range(20, len(dataset)))
    return Subset(rest, range(10, len(rest))), Subset(dataset, range(20))


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_split_of_a_split_is_trained_on(finetune, digits):
    net = small_net(train_split=split_of_a_split)
    clf = quick(net, weights="vector", finetune=finetune)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    weights = clf.sample_weight_
    assert len(np.unique(weights[:30])) == 1
    assert (weights[30:] != weights[0]).mean() > 0.9


def test_a_last_row_of_a_data_set_joins_the_batch_before(digits):
    """A single row cannot be normalised over its batch."""
    data = TensorDataset(torch.from_numpy(digits.X), torch.from_numpy(digits.y))
    items = Subset(data, range(65))  # two batches of 32, and one more
    clf = quick(NormDropoutMLP, max_epochs=1, cost="label").fit(items, None)
    sizes = [batch["train_batch_size"] for batch in clf.history_[0]["batches"]]
    assert sizes == [32, 33]


def test_verbose_is_that_of_nets_made_here(capsys, few):
    X, y, meta = few
    quick(SmallMLP, verbose=0).fit(X, y, meta=meta)
    assert capsys.readouterr().out == ""
    quick(SmallMLP, verbose=1, max_epochs=1).fit(X, y, meta=meta)
    assert "ot_cost" in capsys.readouterr().out


def test_head_of_ones_choice(digits):
    """By name, by function and found: the same features, so the same weights."""
    X, y, meta = digits.X, digits.y, digits.meta
    net = small_net(NormDropoutMLP, max_epochs=2)
    for finetune in ("head", "all"):
        found, named, function = (
            quick(net, head=head, finetune=finetune).fit(X, y, meta=meta)
            for head in (None, "head", lambda module, X: module.body(X))
        )
        np.testing.assert_array_equal(named.sample_weight_, found.sample_weight_)
        np.testing.assert_array_equal(
            named.predict_proba(X[:50]), found.predict_proba(X[:50])
        )
        np.testing.assert_allclose(
            function.sample_weight_, found.sample_weight_, rtol=1e-3
        )
