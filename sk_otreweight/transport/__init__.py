"""Entropic optimal transport: plan, exact gradient, and a closed form.

All functions take leading batch dimensions, follow the dtype and device of their
input, and compute in float64: with a cost of 1000 and ``reg=1e-3`` the exponents
reach 1e6, where float32 keeps no digit behind the point.

Notation follows the paper (section 3): ``C`` (n, m) is the cost, ``a`` (n,) the mass
of the training rows, ``b`` (m,) that of the balanced distribution Q, ``T`` (n, m) the
plan and ``reg`` the weight lambda of the entropy.
"""

from sk_otreweight.transport.gradient import (
    adjoint_potentials,
    centred,
    cost_gradient,
    transport_cost,
    transport_gradient,
    transport_value_and_grad,
)
from sk_otreweight.transport.memory import in_fitting_parts
from sk_otreweight.transport.plan import (
    TransportPlan,
    TransportSolver,
    warn_unconverged,
)
from sk_otreweight.transport.pot import POTSolver
from sk_otreweight.transport.problem import (
    Problem,
    problem_chunks,
    result_dtype,
    unflattened,
)
from sk_otreweight.transport.semirelaxed import semirelaxed_weights, solve_semirelaxed
from sk_otreweight.transport.sinkhorn import SinkhornSolver
from sk_otreweight.transport.solvers import SOLVERS, sinkhorn

__all__ = [
    "SOLVERS",
    "POTSolver",
    "Problem",
    "SinkhornSolver",
    "TransportPlan",
    "TransportSolver",
    "adjoint_potentials",
    "centred",
    "cost_gradient",
    "in_fitting_parts",
    "problem_chunks",
    "result_dtype",
    "semirelaxed_weights",
    "sinkhorn",
    "solve_semirelaxed",
    "transport_cost",
    "transport_gradient",
    "transport_value_and_grad",
    "unflattened",
    "warn_unconverged",
]
