"""The tables of errors of the benchmarks: what is kept, shown and checked."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from cifar_files import write_balanced_cifar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture
def tables(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("_tables")
    monkeypatch.setattr(module, "KEPT", tmp_path / "fits")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


class Counted(ClassifierMixin, BaseEstimator):
    """Predicts the first class; counts its fits, and fails on demand."""

    n_fits = 0
    fails = False

    def fit(self, X, y):
        if Counted.fails:
            raise ValueError("on demand")
        Counted.n_fits += 1
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.fixture(autouse=True)
def _fresh_counts(monkeypatch):
    monkeypatch.setattr(Counted, "n_fits", 0)
    monkeypatch.setattr(Counted, "fails", False)


def draw_of(tables):
    def draw(setting, seed):
        X, y = load_iris(return_X_y=True)
        X = X * float(setting.split()[-1])
        order = np.random.default_rng(seed).permutation(len(y))
        train, meta, test = order[:60], order[60:75], order[75:]
        return tables.Draw(X[train], y[train], X[meta], y[meta], X[test], y[test])

    return draw


def small_table(tables, name="small", settings=("iris / 1", "iris / 2")):
    methods = {"first": Counted(), "linear": LogisticRegression(C=0.1)}
    return tables.Table(
        name, settings, lambda _: methods, draw_of(tables), lambda _: None
    )


def chosen(**values):
    default = {"seeds": 2, "workers": 1, "short": False, "fresh": False}
    return Namespace(**default | {"device": "cpu", "check": None} | values)


def fit_of(setting, method, seed, accuracy, **more):
    return {
        "setting": setting,
        "method": method,
        "seed": seed,
        "balanced_accuracy": accuracy,
    } | more


FITS = [
    fit_of("A", "ce", 0, 0.80, few=0.5),
    fit_of("A", "ce", 1, 0.84, few=0.7),
    fit_of("A", "ot", 0, 0.90, few=0.8),
    fit_of("A", "ot", 1, 0.92, few=1.0),
    fit_of("B", "ce", 0, 0.70, few=0.5),
    {"setting": "B", "method": "ot", "seed": 0, "error": "ValueError: bad"},
]


def test_errors_over_the_seeds(tables):
    found = tables.summary(FITS)
    assert found["A"]["ce"] == pytest.approx((18, 2 * 2**0.5))
    assert str(found["A"]["ce"]) == "18.0 ± 2.8"
    assert np.isnan(found["B"]["ce"].std)
    assert str(found["B"]["ce"]) == "30.0"
    assert "ot" not in found["B"]


def test_lowest_error_is_bold_and_failures_are_named(tables):
    rows = tables.error_table(FITS).splitlines()
    assert rows == [
        "| method | A | B |",
        "| --- | --- | --- |",
        "| ce | 18.0 ± 2.8 | **30.0** |",
        "| ot | **9.0 ± 1.4** | failed |",
    ]
    assert tables.failures(FITS) == "- B, ot, seed 0: ValueError: bad"
    assert tables.failures(FITS[:4]) == "none"


def test_cells_of_which_some_seeds_failed_say_so(tables):
    fits = [*FITS, fit_of("B", "ot", 1, 0.75), fit_of("B", "new", 0, 0.6)]
    rows = tables.error_table(fits).splitlines()
    assert rows[3] == "| ot | **9.0 ± 1.4** | **25.0** (1 failed) |"
    assert rows[4] == "| new |  | 40.0 |"


def test_setting_in_which_all_failed_stays_in_the_table(tables):
    assert tables.error_table(FITS[-1:]).splitlines()[2] == "| ot | failed |"


def test_error_of_another_figure(tables):
    rows = tables.error_table(FITS, of="few").splitlines()
    assert rows[2] == "| ce | 40.0 ± 14.1 | **50.0** |"


def test_what_was_finished_is_read_from_disk(tables):
    table = small_table(tables)
    first = tables.run([table], chosen())
    assert Counted.n_fits == 4
    again = tables.run([table], chosen())
    assert Counted.n_fits == 4
    assert json.dumps(again) == json.dumps(first)  # with NaN
    assert len(first["small"]) == 2 * 2 * 2
    tables.run([table], chosen(seeds=3))
    assert Counted.n_fits == 6
    tables.run([table], chosen(fresh=True))
    assert Counted.n_fits == 10


def test_short_runs_neither_read_nor_keep_fits(tables):
    table = small_table(tables)
    tables.run([table], chosen(short=True))
    tables.run([table], chosen(short=True))
    assert Counted.n_fits == 8
    assert not tables.KEPT.exists()


def test_run_that_was_killed_goes_on(tables):
    table = small_table(tables)
    whole = tables.run([table], chosen())
    for path in tables.KEPT.rglob("*.jsonl"):
        first, second = path.read_text().splitlines()
        path.write_text(f"{first}\n{second[:-9]}")  # killed while it wrote
    assert json.loads(first)["cell"]["method"] == "first"
    resumed = tables.run([table], chosen())
    assert Counted.n_fits == 4  # only the second method was fitted again
    for fit, before in zip(resumed["small"], whole["small"], strict=True):
        assert fit["balanced_accuracy"] == before["balanced_accuracy"]


def test_failed_fits_are_rows_and_tried_again(tables):
    table = small_table(tables, settings=["iris 1"])
    Counted.fails = True
    fits = tables.run([table], chosen(seeds=1))["small"]
    assert "seed 0: ValueError: on demand" in tables.failures(fits)
    assert [fit["method"] for fit in fits] == ["first", "linear"]
    Counted.fails = False
    fits = tables.run([table], chosen(seeds=1))["small"]
    assert tables.failures(fits) == "none"
    assert Counted.n_fits == 1


def test_check_fits_one_cell_again(tables, capsys):
    table = small_table(tables, settings=["iris 1", "iris 2"])
    data = tables.run([table], chosen(seeds=3))
    (tables.RESULTS / "record.json").write_text(json.dumps({"data": data}))
    cell = ("iris 2", "linear", "1")
    assert tables.check([table], "record", chosen(check=cell)) == 0
    own = data["small"]
    (before,) = [
        tables.percent(fit)
        for fit in own
        if (fit["setting"], fit["method"], fit["seed"]) == ("iris 2", "linear", 1)
    ]
    text = capsys.readouterr().out
    assert text.startswith(
        f"iris 2, linear, seed 1: {before:.2f} % (recorded: {before:.2f} %"
    )
    for fit in own:
        fit["balanced_accuracy"] -= 0.3
    (tables.RESULTS / "record.json").write_text(json.dumps({"data": data}))
    assert tables.check([table], "record", chosen(check=cell)) == 1


def test_check_says_what_is_not_there(tables):
    table = small_table(tables, settings=["iris 1"])
    (tables.RESULTS / "record.json").write_text(
        json.dumps({"data": {"small": [fit_of("iris 1", "linear", 0, 0.9)]}})
    )
    with pytest.raises(SystemExit, match="no cell 'iris 1', 'third'"):
        tables.check([table], "record", chosen(check=("iris 1", "third", "0")))
    with pytest.raises(SystemExit, match=r"recorded are \[0\]"):
        tables.check([table], "record", chosen(check=("iris 1", "linear", "4")))


def test_check_of_a_method_that_fails(tables, capsys):
    table = small_table(tables, settings=["iris 1"])
    (tables.RESULTS / "record.json").write_text(
        json.dumps({"data": {"small": [fit_of("iris 1", "first", 0, 0.9)]}})
    )
    Counted.fails = True
    cell = ("iris 1", "first", "0")
    assert tables.check([table], "record", chosen(check=cell)) == 1
    assert "failed: ValueError: on demand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"seeds": 5, "workers": 2, "short": False, "data": None}),
        (["--short"], {"seeds": 1, "workers": 1}),
        (["--short", "--seeds", "3"], {"seeds": 3}),
        (["--device", "cuda"], {"workers": 1}),
        (["--data", "folder"], {"data": "folder"}),
        (["--check", "A B", "ce", "2"], {"check": ["A B", "ce", "2"]}),
    ],
)
def test_arguments(tables, monkeypatch, words, expected):
    monkeypatch.setattr("sys.argv", ["script.py", *words])
    found = vars(tables.table_arguments("Text.", options={"data": "A folder."}))
    assert found.items() >= expected.items()


def test_tables_of_one_run_keep_apart(tables):
    methods = {"dummy": DummyClassifier(strategy="prior")}
    table = tables.Table(
        "other", ["iris 1"], lambda _: methods, draw_of(tables), lambda _: None
    )
    fits = tables.run([small_table(tables), table], chosen(seeds=1))
    assert [fit["method"] for fit in fits["other"]] == ["dummy"]
    assert len(fits["small"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tabular", "points", "text"])
def test_short_forms(name):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--short"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if not done.stdout.startswith("Nothing was measured."):  # no encoder, no network
        assert "| ot |" in done.stdout
        assert "Failed fits\n\nnone" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [10, 100])
def test_the_smoke_form_on_files_of_cifar(n_classes, tmp_path):
    n_train = 25 if n_classes == 10 else 6
    folder = write_balanced_cifar(tmp_path / "cifar", n_classes, n_train, n_test=2)
    command = [sys.executable, BENCHMARKS / "images.py", "--cifar", folder, "--smoke"]
    done = subprocess.run(
        [*command, "--classes", str(n_classes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| ce |" in done.stdout
    assert "| ot_adjusted |" in done.stdout
    assert "Failed fits\n\nnone" in done.stdout


class TestKept:
    def test_what_was_computed_is_read_from_disk(self, tables):
        assert tables.kept("few", {"seed": 0}, lambda: {"error": 1.0}) == {"error": 1.0}
        assert tables.kept("few", {"seed": 0}, lambda: {"error": 2.0}) == {"error": 1.0}
        assert tables.kept("few", {"seed": 1}, lambda: {"error": 3.0}) == {"error": 3.0}

    def test_a_line_that_was_cut_off(self, tables):
        tables.kept("few", {"seed": 0}, lambda: {"error": 1.0})
        path = tables.KEPT / "few.jsonl"
        path.write_text(path.read_text().rstrip()[:-3])
        for _ in range(2):
            assert tables.kept("few", {"seed": 0}, lambda: {"error": 2.0})["error"] == 2
        assert tables.kept("few", {"seed": 0}, lambda: {"error": 3.0})["error"] == 2

    def test_forget(self, tables):
        tables.kept("few", {"seed": 0}, lambda: {"error": 1.0})
        tables.forget("few", chosen(fresh=True, short=True))
        tables.forget("few", chosen())
        assert tables.kept("few", {"seed": 0}, lambda: {"error": 2.0})["error"] == 1
        tables.forget("few", chosen(fresh=True))
        assert tables.kept("few", {"seed": 0}, lambda: {"error": 2.0})["error"] == 2
        tables.forget("never written", chosen(fresh=True))


def test_all_settings_of_images_can_be_drawn(tables, tmp_path):
    images = importlib.import_module("images")
    folder = str(write_balanced_cifar(tmp_path / "cifar", 10, n_train=25, n_test=2))
    drawn = {}
    for table in images.tables_of(
        images.Images(folder, 10, 16, (1, 1), "cpu"), chosen(cifar=folder)
    ):
        for setting in table.settings:
            drawn[table.name, setting] = table.draw(setting, 0)
            assert set(table.methods(setting))
    assert len(drawn) == 7
    for (_, setting), rows in drawn.items():
        assert len(rows.y) > 0
        assert (rows.y_meta is None) == ("drawn" in setting)
    given = drawn["cifar10_meta", "IF 100, given"]
    assert np.array_equal(given.y, drawn["cifar10", "IF 100"].y)
