"""Methods side by side."""

from __future__ import annotations

import copy
import json
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from nets_for_tests import small_net
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit

from sk_otreweight import OTReweightedClassifier, compare
from sk_otreweight.baselines import BASELINES, CrossEntropyClassifier, CRTClassifier
from sk_otreweight.metrics import expected_calibration_error, many_medium_few_recall


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([200, 130, 60], n_features=4, random_state=0, cluster_std=4.0)
    X = X.astype(np.float32)
    sizes = enumerate((120, 60, 15))
    rows = np.concatenate([np.flatnonzero(y == k)[:n] for k, n in sizes])
    meta = np.concatenate([np.flatnonzero(y == k)[-5:] for k in range(3)])
    test = np.concatenate([np.flatnonzero(y == k)[-45:-5] for k in range(3)])
    return (X[rows], y[rows], X[test], y[test]), (X[meta], y[meta])


def run(estimators, data, **params):
    rows, meta = data
    given = {"meta": meta, "net": small_net(max_epochs=2), "seeds": 1, "verbose": False}
    return compare(estimators, *rows, **given | params)


def quick(kind=OTReweightedClassifier, **params):
    return kind(max_epochs=2, **params)


def test_figures_are_those_of_the_fitted_classifier(data):
    (X, y, X_test, y_test), _ = data
    clf = LogisticRegression()
    table = run([clf], data)
    clf.fit(X, y)
    y_pred, proba = clf.predict(X_test), clf.predict_proba(X_test)
    recalls = recall_score(y_test, y_pred, average=None)
    expected = {
        "balanced_accuracy": balanced_accuracy_score(y_test, y_pred),
        "log_loss": log_loss(y_test, proba),
        "ece": expected_calibration_error(y_test, proba),
        **many_medium_few_recall(y_test, y_pred, y_train=y)._asdict(),
        **{f"recall_{k}": r for k, r in enumerate(recalls)},
    }
    for name, value in expected.items():
        assert table.loc["LogisticRegression", (name, "mean")] == pytest.approx(value)
    assert table.loc["LogisticRegression", ("fit_time", "mean")] > 0


def test_means_and_deviations_over_the_seeds(data):
    table = run(["ce", quick()], data, seeds=[3, 5, 8])
    fits = pd.DataFrame(table.attrs["fits"])
    assert sorted(fits["seed"].unique()) == [3, 5, 8]
    for name in ("ce", "OTReweightedClassifier"):
        values = fits.loc[fits["method"] == name, "balanced_accuracy"]
        assert table.loc[name, ("balanced_accuracy", "mean")] == pytest.approx(
            values.mean()
        )
        assert table.loc[name, ("balanced_accuracy", "std")] == pytest.approx(
            values.std()
        )
    assert values.nunique() > 1


def test_a_shared_training_is_that_of_the_method_alone(data):
    """What follows plain training of as many epochs gets exactly its net."""
    (X, y, X_test, y_test), meta = data
    names = ["ce", "logit_adjustment_posthoc", "ncm", "tau_norm"]
    estimators = {name: quick(BASELINES[name]) for name in names}
    table = run(estimators, data, seeds=[7])
    for name, estimator in estimators.items():
        alone = estimator.set_params(net=small_net(max_epochs=2), random_state=7)
        alone.fit(X, y, meta=meta)
        expected = balanced_accuracy_score(y_test, alone.predict(X_test))
        found = table.loc[name, ("balanced_accuracy", "mean")]
        assert found == pytest.approx(expected)


def test_nets_are_trained_once_for_each_seed(data, monkeypatch):
    trained = []
    own = CrossEntropyClassifier.fit

    def noting(estimator, X, y, **params):
        if not isinstance(estimator.net, FrozenEstimator) and len(X) > 4:
            trained.append((estimator.random_state, estimator.max_epochs))
        return own(estimator, X, y, **params)

    monkeypatch.setattr(CrossEntropyClassifier, "fit", noting)
    estimators = {
        "ce": quick(CrossEntropyClassifier),
        "ot": quick(loss="net"),
        "ot again": quick(loss="net", reg=1.0),
        "crt": quick(CRTClassifier),
        "posthoc": quick(BASELINES["ncm"]),
    }
    run(estimators, data, seeds=2)
    assert sorted(trained) == [(0, 0), (0, 2), (1, 0), (1, 2)]


def test_the_time_of_a_shared_net_is_counted(data, monkeypatch):
    monkeypatch.setattr(
        "sk_otreweight.comparison._Bench._trained",
        lambda self, estimator, epochs, seed: (trained, 1000.0 + epochs),
    )
    (X, y, *_), _ = data
    trained = CrossEntropyClassifier(small_net(max_epochs=2), max_epochs=0).fit(X, y)
    table = run([quick(loss="net"), quick(BASELINES["focal"])], data)
    times = table["fit_time", "mean"]
    assert 1000 < times["OTReweightedClassifier"] < 1100
    assert times["focal"] < 100
    ratios = table["time_ratio", "mean"]
    assert ratios["OTReweightedClassifier"] == pytest.approx(1, abs=0.1)


class Failing(ClassifierMixin, BaseEstimator):
    """Fails on some seeds."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y):
        if self.random_state != 1:
            raise RuntimeError("out of luck")
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def test_a_method_that_fails_is_a_row_with_its_error(data):
    table = run(["ce", Failing()], data, seeds=[0])
    assert table.loc["Failing", ("error", "")] == "RuntimeError: out of luck"
    assert table.loc["Failing"].drop("error").isna().all()
    assert table.loc["ce", ("balanced_accuracy", "mean")] > 0.3
    table = run(["ce", Failing()], data, seeds=2)  # it succeeds with the second
    assert table.loc["Failing", ("error", "")] == "RuntimeError: out of luck"
    assert table.loc["Failing", ("balanced_accuracy", "mean")] == pytest.approx(1 / 3)


def test_finished_fits_are_kept(data, tmp_path, monkeypatch):
    path = tmp_path / "fits.jsonl"
    first = run(["ce", quick()], data, path=path)
    assert len(path.read_text().splitlines()) == 2
    fitted = []
    own = OTReweightedClassifier.fit
    monkeypatch.setattr(
        OTReweightedClassifier,
        "fit",
        lambda this, *args, **kw: (fitted.append(this.reg), own(this, *args, **kw))[1],
    )
    again = run(["ce", quick()], data, path=path)
    pd.testing.assert_frame_equal(first, again)
    assert not fitted
    run(["ce", quick(), "focal"], data, path=path)
    assert not fitted
    run(["ce", quick(reg=0.5)], data, path=path)  # other settings are another method
    assert fitted == [0.5]
    run(["ce", quick()], data, path=path, thresholds=(20, 50))  # and so is other data
    assert fitted == [0.5, 0.1]


def test_sparse_rows_are_told_apart(data, tmp_path):
    (X, y, X_test, y_test), _ = data
    path = tmp_path / "fits.jsonl"
    for n, factor in enumerate((1, -3), start=1):  # as many entries, of other values
        rows = sparse.csr_array(factor * X), y, sparse.csr_array(X_test), y_test
        run([LogisticRegression()], (rows, None), path=path)
        assert len(path.read_text().splitlines()) == n


def test_fits_of_other_versions_are_missing(data, tmp_path, monkeypatch):
    path = tmp_path / "fits.jsonl"

    def n_kept(**versions):
        current = {"sk-otreweight": "1.0", "torch": "2.9.0+cpu"}
        monkeypatch.setattr(
            "sk_otreweight.comparison.versions", lambda: current | versions
        )
        table = run(["ncm"], data, path=path)
        assert table["balanced_accuracy", "mean"].notna().all()
        return len(path.read_text().splitlines())

    assert n_kept() == 1
    assert n_kept() == 1
    assert n_kept(torch="2.9.0+cu130") == 1  # a build for another device
    assert n_kept(torch="2.10.0+cpu") == 2
    assert n_kept(torch="2.10.0+cpu") == 2
    assert n_kept() == 2  # what was kept before is still there
    assert n_kept(**{"sk-otreweight": "1.1"}) == 3


def test_fits_without_versions_are_valid(data, tmp_path):
    path = tmp_path / "fits.jsonl"
    first = run(["ncm"], data, path=path)
    entry = json.loads(path.read_text())
    assert entry.pop("versions")
    path.write_text(json.dumps(entry) + "\n")
    pd.testing.assert_frame_equal(first, run(["ncm"], data, path=path))
    assert len(path.read_text().splitlines()) == 1


def test_without_pandas_nothing_is_fitted(data, monkeypatch):
    clf = mock.create_autospec(LogisticRegression(), instance=True)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="compare returns a DataFrame.*pip install"):
        run([clf], data)
    clf.fit.assert_not_called()


def test_nets_are_told_apart_by_how_they_are_trained(data, tmp_path):
    path = tmp_path / "fits.jsonl"
    stop = EarlyStopping(monitor="train_loss", patience=6)
    sizes = {"module__n_features": 4, "module__n_classes": 3}
    nets = [
        small_net(max_epochs=2),
        small_net(max_epochs=2, lr=0.2),
        small_net(max_epochs=2, callbacks=[stop]),
        small_net(max_epochs=2, callbacks=[("stop", stop)]),
        small_net(max_epochs=2, callbacks=[EarlyStopping(monitor="train_loss")]),
        small_net(max_epochs=2, train_split=ValidSplit(3)),
        small_net(max_epochs=2, train_split=ValidSplit(4)),
        small_net(max_epochs=2, **sizes).initialize(),
        small_net(max_epochs=2, **sizes).initialize(),  # begins with other parameters
    ]
    for n, net in enumerate(nets, start=1):
        run(["ncm"], data, path=path, net=net)
        assert len(path.read_text().splitlines()) == n
    for net in nets:
        run(["ncm"], data, path=path, net=copy.deepcopy(net))
    assert len(path.read_text().splitlines()) == len(nets)


def test_methods_with_nets_of_other_training_do_not_share_one(data):
    slow, fast = small_net(max_epochs=2, lr=1e-4), small_net(max_epochs=2, lr=0.1)
    table = run({"slow": quick(net=slow), "fast": quick(net=fast)}, data)
    alone = run({"fast": quick(net=fast)}, data)
    name = ("log_loss", "mean")
    assert table.loc["fast", name] == alone.loc["fast", name]
    assert table.loc["slow", name] != table.loc["fast", name]


def test_what_a_killed_run_left_is_used(data, tmp_path):
    path = tmp_path / "fits.jsonl"
    run(["ce", "focal"], data, path=path)
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:40])
    table = run(["ce", "focal"], data, path=path)
    assert table["balanced_accuracy", "mean"].notna().all()
    again = path.read_text().splitlines()
    assert again[:2] == [lines[0], lines[1][:40]]
    assert json.loads(again[2])["cell"]["method"] == "focal"
    run(["ce", "focal"], data, path=path)
    assert path.read_text().splitlines() == again


def test_failed_fits_are_tried_again(data, tmp_path):
    path = tmp_path / "fits.jsonl"
    run([Failing()], data, path=path, seeds=[0])
    assert not path.exists()


def test_nets_of_their_own_are_kept(data):
    net = small_net(max_epochs=2, module__hidden=5)
    table = run({"own": quick(net=net), "given": quick()}, data)
    assert table["balanced_accuracy", "mean"].nunique() > 1


def test_a_bar_shows_the_progress(data, capsys):
    run(["ce", "focal"], data, verbose=True)
    assert "2/2" in capsys.readouterr().err


def test_nothing_that_was_given_is_changed(data):
    clf = quick()
    run([clf], data)
    assert clf.net is None
    assert not hasattr(clf, "net_")


@pytest.mark.parametrize(
    ("estimators", "params", "message"),
    [
        ([], {}, "No estimators were given"),
        (["cee"], {}, "'cee' is not known"),
        ([OTReweightedClassifier], {}, "give an instance"),
        ([object()], {}, "is no classifier"),
        (["ce", "ce"], {}, r"Several estimators are called \['ce'\]"),
        (["ce"], {"seeds": 0}, "seeds=0"),
        (["ce"], {"seeds": [1, 1]}, "give different integers"),
        (["ce"], {"seeds": [-1]}, "seeds=-1"),
        (["ce"], {"thresholds": (5, 1)}, "0 <= low <= high"),
        (["ce"], {"by": "share"}, "by='share'"),
    ],
)
def test_bad_arguments(estimators, params, message, data):
    with pytest.raises(ValueError, match=message):
        run(estimators, data, **params)
