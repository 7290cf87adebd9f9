"""Compare ways to compute the transport cost of Eq. 10 and its gradient.

The cost ``<C, T(a)>`` of the entropic plan and its gradient with respect to the row
masses `a`, by this package (one problem per call, and all mini-batches of an epoch in
one call), POT's ``ot.solve`` (``grad="autodiff"`` and ``"last_step"``), geomloss and a
plain unrolled loop, on mini-batches that are drawn with a long tail, so that most lack
classes. Every contender with a tolerance gets the loosest power of ten at which the
worst gradient over the problems of a size is within 1e-5 (relative) of a converged
float64 reference. Per size: time, in turns in one process, peak memory and gradient
error. geomloss is optional (``pip install geomloss``).

    python examples/benchmarks/transport.py                 # all sizes, with the lines
    python examples/benchmarks/transport.py --short         # three sizes, under 40 s
    python examples/benchmarks/transport.py --device cuda   # the ratios, no lines
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import ot
import torch
from _common import Line, Spread, alternate, arguments, markdown_table, ratio, report
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from sk_otreweight import CombinedCost, SinkhornSolver, transport_cost

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

# Class centres in d dimensions, spread of the rows around them, and the long tail.
N_FEATURES, NOISE, IMBALANCE, META_PER_CLASS = 64, 0.7, 100.0, 10
A_SPREAD = 0.3  # standard deviation of the log-masses
MASS_UNITS = 2**24  # so many are exact in float32

OURS = "sk_otreweight, one by one"
BATCHED = "sk_otreweight, an epoch in one call"
POT = "POT autodiff"
POT_MANY = f"POT autodiff, {N_UNROLLED} iterations"
POT_LAST = "POT last_step"
GEOMLOSS = "geomloss"
UNROLLED = f"unrolled loop, {N_UNROLLED} iterations"


@dataclass(frozen=True)
class Size:
    """Rows and columns of the problems, how many there are, and the lines.

    Attributes
    ----------
    rows, columns : int
    n_problems : int
        Problems that all contenders solve in a round.
    n_epoch : int
        Problems that are solved in one call.
    rounds : int
    over_ours : float or None
        Line for the time of POT's autodiff over ours, one by one.
    over_batched : float or None
        Line for the time of POT's autodiff over ours per problem of an epoch.
    unrolled_over_ours : float or None
        Line for the time of the unrolled loop over ours, one by one.
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
    Size(512, 1000, 2, 8, 3, search_seconds=30.0),
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


Loss = Callable[[Problem, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A way to compute the loss, with its problems and settings.

    Attributes
    ----------
    loss : callable
        ``loss(problem, a)`` returns the cost, differentiable in `a`.
    problems : list of Problem
        What it solves in a round, in the data type it is given.
    computes_in : str
    tol : float or None
    """

    loss: Loss
    problems: list[Problem]
    computes_in: str
    tol: float | None = None

    @property
    def n_problems(self) -> int:
        """Problems in a round: more than calls if they are solved together."""
        return sum(problem.a.shape[:-1].numel() for problem in self.problems)

    def run(self) -> list[tuple[Tensor, Tensor]]:
        """Return loss and gradient of all problems."""
        return [loss_and_gradient(self.loss, problem) for problem in self.problems]


@dataclass(frozen=True)
class Result:
    """What was measured of a contender at a size.

    Attributes
    ----------
    computes_in : str
    tol : float or None
    seconds : Spread
        Per problem.
    over_ours : Spread
        Its time over ours, one by one.
    peak_kib : float
        Peak memory of the first problem; a share of it if all are solved together.
    error : float
        Worst relative error of the gradient.
    """

    computes_in: str
    tol: float | None
    seconds: Spread
    over_ours: Spread
    peak_kib: float
    error: float


@dataclass(frozen=True)
class Measurement:
    """What was measured at a size.

    Attributes
    ----------
    results : dict of Result
    over_batched : Spread
        Time of POT's autodiff over ours per problem of an epoch.
    n_sweeps : int or None
        Sweeps of the unrolled reference.
    own_difference : float or None
        Worst relative difference between our gradient in float64 and that reference.
    value_differences : dict
        Relative difference of geomloss's values from the entropic optimum, by scaling.
    """

    results: dict[str, Result]
    over_batched: Spread
    n_sweeps: int | None
    own_difference: float | None
    value_differences: dict[float, float]


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


def ours(tol: float) -> Loss:
    """Return this package's loss."""
    solver = SinkhornSolver(max_iter=MAX_ITER, tol=tol)

    def loss(problem: Problem, a: Tensor) -> Tensor:
        return transport_cost(problem.C, a, problem.b, REG, solver=solver)

    return loss


def pot(tol: float, grad: str = "autodiff", max_iter: int | None = None) -> Loss:
    """Return POT's loss; by default with as many iterations as the memory allows."""

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

    return loss


def most_iterations(C: Tensor) -> int:
    """Return how many iterations can be unrolled without running out of memory."""
    # An iteration keeps a matrix for either update, every tenth two more.
    return min(MAX_ITER, GRAPH_BYTES // (3 * C.numel() * C.element_size()))


def geomloss(scaling: float = 0.5) -> Loss:
    """Return geomloss's value, that of the dual problem."""
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

    return loss


def sweep(
    logits: Tensor, log_a: Tensor, log_b: Tensor, u: Tensor, n_iter: int
) -> tuple[Tensor, Tensor]:
    """Return the log-potentials after some Sinkhorn iterations."""
    for _ in range(n_iter):
        v = log_b - torch.logsumexp(logits + u[..., None], -2)
        u = log_a - torch.logsumexp(logits + v[..., None, :], -1)
    return u, v


def unrolled(n_iter: int, chunk: int | None = None) -> Loss:
    """Return the loss of an unrolled loop; chunks are recomputed to spare memory."""

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


def loss_and_gradient(loss: Loss, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient in `a`, of mean 0: a constant is free."""
    a = problem.a.detach().requires_grad_()
    value = loss(problem, a)
    (grad,) = torch.autograd.grad(value.sum(), a)
    return value.detach(), grad - grad.mean(-1, keepdim=True)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the worst relative L2 error along the last dimension; NaN is infinite."""
    difference = (value.double() - reference).norm(dim=-1)
    error = difference / reference.norm(dim=-1)
    return error.nan_to_num(nan=float("inf")).max().item()


def unrolled_reference(problem: Problem) -> tuple[Tensor, int]:
    """Return gradients of an unrolled loop, and when they stopped changing.

    They are NaN if they did not.
    """
    n_iter, most = REFERENCE_SWEEPS
    change, before = float("inf"), None
    while change > REFERENCE_CHANGE and n_iter <= most:
        _, gradient = loss_and_gradient(unrolled(n_iter, REFERENCE_CHUNK), problem)
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
    _, reference = loss_and_gradient(ours(REFERENCE_SOLVER.tol), epoch)
    if size.rows * size.columns > REFERENCE_ENTRIES:
        return reference, None, None
    some, n_sweeps = unrolled_reference(epoch.first(size.n_problems))
    difference = relative_error(reference[: size.n_problems], some)
    return torch.cat([some, reference[size.n_problems :]]), n_sweeps, difference


def worst_error(
    contender: Contender, reference: Tensor, enough: float = float("inf")
) -> float:
    """Return the worst gradient error, or the first one above `enough`."""
    worst, at = 0.0, 0
    for problem in contender.problems:
        _, gradient = loss_and_gradient(contender.loss, problem)
        n_rows = gradient.shape[-1]
        gradient = gradient.reshape(-1, n_rows)
        expected = reference[at : at + len(gradient)]
        worst, at = max(worst, relative_error(gradient, expected)), at + len(gradient)
        if worst > enough:
            break
    return worst


def at_equal_error(
    make_loss: Callable[[float], Loss],
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
        contender = Contender(make_loss(tol), problems, computes_in, tol)
        error = worst_error(contender, reference, TARGET)
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
    autodiff = pot_at_equal_error(several, reference, size, device)
    last_step = pot(autodiff.tol, "last_step")
    contenders = {
        OURS: search(problems, reference, inside)[0],
        BATCHED: search([epoch], reference, inside)[0],
        POT: autodiff,
        POT_LAST: replace(autodiff, loss=last_step),
        POT_MANY: Contender(pot(0.0, max_iter=N_UNROLLED), problems, given),
        UNROLLED: Contender(unrolled(N_UNROLLED), problems, given),
    }
    if SamplesLoss is not None:
        contenders[GEOMLOSS] = Contender(geomloss(), problems, given)
    return contenders


def peak_memory(function: Callable[[], object], device: str) -> float:
    """Return the most KiB that a call holds at once, beyond what was there before."""
    function()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1024
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces every profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event for event in events if event["name"] == "[memory]"),
        key=lambda event: event["ts"],
    )
    totals = [event["args"]["Total Allocated"] for event in changes]
    before = totals[0] - changes[0]["args"]["Bytes"]
    return (max(totals) - before) / 1024


def value_differences(epoch: Problem, size: Size) -> dict[float, float]:
    """Return how far geomloss's values are from the entropic optimum, by scaling."""
    if SamplesLoss is None:
        return {}
    several = epoch.first(size.n_problems).to(torch.float64)
    solution = REFERENCE_SOLVER.solve(several.C, several.a, several.b, REG)
    plan, product = solution.plan, several.a[..., None] * several.b
    entropy = torch.xlogy(plan, plan / product).sum((-2, -1))
    optimum = (several.C * plan).sum((-2, -1)) + REG * entropy
    differences = {}
    for scaling in (0.5, 0.99):
        loss = geomloss(scaling)
        values = torch.stack([loss(x, x.a) for x in several.each()])
        differences[scaling] = ((values - optimum) / optimum).abs().max().item()
    return differences


def measure(size: Size, device: str) -> Measurement:
    """Measure all contenders at a size."""
    epoch = make_problems(size, device)
    reference, n_sweeps, difference = make_reference(epoch, size)
    contenders = make_contenders(epoch, reference, size, device)
    runs = {name: contender.run for name, contender in contenders.items()}
    rounds = alternate(runs, repeats=size.rounds, device=device)
    times = {
        name: [seconds / contenders[name].n_problems for seconds in values]
        for name, values in rounds.items()
    }
    results = {}
    for name, contender in contenders.items():
        once = partial(loss_and_gradient, contender.loss, contender.problems[0])
        share = contender.n_problems / len(contender.problems)
        results[name] = Result(
            contender.computes_in,
            contender.tol,
            Spread.of(times[name]),
            ratio(times, name, OURS),
            peak_memory(once, device) / share,
            worst_error(contender, reference),
        )
    return Measurement(
        results,
        ratio(times, POT, BATCHED),
        n_sweeps,
        difference,
        value_differences(epoch, size),
    )


def table(results: Mapping[str, Result]) -> str:
    """Return the table of a size."""
    rows = []
    for name, result in results.items():
        per_problem = Spread(*(1e3 * value for value in vars(result.seconds).values()))
        mark = "" if result.error <= TARGET else f" (above {TARGET:.0e})"
        rows.append(
            [
                name,
                "–" if result.tol is None else f"{result.tol:.0e}",
                result.computes_in,
                f"{per_problem}",
                f"{result.over_ours}",
                f"{result.peak_kib:,.0f}",
                f"{result.error:.1e}{mark}",
            ]
        )
    header = ["", "tolerance", "computes in", "ms per problem", "time / ours"]
    return markdown_table([*header, "peak KiB", "gradient error"], rows)


def reference_table(measured: Mapping[Size, Measurement]) -> str:
    """Return how the references were checked."""
    rows = [
        [
            str(size),
            "ours" if found.n_sweeps is None else f"{found.n_sweeps:,} sweeps",
            "–" if found.own_difference is None else f"{found.own_difference:.1e}",
            *(f"{value:.1e}" for value in found.value_differences.values()),
        ]
        for size, found in measured.items()
    ]
    header = ["", "reference", "ours in float64 against unrolled"]
    if SamplesLoss is not None:
        header += ["geomloss's value, scaling 0.5", "scaling 0.99"]
    return markdown_table(header, rows)


def sections(measured: Mapping[Size, Measurement]) -> dict[str, str]:
    """Return the headings and texts of the record."""
    return {
        "How to read the tables": explanation(),
        **{
            f"{size}: {size.n_problems} problems a round, an epoch is {size.n_epoch}": (
                table(found.results)
            )
            for size, found in measured.items()
        },
        "References": reference_explanation() + "\n\n" + reference_table(measured),
    }


def explanation() -> str:
    """Return what the columns of the tables are."""
    installed = f"POT {version('POT')}"
    if SamplesLoss is not None:
        installed += f", geomloss {version('geomloss')}"
    return (
        f"{installed}; reg = {REG}. Inputs are float32, with masses that sum to 1 "
        "exactly; where *computes in* is "
        "float64, POT is given float64 copies outside the timing, and this package "
        "converts inside it. *Time*: loss and gradient in `a`, median "
        "(smallest–largest) over the rounds. *Time / ours*: over this package one by "
        "one, in the same round; above 1 is slower. *Tolerance*: the loosest power of "
        f"ten with a gradient error of at most {TARGET:.0e} (of the L1 error of the "
        "column sums for this package, of the L2 error for POT, which looks at it "
        f"every tenth iteration), with up to {MAX_ITER} iterations, fewer where the "
        f"graph would take more than {GRAPH_BYTES // 2**30} GiB; `last_step` runs at "
        "the tolerance of autodiff. POT computes in the faster of float32 and float64 "
        "that reaches the error. *Gradient error*: relative L2 error after centring, "
        "worst of the problems. *Peak*: memory of the first problem beyond its inputs; "
        "of an epoch in one call, divided by its problems. geomloss computes another "
        "function, the value of the dual with the entropy, whose gradient in `a` is "
        "the dual potential: its *gradient error* against `<C, T>` is large for that "
        "reason; it gets points instead of a cost matrix and stops by its schedule "
        "(`scaling` 0.5, the default)."
    )


def reference_explanation() -> str:
    """Return how the references were made."""
    return (
        "Gradients of small problems are compared to a float64 loop, unrolled with "
        "twice as many sweeps until the gradient changes by less than "
        f"{REFERENCE_CHANGE:.0e}; of larger ones, and of the further problems of an "
        "epoch, to this package in float64 with tolerance "
        f"{REFERENCE_SOLVER.tol:.0e}. geomloss's value is compared to "
        "`<C, T> + reg KL(T | a b')`, which it is if blur is the root of reg."
    )


def lines(measured: Mapping[Size, Measurement]) -> list[Line]:
    """Return the lines of the sizes that were measured."""
    found = []
    for size, measurement in measured.items():
        results = measurement.results
        one_by_one, batched = results[OURS], results[BATCHED]
        pot_error = results[POT].error
        note = "" if pot_error <= TARGET else f" (POT's error: {pot_error:.1e})"
        candidates = [
            (f"{POT} / ours", one_by_one, results[POT].over_ours, size.over_ours),
            (
                f"{POT} / ours, an epoch in one call",
                batched,
                measurement.over_batched,
                size.over_batched,
            ),
            (
                f"{UNROLLED} / ours",
                one_by_one,
                results[UNROLLED].over_ours,
                size.unrolled_over_ours,
            ),
        ]
        for name, our_result, times, bound in candidates:
            if bound is not None:
                value = times.median if our_result.error <= TARGET else float("nan")
                found.append(Line(f"{size}: {name}{note}", value, bound))
    return found


def run(chosen: argparse.Namespace) -> dict[Size, Measurement]:
    """Measure all sizes, saying which one is on."""
    measured = {}
    for size in SHORT_SIZES if chosen.short else SIZES:
        start = time.perf_counter()
        measured[size] = measure(size, chosen.device)
        print(f"{size}: {time.perf_counter() - start:.0f} s", flush=True)
    return measured


def main() -> int:
    """Measure, print and record; return 1 if a line is missed."""
    chosen = arguments(__doc__.splitlines()[0])
    # The gradient error says what became of runs that stop before their tolerance.
    warnings.filterwarnings("ignore", message="Sinkhorn")
    if SamplesLoss is None:
        print("geomloss is not installed, so it is left out: pip install geomloss")
    measured = run(chosen)
    return report(
        "transport",
        "Transport cost and gradient",
        sections(measured),
        {str(size): asdict(found) for size, found in measured.items()},
        lines(measured) if torch.device(chosen.device).type == "cpu" else [],
        chosen,
    )


if __name__ == "__main__":
    sys.exit(main())
