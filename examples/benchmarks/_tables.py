"""What the tables of errors share: fits that are kept, and figures over the seeds."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import RESULTS, markdown_table, set_threads
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from sk_otreweight import compare

KEPT = RESULTS / "fits"

Fit = dict[str, Any]


_MADE: dict[tuple[Any, ...], Any] = {}


def once(make: Callable[..., Any], *args: Any) -> Any:
    """Return ``make(*args)``, which is called once in each process.

    The functions of a script cannot go to other processes with a cache of their own.
    """
    key = (make.__module__, make.__qualname__, *args)
    if key not in _MADE:
        _MADE[key] = make(*args)
    return _MADE[key]


class Draw(NamedTuple):
    """Training, meta (None if there are none) and test rows of one draw."""

    X: Any
    y: np.ndarray
    X_meta: Any
    y_meta: np.ndarray | None
    X_test: Any
    y_test: np.ndarray


@dataclass(frozen=True)
class Table:
    """Methods that are compared in some settings, on some draws of the data.

    Attributes
    ----------
    name : str
        Of the folder that keeps its fits.
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

    def fits(self, setting: str, seed: int, *, keep: bool = True) -> list[Fit]:
        """Return the figures of each method on one draw, those kept as they are."""
        return self.fit(self.methods(setting), setting, seed, keep=keep)

    def fit(
        self,
        methods: Mapping[str, BaseEstimator],
        setting: str,
        seed: int,
        *,
        keep: bool = False,
    ) -> list[Fit]:
        """Return the figures of some methods on one draw."""
        use_one_thread()
        draw, net = self.draw(setting, seed), self.net(setting)
        path = self._path(setting, seed) if keep else None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        table = compare(
            methods,
            draw.X,
            draw.y,
            draw.X_test,
            draw.y_test,
            meta=None if draw.y_meta is None else (draw.X_meta, draw.y_meta),
            net=net,
            seeds=[seed],
            path=path,
            verbose=False,
        )
        return [{"setting": setting, **fit} for fit in table.attrs["fits"]]

    def _path(self, setting: str, seed: int) -> Path:
        """Return the file that keeps the fits of one draw."""
        place = re.sub(r"[^\w.-]+", "_", setting)
        return KEPT / self.name / f"{place}_{seed}.jsonl"


def use_one_thread() -> None:
    """Let each process compute on one thread: the processes share the cores."""
    set_threads(1)
    threadpool_limits(1)  # OpenMP, which scikit-learn's trees use, as well as BLAS


def table_arguments(
    description: str,
    seeds: int = 5,
    options: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """Parse what the scripts have in common, and set the threads.

    Parameters
    ----------
    description : str
    seeds : int, default=5
        Of the full form.
    options : mapping, default=None
        Names of further options that take a value, and their help.
    flags : mapping, default=None
        The same for options that take none.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--short",
        action="store_true",
        help="one setting, seed and few methods; printed, neither kept nor recorded",
    )
    parser.add_argument("--seeds", type=int, help=f"default: {seeds}, 1 with --short")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--workers",
        type=int,
        help="draws at a time, one thread each (default: 2; 1 on a GPU or --short)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="forget the fits of earlier runs: they are told apart by their data, net, "
        "parameters and the versions of packages, not by the code that made them",
    )
    parser.add_argument(
        "--check",
        nargs=3,
        metavar=("SETTING", "METHOD", "SEED"),
        help="fit one cell again, and print it beside what is recorded",
    )
    for name, text in (options or {}).items():
        parser.add_argument(f"--{name}", help=text)
    for name, text in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    chosen = parser.parse_args()
    chosen.short = chosen.short or getattr(chosen, "smoke", False)
    if chosen.seeds is None:
        chosen.seeds = 1 if chosen.short else seeds
    if chosen.workers is None:
        chosen.workers = 2 if chosen.device == "cpu" and not chosen.short else 1
    chosen.threads = 1
    use_one_thread()
    return chosen


def kept(
    name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was computed for a key, now or in an earlier run.

    Parameters
    ----------
    name : str
        Of the file.
    key : mapping
        Of what JSON can hold.
    compute : callable
        Returns the figures.
    """
    path = KEPT / f"{name}.jsonl"
    for line in path.read_text().split("\n") if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # empty, or a run was killed while it wrote
            continue
        if entry["key"] == key:
            return entry["figures"]
    figures = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # begins with a new line, should the last be cut off
        file.write("\n" + json.dumps({"key": key, "figures": figures}) + "\n")
    return figures


def forget(name: str, chosen: argparse.Namespace) -> None:
    """With ``--fresh``, remove what `kept` wrote in earlier runs."""
    if chosen.fresh and not chosen.short:
        (KEPT / f"{name}.jsonl").unlink(missing_ok=True)


def run(tables: Sequence[Table], chosen: argparse.Namespace) -> dict[str, list[Fit]]:
    """Return the fits of each table; what was finished before is read from disk."""
    keep = not chosen.short
    if keep and chosen.fresh:
        for table in tables:
            shutil.rmtree(KEPT / table.name, ignore_errors=True)
    jobs = [
        (table, setting, seed)
        for seed in range(chosen.seeds)  # whole rounds first, should one run be cut
        for table in tables
        for setting in table.settings
    ]
    fits: dict[str, list[Fit]] = {table.name: [] for table in tables}
    parallel = Parallel(n_jobs=chosen.workers, return_as="generator")
    done = parallel(delayed(table.fits)(*place, keep=keep) for table, *place in jobs)
    progress = tqdm(done, total=len(jobs), unit="draw")
    for (table, *_), found in zip(jobs, progress, strict=True):
        fits[table.name] += found
    return fits


def percent(fit: Fit, of: str = "balanced_accuracy") -> float:
    """Return an error of a fit, in per cent: what is missing in a figure to 1."""
    return 100 * (1 - fit[of])


class Errors(NamedTuple):
    """Errors (%) over the seeds."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Errors:
        """Summarise errors; the standard deviation divides by n - 1."""
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        return cls(statistics.fmean(values), spread)

    def __str__(self) -> str:
        if np.isnan(self.std):
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {self.std:.1f}"


def errors_by_cell(
    fits: Sequence[Fit], of: str = "balanced_accuracy"
) -> dict[tuple[str, str], list[float]]:
    """Return the errors of the seeds by setting and method; failed fits have none."""
    values: dict[tuple[str, str], list[float]] = {}
    for fit in fits:
        cell = values.setdefault((fit["setting"], fit["method"]), [])
        if of in fit:
            cell.append(percent(fit, of))
    return values


def summary(
    fits: Sequence[Fit], of: str = "balanced_accuracy"
) -> dict[str, dict[str, Errors]]:
    """Return the errors by setting and method; failed fits are left out."""
    found: dict[str, dict[str, Errors]] = {}
    for (setting, method), values in errors_by_cell(fits, of).items():
        methods = found.setdefault(setting, {})
        if values:
            methods[method] = Errors.of(values)
    return found


def error_table(
    fits: Sequence[Fit], heading: str = "method", of: str = "balanced_accuracy"
) -> str:
    """Return methods by settings in Markdown, the lowest error of each in bold.

    Where a method failed, the cell says so, and for how many seeds.

    Parameters
    ----------
    fits : sequence of dict
    heading : str, default="method"
        Of the first column.
    of : str, default="balanced_accuracy"
        The figure whose error is shown.
    """
    errors, cells = summary(fits, of), errors_by_cell(fits, of)
    counts = {
        cell: sum((fit["setting"], fit["method"]) == cell for fit in fits)
        for cell in cells
    }
    rows = []
    for method in dict.fromkeys(fit["method"] for fit in fits):
        row = [method]
        for setting, own in errors.items():
            n_done = len(cells.get((setting, method), []))
            n_failed = counts.get((setting, method), 0) - n_done
            if not n_done:
                row.append("failed" if n_failed else "")
                continue
            text = str(own[method])
            if own[method].mean == min(x.mean for x in own.values()):
                text = f"**{text}**"
            row.append(f"{text} ({n_failed} failed)" if n_failed else text)
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

    Parameters
    ----------
    tables : sequence of Table
    name : str
        Of the record, as given to `report`; its data are the fits of each table.
    chosen : Namespace
        From `table_arguments`.

    Returns
    -------
    status : int
        0 if the error is that of the same seed in the record, give or take a standard
        deviation over the seeds; machines differ in how they round.
    """
    setting, method, seed = chosen.check[0], chosen.check[1], int(chosen.check[2])
    table = _table_of(tables, setting, method)
    before = _recorded(name, chosen.device, table.name, setting, method)
    if seed not in before:
        raise SystemExit(
            f"There is no record of {setting!r}, {method!r} with seed {seed}; those "
            f"that are recorded are {sorted(before)}."
        )
    (again,) = table.fit({method: table.methods(setting)[method]}, setting, seed)
    if "balanced_accuracy" not in again:
        print(f"{setting}, {method}, seed {seed} failed: {again['error']}")
        return 1
    over_seeds = Errors.of(list(before.values()))
    print(
        f"{setting}, {method}, seed {seed}: {percent(again):.2f} % (recorded: "
        f"{before[seed]:.2f} %; over the seeds: {over_seeds})"
    )
    tolerance = 0.0 if np.isnan(over_seeds.std) else over_seeds.std
    return int(not abs(percent(again) - before[seed]) <= tolerance + 1e-9)


def to_record(fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[Fit]]:
    """Return of the fits of each table what is worth a place in the record.

    Seconds are not: fits that share a machine, and may be paused, are no measurement.
    """
    figures = ("balanced_accuracy", "few", "log_loss", "error")
    kept = ("setting", "method", "seed", *figures)
    return {
        table: [{name: fit[name] for name in kept if name in fit} for fit in found]
        for table, found in fits.items()
    }


def _table_of(tables: Sequence[Table], setting: str, method: str) -> Table:
    """Return the table that has a cell."""
    for table in tables:
        if setting in table.settings and method in table.methods(setting):
            return table
    settings = [setting for table in tables for setting in table.settings]
    raise SystemExit(
        f"There is no cell {setting!r}, {method!r}; the settings are {settings}."
    )


def _recorded(
    name: str, device: str, table: str, setting: str, method: str
) -> dict[int, float]:
    """Return the recorded errors of a cell by seed."""
    stem = name if device == "cpu" else f"{name}_{device}"
    record = json.loads((RESULTS / f"{stem}.json").read_text())
    return {
        fit["seed"]: percent(fit)
        for fit in record["data"][table]
        if (fit["setting"], fit["method"]) == (setting, method)
        and "balanced_accuracy" in fit
    }
