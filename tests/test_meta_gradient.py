"""Products with the meta gradient against finite differences and closed forms."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same
from skorch import NeuralNetClassifier
from torch import Tensor, nn
from torch.func import functional_call

from sk_otreweight.baselines.meta_gradient import (
    HeadGradient,
    MetaGradient,
    meta_gradient,
)
from sk_otreweight.features import Head
from sk_otreweight.stage2 import StepBatch

N, M, D, K = 8, 5, 6, 4
LR = 0.2


class Net(nn.Module):
    def __init__(self, normalised: bool = False):
        super().__init__()
        layers = [nn.Linear(3, D), nn.Tanh()]
        self.body = nn.Sequential(*layers, *([nn.BatchNorm1d(D)] if normalised else []))
        self.head = nn.Linear(D, K)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


@pytest.fixture(params=[False, True], ids=["plain", "normalised"])
def net(request):
    torch.manual_seed(0)
    module = Net(request.param).double()
    net = NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=LR
    )
    net.initialize()
    net.module_.train()
    return net


def rows(n: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return X, torch.randint(0, K, (n,), generator=generator)


def batch_of(net, X: Tensor, labels: Tensor, *, cached: bool = False) -> StepBatch:
    def losses(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="none")

    outputs = net.infer(X)
    features = X if cached else None
    return StepBatch(X, features, labels, None, outputs, losses, losses(outputs))


def data_of(net, *, cached=False, activation="logits") -> SimpleNamespace:
    head = Head("head", None, activation, (K,))
    return SimpleNamespace(net=net, head=head, is_cached=cached)


def numeric_products(net, X, labels, X_meta, y_meta, steps) -> Tensor:
    """Return minus the derivative of the meta loss by each step, by differences."""
    module = copy.deepcopy(net.module_)
    named = dict(module.named_parameters())
    losses = F.cross_entropy(module(X), labels, reduction="none")

    def meta_loss(steps: Tensor) -> Tensor:
        grads = torch.autograd.grad(
            losses, list(named.values()), grad_outputs=steps, retain_graph=True
        )
        moved = {k: p - g for (k, p), g in zip(named.items(), grads, strict=True)}
        scores = functional_call(copy.deepcopy(module), moved, (X_meta,))
        return F.cross_entropy(scores, y_meta)

    with torch.no_grad():
        eps, units = 1e-6, torch.eye(len(X), dtype=X.dtype)
    return torch.stack(
        [
            -(meta_loss(steps + eps * u) - meta_loss(steps - eps * u)) / 2 / eps
            for u in units
        ]
    ).detach()


@pytest.mark.parametrize("has_step", [False, True])
def test_products_are_those_of_finite_differences(net, has_step):
    (X, labels), (X_meta, y_meta) = rows(N, 3, 0), rows(M, 3, 1)
    given = torch.linspace(0.1, 1, N, dtype=torch.float64) if has_step else None
    expected = numeric_products(
        net, X, labels, X_meta, y_meta, given if has_step else torch.zeros(N).double()
    )
    before = copy.deepcopy(net.module_.state_dict())
    batch = batch_of(net, X, labels)
    after_pass = copy.deepcopy(net.module_.state_dict())
    meta = meta_gradient(data_of(net), X_meta, y_meta)
    products = meta.products(batch, batch.own_losses, given)
    assert_same(products, expected, atol=1e-7)
    for name, value in net.module_.state_dict().items():
        assert_same(value.double(), after_pass[name].double(), atol=0)
        if "running" not in name and "num_batches" not in name:
            assert_same(value.double(), before[name].double(), atol=0)


class HeadNet(nn.Sequential):
    """A linear layer, and perhaps a softmax."""

    def __init__(self, activation: str, has_bias: bool):
        super().__init__()
        self.add_module("head", nn.Linear(D, K, bias=has_bias).double())
        if activation == "softmax":
            self.add_module("activation", nn.Softmax(1))


def both_forms(activation: str, has_bias: bool) -> list[tuple[MetaGradient, StepBatch]]:
    """Return the closed form of a head and that of a net, and their batches."""
    torch.manual_seed(0)
    criterion = nn.NLLLoss if activation == "softmax" else nn.CrossEntropyLoss
    module = HeadNet(activation, has_bias)
    net = NeuralNetClassifier(module, criterion=criterion).initialize()
    net.criterion_.reduction = "none"
    (X, labels), (X_meta, y_meta) = rows(N, D, 0), rows(M, D, 1)
    forms = []
    for cached in (True, False):

        def losses(outputs: Tensor) -> Tensor:
            return net.get_loss(outputs, labels)

        outputs = net.infer(X)
        features = X if cached else None
        batch = StepBatch(X, features, labels, None, outputs, losses, losses(outputs))
        data = data_of(net, cached=cached, activation=activation)
        meta = meta_gradient(data, X_meta, y_meta)
        assert isinstance(meta, HeadGradient) == cached
        forms.append((meta, batch))
    return forms


@pytest.mark.parametrize("has_step", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("activation", ["logits", "softmax"])
def test_the_closed_form_of_the_head_is_that_of_the_net(activation, has_bias, has_step):
    steps = torch.linspace(0.1, 1, N, dtype=torch.float64) if has_step else None
    closed, full = (
        meta.products(batch, batch.own_losses, steps)
        for meta, batch in both_forms(activation, has_bias)
    )
    assert_same(closed, full, atol=1e-12)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("activation", ["logits", "softmax"])
def test_gradients_of_rows_in_both_forms(activation, has_bias):
    closed, full = (
        meta.row_gradients(batch, batch.own_losses)(slice(2, 5))
        for meta, batch in both_forms(activation, has_bias)
    )
    assert len(closed) == 1 + has_bias
    for one, other in zip(closed, full, strict=True):
        assert_same(one, other, atol=1e-12)


def test_a_head_that_is_not_trained_as_a_whole_has_no_closed_form():
    net = NeuralNetClassifier(HeadNet("logits", True), criterion=nn.CrossEntropyLoss)
    net.initialize().module_.head.bias.requires_grad_(False)
    meta = meta_gradient(data_of(net, cached=True), *rows(M, D, 1))
    assert list(meta.parameters()) == ["module.head.weight"]


def test_the_closed_form_by_hand():
    """<g_i, g_meta> is the mean of products of errors and of features."""
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("head", nn.Linear(D, K).double())
    net = NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss).initialize()
    (X, labels), (X_meta, y_meta) = rows(N, D, 0), rows(M, D, 1)
    errors = module.head(X).softmax(1) - F.one_hot(labels, K)
    meta_errors = module.head(X_meta).softmax(1) - F.one_hot(y_meta, K)
    expected = ((errors @ meta_errors.T) * (X @ X_meta.T + 1)).mean(1)
    batch = batch_of(net, X, labels, cached=True)
    meta = meta_gradient(data_of(net, cached=True), X_meta, y_meta)
    products = meta.products(batch, batch.own_losses)
    assert_same(products, expected.detach(), atol=1e-12)


def test_the_meta_gradient_is_taken_after_the_step():
    """That at the point before it is another, which some implementations take."""
    torch.manual_seed(0)
    net = NeuralNetClassifier(Net().double(), criterion=nn.CrossEntropyLoss)
    net.initialize()
    (X, labels), (X_meta, y_meta) = rows(N, 3, 0), rows(M, 3, 1)
    batch = batch_of(net, X, labels)
    meta = meta_gradient(data_of(net), X_meta, y_meta)
    before = meta.products(batch, batch.own_losses)
    after = meta.products(batch, batch.own_losses, torch.ones(N).double())
    assert (before - after).abs().max() > 1e-2


def test_parameters_that_are_not_trained_play_no_part(net):
    net.module_.body.requires_grad_(False)
    (X, labels), (X_meta, y_meta) = rows(N, 3, 0), rows(M, 3, 1)
    batch = batch_of(net, X, labels)
    products = meta_gradient(data_of(net), X_meta, y_meta).products(
        batch, batch.own_losses
    )
    H, H_meta = (
        copy.deepcopy(net.module_).body(X),
        copy.deepcopy(net.module_).body(X_meta),
    )
    errors = net.module_.head(H).softmax(1) - F.one_hot(labels, K)
    meta_errors = net.module_.head(H_meta).softmax(1) - F.one_hot(y_meta, K)
    expected = ((errors @ meta_errors.T) * (H @ H_meta.T + 1)).mean(1)
    assert_same(products, expected.detach(), atol=1e-12)
