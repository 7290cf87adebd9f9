"""Step (a) of Algorithms 1 and 2: features after a virtual update of the net."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from skorch.utils import to_tensor
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from sk_otreweight.features import FeatureExtractor, Head, differentiable
from sk_otreweight.processes import Processes
from sk_otreweight.wrappers import eager, original


class VirtualStep:
    """Step (a): the net after one plain gradient step with the current weights.

    The features under the virtual parameters are computed in evaluation mode: buffers
    stay as they are, and batch and meta rows are normalised alike.
    """

    def __init__(
        self,
        net: NeuralNet,
        head: Head,
        losses: Tensor,
        weights: Tensor,
        *,
        is_exact: bool,
    ) -> None:
        self.is_exact = is_exact
        self.net = net
        module = original(net.module_)
        self.extractor = FeatureExtractor(module, head, net.infer)
        lrs, processes = _learning_rates(net), Processes.of(net)
        named = {
            f"module.{name}": parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) in lrs
        }
        # Each loss counts weight / n, as in the mean that is minimised.
        self.shares = (weights / len(weights)).requires_grad_(is_exact)
        grads = torch.autograd.grad(
            losses,
            list(named.values()),
            grad_outputs=self.shares,
            create_graph=is_exact,
            retain_graph=True,
            allow_unused=True,
        )
        self.moves: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        for (name, parameter), grad in zip(named.items(), grads, strict=True):
            if grad is not None:
                move = -lrs[id(parameter)] * processes.mean(grad)
                self.moves[name] = move
                self.parameters[name] = (parameter + move).detach()
                self.parameters[name].requires_grad_(is_exact)

    def features(self, *batches: Any) -> list[Tensor]:
        """Return the features (n, d) of some batches of inputs.

        Where their shapes allow, the batches pass together: as one call takes less time
        than several, and rows do not meet in evaluation mode.
        """
        batches = [to_tensor(X, device=self.shares.device) for X in batches]
        self.extractor.eval()
        with eager(self.net), torch.set_grad_enabled(self.is_exact):
            if _are_alike(batches):
                sizes = [len(X) for X in batches]
                features = list(self._features(torch.cat(batches)).split(sizes))
            else:
                features = [self._features(X) for X in batches]
        self.extractor.train()
        return features

    def _features(self, X: Any) -> Tensor:
        with differentiable(self.extractor):
            return functional_call(self.extractor, self.parameters, (X,))

    def chain(self, C: Tensor, grad_C: Tensor) -> Tensor:
        """Return the gradient that reaches the loss weights through the cost.

        With v the gradient with respect to the virtual parameters, the gradient of
        weight i is ``-(alpha / n) <grad l_i, v>``.
        """
        unmoved = torch.zeros_like(self.shares)
        if not C.requires_grad:  # all parameters before the features are frozen
            return unmoved
        grads = torch.autograd.grad(
            C,
            list(self.parameters.values()),
            grad_outputs=grad_C,
            allow_unused=True,
            retain_graph=True,
        )
        pairs = [
            (move, grad)
            for move, grad in zip(self.moves.values(), grads, strict=True)
            if grad is not None
        ]
        if not pairs:
            return unmoved
        moves, directions = zip(*pairs, strict=True)
        (shares,) = torch.autograd.grad(
            moves, self.shares, grad_outputs=directions, retain_graph=True
        )
        return shares / len(shares)


def _are_alike(batches: list[Any]) -> bool:
    """Return whether batches are tensors whose rows can be put together."""
    if not all(isinstance(X, Tensor) for X in batches):
        return False
    return len({(X.dtype, X.shape[1:]) for X in batches}) == 1


def _learning_rates(net: NeuralNet) -> dict[int, float]:
    """Return the current learning rate of each parameter that is stepped, by id."""
    optimizers = [part for part in vars(net).values() if isinstance(part, Optimizer)]
    return {
        id(parameter): group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
