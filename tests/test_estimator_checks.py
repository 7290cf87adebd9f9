from __future__ import annotations

import os
from unittest import SkipTest

import numpy as np
import pytest
import torch
from nets_for_tests import SmallMLP, SoftmaxMLP, small_net
from sklearn.datasets import make_blobs
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    parametrize_with_checks,
)
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import OTReweightedClassifier


def quick_net(**params):
    return small_net(max_epochs=6, lr=0.03, **params)


# The default net is the point of the first one only.
ESTIMATORS = [
    OTReweightedClassifier(),
    OTReweightedClassifier(SmallMLP, max_epochs=2),
    # As skorch has it by default: NLLLoss of probabilities, SGD, a validation split.
    OTReweightedClassifier(
        NeuralNetClassifier(SoftmaxMLP, lr=0.5, verbose=0), max_epochs=2
    ),
    *(
        OTReweightedClassifier(quick_net(), weights=weights, max_epochs=2)
        for weights in ("vector", "net", "attention", "semirelaxed")
    ),
]


def test_array_api_checks_can_run():
    assert os.environ.get("SCIPY_ARRAY_API") == "1", (
        "scikit-learn skips its array API check unless the environment variable "
        "SCIPY_ARRAY_API=1 is set before scipy is imported, as `make test` does"
    )


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skipped:
        pytest.fail(f"scikit-learn skipped its check: {skipped}")


def test_every_estimator_gets_all_checks():
    n_checks = len(test_scikit_learn_check.pytestmark[0].args[1])
    assert n_checks >= 55 * len(ESTIMATORS)


def test_feature_names_are_kept_and_compared():
    check_dataframe_column_names_consistency(
        "OTReweightedClassifier", OTReweightedClassifier(quick_net(), max_epochs=2)
    )


@pytest.mark.parametrize("seed", range(12))
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
