from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import assert_same
from sklearn.utils.class_weight import compute_class_weight

from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)

COUNTS = [5000, 500, 50, 5]


def inverse(counts: list[int]) -> torch.Tensor:
    weights = 1 / torch.tensor(counts, dtype=torch.float64)
    return weights * len(counts) / weights.sum()


def test_inverse_frequencies_of_mean_one_over_rows_are_sklearns_balanced():
    y = np.repeat(np.arange(4), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    weights = inverse_frequency_weights(COUNTS, normalize="samples")
    assert_same(weights, torch.from_numpy(expected), atol=1e-12)


def test_inverse_frequencies_give_every_class_the_same_mass():
    mass = torch.tensor(COUNTS) * inverse_frequency_weights(COUNTS)
    assert_same(mass, mass[:1].expand(4), atol=1e-9)


@pytest.mark.parametrize(
    "weights",
    [
        inverse_frequency_weights(COUNTS, gamma=0),
        inverse_frequency_weights([7, 7, 7, 7]),
        effective_number_weights(COUNTS, beta=0),
        effective_number_weights([7, 7, 7, 7]),
    ],
)
def test_weights_that_are_all_one(weights):
    assert_same(weights, torch.ones(4), atol=1e-12)


def test_gamma_is_a_power():
    roots = inverse_frequency_weights(COUNTS, gamma=0.5, normalize=None)
    whole = inverse_frequency_weights(COUNTS, normalize=None)
    assert_same(roots**2, whole, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 0.999, 0.9999, "auto"])
def test_effective_numbers_by_definition(beta):
    weights = effective_number_weights(COUNTS, beta)
    number = 1 - 1 / 50 if beta == "auto" else beta
    counts = np.array(COUNTS)
    expected = (1 - number) / (1 - number**counts)
    expected = torch.from_numpy(expected * 4 / expected.sum())
    assert_same(weights, expected, atol=1e-9)
    assert float(weights.sum()) == pytest.approx(4)
    assert (weights.diff() >= 0).all()  # the rarer, the heavier


def test_effective_numbers_tend_to_the_inverse_frequencies():
    weights = effective_number_weights(COUNTS, beta=1 - 1e-9)
    assert_same(weights, inverse(COUNTS), atol=1e-5)


def test_large_classes_saturate():
    weights = effective_number_weights([900_000, 700_000, 60_000])
    assert_same(weights, torch.ones(3), atol=3e-3)


def test_effective_numbers_do_not_cancel():
    counts = [10**6, 10**3]
    weights = effective_number_weights(counts, beta=1 - 1e-12)
    assert_same(weights, inverse(counts), atol=1e-5)


@pytest.mark.parametrize(
    "function", [effective_number_weights, inverse_frequency_weights]
)
@pytest.mark.parametrize("normalize", ["classes", "samples", None])
def test_normalizations(function, normalize):
    weights = function(COUNTS, normalize=normalize)
    raw = function(COUNTS, normalize=None)
    assert_same(weights / weights[0], raw / raw[0], atol=1e-9)
    counts = torch.tensor(COUNTS)
    if normalize == "classes":
        assert float(weights.mean()) == pytest.approx(1)
    elif normalize == "samples":
        assert float((counts * weights).sum() / counts.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inverse_frequency_weights([5, 0, 3]), r"no rows of the classes \[1\]"),
        (lambda: effective_number_weights([5, 0, 3]), r"no rows of the classes \[1\]"),
        (lambda: inverse_frequency_weights([]), "one for each class"),
        (lambda: inverse_frequency_weights([1.0, np.nan]), "one for each class"),
        (lambda: inverse_frequency_weights([5, 3], gamma=-1), "gamma=-1"),
        (lambda: effective_number_weights([5, 3], beta=1), "beta=1 is not valid"),
        (lambda: effective_number_weights([5, 3], beta=1.5), "beta=1.5"),
        (lambda: effective_number_weights([5, 3], normalize="sum"), "normalize='sum'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
