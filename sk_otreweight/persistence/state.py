"""What training has changed in an object, as data, and given back to another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor
from torch.optim import Optimizer

from sk_otreweight.persistence.plain import is_data

State = dict[str, Any]


def state_of(part: Any) -> State:
    """Return the state of a step, a callback or a component.

    These are its attributes that are data, random generators, or have a
    ``state_dict``. Parts of it that have a state of their own are those that its class
    names in `stateful`; what else it refers to is not its own.

    Parameters
    ----------
    part : object

    Returns
    -------
    state : dict
        Of data; tensors are those in use, not copies.
    """
    state: State = {"values": {}, "generators": {}, "state_dicts": {}, "parts": {}}
    stateful = getattr(type(part), "stateful", ())
    for name, value in vars(part).items():
        if name in stateful:
            state["parts"][name] = state_of(value)
        elif isinstance(value, torch.Generator):
            state["generators"][name] = value.get_state()
        elif has_state_dict(value):
            state["state_dicts"][name] = dict(value.state_dict())
        elif is_data(value):
            state["values"][name] = value
    return state


def set_state(part: Any, state: Mapping[str, Any]) -> None:
    """Give an object, made in the same way, the state of another one.

    Parameters
    ----------
    part : object
        Changed in place.
    state : mapping
        From `state_of`.
    """
    own = vars(part)
    optimizers = [value for value in own.values() if isinstance(value, Optimizer)]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = {id(parameter) for group in groups for parameter in group["params"]}
    for name, value in state["values"].items():
        if id(own.get(name)) in held:  # it has to stay the one that is stepped
            with torch.no_grad():
                own[name].copy_(value)
        else:
            setattr(part, name, value)
    for name, value in state["generators"].items():
        own[name].set_state(value)
    for name, value in state["state_dicts"].items():
        own[name].load_state_dict(_with_counters(own[name], value))
    for name, value in state["parts"].items():
        set_state(own[name], value)


def has_state_dict(value: Any) -> bool:
    """Return whether a value can tell its state, and take one up."""
    return hasattr(value, "load_state_dict") and not isinstance(value, type)


def _with_counters(part: Any, state: Mapping[str, Any]) -> State:
    """Return a state whose counts are Counters again, as those of schedules."""
    own = getattr(part, "__dict__", {})
    are_counts = {name for name, value in own.items() if isinstance(value, Counter)}
    return {k: Counter(v) if k in are_counts else v for k, v in state.items()}


def module_states(net: NeuralNet) -> State:
    """Return copies of the states of the net's modules, its criterion among them."""
    return {
        name: {key: _copied(value) for key, value in module.state_dict().items()}
        for name, module in vars(net).items()
        if isinstance(module, torch.nn.Module)
    }


def set_module_states(net: NeuralNet, states: State) -> None:
    """Give the net's modules the states from `module_states`."""
    for name, state in states.items():
        getattr(net, name).load_state_dict(state)


def net_state(net: NeuralNet) -> State:
    """Return the state of an initialised net: what its parts learned, and its history.

    Raises
    ------
    TypeError
        If a part of a callback has a state that is no data.
    """
    callbacks = {name: state_of(callback) for name, callback in net.callbacks_}
    for name, state in callbacks.items():
        for attribute, value in state["state_dicts"].items():
            if not is_data(value):
                raise TypeError(
                    f"The callback {name!r} cannot be written to a checkpoint: the "
                    f"state_dict of its {attribute} holds more than numbers, strings, "
                    "arrays and containers of these. Fit without checkpoint=, or "
                    "without this callback."
                )
    parts = {name: part for name, part in vars(net).items() if has_state_dict(part)}
    return {
        "parts": {name: dict(part.state_dict()) for name, part in parts.items()},
        "callbacks": callbacks,
        "history": net.history,
        "values": {
            name: value
            for name, value in vars(net).items()
            if name.endswith("_") and name != "history_" and is_data(value)
        },
    }


def set_net_state(net: NeuralNet, state: State) -> None:
    """Give a net that was built in the same way the state from `net_state`."""
    for name, value in state["parts"].items():
        part = getattr(net, name)
        part.load_state_dict(_with_counters(part, value))
    callbacks = dict(net.callbacks_)
    for name, value in state["callbacks"].items():
        set_state(callbacks[name], value)
    net.history[:] = state["history"]
    vars(net).update(state["values"])


def random_state(device: Any) -> State:
    """Return the states of torch's generators, of a CPU and the device in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.device(device or "cpu").type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: State, device: Any) -> None:
    """Set torch's generators to states from `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
