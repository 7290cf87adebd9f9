"""The balanced distribution Q that the training rows are transported to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from sk_otreweight._validation import (
    check_can_average,
    check_choice,
    check_count,
    resolve,
)


class Atoms(NamedTuple):
    """Points of Q and their mass.

    Attributes
    ----------
    features : Tensor of shape (m, d) or None
        None if the cost looks at labels only.
    labels : Tensor of shape (m,)
    mass : Tensor of shape (m,)
        Sums to 1; every class has the same share.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight.meta_sets import Atoms
    >>> labels = torch.arange(2)
    >>> atoms = Atoms(torch.eye(2), labels, mass=torch.full((2,), 0.5))
    >>> atoms.mass
    tensor([0.5000, 0.5000])
    """

    features: Tensor | None
    labels: Tensor
    mass: Tensor


class MetaSet(BaseEstimator, ABC):
    """Base of the meta sets: how meta rows become the distribution Q.

    A subclass writes `_atoms`, and `condense` if a part of that is the same in every
    draw; `stochastic` says whether two calls may differ.

    Parameters
    ----------
    per_class : int, default=10
        Rows drawn from each class of the training rows when no meta data is given
        (appendix E); classes with fewer rows give all they have.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import MetaSet, OTReweightedClassifier
    >>> from sk_otreweight.meta_sets import Atoms
    >>> class FirstRow(MetaSet):  # one meta row of each class, always the same
    ...     def _atoms(self, features, labels, generator):
    ...         classes = labels.unique()
    ...         first = torch.stack([(labels == k).nonzero()[0, 0] for k in classes])
    ...         mass = torch.full((len(classes),), 1 / len(classes))
    ...         return Atoms(features[first], classes, mass)
    >>> z = torch.tensor([[0.0], [1.0], [2.0]])
    >>> FirstRow().atoms(z, torch.tensor([0, 0, 1])).features
    tensor([[0.],
            [2.]])
    >>> clf = OTReweightedClassifier(meta_set=FirstRow())
    """

    stochastic: ClassVar[bool] = False

    def __init__(self, per_class: int = 10):
        self.per_class = per_class

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        check_count(self.per_class, name="per_class")

    def complete(self) -> MetaSet:
        """Return the meta set that leaves nothing out to keep batches small.

        Weights that are found for all training rows at once have no batches: a class
        that was left out would be without any weight.
        """
        return self

    @property
    def needs_inputs(self) -> bool:
        """Whether `inputs` has a say: the meta rows are then loaded all at once."""
        return type(self).inputs is not MetaSet.inputs

    def inputs(self, X: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs that the feature extractor is to see, and their labels."""
        return X, labels

    def atoms(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None = None,
    ) -> Atoms:
        """Build Q.

        Parameters
        ----------
        features : Tensor of shape (n_meta, d) or None
            Features of the meta rows; gradients flow through.
        labels : Tensor of shape (n_meta,)
            Their labels, 0 ... K-1.
        generator : torch.Generator, default=None
            On the CPU; used by meta sets that draw.

        Returns
        -------
        atoms : Atoms
        """
        return self.draw(*self.condense(features, labels), generator)

    def condense(
        self, features: Tensor | None, labels: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Return what Q is drawn from, features (m, d) or None and labels (m,).

        It is the same in every draw, so that it need not be computed for each batch.
        """
        return features, labels

    def draw(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None = None,
    ) -> Atoms:
        """Build Q from what `condense` returned."""
        return self._atoms(features, labels, generator)

    @abstractmethod
    def _atoms(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Atoms:
        """Build Q from condensed meta rows."""


class PrototypeMetaSet(MetaSet):
    """One point per class, the mean of its meta rows (equation 12).

    Parameters
    ----------
    per_class : int, default=10
        Rows drawn from each class when no meta data is given.
    space : {"feature", "input"}, default="feature"
        Where rows are averaged. "input" averages the inputs, as Eq. 12 is written,
        and passes the mean through the extractor.
    n_prototypes : int, default=None
        Draw so many of the prototypes for each batch; None for all of them. For
        thousands of classes (section 5 of the paper). The closed form has no batches
        and takes them all.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import PrototypeMetaSet
    >>> z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]])
    >>> PrototypeMetaSet().atoms(z, torch.tensor([0, 0, 1])).features
    tensor([[1., 0.],
            [5., 5.]])
    """

    def __init__(
        self,
        per_class: int = 10,
        space: str = "feature",
        n_prototypes: int | None = None,
    ):
        super().__init__(per_class)
        self.space = space
        self.n_prototypes = n_prototypes

    def check_parameters(self) -> None:
        """Raise on parameters that are not valid; called before any training."""
        super().check_parameters()
        check_choice(self.space, name="space", choices=("feature", "input"))
        if self.n_prototypes is not None:
            check_count(self.n_prototypes, name="n_prototypes")

    @property
    def stochastic(self) -> bool:
        """Whether a part of the prototypes is drawn for each batch."""
        return self.n_prototypes is not None

    def complete(self) -> PrototypeMetaSet:
        """Return the meta set with all of the prototypes."""
        return clone(self).set_params(n_prototypes=None)

    @property
    def needs_inputs(self) -> bool:
        """Whether rows are averaged as inputs, or a subclass has inputs of its own."""
        is_own = type(self).inputs is not PrototypeMetaSet.inputs
        return is_own or self.space == "input"

    def inputs(self, X: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return class means of the inputs if rows are averaged there."""
        self.check_parameters()
        if self.space == "feature":
            return X, labels
        check_can_average(X)
        return class_means(X, labels)

    def condense(
        self, features: Tensor | None, labels: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Return the class means, and the classes in order."""
        self.check_parameters()
        if features is None:
            return None, labels.unique()
        return class_means(features, labels)

    def _atoms(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Atoms:
        if self.n_prototypes is not None and self.n_prototypes < len(labels):
            order = torch.randperm(len(labels), generator=generator)
            chosen = order[: self.n_prototypes].to(labels.device)
            labels = labels[chosen]
            features = None if features is None else features[chosen]
        return Atoms(features, labels, _balanced_mass(labels, features))


class WholeMetaSet(MetaSet):
    """Every meta row is a point of Q (equation 5).

    Each class has the same mass, which is 1/M per row if all classes have equally
    many meta rows.

    Parameters
    ----------
    per_class : int, default=10
        Rows drawn from each class when no meta data is given.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import WholeMetaSet
    >>> z, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])
    >>> WholeMetaSet().atoms(z, labels).mass
    tensor([0.2500, 0.2500, 0.5000])
    """

    def _atoms(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Atoms:
        return Atoms(features, labels, _balanced_mass(labels, features))


class RandomMetaSet(MetaSet):
    """One meta row of each class, drawn anew for each batch (table 2).

    Parameters
    ----------
    per_class : int, default=10
        Rows drawn from each class when no meta data is given.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import RandomMetaSet
    >>> z, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1])
    >>> RandomMetaSet().atoms(z, labels, torch.Generator().manual_seed(0)).labels
    tensor([0, 1])
    """

    stochastic = True

    def _atoms(
        self,
        features: Tensor | None,
        labels: Tensor,
        generator: torch.Generator | None,
    ) -> Atoms:
        chosen = one_row_per_class(labels, generator)
        features = None if features is None else features[chosen]
        labels = labels[chosen]
        return Atoms(features, labels, _balanced_mass(labels, features))


META_SETS: dict[str, type[MetaSet]] = {
    "prototype": PrototypeMetaSet,
    "whole": WholeMetaSet,
    "random": RandomMetaSet,
}


def resolve_meta_set(meta_set: Any) -> MetaSet:
    """Return the meta set that a name or an instance stands for."""
    return resolve(meta_set, slot="meta_set", table=META_SETS, base=MetaSet)


def class_means(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the rows of each class, and the classes in order.

    Parameters
    ----------
    x : Tensor of shape (n, ...)
    labels : Tensor of shape (n,)

    Returns
    -------
    means : Tensor of shape (n_present, ...)
    classes : Tensor of shape (n_present,)
    """
    classes, position, counts = labels.unique(return_inverse=True, return_counts=True)
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    sums = torch.zeros(len(classes), *x.shape[1:], dtype=x.dtype, device=x.device)
    sums = sums.index_add(0, position, x)
    return sums / counts.reshape(-1, *[1] * (x.ndim - 1)), classes


def one_row_per_class(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the position of one row of each class, drawn uniformly."""
    _, position = labels.unique(return_inverse=True)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    first = torch.full((int(position.max()) + 1,), len(labels), device=labels.device)
    rank = torch.arange(len(labels), device=labels.device)
    first = first.scatter_reduce(0, position[order], rank, "amin")
    return order[first]


def draw_rows(
    labels: Tensor, per_class: int, generator: torch.Generator | None
) -> Tensor:
    """Return positions of up to `per_class` rows of each class, drawn without return.

    Parameters
    ----------
    labels : Tensor of shape (n,)
        On the CPU.
    per_class : int
        Rows per class; classes with fewer give all.
    generator : torch.Generator or None
        On the CPU.

    Returns
    -------
    rows : Tensor of shape (n_drawn,)
        Ordered by class.
    """
    check_count(per_class, name="per_class")
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    _, counts = labels[order].unique_consecutive(return_counts=True)
    rank = torch.arange(len(labels))
    rank = rank - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[rank < per_class]


def _balanced_mass(labels: Tensor, like: Tensor | None) -> Tensor:
    """Return masses that sum to 1 and give every class in `labels` the same share."""
    _, position, counts = labels.unique(return_inverse=True, return_counts=True)
    dtype = torch.get_default_dtype() if like is None else like.dtype
    return 1 / (counts[position] * len(counts)).to(dtype)
