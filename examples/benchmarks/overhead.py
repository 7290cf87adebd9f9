"""What re-weighting costs on top of plain training.

An epoch of stage 2 is compared with an epoch of plain cross-entropy training (CE) of
the same skorch net with the same loader, and with the same training written by hand in
torch, with fixed weights. For ``finetune="head"`` the one by hand trains the head on
features that it keeps, too. The virtual step has a third measure: CE with exactly the
forward and backward passes that it needs, and nothing of the re-weighting.

Nets: an MLP for a table, two CNNs on Fashion-MNIST, of the size of PyTorch's own MNIST
example and a small one, and ResNet-32 on random images of the shape of CIFAR, all with
long-tailed classes. The contenders start from the same trained net, with their data on
the device, and take turns, in the opposite order every other round. Each trains for an
epoch and then for some more that are timed from begin to end, with what is refreshed
there; the median counts. Features that are extracted once per fit are not in it. Ratios
are taken round by round.

Where a line is drawn at a few percent, that is not close enough: the machine changes
its pace from one turn to the next. There the two train in turn epoch by epoch, and the
ratios are those of epochs that follow each other.

There are 10 meta rows per class for the MLP, but one for images: their epochs are short
here, and ten would take a larger part of them than of an epoch of a real data set.
(With more meta rows a virtual step takes longer, and so does what it is compared with.)

A whole fit of the MLP (both stages, the head alone in the second, else the defaults) is
compared with the same steps by hand. Predictions are compared with loops over batches
of the size of training, with a single call for all rows, and with a loop over batches
as the package makes them. That the results are the same is checked.

Bounds are set for nets as they are used. The small CNN shows what is left of that for
steps of few milliseconds; and the closed form with ``finetune="all"`` what it takes to
extract the features of all rows, in evaluation mode, for each epoch.

The results are recorded in ``results/``, unless with ``--short``: the MLP and the small
CNN alone, in fewer rounds::

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --short
    python examples/benchmarks/overhead.py --device cuda
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _common import Line, Spread, alternate, arguments, markdown_table, ratio, report
from _overhead_nets import (
    Setting,
    cnn_setting,
    epoch_by_hand,
    fit_by_hand,
    mlp_setting,
    optimizer_of,
    predict_by_hand,
    resnet_setting,
    rows_per_pass,
    weights_by_hand,
    with_virtual_passes,
)
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback

from sk_otreweight import OTReweightedClassifier

CE, PASSES = "CE", "CE with the passes of the virtual step"
ALL_BY_HAND, HEAD_BY_HAND = "by hand", "head, by hand"
ALL, VIRTUAL = "all, vector", "all, vector, virtual step"
METHODS = {
    ALL: {"finetune": "all", "weights": "vector", "virtual_step": None},
    VIRTUAL: {
        "finetune": "all",
        "weights": "vector",
        "virtual_step": "first_order",
    },
    "all, semirelaxed": {"finetune": "all", "weights": "semirelaxed"},
    "head, vector": {"finetune": "head", "weights": "vector"},
    "head, semirelaxed": {"finetune": "head", "weights": "semirelaxed"},
}
# Numerator, denominator and the line of their ratio.
PAIRED = {ALL: CE, VIRTUAL: PASSES}
ALL_BOUNDS = tuple((name, rival, 1.05) for name, rival in PAIRED.items())
HEAD_BOUNDS = (("head, vector", CE, 0.25), ("head, semirelaxed", CE, 0.25))
BOUNDS = {
    "small CNN": HEAD_BOUNDS,
    "CNN": ALL_BOUNDS + HEAD_BOUNDS,
    "ResNet-32": ALL_BOUNDS,
}
# Loops to predict by hand that anybody would write, and the one with batches like ours.
BY_HAND, AT_ONCE = "by hand, batches of training", "by hand, all rows at once"
SAME_BATCHES = "by hand, batches of the package"
# Of the results by hand: float32, and kernels that differ with the batch size.
TOLERANCE = 1e-3
# Epochs that each contender is timed for in its turn, after one that is not, and those
# of two that train epoch by epoch.
TIMED_EPOCHS, TIMED_PAIRS = 2, 6
Times = dict[str, list[float]]


def stage_two_epochs(
    setting: Setting, net: NeuralNetClassifier, epochs: int, **method: str | None
) -> list[float]:
    """Return the seconds of some epochs of stage 2, after one that is not timed."""
    clf = OTReweightedClassifier(
        FrozenEstimator(net), max_epochs=1 + epochs, random_state=0, **method
    )
    train, meta = setting.train, setting.meta
    clf.fit(train.X, train.labels, meta=(meta.X, meta.labels))
    return clf.history_[-epochs:, "seconds"]


class Rival:
    """A net that is trained as skorch does it, one epoch at a time."""

    def __init__(self, setting: Setting, net: NeuralNetClassifier):
        self.net, self.train = net, setting.train

    def epoch(self) -> None:
        """Train for an epoch."""
        self.net.partial_fit(self.train.X, self.train.labels, epochs=1)


class AfterEpoch(Callback):
    """Gives the rival a turn after each epoch, which is timed by then."""

    def __init__(self, rival: Rival):
        self.rival = rival

    def on_epoch_end(self, net: NeuralNetClassifier, **kwargs: Any) -> None:
        """Let the rival train."""
        self.rival.epoch()


def epochs_beside(
    setting: Setting,
    name: str,
    rival_name: str,
    make_rival: Callable[[], NeuralNetClassifier],
) -> Times:
    """Return the seconds of epochs of a method and of plain training, in turn."""
    rival, net = Rival(setting, make_rival()), copy.deepcopy(setting.net)
    net.callbacks_.append(("after_epoch", AfterEpoch(rival)))
    return {
        name: stage_two_epochs(setting, net, TIMED_PAIRS, **METHODS[name]),
        rival_name: rival.net.history[-TIMED_PAIRS:, "seconds"],
    }


def epochs_alone(setting: Setting, name: str) -> Times:
    """Return the seconds of epochs of a method."""
    method = METHODS[name]
    return {name: stage_two_epochs(setting, setting.net, TIMED_EPOCHS, **method)}


def epochs_by_hand(setting: Setting, name: str, *, head: bool) -> Times:
    """Return the seconds of weighted epochs without skorch, of the net or its head."""
    module, X = copy.deepcopy(setting.net.module_), setting.train.X
    if head:
        module.eval()
        with torch.no_grad():
            X = torch.cat([module.body(rows) for rows in X.split(512)])
        module = module.head
    epoch = partial(
        epoch_by_hand,
        module.train(),
        optimizer_of(setting.net, module),
        X,
        setting.train.y,
        batch_size=setting.net.batch_size,
        weights=torch.ones(len(X), device=X.device),
    )
    return alternate({name: epoch}, repeats=TIMED_EPOCHS, device=setting.net.device)


def contenders(setting: Setting) -> list[Callable[[], Times]]:
    """Return all that train the net of a setting, those that are paired together."""
    rivals = {
        CE: partial(copy.deepcopy, setting.net),
        PASSES: partial(with_virtual_passes, setting.net, setting.meta.X),
    }
    return [
        partial(epochs_by_hand, setting, HEAD_BY_HAND, head=True),
        partial(epochs_by_hand, setting, ALL_BY_HAND, head=False),
        *(partial(epochs_beside, setting, x, y, rivals[y]) for x, y in PAIRED.items()),
        *(partial(epochs_alone, setting, x) for x in METHODS if x not in PAIRED),
    ]


@dataclass(frozen=True)
class Epochs:
    """Seconds of the epochs of all contenders.

    Attributes
    ----------
    times : dict
        Median of each turn.
    pairs : dict
        Ratios of epochs that followed each other, by the name of the method.
    """

    times: Times
    pairs: dict[str, list[float]]

    def ratio(self, over: str, under: str) -> Spread:
        """Return the quotient of two contenders' epochs."""
        if over in self.pairs and under == PAIRED[over]:
            return Spread.of(self.pairs[over])
        return ratio(self.times, over, under)


def epochs_in_turn(setting: Setting, rounds: int) -> Epochs:
    """Let each contender time epochs of its own, in turn."""
    print(f"{setting} ...", flush=True)
    turns = contenders(setting)
    epochs = Epochs(defaultdict(list), defaultdict(list))
    for number in range(rounds):
        for turn in turns if number % 2 else reversed(turns):
            seconds = turn()
            for name, values in seconds.items():
                epochs.times[name].append(float(np.median(values)))
            if len(seconds) == 2:
                (name, own), (_, rivals) = seconds.items()
                epochs.pairs[name] += [x / y for x, y in zip(own, rivals, strict=True)]
    return epochs


def epoch_rows(setting: Setting, epochs: Epochs) -> list[list[str]]:
    """Return the rows of the table of the epochs."""
    rows = []
    for name, times in epochs.times.items():
        by_hand = HEAD_BY_HAND if name.startswith("head") else ALL_BY_HAND
        rows.append(
            [
                setting.title,
                name,
                f"{Spread.of(times):.4f}",
                f"{epochs.ratio(name, CE):.3f}",
                f"{epochs.ratio(name, by_hand):.3f}",
            ]
        )
    return rows


def epoch_lines(setting: Setting, epochs: Epochs) -> list[Line]:
    """Return the lines of the epochs."""
    return [
        Line(
            f"{setting.title}: epoch of {over} / {under}",
            epochs.ratio(over, under).median,
            bound,
            at_least=False,
        )
        for over, under, bound in BOUNDS.get(setting.name, ())
    ]


@dataclass(frozen=True)
class Whole:
    """Something a user calls, beside the same by hand, in one way or in several.

    Attributes
    ----------
    name : str
    times : dict
        Of ``"package"`` and of each way by hand.
    gap : float
        Largest difference of the results.
    bounds : dict
        Of the ratios to some of the ways by hand.
    """

    name: str
    times: Times
    gap: float
    bounds: dict[str, float]

    def rows(self) -> list[list[str]]:
        """Return the rows of the table."""
        package = f"{Spread.of(self.times['package']):.4f}"
        return [
            [
                self.name,
                package,
                way,
                f"{Spread.of(self.times[way]):.4f}",
                f"{ratio(self.times, 'package', way):.3f}",
                f"{self.gap:.1e}",
            ]
            for way in self.times
            if way != "package"
        ]

    def lines(self) -> list[Line]:
        """Return the lines: the bounds, and that the result is the same."""
        lines = [(f"{self.name}, difference to by hand", self.gap, TOLERANCE)]
        for way, bound in self.bounds.items():
            value = ratio(self.times, "package", way).median
            lines += [(f"{self.name} / {way}", value, bound)]
        return [Line(*line, at_least=False) for line in lines]


def compare_fits(setting: Setting, epochs: int, repeats: int) -> Whole:
    """Time a fit in two stages, and check the weights that it ends with."""
    train, meta = setting.train, setting.meta
    net = clone(setting.net).set_params(max_epochs=epochs, callbacks=None).initialize()
    clf = OTReweightedClassifier(
        net, finetune="head", max_epochs=epochs, random_state=0
    )
    given = {"meta": (meta.X, meta.labels)}
    tensors = (train.X, train.y), (meta.X, meta.y)
    functions = {
        "package": partial(clf.fit, train.X, train.labels, **given),
        BY_HAND: partial(fit_by_hand, net, *tensors, epochs=epochs),
    }
    times = alternate(functions, repeats=repeats, device=net.device)
    body = clf.net_.module_.eval().body
    with torch.no_grad():
        weights = weights_by_hand(body(train.X), train.y, body(meta.X), meta.y)
    gap = np.abs(clf.sample_weight_ / weights.cpu().numpy() - 1).max()
    return Whole(f"{setting.title}: fit", times, float(gap), {BY_HAND: 1.5})


def compare_predictions(
    setting: Setting, n: int, repeats: int, bounds: dict[str, float]
) -> Whole:
    """Time the probabilities of `n` rows, and check them."""
    train, meta = setting.train, setting.meta
    clf = OTReweightedClassifier(
        FrozenEstimator(setting.net), max_epochs=0, random_state=0
    )
    clf.fit(train.X, train.labels, meta=(meta.X, meta.labels))
    X = train.X[torch.arange(n, device=train.X.device) % len(train.X)]
    module, predict = clf.net_.module_, partial(clf.predict_proba, X)
    by_hand = partial(predict_by_hand, module, X)
    functions = {
        "package": predict,
        BY_HAND: partial(by_hand, setting.net.batch_size),
        AT_ONCE: partial(by_hand, n),
        SAME_BATCHES: partial(by_hand, rows_per_pass(module, predict)),
    }
    times = alternate(functions, repeats=repeats, device=setting.net.device)
    gap = np.abs(predict() - by_hand(n)).max()
    name = f"{setting.title}: predict_proba of {n:,} rows"
    return Whole(name, times, float(gap), bounds)


def make_settings(device: str, short: bool) -> list[Setting]:
    """Return the nets with their rows."""
    if short:
        return [mlp_setting(device), cnn_setting(device, small=True, n=1_000)]
    return [
        mlp_setting(device),
        cnn_setting(device, small=True, n=4_500),
        cnn_setting(device, small=False, n=1_000),
        resnet_setting(device, batch_size=16, n=512),
        resnet_setting(device, batch_size=128, n=384),
    ]


def sections(
    settings: Sequence[Setting], epochs: Mapping[str, Epochs], wholes: Sequence[Whole]
) -> dict[str, str]:
    """Return the tables."""
    rows = [row for x in settings for row in epoch_rows(x, epochs[x.title])]
    whole_rows = [row for whole in wholes for row in whole.rows()]
    seconds = "seconds, median (min–max)"
    of_epochs = ["net", "trained", f"epoch, {seconds}", "/ CE", "/ by hand"]
    of_wholes = ["what", seconds, "beside", seconds, "ratio", "difference"]
    return {
        "Data": "\n".join(f"- {setting}" for setting in settings),
        "Epochs": markdown_table(of_epochs, rows),
        "Fit and predict": markdown_table(of_wholes, whole_rows),
    }


def main() -> int:
    """Measure and report."""
    chosen = arguments(__doc__.splitlines()[0])
    torch.manual_seed(0)
    rounds = 2 if chosen.short else 5
    bounds = dict.fromkeys((BY_HAND, AT_ONCE, SAME_BATCHES), 1.3)
    settings = make_settings(chosen.device, chosen.short)
    epochs = {x.title: epochs_in_turn(x, rounds) for x in settings}
    mlp, cnn = settings[:2]
    wholes = [
        compare_fits(mlp, 10, 2 * rounds),
        compare_predictions(mlp, 10_000, 40 * rounds, {}),
        compare_predictions(mlp, 100_000, 20 * rounds, bounds),
        compare_predictions(cnn, 2_000, 4 * rounds, bounds),
    ]
    lines = [line for x in settings for line in epoch_lines(x, epochs[x.title])]
    lines += [line for whole in wholes for line in whole.lines()]
    return report(
        "overhead",
        "What re-weighting costs",
        sections(settings, epochs, wholes),
        {
            "epochs": {title: vars(x) for title, x in epochs.items()},
            "wholes": [asdict(whole) for whole in wholes],
        },
        lines,
        chosen,
    )


if __name__ == "__main__":
    sys.exit(main())
