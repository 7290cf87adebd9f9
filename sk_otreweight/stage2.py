"""What stage 2 and a re-weighting method tell each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from skorch import NeuralNet
from torch import Tensor

from sk_otreweight._validation import MetaData
from sk_otreweight.extraction import BlockFeatures
from sk_otreweight.features import Head


@dataclass
class Stage2Data:
    """What a method may use to make its stage-2 step.

    Attributes
    ----------
    net : skorch.NeuralNet
        Initialised.
    head : Head or None
        Where features are read; None if the method said it needs none.
    X : inputs
        Training inputs, in the dtype of the net.
    labels : Tensor of shape (n,)
        Encoded training labels, on the net's device.
    train_rows : Tensor of shape (n_train,)
        Numbers of the rows that are trained on, without those that the net's split
        holds out; on the CPU.
    target_dtype : torch.dtype
        In which the net's loss takes labels.
    class_counts : Tensor of shape (K,)
        Rows of each class seen so far.
    meta : MetaData or None
        Meta rows if some were given.
    features : Tensor of shape (n, d), BlockFeatures or None
        Features of the training rows if the extractor is frozen.
    is_stream : bool
        Whether this is a chunk of a stream.
    epochs : int
        Epochs that stage 2 will take.
    seed : int
    """

    net: NeuralNet
    head: Head | None
    X: Any
    labels: Tensor
    train_rows: Tensor
    target_dtype: torch.dtype
    class_counts: Tensor
    meta: MetaData | None
    features: Tensor | BlockFeatures | None
    is_stream: bool
    epochs: int
    seed: int

    @property
    def is_cached(self) -> bool:
        """Whether stage 2 runs the head alone, on features that are kept."""
        return isinstance(self.features, Tensor) and self.head.can_replay


class StepBatch(NamedTuple):
    """What a stage-2 step is given of a batch.

    Attributes
    ----------
    X : inputs, as the loader gave them
        Features instead, if the extractor is frozen and its features are cached.
    features : Tensor of shape (n, d) or None
        Input of the head in the batch's own forward pass, with its graph; None if the
        step needs none.
    labels : Tensor of shape (n,)
    rows : Tensor of shape (n,) or None
        Row numbers in the training set.
    outputs : Tensor
        What the module returned, with its graph.
    own_losses : callable
        ``own_losses(outputs)`` returns the losses (n,) that the net is configured with,
        for what the module returned, or would have under other parameters.
    losses : Tensor of shape (n,)
        Loss of each row, with its graph.
    """

    X: Any
    features: Tensor | None
    labels: Tensor
    rows: Tensor | None
    outputs: Any
    own_losses: Callable[[Any], Tensor]
    losses: Tensor | None = None


class Stage2Step(ABC):
    """What a method does in stage 2: how it weighs losses, or which losses it has.

    `needs_features` and `needs_losses` say what it looks at in a batch: features are
    read only if they are needed, losses are made sure to be finite.
    `differentiates_twice` says that it takes second derivatives of the losses,
    `draws_rows` that it has a word in which rows an epoch takes.
    """

    needs_features: bool = False
    needs_losses: bool = False
    differentiates_twice: bool = False
    draws_rows: bool = False
    # Attributes that have a state of their own, in a checkpoint.
    stateful: tuple[str, ...] = ()

    @abstractmethod
    def weigh(self, batch: StepBatch) -> Tensor:
        """Return the factors (n,) of the batch's losses, for a plain mean."""

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,), with its graph.

        Parameters
        ----------
        batch : StepBatch
            Without losses.
        """
        return batch.own_losses(batch.outputs)

    def draw_rows(self, labels: Tensor) -> Tensor:
        """Return which rows the next epoch takes, if `draws_rows`.

        Parameters
        ----------
        labels : Tensor of shape (n_train,)
            Labels of the rows to draw from.

        Returns
        -------
        rows : Tensor of int of shape (n_drawn,)
            Numbers in `labels`; rows may occur several times.
        """
        return torch.arange(len(labels))

    def begin_epoch(  # noqa: B027 - optional hook
        self, batches: Sequence[Tensor] | None
    ) -> None:
        """Prepare for an epoch of stage 2.

        Parameters
        ----------
        batches : sequence of Tensor of shape (batch_size,) or None
            Row numbers of the batches to come, if they are known.
        """

    def extra_batch(self) -> tuple[float, Any, Any] | None:
        """Return a weight, inputs and labels whose mean loss is added, or None."""
        return None

    def record(self) -> Mapping[str, float]:
        """Return what the history of this epoch should hold."""
        return {}
