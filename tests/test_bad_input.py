from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from nets_for_tests import SmallCNN, SmallMLP, long_tailed_digits, small_net
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from torch import nn

from sk_otreweight import (
    CombinedCost,
    OTReweightedClassifier,
    PrototypeMetaSet,
    Reweighter,
    SinkhornSolver,
    WeightNet,
    WeightVector,
    make_long_tailed,
    semirelaxed_weights,
    sinkhorn,
    transport_cost,
)


@pytest.fixture(scope="module")
def data():
    """Three digits and their meta set."""
    digits = long_tailed_digits(0)
    rows, meta = np.isin(digits.y, [3, 4, 6]), np.isin(digits.y_meta, [3, 4, 6])
    return digits.X[rows], digits.y[rows], (digits.X_meta[meta], digits.y_meta[meta])


def quick(net=None, **params):
    net = small_net(max_epochs=1) if net is None else net
    return OTReweightedClassifier(
        net, **({"max_epochs": 1, "random_state": 0} | params)
    )


def raises(*parts, error=ValueError):
    """Expect an error whose message has all these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(p) for p in parts))


def assert_fails_unfitted(clf, X, y, *parts, error=ValueError, **meta):
    """An estimator that could not be fitted is as it was before."""
    params, attributes = clf.get_params(), set(vars(clf))
    with raises(*parts, error=error):
        clf.fit(X, y, **meta)
    assert set(vars(clf)) == attributes
    assert clf.get_params().keys() == params.keys()
    with pytest.raises(NotFittedError):
        clf.predict(X)


# Data


def test_meta_with_another_number_of_features(data):
    X, y, (X_meta, y_meta) = data
    assert_fails_unfitted(
        quick(), X, y, "X_meta", "(63,)", "(64,)", "same preprocessing",
        meta=(X_meta[:, 1:], y_meta),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 8), (64,)])
def test_meta_with_another_shape(shape, data):
    X, y, (_, y_meta) = data
    images = X.reshape(-1, 1, 8, 8)
    X_meta = np.zeros((len(y_meta), *shape), dtype=np.float32)
    net = small_net(SmallCNN, module__n_classes=3)
    assert_fails_unfitted(
        quick(net), images, y, "X_meta", str(shape), "(1, 8, 8)",
        meta=(X_meta, y_meta),
    )  # fmt: skip


def test_meta_columns_in_another_order(data):
    """Else they would be taken by position, and the features be wrong silently."""
    X, y, (X_meta, y_meta) = data
    names = [f"pixel {number}" for number in range(64)]
    X, X_meta = pd.DataFrame(X, columns=names), pd.DataFrame(X_meta, columns=names)
    meta = X_meta[names[::-1]].copy(), y_meta
    with pytest.raises(ValueError, match="(?i)names|columns"):
        quick().fit(X, y, meta=meta)


def test_meta_columns_in_another_order_if_their_names_are_numbers(data):
    X, y, (X_meta, y_meta) = data
    meta = pd.DataFrame(X_meta)[list(range(64))[::-1]], y_meta
    assert_fails_unfitted(
        quick(), pd.DataFrame(X), y, "columns of X_meta", "[63, 62", "[0, 1",
        meta=meta,
    )  # fmt: skip


def test_chunk_with_another_number_of_features(data):
    X, y, meta = data
    clf = quick().fit(X, y, meta=meta)
    before = clf.predict_proba(X)
    with raises("63 features", "64 features"):
        clf.partial_fit(X[:, 1:], y)
    with raises("X_meta", "(63,)", "(64,)"):
        clf.partial_fit(X, y, meta=(meta[0][:, 1:], meta[1]))
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_images_of_another_shape_when_predicting(data):
    X, y, (X_meta, y_meta) = data
    net = small_net(SmallCNN, module__n_classes=3, max_epochs=1)
    clf = quick(net).fit(
        X.reshape(-1, 1, 8, 8), y, meta=(X_meta.reshape(-1, 1, 8, 8), y_meta)
    )
    for shape in ((1, 4, 16), (1, 8, 9), (1, 64)):
        wrong = np.zeros((3, *shape), dtype=np.float32)
        for method in (clf.predict, clf.predict_proba):
            with raises("X", str(shape), "(1, 8, 8)"):
                method(wrong)
        with raises("X", str(shape), "(1, 8, 8)"):
            clf.partial_fit(wrong, y[:3])
    with raises("X", "(64,)", "(1, 8, 8)"):
        clf.partial_fit(X, y)


def test_message_on_prediction_does_not_talk_of_meta_rows(data):
    X, y, (X_meta, y_meta) = data
    net = small_net(SmallCNN, module__n_classes=3, max_epochs=1)
    clf = quick(net).fit(
        X.reshape(-1, 1, 8, 8), y, meta=(X_meta.reshape(-1, 1, 8, 8), y_meta)
    )
    with pytest.raises(ValueError, match="shape") as error:
        clf.predict(np.zeros((3, 1, 4, 16), dtype=np.float32))
    assert "meta" not in str(error.value).lower()


def test_a_table_is_needed_by_the_default_net(data):
    X, y, _ = data
    clf = OTReweightedClassifier()
    assert_fails_unfitted(clf, X.reshape(-1, 1, 8, 8), y, "dim 4", "<= 2")


def test_meta_labels_unseen_in_y(data):
    X, y, (X_meta, y_meta) = data
    y_meta = np.where(y_meta == 6, 5, y_meta)
    assert_fails_unfitted(
        quick(), X, y, "y_meta", "unknown", "[5]", "[3, 4, 6]", "Remove these rows",
        meta=(X_meta, y_meta),
    )  # fmt: skip


@pytest.mark.parametrize("strings", ["y_meta", "y"])
def test_meta_labels_of_another_type(strings, data):
    X, y, (X_meta, y_meta) = data
    if strings == "y":
        y, given, expected = y.astype(str), "[3, 4, 6]", "['3', '4', '6']"
    else:
        y_meta, given, expected = y_meta.astype(str), "['3', '4', '6']", "[3, 4, 6]"
    assert_fails_unfitted(
        quick(), X, y, "y_meta", given, expected, "another type", "bagging",
        meta=(X_meta, y_meta),
    )  # fmt: skip


def test_labels_unseen_in_classes(data):
    X, y, _ = data
    clf = quick()
    with raises("y holds", "[6]", "[3, 4]", "Remove these rows"):
        clf.partial_fit(X, y, classes=[3, 4])
    assert not hasattr(clf, "classes_")
    clf.partial_fit(X, y, classes=[3, 4, 6])
    with raises("y holds", "[8]", "[3, 4, 6]"):
        clf.partial_fit(X, np.where(y == 3, 8, y))


@pytest.mark.parametrize(
    ("meta", "got"),
    [
        (np.zeros((3, 64)), "ndarray of length 3"),
        ((np.zeros((3, 64)),), "tuple of length 1"),
        ((np.zeros((3, 64)), [3, 4, 6], None), "tuple of length 3"),
        ([np.zeros((3, 64)), np.array([3, 4, 6])], "list of length 2"),
        ("whole", "str"),
        (7, "int"),
    ],
)
def test_meta_is_not_a_pair(meta, got, data):
    X, y, _ = data
    assert_fails_unfitted(quick(), X, y, "(X_meta, y_meta)", got, meta=meta)


def test_pair_that_was_indexed(data):
    """A pair and two rows of X: a search takes the pair for one value per row."""
    X, y, meta = data
    assert_fails_unfitted(
        quick(), X[:2], [3, 4], "list of one element", "X_meta=", "tuples",
        meta=[meta[0]],
    )  # fmt: skip


def test_meta_of_different_lengths(data):
    X, y, (X_meta, y_meta) = data
    assert_fails_unfitted(
        quick(), X, y, "30 rows", "(29,)", "one label per row",
        meta=(X_meta, y_meta[1:]),
    )  # fmt: skip


@pytest.mark.parametrize("forms", [(0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_meta_given_twice(forms, data):
    X, y, (X_meta, y_meta) = data
    mask = np.arange(len(X)) % 2 == 0
    given = {}
    for form in forms:
        given |= [
            {"meta": (X_meta, y_meta)},
            {"X_meta": X_meta, "y_meta": y_meta},
            {"meta_mask": mask},
        ][form]
    names = [["meta", "X_meta/y_meta", "meta_mask"][form] for form in forms]
    assert_fails_unfitted(quick(), X, y, *names, "one of them only", **given)


@pytest.mark.parametrize("missing", ["X_meta", "y_meta"])
def test_half_of_the_meta_set(missing, data):
    X, y, (X_meta, y_meta) = data
    given = {"X_meta": X_meta, "y_meta": y_meta}
    del given[missing]
    assert_fails_unfitted(quick(), X, y, missing, "missing", "go together", **given)


def bad_masks(n):
    half = np.arange(n) % 2 == 0
    return {
        "length": (half[1:], [f"({n - 1},)", f"{n} rows", "one boolean per row"]),
        "shape": (half[:, None], [f"({n}, 1)", f"{n} rows"]),
        "integers": (half.astype(int), ["boolean", "int64", "np.isin"]),
        "rows": (np.arange(5), ["(5,)", f"{n} rows"]),
        "all": (np.ones(n, bool), [f"{n} of {n} rows", "some must remain"]),
        "none": (np.zeros(n, bool), [f"0 of {n} rows", "some rows must be meta"]),
    }


@pytest.mark.parametrize("kind", ["length", "shape", "integers", "rows", "all", "none"])
def test_bad_mask(kind, data):
    X, y, _ = data
    mask, parts = bad_masks(len(X))[kind]
    assert_fails_unfitted(quick(), X, y, "meta_mask", *parts, meta_mask=mask)


def test_mask_that_takes_all_rows_of_a_class(data):
    X, y, _ = data
    assert_fails_unfitted(quick(), X, y, "unknown", "[6]", "[3, 4]", meta_mask=y == 6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_the_data(value, data):
    X, y, (X_meta, y_meta) = data
    word = "NaN" if np.isnan(value) else "infinity"
    broken, broken_meta = X.copy(), X_meta.copy()
    broken[3, 5] = broken_meta[3, 5] = value
    assert_fails_unfitted(quick(), broken, y, "Input X contains", word)
    assert_fails_unfitted(
        quick(), X, y, "Input X_meta contains", word, meta=(broken_meta, y_meta)
    )
    clf = quick().fit(X, y)
    with raises("Input X contains", word):
        clf.predict(broken)
    with raises("Input X contains", word):
        clf.partial_fit(broken, y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_labels(value, data):
    X, y, (X_meta, y_meta) = data
    word = "NaN" if np.isnan(value) else "infinity"
    broken, broken_meta = y.astype(float), y_meta.astype(float)
    broken[3] = broken_meta[3] = value
    assert_fails_unfitted(quick(), X, broken, "Input y contains", word)
    assert_fails_unfitted(
        quick(), X, y.astype(float), "y_meta holds NaN or infinity", "one class label",
        meta=(X_meta, broken_meta),
    )  # fmt: skip


def test_missing_value_in_object_labels(data):
    X, y, (X_meta, y_meta) = data
    names, names_meta = y.astype(str).astype(object), y_meta.astype(str).astype(object)
    names_meta[2] = None
    assert_fails_unfitted(
        quick(), X, names, "y_meta", "None", meta=(X_meta, names_meta)
    )
    series = pd.Series(names)
    series[3] = None
    assert_fails_unfitted(quick(), X, series, "N")  # NaN, or None before pandas 3


def test_labels_of_several_types(data):
    X, y, _ = data
    mixed = y.astype(str).astype(object)
    mixed[3] = 4
    parts = ["['int', 'str']", "cannot be compared", "all of one type"]
    assert_fails_unfitted(quick(), X, mixed, *parts)


def test_empty_meta(data):
    X, y, (X_meta, y_meta) = data
    assert_fails_unfitted(
        quick(), X, y, "0 sample", "X_meta", meta=(X_meta[:0], y_meta[:0])
    )


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_one_class_only(method, data):
    X, y, _ = data
    same = np.full(len(X), 4)
    classes = {"classes": [4]} if method == "partial_fit" else {}
    clf = quick()
    with raises("one class", "1 class, [4]", "at least two classes"):
        getattr(clf, method)(X, same, **classes)
    assert not hasattr(clf, "classes_")


def test_classes_of_the_stream(data):
    X, y, _ = data
    with raises("classes=None", "first call", "all class labels"):
        quick().partial_fit(X, y)


def test_other_classes_later_in_the_stream(data):
    X, y, meta = data
    clf = quick().partial_fit(X, y, classes=[3, 4, 6], meta=meta)
    clf.partial_fit(X, y, classes=[6, 4, 3])
    for other in ([3, 4], [3, 4, 6, 7]):
        with raises(str(other), "first call", "[3, 4, 6]"):
            clf.partial_fit(X, y, classes=other)


@pytest.mark.parametrize("weights", ["vector", "net", "attention", "semirelaxed"])
def test_class_with_a_single_row_and_no_meta(weights, data):
    X, y, meta = data
    single = y.copy()
    single[0] = 99
    remedies = ["meta=(X_meta, y_meta)", "cost='label'"]
    assert_fails_unfitted(
        quick(weights=weights), X, single, "[99]", "single row", *remedies
    )
    meta = np.concatenate([meta[0], X[:1]]), np.append(meta[1], 99)
    quick(weights=weights).fit(X, single, meta=meta)
    quick(weights=weights, cost="label").fit(X, single)


def test_meta_per_class_larger_than_a_class(data):
    X, y, _ = data
    with raises("meta_per_class", "1000"):
        make_long_tailed(X, y, 10, meta_per_class=1000)


def test_continuous_target(data):
    X, y, _ = data
    assert_fails_unfitted(quick(), X, y + 0.3, "continuous")


def test_sample_weight_is_not_a_parameter(data):
    X, y, _ = data
    with raises("sample_weight", error=TypeError):
        quick().fit(X, y, sample_weight=np.ones(len(X)))


# Costs


def constant_cost(value=1.0, shape=None):
    def cost(features, labels, meta_features, meta_labels):
        size = (len(labels), len(meta_labels)) if shape is None else shape
        C = torch.ones(size)
        C.view(-1)[0] = value
        return C

    return cost


@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
@pytest.mark.parametrize(
    ("cost", "parts"),
    [
        (constant_cost(np.nan), ["(", ", 3)", "without NaN or infinity", "division"]),
        (constant_cost(np.inf), ["without NaN or infinity"]),
        (constant_cost(-0.25), ["entries >= 0", "-0.25", "1 - similarity"]),
        (constant_cost(shape=(3, 5)), ["(3, 5)", ", 3)", "training rows x meta rows"]),
        (constant_cost(shape=(7,)), ["(7,)", ", 3)"]),
    ],
    ids=["nan", "inf", "negative", "shape", "vector"],
)
def test_custom_cost_with_a_bad_matrix(cost, parts, weights, data):
    X, y, meta = data
    clf = quick(cost=cost, weights=weights)
    assert_fails_unfitted(clf, X, y, *parts, meta=meta)
    with raises("the cost cost must return"):  # its name is in the message
        clf.fit(X, y, meta=meta)


def test_custom_cost_that_returns_an_array(data):
    X, y, meta = data

    def cost(features, labels, meta_features, meta_labels):
        return np.ones((len(labels), len(meta_labels)))

    assert_fails_unfitted(
        quick(cost=cost), X, y, "ndarray", "Tensor of shape", error=TypeError, meta=meta
    )


# Parameters


NUMBERS = [0, 0.0, -1, -0.1, np.nan, np.inf, "0.1", None, True]


@pytest.mark.parametrize("reg", NUMBERS, ids=repr)
def test_bad_reg(reg, data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(reg=reg), X, y, f"reg={reg!r}", "finite number > 0", "0.1", meta=meta
    )


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("cost", ["combined", "feature", "label", "sqeuclidean"]),
        ("weights", ["attention", "net", "semirelaxed", "vector"]),
        ("meta_set", ["prototype", "random", "whole"]),
        ("solver", ["pot", "sinkhorn"]),
        ("init_weights", ["uniform", "class_balanced", "inverse"]),
        ("finetune", ["head", "all"]),
        ("virtual_step", ["first_order", "exact", None]),
    ],
)
@pytest.mark.parametrize("value", ["combinde", 3])
def test_unknown_name(name, valid, value, data):
    X, y, meta = data
    clf = quick(**{name: value})
    assert_fails_unfitted(clf, X, y, f"{name}={value!r}", str(valid), meta=meta)
    with raises(f"{name}={value!r}"):
        quick(**{name: value}).partial_fit(X, y, classes=[3, 4, 6], meta=meta)


@pytest.mark.parametrize("name", ["cost", "weights", "meta_set", "solver"])
def test_none_is_not_a_component(name, data):
    X, y, meta = data
    assert_fails_unfitted(quick(**{name: None}), X, y, f"{name}=None", meta=meta)


@pytest.mark.parametrize("value", [-1, 2.5, "10", None, True])
def test_bad_max_epochs(value, data):
    X, y, meta = data
    parts = [f"max_epochs={value!r}", "integer >= 0"]
    assert_fails_unfitted(quick(max_epochs=value), X, y, *parts, meta=meta)


@pytest.mark.parametrize("name", ["lr", "weight_lr", "meta_loss_weight"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "fast"])
def test_bad_rates(name, value, data):
    X, y, meta = data
    parts = [f"{name}={value!r}", "finite number >= 0"]
    assert_fails_unfitted(quick(**{name: value}), X, y, *parts, meta=meta)


@pytest.mark.parametrize(
    ("component", "parts"),
    [
        ({"weights": WeightVector(lr=-1)}, ["lr=-1"]),
        ({"weights": WeightVector(update="adam")}, ["update='adam'", "multiplicative"]),
        ({"weights": WeightVector(n_steps=0)}, ["n_steps=0", "integer >= 1"]),
        ({"weights": WeightNet(hidden=0)}, ["hidden=0", "integer >= 1"]),
        ({"cost": CombinedCost(mix=1.5)}, ["mix=1.5", "<= 1"]),
        ({"meta_set": PrototypeMetaSet(space="pixels")}, ["space='pixels'", "input"]),
        ({"meta_set": PrototypeMetaSet(n_prototypes=0)}, ["n_prototypes=0"]),
        ({"solver": SinkhornSolver(max_iter=0)}, ["max_iter=0"]),
        ({"solver": SinkhornSolver(tol=-1.0)}, ["tol=-1.0"]),
    ],
    ids=str,
)
def test_bad_parameters_of_components(component, parts, data):
    X, y, meta = data
    clf = quick(**({"weights": "vector"} | component))
    assert_fails_unfitted(clf, X, y, *parts, meta=meta)


@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_bad_per_class(value, data):
    X, y, _ = data
    clf = quick(meta_set=PrototypeMetaSet(per_class=value))
    assert_fails_unfitted(clf, X, y, f"per_class={value!r}", "integer >= 1")


def test_parameters_are_checked_before_any_training(data):
    X, y, meta = data
    for params, message in (
        ({"weights": "no"}, "weights='no'"),
        ({"reg": -1}, "reg=-1"),
        ({"lr": -1}, "lr=-1"),
        ({"head": "no"}, "head='no'"),
        ({"weights": WeightVector(lr=-1)}, "lr=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(small_net(callbacks=[NoTraining()]), **params).fit(X, y, meta=meta)


# Nets


@pytest.mark.parametrize("width", [1, 2, 4, 10])
def test_net_of_the_wrong_width(width, data):
    X, y, meta = data
    for net in (
        nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, width)),
        small_net(SmallMLP, module__n_classes=width),
    ):
        assert_fails_unfitted(
            quick(net), X, y, "rows", "3 classes", "3 scores per row", "last layer",
            meta=meta,
        )  # fmt: skip


def test_net_of_the_wrong_width_for_two_classes(data):
    X, y, _ = data
    net = nn.Linear(64, 3)
    assert_fails_unfitted(
        quick(net), X, y == 4, "(4, 3)", "2 classes", "or one, for two classes"
    )


def test_net_that_returns_one_score_per_position(data):
    X, y, meta = data
    net = nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 3))
    assert_fails_unfitted(quick(net), X, y, "(4, 8, 3)", "3 scores per row", meta=meta)


@pytest.mark.parametrize(
    ("net", "got"),
    [
        ("mlp", "'mlp'"),
        (7, "7"),
        (LogisticRegression(), "LogisticRegression()"),
        ([SmallMLP], "SmallMLP"),
    ],
)
def test_net_of_a_wrong_type(net, got, data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(net), X, y, "net=", got, "not a net", "Module", "skorch",
        error=TypeError, meta=meta,
    )  # fmt: skip


def test_class_of_skorch_instead_of_a_net(data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(NeuralNetClassifier), X, y, "net=NeuralNetClassifier", "instance",
        "NeuralNetClassifier(module)", error=TypeError, meta=meta,
    )  # fmt: skip


@pytest.mark.parametrize("inner", [small_net(), LogisticRegression(), "net"])
def test_frozen_estimator_without_a_trained_net(inner, data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(FrozenEstimator(inner)), X, y, "FrozenEstimator", type(inner).__name__,
        "fitted skorch net", error=TypeError, meta=meta,
    )  # fmt: skip


class FunctionalHead(nn.Module):
    def __init__(self, n_features, n_classes):
        super().__init__()
        self.body = nn.Linear(n_features, 8)
        self.weight = nn.Parameter(torch.randn(n_classes, 8))

    def forward(self, X):
        return nn.functional.linear(self.body(X).relu(), self.weight)


class TwoHeads(SmallMLP):
    """Averages two equal heads, and returns what both return."""

    def __init__(self, n_features, n_classes):
        super().__init__(n_features, n_classes)
        self.twin = nn.Linear(32, n_classes)
        self.twin.load_state_dict(self.head.state_dict())

    def forward(self, X):
        features = self.body(X)
        return (self.head(features) + self.twin(features)) / 2


class Unused(SmallMLP):
    def __init__(self, n_features, n_classes):
        super().__init__(n_features, n_classes)
        self.spare = nn.Linear(3, 3)


def test_head_that_cannot_be_found(data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(FunctionalHead), X, y, "Could not find", "head='<name", "callable",
        "body (input (4, 64))", meta=meta,
    )  # fmt: skip
    clf = quick(FunctionalHead, head=lambda module, X: module.body(X).relu())
    clf.fit(X, y, meta=meta)


def test_head_that_is_ambiguous(data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(TwoHeads), X, y, "ambiguous", "['head', 'twin']", "head='<one of them>'",
        meta=meta,
    )  # fmt: skip
    quick(TwoHeads, head="head").fit(X, y, meta=meta)


def test_head_of_a_wrong_name(data):
    X, y, meta = data
    modules = "['body', 'body.0', 'body.1', 'head']"
    assert_fails_unfitted(
        quick(head="classifier"), X, y, "head='classifier'", modules, meta=meta
    )


def test_head_that_is_not_called(data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(Unused, head="spare"), X, y, "head='spare'", "not called",
        "body.0 (input (4, 64)), head", meta=meta,
    )  # fmt: skip


@pytest.mark.parametrize("head", [3, ["head"], nn.Linear(3, 3)])
def test_head_of_a_wrong_type(head, data):
    X, y, meta = data
    with pytest.raises((TypeError, ValueError), match="head"):
        quick(head=head).fit(X, y, meta=meta)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize(
    ("head", "got"),
    [
        (lambda module, X: module.body(X).sum(1), "shape"),
        (lambda module, X: module.body(X)[:, None], "shape"),
        (lambda module, X: module.body(X).tolist(), "a list"),
        (lambda module, X: module.body(X)[:-1], "shape"),
    ],
    ids=["1d", "3d", "list", "rows"],
)
def test_head_callable_that_returns_something_else(head, got, finetune, data):
    X, y, meta = data
    assert_fails_unfitted(
        quick(head=head, finetune=finetune), X, y, "features", got, "per row",
        meta=meta,
    )  # fmt: skip


class NoTraining(Callback):
    def on_train_begin(self, net, **kwargs):
        raise AssertionError("training began")


class ReducedLoss(nn.Module):
    """Averages whatever one asks it."""

    def forward(self, scores, y):
        return nn.functional.cross_entropy(scores, y)


class ReducingNet(NeuralNetClassifier):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return super().get_loss(y_pred, y_true, *args, **kwargs).mean()


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("form", ["criterion", "net"])
def test_loss_that_is_reduced_already(form, finetune, data):
    X, y, meta = data
    watch = [NoTraining()]  # it is found out before stage 1
    if form == "criterion":
        net = small_net(criterion=ReducedLoss, callbacks=watch)
    else:
        net = ReducingNet(
            SmallMLP,
            criterion=nn.CrossEntropyLoss,
            verbose=0,
            train_split=None,
            callbacks=watch,
        )
    assert_fails_unfitted(
        quick(net, finetune=finetune), X, y, "loss has shape ()", "rows",
        "one loss per row", "reduction", meta=meta,
    )  # fmt: skip


# A loss that is not finite


class BreakAt(Callback):
    """Makes the parameters NaN before a batch."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch

    def on_batch_begin(self, net, training, **kwargs):
        number = len(net.history[-1]["batches"])  # the new one is counted already
        if training and (len(net.history), number) == (self.epoch, self.batch):
            with torch.no_grad():
                net.module_.head.weight.mul_(float("nan"))


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
@pytest.mark.parametrize(
    ("epoch", "batch", "stage"), [(1, 2, 1), (2, 1, 1), (3, 2, 2), (4, 1, 2)]
)
def test_loss_that_becomes_nan(epoch, batch, stage, weights, finetune, data):
    X, y, meta = data
    net = small_net(max_epochs=2, batch_size=32)
    clf = quick(net, max_epochs=2, weights=weights, finetune=finetune)
    broken = quick(
        small_net(max_epochs=2, batch_size=32, callbacks=[BreakAt(epoch, batch)]),
        max_epochs=2,
        weights=weights,
        finetune=finetune,
    )
    where = f"stage {stage}, epoch {epoch}, batch {batch}"
    parts = ["loss became nan", where, "learning rate"]
    assert_fails_unfitted(broken, X, y, *parts, error=FloatingPointError, meta=meta)

    clf.fit(X, y, meta=meta)
    before, attributes = clf.predict_proba(X), dict(vars(clf))
    n_epochs = len(clf.history_)
    clf.set_params(net=broken.net)
    with raises(*parts, error=FloatingPointError):
        clf.fit(X, y, meta=meta)
    clf.set_params(net=net)
    assert vars(clf).keys() == attributes.keys()
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    np.testing.assert_array_equal(clf.sample_weight_, attributes["sample_weight_"])
    assert len(clf.history_) == n_epochs


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_nan_in_a_chunk_keeps_the_fitted_state(weights, finetune, data):
    """Also what the earlier batches of the chunk did is undone."""
    X, y, meta = data
    breaker = BreakAt(4, 2)
    net = small_net(max_epochs=2, batch_size=32, callbacks=[breaker])
    clf = quick(net, weights=weights, finetune=finetune).fit(X, y, meta=meta)
    before, n_epochs = clf.predict_proba(X), len(clf.history_)
    assert n_epochs == 3
    with raises("stage 2, epoch 4, batch 2", error=FloatingPointError):
        clf.partial_fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert len(clf.history_) == n_epochs == len(clf.net_.history)
    # The stream goes on as if the chunk had not been.
    dict(clf.net_.callbacks_)["BreakAt"].epoch = -1
    clf.partial_fit(X[:40], y[:40])
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_learning_rate_far_too_large(stage, data):
    X, y, meta = data
    lr = 1e38 if stage == 1 else 0.01
    net = small_net(lr=lr, optimizer=torch.optim.SGD, batch_size=16, max_epochs=3)
    clf = quick(net, lr=1e38 if stage == 2 else None, max_epochs=3)
    assert_fails_unfitted(
        clf, X, y, "loss became", f"stage {stage}, epoch", error=FloatingPointError,
        meta=meta,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_values_beyond_the_range_of_the_net(data):
    """What is infinite in float32 is as bad as infinity."""
    X, y, (X_meta, y_meta) = data
    large, large_meta = X.astype(np.float64), X_meta.astype(np.float64)
    large[0, 0] = large_meta[0, 0] = 1e300
    clf = quick().fit(X, y)
    for method in (clf.predict, clf.predict_proba):
        with raises("X", "infinity"):
            method(large)
    with raises("X", "infinity"):
        quick().fit(large, y)
    with raises("X_meta", "infinity"):
        quick().fit(X, y, meta=(large_meta, y_meta))


# The parts that are used without the estimator

HALF = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda: sinkhorn(torch.tensor([[np.inf, 1], [1, 0]]), HALF, HALF), ["inf"]),
        (
            lambda: sinkhorn(torch.tensor([[-3.0, 1], [1, 0]]), HALF, HALF),
            ["C holds -3", "Subtract the smallest"],
        ),
        (lambda: sinkhorn(torch.tensor([[np.nan, 1], [1, 0]]), HALF, HALF), ["nan"]),
        (
            lambda: sinkhorn(torch.eye(2), torch.tensor([1.5, -0.5]), HALF),
            ["-0.5", ">= 0"],
        ),
        (lambda: sinkhorn(torch.eye(2), 0 * HALF, HALF), ["total > 0"]),
        (lambda: sinkhorn(torch.eye(2), 1.0005 * HALF, HALF), ["sums to", "Divide"]),
        (
            lambda: sinkhorn(torch.eye(2), HALF.expand(3, 2), HALF),
            ["(3, 2)", "do not fit"],
        ),
        (
            lambda: semirelaxed_weights(torch.rand(3, 2), torch.ones(3) / 3),
            ["(3, 2)", "do not fit"],
        ),
        (lambda: semirelaxed_weights(lambda rows: rows, HALF), ["n_rows=None"]),
        (
            lambda: Reweighter().set_training_set(torch.tensor([0, 1])),
            ["set_meta first"],
        ),
        (
            lambda: Reweighter("label").set_meta(torch.tensor([0, 1]))(
                None, torch.tensor([0, 1]), torch.tensor([0, 1])
            ),
            ["set_training_set"],
        ),
    ],
)
def test_parts_used_alone(function, parts):
    with raises(*parts):
        function()


def test_unfinished_transport_cost_warns():
    a = HALF.clone().requires_grad_()
    C = torch.tensor([[0.0, 0.9], [1.0, 0.2]])
    with pytest.warns(ConvergenceWarning, match="marginal error"):
        transport_cost(
            C, a, torch.tensor([0.3, 0.7]), 0.05,
            solver=SinkhornSolver(max_iter=1, accelerate=False),
        )  # fmt: skip


def test_integer_costs_give_a_real_plan():
    plan = sinkhorn(torch.tensor([[0, 1], [1, 0]]), HALF, HALF, 1.0).plan
    assert plan.dtype == torch.get_default_dtype()
    assert plan.sum().item() == pytest.approx(1)
