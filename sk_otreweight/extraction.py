"""Features of rows through a skorch net, all at once or block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from skorch import NeuralNet
from skorch.dataset import unpack_data
from skorch.utils import to_tensor
from torch import Tensor

from sk_otreweight.features import Head
from sk_otreweight.inputs import n_bytes, n_bytes_on, n_rows, padded, take
from sk_otreweight.processes import Processes, device_of
from sk_otreweight.wrappers import eager, original

# Features are kept if they need less than this, or an eighth of what the inputs take
# beside them.
_KEPT_BYTES = 2**26
_KEPT_SHARE = 1 / 8
_FEW = 2  # rows to look at; some modules do not take a single one


class BlockFeatures:
    """Features of many rows, computed for the block of rows that is asked for.

    Stands in for a Tensor of shape (n, d) that would need much memory.

    Parameters
    ----------
    net : skorch.NeuralNet
    head : Head
    X : inputs
    """

    def __init__(self, net: NeuralNet, head: Head, X: Any):
        self.net, self.head, self.X = net, head, X
        first = _first_features(net, head, X)
        self.dtype, self.device = first.dtype, first.device
        self.shape = (n_rows(X), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        return extract_features(self.net, self.head, take(self.X, rows))


def training_features(net: NeuralNet, head: Head, X: Any) -> Tensor | BlockFeatures:
    """Return the features of all rows, kept only if they are small beside the inputs.

    Those on the same device, that is: inputs on the host, or still in their files, say
    nothing about the memory of a GPU.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised; left in evaluation mode.
    head : Head
    X : inputs
    """
    first = _first_features(net, head, X)
    features = n_rows(X) * n_bytes(first) / _FEW
    if features <= max(_KEPT_BYTES, _KEPT_SHARE * n_bytes_on(first.device, X)):
        return extract_features(net, head, X)
    return BlockFeatures(net, head, X)


def _first_features(net: NeuralNet, head: Head, X: Any) -> Tensor:
    return extract_features(net, head, padded(take(X, slice(_FEW)), _FEW))


def extract_features(net: NeuralNet, head: Head, X: Any) -> Tensor:
    """Return the features (n, d) of all rows of `X`, in evaluation mode.

    Where several processes train the net, each extracts some of them.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised; left in evaluation mode.
    head : Head
    X : inputs

    Returns
    -------
    features : Tensor of shape (n, d)
        On the net's device.
    """
    features, start, processes = None, 0, Processes.of(net)
    with _evaluated(net):
        for batch in net.get_iterator(net.get_dataset(X), training=False):
            block = batch_features(net, head, unpack_data(batch)[0])
            block = processes.gather(block)[: n_rows(X) - start]  # rows filled up
            if features is None:
                features = block.new_empty(n_rows(X), block.shape[1])
            features[start : start + len(block)] = block
            start += len(block)
    return features


def collated_features(net: NeuralNet, head: Head, batch: Any) -> Tensor:
    """Return the features (n, d) of a batch, a part at a time, in evaluation mode.

    Past the net's loaders, which the batch came from, as to collate it twice is wrong.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised; left in evaluation mode.
    head : Head
    batch : inputs, as a loader gives them
    """
    n = n_rows(batch)
    size = net.get_params_for("iterator_valid").get("batch_size") or net.batch_size
    size = n if size == -1 else size
    slices = [slice(start, start + size) for start in range(0, n, size)]
    with _evaluated(net):
        parts = [batch_features(net, head, take(batch, part)) for part in slices]
    return torch.cat(parts)


@contextmanager
def _evaluated(net: NeuralNet) -> Iterator[None]:
    with torch.no_grad(), eager(net):
        net.module_.eval()
        yield


def batch_features(net: NeuralNet, head: Head, X: Any) -> Tensor:
    """Return the features (n, d) of a batch of inputs, in the net's current mode."""
    if head.function is not None:
        X = to_tensor(X, device=device_of(net))
    return head.features(original(net.module_), net.infer, X)
