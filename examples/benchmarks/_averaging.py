"""Averaged parameters, so that a net is not judged by its last step."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor


class AveragedParameters(Callback):
    """Ends a training with a moving average of the parameters and buffers.

    A constant learning rate leaves a net at a random place around what it converges
    to, which moves the error of a single fit by a point or more.

    It begins anew with each training, and first is the mean of all steps, so that what
    the net began with has no share in it. Not for nets with batch normalisation, whose
    statistics are those of another net then.

    Parameters
    ----------
    decay : float, default=0.99
        Of the average, per batch, once there were as many batches as it looks back to.
    """

    def __init__(self, decay: float = 0.99):
        self.decay = decay

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Begin with the parameters as they are."""
        self.average_ = {name: x.clone() for name, x in _state(net).items()}
        self.n_batches_ = 0

    @torch.no_grad()
    def on_batch_end(
        self, net: NeuralNet, training: bool = True, **kwargs: Any
    ) -> None:
        """Move the average."""
        if not training:
            return
        self.n_batches_ += 1
        share = max(1 - self.decay, 1 / self.n_batches_)
        for name, x in _state(net).items():
            if x.is_floating_point():
                self.average_[name].lerp_(x, share)
            else:
                self.average_[name].copy_(x)

    @torch.no_grad()
    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Put the average in the place of the parameters."""
        for name, x in _state(net).items():
            x.copy_(self.average_[name])


def _state(net: NeuralNet) -> dict[str, Tensor]:
    return dict(net.module_.state_dict())
