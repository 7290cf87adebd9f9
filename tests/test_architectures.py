"""Methods that put a head of their own on the net: BBN and OLTR."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets_for_tests import OneLogitMLP, SoftmaxMLP, small_net
from oracles import assert_same
from scipy.stats import chisquare
from sklearn.datasets import make_blobs
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight.baselines import (
    BASELINES,
    BBNClassifier,
    ClassBalancedFocalClassifier,
    LDAMClassifier,
    OLTRClassifier,
    bbn,
)
from sk_otreweight.baselines.bbn import BBNHead
from sk_otreweight.baselines.oltr import OLTRHead, cosine_scores

SURGERY = ["ldam", "ldam_drw", "lws", "disalign", "bbn", "oltr"]


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=3.0)
    return X.astype(np.float32), y


# BBN


def test_in_prediction_both_branches_count_alike():
    torch.manual_seed(0)
    head, features = BBNHead(nn.Linear(5, 3)), torch.randn(4, 5)
    assert_same(head(features), head.mixed(features, features, 0.5), atol=0)
    parts = torch.cat([head.conventional(features), head.rebalancing(features)], 1)
    assert_same(head(features), head.linear(parts), atol=1e-6)


def test_at_first_the_branch_of_rare_classes_rests():
    torch.manual_seed(0)
    head, features = BBNHead(nn.Linear(5, 3)), torch.randn(4, 5)
    rare_features = torch.randn(4, 5, requires_grad=True)
    head.mixed(features, rare_features, 1.0).square().sum().backward()
    assert not rare_features.grad.any()
    assert not head.rebalancing[0].weight.grad.any()
    assert not head.linear.weight.grad[:, 5:].any()
    assert head.linear.weight.grad[:, :5].any()


def test_the_branches_are_mirror_images():
    torch.manual_seed(0)
    head, mirrored = BBNHead(nn.Linear(5, 3)), BBNHead(nn.Linear(5, 3))
    mirrored.conventional.load_state_dict(head.rebalancing.state_dict())
    mirrored.rebalancing.load_state_dict(head.conventional.state_dict())
    with torch.no_grad():
        mirrored.linear.weight.copy_(head.linear.weight.roll(5, dims=1))
        mirrored.linear.bias.copy_(head.linear.bias)
    one, other = torch.randn(4, 5), torch.randn(4, 5)
    expected = head.mixed(one, other, 0.3)
    assert_same(mirrored.mixed(other, one, 0.7), expected, atol=1e-6)


def test_the_focus_moves_and_rare_classes_are_drawn_more(data, monkeypatch):
    X, y = data
    alphas, drawn = [], []
    own = bbn._BBNStep.losses

    def noting(step, batch):
        alphas.append(step.alpha)
        return own(step, batch)

    def noting_draws(classes, labels, generator):
        drawn.append(classes)
        return rows_of_classes(classes, labels, generator)

    rows_of_classes = bbn.rows_of_classes
    monkeypatch.setattr(bbn._BBNStep, "losses", noting)
    monkeypatch.setattr(bbn, "rows_of_classes", noting_draws)
    BBNClassifier(small_net(max_epochs=5), max_epochs=5, random_state=0).fit(X, y)
    expected = [1 - (epoch / 10) ** 2 for epoch in range(10)]
    assert sorted(set(alphas), reverse=True) == pytest.approx(expected)
    seen = torch.cat(drawn).bincount().numpy()
    shares = 1 / np.bincount(y)
    assert chisquare(seen, shares / shares.sum() * seen.sum()).pvalue > 1e-3


# OLTR


def opened(n_features: int = 5, n_classes: int = 3) -> OLTRHead:
    torch.manual_seed(0)
    head = OLTRHead(nn.Linear(n_features, n_classes))
    head.begin(torch.randn(n_classes, n_features))
    return head


def test_until_it_begins_it_is_the_linear_layer():
    torch.manual_seed(0)
    linear, features = nn.Linear(5, 3), torch.randn(4, 5)
    assert_same(OLTRHead(linear)(features), linear(features), atol=0)


def test_without_a_selector_it_is_a_cosine_classifier():
    head, features = opened(), torch.randn(4, 5)
    with torch.no_grad():
        head.selector.weight.zero_()
        head.selector.bias.zero_()
    cosines = F.cosine_similarity(features[:, None], head.directions[None], dim=-1)
    scores = head(features)
    ratios = scores / cosines  # the same for all classes of a row
    assert_same(ratios, ratios[:, :1].expand(4, 3), atol=1e-3)


def test_the_reach_changes_the_confidence_alone():
    head, points = opened(), torch.randn(20, 5)
    reach = torch.rand(20, 1) * 50 + 0.1
    near = cosine_scores(points, head.directions)
    far = cosine_scores(reach * points, head.directions)
    assert torch.equal(near.argmax(1), far.argmax(1))


def test_scores_by_definition():
    head, h = opened(), torch.randn(4, 5)
    memory = head.attention(h).softmax(1) @ head.centres
    e = head.selector(h).tanh()
    nearest = torch.stack([(x - head.centres).norm(dim=1).min() for x in h])
    v = 10 / nearest[:, None] * (h + e * memory)
    size = v.norm(dim=1, keepdim=True)
    w = head.directions / head.directions.norm(dim=1, keepdim=True)
    assert_same(head(h), 16 * (v / (1 + size)) @ w.T, atol=1e-4)


def test_centre_losses_by_definition():
    head, labels = opened(), torch.tensor([0, 1, 2, 1])
    h = torch.randn(4, 5)
    squares = (h[:, None] - head.centres).square().sum(2)
    own = squares[range(4), labels]
    apart = squares.clone()
    apart[range(4), labels] = 0
    expected = own / 2 + 0.01 * (10 - apart.mean()).clamp(min=0)
    assert_same(head.centre_losses(h, labels), expected, atol=1e-4)


def test_classes_that_are_far_apart_do_not_repel():
    head = opened()
    with torch.no_grad():
        head.centres.copy_(100 * torch.eye(3, 5))
    losses = head.centre_losses(head.centres.detach(), torch.arange(3))
    assert_same(losses, torch.zeros(3), atol=1e-3)


def test_a_row_at_its_centre_is_finite():
    head = opened()
    h = head.centres.detach().clone().requires_grad_()
    loss = head(h).sum() + head.centre_losses(h, torch.arange(3)).sum()
    loss.backward()
    assert loss.isfinite()
    assert h.grad.isfinite().all()
    assert head.centres.grad.isfinite().all()


def test_centres_begin_as_class_means(data):
    X, y = data
    clf = OLTRClassifier(small_net(max_epochs=3), max_epochs=0, random_state=0)
    clf.fit(X, y)
    module = clf.net_.module_
    features = module.body(torch.from_numpy(X))
    means = torch.stack([features[torch.from_numpy(y == k)].mean(0) for k in range(3)])
    assert_same(module.head.centres, means.detach(), atol=1e-5)


# Nets that do not have what these methods need


@pytest.mark.parametrize("name", SURGERY)
@pytest.mark.parametrize(
    ("net", "head"),
    [
        (small_net(max_epochs=1), lambda module, X: module.body(X)),
        (
            NeuralNetClassifier(
                nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
                criterion=nn.CrossEntropyLoss,
                max_epochs=1,
                verbose=0,
            ),
            "0",
        ),
    ],
    ids=["function", "no linear layer"],
)
def test_a_head_that_is_no_linear_layer(name, net, head, data):
    X, y = data
    with pytest.raises(ValueError, match="nn.Linear with one output per class"):
        BASELINES[name](net, head=head).fit(X, y)


def test_one_score_for_two_classes(data):
    X, y = data
    rows = y < 2
    clf = LDAMClassifier(OneLogitMLP).fit
    with pytest.raises(ValueError, match="one output per class"):
        clf(X[rows], y[rows])


def test_a_sigmoid_for_each_class_needs_scores(data):
    net = small_net(SoftmaxMLP, criterion=nn.NLLLoss, max_epochs=1)
    with pytest.raises(ValueError, match="link='sigmoid' needs a module that returns"):
        ClassBalancedFocalClassifier(net).fit(*data)
    clf = ClassBalancedFocalClassifier(net, link="softmax", random_state=0).fit(*data)
    assert clf.predict_proba(data[0]).shape == (100, 3)


def test_a_lone_linear_layer(data):
    X, y = data
    net = small_net(nn.Linear, module__in_features=4, module__out_features=3)
    clf = LDAMClassifier(net, max_epochs=20, random_state=0).fit(X, y)
    assert clf.score(X, y) > 0.6
