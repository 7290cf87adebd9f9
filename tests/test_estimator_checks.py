from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from unittest import SkipTest

import numpy as np
import pytest
import torch
from nets_for_tests import SmallMLP, SoftmaxMLP, small_net
from sklearn import config_context
from sklearn.datasets import make_blobs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    parametrize_with_checks,
)
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import OTReweightedClassifier, OTReweightedEstimator
from sk_otreweight.baselines import (
    ClassBalancedFocalClassifier,
    NearestClassMeanClassifier,
)


def quick_net(**params):
    return small_net(max_epochs=6, lr=0.03, **params)


# The default net is the point of the first one only.
CLASSIFIERS = [
    OTReweightedClassifier(),
    OTReweightedClassifier(SmallMLP, max_epochs=2),
    # As skorch has it by default: NLLLoss of probabilities, SGD, a validation split.
    OTReweightedClassifier(
        NeuralNetClassifier(SoftmaxMLP, lr=0.5, verbose=0), max_epochs=2
    ),
    *(
        OTReweightedClassifier(quick_net(), weights=weights, max_epochs=2)
        for weights in ("vector", "net")
    ),
    OTReweightedClassifier.from_recipe("robust", quick_net(), max_epochs=2),
]
ANY_CLASSIFIERS = [
    OTReweightedEstimator(LogisticRegression()),
    OTReweightedEstimator(LogisticRegression(), cost="label"),
]
ESTIMATORS = CLASSIFIERS + ANY_CLASSIFIERS
# Of the same kinds, checked in the slow suite.
OTHERS = [
    *(
        OTReweightedClassifier(quick_net(), weights=weights, max_epochs=2)
        for weights in ("attention", "semirelaxed")
    ),
    OTReweightedEstimator(DecisionTreeClassifier(random_state=0)),
    OTReweightedEstimator(HistGradientBoostingClassifier(max_iter=10, random_state=0)),
]


def test_array_api_checks_can_run():
    assert os.environ.get("SCIPY_ARRAY_API") == "1", (
        "scikit-learn skips its array API check unless the environment variable "
        "SCIPY_ARRAY_API=1 is set before scipy is imported, as `make test` does"
    )


# A tree is certain of its leaves.
CERTAIN = pytest.mark.filterwarnings("ignore:divide by zero encountered in log")
# The checks of scikit-learn 1.6 have classes too small for skorch's own split.
FEW = pytest.mark.filterwarnings("ignore:The least populated class")
# Before, it had fewer checks, in an iterator.
HAS_ALL_CHECKS = pytest.mark.skipif(
    version("scikit-learn") < "1.7", reason="older scikit-learn"
)


@FEW
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    run_check(check, estimator)


@pytest.mark.slow
@CERTAIN
@parametrize_with_checks(OTHERS)
def test_scikit_learn_check_of_others(estimator, check):
    run_check(check, estimator)


@parametrize_with_checks([CLASSIFIERS[-1], ANY_CLASSIFIERS[0]])
def test_scikit_learn_check_with_metadata_routing(estimator, check):
    with config_context(enable_metadata_routing=True):
        run_check(check, estimator)


def run_check(check, estimator):
    """Run a check, and fail if it is skipped."""
    try:
        check(estimator)
    except SkipTest as skipped:
        pytest.fail(f"scikit-learn skipped its check: {skipped}")


@HAS_ALL_CHECKS
@pytest.mark.parametrize(
    ("test", "n_estimators"),
    [
        (test_scikit_learn_check, len(ESTIMATORS)),
        (test_scikit_learn_check_of_others, len(OTHERS)),
        (test_scikit_learn_check_with_metadata_routing, 2),
    ],
)
def test_every_estimator_gets_all_checks(test, n_estimators):
    # A classifier without and with a random state of its own: 55 and 54.
    (checks,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    assert len(checks.args[1]) >= 54 * n_estimators


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize(
    "estimator",
    [OTReweightedClassifier(quick_net(), max_epochs=2), ANY_CLASSIFIERS[0]],
    ids=lambda estimator: type(estimator).__name__,
)
def test_feature_names_are_kept_and_compared(estimator, routing):
    with config_context(enable_metadata_routing=routing):
        check_dataframe_column_names_consistency(type(estimator).__name__, estimator)


@pytest.mark.parametrize("seed", range(40))
def test_probabilities_do_not_depend_on_the_company(seed):
    # Width 512: a product of another number of rows would be rounded differently.
    X, y = make_blobs(n_samples=150, n_features=7, random_state=seed)
    net = small_net(module__hidden=512, max_epochs=1)
    clf = OTReweightedClassifier(net, max_epochs=1, random_state=seed).fit(X, y)
    together = clf.predict_proba(X)
    one_by_one = np.vstack([clf.predict_proba(row[None]) for row in X[:40]])
    np.testing.assert_array_equal(one_by_one, together[:40])
    order = np.random.default_rng(seed).permutation(len(X))
    np.testing.assert_array_equal(clf.predict_proba(X[order]), together[order])
    in_two = np.vstack([clf.predict_proba(X[:37]), clf.predict_proba(X[37:])])
    np.testing.assert_array_equal(in_two, together)


def test_a_plain_net_does_depend_on_the_company():
    """The test above is worth something: without padding it fails on some seeds."""
    differences = []
    for seed in range(12):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(7, 512), nn.ReLU(), nn.Linear(512, 3)).eval()
        with torch.no_grad():
            X = torch.randn(150, 7)
            one_by_one = torch.cat([net(row[None]) for row in X[:40]])
            differences.append((one_by_one - net(X)[:40]).abs().max().item())
    assert max(differences) > 0


@pytest.fixture
def busy_threads():
    """Threads that take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as threads:
        yield threads
    sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (OTReweightedClassifier, "predict_proba"),
        (OTReweightedClassifier, "suspicious_rows"),
        (ClassBalancedFocalClassifier, "predict_proba"),
        (NearestClassMeanClassifier, "predict_proba"),  # reads features
    ],
)
def test_threads_get_the_results_of_their_own_rows(kind, method, busy_threads):
    X, y = make_blobs(n_samples=120, n_features=7, random_state=0)
    clf = kind(small_net(max_epochs=1), max_epochs=1, random_state=0).fit(X, y)

    def result(part):
        if method == "predict_proba":
            return clf.predict_proba(X[part])
        return clf.suspicious_rows(X[part], y[part])["score"]

    parts = [slice(start, start + 30) for start in range(0, 120, 30)] * 10
    expected = [result(part) for part in parts[:4]] * 10
    for found, wanted in zip(busy_threads.map(result, parts), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert "get_iterator" not in vars(clf.net_)
