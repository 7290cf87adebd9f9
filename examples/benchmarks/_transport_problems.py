"""The sizes of the transport benchmark, and its problems: batches from a long tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from sk_otreweight import CombinedCost

# Class centres in d dimensions, spread of the rows around them, and the long tail.
N_FEATURES, NOISE, IMBALANCE, META_PER_CLASS = 64, 0.7, 100.0, 10
A_SPREAD = 0.3  # standard deviation of the log-masses
MASS_UNITS = 2**24  # so many are exact in float32


@dataclass(frozen=True)
class Size:
    """Rows and columns of the problems, how many there are, and the lines.

    Attributes
    ----------
    rows, columns : int
    n_problems : int
        Problems that all contenders solve in a pass.
    n_epoch : int
        Problems that are solved in one call.
    rounds : int
        Rounds that are timed, fewer if they take too long.
    over_ours : float or None
        Line for the time of POT's autodiff over ours, one by one.
    over_batched : float or None
        Line for the time of POT's autodiff over ours per problem of an epoch.
    unrolled_over_ours : float or None
        Line for the time of the unrolled loop over ours, one by one.
    has_fixed_loops : bool
        Whether the contenders with a fixed number of iterations take part.
    search_seconds : float
        Time after which no further tolerance is tried for a contender.
    """

    rows: int
    columns: int
    n_problems: int
    n_epoch: int
    rounds: int
    over_ours: float | None = None
    over_batched: float | None = None
    unrolled_over_ours: float | None = None
    has_fixed_loops: bool = True
    search_seconds: float = 15.0

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


SIZES = [
    Size(16, 10, 8, 200, 7, over_ours=8, over_batched=50, unrolled_over_ours=100),
    Size(16, 100, 8, 16, 5, over_ours=5),
    Size(50, 2, 8, 200, 7, over_ours=5),
    Size(128, 10, 8, 200, 5, over_ours=8, over_batched=50),
    Size(128, 100, 8, 16, 5, over_ours=8),
    Size(128, 1000, 4, 16, 5, over_ours=3),
    Size(512, 1000, 1, 8, 3, has_fixed_loops=False),
]
SHORT_SIZES = [
    replace(size, n_problems=4, rounds=3, search_seconds=3.0)
    for size in SIZES
    if (size.rows, size.columns) in {(16, 10), (50, 2), (128, 10)}
]


@dataclass(frozen=True)
class Problem:
    """A transport problem, or several along a first dimension of `C`, `a` and `x`.

    Attributes
    ----------
    C : Tensor of shape (..., n, m)
    a : Tensor of shape (..., n)
    b : Tensor of shape (m,)
    x : Tensor of shape (..., n, d)
        Points of the rows, whose halved squared distances to `y` are `C`.
    y : Tensor of shape (m, d)
        Points of the columns.
    """

    C: Tensor
    a: Tensor
    b: Tensor
    x: Tensor
    y: Tensor

    def each(self) -> list[Problem]:
        """Return the problems one by one."""
        triples = zip(self.C, self.a, self.x, strict=True)
        return [Problem(C, a, self.b, x, self.y) for C, a, x in triples]

    def first(self, count: int) -> Problem:
        """Return some of the problems."""
        return Problem(self.C[:count], self.a[:count], self.b, self.x[:count], self.y)

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem in a data type."""
        return self.map(lambda value: value.to(dtype))

    def map(self, function: Callable[[Tensor], Tensor]) -> Problem:
        """Return the problem with a function applied to its tensors."""
        return Problem(**{name: function(value) for name, value in vars(self).items()})


def make_problems(size: Size, device: str) -> Problem:
    """Return an epoch's mini-batches from a long tail, against class prototypes."""
    generator = torch.Generator().manual_seed(1000 * size.rows + size.columns)
    normal = partial(torch.randn, generator=generator)
    n_classes = size.columns
    centres = normal(n_classes, N_FEATURES)

    def rows(labels: Tensor) -> Tensor:
        noise = normal(*labels.shape, N_FEATURES)
        return torch.relu(centres[labels] + NOISE * noise)

    classes = torch.arange(n_classes)
    prototypes = rows(classes[:, None].expand(-1, META_PER_CLASS)).mean(1)
    shares = IMBALANCE ** -torch.linspace(0, 1, n_classes)
    labels = torch.multinomial(
        shares.expand(size.n_epoch, -1), size.rows, True, generator=generator
    )
    features = rows(labels)
    batches = zip(features, labels, strict=True)
    cost = CombinedCost()
    problem = Problem(
        C=torch.stack([cost(z, y, prototypes, classes) for z, y in batches]),
        a=masses(A_SPREAD * normal(size.n_epoch, size.rows)),
        b=masses(torch.zeros(n_classes)),
        x=points(features, labels, n_classes),
        y=points(prototypes, classes, n_classes),
    )
    return problem.map(lambda value: value.to(device))


def masses(logits: Tensor) -> Tensor:
    """Return masses on the simplex that sum to 1 exactly, in float32 and float64.

    Otherwise the totals of `a` and `b` would differ by a rounding error, and no column
    sum could be nearer to its mass than that.
    """
    units = (torch.softmax(logits.double(), -1) * MASS_UNITS).floor()
    missing = (MASS_UNITS - units.sum(-1, keepdim=True)).to(torch.int64)
    units += torch.arange(units.shape[-1]) < missing
    return (units / MASS_UNITS).float()


def points(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return points whose halved squared distances are the combined cost."""
    unit = normalize(features, dim=-1)
    return torch.cat([unit, one_hot(labels, n_classes).to(unit.dtype)], -1)
