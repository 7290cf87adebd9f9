"""MetaSAug: the bound for augmented features, and covariances that meta rows move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets_for_tests import NormDropoutMLP, SmallMLP, small_net
from oracles import assert_same
from sklearn.datasets import make_blobs
from torch import Tensor, nn
from torch.func import functional_call

from sk_otreweight.baselines import MetaSAugClassifier, metasaug
from sk_otreweight.baselines.augmentation import ClassCovariances, spread
from sk_otreweight.losses import FocalLoss, LDAMLoss

N_CLASSES, LAMBDA = 4, 0.7


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=3.0)
    X = X.astype(np.float32)
    meta = np.concatenate([np.flatnonzero(y == k)[-4:] for k in range(3)])
    return X, y, (X[meta], y[meta])


def sgd_net(module=SmallMLP, **params):
    given = {"optimizer": torch.optim.SGD, "lr": 0.1, "max_epochs": 3}
    return small_net(module, **given | params)


# The quadratic forms


class Case:
    """A random layer, class covariances and a batch."""

    def __init__(self, *, diagonal: bool, n_features: int = 6, n_rows: int = 6):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.W, self.V = draw(N_CLASSES, n_features), draw(N_CLASSES, n_features)
        root = draw(N_CLASSES, n_features, n_features) / 2
        S = root @ root.mT
        self.S = S.diagonal(dim1=1, dim2=2) if diagonal else S
        self.labels = torch.tensor([3, 0, 3, 1, 2, 0])[:n_rows]
        self.scores = draw(n_rows, N_CLASSES)
        self.errors, self.changes = draw(n_rows, N_CLASSES), draw(n_rows, N_CLASSES)

    def spread(self, S: Tensor | None = None):
        return spread(self.W, self.labels, self.S if S is None else S, LAMBDA)

    def augmented(self, W: Tensor, S: Tensor | None = None) -> Tensor:
        return augmented_scores(
            self.scores, self.labels, W, self.S if S is None else S, LAMBDA
        )


def augmented_scores(
    scores: Tensor, labels: Tensor, W: Tensor, S: Tensor, strength: float
) -> Tensor:
    """Return the scores of the bound, by its definition."""
    S = torch.diag_embed(S) if S.ndim == 2 else S
    d = W[None] - W[labels][:, None]
    return scores + strength / 2 * torch.einsum("nka,nab,nkb->nk", d, S[labels], d)


@pytest.fixture(
    params=[(False, 6, 6), (False, 3, 6), (False, 6, 3), (True, 6, 6), (True, 6, 3)],
    ids=["full", "few features", "few rows", "diagonal", "diagonal, few rows"],
)
def case(request):
    diagonal, n_features, n_rows = request.param
    return Case(diagonal=diagonal, n_features=n_features, n_rows=n_rows)


def test_augmented_scores_by_definition(case):
    expected = case.augmented(case.W)
    assert_same(case.spread().augment(case.scores), expected, atol=1e-12)
    own = case.labels[:, None]
    assert_same(expected.gather(1, own), case.scores.gather(1, own), atol=1e-12)


def test_slope_of_the_weight_is_that_of_autograd(case):
    W = case.W.clone().requires_grad_()
    loss = (case.errors * case.augmented(W)).sum()
    (expected,) = torch.autograd.grad(loss, W)
    assert_same(case.spread().slope(case.errors), expected, atol=1e-11)


def change_along(case, S: Tensor) -> Tensor:
    """Return how the scores change with W along V: differences of squares are exact."""
    return (case.augmented(case.W + case.V, S) - case.augmented(case.W - case.V, S)) / 2


def test_change_along_a_direction(case):
    expected = change_along(case, case.S)
    assert_same(case.spread().along(case.V), expected, atol=1e-11)


def test_descent_is_against_the_gradient_of_the_change(case):
    """The gradient by S of errors . d/dW augmented [V] + changes . augmented."""
    S = case.S.clone().requires_grad_()
    along, augmented = change_along(case, S), case.augmented(case.W, S)
    value = (case.errors * along + case.changes * augmented).sum()
    (gradient,) = torch.autograd.grad(value, S)
    forms = case.spread()
    forms.descend(case.errors, case.changes, case.V, 0.3)
    moved = case.spread(case.S - 0.3 * gradient)
    assert (moved.forms() - case.spread().forms()).abs().max() > 0.1
    assert_same(forms.forms(), moved.forms(), atol=1e-11)
    assert_same(forms.slope(case.errors), moved.slope(case.errors), atol=1e-11)


@pytest.mark.parametrize("what", ["strength", "covariance"])
def test_no_augmentation(what):
    case = Case(diagonal=False)
    strength, S = (0.0, case.S) if what == "strength" else (LAMBDA, 0 * case.S)
    forms = spread(case.W, case.labels, S, strength)
    assert_same(forms.augment(case.scores), case.scores, atol=0)


def test_the_bound_is_one():
    case = Case(diagonal=False, n_features=3)
    W, S, labels = case.W, case.S, case.labels
    h = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    augmented = case.spread().augment(h @ W.T)
    bound = F.cross_entropy(augmented, labels, reduction="none")
    rng = np.random.default_rng(0)
    for i, y in enumerate(labels):
        noise = rng.multivariate_normal(np.zeros(3), LAMBDA * S[y].numpy(), 50_000)
        scores = (h[i] + torch.from_numpy(noise)) @ W.T
        mean = F.cross_entropy(scores, y.expand(len(scores)))
        assert float(mean) <= float(bound[i]) + 1e-2


# The covariances


@pytest.mark.parametrize("diagonal", [False, True])
def test_running_covariances_are_those_of_all_rows(diagonal):
    generator = torch.Generator().manual_seed(0)
    points = 2 + 3 * torch.randn(60, 3, generator=generator).double()
    labels = torch.arange(60) % 2
    running = ClassCovariances(3, 3, diagonal, points)
    assert running.is_empty
    for rows in torch.arange(60).split(7):
        running.update(points[rows], labels[rows])
    for k in (0, 1):
        expected = torch.from_numpy(np.cov(points[labels == k].T.numpy(), bias=True))
        expected = expected.diagonal() if diagonal else expected
        assert_same(running.covariance[k], expected, atol=1e-9)
    assert not running.covariance[2].any()


@pytest.mark.parametrize("together", [7, 1024])
def test_covariances_of_kept_features_are_taken_once(data, monkeypatch, together):
    X, y, meta = data
    monkeypatch.setattr(metasaug, "_ROWS_TOGETHER", together)
    monkeypatch.setattr(metasaug._MetaSAugStep, "losses", noting(steps := []))
    clf = MetaSAugClassifier(
        sgd_net(), finetune="head", covariance="full", max_epochs=4, random_state=0
    ).fit(X, y, meta=meta)
    step = steps[0]
    assert step.are_final
    assert step.covariances.count.tolist() == np.bincount(y).tolist()
    with torch.no_grad():
        features = clf.net_.module_.eval().body(torch.from_numpy(X)).numpy()
    for k in range(3):
        expected = torch.from_numpy(np.cov(features[y == k].T, bias=True)).float()
        assert_same(step.covariances.covariance[k], expected, atol=1e-4)


def noting(steps: list):
    own = metasaug._MetaSAugStep.losses

    def losses(step, batch):
        steps.append(step)
        return own(step, batch)

    return losses


@pytest.mark.parametrize("finetune", ["all", "head"])
def test_automatic_covariances(data, monkeypatch, finetune):
    X, y, meta = data
    monkeypatch.setattr(metasaug._MetaSAugStep, "losses", noting(steps := []))
    clf = MetaSAugClassifier(
        sgd_net(), finetune=finetune, max_epochs=2, random_state=0
    ).fit(X, y, meta=meta)
    n_axes = 2 if finetune == "head" else 3
    assert steps[-1].covariances.covariance.ndim == n_axes
    monkeypatch.setattr(metasaug, "_MOST_ENTRIES", 100)
    clf.fit(X, y, meta=meta)
    assert steps[-1].covariances.covariance.ndim == 2


# The losses

LOSSES = {
    "cross_entropy": ({}, nn.CrossEntropyLoss(reduction="none")),
    "focal": ({"gamma": 2.0}, FocalLoss(2.0, reduction="none")),
    "odd focal": ({"gamma": 0.5}, FocalLoss(0.5, reduction="none")),
    "ldam": (
        {"margins": LDAMLoss([50, 20, 9, 5]).margins.double()},
        LDAMLoss([50, 20, 9, 5], scale=1.0, reduction="none"),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_derivatives(name):
    parameters, public = LOSSES[name]
    case = Case(diagonal=False)
    scores = case.scores.clone().requires_grad_()
    losses = public(scores, case.labels)
    (slopes,) = torch.autograd.grad(losses.sum(), scores, create_graph=True)
    (changes,) = torch.autograd.grad((slopes * case.errors).sum(), scores)
    targets = F.one_hot(case.labels, N_CLASSES).double()
    at = metasaug._RowLoss(targets, **parameters)(case.scores)
    atol = 1e-6 if name == "ldam" else 1e-11  # margins are float32
    assert_same(at.losses, losses.detach(), atol=atol)
    assert_same(at.slopes, slopes.detach(), atol=atol)
    assert_same(at.along(case.errors), changes, atol=atol)


# The whole step


def losses_by_autograd(step, batch) -> tuple[Tensor, Tensor]:
    """Return the losses of a batch, and the gradient of their sum by the head's weight.

    The covariances move against the gradient of the meta loss through a virtual step
    of the whole net, by autograd of second order, in double precision.
    """
    own = step.data.net.module_
    module = type(own)(4, 3)
    module.load_state_dict(own.state_dict())
    module.double().body.requires_grad_(not step.data.is_cached)
    weights = step.class_weight[batch.labels].double()
    X, X_meta = batch.X.double(), step.meta.X.double()
    trained = {k: p for k, p in module.named_parameters() if p.requires_grad}
    S = step.covariances.covariance.double().requires_grad_()

    def losses_under(S: Tensor) -> Tensor:
        head = module.head
        features = X if step.data.is_cached else module.body(X)
        z = augmented_scores(
            head(features), batch.labels, head.weight, S, step.strength
        )
        return F.cross_entropy(z, batch.labels, reduction="none")

    loss = (weights * losses_under(S)).sum() / weights.sum()
    grads = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
    pairs = zip(trained.items(), grads, strict=True)
    moved = {k: p - step.lr * g for (k, p), g in pairs}
    if step.data.is_cached:
        moved = {k.removeprefix("head."): p for k, p in moved.items()}
        scores = functional_call(module.head, moved, X_meta)
    else:
        scores = functional_call(module, moved, X_meta)
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, step.meta.labels), S)
    moved_S = S.detach() - step.settings.covariance_lr * gradient
    losses = losses_under(moved_S)
    (slope,) = torch.autograd.grad(losses.sum(), module.head.weight)
    return losses.detach(), slope


@pytest.mark.parametrize("module", [SmallMLP, NormDropoutMLP])
@pytest.mark.parametrize("finetune", ["all", "head"])
@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_losses_are_those_of_autograd_of_second_order(
    data, monkeypatch, module, finetune, covariance
):
    X, y, meta = data
    gaps = []
    own = metasaug._MetaSAugStep.losses

    def checking(step, batch):
        is_ready = step.covariances.count.min() > 0 and len(gaps) < 2
        if is_ready:
            expected, slope = losses_by_autograd(step, batch)
            still = metasaug.spread(
                step.layer.weight,
                batch.labels,
                step.covariances.covariance,
                step.strength,
            ).augment(batch.outputs.detach())
            still = F.cross_entropy(still, batch.labels, reduction="none")
        losses = own(step, batch)
        if is_ready:
            weight = step.layer.weight
            (found,) = torch.autograd.grad(losses.sum(), weight, retain_graph=True)
            gaps.append(float((expected - still).abs().max()))
            assert_same(losses.detach().double(), expected, atol=1e-3 * gaps[-1] + 2e-5)
            assert_same(found.double(), slope, atol=1e-3)
        return losses

    monkeypatch.setattr(metasaug._MetaSAugStep, "losses", checking)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)  # draws would differ
    net = sgd_net(module, lr=0.5, max_epochs=2)
    MetaSAugClassifier(
        net,
        finetune=finetune,
        covariance=covariance,
        covariance_lr=100.0,
        max_epochs=2,
        random_state=0,
    ).fit(X, y, meta=meta)
    assert max(gaps) > 1e-3  # or nothing was moved


def test_without_augmentation_it_is_class_balanced_training(data):
    X, y, meta = data
    params = {"max_epochs": 2, "random_state": 0}
    clf = MetaSAugClassifier(sgd_net(), strength=0.0, **params).fit(X, y, meta=meta)
    other = MetaSAugClassifier(
        sgd_net(), strength=0.0, covariance_lr=0.0, covariance="diag", **params
    ).fit(X, y, meta=meta)
    np.testing.assert_allclose(clf.predict_proba(X), other.predict_proba(X), atol=1e-6)
