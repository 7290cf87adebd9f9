"""How the weights of the training rows are represented and moved (section 4.3).

A strategy knows nothing of transport: it says which weights a batch has, and takes the
gradient of the transport cost with respect to the batch's probabilities.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sk_otreweight._validation import check_choice, check_count, check_real, resolve
from sk_otreweight.randomness import seeded
from sk_otreweight.transport import solve_semirelaxed


class Rows(NamedTuple):
    """Training rows of a batch, or all of them.

    Attributes
    ----------
    features : Tensor of shape (n, d) or None
        None if the strategy does not need them.
    start : Tensor of shape (n,)
        Weight that each row starts with; mean 1 over the training set.
    index : Tensor of shape (n,) or None
        Row numbers in the training set.
    """

    features: Tensor | None
    start: Tensor
    index: Tensor | None


class WeightStrategy(BaseEstimator, ABC):
    """Base of the weight strategies.

    A subclass declares in `needs` what it must be given: ``"features"`` of each batch,
    the ``"index"`` of each batch's rows, or the ``"training_set"`` as a whole, in
    which case `solve` replaces the steps. `per_batch` says that weights mean something
    within a batch only, so that they are scaled to mean 1 there.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    per_batch: ClassVar[bool] = False

    def check_parameters(self) -> None:  # noqa: B027 - optional hook
        """Raise on parameters that are not valid; called before any training."""

    def start(self, rows: Rows, seed: int) -> None:  # noqa: B027 - optional hook
        """Begin with a training set; called once, before the first batch."""

    def begin_batch(self, rows: Rows) -> int:
        """Prepare for a batch and return how many steps it gets."""
        return 1

    @abstractmethod
    def log_weights(self, rows: Rows) -> Tensor:
        """Return the logarithm of the weights (n,), up to a constant if `per_batch`."""

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Move the weights of a batch.

        Parameters
        ----------
        rows : Rows
            The batch.
        grad : Tensor of shape (n,)
            Gradient of the loss with respect to `probabilities` of the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} is solved, not stepped.")

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
        """Return the probability of each row within the batch (n,), Eq. 4."""
        return torch.softmax(self.log_weights(rows), 0)

    def loss_weights(self, rows: Rows) -> Tensor:
        """Return the factors of the losses of a batch (n,).

        Of mean 1 over the training set or, if `per_batch`, over the batch.
        """
        if self.per_batch:
            return len(rows.start) * self.probabilities(rows)
        return self.log_weights(rows).exp()


class WeightVector(WeightStrategy):
    """One free weight per training row (Eq. 10, Algorithm 1).

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

    needs = frozenset({"index"})

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

    def log_weights(self, rows: Rows) -> Tensor:
        """Return the log of the rows' weights."""
        return _log(self.values_ if rows.index is None else self.values_[rows.index])

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Move the weights of the rows against the gradient."""
        values = self.values_[rows.index]
        mass = values.sum()
        a = self.probabilities(rows)
        # Only the part of the gradient that keeps the mass can be followed.
        tangent = grad - (a * grad).sum()
        moved = mass * _UPDATES[self.update](a, tangent, self.lr, mass)
        # A batch that lost all its weight to others has none to share out.
        self.values_[rows.index] = torch.where(mass > 0, moved, values)


def _sgd(a: Tensor, tangent: Tensor, lr: float, mass: Tensor) -> Tensor:
    """Step the weights ``mass * a``; return probabilities."""
    moved = (a - lr * tangent / mass**2).clamp(min=0)
    return moved / moved.sum()


def _multiplicative(a: Tensor, tangent: Tensor, lr: float, mass: Tensor) -> Tensor:
    """Step the logarithm of the weights; return probabilities."""
    return torch.softmax(_log(a) - lr * tangent, 0)


def _log(weights: Tensor) -> Tensor:
    """Return a finite logarithm, also of weights that are zero."""
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()


_UPDATES = {"multiplicative": _multiplicative, "sgd": _sgd}


class _NetStrategy(WeightStrategy):
    """Weights that a small net reads off the features; subclasses build the net."""

    needs = frozenset({"features"})
    per_batch = True

    lr: float
    optimizer: type[torch.optim.Optimizer]

    @abstractmethod
    def _build(self, n_features: int) -> nn.Module:
        """Return a module that maps features (n, d) to scores (n,)."""

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        check_real(self.lr, name="lr")
        if "hidden" in self.get_params(deep=False):
            check_count(self.hidden, name="hidden")

    def start(self, rows: Rows, seed: int) -> None:
        """Initialise the net, unless it has been (in a stream it goes on learning)."""
        self.check_parameters()
        if hasattr(self, "module_"):
            return
        device = rows.features.device
        with seeded(seed, device):
            module = self._build(rows.features.shape[1])
        self.module_ = module.to(device=device, dtype=rows.features.dtype)
        with torch.no_grad():
            self._scores(rows.features[:2])  # materialises lazy layers
        self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr)

    def _scores(self, features: Tensor) -> Tensor:
        scores = self.module_(features)
        if scores.numel() != len(features):
            raise ValueError(
                f"The weight net returned shape {tuple(scores.shape)} for features of "
                f"shape {tuple(features.shape)}: it must return one score per row."
            )
        return scores.reshape(len(features))

    def log_weights(self, rows: Rows) -> Tensor:
        """Return the net's scores, on top of the start weights."""
        return self._scores(rows.features) + rows.start.log()

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Take one optimizer step on the net's parameters."""
        self.optimizer_.zero_grad()
        probabilities = self.probabilities(rows)
        probabilities.backward(grad.to(probabilities.dtype))
        self.optimizer_.step()


class WeightNet(_NetStrategy):
    """A net of one hidden layer, ``s = w_att tanh(W z)`` (Eq. 11, Algorithm 2).

    Parameters
    ----------
    lr : float, default=0.1
        Step size beta.
    hidden : int, default=100
        Hidden units A.
    optimizer : Optimizer class, default=torch.optim.SGD
        The paper uses plain stochastic gradient descent.
    """

    def __init__(
        self,
        lr: float = 0.1,
        hidden: int = 100,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    ):
        self.lr = lr
        self.hidden = hidden
        self.optimizer = optimizer

    def _build(self, n_features: int) -> nn.Module:
        # The paper omits the biases (below Eq. 11).
        return nn.Sequential(
            nn.Linear(n_features, self.hidden, bias=False),
            nn.Tanh(),
            nn.Linear(self.hidden, 1, bias=False),
        )


class AttentionWeightNet(_NetStrategy):
    """A self-attention score, ``s_i = <W1 z_i, W2 z_i> / sqrt(d_l)`` (Eq. 13, table 8).

    Table 8 lists the whole product of the two encodings, (batch, batch); Eq. 13 reads
    its diagonal, one score per row, and so does this class.

    Parameters
    ----------
    lr : float, default=0.04
        Step size beta, the paper's (table 10).
    hidden : int, default=128
        Width d_l of the two encodings, the paper's.
    optimizer : Optimizer class, default=torch.optim.SGD
        The paper uses plain stochastic gradient descent.
    """

    def __init__(
        self,
        lr: float = 0.04,
        hidden: int = 128,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    ):
        self.lr = lr
        self.hidden = hidden
        self.optimizer = optimizer

    def _build(self, n_features: int) -> nn.Module:
        return _AttentionScore(n_features, self.hidden)


class _AttentionScore(nn.Module):
    """Dot product of two linear encodings of the same row."""

    def __init__(self, n_features: int, hidden: int):
        super().__init__()
        self.query = nn.Linear(n_features, hidden)
        self.key = nn.Linear(n_features, hidden)

    def forward(self, features: Tensor) -> Tensor:
        products = (self.query(features) * self.key(features)).sum(1)
        return products / self.query.out_features**0.5


class ModuleWeights(_NetStrategy):
    """Weights by a net of your own.

    Parameters
    ----------
    module : nn.Module class or callable
        Called with the number of features, or with nothing if it takes no argument;
        returns a module that maps features (n, d) to scores (n,) or (n, 1).
    lr : float, default=0.1
        Step size beta.
    optimizer : Optimizer class, default=torch.optim.SGD

    Examples
    --------
    >>> from torch import nn
    >>> from sk_otreweight import ModuleWeights
    >>> weights = ModuleWeights(lambda n_features: nn.Linear(n_features, 1))
    """

    def __init__(
        self,
        module: Callable[..., nn.Module],
        lr: float = 0.1,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    ):
        self.module = module
        self.lr = lr
        self.optimizer = optimizer

    def _build(self, n_features: int) -> nn.Module:
        wanted = [
            parameter
            for parameter in inspect.signature(self.module).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind
            in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        return self.module(n_features) if wanted else self.module()


class SemiRelaxedWeights(WeightStrategy):
    """The best weights in closed form, over the whole training set.

    Minimising the transport problem over the plan *and* the weights drops the
    constraint on the rows, and what is left has a closed form (see
    :func:`semirelaxed_weights`): every point of Q spreads its mass over the rows that
    cost it least. No iteration, no step size, no batch that lacks a class. With the
    label cost and ``reg -> 0`` these are inverse class frequencies.

    Examples
    --------
    >>> from sk_otreweight import OTReweightedClassifier, SemiRelaxedWeights
    >>> clf = OTReweightedClassifier(weights=SemiRelaxedWeights())
    """

    needs = frozenset({"training_set", "index"})

    def start(self, rows: Rows, seed: int) -> None:
        """Weigh all rows alike until solved."""
        self.values_ = torch.ones_like(rows.start)

    def solve(
        self, cost: Callable[[slice], Tensor], mass: Tensor, reg: float, n_rows: int
    ) -> Tensor:
        """Solve the closed form."""
        weights, transport_cost = solve_semirelaxed(cost, mass, reg, n_rows=n_rows)
        self.values_ = (n_rows / weights.sum() * weights).to(self.values_.dtype)
        return transport_cost

    def log_weights(self, rows: Rows) -> Tensor:
        """Return the log of the rows' weights."""
        return _log(self.values_ if rows.index is None else self.values_[rows.index])


WEIGHTS: dict[str, type[WeightStrategy]] = {
    "vector": WeightVector,
    "net": WeightNet,
    "attention": AttentionWeightNet,
    "semirelaxed": SemiRelaxedWeights,
}


def resolve_weights(weights: Any) -> WeightStrategy:
    """Return the strategy that a name, an instance or a module class stands for."""
    return resolve(
        weights, slot="weights", table=WEIGHTS, base=WeightStrategy, wrap=ModuleWeights
    )


def start_uniform(counts: Tensor) -> Tensor:
    """Return the same weight for every class (K,)."""
    return torch.ones_like(counts)


def start_inverse(counts: Tensor) -> Tensor:
    """Return the inverse class frequency (K,); 0 for classes without rows."""
    return torch.where(counts > 0, 1 / counts.clamp(min=1), torch.zeros_like(counts))


def start_class_balanced(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return the inverse effective number of rows (K,) of Cui et al., CVPR 2019.

    ``(1 - beta) / (1 - beta^n)``, where the released code of the paper starts.
    """
    effective = -torch.expm1(counts * torch.log(torch.tensor(beta, dtype=counts.dtype)))
    effective = effective / (1 - beta)
    return torch.where(
        counts > 0, 1 / effective.clamp(min=1e-12), torch.zeros_like(counts)
    )


START_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": start_uniform,
    "class_balanced": start_class_balanced,
    "inverse": start_inverse,
}


def class_start_weights(init_weights: str, counts: Tensor) -> Tensor:
    """Return the start weight of each class, of mean 1 over the training rows.

    Parameters
    ----------
    init_weights : {"uniform", "class_balanced", "inverse"}
    counts : Tensor of shape (K,)
        Training rows of each class.

    Returns
    -------
    weights : Tensor of shape (K,)
        In float64.
    """
    check_choice(init_weights, name="init_weights", choices=tuple(START_WEIGHTS))
    counts = counts.double()
    weights = START_WEIGHTS[init_weights](counts)
    return weights * counts.sum() / (weights * counts).sum()
