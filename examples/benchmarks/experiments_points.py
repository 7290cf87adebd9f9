"""Trials on point clouds of which a class has one or a few; judged on other solids.

Features are learned from the rows, and a class has one row or ten, as in ``points.py``:
here weights that balance the classes do harm in stage 2, as a row that counts for a
hundred moves all that was learned of the others. Each trial changes one thing. The
solids are those of seeds that no table draws, of as many kinds.

What came of it is in ``docs/experiments.md``. The long form takes about half an hour on
one core; what is finished is kept in ``results/fits/``::

    python examples/benchmarks/experiments_points.py
    python examples/benchmarks/experiments_points.py --short
"""

from __future__ import annotations

import sys
from functools import partial

from _common import report
from _methods import DEFAULT, balances, baselines
from _tables import (
    Draw,
    Table,
    check,
    error_table,
    failures,
    run,
    table_arguments,
    to_record,
)
from points import LR, SHORT, Points, Size
from sklearn.base import BaseEstimator

NAME = "experiments_points"
SETTINGS = ("1:100", "10:100")
FIRST_SEED = 100  # of the solids; the tables have those from 0 on


def trials(few: bool) -> dict[str, BaseEstimator]:
    """Return the estimators by the names of the trials."""
    if few:
        return baselines(("ce",)) | {DEFAULT: balances(LR)[DEFAULT]}
    return baselines(("ce", "inverse", "logit_adjustment")) | balances(LR)


def draw(points: Points, setting: str, seed: int) -> Draw:
    """Return clouds of which one class is rare, that no table is made from."""
    return points.draw(setting, FIRST_SEED + seed)


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(__doc__.splitlines()[0])
    points = Points(None, SHORT if chosen.short else Size(), chosen.device)
    table = Table(
        NAME,
        SETTINGS[-1:] if chosen.short else SETTINGS,
        lambda setting: points.methods(trials(chosen.short)),
        partial(draw, points),
        points.net,
    )
    if chosen.check:
        return check([table], NAME, chosen)
    fits = run([table], chosen)
    sections = {
        "Balanced error (%) on validation clouds": error_table(fits[NAME], "trial"),
        "Failed fits": failures(fits[NAME]),
    }
    return report(NAME, "Trials on point clouds", sections, to_record(fits), [], chosen)


if __name__ == "__main__":
    sys.exit(main())
