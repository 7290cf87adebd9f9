"""Errors on long-tailed images some of whose labels are wrong, and finding these.

Fashion-MNIST with an imbalance factor (IF) of 20 and 100 and up to 2,000 images of a
class; 0, 20 or 40 % of the training labels are replaced by another class, the meta
labels are right. The net is that of ``images.py``; it is trained for 30 epochs, of
which 8 are stage 1 where there are two, so that it has the time to learn wrong labels
by heart. How much methods differ depends on that, which two controls show: rows that
cleanlab flags (its self-confidence, by the probabilities of a net that was trained on
the other half of the rows) are dropped before training with the logit-adjusted loss,
and the logit-adjusted loss is given half of the epochs.

The second table is the area under the ROC curve (AUC) of the wrong labels, ranked by

- ``suspicious_rows`` of the net trained plainly, and of the fitted estimator,
- the weights that the estimator gave the rows,
- cleanlab's self-confidence, by the probabilities of the net trained plainly, and by
  those of two nets, each for the half that it was not trained on.

The long form takes about four hours on two cores; what is finished is kept in
``examples/output/``::

    python examples/benchmarks/noise.py
    python examples/benchmarks/noise.py --short
    python examples/benchmarks/noise.py --check "IF 20, 40 % wrong" ot_robust 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from _averaging import AveragedParameters
from _common import Line, markdown_table, report
from _methods import baselines, ours
from _tables import (
    Draw,
    Errors,
    Table,
    check,
    error_table,
    failures,
    kept,
    run,
    summary,
    table_arguments,
    use_one_thread,
)
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from defaults import fashion_net
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.utils import Bunch
from skorch import NeuralNetClassifier
from tqdm.auto import tqdm

from sk_otreweight import (
    BASELINES,
    OTReweightedClassifier,
    load_fashion_mnist,
    make_long_tailed,
)

RIVALS = ("ce", "inverse", "logit_adjustment", "focal")
RECIPE = "ot_robust"
FOLDS = 2


class CleanedClassifier(ClassifierMixin, BaseEstimator):
    """Drops the rows that cleanlab flags, then trains with the logit-adjusted loss.

    Parameters
    ----------
    net : skorch net
        Its epochs are those of the nets that tell what to drop.
    max_epochs : int
        More epochs of the net that learns from what is left.
    random_state : int, default=None
    """

    def __init__(self, net: Any, max_epochs: int, random_state: int | None = None):
        self.net = net
        self.max_epochs = max_epochs
        self.random_state = random_state

    def fit(self, X: Any, y: np.ndarray) -> CleanedClassifier:
        """Flag, drop and train."""
        net = clone(self.net)
        chances = out_of_sample(net, X, y, self.random_state)
        is_right = ~find_label_issues(y, chances)
        self.clf_ = BASELINES["logit_adjustment"](
            net, max_epochs=self.max_epochs, random_state=self.random_state
        )
        self.clf_.fit(X[is_right], y[is_right])
        self.classes_ = self.clf_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row."""
        return self.clf_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities."""
        return self.clf_.predict_proba(X)


def out_of_sample(net: Any, X: Any, y: np.ndarray, seed: int | None) -> np.ndarray:
    """Return the probabilities of a plainly trained net for rows it has not seen."""
    plain = BASELINES["ce"](net, max_epochs=0, random_state=seed)
    return cross_val_predict(plain, X, y, cv=FOLDS, method="predict_proba")


def the_net(setting: str, epochs: int = 8) -> NeuralNetClassifier:
    """Return the net of all methods."""
    return fashion_net(epochs).set_params(callbacks=[AveragedParameters()])


def noisy(setting: str, seed: int, n_max: int) -> Bunch:
    """Return a training set with wrong labels."""
    images = load_fashion_mnist()
    factor, noise = setting.removeprefix("IF ").removesuffix(" % wrong").split(", ")
    return make_long_tailed(
        images.X_train,
        images.y_train,
        float(factor),
        n_max=n_max,
        label_noise=float(noise) / 100,
        random_state=seed,
    )


def draw(setting: str, seed: int, n_max: int) -> Draw:
    """Return training, meta and test rows."""
    data, images = noisy(setting, seed, n_max), load_fashion_mnist()
    return Draw(data.X, data.y, data.X_meta, data.y_meta, images.X_test, images.y_test)


def methods(
    setting: str, epochs: tuple[int, int], few: bool = False
) -> dict[str, BaseEstimator]:
    """Return the controls, dropping flagged rows, and ours."""
    first, second = epochs
    with_meta = BASELINES["logit_adjustment"](train_on_meta=True)
    found = {
        **baselines((*RIVALS, "ce_meta", "meta_head", "logit_adjustment_posthoc")),
        "logit_adjustment + meta rows": with_meta,
        **ours(),
    }
    if few:
        found = {name: found[name] for name in (*RIVALS[:1], RECIPE)}
    for method in found.values():
        method.set_params(max_epochs=second)
    if few:
        return found
    half = (first + second) // 2 - first
    return found | {
        "logit_adjustment, half": BASELINES["logit_adjustment"](max_epochs=half),
        "cleanlab, then logit_adjustment": CleanedClassifier(
            the_net(setting, first), second
        ),
    }


def rankings(setting: str, seed: int, n_max: int, epochs: tuple[int, int]) -> Any:
    """Return the AUC of the wrong labels by each ranking."""
    use_one_thread()
    data = noisy(setting, seed, n_max)
    net, meta = the_net(setting, epochs[0]), (data.X_meta, data.y_meta)

    def auc(scores: np.ndarray) -> float:
        return float(roc_auc_score(data.flipped, scores))

    def suspicion(clf: OTReweightedClassifier) -> float:
        rows = clf.suspicious_rows(data.X, data.y)
        scores = np.empty(len(data.y))
        scores[rows.index] = rows.score
        return auc(scores)

    plain = BASELINES["ce"](net, max_epochs=0, random_state=seed).fit(data.X, data.y)
    robust = OTReweightedClassifier.from_recipe(
        "robust", net, max_epochs=epochs[1], random_state=seed
    )
    robust.fit(data.X, data.y, meta=meta)
    own = get_label_quality_scores(data.y, plain.predict_proba(data.X))
    other = get_label_quality_scores(data.y, out_of_sample(net, data.X, data.y, seed))
    return {
        "suspicious_rows, plain net": suspicion(plain),
        f"suspicious_rows, {RECIPE}": suspicion(robust),
        f"weights of {RECIPE}": auc(-robust.sample_weight_),
        "cleanlab, plain net": auc(-own),
        f"cleanlab, {FOLDS} nets": auc(-other),
    }


def auc_table(found: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """Return rankings by settings in Markdown."""
    settings = list(dict.fromkeys(setting for setting, _ in found))
    names = list(next(iter(found.values())))
    rows = []
    for name in names:
        row = [name]
        for setting in settings:
            values = [aucs[name] for (own, _), aucs in found.items() if own == setting]
            spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
            row.append(f"{np.mean(values):.3f} ± {spread:.3f}")
        rows.append(row)
    return markdown_table(["ranking", *settings], rows)


def lines_of(
    errors: Mapping[str, Mapping[str, Errors]],
    aucs: Mapping[tuple[str, int], Mapping[str, float]],
) -> list[Line]:
    """Return what our recipe should reach at 40 % wrong labels."""
    setting = "IF 20, 40 % wrong"
    own = errors[setting]
    best = min(RIVALS, key=lambda name: own[name].mean)
    name = f"suspicious_rows, {RECIPE}"
    found = [value[name] for (place, _), value in aucs.items() if place == setting]
    return [
        Line(
            f"{setting}: error of the best of {', '.join(RIVALS)} ({best}) less that "
            f"of {RECIPE}",
            own[best].mean - own[RECIPE].mean,
            2.0,
        ),
        Line(f"{setting}: AUC of {name}", float(np.mean(found)), 0.97),
    ]


def ranked(
    settings: Sequence[str],
    n_max: int,
    epochs: tuple[int, int],
    chosen: argparse.Namespace,
) -> dict[tuple[str, int], dict[str, float]]:
    """Return the rankings of each draw; what was finished is read from disk."""
    places = [(setting, seed) for seed in range(chosen.seeds) for setting in settings]

    def compute(setting: str, seed: int) -> dict[str, float]:
        figures = partial(rankings, setting, seed, n_max, epochs)
        if chosen.short:
            return figures()
        return kept("noise_rankings", {"setting": setting, "seed": seed}, figures)

    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    found = parallel(delayed(compute)(*place) for place in places)
    return dict(zip(places, tqdm(found, total=len(places), unit="draw"), strict=True))


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(__doc__.splitlines()[0])
    shares, factors = (0, 20, 40), (20, 100)
    n_max, epochs = (300, (2, 2)) if chosen.short else (2_000, (8, 22))
    settings = [
        f"IF {factor}, {share} % wrong" for factor in factors for share in shares
    ]
    if chosen.short:
        settings = settings[2:3]
    table = Table(
        "noise",
        settings,
        partial(methods, epochs=epochs, few=chosen.short),
        partial(draw, n_max=n_max),
        partial(the_net, epochs=epochs[0]),
    )
    if chosen.check:
        return check([table], "noise", chosen)
    fits = run([table], chosen)
    wrong = [setting for setting in settings if ", 0 %" not in setting]
    aucs = ranked(wrong, n_max, epochs, chosen)
    sections = {
        "Balanced error (%)": error_table(fits["noise"]),
        "AUC of the wrong labels": auc_table(aucs),
        "Failed fits": failures(fits["noise"]),
    }
    lines = [] if chosen.short else lines_of(summary(fits["noise"]), aucs)
    data = fits | {
        "rankings": [
            {"setting": setting, "seed": seed, **found}
            for (setting, seed), found in aucs.items()
        ]
    }
    return report(
        "noise", "Wrong labels", sections, data, lines, chosen, packages=["cleanlab"]
    )


if __name__ == "__main__":
    sys.exit(main())
