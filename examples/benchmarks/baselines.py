"""What the methods with a meta gradient cost beside plain training.

An epoch of the second stage of each method with ``finetune="head"`` is compared with an
epoch of cross-entropy training of the whole net (CE), by the same code. Nets: the
default net on long-tailed digits, with batches of 32 rows of which calls are the larger
part, an MLP for a table and a CNN on Fashion-MNIST. All begin with the same trained net
and take turns; each trains for an epoch and then for two that are timed (on digits, of
a few milliseconds, ten); their median counts.

What the methods cost that train the whole net, as most do by default, is a column of
`compare` (see ``plot_compare.py``).

The results are recorded in ``results/``, unless with ``--short``::

    python examples/benchmarks/baselines.py
    python examples/benchmarks/baselines.py --short
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from _common import Line, Spread, arguments, markdown_table, ratio, report
from _overhead_nets import Setting, cnn_setting, digits_setting, mlp_setting
from sklearn.frozen import FrozenEstimator

from sk_otreweight import BASELINES
from sk_otreweight.baselines import CrossEntropyClassifier
from sk_otreweight.baselines.learned import MetaClassifier

CE, BOUND = "ce", 1.5
METHODS = [name for name in BASELINES if issubclass(BASELINES[name], MetaClassifier)]


def seconds_of_epoch(setting: Setting, name: str) -> float:
    """Return the seconds of an epoch of stage 2."""
    epochs = 10 if len(setting.train.X) < 1_000 else 2
    kind = CrossEntropyClassifier if name == CE else BASELINES[name]
    params = {} if name == CE else {"finetune": "head"}
    net = FrozenEstimator(setting.net)
    clf = kind(net, max_epochs=1 + epochs, random_state=0, **params)
    train, meta = setting.train, setting.meta
    clf.fit(train.X, train.labels, meta=(meta.X, meta.labels))
    return float(np.median(clf.history_[-epochs:, "seconds"]))


def epochs_in_turn(setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Let each method time epochs of its own, in turn."""
    print(f"{setting} ...", flush=True)
    names = [CE, *METHODS]
    times = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            times[name].append(seconds_of_epoch(setting, name))
    return times


def main() -> int:
    """Measure and report."""
    chosen = arguments(__doc__.splitlines()[0])
    torch.manual_seed(0)
    n = 1_000 if chosen.short else 4_500
    settings = [digits_setting(chosen.device)]
    if not chosen.short:
        settings.append(mlp_setting(chosen.device))
    settings.append(cnn_setting(chosen.device, small=True, n=n))
    rounds = 2 if chosen.short else 5
    times = {x.title: epochs_in_turn(x, rounds) for x in settings}
    rows = [
        [title, name, f"{Spread.of(own[name]):.4f}", f"{ratio(own, name, CE):.3g}"]
        for title, own in times.items()
        for name in own
    ]
    heads = ["net", "method", "epoch, seconds, median (min–max)", "/ CE"]
    lines = [
        Line(
            f"{title}: epoch of {name} / CE",
            ratio(own, name, CE).median,
            BOUND,
            at_least=False,
        )
        for title, own in times.items()
        for name in METHODS
    ]
    return report(
        "baselines",
        "What meta gradients cost",
        {"Epochs": markdown_table(heads, rows)},
        {"epochs": times},
        lines,
        chosen,
    )


if __name__ == "__main__":
    sys.exit(main())
