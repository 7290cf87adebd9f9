"""Trials on sentences, of which few are enough; judged on validation sentences.

The features are those of an encoder that knows the task already, as in ``text.py``. So
a handful of good rows goes further than many of which some are wrong, which is another
trade than that of images, whose features are learned from the rows themselves
(``experiments.py``). Most trials change one or two parameters of the recipe "adjusted".
Errors are those of 500 sentences of each of two classes that no table tests on.

What came of it is in ``docs/experiments.md``. The long form takes about ten minutes on
two cores after those for the encoder; what is finished is kept in
``results/fits/``::

    python examples/benchmarks/experiments_text.py
    python examples/benchmarks/experiments_text.py --short
"""

from __future__ import annotations

import sys
from functools import partial

from _common import report
from _methods import balances, baselines, control
from _tables import Table, check, error_table, failures, run, table_arguments, to_record
from noise import Sentences, draw
from sklearn.base import BaseEstimator
from text import ENCODER, LR, SHORT, Text, Tuning, missing

from sk_otreweight import OTReweightedClassifier, SemiRelaxedWeights

NAME = "experiments_text"
SETTINGS = (
    "text IF 20, 0 % wrong",
    "text IF 100, 0 % wrong",
    "text IF 20, 40 % wrong",
    "text IF 100, 20 % wrong",
)


def trials(few: bool, setting: str) -> dict[str, BaseEstimator]:
    """Return the estimators by the names of the trials."""
    adjusted = partial(OTReweightedClassifier.from_recipe, "adjusted")
    drawn = partial(adjusted, sampling="instance")
    sharp = partial(drawn, reg=0.025)
    found: dict[str, BaseEstimator] = {
        **baselines(("ce", "meta_head")),
        **control(),
        **balances(LR),
        "adjusted": adjusted(),
        "robust": OTReweightedClassifier.from_recipe("robust"),
        "robust, reg 0.025": OTReweightedClassifier.from_recipe("robust", reg=0.025),
        "rows drawn as they are, reg 0.2": drawn(reg=0.2),
        "rows drawn as they are, reg 0.1": drawn(reg=0.1),
        "rows drawn as they are, reg 0.05": drawn(reg=0.05),
        "sharp: rows drawn as they are, reg 0.025": sharp(),
        "rows drawn as they are, reg 0.0125": drawn(reg=0.0125),
        "sharp, the head alone": sharp(finetune="head"),
        "sharp, cost of features alone": sharp(cost="feature"),
        "sharp, no meta rows in training": sharp(train_on_meta=False),
        "sharp, weights between classes, cross-entropy": sharp(
            weights=SemiRelaxedWeights(), loss="net"
        ),
    }
    if few:
        found = {name: found[name] for name in ("ce", "adjusted")}
    for estimator in found.values():
        estimator.set_params(max_epochs=Sentences.epochs[1])
    return found


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(__doc__.splitlines()[0], seeds=3)
    reason = missing()
    if reason is not None:
        print(f"Nothing was measured. {reason}")
        return 0 if chosen.short else 1
    text = Text(Tuning(), chosen.device)
    if chosen.short:
        text = Text(SHORT, chosen.device, decay=0.9, n_valid=20)
    source = Sentences(text, 100 if chosen.short else 1_000, validates=True)
    settings = SETTINGS[2:3] if chosen.short else SETTINGS
    fitted = partial(trials, chosen.short)
    table = Table(NAME, settings, fitted, partial(draw, source), source.net)
    if chosen.check:
        return check([table], NAME, chosen)
    fits = run([table], chosen)
    sections = {
        "Balanced error (%) on validation sentences": error_table(fits[NAME], "trial"),
        "Failed fits": failures(fits[NAME]),
    }
    return report(
        NAME,
        "Trials on sentences",
        sections,
        to_record(fits),
        [],
        chosen,
        packages=["transformers", ENCODER],
    )


if __name__ == "__main__":
    sys.exit(main())
