"""Weights for any scikit-learn classifier: the function and the meta-estimator."""

from __future__ import annotations

import pickle
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from oracles import assert_global_rng_untouched
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.naive_bayes import BernoulliNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler, scale
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import compute_sample_weight, get_tags
from test_examples import run

from sk_otreweight import (
    CombinedCost,
    LabelCost,
    OTReweightedEstimator,
    PrototypeMetaSet,
    WholeMetaSet,
    compute_ot_sample_weight,
    make_long_tailed,
)
from sk_otreweight.sample_weight import columns


@pytest.fixture(scope="module")
def wine():
    """Three classes with a long tail; columns whose scales differ a thousandfold."""
    data = make_long_tailed(
        *load_wine(return_X_y=True), imbalance_factor=8, random_state=0
    )
    data.meta = (data.X_meta, data.y_meta)
    data.given = {"X_meta": data.X_meta, "y_meta": data.y_meta}
    data.given_rows = (data.X, data.X_meta)
    return data


def naive_weights(X, y, X_meta, y_meta, feature_cost, *, with_labels, reg):
    """Weights of mean 1 from standardised columns, column by column of the plan."""
    mean, scale = np.nanmean(X, axis=0), np.nanstd(X, axis=0)
    z, z_meta = (np.nan_to_num((rows - mean) / scale) for rows in (X, X_meta))
    weights, classes = np.zeros(len(X)), np.unique(y_meta)
    for k in classes:
        prototype = z_meta[y_meta == k].mean(axis=0)
        cost = np.array([feature_cost(row, prototype) for row in z])
        if with_labels:
            cost = cost + (y != k)
        kernel = np.exp(-(cost - cost.min()) / reg)
        weights += kernel / kernel.sum() / len(classes)
    return len(X) * weights


def cosine_distance(a, b):
    return 1 - a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


def squared_distance(a, b):
    return ((a - b) ** 2).sum()


def no_distance(a, b):
    return 0.0


def assert_same_weights(actual, expected, rtol=2e-4):
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=rtol)
    assert actual.mean() == pytest.approx(1, abs=1e-12)


# --- the weights ----------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, np.array(["c", "a", "b"])])
def test_label_cost_without_entropy_is_inverse_class_frequency(names, wine):
    y = wine.y if names is None else names[wine.y]
    weights = compute_ot_sample_weight(wine.X, y, cost="label", reg=0.01)
    balanced = compute_sample_weight("balanced", y)
    assert np.ptp(balanced) > 1
    assert_same_weights(weights, balanced / balanced.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("cost", "function", "with_labels", "reg"),
    [
        ("label", no_distance, True, 0.3),
        ("feature", cosine_distance, False, 0.2),
        ("combined", cosine_distance, True, 0.1),
        ("combined", cosine_distance, True, 1.0),
        ("sqeuclidean", squared_distance, False, 10.0),
    ],
)
def test_weights_are_those_of_the_naive_formula(cost, function, with_labels, reg, wine):
    weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given, cost=cost, reg=reg)
    expected = naive_weights(
        wine.X, wine.y, *wine.meta, function, with_labels=with_labels, reg=reg
    )
    assert_same_weights(weights, expected)
    wrong = naive_weights(
        wine.X, wine.y, *wine.meta, function, with_labels=with_labels, reg=1.1 * reg
    )
    with pytest.raises(AssertionError, match="Not equal"):
        assert_same_weights(weights, wrong)


def test_missing_values_count_as_the_mean(wine):
    rng = np.random.default_rng(0)
    X, X_meta = wine.X.copy(), wine.X_meta.copy()
    for array in X, X_meta:
        array[rng.random(array.shape) < 0.2] = np.nan
    weights = compute_ot_sample_weight(
        X, wine.y, X_meta=X_meta, y_meta=wine.y_meta, cost="combined"
    )
    expected = naive_weights(
        X, wine.y, X_meta, wine.y_meta, cosine_distance, with_labels=True, reg=0.1
    )
    assert_same_weights(weights, expected)
    complete = compute_ot_sample_weight(wine.X, wine.y, **wine.given, cost="combined")
    assert np.abs(weights - complete).max() > 0.1


def test_features_count_a_fifth_by_default(wine):
    weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given)
    expected = naive_weights(
        wine.X,
        wine.y,
        wine.X_meta,
        wine.y_meta,
        lambda a, b: 0.2 * cosine_distance(a, b),
        with_labels=True,
        reg=0.1,
    )
    assert_same_weights(weights, expected)


@pytest.mark.parametrize("value", [0.0, 1e6 / 3, np.nan])
def test_columns_that_say_nothing_change_nothing(value, wine):
    weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given)
    X, X_meta = (np.c_[rows, np.full(len(rows), value)] for rows in wine.given_rows)
    padded = compute_ot_sample_weight(X, wine.y, X_meta=X_meta, y_meta=wine.y_meta)
    assert_same_weights(padded, weights, rtol=1e-5)


def test_units_of_the_columns_do_not_matter(wine):
    rng = np.random.default_rng(0)
    factor, shift = 10 ** rng.uniform(-3, 3, 13), rng.uniform(-10, 10, 13)
    X, X_meta = (shift + factor * rows for rows in wine.given_rows)
    weights = compute_ot_sample_weight(X, wine.y, X_meta=X_meta, y_meta=wine.y_meta)
    assert_same_weights(
        weights, compute_ot_sample_weight(wine.X, wine.y, **wine.given), rtol=1e-4
    )


def test_order_of_the_rows_does_not_matter(wine):
    weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given)
    order = np.random.default_rng(0).permutation(len(wine.y))
    permuted = compute_ot_sample_weight(wine.X[order], wine.y[order], **wine.given)
    assert_same_weights(permuted, weights[order], rtol=1e-5)


@pytest.mark.parametrize("entries", [1, 50])
def test_blocks_of_rows_change_nothing(entries, wine, monkeypatch):
    X = wine.X.copy()
    X[:20, 3] = np.nan  # whole blocks without a value
    weights = compute_ot_sample_weight(X, wine.y, **wine.given)
    monkeypatch.setattr(columns, "_BLOCK_ENTRIES", entries)
    in_blocks = compute_ot_sample_weight(X, wine.y, **wine.given)
    assert_same_weights(in_blocks, weights, rtol=1e-5)


def frame_of(library, rows):
    return library.DataFrame({f"column {k}": rows[:, k] for k in range(rows.shape[1])})


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        np.ndarray.tolist,
        lambda X: X.astype(object),
        lambda X: X[::-1].copy()[::-1],
        lambda X: frame_of(pd, X),
        lambda X: frame_of(pd, X).astype(object),
        lambda X: frame_of(pd, X).convert_dtypes(),
        lambda X: frame_of(pl, X),
    ],
    ids=["fortran", "list", "object", "reversed", "pandas", "objects", "NA", "polars"],
)
def test_kinds_of_arrays(convert, wine):
    X, X_meta = (convert(rows) for rows in wine.given_rows)
    weights = compute_ot_sample_weight(
        X, wine.y.tolist(), X_meta=X_meta, y_meta=wine.y_meta.tolist()
    )
    expected = compute_ot_sample_weight(wine.X, wine.y, **wine.given)
    assert_same_weights(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float16, bool])
def test_dtypes(dtype, wine):
    X, X_meta = (rows.astype(np.uint8) % 2 for rows in wine.given_rows)
    expected = compute_ot_sample_weight(
        X.astype(np.float64), wine.y, X_meta=X_meta, y_meta=wine.y_meta
    )
    weights = compute_ot_sample_weight(
        X.astype(dtype), wine.y, X_meta=X_meta.astype(dtype), y_meta=wine.y_meta
    )
    assert_same_weights(weights, expected, rtol=1e-6)


def test_rows_of_a_class_differ_only_if_features_are_compared(wine):
    for cost in "label", CombinedCost(mix=1.0), "combined", "feature":
        weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given, cost=cost)
        spreads = [np.ptp(weights[wine.y == k]) for k in range(3)]
        assert (max(spreads) > 0.1) == (cost in ("combined", "feature")), cost


@pytest.mark.parametrize("X", [["text", ""], [{}, {"a": 1}], [[1], [1, 2]]], ids=str)
def test_label_cost_does_not_look_at_x(X):
    y = ["b", "a", "b", "b"]
    weights = compute_ot_sample_weight(X * 2, y, cost="label", reg=0.01)
    np.testing.assert_allclose(weights, [2 / 3, 2, 2 / 3, 2 / 3], rtol=1e-5)
    given = compute_ot_sample_weight(
        X * 2, y, X_meta=X, y_meta=["a", "b"], cost="label", reg=0.01
    )
    np.testing.assert_array_equal(given, weights)


def test_meta_rows_that_are_drawn(wine):
    """Drawing all rows there are is giving them."""
    weights = compute_ot_sample_weight(
        wine.X, wine.y, meta_set=PrototypeMetaSet(per_class=10**6)
    )
    given = compute_ot_sample_weight(wine.X, wine.y, X_meta=wine.X, y_meta=wine.y)
    assert_same_weights(weights, given, rtol=1e-5)


def test_random_state(wine):
    def weights(seed):
        return compute_ot_sample_weight(wine.X, wine.y, random_state=seed)

    np.testing.assert_array_equal(weights(3), weights(3))
    np.testing.assert_array_equal(weights(3), weights(np.random.RandomState(3)))
    assert np.abs(weights(3) - weights(4)).max() > 1e-3
    assert np.abs(weights(None) - weights(None)).max() > 1e-3


def test_global_generators_stay_untouched(wine):
    before = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert_global_rng_untouched(lambda: compute_ot_sample_weight(wine.X, wine.y))
    after = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert before["pos"] == after["pos"]
    np.testing.assert_array_equal(before["key"], after["key"])


@pytest.mark.parametrize("meta_set", ["whole", "random", "prototype", WholeMetaSet()])
def test_meta_sets(meta_set, wine):
    weights = compute_ot_sample_weight(
        wine.X, wine.y, **wine.given, meta_set=meta_set, random_state=0
    )
    mass = np.bincount(wine.y, weights)
    np.testing.assert_allclose(mass / mass.sum(), 1 / 3, atol=0.1)


class LastRows(PrototypeMetaSet):
    """Looks at one row of each class, as if the others had not been given."""

    def inputs(self, X, labels):
        last = [int((labels == k).nonzero().max()) for k in labels.unique()]
        return X[last], labels[last]


def test_meta_set_chooses_the_meta_rows(wine):
    weights = compute_ot_sample_weight(
        wine.X, wine.y, **wine.given, meta_set=LastRows()
    )
    last = [np.flatnonzero(wine.y_meta == k).max() for k in range(3)]
    meta = {"X_meta": wine.X_meta[last], "y_meta": wine.y_meta[last]}
    expected = compute_ot_sample_weight(wine.X, wine.y, **meta)
    assert_same_weights(weights, expected, rtol=1e-5)


def test_inputs_stay_as_they_are(wine):
    arrays = [array.copy() for array in (wine.X, wine.y, *wine.meta)]
    arrays[0][0, 0] = np.nan
    X, y, X_meta, y_meta = (array.copy() for array in arrays)
    compute_ot_sample_weight(X, y, X_meta=X_meta, y_meta=y_meta)
    for array, original in zip((X, y, X_meta, y_meta), arrays, strict=True):
        np.testing.assert_array_equal(array, original)


# --- bad input ------------------------------------------------------------------------

ROWS = np.arange(8.0).reshape(4, 2)
LABELS = ["a", "a", "b", "b"]
INFINITE = np.where(ROWS == 3, np.inf, ROWS)
NAMES = {"size": ROWS[:, 0], "town": ["x", "y", "x", "y"]}


@pytest.mark.parametrize(
    ("X", "y", "params", "message"),
    [
        (ROWS, LABELS[:3], {}, "inconsistent numbers of samples"),
        (ROWS[:0], [], {}, "Found array with 0 sample"),
        (ROWS, [0.5, 1.5, 2.5, 3.5], {}, "Unknown label type"),
        (ROWS, [0, 0, 1, np.inf], {}, "Input y contains infinity"),
        (ROWS, np.array(["a", "a", "b", np.nan], object), {}, "contains NaN"),
        (ROWS, [[0, 1]] * 4, {}, "1d array"),
        (ROWS, ["a", "b", "b", "b"], {}, r"\['a'\] has a single row.*cost='label'"),
        (ROWS[:, 0], LABELS, {}, "Expected 2D array"),
        (INFINITE, LABELS, {}, "Input X contains infinity"),
        (ROWS * 1e200, LABELS, {}, r"values as large as 7e\+200"),
        (sp.csr_array(ROWS), LABELS, {}, "[Ss]parse"),
        (pd.DataFrame(NAMES), LABELS, {}, r"\['town'\] are not numeric.*cost='label'"),
        (pd.DataFrame(NAMES, dtype=object), LABELS, {}, r"but \['town'\] are not num"),
        (pl.DataFrame(NAMES), LABELS, {}, r"\['town'\] are not numeric.*cost='label'"),
        (
            pd.DataFrame({"code": pd.Categorical([1, 2, 1, 2]), "size": ROWS[:, 0]}),
            LABELS,
            {"cost": "feature"},
            r"FeatureCost\(\) compares the columns of X, but \['code'\]",
        ),
        (ROWS, LABELS, {"cost": "cosine"}, "cost='cosine' is not known"),
        (ROWS, LABELS, {"meta_set": 3}, "meta_set=3 is not known"),
        (ROWS, LABELS, {"reg": 0}, "reg=0 is not valid"),
        (ROWS, LABELS, {"X_meta": ROWS}, "y_meta is missing"),
        (ROWS, LABELS, {"y_meta": LABELS}, "X_meta is missing"),
        (ROWS, LABELS, {"X_meta": ROWS, "y_meta": ["a"]}, "inconsistent numbers"),
        (ROWS, LABELS, {"X_meta": ROWS[:0], "y_meta": []}, "Found 0 samples in X_meta"),
        (ROWS, LABELS, {"X_meta": ROWS, "y_meta": [*"abcd"]}, r"unknown: \['c', 'd'\]"),
        (ROWS, LABELS, {"X_meta": INFINITE, "y_meta": LABELS}, "X_meta contains inf"),
        (ROWS, LABELS, {"X_meta": ROWS[:, :1], "y_meta": LABELS}, "has 1 columns, X h"),
        (
            pd.DataFrame(ROWS, columns=["a", "b"]),
            LABELS,
            {"X_meta": pd.DataFrame(ROWS, columns=["b", "a"]), "y_meta": LABELS},
            "columns of X_meta",
        ),
    ],
)
def test_bad_input(X, y, params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        compute_ot_sample_weight(X, y, **params)
    # As tuples, because as many meta rows as rows would give a warning.
    fit_params = {
        name: (params[name],) for name in ("X_meta", "y_meta") if name in params
    }
    params = {name: params[name] for name in params.keys() - fit_params.keys()}
    clf = OTReweightedEstimator(LogisticRegression(), **params)
    with pytest.raises((TypeError, ValueError)):
        clf.fit(X, y, **fit_params)
    with pytest.raises(NotFittedError):
        clf.predict(ROWS)


def test_meta_rows_that_were_not_scaled(wine):
    clf = make_pipeline(StandardScaler(), OTReweightedEstimator(LogisticRegression()))
    meta = {"otreweightedestimator__meta": (wine.X_meta, wine.y_meta)}
    with pytest.warns(UserWarning, match="steps that the meta rows have not"):
        clf.fit(wine.X, wine.y, **meta)


def test_as_many_meta_rows_as_rows(wine):
    n = len(wine.y_meta)
    clf = OTReweightedEstimator(Recorder())
    meta = {"X_meta": wine.X_meta, "y_meta": wine.y_meta}
    with pytest.warns(UserWarning, match=f"X_meta and y_meta: {n} entries, as many as"):
        clf.fit(np.concatenate([wine.X_meta[1:], wine.X[:1]]), wine.y[-n:], **meta)


def test_meta_values_out_of_all_proportion(wine):
    X_meta = wine.X_meta.copy()
    X_meta[0, 0] = 1e60
    for cost in ("combined", "sqeuclidean"):
        with pytest.raises(ValueError, match="too far from those of X"):
            compute_ot_sample_weight(
                wine.X, wine.y, X_meta=X_meta, y_meta=wine.y_meta, cost=cost
            )


def test_tensors_with_a_graph(wine):
    X = torch.tensor(wine.X, requires_grad=True)
    expected = compute_ot_sample_weight(wine.X, wine.y, random_state=0)
    weights = compute_ot_sample_weight(X, wine.y, random_state=0)
    np.testing.assert_allclose(weights, expected)


def test_class_weights_of_the_classifier_warn(wine):
    clf = OTReweightedEstimator(LogisticRegression(class_weight="balanced"))
    with pytest.warns(UserWarning, match="rare classes count twice"):
        clf.fit(scale(wine.X), wine.y)


def test_a_fit_that_fails_changes_nothing(wine):
    frame = pd.DataFrame(wine.X).rename(columns=str)
    clf = OTReweightedEstimator(Recorder()).fit(frame, wine.y)
    with pytest.raises(ValueError, match="only one class"):
        clf.fit(wine.X[:, :3], np.zeros(len(wine.y)))
    assert clf.n_features_in_ == 13
    assert clf.feature_names_in_.tolist() == frame.columns.tolist()
    np.testing.assert_array_equal(clf.predict(frame), clf.estimator_.predict(frame))


def test_scores_with_weights_of_their_own(wine):
    with config_context(enable_metadata_routing=True):
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        search = GridSearchCV(
            OTReweightedEstimator(LogisticRegression()), {"reg": [0.1]},
            scoring=scorer, cv=2, error_score="raise",
        )  # fmt: skip
        # Rows of class 0 alone count in the scores.
        search.fit(scale(wine.X), wine.y, sample_weight=(wine.y == 0).astype(float))
    assert search.best_score_ > 0.8


def test_it_shows_itself_shortly():
    clf = OTReweightedEstimator(LogisticRegression(C=2.0), cost="label")
    assert repr(clf) == "OTReweightedEstimator(LogisticRegression(C=2.0), cost='label')"
    assert "LogisticRegression" in clf._repr_html_()
    assert clf._repr_mimebundle_()["text/plain"] == repr(clf)


def test_class_without_meta_rows(wine):
    some = wine.y_meta > 0
    with pytest.warns(UserWarning, match=r"No meta row is of class \[0\]"):
        weights = compute_ot_sample_weight(
            wine.X, wine.y, X_meta=wine.X_meta[some], y_meta=wine.y_meta[some]
        )
    assert weights[wine.y == 0].mean() < 0.5 * weights[wine.y == 1].mean()


@pytest.mark.parametrize(
    ("estimator", "params", "message"),
    [
        (KNeighborsClassifier(), {}, "fit of KNeighborsClassifier takes no sample_wei"),
        (
            make_pipeline(LogisticRegression()),
            {},
            "Pipeline takes no sample_weight.*go",
        ),
        (LinearRegression(), {}, "LinearRegression is not a classifier"),
        (LogisticRegression(), {"sample_weight": [1] * 4}, "LogisticRegression itself"),
        (LogisticRegression(), {"meta": (ROWS,)}, "must be a pair"),
        (LogisticRegression(), {"meta_mask": [True]}, "one boolean per row"),
        (
            LogisticRegression(),
            {"meta": (ROWS, LABELS), "X_meta": ROWS, "y_meta": LABELS},
            "pass one of them only",
        ),
    ],
)
def test_bad_use_of_the_estimator(estimator, params, message):
    clf = OTReweightedEstimator(estimator)
    with pytest.raises(ValueError, match=message):
        clf.fit(ROWS, LABELS, **params)
    assert not hasattr(clf, "estimator_")


# --- the meta-estimator ---------------------------------------------------------------


class Recorder(BernoulliNB):
    """Keeps what its fit was given."""

    def fit(self, X, y, sample_weight=None, note=None):
        self.given_ = X, sample_weight, note
        return super().fit(X, y, sample_weight=sample_weight)


def test_classifier_is_fitted_with_the_weights(wine):
    clf = OTReweightedEstimator(Recorder(), reg=0.2, random_state=5)
    clf.fit(wine.X, wine.y, note="kept")
    weights = compute_ot_sample_weight(wine.X, wine.y, reg=0.2, random_state=5)
    X, sample_weight, note = clf.estimator_.given_
    assert X is wine.X
    assert note == "kept"
    np.testing.assert_array_equal(sample_weight, weights)
    np.testing.assert_array_equal(clf.sample_weight_, weights)
    for k in range(3):
        assert clf.class_counts_[k] == (wine.y == k).sum()
        assert clf.class_weight_[k] == pytest.approx(weights[wine.y == k].mean())
    assert not hasattr(clf.estimator, "given_")


def test_predictions_are_those_of_the_classifier(wine):
    y = np.array(["z", "a", "m"])[wine.y]
    given = {"X_meta": wine.X_meta, "y_meta": np.array(["z", "a", "m"])[wine.y_meta]}
    weights = compute_ot_sample_weight(wine.X, y, **given)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    direct = model.fit(wine.X, y, logisticregression__sample_weight=weights)
    clf = OTReweightedEstimator(LogisticRegression())
    clf.fit(direct[0].transform(wine.X), y, meta=None, **scaled(direct[0], given))
    X = direct[0].transform(wine.X_meta)
    assert clf.classes_.tolist() == ["a", "m", "z"]
    np.testing.assert_array_equal(clf.predict(X), direct.predict(wine.X_meta))
    for method in "predict_proba", "predict_log_proba", "decision_function":
        np.testing.assert_allclose(
            getattr(clf, method)(X), getattr(direct, method)(wine.X_meta), atol=1e-2
        )
    accuracy = (clf.predict(X) == given["y_meta"]).mean()
    assert clf.score(X, given["y_meta"]) == pytest.approx(accuracy)
    right = (clf.predict(X) == given["y_meta"]).astype(float)
    assert clf.score(X, given["y_meta"], sample_weight=right) == 1


def scaled(scaler, given):
    return given | {"X_meta": scaler.transform(given["X_meta"])}


def test_methods_are_those_of_the_classifier(wine):
    clf = OTReweightedEstimator(LinearSVC())
    for _ in range(2):
        assert hasattr(clf, "predict")
        assert hasattr(clf, "decision_function")
        assert not hasattr(clf, "predict_proba")
        assert not hasattr(clf, "predict_log_proba")
        clf.fit(StandardScaler().fit_transform(wine.X), wine.y)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_not_fitted(method, wine):
    clf = OTReweightedEstimator(LogisticRegression())
    with pytest.raises(NotFittedError):
        getattr(clf, method)(wine.X)


@pytest.mark.parametrize(
    ("kind", "cost"),
    [
        *product(["array", "list", "pandas", "polars"], ["label", "combined"]),
        ("sparse", "label"),
    ],
)
def test_mask_holds_rows_out(kind, cost, wine):
    X = np.concatenate([wine.X, wine.X_meta])
    y = np.concatenate([wine.y, wine.y_meta])
    mask = np.arange(len(y)) >= len(wine.y)
    order = np.random.default_rng(0).permutation(len(y))
    X, y, mask = X[order], y[order], mask[order]
    convert = {
        "array": np.asarray,
        "list": np.ndarray.tolist,
        "pandas": lambda X: frame_of(pd, X).set_index(np.arange(len(X)) + 100),
        "polars": lambda X: frame_of(pl, X),
        "sparse": sp.coo_array,
    }[kind]
    clf = OTReweightedEstimator(Recorder(), cost=cost)
    clf.fit(convert(X), y, meta_mask=mask)
    same = clone(clf).fit(X[~mask], y[~mask], meta=(X[mask], y[mask]))
    given = clf.estimator_.given_[0]
    assert type(given) is type(convert(X)) or kind == "sparse"
    np.testing.assert_array_equal(
        given.toarray() if kind == "sparse" else np.asarray(given), X[~mask]
    )
    assert (clf.sample_weight_[mask] == 0).all()
    np.testing.assert_array_equal(clf.sample_weight_[~mask], same.sample_weight_)
    np.testing.assert_array_equal(clf.class_weight_, same.class_weight_)
    assert same.sample_weight_.mean() == pytest.approx(1)


def test_forms_of_meta_are_the_same(wine):
    clf = OTReweightedEstimator(Recorder())
    pair = clf.fit(wine.X, wine.y, meta=wine.meta).sample_weight_
    two = clf.fit(wine.X, wine.y, **wine.given).sample_weight_
    tuples = clf.fit(wine.X, wine.y, X_meta=wine.meta[:1], y_meta=wine.meta[1:])
    np.testing.assert_array_equal(pair, two)
    np.testing.assert_array_equal(pair, tuples.sample_weight_)


# Frames, categories, text, missing values


def cancer_frame(library):
    """Breast cancer with a column of categories and a column with missing values."""
    X, y = load_breast_cancer(return_X_y=True)
    rare = np.flatnonzero(y == 0)[:20]
    rows = np.concatenate([rare, np.flatnonzero(y == 1)[:150]])
    X, y = X[rows, :4], y[rows]
    size = np.where(X[:, 0] > np.median(X[:, 0]), "large", "small")
    X[::7, 1] = np.nan
    frame = frame_of(library, X)
    if library is pl:
        return frame.with_columns(pl.Series("size", size, dtype=pl.Categorical)), y
    return frame.assign(size=pd.Categorical(size)), y


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_frame_with_categories(library):
    X, y = cancer_frame(library)
    booster = HistGradientBoostingClassifier(
        categorical_features="from_dtype", max_iter=20, random_state=0
    )
    clf = OTReweightedEstimator(booster, cost="label").fit(X, y)
    assert clf.feature_names_in_.tolist() == list(X.columns)
    assert clf.estimator_.is_categorical_.tolist() == [False] * 4 + [True]
    direct = booster.fit(X, y, sample_weight=clf.sample_weight_)
    np.testing.assert_array_equal(clf.predict_proba(X), direct.predict_proba(X))
    with pytest.raises(ValueError, match=r"\['size'\] are not numeric.*cost='label'"):
        OTReweightedEstimator(booster).fit(X, y)


def test_missing_values_reach_a_classifier_that_takes_them():
    X, y = cancer_frame(pd)
    X = X.drop(columns="size")
    booster = HistGradientBoostingClassifier(max_iter=20, random_state=0)
    clf = OTReweightedEstimator(booster, random_state=0).fit(X, y)
    weights = compute_ot_sample_weight(X, y, random_state=0)
    direct = booster.fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(clf.predict_proba(X), direct.predict_proba(X))
    with pytest.raises(ValueError, match="LogisticRegression does not accept missing"):
        OTReweightedEstimator(LogisticRegression()).fit(X, y)


def test_text():
    text = ["good day", "good night", "good morning", "bad luck", "good bye"]
    y = ["+", "+", "+", "-", "+"]
    clf = OTReweightedEstimator(LogisticRegression(), cost="label", reg=0.01)
    pipeline = make_pipeline(TfidfVectorizer(), clf).fit(text, y)
    np.testing.assert_allclose(pipeline[-1].class_weight_, [0.625, 2.5], rtol=1e-5)
    assert pipeline.predict(["bad"]) == ["-"]


def test_tags():
    class Texts(LogisticRegression):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.string = tags.input_tags.sparse = True
            tags.classifier_tags.multi_label = True
            tags.classifier_tags.poor_score = True
            tags.non_deterministic = True
            return tags

    for cost, takes_all in (("label", True), (LabelCost(), True), ("combined", False)):
        tags = get_tags(OTReweightedEstimator(Texts(), cost=cost))
        assert tags.input_tags.sparse == tags.input_tags.string == takes_all
        assert not tags.input_tags.allow_nan
        assert tags.non_deterministic
        assert tags.classifier_tags.poor_score
        assert not tags.classifier_tags.multi_label
        booster = OTReweightedEstimator(HistGradientBoostingClassifier(), cost=cost)
        assert get_tags(booster).input_tags.allow_nan
    assert not get_tags(OTReweightedEstimator(Texts(), cost="?")).input_tags.sparse


# Searches, pipelines, calibration, copies


@pytest.mark.parametrize("routing", [False, True])
def test_weights_are_those_of_the_fold(routing, wine):
    X, y = np.concatenate([wine.X, wine.X_meta]), np.r_[wine.y, wine.y_meta]
    mask = np.arange(len(y)) >= len(wine.y)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    with config_context(enable_metadata_routing=routing):
        clf = OTReweightedEstimator(Recorder(), random_state=0)
        if routing:
            clf.set_fit_request(meta_mask=True)
        fitted = cross_validate(
            clf, X, y, params={"meta_mask": mask}, cv=folds, return_estimator=True
        )["estimator"]
    for (train, _), clf in zip(folds.split(X, y), fitted, strict=True):
        rows, meta = train[~mask[train]], train[mask[train]]
        expected = compute_ot_sample_weight(
            X[rows], y[rows], X_meta=X[meta], y_meta=y[meta]
        )
        np.testing.assert_array_equal(clf.sample_weight_[~mask[train]], expected)


@pytest.mark.parametrize("routing", [False, True])
def test_grid_search_over_nested_parameters(routing, wine):
    grid = {
        "clf__estimator__C": [1e-6, 1.0],
        "clf__cost__mix": [0.0, 0.5],
        "clf__meta_set__per_class": [3, 5],
    }
    with config_context(enable_metadata_routing=routing):
        clf = OTReweightedEstimator(
            LogisticRegression(),
            cost=CombinedCost(),
            meta_set=PrototypeMetaSet(),
            random_state=0,
        )
        pipeline = Pipeline([("scale", StandardScaler()), ("clf", clf)])
        search = GridSearchCV(pipeline, grid, cv=3, scoring="balanced_accuracy")
        search.fit(wine.X, wine.y)
    assert len(search.cv_results_["params"]) == 8
    assert search.best_params_["clf__estimator__C"] == 1.0
    assert search.score(*wine.meta) > 0.9
    assert clf.cost.mix == 0.5


@pytest.mark.parametrize("routing", [False, True])
def test_calibration(routing, wine):
    with config_context(enable_metadata_routing=routing):
        clf = OTReweightedEstimator(LinearSVC(), random_state=0)
        if routing:
            clf.set_fit_request(meta=True)
        calibrated = CalibratedClassifierCV(clf, cv=2, method="sigmoid")
        scaler = StandardScaler().fit(wine.X)
        meta = scaler.transform(wine.X_meta), wine.y_meta
        calibrated.fit(scaler.transform(wine.X), wine.y, meta=meta)
    assert calibrated.score(*meta) > 0.8


def test_routing_to_the_classifier(wine):
    with config_context(enable_metadata_routing=True):
        clf = OTReweightedEstimator(Recorder().set_fit_request(note=True))
        clf.set_fit_request(meta=True)
        pipeline = make_pipeline(FunctionTransformer(), clf)
        pipeline.fit(wine.X, wine.y, note="kept", meta=wine.meta)
        assert pipeline[-1].estimator_.given_[2] == "kept"
        with pytest.raises(TypeError, match="nonsense"):
            clf.fit(wine.X, wine.y, nonsense=1)
        with pytest.raises(ValueError, match="requested or not requested"):
            OTReweightedEstimator(Recorder()).fit(wine.X, wine.y, note="lost")


def test_pipeline_that_scales_the_meta_rows(wine):
    """What is standardised already is standardised again, to no effect."""
    scaler = StandardScaler().fit(wine.X)
    with config_context(enable_metadata_routing=True):
        clf = OTReweightedEstimator(Recorder())
        clf.set_fit_request(X_meta=True, y_meta=True)
        pipeline = Pipeline(
            [("scale", StandardScaler()), ("clf", clf)], transform_input=["X_meta"]
        ).fit(wine.X, wine.y, **wine.given)
    weights = compute_ot_sample_weight(wine.X, wine.y, **wine.given)
    assert_same_weights(pipeline["clf"].sample_weight_, weights, rtol=1e-4)
    wrong = OTReweightedEstimator(Recorder())
    with pytest.warns(UserWarning, match="steps that the meta rows have not"):
        wrong.fit(scaler.transform(wine.X), wine.y, **wine.given)
    assert np.abs(wrong.sample_weight_ - weights).max() > 0.1


def test_clone_and_pickle(wine):
    clf = OTReweightedEstimator(
        DecisionTreeClassifier(random_state=0), cost=CombinedCost(0.3), random_state=0
    ).fit(wine.X, wine.y)
    copy = clone(clf)
    assert not hasattr(copy, "estimator_")
    assert copy.cost.mix == 0.3
    for same in copy.fit(wine.X, wine.y), pickle.loads(pickle.dumps(clf)):
        np.testing.assert_array_equal(same.sample_weight_, clf.sample_weight_)
        np.testing.assert_array_equal(
            same.predict_proba(wine.X_meta), clf.predict_proba(wine.X_meta)
        )


def test_xgboost(wine):
    xgboost = pytest.importorskip("xgboost")
    clf = OTReweightedEstimator(xgboost.XGBClassifier(n_estimators=10, n_jobs=1))
    assert clf.fit(wine.X, wine.y).score(*wine.meta) > 0.8


# The example


@pytest.mark.slow
def test_example_shows_who_wins():
    text = run("examples/plot_any_classifier.py")
    for name in "boosted trees", "logistic regression":
        lines = re.findall(rf"^{name}.*$", text, flags=re.MULTILINE)
        cells = [re.findall(r"(\d\.\d{3})(\*?)", line) for line in lines]
        for column in zip(*cells, strict=True):
            values = [float(value) for value, _ in column]
            marked = [value for value, mark in column if mark]
            assert len(values) == 3
            assert marked
            assert set(map(float, marked)) == {max(values)}
        plain, _, transport = (float(row[1][0]) for row in cells)
        assert transport > plain + 0.05
    figure = re.search(r"Figure: (.*)", text).group(1)
    assert Path(figure).stat().st_size > 10_000
