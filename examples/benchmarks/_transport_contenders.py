"""Ways to compute the transport cost and its gradient, at a wanted gradient error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import ot
import torch
from _common import Spread, alternate
from _transport_problems import Problem, Size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sk_otreweight import SinkhornSolver, transport_cost, transport_value_and_grad

try:
    from geomloss import SamplesLoss
except ImportError:
    SamplesLoss = None

REG = 0.1
TARGET = 1e-5  # relative gradient error at which the contenders are compared
TOLERANCES = [10.0**-k for k in range(4, 11)]
MAX_ITER = 4000
N_UNROLLED = 200  # the paper's number of iterations
GRAPH_BYTES = 4 * 2**30  # that an unrolled graph may take

# The reference is unrolled up to this many entries of the cost matrix.
REFERENCE_ENTRIES = 1600
REFERENCE_CHANGE = 1e-9
REFERENCE_SWEEPS = (500, 32_000)
REFERENCE_CHUNK = 100
REFERENCE_SOLVER = SinkhornSolver(max_iter=MAX_ITER, tol=1e-13)

OURS = "sk_otreweight, one by one"
OURS_BACKWARD = "sk_otreweight, transport_cost and backward"
BATCHED = "sk_otreweight, an epoch in one call"
POT = "POT autodiff"
POT_MANY = f"POT autodiff, {N_UNROLLED} iterations"
POT_LAST = "POT last_step"
GEOMLOSS = "geomloss"
UNROLLED = f"unrolled loop, {N_UNROLLED} iterations"
TUNED = f"unrolled loop, tuned, {N_UNROLLED} iterations"

Loss = Callable[[Problem, Tensor], Tensor]
Outcome = tuple[Tensor, Tensor]
Method = Callable[[Problem], Outcome]


@dataclass(frozen=True)
class Contender:
    """A way to compute cost and gradient, with its problems and settings.

    Attributes
    ----------
    method : callable
        ``method(problem)`` returns the cost and its gradient in `a`, which is
        determined up to a constant.
    problems : list of Problem
        What it solves in a pass, in the data type it is given.
    computes_in : str
    tol : float or None
    """

    method: Method
    problems: list[Problem]
    computes_in: str
    tol: float | None = None

    @property
    def n_problems(self) -> int:
        """Problems in a pass: more than calls if they are solved together."""
        return sum(problem.a.shape[:-1].numel() for problem in self.problems)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield cost and gradient of all problems."""
        return map(self.method, self.problems)

    def run(self, n_passes: int = 1) -> None:
        """Solve all problems, several times over."""
        for _ in range(n_passes):
            for problem in self.problems:
                self.method(problem)


def ours(tol: float) -> Method:
    """Return this package's cost and gradient, without a graph."""
    solver = SinkhornSolver(max_iter=MAX_ITER, tol=tol)

    def method(problem: Problem) -> Outcome:
        return transport_value_and_grad(
            problem.C, problem.a, problem.b, REG, solver=solver
        )

    return method


def by_autograd(loss: Loss) -> Method:
    """Return a method that differentiates a loss by its graph."""

    def method(problem: Problem) -> Outcome:
        a = problem.a.detach().requires_grad_()
        value = loss(problem, a)
        (grad,) = torch.autograd.grad(value.sum(), a)
        return value.detach(), grad

    return method


def ours_with_graph(tol: float) -> Method:
    """Return this package's differentiable cost and its backward pass."""
    solver = SinkhornSolver(max_iter=MAX_ITER, tol=tol)

    def loss(problem: Problem, a: Tensor) -> Tensor:
        return transport_cost(problem.C, a, problem.b, REG, solver=solver)

    return by_autograd(loss)


def pot(tol: float, grad: str = "autodiff", max_iter: int | None = None) -> Method:
    """Return POT's way; by default with as many iterations as the memory allows."""

    def loss(problem: Problem, a: Tensor) -> Tensor:
        return ot.solve(
            problem.C,
            a,
            problem.b,
            reg=REG,
            reg_type="entropy",
            grad=grad,
            tol=tol,
            max_iter=max_iter or most_iterations(problem.C),
        ).value_linear

    return by_autograd(loss)


def most_iterations(C: Tensor) -> int:
    """Return how many iterations can be unrolled without running out of memory."""
    # An iteration keeps a matrix for either update, every tenth two more.
    return min(MAX_ITER, GRAPH_BYTES // (3 * C.numel() * C.element_size()))


def geomloss(scaling: float = 0.5) -> Method:
    """Return geomloss's way to the value of the dual problem."""
    # Its regularisation is blur ** p, of the cost |x - y| ** p / p.
    value = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=REG**0.5,
        scaling=scaling,
        debias=False,
        backend="tensorized",
    )

    def loss(problem: Problem, a: Tensor) -> Tensor:
        return value(a, problem.x, problem.b, problem.y)

    return by_autograd(loss)


def unrolled(problem: Problem, a: Tensor) -> Tensor:
    """Return the loss of a loop on potentials in units of the cost.

    The update from the modified cost is what such loops are commonly written as.
    """
    C, b = problem.C, problem.b
    f, g = torch.zeros_like(a), torch.zeros_like(b)

    def modified() -> Tensor:
        return (f[..., None] + g[..., None, :] - C) / REG

    for _ in range(N_UNROLLED):
        f = REG * (torch.log(a) - torch.logsumexp(modified(), -1)) + f
        g = REG * (torch.log(b) - torch.logsumexp(modified(), -2)) + g
    return (C * torch.exp(modified())).sum((-2, -1))


def tuned(n_iter: int, chunk: int | None = None) -> Loss:
    """Return the loss of a loop on log-potentials, the logarithms taken before it.

    Chunks of the loop are recomputed in the backward pass, to spare memory.
    """

    def loss(problem: Problem, a: Tensor) -> Tensor:
        inputs = problem.C / -REG, a.log(), problem.b.log()
        u = torch.zeros_like(a)
        if chunk is None:
            u, v = sweep(*inputs, u, n_iter)
        else:
            for _ in range(n_iter // chunk):
                u, v = checkpoint(sweep, *inputs, u, chunk, use_reentrant=False)
        plan = torch.exp(inputs[0] + u[..., None] + v[..., None, :])
        return (problem.C * plan).sum((-2, -1))

    return loss


def sweep(
    logits: Tensor, log_a: Tensor, log_b: Tensor, u: Tensor, n_iter: int
) -> tuple[Tensor, Tensor]:
    """Return the log-potentials after some Sinkhorn iterations."""
    for _ in range(n_iter):
        v = log_b - torch.logsumexp(logits + u[..., None], -2)
        u = log_a - torch.logsumexp(logits + v[..., None, :], -1)
    return u, v


def centred(gradient: Tensor) -> Tensor:
    """Return a gradient on the simplex in float64, of mean 0: a constant is free."""
    gradient = gradient.double()
    return gradient - gradient.mean(-1, keepdim=True)


def relative_error(gradient: Tensor, reference: Tensor) -> float:
    """Return the worst relative L2 error of gradients (..., n); NaN is infinite."""
    reference = centred(reference)
    error = (centred(gradient) - reference).norm(dim=-1) / reference.norm(dim=-1)
    return error.nan_to_num(nan=float("inf")).max().item()


def worst_error(
    outcomes: Iterable[Outcome], reference: Tensor, enough: float = float("inf")
) -> float:
    """Return the worst gradient error, or the first one above `enough`."""
    worst, at = 0.0, 0
    for _, gradient in outcomes:
        gradient = gradient.reshape(-1, gradient.shape[-1])
        expected = reference[at : at + len(gradient)]
        worst, at = max(worst, relative_error(gradient, expected)), at + len(gradient)
        if worst > enough:
            break
    return worst


def unrolled_reference(problem: Problem) -> tuple[Tensor, int]:
    """Return gradients of an unrolled loop, and when they stopped changing.

    They are NaN if they did not.
    """
    n_iter, most = REFERENCE_SWEEPS
    change, before = float("inf"), None
    while change > REFERENCE_CHANGE and n_iter <= most:
        _, gradient = by_autograd(tuned(n_iter, REFERENCE_CHUNK))(problem)
        if before is not None:
            change = relative_error(before, gradient)
        before, n_iter = gradient, 2 * n_iter
    if change > REFERENCE_CHANGE:
        before = torch.full_like(before, float("nan"))
    return before, n_iter // 2


def make_reference(
    epoch: Problem, size: Size
) -> tuple[Tensor, int | None, float | None]:
    """Return converged float64 gradients, and how ours compare to unrolled ones.

    The problems that all contenders solve are unrolled if they are small.
    """
    epoch = epoch.to(torch.float64)
    _, reference = ours(REFERENCE_SOLVER.tol)(epoch)
    if size.rows * size.columns > REFERENCE_ENTRIES:
        return reference, None, None
    some, n_sweeps = unrolled_reference(epoch.first(size.n_problems))
    difference = relative_error(reference[: size.n_problems], some)
    return torch.cat([some, reference[size.n_problems :]]), n_sweeps, difference


def at_equal_error(
    make_method: Callable[[float], Method],
    problems: list[Problem],
    reference: Tensor,
    computes_in: str,
    *,
    seconds: float,
    loosest: float = TOLERANCES[0],
) -> tuple[Contender, bool]:
    """Return a contender at the loosest tolerance that is enough, and if one was.

    If none is, or none was found in time, it is the best that was tried.
    """
    stop = time.perf_counter() + seconds
    tried: list[tuple[float, Contender]] = []
    for tol in (tol for tol in TOLERANCES if tol <= loosest):
        contender = Contender(make_method(tol), problems, computes_in, tol)
        error = worst_error(contender.outcomes(), reference, TARGET)
        if error <= TARGET:
            return contender, True
        tried.append((error, contender))
        if time.perf_counter() > stop:
            break
    return min(tried, key=lambda pair: pair[0])[1], False


def pot_at_equal_error(
    problem: Problem, reference: Tensor, size: Size, device: str
) -> Contender:
    """Return POT's autodiff in the faster of the data types that are enough."""
    found, enough = {}, {}
    loosest = TOLERANCES[0]
    for dtype in (torch.float64, torch.float32):
        problems, name = problem.to(dtype).each(), shown(dtype)
        found[name], is_met = at_equal_error(
            pot,
            problems,
            reference,
            name,
            seconds=size.search_seconds,
            loosest=loosest,
        )
        loosest = found[name].tol  # what is too loose in float64 is so in float32
        if is_met:
            enough[name] = found[name].run
    if len(enough) < 2:
        return found[next(iter(enough), "float64")]
    times = alternate(enough, repeats=3, device=device)
    return found[min(times, key=lambda name: Spread.of(times[name]).median)]


def shown(dtype: torch.dtype) -> str:
    """Return the name of a data type."""
    return str(dtype).removeprefix("torch.")


def make_contenders(
    epoch: Problem, reference: Tensor, size: Size, device: str
) -> dict[str, Contender]:
    """Return all contenders, with the tolerances that the gradient error asks for."""
    several = epoch.first(size.n_problems)
    problems, given = several.each(), shown(several.C.dtype)
    solution = SinkhornSolver().solve(several.C, several.a, several.b, REG)
    inside = shown(solution.plan.dtype)
    search = partial(at_equal_error, ours, seconds=size.search_seconds)
    one_by_one = search(problems, reference, inside)[0]
    autodiff = pot_at_equal_error(several, reference, size, device)
    contenders = {
        OURS: one_by_one,
        OURS_BACKWARD: replace(one_by_one, method=ours_with_graph(one_by_one.tol)),
        BATCHED: search([epoch], reference, inside)[0],
        POT: autodiff,
        POT_LAST: replace(autodiff, method=pot(autodiff.tol, "last_step")),
    }
    if size.has_fixed_loops:
        loops = {
            POT_MANY: pot(0.0, max_iter=N_UNROLLED),
            UNROLLED: by_autograd(unrolled),
            TUNED: by_autograd(tuned(N_UNROLLED)),
        }
        for name, method in loops.items():
            contenders[name] = Contender(method, problems, given)
    if SamplesLoss is not None:
        contenders[GEOMLOSS] = Contender(geomloss(), problems, given)
    return contenders
