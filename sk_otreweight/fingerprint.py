"""What a fit depends on, as text: how things are set, and a hash of the data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset


def settings(value: Any) -> str:
    """Return what a value is set to as text, the same in every process.

    An estimator, a net or a callback is its class and its parameters: the text form of
    a net that is not initialized yet shows its module, but not how it is trained.
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(settings, value))}]"
    if isinstance(value, (set, frozenset)):  # strings have another order in each run
        return settings(sorted(value, key=repr))
    if isinstance(value, nn.Module):
        return f"{value!r}{_state_hash(value)}"
    if isinstance(value, type) or not hasattr(value, "get_params"):
        return _plain_settings(value)
    params = value.get_params(deep=False)
    if "accelerator" in params:
        params["accelerator"] = _accelerator_settings(params["accelerator"])
    text = ", ".join(f"{name}={settings(params[name])}" for name in sorted(params))
    trained = getattr(value, "module_", None)
    state = _state_hash(trained) if isinstance(trained, nn.Module) else ""
    return f"{type(value).__name__}({text}){state}"


def data_digest(*parts: Any, also: str = "") -> str:
    """Return a hash of arrays, or mappings of these.

    Parameters
    ----------
    *parts : array-like, mapping or Dataset
        A Dataset is known by its class and length alone: its items may be files.
    also : str, default=""
        What else the hash is to depend on.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        _update(digest, part)
    digest.update(also.encode())
    return digest.hexdigest()


def _accelerator_settings(accelerator: Any) -> dict[str, Any]:
    """Return how an accelerator trains: its text form is another in each process."""
    names = ("num_processes", "mixed_precision", "gradient_accumulation_steps")
    return {name: getattr(accelerator, name, None) for name in names}


def _plain_settings(value: Any) -> str:
    """Return the text form of a value, or its attributes if that has an address."""
    text = repr(value)
    if (
        " at 0x" in text
        and not isinstance(value, type)
        and getattr(value, "__dict__", {})
    ):
        text = f"{type(value).__name__}{vars(value)}"
    return _without_addresses(text)


def _state_hash(module: nn.Module) -> str:
    """Return a hash of parameters and buffers; lazy ones are none yet."""
    state = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        if not is_lazy(value):
            state.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            state.update(raw.numpy().data)
    return state.hexdigest()


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, Mapping):
        for key in sorted(part):
            digest.update(repr(key).encode())
            _update(digest, part[key])
        return
    if isinstance(part, Dataset):
        digest.update(f"{type(part).__name__}{len(part)}".encode())
        return
    array = np.ascontiguousarray(part)
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(
        repr(array.tolist()).encode() if array.dtype == object else array.data
    )
