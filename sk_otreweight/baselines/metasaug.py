"""Semantic augmentation with covariances that are learned from meta rows (MetaSAug)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sk_otreweight._validation import check_beta, check_choice, check_real
from sk_otreweight.baselines.base import effective_prior, two_stage_epochs
from sk_otreweight.baselines.heads import linear_head
from sk_otreweight.baselines.learned import STAGE_TWO_LOSSES, MetaClassifier, MetaStep
from sk_otreweight.baselines.meta_gradient import derivative
from sk_otreweight.class_weights import effective_number_weights
from sk_otreweight.extraction import original
from sk_otreweight.features import FeatureExtractor
from sk_otreweight.losses import FocalLoss, LDAMLoss
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch

# Numbers in the covariances of all classes, above which "auto" keeps variances only.
_MOST_ENTRIES = 10**7
# Entries of the products of single rows that are added up at a time.
_MOST_TOGETHER = 2**22


def augmented_scores(
    scores: Tensor, labels: Tensor, weight: Tensor, covariance: Tensor, strength: float
) -> Tensor:
    r"""Return the scores whose cross-entropy bounds that of augmented features.

    .. math:: z_{ij} + \frac{\lambda}{2} (w_j - w_y)^T \Sigma_y (w_j - w_y)

    The mean of the cross-entropy over features drawn from a normal distribution around
    those of the row, with covariance ``lambda Sigma_y``, is at most the cross-entropy
    of these scores (Wang et al., NeurIPS 2019), if the covariances are positive.

    Parameters
    ----------
    scores : Tensor of shape (n, K)
    labels : Tensor of shape (n,)
    weight : Tensor of shape (K, d)
        Of the last layer.
    covariance : Tensor of shape (K, d, d), or (K, d) if diagonal
    strength : float
        lambda.
    """
    classes, place = labels.unique(return_inverse=True)
    own, covariance = weight[classes], covariance[classes]
    if covariance.ndim == 2:
        others = covariance @ (weight**2).T - 2 * (covariance * own) @ weight.T
        spread = others + (covariance * own**2).sum(1, keepdim=True)
    else:
        differences = weight - own[:, None]  # (classes in the batch, K, d)
        spread = ((differences @ covariance) * differences).sum(2)
    return scores + strength / 2 * spread[place]


class ClassCovariances:
    """Running covariances of the features of each class.

    Equal to the covariances (divided by n) of all features seen.

    Parameters
    ----------
    n_classes, n_features : int
    diagonal : bool
        Keep the variances only.
    like : Tensor
        Gives dtype and device.
    """

    def __init__(self, n_classes: int, n_features: int, diagonal: bool, like: Tensor):
        shape = (n_classes, n_features)
        self.mean = like.new_zeros(shape)
        self.count = like.new_zeros(n_classes)
        self.covariance = like.new_zeros(shape if diagonal else (*shape, n_features))

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in the features of a batch."""
        counts = labels.bincount(minlength=len(self.count)).to(features.dtype)
        sums = torch.zeros_like(self.mean).index_add_(0, labels, features)
        means = sums / counts.clamp(min=1)[:, None]
        centred, gap = features - means[labels], means - self.mean
        share = counts / (self.count + counts).clamp(min=1)  # 0 of what a batch lacks
        square = torch.square if self.covariance.ndim == 2 else _outer

        def of_classes(values: Tensor) -> Tensor:
            return values.reshape(-1, *[1] * (self.covariance.ndim - 1))

        self.covariance *= of_classes(1 - share)
        self.covariance += of_classes(share * (1 - share)) * square(gap)
        portions = (share / counts.clamp(min=1))[labels]
        entries = self.covariance[0].numel()
        for rows in torch.arange(len(labels)).split(max(1, _MOST_TOGETHER // entries)):
            spread = of_classes(portions[rows]) * square(centred[rows])
            self.covariance.index_add_(0, labels[rows], spread)
        self.mean += share[:, None] * gap
        self.count += counts


def _outer(points: Tensor) -> Tensor:
    """Return the products (n, d, d) of points (n, d) with themselves."""
    return points[:, :, None] * points[:, None]


@dataclass(eq=False, repr=False, kw_only=True)
class MetaSAugClassifier(MetaClassifier):
    """Features are augmented along directions learned from meta rows (MetaSAug).

    Li et al., CVPR 2021: in stage 2 the loss is a bound for features that vary as those
    of their class do, weighed by class. In each step the covariances move against the
    gradient of the loss on the meta rows.

    Parameters
    ----------
    net, head, max_epochs, lr, target_prior, random_state, verbose
        See :class:`BaselineClassifier`. The net must end in an ``nn.Linear``.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`.
    loss : {"cross_entropy", "focal", "ldam"}, default="cross_entropy"
        Of the augmented scores. The margins of "ldam" are subtracted from scores of
        a plain linear layer, as in the released code.
    covariance : {"auto", "full", "diag"}, default="auto"
        "diag" keeps the variances only; "auto" does so if all covariances have more
        than 10 million entries.
    strength : float, default=0.75
        lambda at the end of stage 2; it grows from epoch to epoch. The paper tries
        0.25 to 1.
    covariance_lr : float, default=0.1
        Step size of the covariances; 0 leaves them as they were estimated.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import MetaSAugClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = MetaSAugClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "metasaug"
    paper = "Li et al., CVPR 2021"
    needs = frozenset({"counts", "meta", "features"})
    stages = "2"
    begins_with = "net"
    can_stream = False  # the covariances are those of one training set

    loss: str = "cross_entropy"
    covariance: str = "auto"
    strength: float = 0.75
    covariance_lr: float = 0.1
    beta: float | str = 0.9999

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.loss, name="loss", choices=tuple(STAGE_TWO_LOSSES))
        choices = ("auto", "full", "diag")
        check_choice(self.covariance, name="covariance", choices=choices)
        check_real(self.strength, name="strength")
        check_real(self.covariance_lr, name="covariance_lr")
        check_beta(self.beta)

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        return two_stage_epochs(self, stage_one=stage_one, is_stream=is_stream)

    def _adapt_net(self) -> None:
        linear_head(self.net_, self._head)  # or raise before the training

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _MetaSAugStep(data, self, self._counts())

    def _assumed_prior(self) -> np.ndarray:
        return effective_prior(self._class_counts, self.beta)


class _MetaSAugStep(MetaStep):
    """The bound as loss; see `MetaSAugClassifier`."""

    def __init__(
        self, data: Stage2Data, settings: MetaSAugClassifier, class_counts: np.ndarray
    ):
        super().__init__(
            data, settings._meta_rows(), _loss(settings.loss, class_counts)
        )
        self.needs_features = True
        self.settings = settings
        self.layer = linear_head(data.net, data.head)
        weights = effective_number_weights(class_counts, settings.beta)
        self.class_weight = weights.to(data.labels.device, self.layer.weight.dtype)
        n_classes, n_features = self.layer.weight.shape
        diagonal = settings.covariance == "diag" or (
            settings.covariance == "auto" and n_classes * n_features**2 > _MOST_ENTRIES
        )
        self.covariances = ClassCovariances(
            n_classes, n_features, diagonal, self.layer.weight
        )

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,) under the moved covariances."""
        self.draw_meta()
        covariance = self.covariances.covariance
        if self.settings.covariance_lr and self.covariances.count.any():
            gradient = self._covariance_gradient(batch)
            covariance = covariance - self.settings.covariance_lr * gradient
        scores = class_scores(self.data.net, batch.outputs)
        losses = self._bound(scores, batch.labels, self.layer.weight, covariance)
        with torch.no_grad():
            self.covariances.update(batch.features.detach(), batch.labels)
        return losses

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Return the weights of the classes of the rows, of mean 1 in the batch."""
        weights = self.class_weight[batch.labels]
        return weights / weights.mean()

    def _bound(
        self, scores: Tensor, labels: Tensor, weight: Tensor, covariance: Tensor
    ) -> Tensor:
        strength = self.settings.strength * (self.epoch + 1) / self.data.epochs
        augmented = augmented_scores(scores, labels, weight, covariance, strength)
        return self.loss(augmented, labels)

    def _covariance_gradient(self, batch: StepBatch) -> Tensor:
        """Return the gradient of the meta loss after a virtual step.

        Covariances act through the head alone. So the derivative of the batch's loss
        in the direction of the meta gradient is one at the head, in which the features
        move as they do when the extractor's parameters move in that direction.
        """
        weights = self.class_weight[batch.labels]
        shares = weights / weights.sum()
        features = batch.features.detach().requires_grad_()
        weight = self.layer.weight.detach().requires_grad_()
        bias = self.layer.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        bias.requires_grad_()
        covariance = self.covariances.covariance.clone().requires_grad_()
        with torch.enable_grad():
            scores = features @ weight.T + bias
            loss = (
                shares * self._bound(scores, batch.labels, weight, covariance)
            ).sum()
            points = [features, weight, bias]
            slopes = torch.autograd.grad(loss, points, create_graph=True)
            moves = self._moves(batch, [x.detach() for x in slopes])
            along = sum((x * y).sum() for x, y in zip(slopes, moves, strict=True))
            (gradient,) = torch.autograd.grad(along, covariance)
        return -self.lr * gradient

    def _moves(self, batch: StepBatch, slopes: list[Tensor]) -> list[Tensor]:
        """Return how features, weight and bias move along the meta gradient.

        Parameters
        ----------
        slopes : list of Tensor
            Gradients of the batch's loss with respect to the three.
        """
        net, head = self.data.net, self.data.head
        run = self.meta.run()
        parameters = run.trained()
        prefix = f"module.{head.name}." if head.name else "module."
        own = {f"{prefix}weight": slopes[1], f"{prefix}bias": slopes[2]}
        others = {name: p for name, p in parameters.items() if name not in own}
        if others:
            grads = torch.autograd.grad(
                batch.features,
                list(others.values()),
                grad_outputs=slopes[0],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            own |= dict(zip(others, grads, strict=True))
        moved = {name: p - self.lr * own[name] for name, p in parameters.items()}
        direction = self.meta.direction(run, moved)
        moves = [torch.zeros_like(x) for x in slopes]
        for place, name in enumerate(("weight", "bias"), start=1):
            if f"{prefix}{name}" in direction:
                moves[place] = direction[f"{prefix}{name}"]
        others = {name: p.detach() for name, p in others.items() if name in direction}
        if others:
            extractor = FeatureExtractor(original(net.module_), head, net.infer)

            def features(named: dict[str, Tensor]) -> Tensor:
                buffers = {name: x.clone() for name, x in extractor.named_buffers()}
                return functional_call(extractor, named | buffers, (batch.X,))

            along = {name: direction[name] for name in others}
            moves[0] = derivative(features, others, along)
        return moves


def _loss(name: str, class_counts: np.ndarray) -> nn.Module:
    if name == "ldam":
        return LDAMLoss(class_counts, scale=1.0, reduction="none")
    return FocalLoss(2.0 if name == "focal" else 0.0, reduction="none")
