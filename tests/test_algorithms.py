"""Algorithms 1 and 2 against a step-by-step loop written from the paper's lines."""

import copy

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize

from sk_otreweight import (
    ModuleWeights,
    OTReweightedClassifier,
    SinkhornSolver,
    WeightVector,
)

N, BATCH, D, K = 40, 8, 3, 3
ALPHA, REG = 0.3, 0.2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f1 = nn.Sequential(nn.Linear(D, 4), nn.Tanh())
        self.f2 = nn.Linear(4, K)

    def forward(self, X):
        return self.f2(self.f1(X))


class Scores(nn.Module):
    """A weight net that starts at the same values always."""

    def __init__(self, n_features):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        hidden = torch.randn(4, n_features, generator=generator, dtype=torch.float64)
        out = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        self.hidden, self.out = nn.Parameter(hidden), nn.Parameter(out)

    def forward(self, z):
        return (torch.tanh(z @ self.hidden.T) @ self.out.T)[:, 0]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.choice(K, N, p=[0.6, 0.3, 0.1])
    X = rng.normal(size=(N, D)) + 1.5 * np.eye(K)[y]
    y_meta = np.repeat(np.arange(K), 2)
    X_meta = rng.normal(size=(2 * K, D)) + 1.5 * np.eye(K)[y_meta]
    return tuple(map(torch.from_numpy, (X, y, X_meta, y_meta)))


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().double()


def naive_cost(z, y, z_meta, y_meta):
    """Eqs. 9 and 12: combined cost to the prototypes."""
    prototypes = torch.stack([z_meta[y_meta == k].mean(0) for k in range(K)])
    cosine = normalize(z, dim=1) @ normalize(prototypes, dim=1).T
    return 1 - cosine + (y[:, None] != torch.arange(K)[None]).double()


def naive_transport_loss(C, a):
    """Eq. 10, differentiated through many unrolled Sinkhorn sweeps."""
    b = torch.full((K,), 1 / K, dtype=C.dtype)
    u = torch.zeros_like(a)
    for _ in range(400):
        v = b.log() - torch.logsumexp(-C / REG + u[:, None], 0)
        u = a.log() - torch.logsumexp(-C / REG + v[None], 1)
    T = torch.exp(-C / REG + u[:, None] + v[None])
    return (C * T).sum()


def virtual_parameters(net, losses, shares, exact):
    """Step (a): one plain gradient step, kept differentiable if `exact`."""
    named = dict(net.named_parameters())
    grads = torch.autograd.grad(
        (shares * losses).mean(),
        list(named.values()),
        create_graph=exact,
        retain_graph=True,
    )
    return {
        name: p - ALPHA * (g if exact else g.detach())
        for (name, p), g in zip(named.items(), grads, strict=True)
    }


def extract(net, parameters, X):
    return functional_call(
        net.f1, {k[3:]: p for k, p in parameters.items() if k[:2] == "f1"}, (X,)
    )


def cost_after_step_a(net, losses, shares, batch, meta, finetune, exact):
    (X, y), (X_meta, y_meta) = batch, meta
    parameters = dict(net.named_parameters())
    if finetune == "all":
        parameters = virtual_parameters(net, losses, shares, exact)
    z, z_meta = extract(net, parameters, X), extract(net, parameters, X_meta)
    if finetune == "head" or not exact:
        z, z_meta = z.detach(), z_meta.detach()
    return naive_cost(z, y, z_meta, y_meta)


def step_c(net, losses, weights, finetune):
    trained = net.f2 if finetune == "head" else net
    parameters = list(trained.parameters())
    grads = torch.autograd.grad((weights * losses).mean(), parameters)
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter -= ALPHA * grad


def naive_algorithm_1(net, data, beta, update, finetune, exact):
    X, y, X_meta, y_meta = data
    w = torch.ones(N, dtype=torch.float64)
    for start in range(0, N, BATCH):
        rows = slice(start, start + BATCH)
        w_batch = w[rows].clone().requires_grad_()
        mass = w_batch.sum().detach()
        a = w_batch / w_batch.sum()
        losses = cross_entropy(net(X[rows]), y[rows], reduction="none")
        C = cost_after_step_a(
            net, losses, mass * a, (X[rows], y[rows]), (X_meta, y_meta), finetune, exact
        )
        (grad,) = torch.autograd.grad(
            naive_transport_loss(C, a), w_batch, retain_graph=True
        )
        with torch.no_grad():
            if update == "sgd":
                moved = (w_batch - beta * grad).clamp(min=0)
            else:
                moved = w_batch * torch.exp(-beta * mass * grad)
            w[rows] = moved * mass / moved.sum()
        step_c(net, losses, w[rows], finetune)
    return w


def naive_algorithm_2(net, scores, data, beta, finetune, exact):
    X, y, X_meta, y_meta = data
    for start in range(0, N, BATCH):
        rows = slice(start, start + BATCH)
        z = net.f1(X[rows]).detach()
        a = torch.softmax(scores(z), 0)
        losses = cross_entropy(net(X[rows]), y[rows], reduction="none")
        C = cost_after_step_a(
            net,
            losses,
            BATCH * a,
            (X[rows], y[rows]),
            (X_meta, y_meta),
            finetune,
            exact,
        )
        omega = list(scores.parameters())
        loss = naive_transport_loss(C, a)
        grads = torch.autograd.grad(loss, omega, retain_graph=True)
        with torch.no_grad():
            for parameter, grad in zip(omega, grads, strict=True):
                parameter -= beta * grad
            weights = BATCH * torch.softmax(scores(z), 0)
        step_c(net, losses, weights, finetune)


def fit(module, data, weights, finetune, virtual_step):
    net = NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=ALPHA,
        batch_size=BATCH,
        max_epochs=0,
        train_split=None,
        verbose=0,
    )
    X, y, X_meta, y_meta = (x.numpy() for x in data)
    clf = OTReweightedClassifier(
        net,
        weights=weights,
        reg=REG,
        finetune=finetune,
        virtual_step=virtual_step,
        max_epochs=1,
        solver=SinkhornSolver(max_iter=2000, tol=1e-12),
        random_state=0,
    )
    return clf.fit(X, y, meta=(X_meta, y_meta))


def assert_same_parameters(module, expected):
    for (name, p), q in zip(
        module.named_parameters(), expected.parameters(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=name)


CASES = [("head", "first_order"), ("all", "first_order"), ("all", "exact")]


@pytest.mark.parametrize(("finetune", "virtual_step"), CASES)
@pytest.mark.parametrize(("update", "beta"), [("sgd", 2.0), ("multiplicative", 0.5)])
def test_algorithm_1(data, module, finetune, virtual_step, update, beta):
    expected = copy.deepcopy(module)
    w = naive_algorithm_1(
        expected, data, beta, update, finetune, virtual_step == "exact"
    )
    clf = fit(module, data, WeightVector(beta, update), finetune, virtual_step)
    assert (w - 1).abs().max() > 0.05  # the weights did move
    np.testing.assert_allclose(clf.weights_.values_, w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(clf.sample_weight_, w, rtol=0, atol=1e-6)
    assert_same_parameters(clf.net_.module_, expected)


@pytest.mark.parametrize(("finetune", "virtual_step"), CASES)
def test_algorithm_2(data, module, finetune, virtual_step):
    expected, scores = copy.deepcopy(module), Scores(4)
    naive_algorithm_2(expected, scores, data, 2.0, finetune, virtual_step == "exact")
    clf = fit(module, data, ModuleWeights(Scores, 2.0), finetune, virtual_step)
    assert (scores.out - Scores(4).out).abs().max() > 1e-3
    assert_same_parameters(clf.weights_.module_, scores)
    assert_same_parameters(clf.net_.module_, expected)


def test_the_two_forms_of_step_a_differ_more_than_the_tolerance(data, module):
    first_order, exact = (
        fit(module, data, WeightVector(2.0, "sgd"), "all", form).sample_weight_
        for form in ("first_order", "exact")
    )
    assert np.abs(first_order - exact).max() > 1e-5


def test_the_comparison_fails_on_another_step_size(data, module):
    expected = copy.deepcopy(module)
    naive_algorithm_1(expected, data, 2.0, "sgd", "all", exact=False)
    clf = fit(module, data, WeightVector(2.2, "sgd"), "all", "first_order")
    with pytest.raises(AssertionError):
        assert_same_parameters(clf.net_.module_, expected)
