"""The meta rows of a training: those that were given, or some of the training rows."""

from __future__ import annotations

from typing import Any

import torch
from skorch.utils import to_tensor
from torch import Tensor

from sk_otreweight.extraction import collated_features, extract_features
from sk_otreweight.inputs import batch_of, take
from sk_otreweight.meta_sets import MetaSet, draw_rows
from sk_otreweight.processes import device_of
from sk_otreweight.stage2 import Stage2Data


def meta_rows(
    data: Stage2Data, per_class: int, generator: torch.Generator
) -> tuple[Any, Tensor]:
    """Return meta inputs, not loaded yet, and their labels on the net's device.

    Parameters
    ----------
    data : Stage2Data
    per_class : int
        Rows of each class that are drawn if no meta rows were given (appendix E), of
        those that are trained on.
    generator : torch.Generator
        On the CPU.
    """
    if data.meta is not None:
        X, labels = data.meta.X, torch.from_numpy(data.meta.y)
    else:
        all_labels, rows = data.labels.cpu(), data.train_rows
        rows = rows[draw_rows(all_labels[rows], per_class, generator)]
        X, labels = take(data.X, rows.numpy()), all_labels[rows]
    return X, labels.to(device_of(data.net))


def meta_features(
    data: Stage2Data,
    meta_set: MetaSet,
    X: Any,
    labels: Tensor,
    *,
    needs_inputs: bool = False,
) -> tuple[Any, Tensor, Tensor]:
    """Return inputs, labels and features of what a meta set takes the meta rows for.

    Parameters
    ----------
    data : Stage2Data
    meta_set : MetaSet
        May have inputs of its own, as means of rows in the space of the inputs.
    X, labels
        From `meta_rows`.
    needs_inputs : bool, default=False
        Whether the inputs are needed, collated and on the net's device. They are None
        otherwise, unless the meta set needs them: all at once they may take up much
        memory.
    """
    net, head = data.net, data.head
    if not (needs_inputs or meta_set.needs_inputs):
        return None, labels, extract_features(net, head, X)
    inputs = to_tensor(batch_of(net, X, slice(None)), device=device_of(net))
    inputs, labels = meta_set.inputs(inputs, labels)
    return inputs, labels, collated_features(net, head, inputs)


def loss_inputs(data: Stage2Data, X: Any) -> Any:
    """Return what stage 2 runs on for inputs: their features, if it keeps those."""
    if data.is_cached:
        return extract_features(data.net, data.head, X)
    return batch_of(data.net, X, slice(None))
