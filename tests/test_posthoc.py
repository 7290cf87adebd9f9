"""Methods that leave the training as it is and predict in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets_for_tests import SmallMLP, small_net
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_otreweight.baselines import (
    CrossEntropyClassifier,
    LogitAdjustmentClassifier,
    NearestClassMeanClassifier,
    OTPosthocClassifier,
    PosthocLogitAdjustmentClassifier,
    TauNormClassifier,
)
from sk_otreweight.baselines.posthoc import ot_class_factors


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=3.0)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def plain(data):
    net = small_net(max_epochs=10)
    return CrossEntropyClassifier(net, max_epochs=0, random_state=0).fit(*data)


def after(plain, kind, **params):
    return kind(FrozenEstimator(plain.net_), max_epochs=0, random_state=0, **params)


# Logit adjustment


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_adjusted_by_definition(plain, data, tau):
    X, y = data
    clf = after(plain, PosthocLogitAdjustmentClassifier, tau=tau).fit(X, y)
    scores = np.log(plain.predict_proba(X)) - tau * np.log(np.bincount(y) / len(y))
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-9)


def test_an_adjustment_to_the_frequencies_is_none(plain, data):
    clf = after(plain, PosthocLogitAdjustmentClassifier, target_prior="train").fit(
        *data
    )
    expected = plain.predict_proba(data[0])
    np.testing.assert_allclose(clf.predict_proba(data[0]), expected, atol=1e-9)


class LogPosterior(nn.Module):
    """Scores of normal densities of width 1 around -1, 0 and 1, for given shares."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centres", torch.tensor([-1.0, 0.0, 1.0]))
        self.register_buffer("shares", torch.tensor([0.6, 0.3, 0.1]))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, X):
        return -((X - self.centres) ** 2) / 2 + self.shares.log() + 5.0


def test_scores_of_the_posterior_become_those_of_the_densities():
    X = np.linspace(-3, 3, 101, dtype=np.float32)[:, None]
    y = np.repeat([0, 1, 2], [60, 30, 11])[:100]
    clf = PosthocLogitAdjustmentClassifier(
        FrozenEstimator(LogPosterior()), max_epochs=0, random_state=0
    ).fit(X[:100], y)
    assert (clf.predict(X) == np.abs(X - [-1, 0, 1]).argmin(1)).all()


def test_the_loss_form_predicts_with_the_scores_as_they_are(data):
    X, y = data
    clf = LogitAdjustmentClassifier(small_net(max_epochs=3), random_state=0).fit(X, y)
    with torch.no_grad():
        expected = clf.net_.module_.eval()(torch.from_numpy(X)).softmax(1).numpy()
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


# tau-normalisation


def scores_of(clf, X):
    with torch.no_grad():
        return clf.net_.module_.eval()(torch.from_numpy(X))


def test_no_normalisation_leaves_the_classes(plain, data):
    X, y = data
    clf = after(plain, TauNormClassifier, tau=0.0).fit(X, y)
    module = plain.net_.module_
    with torch.no_grad():
        expected = module.eval().body(torch.from_numpy(X)) @ module.head.weight.T
    torch.testing.assert_close(scores_of(clf, X), expected)


def test_full_normalisation_gives_vectors_of_length_one(plain, data):
    X, y = data
    clf = after(plain, TauNormClassifier, tau=1.0).fit(X, y)
    head = clf.net_.module_.head
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(3))
    assert not head.bias.any()
    scaled = after(plain, CrossEntropyClassifier).fit(X, y)
    with torch.no_grad():
        scaled.net_.module_.head.weight *= torch.tensor([[1.0], [7.0], [0.1]])
    other = after(scaled, TauNormClassifier, tau=1.0).fit(X, y)
    np.testing.assert_array_equal(other.predict(X), clf.predict(X))


def test_tau_is_chosen_on_the_meta_rows(plain, data):
    X, y = data
    meta = np.concatenate([np.flatnonzero(y == k)[:8] for k in range(3)])
    clf = after(plain, TauNormClassifier).fit(X, y, meta=(X[meta], y[meta]))
    scores = {}
    for tau in np.linspace(0, 2, 21):
        one = after(plain, TauNormClassifier, tau=float(tau)).fit(X, y)
        scores[round(tau, 1)] = one.score(X[meta], y[meta])  # as many of each class
    assert scores[round(clf.tau_, 1)] == max(scores.values())


def test_a_class_vector_of_length_zero(data):
    net = small_net(max_epochs=1, module__n_features=4, module__n_classes=3)
    net.initialize()
    with torch.no_grad():
        net.module_.head.weight[1] = 0
    clf = TauNormClassifier(FrozenEstimator(net), tau=1.0, max_epochs=0).fit(*data)
    assert np.isfinite(clf.predict_proba(data[0])).all()


# Nearest class mean


@pytest.mark.parametrize("transform", ["cl2n", "l2n", None])
def test_the_nearest_mean_by_hand(plain, data, transform):
    X, y = data
    clf = after(plain, NearestClassMeanClassifier, feature_transform=transform).fit(
        X, y
    )
    with torch.no_grad():
        points = plain.net_.module_.eval().body(torch.from_numpy(X)).double().numpy()
    if transform == "cl2n":
        points = points - points.mean(0)
    if transform is not None:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    means = np.stack([points[y == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(clf.class_means_, means, atol=1e-6)
    distances = np.linalg.norm(points[:, None] - means, axis=2)
    np.testing.assert_array_equal(clf.predict(X), distances.argmin(1))


class Moved(SmallMLP):
    """Features that are scaled and moved after the layers before."""

    scale, shift = 1.0, 0.0

    def forward(self, X):
        return self.head(self.scale * self.body(X) + self.shift)


@pytest.mark.parametrize(
    ("transform", "scale", "shift"), [("l2n", 3.0, 0.0), ("cl2n", 3.0, 2.0)]
)
def test_what_the_nearest_mean_does_not_see(data, transform, scale, shift):
    X, y = data
    torch.manual_seed(0)
    module = Moved(4, 3)
    predictions = []
    for module.scale, module.shift in ((1.0, 0.0), (scale, shift)):
        clf = NearestClassMeanClassifier(
            FrozenEstimator(module), feature_transform=transform, max_epochs=0
        ).fit(X, y)
        predictions.append(clf.predict(X))
    np.testing.assert_array_equal(*predictions)


def test_separate_classes_are_recognised():
    X, y = make_blobs([40, 20, 5], n_features=4, random_state=0, cluster_std=0.1)
    clf = NearestClassMeanClassifier(small_net(max_epochs=1), random_state=0)
    assert clf.fit(X.astype(np.float32), y).score(X.astype(np.float32), y) == 1


# Class factors of transport


def textbook_factors(P, row_mass, column_mass, eps, n_iter=20_000):
    """Return the class factors by plain Sinkhorn iterations."""
    K, v = P ** (1 / eps), np.ones(P.shape[1])
    for _ in range(n_iter):
        v = column_mass / (K.T @ (row_mass / (K @ v)))
    return v / np.exp(np.log(v).mean())


@pytest.fixture
def probabilities():
    rng = np.random.default_rng(0)
    scores = 2 * rng.standard_normal((200, 4)) + np.log([0.6, 0.25, 0.1, 0.05]) / 2
    P = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return P, np.arange(200) % 4  # as many of each class


@pytest.mark.parametrize("eps", [0.5, 1.0, 2.0])
def test_factors_are_those_of_the_textbook(probabilities, eps):
    P, labels = probabilities
    expected = textbook_factors(P, np.full(200, 1 / 200), np.full(4, 1 / 4), eps)
    np.testing.assert_allclose(ot_class_factors(P, labels, eps), expected, rtol=1e-5)


@pytest.mark.parametrize("eps", [0.5, 1.0, 2.0])
def test_shares_are_met_and_predictions_are_adjusted_scores(probabilities, eps):
    P, labels = probabilities
    v = ot_class_factors(P, labels, eps)
    plan = P ** (1 / eps) * v
    plan /= plan.sum(1, keepdims=True)
    np.testing.assert_allclose(plan.mean(0), 1 / 4, atol=1e-6)
    adjusted = np.log(P) + eps * np.log(v)
    np.testing.assert_array_equal(plan.argmax(1), adjusted.argmax(1))


def test_shares_that_are_met_already_need_no_factors(probabilities):
    P, labels = probabilities
    plan = P * ot_class_factors(P, labels, 1.0)
    plan /= plan.sum(1, keepdims=True)
    np.testing.assert_allclose(ot_class_factors(plan, labels, 1.0), 1, rtol=1e-5)


def test_probabilities_of_zero_have_finite_factors(probabilities):
    P, labels = probabilities
    P = np.where(P < 0.1, 0, P)
    v = ot_class_factors(P / P.sum(1, keepdims=True), labels, 1.0)
    assert np.isfinite(v).all()


def test_the_company_of_a_row_plays_no_part(plain, data):
    X, y = data
    meta = np.concatenate([np.flatnonzero(y == k)[:8] for k in range(3)])
    clf = after(plain, OTPosthocClassifier).fit(X, y, meta=(X[meta], y[meta]))
    one_by_one = np.vstack([clf.predict_proba(row[None]) for row in X])
    np.testing.assert_array_equal(one_by_one, clf.predict_proba(X))


def test_on_the_meta_rows_all_classes_have_the_same_share(plain, data):
    X, y = data
    meta = np.concatenate([np.flatnonzero(y == k)[:n] for k, n in enumerate((9, 6, 3))])
    clf = after(plain, OTPosthocClassifier).fit(X, y, meta=(X[meta], y[meta]))
    weights = 1 / np.bincount(y[meta])[y[meta]]
    shares = weights @ clf.predict_proba(X[meta]) / 3
    np.testing.assert_allclose(shares, 1 / 3, atol=1e-5)


def test_many_rows_are_looked_at_in_part(plain, data, monkeypatch):
    monkeypatch.setattr("sk_otreweight.baselines.posthoc._MOST_ENTRIES", 3 * 50)
    few = after(plain, OTPosthocClassifier).fit(*data).class_factor_
    monkeypatch.setattr("sk_otreweight.baselines.posthoc._MOST_ENTRIES", 3 * 1000)
    every = after(plain, OTPosthocClassifier).fit(*data).class_factor_
    assert np.abs(np.log(few / every)).max() < 3
    assert (few != every).any()
