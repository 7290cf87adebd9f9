"""`OTReweightedClassifier` on streams, and on a GPU."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from classifier_helpers import (
    STRATEGIES,
    assert_same_state,
    chunks,
    quick,
    state,
)
from nets_for_tests import (
    NormDropoutMLP,
    small_net,
)
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import recall_score
from skorch.callbacks import LRScheduler
from torch import nn

from sk_otreweight import (
    AttentionWeightNet,
    FeatureCost,
    POTSolver,
    SinkhornSolver,
    WeightNet,
    WeightVector,
    WholeMetaSet,
)

# Streams


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
    seen = [y[y < 3], y[y == 1], y[y == 9], y[y > 6], y[:1]]
    np.testing.assert_array_equal(
        clf.class_counts_, np.bincount(np.concatenate(seen), minlength=10)
    )
    np.testing.assert_allclose(clf.sample_weight_, [1])
    assert clf.history_[:, "stage"] == 5 * [2]
    assert [len(epoch["batches"]) for epoch in clf.history_] == [0, 0, 0, 0, 1]
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


def test_each_chunk_has_an_order_and_noise_of_its_own(few):
    X, y, meta = few
    caught = []

    class Watching(NormDropoutMLP):
        def forward(self, X):
            features = self.body(X)
            if self.training:
                caught[-1].append((X.clone(), features == 0))
            return self.head(features)

    def seen(n_chunks):
        clf = quick(small_net(Watching, batch_size=-1))
        for _ in range(n_chunks):
            caught.append([])
            clf.partial_fit(X, y, [4, 7, 8, 9], meta=meta)
        return [batches[0] for batches in caught[-n_chunks:]]

    _, second, third = seen(3)  # before the first chunk, parameters were drawn
    assert not torch.equal(second[0], third[0])
    assert not torch.equal(second[1], third[1])
    again = seen(3)[2]
    assert torch.equal(again[0], third[0])
    assert torch.equal(again[1], third[1])


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
    per_chunk = (whole[29] - whole[2]) / 27
    assert per_chunk < 300  # bytes, of an entry of the history


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


def test_lbfgs_goes_on_and_is_restored_after_an_error(few):
    """Its optimizer cannot be copied."""
    X, y, meta = few
    net = small_net(optimizer=torch.optim.LBFGS, lr=0.01, batch_size=-1, max_epochs=2)
    clf = quick(net).fit(X, y, meta=meta)
    before = clf.predict_proba(X)
    clf.partial_fit(X, y)
    after = clf.predict_proba(X)
    assert not np.array_equal(before, after)
    history = list(clf.history_)
    with pytest.raises(ValueError, match="labels that are unknown"):
        clf.partial_fit(X, y + 100)
    np.testing.assert_array_equal(clf.predict_proba(X), after)
    assert list(clf.history_) == history
    clf.partial_fit(X, y)
    assert not np.array_equal(clf.predict_proba(X), after)


@pytest.mark.parametrize(
    ("policy", "params"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
        ("CyclicLR", {"base_lr": 1e-3, "max_lr": 0.1, "step_every": "batch"}),
    ],
)
def test_a_schedule_goes_on_from_chunk_to_chunk(policy, params, few):
    X, y, _ = few
    rates = []
    net = small_net(callbacks=[LRScheduler(policy, **params)], max_epochs=1)
    plain = small_net(
        callbacks=[LRScheduler(policy, **params)], max_epochs=1,
        module__n_features=64, module__n_classes=4,
    ).initialize()  # fmt: skip
    clf = quick(net)
    for _ in range(5):
        clf.partial_fit(X, y, classes=np.unique(y))
        plain.partial_fit(X, np.searchsorted(np.unique(y), y))
        rates.append(
            [fitted.optimizer_.param_groups[0]["lr"] for fitted in (clf.net_, plain)]
        )
    ours, skorchs = np.transpose(rates)
    assert len(set(ours)) > 1
    np.testing.assert_allclose(ours, skorchs)


def test_parameters_that_are_set_between_chunks(few):
    X, y, meta = few
    clf = quick(cost="label", finetune="all").fit(X, y, meta=meta)
    clf.set_params(cost="feature", weights="vector", meta_set="whole", solver="pot")
    clf.partial_fit(X, y)
    assert isinstance(clf.cost_, FeatureCost)
    assert isinstance(clf.weights_, WeightVector)
    assert isinstance(clf.meta_set_, WholeMetaSet)
    clf.set_params(finetune="head").partial_fit(X, y)
    assert clf._head.name == "head"
    learned = clf.weights_.values_
    clf.set_params(reg=1.0).partial_fit(X, y)
    assert clf.weights_.get_params() == WeightVector().get_params()
    assert not torch.equal(clf.weights_.values_, torch.ones_like(learned))


@pytest.mark.parametrize(
    ("params", "is_kept"),
    [
        ({"weight_lr": 0.0}, True),
        ({"weights": WeightNet(lr=0.0, optimizer=torch.optim.Adam)}, True),
        ({"weights": WeightNet(lr=0.0, hidden=7)}, False),
        ({"weights": AttentionWeightNet(lr=0.0)}, False),
    ],
)
def test_a_weight_net_goes_on_with_another_step_size(params, is_kept, few):
    X, y, meta = few
    clf = quick(weights="net", cost="label").fit(X, y, meta=meta)
    learned = state(clf.weights_.module_)
    clf.set_params(**params).partial_fit(X, y)
    assert clf.weights_.lr == 0.0
    assert {group["lr"] for group in clf.weights_.optimizer_.param_groups} == {0.0}
    optimizer = params["weights"].optimizer if "weights" in params else torch.optim.SGD
    assert type(clf.weights_.optimizer_) is optimizer
    if is_kept:
        assert_same_state(state(clf.weights_.module_), learned)
    else:
        shapes = {x.shape for x in state(clf.weights_.module_).values()}
        assert shapes != {x.shape for x in learned.values()}
