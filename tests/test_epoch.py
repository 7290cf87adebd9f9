from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import DoubleMLP, MeanWeights, NormDropoutMLP, SmallMLP, small_net
from oracles import assert_same
from sklearn.exceptions import ConvergenceWarning
from skorch import dataset as skorch_dataset
from skorch.dataset import ValidSplit
from torch.utils.data import DataLoader, Dataset, Subset
from transport_problems import seeded

from sk_otreweight import (
    AttentionWeightNet,
    ModuleWeights,
    POTSolver,
    PrototypeMetaSet,
    RandomMetaSet,
    Reweighter,
    SemiRelaxedWeights,
    SinkhornSolver,
    WeightNet,
    WeightVector,
)
from sk_otreweight.loaders import (
    RowLoader,
    UnnumberedLoader,
    plan_epoch,
    training_batches,
)

EXACT = SinkhornSolver(max_iter=5000, tol=1e-12)


# --- the reweighter: an epoch at once, or batch after batch ---------------------------


def training_rows(n_rows=50):
    """Rows of four classes, the last of which is rare, and five meta rows of each."""
    labels = torch.arange(n_rows) % 11 % 4
    meta_labels = torch.arange(20) % 4
    centres = 2 * torch.randn(4, 6, generator=seeded(0), dtype=torch.float64)
    z, z_meta = (
        centres[y] + torch.randn(len(y), 6, generator=seeded(seed), dtype=torch.float64)
        for seed, y in ((1, labels), (2, meta_labels))
    )
    return z, labels, z_meta, meta_labels


def started(problem=None, **params):
    z, labels, z_meta, meta_labels = training_rows() if problem is None else problem
    reweighter = Reweighter(**{"reg": 0.3, "solver": EXACT} | params)
    return reweighter.set_meta(meta_labels, z_meta).set_training_set(labels, z)


def epochs(n_rows=50, size=8, n_epochs=2):
    """Orders of the rows, cut into batches; the last one is smaller."""
    for seed in range(n_epochs):
        yield torch.randperm(n_rows, generator=seeded(seed)).split(size)


def batch_after_batch(reweighter, z, labels, batches):
    for rows in batches:
        reweighter.update(None if z is None else z[rows], labels[rows], rows)


def both_ways(z, labels, orders, **params):
    """Return reweighters of the same epochs, stepped together and one by one."""
    together, one_by_one = started(**params), started(**params)
    for batches in orders:
        together.update_epoch(z, batches)
        batch_after_batch(one_by_one, z, labels, batches)
        for reweighter in (together, one_by_one):
            reweighter.weights(z, labels, torch.arange(len(labels)))
    return together, one_by_one


def assert_same_weights(together, one_by_one, z=None, *, atol=1e-9):
    found, expected = together.sample_weight(z), one_by_one.sample_weight(z)
    assert_same(found, expected, atol=atol)
    assert (expected - 1).abs().max() > 0.1  # something was there to agree on
    assert together.unconverged_ == one_by_one.unconverged_
    draws = together.generator.get_state(), one_by_one.generator.get_state()
    assert torch.equal(*draws)
    statistics = one_by_one.statistics()
    assert together.statistics() == pytest.approx(statistics, abs=10 * atol)


STEPS = pytest.mark.parametrize(
    ("update", "keep", "n_steps"),
    [
        ("multiplicative", True, 1),
        ("multiplicative", True, 3),
        ("multiplicative", False, 1),
        ("multiplicative", False, 3),
        ("sgd", True, 1),
        ("sgd", True, 3),
        ("sgd", False, 1),
        ("sgd", False, 3),
    ],
)
META_SETS = pytest.mark.parametrize(
    "meta_set",
    ["prototype", "whole", RandomMetaSet(), PrototypeMetaSet(n_prototypes=3)],
    ids=["prototype", "whole", "random", "some prototypes"],
)


@STEPS
@META_SETS
def test_an_epoch_is_its_batches(meta_set, update, keep, n_steps):
    z, labels, _, _ = training_rows()
    lr = 5.0 if update == "sgd" else 0.7
    params = {"weights": WeightVector(lr, update, keep, n_steps), "meta_set": meta_set}
    assert_same_weights(*both_ways(z, labels, epochs(), **params))


@STEPS
@META_SETS
def test_an_epoch_with_the_label_cost_needs_no_features(
    meta_set, update, keep, n_steps
):
    _, labels, _, _ = training_rows()
    lr = 5.0 if update == "sgd" else 0.7
    params = {"weights": WeightVector(lr, update, keep, n_steps), "meta_set": meta_set}
    assert_same_weights(*both_ways(None, labels, epochs(), cost="label", **params))


@pytest.mark.parametrize("cost", ["feature", "sqeuclidean"])
@pytest.mark.parametrize("init_weights", ["class_balanced", "inverse"])
def test_an_epoch_with_other_costs_and_starts(cost, init_weights):
    z, labels, _, _ = training_rows()
    reg = 3.0 if cost == "sqeuclidean" else 0.3
    params = {"cost": cost, "init_weights": init_weights, "reg": reg}
    assert_same_weights(*both_ways(z, labels, epochs(), **params))


@META_SETS
@pytest.mark.parametrize("chunk_entries", [1, 100, 10**6])
def test_an_epoch_of_batches_of_many_sizes(chunk_entries, meta_set):
    """Those of one size are not next to each other, and draw in their order."""
    z, labels, _, _ = training_rows()
    sizes = [8, 8, 3, 3, 1, 8, 1, 8, 5]
    orders = [order[0].split(sizes) for order in epochs(45, 45)]
    chunks = mock.patch("sk_otreweight.transport.problem._CHUNK_ENTRIES", chunk_entries)
    with chunks:
        together, one_by_one = both_ways(z, labels, orders, meta_set=meta_set)
    assert_same_weights(together, one_by_one)
    assert_same(together.sample_weight()[45:], torch.ones(5), atol=1e-12)


@pytest.mark.parametrize("size", [1, 50])
def test_an_epoch_of_single_rows_or_of_one_batch(size):
    z, labels, _, _ = training_rows()
    together, one_by_one = both_ways(z, labels, epochs(size=size))
    if size == 50:
        assert_same_weights(together, one_by_one)
    else:  # a row alone has all of its batch's mass
        assert_same(together.sample_weight(), torch.ones(50), atol=1e-12)
        assert_same(one_by_one.sample_weight(), torch.ones(50), atol=1e-12)


@META_SETS
def test_an_epoch_in_which_rows_come_twice(meta_set):
    """A second step begins where the first one ended."""
    z, labels, _, _ = training_rows()
    orders = [torch.cat(batches) for batches in epochs()]
    twice = [torch.cat([order, order.roll(5)]).split(10) for order in orders]
    assert_same_weights(*both_ways(z, labels, twice, meta_set=meta_set))


def test_an_epoch_in_which_a_row_comes_twice_in_a_batch():
    z, labels, _, _ = training_rows()
    batches = [torch.tensor([3, 7, 7, 12]), torch.tensor([0, 1, 2, 5])]
    together, one_by_one = both_ways(z, labels, [batches])
    assert torch.equal(together.sample_weight(), one_by_one.sample_weight())


@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_an_epoch_without_batches_changes_nothing(weights):
    reweighter = started(weights=weights)
    z, *_ = training_rows()
    before = reweighter.sample_weight(z)
    reweighter.update_epoch(z, [])
    assert torch.equal(reweighter.sample_weight(z), before)


def test_an_epoch_with_a_batch_that_has_no_weight_left():
    z, labels, _, _ = training_rows()
    together, one_by_one = started(), started()
    batches = next(epochs())
    for reweighter in (together, one_by_one):
        reweighter.weights_.values_[batches[1]] = 0
    together.update_epoch(z, batches)
    batch_after_batch(one_by_one, z, labels, batches)
    assert (together.weights_.values_[batches[1]] == 0).all()
    assert_same(together.weights_.values_, one_by_one.weights_.values_, atol=1e-9)


@pytest.mark.parametrize("solver", ["sinkhorn", "pot", POTSolver(tol=1e-12)])
def test_an_epoch_with_another_solver(solver):
    z, labels, _, _ = training_rows()
    both = both_ways(z, labels, epochs(n_epochs=1), solver=solver)
    assert_same_weights(*both, atol=1e-6)


def test_an_epoch_in_single_precision():
    z, labels, z_meta, meta_labels = training_rows()
    z = z.float()
    problem = z, labels, z_meta.float(), meta_labels
    together, one_by_one = both_ways(z, labels, epochs(), problem=problem)
    assert together.sample_weight().dtype == torch.float32
    assert_same_weights(together, one_by_one, atol=1e-6)


def test_problems_of_an_epoch_that_are_not_solved_are_counted():
    z, labels, _, _ = training_rows()
    sloppy = SinkhornSolver(max_iter=1, accelerate=False, tol=1e-12)
    weights = WeightVector(n_steps=2)
    with pytest.warns(ConvergenceWarning, match="marginal error") as caught:
        both = both_ways(z, labels, epochs(), solver=sloppy, weights=weights)
    assert len(caught) == 2  # one for each reweighter
    assert both[0].unconverged_ == 2 * 2 * 7
    assert_same_weights(*both)


def solves(reweighter):
    """Watch how often a solver is called."""
    solver = reweighter.solver_
    return mock.patch.object(solver, "solve_problem", wraps=solver.solve_problem)


@META_SETS
def test_batches_of_one_size_are_solved_in_one_call(meta_set):
    z, *_ = training_rows()
    reweighter = started(meta_set=meta_set)
    with solves(reweighter) as calls:
        reweighter.update_epoch(z, next(epochs()))
    shapes = [tuple(call.args[0].C.shape)[:-1] for call in calls.call_args_list]
    assert shapes == [(6, 8), (2,)]  # a batch alone is solved on arrays


@pytest.mark.parametrize(
    "strategy",
    [
        WeightNet(lr=2.0, hidden=5),
        AttentionWeightNet(lr=2.0, hidden=5),
        ModuleWeights(MeanWeights, lr=2.0),
    ],
    ids=["net", "attention", "module"],
)
@pytest.mark.parametrize("cost", ["combined", "label"])
@META_SETS
def test_weight_nets_are_stepped_batch_after_batch(meta_set, cost, strategy):
    """A step for one batch changes the weights of the next."""
    z, labels, _, _ = training_rows()
    params = {"weights": strategy, "cost": cost, "meta_set": meta_set}
    together, one_by_one = both_ways(z, labels, epochs(), **params)
    assert not together.steps_together
    before = started(**params).weights_.module_.state_dict()
    found, expected = (
        reweighter.weights_.module_.state_dict()
        for reweighter in (together, one_by_one)
    )
    for name, values in expected.items():
        assert torch.equal(found[name], values)
    assert any((values != before[name]).any() for name, values in expected.items())
    assert together.statistics() == one_by_one.statistics()


def test_a_closed_form_has_no_steps():
    z, *_ = training_rows()
    reweighter = started(weights=SemiRelaxedWeights())
    before = reweighter.sample_weight()
    reweighter.statistics()
    with solves(reweighter) as calls:
        reweighter.update_epoch(z, next(epochs()))
    assert not calls.called
    assert torch.equal(reweighter.sample_weight(), before)


# --- the classifier -------------------------------------------------------------------


def watched(method):
    """Watch the calls of a reweighter's method without changing what it does."""
    return mock.patch.object(
        Reweighter, method, autospec=True, side_effect=getattr(Reweighter, method)
    )


def one_by_one():
    """Keep reweighters from stepping batches together."""
    return mock.patch.object(
        Reweighter, "steps_together", new_callable=mock.PropertyMock, return_value=False
    )


def net_of_batches(size=16, **params):
    return small_net(max_epochs=2, batch_size=size, **params)


def fitted(few, net, **params):
    X, y, meta = few
    if params.pop("draws_meta", False):
        meta = None
    params = {"weights": "vector", "finetune": "head"} | params
    return quick(net, **params).fit(X, y, meta=meta)


COLUMNS = ("stage", "train_loss", "weights_ess", "weights_kl", "ot_cost")


def assert_same_fit(clf, other, X):
    np.testing.assert_allclose(clf.sample_weight_, other.sample_weight_, atol=1e-6)
    assert np.abs(clf.sample_weight_ - 1).max() > 0.1
    np.testing.assert_allclose(clf.predict_proba(X), other.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(
        clf.history_[:, COLUMNS], other.history_[:, COLUMNS], rtol=1e-5, atol=1e-6
    )


FITS = {
    "as it is": ({}, {}),
    "loader given": ({"iterator_train": RowLoader}, {}),
    "in order": ({"iterator_train__shuffle": False}, {}),
    "split": ({"train_split": ValidSplit(5)}, {}),
    "drop_last": ({"iterator_train__drop_last": True}, {}),
    "merge_last": (
        {"iterator_train": RowLoader, "iterator_train__merge_last": True, "size": 11},
        {},
    ),
    "one batch": ({"size": 500}, {}),
    "dropout": ({"module": NormDropoutMLP}, {}),
    "drawn meta set": ({}, {"draws_meta": True}),
    "random meta set": ({}, {"meta_set": "random"}),
    "some prototypes": ({}, {"meta_set": PrototypeMetaSet(n_prototypes=2)}),
    "steps": ({}, {"weights": WeightVector(n_steps=3)}),
    "sgd": ({}, {"weights": WeightVector(5.0, "sgd", keep=False)}),
    "inverse start": ({}, {"init_weights": "inverse"}),
    "meta loss": ({}, {"meta_loss_weight": 1.0}),
    "label cost": ({}, {"cost": "label"}),
    "whole net": ({}, {"cost": "label", "finetune": "all"}),
    "whole net, split": (
        {"train_split": ValidSplit(5)},
        {"cost": "label", "finetune": "all"},
    ),
    "whole net, drop_last": (
        {"iterator_train__drop_last": True},
        {"cost": "label", "finetune": "all", "draws_meta": True},
    ),
}


@pytest.mark.parametrize(("net_params", "params"), FITS.values(), ids=FITS)
def test_epochs_solved_together_are_those_solved_one_by_one(net_params, params, few):
    with watched("update_epoch") as epochs:
        together = fitted(few, net_of_batches(**net_params), **params)
    assert epochs.call_count == 2
    with one_by_one(), watched("update_epoch") as epochs:
        plain = fitted(few, net_of_batches(**net_params), **params)
    assert not epochs.called
    assert_same_fit(together, plain, few[0])


@pytest.mark.parametrize(
    ("cost", "module"),
    [
        ("label", SmallMLP),
        ("combined", SmallMLP),
        ("combined", DoubleMLP),
        ("label", DoubleMLP),
    ],
)
def test_a_net_that_loads_batches_in_another_way_finds_the_same_weights(
    cost, module, few
):
    """A `DataLoader` tells the rows of a batch when it comes, not before."""
    found = []
    for loader in ({}, {"iterator_train__num_workers": 0}):
        net = net_of_batches(module=module, iterator_train__shuffle=False, **loader)
        with watched("update_epoch") as epochs:
            found.append(fitted(few, net, cost=cost))
        assert epochs.called is not bool(loader)
    assert_same_fit(*found, few[0])


@pytest.mark.parametrize(
    "params",
    [
        {"weights": "net"},
        {"weights": "attention"},
        {"finetune": "all"},
        {"finetune": "all", "virtual_step": None},
    ],
    ids=str,
)
def test_weights_that_depend_on_the_steps_wait_for_them(params, few):
    with watched("update_epoch") as epochs, watched("update") as updates:
        fitted(few, net_of_batches(), **params)
    assert not epochs.called
    n_batches = -(-len(few[0]) // 16)
    assert updates.call_count == 2 * n_batches


@pytest.mark.parametrize(
    ("params", "n_solved"),
    [
        ({"cost": "label", "finetune": "all"}, 1),
        ({"cost": "label", "finetune": "all", "meta_loss_weight": 1.0}, 1),
        ({"cost": "combined", "finetune": "head"}, 1),
        ({"cost": "combined", "finetune": "all"}, 3),
        ({"cost": "combined", "finetune": "all", "restart": True}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("draws_meta", [False, True])
def test_a_closed_form_is_solved_when_something_has_changed(
    params, n_solved, draws_meta, few
):
    X, y, meta = few
    if draws_meta and not params.get("restart"):
        reads_rows = params["cost"] != "label" or "meta_loss_weight" in params
        n_solved = 3 if reads_rows else 1
    clf = quick(net_of_batches(), weights="semirelaxed", max_epochs=3, **params)
    with mock.patch.object(
        SemiRelaxedWeights, "solve", autospec=True, side_effect=SemiRelaxedWeights.solve
    ) as solve:
        clf.fit(X, y, meta=None if draws_meta else meta)
    assert solve.call_count == n_solved
    costs = clf.history_[:, "ot_cost"][-3:]
    if n_solved == 1:
        assert len(set(costs)) == 1


def test_chunks_of_a_stream_are_solved_together(few):
    X, y, meta = few
    order = np.random.default_rng(0).permutation(len(y))

    def streamed():
        clf = quick(net_of_batches(8), weights="vector", cost="label")
        for rows in np.array_split(order, 2):
            clf.partial_fit(X[rows], y[rows], classes=np.unique(y), meta=meta)
        return clf

    with watched("update_epoch") as epochs:
        together = streamed()
    assert epochs.call_count == 2
    with one_by_one():
        plain = streamed()
    assert_same_fit(together, plain, X)


def oversampled(dataset, y, **fit_params):
    """Give the rows of the last class twice, and hold out the first rows."""
    last = np.flatnonzero(np.asarray(y) == np.max(y))
    rows = np.concatenate([np.arange(len(y)), last])
    return Subset(dataset, rows), Subset(dataset, np.arange(5))


def test_rows_that_come_twice_in_an_epoch_are_stepped_twice(few):
    net = net_of_batches(train_split=oversampled)
    found = fitted(few, net)
    with one_by_one():
        plain = fitted(few, net)
    assert_same_fit(found, plain, few[0])


@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_an_epoch_without_batches_trains_nothing(weights, few):
    net = net_of_batches(500, iterator_train__drop_last=True)
    clf = fitted(few, net, weights=weights)
    assert clf.sample_weight_.mean() == pytest.approx(1.0, rel=1e-6)
    assert len(clf.history_) == 4


# --- the loader: an epoch is known before it begins -----------------------------------

N = 23
X = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
Y = np.arange(N) % 3
PICKED = np.arange(3, 21, 2)


class OwnDataset(Dataset):
    """Its items can only be asked for one by one."""

    def __len__(self):
        return N

    def __getitem__(self, item):
        return X[item], Y[item]


PLAIN = skorch_dataset.Dataset(X, Y)
ARRAYS = {
    "arrays": (PLAIN, range(N)),
    "tensors": (
        skorch_dataset.Dataset(torch.from_numpy(X), torch.from_numpy(Y)),
        range(N),
    ),
    "no labels": (skorch_dataset.Dataset(X), range(N)),
    "subset": (Subset(PLAIN, PICKED.tolist()), PICKED),
    "subset of a subset": (
        Subset(Subset(PLAIN, PICKED), [5, 0, 3, 8]),
        PICKED[[5, 0, 3, 8]],
    ),
    "nothing": (skorch_dataset.Dataset(X[:0], Y[:0]), []),
    "one row": (skorch_dataset.Dataset(X[:1], Y[:1]), [0]),
}


@pytest.fixture(autouse=True)
def _own_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("merge_last", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 23, 100])
@pytest.mark.parametrize("kind", ARRAYS)
def test_the_rows_of_an_epoch_are_those_that_follow(
    kind, batch_size, shuffle, drop_last, merge_last
):
    dataset, rows_of_dataset = ARRAYS[kind]
    loader = RowLoader(dataset, batch_size, shuffle, drop_last, merge_last)
    epoch, rows = plan_epoch(loader)
    assert len(epoch) == len(loader) == len(rows)
    known = torch.cat([torch.tensor([], dtype=torch.long), *rows]).tolist()
    if shuffle:
        assert len(set(known)) == len(known)
        assert set(known) <= set(rows_of_dataset)
    else:
        assert known == list(rows_of_dataset)[: len(known)]
    for batch, of_batch in zip(epoch, rows, strict=True):
        assert torch.equal(batch.rows, of_batch)
        np.testing.assert_array_equal(batch[0], X[of_batch.numpy()])
        if kind != "no labels":
            np.testing.assert_array_equal(batch[1], Y[of_batch.numpy()])
    # Planned or not, the same is drawn from the same generator.
    torch.manual_seed(0)
    plain = [batch.rows.tolist() for batch in loader]
    assert plain == [of_batch.tolist() for of_batch in rows]


def sizes_of(n_rows, batch_size, **options):
    dataset = skorch_dataset.Dataset(X[:n_rows], Y[:n_rows])
    _, rows = plan_epoch(RowLoader(dataset, batch_size, **options))
    if rows:  # each at most once
        assert len(torch.cat(rows).unique()) == sum(map(len, rows))
    return [len(of_batch) for of_batch in rows]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("n_rows", "batch_size", "whole", "dropped", "merged"),
    [
        (9, 4, [4, 4, 1], [4, 4], [4, 5]),
        (10, 4, [4, 4, 2], [4, 4], [4, 4, 2]),
        (8, 4, [4, 4], [4, 4], [4, 4]),
        (3, 4, [3], [], [3]),
        (1, 4, [1], [], [1]),
        (0, 4, [], [], []),
        (3, 1, [1, 1, 1], [1, 1, 1], [1, 1, 1]),
        (3, 2, [2, 1], [2], [3]),
    ],
)
def test_sizes_of_the_batches(n_rows, batch_size, whole, dropped, merged, shuffle):
    options = {"shuffle": shuffle}
    assert sizes_of(n_rows, batch_size, **options) == whole
    assert sizes_of(n_rows, batch_size, drop_last=True, **options) == dropped
    assert sizes_of(n_rows, batch_size, merge_last=True, **options) == merged


def test_each_epoch_has_its_own_order():
    loader = RowLoader(PLAIN, 4, shuffle=True)
    orders = [torch.cat(plan_epoch(loader)[1]).tolist() for _ in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [sorted(order) for order in orders] == 3 * [list(range(N))]


def test_an_epoch_can_be_gone_through_twice():
    epoch, _ = plan_epoch(RowLoader(PLAIN, 4, shuffle=True))
    first, second = ([batch.rows.tolist() for batch in epoch] for _ in range(2))
    assert first == second


class OwnOrder(RowLoader):
    """Leaves out the first batch."""

    def __iter__(self):
        batches = super().__iter__()
        next(batches)
        return batches


class Longer(RowLoader):
    """Draws an epoch in a way of its own."""

    def epoch(self):
        epoch = super().epoch()
        epoch.rows += epoch.rows[:1]
        return epoch


def test_a_subclass_that_iterates_in_its_own_way_is_left_to_do_so():
    loader = OwnOrder(PLAIN, 4)
    batches, rows = plan_epoch(loader)
    assert batches is loader
    assert rows is None
    assert next(iter(batches)).rows.tolist() == [4, 5, 6, 7]


def test_a_subclass_that_draws_in_its_own_way_is_asked():
    batches, rows = plan_epoch(Longer(PLAIN, 8))
    assert [of_batch[0].item() for of_batch in rows] == [0, 8, 16, 0]
    assert [batch.rows[0].item() for batch in batches] == [0, 8, 16, 0]


@pytest.mark.parametrize("dataset", [OwnDataset(), Subset(OwnDataset(), PICKED)])
def test_rows_of_items_are_not_known_beforehand(dataset):
    batches, rows = plan_epoch(RowLoader(dataset, 4))
    assert rows is None
    expected = np.arange(N) if isinstance(dataset, OwnDataset) else PICKED
    found = torch.cat([batch.rows for batch in batches])
    assert found.tolist() == expected.tolist()


def test_rows_of_other_loaders_are_not_known_beforehand():
    net = small_net(module__n_features=2, module__n_classes=3).initialize()
    assert net.iterator_train is DataLoader
    numbered = training_batches(net, PLAIN)
    for given in (numbered, UnnumberedLoader(DataLoader(PLAIN)), [], iter([])):
        batches, rows = plan_epoch(given)
        assert batches is given
        assert rows is None


def test_a_net_with_a_row_loader_knows_its_epochs():
    net = small_net(
        SmallMLP,
        module__n_features=2,
        module__n_classes=3,
        batch_size=4,
        iterator_train=RowLoader,
        train_split=ValidSplit(4),
    ).initialize()
    train, valid = net.get_split_datasets(X, Y)
    _, rows = plan_epoch(training_batches(net, train))
    rows = torch.cat(rows).tolist()
    assert sorted(rows + np.asarray(valid.indices).tolist()) == list(range(N))
