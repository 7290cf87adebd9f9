"""How the loss on the meta rows changes with the weight of a training row.

After a virtual step ``phi' = phi - a sum_i w_i grad l_i(phi)`` the derivative of the
meta loss with respect to a weight is exactly

    d L_meta(phi') / d w_i = -a <grad l_i(phi), grad L_meta(phi')> .

All products of a batch are one derivative of its losses in the direction of the meta
gradient: no graph of second order is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.func import functional_call, jvp

from sk_otreweight.baselines.heads import head_layer
from sk_otreweight.extraction import eager, original
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, StepBatch

RowLosses = Callable[[Any], Tensor]


class MetaGradient:
    """Products of the gradients of training rows with that of the meta loss.

    On features that are kept, with a linear head, in closed form; else by one
    forward-mode derivative through the net. Passes are those of training, but leave
    the buffers of the net as they are.

    Parameters
    ----------
    data : Stage2Data
    X, labels : meta inputs, or their features if these are kept, and labels
    """

    def __init__(self, data: Stage2Data, X: Any, labels: Tensor):
        self.data, self.labels = data, labels
        self.X = to_tensor(X, device=data.net.device)
        self.layer = None
        if data.is_cached:
            layer = head_layer(data.net, data.head)
            self.layer = layer if isinstance(layer, nn.Linear) else None

    def products(
        self, batch: StepBatch, row_losses: RowLosses, steps: Tensor | None = None
    ) -> Tensor:
        """Return ``<grad l_i(phi), grad L_meta(phi')>`` for each row (n,).

        Parameters
        ----------
        batch : StepBatch
            With losses; their graph is kept.
        row_losses : callable
            ``row_losses(outputs)`` returns the losses of the batch under other
            parameters.
        steps : Tensor of shape (n,), default=None
            The virtual step, ``phi' = phi - sum_i steps_i grad l_i(phi)``; None takes
            none.
        """
        if self.layer is not None:
            return self._head_products(batch, row_losses, steps)
        with eager(self.data.net):
            return self._net_products(batch, row_losses, steps)

    def meta_loss(self, outputs: Any) -> Tensor:
        """Return the mean cross-entropy of the meta rows."""
        return F.cross_entropy(class_scores(self.data.net, outputs), self.labels)

    def _head_products(
        self, batch: StepBatch, row_losses: RowLosses, steps: Tensor | None
    ) -> Tensor:
        features, layer = batch.features.detach(), self.layer
        with torch.no_grad():
            scores = layer(features)
        errors = self._errors(scores, lambda outputs: row_losses(outputs).sum())
        weight, bias = layer.weight.detach(), layer.bias
        bias = 0 if bias is None else bias.detach()
        if steps is not None:
            moves = steps[:, None] * errors
            weight = weight - moves.T @ features
            if layer.bias is not None:
                bias = bias - moves.sum(0)
        meta_errors = self._errors(self.X @ weight.T + bias, self.meta_loss)
        directions = features @ (meta_errors.T @ self.X).T
        if layer.bias is not None:
            directions = directions + meta_errors.sum(0)
        return (errors * directions).sum(1)

    def _errors(self, scores: Tensor, loss: Callable[[Any], Tensor]) -> Tensor:
        """Return the gradient (n, K) of a loss with respect to the head's outputs."""
        scores = scores.detach().requires_grad_()
        with torch.enable_grad():
            (errors,) = torch.autograd.grad(
                loss(self.data.head.activated(scores)), scores
            )
        return errors

    def _net_products(
        self, batch: StepBatch, row_losses: RowLosses, steps: Tensor | None
    ) -> Tensor:
        run = self.run()
        parameters = run.trained()
        moved = {name: parameter.detach() for name, parameter in parameters.items()}
        if steps is not None:
            grads = torch.autograd.grad(
                batch.losses,
                list(parameters.values()),
                grad_outputs=steps,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            pairs = zip(moved.items(), grads, strict=True)
            moved = {name: value - grad for (name, value), grad in pairs}
        direction = self.direction(run, moved)
        values = {name: parameters[name].detach() for name in direction}

        def losses(named: dict[str, Tensor]) -> Tensor:
            return row_losses(run.under(named, batch.X))

        return derivative(losses, values, direction)

    def run(self) -> Run:
        """Return the net as a module whose parameters can be swapped."""
        return Run(original(self.data.net.module_), self.data.net.infer)

    def direction(self, run: Run, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradient of the meta loss under other parameters.

        Those that it does not depend on are left out.
        """
        named = {name: x.detach().requires_grad_() for name, x in values.items()}
        with torch.enable_grad():
            grads = torch.autograd.grad(
                self.meta_loss(run.under(named, self.X)),
                list(named.values()),
                allow_unused=True,
            )
        pairs = zip(named, grads, strict=True)
        return {name: grad for name, grad in pairs if grad is not None}


def derivative(
    function: Callable[[dict[str, Tensor]], Tensor],
    values: dict[str, Tensor],
    direction: dict[str, Tensor],
) -> Tensor:
    """Return how a function of named tensors changes in a direction, forward mode."""
    with warnings.catch_warnings():
        # What torch needs for it is made by what torch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return jvp(function, (values,), (direction,))[1]


class Run(nn.Module):
    """What a net does with a batch, as a module whose parameters can be swapped.

    Parameters
    ----------
    module : nn.Module
    infer : callable
        ``infer(X)`` runs the module on a batch.
    """

    def __init__(self, module: nn.Module, infer: Callable[[Any], Any]):
        super().__init__()
        self.module = module
        self.infer = infer

    def forward(self, X: Any) -> Any:
        """Return what the module does."""
        return self.infer(X)

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that are trained, by name."""
        named = self.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def under(self, parameters: dict[str, Tensor], X: Any) -> Any:
        """Return what the module does under other parameters; its buffers stay."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return functional_call(self, parameters | buffers, (X,))
