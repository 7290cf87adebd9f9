"""Where a net is trained: on which device, and beside which other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sk_otreweight._validation import check_alike, check_is_wrapped


class Processes:
    """The processes that train a net together, each on its rows of every batch.

    Those of the ``Accelerator`` that a net of skorch's ``AccelerateMixin`` was given;
    this one alone for all other nets. What returns a tensor has to be called in all of
    them, with tensors of the same shape, and returns the same in all.

    Parameters
    ----------
    accelerator : accelerate.Accelerator, default=None

    Attributes
    ----------
    n : int
        How many there are.
    rank : int
        Which one this is.
    """

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator
        self.n = getattr(accelerator, "num_processes", 1)
        self.rank = getattr(accelerator, "process_index", 0)

    @classmethod
    def of(cls, net: Any) -> Processes:
        """Return the processes that train a net."""
        return cls(getattr(net, "accelerator", None))

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.n > 1

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows (n, ...) of all processes, one after the other."""
        return self.accelerator.gather(rows) if self.are_several else rows

    def own(self, rows: Tensor) -> Tensor:
        """Return which of gathered rows came from this process."""
        return rows.tensor_split(self.n)[self.rank] if self.are_several else rows

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes."""
        if not self.are_several:
            return value
        return self.accelerator.reduce(value, reduction="mean")

    def mean_of(self, number: float) -> float:
        """Return the mean of the numbers that the processes have."""
        return float(self._collected(number).mean()) if self.are_several else number

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in one of them."""
        return bool(self._collected(int(flag)).any()) if self.are_several else flag

    def first(self, number: int) -> int:
        """Return the number that the first process has."""
        return int(self._collected(number)[0]) if self.are_several else number

    def check_alike(self, **numbers: int) -> None:
        """Raise unless numbers are the same everywhere.

        Raises
        ------
        ValueError
            With the numbers of each process that are not.
        """
        if self.are_several:
            found = {name: self._collected(x) for name, x in numbers.items()}
            check_alike({name: x.tolist() for name, x in found.items()})

    def check_is_wrapped(self, module: nn.Module) -> None:
        """Raise unless a module averages its gradients over the processes."""
        if self.are_several:
            check_is_wrapped(isinstance(module, DistributedDataParallel))

    @contextmanager
    def averaged_gradients(self, module: nn.Module) -> Iterator[None]:
        """Average the gradients of a module over the processes for a while.

        For passes that do not go through its wrapper, which would do so.

        Parameters
        ----------
        module : nn.Module
            Gradients of its parameters that are trained are averaged as soon as a
            backward pass has them.
        """

        def average(parameter: Tensor) -> None:
            parameter.grad.copy_(self.mean(parameter.grad))

        trained = [p for p in module.parameters() if p.requires_grad]
        if not self.are_several:
            trained = []
        handles = [p.register_post_accumulate_grad_hook(average) for p in trained]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _collected(self, number: float) -> Tensor:
        """Return the numbers (n,) of the processes, on the CPU."""
        device = self.accelerator.device
        return self.gather(torch.tensor([number], device=device)).cpu()


def device_of(net: Any) -> Any:
    """Return the device that a net is trained on, None if it has not been given any.

    The accelerator's if it has one, which places its parameters and batches.
    """
    device = getattr(net, "device", None)
    if device is None:
        device = getattr(getattr(net, "accelerator", None), "device", None)
    return device
