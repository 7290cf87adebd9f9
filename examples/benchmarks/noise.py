"""Errors on long-tailed images some of whose labels are wrong, and finding these.

Images and sentences with an imbalance factor (IF) of 20 and 100; 0, 20 or 40 % of the
training labels are replaced by another class, the meta labels are right.

- Fashion-MNIST, up to 2,000 images of a class, and the net of ``images.py``. It is
  trained for 30 epochs, of which 8 are stage 1 where there are two, so that it has the
  time to learn wrong labels by heart.
- Sentences of movie reviews, negative and positive, up to 1,000 of a class: features
  and net are those of ``text.py``, and so are the 25 epochs, of which 6 are stage 1.
  Left out if its encoder is not installed.

How much methods differ depends on how far a net is trained, which one of the controls
shows: the logit-adjusted loss is given half of the epochs. Another one drops rows that
cleanlab flags (its self-confidence, by the probabilities of a net that was trained on
the other half of the rows) before training with that loss.

The second table is the area under the ROC curve (AUC) of the wrong labels, ranked by

- ``suspicious_rows`` of the net trained plainly, and of the fitted estimator,
- the weights that the estimator gave the rows,
- cleanlab's self-confidence, by the probabilities of the net trained plainly, and by
  those of two nets, each for the half that it was not trained on.

The long form takes about four hours on two cores; what is finished is kept in
``results/fits/``::

    python examples/benchmarks/noise.py
    python examples/benchmarks/noise.py --short
    python examples/benchmarks/noise.py --check "images IF 20, 40 % wrong" ot_robust 0
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from _averaging import AveragedParameters
from _common import Line, markdown_table, report
from _methods import baselines, control, ours, pretrained
from _tables import (
    Draw,
    Errors,
    Table,
    check,
    error_table,
    failures,
    forget,
    kept,
    run,
    summary,
    table_arguments,
    to_record,
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
from text import N_META, Text, Tuning, missing
from tqdm.auto import tqdm

from sk_otreweight import (
    BASELINES,
    OTReweightedClassifier,
    load_fashion_mnist,
    make_long_tailed,
)
from sk_otreweight.recipes import RECIPES

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


@dataclass(frozen=True)
class Images:
    """Fashion-MNIST.

    Attributes
    ----------
    n_max : int
        Training rows of the largest class.
    epochs : tuple of int
        Of the net, and of the second stage.
    """

    n_max: int = 2_000
    epochs: tuple[int, int] = (8, 22)

    def net(self, setting: str) -> NeuralNetClassifier:
        """Return the net of all methods."""
        net = fashion_net(self.epochs[0])
        return net.set_params(callbacks=[AveragedParameters()])

    def rows(self, setting: str, seed: int) -> Bunch:
        """Return training rows with wrong labels, meta rows and test rows."""
        images = load_fashion_mnist()
        data = with_wrong_labels(
            images.X_train, images.y_train, setting, seed, self.n_max
        )
        return Bunch(**data, X_test=images.X_test, y_test=images.y_test)


@dataclass(frozen=True)
class Sentences:
    """The features of sentences, of two classes; the other attributes as in `Images`.

    Attributes
    ----------
    text : Text
        Tells where the features come from.
    validates : bool
        Test on the sentences for validation.
    """

    text: Text
    n_max: int = 1_000
    epochs: tuple[int, int] = (6, 19)
    validates: bool = False

    def net(self, setting: str) -> NeuralNetClassifier:
        """Return the net of all methods."""
        return self.text.net(setting).set_params(max_epochs=self.epochs[0])

    def rows(self, setting: str, seed: int) -> Bunch:
        """Return training rows with wrong labels, meta rows and test rows."""
        X, y = self.text.features(2)
        n_test = np.bincount(y).min() - self.n_max - N_META
        order = np.random.default_rng(seed).permutation(len(y))
        parts = [order[y[order] == label] for label in range(2)]
        test = np.concatenate([part[:n_test] for part in parts])
        rest = np.concatenate([part[n_test:] for part in parts])
        data = with_wrong_labels(X[rest], y[rest], setting, seed, self.n_max)
        X, y = (X[test], y[test]) if not self.validates else self.text.features(2, True)
        return Bunch(**data, X_test=X, y_test=y)


def with_wrong_labels(
    X: Any, y: np.ndarray, setting: str, seed: int, n_max: int
) -> Bunch:
    """Return a long-tailed training set with wrong labels, and meta rows."""
    factor, noise = re.findall(r"\d+", setting)
    return make_long_tailed(
        X,
        y,
        float(factor),
        n_max=n_max,
        meta_per_class=N_META,
        label_noise=float(noise) / 100,
        random_state=seed,
    )


def draw(source: Images | Sentences, setting: str, seed: int) -> Draw:
    """Return training, meta and test rows."""
    data = source.rows(setting, seed)
    return Draw(data.X, data.y, data.X_meta, data.y_meta, data.X_test, data.y_test)


def methods(
    source: Images | Sentences, few: bool, setting: str
) -> dict[str, BaseEstimator]:
    """Return the controls, dropping flagged rows, and ours."""
    first, second = source.epochs
    found = {
        **baselines((*RIVALS, "ce_meta", "meta_head", "logit_adjustment_posthoc")),
        **control(),
        **ours(),
    }
    if isinstance(source, Sentences):
        found |= pretrained()
    if few:
        found = {name: found[name] for name in (*RIVALS[:1], RECIPE)}
    for method in found.values():
        method.set_params(max_epochs=second)
    if few:
        return found
    short_net = source.net(setting).set_params(max_epochs=(first + second) // 2)
    return found | {
        "logit_adjustment, half": BASELINES["logit_adjustment"](
            short_net, max_epochs=0
        ),
        "cleanlab, then logit_adjustment": CleanedClassifier(
            source.net(setting), second
        ),
    }


def rankings(source: Images | Sentences, setting: str, seed: int) -> dict[str, float]:
    """Return the AUC of the wrong labels by each ranking."""
    use_one_thread()
    data = source.rows(setting, seed)
    net, meta = source.net(setting), (data.X_meta, data.y_meta)

    def auc(scores: np.ndarray) -> float:
        return float(roc_auc_score(data.flipped, scores))

    def suspicion(clf: OTReweightedClassifier) -> float:
        rows = clf.suspicious_rows(data.X, data.y)
        scores = np.empty(len(data.y))
        scores[rows.index] = rows.score
        return auc(scores)

    plain = BASELINES["ce"](net, max_epochs=0, random_state=seed).fit(data.X, data.y)
    robust = OTReweightedClassifier.from_recipe(
        "robust", net, max_epochs=source.epochs[1], random_state=seed
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
    setting = "images IF 20, 40 % wrong"
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
    source: Images | Sentences, settings: Sequence[str], chosen: argparse.Namespace
) -> dict[tuple[str, int], dict[str, float]]:
    """Return the rankings of each draw; what was finished is read from disk."""
    places = [(setting, seed) for seed in range(chosen.seeds) for setting in settings]
    recipe = repr(sorted(RECIPES["robust"]().items()))

    def compute(setting: str, seed: int) -> dict[str, float]:
        figures = partial(rankings, source, setting, seed)
        if chosen.short:
            return figures()
        key = {"source": repr(source), "setting": setting, "seed": seed}
        return kept("noise_rankings", key | {"recipe": recipe}, figures)

    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    found = parallel(delayed(compute)(*place) for place in places)
    return dict(zip(places, tqdm(found, total=len(places), unit="draw"), strict=True))


def sources_of(chosen: argparse.Namespace) -> dict[str, Images | Sentences]:
    """Return what there is to train on, by the name of its table."""
    if chosen.short:
        return {"noise": Images(300, (2, 2))}
    sources: dict[str, Images | Sentences] = {"noise": Images()}
    reason = missing()
    if reason is None:
        sources["noise_text"] = Sentences(Text(Tuning(), chosen.device))
    else:
        print(f"Without sentences. {reason}")
    return sources


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(__doc__.splitlines()[0], seeds=3)
    forget("noise_rankings", chosen)
    sources, tables, wrong = sources_of(chosen), [], {}
    for name, source in sources.items():
        kind = "images" if isinstance(source, Images) else "text"
        shares = (40,) if chosen.short else (0, 20, 40)
        factors = (20,) if chosen.short else (20, 100)
        settings = [
            f"{kind} IF {factor}, {share} % wrong"
            for factor in factors
            for share in shares
        ]
        wrong[name] = [setting for setting in settings if ", 0 %" not in setting]
        fitted = partial(methods, source, chosen.short)
        tables.append(Table(name, settings, fitted, partial(draw, source), source.net))
    if chosen.check:
        return check(tables, "noise", chosen)
    fits, aucs, sections = run(tables, chosen), {}, {}
    for name, source in sources.items():
        kind = "images" if isinstance(source, Images) else "sentences"
        own = ranked(source, wrong[name], chosen)
        sections |= {
            f"Balanced error (%), {kind}": error_table(fits[name]),
            f"AUC of the wrong labels, {kind}": auc_table(own),
        }
        aucs |= own
    everything = [fit for found in fits.values() for fit in found]
    sections["Failed fits"] = failures(everything)
    lines = [] if chosen.short else lines_of(summary(everything), aucs)
    data = to_record(fits) | {
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
