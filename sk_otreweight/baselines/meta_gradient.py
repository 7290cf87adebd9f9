"""How the loss on the meta rows changes with the weight of a training row.

After a virtual step ``phi' = phi - a sum_i w_i grad l_i(phi)`` the derivative of the
meta loss with respect to a weight is exactly

    d L_meta(phi') / d w_i = -a <grad l_i(phi), grad L_meta(phi')> .

All products of a batch are one derivative of its losses in the direction of the meta
gradient: no graph of second order is needed. At a linear head on features that are
kept, the gradient of a row is the outer product of its error with its features, and
the products have a closed form.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.func import functional_call, jvp

from sk_otreweight.baselines.heads import head_layer
from sk_otreweight.processes import device_of
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, StepBatch
from sk_otreweight.wrappers import eager, original

RowLosses = Callable[[Any], Tensor]
Named = dict[str, Tensor]


class MetaGradient(ABC):
    """Gradients of training rows, and of the meta loss.

    Passes are those of training, but leave the buffers of the net as they are.

    Parameters
    ----------
    data : Stage2Data
    X, labels : meta inputs, or their features if these are kept, and labels
    """

    def __init__(self, data: Stage2Data, X: Any, labels: Tensor):
        self.data, self.labels = data, labels
        self.X = to_tensor(X, device=device_of(data.net))

    @abstractmethod
    def parameters(self) -> Named:
        """Return the parameters that are trained, by name."""

    @abstractmethod
    def direction(self, values: Named) -> Named:
        """Return the gradient of the meta loss under other parameters.

        Those that it does not depend on are left out.
        """

    @abstractmethod
    def row_gradients(
        self, batch: StepBatch, row_losses: RowLosses
    ) -> Callable[[slice], list[Tensor]]:
        """Return a function from rows to their gradients (n_rows, ...), in order."""

    @abstractmethod
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

    def meta_loss(self, outputs: Any) -> Tensor:
        """Return the mean cross-entropy of the meta rows."""
        return F.cross_entropy(class_scores(self.data.net, outputs), self.labels)


class NetGradient(MetaGradient):
    """Gradients through the whole net, forward mode where products are asked for.

    Parameters
    ----------
    data, X, labels
        See :class:`MetaGradient`.
    """

    def parameters(self) -> Named:
        """Return the parameters that are trained, by name."""
        return self._run().trained()

    def direction(self, values: Named) -> Named:
        """Return the gradient of the meta loss under other parameters."""
        named = {name: x.detach().requires_grad_() for name, x in values.items()}
        with torch.enable_grad(), eager(self.data.net):
            grads = torch.autograd.grad(
                self.meta_loss(self._run().under(named, self.X)),
                list(named.values()),
                allow_unused=True,
            )
        pairs = zip(named, grads, strict=True)
        return {name: grad for name, grad in pairs if grad is not None}

    def row_gradients(
        self, batch: StepBatch, row_losses: RowLosses
    ) -> Callable[[slice], list[Tensor]]:
        """Return a function from rows to their gradients (n_rows, ...), in order."""
        losses, parameters = batch.losses, list(self.parameters().values())
        units = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)

        def gradients(rows: slice) -> list[Tensor]:
            grads = torch.autograd.grad(
                losses,
                parameters,
                grad_outputs=units[rows],
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return list(grads)

        return gradients

    def products(
        self, batch: StepBatch, row_losses: RowLosses, steps: Tensor | None = None
    ) -> Tensor:
        """Return ``<grad l_i(phi), grad L_meta(phi')>`` for each row (n,)."""
        parameters = self.parameters()
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
        direction = self.direction(moved)
        values = {name: parameters[name].detach() for name in direction}
        run = self._run()

        def losses(named: Named) -> Tensor:
            return row_losses(run.under(named, batch.X))

        with eager(self.data.net):
            return derivative(losses, values, direction)

    def _run(self) -> _Run:
        return _Run(original(self.data.net.module_), self.data.net.infer)


class HeadGradient(MetaGradient):
    """Gradients at a linear head on features that are kept, in closed form.

    Parameters
    ----------
    data, X, labels
        See :class:`MetaGradient`.
    """

    def __init__(self, data: Stage2Data, X: Any, labels: Tensor):
        super().__init__(data, X, labels)
        self.layer = head_layer(data.net, data.head)
        self._parameters = dict(self.layer.named_parameters())
        weight = self.layer.weight
        scores = torch.empty(1, len(weight), device=weight.device)
        is_plain = data.head.activation == "logits"
        self.are_scores = is_plain and class_scores(data.net, scores) is scores
        if self.are_scores:
            self.targets = F.one_hot(labels, len(weight)).to(weight.dtype)

    def parameters(self) -> Named:
        """Return the parameters of the head, "weight" and perhaps "bias"."""
        return self._parameters

    def direction(self, values: Named) -> Named:
        """Return the gradient of the meta loss under other parameters."""
        values = {name: value.detach() for name, value in values.items()}
        return self._gradient(self._meta_errors(F.linear(self.X, **values)), self.X)

    def row_gradients(
        self, batch: StepBatch, row_losses: RowLosses
    ) -> Callable[[slice], list[Tensor]]:
        """Return a function from rows to their gradients (n_rows, ...), in order."""
        errors, features = self._errors(batch, row_losses), batch.features.detach()

        def gradients(rows: slice) -> list[Tensor]:
            outer = errors[rows, :, None] * features[rows, None]
            return [outer] if self.layer.bias is None else [outer, errors[rows]]

        return gradients

    def products(
        self, batch: StepBatch, row_losses: RowLosses, steps: Tensor | None = None
    ) -> Tensor:
        """Return ``<grad l_i(phi), grad L_meta(phi')>`` for each row (n,)."""
        errors, features = self._errors(batch, row_losses), batch.features.detach()
        values = self.parameters()
        if steps is not None:
            moves = self._gradient(steps[:, None] * errors, features)
            values = {name: x.detach() - moves[name] for name, x in values.items()}
        return (errors * F.linear(features, **self.direction(values))).sum(1)

    def _gradient(self, errors: Tensor, features: Tensor) -> Named:
        """Return the sum of the rows' gradients."""
        gradient = {"weight": errors.T @ features}
        if self.layer.bias is not None:
            gradient["bias"] = errors.sum(0)
        return gradient

    def _errors(self, batch: StepBatch, row_losses: RowLosses) -> Tensor:
        """Return the gradients (n, K) of the losses with respect to the scores."""
        if self.data.head.activation == "logits":
            losses, scores = batch.losses, batch.outputs
            ones = torch.ones_like(losses)
            (errors,) = torch.autograd.grad(losses, scores, ones, retain_graph=True)
            return errors.reshape(len(errors), -1)
        with torch.no_grad():
            scores = self.layer(batch.features)
        return self._slope(scores, lambda outputs: row_losses(outputs).sum())

    def _meta_errors(self, scores: Tensor) -> Tensor:
        """Return the gradient (n_meta, K) of the meta loss at these scores."""
        if self.are_scores:
            return (scores.softmax(1) - self.targets) / len(scores)
        return self._slope(scores, self.meta_loss)

    def _slope(self, scores: Tensor, loss: Callable[[Any], Tensor]) -> Tensor:
        scores = scores.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(self.data.head.activated(scores))
            (slope,) = torch.autograd.grad(value, scores)
        return slope


def meta_gradient(data: Stage2Data, X: Any, labels: Tensor) -> MetaGradient:
    """Return the gradients, in closed form where there is one.

    Parameters
    ----------
    data, X, labels
        See :class:`MetaGradient`.
    """
    layer = head_layer(data.net, data.head) if data.is_cached else None
    is_closed = isinstance(layer, nn.Linear) and all(
        parameter.requires_grad for parameter in layer.parameters()
    )
    return (HeadGradient if is_closed else NetGradient)(data, X, labels)


def derivative(function: Callable[[Named], Tensor], at: Named, along: Named) -> Tensor:
    """Return how a function of named tensors changes in a direction, forward mode."""
    with warnings.catch_warnings():
        # What torch needs for it is made by what torch deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return jvp(function, (at,), (along,))[1]


class _Run(nn.Module):
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

    def trained(self) -> Named:
        """Return the parameters that are trained, by name."""
        named = self.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def under(self, parameters: Named, X: Any) -> Any:
        """Return what the module does under other parameters; its buffers stay."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return functional_call(self, parameters | buffers, (X,))
