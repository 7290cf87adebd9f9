"""Choose the defaults of `OTReweightedClassifier` on validation data.

Three tables, each on a long-tailed data set with 10 meta rows per class that
are removed from training. Every figure is the balanced error (%) on a balanced
validation split, taken from rows that neither training, meta nor test split holds.

- stage 1: how long and how fast a bare module or ``net=None`` is trained (digits);
- weights: strategy and step size, on a stage-1 net shared by all;
- stage 2: epochs and learning rate, with the strategy that came out of it.

Run ``python examples/benchmarks/defaults.py`` for the recorded tables in
``results/``, with ``--short`` for one seed of the digits, printed only.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch
from _tables import Errors
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import (
    AttentionWeightNet,
    OTReweightedClassifier,
    WeightNet,
    WeightVector,
    load_fashion_mnist,
    make_long_tailed,
)
from sk_otreweight.nets import MLP

RESULTS = Path(__file__).parent / "results"


class FashionCNN(nn.Module):
    """Two convolutional layers and one hidden layer.

    Pooling before ReLU, and channels last, halve the time on a CPU; the function is the
    same as with ReLU first.
    """

    def __init__(self, n_classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, n_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the class scores."""
        return self.head(self.body(X))


def digits(seed: int, imbalance_factor: int = 50) -> Bunch:
    """Long-tailed digits; half of the balanced rest validates."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, X_rest, y, y_rest = train_test_split(
        X, y, test_size=0.4, stratify=y, random_state=seed
    )
    data = make_long_tailed(
        X, y, imbalance_factor, meta_per_class=10, random_state=seed
    )
    data.X_valid, _, data.y_valid, _ = train_test_split(
        X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=seed
    )
    return data


def fashion(seed: int, imbalance_factor: int = 200) -> Bunch:
    """Long-tailed Fashion-MNIST; 500 rows per class of the training split validate."""
    images = load_fashion_mnist()
    X, X_valid, y, y_valid = train_test_split(
        images.X_train,
        images.y_train,
        test_size=5000,
        stratify=images.y_train,
        random_state=seed,
    )
    data = make_long_tailed(
        X, y, imbalance_factor, meta_per_class=10, random_state=seed
    )
    return data | {"X_valid": X_valid, "y_valid": y_valid}


def fashion_net(max_epochs: int = 8) -> NeuralNetClassifier:
    """Return the convolutional net, trained with Adam."""
    return NeuralNetClassifier(
        FashionCNN,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        max_epochs=max_epochs,
        batch_size=128,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


def error(clf: OTReweightedClassifier, data: Bunch) -> float:
    """Return the balanced error on the validation rows, in per cent."""
    score = balanced_accuracy_score(data["y_valid"], clf.predict(data["X_valid"]))
    return 100 * (1 - score)


def fit(data: Bunch, seed: int, **parameters: object) -> OTReweightedClassifier:
    """Fit with the meta set given.

    Unless the parameters say more, the head alone, with weights between the classes.
    """
    parameters = {"finetune": "head", "loss": "net"} | parameters
    clf = OTReweightedClassifier(random_state=seed, **parameters)
    return clf.fit(data["X"], data["y"], meta=(data["X_meta"], data["y_meta"]))


def stage_one_nets() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the settings of stage 1 that are compared."""
    for batch_size in (32, 128):
        for lr in (1e-3, 3e-3, 5e-3, 1e-2):
            for max_epochs in (20, 30, 50):
                net = NeuralNetClassifier(
                    MLP,
                    criterion=nn.CrossEntropyLoss,
                    optimizer=torch.optim.Adam,
                    lr=lr,
                    max_epochs=max_epochs,
                    batch_size=batch_size,
                    iterator_train__shuffle=True,
                    train_split=None,
                    verbose=0,
                )
                name = f"batch {batch_size}, lr {lr:g}, {max_epochs} epochs"
                yield name, {"net": net}


def weight_strategies() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the strategies and step sizes that are compared."""
    yield "none (stage 1 alone)", {"max_epochs": 0}
    yield "semirelaxed", {"weights": "semirelaxed"}
    yield "vector, sgd, 1e-3 (paper)", {"weights": WeightVector(1e-3, "sgd")}
    for lr in (0.03, 0.1, 0.3, 1.0):
        yield f"vector, multiplicative, {lr:g}", {"weights": WeightVector(lr)}
    for lr in (0.1, 1.0, 10.0):
        yield f"net, {lr:g}", {"weights": WeightNet(lr)}
    for lr in (0.04, 0.4, 4.0):
        yield f"attention, {lr:g}", {"weights": AttentionWeightNet(lr)}


def stage_two() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the settings of stage 2 that are compared."""
    for finetune in ("head", "all"):
        for max_epochs in (5, 10, 20):
            for lr in (None, 3e-4, 1e-2):
                if finetune == "all" and (max_epochs == 20 or lr == 1e-2):
                    continue
                shown = "the net's" if lr is None else f"{lr:g}"
                yield (
                    f"{finetune}, {max_epochs} epochs, lr {shown}",
                    {"finetune": finetune, "max_epochs": max_epochs, "lr": lr},
                )


def table(
    title: str,
    settings: Callable[[], Iterator[tuple[str, dict[str, object]]]],
    load: Callable[[int], Bunch],
    seeds: range,
    stage_one: object = None,
) -> dict[str, object]:
    """Run all settings on all seeds, from a shared stage-1 net if one is given."""
    errors: dict[str, list[float]] = {}
    for seed in seeds:
        data = load(seed)
        shared = {}
        if stage_one is not None:
            trained = fit(data, seed, net=stage_one, max_epochs=0).net_
            shared = {"net": FrozenEstimator(trained)}
        for name, parameters in settings():
            value = error(fit(data, seed, **shared | parameters), data)
            errors.setdefault(name, []).append(value)
            print(f"{title} | seed {seed} | {name}: {value:.1f}", flush=True)
    return {"title": title, "seeds": list(seeds), "errors": errors}


def to_markdown(tables: list[dict[str, object]], about: dict[str, str]) -> str:
    """Return the tables with mean and standard deviation over the seeds."""
    lines = ["# Choice of the defaults", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for result in tables:
        n_seeds = len(result["seeds"])
        lines += ["", f"## {result['title']}, {n_seeds} seeds", ""]
        lines += ["| setting | balanced error on validation rows, % |", "|---|---|"]
        for name, values in result["errors"].items():
            lines.append(f"| {name} | {Errors.of(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the tables and record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one seed of the digits")
    short = parser.parse_args().short
    start = time.perf_counter()
    seeds = range(1) if short else range(3)
    tables = [
        table("Stage 1, digits IF 50", stage_one_nets, digits, seeds),
        table("Weights, digits IF 50", weight_strategies, digits, seeds, MLP),
        table("Stage 2, digits IF 50", stage_two, digits, seeds, MLP),
    ]
    if not short:
        net = fashion_net()
        tables += [
            table(
                "Weights, Fashion-MNIST IF 200", weight_strategies, fashion, seeds, net
            ),
            table("Stage 2, Fashion-MNIST IF 200", stage_two, fashion, seeds, net),
        ]
    about = {
        "command": "python "
        + " ".join(["examples/benchmarks/defaults.py", *sys.argv[1:]]),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}, skorch {skorch.__version__}",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "minutes": f"{(time.perf_counter() - start) / 60:.1f}",
    }
    text = to_markdown(tables, about)
    print(text)
    if not short:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "defaults.md").write_text(text)
        record = json.dumps({"about": about, "tables": tables}, indent=1)
        (RESULTS / "defaults.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
