from __future__ import annotations

import pytest
import torch
from oracles import (
    assert_global_rng_untouched,
    assert_same,
    assert_slopes,
    finite_differences,
)

from sk_otreweight import MetaSet, PrototypeMetaSet, RandomMetaSet, WholeMetaSet
from sk_otreweight.meta_sets import (
    META_SETS,
    Atoms,
    class_means,
    draw_rows,
    one_row_per_class,
    resolve_meta_set,
)

ALL = [PrototypeMetaSet(), PrototypeMetaSet(n_prototypes=2), WholeMetaSet()]
ALL += [RandomMetaSet()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def meta():
    """Features and labels of 10 meta rows: 5, 1, 3 and 1 of classes 0, 1, 2 and 4."""
    labels = torch.tensor([2, 0, 4, 0, 2, 0, 1, 0, 2, 0])
    return torch.randn(10, 3, generator=seeded(), dtype=torch.float64), labels


def naive_means(z, labels):
    classes = sorted(set(labels.tolist()))
    means = []
    for k in classes:
        rows = [z[i] for i in range(len(z)) if int(labels[i]) == k]
        means.append(sum(rows) / len(rows))
    return torch.stack(means), torch.tensor(classes)


def share_of_classes(atoms):
    return {
        k: atoms.mass[atoms.labels == k].sum().item() for k in atoms.labels.tolist()
    }


# --- what all have in common ----------------------------------------------------------


@pytest.mark.parametrize("meta_set", ALL, ids=str)
@pytest.mark.parametrize("with_features", [True, False])
def test_mass_sums_to_one_and_is_the_same_for_every_class(
    meta_set, with_features, meta
):
    z, labels = meta
    atoms = meta_set.atoms(z if with_features else None, labels, seeded())
    assert isinstance(atoms, Atoms)
    assert atoms.mass.shape == atoms.labels.shape
    assert atoms.mass.sum().item() == pytest.approx(1.0, abs=1e-7)
    shares = share_of_classes(atoms)
    assert len(shares) == (2 if getattr(meta_set, "n_prototypes", None) else 4)
    for share in shares.values():
        assert share == pytest.approx(1 / len(shares), abs=1e-7)
    if with_features:
        assert atoms.features.shape == (len(atoms.labels), 3)
        assert atoms.mass.dtype == torch.float64
    else:
        assert atoms.features is None


@pytest.mark.parametrize("meta_set", ALL, ids=str)
def test_nothing_is_drawn_from_the_global_generator(meta_set, meta):
    assert_global_rng_untouched(lambda: meta_set.atoms(*meta, seeded()))


@pytest.mark.parametrize("meta_set", ALL, ids=str)
def test_the_seed_decides(meta_set, meta):
    def draw(seed):
        return [meta_set.atoms(*meta, generator) for generator in [seeded(seed)] * 20]

    def features(draws):
        return torch.stack([atoms.features.sum() for atoms in draws])

    first, again, other = (features(draw(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) is not meta_set.stochastic
    assert (len(first.unique()) > 1) is meta_set.stochastic


@pytest.mark.parametrize("meta_set", [PrototypeMetaSet(), WholeMetaSet()], ids=str)
def test_order_of_the_meta_rows_does_not_matter(meta_set, meta):
    z, labels = meta
    order = torch.randperm(10, generator=seeded())
    one, other = meta_set.atoms(z, labels), meta_set.atoms(z[order], labels[order])
    for k in range(5):
        mine, theirs = (
            atoms.features[atoms.labels == k].sum(0) for atoms in (one, other)
        )
        assert_same(mine, theirs, atol=1e-14)


# --- prototypes -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_prototypes_are_the_class_means(dtype, meta):
    z, labels = meta
    means, classes = naive_means(z, labels)
    atoms = PrototypeMetaSet().atoms(z.to(dtype), labels)
    assert torch.equal(atoms.labels, classes)
    assert atoms.features.dtype == dtype
    assert_same(atoms.features, means, atol=1e-14 if dtype == z.dtype else 1e-6)


def test_means_are_of_any_shape_and_of_integers(meta):
    _, labels = meta
    images = torch.randint(0, 256, (10, 2, 4, 4), generator=seeded(), dtype=torch.uint8)
    means, classes = class_means(images, labels)
    assert means.dtype == torch.get_default_dtype()
    assert classes.tolist() == [0, 1, 2, 4]
    assert_same(means, naive_means(images.double(), labels)[0], atol=1e-4)


def test_means_are_differentiable(meta):
    z, labels = meta
    weight = torch.rand(4, 3, generator=seeded(1), dtype=torch.float64)

    def total(z):
        return (weight * class_means(z, labels)[0].square()).sum()

    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    directions = torch.eye(30, dtype=torch.float64).reshape(30, 10, 3)
    slopes = finite_differences(total, z, directions, 1e-3)
    assert_slopes(gradient, slopes, directions, rtol=1e-9)


@pytest.mark.parametrize("meta_set", ALL, ids=str)
def test_gradients_flow_through_the_points(meta_set, meta):
    z, labels = meta
    z.requires_grad_()
    meta_set.atoms(z, labels, seeded()).features.sum().backward()
    assert z.grad.abs().sum() > 0


def test_whole_is_prototype_when_every_class_has_one_row():
    z = torch.randn(4, 3, generator=seeded())
    labels = torch.tensor([3, 0, 2, 1])
    whole, prototype = (
        s.atoms(z, labels) for s in (WholeMetaSet(), PrototypeMetaSet())
    )
    order = whole.labels.argsort()
    for mine, theirs in zip(whole, prototype, strict=True):
        assert_same(mine[order], theirs, atol=0.0)


def test_a_part_of_the_prototypes(meta):
    z, labels = meta
    means, classes = naive_means(z, labels)
    meta_set, generator = PrototypeMetaSet(n_prototypes=2), seeded()
    assert meta_set.stochastic
    drawn = set()
    for _ in range(60):
        atoms = meta_set.atoms(z, labels, generator)
        assert atoms.mass.tolist() == [0.5, 0.5]
        for feature, k in zip(atoms.features, atoms.labels, strict=True):
            assert_same(feature, means[classes == k][0], atol=1e-14)
        drawn.add(frozenset(atoms.labels.tolist()))
    assert len(drawn) == 6  # every pair of the four classes


@pytest.mark.parametrize("n_prototypes", [None, 4, 100])
def test_all_of_the_prototypes(n_prototypes, meta):
    meta_set = PrototypeMetaSet(n_prototypes=n_prototypes)
    assert meta_set.atoms(*meta, seeded()).labels.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("n_prototypes", [0, -1, 1.5, "2"])
def test_n_prototypes_must_be_a_count(n_prototypes, meta):
    with pytest.raises(ValueError, match="n_prototypes=.* give an integer >= 1"):
        PrototypeMetaSet(n_prototypes=n_prototypes).atoms(*meta)


def test_inputs_are_averaged_when_asked_for(meta):
    """Then the extractor sees one mean input per class."""
    X, labels = meta
    inputs, classes = PrototypeMetaSet(space="input").inputs(X, labels)
    means, expected_classes = naive_means(X, labels)
    assert_same(inputs, means, atol=1e-14)
    assert torch.equal(classes, expected_classes)
    atoms = PrototypeMetaSet(space="input").atoms(torch.tanh(inputs), classes)
    assert_same(atoms.features, torch.tanh(means), atol=1e-14)
    feature_space = PrototypeMetaSet().atoms(torch.tanh(X), labels)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(atoms.features, feature_space.features, atol=1e-3)


@pytest.mark.parametrize(
    "meta_set", [PrototypeMetaSet(), WholeMetaSet(), RandomMetaSet()], ids=str
)
def test_inputs_are_left_alone_otherwise(meta_set, meta):
    X, labels = meta
    inputs, classes = meta_set.inputs(X, labels)
    assert inputs is X
    assert classes is labels


@pytest.mark.parametrize("space", ["pixel", None, 0])
def test_space_must_be_known(space, meta):
    with pytest.raises(ValueError, match=r"space=.*\['feature', 'input'\]"):
        PrototypeMetaSet(space=space).inputs(*meta)


# --- all rows, or one of each class ---------------------------------------------------


def test_whole_is_every_row(meta):
    z, labels = meta
    atoms = WholeMetaSet().atoms(z, labels)
    assert_same(atoms.features, z, atol=0.0)
    assert torch.equal(atoms.labels, labels)
    expected = [1 / (4 * {0: 5, 1: 1, 2: 3, 4: 1}[k]) for k in labels.tolist()]
    assert_same(atoms.mass, torch.tensor(expected, dtype=torch.float64), atol=1e-15)


def test_random_is_one_row_of_each_class(meta):
    z, labels = meta
    generator = seeded()
    counts = torch.zeros(10)
    for _ in range(400):
        atoms = RandomMetaSet().atoms(z, labels, generator)
        assert atoms.labels.tolist() == [0, 1, 2, 4]
        assert atoms.mass.tolist() == [0.25] * 4
        for feature, k in zip(atoms.features, atoms.labels, strict=True):
            (row,) = torch.nonzero((z == feature).all(1))[0]
            assert labels[row] == k
            counts[row] += 1
    size = labels.bincount()[labels]
    # Each row of a class of n is drawn 400 / n times, give or take 4 deviations.
    deviation = (400 / size * (1 - 1 / size)).sqrt()
    assert ((counts - 400 / size).abs() <= 4 * deviation).all()


def test_one_row_of_each_class_by_position(meta):
    _, labels = meta
    rows = one_row_per_class(labels, seeded())
    assert labels[rows].tolist() == [0, 1, 2, 4]


# --- rows drawn from the training rows ------------------------------------------------


@pytest.mark.parametrize("per_class", [1, 2, 3, 5, 100])
def test_drawn_rows_are_balanced(per_class, meta):
    _, labels = meta
    rows = draw_rows(labels, per_class, seeded())
    assert len(rows.unique()) == len(rows)
    assert labels[rows].tolist() == sorted(labels[rows].tolist())
    expected = labels.bincount().clamp(max=per_class)
    assert torch.equal(labels[rows].bincount(), expected)


def test_every_row_may_be_drawn(meta):
    _, labels = meta
    generator = seeded()
    counts = torch.zeros(10)
    for _ in range(400):
        counts[draw_rows(labels, 2, generator)] += 1
    chance = (2 / labels.bincount()[labels]).clamp(max=1)
    deviation = (400 * chance * (1 - chance)).sqrt()
    assert ((counts - 400 * chance).abs() <= 4 * deviation).all()


def test_drawn_rows_follow_the_seed(meta):
    _, labels = meta
    first, again, other = (draw_rows(labels, 2, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert_global_rng_untouched(lambda: draw_rows(labels, 2, seeded()))


@pytest.mark.parametrize("per_class", [0, -3, 2.0, None])
def test_per_class_must_be_a_count(per_class, meta):
    with pytest.raises(ValueError, match="per_class=.* give an integer >= 1"):
        draw_rows(meta[1], per_class, seeded())


# --- the slot -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "meta_set"), META_SETS.items())
def test_names(name, meta_set):
    assert type(resolve_meta_set(name)) is meta_set
    assert resolve_meta_set(name).per_class == 10


def test_an_instance_is_cloned():
    mine = PrototypeMetaSet(per_class=3, space="input", n_prototypes=7)
    found = resolve_meta_set(mine)
    assert found is not mine
    assert found.get_params() == {"per_class": 3, "space": "input", "n_prototypes": 7}


@pytest.mark.parametrize("wrong", ["mean", None, 10, len])
def test_an_unknown_meta_set_lists_the_valid_ones(wrong):
    with pytest.raises(ValueError, match="meta_set=.* is not known") as error:
        resolve_meta_set(wrong)
    for part in (*META_SETS, "an instance of MetaSet"):
        assert part in str(error.value)
    assert "callable" not in str(error.value)


class MedianMetaSet(MetaSet):
    """One point per class, the median of its rows."""

    def _atoms(self, features, labels, generator):
        classes = labels.unique()
        medians = [features[labels == k].median(0).values for k in classes]
        mass = torch.full((len(classes),), 1 / len(classes))
        return Atoms(torch.stack(medians), classes, mass)


def test_a_subclass_writes_one_method(meta):
    z, labels = meta
    atoms = resolve_meta_set(MedianMetaSet()).atoms(z, labels)
    assert_same(atoms.features[0], z[labels == 0].median(0).values, atol=0.0)
    assert not MedianMetaSet.stochastic
    with pytest.raises(TypeError, match="abstract"):
        MetaSet()
