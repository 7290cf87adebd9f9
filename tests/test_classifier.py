from __future__ import annotations

import io
import pickle
import re

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from nets_for_tests import (
    DoubleMLP,
    MeanWeights,
    NormDropoutMLP,
    OneLogitMLP,
    SmallCNN,
    SmallMLP,
    SoftmaxMLP,
    long_tailed_digits,
    small_net,
)
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import Callback, EarlyStopping, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler

from sk_otreweight import (
    LabelCost,
    OTReweightedClassifier,
    POTSolver,
    PrototypeMetaSet,
    SemiRelaxedWeights,
    SinkhornSolver,
    WeightVector,
    WholeMetaSet,
)
from sk_otreweight.loaders import RowLoader

STRATEGIES = ("vector", "net", "attention", "semirelaxed")
WEIGHT_COLUMNS = ("weights_ess", "weights_kl", "ot_cost")


@pytest.fixture(scope="module")
def digits():
    return long_tailed_digits(0)


@pytest.fixture(scope="module")
def few():
    """Three digits, about 50 rows, for what takes many fits."""
    data = long_tailed_digits(0)
    rows = np.flatnonzero(data.y > 6)
    meta = np.flatnonzero(data.y_meta > 6)
    rows = np.concatenate([rows, np.flatnonzero(data.y == 4)])
    meta = np.concatenate([meta, np.flatnonzero(data.y_meta == 4)])
    return data.X[rows], data.y[rows], (data.X_meta[meta], data.y_meta[meta])


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
    return mean_tail_recall(max_epochs=0)


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
    recalls = {}
    for max_epochs in (0, OTReweightedClassifier().max_epochs):
        for seed in (0, 1):
            data = long_tailed_digits(seed)
            clf = OTReweightedClassifier(max_epochs=max_epochs, random_state=seed)
            clf.fit(data.X, data.y, meta=data.meta)
            balanced = clf.predict(data.X_test)
            balanced = recall_score(data.y_test, balanced, average="macro")
            recalls[max_epochs, seed] = balanced, tail_recall(clf, data)
    plain, weighted = np.split(np.array(list(recalls.values())), 2)
    assert (weighted[:, 0] > plain[:, 0]).all()
    assert (weighted - plain)[:, 1].mean() > 0.05


# Model selection and persistence


def test_grid_search(digits):
    grid = {"reg": [0.01, 0.1, 1.0], "cost": ["label", "combined"]}
    search = GridSearchCV(quick(), grid, n_jobs=2, cv=3, scoring="balanced_accuracy")
    search.fit(digits.X, digits.y, meta=digits.meta)
    assert len(search.cv_results_["mean_test_score"]) == 6
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.sample_weight_.shape == digits.y.shape
    assert search.score(digits.X_test, digits.y_test) > 0.5


def test_grid_search_over_parameters_of_the_net(digits):
    grid = {"net__lr": [1e-9, 0.02], "net__module__hidden": [8, 32]}
    search = GridSearchCV(quick(max_epochs=3), grid, cv=3, scoring="balanced_accuracy")
    search.fit(digits.X, digits.y, meta=digits.meta)
    assert search.best_params_["net__lr"] == 0.02


def test_cross_validate(digits):
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    result = cross_validate(
        quick(),
        digits.X,
        digits.y,
        params={"meta": digits.meta},
        cv=folds,
        return_estimator=True,
        scoring="balanced_accuracy",
    )
    assert result["test_score"].min() > 0.25
    for fitted in result["estimator"]:
        assert len(fitted._meta.X) == len(digits.X_meta)


@pytest.mark.parametrize("form", ["mask", "one_element_tuples"])
def test_cross_validate_with_other_forms_of_meta(form, digits):
    """Also when there are as many meta rows as training rows."""
    X, y, n = digits.X, digits.y, len(digits.X)
    if form == "mask":
        X, y = np.concatenate([digits.X, digits.X_meta]), np.r_[digits.y, digits.y_meta]
        params = {"meta_mask": np.arange(len(X)) >= len(digits.X)}
    else:
        params = {"X_meta": (digits.X_test[:n],), "y_meta": (digits.y_test[:n],)}
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    result = cross_validate(
        quick(max_epochs=1), X, y, params=params, cv=folds, return_estimator=True
    )
    for (train, _), fitted in zip(folds.split(X, y), result["estimator"], strict=True):
        assert fitted.sample_weight_.shape == train.shape
        expected = params["meta_mask"][train].sum() if form == "mask" else n
        assert len(fitted._meta.X) == expected


def test_metadata_routing(digits):
    with config_context(enable_metadata_routing=True):
        clf = quick().set_fit_request(meta=True)
        search = GridSearchCV(clf, {"reg": [0.1, 1.0]}, cv=3)
        search.fit(digits.X, digits.y, meta=digits.meta)
        assert search.best_estimator_.score(digits.X_test, digits.y_test) > 0.3


def test_pipeline_with_scaler(digits):
    scaler = StandardScaler().fit(digits.X)
    pipeline = make_pipeline(StandardScaler(), quick())
    meta = scaler.transform(digits.X_meta), digits.y_meta
    pipeline.fit(digits.X, digits.y, otreweightedclassifier__meta=meta)
    direct = quick().fit(scaler.transform(digits.X), digits.y, meta=meta)
    np.testing.assert_array_equal(
        pipeline.predict_proba(digits.X_test),
        direct.predict_proba(scaler.transform(digits.X_test)),
    )
    assert pipeline.score(digits.X_test, digits.y_test) > 0.5


def test_pipeline_that_scales_the_meta_rows(digits):
    scaler = StandardScaler().fit(digits.X)
    with config_context(enable_metadata_routing=True):
        pipeline = Pipeline(
            [
                ("scale", StandardScaler()),
                ("clf", quick().set_fit_request(X_meta=True, y_meta=True)),
            ],
            transform_input=["X_meta"],
        )
        pipeline.fit(digits.X, digits.y, X_meta=digits.X_meta, y_meta=digits.y_meta)
        search = GridSearchCV(pipeline, {"clf__reg": [0.1]}, cv=2)
        search.fit(digits.X, digits.y, X_meta=(digits.X_meta,), y_meta=(digits.y_meta,))
    for fitted in pipeline, search.best_estimator_:
        np.testing.assert_allclose(
            fitted["clf"]._meta.X, scaler.transform(digits.X_meta), atol=1e-5
        )


def test_clone_is_unfitted_and_equal(digits):
    clf = quick(weights="vector", reg=0.3).fit(digits.X, digits.y, meta=digits.meta)
    copy = clone(clf)
    assert not hasattr(copy, "classes_")
    assert copy.get_params()["reg"] == 0.3
    copy.fit(digits.X, digits.y, meta=digits.meta)
    np.testing.assert_array_equal(
        copy.predict_proba(digits.X_test), clf.predict_proba(digits.X_test)
    )


@pytest.mark.parametrize("weights", STRATEGIES)
@pytest.mark.parametrize("tool", [pickle, joblib])
def test_pickle_round_trip(tool, weights, digits):
    clf = quick(weights=weights, max_epochs=1)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    file = io.BytesIO()
    tool.dump(clf, file)
    file.seek(0)
    loaded = tool.load(file)
    np.testing.assert_array_equal(
        loaded.predict_proba(digits.X_test), clf.predict_proba(digits.X_test)
    )
    np.testing.assert_array_equal(loaded.sample_weight_, clf.sample_weight_)
    # What was learned goes on from there.
    for fitted in loaded, clf:
        fitted.partial_fit(digits.X[:64], digits.y[:64])
    np.testing.assert_array_equal(
        loaded.predict_proba(digits.X_test), clf.predict_proba(digits.X_test)
    )


# Inputs


@pytest.mark.parametrize("dtype", [str, object])
def test_string_labels(dtype, digits):
    names = np.array([f"digit {k}" for k in range(10)], dtype=dtype)
    numbers = quick().fit(digits.X, digits.y, meta=digits.meta)
    meta = digits.X_meta, names[digits.y_meta]
    clf = quick().fit(digits.X, names[digits.y], meta=meta)
    assert clf.classes_.tolist() == names.tolist()
    np.testing.assert_array_equal(
        clf.predict(digits.X_test), names[numbers.predict(digits.X_test)]
    )


def test_bool_labels(digits):
    y, y_meta = digits.y > 4, digits.y_meta > 4
    clf = quick().fit(digits.X, y, meta=(digits.X_meta, y_meta))
    assert clf.classes_.tolist() == [False, True]
    predicted = clf.predict(digits.X_test)
    assert predicted.dtype == bool
    meta = digits.X_meta, y_meta.astype(int)
    same = quick().fit(digits.X, y.astype(int), meta=meta)
    np.testing.assert_array_equal(predicted, same.predict(digits.X_test) == 1)


def test_labels_that_do_not_start_at_0(digits):
    shifted = quick().fit(
        digits.X, 3 * digits.y - 7, meta=(digits.X_meta, 3 * digits.y_meta - 7)
    )
    plain = quick().fit(digits.X, digits.y, meta=digits.meta)
    np.testing.assert_array_equal(
        shifted.predict(digits.X_test), 3 * plain.predict(digits.X_test) - 7
    )


def convert(data, kind):
    X, y, (X_meta, y_meta) = data
    if kind == "tensor":
        return [torch.from_numpy(part) for part in (X, y, X_meta, y_meta)]
    if kind == "list":
        return [part.tolist() for part in (X, y, X_meta, y_meta)]
    if kind == "float64":
        return [X.astype(np.float64), y, X_meta.astype(np.float64), y_meta]
    if kind == "fortran":
        return [np.asfortranarray(X), y, np.asfortranarray(X_meta), y_meta]
    if kind == "reversed":  # negative strides
        return [part[::-1].copy()[::-1] for part in (X, y, X_meta, y_meta)]
    if kind == "read-only":
        parts = [part.copy() for part in (X, y, X_meta, y_meta)]
        for part in parts:
            part.flags.writeable = False
        return parts
    if kind == "column":
        return [X, y, X_meta, y_meta[:, None]]
    names = [f"pixel {k}" for k in range(X.shape[1])]
    return [
        pd.DataFrame(X, columns=names),
        pd.Series(y),
        pd.DataFrame(X_meta, columns=names),
        pd.Series(y_meta),
    ]


@pytest.fixture
def _every_warning():
    """Let torch repeat the warnings that it gives once per process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


KINDS = [
    "tensor", "list", "frame", "float64", "fortran", "reversed", "read-only", "column"
]  # fmt: skip


@pytest.mark.usefixtures("_every_warning")
@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays(kind, finetune, few):
    X, y, meta = few
    params = {"finetune": finetune, "meta_loss_weight": 0.5}
    expected = quick(**params).fit(X, y, meta=meta).predict_proba(X)
    X_given, y_given, X_meta, y_meta = convert(few, kind)
    clf = quick(**params).fit(X_given, y_given, meta=(X_meta, y_meta))
    np.testing.assert_array_equal(clf.predict_proba(X_given), expected)
    if kind == "frame":
        assert clf.feature_names_in_[1] == "pixel 1"


def test_categorical_labels(few):
    X, y, meta = few
    series = pd.Series(pd.Categorical(y.astype(str)))
    clf = quick().fit(X, series, meta=(meta[0], meta[1].astype(str)))
    assert clf.classes_.tolist() == ["4", "7", "8", "9"]


def test_integer_inputs(few):
    X, y, meta = few
    clf = quick().fit(
        (X * 16).astype(int), y, meta=((meta[0] * 16).astype(int), meta[1])
    )
    same = quick().fit(X * 16, y, meta=(meta[0] * 16, meta[1]))
    np.testing.assert_array_equal(
        clf.predict_proba((X * 16).astype(int)), same.predict_proba(X * 16)
    )


def test_inputs_stay_as_they_are(few):
    X, y, meta = few
    arrays = [array.copy() for array in (X, y, *meta)]
    quick().fit(arrays[0], arrays[1], meta=(arrays[2], arrays[3]))
    for array, original in zip(arrays, (X, y, *meta), strict=True):
        np.testing.assert_array_equal(array, original)


# Forms of the meta set


@pytest.mark.parametrize("weights", ["semirelaxed", "vector"])
def test_forms_of_meta_are_the_same(weights, few):
    X, y, (X_meta, y_meta) = few
    expected = quick(weights=weights).fit(X, y, meta=(X_meta, y_meta))
    n = len(X)
    mask = np.arange(n + len(X_meta)) >= n
    forms = [
        (X, y, {"X_meta": X_meta, "y_meta": y_meta}),
        (X, y, {"X_meta": (X_meta,), "y_meta": (y_meta,)}),
        (
            np.concatenate([X, X_meta]),
            np.concatenate([y, y_meta]),
            {"meta_mask": mask},
        ),
        (
            np.concatenate([X, X_meta]),
            np.concatenate([y, y_meta]),
            {"meta_mask": mask.tolist()},
        ),
    ]
    for X_given, y_given, meta in forms:
        clf = quick(weights=weights).fit(X_given, y_given, **meta)
        np.testing.assert_array_equal(clf.predict_proba(X), expected.predict_proba(X))
        np.testing.assert_array_equal(clf.sample_weight_[:n], expected.sample_weight_)


def test_rows_held_out_by_a_mask_have_weight_0(few):
    X, y, _ = few
    mask = np.zeros(len(X), dtype=bool)
    mask[[0, 2, 5, 20, 30, 40]] = True
    clf = quick(cost="label").fit(X, y, meta_mask=mask)
    assert clf.sample_weight_.shape == (len(X),)
    assert (clf.sample_weight_[mask] == 0).all()
    assert (clf.sample_weight_[~mask] > 0).all()
    assert clf.sample_weight_[~mask].mean() == pytest.approx(1)


@pytest.mark.parametrize("weights", STRATEGIES)
def test_no_meta_draws_it_from_the_training_rows(weights, few):
    X, y, _ = few
    clf = quick(weights=weights).fit(X, y)
    assert clf.sample_weight_.mean() == pytest.approx(1)
    assert clf.history_[-1, "weights_kl"] > 0
    if weights in ("vector", "semirelaxed"):  # few steps do for these
        assert clf.class_weight_[3] > clf.class_weight_[0]  # 9 is rarer than 4


def test_meta_rows_that_are_drawn_are_balanced_and_new_in_every_epoch(few):
    drawn = []

    class Recorder(PrototypeMetaSet):
        def inputs(self, X, labels):
            drawn.append((X.clone(), labels.clone()))
            return super().inputs(X, labels)

    X, y, meta = few
    quick(meta_set=Recorder(per_class=2), max_epochs=3).fit(X, y)
    assert len(drawn) == 3
    for rows, labels in drawn:
        assert labels.bincount().tolist() == [2, 2, 2, 2]
        assert all((row.numpy() == X).all(1).any() for row in rows)
    assert not torch.equal(drawn[0][0], drawn[1][0])
    drawn.clear()
    quick(meta_set=Recorder(per_class=2), max_epochs=3).fit(X, y, meta=meta)
    assert len(drawn) == 1


def test_label_cost_needs_no_meta(few):
    seen = []

    class Recorder(LabelCost):
        def __call__(self, features, labels, meta_features, meta_labels):
            seen.append((meta_features, meta_labels.tolist()))
            return super().__call__(features, labels, meta_features, meta_labels)

    X, y, _ = few
    X, y = np.concatenate([X, X[:1] + 1]), np.append(y, 11)  # a class of one row
    clf = quick(cost=Recorder()).fit(X, y)
    assert all(features is None for features, _ in seen)
    assert seen[0][1] == [0, 1, 2, 3, 4]
    order = np.argsort(np.unique(y, return_counts=True)[1])
    assert (np.diff(clf.class_weight_[order]) <= 0).all()


def test_classes_without_a_meta_row_warn_and_go_on(few):
    X, y, (X_meta, y_meta) = few
    kept = y_meta != 8
    with pytest.warns(UserWarning, match=r"No meta row is of class \[8\] \(1 of 4"):
        clf = quick().fit(X, y, meta=(X_meta[kept], y_meta[kept]))
    assert clf.class_weight_[2] < clf.class_weight_[3]
    assert clf.class_weight_[2] < 0.1
    assert np.isfinite(clf.predict_proba(X)).all()


def test_whole_and_random_meta_sets(few):
    X, y, meta = few
    for meta_set in (
        "whole",
        "random",
        WholeMetaSet(),
        PrototypeMetaSet(space="input"),
    ):
        clf = quick(meta_set=meta_set, weights="vector").fit(X, y, meta=meta)
        assert clf.class_weight_[3] > clf.class_weight_[0]


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


# What is trained in stage 2


def stage_one_and_both(clf, data):
    """Fit with and without stage 2; stage 1 is the same."""
    X, y, meta = data
    before = clone(clf).set_params(max_epochs=0).fit(X, y, meta=meta)
    after = clf.fit(X, y, meta=meta)
    assert len(before.history_) < len(after.history_)
    return state(before.net_.module_), state(after.net_.module_)


@pytest.mark.parametrize(
    ("head", "first_of_head"),
    [
        (None, "head"),
        ("head", "head"),
        ("body.4", "body.4"),  # features before the second layer: cannot be replayed
        (lambda module, X: module.body(X), "head"),
    ],
    ids=["found", "named", "deeper", "callable"],
)
@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_head_leaves_the_extractor_bitwise_unchanged(
    weights, head, first_of_head, digits
):
    net = small_net(NormDropoutMLP, max_epochs=2)
    clf = quick(net, head=head, weights=weights, finetune="head")
    data = digits.X, digits.y, digits.meta
    before, after = stage_one_and_both(clf, data)
    names = list(before)
    extractor = names[: names.index(f"{first_of_head}.weight")]
    assert "body.1.running_mean" in extractor  # buffers as well
    assert_same_state(before, after, extractor)
    changed = [name for name in names if not torch.equal(before[name], after[name])]
    assert f"{first_of_head}.weight" in changed
    assert "head.weight" in changed
    assert all(p.requires_grad for p in clf.net_.module_.parameters())


def test_all_trains_everything(digits):
    net = small_net(NormDropoutMLP, max_epochs=2)
    clf = quick(net, finetune="all")
    before, after = stage_one_and_both(clf, (digits.X, digits.y, digits.meta))
    for name in before:
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("module", [SmallMLP, NormDropoutMLP])
@pytest.mark.parametrize("split", [None, ValidSplit(4)])
def test_uniform_frozen_weights_are_plain_training(module, split, digits):
    net = small_net(module, train_split=split, iterator_train=RowLoader)
    clf = quick(
        net,
        weights=WeightVector(lr=0),
        finetune="all",
        virtual_step=None,
        max_epochs=3,
    )
    clf.fit(digits.X, digits.y, meta=digits.meta)

    plain = small_net(
        module,
        train_split=split,
        iterator_train=RowLoader,
        iterator_valid=RowLoader,  # a DataLoader draws from the global generator
        module__n_features=64,
        module__n_classes=10,
        max_epochs=7,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_random_state(0).randint(np.iinfo(np.int32).max))
        plain.fit(digits.X, digits.y)
    np.testing.assert_allclose(
        clf.history_[:, "train_loss"], plain.history[:, "train_loss"], rtol=1e-6
    )
    if split is not None:
        np.testing.assert_allclose(
            clf.history_[:, "valid_loss"], plain.history[:, "valid_loss"], rtol=1e-5
        )
    plain_state = plain.module_.state_dict()
    for name, value in clf.net_.module_.state_dict().items():
        torch.testing.assert_close(value, plain_state[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(clf.sample_weight_, 1)


def test_lr_is_that_of_stage_two(digits):
    X, y, meta = digits.X, digits.y, digits.meta
    still = quick(lr=0.0, finetune="all")
    assert_same_state(*stage_one_and_both(still, (X, y, meta)))
    clf = quick(lr=0.25).fit(X, y, meta=meta)
    assert clf.net_.optimizer_.param_groups[0]["lr"] == 0.25
    assert quick().fit(X, y, meta=meta).net_.optimizer_.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_meta_loss_is_added(finetune, digits):
    """The first loss of stage 2 is mean + factor * mean over the meta set."""
    X, y, (X_meta, y_meta) = digits.X, digits.y, digits.meta
    net = small_net(max_epochs=2, batch_size=-1)
    clf = quick(
        net,
        weights=WeightVector(lr=0),
        finetune=finetune,
        meta_loss_weight=10,
        max_epochs=1,
    )
    before = clone(clf).set_params(max_epochs=0).fit(X, y, meta=digits.meta)
    clf.fit(X, y, meta=digits.meta)

    def loss(X, y):
        with torch.no_grad():
            scores = before.net_.module_(torch.from_numpy(X))
        return cross_entropy(scores, torch.from_numpy(y)).item()

    expected = loss(X, y) + 10 * loss(X_meta, y_meta)
    assert clf.history_[-1, "train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("given", [True, False])
def test_meta_loss_helps_the_meta_rows(given, finetune, digits):
    X, y, meta = digits.X, digits.y, digits.meta if given else None
    params = {"finetune": finetune, "max_epochs": 4, "weights": WeightVector(lr=0)}
    without = quick(**params).fit(X, y, meta=meta)
    clf = quick(**params, meta_loss_weight=10).fit(X, y, meta=meta)
    assert clf.score(*digits.meta) > without.score(*digits.meta)


def test_init_weights(digits):
    counts = np.bincount(digits.y)
    inverse = 1 / counts
    effective = (1 - 0.9999) / (1 - 0.9999**counts)
    for init_weights, start in [
        ("uniform", np.ones(10)),
        ("inverse", inverse),
        ("class_balanced", effective),
    ]:
        clf = quick(weights=WeightVector(lr=0), init_weights=init_weights)
        clf.fit(digits.X, digits.y, meta=digits.meta)
        expected = start * counts.sum() / (start * counts).sum()
        np.testing.assert_allclose(clf.class_weight_, expected, rtol=1e-5)
        assert clf.history_[-1, "weights_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weights", ["vector", "net", WeightVector(lr=2.0)], ids=str)
def test_weight_lr_overrides_that_of_the_strategy(weights, few):
    X, y, meta = few
    own = quick(weights=weights).fit(X, y, meta=meta)
    still = quick(weights=weights, weight_lr=0.0).fit(X, y, meta=meta)
    assert still.weights_.lr == 0.0 < own.weights_.lr
    assert still.history_[-1, "weights_kl"] < own.history_[-1, "weights_kl"]


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

    clf = quick(cost=manhattan, weights=weights)
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
    clf = quick(FrozenEstimator(module)).fit(X, y, meta=meta)
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
        clf = quick(net, weights=weights)
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


# Callbacks


class Recorder(Callback):
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


class StopAt(Callback):
    """Stops training as early stopping does, at the ends of some epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) in self.epochs:
            raise KeyboardInterrupt


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_callbacks_see_one_run(finetune, digits):
    net = small_net(max_epochs=2, batch_size=-1, callbacks=[Recorder()])
    clf = quick(net, finetune=finetune, max_epochs=3)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    events = dict(clf.net_.callbacks_)["Recorder"].events_
    epoch = ["epoch_begin", "grad", "epoch_end"]
    assert events == ["train_begin", *(5 * epoch), "train_end"]


def test_a_stop_ends_the_stage_only(digits):
    net = small_net(max_epochs=5, callbacks=[StopAt((2, 4)), Recorder()])
    clf = quick(net, max_epochs=5).fit(digits.X, digits.y, meta=digits.meta)
    assert clf.history_[:, "stage"] == [1, 1, 2, 2]
    events = dict(clf.net_.callbacks_)["Recorder"].events_
    assert events.count("train_begin") == events.count("train_end") == 1


def test_early_stopping_ends_each_stage(digits):
    """The stage number is best in the first epoch of a stage: stop two later."""
    stopping = EarlyStopping(monitor="stage", patience=2, lower_is_better=True)
    net = small_net(max_epochs=6, callbacks=[stopping])
    clf = quick(net, max_epochs=6).fit(digits.X, digits.y, meta=digits.meta)
    assert clf.history_[:, "stage"] == [1, 1, 1, 2, 2, 2]


def test_printed_table_is_aligned(capsys, digits):
    net = small_net(max_epochs=2, verbose=1, train_split=ValidSplit(4))
    quick(net, max_epochs=2, finetune="all").fit(digits.X, digits.y, meta=digits.meta)
    text = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    header, dashes, *rows = [line for line in text.splitlines() if line.strip()]
    assert {"epoch", "stage", *WEIGHT_COLUMNS} <= set(header.split())
    assert len(rows) == 4
    widths = [len(group) for group in dashes.split()]
    assert len(widths) == len(header.split())
    for row in rows:
        assert len(row.split()) == len(widths)
        assert len(row) == len(header) == len(dashes)


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


# Streams


def chunks(data, size=60, seed=0):
    order = np.random.default_rng(seed).permutation(len(data.X))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield data.X[rows], data.y[rows]


def test_partial_fit_needs_the_classes_first(few):
    X, y, _ = few
    clf = quick()
    with pytest.raises(ValueError, match="classes=None at the first call"):
        clf.partial_fit(X, y)
    assert not hasattr(clf, "classes_")
    clf.partial_fit(X, y, classes=[9, 4, 7, 8])
    assert clf.classes_.tolist() == [4, 7, 8, 9]
    assert clf.partial_fit(X, y) is clf


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_partial_fit_over_odd_chunks(weights, finetune, digits):
    X, y = digits.X, digits.y
    meta = {"meta": digits.meta}
    clf = quick(weights=weights, finetune=finetune)
    for rows in (y < 3, y == 1, y == 9, y > 6):
        clf.partial_fit(X[rows], y[rows], classes=range(10), **meta)
        meta = {}
        assert clf.sample_weight_.shape == (rows.sum(),)
        assert clf.sample_weight_.mean() == pytest.approx(1)
        lacking = np.bincount(y[rows], minlength=10) == 0
        np.testing.assert_array_equal(np.isnan(clf.class_weight_), lacking)
    clf.partial_fit(X[:1], y[:1])
    np.testing.assert_allclose(clf.sample_weight_, [1])
    assert clf.history_[:, "stage"] == [2]  # of the last chunk
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("weights", STRATEGIES)
def test_partial_fit_over_odd_chunks_without_meta(weights, digits):
    X, y = digits.X, digits.y
    clf = quick(weights=weights)
    for rows in (y < 3, y == 1, y == 9, y > 6):
        clf.partial_fit(X[rows], y[rows], classes=range(10))
        assert clf.sample_weight_.mean() == pytest.approx(1)
    assert np.isfinite(clf.predict_proba(X)).all()


def test_partial_fit_with_one_row_and_no_meta(digits):
    clf = quick().partial_fit(digits.X[:1], digits.y[:1], classes=range(10))
    np.testing.assert_allclose(clf.sample_weight_, [1])


@pytest.mark.parametrize("weights", STRATEGIES)
def test_partial_fit_learns(weights, digits):
    clf = quick(small_net(batch_size=32), weights=weights)
    for seed in range(6):
        for X, y in chunks(digits, seed=seed):
            clf.partial_fit(X, y, classes=range(10), meta=digits.meta)
    predicted = clf.predict(digits.X_test)
    assert recall_score(digits.y_test, predicted, average="macro") > 0.75


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_partial_fit_continues_after_fit(finetune, digits):
    net = small_net(NormDropoutMLP)
    clf = quick(net, finetune=finetune)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    before, n_epochs = state(clf.net_.module_), len(clf.history_)
    meta = clf._meta
    clf.partial_fit(digits.X[:100], digits.y[:100])
    after = clf.net_.module_.state_dict()
    extractor = [name for name in before if "body" in name]
    if finetune == "head":  # the extractor has been trained by fit
        assert_same_state(before, after, extractor)
    else:
        assert not torch.equal(before["body.0.weight"], after["body.0.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert len(clf.history_) == n_epochs + 1
    assert clf._meta is meta
    fresh = clf.fit(digits.X, digits.y, meta=digits.meta)
    assert len(fresh.history_) == n_epochs


def test_partial_fit_on_a_frozen_net_trains_the_head_only(digits):
    module = NormDropoutMLP(64, 10)
    clf = quick(FrozenEstimator(module), finetune="head")
    for X, y in chunks(digits, size=100):
        clf.partial_fit(X, y, classes=range(10), meta=digits.meta)
    before, after = module.state_dict(), clf.net_.module_.state_dict()
    assert_same_state(before, after, [name for name in before if "body" in name])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_partial_fit_without_a_fit_trains_the_whole_net(digits):
    clf = quick(finetune="head")
    clf.partial_fit(digits.X[:5], digits.y[:5], range(10), meta=digits.meta)
    before = state(clf.net_.module_)
    for X, y in chunks(digits, size=100):
        clf.partial_fit(X, y)
    after = clf.net_.module_.state_dict()
    assert not torch.equal(before["body.0.weight"], after["body.0.weight"])


def test_partial_fit_keeps_the_meta_set_of_the_first_call(few):
    X, y, meta = few
    kept, given = quick(), quick()
    for clf in (kept, given):
        clf.partial_fit(X[:20], y[:20], [4, 7, 8, 9], meta=meta)
    kept.partial_fit(X[20:], y[20:])
    given.partial_fit(X[20:], y[20:], meta=meta)
    np.testing.assert_array_equal(kept.predict_proba(X), given.predict_proba(X))
    other = quick().partial_fit(X[:20], y[:20], [4, 7, 8, 9], meta=meta)
    other.partial_fit(X[20:], y[20:], meta=(meta[0][::2], meta[1][::2]))
    assert len(other._meta.X) == len(meta[0][::2])


def test_partial_fit_accepts_a_mask(few):
    X, y, _ = few
    mask = np.isin(np.arange(len(X)), np.unique(y, return_index=True)[1])
    clf = quick().partial_fit(X, y, [4, 7, 8, 9], meta_mask=mask)
    assert len(clf._meta.X) == mask.sum()
    assert (clf.sample_weight_[mask] == 0).all()


def test_partial_fit_counts_the_classes_of_the_stream(few):
    """Start weights are computed from all rows so far, not from the chunk."""
    X, y, meta = few
    clf = quick(weights=WeightVector(lr=0), init_weights="inverse")
    clf.partial_fit(X, y, [4, 7, 8, 9], meta=meta)
    rows = [np.flatnonzero(y == label)[0] for label in (4, 9)]
    clf.partial_fit(X[rows], y[rows])
    counts = np.unique(y, return_counts=True)[1] + [1, 0, 0, 1]
    ratio = clf.sample_weight_[1] / clf.sample_weight_[0]
    assert ratio == pytest.approx(counts[0] / counts[3], rel=1e-5)


def size_over_a_stream(clf, data):
    """Return the pickled size after each of 30 chunks, whole and without history."""
    sizes = []
    for step in range(30):
        rows = np.random.default_rng(step).integers(len(data.X), size=100)
        meta = data.meta if step == 0 else None
        clf.partial_fit(data.X[rows], data.y[rows], range(10), meta=meta)
        whole, history = len(pickle.dumps(clf)), len(pickle.dumps(clf.history_))
        sizes.append((whole, whole - history))
    return np.array(sizes)


@pytest.mark.parametrize("weights", STRATEGIES)
def test_a_stream_keeps_no_rows(weights, digits):
    _, without_history = size_over_a_stream(quick(weights=weights), digits).T
    assert without_history[29] == pytest.approx(without_history[2], rel=0.01)


def test_memory_does_not_grow_with_a_stream(digits):
    whole, _ = size_over_a_stream(quick(), digits).T
    assert whole[29] == pytest.approx(whole[2], rel=0.03)


@pytest.mark.gpu
@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_on_the_gpu(weights, finetune, digits):
    devices = set()

    def cost(features, labels, meta_features, meta_labels):
        for tensor in (features, labels, meta_features, meta_labels):
            devices.add(tensor.device.type)
        similarity = nn.functional.cosine_similarity(
            features[:, None], meta_features[None], dim=-1
        )
        different = labels[:, None] != meta_labels[None, :]
        return (1 - similarity).clamp(min=0) + different

    net = small_net(NormDropoutMLP, device="cuda")
    clf = quick(net, weights=weights, finetune=finetune, cost=cost)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    for X, y in chunks(digits):
        clf.partial_fit(X, y)
    assert devices == {"cuda"}
    assert next(clf.net_.module_.parameters()).is_cuda
    assert isinstance(clf.sample_weight_, np.ndarray)
    assert clf.score(digits.X_test, digits.y_test) > 0.3
    if weights == "vector":
        assert clf.weights_.values_.is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize("solver", [SinkhornSolver(), POTSolver(tol=1e-6)])
def test_transport_is_solved_on_the_gpu(solver, digits, monkeypatch):
    devices = set()
    kind = type(solver)
    solve = kind._solve

    def watched(self, C, a, b, *args, **kwargs):
        devices.update({C.device.type, a.device.type, b.device.type})
        result = solve(self, C, a, b, *args, **kwargs)
        devices.add(result.plan.device.type)
        return result

    monkeypatch.setattr(kind, "_solve", watched)
    clf = quick(small_net(device="cuda"), weights="vector", solver=solver)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    clf.partial_fit(digits.X[:60], digits.y[:60])
    assert devices == {"cuda"}
