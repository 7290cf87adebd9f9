r"""Class covariances of features, and scores that bound augmented features.

The mean of the cross-entropy over features drawn from a normal distribution around
those of a row, with covariance ``lambda S_y``, is at most the cross-entropy of

    z_ik + lambda / 2 (w_k - w_y)^T S_y (w_k - w_y)

(Wang et al., NeurIPS 2019), if the covariances are positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Spread(ABC):
    """The quadratic forms ``lambda d_k^T S_y d_k`` for the rows of a batch.

    With the differences ``d_k = w_k - w_y`` to the row's own class.

    Parameters
    ----------
    weight : Tensor of shape (K, d)
        Of the last layer.
    labels : Tensor of shape (n,)
    covariance : Tensor of shape (K, d, d), or (K, d) if diagonal
        Of the features of each class.
    strength : float
        lambda.
    """

    def __init__(
        self, weight: Tensor, labels: Tensor, covariance: Tensor, strength: float
    ):
        self.weight, self.covariance = weight.detach(), covariance
        self.strength = strength
        self.classes, place, n_places = None, labels, len(weight)
        if len(weight) > len(labels):  # the classes y in the batch alone, (C,)
            self.classes, place = labels.unique(return_inverse=True)
            self.covariance = covariance.index_select(0, self.classes)
            n_places = len(self.classes)
        members = torch.zeros(
            len(labels), n_places, dtype=weight.dtype, device=weight.device
        )
        self.members = members.scatter_(1, place[:, None], 1.0)  # (n, C)

    def augment(self, scores: Tensor) -> Tensor:
        """Return the scores (n, K) of the bound."""
        return torch.addmm(scores, self.members, self.forms(), alpha=0.5)

    def slope(self, errors: Tensor) -> Tensor:
        """Return the gradient (K, d) of a loss of the bound by the weight in the forms.

        Parameters
        ----------
        errors : Tensor of shape (n, K)
            The gradient with respect to the scores of the bound.
        """
        others, own = self._slopes(self._of_classes(errors))
        if self.classes is None:
            return others - own
        return others.index_add(0, self.classes, own, alpha=-1)

    def along(self, direction: Tensor) -> Tensor:
        """Return how the scores change (n, K) with the weight in a direction."""
        return self.members @ self._mixed_forms(direction)

    def descend(
        self, errors: Tensor, changes: Tensor, direction: Tensor, size: float
    ) -> None:
        """Move the covariances against the gradient of how a loss changes.

        That of a loss of the bound, with the weight and all else in a direction: for
        a row ``lambda sum_k changes_k d_k d_k^T / 2 + errors_k e_k d_k^T``, of the
        products the symmetric part, with ``e_k = v_k - v_y``.

        Parameters
        ----------
        errors, changes : Tensor of shape (n, K)
            Gradient with respect to the scores of the bound, and how that changes.
        direction : Tensor of shape (K, d)
            v.
        size : float
        """
        squares, products = self._of_classes(changes), self._of_classes(errors)
        # The forms hold lambda themselves.
        self._add(squares / 2, products, direction, -size * self.strength**2)

    def _of_classes(self, factors: Tensor) -> Tensor:
        """Return the sums (C, K) over the rows of each class."""
        return self.members.T @ factors

    def _own(self, points: Tensor) -> Tensor:
        """Return the points (C, d) of the classes y, of those (K, d) of all."""
        return points if self.classes is None else points.index_select(0, self.classes)

    @abstractmethod
    def forms(self) -> Tensor:
        """Return the forms (C, K)."""

    @abstractmethod
    def _mixed_forms(self, direction: Tensor) -> Tensor:
        """Return ``lambda e_k^T S_y d_k`` (C, K)."""

    @abstractmethod
    def _slopes(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums of ``lambda f_yk S_y d_k`` over y, (K, d), and over k, (C, d)."""

    @abstractmethod
    def _add(
        self, squares: Tensor, products: Tensor, direction: Tensor, size: float
    ) -> None:
        """Add ``size sum_k (s_k d_k + p_k e_k) d_k^T`` to ``lambda S_y``."""


class FullSpread(Spread):
    """The forms under covariances, which are seen through their images of differences.

    What moves a covariance has a rank of at most 2 (K - 1), and is never formed.
    """

    def __init__(
        self, weight: Tensor, labels: Tensor, covariance: Tensor, strength: float
    ):
        super().__init__(weight, labels, covariance, strength)
        self.differences = self._differences(self.weight)
        self.images = (strength * self.differences) @ self.covariance  # (C, K, d)

    def _differences(self, points: Tensor) -> Tensor:
        """Return the differences (C, K, d) of the points of all classes."""
        return points - self._own(points)[:, None]

    def forms(self) -> Tensor:
        """Return the forms (C, K)."""
        return (self.differences * self.images).sum(2)

    def _mixed_forms(self, direction: Tensor) -> Tensor:
        return (self._differences(direction) * self.images).sum(2)

    def _slopes(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        parts = factors[:, :, None] * self.images
        return parts.sum(0), parts.sum(1)

    def _add(
        self, squares: Tensor, products: Tensor, direction: Tensor, size: float
    ) -> None:
        own = self.differences
        other = squares[:, :, None] * own
        other += products[:, :, None] * self._differences(direction)
        # (A^T D + D^T A) / 2, seen through D, in the cheaper order.
        both, turned = torch.cat([other, own], 1).mT, torch.cat([own, other], 1)
        if own.shape[1] < own.shape[2]:
            moves = (own @ both) @ turned
        else:
            moves = own @ (both @ turned)
        self.images = torch.add(self.images, moves, alpha=size / 2)


class DiagonalSpread(Spread):
    """The forms under variances, without numbers for each pair of classes and feature.

    Parameters
    ----------
    weight, labels, covariance, strength
        See :class:`Spread`.
    """

    def __init__(
        self, weight: Tensor, labels: Tensor, covariance: Tensor, strength: float
    ):
        super().__init__(weight, labels, covariance, strength)
        self.own = self._own(self.weight)
        self._set(strength * self.covariance)

    def _set(self, variances: Tensor) -> None:
        self.variances, self.images = variances, variances * self.own  # S_y w_y (C, d)

    def forms(self) -> Tensor:
        """Return the forms (C, K)."""
        ends = (self.images * self.own).sum(1, keepdim=True)
        mixed = torch.addmm(ends, self.images, self.weight.T, alpha=-2)
        return torch.addmm(mixed, self.variances, (self.weight**2).T)

    def _mixed_forms(self, direction: Tensor) -> Tensor:
        own = self._own(direction)
        ends = (self.images * own).sum(1, keepdim=True)
        mixed = torch.addmm(ends, self.images, direction.T, alpha=-1)
        mixed = torch.addmm(mixed, self.variances * own, self.weight.T, alpha=-1)
        return torch.addmm(mixed, self.variances, (direction * self.weight).T)

    def _slopes(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        others = (factors.T @ self.variances) * self.weight - factors.T @ self.images
        total = factors.sum(1, keepdim=True)
        own = (factors @ self.weight) * self.variances - total * self.images
        return others, own

    def _add(
        self, squares: Tensor, products: Tensor, direction: Tensor, size: float
    ) -> None:
        moves = self._sum(squares, self.weight) + self._sum(products, direction)
        self._set(torch.add(self.variances, moves, alpha=size))

    def _sum(self, factors: Tensor, points: Tensor) -> Tensor:
        """Return the sums (C, d) of ``f_yk e_k d_k`` over k."""
        own = self._own(points)
        mixed = own * (factors @ self.weight) + self.own * (factors @ points)
        ends = factors.sum(1, keepdim=True) * own * self.own
        return factors @ (points * self.weight) - mixed + ends


def spread(
    weight: Tensor, labels: Tensor, covariance: Tensor, strength: float
) -> Spread:
    """Return the quadratic forms of a batch, by the shape of the covariance.

    Parameters
    ----------
    weight, labels, covariance, strength
        See :class:`Spread`.
    """
    kind = DiagonalSpread if covariance.ndim == 2 else FullSpread
    return kind(weight, labels, covariance, strength)


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
        self.is_empty = True

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in the features of a batch."""
        classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
        counts = counts.to(features.dtype)
        sums = features.new_zeros(len(classes), features.shape[1])
        means = sums.index_add_(0, place, features) / counts[:, None]
        share = counts / (self.count[classes] + counts)
        gaps = means - self.mean[classes]
        # What is added are squares of points: of the rows around their means, and of
        # the gaps between the means.
        rows = (share / counts).sqrt()[place][:, None] * (features - means[place])
        points = torch.cat([rows, (share * (1 - share)).sqrt()[:, None] * gaps])
        place = torch.cat([place, torch.arange(len(classes), device=place.device)])
        before = self.covariance[classes]
        before *= (1 - share).reshape(-1, *[1] * (before.ndim - 1))
        squares = _sums_of_squares if before.ndim == 2 else _sums_of_products
        self.covariance[classes] = before + squares(points, place, len(classes))
        self.mean[classes] += share[:, None] * gaps
        self.count[classes] += counts
        self.is_empty = False


def _sums_of_squares(points: Tensor, place: Tensor, n_places: int) -> Tensor:
    """Return the sums (C, d) of the squares of the points at each place."""
    sums = points.new_zeros(n_places, points.shape[1])
    return sums.index_add_(0, place, points**2)


def _sums_of_products(points: Tensor, place: Tensor, n_places: int) -> Tensor:
    """Return the sums (C, d, d) of the products of the points at each place."""
    counts = place.bincount(minlength=n_places)
    order = place.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    number = torch.arange(len(place), device=place.device) - starts[place[order]]
    grouped = points.new_zeros(n_places, int(counts.max()), points.shape[1])
    grouped[place[order], number] = points[order]
    return grouped.mT @ grouped
