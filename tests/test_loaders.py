from __future__ import annotations

import numpy as np
import pytest
import torch
from nets_for_tests import SmallMLP, small_net
from skorch import NeuralNetClassifier
from skorch import dataset as skorch_dataset
from skorch.dataset import ValidSplit, unpack_data
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from sk_otreweight import loaders
from sk_otreweight.loaders import (
    NumberedDataset,
    RowBatch,
    RowEpoch,
    RowLoader,
    loaded_batches,
    training_batches,
    use_row_loader,
)

_take = loaders._take
N = 23
X = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
Y = np.arange(N) % 3


class OwnDataset(Dataset):
    """Not one of skorch's: its items can only be asked for one by one."""

    def __len__(self):
        return N

    def __getitem__(self, item):
        return X[item], Y[item]


def datasets():
    plain = skorch_dataset.Dataset(X, Y)
    picked = list(range(3, 21, 2))
    return {
        "arrays": plain,
        "tensors": skorch_dataset.Dataset(torch.from_numpy(X), torch.from_numpy(Y)),
        "no labels": skorch_dataset.Dataset(X),
        "subset": Subset(plain, picked),
        "subset of a subset": Subset(Subset(plain, picked), [5, 0, 3, 8]),
        "array of rows": Subset(plain, np.array(picked)),
        "own": OwnDataset(),
        "subset of own": Subset(OwnDataset(), picked),
        "own of torch": TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    }


KINDS = list(datasets())


def rows_of(dataset):
    """Return the rows of the full data, in order."""
    if isinstance(dataset, Subset):
        return rows_of(dataset.dataset)[np.asarray(dataset.indices)]
    return np.arange(len(dataset))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_same_batches_as_a_data_loader(kind, batch_size, drop_last):
    dataset = datasets()[kind]
    ours = RowLoader(dataset, batch_size=batch_size, drop_last=drop_last)
    theirs = DataLoader(dataset, batch_size=batch_size, drop_last=drop_last)
    assert len(ours) == len(theirs)
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    rows = rows_of(dataset)
    for number, (batch, (inputs, labels)) in enumerate(zip(ours, theirs, strict=True)):
        assert isinstance(batch, RowBatch)
        unpacked = unpack_data(batch)
        assert torch.equal(unpacked[0], inputs)
        assert unpacked[0].dtype == inputs.dtype
        assert len(unpacked[1]) == len(labels)
        if kind != "no labels":  # a stand-in then, of no meaning
            assert torch.equal(unpacked[1], labels)
        expected = rows[number * batch_size : (number + 1) * batch_size]
        assert batch.rows.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_right_under_shuffling(kind):
    dataset = datasets()[kind]
    loader = RowLoader(dataset, batch_size=4, shuffle=True)
    orders = []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batches = list(loader)
        for inputs, labels in batches:
            assert len(inputs) == len(labels)
        for batch in batches:
            np.testing.assert_array_equal(batch[0], X[batch.rows.numpy()])
            if kind != "no labels":
                np.testing.assert_array_equal(batch[1], Y[batch.rows.numpy()])
        orders.append(torch.cat([batch.rows for batch in batches]).tolist())
        assert sorted(orders[-1]) == sorted(rows_of(dataset).tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize("kind", ["arrays", "own", "subset of own"])
@pytest.mark.parametrize(
    ("n_rows", "drop_last", "sizes"),
    [
        (9, False, [4, 5]),
        (9, True, [4, 5]),  # nothing is left over
        (8, False, [4, 4]),
        (7, False, [4, 3]),
        (7, True, [4]),
        (1, False, [1]),
        (2, True, []),
    ],
)
def test_a_last_row_joins_the_batch_before(n_rows, drop_last, sizes, kind):
    dataset = Subset(datasets()[kind], range(n_rows))
    loader = RowLoader(dataset, batch_size=4, drop_last=drop_last, merge_last=True)
    batches = list(loader)
    assert [len(batch[0]) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    for batch in batches:
        np.testing.assert_array_equal(batch[0], X[batch.rows.numpy()])


@pytest.mark.parametrize("merge_last", [False, True])
def test_a_data_set_is_shuffled_as_by_a_data_loader(merge_last):
    orders = []
    for kind in (RowLoader, DataLoader):
        params = {"merge_last": merge_last} if kind is RowLoader else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            batches = list(kind(OwnDataset(), batch_size=4, shuffle=True, **params))
            after = torch.rand(1)
        orders.append([*torch.cat([batch[0] for batch in batches]).ravel(), after])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("n_bytes", [1, 4 * 8, 2 * 4 * 8, 3 * 4 * 8, 2**20])
@pytest.mark.parametrize("kind", ["arrays", "tensors", "no labels", "dict"])
def test_batches_that_are_sliced_together(kind, n_bytes, monkeypatch):
    """A row has 8 bytes, a batch 4 rows: one batch at a time, two, three, or all."""
    given, dataset = X, datasets().get(kind)
    if kind == "dict":
        given = {"x": X[:, :1], "z": X[:, 1:]}
        dataset = skorch_dataset.Dataset(given, Y)
    monkeypatch.setattr(loaders, "_BLOCK_BYTES", n_bytes)
    slices = []
    monkeypatch.setattr(
        loaders, "_take", lambda x, rows: slices.append(len(rows)) or _take(x, rows)
    )
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    epoch = RowEpoch(dataset.X, dataset.y, list(order.split(4)))
    batches = list(epoch)
    assert [batch.rows.tolist() for batch in batches] == [
        rows.tolist() for rows in order.split(4)
    ]
    for batch in batches:
        inputs, rows = batch[0], batch.rows.numpy()
        if kind == "dict":
            assert list(inputs) == ["x", "z"]
            inputs = np.concatenate([inputs["x"], inputs["z"]], axis=1)
        np.testing.assert_array_equal(inputs, X[rows])
        expected = np.zeros(len(rows)) if kind == "no labels" else Y[rows]
        np.testing.assert_array_equal(batch[1], expected)
    n_together = max(1, n_bytes // 32)
    assert max(slices) == min(N, 4 * n_together)
    batches[0][0]["x" if kind == "dict" else slice(None)].fill_(-1)
    np.testing.assert_array_equal(X[0], [0, 1])


def test_an_epoch_without_batches():
    assert list(RowEpoch(X, Y, [])) == []


def test_order_comes_from_the_global_generator():
    loader = RowLoader(datasets()["arrays"], batch_size=5, shuffle=True)
    orders = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            orders.append(torch.cat([batch.rows for batch in loader]).tolist())
    assert orders[0] == orders[1] != orders[2]


def test_iterating_in_order_draws_nothing():
    before = torch.get_rng_state()
    list(RowLoader(datasets()["arrays"], batch_size=5))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_copies():
    batch = next(iter(RowLoader(skorch_dataset.Dataset(X, Y), batch_size=4)))
    batch[0].zero_()
    assert X[0, 1] == 1


def test_read_only_arrays():
    frozen = X.copy()
    frozen.flags.writeable = False
    batches = list(RowLoader(skorch_dataset.Dataset(frozen, Y), batch_size=4))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.from_numpy(X))


def test_dictionaries_go_through_a_data_loader():
    dataset = skorch_dataset.Dataset({"left": X, "right": 2 * X}, Y)
    batches = list(RowLoader(dataset, batch_size=4))
    assert batches[1][0]["right"].tolist() == (2 * X[4:8]).tolist()
    assert batches[1].rows.tolist() == [4, 5, 6, 7]


def test_a_dataset_with_its_own_items_is_asked_for_them():
    """Slicing would skip what a subclass does in `__getitem__` or `transform`."""

    class Flipped(skorch_dataset.Dataset):
        def transform(self, X, y):
            return super().transform(-X, y)

    batch = next(iter(RowLoader(Flipped(X, Y), batch_size=4)))
    np.testing.assert_array_equal(batch[0], -X[:4])


def test_row_batch_is_a_tuple():
    batch = RowBatch(1, 2, None)
    assert batch == (1, 2)
    assert isinstance(batch, tuple)
    assert batch.rows is None
    first, second = batch
    assert (first, second) == unpack_data(batch)


def test_numbered_dataset():
    numbered = NumberedDataset(OwnDataset())
    assert len(numbered) == N
    (inputs, label), row = numbered[7]
    assert (inputs.tolist(), label, row) == (X[7].tolist(), Y[7], 7)


def initialised(**params):
    sizes = {"module__n_features": 2, "module__n_classes": 3}
    return small_net(batch_size=4, **(sizes | params)).initialize()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loader", [DataLoader, RowLoader])
def test_training_batches_know_their_rows(loader, kind):
    net = initialised(iterator_train=loader)
    batches = list(training_batches(net, datasets()[kind]))
    assert len(batches) == len(training_batches(net, datasets()[kind]))
    for batch in batches:
        np.testing.assert_array_equal(batch[0], X[batch.rows.numpy()])
        if kind != "no labels":
            np.testing.assert_array_equal(batch[1], Y[batch.rows.numpy()])
    rows = torch.cat([batch.rows for batch in batches])
    assert rows.sort().values.tolist() == sorted(rows_of(datasets()[kind]).tolist())


def test_training_batches_of_a_split():
    net = initialised(train_split=ValidSplit(3), iterator_train=RowLoader)
    train, valid = net.get_split_datasets(X, Y)
    seen = torch.cat([batch.rows for batch in training_batches(net, train)])
    assert sorted(seen.tolist() + np.asarray(valid.indices).tolist()) == list(range(N))
    for batch in training_batches(net, train):
        np.testing.assert_array_equal(batch[0], X[batch.rows.numpy()])


def test_training_batches_are_loaded_as_configured():
    net = initialised(
        iterator_train__num_workers=0,
        iterator_train__drop_last=True,
        iterator_train__batch_size=6,
    )
    batches = list(training_batches(net, datasets()["arrays"]))
    assert [len(batch[0]) for batch in batches] == [6, 6, 6]
    whole = initialised(iterator_train__batch_size=-1)
    (batch,) = training_batches(whole, datasets()["arrays"])
    assert len(batch[0]) == N


def test_training_batches_of_an_own_sampler():
    order = [4, 4, 1, 0, 22]
    net = initialised(iterator_train__shuffle=False, iterator_train__sampler=order)
    batches = list(training_batches(net, datasets()["arrays"]))
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert rows == order
    subset = Subset(datasets()["arrays"], list(range(1, N)))
    net = initialised(iterator_train__shuffle=False, iterator_train__sampler=[0, 3])
    (batch,) = training_batches(net, subset)
    assert batch.rows.tolist() == [1, 4]


def collate_once(items):
    raise AssertionError("collated again")


@pytest.mark.parametrize("kind", ["arrays", "subset", "subset of a subset"])
@pytest.mark.parametrize(
    "params",
    [
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
        {"pin_memory": True, "timeout": 1},
        {"collate_fn": collate_once},
        {"sampler": [3, 0, 3]},
        {"drop_last": True, "batch_size": 3},
    ],
    ids=" ".join,
)
def test_rows_that_were_loaded_before_come_in_the_order_of_the_net(params, kind):
    dataset = datasets()[kind]
    given = {f"iterator_train__{name}": value for name, value in params.items()}
    net = initialised(**{"iterator_train__shuffle": False} | given)
    loader = loaded_batches(net, dataset)
    batches = list(loader)
    assert len(loader) == len(batches)
    expected = rows_of(dataset)
    if "sampler" in params:
        expected = expected[params["sampler"]]
    if "drop_last" in params:
        expected = expected[: len(expected) // 3 * 3]
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert rows == expected.tolist()
    for batch in batches:
        np.testing.assert_array_equal(batch[0], X[batch.rows.numpy()])
        np.testing.assert_array_equal(batch[1], Y[batch.rows.numpy()])


@pytest.mark.parametrize("iterator", [DataLoader, RowLoader])
def test_rows_that_were_loaded_before_are_shuffled_as_others(iterator):
    net = initialised(iterator_train=iterator)
    orders = []
    for load in (training_batches, loaded_batches):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rows = [batch.rows for batch in load(net, datasets()["arrays"])]
        orders.append(torch.cat(rows).tolist())
    assert orders[0] == orders[1] != sorted(orders[0])


class RowLoaderOfOnesOwn(RowLoader):
    pass


@pytest.mark.parametrize(
    ("params", "train", "valid"),
    [
        ({}, RowLoader, RowLoader),
        ({"iterator_train__shuffle": True}, RowLoader, RowLoader),
        ({"iterator_train__drop_last": True}, RowLoader, RowLoader),
        ({"iterator_valid__batch_size": 50}, RowLoader, RowLoader),
        ({"iterator_train__num_workers": 0}, DataLoader, RowLoader),
        ({"iterator_train__pin_memory": True}, DataLoader, RowLoader),
        ({"iterator_train__collate_fn": list}, DataLoader, RowLoader),
        ({"iterator_train__sampler": [1]}, DataLoader, RowLoader),
        ({"iterator_valid__num_workers": 2}, RowLoader, DataLoader),
        ({"iterator_train": RowLoaderOfOnesOwn}, RowLoaderOfOnesOwn, RowLoader),
    ],
    ids=str,
)
def test_configured_loaders_are_kept(params, train, valid):
    net = small_net(SmallMLP, **params)
    use_row_loader(net)
    assert net.iterator_train is train
    assert net.iterator_valid is valid


class ShardedNet(NeuralNetClassifier):
    """Stands for a net of skorch's ``AccelerateMixin``."""

    accelerator = None


def test_nets_under_accelerate_keep_their_loaders():
    net = ShardedNet(SmallMLP)
    use_row_loader(net)
    assert net.iterator_train is net.iterator_valid is DataLoader
