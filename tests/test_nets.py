from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from nets_for_tests import DoubleMLP, OneLogitMLP, SmallMLP, TokenMean, small_net
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import EpochScoring
from torch import nn
from torch.utils.data import DataLoader

from sk_otreweight import OTReweightedClassifier
from sk_otreweight.inputs import cast
from sk_otreweight.loaders import RowLoader
from sk_otreweight.nets import MLP, build_net, is_bare

SIZES = {"n_features": 5, "n_classes": 3}
X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
Y = np.arange(12) % 3


def build(net, **params):
    return build_net(net, sizes=SIZES, **params)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_none_is_a_small_mlp():
    net, is_trained = build(None)
    assert not is_trained
    assert not net.initialized_
    assert net.module is MLP
    net.initialize()
    assert net.module_(torch.from_numpy(X)).shape == (12, 3)


@pytest.mark.parametrize(
    ("n_features", "hidden"), [(1, 64), (32, 64), (60, 120), (128, 256), (5000, 256)]
)
def test_width_of_the_mlp(n_features, hidden):
    mlp = MLP(n_features, 4)
    assert mlp.body[0].weight.shape == (hidden, n_features)
    assert mlp.body[2].weight.shape == (hidden, hidden)
    assert mlp.head.weight.shape == (4, hidden)
    assert MLP(n_features, 4, hidden=7).head.in_features == 7


@pytest.mark.parametrize("net", [None, SmallMLP, SmallMLP(5, 3)], ids=str)
def test_what_is_put_around_a_module(net):
    built, _ = build(net, verbose=3)
    assert type(built) is NeuralNetClassifier
    assert built.criterion is nn.CrossEntropyLoss
    assert built.optimizer is torch.optim.Adam
    assert (built.lr, built.max_epochs, built.batch_size) == (3e-3, 30, 32)
    assert built.train_split is None
    assert built.verbose == 3
    assert built.iterator_train is built.iterator_valid is RowLoader
    assert built.get_params()["iterator_train__shuffle"] is True
    assert list(built.classes) == [0, 1, 2]


def test_module_for_one_score():
    net, _ = build_net(
        OneLogitMLP, sizes={"n_features": 5, "n_classes": 2}, one_output=True
    )
    assert type(net) is NeuralNetBinaryClassifier
    assert net.criterion is nn.BCEWithLogitsLoss
    net.initialize()
    assert net.predict_proba(X).shape == (12, 2)


def with_features_only(n_features):
    return nn.Linear(n_features, 3)


def with_classes_only(n_classes):
    return nn.Linear(5, n_classes)


def with_neither():
    return nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (SmallMLP, (3, 32)),
        (partial(SmallMLP, hidden=4), (3, 4)),
        (with_features_only, (3, 5)),
        (with_classes_only, (3, 5)),
        (with_neither, (3, 5)),
        (lambda n_classes, n_features: SmallMLP(n_features, n_classes, 6), (3, 6)),
    ],
)
def test_sizes_go_to_those_who_ask_for_them(factory, shape):
    for given in (factory, small_net(factory)):
        net, _ = build(given)
        module = net.initialize().module_
        assert getattr(module, "head", module).weight.shape == shape


def test_sizes_that_the_user_set_are_kept():
    net, _ = build(small_net(module__n_classes=7, module__hidden=4))
    module = net.initialize().module_
    assert module.head.weight.shape == (7, 4)
    assert module.body[0].in_features == 5


def test_module_instance_is_copied():
    module = SmallMLP(5, 3)
    net, is_trained = build(module)
    assert not is_trained
    net.initialize()
    assert net.module_ is not module
    assert same(net.module_, module)
    with torch.no_grad():
        net.module_.head.weight.zero_()
    assert not same(net.module_, module)


def test_uninitialised_skorch_net_is_cloned():
    scoring = EpochScoring("accuracy", name="mine")
    given = small_net(lr=0.7, batch_size=9, callbacks=[scoring])
    params = given.get_params()
    net, is_trained = build(given)
    assert not is_trained
    assert net is not given
    assert (net.lr, net.batch_size) == (0.7, 9)
    assert net.iterator_train is RowLoader
    assert given.iterator_train is DataLoader
    assert given.classes is None
    assert given.get_params().keys() == params.keys()
    assert net.callbacks[0] is not scoring


def test_initialised_skorch_net_starts_anew():
    given = small_net(module__n_features=5, module__n_classes=3).fit(X, Y)
    before = {name: value.clone() for name, value in given.module_.state_dict().items()}
    net, is_trained = build(given)
    assert not is_trained
    assert not net.initialized_
    assert not same(net.initialize().module_, given.module_)
    assert all(
        torch.equal(given.module_.state_dict()[name], before[name]) for name in before
    )


def test_skorch_net_over_an_instance_keeps_its_weights():
    module = SmallMLP(5, 3)
    net, _ = build(small_net(module))
    net.initialize()
    assert same(net.module_, module)
    assert net.module_ is not module


def test_classes_of_the_net_are_those_of_the_data():
    """A chunk or a split may lack some; skorch would look at that one only."""
    net, _ = build(small_net())
    assert list(net.classes) == [0, 1, 2]
    own, _ = build(small_net(classes=["a", "b", "c"]))
    assert own.classes == ["a", "b", "c"]
    sizes = {"n_features": 5, "n_classes": 2}
    binary, _ = build_net(NeuralNetBinaryClassifier(OneLogitMLP), sizes=sizes)
    assert list(binary.initialize().classes_) == [0, 1]


def test_frozen_skorch_net():
    fitted = small_net(module__n_features=5, module__n_classes=3).fit(X, Y)
    net, is_trained = build(FrozenEstimator(fitted))
    assert is_trained
    assert net.initialized_
    assert net is not fitted
    assert same(net.module_, fitted.module_)
    assert net.module_ is not fitted.module_
    # The optimizer is that of the copy.
    parameters = {id(p) for p in net.module_.parameters()}
    assert {id(p) for p in net.optimizer_.param_groups[0]["params"]} == parameters
    net.partial_fit(X, Y)
    assert not same(net.module_, fitted.module_)


def test_frozen_module():
    module = SmallMLP(5, 3)
    net, is_trained = build(FrozenEstimator(module))
    assert is_trained
    assert net.initialized_
    assert same(net.module_, module)
    assert net.module_ is not module


@pytest.mark.parametrize("inner", [small_net(), SmallMLP, "net", None], ids=str)
def test_frozen_estimator_of_something_untrained(inner):
    with pytest.raises(TypeError, match="FrozenEstimator holds") as error:
        build(FrozenEstimator(inner))
    assert "fitted skorch net" in str(error.value)


@pytest.mark.parametrize("net", ["mlp", 3, [SmallMLP], {"net": SmallMLP}], ids=str)
def test_something_else(net):
    with pytest.raises(TypeError, match="is not a net. Give a torch.nn.Module"):
        build(net)


def test_is_bare():
    assert is_bare(None)
    assert is_bare(SmallMLP)
    assert is_bare(SmallMLP(5, 3))
    assert is_bare(FrozenEstimator(SmallMLP(5, 3)))
    assert not is_bare(small_net())
    assert not is_bare(FrozenEstimator(small_net()))


class TokensAndMore(TokenMean):
    """Takes floats although it embeds tokens: it rounds them itself."""

    def forward(self, X):
        return super().forward(X.long())


@pytest.mark.parametrize(
    ("module", "given", "expected"),
    [
        (SmallMLP, np.float64, np.float32),
        (SmallMLP, np.float32, np.float32),
        (SmallMLP, np.int64, np.float32),
        (SmallMLP, np.uint8, np.float32),
        (SmallMLP, np.bool_, np.float32),
        (DoubleMLP, np.float32, np.float64),
        (DoubleMLP, np.int32, np.float64),
        (TokenMean, np.int64, np.int64),
        (TokenMean, np.int32, np.int64),
        (TokenMean, np.uint8, np.int64),
        (TokensAndMore, np.float64, np.float32),
    ],
)
def test_input_dtype(module, given, expected):
    net, _ = build(module)
    net.initialize()
    assert cast(net, np.zeros((2, 5), dtype=given), name="X").dtype == expected


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_tokens(weights, finetune):
    rng = np.random.default_rng(0)
    y = rng.choice(3, p=[0.7, 0.2, 0.1], size=120)
    tokens = 6 * y[:, None] + rng.integers(6, size=(120, 7))
    clf = OTReweightedClassifier(
        small_net(TokenMean, max_epochs=15, batch_size=16, lr=0.05),
        weights=weights,
        finetune=finetune,
        max_epochs=2,
        random_state=0,
    )
    clf.fit(tokens, y, meta=(tokens[:60].astype(np.int32), y[:60]))
    assert clf.score(tokens, y) > 0.9
    clf.partial_fit(tokens[60:], y[60:])
    assert clf.predict(tokens[:5].astype(np.int16)).shape == (5,)
