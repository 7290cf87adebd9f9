"""Weights that a small net reads off the features."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sk_otreweight._validation import check_count, check_makes_modules, check_real
from sk_otreweight.randomness import seeded
from sk_otreweight.weights.base import Rows, WeightStrategy


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
        self.start_from(rows.features, seed)

    def start_from(self, features: Tensor, seed: int) -> None:
        """Initialise the net for features (n, d), unless it has been."""
        self.check_parameters()
        if hasattr(self, "module_"):
            return
        device = features.device
        self.n_features_ = features.shape[1]
        with seeded(seed, device):
            module = self._build(self.n_features_)
            self.module_ = module.to(device=device, dtype=features.dtype).eval()
            with torch.no_grad():
                self.scores(features[:2])  # materialises lazy layers
        self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr)

    def going_on_as(self, other: WeightStrategy) -> WeightStrategy:
        """Return itself unless the other one has another net."""
        if type(self) is not type(other) or not hasattr(self, "module_"):
            return other
        params, others = self.get_params(), other.get_params()
        changed = {name for name in params if params[name] != others[name]}
        if not changed <= {"lr", "optimizer"}:
            return other
        self.set_params(**others)
        if "optimizer" in changed:
            self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr)
        for group in self.optimizer_.param_groups:
            group["lr"] = self.lr
        return self

    def learned_state(self) -> dict[str, Any]:
        """Return what was learned, the net and its optimizer as their states."""
        state = super().learned_state()
        nets = {"module_", "optimizer_"} & state.keys()
        return state | {name: dict(state[name].state_dict()) for name in nets}

    def restore_state(
        self, state: dict[str, Any], device: torch.device | str | None = None
    ) -> None:
        """Build the net and its optimizer again and give them their states."""
        super().restore_state(state)
        if "module_" not in state:
            return
        like = next(x for x in state["module_"].values() if x.is_floating_point())
        module = self._build(self.n_features_)
        self.module_ = module.to(device or like.device, like.dtype).eval()
        self.module_.load_state_dict(state["module_"])
        self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr)
        self.optimizer_.load_state_dict(state["optimizer_"])

    def scores(self, features: Tensor) -> Tensor:
        """Return the net's score of each row (n,)."""
        scores = self.module_(features)
        if scores.numel() != len(features):
            raise ValueError(
                f"The weight net returned shape {tuple(scores.shape)} for features of "
                f"shape {tuple(features.shape)}: it must return one score per row."
            )
        return scores.reshape(len(features))

    def log_weights(self, rows: Rows) -> Tensor:
        """Return the net's scores, on top of the start weights."""
        return self.scores(rows.features) + rows.start.log()

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Take one optimizer step on the net's parameters."""
        self.optimizer_.zero_grad()
        probabilities = self.probabilities(rows)
        probabilities.backward(grad.to(probabilities.dtype))
        self.optimizer_.step()

    def synchronise(self, rows: Rows, processes: Any) -> None:
        """Average the parameters of the net over the processes."""
        with torch.no_grad():
            for parameter in self.module_.parameters():
                parameter.copy_(processes.mean(parameter))


class WeightNet(_NetStrategy):
    """A net of one hidden layer, ``s = w_att tanh(W z)`` (equation 11, Algorithm 2).

    Parameters
    ----------
    lr : float, default=0.1
        Step size beta.
    hidden : int, default=100
        Hidden units A.
    optimizer : Optimizer class, default=torch.optim.SGD
        The paper uses plain stochastic gradient descent.

    Examples
    --------
    >>> from sk_otreweight import OTReweightedClassifier, WeightNet
    >>> clf = OTReweightedClassifier(weights=WeightNet(lr=0.01, hidden=50))
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
    """A self-attention score, ``s_i = <W1 z_i, W2 z_i> / sqrt(d_l)`` (equation 13).

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

    Examples
    --------
    >>> from sk_otreweight import AttentionWeightNet, OTReweightedClassifier
    >>> clf = OTReweightedClassifier(weights=AttentionWeightNet(hidden=64))
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
        returns a module that maps features (n, d) to scores (n,) or (n, 1). It is in
        training mode for its steps only.
    lr : float, default=0.1
        Step size beta.
    optimizer : Optimizer class, default=torch.optim.SGD

    Examples
    --------
    >>> from torch import nn
    >>> from sk_otreweight import ModuleWeights
    >>> weights = ModuleWeights(lambda n_features: nn.Linear(n_features, 1))
    """

    # Of models that were saved before these were kept.
    seed_: int = 0
    n_steps_: int = 0

    def __init__(
        self,
        module: Callable[..., nn.Module],
        lr: float = 0.1,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    ):
        self.module = module
        self.lr = lr
        self.optimizer = optimizer

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        super().check_parameters()
        check_makes_modules(self.module)

    def start_from(self, features: Tensor, seed: int) -> None:
        """Initialise the net for features (n, d), unless it has been."""
        if not hasattr(self, "module_"):
            self.seed_, self.n_steps_ = seed, 0
        super().start_from(features, seed)

    def step(self, rows: Rows, grad: Tensor) -> None:
        """Take one optimizer step on the net's parameters, in training mode."""
        # Dropout draws anew in each step, and the same from a seed.
        with seeded(self.seed_ + self.n_steps_, rows.features.device):
            self.module_.train()
            try:
                super().step(rows, grad)
            finally:
                self.module_.eval()
        self.n_steps_ += 1

    def _build(self, n_features: int) -> nn.Module:
        wanted = [
            parameter
            for parameter in inspect.signature(self.module).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind
            in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        return self.module(n_features) if wanted else self.module()
