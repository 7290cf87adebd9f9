"""Meta data in every form, in what scikit-learn and imbalanced-learn are put around.

Each fit is recorded, so that what arrived at the classifier is compared with what was
given, however deep the classifier is inside.
"""

from __future__ import annotations

import functools
import re
import tracemalloc
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from classifier_helpers import quick
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import Pipeline as SamplingPipeline
from nets_for_tests import small_net
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    LabelEncoder,
    MinMaxScaler,
    StandardScaler,
)
from test_examples import ROOT, numbers, run
from torch.utils.data import TensorDataset

from sk_otreweight import OTReweightedClassifier, make_long_tailed
from sk_otreweight._validation import warn_other_steps
from sk_otreweight.base import BaseReweightedClassifier

FORMS = ("meta", "arrays", "tuples", "mask", "none")
SCORE = "balanced_accuracy"


class Data(NamedTuple):
    X: np.ndarray
    y: np.ndarray
    X_meta: np.ndarray
    y_meta: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    def scaled(self):
        scaler = StandardScaler().fit(self.X)
        X, X_meta, X_test = map(scaler.transform, (self.X, self.X_meta, self.X_test))
        return self._replace(X=X, X_meta=X_meta, X_test=X_test)

    def labelled(self, name):
        y, y_meta, y_test = map(name, (self.y, self.y_meta, self.y_test))
        return self._replace(y=y, y_meta=y_meta, y_test=y_test)


def long_tailed(load):
    X, y = load(return_X_y=True)
    data = make_long_tailed(X, y, 5, meta_per_class=6, n_max=40, random_state=0)
    used = np.union1d(data.train_indices, data.meta_indices)
    rest = np.setdiff1d(np.arange(len(X)), used)
    rest = np.random.default_rng(0).permutation(rest)
    return Data(data.X, data.y, data.X_meta, data.y_meta, X[rest], y[rest])


@pytest.fixture(scope="module")
def raw():
    """Wine in the units it was measured in."""
    return long_tailed(load_wine)


@pytest.fixture(scope="module")
def wine(raw):
    return raw.scaled()


@pytest.fixture(scope="module")
def cancer():
    """Two classes."""
    return long_tailed(load_breast_cancer).scaled()


def classifier(**params):
    net = small_net(max_epochs=5, batch_size=16, lr=0.03)
    return quick(net, **({"max_epochs": 1} | params))


def rows_and_params(data, form):
    """Return X, y and the meta data in one of its forms, as arguments of fit."""
    X, y, X_meta, y_meta = data[:4]
    if form == "mask":
        order = np.random.default_rng(0).permutation(len(X) + len(X_meta))
        X, y = np.concatenate([X, X_meta])[order], np.concatenate([y, y_meta])[order]
        return X, y, {"meta_mask": order >= len(data.X)}
    return X, y, {
        "meta": {"meta": (X_meta, y_meta)},
        "arrays": {"X_meta": X_meta, "y_meta": y_meta},
        "tuples": {"X_meta": (X_meta,), "y_meta": (y_meta,)},
        "none": {},
    }[form]  # fmt: skip


def requesting(clf, params):
    """With routing, an estimator says what it wants."""
    wanted = dict.fromkeys(params, True)
    return clf.set_fit_request(**wanted).set_partial_fit_request(**wanted)


class Fit(NamedTuple):
    """A call of fit: the classifier after it, and what it was given."""

    clf: OTReweightedClassifier
    X: np.ndarray
    y: np.ndarray
    params: dict


@pytest.fixture
def fits(monkeypatch):
    """Collect the fits of this process."""
    seen, fit = [], BaseReweightedClassifier.fit

    @functools.wraps(fit)
    def recorded(self, X, y, **params):
        fit(self, X, y, **params)
        seen.append(Fit(self, X, y, params))
        return self

    monkeypatch.setattr(BaseReweightedClassifier, "fit", recorded)
    return seen


def is_row_of(rows, X):
    """Return for each of some rows whether it is one of X."""
    return (rows[:, None] == X[None]).all(axis=2).any(axis=1)


def assert_meta_arrived(fit, data, form):
    """The meta rows are those that were given, and were not trained on."""
    meta = fit.clf._meta
    if form == "none":
        assert meta is None
        assert (fit.clf.sample_weight_ > 0).all()
        return
    X_meta = data.X_meta.astype(np.float32)
    if form == "mask":
        mask = np.asarray(fit.params["meta_mask"])
        assert is_row_of(meta.X, X_meta).all()
        assert len(meta.X) == mask.sum()
        np.testing.assert_array_equal(fit.clf.sample_weight_ == 0, mask)
        trained = fit.X[~mask]
    else:
        np.testing.assert_array_equal(meta.X, X_meta)
        np.testing.assert_array_equal(meta.y, data.y_meta)
        trained = fit.X
    assert not is_row_of(trained.astype(np.float32), X_meta).any()


def test_assert_meta_arrived_can_fail(wine, fits):
    X, y, params = rows_and_params(wine, "mask")
    quick(cost="label", max_epochs=0).fit(X, y, **params)
    assert_meta_arrived(fits[0], wine, "mask")
    for wrong in ("meta", "none"):
        with pytest.raises(AssertionError):
            assert_meta_arrived(fits[0], wine, wrong)
    other = wine._replace(X_meta=wine.X_meta + 1)
    with pytest.raises(AssertionError):
        assert_meta_arrived(fits[0], other, "mask")


# Each composition takes a classifier and arguments of fit, and returns a score on rows
# that were not trained on.


def score_of(fitted, data):
    return balanced_accuracy_score(data.y_test, fitted.predict(data.X_test))


def prefixed(params):
    """Without routing, a pipeline takes the name of the step before the parameter's."""
    return {f"clf__{name}": value for name, value in params.items()}


def in_cross_validate(clf, X, y, params, data):
    result = cross_validate(clf, X, y, params=params, cv=2, scoring=SCORE)
    return result["test_score"].mean()


def in_cross_val_predict(clf, X, y, params, data):
    return balanced_accuracy_score(y, cross_val_predict(clf, X, y, params=params, cv=2))


def in_learning_curve(clf, X, y, params, data):
    sizes = [0.8, 1.0]
    _, _, scores = learning_curve(
        clf, X, y, params=params, cv=2, train_sizes=sizes, scoring=SCORE
    )
    return scores[-1].mean()


def in_permutation_importance(clf, X, y, params, data):
    clf.fit(X, y, **params)
    result = permutation_importance(
        clf, data.X_test, data.y_test, n_repeats=1, random_state=0
    )
    assert result.importances_mean.max() > 0
    return score_of(clf, data)


def in_grid_search(clf, X, y, params, data):
    search = GridSearchCV(clf, {"reg": [0.1, 1.0]}, cv=2, scoring=SCORE)
    return score_of(search.fit(X, y, **params), data)


def in_halving_search(clf, X, y, params, data):
    search = HalvingGridSearchCV(
        clf, {"reg": [0.1, 1.0]}, resource="max_epochs", max_resources=2, factor=2, cv=2
    )
    search.fit(X, y, **params)
    assert search.best_estimator_.max_epochs == 2
    return score_of(search, data)


def in_pipeline(clf, X, y, params, data):
    steps = [("columns", FunctionTransformer()), ("clf", clf)]
    return score_of(Pipeline(steps).fit(X, y, **params), data)


def in_sampling_pipeline(clf, X, y, params, data):
    steps = [("sample", RandomOverSampler(random_state=0)), ("clf", clf)]
    return score_of(SamplingPipeline(steps).fit(X, y, **params), data)


def in_calibration(clf, X, y, params, data):
    calibrated = CalibratedClassifierCV(clf, cv=2)
    return score_of(calibrated.fit(X, y, **params), data)


def in_threshold_tuning(clf, X, y, params, data):
    tuned = TunedThresholdClassifierCV(clf, cv=2)
    return score_of(tuned.fit(X, y, **params), data)


def in_bagging(clf, X, y, params, data):
    bag = BaggingClassifier(clf, n_estimators=2, random_state=0)
    return score_of(bag.fit(X, y, **params), data)


def in_voting(clf, X, y, params, data):
    others = [("tree", LogisticRegression())]
    vote = VotingClassifier([("clf", clf), *others], voting="soft")
    return score_of(vote.fit(X, y, **params), data)


def in_stacking(clf, X, y, params, data):
    stack = StackingClassifier([("clf", clf)], LogisticRegression(), cv=2)
    return score_of(stack.fit(X, y, **params), data)


def in_one_vs_rest(clf, X, y, params, data):
    return score_of(OneVsRestClassifier(clf).fit(X, y, **params), data)


ALL = set(FORMS)
# The forms that get through to the classifier: without routing, and with it.
CARRIED = {
    in_cross_validate: (ALL, ALL),
    in_cross_val_predict: (ALL, ALL),
    in_learning_curve: (ALL, ALL),
    in_permutation_importance: (ALL, ALL),
    in_grid_search: (ALL, ALL),
    in_halving_search: (ALL, ALL),
    in_pipeline: (ALL, ALL),
    in_sampling_pipeline: (ALL - {"mask"}, ALL - {"mask"}),
    in_calibration: (ALL, ALL),
    in_threshold_tuning: ({"none"}, ALL),
    in_bagging: ({"none"}, ALL),
    in_voting: ({"none"}, ALL),
    in_stacking: ({"none"}, {"none"}),
    in_one_vs_rest: ({"none"}, {"mask", "none"}),
}
PIPELINES = (in_pipeline, in_sampling_pipeline)


def cases(are_carried):
    return [
        pytest.param(compose, form, routing, id=f"{compose.__name__}-{form}-{routing}")
        for compose, carried in CARRIED.items()
        for form in FORMS
        for routing in (False, True)
        if (form in carried[routing]) == are_carried
    ]


def composed(compose, form, routing, data):
    X, y, params = rows_and_params(data, form)
    clf = classifier()
    with config_context(enable_metadata_routing=routing):
        if routing:
            clf = requesting(clf, params)
        elif compose in PIPELINES:
            params = prefixed(params)
        return compose(clf, X, y, params, data)


@pytest.mark.parametrize(("compose", "form", "routing"), cases(are_carried=True))
def test_meta_arrives(compose, form, routing, wine, cancer, fits):
    data = cancer if compose is in_threshold_tuning else wine
    assert composed(compose, form, routing, data) > 0.7
    assert fits
    for fit in fits:
        assert_meta_arrived(fit, data, form)


@pytest.mark.parametrize(("compose", "form", "routing"), cases(are_carried=False))
def test_what_cannot_arrive_is_refused(compose, form, routing, wine, cancer):
    """No meta data is lost on the way without an error."""
    if compose is in_sampling_pipeline:
        message = r"mask cannot pass a sampler .* meta=\(X_meta, y_meta\)"
    elif not routing:  # the remedy is the same with routing, which is tested above
        message = "enable_metadata_routing=True"
    elif compose is in_one_vs_rest:
        message = r"unknown: \[2\].* OneVsRestClassifier"
    else:
        message = "unexpected keyword argument"
    data = cancer if compose is in_threshold_tuning else wine
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        composed(compose, form, routing, data)


# Steps that transform the meta rows too


def scaling(*steps, clf=None):
    """Return a pipeline that transforms X_meta; made with routing enabled."""
    clf = classifier() if clf is None else clf
    if isinstance(clf, OTReweightedClassifier):
        clf.set_fit_request(X_meta=True, y_meta=True)
    steps = [(f"step {number}", step) for number, step in enumerate(steps)]
    return Pipeline([*steps, ("clf", clf)], transform_input=["X_meta"])


@pytest.fixture
def _routing():
    with config_context(enable_metadata_routing=True):
        yield


def assert_own_scaler(pipelines, data):
    """Each pipeline scaled the meta rows by what it learned from its own rows."""
    expected = [fitted["step 0"].transform(data.X_meta) for fitted in pipelines]
    for fitted, X_meta in zip(pipelines, expected, strict=True):
        np.testing.assert_array_equal(fitted["clf"]._meta.X, X_meta.astype(np.float32))
    assert not np.allclose(expected[0], expected[1], atol=1e-3)  # else it shows nothing


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("form", ["arrays", "tuples"])
def test_each_fold_scales_the_meta_rows(form, raw):
    X, y, params = rows_and_params(raw, form)
    arguments = {"params": params, "cv": 2, "return_estimator": True, "scoring": SCORE}
    result = cross_validate(scaling(StandardScaler()), X, y, **arguments)
    assert_own_scaler(result["estimator"], raw)
    assert result["test_score"].min() > 0.7


@pytest.mark.usefixtures("_routing")
def test_scaling_before_a_sampler(raw):
    """A sampler cannot transform X_meta, so that it goes into a pipeline inside."""
    clf = classifier().set_fit_request(X_meta=True, y_meta=True)
    sampling = SamplingPipeline(
        [("sample", SMOTE(k_neighbors=1, random_state=0)), ("clf", clf)]
    )
    X, y, params = rows_and_params(raw, "tuples")
    flat = SamplingPipeline(
        [("scale", StandardScaler()), *sampling.steps], transform_input=["X_meta"]
    )
    with pytest.raises(AttributeError, match="no attribute 'transform'"):
        flat.fit(X, y, **params)
    arguments = {"params": params, "cv": 2, "return_estimator": True, "scoring": SCORE}
    nested = scaling(StandardScaler(), clf=sampling)
    result = cross_validate(nested, X, y, **arguments)
    assert result["test_score"].min() > 0.7
    for fitted in result["estimator"]:
        X_meta = fitted["step 0"].transform(raw.X_meta).astype(np.float32)
        np.testing.assert_array_equal(fitted["clf"]["clf"]._meta.X, X_meta)


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("form", ["arrays", "tuples"])
def test_each_fold_of_a_search_scales_the_meta_rows(form, raw):
    folds = []

    def score(fitted, X, y):
        folds.append(fitted)
        return balanced_accuracy_score(y, fitted.predict(X))

    X, y, params = rows_and_params(raw, form)
    search = GridSearchCV(
        scaling(StandardScaler()), {"clf__reg": [0.1, 1.0]}, cv=2, scoring=score
    )
    search.fit(X, y, **params)
    assert len(folds) == 4
    assert_own_scaler(folds, raw)
    assert_own_scaler([search.best_estimator_, folds[0]], raw)
    assert score_of(search, raw) > 0.7


@pytest.mark.slow
@pytest.mark.usefixtures("_routing")
def test_each_fold_scales_the_meta_rows_in_other_processes(raw):
    X, y, params = rows_and_params(raw, "tuples")
    arguments = {"params": params, "cv": 2, "return_estimator": True, "scoring": SCORE}
    pipeline = scaling(StandardScaler())
    result = cross_validate(pipeline, X, y, n_jobs=2, **arguments)
    assert_own_scaler(result["estimator"], raw)
    same = cross_validate(pipeline, X, y, **arguments)
    np.testing.assert_array_equal(result["test_score"], same["test_score"])


@pytest.mark.usefixtures("_routing")
def test_steps_that_change_the_columns(raw):
    names = [f"measure {number}" for number in range(13)]
    frames = [pd.DataFrame(rows, columns=names) for rows in (raw.X, raw.X_meta)]
    columns = ColumnTransformer(
        [("scale", StandardScaler(), names[:5]), ("range", MinMaxScaler(), names[8:])]
    )
    both = FeatureUnion([("few", PCA(3)), ("all", FunctionTransformer())])
    fitted = scaling(columns, both).fit(
        frames[0], raw.y, X_meta=frames[1], y_meta=raw.y_meta
    )
    X_meta = fitted[:-1].transform(frames[1])
    assert X_meta.shape == (18, 13)
    np.testing.assert_array_equal(fitted["clf"]._meta.X, X_meta.astype(np.float32))
    X_test = pd.DataFrame(raw.X_test, columns=names)
    assert balanced_accuracy_score(raw.y_test, fitted.predict(X_test)) > 0.7


@pytest.mark.usefixtures("_routing")
def test_clone_of_a_pipeline_asks_for_the_same(raw):
    pipeline = clone(scaling(StandardScaler()))
    pipeline.fit(raw.X, raw.y, X_meta=raw.X_meta, y_meta=raw.y_meta)
    X_meta = pipeline["step 0"].transform(raw.X_meta)
    np.testing.assert_array_equal(pipeline["clf"]._meta.X, X_meta.astype(np.float32))


def to_frame(library, rows):
    names = load_wine().feature_names
    if library == "pandas":
        return pd.DataFrame(rows, columns=names)
    return pl.DataFrame(rows, schema=names)


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_last_step_after_frames(library, raw):
    """Steps that return frames give the classifier the names of their columns."""
    X, X_meta, X_test = (
        to_frame(library, rows) for rows in (raw.X, raw.X_meta, raw.X_test)
    )
    scaler = StandardScaler().set_output(transform=library)
    fitted = scaling(scaler).fit(X, raw.y, X_meta=X_meta, y_meta=raw.y_meta)
    assert fitted["clf"].feature_names_in_.tolist() == list(X.columns)
    plain = scaling(StandardScaler()).fit(
        raw.X, raw.y, X_meta=raw.X_meta, y_meta=raw.y_meta
    )
    np.testing.assert_array_equal(
        fitted.predict_proba(X_test), plain.predict_proba(raw.X_test)
    )
    with pytest.raises(ValueError, match="feature names should match"):
        fitted["clf"].predict(X_test[list(X.columns)[::-1]])


# Trap: as many meta rows as rows of X


def equal_lengths(data):
    """Return as many test rows as training rows, as meta rows."""
    n = len(data.X)
    assert len(data.X_test) > n
    return data._replace(X_meta=data.X_test[:n], y_meta=data.y_test[:n])


@pytest.mark.parametrize("kind", [np.asarray, np.ndarray.tolist, pd.DataFrame])
def test_meta_rows_that_may_have_been_picked_from(kind, wine):
    data = equal_lengths(wine)
    X_meta = kind(data.X_meta)
    message = (
        rf"X_meta and y_meta: {len(data.X)} entries.* may have .* one value per row.*"
        r"Pass meta=\(X_meta, y_meta\).*X_meta=\(X_meta,\)"
    )
    with pytest.warns(UserWarning, match=message):
        quick(max_epochs=0).fit(data.X, data.y, X_meta=X_meta, y_meta=data.y_meta)
    clf = quick(max_epochs=0)
    clf.fit(data.X, data.y, X_meta=(X_meta,), y_meta=(data.y_meta,))
    clf.fit(data.X, data.y, meta=(X_meta, data.y_meta))
    clf.fit(data.X, data.y, X_meta=data.X_meta[1:], y_meta=data.y_meta[1:])


@pytest.mark.parametrize("X_meta", [5, np.float64(5), np.array(5)])
def test_meta_rows_that_have_no_length(X_meta, wine):
    with pytest.raises((ValueError, TypeError), match="(?i)X_meta|scalar|singleton"):
        quick().fit(wine.X, wine.y, X_meta=X_meta, y_meta=X_meta)


def test_half_of_the_pair_picked_from(wine):
    data = equal_lengths(wine)
    with (
        pytest.raises(ValueError, match="one label per row"),
        pytest.warns(UserWarning, match="^y_meta: "),
    ):
        quick().fit(data.X, data.y, X_meta=(data.X_meta[1:],), y_meta=data.y_meta)


@pytest.mark.parametrize("form", ["meta", "tuples"])
def test_cross_validation_picks_from_arrays_of_equal_length(form, wine, fits):
    data = equal_lengths(wine)
    clf = classifier()
    X, y, params = rows_and_params(data, "arrays")
    with pytest.warns(UserWarning, match="picked only those") as caught:
        cross_validate(clf, X, y, params=params, cv=2)
    assert len(caught) == 2
    n_whole = len(data.X_meta)
    assert sum(len(fit.clf._meta.X) for fit in fits) == n_whole  # half of it each
    fits.clear()
    X, y, params = rows_and_params(data, form)
    cross_validate(clf, X, y, params=params, cv=2)
    assert [len(fit.clf._meta.X) for fit in fits] == [n_whole] * 2


# Trap: meta rows that did not pass the steps before


def fit_scaled(data, form, scaler):
    X, y, params = rows_and_params(data, form)
    steps = [("scale", scaler), ("clf", quick(max_epochs=0))]
    return Pipeline(steps).fit(X, y, **prefixed(params))


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler()], ids=str)
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_digits])
def test_meta_rows_that_no_step_scaled(load, scaler):
    data = long_tailed(load)
    message = (
        r"X seems to have passed steps .*standard deviations.*"
        r'transform_input=\["X_meta"\].*meta_mask=.*leave the meta data out'
    )
    for form in ("meta", "arrays", "tuples"):
        with pytest.warns(UserWarning, match=message):
            fit_scaled(data, form, scaler)
    for remedy in ("mask", "none"):
        fit_scaled(data, remedy, scaler)
    with config_context(enable_metadata_routing=True):
        pipeline = scaling(scaler, clf=quick(max_epochs=0))
        pipeline.fit(data.X, data.y, X_meta=data.X_meta, y_meta=data.y_meta)


@pytest.mark.parametrize("convert", [torch.from_numpy, pd.DataFrame])
def test_meta_rows_that_were_not_scaled_in_other_forms(convert, raw):
    X, X_meta = (rows.astype(np.float32) for rows in (raw.scaled().X, raw.X_meta))
    clf = quick(max_epochs=0)
    with pytest.warns(UserWarning, match="standard deviations"):
        clf.fit(convert(X), raw.y, meta=(convert(X_meta), raw.y_meta))
    scaled = raw.scaled().X_meta.astype(np.float32)
    clf.fit(convert(X), raw.y, meta=(convert(scaled), raw.y_meta))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("factor", [1, 20, 200])
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_digits])
def test_balanced_meta_rows_of_a_long_tail_are_no_false_alarm(load, factor, reverse):
    X, y = load(return_X_y=True)
    y = -y if reverse else y
    for seed in range(5):
        for per_class in (1, 10):
            data = make_long_tailed(
                X, y, factor, meta_per_class=per_class, random_state=seed
            )
            warn_other_steps(data.X_meta, data.X, lost_names=False)


def test_what_is_not_compared(raw):
    """Nothing is said of what has no columns, or hardly any rows."""
    X, X_meta = raw.scaled().X, raw.X_meta
    with pytest.warns(UserWarning, match="standard deviations"):
        warn_other_steps(X_meta, X, lost_names=False)
    images, dataset = X.reshape(-1, 13, 1), TensorDataset(torch.from_numpy(X))
    warn_other_steps(X_meta.reshape(-1, 13, 1), images, lost_names=False)
    warn_other_steps({"table": X_meta}, {"table": X}, lost_names=False)
    warn_other_steps(dataset, dataset, lost_names=False)
    warn_other_steps(dataset, X, lost_names=False)
    warn_other_steps(X_meta, X[:5], lost_names=False)
    warn_other_steps(X_meta, np.ones_like(X), lost_names=False)
    warn_other_steps(np.full_like(X, 1e300), X * 1e300, lost_names=False)


def test_the_comparison_takes_little_memory():
    X = np.zeros((400_000, 20), dtype=np.float32)
    X[::7] = 1
    tracemalloc.start()
    with pytest.warns(UserWarning, match="standard deviations"):
        warn_other_steps(X[:10] + 10, X, lost_names=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 10


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_that_a_step_took_away(library, wine):
    X, X_meta = (to_frame(library, rows) for rows in (wine.X, wine.X_meta))
    steps = [("scale", StandardScaler()), ("clf", quick(max_epochs=0))]
    message = r'X_meta has column names and X has none.*transform_input=\["X_meta"\]'
    with pytest.warns(UserWarning, match=message) as caught:
        Pipeline(steps).fit(X, wine.y, clf__meta=(X_meta, wine.y_meta))
    assert len(caught) == 1
    quick(max_epochs=0).fit(X, wine.y, meta=(X_meta, wine.y_meta))
    with config_context(enable_metadata_routing=True):
        pipeline = scaling(StandardScaler(), clf=quick(max_epochs=0))
        pipeline.fit(X, wine.y, X_meta=X_meta, y_meta=wine.y_meta)


def test_frames_without_names_have_none_to_lose(wine):
    X, X_meta = pd.DataFrame(wine.X), pd.DataFrame(wine.X_meta)
    quick(max_epochs=0).fit(X, wine.y, meta=(X_meta, wine.y_meta))


def test_bagging_of_columns_needs_a_mask(wine, fits):
    """It leaves columns of X out, but not of the meta rows."""
    bag = BaggingClassifier(classifier(), n_estimators=2, max_features=8)
    X, y, params = rows_and_params(wine, "meta")
    with config_context(enable_metadata_routing=True):
        bag.estimator.set_fit_request(meta=True, meta_mask=True)
        with pytest.raises(ValueError, match="X_meta have shape .* same preprocessing"):
            bag.fit(X, y, **params)
        X, y, params = rows_and_params(wine, "mask")
        bag.fit(X, y, **params)
    for fit in fits:
        assert fit.clf._meta.X.shape == (fit.params["meta_mask"].sum(), 8)
    assert score_of(bag, wine) > 0.7


# Trap: labels that were encoded on the way


def wine_names(y):
    return load_wine().target_names[y]


def other_numbers(y):
    return 10 * y + 3


ENCODING = (in_bagging, in_voting, in_stacking, in_one_vs_rest)


@pytest.mark.parametrize("labels", [wine_names, other_numbers])
@pytest.mark.parametrize("compose", ENCODING)
def test_labels_that_were_encoded_on_the_way(compose, labels, wine, fits):
    data = wine.labelled(labels)
    message = (
        "y_meta holds .*one LabelEncoder.*meta_mask=.*leave the meta data out.*"
        "OneVsRestClassifier.*meta_mask=.*StackingClassifier.*cv='prefit'"
    )
    with pytest.raises(ValueError, match=f"(?s){message}"):
        composed(compose, "meta", True, data)
    fits.clear()
    for remedy in CARRIED[compose][True] & {"mask", "none"}:
        assert composed(compose, remedy, True, data) > 0.7
    if "meta" in CARRIED[compose][True]:
        encoder = LabelEncoder().fit(data.y)
        assert composed(compose, "meta", True, data.labelled(encoder.transform)) > 0.7
        np.testing.assert_array_equal(fits[-1].clf._meta.y, wine.y_meta)


def test_stacking_of_classifiers_that_are_fitted_before(wine, fits):
    """The way to stack with meta data, whatever the labels."""
    data = wine.labelled(wine_names)
    clf = classifier().fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    stack = StackingClassifier([("clf", clf)], LogisticRegression(), cv="prefit")
    stack.fit(data.X_meta, data.y_meta)  # rows that the net was not trained on
    assert len(fits) == 1
    assert_meta_arrived(fits[0], data._replace(y_meta=wine.y_meta), "meta")
    assert score_of(stack, data) > 0.7


# Trap: a mask and a sampler


def test_mask_and_sampler(wine):
    """SMOTE makes new rows, of which the mask knows nothing."""
    X, y, params = rows_and_params(wine, "mask")
    mask = params["meta_mask"]
    steps = [("sample", SMOTE(k_neighbors=2, random_state=0)), ("clf", classifier())]
    pipeline = SamplingPipeline(steps)
    n_sampled = 3 * np.bincount(y).max()
    message = rf"meta_mask has shape \({len(X)},\), X has {n_sampled} rows.* sampler"
    with pytest.raises(ValueError, match=message):
        pipeline.fit(X, y, clf__meta_mask=mask)
    pipeline.fit(X[~mask], y[~mask], clf__meta=(X[mask], y[mask]))
    assert len(pipeline["clf"]._meta.X) == mask.sum()
    assert score_of(pipeline, wine) > 0.7


def test_smote_before_leaves_nothing_to_do(wine):
    """It is an alternative to re-weighting, not a step before it."""
    X, y, params = rows_and_params(wine, "meta")
    steps = [
        ("sample", SMOTE(k_neighbors=2, random_state=0)),
        ("clf", classifier(cost="label")),
    ]
    after = SamplingPipeline(steps).fit(X, y, **prefixed(params))["clf"]
    instead = clone(steps[1][1]).fit(X, y, **params)
    np.testing.assert_allclose(after.class_weight_, 1, atol=1e-3)
    assert instead.class_weight_.max() > 2


# Documentation and example


PAGE = ROOT / "docs" / "pipelines.md"


NAMES = {
    "cross_validate": in_cross_validate,
    "cross_val_predict": in_cross_val_predict,
    "learning_curve": in_learning_curve,
    "permutation_importance": in_permutation_importance,
    "GridSearchCV": in_grid_search,
    "HalvingGridSearchCV": in_halving_search,
    "Pipeline": in_pipeline,
    "imblearn.pipeline.Pipeline": in_sampling_pipeline,
    "CalibratedClassifierCV": in_calibration,
    "TunedThresholdClassifierCV": in_threshold_tuning,
    "BaggingClassifier": in_bagging,
    "VotingClassifier": in_voting,
    "StackingClassifier": in_stacking,
    "OneVsRestClassifier": in_one_vs_rest,
}
CELLS = {
    "all": ALL,
    "all but `meta_mask`": ALL - {"mask"},
    "`meta_mask`": {"mask", "none"},
    "–": {"none"},
}


def test_table_of_the_page_is_what_is_tested():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M)
    told = {NAMES[name]: (CELLS[off], CELLS[on]) for name, off, on in rows}
    assert told == CARRIED


@pytest.mark.slow
def test_example_of_a_search_in_a_pipeline():
    text = run("examples/plot_pipeline.py")
    for plain, ours in (
        ("plain net  ", "re-weighted, defaults"),
        ("plain net  ", "re-weighted, searched"),
        ("plain net, meta rows added", "re-weighted, meta rows added"),
    ):
        assert numbers(ours, text)[0] > numbers(plain, text)[0]
