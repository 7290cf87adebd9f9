"""The forms that inputs come in: an array, a tensor, a dict of these, a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.helper import SliceDataset
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

from sk_otreweight._validation import (
    check_cast,
    check_dataset,
    check_dataset_item,
    check_n_tensors,
    map_arrays,
)


class LabelledDataset(Dataset):
    """Items of a data set with labels from elsewhere.

    Parameters
    ----------
    dataset : Dataset
        Its items are pairs ``(inputs, label)``, whose label is passed over.
    labels : ndarray of shape (n,)
    """

    def __init__(self, dataset: Dataset, labels: np.ndarray):
        self.dataset = dataset
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.dataset[row][0], self.labels[row]


class InputsDataset(Dataset):
    """Inputs that were read from a data set, with a stand-in for their labels.

    Parameters
    ----------
    inputs : list
    """

    def __init__(self, inputs: list[Any]):
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.inputs[row], 0


def dataset_inputs(dataset: Dataset, *, name: str) -> Any:
    """Return the inputs of a data set: a tensor if it holds one, else itself.

    Raises
    ------
    TypeError, ValueError
        If it has no length, or its items are no pairs ``(inputs, label)``.
    """
    if type(dataset) is TensorDataset:
        check_n_tensors(len(dataset.tensors), name=name)
        return dataset.tensors[0]
    check_dataset(dataset, name=name)
    check_dataset_item(dataset[0], name=name)
    return dataset


def dataset_labels(dataset: Dataset, *, name: str) -> np.ndarray:
    """Return the labels of a data set, which reads each of its items once."""
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[1].cpu().numpy()
    check_dataset(dataset, name=name)
    check_dataset_item(dataset[0], name=name)
    labels = (dataset[row][1] for row in range(len(dataset)))
    return np.array([y.item() if isinstance(y, Tensor) else y for y in labels])


def unpack_slices(X: Any) -> Any:
    """Return skorch's view of a data set, made for cross-validation, as a subset."""
    return Subset(X.dataset, X.indices_) if isinstance(X, SliceDataset) else X


def n_rows(X: Any) -> int:
    """Return the number of rows."""
    if isinstance(X, Mapping):
        return len(next(iter(X.values())))
    # The inputs of a batch of a data set may be several.
    return len(X[0]) if isinstance(X, (list, tuple)) else len(X)


def row_shapes(X: Any) -> Any:
    """Return the shape of a row, a dict of them, or None if only the items know."""
    if isinstance(X, Dataset):
        return None
    return map_arrays(lambda x, _: tuple(x.shape[1:]), X, name="X")


def take(X: Any, rows: Any) -> Any:
    """Return some rows, given by a slice, a mask or their numbers."""
    if isinstance(X, Dataset):
        return Subset(X, np.arange(len(X))[rows].tolist())
    if isinstance(X, (list, tuple)):  # several inputs of a batch of a data set
        return [take(x, rows) for x in X]

    def pick(x: np.ndarray | Tensor, _: str) -> np.ndarray | Tensor:
        if isinstance(x, Tensor) and not isinstance(rows, slice):
            return x[torch.as_tensor(rows, device=x.device)]
        return x[rows]

    return map_arrays(pick, X, name="X")


def batch_of(net: NeuralNet, X: Any, rows: Sequence[int] | slice | np.ndarray) -> Any:
    """Return some rows as one batch that the net takes; its arrays are copies."""
    collate = _own_collate(net)
    if isinstance(X, Dataset):
        part = take(X, rows)
    else:
        part = cast(net, copied(X, rows), name="X")
        if collate is None:
            return part
    items = inputs_of(net.get_dataset(part))
    # The labels play no part here, and may be missing.
    return (collate or default_collate)([(item, 0) for item in items])[0]


def in_memory(net: NeuralNet, X: Dataset) -> Any:
    """Return the inputs of a data set, each of which is read once.

    As arrays, or one by one if the user has a function that collates them.
    """
    if _own_collate(net) is None:
        return batch_of(net, X, slice(None))
    return InputsDataset(inputs_of(X))


def inputs_of(dataset: Dataset) -> list[Any]:
    """Return the inputs of all items of a data set."""
    return [dataset[row][0] for row in range(len(dataset))]


def _own_collate(net: NeuralNet) -> Callable[[list[Any]], Any] | None:
    """Return the user's function that makes a batch of items, if there is one."""
    return net.get_params_for("iterator_valid").get("collate_fn")


def copied(X: Any, rows: Sequence[int] | slice | np.ndarray) -> Any:
    """Return copies of some rows of arrays."""
    return map_arrays(_copy, take(X, rows), name="X")


def _copy(x: np.ndarray | Tensor, _: str) -> np.ndarray | Tensor:
    return x.clone() if isinstance(x, Tensor) else x.copy()


def concatenated(X: Any, others: Any) -> Any:
    """Return the rows of `X` and `others`, which are of the same form, as `X` is."""
    if isinstance(X, Dataset):
        return ConcatDataset([X, others])
    if isinstance(X, Mapping):
        return {key: concatenated(x, others[key]) for key, x in X.items()}
    if isinstance(X, Tensor):
        return torch.cat([X, torch.as_tensor(others, device=X.device)])
    others = others.cpu().numpy() if isinstance(others, Tensor) else others
    return np.concatenate([X, others])


def padded(X: Any, n: int) -> Any:
    """Return `n` rows: those of `X`, and the last one repeated."""
    lacking = n - n_rows(X)

    def pad(x: np.ndarray | Tensor, _: str) -> np.ndarray | Tensor:
        if isinstance(x, Tensor):
            return torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])])
        return np.concatenate([x, np.repeat(x[-1:], lacking, axis=0)])

    if isinstance(X, Dataset):
        return Subset(X, [*range(len(X)), *[len(X) - 1] * lacking])
    return map_arrays(pad, X, name="X")


def cast(net: NeuralNet, X: Any, *, name: str) -> Any:
    """Return inputs in the dtype that the net takes; a data set stays as it is.

    That of the net's parameters; integers stay integers for nets that embed tokens.

    Raises
    ------
    ValueError
        If values leave the range of that dtype.
    """
    if isinstance(X, Dataset):
        return X
    if isinstance(X, (list, tuple)):
        return [cast(net, x, name=name) for x in X]
    tables = nn.Embedding, nn.EmbeddingBag
    embeds = any(isinstance(layer, tables) for layer in net.module_.modules())
    # By name, as numpy's differ from those of torch.
    dtypes = {_name(parameter.dtype) for parameter in net.module_.parameters()}

    def convert(x: np.ndarray | Tensor, name: str) -> np.ndarray | Tensor:
        if embeds and not _is_floating(x):
            return check_cast(x, torch.int64, name=name)
        if _name(x.dtype) in dtypes:  # half precision is for those who ask for it
            return x
        dtype = torch.float64 if "float64" in dtypes else torch.float32
        return check_cast(x, dtype, name=name)

    return map_arrays(convert, X, name=name)


def _name(dtype: np.dtype | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_floating(x: np.ndarray | Tensor) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"


def n_bytes(X: Any) -> int:
    """Return the memory that the arrays of some inputs take."""
    if isinstance(X, Mapping):
        X = list(X.values())
    return sum(map(n_bytes, X)) if isinstance(X, (list, tuple)) else X.nbytes


def n_bytes_on(device: torch.device, X: Any) -> int:
    """Return the memory of a device that inputs take: none for those of a data set."""
    if isinstance(X, Dataset):
        return 0
    if isinstance(X, Mapping):
        return sum(n_bytes_on(device, x) for x in X.values())
    own = X.device if isinstance(X, Tensor) else torch.device("cpu")
    return X.nbytes if own == device else 0


def n_features(X: Any) -> dict[str, int]:
    """Return ``{"n_features": d}`` if a row of `X` has such a number, else ``{}``."""
    if isinstance(X, Dataset):
        shape = getattr(X[0][0], "shape", ())
        return {"n_features": shape[0]} if shape else {}
    return {} if isinstance(X, Mapping) else {"n_features": X.shape[1]}
