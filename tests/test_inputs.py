"""What `OTReweightedClassifier` takes as data and as meta set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from classifier_helpers import (
    STRATEGIES,
    quick,
)

from sk_otreweight import (
    LabelCost,
    PrototypeMetaSet,
    WholeMetaSet,
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
    clf = quick(weights=weights, loss="net").fit(X, y)
    assert clf.sample_weight_.mean() == pytest.approx(1)
    assert clf.history_[-1, "weights_kl"] > 0
    if weights in ("vector", "semirelaxed"):  # few steps do for these
        assert clf.class_weight_[3] > 1.01 * clf.class_weight_[0]  # 9 is rarer than 4


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
    for finetune, n_times in (("head", 1), ("all", 3)):  # features move, or do not
        drawn.clear()
        clf = quick(meta_set=Recorder(per_class=2), max_epochs=3, finetune=finetune)
        clf.fit(X, y, meta=meta)
        assert len(drawn) == n_times


def test_label_cost_needs_no_meta(few):
    seen = []

    class Recorder(LabelCost):
        def _pairwise(self, features, labels, points, meta_labels):
            seen.append((points, meta_labels.tolist()))
            return super()._pairwise(features, labels, points, meta_labels)

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
        clf = quick(loss="net").fit(X, y, meta=(X_meta[kept], y_meta[kept]))
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
