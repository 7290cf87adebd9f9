from __future__ import annotations

import math

import pytest
import torch
from oracles import assert_same, assert_slopes, finite_differences
from sklearn.base import clone
from torch.nn.functional import normalize, one_hot

from sk_otreweight import (
    CombinedCost,
    Cost,
    FeatureCost,
    FunctionCost,
    LabelCost,
    Reweighter,
    SquaredEuclideanCost,
)
from sk_otreweight.costs import COSTS, resolve_cost

HALF = [torch.float16, torch.bfloat16]


@pytest.fixture
def points():
    """Features and labels of 7 training rows and 4 points of Q."""
    generator = torch.Generator().manual_seed(0)
    z, z_meta = torch.randn(11, 5, generator=generator, dtype=torch.float64).split(
        [7, 4]
    )
    return z, torch.tensor([0, 0, 0, 1, 1, 2, 2]), z_meta, torch.tensor([0, 1, 1, 2])


def naive(entry, points):
    z, y, z_meta, y_meta = points
    rows = [
        [
            entry(z[i].tolist(), int(y[i]), z_meta[j].tolist(), int(y_meta[j]))
            for j in range(len(y_meta))
        ]
        for i in range(len(y))
    ]
    return torch.tensor(rows, dtype=torch.float64)


def label(z, y, z_meta, y_meta):
    return float(y != y_meta)


def cosine_distance(z, y, z_meta, y_meta):
    lengths = math.hypot(*z) * math.hypot(*z_meta)
    inner = sum(s * t for s, t in zip(z, z_meta, strict=True))
    return 1 - inner / lengths if lengths else 1.0


def squared_distance(z, y, z_meta, y_meta):
    return sum((s - t) ** 2 for s, t in zip(z, z_meta, strict=True))


def mixed(feature, of_label):
    return lambda *pair: feature * cosine_distance(*pair) + of_label * label(*pair)


NAIVE = [
    (LabelCost(), label),
    (FeatureCost(), cosine_distance),
    (SquaredEuclideanCost(), squared_distance),
    (CombinedCost(), mixed(1, 1)),
    (CombinedCost(mix=0.0), mixed(1, 0)),
    (CombinedCost(mix=0.25), mixed(1, 0.5)),
    (CombinedCost(mix=0.75), mixed(0.5, 1)),
    (CombinedCost(mix=1.0), mixed(0, 1)),
]


@pytest.mark.parametrize(("cost", "entry"), NAIVE, ids=[str(c) for c, _ in NAIVE])
def test_costs_are_the_naive_loops(cost, entry, points):
    C = cost(*points)
    assert C.dtype == torch.float64
    assert_same(C, naive(entry, points), atol=1e-14)


def test_the_naive_loops_differ(points):
    entries = label, cosine_distance, squared_distance, mixed(1, 1), mixed(1, 0.5)
    found = [naive(entry, points) for entry in entries]
    for i, one in enumerate(found):
        for other in found[:i]:
            with pytest.raises(AssertionError, match="an entry is off"):
                assert_same(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("mix", "part"), [(0.0, FeatureCost()), (1.0, LabelCost())], ids=["0", "1"]
)
def test_the_ends_of_the_mix_are_the_parts_themselves(mix, part, points):
    assert_same(CombinedCost(mix)(*points), part(*points), atol=0.0)


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_combined_cost_is_half_a_squared_distance(mix, points):
    """Of unit features and one-hot labels side by side, each scaled by its share."""
    z, y, z_meta, y_meta = points
    feature, of_label = min(1, 2 - 2 * mix), min(1, 2 * mix)

    def place(z, y):
        parts = feature**0.5 * normalize(z, dim=1), of_label**0.5 * one_hot(y, 3).to(z)
        return torch.cat(parts, 1)

    sides = place(z, y), y, place(z_meta, y_meta), y_meta
    half = SquaredEuclideanCost()(*sides) / 2
    assert_same(CombinedCost(mix)(*points), half, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zero_features_are_at_distance_one(dtype, points):
    z, y, z_meta, y_meta = points
    z, z_meta = z.clone(), z_meta.clone()
    z[2] = z_meta[1] = 0
    C = FeatureCost()(z.to(dtype), y, z_meta.to(dtype), y_meta)
    assert C[2].tolist() == [1.0] * 4
    assert C[:, 1].tolist() == [1.0] * 7
    combined = CombinedCost()(z.to(dtype), y, z_meta.to(dtype), y_meta)
    assert_same(combined[2], 1 + (y_meta != 0).to(dtype), atol=0.0)


def test_feature_cost_sees_directions_only(points):
    z, y, z_meta, y_meta = points
    expected = FeatureCost()(*points)
    assert_same(FeatureCost()(1e4 * z, y, 1e-4 * z_meta, y_meta), expected, atol=1e-14)
    ends = FeatureCost()(z, y, torch.cat([z, -z]), y)
    assert_same(ends.diagonal(), torch.zeros(7), atol=1e-15)
    assert_same(ends[:, 7:].diagonal(), torch.full((7,), 2.0), atol=1e-15)


@pytest.mark.parametrize("cost", [cost for cost, _ in NAIVE], ids=str)
def test_costs_are_never_negative(cost):
    """Rounding takes 1 - cos and the expanded square below zero."""
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(200, dtype=torch.int64)
    C = cost(z, y, z, y)
    assert (C >= 0).all()
    assert C.diagonal().max() < 1e-5


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("cost", "entry"), NAIVE[1:], ids=lambda value: str(value)[:24]
)
def test_half_precision_is_computed_in_single(cost, entry, dtype, points):
    z, y, z_meta, y_meta = points
    rounded = z.to(dtype), y, z_meta.to(dtype), y_meta
    C = cost(*rounded)
    assert C.dtype == torch.float32
    exact = naive(entry, (rounded[0].double(), y, rounded[2].double(), y_meta))
    assert_same(C, exact, atol=5e-6)
    in_half = 1 - normalize(rounded[0], dim=1) @ normalize(rounded[2], dim=1).T
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(in_half, naive(cosine_distance, points), atol=5e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_takes_no_digits(dtype, points):
    z, y, z_meta, y_meta = points
    points = z.float(), y, z_meta.float(), y_meta
    product = FunctionCost(lambda z, y, z_meta, y_meta: (z @ z_meta.T).abs())
    for cost in (*(kind() for kind in COSTS.values()), product):
        expected = cost(*points)
        with torch.autocast("cpu", dtype=dtype):
            C = cost(*points)
        assert C.dtype == torch.float32
        assert_same(C, expected, atol=0.0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_does_not_overflow(dtype, points):
    z, y, z_meta, y_meta = points
    large = (1000 * z).to(dtype), y, (1000 * z_meta).to(dtype), y_meta
    for cost in (FeatureCost(), SquaredEuclideanCost(), CombinedCost()):
        assert torch.isfinite(cost(*large)).all()


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_squared_distances_stand_an_offset(offset, points):
    """Features such as pixel values lie far from the origin."""
    z, y, z_meta, y_meta = points
    z, z_meta = (z + offset).float(), (z_meta + offset).float()
    exact = naive(squared_distance, (z.double(), y, z_meta.double(), y_meta))
    C = SquaredEuclideanCost()(z, y, z_meta, y_meta)
    assert_same(C, exact, atol=1e-4 * exact.max().item())


def test_label_cost_needs_no_features(points):
    _, y, _, y_meta = points
    C = LabelCost()(None, y, None, y_meta)
    assert C.dtype == torch.get_default_dtype()
    assert_same(C, naive(label, points), atol=0.0)
    assert LabelCost.needs == {"labels"}


@pytest.mark.parametrize(
    "cost", [FeatureCost(), CombinedCost(), CombinedCost(mix=1.0), "sqeuclidean"]
)
def test_missing_features_are_named(cost, points):
    z, y, z_meta, y_meta = points
    cost = resolve_cost(cost)
    with pytest.raises(ValueError, match=r"Cost\(.*\) compares .* the meta rows"):
        cost(z, y, None, y_meta)
    with pytest.raises(ValueError, match=r"Cost\(.*\) compares .* the training rows"):
        cost(None, y, z_meta, y_meta)


@pytest.mark.parametrize("mix", [-0.1, 1.1, math.nan, "half", None, True])
def test_mix_must_be_a_share(mix, points):
    with pytest.raises(ValueError, match=r"mix=.* a finite number >= 0 and <= 1"):
        CombinedCost(mix)(*points)


@pytest.mark.parametrize(
    "cost", [FeatureCost(), SquaredEuclideanCost(), CombinedCost(0.25)], ids=str
)
@pytest.mark.parametrize("place", [0, 2], ids=["training", "meta"])
def test_gradients_flow_through_the_features(cost, place, points):
    weight = torch.rand(7, 4, dtype=torch.float64, generator=torch.Generator())

    def total(moved):
        arguments = list(points)
        arguments[place] = moved
        return (weight * cost(*arguments)).sum()

    leaf = points[place].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    directions = torch.eye(leaf.numel(), dtype=leaf.dtype).reshape(-1, *leaf.shape)
    slopes = finite_differences(total, points[place], directions, 1e-3)
    assert_slopes(gradient, slopes, directions, rtol=1e-8)


@pytest.mark.parametrize("cost", [c for c, _ in NAIVE], ids=str)
def test_points_are_prepared_once_for_many_batches(cost, points):
    z, y, z_meta, y_meta = points
    prepared = cost.points(z_meta)
    for rows in (slice(0, 3), slice(3, 7)):
        expected = cost(z[rows], y[rows], z_meta, y_meta)
        found = cost.to_points(z[rows], y[rows], prepared, y_meta)
        assert torch.equal(found, expected)


# --- costs of one's own ---------------------------------------------------------------


class ManhattanCost(Cost):
    """The whole of what a new cost takes."""

    needs = frozenset({"features"})

    def __init__(self, scale=1.0):
        self.scale = scale

    def _pairwise(self, features, labels, meta_features, meta_labels):
        return self.scale * torch.cdist(features, meta_features, p=1)


class RankCost(ManhattanCost):
    """Compares ranks; those of the points of Q are found in `points`."""

    def points(self, meta_features):
        RankCost.calls += 1
        return meta_features.argsort(1).argsort(1).double()

    def _pairwise(self, features, labels, points, meta_labels):
        ranks = features.argsort(1).argsort(1).double()
        return super()._pairwise(ranks, labels, points, meta_labels)


@pytest.mark.parametrize(("meta_set", "n_calls"), [("whole", 1), ("random", 3)])
def test_a_cost_that_prepares_the_points(meta_set, n_calls, points):
    z, y, z_meta, y_meta = points
    reweighter = Reweighter(RankCost(), meta_set=meta_set)
    reweighter.set_meta(y_meta, z_meta).set_training_set(y, z)
    RankCost.calls = 0
    for rows in torch.arange(7).split(3):
        weights = reweighter(z[rows], y[rows], rows)
        assert torch.isfinite(weights).all()
    assert RankCost.calls == n_calls


def manhattan(z, y, z_meta, y_meta):
    return sum(abs(s - t) for s, t in zip(z, z_meta, strict=True))


def test_a_subclass_in_ten_lines(points):
    cost = resolve_cost(ManhattanCost(scale=2.0))
    assert_same(cost(*points), 2 * naive(manhattan, points), atol=1e-13)
    assert clone(cost).get_params() == {"scale": 2.0}
    with pytest.raises(ValueError, match=r"ManhattanCost\(scale=2.0\) compares"):
        cost(None, *points[1:])


def test_a_subclass_must_write_the_mathematics():
    with pytest.raises(TypeError, match="_pairwise"):
        type("NoCost", (Cost,), {})()


def test_a_function_is_a_cost(points):
    def by_label(z, y, z_meta, y_meta):
        return 3.0 * (y[:, None] != y_meta)

    cost = resolve_cost(by_label)
    assert isinstance(cost, FunctionCost)
    assert_same(cost(*points), 3 * naive(label, points), atol=0.0)
    assert cost.needs == {"features", "labels"}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_a_function_may_return_integers_or_comparisons(dtype, points):
    def differ(z, y, z_meta, y_meta):
        return (y[:, None] != y_meta).to(dtype)

    C = FunctionCost(differ)(*points)
    assert C.dtype == points[0].dtype
    assert_same(C, naive(label, points), atol=0.0)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "Got a NoneType: the cost odd must return a Tensor of"),
        ([[0.0] * 4] * 7, TypeError, r"Got a list: .*\(7, 4\), training rows x meta"),
        (torch.ones(4, 7), ValueError, r"Got shape \(4, 7\): .* shape \(7, 4\), train"),
        (torch.ones(7), ValueError, r"Got shape \(7,\)"),
        (torch.full((7, 4), torch.nan), ValueError, "odd .* without NaN or infinity"),
        (torch.full((7, 4), torch.inf), ValueError, "Look for a division by zero"),
        (
            torch.full((7, 4), -0.25),
            ValueError,
            "entries >= 0, got -0.25. Similarities",
        ),
    ],
)
def test_a_function_must_return_a_cost_matrix(returned, error, message, points):
    def odd(*points):
        return returned

    with pytest.raises(error, match=message):
        FunctionCost(odd)(*points)


def test_one_wrong_entry_is_enough(points):
    for value in (torch.nan, torch.inf, -1e-3):
        C = torch.ones(7, 4)
        C[3, 2] = value
        with pytest.raises(ValueError, match="must return a Tensor of shape"):
            FunctionCost(lambda *points, C=C: C)(*points)


# --- the slot -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cost"), COSTS.items())
def test_names(name, cost):
    assert type(resolve_cost(name)) is cost


def test_an_instance_is_cloned():
    mine = CombinedCost(mix=0.25)
    found = resolve_cost(mine)
    assert found is not mine
    assert found.mix == 0.25


@pytest.mark.parametrize("wrong", ["cosine", "", None, 3, ["label"]])
def test_an_unknown_cost_lists_the_valid_ones(wrong):
    with pytest.raises(ValueError, match="cost=.* is not known") as error:
        resolve_cost(wrong)
    for part in (*COSTS, "an instance of Cost or a callable", repr(wrong)):
        assert part in str(error.value)
