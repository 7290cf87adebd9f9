"""What stage 2 of `OTReweightedClassifier` trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import (
    assert_same_state,
    quick,
    state,
)
from nets_for_tests import (
    NormDropoutMLP,
    SmallMLP,
    small_net,
)
from sklearn.base import clone
from sklearn.utils import check_random_state
from skorch.dataset import ValidSplit
from torch.nn.functional import cross_entropy

from sk_otreweight import (
    WeightVector,
)
from sk_otreweight.loaders import RowLoader


def stage_one_and_both(clf, data):
    """Fit with and without stage 2; stage 1 is the same."""
    X, y, meta = data
    before = clone(clf).set_params(max_epochs=0).fit(X, y, meta=meta)
    after = clf.fit(X, y, meta=meta)
    assert len(before.history_) < len(after.history_)
    return state(before.net_.module_), state(after.net_.module_)


@pytest.mark.parametrize(
    ("head", "first_of_head"),
    [
        (None, "head"),
        ("head", "head"),
        ("body.4", "body.4"),  # features before the second layer: cannot be replayed
        (lambda module, X: module.body(X), "head"),
    ],
    ids=["found", "named", "deeper", "callable"],
)
@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_head_leaves_the_extractor_bitwise_unchanged(
    weights, head, first_of_head, digits
):
    net = small_net(NormDropoutMLP, max_epochs=2)
    clf = quick(net, head=head, weights=weights, finetune="head")
    data = digits.X, digits.y, digits.meta
    before, after = stage_one_and_both(clf, data)
    names = list(before)
    extractor = names[: names.index(f"{first_of_head}.weight")]
    assert "body.1.running_mean" in extractor  # buffers as well
    assert_same_state(before, after, extractor)
    changed = [name for name in names if not torch.equal(before[name], after[name])]
    assert f"{first_of_head}.weight" in changed
    assert "head.weight" in changed
    assert all(p.requires_grad for p in clf.net_.module_.parameters())


def test_all_trains_everything(digits):
    net = small_net(NormDropoutMLP, max_epochs=2)
    clf = quick(net, finetune="all")
    before, after = stage_one_and_both(clf, (digits.X, digits.y, digits.meta))
    for name in before:
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("module", [SmallMLP, NormDropoutMLP])
@pytest.mark.parametrize("split", [None, ValidSplit(4)])
def test_uniform_frozen_weights_are_plain_training(module, split, digits):
    net = small_net(module, train_split=split, iterator_train=RowLoader)
    clf = quick(
        net,
        weights=WeightVector(lr=0),
        finetune="all",
        virtual_step=None,
        max_epochs=3,
    )
    clf.fit(digits.X, digits.y, meta=digits.meta)

    plain = small_net(
        module,
        train_split=split,
        iterator_train=RowLoader,
        iterator_valid=RowLoader,  # a DataLoader draws from the global generator
        module__n_features=64,
        module__n_classes=10,
        max_epochs=7,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_random_state(0).randint(np.iinfo(np.int32).max))
        plain.fit(digits.X, digits.y)
    np.testing.assert_allclose(
        clf.history_[:, "train_loss"], plain.history[:, "train_loss"], rtol=1e-6
    )
    if split is not None:
        np.testing.assert_allclose(
            clf.history_[:, "valid_loss"], plain.history[:, "valid_loss"], rtol=1e-5
        )
    plain_state = plain.module_.state_dict()
    for name, value in clf.net_.module_.state_dict().items():
        torch.testing.assert_close(value, plain_state[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(clf.sample_weight_, 1)


def test_lr_is_that_of_stage_two(digits):
    X, y, meta = digits.X, digits.y, digits.meta
    still = quick(lr=0.0, finetune="all")
    assert_same_state(*stage_one_and_both(still, (X, y, meta)))
    clf = quick(lr=0.25).fit(X, y, meta=meta)
    assert clf.net_.optimizer_.param_groups[0]["lr"] == 0.25
    assert quick().fit(X, y, meta=meta).net_.optimizer_.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_meta_loss_is_added(finetune, digits):
    """The first loss of stage 2 is mean + factor * mean over the meta set."""
    X, y, (X_meta, y_meta) = digits.X, digits.y, digits.meta
    net = small_net(max_epochs=2, batch_size=-1)
    clf = quick(
        net,
        weights=WeightVector(lr=0),
        finetune=finetune,
        meta_loss_weight=10,
        max_epochs=1,
    )
    before = clone(clf).set_params(max_epochs=0).fit(X, y, meta=digits.meta)
    clf.fit(X, y, meta=digits.meta)

    def loss(X, y):
        with torch.no_grad():
            scores = before.net_.module_(torch.from_numpy(X))
        return cross_entropy(scores, torch.from_numpy(y)).item()

    expected = loss(X, y) + 10 * loss(X_meta, y_meta)
    assert clf.history_[-1, "train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("given", [True, False])
def test_meta_loss_helps_the_meta_rows(given, finetune, digits):
    X, y, meta = digits.X, digits.y, digits.meta if given else None
    params = {"finetune": finetune, "max_epochs": 4, "weights": WeightVector(lr=0)}
    without = quick(**params).fit(X, y, meta=meta)
    clf = quick(**params, meta_loss_weight=10).fit(X, y, meta=meta)
    assert clf.score(*digits.meta) > without.score(*digits.meta)


def test_init_weights(digits):
    counts = np.bincount(digits.y)
    inverse = 1 / counts
    effective = (1 - 0.9999) / (1 - 0.9999**counts)
    for init_weights, start in [
        ("uniform", np.ones(10)),
        ("inverse", inverse),
        ("class_balanced", effective),
    ]:
        clf = quick(weights=WeightVector(lr=0), init_weights=init_weights)
        clf.fit(digits.X, digits.y, meta=digits.meta)
        expected = start * counts.sum() / (start * counts).sum()
        np.testing.assert_allclose(clf.class_weight_, expected, rtol=1e-5)
        assert clf.history_[-1, "weights_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weights", ["vector", "net", WeightVector(lr=2.0)], ids=str)
def test_weight_lr_overrides_that_of_the_strategy(weights, few):
    X, y, meta = few
    own = quick(weights=weights).fit(X, y, meta=meta)
    still = quick(weights=weights, weight_lr=0.0).fit(X, y, meta=meta)
    assert still.weights_.lr == 0.0 < own.weights_.lr
    assert still.history_[-1, "weights_kl"] < own.history_[-1, "weights_kl"]
