from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, make_scorer, recall_score
from sklearn.model_selection import cross_val_score

from sk_otreweight.metrics import (
    balanced_error,
    class_recall,
    expected_calibration_error,
    geometric_mean_recall,
    group_recall,
    many_medium_few_recall,
)

NAN = float("nan")


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 5, 200)
    return y_true, np.where(rng.random(200) < 0.6, y_true, rng.integers(0, 5, 200))


def test_recall_is_sklearns(labels):
    y_true, y_pred = labels
    expected = recall_score(y_true, y_pred, average=None)
    np.testing.assert_allclose(class_recall(y_true, y_pred), expected)
    named = np.array(["a", "b", "c", "d", "e"])
    by_name = class_recall(named[y_true], named[y_pred])
    np.testing.assert_allclose(by_name, expected)


def test_recall_of_classes_that_do_not_occur():
    recall = class_recall([0, 0, 2], [0, 3, 2], labels=[2, 1, 0])
    np.testing.assert_array_equal(recall, [1.0, NAN, 0.5])


def test_balanced_error_is_sklearns(labels):
    expected = 1 - balanced_accuracy_score(*labels)
    assert balanced_error(*labels) == pytest.approx(expected)
    # A class that is predicted but does not occur has no recall.
    assert balanced_error([0, 1], [0, 2]) == 0.5


def test_geometric_mean(labels):
    recall = recall_score(*labels, average=None)
    expected = recall.prod() ** (1 / 5)
    assert geometric_mean_recall(*labels) == pytest.approx(expected)
    assert geometric_mean_recall([0, 0, 1], [0, 0, 0]) == 0


Y_TRAIN = np.repeat(np.arange(5), [200, 100, 50, 20, 3])


def test_groups_by_count(labels):
    y_true, y_pred = labels
    recall = recall_score(y_true, y_pred, average=None)
    groups = many_medium_few_recall(y_true, y_pred, y_train=Y_TRAIN)
    expected = recall[:2].mean(), recall[2], recall[3:].mean()
    np.testing.assert_allclose(groups, expected)
    for name in ("many", "medium", "few"):
        figure = group_recall(y_true, y_pred, y_train=Y_TRAIN, group=name)
        assert figure == getattr(groups, name)


def test_groups_by_quantile(labels):
    y_true, y_pred = labels
    recall = recall_score(y_true, y_pred, average=None)
    groups = many_medium_few_recall(
        y_true, y_pred, y_train=Y_TRAIN, thresholds=(0.25, 0.75), by="quantile"
    )
    expected = recall[:2].mean(), recall[2], recall[3:].mean()
    np.testing.assert_allclose(groups, expected)


def test_a_group_without_a_class_has_no_recall():
    groups = many_medium_few_recall([0, 1], [0, 1], y_train=[0] * 200 + [1] * 150)
    np.testing.assert_array_equal(groups, [1.0, NAN, NAN])


def test_calibration_by_hand():
    """Two bins: gaps of 0.7 - 0.5 over two rows and 0.9 - 1 over one."""
    proba = [[0.7, 0.3], [0.7, 0.3], [0.1, 0.9]]
    expected = (2 * 0.2 + 1 * 0.1) / 3
    error = expected_calibration_error([0, 1, 1], proba, n_bins=5)
    assert error == pytest.approx(expected)
    second = [row[1] for row in proba]
    assert expected_calibration_error([0, 1, 1], second, n_bins=5) == pytest.approx(
        expected
    )


def test_calibrated_scores_have_a_small_error():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(4), 50_000)
    y = (rng.random((50_000, 1)) > proba.cumsum(1)).sum(1)
    assert expected_calibration_error(y, proba) < 0.01
    sure = np.eye(4)[proba.argmax(1)]
    gap = 1 - proba.max(1).mean()
    assert expected_calibration_error(y, sure) == pytest.approx(gap, abs=0.01)


def test_a_confidence_of_zero_and_of_one_have_a_bin():
    proba = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert expected_calibration_error([0, 1], proba) == pytest.approx(0.25)


def test_as_scorers():
    X, y = load_iris(return_X_y=True)
    X, y = X[:110], y[:110]  # 50, 50 and 10
    clf = LogisticRegression(max_iter=1000)
    few = make_scorer(group_recall, y_train=y, thresholds=(10, 40))
    expected = make_scorer(recall_score, labels=[2], average="macro")
    folds = {"cv": 3}
    np.testing.assert_allclose(
        cross_val_score(clf, X, y, scoring=few, **folds),
        cross_val_score(clf, X, y, scoring=expected, **folds),
    )
    calibration = make_scorer(
        expected_calibration_error,
        response_method="predict_proba",
        greater_is_better=False,
    )
    scores = cross_val_score(clf, X, y, scoring=calibration, **folds)
    assert ((scores <= 0) & (scores > -0.2)).all()


ARGUMENTS = {"y_true": [0, 1], "y_pred": [0, 1], "y_train": [0, 1]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_recall([0, 1], [0]), "inconsistent numbers of samples"),
        (
            lambda: many_medium_few_recall([0, 7], [0, 0], y_train=[0, 1]),
            r"classes that y_train lacks: \[7\]",
        ),
        (
            lambda: many_medium_few_recall(**ARGUMENTS, thresholds=(5, 1)),
            "0 <= low <= high",
        ),
        (
            lambda: many_medium_few_recall(**ARGUMENTS, by="quantile"),
            "low <= high <= 1",
        ),
        (lambda: many_medium_few_recall(**ARGUMENTS, by="share"), "by='share'"),
        (lambda: group_recall(**ARGUMENTS, group="rare"), "group='rare'"),
        (
            lambda: expected_calibration_error([0, 1], [[1.0], [1.0]]),
            r"shape \(2, 1\) for 2 labels",
        ),
        (
            lambda: expected_calibration_error([0, 1], [[2.0, 1.0], [0.0, 1.0]]),
            "must hold probabilities",
        ),
        (lambda: expected_calibration_error([0, 1], [0, 1], n_bins=0), "n_bins=0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
