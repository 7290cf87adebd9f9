"""Whatever `fit` is given, it fits, or says what is wrong and stays as it was."""

from __future__ import annotations

import traceback
import warnings

import numpy as np
import pytest
import torch
from fuzzed_inputs import random_case
from nets_for_tests import AnyWidthMLP, small_net

from sk_otreweight import OTReweightedClassifier

N_CASES = 2_500
# What `fit` documents.
ERRORS = ValueError, TypeError, FloatingPointError


def is_explained(error):
    """Return whether an error came from a check, or from the module itself."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    is_check = any(f"/{name}/" in file for name in ("sk_otreweight", "sklearn"))
    return is_check or "AnyWidthMLP.forward() got an unexpected keyword" in str(error)


def check_fit(clf, case):
    """Raise if what was fitted is not valid."""
    weights = clf.sample_weight_
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    if not clf.train_on_meta:
        trained = ~np.asarray(case.meta.get("meta_mask", np.zeros(len(weights), bool)))
        assert weights[trained].mean() == pytest.approx(1, abs=1e-4)
        assert not weights[~trained].any()
    for parameter in clf.net_.module_.parameters():
        assert parameter.isfinite().all()
    probabilities = clf.predict_proba(case.X)
    assert probabilities.shape == (len(weights), len(clf.classes_))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert np.isin(clf.predict(case.X), clf.classes_).all()


def fuzz(seed):
    """Return whether a random case was fitted."""
    case = random_case(seed)
    net = small_net(AnyWidthMLP, max_epochs=1, batch_size=16)
    clf = OTReweightedClassifier(net, max_epochs=1, random_state=0, **case.params)
    before = dict(vars(clf))
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            clf.fit(case.X, case.y, **case.meta)
        except ERRORS as raised:
            error = raised
        if error is None:
            check_fit(clf, case)
    if error is not None:
        said = f"{type(error).__name__}: {error}"
        assert is_explained(error), said
        assert len(str(error)) > 20, said
        assert vars(clf) == before
    return error is None


@pytest.mark.slow
def test_what_is_given_is_fitted_or_explained(record_property):
    state = torch.get_rng_state()
    failures, n_fitted = [], 0
    for seed in range(N_CASES):
        try:
            n_fitted += fuzz(seed)
        except Exception as error:
            story = random_case(seed).story
            failures.append(f"{story}\n    {type(error).__name__}: {error}")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:20])
    assert 0.2 * N_CASES < n_fitted < 0.8 * N_CASES
    assert torch.equal(torch.get_rng_state(), state)
    record_property("inputs fuzzed", N_CASES)
    record_property("fuzzed inputs that were fitted", n_fitted)
