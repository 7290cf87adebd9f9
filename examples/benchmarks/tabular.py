"""Errors on tables: all methods with the default net, and other classifiers.

The four tables with classes that scikit-learn brings along, made long-tailed: the first
class keeps the most rows, the last one as many times fewer as the imbalance factor (IF)
says, at least one. Imbalance factor 1 is the control without an imbalance, where
re-weighting has nothing to gain. Of each table 40 % of the rows are the test split,
which is as balanced as the table. 10 meta rows per class of the digits, and 5 of the
others, are taken out of the training rows. Columns are standardised by mean and
deviation of the training rows.

The methods for nets train the default net (``net=None``) as a user gets it. Gradient
boosted trees and logistic regression are trained plain, with
``class_weight="balanced"``, and with the weights of `OTReweightedEstimator`; the latter
see the same meta rows. All settings are the defaults, but for the iterations that the
linear model may take; nothing was tuned. (Trees want 20 rows in each leaf by default,
and cannot split the training rows of wine and iris with a long tail at all.)

The lines say what `OTReweightedClassifier` with its defaults gains over cross-entropy,
in points of balanced accuracy, seed by seed: it should never lose more than half a
point. The test splits of wine and iris have 72 and 60 rows, of which one is more than a
point: these two have five times as many splits.

The results are recorded in ``results/``, unless with ``--short``; what is finished is
kept in ``results/fits/``, so that a run that was stopped goes on. The full form
takes about half an hour of one core::

    python examples/benchmarks/tabular.py
    python examples/benchmarks/tabular.py --short
    python examples/benchmarks/tabular.py --check "digits IF 50" ot 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from _common import Line, report
from _methods import CONTROLS, baselines, control, ours
from _tables import (
    Draw,
    Fit,
    Table,
    check,
    error_table,
    errors_by_cell,
    failures,
    run,
    table_arguments,
    to_record,
)
from sklearn.base import BaseEstimator
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sk_otreweight import OTReweightedEstimator, make_long_tailed

NAME = "tabular"
DATA = {
    "digits": load_digits,
    "wine": load_wine,
    "iris": load_iris,
    "breast cancer": load_breast_cancer,
}
SETTINGS = (
    *(f"digits IF {factor}" for factor in (1, 20, 50, 100)),
    *(f"breast cancer IF {factor}" for factor in (1, 20)),
)
SMALL = (
    *(f"wine IF {factor}" for factor in (1, 10)),
    *(f"iris IF {factor}" for factor in (1, 10)),
)
BOUND = -0.5  # points


def draw(setting: str, seed: int) -> Draw:
    """Return a long-tailed training split, meta rows and the rest."""
    name, factor = setting.split(" IF ")
    X, y = DATA[name](return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.4, stratify=y, random_state=seed
    )
    data = make_long_tailed(
        X,
        y,
        imbalance_factor=int(factor),
        meta_per_class=10 if name == "digits" else 5,
        random_state=seed,
    )
    scaler = StandardScaler().fit(data.X)
    X, X_meta, X_test = (
        scaler.transform(rows).astype(np.float32)
        for rows in (data.X, data.X_meta, X_test)
    )
    return Draw(X, data.y, X_meta, data.y_meta, X_test, y_test)


def other_classifiers() -> dict[str, BaseEstimator]:
    """Return trees and a linear model with three kinds of weights."""
    kinds = {
        "trees": (HistGradientBoostingClassifier, {}),
        "linear": (LogisticRegression, {"max_iter": 1000}),
    }
    methods = {}
    for name, (kind, params) in kinds.items():
        methods[name] = kind(**params)
        methods[f"{name}_balanced"] = kind(class_weight="balanced", **params)
        methods[f"{name}_ot"] = OTReweightedEstimator(kind(**params))
    return methods


def all_methods(setting: str) -> dict[str, BaseEstimator]:
    """Return the methods of the full form."""
    return baselines() | control() | ours() | other_classifiers()


def few_methods(setting: str) -> dict[str, BaseEstimator]:
    """Return the methods of the short form."""
    return baselines(CONTROLS) | {"ot": ours()["ot"]} | other_classifiers()


def default_net(setting: str) -> None:
    """Return what stands for the default net."""


def gains(fits: Sequence[Fit]) -> list[Line]:
    """Return what our defaults gain over cross-entropy, a line for each setting."""
    errors = errors_by_cell(fits)
    return [
        Line(
            f"{setting}: balanced accuracy of ot - ce, points",
            float(np.mean(errors[setting, "ce"]) - np.mean(errors[setting, "ot"])),
            BOUND,
        )
        for setting in dict.fromkeys(fit["setting"] for fit in fits)
    ]


def main() -> int:
    """Fit and report."""
    chosen = table_arguments(__doc__.splitlines()[0])
    if chosen.short:
        tables = [Table(NAME, ["wine IF 10"], few_methods, draw, default_net)]
    else:
        tables = [
            Table(NAME, SETTINGS, all_methods, draw, default_net),
            Table(f"{NAME}_small", SMALL, all_methods, draw, default_net),
        ]
    if chosen.check:
        return check(tables, NAME, chosen)
    fits = run(tables[:1], chosen)
    for table in tables[1:]:
        more = argparse.Namespace(**vars(chosen) | {"seeds": 5 * chosen.seeds})
        fits |= run([table], more)
    small = fits.get(f"{NAME}_small", [])
    own = fits[NAME] + small
    sections = {f"Balanced error (%), {chosen.seeds} splits": error_table(fits[NAME])}
    if small:
        heading = f"Balanced error (%), {5 * chosen.seeds} splits"
        sections[heading] = error_table(small)
    sections["Failed fits"] = failures(own)
    return report(
        NAME,
        "Errors on tables",
        sections,
        to_record(fits),
        gains(own),
        chosen,
        packages=["POT", "sk-otreweight"],
    )


if __name__ == "__main__":
    sys.exit(main())
