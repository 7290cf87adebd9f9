"""What a fit depends on, as text: how things are set, and a hash of the data."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

# Packages whose version a fit depends on.
PACKAGES = ("sk-otreweight", "torch", "skorch")

_WHOLE = 1000  # entries of an array that numpy and torch write out in full


def settings(value: Any) -> str:
    """Return what a value is set to as text, the same in every process.

    An estimator, a net or a callback is its class and its parameters: the text form of
    a net that is not initialized yet shows its module, but not how it is trained.
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(settings, value))}]"
    if isinstance(value, (set, frozenset)):  # strings have another order in each run
        return settings(sorted(value, key=repr))
    if type(value) is dict:
        items = (f"{key!r}: {settings(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
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
    *parts : array-like, sparse matrix, Tensor, mapping, Dataset or None
        A Dataset is known by its class and length alone: its items may be files.
    also : str, default=""
        What else the hash is to depend on.

    Raises
    ------
    TypeError
        If a part is anything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        _update(digest, part)
    digest.update(also.encode())
    return digest.hexdigest()


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed, by their names."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _accelerator_settings(accelerator: Any) -> dict[str, Any]:
    """Return how an accelerator trains: its text form is another in each process."""
    names = ("num_processes", "mixed_precision", "gradient_accumulation_steps")
    return {name: getattr(accelerator, name, None) for name in names}


def _plain_settings(value: Any) -> str:
    """Return the text form of a value, or its attributes if that has an address."""
    text = _text(value)
    if (
        " at 0x" in text
        and not isinstance(value, type)
        and getattr(value, "__dict__", {})
    ):
        items = (f"{name!r}: {_text(item)}" for name, item in vars(value).items())
        text = f"{type(value).__name__}{{{', '.join(items)}}}"
    return _without_addresses(text)


def _text(value: Any) -> str:
    """Return the text form of a value; of an array that it would cut short, a hash."""
    if type(value) is list:
        return f"[{', '.join(map(_text, value))}]"
    if _is_cut_short(value):
        return f"{type(value).__name__}({data_digest(value)})"
    return repr(value)


def _is_cut_short(value: Any) -> bool:
    if sparse.issparse(value):
        return True
    is_whole = (
        isinstance(value, (np.ndarray, Tensor)) and math.prod(value.shape) <= _WHOLE
    )
    is_array = hasattr(value, "__array__") and not isinstance(value, (type, np.generic))
    return is_array and not is_whole


def _state_hash(module: nn.Module) -> str:
    """Return a hash of parameters and buffers; lazy ones are none yet."""
    state = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        if not is_lazy(value):
            state.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            state.update(_bytes(value))
    return state.hexdigest()


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _update(digest: Any, part: Any) -> None:
    if sparse.issparse(part):  # before mappings: one of the formats is a dict
        rows = part.tocsr()
        digest.update(f"{type(part).__name__}{rows.shape}".encode())
        for array in (rows.data, rows.indices, rows.indptr):
            _update(digest, array)
    elif isinstance(part, Mapping):
        for key in sorted(part):
            digest.update(repr(key).encode())
            _update(digest, part[key])
    elif isinstance(part, Dataset):
        digest.update(f"{type(part).__name__}{len(part)}".encode())
    elif isinstance(part, Tensor):
        tensor = torch.atleast_1d(part)
        dtype = str(tensor.dtype).removeprefix("torch.")  # as numpy has it
        digest.update(f"{dtype}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    else:
        array = _as_array(part)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(
            _text(array.tolist()).encode() if array.dtype == object else array.data
        )


def _as_array(part: Any) -> np.ndarray:
    array = np.asarray(part)
    if array.dtype == object and array.ndim == 0 and part is not None:
        raise TypeError(
            f"Data of type {type(part).__name__} cannot be told from other data of "
            "that type: give arrays, sparse matrices, tensors, dicts of these, or a "
            "torch Dataset."
        )
    return np.ascontiguousarray(array)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a tensor of any dtype, on any device."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return raw.numpy().data
