"""The linear system behind both the exact gradient and the Newton steps."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this, directions of the adjoint system hold rounding noise only.
_RIDGE = 1e-12


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the products of matrices (..., n, m) and vectors (..., m)."""
    return (matrix @ vector[..., None])[..., 0]


def solve_coupled(
    S: Tensor, R: Tensor, a: Tensor, b: Tensor, right_row: Tensor, right_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve ``p + S q = right_row, R' p + q = right_column`` by the smaller side.

    S (n, m) and R (n, m) are a plan's row and column conditionals, `a` and `b` its
    marginals. The solution is determined up to a constant, added to p and taken from q.
    """
    if S.shape[-1] <= S.shape[-2]:
        q = _solve_reduced(S, R, b, right_column - apply(R.mT, right_row))
        p = right_row - apply(S, q)
        return p, right_column - apply(R.mT, p)
    p = _solve_reduced(R.mT, S.mT, a, right_row - apply(S, right_column))
    q = right_column - apply(R.mT, p)
    return right_row - apply(S, q), q


def _solve_reduced(S: Tensor, R: Tensor, mass: Tensor, right: Tensor) -> Tensor:
    """Solve ``(I - R' S) q = right``, q up to a constant.

    ``R' S`` is the transition matrix of a reversible Markov chain with stationary
    distribution `mass`, so scaling by its root makes the system symmetric, with
    the root in the null space. A rank-one term fills that; the ridge keeps the system
    positive when the plan is almost block diagonal, and one step of iterative
    refinement takes its effect out of every direction that is not noise.
    """
    root = mass.sqrt()
    kernel = (S * R).sqrt()
    identity = torch.eye(mass.shape[-1], dtype=S.dtype, device=S.device)
    unit = root / root.norm(dim=-1, keepdim=True)
    system = identity - kernel.mT @ kernel + unit[..., :, None] * unit[..., None, :]
    factor, _ = torch.linalg.cholesky_ex(system + _RIDGE * identity)
    scaled_right = (root * right)[..., None]
    scaled = torch.cholesky_solve(scaled_right, factor)
    residual = scaled_right - system @ scaled
    scaled = scaled + torch.cholesky_solve(residual, factor)
    q = scaled[..., 0] / root
    return torch.where(root > 0, q, torch.zeros_like(q))
