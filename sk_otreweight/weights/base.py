"""What a weight strategy is: it knows nothing of transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor


class Rows(NamedTuple):
    """Training rows of a batch, of several batches of n rows, or all of them.

    Attributes
    ----------
    features : Tensor of shape (n, d) or None
        None if the strategy does not need them.
    labels : Tensor of shape (n,) or (n_batches, n)
        Labels 0 ... K-1.
    class_start : Tensor of shape (K,)
        Weight that the rows of each class start with.
    index : Tensor of shape (n,) or (n_batches, n), or None
        Row numbers in the training set.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.weights import Rows
    >>> start = torch.tensor([0.5, 1.5])
    >>> rows = Rows(None, labels=torch.tensor([0, 1, 1]), class_start=start, index=None)
    >>> rows.start
    tensor([0.5000, 1.5000, 1.5000])
    """

    features: Tensor | None
    labels: Tensor
    class_start: Tensor
    index: Tensor | None

    @property
    def start(self) -> Tensor:
        """Weight that each row starts with; mean 1 over the training set."""
        return self.class_start[self.labels]


class WeightStrategy(BaseEstimator, ABC):
    """Base of the weight strategies.

    A subclass declares in `needs` what it must be given: ``"features"`` of each batch,
    the ``"index"`` of each batch's rows, or the ``"training_set"`` as a whole, in
    which case `solve` replaces the steps. `per_batch` says that weights mean something
    within a batch only, so that they are scaled to mean 1 there. `separable` says that
    a step for one batch does not touch the weights of other rows: then batches may be
    stepped together, and rows and gradients have a leading dimension.

    Examples
    --------
    One weight for each class, learned by gradient steps on its logarithm:

    >>> import torch
    >>> from sk_otreweight import Reweighter, WeightStrategy
    >>> class WeightOfClass(WeightStrategy):
    ...     per_batch = True
    ...
    ...     def __init__(self, lr=10.0):
    ...         self.lr = lr
    ...
    ...     def start(self, rows, seed):
    ...         self.values_ = rows.class_start.log()
    ...
    ...     def log_weights(self, rows):
    ...         return self.values_[rows.labels]
    ...
    ...     def step(self, rows, grad):
    ...         mean = (self.probabilities(rows) * grad).sum()
    ...         grad = self.probabilities(rows) * (grad - mean)  # through the softmax
    ...         self.values_.index_add_(0, rows.labels, -self.lr * grad)
    >>> labels = torch.tensor([0] * 9 + [1] * 3)
    >>> reweighter = Reweighter(cost="label", weights=WeightOfClass())
    >>> reweighter = reweighter.set_meta(torch.tensor([0, 1])).set_training_set(labels)
    >>> for _ in range(20):
    ...     weights = reweighter(None, labels)
    >>> bool(weights[-1] > 2 * weights[0])
    True
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    per_batch: ClassVar[bool] = False
    separable: ClassVar[bool] = False

    def check_parameters(self) -> None:  # noqa: B027 - optional hook
        """Raise on parameters that are not valid; called before any training."""

    def start(self, rows: Rows, seed: int) -> None:  # noqa: B027 - optional hook
        """Begin with a training set; called once, before the first batch."""

    def begin_batch(self, rows: Rows) -> int:
        """Prepare for a batch and return how many steps it gets."""
        return 1

    def going_on_as(self, other: WeightStrategy) -> WeightStrategy:
        """Return what goes on with the settings of another strategy.

        The strategy itself, with what it has learned, or else the other one.
        """
        is_same = type(self) is type(other) and self.get_params() == other.get_params()
        return self if is_same else other

    def learned_state(self) -> dict[str, Any]:
        """Return what was learned as numbers and tensors, for a file."""
        params = self.get_params(deep=False)
        return {name: x for name, x in vars(self).items() if name not in params}

    def restore_state(
        self, state: dict[str, Any], device: torch.device | str | None = None
    ) -> None:
        """Take up what `learned_state` returned, on another device if one is given."""
        vars(self).update(state)

    @abstractmethod
    def log_weights(self, rows: Rows) -> Tensor:
        """Return the logarithm of the weights (n,), up to a constant if `per_batch`."""

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Move the weights of a batch.

        Parameters
        ----------
        rows : Rows
            The batch.
        grad : Tensor of shape (n,) or (n_batches, n)
            Gradient of the loss with respect to `probabilities` of the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} is solved, not stepped.")

    def synchronise(self, rows: Rows, processes: Any) -> None:
        """Let all processes have what each has learned from a batch of its own.

        Parameters
        ----------
        rows : Rows
            The batch of this process.
        processes : Processes
            ``processes.gather(x)`` returns the rows of all of them, and
            ``processes.mean(x)`` the mean over them.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no method synchronise: use "
            "gather_features=True, so that all processes see the same batches."
        )

    def solve(
        self, cost: Callable[[slice], Tensor], mass: Tensor, reg: float, n_rows: int
    ) -> Tensor:
        """Find the weights of the whole training set at once.

        Parameters
        ----------
        cost : callable
            Returns the cost (n_slice, m) of a slice of the rows.
        mass : Tensor of shape (m,)
            Mass of the points of Q.
        reg : float
            Weight of the entropy.
        n_rows : int
            Rows of the training set.

        Returns
        -------
        cost : Tensor, scalar
            Transport cost ``<C, T>`` that is left.
        """
        raise NotImplementedError(f"{type(self).__name__} is stepped, not solved.")

    def probabilities(self, rows: Rows) -> Tensor:
        """Return the probability of each row within its batch, Eq. 4."""
        return torch.softmax(self.log_weights(rows), -1)

    def masses(self, rows: Rows) -> Tensor:
        """Return positive multiples of `probabilities`, whichever are at hand."""
        return self.probabilities(rows)

    def loss_weights(self, rows: Rows) -> Tensor:
        """Return the factors of the losses of a batch (n,).

        Of mean 1 over the training set or, if `per_batch`, over the batch.
        """
        if self.per_batch:
            return len(rows.labels) * self.probabilities(rows)
        return self.log_weights(rows).exp()


def positive(weights: Tensor) -> Tensor:
    """Return weights with a finite logarithm, also of those that are zero."""
    return weights.clamp(min=torch.finfo(weights.dtype).tiny)
