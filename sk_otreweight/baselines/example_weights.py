"""Weights of rows that last from epoch to epoch (Hu et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from sk_otreweight._validation import check_choice, check_optimizer, check_real
from sk_otreweight.baselines.learned import MetaClassifier, MetaRows, MetaStep
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch

_FLOOR = 1e-5
# Numbers in the gradients of single rows that are computed at a time, and that are kept
# rather than computed twice.
_MOST_TOGETHER, _MOST_KEPT = 2**22, 2**24


@dataclass(eq=False, repr=False, kw_only=True)
class Hu2019Classifier(MetaClassifier):
    """A weight for each row that is learned from meta rows and kept (Hu et al. 2019).

    Hu et al., NeurIPS 2019 ("Learning data manipulation"): a row's weight falls by how
    much the step that the optimizer would take on that row alone raises the loss on the
    meta rows.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`. The optimizer must be SGD, Adam or AdamW.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`; here a step looks at all meta rows by default.
    decay : float, default=10.0
        What weights are divided by at each visit, so that they forget; the authors take
        10 for texts and 2 for images. As ``float("inf")`` nothing is remembered.
    normalize : {"linear", "softmax"}, default="linear"
        How the weights of a batch are scaled to a sum of 1.
    temperature : float, default=1.0
        Of the softmax.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import Hu2019Classifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = Hu2019Classifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "hu2019"
    paper = "Hu et al., NeurIPS 2019"
    can_stream = False  # what is kept belongs to the rows of one training set

    meta_batch_size: int | None = None
    decay: float = 10.0
    normalize: str = "linear"
    temperature: float = 1.0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.decay != float("inf"):
            check_real(self.decay, name="decay", minimum=1.0)
        check_choice(self.normalize, name="normalize", choices=("linear", "softmax"))
        check_real(self.temperature, name="temperature", minimum=1e-6)

    def _adapt_net(self) -> None:
        check_optimizer(self.net_.optimizer_, known=tuple(_STEPS))

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        softness = self.temperature if self.normalize == "softmax" else None
        return _ExampleWeightStep(data, self._meta_rows(), self.decay, softness)


class _ExampleWeightStep(MetaStep):
    """Keeps a raw weight per row; what counts is scaled to mean 1 in each batch."""

    def __init__(
        self,
        data: Stage2Data,
        rows: MetaRows,
        decay: float,
        temperature: float | None,
    ):
        super().__init__(data, rows)
        self.decay, self.temperature = decay, temperature
        self.values = torch.ones(len(data.labels), device=data.labels.device)

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of a batch after their step."""
        optimizer = self.data.net.optimizer_
        values = self.values[batch.rows].to(batch.losses.dtype)
        # The steps of optimizers that remember are not known before their first.
        if optimizer.state or isinstance(optimizer, SGD):
            grads = self.meta_gradients(batch, values)
            values = (values / self.decay - grads).clamp(min=_FLOOR)
            self.values[batch.rows] = values.to(self.values.dtype)
        if self.temperature is None:
            return values * (len(values) / values.sum())
        return len(values) * (values / self.temperature).softmax(0)

    def meta_gradients(self, batch: StepBatch, values: Tensor) -> Tensor:
        """Return how the meta loss changes with the raw weights (n,)."""
        parameters = self.meta.parameters()
        gradients = self.meta.row_gradients(batch, self.row_losses(batch))
        steps = _RowSteps(
            gradients, len(values), list(parameters.values()), self.data.net
        )
        moved = {name: p.detach().clone() for name, p in parameters.items()}
        for rows, parts in steps:
            for value, part in zip(moved.values(), parts, strict=True):
                value += torch.tensordot(values[rows], part, dims=1)
        direction = self.meta.direction(moved)
        grads = torch.zeros_like(values)
        for rows, parts in steps:
            for name, part in zip(parameters, parts, strict=True):
                if name in direction:
                    grads[rows] += part.flatten(1) @ direction[name].flatten()
        return grads


class _RowSteps:
    """The steps that an optimizer would take on single rows, a few at a time.

    Parameters
    ----------
    gradients : callable
        ``gradients(rows)`` returns those of some rows, (n_rows, ...) of each parameter.
    n_rows : int
    parameters : list of Tensor
    net : skorch.NeuralNet
    """

    def __init__(
        self,
        gradients: Callable[[slice], list[Tensor]],
        n_rows: int,
        parameters: list[Tensor],
        net: NeuralNet,
    ):
        self.gradients, self.n_rows = gradients, n_rows
        self.parameters, self.optimizer = parameters, net.optimizer_
        n_parameters = sum(p.numel() for p in parameters)
        self.n_together = max(1, _MOST_TOGETHER // n_parameters)
        n_numbers = n_rows * n_parameters
        self.kept = list(self._computed()) if n_numbers <= _MOST_KEPT else None

    def __iter__(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield some rows, and their steps (n_rows, ...) of each parameter."""
        return iter(self.kept) if self.kept is not None else self._computed()

    def _computed(self) -> Iterator[tuple[slice, list[Tensor]]]:
        for start in range(0, self.n_rows, self.n_together):
            rows = slice(start, min(start + self.n_together, self.n_rows))
            yield rows, self._steps(self.gradients(rows))

    def _steps(self, grads: list[Tensor]) -> list[Tensor]:
        groups = self.optimizer.param_groups
        group_of = {id(p): group for group in groups for p in group["params"]}
        kinds = (kind for kind in _STEPS if isinstance(self.optimizer, kind))
        step = _STEPS[next(kinds)]
        with torch.no_grad():
            return [
                step(self.optimizer, group_of[id(p)], p, grad)
                for p, grad in zip(self.parameters, grads, strict=True)
            ]


def _sgd_step(
    optimizer: SGD, group: dict[str, Any], p: Tensor, grads: Tensor
) -> Tensor:
    state, lr, momentum = optimizer.state.get(p, {}), group["lr"], group["momentum"]
    moved = grads = grads + group["weight_decay"] * p
    if state.get("momentum_buffer") is not None:
        kept = momentum * state["momentum_buffer"]
        moved = kept + (1 - group["dampening"]) * grads
    return -lr * (grads + momentum * moved if group["nesterov"] else moved)


def _adam_step(
    optimizer: Adam | AdamW, group: dict[str, Any], p: Tensor, grads: Tensor
) -> Tensor:
    state, lr, decay = optimizer.state.get(p, {}), group["lr"], group["weight_decay"]
    is_decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    if not is_decoupled:
        grads = grads + decay * p
    (beta1, beta2), t = group["betas"], float(state.get("step", 0)) + 1
    mean = beta1 * state.get("exp_avg", 0) + (1 - beta1) * grads
    square = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * grads**2
    root = (square / (1 - beta2**t)).sqrt() + group["eps"]
    steps = -lr * mean / (1 - beta1**t) / root
    return steps - lr * decay * p if is_decoupled else steps


# The steps (n, ...) of one parameter for each of some gradients, by optimizer.
_STEPS = {SGD: _sgd_step, Adam: _adam_step, AdamW: _adam_step}
