"""One free weight per training row."""

from __future__ import annotations

import torch
from torch import Tensor

from sk_otreweight._validation import check_choice, check_count, check_real
from sk_otreweight.weights.base import Rows, positive
from sk_otreweight.weights.rows import RowWeights


class WeightVector(RowWeights):
    """One free weight per training row (equation 10, Algorithm 1).

    A batch's weights are normalised to a probability vector, moved against the gradient
    of the transport cost, and scaled back to the mass they had: weights move within a
    batch, and their mean over the training set stays 1. (Not quite if a sampler repeats
    rows within a batch: they count repeatedly there.)

    Parameters
    ----------
    lr : float, default=1.0
        Step size beta. The paper's plain step uses 1e-3.
    update : {"multiplicative", "sgd"}, default="multiplicative"
        "sgd" is the paper's plain gradient step, cut off at 0. Its gradient is of the
        order of 1 / batch size, so that small step sizes leave the weights
        where they started. "multiplicative" is exponentiated gradient,
        ``log w <- log w - lr * gradient``, the natural step on a simplex.
    keep : bool, default=True
        Keep the weights through training; False re-estimates those of each batch from
        the start weights (table 2, "scratch").
    n_steps : int, default=1
        Gradient steps per batch.

    Examples
    --------
    >>> from sk_otreweight import WeightVector
    >>> paper = WeightVector(lr=1e-3, update="sgd")
    """

    separable = True

    def __init__(
        self,
        lr: float = 1.0,
        update: str = "multiplicative",
        keep: bool = True,
        n_steps: int = 1,
    ):
        self.lr = lr
        self.update = update
        self.keep = keep
        self.n_steps = n_steps

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        check_real(self.lr, name="lr")
        check_choice(self.update, name="update", choices=tuple(_UPDATES))
        check_count(self.n_steps, name="n_steps")

    def start(self, rows: Rows, seed: int) -> None:
        """Set every row to its start weight."""
        self.check_parameters()
        self.values_ = rows.start.clone()

    def begin_batch(self, rows: Rows) -> int:
        """Forget what was learned of the rows unless `keep`."""
        if not self.keep:
            self.values_[rows.index] = rows.start
        return self.n_steps

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Move the weights of the rows against the gradient."""
        values = self.values_[rows.index]
        moved = _UPDATES[self.update](values, grad.to(values.dtype), self.lr)
        self.values_[rows.index] = moved


def _sgd(values: Tensor, grad: Tensor, lr: float) -> Tensor:
    """Step weights of some mass along the part of the gradient that keeps it."""
    mass = values.sum(-1, keepdim=True)
    tangent = grad - (values * grad).sum(-1, keepdim=True) / mass
    moved = (values - lr * tangent / mass).clamp(min=0)
    moved *= mass / moved.sum(-1, keepdim=True)
    # A batch that lost all its weight to others has none to share out.
    return torch.where(mass > 0, moved, values)


def _multiplicative(values: Tensor, grad: Tensor, lr: float) -> Tensor:
    """Step the logarithm of the weights, and scale them back to their mass."""
    moved = torch.softmax(positive(values).log_().sub_(grad, alpha=lr), -1)
    return moved.mul_(values.sum(-1, keepdim=True))


_UPDATES = {"multiplicative": _multiplicative, "sgd": _sgd}
