"""Weights learned from a meta set, and the other methods with a meta gradient."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classifier_helpers import assert_same_state, state
from nets_for_tests import SmallMLP, small_net
from oracles import assert_same
from sklearn.datasets import make_blobs
from torch import Tensor, nn

from sk_otreweight import load
from sk_otreweight.baselines import (
    BALMSClassifier,
    CrossEntropyClassifier,
    Hu2019Classifier,
    L2RWClassifier,
    MetaClassWeightClassifier,
    MetaSAugClassifier,
    MetaWeightNetClassifier,
    example_weights,
    learned,
    meta_gradient,
    meta_weight_net,
)
from sk_otreweight.baselines.balms import ClassSampler
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.stage2 import StepBatch

SIZES = {"module__n_features": 4, "module__n_classes": 3}


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=3.0)
    X = X.astype(np.float32)
    meta = np.concatenate([np.flatnonzero(y == k)[-4:] for k in range(3)])
    return X, y, (X[meta], y[meta])


def sgd_net(module=SmallMLP, **params):
    given = {"optimizer": torch.optim.SGD, "lr": 0.1, "max_epochs": 3}
    return small_net(module, **given | params)


class Spy:
    """Notes what a step makes of its batches."""

    def __init__(self, monkeypatch, step: type, name: str = "batch_weights"):
        self.calls = []
        own = getattr(step, name)

        def noting(this, *args):
            result = own(this, *args)
            self.calls.append((this, args, result))
            return result

        monkeypatch.setattr(step, name, noting)


@pytest.mark.parametrize("finetune", ["all", "head"])
@pytest.mark.parametrize("kind", [L2RWClassifier, MetaSAugClassifier, Hu2019Classifier])
def test_a_step_looks_at_some_of_many_meta_rows(data, monkeypatch, kind, finetune):
    X, y, meta = data
    seen = []
    own = meta_gradient.MetaGradient.__init__

    def noting(this, step_data, X, labels):
        seen.append(labels.tolist())
        own(this, step_data, X, labels)

    monkeypatch.setattr(meta_gradient.MetaGradient, "__init__", noting)
    net = sgd_net(max_epochs=1)
    clf = kind(net, finetune=finetune, meta_batch_size=5, max_epochs=1, random_state=0)
    clf.fit(X, y, meta=meta)
    assert {len(labels) for labels in seen[1:]} == {5}
    assert len({tuple(labels) for labels in seen[1:]}) > 1
    seen.clear()
    clf.set_params(meta_batch_size=None).fit(X, y, meta=meta)
    assert {len(labels) for labels in seen} == {12}


# L2RW


def test_weights_are_products_of_gradients_that_help(data, monkeypatch):
    X, y, meta = data
    products = Spy(monkeypatch, learned.MetaStep, "products")
    weights = Spy(monkeypatch, learned._L2RWStep)
    L2RWClassifier(sgd_net(), max_epochs=0, random_state=0).fit(X, y, meta=meta)
    assert products.calls
    for (_, _, product), (_, _, weight) in zip(
        products.calls, weights.calls, strict=True
    ):
        assert (weight >= 0).all()
        assert ((product <= 0) == (weight == 0)).all()
        assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
        expected = product.clamp(min=0) / product.clamp(min=0).sum() * len(product)
        assert_same(weight, expected, atol=1e-5)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(X)


def linear_net(**params):
    return sgd_net(Linear, **{"batch_size": 4, "max_epochs": 1} | params)


def test_rows_that_do_not_help_get_no_weight():
    """The meta rows say nothing of the second feature, and contradict a third row."""
    X = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    y = np.array([0, 0, 1, 1])
    X_meta, y_meta = np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([0, 1])
    clf = L2RWClassifier(linear_net(), max_epochs=0, random_state=0)
    clf.fit(X, y, meta=(X_meta, y_meta))
    np.testing.assert_allclose(clf.sample_weight_, [4, 0, 0, 0])


def test_a_batch_in_which_nothing_helps_changes_nothing():
    X = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    clf = L2RWClassifier(linear_net(), max_epochs=0, random_state=0)
    clf.fit(X, np.array([1, 0]), meta=(X, np.array([0, 1])))
    assert not clf.net_.module_.head.weight.any()
    assert not clf.sample_weight_.any()


# Meta-Weight-Net


def frozen_weight_net(monkeypatch, value: float) -> None:
    """Let the weight net say the same of every loss."""
    monkeypatch.setattr(
        meta_weight_net.LossWeightNet,
        "scores",
        lambda self, losses: self.module_(losses)[:, 0] * 0 + value,
    )


def test_the_same_weight_for_all_is_plain_training(data, monkeypatch):
    X, y, meta = data
    frozen_weight_net(monkeypatch, 0.3)
    clf = MetaWeightNetClassifier(sgd_net(), max_epochs=0, random_state=0)
    clf.fit(X, y, meta=meta)
    plain = CrossEntropyClassifier(sgd_net(), max_epochs=0, random_state=0).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), plain.predict_proba(X), atol=1e-5)


def test_without_a_step_size_the_weight_net_stays(data):
    X, y, meta = data
    clf = MetaWeightNetClassifier(sgd_net(), weight_lr=0.0, max_epochs=0)
    clf.set_params(random_state=0).fit(X, y, meta=meta)
    later = copy.deepcopy(clf).set_params(max_epochs=5).fit(X, y, meta=meta)
    first, second = clf.weight_net_.module_, later.weight_net_.module_
    assert_same_state(state(first), state(second))


def test_the_weight_net_learns_from_the_meta_loss_alone(data, monkeypatch):
    """The step on the net must not reach the weight net."""
    X, y, meta = data
    weights = Spy(monkeypatch, meta_weight_net._WeightNetStep)
    net = sgd_net(max_epochs=1)
    clf = MetaWeightNetClassifier(net, weight_lr=1e-3, max_epochs=0, random_state=0)
    clf.fit(X, y, meta=meta)
    for _, _, weight in weights.calls:
        assert not weight.requires_grad
        assert (weight > 0).all()
        assert float(weight.mean()) == pytest.approx(1, abs=1e-5)
    scores = clf.weight_net_.scores(torch.linspace(0, 5, 11)[:, None])
    assert ((scores > 0) & (scores < 1)).all()


def test_gradient_of_the_weight_net_by_differences(monkeypatch):
    """On a linear net, in double precision."""
    torch.manual_seed(0)
    X, labels = torch.randn(6, 2).double(), torch.tensor([0, 1, 0, 1, 0, 1])
    X_meta, y_meta = torch.randn(4, 2).double(), torch.tensor([0, 1, 0, 1])
    W, lr = torch.randn(2, 2).double(), 0.5
    losses = F.cross_entropy(X @ W.T, labels, reduction="none")
    weight_net = meta_weight_net.LossWeightNet(lr=0.1, hidden=5)
    weight_net.start_from(torch.zeros(2, 1, dtype=torch.float64), seed=0)
    monkeypatch.setattr(Tensor, "float", Tensor.double)

    def meta_loss() -> Tensor:
        v = weight_net.scores(losses[:, None])
        leaf = W.clone().requires_grad_()
        rows = F.cross_entropy(X @ leaf.T, labels, reduction="none")
        (grad,) = torch.autograd.grad((v / v.sum() * rows).sum(), leaf)
        return F.cross_entropy(X_meta @ (W - lr * grad).T, y_meta)

    errors = (X @ W.T).softmax(1) - F.one_hot(labels, 2)
    v = weight_net.scores(losses[:, None])
    shares = v / v.sum()
    moved = W - lr * (shares.detach()[:, None] * errors).T @ X
    meta_errors = (X_meta @ moved.T).softmax(1) - F.one_hot(y_meta, 2)
    products = ((errors @ meta_errors.T) * (X @ X_meta.T)).mean(1)
    shares.backward(-lr * products)
    for parameter in weight_net.module_.parameters():
        flat, eps = parameter.data.view(-1), 1e-6
        for place in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[place] += sign * eps
                ends.append(float(meta_loss()))
                flat[place] -= sign * eps
            slope = (ends[0] - ends[1]) / 2 / eps
            found = float(parameter.grad.view(-1)[place])
            assert slope == pytest.approx(found, abs=1e-7)


def test_the_weight_net_is_saved_with_the_model(data, tmp_path):
    X, y, meta = data
    clf = MetaWeightNetClassifier(sgd_net(), max_epochs=0, random_state=0)
    clf.fit(X, y, meta=meta).save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", trusted=SmallMLP)
    first, second = clf.weight_net_.module_, loaded.weight_net_.module_
    assert_same_state(state(first), state(second))


# Meta-class-weight


def test_without_corrections_it_is_deferred_re_weighting(data):
    X, y, meta = data
    clf = MetaClassWeightClassifier(sgd_net(), eps_lr=0.0, max_epochs=2, random_state=0)
    clf.fit(X, y, meta=meta)
    weights = effective_number_weights(np.bincount(y)).numpy()
    expected = weights[y] / weights[y].mean()
    np.testing.assert_allclose(clf.sample_weight_, expected, rtol=1e-5)
    assert clf.history_[:, "stage"] == [1, 1, 1, 2, 2]
    assert clf.correction_ == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ldam"])
def test_corrections_are_products_of_gradients(data, monkeypatch, loss):
    X, y, meta = data
    products = Spy(monkeypatch, learned.MetaStep, "products")
    weights = Spy(monkeypatch, learned._MetaClassWeightStep)
    net = sgd_net(max_epochs=1, lr=0.05)
    clf = MetaClassWeightClassifier(
        net, eps_lr=100.0, loss=loss, max_epochs=1, random_state=0
    ).fit(X, y, meta=meta)
    class_weight = effective_number_weights(np.bincount(y)).float()
    squares = []
    for (_, args, product), (_, (batch,), weight) in zip(
        products.calls, weights.calls, strict=True
    ):
        own = class_weight[batch.labels]
        assert_same(args[1], 0.05 * own, atol=1e-6)  # a sum, not a mean
        assert_same(weight, own + 100 * 0.05 * product, atol=1e-3)
        squares.append((100 * 0.05 * product / own).square().mean())
    expected = float(torch.stack(squares).mean().sqrt())
    assert clf.correction_ == pytest.approx(expected, rel=1e-4)


# Hu et al.


def row_steps_by_hand(net, X, labels):
    """Return what the optimizer would do to each parameter on each row alone."""
    steps = []
    defaults = dict(net.optimizer_.defaults)
    defaults.pop("decoupled_weight_decay", None)  # says what AdamW is
    for x, label in zip(X, labels, strict=True):
        module = copy.deepcopy(net.module_)
        optimizer = type(net.optimizer_)(module.parameters(), **defaults)
        optimizer.load_state_dict(copy.deepcopy(net.optimizer_.state_dict()))
        before = [p.detach().clone() for p in module.parameters()]
        F.cross_entropy(module(x[None]), label[None]).backward()
        optimizer.step()
        pairs = zip(module.parameters(), before, strict=True)
        steps.append([(p - old).detach() for p, old in pairs])
    return steps


OPTIMIZERS = {
    "sgd": {"optimizer": torch.optim.SGD},
    "momentum": {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
    "nesterov": {
        "optimizer": torch.optim.SGD,
        "optimizer__momentum": 0.9,
        "optimizer__nesterov": True,
        "optimizer__weight_decay": 0.1,
    },
    "adam": {"optimizer": torch.optim.Adam, "optimizer__weight_decay": 0.1},
    "adamw": {"optimizer": torch.optim.AdamW, "optimizer__weight_decay": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_single_rows_are_the_optimizers(data, name, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr(example_weights, "_MOST_TOGETHER", 1000)  # some rows at a time
    net = small_net(lr=0.01, **SIZES, **OPTIMIZERS[name]).fit(X, y)
    rows = slice(0, 11)
    X, labels = torch.from_numpy(X[rows]), torch.from_numpy(y[rows])
    losses = F.cross_entropy(net.module_(X), labels, reduction="none")
    parameters = list(net.module_.parameters())
    assert 11 * sum(p.numel() for p in parameters) > 1000
    data = SimpleNamespace(net=net, head=None, is_cached=False)
    meta = meta_gradient.NetGradient(data, X, labels)
    batch = StepBatch(X, None, labels, None, None, lambda outputs: None, losses)
    gradients = meta.row_gradients(batch, batch.own_losses)
    steps = example_weights._RowSteps(gradients, 11, parameters, net)
    found = [row for _, parts in steps for row in zip(*parts, strict=True)]
    for own, expected in zip(found, row_steps_by_hand(net, X, labels), strict=True):
        for one, other in zip(own, expected, strict=True):
            assert_same(one, other, atol=1e-6)


def test_steps_that_are_not_kept_are_computed_again(data, monkeypatch):
    X, y, meta = data
    clf = Hu2019Classifier(sgd_net(), max_epochs=0, random_state=0)
    kept = clf.fit(X, y, meta=meta).predict_proba(X)
    monkeypatch.setattr(example_weights, "_MOST_KEPT", 0)
    np.testing.assert_array_equal(clf.fit(X, y, meta=meta).predict_proba(X), kept)


def test_without_a_gradient_rows_count_alike(data, monkeypatch):
    X, y, meta = data
    monkeypatch.setattr(
        example_weights._ExampleWeightStep,
        "meta_gradients",
        lambda self, batch, values: torch.zeros_like(values),
    )
    weights = Spy(monkeypatch, example_weights._ExampleWeightStep)
    clf = Hu2019Classifier(sgd_net(max_epochs=1), max_epochs=0, random_state=0)
    clf.fit(X, y, meta=meta)
    np.testing.assert_allclose(clf.sample_weight_, 1, rtol=1e-6)
    step = weights.calls[-1][0]
    assert_same(step.values, torch.full((100,), 0.1), atol=1e-6)
    plain = CrossEntropyClassifier(sgd_net(max_epochs=1), max_epochs=0, random_state=0)
    expected = plain.fit(X, y).predict_proba(X)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)


@pytest.mark.parametrize("normalize", ["linear", "softmax"])
def test_values_keep_their_floor_and_weights_their_mean(data, monkeypatch, normalize):
    X, y, meta = data
    weights = Spy(monkeypatch, example_weights._ExampleWeightStep)
    clf = Hu2019Classifier(
        sgd_net(lr=2.0), normalize=normalize, max_epochs=0, random_state=0
    ).fit(X, y, meta=meta)
    assert clf.predict_proba(X).shape == (100, 3)
    for step, _, weight in weights.calls:
        assert (step.values >= example_weights._FLOOR * 0.999).all()
        assert float(weight.mean()) == pytest.approx(1, abs=1e-4)
    assert (weights.calls[-1][0].values <= 2e-5).any()


def test_without_a_memory_the_sign_is_that_of_the_products(data, monkeypatch):
    X, y, meta = data
    gradients = Spy(monkeypatch, example_weights._ExampleWeightStep, "meta_gradients")
    products = Spy(monkeypatch, learned.MetaStep, "products")
    own = example_weights._ExampleWeightStep.batch_weights

    def both(step, batch):
        step.products(batch)
        return own(step, batch)

    monkeypatch.setattr(example_weights._ExampleWeightStep, "batch_weights", both)
    net = sgd_net(max_epochs=1, lr=1e-6)  # all rows together hardly move the net
    clf = Hu2019Classifier(net, decay=float("inf"), max_epochs=0, random_state=0)
    clf.fit(X, y, meta=meta)
    for (_, _, product), (_, _, gradient) in zip(
        products.calls, gradients.calls, strict=True
    ):
        clear = product.abs() > product.abs().max() / 20
        assert clear.any()
        assert (product.sign() == -gradient.sign())[clear].all()


def test_optimizers_that_cannot_be_followed(data):
    X, y, meta = data
    clf = Hu2019Classifier(sgd_net(optimizer=torch.optim.RMSprop), random_state=0)
    with pytest.raises(ValueError, match="knows those of SGD, Adam, AdamW"):
        clf.fit(X, y, meta=meta)


# BALMS


def test_the_sampler_begins_as_it_is_told():
    counts = np.array([100, 20, 5])
    rows = ClassSampler(counts, 0.0, 0.01)
    assert_same(rows.rates(), torch.full((3,), 0.5).double(), atol=1e-12)
    shares = torch.from_numpy(counts / counts.sum())
    assert_same(rows.log_shares().exp(), shares, atol=1e-12)
    classes = ClassSampler(counts, 1.0, 0.01)
    assert_same(classes.log_shares().exp(), torch.full((3,), 1 / 3).double(), atol=1e-5)
    rates = classes.rates()
    assert (rates.min() + rates.max()).item() == pytest.approx(1, abs=1e-5)


def test_noise_given_the_winner_follows_the_law_of_draws():
    """Classes drawn first and noise given them, or noise first: the same softmax."""
    sampler = ClassSampler(np.array([50, 30, 20]), 0.0, 0.01)
    generator = torch.Generator().manual_seed(0)
    n, log_shares = 100_000, sampler.log_shares()
    gumbel = -(-torch.rand(n, 3, generator=generator).double().log()).log()
    perturbed = log_shares + gumbel
    drawn_first = perturbed.softmax(1).gather(1, perturbed.argmax(1, keepdim=True))
    classes = log_shares.exp().multinomial(n, replacement=True, generator=generator)
    shares = sampler.shares(classes, generator)
    assert (shares.argmax(1) == classes).all()
    given_winner = shares.gather(1, classes[:, None])
    quantiles = torch.linspace(0.05, 0.95, 10).double()
    assert_same(
        given_winner[:, 0].quantile(quantiles),
        drawn_first[:, 0].quantile(quantiles),
        atol=1e-2,
    )


def test_the_gradient_of_a_draw_is_that_of_its_share():
    """As autograd has it for the share of the own class under the same noise."""
    sampler = ClassSampler(np.array([100, 20, 5]), 0.3, 0.01)
    labels = torch.tensor([0, 1, 2, 2])
    grad = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    shares = sampler.shares(labels, torch.Generator().manual_seed(0))
    noise = shares.log() - sampler.log_shares()
    scores = sampler.scores.clone().requires_grad_()
    log_shares = (sampler.log_counts + scores.sigmoid().log()).log_softmax(0)
    own = (log_shares + noise).softmax(1).gather(1, labels[:, None])[:, 0]
    (expected,) = torch.autograd.grad((grad * own).sum(), scores)
    sampler.step(shares, labels, grad)
    assert_same(sampler.scores.grad, expected, atol=1e-12)


def test_the_sampler_moves_towards_what_helps():
    """Rows of the second class lower the meta loss, those of the first raise it."""
    sampler = ClassSampler(np.array([50, 50]), 0.0, 0.1)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    products = torch.where(labels == 1, 1.0, -1.0).double()
    before = sampler.rates().clone()
    sampler.step(sampler.shares(labels, generator), labels, -products)
    after = sampler.rates()
    assert after[1] > before[1]
    assert after[0] < before[0]


def test_the_sampler_is_told(data):
    X, y, meta = data
    clf = BALMSClassifier(sgd_net(), max_epochs=3, random_state=0).fit(X, y, meta=meta)
    assert clf.sampling_rate_.shape == (3,)
    assert ((clf.sampling_rate_ > 0) & (clf.sampling_rate_ < 1)).all()
    still = BALMSClassifier(sgd_net(), sampler_lr=0.0, max_epochs=3, random_state=0)
    still.fit(X, y, meta=meta)
    np.testing.assert_allclose(still.sampling_rate_, 0.5)
