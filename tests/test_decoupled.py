"""Second stages on frozen features: new heads, corrections, and what they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_helpers import assert_same_state, state
from nets_for_tests import NormDropoutMLP, small_net
from oracles import assert_same
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_otreweight.baselines import (
    BALMSClassifier,
    CRTClassifier,
    DisAlignClassifier,
    LWSClassifier,
    MetaHeadClassifier,
    OLTRClassifier,
)
from sk_otreweight.baselines.decoupled import DisAlignHead, ScaledHead

FROZEN = [CRTClassifier, LWSClassifier, DisAlignClassifier, MetaHeadClassifier]


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=3.0)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def trained(data):
    sizes = {"module__n_features": 4, "module__n_classes": 3}
    return small_net(NormDropoutMLP, max_epochs=10, **sizes).fit(*data)


@pytest.mark.parametrize("kind", [*FROZEN, BALMSClassifier, OLTRClassifier])
def test_the_extractor_stays_bit_by_bit(kind, data, trained):
    clf = kind(FrozenEstimator(trained), max_epochs=3, random_state=0).fit(*data)
    before, after = state(trained.module_.body), state(clf.net_.module_.body)
    assert_same_state(before, after)
    head = [p for p in clf.net_.module_.head.parameters() if p.requires_grad]
    assert head


@pytest.mark.parametrize("kind", [LWSClassifier, DisAlignClassifier])
def test_the_linear_layer_stays(kind, data, trained):
    clf = kind(FrozenEstimator(trained), max_epochs=3, random_state=0).fit(*data)
    assert_same_state(state(trained.module_.head), state(clf.net_.module_.head.linear))


@pytest.mark.parametrize(
    "kind", [LWSClassifier, DisAlignClassifier, MetaHeadClassifier]
)
def test_without_epochs_it_is_the_first_stage(kind, data, trained):
    clf = kind(FrozenEstimator(trained), max_epochs=0, random_state=0).fit(*data)
    expected = torch.from_numpy(trained.forward(data[0]).numpy()).softmax(1).numpy()
    np.testing.assert_allclose(clf.predict_proba(data[0]), expected, atol=1e-6)


def test_the_new_classifier_begins_anew(data, trained):
    clf = CRTClassifier(FrozenEstimator(trained), max_epochs=0, random_state=0)
    weight = clf.fit(*data).net_.module_.head.weight
    assert (weight != trained.module_.head.weight).all()


def test_factors_of_one_change_nothing():
    linear, features = nn.Linear(5, 3), torch.randn(4, 5)
    assert_same(ScaledHead(linear)(features), linear(features), atol=0)


def random_disalign() -> DisAlignHead:
    head = DisAlignHead(nn.Linear(5, 3))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return head


def test_both_published_forms_of_the_alignment_are_the_same():
    """The paper's a is the code's a + 1."""
    head, features = random_disalign(), torch.randn(4, 5)
    z, confidence = head.linear(features), head.confidence(features).sigmoid()
    a_paper = 1 + head.delta
    paper = confidence * (a_paper * z + head.shift) + (1 - confidence) * z
    code = (1 + confidence * head.delta) * z + confidence * head.shift
    assert_same(head(features), paper, atol=1e-5)
    assert_same(head(features), code, atol=1e-5)


def test_without_confidence_the_alignment_changes_nothing():
    head, features = random_disalign(), torch.randn(4, 5)
    with torch.no_grad():
        head.confidence.weight.zero_()
        head.confidence.bias.fill_(-200.0)
    assert_same(head(features), head.linear(features), atol=1e-6)
    assert_same(DisAlignHead(head.linear)(features), head.linear(features), atol=0)


def test_the_exponent_of_the_alignment(data):
    X, y = data
    counts = np.bincount(y)
    for rho in (0.0, 1.0, 1.2):
        clf = DisAlignClassifier(small_net(max_epochs=1), rho=rho, random_state=0)
        clf.fit(X, y)
        expected = counts ** (1 - rho)
        np.testing.assert_allclose(clf.prior_, expected / expected.sum())
        ratios = clf.class_weight_ / clf.class_weight_[0]
        if rho == 0:
            np.testing.assert_allclose(ratios, 1)
        else:
            assert ratios[0] < ratios[1] < ratios[2]
