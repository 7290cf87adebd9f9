"""Many methods on the same data, with the same net."""

from __future__ import annotations

import copy
import inspect
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score, log_loss
from torch import Tensor
from tqdm.auto import tqdm

from sk_otreweight._validation import check_compared, check_seeds
from sk_otreweight.base import BaseReweightedClassifier
from sk_otreweight.baselines import BASELINES, CrossEntropyClassifier
from sk_otreweight.fingerprint import data_digest, settings, versions
from sk_otreweight.metrics import (
    class_recall,
    expected_calibration_error,
    many_medium_few_recall,
)

Cell = dict[str, Any]


def compare(
    estimators: Iterable[str | BaseEstimator] | Mapping[str, BaseEstimator],
    X: Any,
    y: Any,
    X_test: Any,
    y_test: Any,
    *,
    meta: Any = None,
    net: Any = None,
    seeds: int | Sequence[int] = 5,
    thresholds: tuple[float, float] = (20, 100),
    by: str = "count",
    path: Any = None,
    verbose: bool = True,
) -> Any:
    """Fit methods side by side and tell how they do on test data.

    All see the same data, net, epochs and seeds. A net that several methods begin with,
    trained as it is configured, is trained once for each seed; its time is counted for
    all of them.

    Parameters
    ----------
    estimators : list of str or classifier, or mapping of names to these
        Names of :data:`BASELINES`, or classifiers: those of this package, or any of
        scikit-learn's kind. Those whose `fit` takes ``meta`` are given the meta rows.
    X, y : inputs and labels of the training
    X_test, y_test : inputs and labels of the test
        Looked at by nobody but the metrics.
    meta : tuple (X_meta, y_meta) or Dataset, default=None
        For the methods that take meta rows.
    net : skorch net, nn.Module class or instance, or None, default=None
        The net of all methods of this package that have none of their own.
    seeds : int or sequence of int, default=5
        How many fits of each method, or their values of `random_state`.
    thresholds, by
        Which classes have many and which few rows, as in
        :func:`many_medium_few_recall`.
    path : path, default=None
        File that keeps what is finished, one line of JSON for each fit: called again
        with the same arguments, only what is missing is fitted. Fits of other versions
        of this package, torch or skorch count as missing, and stay in the file. Data
        sets of torch are told apart by their class and length alone.
    verbose : bool, default=True
        Show a progress bar.

    Returns
    -------
    table : DataFrame
        A row for each method; columns ``(figure, "mean")`` and ``(figure, "std")`` over
        the seeds (the standard deviation divides by n - 1) of

        - ``balanced_accuracy``, ``many``, ``medium``, ``few``, and ``recall_<class>``;
        - ``log_loss`` and ``ece``, the expected calibration error;
        - ``fit_time`` in seconds, and ``time_ratio`` to plain training of the same
          number of epochs;

        and ``error``, the message if the method failed. ``table.attrs["fits"]`` lists
        the figures of each fit.

    Raises
    ------
    ValueError
        If a name is not known, or two methods have the same.
    ImportError
        If pandas is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sk_otreweight import OTReweightedClassifier, compare, make_long_tailed
    >>> X, y = load_digits(return_X_y=True)
    >>> X, X_test, y, y_test = train_test_split(X / 16, y, random_state=0)
    >>> data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)
    >>> table = compare(
    ...     ["ce", "logit_adjustment_posthoc", OTReweightedClassifier()],
    ...     data.X, data.y, X_test, y_test,
    ...     meta=(data.X_meta, data.y_meta), seeds=1, verbose=False,
    ... )
    >>> list(table.index)
    ['ce', 'logit_adjustment_posthoc', 'OTReweightedClassifier']
    """
    pd = _pandas()
    named = _named(estimators)
    seeds = check_seeds(seeds)
    bench = _Bench(X, y, X_test, y_test, meta, net, thresholds, by)
    store = _Store(path, bench.fingerprint())
    cells = []
    jobs = [(name, seed) for seed in seeds for name in named]
    for name, seed in tqdm(jobs, disable=not verbose, unit="fit"):
        estimator = named[name]
        cell = store.find(name, estimator, seed)
        if cell is None:
            cell = bench.cell(name, estimator, seed)
            store.keep(cell, estimator)
        cells.append(cell)
    return _table(cells, list(named), pd)


class _Bench:
    """The data, and the nets that several methods begin with."""

    def __init__(
        self,
        X: Any,
        y: Any,
        X_test: Any,
        y_test: Any,
        meta: Any,
        net: Any,
        thresholds: tuple[float, float],
        by: str,
    ):
        self.X, self.y, self.X_test, self.y_test = X, y, X_test, y_test
        self.meta, self.net = meta, net
        self.groups = {"thresholds": thresholds, "by": by}
        self.shared: dict[tuple[Any, ...], tuple[CrossEntropyClassifier, float]] = {}
        self.shared_seed: int | None = None
        self.is_warm = False
        # Bad arguments are no fault of the methods.
        y_test = _on_host(y_test)
        many_medium_few_recall(y_test, y_test, y_train=_on_host(y), **self.groups)

    def fingerprint(self) -> str:
        """Return a hash of the data and what else a cell depends on."""
        meta = self.meta if isinstance(self.meta, tuple) else (self.meta,)
        parts = (self.X, self.y, self.X_test, self.y_test, *meta)
        return data_digest(*parts, also=f"{settings(self.net)}{self.groups}")

    def cell(self, name: str, estimator: BaseEstimator, seed: int) -> Cell:
        """Fit a method and return its figures, or its error."""
        cell: Cell = {"method": name, "seed": seed}
        if not self.is_warm:
            _warm_up()
            self.is_warm = True
        if seed != self.shared_seed:  # nets of other seeds are of no use any more
            self.shared, self.shared_seed = {}, seed
        try:
            fitted, seconds = self._fit(clone(estimator), seed)
            cell |= self._figures(fitted)
            cell["fit_time"] = seconds
            reference = self._reference(estimator, seed)
            cell["time_ratio"] = seconds / reference
        except Exception as error:  # whatever a method raises is its own matter
            cell["error"] = f"{type(error).__name__}: {error}"
        return cell

    def _fit(self, estimator: BaseEstimator, seed: int) -> tuple[BaseEstimator, float]:
        """Return the fitted estimator, and the seconds it took or would have taken."""
        if "random_state" in estimator.get_params(deep=False):
            estimator.set_params(random_state=seed)
        seconds = 0.0
        if isinstance(estimator, BaseReweightedClassifier):
            if estimator.net is None:
                estimator.set_params(net=copy.deepcopy(self.net))
            seconds = self._begin(estimator, seed)
        given = {}
        if self.meta is not None and takes_meta(estimator):
            given["meta"] = self.meta
        start = time.perf_counter()
        estimator.fit(self.X, self.y, **given)
        return estimator, seconds + time.perf_counter() - start

    def _begin(self, estimator: BaseReweightedClassifier, seed: int) -> float:
        """Give an estimator the net it begins with, and return what that took."""
        is_trained = isinstance(estimator.net, FrozenEstimator)
        # The nets that are shared have not seen the meta rows.
        if is_trained or estimator.begins_with is None or estimator.train_on_meta:
            return 0.0
        trained, seconds = self._trained(
            estimator,
            0 if estimator.begins_with == "net" else estimator.max_epochs,
            seed,
        )
        estimator.set_params(net=FrozenEstimator(trained.net_))
        if estimator.begins_with == "training":
            estimator.set_params(max_epochs=0)
        return seconds

    def _trained(
        self, estimator: BaseReweightedClassifier, epochs: int, seed: int
    ) -> tuple[CrossEntropyClassifier, float]:
        """Return a net that is trained as it is configured, and the seconds it took."""
        key = (settings(estimator.net), epochs, estimator.lr)
        if key not in self.shared:
            plain = CrossEntropyClassifier(
                copy.deepcopy(estimator.net),
                max_epochs=epochs,
                lr=estimator.lr if epochs else None,
                random_state=seed,
            )
            start = time.perf_counter()
            plain.fit(self.X, self.y)
            self.shared[key] = plain, time.perf_counter() - start
        return self.shared[key]

    def _reference(self, estimator: BaseEstimator, seed: int) -> float:
        """Return the seconds of plain training for as many epochs."""
        if not isinstance(estimator, BaseReweightedClassifier):
            return float("nan")
        plain = clone(estimator)
        if plain.net is None:
            plain.set_params(net=copy.deepcopy(self.net))
        if isinstance(plain.net, FrozenEstimator):
            return float("nan")
        return self._trained(plain, plain.max_epochs, seed)[1]

    def _figures(self, fitted: BaseEstimator) -> dict[str, float]:
        y_test, classes = _on_host(self.y_test), fitted.classes_
        y_pred = fitted.predict(self.X_test)
        recall = class_recall(y_test, y_pred, labels=classes)
        groups = many_medium_few_recall(
            y_test, y_pred, y_train=_on_host(self.y), **self.groups
        )
        figures = {"balanced_accuracy": balanced_accuracy_score(y_test, y_pred)}
        figures |= groups._asdict()
        if hasattr(fitted, "predict_proba"):
            proba = fitted.predict_proba(self.X_test)
            figures["log_loss"] = log_loss(y_test, proba, labels=classes)
            figures["ece"] = expected_calibration_error(y_test, proba, labels=classes)
        by_class = zip(classes.tolist(), recall.tolist(), strict=True)
        figures |= {f"recall_{label}": value for label, value in by_class}
        return {name: float(value) for name, value in figures.items()}


def _on_host(y: Any) -> np.ndarray:
    """Return labels, which may be on a GPU, as metrics take them."""
    return np.asarray(y.cpu() if isinstance(y, Tensor) else y)


def _warm_up() -> None:
    """Fit something tiny: what is imported at the first fit is no part of its time."""
    X, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
    CrossEntropyClassifier(max_epochs=0, random_state=0).fit(X, y)


class _Store:
    """The cells that are finished, in a file if a path is given.

    Parameters
    ----------
    path : path or None
    fingerprint : str
        Of the data; cells of other data are passed over, and those of other versions.
    """

    def __init__(self, path: Any, fingerprint: str):
        self.path = None if path is None else Path(path)
        self.fingerprint = fingerprint
        self.versions = _releases()
        self.cells: dict[tuple[str, str, int], Cell] = {}
        self.is_torn = False
        if self.path is not None and self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            self.is_torn = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            return
        if entry["data"] == self.fingerprint and self._is_current(entry):
            cell = entry["cell"]
            self.cells[cell["method"], entry["estimator"], cell["seed"]] = cell

    def _is_current(self, entry: dict[str, Any]) -> bool:
        """Return whether no version is another; the first files had none."""
        noted = entry.get("versions", {}).items()
        return all(self.versions.get(name, number) == number for name, number in noted)

    def find(self, name: str, estimator: BaseEstimator, seed: int) -> Cell | None:
        """Return a cell that was finished before, if there is one."""
        return self.cells.get((name, settings(estimator), seed))

    def keep(self, cell: Cell, estimator: BaseEstimator) -> None:
        """Write a cell down, unless the method failed: that is tried again."""
        if self.path is None or "error" in cell:
            return
        entry = {
            "data": self.fingerprint,
            "estimator": settings(estimator),
            "versions": self.versions,
            "cell": cell,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self.is_torn + json.dumps(entry) + "\n")
        self.is_torn = False


def _releases() -> dict[str, str]:
    """Return the versions; builds of one release, as for CPU and CUDA, are the same."""
    return {name: number.partition("+")[0] for name, number in versions().items()}


def takes_meta(estimator: BaseEstimator) -> bool:
    """Return whether `fit` takes meta rows."""
    return "meta" in inspect.signature(estimator.fit).parameters


def _named(estimators: Any) -> dict[str, BaseEstimator]:
    """Return the estimators by name."""
    if isinstance(estimators, Mapping):
        pairs = list(estimators.items())
    else:
        pairs = [_with_name(given) for given in estimators]
    check_compared(pairs, known=sorted(BASELINES))
    return dict(pairs)


def _with_name(given: Any) -> tuple[str, Any]:
    if not isinstance(given, str):
        return getattr(given, "short_name", type(given).__name__), given
    return given, BASELINES[given]() if given in BASELINES else None


def _pandas() -> Any:
    """Return pandas, or raise before anything is fitted."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "compare returns a DataFrame of pandas, which is not installed: run "
            "`pip install pandas`."
        ) from error
    return pd


def _table(cells: list[Cell], names: list[str], pd: Any) -> Any:
    frame = pd.DataFrame(cells)
    errors = frame["error"] if "error" in frame else pd.Series(index=frame.index)
    figures = frame.drop(columns=["seed", "error"], errors="ignore")
    groups = figures.groupby("method", sort=False)
    table = pd.concat({"mean": groups.mean(), "std": groups.std()}, axis=1)
    order = [name for name in figures.columns if name != "method"]
    table = table.swaplevel(axis=1)[
        [(name, kind) for name in order for kind in ("mean", "std")]
    ].reindex(names)
    table["error", ""] = errors.groupby(frame["method"], sort=False).first()
    table.attrs["fits"] = cells
    return table
