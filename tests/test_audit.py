from __future__ import annotations

import math
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from classifier_helpers import quick
from oracles import assert_same
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import scale
from test_examples import numbers, run

from sk_otreweight import (
    FeatureCost,
    OTReweightedClassifier,
    audit,
    make_long_tailed,
    semirelaxed_weights,
    suspicious_rows,
)

FIELDS = ("index", "label", "nearest_class", "score")


@pytest.fixture(scope="module")
def wine():
    """Wine with every tenth label wrong."""
    X, y = load_wine(return_X_y=True)
    y[::10] = (y[::10] + 1) % 3
    return scale(X), y


@pytest.fixture(scope="module")
def noisy_digits():
    X, y = load_digits(return_X_y=True)
    return make_long_tailed(
        (X / 16).astype(np.float32), y, 1, label_noise=0.3, random_state=0
    )


def in_row_order(rows):
    """Return scores and nearest classes in the order of the features."""
    order = np.argsort(rows.index)
    return rows.score[order], rows.nearest_class[order]


def assert_same_rows(first, second):
    for field in FIELDS:
        np.testing.assert_array_equal(first[field], second[field], err_msg=field)


def features_of(clf, X):
    with torch.no_grad():
        return clf.net_.module_.eval().body(torch.from_numpy(X))


# --- the definition -------------------------------------------------------------------


def naive_scores(z, y, prototypes, reg):
    """The formula of the docstring, entry by entry."""
    classes = sorted(set(y))
    centre = [sum(column) / len(classes) for column in zip(*prototypes, strict=True)]

    def cost(row, prototype):
        u = [x - c for x, c in zip(row, centre, strict=True)]
        v = [x - c for x, c in zip(prototype, centre, strict=True)]
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        return 1 - dot / math.hypot(*u) / math.hypot(*v)

    T = [[0.0] * len(classes) for _ in z]
    for j, prototype in enumerate(prototypes):
        kernel = [math.exp(-cost(row, prototype) / reg) for row in z]
        n_j = sum(label == classes[j] for label in y)
        for i in range(len(z)):
            T[i][j] = n_j * kernel[i] / sum(kernel)
    scores = [1 - T[i][classes.index(y[i])] / sum(T[i]) for i in range(len(z))]
    return scores, [classes[row.index(max(row))] for row in T]


def class_means(z, y):
    return [z[y == label].mean(0).tolist() for label in np.unique(y)]


@pytest.mark.parametrize("reg", [0.05, 0.1, 1.0, 10.0])
def test_scores_are_the_naive_formula(wine, reg):
    z, y = wine
    scores, nearest = in_row_order(suspicious_rows(z, y, reg=reg))
    expected = naive_scores(z.tolist(), y.tolist(), class_means(z, y), reg)
    np.testing.assert_allclose(scores, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(nearest, expected[1])


def test_meta_rows_make_the_prototypes(wine):
    z, y = wine
    clean = load_wine().target
    meta = np.concatenate([np.flatnonzero(clean == k)[5:9] for k in range(3)])
    rows = suspicious_rows(z, y, meta=(z[meta], clean[meta]))
    prototypes = class_means(z[meta], clean[meta])
    expected = naive_scores(z.tolist(), y.tolist(), prototypes, 0.1)
    np.testing.assert_allclose(in_row_order(rows)[0], expected[0], rtol=0, atol=1e-12)
    without = suspicious_rows(z, y)
    assert np.abs(rows.score - without.score).max() > 1e-3


def test_mass_of_the_rows_is_the_closed_form(wine):
    """Own and other shares add up to what the transport module gives a row."""
    z, y = (torch.from_numpy(array) for array in wine)
    prototypes = torch.stack([z[y == k].mean(0) for k in range(3)])
    z, prototypes = z - prototypes.mean(0), prototypes - prototypes.mean(0)
    C = FeatureCost()(z, y, prototypes, torch.arange(3))
    n_rows = y.bincount().double()
    mass = semirelaxed_weights(C, n_rows)
    own = semirelaxed_weights(C.T[:, :, None], n_rows[:, None])[y, torch.arange(len(y))]
    scores, _ = in_row_order(suspicious_rows(*wine))
    assert_same(torch.from_numpy(scores), 1 - own / mass, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 50, 400])
def test_blocks_of_rows_change_nothing(wine, entries, monkeypatch):
    whole = suspicious_rows(*wine)
    monkeypatch.setattr(audit, "_BLOCK_ENTRIES", entries)
    blocks = suspicious_rows(*wine)
    np.testing.assert_array_equal(blocks.index, whole.index)
    np.testing.assert_allclose(blocks.score, whole.score, rtol=0, atol=1e-12)


def test_moving_or_scaling_all_features_changes_nothing(wine):
    z, y = wine
    scores, _ = in_row_order(suspicious_rows(z, y))
    for other in (z + 100, 7 * z):
        found, _ = in_row_order(suspicious_rows(other, y))
        np.testing.assert_allclose(found, scores, rtol=0, atol=1e-9)
    found, _ = in_row_order(suspicious_rows(z * np.arange(13), y))
    assert np.abs(found - scores).max() > 0.01


# --- the ranking ----------------------------------------------------------------------


def test_the_most_suspicious_come_first(wine):
    z, y = wine
    rows = suspicious_rows(z, y)
    assert np.all(np.diff(rows.score) <= 0)
    assert 0 <= rows.score[-1] < rows.score[0] <= 1
    np.testing.assert_array_equal(np.sort(rows.index), np.arange(len(y)))
    np.testing.assert_array_equal(rows.label, y[rows.index])
    high = rows.score > 0.9
    assert high.any()
    assert np.all(rows.nearest_class[high] != rows.label[high])


def test_the_order_of_the_rows_does_not_matter(wine):
    z, y = wine
    scores, nearest = in_row_order(suspicious_rows(z, y))
    order = np.random.default_rng(0).permutation(len(y))
    found_scores, found_nearest = in_row_order(suspicious_rows(z[order], y[order]))
    np.testing.assert_allclose(found_scores, scores[order], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found_nearest, nearest[order])


def test_equals_stay_in_their_order():
    z = np.tile([[1.0, 0.0], [-1.0, 0.0]], (16, 1))  # costs are 0 and 2, exactly
    y = np.tile([0, 1], 16)
    wrong = [8, 3, 1, 30, 6, 15, 17, 24]  # as many of each class
    y[wrong] = 1 - y[wrong]
    rows = suspicious_rows(z, y)
    assert sorted(rows.index[:8]) == sorted(wrong)
    for part in (slice(0, 8), slice(8, 32)):
        for label in (0, 1):
            same = rows.index[part][rows.label[part] == label]
            assert len(same) == (4 if part.start == 0 else 12)
            assert np.all(np.diff(same) > 0)


def test_a_tiny_reg_still_ranks_what_it_calls_certain():
    X, y = load_breast_cancer(return_X_y=True)
    z = scale(X)
    y[::10] = 1 - y[::10]
    smooth, sharp = suspicious_rows(z, y, reg=1.0), suspicious_rows(z, y, reg=1e-4)
    for label in (0, 1):  # of two classes, reg ranks the rows of neither anew
        of_label = sharp.label == label
        assert (sharp.score[of_label] == 1).sum() > 10
        assert (smooth.score == 1).sum() == 0
        np.testing.assert_array_equal(
            sharp.index[of_label], smooth.index[smooth.label == label]
        )


# --- forms of input -------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda z: z.tolist(),
        torch.from_numpy,
        pd.DataFrame,
        lambda z: torch.from_numpy(z).requires_grad_(),
    ],
)
def test_features_of_any_form(wine, convert):
    z, y = wine
    assert_same_rows(suspicious_rows(convert(z), y), suspicious_rows(z, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_of_lower_precision(wine, dtype):
    z, y = wine
    rounded = torch.from_numpy(z).to(dtype)
    scores, _ = in_row_order(suspicious_rows(rounded, y))
    expected, _ = in_row_order(suspicious_rows(rounded.double(), y))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_on_the_gpu(wine):
    z, y = torch.from_numpy(wine[0]), torch.from_numpy(wine[1])
    on_gpu, on_cpu = suspicious_rows(z.cuda(), y.cuda()), suspicious_rows(z, y)
    np.testing.assert_array_equal(on_gpu.index, on_cpu.index)
    np.testing.assert_allclose(on_gpu.score, on_cpu.score, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "names", [np.array(["red", "white", "rose"]), np.array([-3, 10, 2]), None]
)
def test_labels_of_any_type(wine, names):
    z, y = wine
    expected = suspicious_rows(z, y)
    labels = torch.from_numpy(y) if names is None else pd.Series(names[y])
    rows = suspicious_rows(z, labels)
    names = np.arange(3) if names is None else names
    np.testing.assert_array_equal(rows.index, expected.index)
    np.testing.assert_allclose(rows.score, expected.score, rtol=0, atol=1e-12)
    for field in ("label", "nearest_class"):
        np.testing.assert_array_equal(rows[field], names[expected[field]])


def test_data_frame(wine):
    z, y = wine
    names = np.array(["red", "white", "rose"])[y]
    frame = suspicious_rows(z, names, as_frame=True)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame) == list(FIELDS)
    assert_same_rows(frame, suspicious_rows(z, names))


@pytest.mark.skipif(
    version("scikit-learn") < "1.7", reason="scikit-learn itself stumbles over that"
)
def test_data_frame_without_pandas(wine, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="as_frame=True needs pandas.*pip install"):
        suspicious_rows(*wine, as_frame=True)
    assert len(suspicious_rows(*wine).index) == len(wine[1])


def test_nothing_given_is_changed_and_no_generator_is_used(wine):
    z, y = wine[0].copy(), wine[1].copy()
    state = torch.get_rng_state()
    suspicious_rows(z, y, meta=(z, y))
    np.testing.assert_array_equal(z, wine[0])
    np.testing.assert_array_equal(y, wine[1])
    assert torch.equal(torch.get_rng_state(), state)


# --- bad input ------------------------------------------------------------------------


def with_nan(z):
    z = z.copy()
    z[3, 2] = np.nan
    return z


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y: ((z[:-1], y), {}), "features has 177 rows and y 178 labels"),
        (lambda z, y: ((with_nan(z), y), {}), "Input features contains NaN"),
        (
            lambda z, y: ((torch.from_numpy(with_nan(z)), y), {}),
            "Input features contains NaN",
        ),
        (lambda z, y: ((z[:, 0], y), {}), r"features has shape \(178,\): give a vec"),
        (lambda z, y: ((z[:, :, None], y), {}), r"shape \(178, 13, 1\)"),
        (lambda z, y: ((z, np.where(y == 0, np.nan, y)), {}), "Input y contains NaN"),
        (lambda z, y: ((z, None), {}), "y=None"),
        (lambda z, y: ((z, np.eye(3)[y]), {}), "y should be a 1d array"),
        (lambda z, y: ((z, 0 * y), {}), r"y holds 1 class, \[0\]"),
        (
            lambda z, y: ((z, np.r_[7, y[1:]]), {}),
            r"Class \[7\] has a single row, which would be compared with itself",
        ),
        (lambda z, y: ((z, y), {"reg": 0}), "reg=0 "),
        (lambda z, y: ((z, y), {"meta": z}), "meta must be a pair .* got a ndarray"),
        (
            lambda z, y: ((z, y), {"meta": (z[:, :2], y)}),
            "The meta rows have 2 features, the rows 13",
        ),
        (
            lambda z, y: ((z, y), {"meta": (z, y[1:])}),
            r"178 rows and labels of shape \(177,\)",
        ),
        (lambda z, y: ((z, y), {"meta": (z, y + 1)}), r"labels that are unknown: \[3"),
        (
            lambda z, y: ((z, y), {"meta": (z[y > 0], y[y > 0])}),
            r"No meta row is of class \[0\]",
        ),
        (
            lambda z, y: ((z, y), {"meta": (with_nan(z), y)}),
            "Input the meta features contains NaN",
        ),
    ],
)
def test_bad_input(wine, change, message):
    arguments, settings = change(*wine)
    with pytest.raises(ValueError, match=message):
        suspicious_rows(*arguments, **settings)


def test_a_class_of_a_single_row_is_no_fault_if_there_are_meta_rows(wine):
    z, y = wine
    y = np.r_[7, y[1:]]
    rows = suspicious_rows(z, y, meta=(z[:-5], y[:-5]))
    assert rows.label[rows.index == 0] == [7]


# --- what it is for -------------------------------------------------------------------


def test_flipped_digits_are_found_on_the_features_of_a_classifier(noisy_digits):
    data = noisy_digits
    clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    rows = clf.suspicious_rows(data.X, data.y)
    assert_same_rows(rows, suspicious_rows(features_of(clf, data.X), data.y))
    scores, nearest = in_row_order(rows)
    assert roc_auc_score(data.flipped, scores) >= 0.95
    assert np.mean(nearest == data.y_clean) >= 0.9
    shuffled = np.random.default_rng(0).permutation(scores)
    assert roc_auc_score(data.flipped, shuffled) < 0.6


@pytest.mark.parametrize("params", [{}, {"cost": "label", "finetune": "all"}])
def test_prototypes_of_a_classifier_are_those_of_its_meta_rows(params, few):
    X, y, (X_meta, y_meta) = few
    names = np.array([f"digit {k}" for k in range(10)])
    clf = quick(**params).fit(X, names[y], meta=(X_meta, names[y_meta]))
    trusted = features_of(clf, X_meta), names[y_meta]
    expected = suspicious_rows(features_of(clf, X), names[y], meta=trusted)
    assert_same_rows(clf.suspicious_rows(X, names[y]), expected)
    frame = clf.suspicious_rows(X, names[y], as_frame=True)
    assert frame.columns.tolist() == list(FIELDS)
    assert frame["label"].tolist() == expected.label.tolist()
    # Of the classes that are there, and of all rows if a class has no meta row.
    kept, kept_meta = y != 8, y_meta != 8
    meta = features_of(clf, X_meta[kept_meta]), names[y_meta[kept_meta]]
    expected = suspicious_rows(features_of(clf, X[kept]), names[y[kept]], meta=meta)
    assert_same_rows(clf.suspicious_rows(X[kept], names[y[kept]]), expected)
    with pytest.warns(UserWarning, match="No meta row is of class"):
        clf.fit(X, y, meta=(X_meta[kept_meta], y_meta[kept_meta]))
    expected = suspicious_rows(features_of(clf, X), y)
    assert_same_rows(clf.suspicious_rows(X, y), expected)


def test_labels_that_a_classifier_does_not_know(few):
    X, y, meta = few
    clf = quick().fit(X, y, meta=meta)
    with pytest.raises(ValueError, match=r"unknown: \[5\]"):
        clf.suspicious_rows(X, np.append(y[:-1], 5))


def test_meta_features_that_overflow(wine):
    X, y = wine
    far = X.astype(float).copy()
    far[0, 0] = 1e60
    with pytest.raises(ValueError, match="meta features contains NaN or infinity"):
        suspicious_rows(X.astype(np.float32), y, meta=(far, y))


def test_a_classifier_must_be_fitted_to_rank_rows(few):
    with pytest.raises(NotFittedError):
        quick().suspicious_rows(*few[:2])


@pytest.mark.parametrize("reg", [0.01, 0.1, 1.0])
def test_flipped_digits_are_found_on_the_pixels(noisy_digits, reg):
    data = noisy_digits
    scores, _ = in_row_order(suspicious_rows(data.X, data.y, reg=reg))
    assert roc_auc_score(data.flipped, scores) >= 0.95


def test_meta_rows_help_where_classes_are_rare():
    X, y = load_digits(return_X_y=True)
    found = []
    for seed in range(3):
        data = make_long_tailed(X, y, 50, label_noise=0.3, random_state=seed)
        for meta in (None, (data.X_meta, data.y_meta)):
            rows = suspicious_rows(data.X, data.y, meta=meta)
            found.append(roc_auc_score(data.flipped, in_row_order(rows)[0]))
    without, with_meta = np.reshape(found, (3, 2)).T
    assert without.min() >= 0.9
    assert np.all(with_meta > without)


@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_few_rows_are_suspicious_if_no_label_is_wrong(load):
    X, y = load(return_X_y=True)
    rows = suspicious_rows(scale(X), y)
    wrong = np.random.default_rng(0).integers(0, y.max() + 1, len(y))
    noise = suspicious_rows(scale(X), wrong)
    assert np.mean(rows.score > 0.5) < 0.15
    assert np.mean(noise.score > 0.5) > 0.4


@pytest.mark.slow
def test_the_example_shows_how_well_wrong_labels_are_found():
    text = run("examples/plot_label_audit.py")
    auc, lowest, precision = numbers("optimal transport", text)
    assert auc >= lowest >= 0.95
    assert precision > 0.9
    figure = re.search(r"Figure: (.*)", text).group(1)
    assert Path(figure).stat().st_size > 10_000
