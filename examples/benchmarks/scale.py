"""Time and working memory as the rows N and the classes K grow.

Two ways to the weights of N training rows, with the combined cost, 64 features and ten
meta rows per class:

- closed form: ``Reweighter("combined", "semirelaxed")`` given the meta rows and the
  training set;
- weight vector: one epoch of batch problems of 128 rows each, with all prototypes or,
  for thousands of classes, with some of them drawn for each batch.

Labels are long-tailed. Each case runs in a process of its own, because the peak memory
of a process is never taken back. Working memory is the growth of that peak, in the
first run, over what imports, a tiny problem solved before, and the inputs take; on
CUDA, the peak of the allocated memory over the inputs. Short cases are run several
times, in three rounds over all of them, as a machine is not equally fast all the time;
long ones once. Exponents are slopes of log(time or memory) against log(size) over all
sizes of a series.

Run ``python examples/benchmarks/scale.py`` for the record in ``results/``, with
``--short`` for small sizes, printed only, and with ``--device cuda`` on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from _common import (
    Line,
    Spread,
    arguments,
    markdown_table,
    report,
    seconds,
    set_threads,
)
from torch import Tensor

from sk_otreweight import PrototypeMetaSet, Reweighter

N_FEATURES = 64
META_PER_CLASS = 10
IMBALANCE_FACTOR = 100
BATCH_SIZE = 128

# Rounds over the cases, and runs of a case in each: so many at most, and none after so
# many seconds, nor another round.
ROUNDS = 3
MOST_REPEATS = 5
ENOUGH_SECONDS = 4.0

MANY_CLASSES = 8142  # of iNaturalist 2018
NAMES = {"semirelaxed": "closed form", "vector": "weight vector"}


@dataclass(frozen=True)
class Case:
    """What is measured in one process; `n_prototypes` None stands for all."""

    weights: str
    n_rows: int
    n_classes: int
    n_prototypes: int | None = None
    device: str = "cpu"
    threads: int = 2

    @property
    def form(self) -> str:
        """Which prototypes are used."""
        if self.n_prototypes is None:
            return "all prototypes"
        return f"{self.n_prototypes} prototypes per batch"

    def __str__(self) -> str:
        size = f"N = {self.n_rows:,}, K = {self.n_classes:,}"
        return f"{NAMES[self.weights]}, {size}, {self.form}"


@dataclass(frozen=True)
class Result:
    """Seconds of each run, peak memory beyond the inputs in bytes, and checks.

    `is_valid` says whether all weights are finite and their mean is 1, `unconverged`
    how many transport problems were left above the solver's tolerance.
    """

    seconds: list[float]
    memory: float
    is_valid: bool
    unconverged: int

    @classmethod
    def missing(cls) -> Result:
        """Stand for a case that did not run to its end."""
        return cls([math.nan], math.nan, False, 0)

    def joined(self, other: Result) -> Result:
        """Return the results of two rounds as one."""
        return Result(
            self.seconds + other.seconds,
            max(self.memory, other.memory),
            self.is_valid and other.is_valid,
            max(self.unconverged, other.unconverged),
        )


@dataclass(frozen=True)
class Inputs:
    """Training rows, meta rows and the row numbers of the batches of an epoch."""

    labels: Tensor
    features: Tensor
    meta_labels: Tensor
    meta_features: Tensor
    batches: tuple[Tensor, ...]

    @classmethod
    def draw(cls, case: Case) -> Inputs:
        """Draw rows around random class centres, and shuffle them into batches."""
        labels = long_tailed_labels(case.n_rows, case.n_classes).to(case.device)
        meta_labels = torch.arange(case.n_classes).repeat_interleave(META_PER_CLASS)
        meta_labels = meta_labels.to(case.device)
        generator = torch.Generator(case.device).manual_seed(0)
        centres = torch.empty(case.n_classes, N_FEATURES, device=case.device)
        centres.normal_(generator=generator)
        features = features_around(centres, labels, generator)
        meta_features = features_around(centres, meta_labels, generator)
        order = torch.randperm(case.n_rows, generator=torch.Generator().manual_seed(1))
        batches = order.to(case.device).split(BATCH_SIZE)
        return cls(labels, features, meta_labels, meta_features, batches)


def long_tailed_labels(n_rows: int, n_classes: int) -> Tensor:
    """Return shuffled labels of exponentially decreasing frequency, one of each first.

    There must be a row for each class at least.
    """
    rank = torch.arange(n_classes, dtype=torch.float64)
    share = IMBALANCE_FACTOR ** (-rank / max(n_classes - 1, 1))
    ends = ((n_rows - n_classes) * share.cumsum(0) / share.sum()).round().long()
    counts = 1 + ends.diff(prepend=ends.new_zeros(1))
    labels = torch.arange(n_classes).repeat_interleave(counts)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))
    return labels[order]


def features_around(
    centres: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Return float32 features (n, d), filled block by block to spare the memory."""
    features = torch.empty(len(labels), centres.shape[1], device=centres.device)
    for rows, classes in zip(features.split(2**12), labels.split(2**12), strict=True):
        rows.normal_(generator=generator).add_(centres[classes])
    return features


def start(reweighter: Reweighter, inputs: Inputs) -> None:
    """Set meta rows and training rows; solves the closed form."""
    reweighter.set_meta(inputs.meta_labels, inputs.meta_features)
    reweighter.set_training_set(inputs.labels, inputs.features)


def prepare(case: Case, inputs: Inputs) -> tuple[Reweighter, Callable[[], None]]:
    """Return a new reweighter and what is timed of its work."""
    meta_set = PrototypeMetaSet(META_PER_CLASS, n_prototypes=case.n_prototypes)
    reweighter = Reweighter("combined", case.weights, meta_set)
    if reweighter.solves_training_set:
        return reweighter, partial(start, reweighter, inputs)
    start(reweighter, inputs)
    return reweighter, partial(reweighter.update_epoch, inputs.features, inputs.batches)


def timed_run(case: Case, inputs: Inputs) -> tuple[Reweighter, float]:
    """Return a reweighter that has found its weights, and the seconds it took."""
    reweighter, work = prepare(case, inputs)
    return reweighter, seconds(work, case.device)


def measure(case: Case) -> Result:
    """Measure a case in this process."""
    set_threads(case.threads)
    tiny = replace(case, n_rows=2 * BATCH_SIZE, n_classes=8)
    timed_run(tiny, Inputs.draw(tiny))
    inputs = Inputs.draw(case)
    before = peak_memory(case.device, reset=True)
    reweighter, elapsed = timed_run(case, inputs)
    memory = peak_memory(case.device) - before
    times = [elapsed]
    while len(times) < MOST_REPEATS and sum(times) < ENOUGH_SECONDS:
        times.append(timed_run(case, inputs)[1])
    weights = reweighter.weights(None, inputs.labels, record=False).double()
    is_valid = bool(weights.isfinite().all()) and abs(weights.mean().item() - 1) < 1e-4
    return Result(times, memory, is_valid, reweighter.unconverged_)


def peak_memory(device: str, *, reset: bool = False) -> int:
    """Return the most bytes held so far: of the process, or allocated on CUDA.

    Only CUDA's peak can be set back to what is held now.
    """
    if torch.device(device).type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_apart(case: Case) -> Result:
    """Measure a case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return Result.missing()
    return Result(**json.loads(done.stdout))


def all_series(chosen: argparse.Namespace) -> dict[tuple[str, str], list[Case]]:
    """Return the cases along N and K of each way to the weights."""
    if chosen.short:
        rows, classes = (1280, 12_800), (10, 100)
        k_closed, n_closed, n_vector = 100, 12_800, 1280
    else:
        rows = (10_000, 100_000, 300_000, 1_000_000)
        classes = (10, 100, 1000, MANY_CLASSES)
        k_closed, n_closed, n_vector = 100, 100_000, 100 * BATCH_SIZE
    place = {"device": chosen.device, "threads": chosen.threads}
    closed = partial(Case, "semirelaxed", **place)
    vector = partial(Case, "vector", **place)
    return {
        ("semirelaxed", "N"): [closed(n, k_closed) for n in rows],
        ("semirelaxed", "K"): [closed(n_closed, k) for k in classes],
        ("vector", "N"): [vector(n, 10) for n in rows],
        ("vector", "K"): [vector(n_vector, k) for k in classes],
    }


def single_cases(chosen: argparse.Namespace) -> dict[str, Case]:
    """Return the cases beside the series: a large one, and prototypes in batches."""
    place = {"device": chosen.device, "threads": chosen.threads}
    if chosen.short:
        return {"drawn": Case("vector", 1280, 100, 16, **place)}
    return {
        "large": Case("semirelaxed", 1_000_000, 1000, **place),
        "drawn": Case("vector", 100 * BATCH_SIZE, MANY_CLASSES, 256, **place),
    }


def measure_all(cases: list[Case]) -> dict[Case, Result]:
    """Measure each case, in rounds, and say how far it is."""
    results: dict[Case, Result] = {}
    for _ in range(ROUNDS):
        for case in dict.fromkeys(cases):
            before = results.get(case)
            if before is not None and max(before.seconds) > ENOUGH_SECONDS:
                continue
            result = measure_apart(case)
            results[case] = result if before is None else before.joined(result)
            print(f"{case}: {Spread.of(results[case].seconds)} s", file=sys.stderr)
    return results


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of log(value) against log(size); NaN if a value is missing."""
    if not all(value > 0 for value in values):
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(
    along: str, cases: list[Case], results: dict[Case, Result]
) -> tuple[float, float]:
    """Return the exponents of time and of memory along N or K, cases in order."""
    sizes = [case.n_rows if along == "N" else case.n_classes for case in cases]
    times = [Spread.of(results[case].seconds).median for case in cases]
    memory = [results[case].memory for case in cases]
    return exponent(sizes, times), exponent(sizes, memory)


def measurement_table(results: dict[Case, Result]) -> str:
    """Return all measurements."""
    header = ["case", "N", "K", "form", "runs", "seconds (min–max)"]
    header += ["working memory, MB", "unconverged problems"]
    rows = [
        [
            NAMES[case.weights],
            f"{case.n_rows:,}",
            f"{case.n_classes:,}",
            case.form,
            str(len(result.seconds)),
            f"{Spread.of(result.seconds)}",
            f"{result.memory / 1e6:.1f}",
            str(result.unconverged) if case.weights == "vector" else "–",
        ]
        for case, result in results.items()
    ]
    return markdown_table(header, rows)


def exponent_table(
    series: dict[tuple[str, str], list[Case]],
    fitted: dict[tuple[str, str], tuple[float, float]],
) -> str:
    """Return the fitted exponents and the sizes they were fitted to.

    A dash stands for measurements of zero, such as memory that never grew.
    """
    rows = []
    for (weights, along), (time, memory) in fitted.items():
        used = series[weights, along]
        ends = [case.n_rows if along == "N" else case.n_classes for case in used]
        span = f"{along} = {ends[0]:,} … {ends[-1]:,}"
        slopes = ["–" if math.isnan(x) else f"{x:.2f}" for x in (time, memory)]
        rows.append([NAMES[weights], span, *slopes])
    return markdown_table(["case", "over", "time", "working memory"], rows)


def exponent_lines(
    fitted: dict[tuple[str, str], tuple[float, float]],
) -> list[Line]:
    """Return the lines of the growth with N."""
    return [
        Line(f"{NAMES[weights]}, exponent of the time in N", time, 1.05, at_least=False)
        for (weights, along), (time, _) in fitted.items()
        if along == "N"
    ]


def large_lines(large: Case, results: dict[Case, Result]) -> list[Line]:
    """Return the lines of the large case and of the cases with many classes."""
    result = results[large]
    elapsed = Spread.of(result.seconds).median
    lines = [
        Line(f"{large}: seconds", elapsed, 60, at_least=False),
        Line(f"{large}: working memory, GB", result.memory / 1e9, 1, at_least=False),
    ]
    return lines + [
        Line(f"{case}: ran, weights finite with mean 1", float(result.is_valid), 1)
        for case, result in results.items()
        if case.n_classes == MANY_CLASSES
    ]


def main() -> int:
    """Measure all cases and report them."""
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[2]))))))
        return 0
    chosen = arguments(__doc__.splitlines()[0])
    series, singles = all_series(chosen), single_cases(chosen)
    cases = [case for some in series.values() for case in some]
    results = measure_all(cases + list(singles.values()))
    fitted = {key: exponents(key[1], some, results) for key, some in series.items()}
    lines = exponent_lines(fitted)
    if "large" in singles:
        lines += large_lines(singles["large"], results)
    sections = {
        "Measurements": measurement_table(results),
        "Fitted exponents": exponent_table(series, fitted),
    }
    data = [asdict(case) | asdict(result) for case, result in results.items()]
    return report(
        "scale", "Growth with rows and classes", sections, data, lines, chosen
    )


if __name__ == "__main__":
    sys.exit(main())
