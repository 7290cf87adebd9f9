"""scikit-learn's checks of every baseline."""

from __future__ import annotations

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimator_checks import HAS_ALL_CHECKS, quick_net

from sk_otreweight import BASELINES

# One with the net that they have by default.
ESTIMATORS = [
    BASELINES["ce"](),
    *(baseline(quick_net(), max_epochs=2) for baseline in BASELINES.values()),
]


@pytest.mark.slow
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skipped:
        pytest.fail(f"scikit-learn skipped its check: {skipped}")


@HAS_ALL_CHECKS
def test_every_baseline_gets_all_checks():
    marks = [m for m in test_scikit_learn_check.pytestmark if m.name == "parametrize"]
    assert len(marks[0].args[1]) >= 54 * len(BASELINES)
