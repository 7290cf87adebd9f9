"""Find the classifier head of any module and read the features it is given.

The features of a row are the input of the head f2, the layer that produces the class
scores; everything before is the extractor f1 (section 4.2 of the paper).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

# What may follow the head inside a module, tried in this order.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda scores: scores,
    "softmax": lambda scores: scores.softmax(-1),
    "log_softmax": lambda scores: scores.log_softmax(-1),
    "sigmoid": torch.sigmoid,
}


@dataclass
class Head:
    """Where a module's features are read.

    Attributes
    ----------
    name : str or None
        Dotted name of the head module; its input are the features.
    function : callable or None
        ``function(module, X)`` returns the features instead.
    activation : str or None
        What turns the head's output into the module's; None if unknown, then
        the head cannot be run on features alone.
    output_shape : tuple of int
        Shape of the module's output for one row.
    """

    name: str | None = None
    function: Callable[[nn.Module, Any], Tensor] | None = None
    activation: str | None = None
    output_shape: tuple[int, ...] = ()

    @property
    def can_replay(self) -> bool:
        """Whether the module's output can be computed from the features alone."""
        return self.activation is not None

    @contextmanager
    def tap(self, module: nn.Module) -> Iterator[Tap]:
        """Catch the features of the forward passes done inside the context."""
        tap = Tap()
        if self.name is None:
            yield tap
            return
        handle = module.get_submodule(self.name).register_forward_pre_hook(
            tap.catch, with_kwargs=True
        )
        try:
            yield tap
        finally:
            handle.remove()

    def features(
        self, module: nn.Module, infer: Callable[[Any], Any], X: Any
    ) -> Tensor:
        """Return the features (n, d) of a batch by a forward pass.

        Parameters
        ----------
        module : nn.Module
        infer : callable
            ``infer(X)`` runs the module on a batch.
        X : batch of inputs
        """
        if self.function is not None:
            features = self.function(module, X)
            return _check_features(features, len(X) if isinstance(X, Tensor) else None)
        with self.tap(module) as tap:
            infer(X)
        return tap.features()

    def replay(self, module: nn.Module, features: Tensor) -> Tensor:
        """Return what the module returns for rows with these features."""
        return self.activated(module.get_submodule(self.name)(features))

    def activated(self, scores: Tensor) -> Tensor:
        """Return what the module returns where its head returns these scores."""
        output = _ACTIVATIONS[self.activation](scores)
        return output.reshape(len(scores), *self.output_shape)


@dataclass
class Tap:
    """Keeps the input of a hooked layer, of the passes of the thread that made it."""

    caught: list[Tensor] = field(default_factory=list)
    thread: int = field(default_factory=get_ident)

    def catch(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Remember the layer's input (a forward pre-hook).

        In the precision of its parameters: under autocast, it comes in a lower one.
        """
        # Another thread that uses the same module, and may see the hook before it is
        # known to take keywords.
        if get_ident() != self.thread:
            return
        features = _first_input(args, kwargs or {})
        parameter = next(module.parameters(), None)
        if parameter is not None and isinstance(features, Tensor):
            features = features.to(parameter.dtype)
        self.caught = [features]

    def features(self) -> Tensor:
        """Return what was caught.

        Raises
        ------
        RuntimeError
            If the layer was not called.
        """
        if not self.caught:
            raise RuntimeError(
                "The head was not called during the forward pass, so its input could "
                "not be read. Pass head='<name of a module that is called>'. A "
                "compiled module ignores hooks that were added after compilation."
            )
        return _check_features(self.caught.pop())


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the input of a layer that was called with these, by name or not."""
    return next(iter((*args, *kwargs.values())), None)


def _check_features(features: Any, n_rows: int | None = None) -> Tensor:
    is_tensor = isinstance(features, Tensor)
    if is_tensor and features.ndim == 2 and n_rows in (None, len(features)):
        return features
    shape = f"shape {tuple(features.shape)}" if is_tensor else "no shape"
    raise ValueError(
        f"The features are a {type(features).__name__} of {shape}"
        + (f" for {n_rows} rows" if n_rows is not None else "")
        + ": one vector per row is needed. Pass head='<name of a module whose input "
        "has shape (n, d)>', or a callable head(module, X) that returns such features."
    )


def find_head(
    module: nn.Module,
    infer: Callable[[Any], Any],
    X: Any,
    head: str | Callable[[nn.Module, Any], Tensor] | None = None,
) -> Head:
    """Find the layer that produces a module's class scores.

    Runs the module once and looks for the linear layer whose output, as it is or after
    a softmax, log-softmax or sigmoid, is the output of the module. The order in
    which layers are registered or called says nothing about that.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    infer : callable
        ``infer(X)`` runs the module on a batch.
    X : batch of inputs
        A few rows.
    head : str or callable, default=None
        Dotted name of the head, or ``head(module, X)`` returning the features; None
        finds it.

    Returns
    -------
    head : Head

    Raises
    ------
    ValueError
        If `head` is not a module's name, or no or several layers match; the message
        lists the candidates.
    """
    if callable(head) and not isinstance(head, nn.Module):
        found = Head(function=head)
        with torch.no_grad():
            found.features(module, infer, X)
        return found
    if head is not None and not isinstance(head, str):
        raise ValueError(
            f"head={head!r} is not valid: give the dotted name of a module of the net, "
            "a callable head(module, X) that returns the features, or None."
        )
    layers = dict(module.named_modules())
    if not isinstance(module, nn.Linear):  # the net as a whole is no layer
        layers.pop("")
    if head is not None and head not in layers:
        raise ValueError(
            f"head={head!r} is not a module of the net. Its modules are {list(layers)}."
        )
    watched = {
        name: layer
        for name, layer in layers.items()
        if name == head or isinstance(layer, nn.Linear)
    }
    seen = _Forward.watch(watched, infer, X)
    matches = {
        name: activation
        for name, output in seen.outputs.items()
        if (activation := _match(output, seen.result)) is not None
    }
    is_unique = len(matches) == 1 and seen.calls[next(iter(matches))] == 1
    if head is not None:
        if head not in seen.outputs:
            raise ValueError(
                f"head={head!r} was not called in the forward pass. Linear layers "
                f"seen, in order: {seen.describe()}."
            )
        return seen.head(head, matches.get(head) if is_unique else None)
    if is_unique:
        return seen.head(*matches.popitem())
    if not matches:
        raise ValueError(
            "Could not find the layer that produces the class scores: no nn.Linear "
            "returned the net's output. Pass head='<name of a module>' (its input is "
            "used as features), or a callable head(module, X) that returns the "
            f"features. Linear layers seen, in order: {seen.describe()}."
        )
    raise ValueError(
        f"The layer that produces the class scores is ambiguous: {list(matches)} "
        "return the net's output, or do so more than once in a forward pass. Pass "
        "head='<one of them>', or a callable head(module, X) that returns the features."
    )


@dataclass
class _Forward:
    """What some layers did in one forward pass, in the order of execution."""

    outputs: dict[str, Any] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    output: Any = None
    thread: int = field(default_factory=get_ident)

    @classmethod
    def watch(
        cls, layers: dict[str, nn.Module], infer: Callable[[Any], Any], X: Any
    ) -> _Forward:
        """Run the module and watch the layers."""
        seen = cls()
        handles = [
            layer.register_forward_hook(partial(seen._note, name), with_kwargs=True)
            for name, layer in layers.items()
        ]
        try:
            with torch.no_grad():
                seen.output = infer(X)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _note(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], *rest: Any
    ) -> None:
        if get_ident() != self.thread:  # see Tap
            return
        kwargs, output = rest
        self.outputs[name] = output
        self.calls[name] += 1
        features = _first_input(args, kwargs)
        if isinstance(features, Tensor):
            self.input_shapes[name] = tuple(features.shape)

    @property
    def result(self) -> Tensor:
        """The module's scores."""
        return first_output(self.output)

    def head(self, name: str, activation: str | None) -> Head:
        """Return the head of this name."""
        if not isinstance(self.output, Tensor):
            activation = None  # a loss may use the other outputs
        return Head(name, None, activation, tuple(self.result.shape[1:]))

    def describe(self) -> str:
        """List the layers that were called."""
        layers = [
            f"{name} (input {shape})" for name, shape in self.input_shapes.items()
        ]
        return ", ".join(layers) or "none"


def _match(output: Any, result: Tensor) -> str | None:
    """Return the activation that turns a layer's output into the module's, if any."""
    if not isinstance(output, Tensor) or output.numel() != result.numel():
        return None
    for name, activation in _ACTIVATIONS.items():
        candidate = activation(output).reshape(result.shape).to(result.dtype)
        if torch.allclose(candidate, result, rtol=0, atol=1e-5):
            return name
    return None


def first_output(output: Any) -> Tensor:
    """Return the scores of a module that returns more: first, or as ``logits``."""
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def return_scores_alone(module: nn.Module) -> None:
    """Let a module that returns more than its scores return these alone."""
    module.register_forward_hook(_return_scores)
    module.returns_scores_alone = True  # what is saved and loaded has no hooks


def _return_scores(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    return first_output(output)


class ReplacedHead(nn.Module):
    """Base of the layers that can take the place of a net's last one.

    Called with the ``nn.Linear`` whose place they take, and arguments of their own.
    """


def put_head(
    module: nn.Module, name: str, kind: type[ReplacedHead], arguments: dict[str, Any]
) -> nn.Module:
    """Put a layer in the place of a module's last one.

    Parameters
    ----------
    module : nn.Module
        Changed in place, unless it is the layer itself.
    name : str
        Dotted name of the layer.
    kind : type
    arguments : dict
        Of `kind`, beside the layer.

    Returns
    -------
    module : nn.Module
    """
    layer = module.get_submodule(name)
    new = kind(layer, **arguments).to(layer.weight.device, layer.weight.dtype)
    if name:
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, new)
    else:
        module = new
    # What is saved and loaded is built without it.
    module.replaced_head = {"name": name, "kind": kind, "arguments": arguments}
    return module


def differentiable(module: nn.Module) -> AbstractContextManager[Any]:
    """Let a module be differentiated in evaluation mode, and twice, as a context.

    The recurrent layers of cuDNN cannot; torch's own can.
    """
    if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


def extractor_parameters(
    head: Head, module: nn.Module, infer: Callable[[Any], Any], X: Any
) -> set[str]:
    """Return the names of the parameters that the features depend on.

    All others belong to the head's side of the module.
    """
    named = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    with torch.enable_grad(), differentiable(module):
        features = head.features(module, infer, X)
        if not features.requires_grad:
            return set()
        grads = torch.autograd.grad(
            features.sum(), list(named.values()), allow_unused=True
        )
    return {name for name, grad in zip(named, grads, strict=True) if grad is not None}


class FeatureExtractor(nn.Module):
    """A module seen as one that returns features, with parameters that can be swapped.

    For ``torch.func.functional_call``: step (a) of the algorithms needs features under
    parameters that are not the module's own.

    Parameters
    ----------
    module : nn.Module
    head : Head
    infer : callable
        ``infer(X)`` runs the module on a batch.
    """

    def __init__(self, module: nn.Module, head: Head, infer: Callable[[Any], Any]):
        super().__init__()
        self.module = module
        self.head = head
        self.infer = infer

    def forward(self, X: Any) -> Tensor:
        """Return the features (n, d) of a batch."""
        return self.head.features(self.module, self.infer, X)
