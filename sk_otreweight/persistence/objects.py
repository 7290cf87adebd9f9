"""Classes, functions, and objects that are known by their class and parameters."""

from __future__ import annotations

import inspect
from functools import partial
from types import FunctionType
from typing import Any

from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn

from sk_otreweight.persistence.codec import Decoder, Encoder, Kind, Node, not_storable
from sk_otreweight.persistence.names import (
    find_class,
    find_function,
    is_importable,
    name_of,
)

_COMPONENTS = (BaseEstimator, Callback, ValidSplit)
_PACKAGE = __name__.partition(".")[0]


def class_name(value: Any, where: str) -> str:
    """Return the name of an object's class, or raise if it cannot be imported."""
    if not is_importable(type(value)):
        raise not_storable(type(value), f"the class of {where}")
    return name_of(type(value))


def make(kind: type, params: dict[str, Any]) -> Any:
    """Call a class with its parameters.

    Raises
    ------
    ValueError
        If it does not take them.
    """
    try:
        return kind(**params)
    except TypeError as error:
        raise ValueError(
            f"{name_of(kind)} does not take the parameters {list(params)} any more "
            f"({error})."
        ) from error


def parameters(value: Any, where: str) -> dict[str, Any]:
    """Return what to call an object's class with."""
    if hasattr(value, "get_params"):
        params = value.get_params(deep=False)
        return {name: _as_given(item, value) for name, item in params.items()}
    params = {}
    for parameter in inspect.signature(type(value)).parameters.values():
        is_known = hasattr(value, parameter.name)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or (
            parameter.default is parameter.empty and not is_known
        ):
            raise not_storable(value, where)
        if is_known:
            params[parameter.name] = getattr(value, parameter.name)
    return params


def _as_given(param: Any, owner: Any) -> Any:
    """Return a parameter as it was before `initialize` of a callback replaced it.

    Some of skorch replace None by a method of theirs, and a number by one with that
    number as its argument.
    """
    is_partial = isinstance(param, partial)
    method = param.func if is_partial else param
    if getattr(method, "__self__", None) is not owner:
        return param
    return next(iter(param.keywords.values())) if is_partial else None


def encode_instance(value: Any, encoder: Encoder, where: str) -> dict[str, Node]:
    """Encode an object by its class and parameters."""
    return {
        "class": class_name(value, where),
        "params": encoder(parameters(value, where), where),
    }


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that are no parameters."""
    if hasattr(value, "learned_state"):
        return value.learned_state()
    params = value.get_params(deep=False)
    # Requests for metadata are private to scikit-learn.
    hidden = {*params, "_metadata_request"}
    return {name: item for name, item in vars(value).items() if name not in hidden}


def _encode_component(value: Any, encoder: Encoder, where: str) -> dict[str, Node]:
    node = encode_instance(value, encoder, where)
    if isinstance(value, BaseEstimator):  # the state of callbacks is the net's concern
        node["state"] = encoder(attributes(value), where)
    return node


def _decode_component(node: dict[str, Node], decoder: Decoder) -> Any:
    kind = find_class(node["class"], decoder.trusted, _COMPONENTS)
    value = make(kind, decoder(node["params"]))
    state = decoder(node.get("state", {}))
    if hasattr(value, "restore_state"):
        value.restore_state(state, decoder.device)
    else:
        vars(value).update(state)
    return value


def _is_record(value: Any) -> bool:
    is_ours = type(value).__module__.startswith(f"{_PACKAGE}.")
    return is_ours and not isinstance(value, nn.Module)


def _encode_record(value: Any, encoder: Encoder, where: str) -> dict[str, Node]:
    fields = value._asdict() if isinstance(value, tuple) else dict(vars(value))
    return {"class": class_name(value, where), "fields": encoder(fields, where)}


def _decode_record(node: dict[str, Node], decoder: Decoder) -> Any:
    """Make an object of this package without calling its constructor."""
    if not node["class"].startswith(f"{_PACKAGE}."):
        raise ValueError(f"{node['class']} is no class of this package.")
    kind, fields = find_class(node["class"]), decoder(node["fields"])
    if issubclass(kind, tuple):
        return make(kind, fields)
    value = kind.__new__(kind)
    vars(value).update(fields)
    return value


def _encode_name(value: Any, encoder: Encoder, where: str) -> dict[str, Node]:
    if not is_importable(value):
        raise not_storable(value, where)
    return {"name": name_of(value)}


KINDS = (
    Kind(
        "class",
        lambda value: isinstance(value, type),
        _encode_name,
        lambda node, decoder: find_class(node["name"], decoder.trusted),
    ),
    Kind(
        "function",
        lambda value: isinstance(value, FunctionType) or value is print,
        _encode_name,
        lambda node, decoder: find_function(node["name"], decoder.trusted),
    ),
    Kind(
        "component",
        lambda value: isinstance(value, _COMPONENTS),
        _encode_component,
        _decode_component,
        is_shared=True,
    ),
    Kind("record", _is_record, _encode_record, _decode_record, is_shared=True),
)
