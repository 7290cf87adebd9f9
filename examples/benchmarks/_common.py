"""What the benchmarks share: paired timing, the lines they must reach, and records."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import skorch
import torch
from threadpoolctl import threadpool_limits

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise measurements."""
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        """Format as ``median (low-high)``."""
        spec = spec or ".3g"
        return f"{self.median:{spec}} ({self.low:{spec}}–{self.high:{spec}})"


@dataclass(frozen=True)
class Line:
    """A line that a measured ratio has to reach, and whether it did.

    Attributes
    ----------
    name : str
        What is compared.
    value : float
        The median that was measured.
    bound : float
        The line.
    at_least : bool
        Whether more is better; if not, `value` may be `bound` at most.
    """

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the line was reached; never for NaN."""
        if self.at_least:
            return self.value >= self.bound
        return self.value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.is_met else "MISSED"
        return f"{verdict:6} {self.name}: {self.value:.3g} ({sign} {self.bound:g})"


def arguments(description: str) -> argparse.Namespace:
    """Parse ``--short``, ``--device`` and ``--threads``, and set the threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--short",
        action="store_true",
        help="fewer sizes and repeats; printed, not recorded, and no line is enforced",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--threads", type=int, default=2, help="of torch and numpy (default: 2)"
    )
    chosen = parser.parse_args()
    set_threads(chosen.threads)
    return chosen


def set_threads(count: int) -> None:
    """Set the threads of torch and of what numpy and scipy call."""
    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")


def synchronize(device: str) -> None:
    """Wait for a CUDA device to finish what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: str = "cpu") -> float:
    """Return the wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Time several functions in turn, so that all see the machine in the same moods.

    Returns
    -------
    times : dict
        Seconds of each function, one entry per round.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def ratio(times: Mapping[str, list[float]], over: str, under: str) -> Spread:
    """Return the quotient of two functions' times, taken round by round."""
    pairs = zip(times[over], times[under], strict=True)
    return Spread.of([x / y for x, y in pairs])


def about(device: str, packages: Sequence[str] = ()) -> dict[str, str]:
    """Return what a record needs to be read: command, versions, machine and date.

    Parameters
    ----------
    device : str
    packages : sequence of str
        Installed packages whose versions matter too.
    """
    n_threads = torch.get_num_threads()
    threads = f"{n_threads} thread{'s' if n_threads > 1 else ''}"
    where = f"{platform.machine()}, {_processor()}, {threads}"
    if torch.device(device).type == "cuda":
        where += f", {torch.cuda.get_device_name(device)}"
    return {
        "command": "python examples/benchmarks/"
        + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": where,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}, scikit-learn {sklearn.__version__}, "
        f"skorch {skorch.__version__}"
        + "".join(f", {name} {version(name)}" for name in packages),
    }


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for row in info.read_text().splitlines():
            if row.startswith("model name"):
                return row.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def report(
    name: str,
    title: str,
    sections: Mapping[str, str],
    data: object,
    lines: list[Line],
    chosen: argparse.Namespace,
    packages: Sequence[str] = (),
) -> int:
    """Print a benchmark's tables and lines, record them, and return the exit status.

    Parameters
    ----------
    name : str
        File name of the record, without its ending.
    title : str
        Heading of the record.
    sections : mapping
        Headings and their Markdown.
    data : object
        All measurements, for the JSON file.
    lines : list of Line
    chosen : Namespace
        From `arguments`.
    packages : sequence of str
        As in `about`.

    Returns
    -------
    status : int
        1 if a line was missed in a full run, else 0.
    """
    facts = about(chosen.device, packages)
    text = [f"# {title}", "", *(f"- {key}: {value}" for key, value in facts.items())]
    for heading, body in sections.items():
        text += ["", f"## {heading}", "", body]
    if lines:
        text += ["", "## Lines", "", *(f"- {line}" for line in lines)]
    page = "\n".join(text) + "\n"
    print(page)
    if chosen.short:
        return 0
    RESULTS.mkdir(exist_ok=True)
    stem = name if chosen.device == "cpu" else f"{name}_{chosen.device}"
    (RESULTS / f"{stem}.md").write_text(page)
    record = {"about": facts, "lines": [asdict(x) for x in lines], "data": data}
    (RESULTS / f"{stem}.json").write_text(compact_json(record))
    return int(not all(line.is_met for line in lines))


def compact_json(record: object) -> str:
    """Return JSON with a line for each measurement, and six digits of each figure."""
    text = json.dumps(_rounded(record))
    return text.replace("}, {", "},\n{") + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value
