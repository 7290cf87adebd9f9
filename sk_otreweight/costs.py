"""What it costs to move mass from a training row to a point of Q (section 4.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn.functional import normalize

from sk_otreweight._validation import (
    check_cost_matrix,
    check_real,
    component_repr,
    resolve,
)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off for a while: differences of costs need all their digits."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class Cost(BaseEstimator, ABC):
    """Base of the costs: a callable that returns a cost matrix.

    A subclass writes `_pairwise` and declares in `needs` what it looks at:
    ``"features"``, ``"labels"`` or both. Without ``"features"`` no meta rows are needed
    (appendix F). What it computes of the points of Q alone may go into `points`, so
    that it is done once and not for each batch.

    An entry ``C[i, j]`` may depend on row i, point j and all points of Q, but never on
    the other training rows: these come in blocks of any size, and the batches of an
    epoch may come together. Features of half precision come as float32, and autocast is
    switched off.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import Cost, OTReweightedClassifier
    >>> class ManhattanCost(Cost):
    ...     needs = frozenset({"features"})
    ...
    ...     def _pairwise(self, features, labels, points, meta_labels):
    ...         return torch.cdist(features, points, p=1)
    >>> clf = OTReweightedClassifier(cost=ManhattanCost(), reg=1.0)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "labels"})

    def check_parameters(self) -> None:  # noqa: B027 - optional hook
        """Raise on parameters that are not valid; called before any training."""

    @full_precision()
    def __call__(
        self,
        features: Tensor | None,
        labels: Tensor,
        meta_features: Tensor | None,
        meta_labels: Tensor,
    ) -> Tensor:
        """Return the cost between training rows and points of Q.

        Parameters
        ----------
        features : Tensor of shape (n, d) or None
            Features of the training rows, the input of the classifier head.
        labels : Tensor of shape (n,)
            Their labels, 0 ... K-1.
        meta_features : Tensor of shape (m, d) or None
            Features of the points of Q.
        meta_labels : Tensor of shape (m,)
            Their labels.

        Returns
        -------
        C : Tensor of shape (n, m)
            Non-negative.

        Raises
        ------
        ValueError
            If features are needed and missing.
        """
        points = None
        if meta_features is not None:
            points = self.points(_at_least_float32(meta_features))
        return self.to_points(features, labels, points, meta_labels)

    def points(self, meta_features: Tensor) -> Tensor:
        """Return what `_pairwise` looks at of the points of Q, instead of features."""
        return meta_features

    @full_precision()
    def to_points(
        self,
        features: Tensor | None,
        labels: Tensor,
        points: Tensor | None,
        meta_labels: Tensor,
    ) -> Tensor:
        """Return the same as a call, given the `points` of the meta features."""
        if "features" in self.needs and (features is None or points is None):
            raise ValueError(
                f"{component_repr(self)} compares features, but none were given for "
                f"the {'training' if features is None else 'meta'} rows."
            )
        if features is not None:
            features = _at_least_float32(features)
        if points is not None:
            points = _at_least_float32(points)
        return self._pairwise(features, labels, points, meta_labels)

    @abstractmethod
    def _pairwise(
        self,
        features: Tensor | None,
        labels: Tensor,
        points: Tensor | None,
        meta_labels: Tensor,
    ) -> Tensor:
        """Return the cost matrix (n, m)."""


class LabelCost(Cost):
    """0 within a class and 1 between classes (equation 7).

    Leads to one weight per class; needs no meta features.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import LabelCost
    >>> LabelCost()(None, torch.tensor([0, 0, 1]), None, torch.tensor([0, 1]))
    tensor([[0., 1.],
            [0., 1.],
            [1., 0.]])
    """

    needs = frozenset({"labels"})

    def _pairwise(
        self,
        features: Tensor | None,
        labels: Tensor,
        points: Tensor | None,
        meta_labels: Tensor,
    ) -> Tensor:
        dtype = torch.get_default_dtype() if features is None else features.dtype
        return _differences(labels, meta_labels, dtype)


class FeatureCost(Cost):
    r"""Cosine distance of the features, ``1 - cos(z, z')`` (Eq. 8).

    Between 0 and 2. A row whose features are all zero has distance 1 to all others.
    Half precision is computed in float32.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import FeatureCost
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> FeatureCost()(z, torch.tensor([0, 1]), z, torch.tensor([0, 1]))
    tensor([[0., 1.],
            [1., 0.]])
    """

    needs = frozenset({"features"})

    def points(self, meta_features: Tensor) -> Tensor:
        """Return features of length 1."""
        return _unit(meta_features)

    def _pairwise(
        self,
        features: Tensor,
        labels: Tensor,
        points: Tensor,
        meta_labels: Tensor,
    ) -> Tensor:
        z = _unit(features)
        return torch.addmm(z.new_ones(1), z, points.T, alpha=-1).clamp_(min=0)


class SquaredEuclideanCost(Cost):
    """Squared Euclidean distance of the features.

    In the units of the features: choose `reg` on the scale of these distances.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import SquaredEuclideanCost
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> SquaredEuclideanCost()(z, torch.tensor([0, 1]), z, torch.tensor([0, 1]))
    tensor([[0., 5.],
            [5., 0.]])
    """

    needs = frozenset({"features"})

    def _pairwise(
        self,
        features: Tensor,
        labels: Tensor,
        points: Tensor,
        meta_labels: Tensor,
    ) -> Tensor:
        # Distances do not depend on the origin; a near one keeps the digits.
        origin = points.mean(0)
        z, z_meta = features - origin, points - origin
        squares = (z * z).sum(1)[:, None] + (z_meta * z_meta).sum(1)[None, :]
        return (squares - 2 * z @ z_meta.T).clamp(min=0)


class CombinedCost(Cost):
    """Feature cost plus label cost (equation 9).

    Parameters
    ----------
    mix : float, default=0.5
        Between 0, the feature cost alone, and 1, the label cost alone. At 0.5 both
        count fully, which is Eq. 9; on the way to an end the other one fades out:
        ``C = min(1, 2 - 2 mix) * feature + min(1, 2 mix) * label``.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import CombinedCost
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> CombinedCost()(z, torch.tensor([0, 1]), z, torch.tensor([0, 1]))
    tensor([[0., 2.],
            [2., 0.]])
    """

    def __init__(self, mix: float = 0.5):
        self.mix = mix

    def check_parameters(self) -> None:
        """Raise if `mix` is not between 0 and 1."""
        check_real(self.mix, name="mix", maximum=1.0)

    def points(self, meta_features: Tensor) -> Tensor:
        """Return features of length 1."""
        self.check_parameters()
        return _unit(meta_features)

    def _pairwise(
        self,
        features: Tensor,
        labels: Tensor,
        points: Tensor,
        meta_labels: Tensor,
    ) -> Tensor:
        feature, label = min(1.0, 2 - 2 * self.mix), min(1.0, 2 * self.mix)
        z = _unit(features)
        C = _differences(labels, meta_labels, z.dtype)
        if label != 1:
            C *= label
        C.addmm_(z, points.T, alpha=-feature)
        return C.add_(feature).clamp_(min=0)


class FunctionCost(Cost):
    """A cost made of any function.

    Parameters
    ----------
    function : callable
        ``function(features, labels, meta_features, meta_labels)`` returns a Tensor of
        shape (n, m), finite and non-negative, of any dtype; the arguments are those of
        a call of :class:`Cost`. Row i of the matrix must not depend on other training
        rows (see :class:`Cost`).

    Raises
    ------
    ValueError
        On calling, if the matrix has another shape, or NaN, infinite or negative
        entries.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import FunctionCost
    >>> manhattan = FunctionCost(lambda z, y, z_meta, y_meta: torch.cdist(z, z_meta, 1))
    >>> z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> manhattan(z, torch.tensor([0, 1]), z, torch.tensor([0, 1]))
    tensor([[0., 3.],
            [3., 0.]])
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]):
        self.function = function

    def _pairwise(
        self,
        features: Tensor,
        labels: Tensor,
        points: Tensor,
        meta_labels: Tensor,
    ) -> Tensor:
        C = self.function(features, labels, points, meta_labels)
        check_cost_matrix(
            C,
            n_rows=len(labels),
            n_columns=len(meta_labels),
            name=component_repr(self.function),
        )
        return C if C.is_floating_point() else C.to(features.dtype)


COSTS: dict[str, type[Cost]] = {
    "label": LabelCost,
    "feature": FeatureCost,
    "combined": CombinedCost,
    "sqeuclidean": SquaredEuclideanCost,
}


def resolve_cost(cost: Any) -> Cost:
    """Return the cost that a name, an instance or a function stands for."""
    return resolve(cost, slot="cost", table=COSTS, base=Cost, wrap=FunctionCost)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _unit(x: Tensor) -> Tensor:
    return normalize(_at_least_float32(x), dim=1)


def _differences(labels: Tensor, meta_labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1.0 where labels differ and 0.0 where they are the same (n, m)."""
    # Several times faster than comparing integers, and exact below 2^24.
    differences = (labels.float()[:, None] - meta_labels.float()).ne_(0)
    return differences if dtype == torch.float32 else differences.to(dtype)
