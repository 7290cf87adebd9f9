"""Small nets and small data, importable so that they can be pickled."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from sk_otreweight import make_long_tailed


class SmallMLP(nn.Module):
    """Takes the sizes of the data from the estimator."""

    def __init__(self, n_features: int, n_classes: int, hidden: int = 32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class AnyWidthMLP(nn.Module):
    """Takes rows of any shape, up to so many numbers."""

    def __init__(self, n_classes: int, width: int = 16):
        super().__init__()
        self.width = width
        self.body = nn.Sequential(nn.Linear(width, 8), nn.ReLU())
        self.head = nn.Linear(8, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        X = X.flatten(1)
        return self.head(self.body(nn.functional.pad(X, (0, self.width - X.shape[1]))))


class NormDropoutMLP(nn.Module):
    """Has buffers and behaves differently in training and in evaluation."""

    def __init__(self, n_features: int, n_classes: int, hidden: int = 32):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class SoftmaxMLP(SmallMLP):
    """Returns probabilities, for NLLLoss as skorch computes it."""

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X).softmax(-1)


class OneLogitMLP(nn.Module):
    """Returns one score per row, shape (n,), for two classes."""

    def __init__(self, n_features: int, hidden: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 1)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X)).squeeze(-1)


class DoubleMLP(SmallMLP):
    """Computes in float64."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__(n_features, n_classes)
        self.double()


class SmallCNN(nn.Module):
    """For digits as images of shape (1, 8, 8)."""

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * 4 * 4, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class TokenMean(nn.Module):
    """Embeds tokens and averages them."""

    def __init__(self, n_tokens: int = 20, n_classes: int = 3):
        super().__init__()
        self.embed = nn.Embedding(n_tokens, 8)
        self.head = nn.Linear(8, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.embed(X).mean(1))


class MeanWeights(nn.Module):
    """A weight net of one's own."""

    def __init__(self, n_features: int):
        super().__init__()
        self.score = nn.Linear(n_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(features)


def small_net(module=SmallMLP, **params) -> NeuralNetClassifier:
    """Return a skorch net that is quick to train on digits."""
    given = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.Adam,
        "lr": 0.01,
        "max_epochs": 4,
        "batch_size": 64,
        "iterator_train__shuffle": True,
        "train_split": None,
        "verbose": 0,
    }
    return NeuralNetClassifier(module, **(given | params))


@cache
def long_tailed_digits(random_state: int = 0, imbalance_factor: float = 50):
    """Return digits with a long tail, scaled to 0 ... 1, and their meta set."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    data = make_long_tailed(X, y, imbalance_factor, random_state=random_state)
    data.meta = (data.X_meta, data.y_meta)
    unused = torch.ones(len(y), dtype=torch.bool)
    unused[torch.from_numpy(data.train_indices)] = False
    unused[torch.from_numpy(data.meta_indices)] = False
    data.X_test, data.y_test = X[unused.numpy()], y[unused.numpy()]
    return data
