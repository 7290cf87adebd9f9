"""How estimators show themselves: one line of text, or nested blocks of HTML."""

from __future__ import annotations

import functools
import re
import reprlib
import sys
from collections.abc import Mapping
from html import escape
from inspect import Parameter, isroutine, signature
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor, nn

_LINE_LENGTH = 120
_VALUE_LENGTH = 60
_MAX_CLASSES = 12
_MAX_ELEMENTS = 6

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _VALUE_LENGTH

# Parameters that get a block of their own, whatever they hold.
_SLOTS = ("net", "cost", "weights", "meta_set", "solver")
_NET_PARAMETERS = (
    "module", "criterion", "optimizer", "lr", "max_epochs", "batch_size", "device",
)  # fmt: skip

# Colours are inherited or half transparent: legible on a light and a dark page.
_STYLE = (
    ".sk-otreweight details,.sk-otreweight .leaf{margin:.2em 0;padding:.2em .6em;"
    "border:1px solid rgba(128,128,128,.5);border-radius:.3em;"
    "background:rgba(128,128,128,.08)}"
    ".sk-otreweight summary{cursor:pointer}"
    ".sk-otreweight table{border-collapse:collapse;margin:.3em 0}"
    ".sk-otreweight th,.sk-otreweight td{text-align:left;vertical-align:top;"
    "padding:.1em .8em .1em 0;font-weight:normal}"
    ".sk-otreweight th{opacity:.75}"
    ".sk-otreweight .set>*{font-weight:bold}"
    ".sk-otreweight pre{max-height:20em;overflow:auto;margin:.3em 0}"
)


def short_repr(estimator: BaseEstimator, max_length: int = _LINE_LENGTH) -> str:
    """Return an estimator on one line, with the parameters that are not the defaults.

    Parameters come in the order of the signature, those without a default without their
    name. A net is shown as ``NeuralNetClassifier(Module)``. After
    ``sklearn.set_config(print_changed_only=False)`` all parameters are shown, however
    long the line.

    Parameters
    ----------
    estimator : estimator or component
    max_length : int, default=120
        Of a line that is longer, parameters in the middle are left out.

    Returns
    -------
    line : str

    Examples
    --------
    >>> from sk_otreweight import CombinedCost, OTReweightedClassifier
    >>> from sk_otreweight.display import short_repr
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> net = NeuralNetClassifier(nn.Linear(64, 10))
    >>> short_repr(OTReweightedClassifier(net, cost=CombinedCost(0.3), reg=1.0))
    'OTReweightedClassifier(net=NeuralNetClassifier(Linear),
    cost=CombinedCost(mix=0.3), reg=1.0)'
    """
    values = estimator.get_params(deep=False)
    defaults = _defaults(estimator)
    shows_all = not get_config()["print_changed_only"]
    parts = []
    for name, default in defaults.items():
        if shows_all or not _is_same(values[name], default):
            label = "" if default is Parameter.empty else f"{name}="
            parts.append(label + _brief(values[name]))
    if shows_all:
        max_length = sys.maxsize
    return _fit_line(type(estimator).__name__, parts, max_length)


def _defaults(estimator: BaseEstimator) -> dict[str, Any]:
    """Return the default of each parameter, in the order of the signature."""
    known = estimator.get_params(deep=False)
    parameters = signature(type(estimator)).parameters
    return {name: parameters[name].default for name in parameters if name in known}


def _is_same(value: Any, default: Any) -> bool:
    # By repr, because arrays have no single truth value and NaN is not itself.
    return value is default or (
        type(value) is type(default) and repr(value) == repr(default)
    )


def _fit_line(name: str, parts: list[str], max_length: int) -> str:
    """Leave out parameters in the middle of a list until it is short enough."""
    line = f"{name}({', '.join(parts)})"
    for n_dropped in range(1, len(parts)):
        if len(line) <= max_length:
            break
        start = (len(parts) - n_dropped + 1) // 2
        kept = [*parts[:start], "...", *parts[start + n_dropped :]]
        line = f"{name}({', '.join(kept)})"
    return line


@functools.singledispatch
def _brief(value: Any) -> str:
    """Return a value on one line, shortened."""
    if isinstance(value, type) or isroutine(value):
        return value.__name__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(_REPR.repr(value).split()))


@_brief.register
def _(value: BaseEstimator) -> str:
    if type(value).__repr__ is not BaseEstimator.__repr__:
        return _brief.dispatch(object)(value)
    return short_repr(value, _VALUE_LENGTH)


@_brief.register
def _(value: NeuralNet) -> str:
    module = value.module
    name = type(module).__name__ if isinstance(module, nn.Module) else _brief(module)
    return f"{type(value).__name__}({name})"


@_brief.register
def _(value: nn.Module) -> str:
    return f"{type(value).__name__}(...)"


@_brief.register
def _(value: functools.partial) -> str:
    return f"partial({_brief(value.func)}, ...)"


@_brief.register
def _(value: np.generic) -> str:
    return repr(value.item())


@_brief.register(np.ndarray)
@_brief.register(Tensor)
def _(value: np.ndarray | Tensor) -> str:
    size = np.prod(value.shape)
    if size <= _MAX_ELEMENTS:
        return " ".join(repr(value).split())
    return f"{type(value).__name__} of shape {tuple(value.shape)}"


def html_repr(estimator: BaseEstimator) -> str:
    """Return an estimator as HTML: a block for each of its parts, to be unfolded.

    A fitted estimator also shows its classes, the epochs of both stages, the sizes of
    its data and the weights of the classes, and its parts as they were used. The page
    needs no scripts and nothing from the network.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    html : str

    Examples
    --------
    >>> from sk_otreweight import OTReweightedClassifier
    >>> from sk_otreweight.display import html_repr
    >>> page = html_repr(OTReweightedClassifier(cost="label"))
    >>> page.count("<details")
    2
    """
    state = "fitted" if _is_fitted(estimator) else "not fitted"
    title = f"{type(estimator).__name__} ({state})"
    content = _table(_facts(estimator)) + _content(estimator)
    block = _details(title, content, is_open=True)
    return f'<div class="sk-otreweight"><style>{_STYLE}</style>{block}</div>'


def mime_bundle(estimator: BaseEstimator) -> dict[str, str]:
    """Return what notebooks show of an estimator, by MIME type.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    bundle : dict
        ``"text/plain"``, and ``"text/html"`` unless scikit-learn is set to show text,
        by ``sklearn.set_config(display="text")``.

    Examples
    --------
    >>> import sklearn
    >>> from sk_otreweight import OTReweightedClassifier
    >>> from sk_otreweight.display import mime_bundle
    >>> sorted(mime_bundle(OTReweightedClassifier()))
    ['text/html', 'text/plain']
    >>> with sklearn.config_context(display="text"):
    ...     sorted(mime_bundle(OTReweightedClassifier()))
    ['text/plain']
    """
    bundle = {"text/plain": repr(estimator)}
    if get_config()["display"] == "diagram":
        bundle["text/html"] = html_repr(estimator)
    return bundle


def _is_fitted(estimator: BaseEstimator) -> bool:
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _content(estimator: BaseEstimator) -> str:
    """Return the blocks of an estimator's parts, and a table of its parameters."""
    values, defaults = estimator.get_params(deep=False), _defaults(estimator)
    blocks, plain, changed = [], {}, set()
    for name, default in defaults.items():
        value = values[name]
        if name in _SLOTS or _has_content(value):
            used = getattr(estimator, f"{name}_", value)
            blocks.append(_part(name, value, used))
        else:
            plain[name] = _brief(value)
        if not _is_same(value, default):
            changed.add(name)
    if blocks and plain:
        return "".join(blocks) + _details("parameters", _table(plain, changed))
    return "".join(blocks) + _table(plain, changed)


def _has_content(value: Any) -> bool:
    return isinstance(value, (BaseEstimator, NeuralNet, nn.Module))


def _part(name: str, given: Any, used: Any) -> str:
    """Return the block of a part: as it was given, and as it is used."""
    title = f"{name}: {_brief(given)}"
    if _brief(used) != _brief(given):
        title += f" → {_brief(used)}"
    content = ""
    if isinstance(used, NeuralNet):
        content = _net_content(used)
    elif isinstance(used, BaseEstimator):
        content = _content(used)
    elif isinstance(used, nn.Module):
        content = _module_text(used)
    if not content:
        return f'<div class="leaf">{escape(title)}</div>'
    return _details(title, content)


def _net_content(net: NeuralNet) -> str:
    values = net.get_params(deep=False)
    rows = {name: _brief(values[name]) for name in _NET_PARAMETERS if name in values}
    if not net.initialized_:
        return _table(rows)
    sizes = [parameter.numel() for parameter in net.module_.parameters()]
    rows["parameters"] = f"{sum(sizes):,} in {len(sizes)} tensors"
    return _table(rows) + _details("layers", _module_text(net.module_))


def _module_text(module: nn.Module) -> str:
    return f"<pre>{escape(repr(module))}</pre>"


def _details(title: str, content: str, is_open: bool = False) -> str:
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(title)}</summary>{content}</details>"


def _table(rows: Mapping[str, str], bold: set[str] | None = None) -> str:
    if not rows:
        return ""
    lines = []
    for name, value in rows.items():
        style = ' class="set"' if name in (bold or ()) else ""
        lines.append(f"<tr{style}><th>{escape(name)}</th><td>{escape(value)}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _facts(estimator: BaseEstimator) -> dict[str, str]:
    """Return what an estimator has learned, in brief, by attribute."""
    known = {
        "classes_": _classes,
        "n_features_in_": lambda estimator: str(estimator.n_features_in_),
        "history_": _epochs,
        "sample_weight_": lambda estimator: f"{len(estimator.sample_weight_)} rows",
        "class_weight_": _class_weights,
    }
    return {
        name: describe(estimator)
        for name, describe in known.items()
        if hasattr(estimator, name)
    }


def _classes(estimator: Any) -> str:
    labels = [str(label) for label in estimator.classes_]
    more = ", ..." if len(labels) > _MAX_CLASSES else ""
    return f"{len(labels)}: {', '.join(labels[:_MAX_CLASSES])}{more}"


def _epochs(estimator: Any) -> str:
    stages = [epoch.get("stage") for epoch in estimator.history_]
    return f"{stages.count(1)} epochs in stage 1, {stages.count(2)} in stage 2"


def _class_weights(estimator: Any) -> str:
    """Return the weight of each class; of many classes, the least and the greatest."""
    weights = estimator.class_weight_
    pairs = [
        f"{label}: {weight:.2g}"
        for label, weight in zip(estimator.classes_, weights, strict=True)
    ]
    if len(pairs) <= _MAX_CLASSES:
        return ", ".join(pairs)
    return f"{pairs[np.nanargmin(weights)]} ... {pairs[np.nanargmax(weights)]}"
