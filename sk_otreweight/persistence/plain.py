"""Numbers, arrays, tensors, containers and random generators."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch.history import History
from torch import Tensor

from sk_otreweight.persistence.codec import Decoder, Encoder, Kind, Node, not_storable

_LEAVES = (bool, int, float, str, np.generic, np.ndarray, Tensor)


def is_data(value: Any) -> bool:
    """Return whether a value is numbers, strings, arrays, or made of these."""
    if type(value) in (list, tuple, set):
        return all(map(is_data, value))
    if isinstance(value, Mapping):
        return all(is_data(key) and is_data(item) for key, item in value.items())
    return value is None or isinstance(value, _LEAVES)


def _encode_tuple(value: tuple, encoder: Encoder, where: str) -> dict[str, Node]:
    return {"items": encoder(list(value), where)}


def _encode_set(value: set, encoder: Encoder, where: str) -> dict[str, Node]:
    return {"items": encoder(sorted(value, key=repr), where)}


def _encode_dict(value: Mapping, encoder: Encoder, where: str) -> dict[str, Node]:
    """Encode any mapping as pairs of key and item."""
    pairs = [
        [encoder(key, where), encoder(item, f"{where}.{key}")]
        for key, item in value.items()
    ]
    return {"items": pairs}


def _decode_dict(node: dict[str, Node], decoder: Decoder) -> dict[Any, Any]:
    return {decoder(key): decoder(item) for key, item in node["items"]}


def _encode_number(value: np.generic, encoder: Encoder, where: str) -> dict[str, Node]:
    return {"dtype": value.dtype.str, "value": encoder(value.item(), where)}


def _decode_number(node: dict[str, Node], decoder: Decoder) -> np.generic:
    return np.dtype(node["dtype"]).type(decoder(node["value"]))


def _encode_array(value: np.ndarray, encoder: Encoder, where: str) -> dict[str, Node]:
    """Encode an array as its bytes; one of Python objects as a list."""
    if value.dtype.names is not None:
        raise not_storable(value, where)
    node = {"dtype": value.dtype.str, "shape": list(value.shape)}
    if value.dtype.hasobject:
        return node | {"items": encoder(value.ravel().tolist(), where)}
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).copy()
    return node | {"tensor": encoder.add(torch.from_numpy(data), where)}


def _decode_array(node: dict[str, Node], decoder: Decoder) -> np.ndarray:
    dtype = np.dtype(node["dtype"])
    if "items" not in node:
        data = decoder.read(node["tensor"]).numpy()
        return data.view(dtype).reshape(node["shape"])
    array = np.empty(len(node["items"]), dtype=dtype)
    array[:] = decoder(node["items"])
    return array.reshape(node["shape"])


def _encode_tensor(value: Tensor, encoder: Encoder, where: str) -> dict[str, Node]:
    if value.layout is not torch.strided or value.is_quantized:
        raise not_storable(value, where)
    return {"tensor": encoder.add(value, where), "device": str(value.device)}


def _decode_tensor(node: dict[str, Node], decoder: Decoder) -> Tensor:
    return decoder.read(node["tensor"]).to(decoder.place(node["device"]))


def _decode_dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"the file names the dtype torch.{name}, which is none.")
    return found


def _encode_generator(
    value: torch.Generator, encoder: Encoder, where: str
) -> dict[str, Node]:
    return {"state": encoder.add(value.get_state(), where)}


def _decode_generator(node: dict[str, Node], decoder: Decoder) -> torch.Generator:
    return torch.Generator().set_state(decoder.read(node["state"]))


def _encode_random_state(
    value: np.random.RandomState, encoder: Encoder, where: str
) -> dict[str, Node]:
    return {"state": encoder(value.get_state(legacy=False), where)}


def _decode_random_state(
    node: dict[str, Node], decoder: Decoder
) -> np.random.RandomState:
    generator = np.random.RandomState()  # noqa: NPY002 - what scikit-learn takes
    generator.set_state(decoder(node["state"]))
    return generator


def _encode_history(value: History, encoder: Encoder, where: str) -> dict[str, Node]:
    """Encode the epochs; as a tensor, because the header of a file is limited."""
    nodes = encoder(_without_numpy(list(value)), where)
    text = json.dumps(nodes, allow_nan=False, separators=(",", ":")).encode()
    data = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
    return {"json": encoder.add(data, where)}


def _decode_history(node: dict[str, Node], decoder: Decoder) -> History:
    text = decoder.read(node["json"]).numpy().tobytes()
    return History(decoder(json.loads(text)))


def _without_numpy(value: Any) -> Any:
    """Return numbers as those of Python: a history holds many."""
    if isinstance(value, list):
        return [_without_numpy(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_numpy(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


KINDS = (
    Kind(
        "float",
        lambda value: type(value) is float,
        lambda value, encoder, where: {"value": repr(value)},
        lambda node, decoder: float(node["value"]),
    ),
    Kind(
        "tuple",
        lambda value: type(value) is tuple,
        _encode_tuple,
        lambda node, decoder: tuple(decoder(node["items"])),
    ),
    Kind(
        "set",
        lambda value: type(value) is set,
        _encode_set,
        lambda node, decoder: set(decoder(node["items"])),
    ),
    Kind(
        "path",
        lambda value: isinstance(value, Path),
        lambda value, encoder, where: {"value": str(value)},
        lambda node, decoder: Path(node["value"]),
    ),
    Kind("dict", lambda value: isinstance(value, Mapping), _encode_dict, _decode_dict),
    Kind(
        "number",
        lambda value: isinstance(value, np.generic),
        _encode_number,
        _decode_number,
    ),
    Kind(
        "array",
        lambda value: isinstance(value, np.ndarray),
        _encode_array,
        _decode_array,
    ),
    Kind(
        "tensor",
        lambda value: isinstance(value, Tensor),
        _encode_tensor,
        _decode_tensor,
    ),
    Kind(
        "dtype",
        lambda value: isinstance(value, torch.dtype),
        lambda value, encoder, where: {"name": str(value).removeprefix("torch.")},
        lambda node, decoder: _decode_dtype(node["name"]),
    ),
    Kind(
        "device",
        lambda value: isinstance(value, torch.device),
        lambda value, encoder, where: {"name": str(value)},
        lambda node, decoder: torch.device(decoder.place(node["name"])),
    ),
    Kind(
        "generator",
        lambda value: isinstance(value, torch.Generator),
        _encode_generator,
        _decode_generator,
        is_shared=True,
    ),
    Kind(
        "random_state",
        lambda value: isinstance(value, np.random.RandomState),
        _encode_random_state,
        _decode_random_state,
        is_shared=True,
    ),
    Kind(
        "history",
        lambda value: isinstance(value, History),
        _encode_history,
        _decode_history,
        is_shared=True,
    ),
)
