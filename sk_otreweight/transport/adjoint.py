"""The linear system behind both the exact gradient and the Newton steps.

The optimality conditions of a plan T with the marginals a and b, linearised, are

    diag(a) p + T q = right_rows,        T' p + diag(b) q = right_columns,

and p or q can be eliminated, whichever leaves the smaller system. Vectors are columns
here, (..., n, 1) and (..., m, 1).
"""

from __future__ import annotations

from typing import Any

from sk_otreweight.transport.arrays import library_of

# Below this share of a mass, directions of the system hold rounding noise only.
_RIDGE = 1e-12
# Less than this is never divided by; added to any mass that counts, it is rounded away.
_TINY = 1e-290


def positive(mass: Any) -> Any:
    """Return masses that may be divided by."""
    return mass + _TINY


def solve_for_columns(
    plan: Any, conditional: Any, mass: Any, right: Any, *, refine: bool = False
) -> Any:
    """Solve ``(diag(b) - T' diag(1 / a) T) q = right`` for q, up to a constant.

    The system is that of a reversible Markov chain, singular as constants solve it.
    A rank-one term fills the null space; a ridge keeps the system positive when the
    plan is almost block diagonal, and a step of iterative refinement takes its effect
    out of every direction that is not noise.

    Parameters
    ----------
    plan : array or Tensor of shape (..., n, m)
    conditional : array or Tensor of shape (..., n, m)
        ``T / a``.
    mass : array or Tensor of shape (..., m, 1)
        The column sums b, positive.
    right : array or Tensor of shape (..., m, 1)
    refine : bool, default=False
    """
    library = library_of(plan)
    system = library.matmul(mass, mass.swapaxes(-1, -2))
    system -= library.matmul(plan.swapaxes(-1, -2), conditional)
    library.add_diagonal(system, (1 + _RIDGE) * mass)
    factor = library.factor(system)
    q = library.solve(factor, right)
    if refine:
        residual = right - library.matmul(system, q) + _RIDGE * mass * q
        q += library.solve(factor, residual)
    return q
