"""Sums over many batches are those over all of their rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sk_otreweight.statistics import WeightStatistics
from sk_otreweight.weights import Rows

CLASS_START = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def random_batches(n_batches):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(n_batches):
        n = 3 + number % 4
        labels = torch.randint(3, (n,), generator=generator)
        weights = torch.rand(n, generator=generator, dtype=torch.float64)
        weights[0] *= number % 2  # some are zero
        rows = Rows(torch.ones(n, 2), labels, CLASS_START, None)
        batches.append((weights, rows))
    return batches


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("n_batches", [1, 63, 64, 65, 200])
def test_statistics_of_many_batches(n_batches, per_batch):
    statistics = WeightStatistics()
    batches = random_batches(n_batches)
    for weights, rows in batches:
        statistics.add_weights(weights, rows, per_batch=per_batch)
    w = torch.cat([weights for weights, _ in batches]).numpy()
    starts = [CLASS_START[rows.labels] for _, rows in batches]
    if per_batch:
        starts = [start / start.mean() for start in starts]
    start = torch.cat(starts).numpy()
    p, q = w / w.sum(), start / start.sum()
    some = p > 0
    divergence = np.sum(p[some] * np.log(p[some] / q[some]))
    found = statistics.summary()
    ess = w.sum() ** 2 / (len(w) * np.sum(w**2))
    assert found["weights_ess"] == pytest.approx(ess, rel=1e-12)
    assert divergence > 1e-3
    assert found["weights_kl"] == pytest.approx(divergence, rel=1e-9)
    again = statistics.summary()
    assert (again["weights_ess"], again["weights_kl"]) == (1.0, 0.0)


@pytest.mark.parametrize("n_batches", [1, 64, 150])
def test_mean_of_many_costs(n_batches):
    statistics, costs = WeightStatistics(), []
    for number in range(n_batches):
        cost = [torch.tensor(0.5 + number), np.float64(number), torch.ones(2, 3)]
        statistics.add_costs(cost[number % 3])
        costs += np.ravel(cost[number % 3]).tolist()
    assert statistics.summary()["ot_cost"] == pytest.approx(np.mean(costs), rel=1e-6)
    # What was solved once holds until the next time.
    assert statistics.summary()["ot_cost"] == pytest.approx(np.mean(costs), rel=1e-6)


def test_few_batches_are_held():
    statistics = WeightStatistics()
    for weights, rows in random_batches(1000):
        statistics.add_weights(weights, rows, per_batch=False)
        statistics.add_costs(weights.sum())
        assert len(statistics._weights) < 64
        assert len(statistics._costs) < 64
        assert all(rows.features is None for _, rows, _ in statistics._weights)


def test_weights_and_labels_may_be_changed_afterwards():
    changed, kept = WeightStatistics(), WeightStatistics()
    for weights, rows in random_batches(10):
        kept.add_weights(weights.clone(), rows, per_batch=False)
        own, labels = weights.clone(), rows.labels.clone()
        changed.add_weights(own, rows._replace(labels=labels), per_batch=False)
        own.fill_(1.0)
        labels.fill_(0)
    found, expected = changed.summary(), kept.summary()
    for name in ("weights_ess", "weights_kl"):  # there was no cost
        assert found[name] == expected[name]
