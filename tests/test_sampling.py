"""Draws of rows that give rare classes a larger share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import assert_same_state, quick, state
from nets_for_tests import small_net
from scipy.stats import chisquare
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback

from sk_otreweight import SemiRelaxedWeights
from sk_otreweight.sampling import balanced_rows, power_rows, rows_of_classes

COUNTS = np.array([400, 100, 25])


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs(COUNTS.tolist(), n_features=4, random_state=0, cluster_std=3.0)
    return X.astype(np.float32), y


class Labels(Callback):
    """Notes the labels of each training batch, by stage."""

    seen: list = []

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if training:
            Labels.seen.append((net.history[-1, "stage"], batch[1].clone()))


def sampled(net=None, **params):
    within = SemiRelaxedWeights(per_class=True)
    return quick(net, **{"weights": within, "finetune": "all"} | params)


def test_balanced_draws_have_all_classes_alike():
    labels = torch.tensor([0] * 70 + [2] * 25 + [3] * 5)
    generator = torch.Generator().manual_seed(0)
    rows = balanced_rows(labels, 1200, generator)
    assert torch.bincount(labels[rows]).tolist() == [400, 0, 400, 400]
    of_rows = torch.bincount(rows, minlength=100)
    for label in (0, 2, 3):  # all rows of a class before any comes again
        own = of_rows[labels == label]
        assert own.max() - own.min() <= 1


def test_classes_take_turns_with_four_rows():
    labels = torch.tensor([0] * 70 + [1] * 30)
    rows = balanced_rows(labels, 80, torch.Generator().manual_seed(0))
    turns = labels[rows].reshape(-1, 4)
    assert (turns == turns[:, :1]).all()
    assert (turns[:, 0].reshape(-1, 2).sort(1).values == torch.tensor([0, 1])).all()


@pytest.mark.parametrize("n", [1, 7, 50])
def test_as_many_rows_as_asked_for(n):
    rows = balanced_rows(torch.arange(20) % 3, n, torch.Generator().manual_seed(0))
    assert len(rows) == n


def test_rows_of_drawn_classes_follow_the_law_of_rows():
    """Drawing a class by n_k rho_k, and then a row, draws rows by rho."""
    labels = torch.tensor([0] * 12 + [1] * 5 + [2] * 3)
    rates = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(labels) * rates
    n = 40_000
    classes = shares.multinomial(n, replacement=True, generator=generator)
    rows = rows_of_classes(classes, labels, generator)
    expected = rates[labels] / rates[labels].sum() * n
    seen = torch.bincount(rows, minlength=20)
    assert chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_drawn_by_a_power_of_their_size(power):
    labels = torch.tensor([0] * 400 + [2] * 100 + [3] * 25)
    n = 20_000
    rows = power_rows(labels, n, power, torch.Generator().manual_seed(0))
    shares = COUNTS ** (1 - power)
    drawn = torch.bincount(labels[rows], minlength=4).numpy()
    assert drawn[1] == 0
    assert chisquare(drawn[[0, 2, 3]], shares / shares.sum() * n).pvalue > 1e-3
    of_rows = torch.bincount(rows, minlength=len(labels))
    for label in (0, 2, 3):  # all rows of a class before any comes again
        own = of_rows[labels == label]
        assert own.max() - own.min() <= 1


def test_drawn_classes_come_in_no_order():
    labels = torch.tensor([0] * 100 + [1] * 100)
    rows = power_rows(labels, 200, 0.5, torch.Generator().manual_seed(0))
    changes = (labels[rows][1:] != labels[rows][:-1]).sum()
    assert 70 < changes < 130


# The classifier


@pytest.mark.parametrize(
    ("sampling", "power"),
    [("instance", 0.0), ("square_root", 0.5), ("class_balanced", 1.0)],
)
@pytest.mark.parametrize("finetune", ["head", "all"])
def test_stage_two_draws_rows(data, sampling, power, finetune):
    Labels.seen = []
    net = small_net(max_epochs=1, callbacks=[Labels])
    sampled(net, sampling=sampling, finetune=finetune, max_epochs=20).fit(*data)
    drawn = {
        stage: torch.cat([y for place, y in Labels.seen if place == stage])
        for stage in (1, 2)
    }
    assert (torch.bincount(drawn[1]).numpy() == COUNTS).all()
    assert len(drawn[2]) == 20 * COUNTS.sum()
    shares = COUNTS ** (1 - power)
    found = torch.bincount(drawn[2]).numpy() / len(drawn[2])
    np.testing.assert_allclose(found, shares / shares.sum(), atol=0.02)


def test_draws_are_those_of_the_random_state(data):
    first, again, other = (
        state(
            sampled(sampling="square_root", random_state=seed).fit(*data).net_.module_
        )
        for seed in (0, 0, 1)
    )
    assert_same_state(first, again)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("sampling", ["instance", "square_root", "class_balanced"])
def test_the_net_expects_the_classes_that_were_drawn(data, sampling):
    power = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}[sampling]
    plain = sampled(sampling=sampling).fit(*data)
    expected = COUNTS ** (1 - power)
    np.testing.assert_allclose(plain.prior_, expected / expected.sum(), rtol=1e-5)
    adjusted = sampled(sampling=sampling, loss="logit_adjusted").fit(*data)
    np.testing.assert_allclose(adjusted.prior_, 1 / 3, rtol=1e-5)


def test_the_loss_is_adjusted_for_what_is_drawn(data):
    """Of classes that are drawn alike nothing is left to adjust for."""
    sizes = {"module__n_features": 4, "module__n_classes": 3}
    net = FrozenEstimator(small_net(max_epochs=1, **sizes).fit(*data))
    fits = {
        (sampling, loss): state(
            sampled(net, sampling=sampling, loss=loss).fit(*data).net_.module_
        )
        for sampling in ("instance", "class_balanced")
        for loss in ("net", "logit_adjusted")
    }
    balanced = fits["class_balanced", "net"]
    adjusted = fits["class_balanced", "logit_adjusted"]
    for name in balanced:
        torch.testing.assert_close(balanced[name], adjusted[name])
    gaps = [
        (fits["instance", "net"][name] - fits["instance", "logit_adjusted"][name])
        .abs()
        .max()
        for name in balanced
    ]
    assert max(gaps) > 1e-3


@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_all_weights_go_with_draws(data, weights):
    clf = sampled(weights=weights, sampling="square_root").fit(*data)
    assert np.isfinite(clf.sample_weight_).all()
    assert clf.sample_weight_.shape == data[1].shape


def test_chunks_of_a_stream_are_drawn_too(data):
    X, y = data
    Labels.seen = []
    net = small_net(callbacks=[Labels])
    clf = sampled(net, sampling="class_balanced")
    clf.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2]).partial_fit(X, y)
    assert len(Labels.seen) > 0
    drawn = torch.bincount(torch.cat([y for _, y in Labels.seen]), minlength=3)
    n_first, n_second = COUNTS[:2].sum(), COUNTS.sum()
    expected = n_first / 2 + n_second / 3
    np.testing.assert_allclose(drawn[:2], expected, rtol=0.15)


def test_a_sampling_that_is_not_known(data):
    with pytest.raises(ValueError, match="sampling='sqrt' .*'square_root'"):
        sampled(sampling="sqrt").fit(*data)
