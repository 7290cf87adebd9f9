"""Values as JSON and tensors: the recursion; what is done with each kind is elsewhere.

A value becomes a *node*: None, a bool, an int, a string or a finite float as it is; a
list, or a dict with strings as keys, of nodes; or ``{"kind": name, ...}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Node = Any


class Kind(NamedTuple):
    """How values of one kind are written and read.

    Attributes
    ----------
    name : str
    matches : callable
        ``matches(value)`` returns whether a value is of this kind.
    encode : callable
        ``encode(value, encoder, where)`` returns the entries of the node.
    decode : callable
        ``decode(node, decoder)`` returns the value.
    is_shared : bool
        Whether a value that is met again is to be the same object after loading.
    """

    name: str
    matches: Callable[[Any], bool]
    encode: Callable[[Any, Encoder, str], dict[str, Node]]
    decode: Callable[[dict[str, Node], Decoder], Any]
    is_shared: bool = False


class Encoder:
    """Turns values into nodes, and collects their tensors.

    Parameters
    ----------
    kinds : sequence of Kind
        The first that matches is taken.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU, contiguous, none sharing memory with another.
    """

    def __init__(self, kinds: Sequence[Kind]):
        self.kinds = kinds
        self.tensors: dict[str, Tensor] = {}
        # What is met is kept alive, so that no other object gets its address.
        self._stored: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self._seen: dict[int, tuple[int, Any]] = {}
        self._storages: set[int] = set()

    def __call__(self, value: Any, where: str) -> Node:
        """Return the node of a value; `where` it stands is for names and messages."""
        if _is_json(value):
            return value
        if type(value) is list:
            return [self(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if is_named(value):
            return {name: self(item, f"{where}.{name}") for name, item in value.items()}
        if id(value) in self._seen:
            return {"kind": "same", "as": self._seen[id(value)][0]}
        for kind in self.kinds:
            if kind.matches(value):
                node = {"kind": kind.name, **kind.encode(value, self, where)}
                if kind.is_shared:
                    node["id"] = len(self._seen)
                    self._seen[id(value)] = node["id"], value
                return node
        raise not_storable(value, where)

    def add(self, tensor: Tensor, where: str) -> str:
        """Keep a tensor for the file and return its name there; tied ones only once."""
        tensor = tensor.detach()
        place = tensor.device, tensor.data_ptr(), tensor.stride()
        memory = *place, tensor.dtype, tensor.shape
        if tensor.numel() and memory in self._stored:
            return self._stored[memory][0]
        name, n = where, 1
        while name in self.tensors:
            name, n = f"{where}#{n}", n + 1
        copy = tensor.cpu().contiguous()
        storage = copy.untyped_storage()
        if storage.nbytes() > copy.nbytes or storage.data_ptr() in self._storages:
            copy = copy.clone()
        self._storages.add(copy.untyped_storage().data_ptr())
        self.tensors[name] = copy
        self._stored[memory] = name, tensor
        return name


class Decoder:
    """Turns nodes back into values.

    Parameters
    ----------
    kinds : sequence of Kind
    read : callable
        ``read(name)`` returns a tensor of the file.
    module, device, trusted
        What the user passed to `load`.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        read: Callable[[str], Tensor],
        *,
        module: Any = None,
        device: Any = None,
        trusted: Collection[str] = (),
    ):
        self.kinds = {kind.name: kind for kind in kinds}
        self.read = read
        self.module = module
        self.device = device
        self.trusted = trusted
        self._shared: dict[int, Any] = {}

    def __call__(self, node: Node) -> Any:
        """Return the value of a node."""
        if isinstance(node, list):
            return [self(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        if "kind" not in node:
            return {name: self(item) for name, item in node.items()}
        if node["kind"] == "same":
            return self._shared[node["as"]]
        value = self.kinds[node["kind"]].decode(node, self)
        if "id" in node:
            self._shared[node["id"]] = value
        return value

    def place(self, device: str) -> Any:
        """Return where to put what was on a device when it was saved.

        Raises
        ------
        ValueError
            If there is no such device here.
        """
        if self.device is not None and torch.device(device).type != "cpu":
            device = self.device
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device {str(device)!r} is not available here ({error}). To load the "
                "model elsewhere pass, for instance, device='cpu'."
            ) from error
        return device


def is_named(value: Any) -> bool:
    """Return whether a value is a dict that JSON can hold, and that is no node."""
    names = all(type(key) is str for key in value) if type(value) is dict else False
    return names and "kind" not in value


def _is_json(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def not_storable(value: Any, where: str) -> TypeError:
    """Return the error for a value that no kind matches."""
    if callable(value) and hasattr(value, "__qualname__"):
        return TypeError(
            f"{where}={value!r} cannot be saved: it has no name that it could be "
            "imported by. Define it by def or class at the top level of a module of "
            "your own (not in __main__, and not inside a function)."
        )
    return TypeError(
        f"{where} is a {type(value).__name__}, which cannot be saved without pickle. "
        "Replace it before you save, or use pickle or joblib."
    )
