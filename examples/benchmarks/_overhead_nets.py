"""Nets of `overhead.py` with their rows, and what their training is compared with."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _common import synchronize
from defaults import fashion_net
from sklearn.datasets import load_digits, make_classification
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from skorch.dataset import unpack_data
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, pad, relu

from sk_otreweight import load_fashion_mnist, make_long_tailed, semirelaxed_weights
from sk_otreweight.loaders import RowLoader
from sk_otreweight.nets import MLP, build_net


class ResNet32(nn.Module):
    """The residual net for CIFAR of He et al. (2016): 3 x 5 blocks, 0.46M parameters.

    Shortcuts have no parameters ("option A").
    """

    def __init__(self, n_classes: int = 10):
        super().__init__()
        blocks = [
            _Block(width if number else max(16, width // 2), width)
            for width in (16, 32, 64)
            for number in range(5)
        ]
        self.body = nn.Sequential(
            _convolution(3, 16),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class scores."""
        return self.head(self.body(X))


class _Block(nn.Module):
    """Two convolutions beside a shortcut; a wider output has half the resolution."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.stride, self.n_new = n_out // n_in, n_out - n_in
        self.residual = nn.Sequential(
            _convolution(n_in, n_out, self.stride),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            _convolution(n_out, n_out),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, X: Tensor) -> Tensor:
        return relu(self.residual(X) + self._shortcut(X))

    def _shortcut(self, X: Tensor) -> Tensor:
        if not self.n_new:
            return X
        channels = self.n_new // 2, self.n_new - self.n_new // 2
        strided = X[:, :, :: self.stride, :: self.stride]
        return pad(strided, (0, 0, 0, 0, *channels))


def _convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)


class CNN(nn.Module):
    """A convolutional net as in PyTorch's own MNIST example: 1.2M parameters."""

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(64 * 12 * 12, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.head = nn.Linear(128, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class scores."""
        return self.head(self.body(X))


class EpochClock(Callback):
    """Records the ``seconds`` of an epoch, from its begin to its end.

    skorch's own ``dur`` ends before the callbacks of the epoch's end.
    """

    def on_epoch_begin(self, net: NeuralNetClassifier, **kwargs: Any) -> None:
        """Start the clock."""
        synchronize(net.device)
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net: NeuralNetClassifier, **kwargs: Any) -> None:
        """Stop the clock."""
        synchronize(net.device)
        net.history.record("seconds", time.perf_counter() - self.start_)


class VirtualPasses(NeuralNetClassifier):
    """Plain training with the forward and backward passes of step (a), and no more.

    Beside the usual step: the gradient of the weighted losses, and a forward pass of
    the batch and of the meta rows, in evaluation mode, with the parameters moved
    along it. The weights are all 1, and what the passes return is not used.
    """

    def __init__(self, *args: Any, X_meta: Tensor | None = None, **kwargs: Any):
        self.X_meta = X_meta
        super().__init__(*args, **kwargs)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """Take the gradient of a batch, after the passes of step (a)."""
        self.module_.train()
        X, y = unpack_data(batch)
        X = to_tensor(X, device=self.device)
        scores = self.infer(X)
        losses = self.get_loss(scores, y, X=X, training=True)
        self._forward(self._moved(losses), X, self.X_meta)
        loss = losses.mean()
        loss.backward()
        return {"loss": loss, "y_pred": scores}

    def _moved(self, losses: Tensor) -> dict[str, Tensor]:
        names, parameters = zip(*self.module_.named_parameters(), strict=True)
        shares = torch.full_like(losses, 1 / len(losses))
        grads = torch.autograd.grad(
            losses, parameters, grad_outputs=shares, retain_graph=True
        )
        moves = zip(names, parameters, grads, strict=True)
        return {name: (x - self.lr * grad).detach() for name, x, grad in moves}

    def _forward(self, parameters: dict[str, Tensor], *inputs: Tensor) -> None:
        self.module_.eval()
        with torch.no_grad():
            for X in inputs:
                functional_call(self.module_, parameters, (X,))
        self.module_.train()


def with_virtual_passes(net: NeuralNetClassifier, X_meta: Tensor) -> VirtualPasses:
    """Return the same net, trained as far, that does the passes of step (a)."""
    parameters = net.get_params(deep=False) | {"criterion__reduction": "none"}
    made = VirtualPasses(X_meta=X_meta, **parameters).initialize()
    made.module_.load_state_dict(net.module_.state_dict())
    return made


@dataclass(frozen=True)
class Rows:
    """Inputs and labels on a device, and the labels for skorch."""

    X: Tensor
    y: Tensor
    labels: np.ndarray

    @classmethod
    def on(cls, device: str, X: np.ndarray, y: np.ndarray) -> Rows:
        """Move rows to a device."""
        return cls(torch.as_tensor(X).to(device), torch.as_tensor(y).to(device), y)


@dataclass(frozen=True)
class Setting:
    """A trained net with the rows that it goes on learning from."""

    name: str
    source: str
    net: NeuralNetClassifier
    train: Rows
    meta: Rows

    @property
    def title(self) -> str:
        """Name and batch size."""
        return f"{self.name}, batch {self.net.batch_size}"

    def __str__(self) -> str:
        return (
            f"{self.title}: {len(self.train.X)} training rows and "
            f"{len(self.meta.X)} meta rows, {self.source}"
        )


def long_tail(
    X: np.ndarray, y: np.ndarray, n: int, factor: float, device: str, meta: int = 10
) -> tuple[Rows, Rows]:
    """Draw about `n` long-tailed training rows, and `meta` meta rows per class."""
    n_classes = len(np.unique(y))
    shares = factor ** (-np.arange(n_classes) / (n_classes - 1))
    n_max = int(n / shares.sum())
    data = make_long_tailed(
        X, y, factor, n_max=n_max, meta_per_class=meta, random_state=0
    )
    train = Rows.on(device, data.X, data.y)
    return train, Rows.on(device, data.X_meta, data.y_meta)


def random_images(shape: Sequence[int], per_class: int) -> tuple[np.ndarray, ...]:
    """Return noise with labels of ten classes."""
    y = np.arange(10).repeat(per_class)
    X = np.random.default_rng(0).standard_normal((len(y), *shape), dtype=np.float32)
    return X, y


def fashion() -> tuple[np.ndarray, np.ndarray, str]:
    """Return Fashion-MNIST, or noise of the same shape where it cannot be had."""
    try:
        data = load_fashion_mnist()
    except OSError:
        source = "random images, as Fashion-MNIST is not installed"
        return *random_images((1, 28, 28), 3000), source
    return data.X_train, data.y_train, "Fashion-MNIST"


def digits_setting(device: str) -> Setting:
    """Return the default net on scikit-learn's digits with imbalance factor 50."""
    X, y = load_digits(return_X_y=True)
    train, meta = long_tail((X / 16).astype(np.float32), y, 450, 50, device)
    net, _ = build_net(None, sizes={"n_features": X.shape[1], "n_classes": 10})
    return Setting("default net", "digits", fit_once(net, train, device), train, meta)


def mlp_setting(device: str, n: int = 10_000) -> Setting:
    """Return an MLP on a table of 20 columns with 5 classes."""
    X, y = make_classification(
        40_000, 20, n_informative=10, n_classes=5, random_state=0
    )
    train, meta = long_tail(X.astype(np.float32), y, n, 100, device)
    net = NeuralNetClassifier(
        MLP,
        module__n_features=20,
        module__n_classes=5,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        batch_size=128,
    )
    net = fit_once(net, train, device)
    return Setting("MLP", "make_classification", net, train, meta)


def cnn_setting(device: str, *, small: bool, n: int) -> Setting:
    """Return a convolutional net on Fashion-MNIST with imbalance factor 50."""
    X, y, source = fashion()
    train, meta = long_tail(X, y, n, 50, device, meta=1)
    net = fashion_net() if small else fashion_net().set_params(module=CNN)
    net = fit_once(net, train, device)
    return Setting("small CNN" if small else "CNN", source, net, train, meta)


def resnet_setting(device: str, batch_size: int, n: int) -> Setting:
    """Return ResNet-32 on noise of the shape of CIFAR images."""
    X, y = random_images((3, 32, 32), n // 2)
    train, meta = long_tail(X, y, n, 50, device, meta=1)
    net = NeuralNetClassifier(
        ResNet32,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.01,
        batch_size=batch_size,
    )
    net = fit_once(net, train, device)
    return Setting("ResNet-32", "random images", net, train, meta)


def fit_once(net: NeuralNetClassifier, rows: Rows, device: str) -> NeuralNetClassifier:
    """Train a net for an epoch, with the package's loader and a clock."""
    clock: list[tuple[str, Callback]] = [("clock", EpochClock())]
    net.set_params(
        device=device,
        callbacks=clock,
        iterator_train=RowLoader,
        iterator_train__shuffle=True,
        iterator_valid=RowLoader,
        max_epochs=1,
        train_split=None,
        verbose=0,
    )
    return net.fit(rows.X, rows.labels)


def optimizer_of(net: NeuralNetClassifier, module: nn.Module) -> torch.optim.Optimizer:
    """Return the net's optimizer for the parameters of another module."""
    args, kwargs = net.get_params_for_optimizer("optimizer", module.named_parameters())
    return net.optimizer(*args, **kwargs)


def epoch_by_hand(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    X: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    weights: Tensor | None = None,
    log_counts: Tensor | None = None,
) -> None:
    """Train for an epoch, as one writes it without skorch; `weights` stay fixed.

    With `log_counts` (K,) of the classes the loss is the logit-adjusted one.
    """
    for rows in torch.randperm(len(X)).to(X.device).split(batch_size):
        scores = module(X[rows])
        if log_counts is not None:
            scores = scores + log_counts
        losses = cross_entropy(scores, y[rows], reduction="none")
        if weights is not None:
            losses = weights[rows] * losses
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()


def weights_by_hand(
    features: Tensor, y: Tensor, meta_features: Tensor, y_meta: Tensor
) -> Tensor:
    """Return the closed-form weights (n,) of the combined cost, Eqs. 9 and 12.

    Their mean is 1 in each class.
    """
    classes = y_meta.unique()
    prototypes = torch.stack([meta_features[y_meta == k].mean(0) for k in classes])
    cosine = normalize(features) @ normalize(prototypes).T
    C = (1 - cosine) + (y[:, None] != classes)
    mass = C.new_full((len(classes),), 1 / len(classes))
    weights = semirelaxed_weights(C, mass, reg=0.1)
    for k in classes:
        weights[y == k] /= weights[y == k].mean()
    return weights


def fit_by_hand(
    net: NeuralNetClassifier,
    train: Sequence[Tensor],
    meta: Sequence[Tensor],
    *,
    epochs: int,
) -> nn.Module:
    """Train in two stages with the closed form and the head alone in the second.

    Parameters
    ----------
    net : NeuralNetClassifier
        Initialised; says what to train, how, and from where. It stays as it is.
    train, meta : pairs of Tensor
        Rows and labels.
    epochs : int
        Of each stage.
    """
    module = copy.deepcopy(net.module_).train()
    optimizer = optimizer_of(net, module)
    (X, y), (X_meta, y_meta) = train, meta
    both = {"log_counts": y.bincount().log(), "batch_size": net.batch_size}
    for _ in range(epochs):
        epoch_by_hand(module, optimizer, X, y, **both)
    optimizer.zero_grad()  # so that the body has no gradient and stays as it is
    module.eval()
    with torch.no_grad():
        features = module.body(X)
        weights = weights_by_hand(features, y, module.body(X_meta), y_meta)
    for _ in range(epochs):
        epoch_by_hand(module.head, optimizer, features, y, weights=weights, **both)
    return module


def predict_by_hand(module: nn.Module, X: Tensor, batch_size: int) -> np.ndarray:
    """Return the class probabilities (n, K) in float64."""
    module.eval()
    with torch.no_grad():
        parts = [module(rows).softmax(1) for rows in X.split(batch_size)]
    return torch.cat(parts).double().cpu().numpy()


def rows_per_pass(module: nn.Module, predict: Callable[[], object]) -> int:
    """Return how many rows a module is given at a time when something predicts."""
    sizes = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))

    handle = module.register_forward_pre_hook(note)
    predict()
    handle.remove()
    return max(sizes)
