"""Nets and modules as they are underneath what is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from skorch import NeuralNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def original(module: nn.Module) -> nn.Module:
    """Return a module without ``torch.compile`` and ``DistributedDataParallel``."""
    if isinstance(module, DistributedDataParallel):
        return original(module.module)
    return getattr(module, "_orig_mod", module)


@contextmanager
def eager(net: NeuralNet) -> Iterator[None]:
    """Run the original module and criterion of a net for a while.

    What is compiled overlooks hooks that were registered later, and cannot be
    differentiated twice; what is distributed expects all processes to take part.
    Parameters and buffers are the same.
    """
    parts = {name: getattr(net, name) for name in ("module_", "criterion_")}
    wrapped = {name: x for name, x in parts.items() if original(x) is not x}
    with replaced(net, **{name: original(x) for name, x in wrapped.items()}):
        yield


@contextmanager
def alone(net: NeuralNet) -> Iterator[None]:
    """Let a net evaluate rows of this process only, for a while.

    One of skorch's ``AccelerateMixin`` returns those of all processes otherwise.
    """
    accelerator = getattr(net, "accelerator", None)
    if accelerator is None:
        yield
        return
    with replaced(accelerator, gather_for_metrics=lambda output: output):
        yield


def autocast(net: NeuralNet) -> AbstractContextManager[Any]:
    """Return the precision that a net's training steps compute in, as a context."""
    accelerator = getattr(net, "accelerator", None)
    return nullcontext() if accelerator is None else accelerator.autocast()


def variant(net: NeuralNet, **attributes: Any) -> NeuralNet:
    """Return a net with other methods or attributes, that shares all else with `net`.

    For predictions: other threads may use the same net at that time.
    """
    other = object.__new__(type(net))
    vars(other).update(vars(net), **attributes)
    return other


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give a net, or another object, other methods or attributes for a while.

    For training, where the net is one thread's own and callbacks are to see the change.
    """
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    vars(owner).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(owner)[name]
        vars(owner).update(before)
