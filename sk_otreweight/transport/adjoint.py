"""The linear system behind both the exact gradient and the Newton steps.

With ``M = T / sqrt(a b)`` and the unknowns scaled likewise, ``x = sqrt(a) p`` and
``y = sqrt(b) q``, the optimality conditions of a plan T with the marginals a and b are

    x + M y = right_rows,        M' x + y = right_columns.

Vectors are columns here, (P, n, 1) and (P, m, 1), for P problems at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this, directions of the system hold rounding noise only.
_RIDGE = 1e-12
# Roots of masses below this count as none; nothing is divided by less.
_TINY = 1e-150


def root_of(mass: Tensor) -> Tensor:
    """Return the square root of masses, which may be divided by."""
    return mass.sqrt().clamp_(min=_TINY)


def symmetric_plan(plan: Tensor, root_a: Tensor, root_b: Tensor) -> Tensor:
    """Return ``M = T / sqrt(a b)`` (P, n, m)."""
    return (plan / root_a).div_(root_b.mT)


def solve_columns(
    M: Tensor, root_b: Tensor, right: Tensor, *, refine: bool = False
) -> Tensor:
    """Solve ``(I - M' M) y = right`` for y (P, m, 1), up to a multiple of `root_b`.

    ``M' M`` is similar to the transition matrix of a reversible Markov chain, with
    `root_b` its Perron vector, so that the system is singular. A rank-one term fills
    the null space; a ridge keeps the system positive when the plan is almost block
    diagonal, and a step of iterative refinement takes its effect out of every
    direction that is not noise.
    """
    system = torch.baddbmm(root_b @ root_b.mT, M.mT, M, alpha=-1)
    system.diagonal(dim1=-2, dim2=-1).add_(1 + _RIDGE)
    factor, _ = torch.linalg.cholesky_ex(system)
    y = torch.cholesky_solve(right, factor)
    if refine:
        residual = torch.baddbmm(right, system, y, alpha=-1).add_(y, alpha=_RIDGE)
        y += torch.cholesky_solve(residual, factor)
    return y
