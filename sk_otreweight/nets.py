"""Turn whatever a user calls a net into a skorch net of the right size."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import Tensor, nn

from sk_otreweight.copies import clone_net, copy_net
from sk_otreweight.loaders import RowLoader, use_row_loader


class MLP(nn.Module):
    """A small multi-layer perceptron, the net for tables when none is given.

    Parameters
    ----------
    n_features : int
        Columns of the table.
    n_classes : int
        Classes, and scores returned per row.
    hidden : int, default=None
        Width of the two hidden layers; None takes twice the number of features, at
        least 64 and at most 256.
    """

    def __init__(self, n_features: int, n_classes: int, hidden: int | None = None):
        super().__init__()
        if hidden is None:
            hidden = min(256, max(64, 2 * n_features))
        self.body = nn.Sequential(
            nn.Linear(n_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class scores (n, K)."""
        return self.head(self.body(X))


def build_net(
    net: Any,
    *,
    sizes: dict[str, int],
    verbose: int = 0,
    one_output: bool = False,
) -> tuple[NeuralNet, bool]:
    """Return an uninitialised skorch net of the user's own, and whether it is trained.

    What the user holds is never changed: nets are cloned, modules copied.

    Parameters
    ----------
    net : None, nn.Module class or instance, factory, skorch net or FrozenEstimator
        See :class:`OTReweightedClassifier`.
    sizes : dict
        ``n_features`` and ``n_classes``; passed to the module's constructor if its
        signature names them and the user did not set them.
    verbose : int, default=0
        Of nets that are made here; a skorch net has its own.
    one_output : bool, default=False
        Make a net for modules that return one score for two classes.

    Returns
    -------
    net : skorch.NeuralNet
        Initialised only if it is trained.
    is_trained : bool

    Raises
    ------
    TypeError
        If `net` is none of these.
    """
    if isinstance(net, FrozenEstimator):
        return _trained_net(net.estimator, verbose, one_output), True
    if isinstance(net, type) and issubclass(net, NeuralNet):
        raise TypeError(
            f"net={net.__name__} is a class of skorch: give an instance, for example "
            f"{net.__name__}(module), or the module alone."
        )
    if isinstance(net, NeuralNet):
        built = clone_net(net)
    elif net is None:
        built = _wrap(MLP, verbose, one_output)
    elif isinstance(net, nn.Module) or callable(net):
        module = copy.deepcopy(net) if isinstance(net, nn.Module) else net
        built = _wrap(module, verbose, one_output)
    else:
        raise TypeError(
            f"net={net!r} is not a net. Give a torch.nn.Module class or instance, a "
            "skorch net, FrozenEstimator(a fitted skorch net), or None for a small MLP."
        )
    _set_sizes(built, sizes)
    use_row_loader(built)
    return built, False


def is_bare(net: Any) -> bool:
    """Return whether `net` is a module, so that the skorch net around it is ours."""
    inner = net.estimator if isinstance(net, FrozenEstimator) else net
    return not isinstance(inner, NeuralNet)


def _wrap(module: Any, verbose: int, one_output: bool) -> NeuralNet:
    kind = NeuralNetBinaryClassifier if one_output else NeuralNetClassifier
    criterion = nn.BCEWithLogitsLoss if one_output else nn.CrossEntropyLoss
    return kind(
        module,
        criterion=criterion,
        optimizer=torch.optim.Adam,
        lr=3e-3,
        max_epochs=30,
        batch_size=32,
        iterator_train=RowLoader,
        iterator_train__shuffle=True,
        iterator_train__merge_last=True,
        train_split=None,
        verbose=verbose,
    )


def _trained_net(estimator: Any, verbose: int, one_output: bool) -> NeuralNet:
    if isinstance(estimator, nn.Module):
        net = _wrap(copy.deepcopy(estimator), verbose, one_output)
        use_row_loader(net)
        return net.initialize()
    if not isinstance(estimator, NeuralNet) or not estimator.initialized_:
        raise TypeError(
            f"FrozenEstimator holds {type(estimator).__name__}: give it a fitted "
            "skorch net or a torch.nn.Module that is trained already. To train a net "
            "here, pass it without FrozenEstimator."
        )
    return copy_net(estimator)


def _set_sizes(net: NeuralNet, sizes: dict[str, int]) -> None:
    if not isinstance(net.module, nn.Module):
        wanted = inspect.signature(net.module).parameters
        given = net.get_params_for("module")
        net.set_params(
            **{
                f"module__{name}": size
                for name, size in sizes.items()
                if name in wanted and name not in given
            }
        )
    if net.get_params(deep=False).get("classes", ()) is None and not isinstance(
        net, NeuralNetBinaryClassifier
    ):
        # Otherwise skorch infers the classes from each chunk or training split.
        net.set_params(classes=np.arange(sizes["n_classes"]))
