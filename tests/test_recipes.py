"""Losses that balance the classes, weights within a class, and the named recipes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from classifier_helpers import assert_same_state, quick, state
from nets_for_tests import SmallMLP, SoftmaxMLP, small_net
from oracles import assert_same
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from sk_otreweight import (
    BASELINES,
    OTReweightedClassifier,
    SemiRelaxedWeights,
    WeightVector,
    compare,
    load,
    make_long_tailed,
)
from sk_otreweight.losses import LogitAdjustedLoss
from sk_otreweight.recipes import RECIPES, released_code_cost
from sk_otreweight.weights.semirelaxed import mean_weights

STILL = WeightVector(lr=0.0)


@pytest.fixture(scope="module")
def data():
    """Three classes of 60, 30 and 10 rows, and 5 meta rows of each."""
    X, y = make_blobs([65, 35, 15], n_features=4, random_state=0, cluster_std=3.0)
    X = X.astype(np.float32)
    is_meta = np.zeros(len(y), bool)
    for k in range(3):
        is_meta[np.flatnonzero(y == k)[-5:]] = True
    return X[~is_meta], y[~is_meta], (X[is_meta], y[is_meta])


# The loss


@pytest.mark.parametrize("epochs", [0, 3])
def test_logit_adjusted_training_is_that_of_the_baseline(data, epochs):
    X, y, meta = data
    own = quick(
        loss="logit_adjusted", weights=STILL, finetune="all", max_epochs=epochs
    ).fit(X, y, meta=meta)
    baseline = BASELINES["logit_adjustment"](
        small_net(max_epochs=2), max_epochs=epochs, random_state=0
    ).fit(X, y, meta=meta)
    expected = baseline.predict_proba(X)
    np.testing.assert_allclose(own.predict_proba(X), expected, atol=1e-6)
    np.testing.assert_allclose(own.prior_, 1 / 3)
    plain = quick(weights=STILL, finetune="all", max_epochs=epochs)
    gap = plain.fit(X, y, meta=meta).predict_proba(X) - expected
    assert np.abs(gap).max() > 1e-2


def test_by_default_both_stages_have_it(data):
    X, y, meta = data
    within = SemiRelaxedWeights(per_class=True)
    clf = quick().fit(X, y, meta=meta)
    named = quick(weights=within, loss="logit_adjusted").fit(X, y, meta=meta)
    np.testing.assert_array_equal(clf.predict_proba(X), named.predict_proba(X))
    assert clf.history_[:, "train_loss"] == named.history_[:, "train_loss"]
    np.testing.assert_allclose(clf.prior_, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(clf.class_weight_, 1, rtol=1e-5)
    assert clf.weights_.per_class


@pytest.mark.parametrize("is_stream", [False, True])
def test_that_is_the_logit_adjusted_loss(is_stream, data):
    """One batch of all rows: its loss is that of the net as it is before the step."""
    X, y, meta = data
    net = small_net(max_epochs=2, batch_size=-1)
    begun = quick(net, loss="net", max_epochs=0).fit(X, y, meta=meta)
    clf = quick(FrozenEstimator(begun.net_), max_epochs=1)
    if is_stream:
        clf.partial_fit(X, y, classes=range(3), meta=meta)
    else:
        clf.fit(X, y, meta=meta)
    loss = LogitAdjustedLoss(np.bincount(y), reduction="none")
    losses = loss(torch.from_numpy(begun.net_.forward(X).numpy()), torch.from_numpy(y))
    expected = (losses * torch.from_numpy(clf.sample_weight_)).mean()
    assert clf.history_[-1, "train_loss"] == pytest.approx(expected.item(), rel=1e-2)


class OwnLoss(NeuralNetClassifier):
    """Has a loss that another in its place would lose."""

    def get_loss(self, y_pred, y_true, **kwargs):
        return super().get_loss(y_pred, y_true, **kwargs) + y_pred.square().mean()


@pytest.mark.parametrize(
    ("net", "params"),
    [
        ({}, {"loss": "net"}),
        ({}, {"cost": "label"}),
        ({}, {"weights": SemiRelaxedWeights()}),
        ({"criterion__label_smoothing": 0.1}, {}),
        ({"criterion": nn.MultiMarginLoss}, {}),
    ],
    ids=str,
)
def test_or_none_does_and_the_weights_balance_the_classes(net, params, data):
    X, y, meta = data
    clf = quick(small_net(**net), **params).fit(X, y, meta=meta)
    assert clf.class_weight_[2] > 2 * clf.class_weight_[0]


@pytest.mark.filterwarnings("ignore:The criterion has class weights")
def test_nor_does_it_replace_class_weights(data):
    X, y, meta = data
    net = small_net(criterion__weight=torch.tensor([1.0, 2.0, 3.0]))
    clf = quick(net).fit(X, y, meta=meta)
    assert clf.class_weight_[2] > 2 * clf.class_weight_[0]


def test_nor_does_it_replace_a_loss_of_the_net_s_class(data):
    X, y, meta = data
    net = OwnLoss(SmallMLP, criterion=nn.CrossEntropyLoss, verbose=0)
    clf = quick(net).fit(X, y, meta=meta)
    assert clf.class_weight_[2] > 2 * clf.class_weight_[0]


@pytest.mark.parametrize("cost", ["combined", "label"])
def test_without_stage_two_plain_training_expects_the_training_shares(data, cost):
    X, y, meta = data
    clf = quick(loss="net", cost=cost, max_epochs=0).fit(X, y, meta=meta)
    np.testing.assert_allclose(clf.prior_, np.bincount(y) / len(y))
    plain = clf.predict_proba(X)
    balanced = clf.set_params(target_prior="uniform").predict_proba(X)
    expected = plain / np.bincount(y)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(balanced, expected, rtol=1e-5)
    clf.set_params(max_epochs=1).fit(X, y, meta=meta)
    assert np.abs(clf.prior_ - np.bincount(y) / len(y)).max() > 0.1


def test_probabilities_are_adjusted_too(data):
    X, y, meta = data
    net = NeuralNetClassifier(SoftmaxMLP, max_epochs=2, lr=0.1, verbose=0)
    clf = quick(net).fit(X, y, meta=meta)
    np.testing.assert_allclose(clf.prior_, 1 / 3)
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1, rtol=1e-6)


def test_both_stages_have_it(data):
    X, y, meta = data
    clf = quick(loss="logit_adjusted", weights=STILL, max_epochs=1)
    losses = clf.fit(X, y, meta=meta).history_[:, "train_loss"]
    plain = quick(loss="net", weights=STILL, max_epochs=1).fit(X, y, meta=meta)
    assert losses[0] != plain.history_[0, "train_loss"]
    assert losses[-1] != plain.history_[-1, "train_loss"]


def test_weights_between_classes_come_on_top(data):
    X, y, meta = data
    clf = quick(loss="logit_adjusted", cost="label", reg=0.01).fit(X, y, meta=meta)
    inverse = 1 / np.bincount(y)
    np.testing.assert_allclose(clf.prior_, inverse / inverse.sum(), rtol=1e-3)


@pytest.mark.parametrize(
    "net",
    [
        NeuralNetClassifier(SoftmaxMLP, lr=0.1, train_split=None, verbose=0),
        NeuralNetBinaryClassifier(
            SmallMLP,
            module__n_features=4,
            module__n_classes=1,
            train_split=None,
            verbose=0,
        ),
    ],
    ids=["probabilities", "one score"],
)
def test_nets_that_return_no_two_scores(data, net):
    X, y, _ = data
    rows = y < 2
    clf = quick(net.set_params(max_epochs=2), loss="logit_adjusted")
    clf.fit(X[rows], y[rows])
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1, rtol=1e-6)


def test_a_stream_that_lacks_a_class(data):
    X, y, _ = data
    clf = quick(loss="logit_adjusted", weights=SemiRelaxedWeights(per_class=True))
    clf.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    clf.partial_fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


def test_a_loss_that_is_not_known(data):
    X, y, _ = data
    with pytest.raises(ValueError, match="loss='balanced' .*'net', 'logit_adjusted'"):
        quick(loss="balanced").fit(X, y)


# Weights within a class


def test_weights_of_each_class_have_mean_one(data):
    X, y, meta = data
    net = small_net(max_epochs=2)
    own = quick(net, weights=SemiRelaxedWeights(per_class=True), finetune="head")
    own.fit(X, y, meta=meta)
    plain = quick(net, finetune="head", loss="net").fit(X, y, meta=meta)
    np.testing.assert_allclose(own.class_weight_, 1, rtol=1e-5)
    assert plain.class_weight_.max() > 2
    for k in range(3):
        rows = y == k
        ratio = own.sample_weight_[rows] / plain.sample_weight_[rows]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
        assert own.sample_weight_[rows].std() > 0.01
    np.testing.assert_allclose(own.prior_, np.bincount(y) / len(y), rtol=1e-5)


def test_weights_of_a_class_that_are_all_zero_stay():
    labels = torch.tensor([0, 0, 2])
    means = mean_weights(torch.tensor([1.0, 3.0, 0.0]), labels)
    assert_same(means, torch.tensor([2.0, 1.0, 1.0]), atol=0)


def test_per_class_must_be_true_or_false(data):
    X, y, _ = data
    with pytest.raises(ValueError, match="per_class='yes'"):
        quick(weights=SemiRelaxedWeights(per_class="yes")).fit(X, y)


def test_files_do_not_hold_the_labels(data, tmp_path):
    X, y, meta = data
    clf = quick(weights=SemiRelaxedWeights(per_class=True)).fit(X, y, meta=meta)
    clf.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", trusted=SmallMLP)
    assert not hasattr(loaded.weights_, "labels_")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    again = pickle.loads(pickle.dumps(clf)).fit(X, y, meta=meta)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_wrong_labels_count_less_and_the_recipe_is_better_for_it():
    X, y = load_digits(return_X_y=True)
    draw = make_long_tailed(
        X / 16, y, imbalance_factor=5, label_noise=0.3, random_state=0
    )
    meta = draw.X_meta, draw.y_meta
    rest = np.setdiff1d(np.arange(len(y)), [*draw.train_indices, *draw.meta_indices])
    robust = OTReweightedClassifier.from_recipe("robust", random_state=0)
    weights = robust.fit(draw.X, draw.y, meta=meta).sample_weight_
    assert weights[draw.flipped].mean() < 0.6 * weights[~draw.flipped].mean()
    X_test, y_test = X[rest] / 16, y[rest]
    for other in ({"restart": False}, {"restart": False, "weights": STILL}):
        clf = clone(robust).set_params(**other).fit(draw.X, draw.y, meta=meta)
        assert robust.score(X_test, y_test) > clf.score(X_test, y_test) + 0.03


# Beginning anew


class States(Callback):
    """Notes the parameters, and those that the optimizer knows, as epochs begin."""

    def on_epoch_begin(self, net, **kwargs):
        self.__dict__.setdefault("seen_", []).append(
            (state(net.module_), len(net.optimizer_.state))
        )


def restarted(**params):
    net = small_net(max_epochs=2, callbacks=[("states", States())])
    given = {"finetune": "all", "restart": True, "max_epochs": 2}
    return quick(net, **given | params)


@pytest.mark.parametrize("weights", ["semirelaxed", "vector"])
def test_stage_two_begins_with_the_net_as_it_was(data, weights):
    X, y, meta = data
    clf = restarted(weights=weights, virtual_step=None).fit(X, y, meta=meta)
    seen = dict(clf.net_.callbacks_)["states"].seen_
    assert len(seen) == 4
    assert_same_state(seen[0][0], seen[2][0])
    assert [known for _, known in seen] == [0, seen[1][1], 0, seen[1][1]]
    assert any(not torch.equal(seen[0][0][k], seen[1][0][k]) for k in seen[0][0])


def test_its_weights_are_those_of_stage_one(data):
    X, y, meta = data
    first = quick(loss="net", finetune="all", max_epochs=0).fit(X, y, meta=meta)
    again = restarted(loss="net").fit(X, y, meta=meta)
    np.testing.assert_array_equal(again.sample_weight_, first.sample_weight_)
    moved = quick(loss="net", finetune="all").fit(X, y, meta=meta)
    assert np.abs(moved.sample_weight_ - first.sample_weight_).max() > 1e-3


def test_without_a_stage_two_the_net_is_that_of_stage_one(data):
    X, y, meta = data
    first = quick(finetune="all", max_epochs=0).fit(X, y, meta=meta)
    again = restarted(max_epochs=0).fit(X, y, meta=meta)
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


class Interrupt(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def test_an_interrupt_in_stage_one_keeps_what_was_learned(data):
    X, y, meta = data
    net = small_net(max_epochs=3, callbacks=[Interrupt()])
    clf = restarted(loss="net").set_params(net=net).fit(X, y, meta=meta)
    plain = quick(small_net(max_epochs=1), loss="net", finetune="all", max_epochs=0)
    expected = plain.fit(X, y, meta=meta).predict_proba(X)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_nothing_to_begin_anew(data):
    X, y, _ = data
    with pytest.raises(ValueError, match="finetune='head' keeps what stage 1 learned"):
        restarted(finetune="head").fit(X, y)
    trained = FrozenEstimator(quick(max_epochs=0).fit(X, y).net_)
    with pytest.raises(ValueError, match="no beginning to go back to"):
        restarted().set_params(net=trained).fit(X, y)


# Meta rows as training rows


@pytest.mark.parametrize("name", ["ot", *sorted(BASELINES)])
def test_training_on_meta_rows_is_training_on_both(data, name):
    X, y, meta = data

    def make(**params):
        net = small_net(max_epochs=2)
        params = {"max_epochs": 2, "random_state": 0} | params
        if name == "ot":
            return OTReweightedClassifier(net, **params)
        return BASELINES[name](net, **params)

    own = make(train_on_meta=True).fit(X, y, meta=meta)
    both = np.concatenate([X, meta[0]]), np.concatenate([y, meta[1]])
    other = make(train_on_meta=False).fit(*both, meta=meta)
    np.testing.assert_array_equal(own.predict_proba(X), other.predict_proba(X))
    assert own.sample_weight_.shape == y.shape
    without = make(train_on_meta=True).fit(X, y)
    plain = make(train_on_meta=False).fit(X, y)
    np.testing.assert_array_equal(without.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize(
    ("names", "own", "given"),
    [
        ([0, 1, 2, 7], int, float),
        ([0, 1, 2, 7], int, np.uint8),
        ([0, 1, 2, 7], np.float32, int),
        ([0, 1, 2, 7], int, object),
        (["a", "b", "c", "newest"], str, object),
        (["a", "b", "c", "newest"], object, str),
    ],
)
def test_labels_of_meta_rows_become_like_those_of_y(names, own, given, data):
    X, y, (X_meta, y_meta) = data
    y = np.array(names[:3]).astype(own)[y]
    clf = quick(cost="label", max_epochs=0, train_on_meta=True)
    clf.fit(X, y, meta=(X_meta, np.array(names).astype(given)[y_meta]))
    assert clf.classes_.tolist() == names[:3]
    assert clf.classes_.dtype == y.dtype
    y_meta = np.append(y_meta[:-1], 3)  # a class that only these have
    clf.fit(X, y, meta=(X_meta, np.array(names).astype(given)[y_meta]))
    assert clf.classes_.tolist() == names
    assert clf.classes_.dtype.kind == y.dtype.kind


def test_labels_of_meta_rows_may_be_true_and_false(data):
    X, y, (X_meta, y_meta) = data
    clf = quick(cost="label", max_epochs=0, train_on_meta=True)
    meta = X_meta, (y_meta > 0).astype(int)
    assert clf.fit(X, y > 0, meta=meta).classes_.dtype == bool
    with pytest.raises(ValueError, match=r"unknown: \[2\]; the classes of y are \[F"):
        clf.fit(X, y > 0, meta=(X_meta, y_meta))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.astype(str),
        lambda y: y.astype(str).astype(object),
        lambda y: np.array(["ant", "cat", "dog"])[y],
        lambda y: y + 0.5,
        lambda y: np.where(y > 0, None, y),
    ],
)
def test_labels_of_meta_rows_of_another_type(change, data):
    X, y, (X_meta, y_meta) = data
    clf = quick(cost="label", train_on_meta=True)
    with pytest.raises(ValueError, match=r"y_meta holds labels .* of y.* \[0, 1, 2\]"):
        clf.fit(X, y, meta=(X_meta, change(y_meta)))
    with pytest.raises(ValueError, match="y_meta holds labels"):
        clf.partial_fit(X, y, [0, 1, 2], meta=(X_meta, change(y_meta)))


def test_what_is_compared_has_its_own_stage_one(data):
    X, y, meta = data
    methods = {
        "alone": quick(train_on_meta=True),
        "default": quick(),
        "adjusted": quick(loss="logit_adjusted"),
        "anew": quick(finetune="all", restart=True),
    }
    table = compare(methods, X, y, X, y, meta=meta, seeds=[0], verbose=False)
    for name, clf in methods.items():
        expected = clone(clf).fit(X, y, meta=meta).score(X, y)
        fit = next(x for x in table.attrs["fits"] if x["method"] == name)
        recalls = [fit[f"recall_{k}"] for k in range(3)]
        accuracy = np.dot(recalls, np.bincount(y)) / len(y)
        assert accuracy == pytest.approx(expected), name


# The recipes


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_plain_parameters(data, recipe):
    X, y, meta = data
    clf = OTReweightedClassifier.from_recipe(
        recipe, small_net(max_epochs=2), max_epochs=2, random_state=0
    )
    given = clf.get_params(deep=False)
    for name, value in RECIPES[recipe]().items():
        assert repr(given[name]) == repr(value)
    assert given["max_epochs"] == 2
    clf.fit(X, y, meta=meta)
    again = clone(clf).fit(X, y, meta=meta)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(clf)).predict_proba(X), clf.predict_proba(X)
    )
    other = OTReweightedClassifier.from_recipe(recipe)
    assert other.weights is not clf.weights


def test_parameters_take_the_place_of_the_recipes(data):
    X, y, meta = data
    clf = OTReweightedClassifier.from_recipe("robust", SmallMLP, reg=0.5, max_epochs=1)
    assert (clf.reg, clf.net) == (0.5, SmallMLP)
    search = GridSearchCV(clf, {"reg": [0.1, 1.0]}, cv=2)
    assert search.fit(X, y, meta=meta).best_estimator_.loss == "logit_adjusted"


def test_a_recipe_that_is_not_known():
    with pytest.raises(
        ValueError, match="'paper', .*, 'adjusted', 'robust', 'pretrained'"
    ):
        OTReweightedClassifier.from_recipe("best")


def test_the_cost_of_the_released_code():
    generator = torch.Generator().manual_seed(0)
    z, q = (
        torch.randn(5, 3, generator=generator),
        torch.randn(4, 3, generator=generator),
    )
    labels, points = torch.tensor([0, 1, 2, 3, 0]), torch.arange(4)
    C = released_code_cost(z, labels, q, points)
    one_hot, other = torch.eye(4)[labels], torch.eye(4)[points]
    squares = ((one_hot[:, None] - other) ** 2).mean(2)
    cosine = 1 - nn.functional.cosine_similarity(z[:, None], q[None], dim=2)
    assert_same(C, cosine / 2 + squares / 2, atol=1e-6)
