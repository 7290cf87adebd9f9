"""`OTReweightedClassifier` in searches, pipelines, clones and pickles."""

from __future__ import annotations

import io
import pickle

import joblib
import numpy as np
import pytest
from classifier_helpers import (
    STRATEGIES,
    quick,
)
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_otreweight import CombinedCost, PrototypeMetaSet, SinkhornSolver, WeightVector


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


def test_grid_search_over_parameters_of_the_components(digits):
    clf = quick(
        cost=CombinedCost(),
        weights=WeightVector(),
        meta_set=PrototypeMetaSet(),
        solver=SinkhornSolver(),
    )
    grid = {
        "cost__mix": [0.3],
        "weights__lr": [0.0, 2.0],
        "meta_set__per_class": [3],
        "solver__max_iter": [150],
        "net__lr": [0.02],
        "net__module__hidden": [8],
    }
    search = GridSearchCV(clf, grid, cv=2, scoring=weights_moved, n_jobs=2)
    best = search.fit(digits.X, digits.y, meta=digits.meta).best_estimator_
    assert search.best_params_["weights__lr"] == 2.0
    assert best.cost_.mix == 0.3
    assert best.meta_set_.per_class == 3
    assert best.weights_.lr == 2.0
    assert best.net_.lr == 0.02
    assert best.net_.module_.head.in_features == 8
    assert search.cv_results_["mean_test_score"][0] == 0  # with a step size of 0


def weights_moved(clf, X, y):
    return clf.history_[-1, "weights_kl"]


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
