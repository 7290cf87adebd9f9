"""Errors on long-tailed images: every method, and what the parts of ours are worth.

Fashion-MNIST with an imbalance factor (IF) of 200, 100, 50 and 20: the first class
keeps its 5,990 images, the last one as many times fewer. 10 meta images of each class
are taken out of the training split; the test split is used as it is. A small
convolutional net, Adam at 1e-3, batches of 128, 6 epochs and 6 more for what is done in
a second stage; methods of one stage take all 12. All nets end with a moving average of
their parameters. All settings are the defaults of the methods.

With ``--cifar`` the same tables are those of CIFAR-LT, from your copy of the python
batches, with ResNet-32 and the paper's schedule: SGD at 0.1 with momentum 0.9 and
weight decay 5e-4, 200 epochs with steps down to 1 % at 160 and 180, random crops and
flips, then 40 epochs. Batches are of 100, as in the code that the paper follows for
stage 1. Methods of one stage have their steps at the same shares of all 240 epochs, and
those of two begin the second one with a rate of their own (`RATES`). That is meant for
a GPU (``--device cuda``).

Two more tables are ablations: cost, points of Q and how weights are kept (tables 2, 11
and 14 of the paper), and meta rows that are given, drawn or not looked at (tables 15 to
18). The long form takes about three hours on two cores; what is finished is kept in
``results/fits/``, so that a run that was stopped goes on::

    python examples/benchmarks/images.py
    python examples/benchmarks/images.py --short
    python examples/benchmarks/images.py --check "IF 200" ot_adjusted 0
    python examples/benchmarks/images.py --cifar FOLDER --classes 100 --device cuda
    python examples/benchmarks/images.py --cifar FOLDER --smoke
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _averaging import AveragedParameters
from _common import Line, markdown_table, report
from _methods import CONTROLS, baselines, control, ours
from _overhead_nets import ResNet32
from _tables import (
    Draw,
    Fit,
    Table,
    check,
    error_table,
    failures,
    once,
    run,
    summary,
    table_arguments,
    to_record,
)
from defaults import fashion_net
from sklearn.base import BaseEstimator
from sklearn.metrics import confusion_matrix
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import Tensor, nn

from sk_otreweight import (
    OTReweightedClassifier,
    SemiRelaxedWeights,
    WeightVector,
    load_cifar,
    load_fashion_mnist,
    make_long_tailed,
)

FACTORS = (200, 100, 50, 20)
RECIPE = "ot_adjusted"
PER_CLASS = 10
# Learning rates that stage 2 begins with on CIFAR: that of the paper, and those of the
# publications that learn a new layer; what begins anew has that of stage 1. The others
# go on as MetaSAug does, with 1e-3.
RATES = {"ot_paper": 2e-5} | dict.fromkeys(
    ("crt", "lws", "disalign", "balms", "oltr", "meta_head", "ot_robust"), 0.1
)


@dataclass(frozen=True)
class Images:
    """Which images, how many, and how the net is trained on them.

    Attributes
    ----------
    folder : str or None
        Of CIFAR; None is Fashion-MNIST.
    n_classes : int
    n_max : int
        Training images of the largest class.
    epochs : tuple of int
        Of the net, and of the second stage.
    device : str
    """

    folder: str | None
    n_classes: int
    n_max: int
    epochs: tuple[int, int]
    device: str

    def net(self, setting: str) -> NeuralNetClassifier:
        """Return the net of all methods."""
        first, second = self.epochs
        if self.folder is None:
            net = fashion_net(first)
            net.set_params(callbacks=[AveragedParameters()])
        else:
            steps = (0.8 * first, 0.9 * first, first + 0.8 * second)
            net = residual_net(self.n_classes, first, steps)
        return net.set_params(device=self.device)

    def draw(self, setting: str, seed: int) -> Draw:
        """Return a long-tailed training set; "drawn" settings have no meta rows."""
        images = once(load, self.folder, self.n_classes)
        factor = int(setting.split()[1].rstrip(","))
        n_max = min(self.n_max, images.n_max)
        data = make_long_tailed(
            images.X_train,
            images.y_train,
            factor,
            n_max=n_max,
            meta_per_class=min(PER_CLASS, images.n_max // 3),
            random_state=seed,
        )
        meta = (data.X_meta, data.y_meta) if "drawn" not in setting else (None, None)
        return Draw(data.X, data.y, *meta, images.X_test, images.y_test)

    def methods(self, methods: Mapping[str, BaseEstimator]) -> dict[str, BaseEstimator]:
        """Return methods with the epochs of their second stage, and its rate."""
        first, second = self.epochs
        for name, method in methods.items():
            method.set_params(max_epochs=second)
            if self.folder is None:
                continue
            if getattr(method, "stages", "2") == "2":
                method.set_params(lr=RATES.get(name, 1e-3))
                continue
            steps = [share * (first + second) for share in (0.8, 0.9)]
            net = residual_net(self.n_classes, first, steps)
            method.set_params(net=net.set_params(device=self.device))
        return dict(methods)


def load(folder: str | None, n_classes: int) -> Any:
    """Return the images, and how many the largest class can have."""
    images = load_fashion_mnist() if folder is None else load_cifar(folder, n_classes)
    images.n_max = int(np.bincount(images.y_train).min()) - PER_CLASS
    if images.n_max < 1:  # a few images of each class, to try a script on
        images.n_max = int(np.bincount(images.y_train).min()) * 2 // 3
    return images


class RandomCrops(nn.Module):
    """Shifts images by up to 4 pixels and mirrors half of them, in training only."""

    def forward(self, X: Tensor) -> Tensor:
        """Return the images, each with a shift of its own."""
        if not self.training:
            return X
        n, _, height, width = X.shape
        shifts = torch.randint(0, 9, (2, n, 1), device=X.device)
        rows = shifts[0] + torch.arange(height, device=X.device)
        columns = shifts[1] + torch.arange(width, device=X.device)
        mirrored = torch.rand(n, 1, device=X.device) < 0.5
        columns = columns.where(~mirrored, columns.flip(1))
        padded = nn.functional.pad(X, (4, 4, 4, 4)).permute(0, 2, 3, 1)
        each = torch.arange(n, device=X.device)[:, None, None]
        cropped = padded[each, rows[:, :, None], columns[:, None]]
        return cropped.permute(0, 3, 1, 2)


class CifarNet(nn.Module):
    """ResNet-32 on randomly cropped images."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.crops = RandomCrops()
        self.net = ResNet32(n_classes)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class scores."""
        return self.net(self.crops(X))


def residual_net(
    n_classes: int, max_epochs: int, steps: Sequence[float]
) -> NeuralNetClassifier:
    """Return ResNet-32 with the paper's optimizer and steps after some epochs."""
    milestones = [round(step) for step in steps]
    schedule = LRScheduler("MultiStepLR", milestones=milestones, gamma=0.01)
    return NeuralNetClassifier(
        CifarNet,
        module__n_classes=n_classes,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__weight_decay=5e-4,
        lr=0.1,
        batch_size=100,
        max_epochs=max_epochs,
        callbacks=[("schedule", schedule)],
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


def all_methods() -> dict[str, BaseEstimator]:
    """Return every method, and the best loss with the meta rows in training."""
    return baselines() | control() | ours()


def few_methods() -> dict[str, BaseEstimator]:
    """Return the methods of the short form."""
    return baselines(CONTROLS[:1]) | {RECIPE: ours()[RECIPE]}


# The weights balance the classes, as in the paper.
_OT = partial(OTReweightedClassifier, loss="net")


def parts() -> dict[str, BaseEstimator]:
    """Return estimators that differ in cost, points of Q and weights."""
    costs, points = ("label", "feature", "combined"), ("prototype", "whole", "random")
    methods: dict[str, BaseEstimator] = {}
    for form, weights in (("vector", WeightVector()), ("closed", SemiRelaxedWeights())):
        for cost in costs:
            methods[f"{form}: {cost}, prototype"] = _OT(cost=cost, weights=weights)
        for meta_set in points[1:]:
            methods[f"{form}: combined, {meta_set}"] = _OT(
                meta_set=meta_set, weights=weights
            )
    methods["vector: combined, prototype, from scratch"] = _OT(
        weights=WeightVector(keep=False)
    )
    return methods


def kinds_of_meta() -> dict[str, BaseEstimator]:
    """Return estimators for meta rows that are given, or drawn."""
    return {
        "combined cost": _OT(),
        "label cost (needs no meta rows)": _OT(cost="label"),
    }


def tables_of(images: Images, chosen: argparse.Namespace) -> list[Table]:
    """Return the tables: all methods, and the ablations."""
    name = "images" if images.folder is None else f"cifar{images.n_classes}"
    settings = [f"IF {factor}" for factor in FACTORS]

    def table(suffix: str, settings: Sequence[str], methods: Any) -> Table:
        return Table(
            name + suffix,
            settings,
            lambda setting: images.methods(methods()),
            images.draw,
            images.net,
        )

    if chosen.short:
        return [table("", settings[:1], few_methods)]
    return [
        table("", settings, all_methods),
        table("_parts", ["IF 100"], parts),
        table("_meta", ["IF 100, given", "IF 100, drawn"], kinds_of_meta),
    ]


def lines_of(fits: Sequence[Fit]) -> list[Line]:
    """Return what our recipe should reach, from the means over the seeds."""
    lines = []
    for setting, errors in summary(fits).items():
        others = {k: v for k, v in errors.items() if not k.startswith("ot_")}
        others.pop("ot", None)
        if RECIPE not in errors or not others:
            continue
        name, best = min(others.items(), key=lambda item: item[1].mean)
        own, allowed = errors[RECIPE].mean, 0.0
        if setting == "IF 20":
            allowed = best.std
        lines.append(
            Line(
                f"{setting}: error of {RECIPE} less that of the best other ({name})",
                own - best.mean,
                allowed,
                at_least=False,
            )
        )
        if setting == "IF 200":
            ratio = own / errors["ce"].mean
            title = f"{setting}: error of {RECIPE} / error of CE"
            lines.append(Line(title, ratio, 0.70, at_least=False))
    return lines


def weights_and_recalls(fits: Sequence[Fit], images: Images) -> str:
    """Return rows and recalls of each class at IF 200, means over the seeds."""
    classes = range(images.n_classes)
    counts = np.bincount(images.draw("IF 200", 0).y)
    names = ("ce", "logit_adjustment", "ot", RECIPE)
    recalls = {
        name: np.mean(
            [
                [fit[f"recall_{k}"] for k in classes]
                for fit in fits
                if fit["setting"] == "IF 200" and fit["method"] == name
            ],
            axis=0,
        )
        for name in names
    }
    rows = [
        [str(k), str(counts[k]), *(f"{recalls[name][k]:.2f}" for name in names)]
        for k in classes
    ]
    return markdown_table(["class", "rows", *names], rows)


def confusions(images: Images) -> str:
    """Return the confusion matrices of CE and of our recipe at IF 200, one fit each."""
    draw, methods = images.draw("IF 200", 0), images.methods(all_methods())
    pages = []
    for name in ("ce", RECIPE):
        clf = methods[name].set_params(net=images.net("IF 200"), random_state=0)
        clf.fit(draw.X, draw.y, meta=(draw.X_meta, draw.y_meta))
        shares = confusion_matrix(
            draw.y_test, clf.predict(draw.X_test), normalize="true"
        )
        header = [f"{name}: true \\ predicted", *map(str, range(images.n_classes))]
        rows = [
            [str(k), *(f"{100 * share:.0f}" for share in row)]
            for k, row in enumerate(shares)
        ]
        weight = ", ".join(f"{x:.2f}" for x in clf.class_weight_)
        pages += [markdown_table(header, rows), "", f"Mean weights: {weight}", ""]
    return "\n".join(pages)


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(
        __doc__.splitlines()[0],
        options={
            "cifar": "folder of the python batches; without it, Fashion-MNIST",
            "classes": "10 (default) or 100, of CIFAR",
        },
        flags={"smoke": "an epoch on a few images, printed only"},
    )
    n_classes = int(chosen.classes or 10)
    if chosen.cifar is None:
        size = (300, (4, 4)) if chosen.short else (5_990, (6, 6))
    else:
        size = (100, (1, 1)) if chosen.short else (5_000, (200, 40))
    images = Images(chosen.cifar, n_classes, *size, chosen.device)
    tables = tables_of(images, chosen)
    name = tables[0].name
    if chosen.check:
        return check(tables, name, chosen)
    fits = run(tables, chosen)
    sections = {"Balanced error (%)": error_table(fits[name])}
    if not chosen.short:
        sections |= {
            "Parts, IF 100": error_table(fits[f"{name}_parts"]),
            "Meta rows, IF 100": error_table(fits[f"{name}_meta"]),
            "Recall by class, IF 200": weights_and_recalls(fits[name], images),
        }
        if n_classes == 10:
            sections["Confusions at IF 200, seed 0 (%)"] = confusions(images)
    everything = [fit for found in fits.values() for fit in found]
    sections["Failed fits"] = failures(everything)
    title = "Long-tailed " + ("Fashion-MNIST" if chosen.cifar is None else "CIFAR")
    lines = [] if chosen.short else lines_of(fits[name])
    return report(name, title, sections, to_record(fits), lines, chosen)


if __name__ == "__main__":
    sys.exit(main())
