"""Batch and meta rows pass the virtually updated net together where they can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import DoubleMLP, small_net

from sk_otreweight import virtual_step as module
from sk_otreweight.virtual_step import VirtualStep


@pytest.mark.parametrize("virtual_step", ["first_order", "exact"])
def test_together_and_apart(digits, virtual_step, monkeypatch):
    passes = []
    pass_net = VirtualStep._features

    def counted(self, X):
        passes.append(len(X))
        return pass_net(self, X)

    monkeypatch.setattr(VirtualStep, "_features", counted)

    def fitted():
        passes.clear()
        clf = quick(
            small_net(DoubleMLP, max_epochs=1),
            weights="vector",
            finetune="all",
            virtual_step=virtual_step,
            max_epochs=2,
        )
        clf.fit(digits.X, digits.y, meta=digits.meta)
        return clf, list(passes)

    together, of_both = fitted()
    monkeypatch.setattr(module, "_are_alike", lambda batches: False)
    apart, of_each = fitted()
    n_meta = len(digits.meta[1])
    assert of_each[1::2] == [n_meta] * len(of_both)
    assert [n - n_meta for n in of_both] == of_each[::2]
    np.testing.assert_allclose(together.sample_weight_, apart.sample_weight_, rtol=1e-8)
    assert np.ptp(together.sample_weight_) > 0.01


@pytest.mark.parametrize(
    ("other", "are_alike"),
    [
        (torch.ones(5, 3), True),
        (torch.ones(5, 3, dtype=torch.float64), False),
        (torch.ones(5, 2), False),
        (torch.ones(5, 3, 1), False),
        ({"x": torch.ones(5, 3)}, False),
    ],
)
def test_batches_that_can_be_put_together(other, are_alike):
    assert module._are_alike([torch.ones(2, 3), other]) == are_alike
