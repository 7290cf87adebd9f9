"""Random numbers that leave the global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from sklearn.utils import check_random_state


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """Return a seed; None takes one from the system, not from numpy's generator."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


@contextmanager
def untouched() -> Iterator[None]:
    """Restore torch's generator of the CPU, which a ``DataLoader`` draws from."""
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's generators inside the context and restore them after it.

    Parameters
    ----------
    seed : int
    device : torch.device or str, default="cpu"
        Device whose generator is used besides the CPU's.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed all other devices too, which nobody restores.
        torch.default_generator.manual_seed(seed)
        with _device_seeded(seed, torch.device(device)):
            yield


@contextmanager
def _device_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Do the same to the generator of a single device, if it has one of its own."""
    module = getattr(torch, device.type, None)
    if not hasattr(module, "get_rng_state"):
        yield
        return
    # There is one mps device at most, and its functions take none.
    place = () if device.type == "mps" else (device,)
    state = module.get_rng_state(*place)
    try:
        with module.device(device) if place else nullcontext():
            module.manual_seed(seed)
        yield
    finally:
        module.set_rng_state(state, *place)
