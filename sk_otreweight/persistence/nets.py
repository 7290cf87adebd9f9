"""skorch nets: their parameters, and the state of what they are made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import Dataset

from sk_otreweight.features import ReplacedHead, put_head, return_scores_alone
from sk_otreweight.persistence.codec import Decoder, Encoder, Kind, Node, not_storable
from sk_otreweight.persistence.names import (
    dotted,
    find_class,
    is_importable,
    is_trusted,
    name_of,
)
from sk_otreweight.persistence.objects import class_name, encode_instance, make
from sk_otreweight.persistence.plain import is_data
from sk_otreweight.wrappers import original

# skorch calls these with the parameters of the file, so a class must be of this kind.
_PLACES = {
    "module": nn.Module,
    "criterion": nn.Module,
    "optimizer": Optimizer,
    "dataset": Dataset,
}


def encode_maker(value: Any, encoder: Encoder, where: str) -> Node:
    """Encode what a module is made of: an instance, its class, or a function.

    Whatever cannot be rebuilt from a name is asked for when the model is loaded.
    """
    if isinstance(value, nn.Module):
        return {"kind": "module", **_encode_module(value, encoder, where)}
    if isinstance(value, type) and is_importable(value):
        return encoder(value, where)
    if callable(value):
        return {
            "kind": "factory",
            "name": getattr(value, "__qualname__", type(value).__name__),
            "function": encoder(value, where) if is_importable(value) else None,
        }
    return encoder(value, where)


def decode_maker(node: Node, decoder: Decoder) -> Any:
    """Return what a module is made of, if need be what the user gave for it."""
    kind = _kind_of(node)
    if kind == "module":
        return _restore_module(_given_instance(node["class"], decoder), node, decoder)
    if kind in ("class", "factory") and decoder.module is not None:
        return copy.deepcopy(decoder.module)
    if kind != "factory":
        return decoder(node)
    if node["function"] is None:
        raise ValueError(
            f"the net's module was made by {node['name']}, which cannot be imported. "
            "Pass an instance of the same architecture, or what makes it: "
            "load(..., module=...)."
        )
    return decoder(node["function"])


def _given_instance(name: str, decoder: Decoder) -> nn.Module:
    short = name.partition(":")[2]
    if decoder.module is None:
        raise ValueError(
            f"the net was given as an instance of {dotted(name)}, whose "
            "constructor arguments are not known. Pass an instance that was built "
            f"likewise: load(..., module={short}(...)); its weights do not matter."
        )
    module = decoder.module
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    module = module() if callable(module) else module
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, or return one when called, got a "
            f"{type(module).__name__}: pass module={short}(...)."
        )
    return module


def _encode_module(module: nn.Module, encoder: Encoder, where: str) -> dict[str, Node]:
    """Encode what a module has learned; lazy layers have no shape before their use."""
    module = original(module)  # what is compiled has other names
    state = module.state_dict()
    fixed = [name for name, p in module.named_parameters() if not p.requires_grad]
    return {
        "class": name_of(type(module)),
        "state": encoder({k: x for k, x in state.items() if not is_lazy(x)}, where),
        "fixed": fixed,
        "returns_scores_alone": hasattr(module, "returns_scores_alone"),
        "replaced_head": encoder(getattr(module, "replaced_head", None), where),
    }


def _restore_module(
    module: nn.Module, node: Mapping[str, Node], decoder: Decoder
) -> nn.Module:
    """Give a module what was learned, and return it."""
    module = original(module)
    replaced = decoder(node.get("replaced_head"))
    if replaced is not None and not hasattr(module, "replaced_head"):
        _check_replaced_head(replaced["kind"])
        module = put_head(module, **replaced)
    saved, own = decoder(node["state"]), module.state_dict(keep_vars=True)
    for name, tensor in own.items():
        if is_lazy(tensor):
            saved.setdefault(name, tensor)
        elif isinstance(tensor, Tensor) and name in saved:
            tensor.data = tensor.data.to(saved[name].dtype)
    try:
        module.load_state_dict(saved)
    except RuntimeError as error:
        raise ValueError(
            f"{type(module).__name__} does not fit what was saved of the module "
            f"{dotted(node['class'])}. {error}. Build it with the same arguments."
        ) from error
    for name, parameter in module.named_parameters():
        if parameter.requires_grad == (name in node["fixed"]):
            parameter.requires_grad_(name not in node["fixed"])
    if node["returns_scores_alone"]:
        return_scores_alone(module)
    return module


def _check_replaced_head(kind: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, ReplacedHead)):
        raise ValueError(
            f"the file names {kind!r} as a layer to put into the net, which is none of "
            "this package's. It was not called: do not trust this file."
        )


def _encode_net(net: NeuralNet, encoder: Encoder, where: str) -> dict[str, Node]:
    params = net.get_params(deep=False)
    params.pop("_params_to_validate", None)
    nodes = {}
    for name, value in params.items():
        place = f"{where}.{name}"
        if name == "module":
            nodes[name] = encode_maker(value, encoder, place)
        elif name == "criterion" and isinstance(value, nn.Module):
            nodes[name] = _encode_criterion(value, encoder, place)
        else:
            nodes[name] = encoder(value, place)
    return {
        "class": class_name(net, where),
        "params": nodes,
        "state": _encode_state(net, encoder, where) if net.initialized_ else None,
    }


def _encode_criterion(
    criterion: nn.Module, encoder: Encoder, where: str
) -> dict[str, Node]:
    """Encode an instance whose constructor arguments are its attributes."""
    if any(True for _ in criterion.parameters()):
        raise not_storable(criterion, where)
    return {"kind": "criterion", **encode_instance(criterion, encoder, where)}


def _encode_state(net: NeuralNet, encoder: Encoder, where: str) -> dict[str, Node]:
    fitted = {name: value for name, value in vars(net).items() if name.endswith("_")}

    def nodes(kind: type, encode: Any) -> dict[str, Node]:
        return {
            name: encode(value, encoder, f"{where}.{name}")
            for name, value in fitted.items()
            if isinstance(value, kind)
        }

    data = {
        name: value
        for name, value in fitted.items()
        if is_data(value) and name != "history_"
    }
    callbacks = {name: _data_of(callback) for name, callback in net.callbacks_}
    return {
        "modules": nodes(nn.Module, _encode_module),
        "optimizers": nodes(Optimizer, _encode_optimizer),
        "callbacks": encoder(callbacks, f"{where}.callbacks_"),
        "history": encoder(net.history_, f"{where}.history_"),
        "data": encoder(data, where),
    }


def _data_of(callback: Any) -> dict[str, Any]:
    """Return the state of a callback; what is no data is made anew in training."""
    return {
        name: value
        for name, value in vars(callback).items()
        if name.endswith("_") and is_data(value)
    }


def _encode_optimizer(optimizer: Optimizer, encoder: Encoder, where: str) -> Node:
    return encoder(optimizer.state_dict(), where)


def _decode_net(node: dict[str, Node], decoder: Decoder) -> NeuralNet:
    kind = find_class(node["class"], decoder.trusted, NeuralNet)
    decode = {
        "module": decode_maker,
        "criterion": _decode_criterion,
        "device": _decode_device,
    }
    params = {
        name: decode[name](item, decoder) if name in decode else decoder(item)
        for name, item in node["params"].items()
    }
    _check_places(params)
    if isinstance(decoder.module, nn.Module):  # it is built already
        params = {k: v for k, v in params.items() if not k.startswith("module__")}
    net = make(kind, params)
    if node["state"] is not None:
        _restore_state(net.initialize(), node["state"], decoder)
    _check_reads_no_pickles(net, decoder)
    return net


def _decode_criterion(node: Node, decoder: Decoder) -> Any:
    if _kind_of(node) != "criterion":
        return decoder(node)
    kind = find_class(node["class"], decoder.trusted, nn.Module)
    return make(kind, decoder(node["params"]))


def _kind_of(node: Node) -> str | None:
    return node.get("kind") if isinstance(node, Mapping) else None


def _decode_device(node: Node, decoder: Decoder) -> Any:
    recorded = node["name"] if isinstance(node, Mapping) else node
    if recorded is None:  # skorch leaves the module where it is
        return decoder.device
    return decoder.place(decoder.device or recorded)


def _check_places(params: Mapping[str, Any]) -> None:
    for name, kind in _PLACES.items():
        value = params[name]
        if isinstance(value, type) and not issubclass(value, kind):
            raise ValueError(
                f"the file names {dotted(name_of(value))} as {name}, which is no "
                f"subclass of {kind.__name__}. It was not called: do not trust this "
                "file."
            )


def _check_reads_no_pickles(net: NeuralNet, decoder: Decoder) -> None:
    """Raise if a callback of a further fit could have the net load a pickle."""
    options = getattr(net, "torch_load_kwargs", None)
    is_safe = options is None or options.get("weights_only") is True
    if not is_safe and not is_trusted("torch:load", decoder.trusted):
        raise ValueError(
            f"the net reads parameters from files by torch.load({options}), which runs "
            "what is pickled in them. If you know these files, pass "
            "trusted=['torch.load']."
        )


def _restore_state(net: NeuralNet, node: Mapping[str, Node], decoder: Decoder) -> None:
    for name, saved in node["modules"].items():
        module = getattr(net, name)
        restored = _restore_module(module, saved, decoder)
        if restored is not original(module):
            setattr(net, name, restored)
    if any(saved.get("replaced_head") for saved in node["modules"].values()):
        net.initialize_optimizer()  # of parameters that it does not know
    for name, saved in node["optimizers"].items():
        getattr(net, name).load_state_dict(decoder(saved))
    states = decoder(node["callbacks"])
    for name, callback in net.callbacks_:
        vars(callback).update(states.get(name, {}))
    vars(net).update(decoder(node["data"]))
    net.history_ = decoder(node["history"])


KINDS = (
    Kind(
        "frozen",
        lambda value: isinstance(value, FrozenEstimator),
        lambda value, encoder, where: {
            "estimator": encode_maker(value.estimator, encoder, f"{where}.estimator")
        },
        lambda node, decoder: FrozenEstimator(decode_maker(node["estimator"], decoder)),
        is_shared=True,
    ),
    Kind(
        "net",
        lambda value: isinstance(value, NeuralNet),
        _encode_net,
        _decode_net,
        is_shared=True,
    ),
)
