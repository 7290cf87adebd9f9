"""Compare ways to compute the transport cost of Eq. 10 and its gradient.

The cost ``<C, T(a)>`` of the entropic plan and its gradient with respect to the row
masses `a`, by this package (one problem per call, with and without a graph, and all
mini-batches of an epoch in one call), POT's ``ot.solve`` (``grad="autodiff"`` and
``"last_step"``), geomloss and plain unrolled loops, on mini-batches that are drawn with
a long tail, so that most lack classes. Every contender with a tolerance gets the
loosest power of ten at which the worst gradient over the problems of a size is within
1e-5 (relative) of a converged float64 reference. Per size: time, in turns in one
process, each turn repeated until it takes 20 ms at least; peak memory and gradient
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
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from _common import (
    Line,
    Spread,
    alternate,
    arguments,
    markdown_table,
    ratio,
    report,
    seconds,
)
from _transport_contenders import (
    BATCHED,
    GRAPH_BYTES,
    MAX_ITER,
    N_UNROLLED,
    OURS,
    POT,
    REFERENCE_CHANGE,
    REFERENCE_SOLVER,
    REG,
    TARGET,
    UNROLLED,
    Contender,
    SamplesLoss,
    geomloss,
    make_contenders,
    make_reference,
    worst_error,
)
from _transport_problems import SHORT_SIZES, SIZES, Problem, Size, make_problems
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROUND_SECONDS = 0.02  # that the passes of a contender take in a round, at least
ENOUGH_SECONDS = 0.2  # of a first pass, after which one pass is a round
LAST_ROUND_SECONDS = 30.0  # after which no further round is begun


@dataclass(frozen=True)
class Result:
    """What was measured of a contender at a size.

    Attributes
    ----------
    computes_in : str
    tol : float or None
    n_passes : int
        Times that a round solves its problems.
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
    n_passes: int
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
    n_rounds : int
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
    n_rounds: int
    over_batched: Spread
    n_sweeps: int | None
    own_difference: float | None
    value_differences: dict[float, float]


def peak_memory(function: Callable[[], object], device: str) -> float:
    """Return the most KiB that a call holds at once, beyond what was there before.

    On a CPU the peaks of torch's tensors and of what Python and numpy allocate are
    taken together, which is never less than the peak of their sum.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1024
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces every profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        tracemalloc.start()
        function()
        _, outside_torch = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return (peak_of_tensors(profiled) + outside_torch) / 1024


def peak_of_tensors(profiled: profile) -> int:
    """Return the most bytes of tensors on the CPU, beyond what was there before."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event for event in events if event["name"] == "[memory]"),
        key=lambda event: event["ts"],
    )
    if not changes:
        return 0
    totals = [event["args"]["Total Allocated"] for event in changes]
    return max(totals) - totals[0] + changes[0]["args"]["Bytes"]


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
        method = geomloss(scaling)
        values = torch.stack([method(problem)[0] for problem in several.each()])
        differences[scaling] = ((values - optimum) / optimum).abs().max().item()
    return differences


def warmed_up(
    contender: Contender, reference: Tensor, device: str
) -> tuple[float, int]:
    """Return the gradient error of a contender, and of how many passes a round is."""
    start = time.perf_counter()
    error = worst_error(contender.outcomes(), reference)
    n_passes = 1
    if time.perf_counter() - start < ENOUGH_SECONDS:
        while seconds(partial(contender.run, n_passes), device) < ROUND_SECONDS:
            n_passes *= 2
    return error, n_passes


def timed_rounds(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Return the seconds of each run, round by round, until there is no time left."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    stop = time.perf_counter() + LAST_ROUND_SECONDS
    for _ in range(rounds):
        for name, values in alternate(runs, repeats=1, warmup=0, device=device).items():
            times[name] += values
        if time.perf_counter() > stop:
            break
    return times


def per_problem(
    rounds: Mapping[str, list[float]],
    contenders: Mapping[str, Contender],
    n_passes: Mapping[str, int],
) -> dict[str, list[float]]:
    """Return the seconds of a problem in each round."""
    solved = {name: n_passes[name] * x.n_problems for name, x in contenders.items()}
    return {
        name: [elapsed / solved[name] for elapsed in times]
        for name, times in rounds.items()
    }


def measure(size: Size, device: str) -> Measurement:
    """Measure all contenders at a size."""
    epoch = make_problems(size, device)
    reference, n_sweeps, difference = make_reference(epoch, size)
    contenders = make_contenders(epoch, reference, size, device)
    errors, n_passes = {}, {}
    for name, contender in contenders.items():
        errors[name], n_passes[name] = warmed_up(contender, reference, device)
    runs = {name: partial(x.run, n_passes[name]) for name, x in contenders.items()}
    rounds = timed_rounds(runs, size.rounds, device)
    times, results = per_problem(rounds, contenders, n_passes), {}
    for name, contender in contenders.items():
        once = partial(contender.method, contender.problems[0])
        share = contender.n_problems / len(contender.problems)
        results[name] = Result(
            contender.computes_in,
            contender.tol,
            n_passes[name],
            Spread.of(times[name]),
            ratio(times, name, OURS),
            peak_memory(once, device) / share,
            errors[name],
        )
    return Measurement(
        results,
        len(times[OURS]),
        ratio(times, POT, BATCHED),
        n_sweeps,
        difference,
        value_differences(epoch, size),
    )


def table(results: Mapping[str, Result]) -> str:
    """Return the table of a size."""
    rows = []
    for name, result in results.items():
        milliseconds = Spread(*(1e3 * value for value in vars(result.seconds).values()))
        mark = "" if result.error <= TARGET else f" (above {TARGET:.0e})"
        rows.append(
            [
                name,
                "–" if result.tol is None else f"{result.tol:.0e}",
                result.computes_in,
                f"{milliseconds}",
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
            f"{size}: {size.n_problems} problems, an epoch is {size.n_epoch}, "
            f"{found.n_rounds} rounds": table(found.results)
            for size, found in measured.items()
        },
        "References": reference_explanation() + "\n\n" + reference_table(measured),
    }


def explanation() -> str:
    """Return what the columns of the tables are."""
    left_out = ", ".join(str(size) for size in SIZES if not size.has_fixed_loops)
    return (
        f"reg = {REG}. Inputs are float32, with masses that sum to 1 exactly; where "
        "*computes in* is float64, POT is given float64 copies outside the timing, and "
        "this package converts inside it. *Time*: cost and gradient in `a`, median "
        "(smallest–largest) over the rounds. In a round each contender in turn solves "
        "all problems, as many times over as it takes to fill "
        f"{1e3 * ROUND_SECONDS:.0f} ms at least, after such a pass to warm up; there "
        f"are fewer rounds where they take more than {LAST_ROUND_SECONDS:.0f} s. "
        "*Time / ours*: over this package one by "
        "one, in the same round; above 1 is slower. This package returns cost and "
        "gradient by `transport_value_and_grad`, where no other function is named; all "
        "others build a graph and go through it backward. *Tolerance*: the loosest "
        f"power of ten with a gradient error of at most {TARGET:.0e} (of the L1 error "
        "of the column sums for this package, of the L2 error for POT, which looks at "
        f"it every tenth iteration), with up to {MAX_ITER} iterations, fewer where the "
        f"graph would take more than {GRAPH_BYTES // 2**30} GiB; `last_step` runs at "
        "the tolerance of autodiff. POT computes in the faster of float32 and float64 "
        "that reaches the error. The unrolled loop updates potentials in units of the "
        "cost from the modified cost, as such loops are commonly written; tuned, it "
        "updates log-potentials and takes the logarithms and `C / reg` once. "
        f"Contenders with {N_UNROLLED} iterations are left out at {left_out}, for the "
        "time they take there. *Gradient error*: relative L2 error after centring, "
        "worst of the problems. *Peak*: memory of the first problem beyond its inputs, "
        "as tensors and (on a CPU) as arrays and Python objects; of an epoch in one "
        "call, divided by its problems. geomloss computes another "
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
    return [
        line for size, found in measured.items() for line in size_lines(size, found)
    ]


def size_lines(size: Size, found: Measurement) -> list[Line]:
    """Return the lines of a size; NaN if our own gradient is not good enough."""
    results = found.results
    pot_error = results[POT].error
    note = "" if pot_error <= TARGET else f" (POT's error: {pot_error:.1e})"
    candidates = [
        (f"{POT} / ours{note}", OURS, results[POT].over_ours, size.over_ours),
        (
            f"{POT} / ours, an epoch in one call{note}",
            BATCHED,
            found.over_batched,
            size.over_batched,
        ),
    ]
    if UNROLLED in results:
        times = results[UNROLLED].over_ours
        candidates.append((f"{UNROLLED} / ours", OURS, times, size.unrolled_over_ours))
    return [
        Line(
            f"{size}: {name}",
            times.median if results[our].error <= TARGET else float("nan"),
            bound,
        )
        for name, our, times, bound in candidates
        if bound is not None
    ]


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
        packages=("POT",) if SamplesLoss is None else ("POT", "geomloss"),
    )


if __name__ == "__main__":
    sys.exit(main())
