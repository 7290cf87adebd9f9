"""Batches that know which rows of the training set they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch import dataset as skorch_dataset
from skorch.dataset import unpack_data
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

from sk_otreweight.wrappers import replaced

# Bytes of inputs that are sliced at a time: for batches of few small rows, the calls
# take longer than the copies.
_BLOCK_BYTES = 2**20
# How a `DataLoader` gets its items; its other parameters say which, and in what order.
_LOADING = {
    *("collate_fn", "num_workers", "worker_init_fn", "multiprocessing_context"),
    *("prefetch_factor", "persistent_workers", "in_order", "timeout"),
    *("pin_memory", "pin_memory_device"),
}


class RowBatch(tuple):
    """A batch ``(X, y)`` with the row numbers it was made of.

    A tuple, so that skorch and its callbacks see what they always see.

    Attributes
    ----------
    rows : Tensor of shape (batch_size,) or None
        Row numbers in the full training set.
    """

    rows: Tensor | None

    def __new__(cls, X: Any, y: Any, rows: Tensor | None) -> RowBatch:
        """Make the tuple (X, y) and remember the rows."""
        batch = super().__new__(cls, (X, y))
        batch.rows = rows
        return batch


class RowLoader:
    """Drop-in for `DataLoader` that slices arrays and numbers its rows.

    A `DataLoader` collates item by item, which for data in memory takes longer than a
    small net's whole step. Data sets that do not hold plain arrays go through a
    `DataLoader` all the same. Splits of skorch are seen through: row numbers
    are those of the array that was split.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int, default=1
    shuffle : bool, default=False
        New order in every epoch, from torch's global generator, as in `DataLoader`.
    drop_last : bool, default=False
        Leave out the last batch if it is smaller.
    merge_last : bool, default=False
        Let a last row that would make a batch of its own join the batch before it, for
        modules that normalise over a batch. It is not left out then.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        merge_last: bool = False,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.merge_last = merge_last

    def __len__(self) -> int:
        n = len(self.dataset)
        if self._merges:
            return max(1, n // self.batch_size)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    @property
    def _merges(self) -> bool:
        """Whether a last row joins the batch before it."""
        return self.merge_last and len(self.dataset) % self.batch_size == 1

    def __iter__(self) -> Iterator[RowBatch]:
        return iter(self.epoch())

    def epoch(self) -> RowEpoch | _NumberedLoader:
        """Draw the order of an epoch and return its batches.

        Their attribute `rows`, a list of Tensors, tells which rows they will hold; it
        is missing for data sets that go through a `DataLoader`.
        """
        arrays = _arrays(self.dataset)
        if arrays is None:
            return _NumberedLoader(self._data_loader())
        X, y, rows = arrays
        if self.shuffle:
            rows = rows[torch.randperm(len(rows))]
        return RowEpoch(X, y, self.cut(rows))

    def cut(self, rows: Tensor) -> list[Tensor]:
        """Return the batches of all rows (n,), given in their order."""
        n_batches = len(self)
        last = len(rows) if self._merges else n_batches * self.batch_size
        splits = [number * self.batch_size for number in range(1, n_batches)]
        return list(rows[:last].tensor_split(splits)) if n_batches else []

    def _data_loader(self) -> DataLoader:
        return DataLoader(
            NumberedDataset(self.dataset), batch_sampler=_BatchSampler(self)
        )


class _BatchSampler(Sampler):
    """The batches of a `RowLoader`, for a `DataLoader`; drawn as it draws its own."""

    def __init__(self, loader: RowLoader):
        order = RandomSampler if loader.shuffle else SequentialSampler
        self.loader, self.order = loader, order(loader.dataset)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.loader.cut(torch.tensor(list(self.order))):
            yield rows.tolist()


class RowEpoch:
    """Slices of arrays, of rows that are known beforehand.

    Parameters
    ----------
    X, y : array, Tensor or mapping
        y may be None.
    rows : list of Tensor of shape (batch_size,)
    """

    def __init__(self, X: Any, y: Any, rows: list[Tensor]):
        self.X, self.y, self.rows = X, y, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RowBatch]:
        n_together = self._n_together()
        for start in range(0, len(self.rows), n_together):
            batches = self.rows[start : start + n_together]
            sizes, rows = [len(batch) for batch in batches], torch.cat(batches)
            # Without labels, what skorch stands in for them when only predicting.
            y = torch.zeros(len(rows)) if self.y is None else _take(self.y, rows)
            X = _split(_take(self.X, rows), sizes)
            yield from map(RowBatch, X, _split(y, sizes), batches)

    def _n_together(self) -> int:
        """How many batches are sliced at a time."""
        n_bytes = _row_bytes(self.X) * max(map(len, self.rows), default=0)
        return max(1, _BLOCK_BYTES // max(1, n_bytes))


def plan_epoch(batches: Any) -> tuple[Any, list[Tensor] | None]:
    """Return the batches of the next epoch, and their rows if these are known by now.

    Parameters
    ----------
    batches : iterable of RowBatch
        From `training_batches`, or a loader of another kind.
    """
    # A subclass that iterates in another way is left to do so.
    if getattr(type(batches), "__iter__", None) is not RowLoader.__iter__:
        return batches, None
    epoch = batches.epoch()
    return epoch, getattr(epoch, "rows", None)


class NumberedDataset(Dataset):
    """Hands out ``(item, row number)``.

    Parameters
    ----------
    dataset : Dataset
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.dataset[row], row


class _NumberedCollate:
    """Collates the items of a `NumberedDataset` with a function that knows no rows."""

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self.collate = collate

    def __call__(self, numbered: list[tuple[Any, int]]) -> tuple[Any, Tensor]:
        items, rows = zip(*numbered, strict=True)
        return self.collate(list(items)), torch.tensor(rows)


def _numbered(loader: DataLoader) -> DataLoader:
    """Return a loader of a `NumberedDataset` whose collate function knows that."""
    if not isinstance(loader.collate_fn, _NumberedCollate):
        loader.collate_fn = _NumberedCollate(loader.collate_fn)
    return loader


class _NumberedLoader:
    """Turns the batches of a `DataLoader` over a `NumberedDataset` into row batches."""

    def __init__(self, loader: DataLoader):
        self.loader = _numbered(loader)
        self.base_rows = row_numbers(loader.dataset.dataset)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[RowBatch]:
        for batch, rows in self.loader:
            if self.base_rows is not None:
                rows = self.base_rows[rows.cpu()]  # accelerate moves all of a batch
            yield RowBatch(*unpack_data(batch), rows)


class _SlicingLoader:
    """Slices of arrays, in the order of a `DataLoader` over the numbers of its rows.

    Parameters
    ----------
    loader : DataLoader
        Its batches are Tensors of positions in `rows`.
    X, y : array, Tensor or mapping
    rows : Tensor
    """

    def __init__(self, loader: DataLoader, X: Any, y: Any, rows: Tensor):
        self.loader = loader
        self.X, self.y, self.rows = X, y, rows

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[RowBatch]:
        for positions in self.loader:
            rows = self.rows[positions.cpu()]
            yield RowBatch(_take(self.X, rows), _take(self.y, rows), rows)


class UnnumberedLoader:
    """Batches of a loader that is no `DataLoader`: their rows are not known."""

    def __init__(self, loader: Any):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[RowBatch]:
        for batch in self.loader:
            yield RowBatch(*unpack_data(batch), None)


def training_batches(net: NeuralNet, dataset: Dataset) -> Any:
    """Return an iterable over row batches, loaded as the net is configured to.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    dataset : Dataset

    Returns
    -------
    batches : iterable of RowBatch
    """
    iterator = net.iterator_train
    if isinstance(iterator, type) and issubclass(iterator, RowLoader):
        return net.get_iterator(dataset, training=True)
    if isinstance(iterator, type) and issubclass(iterator, DataLoader):

        def numbered_loader(dataset: Dataset, **params: Any) -> DataLoader:
            return _numbered(iterator(dataset, **params))

        # Before accelerate wraps the loader, which hands on none of its attributes.
        with replaced(net, iterator_train=numbered_loader):
            loader = net.get_iterator(NumberedDataset(dataset), training=True)
        return _NumberedLoader(loader)
    return UnnumberedLoader(net.get_iterator(dataset, training=True))


def loaded_batches(net: NeuralNet, dataset: Dataset) -> Any:
    """Return an iterable over row batches of arrays that have been loaded before.

    Of how the net is configured to load, only the order counts: what its collate
    function does has been done, and workers cannot share what is on a GPU.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.
    dataset : Dataset
        Of skorch, with arrays, or a subset of one.

    Returns
    -------
    batches : iterable of RowBatch
    """
    iterator = net.iterator_train
    if not (isinstance(iterator, type) and issubclass(iterator, DataLoader)):
        return training_batches(net, dataset)

    def position_loader(positions: Any, **params: Any) -> DataLoader:
        kept = {name: x for name, x in params.items() if name not in _LOADING}
        loader = iterator(positions, **kept)
        loader.collate_fn = torch.tensor
        return loader

    with replaced(net, iterator_train=position_loader):
        loader = net.get_iterator(range(len(dataset)), training=True)
    return _SlicingLoader(loader, *_arrays(dataset))


def use_row_loader(net: NeuralNet) -> None:
    """Let an uninitialised net load by slices, unless the user configured its loaders.

    Nets of skorch's ``AccelerateMixin`` keep theirs: accelerate shards a `DataLoader`
    between processes, and knows no other.

    Parameters
    ----------
    net : skorch.NeuralNet
        Changed in place.
    """
    if hasattr(net, "accelerator"):
        return
    for part in ("iterator_train", "iterator_valid"):
        known = {"batch_size", "shuffle", "drop_last"}
        if getattr(net, part) is DataLoader and set(net.get_params_for(part)) <= known:
            net.set_params(**{part: RowLoader})


def innermost(dataset: Dataset) -> Dataset:
    """Return the data set that a chain of subsets picks from."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def row_numbers(dataset: Dataset) -> Tensor | None:
    """Return the rows of the innermost data set that a chain of subsets picks."""
    if not isinstance(dataset, Subset):
        return None
    rows = torch.as_tensor(np.asarray(dataset.indices))
    inner = row_numbers(dataset.dataset)
    return rows if inner is None else inner[rows]


def _arrays(dataset: Dataset) -> tuple[Any, Any, Tensor] | None:
    """Return X, y and the row numbers of a data set that holds plain arrays."""
    base = innermost(dataset)
    if type(base) is not skorch_dataset.Dataset:
        return None
    y = base.y
    if not _is_array(base.X) or not (y is None or _is_array(y)):
        return None
    rows = row_numbers(dataset)
    return base.X, y, torch.arange(len(base)) if rows is None else rows


def _is_array(x: Any) -> bool:
    if isinstance(x, Mapping):
        return all(map(_is_array, x.values()))
    return isinstance(x, (np.ndarray, Tensor))


def _take(x: Any, rows: Tensor) -> Any:
    if isinstance(x, Mapping):
        return {key: _take(value, rows) for key, value in x.items()}
    if isinstance(x, Tensor):
        return x[rows.to(x.device)]
    return torch.from_numpy(x[rows.numpy()])


def _split(x: Any, sizes: list[int]) -> list[Any]:
    if isinstance(x, Mapping):
        parts = zip(*(_split(value, sizes) for value in x.values()), strict=True)
        return [dict(zip(x, part, strict=True)) for part in parts]
    return list(x.split(sizes))


def _row_bytes(x: Any) -> int:
    if isinstance(x, Mapping):
        return sum(map(_row_bytes, x.values()))
    return x.nbytes // max(1, len(x))
