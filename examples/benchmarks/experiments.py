"""Trials of what might make transport weights better, judged on validation images.

Long-tailed Fashion-MNIST as in ``images.py``, from the training split alone: 500 images
of each class of it are the validation rows, on which the balanced error is taken. The
test split is not read. Each trial changes one thing of the one it is compared with; all
train the same net for the same number of steps with Adam at 1e-3, and end with a moving
average of the parameters. Two seeds; the same draws, initial nets and orders of the
rows for all trials.

What each was tried for, and what came of it, is in ``docs/experiments.md``. The long
form takes about three hours on two cores; what is finished is kept in
``examples/output/``::

    python examples/benchmarks/experiments.py
    python examples/benchmarks/experiments.py --short
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _common import markdown_table, report
from _tables import Errors, kept, table_arguments, use_one_thread
from defaults import FashionCNN
from joblib import Parallel, delayed
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from sk_otreweight import (
    CombinedCost,
    FeatureCost,
    load_fashion_mnist,
    make_long_tailed,
    semirelaxed_weights,
    sinkhorn,
    suspicious_rows,
)

N_CLASSES, N_VALID, BATCH, LR = 10, 500, 128, 1e-3
DECAY = 0.99  # of the averaged parameters, per step


class Setting(NamedTuple):
    """An imbalance factor, the share of wrong labels, and the largest class."""

    factor: float
    noise: float
    n_max: int

    def __str__(self) -> str:
        noise = f", {100 * self.noise:.0f} % wrong" if self.noise else ""
        return f"IF {self.factor:.0f}{noise}"


SETTINGS = (Setting(200, 0.0, 2_000), Setting(50, 0.0, 2_000), Setting(20, 0.4, 5_000))


@dataclass(frozen=True)
class Trial:
    """How a net is trained.

    Attributes
    ----------
    adjusted : bool
        Logit-adjusted loss, for the shares in which the classes are drawn; else
        cross-entropy.
    with_meta : bool
        The meta rows are training rows, too.
    power : float
        Rows are drawn with probabilities ``n_k^-power``; at 0 each is taken once.
    weights : str or None
        "within" (transport weights, of mean 1 in each class), "between" (those as they
        are), "share" (what a row gets from the prototype of its own class in a balanced
        plan), "hard" (the inverse of "within"), "prediction" (within, by the
        probability of the label in the place of the features), "trust" (within, by the
        share of a row's mass that is from its own class, see `suspicious_rows`).
    reg : float
    cost : str
        "combined" or "feature".
    start : int
        Epoch from which the weights are taken from the net itself.
    refresh : bool
        Take them anew in each epoch.
    before : bool
        Begin with weights from a net that was trained plainly for `first` epochs.
    first, epochs : int
    mixup : float
        Parameter of the beta distribution; 0 is none.
    meta_loss : float
        Factor of the mean loss of the meta rows.
    average : bool
        End with averaged parameters.
    counts : bool
        Adjust for the counts that the weights leave, row by row at most 1.
    late_lr : float
        Learning rate of the last ten epochs.
    """

    adjusted: bool = True
    with_meta: bool = True
    power: float = 0.0
    weights: str | None = None
    reg: float = 0.2
    cost: str = "combined"
    start: int = 4
    refresh: bool = True
    before: bool = False
    first: int = 8
    epochs: int = 18
    mixup: float = 0.0
    meta_loss: float = 0.0
    average: bool = True
    counts: bool = False
    late_lr: float = LR


CONTROL = Trial()
WITHIN = replace(CONTROL, weights="within")
TRIALS = {
    "cross-entropy": Trial(adjusted=False, with_meta=False),
    "logit-adjusted loss": Trial(with_meta=False),
    "+ meta rows in training (control)": CONTROL,
    "no averaged parameters": replace(CONTROL, average=False),
    "rows drawn by n^-1/2": replace(CONTROL, power=0.5),
    "rows drawn by n^-1": replace(CONTROL, power=1.0),
    "mixup 0.4": replace(CONTROL, mixup=0.4),
    "loss on meta rows x 0.5": replace(CONTROL, meta_loss=0.5),
    "last epochs at lr 3e-4": replace(CONTROL, late_lr=3e-4),
    "cross-entropy, weights between classes": replace(
        CONTROL, adjusted=False, weights="between", reg=0.1
    ),
    "weights within classes, reg 0.1": replace(WITHIN, reg=0.1),
    "weights within classes, reg 0.2": WITHIN,
    "weights within classes, reg 0.3": replace(WITHIN, reg=0.3),
    "... of features alone": replace(WITHIN, cost="feature"),
    "... not refreshed": replace(WITHIN, refresh=False),
    "... hard rows up": replace(WITHIN, weights="hard"),
    "... shares of a balanced plan": replace(WITHIN, weights="share", reg=0.05),
    "... by predictions": replace(WITHIN, weights="prediction", reg=1.0),
    "... by trust, reg 0.1": replace(WITHIN, weights="trust", reg=0.1),
    "... by trust, reg 0.2": replace(WITHIN, weights="trust", reg=0.2),
    "... by trust, from a first net, then restarted": replace(
        WITHIN, weights="trust", reg=0.1, before=True, start=1, epochs=10
    ),
    "... counts of what is left": replace(WITHIN, counts=True),
    "... from a first net, then restarted": replace(
        WITHIN, before=True, start=1, epochs=10
    ),
    "... the same, not refreshed": replace(
        WITHIN, before=True, start=1, epochs=10, refresh=False
    ),
    "... the same, refreshed after 4 epochs": replace(
        WITHIN, before=True, start=4, epochs=10
    ),
}


class Rows(NamedTuple):
    """Training, meta and validation rows; which labels are wrong, meta rows last."""

    X: Tensor
    y: Tensor
    X_meta: Tensor
    y_meta: Tensor
    X_valid: Tensor
    y_valid: Tensor
    is_wrong: np.ndarray


def draw(setting: Setting, seed: int, with_meta: bool) -> Rows:
    """Return rows of the training split."""
    images = load_fashion_mnist()
    y = images.y_train
    rng = np.random.default_rng(0)
    valid = np.concatenate(
        [
            rng.choice(np.flatnonzero(y == k), N_VALID, replace=False)
            for k in range(N_CLASSES)
        ]
    )
    rest = np.setdiff1d(np.arange(len(y)), valid)
    data = make_long_tailed(
        images.X_train[rest],
        y[rest],
        setting.factor,
        n_max=setting.n_max,
        label_noise=setting.noise,
        random_state=seed,
    )
    X, labels = torch.from_numpy(data.X), torch.from_numpy(data.y).long()
    X_meta, y_meta = torch.from_numpy(data.X_meta), torch.from_numpy(data.y_meta).long()
    wrong = data.flipped if setting.noise else np.zeros(len(labels), bool)
    if with_meta:
        X, labels = torch.cat([X, X_meta]), torch.cat([labels, y_meta])
        wrong = np.concatenate([wrong, np.zeros(len(y_meta), bool)])
    valid_X, valid_y = images.X_train[valid], y[valid]
    return Rows(
        X,
        labels,
        X_meta,
        y_meta,
        torch.from_numpy(valid_X),
        torch.from_numpy(valid_y).long(),
        wrong,
    )


def new_net(seed: int) -> nn.Module:
    """Return the net as it begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FashionCNN()


@torch.no_grad()
def features(net: nn.Module, X: Tensor) -> Tensor:
    """Return what the last layer is given."""
    return torch.cat([net.body(block) for block in X.split(2_000)])


@torch.no_grad()
def row_weights(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return the weights that a trial gives the rows, of mean 1."""
    z, labels = features(net, rows.X), rows.y
    z_meta = features(net, rows.X_meta)
    classes = torch.arange(N_CLASSES)
    points = torch.stack([z_meta[rows.y_meta == k].mean(0) for k in classes])
    if trial.weights == "prediction":
        own = net.head(z).log_softmax(1).gather(1, labels[:, None])[:, 0]
        return within_classes((own / trial.reg).exp(), labels)
    if trial.weights == "trust":
        found = suspicious_rows(z, labels, meta=(z_meta, rows.y_meta), reg=trial.reg)
        trust = np.empty(len(labels))
        trust[found.index] = 1 - found.score
        return within_classes(torch.from_numpy(trust).float(), labels)
    if trial.weights == "share":
        C = FeatureCost()(z, labels, points, classes)
        a = torch.full((len(labels),), 1 / len(labels))
        b = labels.bincount(minlength=N_CLASSES) / len(labels)
        plan = sinkhorn(C, a, b, trial.reg).plan
        shares = plan.gather(1, labels[:, None])[:, 0] / plan.sum(1)
        return within_classes(shares, labels)
    cost = FeatureCost() if trial.cost == "feature" else CombinedCost()
    C = cost(z, labels, points, classes)
    weights = semirelaxed_weights(C, torch.full((N_CLASSES,), 0.1), trial.reg)
    if trial.weights == "between":
        return weights / weights.mean()
    weights = within_classes(weights, labels)
    if trial.weights == "hard":
        return within_classes(1 / weights.clamp(min=0.2), labels)
    return weights


def within_classes(weights: Tensor, labels: Tensor) -> Tensor:
    """Scale weights to mean 1 in each class."""
    sums = torch.zeros(N_CLASSES).index_add_(0, labels, weights)
    return weights / (sums / labels.bincount(minlength=N_CLASSES))[labels]


class Training:
    """A net in training, with the average of its parameters."""

    def __init__(self, trial: Trial, rows: Rows, seed: int):
        self.trial, self.rows, self.net = trial, rows, new_net(seed)
        self.optimizer = torch.optim.Adam(self.net.parameters(), LR)
        self.generator = torch.Generator().manual_seed(seed)
        self.average = new_net(seed)
        counts = rows.y.bincount(minlength=N_CLASSES).float()
        self.chances = (counts**-trial.power)[rows.y]
        self.weights = torch.ones(len(rows.y))

    def epoch(self) -> None:
        """Take as many rows as there are."""
        trial, rows, n = self.trial, self.rows, len(self.rows.y)
        if trial.power:
            order = torch.multinomial(self.chances, n, True, generator=self.generator)
        else:
            order = torch.randperm(n, generator=self.generator)
        kept = self.weights.clamp(max=1) if trial.counts else torch.ones(n)
        shares = torch.zeros(N_CLASSES).index_add_(0, rows.y, self.chances * kept)
        offset = (shares / shares.sum()).log() if trial.adjusted else torch.zeros(1)
        for batch in order.split(BATCH):
            loss = self._loss(batch, offset)
            if trial.meta_loss:
                scores = self.net(rows.X_meta)
                loss = loss + trial.meta_loss * F.cross_entropy(scores, rows.y_meta)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self._average()

    def _loss(self, batch: Tensor, offset: Tensor) -> Tensor:
        X, y, weights = self.rows.X[batch], self.rows.y[batch], self.weights[batch]
        if not self.trial.mixup:
            losses = F.cross_entropy(self.net(X) + offset, y, reduction="none")
            return (weights * losses).mean()
        a = self.trial.mixup
        gamma = torch._standard_gamma(torch.full((2,), a), generator=self.generator)
        share = gamma[0] / gamma.sum()
        other = torch.randperm(len(batch), generator=self.generator)
        scores = self.net(share * X + (1 - share) * X[other]) + offset
        losses = share * F.cross_entropy(scores, y, reduction="none")
        return (losses + (1 - share) * F.cross_entropy(scores, y[other])).mean()

    @torch.no_grad()
    def _average(self) -> None:
        pairs = zip(self.average.parameters(), self.net.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value, 1 - DECAY)

    def result(self) -> nn.Module:
        """Return the net to be judged."""
        return self.average if self.trial.average else self.net


def trained(trial: Trial, rows: Rows, seed: int) -> tuple[nn.Module, list[float]]:
    """Return the trained net, and the AUC of wrong labels for each set of weights."""
    found: list[float] = []

    def weigh(run: Training, net: nn.Module) -> None:
        run.weights = row_weights(trial, net, rows)
        if rows.is_wrong.any():
            found.append(roc_auc_score(rows.is_wrong, -run.weights.numpy()))

    run = Training(trial, rows, seed)
    if trial.before:
        plain = replace(trial, adjusted=False, weights=None, before=False)
        first = Training(plain, rows, seed + 50)
        for _ in range(trial.first):
            first.epoch()
        weigh(run, first.result())
    for epoch in range(trial.epochs):
        if epoch == trial.epochs - 10:
            run.optimizer.param_groups[0]["lr"] = trial.late_lr
        is_due = epoch == trial.start if not trial.before else False
        if trial.weights and (is_due or (trial.refresh and epoch >= trial.start)):
            weigh(run, run.result())
        run.epoch()
    return run.result(), found


@torch.no_grad()
def balanced_error(net: nn.Module, rows: Rows) -> float:
    """Return the balanced error on the validation rows, in per cent."""
    predicted = net.head(features(net, rows.X_valid)).argmax(1)
    right = (predicted == rows.y_valid).float()
    recalls = [right[rows.y_valid == k].mean() for k in range(N_CLASSES)]
    return 100 * (1 - float(torch.stack(recalls).mean()))


def cell(
    name: str, trial: Trial, setting: Setting, seed: int, keep: bool
) -> dict[str, object]:
    """Return the figures of a trial, computed or read from disk."""
    use_one_thread()

    def compute() -> dict[str, float | None]:
        start = time.perf_counter()
        rows = draw(setting, seed, trial.with_meta)
        net, found = trained(trial, rows, seed)
        return {
            "error": balanced_error(net, rows),
            "auc": found[-1] if found else None,
            "seconds": time.perf_counter() - start,
        }

    key = {"trial": repr(trial), "setting": repr(setting), "seed": seed}
    figures = kept("experiments", key, compute) if keep else compute()
    return key | figures | {"name": name}


def table(cells: Sequence[dict[str, object]], settings: Sequence[Setting]) -> str:
    """Return trials by settings, with the AUC where labels are wrong."""
    rows = []
    for name in dict.fromkeys(str(found["name"]) for found in cells):
        row = [name]
        for setting in settings:
            own = [
                found
                for found in cells
                if found["name"] == name and found["setting"] == repr(setting)
            ]
            text = str(Errors.of([found["error"] for found in own]))
            aucs = [found["auc"] for found in own if found["auc"] is not None]
            row.append(text + (f" (AUC {np.mean(aucs):.3f})" if aucs else ""))
        rows.append(row)
    return markdown_table(["trial", *map(str, settings)], rows)


def main() -> int:
    """Run the trials that are missing, and report."""
    chosen = table_arguments(__doc__.splitlines()[0], seeds=2)
    settings: Sequence[Setting] = SETTINGS
    trials: dict[str, Trial] = TRIALS
    if chosen.short:
        settings = [Setting(20, 0.4, 200)]
        trials = {
            name: replace(trial, epochs=3, first=2, start=1)
            for name, trial in TRIALS.items()
            if name in ("cross-entropy", "... from a first net, then restarted")
        }
    jobs = [
        (name, trial, setting, seed, not chosen.short)
        for seed in range(chosen.seeds)
        for setting in settings
        for name, trial in trials.items()
    ]
    compute: Callable[..., dict[str, object]] = cell
    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    done = parallel(delayed(compute)(*job) for job in jobs)
    cells = list(tqdm(done, total=len(jobs), unit="fit"))
    sections = {"Balanced error (%) on validation rows": table(cells, settings)}
    return report("experiments", "Trials", sections, cells, [], chosen)


if __name__ == "__main__":
    sys.exit(main())
