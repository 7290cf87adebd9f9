"""What the tables of errors share: fits that are kept, and figures over the seeds."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import RESULTS, markdown_table, set_threads
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from tqdm.auto import tqdm

from sk_otreweight import compare

KEPT = Path(__file__).parents[1] / "output" / "fits"

Fit = dict[str, Any]


class Draw(NamedTuple):
    """Training, meta and test rows of one seed of a setting."""

    X: Any
    y: np.ndarray
    X_meta: Any
    y_meta: np.ndarray
    X_test: Any
    y_test: np.ndarray


@dataclass(frozen=True)
class Table:
    """Methods that are compared in some settings, on some draws of the data.

    Attributes
    ----------
    name : str
        Of the files that keep its fits.
    settings : sequence of str
    methods : callable
        ``methods(setting)`` returns the estimators by name.
    draw : callable
        ``draw(setting, seed)`` returns a `Draw`.
    net : callable
        ``net(setting)`` returns the net of all methods.
    """

    name: str
    settings: Sequence[str]
    methods: Callable[[str], Mapping[str, BaseEstimator]]
    draw: Callable[[str, int], Draw]
    net: Callable[[str], Any]

    def fits(self, setting: str, seed: int) -> list[Fit]:
        """Return the figures of each method on one draw, those kept as they are."""
        set_threads(1)
        draw = self.draw(setting, seed)
        folder = KEPT / self.name
        folder.mkdir(parents=True, exist_ok=True)
        table = compare(
            self.methods(setting),
            draw.X,
            draw.y,
            draw.X_test,
            draw.y_test,
            meta=(draw.X_meta, draw.y_meta),
            net=self.net(setting),
            seeds=[seed],
            path=folder / f"{setting.replace(' ', '_').replace('/', '-')}_{seed}.jsonl",
            verbose=False,
        )
        return [{"setting": setting, **fit} for fit in table.attrs["fits"]]


def table_arguments(description: str, seeds: int = 5) -> argparse.Namespace:
    """Parse what the scripts have in common, and set the threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--short",
        action="store_true",
        help="one setting, seed and few methods; printed, not recorded",
    )
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="fits at a time, one thread each (default: 2); 1 on a GPU",
    )
    parser.add_argument(
        "--check",
        nargs=3,
        metavar=("SETTING", "METHOD", "SEED"),
        help="fit one cell again, and print it beside what is recorded",
    )
    chosen = parser.parse_args()
    chosen.threads = 1
    set_threads(1)
    return chosen


def run(tables: Sequence[Table], chosen: argparse.Namespace) -> dict[str, list[Fit]]:
    """Return the fits of each table; what was finished before is read from disk."""
    jobs = [
        (table, setting, seed)
        for seed in range(chosen.seeds)  # whole rounds first, should one run be cut
        for table in tables
        for setting in table.settings
    ]
    fits: dict[str, list[Fit]] = {table.name: [] for table in tables}
    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    done = parallel(delayed(table.fits)(*place) for table, *place in jobs)
    for (table, *_), found in zip(jobs, tqdm(done, total=len(jobs)), strict=True):
        fits[table.name] += found
    return fits


def percent(fit: Fit) -> float:
    """Return the balanced error of a fit, in per cent."""
    return 100 * (1 - fit["balanced_accuracy"])


class Errors(NamedTuple):
    """Balanced errors (%) over the seeds."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Errors:
        """Summarise errors; the standard deviation divides by n - 1."""
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values), spread)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}"


def summary(fits: Sequence[Fit]) -> dict[str, dict[str, Errors]]:
    """Return the errors by setting and method; failed fits are left out."""
    values: dict[str, dict[str, list[float]]] = {}
    for fit in fits:
        if "balanced_accuracy" in fit:
            methods = values.setdefault(fit["setting"], {})
            methods.setdefault(fit["method"], []).append(percent(fit))
    return {
        setting: {name: Errors.of(errors) for name, errors in methods.items()}
        for setting, methods in values.items()
    }


def error_table(fits: Sequence[Fit], heading: str = "method") -> str:
    """Return methods by settings in Markdown, the lowest error of each in bold."""
    errors = summary(fits)
    methods = list(dict.fromkeys(fit["method"] for fit in fits))
    lowest = {
        setting: min(own.values(), key=lambda x: x.mean)
        for setting, own in errors.items()
    }
    rows = []
    for method in methods:
        row = [method]
        for setting, own in errors.items():
            text = str(own.get(method, "failed"))
            is_lowest = own.get(method) is lowest[setting]
            row.append(f"**{text}**" if is_lowest else text)
        rows.append(row)
    return markdown_table([heading, *errors], rows)


def failures(fits: Sequence[Fit]) -> str:
    """Return what failed, a line each."""
    failed = [
        f"- {fit['setting']}, {fit['method']}, seed {fit['seed']}: {fit['error']}"
        for fit in fits
        if fit.get("error")
    ]
    return "\n".join(failed) or "none"


def check(tables: Sequence[Table], name: str, chosen: argparse.Namespace) -> int:
    """Fit one cell again, and print its error beside what is recorded.

    Returns
    -------
    status : int
        0 if it lies within a standard deviation of the recorded mean.
    """
    setting, method, seed = chosen.check
    record = json.loads((RESULTS / f"{name}.json").read_text())
    table = next(
        table
        for table in tables
        if setting in table.settings and method in table.methods(setting)
    )
    recorded = summary(record["data"][table.name])[setting][method]
    only = dict(table.methods(setting))
    draw = table.draw(setting, int(seed))
    again = compare(
        {method: only[method]},
        draw.X,
        draw.y,
        draw.X_test,
        draw.y_test,
        meta=(draw.X_meta, draw.y_meta),
        net=table.net(setting),
        seeds=[int(seed)],
        verbose=False,
    )
    error = percent(again.attrs["fits"][0])
    print(f"{setting}, {method}, seed {seed}: {error:.2f} % (recorded: {recorded})")
    return int(abs(error - recorded.mean) > recorded.std)
