"""Classes and functions by name: what may be looked up on the word of a file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from operator import attrgetter
from types import FunctionType
from typing import Any

from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

_PACKAGE = __name__.partition(".")[0]

# Where building an object does no more than that. The rest of torch is not among them:
# some of its modules start servers, run scripts or read pickles.
_LIBRARIES = ("torch.nn", "torch.optim", "torch.utils.data", "skorch", "sklearn")

# A class of another kind is refused, whatever the file says it is for.
_KINDS = (
    nn.Module,
    Optimizer,
    LRScheduler,
    Callback,
    BaseEstimator,
    DataLoader,
    Dataset,
)

# Defaults of skorch's callbacks; any other function is named by the user.
_KNOWN_FUNCTIONS = {
    "builtins:print": print,
    **{
        f"skorch.utils:{name}": None
        for name in ("noop", "to_numpy", "freeze_parameter", "unfreeze_parameter")
    },
    "skorch.callbacks.logging:rename_tensorboard_key": None,
}


def name_of(thing: Any) -> str:
    """Return ``module:qualified_name`` of a class or a function."""
    return f"{thing.__module__}:{thing.__qualname__}"


def is_importable(thing: Any) -> bool:
    """Return whether a class or a function can be found again by its name."""
    if not isinstance(thing, (type, FunctionType)):
        return thing is print
    module = sys.modules.get(thing.__module__)
    if module is None or thing.__module__ == "__main__":
        return False
    try:
        return attrgetter(thing.__qualname__)(module) is thing
    except AttributeError:  # defined inside a function
        return False


def names_of(trusted: Any) -> list[str]:
    """Return the dotted names of what the user trusts: names, classes and functions.

    Raises
    ------
    TypeError
        If something else is among them.
    """
    is_one = isinstance(trusted, (str, type, FunctionType))
    return [_dotted_name(entry) for entry in ([trusted] if is_one else trusted)]


def _dotted_name(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, (type, FunctionType)):
        raise TypeError(
            f"trusted holds {entry!r}: give classes, functions or their dotted names, "
            "such as 'my_package.nets.Net'."
        )
    return dotted(name_of(entry))


def is_trusted(name: str, trusted: Collection[str]) -> bool:
    """Return whether a name, or a module or package that it is in, is trusted."""
    plain = dotted(name)
    return any(plain == entry or plain.startswith(f"{entry}.") for entry in trusted)


def find_class(
    name: str,
    trusted: Collection[str] = (),
    kinds: type | tuple[type, ...] = _KINDS,
) -> type:
    """Import a class and check that it is of one of some kinds.

    Raises
    ------
    ImportError
        If there is no such class.
    ValueError
        If it is of no such kind; or if it is neither in `trusted` nor of a library
        that models are made of, and then its module is not even imported.
    """
    _check_trusted(name, (*trusted, *_LIBRARIES, _PACKAGE), what="class")
    found = _find(name)
    is_ours = name.startswith(f"{_PACKAGE}.") and kinds is _KINDS
    if isinstance(found, type) and (is_ours or issubclass(found, kinds)):
        return found
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    raise ValueError(
        f"the file names {dotted(name)}, which is no subclass of "
        f"{' or '.join(kind.__name__ for kind in kinds)}. It was not called: do not "
        "trust this file."
    )


def find_function(name: str, trusted: Collection[str]) -> Any:
    """Import a function that the user trusts.

    Raises
    ------
    ImportError
        If there is no such function.
    ValueError
        If it is not in `trusted`; then its module is not even imported.
    """
    if name in _KNOWN_FUNCTIONS:
        return _KNOWN_FUNCTIONS[name] or _find(name)
    _check_trusted(name, trusted, what="function")
    found = _find(name)
    if not isinstance(found, FunctionType):
        raise ValueError(f"{dotted(name)} is a {type(found).__name__}, not a function.")
    return found


def _check_trusted(name: str, trusted: Collection[str], *, what: str) -> None:
    """Raise if a name is not trusted; nothing of the standard library ever is."""
    plain = dotted(name)
    if plain.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"the file names {plain}, of Python's standard library, which has no part "
            "of a model. It was not called: do not trust this file."
        )
    if not is_trusted(name, trusted):
        raise ValueError(
            f"the model uses the {what} {plain}, and a {what} may do anything. If you "
            f"know it, pass trusted=[{plain!r}]."
        )


def _find(name: str) -> Any:
    """Import what is defined under a name; what is merely imported there is not."""
    module, _, qualname = name.partition(":")
    try:
        found = attrgetter(qualname)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"the model needs {qualname} of the module {module}, which cannot be "
            f"imported ({error}). Install that module or put its folder on the path; "
            "if it is the net's module, load(..., module=...) takes it directly."
        ) from error
    if getattr(found, "__module__", None) != module or found.__qualname__ != qualname:
        raise ValueError(
            f"the file names {dotted(name)}, which is not defined there. It was not "
            "called: do not trust this file."
        )
    return found


def dotted(name: str) -> str:
    """Return a name as users write it."""
    return name.replace(":", ".")
