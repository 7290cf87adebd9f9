"""Losses against their limits, closed forms and finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_same
from torch import Tensor, nn

from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)
from sk_otreweight.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CosineLinear,
    DeferredReweightingLoss,
    FocalLoss,
    InfluenceBalancedLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)

COUNTS = [5000, 500, 50, 5]
EQUAL = [20, 20, 20, 20]
K = len(COUNTS)


@pytest.fixture(autouse=True)
def _doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, K, generator=generator, dtype=torch.float64)
    return 2 * scores, torch.tensor([0, 1, 2, 3, 0, 2])


@pytest.fixture
def features() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator, dtype=torch.float64)


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores, target, reduction="none")


# Losses of rows that have to be equal to plain cross-entropy.
PLAIN = {
    "focal": FocalLoss(gamma=0, reduction="none"),
    "beta 0": ClassBalancedLoss(COUNTS, beta=0, reduction="none"),
    "class-balanced, equal": ClassBalancedLoss(EQUAL, reduction="none"),
    "no margin": LDAMLoss(COUNTS, max_margin=0, scale=1, reduction="none"),
    "tau 0": LogitAdjustedLoss(COUNTS, tau=0, reduction="none"),
    "adjusted, equal": LogitAdjustedLoss(EQUAL, reduction="none"),
    "balanced softmax, equal": BalancedSoftmaxLoss(EQUAL, reduction="none"),
    "own prior": LogitAdjustedLoss(COUNTS, target_prior=COUNTS, reduction="none"),
    "deferred, early": DeferredReweightingLoss(
        nn.CrossEntropyLoss(), [1, 2, 3, 4], reduction="none"
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_limits_are_cross_entropy(name, batch):
    scores, target = batch
    assert_same(PLAIN[name](scores, target), cross_entropy(scores, target), atol=1e-12)


# Every loss, with class weights where it has some.
EVERY = {
    "focal": partial(FocalLoss, 1.5, [1, 2, 3, 4]),
    "sigmoid focal": partial(FocalLoss, 1.5, [1, 2, 3, 4], "sigmoid"),
    "class-balanced": partial(ClassBalancedLoss, COUNTS),
    "class-balanced sigmoid": partial(ClassBalancedLoss, COUNTS, 0.999, 1.0, "sigmoid"),
    "ldam": partial(LDAMLoss, COUNTS, 0.5, 2.0, [1, 2, 3, 4]),
    "adjusted": partial(LogitAdjustedLoss, COUNTS),
    "balanced softmax": partial(BalancedSoftmaxLoss, COUNTS),
    "deferred": partial(
        DeferredReweightingLoss, nn.CrossEntropyLoss(), [1, 2, 3, 4], 0.0
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_finite_differences(name, batch):
    scores, target = batch
    loss = EVERY[name](reduction="none")
    scores = scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), scores)


@pytest.mark.parametrize("name", EVERY)
def test_reductions(name, batch):
    scores, target = batch
    rows = EVERY[name](reduction="none")(scores, target)
    assert_same(EVERY[name](reduction="mean")(scores, target), rows.mean(), atol=1e-12)
    assert_same(EVERY[name](reduction="sum")(scores, target), rows.sum(), atol=1e-12)
    loss = EVERY[name](reduction="weighted_mean")
    weights = torch.ones(len(rows))
    if loss.weight is not None:
        weights = loss.weight[target]
    expected = rows.sum() / weights.sum()
    assert_same(loss(scores, target), expected, atol=1e-12)


def test_the_weighted_mean_is_torchs(batch):
    scores, target = batch
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    ours = FocalLoss(0, weight, reduction="weighted_mean")(scores, target)
    assert_same(ours, F.cross_entropy(scores, target, weight), atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_one_row_is_what_it_is_in_a_batch(name, batch):
    scores, target = batch
    rows = EVERY[name](reduction="none")(scores, target)
    one = EVERY[name](reduction="mean")(scores[2:3], target[2:3])
    assert_same(one, rows[2], atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_single_precision_stays_single(name, batch):
    scores, target = batch
    assert EVERY[name]()(scores.float(), target).dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_scores_far_out_give_finite_gradients(name):
    scores = torch.tensor([[800.0, -800.0, 0.0, 0.0], [-800.0, 800.0, 0.0, 0.0]])
    scores.requires_grad_()
    EVERY[name]()(scores, torch.tensor([0, 0])).backward()
    assert scores.grad.isfinite().all()


# Focal loss


def test_focal_by_definition(batch):
    scores, target = batch
    p = scores.softmax(1)[range(6), target]
    alpha = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = alpha[target] * (1 - p) ** 2 * -p.log()
    loss = FocalLoss(2.0, alpha, reduction="none")
    assert_same(loss(scores, target), expected, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_focal_lies_between_zero_and_cross_entropy(gamma, batch):
    scores, target = batch
    losses = FocalLoss(gamma, reduction="none")(scores, target)
    assert (losses >= 0).all()
    assert (losses <= cross_entropy(scores, target)).all()


def test_focal_gradient_at_one_half():
    # d/dz of (1 - p)^g (-log p) with p = sigmoid(z), at p = 1/2, g = 2.
    scores = torch.zeros(1, 2, requires_grad=True)
    FocalLoss(2.0)(scores, torch.tensor([0])).backward()
    p, log_p = 0.5, torch.tensor(0.5).log()
    expected = (2 * (1 - p) * log_p - (1 - p) ** 2 / p) * p * (1 - p)
    assert_same(scores.grad[0, 0], expected, atol=1e-12)


def test_the_same_alpha_for_all_is_a_factor(batch):
    scores, target = batch
    plain = FocalLoss(1.0)(scores, target)
    scaled = FocalLoss(1.0, [3.0] * K)(scores, target)
    assert_same(scaled, 3 * plain, atol=1e-12)


def test_class_weights_leave_the_modulator_alone(batch):
    """Some implementations take (1 - p^w) instead of (1 - p)."""
    scores, target = batch
    weights = effective_number_weights(COUNTS)
    loss = ClassBalancedLoss(COUNTS, gamma=1.0, reduction="none")(scores, target)
    p = scores.softmax(1)[range(6), target]
    assert_same(loss, weights[target] * (1 - p) * -p.log(), atol=1e-12)


def test_sigmoid_focal_by_definition(batch):
    scores, target = batch
    weights = effective_number_weights(COUNTS, 0.999)
    loss = ClassBalancedLoss(COUNTS, 0.999, 1.5, "sigmoid", reduction="none")
    is_own = F.one_hot(target, K).double()
    bce = F.binary_cross_entropy_with_logits(scores, is_own, reduction="none")
    # The modulator in the form of the authors' code.
    modulator = (-1.5 * is_own * scores - 1.5 * torch.log1p((-scores).exp())).exp()
    q = torch.where(is_own.bool(), scores.sigmoid(), 1 - scores.sigmoid())
    assert_same(modulator, (1 - q) ** 1.5, atol=1e-12)
    expected = weights[target] * (modulator * bce).sum(1)
    assert_same(loss(scores, target), expected, atol=1e-12)


def test_class_balanced_is_weighted_cross_entropy(batch):
    scores, target = batch
    weight = effective_number_weights(COUNTS)
    ours = ClassBalancedLoss(COUNTS, reduction="weighted_mean")(scores, target)
    assert_same(ours, F.cross_entropy(scores, target, weight), atol=1e-12)


# LDAM


def test_margins_grow_with_rarity():
    margins = LDAMLoss(COUNTS, max_margin=0.5).margins
    assert float(margins[-1]) == 0.5
    ratios = (torch.tensor(COUNTS) / COUNTS[-1]) ** -0.25
    assert_same(margins / margins[-1], ratios, atol=1e-12)


def test_equal_counts_have_equal_margins(batch):
    loss = LDAMLoss(EQUAL, max_margin=0.4, scale=1.0, reduction="none")
    assert_same(loss.margins, torch.full((K,), 0.4), atol=1e-12)
    scores, target = batch
    shifted = scores - 0.4 * F.one_hot(target, K)
    assert_same(loss(scores, target), cross_entropy(shifted, target), atol=1e-12)


def test_no_margin_on_a_cosine_head_is_cross_entropy_of_scaled_cosines(features):
    head = CosineLinear(3, K, scale=30)
    cosines = F.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    scores, target = head(features), torch.tensor([0, 1, 2, 3, 0, 2])
    assert_same(scores, 30 * cosines, atol=1e-9)
    loss = LDAMLoss(COUNTS, max_margin=0, reduction="none")
    assert_same(loss(scores, target), cross_entropy(30 * cosines, target), atol=1e-9)


def test_the_margin_is_one_of_cosines(features):
    head, target = CosineLinear(3, K), torch.tensor([0, 1, 2, 3, 0, 2])
    loss = LDAMLoss(COUNTS, reduction="none")
    cosines = head(features) / 30
    shifted = cosines - loss.margins[target, None] * F.one_hot(target, K)
    expected = cross_entropy(30 * shifted, target)
    assert_same(loss(head(features), target), expected, atol=1e-9)


def test_larger_margins_cost_more(batch):
    scores, target = batch
    losses = [
        LDAMLoss(COUNTS, margin, reduction="none")(scores, target)
        for margin in (0.0, 0.1, 0.5, 1.0)
    ]
    assert (torch.stack(losses).diff(dim=0) >= 0).all()


def test_a_cosine_head_takes_features_of_length_zero():
    assert CosineLinear(3, K)(torch.zeros(2, 3)).isfinite().all()


# Deferred re-weighting


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), LDAMLoss(COUNTS, scale=3.0)])
def test_class_weights_are_switched_on_late(loss, batch):
    scores, target = batch
    weights = effective_number_weights(COUNTS)
    deferred = DeferredReweightingLoss(loss, weights, start=0.8, reduction="none")
    loss.reduction = "none"
    plain = loss(scores, target)
    for progress in (0.0, 0.5, 0.79):
        deferred.progress = progress
        assert_same(deferred(scores, target), plain, atol=1e-12)
    for progress in (0.8, 0.9, 1.0):
        deferred.progress = progress
        assert_same(deferred(scores, target), weights[target] * plain, atol=1e-12)


def test_the_deferred_loss_is_a_copy():
    loss = nn.CrossEntropyLoss()
    DeferredReweightingLoss(loss, [1, 2])
    assert loss.reduction == "mean"


# Logit adjustment


def test_adjusted_by_definition(batch):
    scores, target = batch
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    loss = LogitAdjustedLoss(COUNTS, tau=1.5, reduction="none")
    expected = cross_entropy(scores + 1.5 * prior.log(), target)
    assert_same(loss(scores, target), expected, atol=1e-12)


def test_balanced_softmax_is_logit_adjustment(batch):
    scores, target = batch
    ours = BalancedSoftmaxLoss(COUNTS)(scores, target)
    assert_same(ours, LogitAdjustedLoss(COUNTS)(scores, target), atol=1e-12)
    by_counts = F.cross_entropy(scores + torch.tensor(COUNTS).log(), target)
    assert_same(ours, by_counts, atol=1e-12)


@pytest.mark.parametrize("loss", [LogitAdjustedLoss, BalancedSoftmaxLoss])
def test_only_the_shares_of_the_classes_matter(loss, batch):
    scores, target = batch
    many = loss([1000 * count for count in COUNTS])(scores, target)
    assert_same(loss(COUNTS)(scores, target), many, atol=1e-12)


def test_gradient_of_balanced_softmax(batch):
    scores, target = batch
    scores = scores.clone().requires_grad_()
    BalancedSoftmaxLoss(COUNTS, reduction="sum")(scores, target).backward()
    p = (scores + torch.tensor(COUNTS).log()).softmax(1)
    assert_same(scores.grad, p - F.one_hot(target, K), atol=1e-12)


def test_what_is_learned_is_made_for_the_target_prior():
    """The scores that fit the training data are those of data with other shares."""
    density = torch.tensor([0.2, 0.5, 0.1, 0.2])  # p(x | y) of one x
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    target_prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    scores = (density * target_prior).log()
    loss = LogitAdjustedLoss(COUNTS, target_prior=target_prior, reduction="none")
    losses = loss(scores.expand(K, K), torch.arange(K))
    posterior = density * prior / (density * prior).sum()
    assert_same((-losses).exp(), posterior, atol=1e-12)


# Influence-balanced loss


def last_layer_gradients(features, W, target) -> Tensor:
    grads = []
    for h, y in zip(features, target, strict=True):
        leaf = W.clone().requires_grad_()
        F.cross_entropy((h @ leaf.T)[None], y[None]).backward()
        grads.append(leaf.grad)
    return torch.stack(grads)


@pytest.fixture
def linear(features) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(K, 3, generator=generator, dtype=torch.float64)
    return features, W, torch.tensor([0, 1, 2, 3, 0, 2])


def test_the_influence_is_the_size_of_the_last_layers_gradient(linear):
    features, W, target = linear
    scores = features @ W.T
    sizes = last_layer_gradients(features, W, target).abs().sum((1, 2))
    loss = InfluenceBalancedLoss(alpha=1.0, epsilon=0, reduction="none")
    losses = loss(scores, target, features)
    assert_same(cross_entropy(scores, target) / losses, sizes, atol=1e-9)


def test_detached_every_row_pulls_alike(linear):
    features, W, target = linear
    W = W.clone().requires_grad_()
    loss = InfluenceBalancedLoss(alpha=7.0, epsilon=0, detach=True, reduction="none")
    losses = loss(features @ W.T, target, features)
    for row in losses:
        (grad,) = torch.autograd.grad(row, W, retain_graph=True)
        assert float(grad.abs().sum()) == pytest.approx(7.0)


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_own_score(linear, detach):
    features, W, target = linear
    scores = (features @ W.T).requires_grad_()
    loss = InfluenceBalancedLoss(alpha=3.0, epsilon=0, detach=detach, reduction="sum")
    loss(scores, target, features).backward()
    own = scores.grad[range(6), target]
    p, size = scores.softmax(1)[range(6), target], features.abs().sum(1)
    expected = -3.0 / (2 * size)
    if not detach:
        expected = expected * (1 + p * p.log() / (1 - p))
    assert_same(own, expected.detach(), atol=1e-9)


def test_no_focal_term_is_the_plain_form(linear):
    features, W, target = linear
    scores = features @ W.T
    weight = inverse_frequency_weights(COUNTS)
    plain = InfluenceBalancedLoss(weight, alpha=2.0)(scores, target, features)
    focal = InfluenceBalancedLoss(weight, alpha=2.0, gamma=1.0, reduction="none")
    assert_same(
        InfluenceBalancedLoss(weight, alpha=2.0, gamma=0.0)(scores, target, features),
        plain,
        atol=0,
    )
    p = scores.softmax(1)[range(6), target]
    influence = 2 * (1 - p) * features.abs().sum(1)
    expected = weight[target] * 2 / (influence + 1e-3) * (1 - p) * -p.log()
    assert_same(focal(scores, target, features), expected, atol=1e-12)


def test_equal_counts_have_no_class_weights(linear):
    features, W, target = linear
    for weights in (inverse_frequency_weights, effective_number_weights):
        weighed = InfluenceBalancedLoss(weights(EQUAL), alpha=2.0)
        plain = InfluenceBalancedLoss(alpha=2.0)
        scores = features @ W.T
        assert_same(
            weighed(scores, target, features),
            plain(scores, target, features),
            atol=1e-12,
        )


def test_auto_alpha_is_the_mean_influence_so_far(linear):
    features, W, target = linear
    scores = features @ W.T
    p = scores.softmax(1)[range(6), target]
    influence = 2 * (1 - p) * features.abs().sum(1)
    loss = InfluenceBalancedLoss(reduction="none")
    loss(scores[:2], target[:2], features[:2])
    last = loss(scores[2:], target[2:], features[2:])
    expected = influence.mean() / (influence[2:] + 1e-3) * -p[2:].log()
    assert_same(last, expected, atol=1e-12)
    loss.eval()
    loss(scores[:1], target[:1], features[:1])
    assert_same(loss.mean_influence, influence.mean(), atol=1e-12)


def test_features_of_zero_have_a_finite_loss():
    loss = InfluenceBalancedLoss(alpha=1.0)
    losses = loss(torch.zeros(2, K), torch.tensor([0, 1]), torch.zeros(2, 3))
    assert losses.isfinite()


def test_features_may_come_with_the_scores(linear):
    features, W, target = linear
    loss = InfluenceBalancedLoss(alpha=1.0)
    given = loss(features @ W.T, target, features)
    assert_same(loss((features @ W.T, features), target), given, atol=0)


# Bad input

SCORES, LABELS = torch.zeros(3, K), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FocalLoss(gamma=-1), "gamma=-1"),
        (lambda: FocalLoss(alpha=0.25), "alpha=0.25 is one number"),
        (lambda: FocalLoss(alpha=[1, -1]), "alpha must be >= 0"),
        (lambda: FocalLoss(link="probit"), "link='probit'"),
        (lambda: FocalLoss(reduction="batchmean"), "reduction='batchmean'"),
        (lambda: ClassBalancedLoss([3, 0]), r"no rows of the classes \[1\]"),
        (lambda: LDAMLoss([3, 0]), r"no rows of the classes \[1\]"),
        (lambda: LDAMLoss(COUNTS, weight=[1, 2]), "2 entries for 4 classes"),
        (lambda: LogitAdjustedLoss([3, 0]), r"no rows of the classes \[1\]"),
        (lambda: LogitAdjustedLoss([3, 1], tau="1"), "tau='1'"),
        (
            lambda: LogitAdjustedLoss(COUNTS, target_prior=[0.5, 0.5]),
            "2 entries for 4 classes",
        ),
        (
            lambda: LogitAdjustedLoss([3, 1], target_prior=[1, 0]),
            r"target_prior=\[1.0, 0.0\] leaves no share to the classes \[1\]",
        ),
        (lambda: DeferredReweightingLoss("ce", [1, 2]), "loss='ce' is not valid"),
        (
            lambda: DeferredReweightingLoss(nn.CrossEntropyLoss(), [1, 2], start=2),
            "start=2",
        ),
        (lambda: InfluenceBalancedLoss(alpha="best"), "alpha='best'"),
        (lambda: InfluenceBalancedLoss()(SCORES, LABELS), "features None for 3 rows"),
        (
            lambda: InfluenceBalancedLoss()(SCORES, LABELS, torch.zeros(2, 5)),
            r"features \(2, 5\) for 3 rows",
        ),
        (lambda: FocalLoss()(torch.zeros(3), LABELS), r"scores of shape \(3,\)"),
        (lambda: FocalLoss()(torch.zeros(3, 1), LABELS), "at least two classes"),
        (lambda: FocalLoss()(SCORES, LABELS[:2]), r"labels of shape \(2,\)"),
        (lambda: FocalLoss()(SCORES, LABELS.double()), "dtype torch.float64"),
        (
            lambda: ClassBalancedLoss([3, 1])(SCORES, LABELS),
            r"knows 2 classes, the scores have shape \(3, 4\)",
        ),
        (
            lambda: LogitAdjustedLoss([3, 1])(SCORES, LABELS),
            r"knows 2 classes, the scores have shape \(3, 4\)",
        ),
        (
            lambda: LDAMLoss([3, 1])(SCORES, LABELS),
            r"knows 2 classes, the scores have shape \(3, 4\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", EVERY)
def test_a_training_loop_with_an_optimizer(name):
    """Every loss teaches a linear head two separable classes."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(40) % K
    X = 4 * F.one_hot(target, K) + torch.randn(40, K, generator=generator)
    head = nn.Linear(K, K)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    loss, optimizer = EVERY[name](), torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(head(X), target).backward()
        optimizer.step()
    assert (head(X).argmax(1) == target).float().mean() > 0.9
