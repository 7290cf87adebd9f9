"""Trials of what might make transport weights better, judged on validation images.

Long-tailed Fashion-MNIST, from the training split alone: 500 images of each class of it
are the validation rows, on which the balanced error is taken. The test split is not
read. Two settings: an imbalance factor (IF) of 200 as in ``images.py``, and one of 20
with 40 % wrong labels as in ``noise.py``, with the epochs of these. Each trial changes
one thing of the one it is compared with; all train the same net for the same number of
steps with Adam at 1e-3, and end with a moving average of the parameters. Three seeds;
the same draws, initial nets and orders of the rows for all trials.

What each was tried for, and what came of it, is in ``docs/experiments.md``. The long
form takes about an hour and a half on two cores; what is finished is kept in
``results/fits/``::

    python examples/benchmarks/experiments.py
    python examples/benchmarks/experiments.py --short
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _common import markdown_table, report
from _tables import Errors, forget, kept, table_arguments, use_one_thread
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
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.losses import CosineLinear

N_CLASSES, N_VALID, BATCH, LR = 10, 500, 128, 1e-3
SCALE = 30.0  # of cosines
DECAY = 0.99  # of the averaged parameters, per step


class Setting(NamedTuple):
    """Imbalance factor, share of wrong labels, largest class, epochs of both stages."""

    factor: float
    noise: float
    n_max: int
    first: int
    second: int

    def __str__(self) -> str:
        noise = f", {100 * self.noise:.0f} % wrong" if self.noise else ""
        return f"IF {self.factor:.0f}{noise}"


SETTINGS = (Setting(200, 0.0, 5_490, 6, 6), Setting(20, 0.4, 2_000, 8, 22))


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
    powers : tuple of float
        In both stages rows are drawn with probabilities ``n_k^-power``; at 0 each is
        taken once.
    weights : str or None
        "within" (transport weights, of mean 1 in each class), "between" (those as they
        are), "share" (what a row gets from the prototype of its own class in a balanced
        plan), "effective" (no transport: the class-balanced weights of LDAM-DRW),
        "hard" (the inverse of "within"), "prediction" (within, by the probability of
        the label in the place of the features), "trust" (within, by the share of a
        row's mass that is from its own class, see `suspicious_rows`), "drop" (0 where
        that is less than a half), "relabel" (where it is less than a half, the row gets
        the label of the class that it has most mass from).
    reg : float
    cost : str
        "combined" or "feature".
    refresh : bool
        Take the weights anew in each epoch of stage 2; else once.
    restart : bool
        Stage 2 begins with the net as it was.
    first_adjusted : bool
        Stage 1 has the logit-adjusted loss, if stage 2 has it.
    mixup : float
        Parameter of the beta distribution; 0 is none.
    meta_loss : float
        Factor of the mean loss of the meta rows.
    average : bool
        End with averaged parameters.
    counts : bool
        Adjust for the counts that the weights leave, row by row at most 1.
    late_lr : float
        Learning rate of stage 2.
    cosine : bool
        The last layer returns cosines, times 30.
    margin : float
        By how much the cosine of the rarest class has to be larger than the others, as
        LDAM has it.
    """

    adjusted: bool = True
    with_meta: bool = True
    powers: tuple[float, float] = (0.0, 0.0)
    weights: str | None = None
    reg: float = 0.2
    cost: str = "combined"
    refresh: bool = True
    restart: bool = False
    first_adjusted: bool = True
    mixup: float = 0.0
    meta_loss: float = 0.0
    average: bool = True
    counts: bool = False
    late_lr: float = LR
    cosine: bool = False
    margin: float = 0.0


CONTROL = Trial()
WITHIN = replace(CONTROL, weights="within")
COSINE = replace(CONTROL, cosine=True)
LDAM = Trial(adjusted=False, with_meta=False, cosine=True, margin=0.5)
RESTART = replace(WITHIN, restart=True, refresh=False)
TRIALS = {
    "cross-entropy": Trial(adjusted=False, with_meta=False),
    "logit-adjusted loss": Trial(with_meta=False),
    "control: the same, meta rows in training": CONTROL,
    "control, no averaged parameters": replace(CONTROL, average=False),
    "control, rows drawn by n^-1/2": replace(CONTROL, powers=(0.5, 0.5)),
    "control, rows drawn by n^-1/2 in stage 2": replace(CONTROL, powers=(0.0, 0.5)),
    "control, rows drawn by n^-1 in stage 2": replace(CONTROL, powers=(0.0, 1.0)),
    "control, mixup 0.4": replace(CONTROL, mixup=0.4),
    "control, loss on meta rows x 0.5": replace(CONTROL, meta_loss=0.5),
    "control, stage 2 at lr 3e-4": replace(CONTROL, late_lr=3e-4),
    "cross-entropy, weights between classes": replace(
        CONTROL, adjusted=False, weights="between", reg=0.1
    ),
    "cross-entropy, weights between classes, no meta rows": replace(
        CONTROL, adjusted=False, weights="between", reg=0.1, with_meta=False
    ),
    "cross-entropy, weights between classes, no meta rows, stage 2 at lr 5e-4": replace(
        CONTROL,
        adjusted=False,
        weights="between",
        reg=0.1,
        with_meta=False,
        late_lr=5e-4,
    ),
    "cross-entropy, weights between classes, reg 0.2": replace(
        CONTROL, adjusted=False, weights="between"
    ),
    "within: control, weights within classes": WITHIN,
    "within, reg 0.1": replace(WITHIN, reg=0.1),
    "within, reg 0.4": replace(WITHIN, reg=0.4),
    "within, reg 0.05": replace(WITHIN, reg=0.05),
    "within, reg 0.025": replace(WITHIN, reg=0.025),
    "within, reg 0.1, not refreshed": replace(WITHIN, reg=0.1, refresh=False),
    "within, reg 0.1, stage 2 at lr 3e-4": replace(WITHIN, reg=0.1, late_lr=3e-4),
    "within, reg 0.1, mixup 0.4": replace(WITHIN, reg=0.1, mixup=0.4),
    "within, reg 0.1, rows drawn by n^-1/2 in stage 2": replace(
        WITHIN, reg=0.1, powers=(0.0, 0.5)
    ),
    "within, reg 0.1, no meta rows (the default)": replace(
        WITHIN, reg=0.1, with_meta=False
    ),
    "within, reg 0.1, no meta rows, stage 1 with cross-entropy": replace(
        WITHIN, reg=0.1, with_meta=False, first_adjusted=False
    ),
    "within, cost of features alone": replace(WITHIN, cost="feature"),
    "within, not refreshed": replace(WITHIN, refresh=False),
    "within, hard rows up": replace(WITHIN, weights="hard"),
    "within, shares of a balanced plan": replace(WITHIN, weights="share", reg=0.05),
    "within, by predictions": replace(WITHIN, weights="prediction", reg=1.0),
    "within, by trust": replace(WITHIN, weights="trust"),
    "within, counts of what is left": replace(WITHIN, counts=True),
    "within, rows drawn by n^-1/2 in stage 2": replace(WITHIN, powers=(0.0, 0.5)),
    "LDAM": LDAM,
    "LDAM-DRW": replace(LDAM, weights="effective"),
    "LDAM-DRW, meta rows in training": replace(
        LDAM, weights="effective", with_meta=True
    ),
    "LDAM, weights between classes": replace(
        LDAM, weights="between", reg=0.1, with_meta=True
    ),
    "control, cosine head": COSINE,
    "control, cosine head, rows drawn by n^-1/2 in stage 2": replace(
        COSINE, powers=(0.0, 0.5)
    ),
    "control, cosine head, LDAM's margin": replace(COSINE, margin=0.5),
    "within, reg 0.1, cosine head": replace(COSINE, weights="within", reg=0.1),
    "within, reg 0.1, cosine head, rows drawn by n^-1/2 in stage 2": replace(
        COSINE, weights="within", reg=0.1, powers=(0.0, 0.5)
    ),
    "restart: within, stage 2 begins anew": RESTART,
    "restart, weights refreshed": replace(RESTART, refresh=True),
    "restart, reg 0.1": replace(RESTART, reg=0.1),
    "restart, reg 0.05": replace(RESTART, reg=0.05),
    "restart, reg 0.025": replace(RESTART, reg=0.025),
    "restart, stage 1 with cross-entropy": replace(RESTART, first_adjusted=False),
    "restart, cross-entropy, weights between classes": replace(
        RESTART, adjusted=False, weights="between", reg=0.1
    ),
    "restart, by predictions": replace(RESTART, weights="prediction", reg=1.0),
    "restart, by trust": replace(RESTART, weights="trust"),
    "restart, suspicious rows dropped": replace(RESTART, weights="drop"),
    "restart, suspicious rows relabelled": replace(RESTART, weights="relabel"),
    "restart, rows drawn by n^-1/2 in stage 2": replace(RESTART, powers=(0.0, 0.5)),
    "restart, rows drawn by n^-1/2 in stage 2, reg 0.05": replace(
        RESTART, powers=(0.0, 0.5), reg=0.05
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


def new_net(seed: int, cosine: bool) -> nn.Module:
    """Return the net as it begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = FashionCNN()
        if cosine:
            linear = net.head
            net.head = CosineLinear(linear.in_features, linear.out_features, SCALE)
            net.head.weight.data.copy_(linear.weight.data)
        return net


@torch.no_grad()
def features(net: nn.Module, X: Tensor) -> Tensor:
    """Return what the last layer is given."""
    return torch.cat([net.body(block) for block in X.split(2_000)])


def located(net: nn.Module, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features of training and meta rows, and the prototypes."""
    z, z_meta = features(net, rows.X), features(net, rows.X_meta)
    points = [z_meta[rows.y_meta == k].mean(0) for k in range(N_CLASSES)]
    return z, z_meta, torch.stack(points)


def closed_form(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return the transport weights as they are."""
    z, _, points = located(net, rows)
    cost = FeatureCost() if trial.cost == "feature" else CombinedCost()
    C = cost(z, rows.y, points, torch.arange(N_CLASSES))
    return semirelaxed_weights(C, torch.full((N_CLASSES,), 0.1), trial.reg)


def between(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return transport weights, which balance the classes."""
    weights = closed_form(trial, net, rows)
    return weights / weights.mean()


def within(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return transport weights of mean 1 in each class."""
    return within_classes(closed_form(trial, net, rows), rows.y)


def hard(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return large weights for what transport gives small ones."""
    return within_classes(1 / within(trial, net, rows).clamp(min=0.2), rows.y)


def effective(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return the class weights of LDAM-DRW."""
    weights = effective_number_weights(rows.y.bincount(minlength=N_CLASSES))
    return weights.float()[rows.y]


def by_prediction(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return weights by the probability of the label."""
    z, labels = features(net, rows.X), rows.y
    own = net.head(z).log_softmax(1).gather(1, labels[:, None])[:, 0]
    return within_classes((own / trial.reg).exp(), labels)


def by_share(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return weights by the mass from the own prototype in a balanced plan."""
    (z, _, points), labels = located(net, rows), rows.y
    C = FeatureCost()(z, labels, points, torch.arange(N_CLASSES))
    a = torch.full((len(labels),), 1 / len(labels))
    b = labels.bincount(minlength=N_CLASSES) / len(labels)
    plan = sinkhorn(C, a, b, trial.reg).plan
    shares = plan.gather(1, labels[:, None])[:, 0] / plan.sum(1)
    return within_classes(shares, labels)


def by_trust(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return weights by the share of a row's mass that is from its own class."""
    return within_classes(trust(trial, net, rows)[0], rows.y)


def trusted(trial: Trial, net: nn.Module, rows: Rows) -> Tensor:
    """Return 0 for rows most of whose mass is from other classes, 1 for the rest."""
    return (trust(trial, net, rows)[0] >= 0.5).float()


WEIGHTS: dict[str | None, Callable[[Trial, nn.Module, Rows], Tensor]] = {
    "between": between,
    "within": within,
    "hard": hard,
    "effective": effective,
    "prediction": by_prediction,
    "share": by_share,
    "trust": by_trust,
    "drop": trusted,
}


def trust(trial: Trial, net: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the share of each row's mass that is its own class's, and whose is most.

    The meta rows among them are trusted.
    """
    z, z_meta, _ = located(net, rows)
    found = suspicious_rows(z, rows.y, meta=(z_meta, rows.y_meta), reg=trial.reg)
    order = torch.from_numpy(found.index)
    shares, nearest = torch.empty(len(z)), rows.y.clone()
    shares[order] = 1 - torch.from_numpy(found.score).float()
    nearest[order] = torch.from_numpy(found.nearest_class)
    if trial.with_meta:
        shares[-len(z_meta) :] = 1
    return shares, nearest


def within_classes(weights: Tensor, labels: Tensor) -> Tensor:
    """Scale weights to mean 1 in each class."""
    sums = torch.zeros(N_CLASSES).index_add_(0, labels, weights)
    return weights / (sums / labels.bincount(minlength=N_CLASSES))[labels]


class Training:
    """A net in training, with the average of its parameters."""

    def __init__(self, trial: Trial, rows: Rows, seed: int):
        self.trial, self.rows, self.net = trial, rows, new_net(seed, trial.cosine)
        self.optimizer = torch.optim.Adam(self.net.parameters(), LR)
        self.generator = torch.Generator().manual_seed(seed)
        self.average = new_net(seed, trial.cosine)
        self.n_batches = 0
        self.weights = torch.ones(len(rows.y))

    def epoch(self, stage: int) -> None:
        """Take as many rows as there are."""
        trial, rows, n = self.trial, self.rows, len(self.rows.y)
        power = trial.powers[stage - 1]
        counts = rows.y.bincount(minlength=N_CLASSES).float()
        if power:
            chances = (counts**-power)[rows.y]
            order = torch.multinomial(chances, n, True, generator=self.generator)
        else:
            order = torch.randperm(n, generator=self.generator)
        if trial.counts:
            kept = self.weights.clamp(max=1)
            counts = torch.zeros(N_CLASSES).index_add_(0, rows.y, kept)
        shares = counts ** (1 - power)
        offset = (shares / shares.sum()).log() if trial.adjusted else torch.zeros(1)
        margins = SCALE * trial.margin * (counts.min() / counts) ** 0.25
        for batch in order.split(BATCH):
            loss = self._loss(batch, offset, margins)
            if trial.meta_loss:
                scores = self.net(rows.X_meta)
                loss = loss + trial.meta_loss * F.cross_entropy(scores, rows.y_meta)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self._average()

    def _loss(self, batch: Tensor, offset: Tensor, margins: Tensor) -> Tensor:
        X, y, weights = self.rows.X[batch], self.rows.y[batch], self.weights[batch]

        def loss(scores: Tensor, rows: Tensor | slice) -> Tensor:
            own = F.one_hot(y[rows], N_CLASSES) * margins
            losses = F.cross_entropy(scores - own, y[rows], reduction="none")
            return (weights[rows] * losses).mean()

        if not self.trial.mixup:
            return loss(self.net(X) + offset, slice(None))
        a = self.trial.mixup
        gamma = torch._standard_gamma(torch.full((2,), a), generator=self.generator)
        share = gamma[0] / gamma.sum()
        other = torch.randperm(len(batch), generator=self.generator)
        scores = self.net(share * X + (1 - share) * X[other]) + offset
        return share * loss(scores, slice(None)) + (1 - share) * loss(scores, other)

    @torch.no_grad()
    def _average(self) -> None:
        self.n_batches += 1
        share = max(1 - DECAY, 1 / self.n_batches)
        pairs = zip(self.average.parameters(), self.net.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value, share)

    def result(self) -> nn.Module:
        """Return the net to be judged."""
        return self.average if self.trial.average else self.net


def trained(
    trial: Trial, setting: Setting, rows: Rows, seed: int
) -> tuple[nn.Module, list[float]]:
    """Return the trained net, and the AUC of wrong labels for each set of weights."""
    found: list[float] = []
    first = replace(trial, adjusted=trial.adjusted and trial.first_adjusted)
    run = Training(first, rows, seed)
    for _ in range(setting.first):
        run.epoch(stage=1)
    net = run.result()
    if trial.restart:
        if trial.weights == "relabel":
            shares, nearest = trust(trial, net, rows)
            rows = rows._replace(y=torch.where(shares < 0.5, nearest, rows.y))
        run = Training(trial, rows, seed)
    run.trial = trial
    run.optimizer.param_groups[0]["lr"] = trial.late_lr
    for epoch in range(setting.second):
        is_due = epoch == 0 or trial.refresh
        if trial.weights in WEIGHTS and is_due:
            with torch.no_grad():
                run.weights = WEIGHTS[trial.weights](trial, net, rows)
            # Class weights know nothing of single rows.
            if rows.is_wrong.any() and trial.weights != "effective":
                found.append(roc_auc_score(rows.is_wrong, -run.weights.numpy()))
        run.epoch(stage=2)
        net = run.result()
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
) -> dict[str, Any]:
    """Return the figures of a trial, computed or read from disk."""
    use_one_thread()

    def compute() -> dict[str, float | None]:
        start = time.process_time()
        rows = draw(setting, seed, trial.with_meta)
        net, found = trained(trial, setting, rows, seed)
        return {
            "error": balanced_error(net, rows),
            "auc": found[-1] if found else None,
            "seconds": time.process_time() - start,
        }

    key = {"trial": repr(trial), "setting": repr(setting), "seed": seed}
    figures = kept("experiments", key, compute) if keep else compute()
    return key | figures | {"name": name}


def table(cells: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> str:
    """Return trials by settings, with the AUC where labels are wrong, and their time.

    Times are relative to the first trial's, of the processor and rough: trials share
    the machine. So the median of the seeds is taken.
    """
    names = list(dict.fromkeys(found["name"] for found in cells))
    first = _seconds(cells, names[0], settings)
    rows = []
    for name in names:
        row = [name]
        for setting in settings:
            own = _of(cells, name, setting)
            text = str(Errors.of([found["error"] for found in own]))
            aucs = [found["auc"] for found in own if found["auc"] is not None]
            row.append(text + (f" (AUC {np.mean(aucs):.3f})" if aucs else ""))
        rows.append([*row, f"{_seconds(cells, name, settings) / first:.1f}"])
    return markdown_table(["trial", *map(str, settings), "time"], rows)


def _of(
    cells: Sequence[dict[str, Any]], name: str, setting: Setting
) -> list[dict[str, Any]]:
    place = (name, repr(setting))
    return [found for found in cells if (found["name"], found["setting"]) == place]


def _seconds(
    cells: Sequence[dict[str, Any]], name: str, settings: Sequence[Setting]
) -> float:
    return sum(
        median(found["seconds"] for found in _of(cells, name, setting))
        for setting in settings
    )


def main() -> int:
    """Run the trials that are missing, and report."""
    chosen = table_arguments(__doc__.splitlines()[0], seeds=3)
    forget("experiments", chosen)
    settings: Sequence[Setting] = SETTINGS
    trials: dict[str, Trial] = TRIALS
    if chosen.short:
        settings = [Setting(20, 0.4, 200, 2, 3)]
        names = ("cross-entropy", "restart: within, stage 2 begins anew")
        trials = {name: TRIALS[name] for name in names}
    jobs = [
        (name, trial, setting, seed, not chosen.short)
        for seed in range(chosen.seeds)
        for setting in settings
        for name, trial in trials.items()
    ]
    compute: Callable[..., dict[str, Any]] = cell
    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    done = parallel(delayed(compute)(*job) for job in jobs)
    cells = list(tqdm(done, total=len(jobs), unit="fit"))
    sections = {"Balanced error (%) on validation rows": table(cells, settings)}
    return report("experiments", "Trials", sections, cells, [], chosen)


if __name__ == "__main__":
    sys.exit(main())
