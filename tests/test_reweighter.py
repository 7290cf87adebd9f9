from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from oracles import (
    assert_class_constant,
    assert_global_rng_untouched,
    assert_same,
    unrolled_cost,
)
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from sk_otreweight import (
    AttentionWeightNet,
    CombinedCost,
    Cost,
    ModuleWeights,
    POTSolver,
    PrototypeMetaSet,
    RandomMetaSet,
    Reweighter,
    SemiRelaxedWeights,
    SinkhornSolver,
    WeightNet,
    WeightVector,
    WholeMetaSet,
)

REG = 0.3
EXACT = SinkhornSolver(max_iter=5000, tol=1e-12)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(labels, noise, *, n_features=6, seed=0):
    """Features around one centre per class; the same centres whatever the seed."""
    generator = seeded(100)
    centres = torch.randn(10, n_features, generator=generator, dtype=torch.float64)
    noises = torch.randn(
        len(labels), n_features, generator=seeded(seed), dtype=torch.float64
    )
    return centres[labels] + noise * noises


def small_problem(seed=0):
    """24 training rows of three classes in disorder, 9 meta rows."""
    labels = torch.tensor([0] * 13 + [1] * 8 + [2] * 3)
    labels = labels[torch.randperm(24, generator=seeded(seed))]
    meta_labels = torch.tensor([0, 1, 2] * 3)
    z, z_meta = clusters(labels, 0.5, seed=seed), clusters(meta_labels, 0.5, seed=99)
    return z, labels, z_meta, meta_labels


def batches(n_rows=24, size=8, n_epochs=2):
    for epoch in range(n_epochs):
        yield from torch.randperm(n_rows, generator=seeded(epoch)).split(size)


def started(problem, **params):
    z, labels, z_meta, meta_labels = problem
    reweighter = Reweighter(**{"reg": REG, "solver": EXACT} | params)
    return reweighter.set_meta(meta_labels, z_meta).set_training_set(labels, z)


def run_epochs(reweighter, z, y):
    for rows in batches(len(y)):
        reweighter(z[rows], y[rows], rows)


# --- naive loops ----------------------------------------------------------------------


def naive_combined(z, y, z_meta, y_meta):
    cosine = normalize(z, dim=1) @ normalize(z_meta, dim=1).T
    return 1 - cosine + (y[:, None] != y_meta).to(z)


def prototypes(z_meta, y_meta):
    classes = y_meta.unique()
    return torch.stack([z_meta[y_meta == k].mean(0) for k in classes]), classes


def sinkhorn_loss(C, a):
    b = torch.full((C.shape[1],), 1 / C.shape[1], dtype=C.dtype)
    return unrolled_cost(C, a, b, REG, 1000)


def naive_vector_loop(problem, weights, lr, n_steps=1, keep=True):
    """Step (b) of Algorithm 1, gradients by unrolling Sinkhorn."""
    z, y, z_meta, y_meta = problem
    points, classes = prototypes(z_meta, y_meta)
    start, of_batches = weights.clone(), []
    for rows in batches():
        C = naive_combined(z[rows], y[rows], points, classes)
        w = weights[rows] if keep else start[rows]
        mass = w.sum()
        for _ in range(n_steps):
            leaf = w.clone().requires_grad_()
            loss = sinkhorn_loss(C, leaf / leaf.sum())
            (gradient,) = torch.autograd.grad(loss, leaf)
            w = (w - lr * gradient).clamp(min=0)
            w = w * mass / w.sum()
        weights[rows] = w
        of_batches.append(w)
    return of_batches, weights


@pytest.mark.parametrize("init_weights", ["uniform", "inverse"])
@pytest.mark.parametrize(("n_steps", "keep"), [(1, True), (3, True), (3, False)])
def test_vector_is_the_naive_loop(init_weights, n_steps, keep):
    problem = small_problem()
    y = problem[1]
    start = torch.ones(24, dtype=torch.float64)
    if init_weights == "inverse":
        start = 24 / (3 * y.bincount()[y].double())
    weights = WeightVector(lr=5.0, update="sgd", n_steps=n_steps, keep=keep)
    reweighter = started(problem, weights=weights, init_weights=init_weights)
    expected, final = naive_vector_loop(problem, start.clone(), 5.0, n_steps, keep)
    for rows, of_batch in zip(batches(), expected, strict=True):
        found = reweighter(problem[0][rows], y[rows], rows)
        assert_same(found, of_batch, atol=1e-6)
    assert_same(reweighter.sample_weight(), final, atol=1e-6)
    assert (final - start).abs().max() > 0.1  # something was there to agree on


def test_the_comparison_with_the_naive_loop_can_fail():
    problem = small_problem()
    start = torch.ones(24, dtype=torch.float64)
    _, right = naive_vector_loop(problem, start.clone(), 5.0)
    _, other_lr = naive_vector_loop(problem, start.clone(), 5.01)
    _, twice = naive_vector_loop(problem, start.clone(), 5.0, n_steps=2)
    for wrong in (other_lr, twice, 24 / right.sum() * right.flip(0)):
        with pytest.raises(AssertionError, match="an entry is off"):
            assert_same(wrong, right, atol=1e-6)


@pytest.mark.parametrize("init_weights", ["uniform", "inverse"])
@pytest.mark.parametrize(
    "strategy", [WeightNet(lr=2.0, hidden=5), AttentionWeightNet(lr=2.0, hidden=5)]
)
def test_nets_are_the_naive_loop(strategy, init_weights):
    """Step (b) of Algorithm 2, gradients by unrolling Sinkhorn."""
    problem = z, y, z_meta, y_meta = small_problem()
    reweighter = started(problem, weights=strategy, init_weights=init_weights)
    net = copy.deepcopy(reweighter.weights_.module_)
    points, classes = prototypes(z_meta, y_meta)
    start = torch.ones(24, dtype=torch.float64)
    if init_weights == "inverse":
        start = 24 / (3 * y.bincount()[y].double())

    def probabilities(rows):
        return torch.softmax(net(z[rows]).reshape(-1) + start[rows].log(), 0)

    before = reweighter.sample_weight(z)
    for rows in batches():
        C = naive_combined(z[rows], y[rows], points, classes)
        loss = sinkhorn_loss(C, probabilities(rows))
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 2.0 * gradient
        found = reweighter(z[rows], y[rows], rows)
        with torch.no_grad():
            assert_same(found, len(rows) * probabilities(rows), atol=1e-6)
    for found, expected in zip(
        reweighter.weights_.module_.parameters(), net.parameters(), strict=True
    ):
        assert_same(found.detach(), expected.detach(), atol=1e-6)
    after = reweighter.sample_weight(z)
    with torch.no_grad():
        assert_same(after, 24 * probabilities(torch.arange(24)), atol=1e-6)
    assert (after - before).abs().max() > 0.05


class VirtualStep:
    """Features that depend on the loss weights, as after step (a) in its exact form."""

    def __init__(self, z, points, seed):
        self.z, self.points = z, points
        self.push = torch.randn(
            len(z), *z.shape, generator=seeded(seed), dtype=torch.float64
        )

    def features(self, weights):
        return self.z + 0.2 * torch.einsum("k,kij->ij", weights, self.push)

    def chain(self, C, grad_C):
        (gradient,) = torch.autograd.grad(C, self.leaf, grad_C, retain_graph=True)
        return gradient


@pytest.mark.parametrize("kind", ["vector", "net"])
def test_chain_adds_what_reaches_the_weights_through_the_cost(kind):
    problem = z, y, z_meta, y_meta = small_problem()
    points, classes = prototypes(z_meta, y_meta)
    strategy = WeightVector(lr=5.0, update="sgd")
    if kind == "net":
        strategy = WeightNet(lr=2.0, hidden=5)
    reweighter = started(problem, weights=strategy)
    net = copy.deepcopy(getattr(reweighter.weights_, "module_", None))
    w = torch.ones(24, dtype=torch.float64)
    without_chain = copy.deepcopy(reweighter)
    for seed, rows in enumerate(batches(n_epochs=1)):
        step = VirtualStep(z[rows], points, seed)
        # By the package: the cost's features and how to go back through them.
        step.leaf = reweighter.weights(z[rows], y[rows], rows).requires_grad_()
        cost_features = step.features(step.leaf)
        reweighter.update(
            z[rows], y[rows], rows, cost_features=cost_features, chain=step.chain
        )
        without_chain.update(
            z[rows], y[rows], rows, cost_features=cost_features.detach()
        )
        # By hand: autograd through everything.
        if kind == "net":
            a = torch.softmax(net(z[rows]).reshape(-1), 0)
            scale, leaves = len(rows), list(net.parameters())
        else:
            leaf = w[rows].clone().requires_grad_()
            a, scale, leaves = leaf / leaf.sum(), w[rows].sum(), [leaf]
        C = naive_combined(step.features(scale * a), y[rows], points, classes)
        gradients = torch.autograd.grad(sinkhorn_loss(C, a), leaves)
        with torch.no_grad():
            if kind == "net":
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf -= 2.0 * gradient
                expected = scale * torch.softmax(net(z[rows]).reshape(-1), 0)
            else:
                moved = (w[rows] - 5.0 * gradients[0]).clamp(min=0)
                expected = w[rows] = moved * scale / moved.sum()
        assert_same(reweighter.weights(z[rows], y[rows], rows), expected, atol=1e-6)
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(without_chain.weights(z[rows], y[rows], rows), expected, atol=1e-3)


def test_the_cost_may_compare_other_features_than_the_net_reads():
    problem = z, y, _, y_meta = small_problem()
    other_z, other_meta = clusters(y, 0.1, seed=5), clusters(y_meta, 0.1, seed=6)
    rows = torch.arange(24)
    virtual, plain = started(problem), started((other_z, y, other_meta, y_meta))
    virtual.update(z, y, rows, cost_features=other_z, meta_features=other_meta)
    plain.update(other_z, y, rows)
    assert_same(virtual.sample_weight(), plain.sample_weight(), atol=1e-12)
    # They count for that update only.
    again, fresh = started(problem), started(problem)
    again.update(z, y, rows, meta_features=other_meta)
    fresh.weights_.values_ = again.weights_.values_.clone()
    again.update(z, y, rows)
    fresh.update(z, y, rows)
    assert_same(again.sample_weight(), fresh.sample_weight(), atol=0.0)


# --- identities -----------------------------------------------------------------------


def tail(counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@pytest.mark.parametrize("counts", [[50, 7, 1], [9, 3], [100, 30, 10, 3, 1]])
def test_label_cost_and_little_entropy_give_inverse_frequencies(counts):
    labels = tail(counts)
    expected = len(labels) / (len(counts) * labels.bincount()[labels].double())
    distances = []
    for reg in (1.0, 0.3, 0.1, 0.02):
        reweighter = Reweighter(cost="label", weights="semirelaxed", reg=reg)
        reweighter.set_meta(torch.arange(len(counts)))
        reweighter.set_training_set(labels)
        weights = reweighter.sample_weight()
        assert_class_constant(weights, labels, rtol=1e-6)
        assert weights.mean().item() == pytest.approx(1.0, rel=1e-6)
        distances.append((weights - expected).abs().max().item())
    assert distances[0] > distances[1] > distances[2]
    assert distances[3] <= 1e-6 * expected.max().item()


@pytest.mark.parametrize("cost", ["label", "feature", "combined", "sqeuclidean"])
@pytest.mark.parametrize("weights", ["vector", "net", "attention", "semirelaxed"])
def test_one_meta_row_per_class_makes_all_meta_sets_the_same(weights, cost):
    labels, meta_labels = tail([12, 6, 2]), torch.tensor([2, 0, 1])
    problem = (
        clusters(labels, 0.5), labels, clusters(meta_labels, 0.5, seed=1), meta_labels,
    )  # fmt: skip
    found = []
    for meta_set in ("prototype", "whole", "random", PrototypeMetaSet(n_prototypes=3)):
        reweighter = started(problem, weights=weights, cost=cost, meta_set=meta_set)
        for rows in batches(20, 10, 1):
            reweighter(problem[0][rows], labels[rows], rows)
        found.append(reweighter.sample_weight(problem[0]))
    for other in found[1:]:
        assert_same(other, found[0], atol=1e-9)


def test_the_closed_form_takes_all_of_the_prototypes():
    """It is solved once: a class without a prototype would be left without weight."""
    labels = tail([12, 6, 2])
    problem = clusters(labels, 0.5), labels, clusters(labels, 0.5, seed=1), labels
    a_part, all_of_them = (
        started(
            problem,
            weights="semirelaxed",
            meta_set=PrototypeMetaSet(space="input", n_prototypes=n),
        )
        for n in (1, None)
    )
    assert a_part.meta_set_.space == "input"
    weights = all_of_them.sample_weight(problem[0])
    assert_same(a_part.sample_weight(problem[0]), weights, atol=0)
    for k in range(3):  # all classes have the same mass
        assert weights[labels == k].sum() == pytest.approx(20 / 3, rel=0.2)


@pytest.mark.parametrize("update", ["sgd", "multiplicative"])
def test_much_entropy_and_the_label_cost_move_nothing(update):
    """The product coupling costs the same whatever the weights."""
    problem = small_problem()
    strategy = WeightVector(lr=10.0, update=update)
    reweighter = started(problem, cost="label", weights=strategy, reg=1e9)
    run_epochs(reweighter, *problem[:2])
    assert_same(reweighter.sample_weight(), torch.ones(24), atol=1e-6)
    assert reweighter.statistics()["ot_cost"] == pytest.approx(2 / 3, abs=1e-6)


def test_much_entropy_moves_the_weights_by_the_mean_costs():
    problem = z, y, z_meta, y_meta = small_problem()
    strategy = WeightVector(lr=0.7)
    reweighter = started(problem, weights=strategy, reg=1e7)
    reweighter.update(z, y, torch.arange(24))
    C = naive_combined(z, y, *prototypes(z_meta, y_meta))
    expected = 24 * torch.softmax(-0.7 * C.mean(1), 0)
    assert_same(reweighter.sample_weight(), expected, atol=1e-5)


def test_much_entropy_gives_uniform_weights_in_closed_form():
    reweighter = started(small_problem(), weights="semirelaxed", reg=1e9)
    assert_same(reweighter.sample_weight(), torch.ones(24), atol=1e-6)


@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
@pytest.mark.parametrize("meta_set", ["prototype", "whole"])
@pytest.mark.parametrize("init_weights", ["uniform", "inverse"])
def test_renaming_the_classes_changes_no_row(init_weights, meta_set, weights):
    z, y, z_meta, y_meta = small_problem()
    new_name = torch.tensor([2, 0, 1])
    found = []
    for rename in (lambda y: y, lambda y: new_name[y]):
        reweighter = started(
            (z, rename(y), z_meta, rename(y_meta)),
            weights=weights, meta_set=meta_set, init_weights=init_weights,
        )  # fmt: skip
        for rows in batches():
            reweighter(z[rows], rename(y)[rows], rows)
        found.append(reweighter.sample_weight(z))
    assert_same(found[1], found[0], atol=1e-9)


@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_reordering_the_rows_reorders_the_weights(weights):
    z, y, z_meta, y_meta = small_problem()
    order = torch.randperm(24, generator=seeded(3))
    position = order.argsort()
    plain = started((z, y, z_meta, y_meta), weights=weights)
    shuffled = started((z[order], y[order], z_meta, y_meta), weights=weights)
    for rows in batches():
        plain(z[rows], y[rows], rows)
        shuffled(z[rows], y[rows], position[rows])
    assert_same(
        shuffled.sample_weight(z[order]), plain.sample_weight(z)[order], atol=1e-9
    )


# --- the toy of Fig. 1 and Fig. 5: 10, 9, ..., 1 samples ------------------------------

TOY_LABELS = tail(list(range(10, 0, -1)))
HEAD, TAIL = TOY_LABELS < 5, TOY_LABELS >= 5  # 10 ... 6 and 5 ... 1 samples


def toy(cost, weights, n_steps, noise):
    meta_labels = torch.arange(10).repeat_interleave(10)
    z = clusters(TOY_LABELS, noise, n_features=16)
    z_meta = clusters(meta_labels, noise, n_features=16, seed=1)
    reweighter = Reweighter(cost=cost, weights=weights, reg=0.1)
    reweighter.set_meta(meta_labels, z_meta).set_training_set(TOY_LABELS, z)
    for _ in range(n_steps):
        reweighter.update(z, TOY_LABELS, torch.arange(55))
    assert reweighter.unconverged_ == 0
    return reweighter.sample_weight(z) / 55


def class_means(weights):
    return torch.stack([weights[k == TOY_LABELS].mean() for k in range(10)])


TOY_WEIGHTS = {
    "multiplicative": (WeightVector(lr=0.05), 100),
    "sgd": (WeightVector(lr=2.0, update="sgd"), 100),
    "semirelaxed": (SemiRelaxedWeights(), 0),
}


@pytest.mark.parametrize(("weights", "n_steps"), TOY_WEIGHTS.values(), ids=TOY_WEIGHTS)
def test_toy_with_the_label_cost(weights, n_steps):
    w = toy("label", weights, n_steps, noise=0.6)
    assert w.sum().item() == pytest.approx(1.0)
    assert (w[HEAD] < 1 / 55).all()
    assert (w[TAIL] > 1 / 55).all()
    assert_class_constant(w, TOY_LABELS, rtol=1e-9)
    # Inverse to the frequency: each class gets a tenth.
    shares = class_means(w) * torch.arange(10, 0, -1)
    assert_same(shares, torch.full((10,), 0.1), atol=0.02)


def spread(w):
    """Standard deviation between the classes over that within them."""
    means = class_means(w)
    between = means.std(correction=0)
    within = (w - means[TOY_LABELS]).square().mean().sqrt()
    return (between / within).item()


@pytest.mark.parametrize("noise", [0.3, 0.6])
@pytest.mark.parametrize(("weights", "n_steps"), TOY_WEIGHTS.values(), ids=TOY_WEIGHTS)
def test_toy_with_the_combined_cost(weights, n_steps, noise):
    w = toy("combined", weights, n_steps, noise)
    means = class_means(w)
    assert (means[:5] < 1 / 55).all()
    assert (means[5:] > 1 / 55).all()
    assert (means.diff() > 0).all()  # the rarer the class, the larger its weights
    assert spread(w) > 3
    # Grouped by class, yet not constant in it: features count as well.
    with pytest.raises(AssertionError, match="class 0"):
        assert_class_constant(w, TOY_LABELS, rtol=0.01)


def test_toy_starts_uniform():
    assert_same(toy("label", "vector", 0, 0.6), torch.full((55,), 1 / 55), atol=1e-8)


def test_toy_with_features_only_is_grouped_less():
    spreads = [
        spread(toy(cost, "semirelaxed", 0, 0.9)) for cost in ("feature", "combined")
    ]
    assert spreads[0] < spreads[1]


def test_toy_rows_unlike_their_class_get_less_weight():
    w = toy("combined", "semirelaxed", 0, 0.6)
    z = clusters(TOY_LABELS, 0.6, n_features=16)
    points, _ = prototypes(
        clusters(torch.arange(10).repeat_interleave(10), 0.6, n_features=16, seed=1),
        torch.arange(10).repeat_interleave(10),
    )
    distance = 1 - (normalize(z) * normalize(points)[TOY_LABELS]).sum(1)
    for k in range(8):
        of_class = k == TOY_LABELS
        pair = torch.stack([w[of_class], -distance[of_class]])
        assert torch.corrcoef(pair)[0, 1] > 0.8


# --- the closed form over the training set --------------------------------------------


def test_classes_without_training_rows_take_no_mass():
    z, y, z_meta, y_meta = small_problem()
    kept = y != 1
    with_absent = started((z[kept], y[kept], z_meta, y_meta), weights="semirelaxed")
    known = y_meta != 1
    without = started(
        (z[kept], y[kept], z_meta[known], y_meta[known]), weights="semirelaxed"
    )
    assert_same(with_absent.sample_weight(), without.sample_weight(), atol=1e-12)
    assert with_absent.sample_weight().mean().item() == pytest.approx(1.0)


def test_refresh_follows_the_features_and_the_meta_rows():
    problem = z, y, z_meta, y_meta = small_problem()
    other = clusters(y, 0.2, seed=8)
    reweighter = started(problem, weights="semirelaxed")
    before = reweighter.sample_weight()
    reweighter.refresh(other)
    expected = started((other, *problem[1:]), weights="semirelaxed").sample_weight()
    assert_same(reweighter.sample_weight(), expected, atol=1e-12)
    assert (expected - before).abs().max() > 1e-3
    reweighter.set_meta(y_meta, z_meta.flip(0)).refresh(z)
    flipped = (z, y, z_meta.flip(0), y_meta)
    expected = started(flipped, weights="semirelaxed").sample_weight()
    assert_same(reweighter.sample_weight(), expected, atol=1e-12)


def test_refresh_leaves_weights_that_are_stepped_alone():
    problem = small_problem()
    reweighter = started(problem)
    reweighter(problem[0], problem[1], torch.arange(24))
    before = reweighter.sample_weight()
    reweighter.refresh(problem[0].flip(0))
    assert_same(reweighter.sample_weight(), before, atol=0.0)


def test_updates_leave_weights_that_are_solved_alone():
    problem = small_problem()
    reweighter = started(problem, weights="semirelaxed")
    before = reweighter.sample_weight()
    rows = torch.arange(8)
    found = reweighter(problem[0][rows], problem[1][rows], rows)
    assert_same(found, before[rows], atol=1e-14)
    assert_same(reweighter.sample_weight(), before, atol=0.0)


# --- what it needs to be given --------------------------------------------------------


@pytest.mark.parametrize("meta_set", ["prototype", "whole", "random"])
@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_labels_are_enough_for_the_label_cost(weights, meta_set):
    labels = tail([8, 4])
    reweighter = Reweighter(cost="label", weights=weights, meta_set=meta_set)
    assert not reweighter.needs_meta_features
    assert not reweighter.needs_features
    reweighter.set_meta(torch.arange(2)).set_training_set(labels)
    rows = torch.arange(12)
    weights = reweighter(None, labels, rows)
    assert_class_constant(weights, labels, rtol=1e-6)
    assert weights[-1] > 1.2 > 0.8 > weights[0]


@pytest.mark.parametrize(
    ("cost", "weights", "meta", "batch", "solves"),
    [
        ("label", "vector", False, False, False),
        ("label", "net", False, True, False),
        ("label", "semirelaxed", False, False, True),
        ("feature", "vector", True, True, False),
        ("combined", "semirelaxed", True, True, True),
    ],
)
def test_it_says_what_it_needs(cost, weights, meta, batch, solves):
    reweighter = Reweighter(cost, weights)
    assert reweighter.needs_meta_features is meta
    assert reweighter.needs_features is batch
    assert reweighter.solves_training_set is solves


def test_a_weight_net_with_the_label_cost_needs_no_meta_features():
    z, y, _, _ = small_problem()
    reweighter = Reweighter("label", WeightNet(lr=0.3, hidden=20), reg=0.1)
    reweighter.set_meta(torch.arange(3)).set_training_set(y, z)
    for rows in batches(size=24, n_epochs=100):
        reweighter(z[rows], y[rows])
    w = reweighter.sample_weight(z)
    assert w[y == 2].mean() > 1.5 > 0.8 > w[y == 0].mean()


def test_missing_meta_features_are_named():
    z, y, _, y_meta = small_problem()
    reweighter = Reweighter().set_meta(y_meta).set_training_set(y, z)
    with pytest.raises(ValueError, match="compares features, .* the meta rows"):
        reweighter(z, y, torch.arange(24))


def test_class_counts_may_be_given():
    """In a stream a chunk says little of how frequent a class is."""
    y = torch.tensor([0, 0, 1, 2])
    counts = torch.tensor([100, 10, 1, 5])
    reweighter = Reweighter("label", init_weights="inverse")
    reweighter.set_meta(torch.arange(4)).set_training_set(y, class_counts=counts)
    rows = torch.arange(4)
    expected = 116 / 4 / counts[y]
    assert_same(reweighter.weights(None, y, rows), expected, atol=1e-5)


# --- in a loop of one's own -----------------------------------------------------------


@pytest.mark.parametrize("weights", ["vector", "net", "attention", "semirelaxed"])
def test_a_bare_training_loop(weights):
    labels = tail([80, 20, 4])
    X = clusters(labels, 1.0).float()
    meta_labels = torch.arange(3).repeat_interleave(5)
    X_meta = clusters(meta_labels, 1.0, seed=1).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor, head = nn.Linear(6, 8), nn.Linear(8, 3)
    optimizer = torch.optim.SGD([*extractor.parameters(), *head.parameters()], lr=0.3)
    reweighter = Reweighter(weights=weights)
    losses = []
    for epoch in range(5):
        reweighter.set_meta(meta_labels, extractor(X_meta))
        if epoch == 0:
            reweighter.set_training_set(labels, extractor(X).detach())
        reweighter.refresh(extractor(X).detach())
        for rows in torch.randperm(104, generator=seeded(epoch)).split(26):
            z = extractor(X[rows])
            w = reweighter(z, labels[rows], rows)
            assert w.shape == (26,)
            assert w.dtype == torch.float32
            assert not w.requires_grad
            loss = w * cross_entropy(head(z), labels[rows], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses.append(loss.mean().item())
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-4:]) < sum(losses[:4])
    w = reweighter.sample_weight(extractor(X).detach())
    assert w.shape == (104,)
    assert w.mean().item() == pytest.approx(1.0, rel=1e-5)
    if weights in ("vector", "semirelaxed"):  # five epochs are not much for a net
        assert w[labels == 2].mean() > w[labels == 0].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", ["vector", "net", "attention", "semirelaxed"])
@pytest.mark.parametrize("cost", ["label", "combined"])
def test_the_dtype_of_the_features_is_kept(cost, weights, dtype):
    z, y, z_meta, y_meta = small_problem()
    problem = z.to(dtype), y, z_meta.to(dtype), y_meta
    reweighter = started(problem, cost=cost, weights=weights, solver="sinkhorn")
    rows = torch.arange(24)
    assert reweighter(problem[0], y, rows).dtype == dtype
    assert reweighter.sample_weight(problem[0]).dtype == dtype


def test_single_precision_finds_the_same_weights():
    z, y, z_meta, y_meta = small_problem()
    found = []
    for dtype in (torch.float32, torch.float64):
        problem = z.to(dtype), y, z_meta.to(dtype), y_meta
        reweighter = started(problem, solver="sinkhorn")
        for rows in batches():
            reweighter(problem[0][rows], y[rows], rows)
        found.append(reweighter.sample_weight())
    assert_same(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("weights", ["vector", "net", "attention", "semirelaxed"])
def test_autocast_finds_the_same_weights(weights):
    z, y, z_meta, y_meta = small_problem()
    problem = z.float(), y, z_meta.float(), y_meta
    found = []
    for is_enabled in (False, True):
        reweighter = started(problem, weights=weights, solver="sinkhorn")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_enabled):
            for rows in batches():
                reweighter(problem[0][rows], y[rows], rows)
            reweighter.update_epoch(problem[0], list(batches()))
            reweighter.refresh(problem[0])
            found.append(reweighter.sample_weight(problem[0]))
    assert found[1].dtype == torch.float32
    assert_same(found[1], found[0], atol=0.0)


def test_features_that_autocast_made_smaller():
    z, y, z_meta, y_meta = small_problem()
    reweighter = started((z.float(), y, z_meta.float(), y_meta), weights="net")
    weights = reweighter(z.bfloat16(), y)
    assert weights.dtype == torch.float32
    assert_same(weights, reweighter.weights(z.float(), y), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pot_in_the_solver_slot(dtype):
    """Masses of 1 / 10 in single precision do not sum to 1 to POT's last digit."""
    labels = torch.arange(10).repeat_interleave(3)
    z = clusters(labels, 0.5).to(dtype)
    found = []
    for solver in ("sinkhorn", "pot", POTSolver(tol=1e-7)):
        reweighter = started((z, labels, z[::3], labels[::3]), solver=solver)
        for rows in batches(30, 10, 1):
            reweighter(z[rows], labels[rows], rows)
        assert reweighter.unconverged_ == 0
        found.append(reweighter.sample_weight())
    assert_same(found[1], found[0], atol=1e-4)
    assert_same(found[2], found[0], atol=1e-4)


def test_features_keep_their_graph_out_of_it():
    z, y, z_meta, y_meta = small_problem()
    z.requires_grad_()
    z_meta.requires_grad_()
    reweighter = started((z.detach(), y, z_meta, y_meta))
    weights = reweighter(z, y, torch.arange(24))
    assert not weights.requires_grad
    assert z.grad is None
    assert z_meta.grad is None


@pytest.mark.parametrize("weights", ["vector", "net", "attention"])
def test_an_update_leaves_the_graph_of_the_features_alone(weights):
    z, y, z_meta, y_meta = small_problem()
    reweighter = started((z, y, z_meta, y_meta), weights=weights)
    scale = torch.ones(1, dtype=z.dtype, requires_grad=True)
    features = (scale * z).tanh()
    reweighter.update(features, y, torch.arange(24))
    assert scale.grad is None
    features.sum().backward()
    assert scale.grad is not None


# --- statistics -----------------------------------------------------------------------


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("init_weights", ["uniform", "inverse"])
def test_statistics_are_the_formulas(init_weights, n_batches):
    problem = z, y, z_meta, y_meta = small_problem()
    reweighter = started(problem, init_weights=init_weights)
    start = reweighter.sample_weight()
    seen = list(batches(n_epochs=1))[:n_batches]
    found, expected_costs = [], []
    for rows in seen:
        C = naive_combined(z[rows], y[rows], *prototypes(z_meta, y_meta))
        a = reweighter.weights(None, y[rows], rows, record=False)
        expected_costs.append(sinkhorn_loss(C, a / a.sum()).item())
        found.append(reweighter(z[rows], y[rows], rows))
    w, start = torch.cat(found), start[torch.cat(seen)]
    p, q = w / w.sum(), start / start.sum()
    statistics = reweighter.statistics()
    ess = w.sum() ** 2 / (len(w) * w.square().sum())
    assert statistics["weights_ess"] == pytest.approx(ess.item(), rel=1e-9)
    divergence = (p * (p / q).log()).sum()
    assert divergence > 1e-3
    assert statistics["weights_kl"] == pytest.approx(divergence.item(), rel=1e-9)
    mean_cost = sum(expected_costs) / n_batches
    assert statistics["ot_cost"] == pytest.approx(mean_cost, rel=1e-6)


def test_statistics_begin_anew_with_each_call():
    problem = z, y, _, _ = small_problem()
    reweighter = started(problem)
    nothing = reweighter.statistics()
    assert nothing["weights_ess"] == 1.0
    assert nothing["weights_kl"] == 0.0
    assert math.isnan(nothing["ot_cost"])
    reweighter(z, y, torch.arange(24))
    first = reweighter.statistics()
    assert first["weights_ess"] < 0.999
    again = reweighter.statistics()
    assert again == {**nothing, "ot_cost": first["ot_cost"]}
    reweighter.weights(z, y, torch.arange(24), record=False)
    assert reweighter.statistics() == again


@pytest.mark.parametrize("init_weights", ["uniform", "inverse"])
@pytest.mark.parametrize("kind", ["vector", "net"])
def test_weights_that_never_moved_have_no_divergence(kind, init_weights):
    class Constant(nn.Linear):
        def forward(self, z):
            return 0 * super().forward(z)

    strategy = WeightVector(lr=0.0)
    if kind == "net":
        strategy = ModuleWeights(lambda n: Constant(n, 1), lr=0.0)
    problem = z, y, _, _ = small_problem()
    reweighter = started(problem, weights=strategy, init_weights=init_weights)
    run_epochs(reweighter, z, y)
    assert reweighter.statistics()["weights_kl"] == pytest.approx(0.0, abs=1e-9)


def test_statistics_of_the_closed_form():
    problem = z, y, z_meta, y_meta = small_problem()
    reweighter = started(problem, weights="semirelaxed")
    C = naive_combined(z, y, *prototypes(z_meta, y_meta))
    plan = torch.softmax(-C / REG, 0) / 3
    statistics = reweighter.statistics()
    assert statistics["ot_cost"] == pytest.approx((C * plan).sum().item(), rel=1e-9)


# --- warnings -------------------------------------------------------------------------

SLOPPY = SinkhornSolver(max_iter=1, accelerate=False, tol=1e-9)


def test_one_warning_per_training_set():
    problem = z, y, _, _ = small_problem()
    reweighter = started(problem, solver=SLOPPY, reg=0.05)
    for count in (1, 2):
        with pytest.warns(ConvergenceWarning, match="marginal error of") as caught:
            run_epochs(reweighter, z, y)
        assert len(caught) == 1
        assert reweighter.unconverged_ == 6
        message = str(caught[0].message)
        assert "tol=1e-09" in message
        assert "reg (now 0.05)" in message
        assert "after 1 sweeps" in message
        reweighter.set_training_set(y, z)
        assert reweighter.unconverged_ == 0, count


def test_solved_problems_do_not_warn():
    problem = z, y, _, _ = small_problem()
    reweighter = started(problem, solver="sinkhorn", reg=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_epochs(reweighter, z, y)
    assert reweighter.unconverged_ == 0


# --- random numbers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "meta_set"),
    [
        (WeightVector(), RandomMetaSet()),
        (WeightVector(), PrototypeMetaSet(n_prototypes=2)),
        (WeightNet(hidden=4), WholeMetaSet()),
        (AttentionWeightNet(hidden=4), PrototypeMetaSet()),
        (SemiRelaxedWeights(), RandomMetaSet()),
    ],
)
def test_random_state_decides(weights, meta_set):
    problem = z, y, _, _ = small_problem()

    def learn(seed):
        reweighter = started(
            problem, weights=weights, meta_set=meta_set, random_state=seed
        )
        run_epochs(reweighter, z, y)
        return reweighter.sample_weight(z)

    first = learn(0)
    torch.rand(3)
    assert_same(learn(0), first, atol=0.0)
    assert (learn(1) - first).abs().max() > 1e-4
    assert_global_rng_untouched(lambda: learn(0))


def test_random_meta_rows_are_drawn_for_each_batch():
    problem = z, y, _, _ = small_problem()
    reweighter = started(problem, weights=WeightVector(keep=False), meta_set="random")
    rows = torch.arange(24)
    found = torch.stack([reweighter(z, y, rows) for _ in range(10)])
    assert len(found.unique(dim=0)) > 5


def test_the_components_given_are_left_as_they_were():
    cost, weights, meta_set = CombinedCost(mix=0.3), WeightVector(), WholeMetaSet()
    problem = z, y, _, _ = small_problem()
    reweighter = started(
        problem, cost=cost, weights=weights, meta_set=meta_set, weight_lr=0.25
    )
    reweighter(z, y, torch.arange(24))
    assert reweighter.weights_.lr == 0.25
    assert weights.lr == 1.0
    assert not hasattr(weights, "values_")
    assert reweighter.cost_ is not cost
    assert reweighter.cost_.mix == 0.3


def test_weight_lr_is_for_strategies_that_take_steps():
    assert Reweighter(weights="net").weights_.lr == WeightNet().lr
    assert Reweighter(weights="net", weight_lr=0.5).weights_.lr == 0.5
    assert "SemiRelaxed" in repr(Reweighter(weights="semirelaxed", weight_lr=0.5))


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"reg": 0}, "reg=0 is not valid: .* a finite number > 0"),
        ({"reg": -1.0}, "reg=-1.0 is not valid"),
        ({"reg": math.nan}, "reg=nan is not valid"),
        ({"reg": "auto"}, "reg='auto' is not valid"),
        ({"cost": "cosine"}, "cost='cosine' is not known.*'combined', 'feature'"),
        ({"weights": "mlp"}, "weights='mlp' is not known.*'attention', 'net'"),
        ({"meta_set": "mean"}, "meta_set='mean' is not known.*'prototype', 'random'"),
        ({"solver": "lp"}, "solver='lp' is not known.*'pot', 'sinkhorn'"),
        ({"init_weights": "balanced"}, "init_weights='balanced' .*'class_balanced'"),
        ({"weight_lr": -0.1}, "weight_lr=-0.1 is not valid: give a finite number >= 0"),
        ({"weight_lr": math.inf}, "weight_lr=inf is not valid"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        Reweighter(**params)


def test_a_cost_that_is_wrong_is_named():
    z, y, z_meta, y_meta = small_problem()

    def odd(z, y, z_meta, y_meta):
        return z @ z_meta.T

    with pytest.raises(ValueError, match="the cost odd .* entries >= 0"):
        started((z, y, z_meta, y_meta), cost=odd)(z, y, torch.arange(24))


class Differing(Cost):
    """The label cost as a comparison, or in another dtype."""

    needs = frozenset({"labels"})

    def __init__(self, dtype):
        self.dtype = dtype

    def _pairwise(self, features, labels, points, meta_labels):
        return (labels[:, None] != meta_labels).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_costs_that_are_no_floats(weights, dtype):
    z, y, _, _ = small_problem()
    found = []
    for cost in (Differing(dtype), "label"):
        reweighter = Reweighter(cost=cost, weights=weights).set_meta(torch.arange(3))
        reweighter.set_training_set(y, z)
        reweighter.update_epoch(z, [torch.arange(12), torch.arange(12, 24)])
        found.append(reweighter(z, y, torch.arange(24)))
    assert_same(*found, atol=1e-6)
    assert found[1].std() > 1e-3


@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_a_strategy_that_needs_row_numbers_says_so(weights):
    z, y, _, _ = problem = small_problem()
    with pytest.raises(ValueError, match="row numbers|index"):
        started(problem, weights=weights)(z[:8], y[:8])


@pytest.mark.parametrize("weights", ["net", "attention"])
def test_a_strategy_that_needs_features_says_so(weights):
    _, y, _, _ = small_problem()
    reweighter = Reweighter(cost="label", weights=weights).set_meta(torch.arange(3))
    with pytest.raises(ValueError, match="features"):
        reweighter.set_training_set(y)
