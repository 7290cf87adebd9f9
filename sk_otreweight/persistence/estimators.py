"""Save and load: what users call."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any

import torch
from safetensors import SafetensorError
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sk_otreweight.persistence.codec import Decoder, Encoder, Node
from sk_otreweight.persistence.file import opened, write
from sk_otreweight.persistence.names import find_class, names_of
from sk_otreweight.persistence.nets import KINDS as NET_KINDS
from sk_otreweight.persistence.nets import decode_maker, encode_maker
from sk_otreweight.persistence.objects import KINDS as OBJECT_KINDS
from sk_otreweight.persistence.objects import attributes, class_name, make
from sk_otreweight.persistence.plain import KINDS as PLAIN_KINDS

KINDS = (*PLAIN_KINDS, *NET_KINDS, *OBJECT_KINDS)
_LACKING = (
    *(KeyError, AttributeError, IndexError, RuntimeError, RecursionError),
    SafetensorError,
)
_METHODS = ("fit", "partial_fit", "score")


class SaveMixin:
    """Lets an estimator that trains a net be saved without pickle."""

    def save(self, path: str | os.PathLike) -> None:
        """Save the fitted estimator to a file, without pickle.

        One file in the format of safetensors, which holds tensors and JSON: all that
        `predict`, `partial_fit` and a new `fit` need. It replaces a file of that name
        when it is complete. :func:`load` reads it.

        Classes and functions are saved by name, and :func:`load` asks for leave to use
        those that are not of this package, torch, skorch or scikit-learn. For a module
        that was given as an instance, or made by a function without a name, it asks
        for `module`.

        Parameters
        ----------
        path : path
            Name of the file, for instance ``"model.safetensors"``.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        FileNotFoundError
            If the folder does not exist.
        TypeError
            If a parameter is a lambda or an object that cannot be saved; the message
            names it.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sklearn.datasets import load_wine
        >>> from sk_otreweight import OTReweightedClassifier, load
        >>> X, y = load_wine(return_X_y=True)
        >>> clf = OTReweightedClassifier(random_state=0).fit(X, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clf.save(Path(folder) / "wine.safetensors")
        ...     same = load(Path(folder) / "wine.safetensors")
        >>> bool((same.predict_proba(X) == clf.predict_proba(X)).all())
        True
        """
        check_is_fitted(self)
        encoder = Encoder(KINDS)
        node = _encode_estimator(self, encoder)
        write(path, node, encoder.tensors)


def load(
    path: str | os.PathLike,
    *,
    module: nn.Module | Callable[..., nn.Module] | None = None,
    device: torch.device | str | None = None,
    trusted: Collection[str | type | FunctionType] = (),
) -> Any:
    """Load an estimator that was saved by its method `save`.

    The file holds tensors and JSON; nothing in it is executed. What it names is looked
    up by name among what is installed:

    - a class only if it is of the kind that is needed in its place (a module, an
      optimizer, a callback, an estimator, a data set or a loader), and of this package,
      scikit-learn, skorch, ``torch.nn``, ``torch.optim`` or ``torch.utils.data``. It
      is called with the parameters in the file;
    - any other class, and any function, only if you name it in `trusted`, or give
      it as `module`; otherwise its module is not even imported;
    - of Python's standard library, nothing.

    So a file chooses among the building blocks of these libraries and those that you
    allow, and cannot bring its own. To fit further is to run the callbacks that the
    file names: those of skorch write to the paths that it gives.

    Parameters
    ----------
    path : path
    module : nn.Module instance, class or callable, default=None
        Takes the place of the net's module. Needed if the net was given as an
        instance, or by a function that cannot be imported: an instance of the same
        architecture, or what returns one. What it has learned is replaced.
    device : torch.device or str, default=None
        Where to put the net; None is the device it was on.
    trusted : collection of str, class or function, default=()
        Classes and functions of other packages that the model may use: themselves, or
        the dotted names of them or of what they are in, such as
        ``"my_package.nets.Net"`` and ``"my_package"``.

    Returns
    -------
    estimator : fitted estimator
        It predicts the same, and `partial_fit` goes on in the same way.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If a class or function in it cannot be imported; the message says which.
    ValueError
        If the file is no saved model, is damaged, or was written by a later version;
        if a class in it is of the wrong kind, a class or function is not trusted,
        `module` is missing or does not fit, or the device is not available. If a
        callback of the net writes to a folder, the folder is made.
    TypeError
        If `trusted` holds something else.

    Examples
    --------
    The constructor arguments of a module instance are not known, so it asks for one:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_wine
    >>> from torch import nn
    >>> from sk_otreweight import OTReweightedClassifier, load
    >>> X, y = load_wine(return_X_y=True)
    >>> def net():
    ...     return nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> clf = OTReweightedClassifier(net(), random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clf.save(Path(folder) / "wine.safetensors")
    ...     same = load(Path(folder) / "wine.safetensors", module=net())
    >>> bool((same.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    trusted = names_of(trusted)
    with opened(path) as (node, read), torch.random.fork_rng(devices=[]):
        decoder = Decoder(KINDS, read, module=module, device=device, trusted=trusted)
        try:
            return _decode_estimator(node, decoder)
        except (ImportError, ValueError, TypeError) as error:
            kind = ImportError if isinstance(error, ImportError) else ValueError
            raise kind(f"Cannot load {path}: {error}") from error
        except OSError as error:
            raise ValueError(
                f"Cannot load {path}: a callback could not make its folder ({error}). "
                "Load it where that folder can be made."
            ) from error
        except _LACKING as error:
            raise ValueError(
                f"Cannot load {path}: it lacks what this version expects ({error!r})."
            ) from error


def _encode_estimator(estimator: BaseEstimator, encoder: Encoder) -> Node:
    params = {
        name: encode_maker(value, encoder, name)
        if name == "net"
        else encoder(value, name)
        for name, value in estimator.get_params(deep=False).items()
    }
    state = attributes(estimator)
    return {
        "class": class_name(estimator, "the estimator"),
        "params": params,
        "state": {name: encoder(value, name) for name, value in state.items()},
        "requests": _requests(estimator),
    }


def _decode_estimator(node: Node, decoder: Decoder) -> Any:
    if "checkpoint" in node:
        raise ValueError(
            "it is a checkpoint of a fit, not a fitted model. Go on from it with "
            "fit(..., checkpoint=path, resume=True), then save the model."
        )
    kind = find_class(node["class"], decoder.trusted, SaveMixin)
    params = {
        name: decode_maker(item, decoder) if name == "net" else decoder(item)
        for name, item in node["params"].items()
    }
    estimator = make(kind, params)
    vars(estimator).update(
        {name: decoder(item) for name, item in node["state"].items()}
    )
    with config_context(enable_metadata_routing=True):
        for method, requests in node["requests"].items():
            getattr(estimator, f"set_{method}_request")(**requests)
    return estimator


def _requests(estimator: BaseEstimator) -> dict[str, dict[str, Any]]:
    """Return the metadata that the user made the methods ask for."""
    routing = estimator.get_metadata_routing()
    asked = {
        method: {
            name: alias
            for name, alias in getattr(routing, method).requests.items()
            if alias is not None
        }
        for method in _METHODS
    }
    return {method: requests for method, requests in asked.items() if requests}
