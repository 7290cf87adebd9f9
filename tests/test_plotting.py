"""Pictures: what they show is what was fitted, and it can be read."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from classifier_helpers import quick
from nets_for_tests import SmallMLP, small_net
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit

from sk_otreweight import (
    OTReweightedClassifier,
    OTReweightedEstimator,
    compare,
    load,
    semirelaxed_weights,
)
from sk_otreweight.plotting import (
    ClassWeightDisplay,
    ComparisonDisplay,
    RecallDisplay,
    SampleWeightDisplay,
    TrainingDisplay,
    TransportPlanDisplay,
)
from sk_otreweight.plotting.rows import shown_rows

SIZES = (2, 10, 100, 1000)
COLUMNS = ("valid_acc", "weights_ess", "own score")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def clf(digits):
    return quick(random_state=0).fit(digits.X, digits.y, meta=digits.meta)


@pytest.fixture(scope="module")
def table(few):
    X, y, meta = few
    methods = ["ce", "inverse", "ot_posthoc"]
    return compare(
        methods, X, y, X, y, meta=meta, net=small_net(), seeds=2, verbose=False
    )


def long_tail(n_classes):
    """Return labels, a cost and weights."""
    n_max = 300 if n_classes <= 100 else 20
    shares = np.linspace(1, 0, n_classes)
    y = np.repeat(
        np.arange(n_classes), np.round(n_max * 0.02 ** (1 - shares) + 1).astype(int)
    )
    rng = np.random.default_rng(0)
    y = rng.permutation(y)
    cost = rng.random((len(y), n_classes)) + (y[:, None] != np.arange(n_classes))
    weights = semirelaxed_weights(
        torch.from_numpy(cost), torch.full((n_classes,), 1 / n_classes), 0.2
    )
    return y, cost, (weights / weights.mean()).numpy()


def assert_readable(figure):
    """No two tick labels of an axis touch, and nothing leaves the figure."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            first, last = sorted(axis.get_view_interval())
            ticks = [x for x in axis.get_major_ticks() if first <= x.get_loc() <= last]
            labels = [tick.label1 for tick in ticks] + [tick.label2 for tick in ticks]
            shown = [x for x in labels if x.get_visible() and x.get_text()]
            shown = shown if ax.axison else []
            boxes = [x.get_window_extent() for x in shown]
            is_turned = any(x.get_rotation() % 90 for x in shown)
            for box in boxes:
                assert box.x0 >= -1
                assert box.x1 <= width + 1
                assert box.y0 >= -1
                assert box.y1 <= height + 1
            inside = [b for b in boxes if not is_turned]
            for one, other in pairwise(inside):
                assert not one.overlaps(other)


class TestTransportProblem:
    @pytest.mark.parametrize("cost", ["label", "combined"])
    def test_its_closed_form_is_the_fitted_weights(self, cost, digits):
        clf = quick(cost=cost, reg=0.2, finetune="head", loss="net")
        clf.fit(digits.X, digits.y, meta=digits.meta)
        problem = clf.transport_problem(digits.X, digits.y)
        assert problem.cost.shape == (len(digits.y), 10)
        assert problem.point_labels.tolist() == list(range(10))
        np.testing.assert_allclose(problem.mass, 0.1, rtol=1e-6)
        C, mass = torch.from_numpy(problem.cost), torch.from_numpy(problem.mass)
        weights = semirelaxed_weights(C, mass, 0.2).numpy()
        expected = clf.sample_weight_
        np.testing.assert_allclose(weights / weights.mean(), expected, rtol=1e-4)

    @pytest.mark.parametrize("cost", ["label", "combined"])
    def test_meta_rows_are_drawn_if_none_were_given(self, cost, digits):
        clf = quick(cost=cost, random_state=0).fit(digits.X, digits.y)
        problem = clf.transport_problem(digits.X, digits.y)
        again = clf.transport_problem(digits.X, digits.y)
        np.testing.assert_array_equal(problem.cost, again.cost)
        nearest = problem.point_labels[problem.cost.argmin(axis=1)]
        assert (nearest == digits.y).mean() > 0.9

    def test_weights_before_and_after_saving(self, clf, digits, tmp_path):
        clf.save(tmp_path / "clf.safetensors")
        loaded = load(tmp_path / "clf.safetensors", trusted=SmallMLP)
        one, other = (x.transport_problem(digits.X, digits.y) for x in (clf, loaded))
        np.testing.assert_allclose(one.cost, other.cost, atol=1e-6)

    def test_needs_rows_of_each_class_to_draw_from(self, digits):
        clf = quick(random_state=0).fit(digits.X, digits.y)
        rows = np.r_[0, np.flatnonzero(digits.y != digits.y[0])]
        with pytest.raises(ValueError, match="has a single row and no meta data"):
            clf.transport_problem(digits.X[rows], digits.y[rows])

    def test_needs_a_fit(self, digits):
        with pytest.raises(NotFittedError):
            OTReweightedClassifier().transport_problem(digits.X, digits.y)


class TestShownRows:
    def test_all_rows_by_class_and_weight(self):
        y = np.array(["b", "a", "b", "b", "a"])
        weights = np.array([3.0, 2.0, 1.0, 2.0, 1.0])
        assert shown_rows(y, weights, 10).tolist() == [2, 3, 0, 4, 1]

    @pytest.mark.parametrize("max_rows", [1, 15, 60, 200])
    def test_frequent_classes_are_thinned_out(self, max_rows):
        y = np.repeat([0, 1, 2], [100, 30, 4])
        counts = np.bincount(y[shown_rows(y, np.arange(134.0), max_rows)])
        assert counts.sum() <= max(max_rows, 3)
        assert counts.tolist() == np.minimum([100, 30, 4], counts.max()).tolist()
        assert counts.sum() > min(134, max_rows) - 3

    def test_the_lightest_and_the_heaviest_are_kept(self):
        rows = shown_rows(np.zeros(100), np.arange(100.0)[::-1], 7)
        assert len(rows) == 7
        assert {99, 0} < set(rows.tolist())
        assert (np.diff(rows) < 0).all()


class TestClassWeight:
    def test_it_shows_the_fit(self, clf):
        display = ClassWeightDisplay.from_estimator(clf)
        order = np.argsort(-clf.class_counts_, kind="stable")
        heights = [bar.get_height() for bar in display.ax_.patches]
        np.testing.assert_array_equal(heights, clf.class_counts_[order])
        drawn = display.weight_ax_.lines[0].get_ydata()
        np.testing.assert_array_equal(drawn, clf.class_weight_[order])
        names = [label.get_text() for label in display.ax_.get_xticklabels()]
        assert names == [str(label) for label in clf.classes_[order]]
        assert display.figure_ is display.ax_.figure

    def test_of_another_classifier(self, digits):
        clf = OTReweightedEstimator(LogisticRegression(max_iter=20), random_state=0)
        with pytest.warns(match="converge"):
            clf.fit(digits.X, digits.y)
        one = ClassWeightDisplay.from_estimator(clf)
        other = ClassWeightDisplay.from_weights(digits.y, clf.sample_weight_)
        np.testing.assert_array_equal(one.class_counts, other.class_counts)
        np.testing.assert_allclose(one.class_weight, other.class_weight)

    @pytest.mark.parametrize("n_classes", SIZES)
    def test_it_can_be_read(self, n_classes):
        y, _, weights = long_tail(n_classes)
        assert_readable(ClassWeightDisplay.from_weights(y, weights).figure_)

    def test_long_names_are_turned(self):
        y = np.repeat([f"a rather long name {k}" for k in range(12)], range(20, 8, -1))
        display = ClassWeightDisplay.from_weights(y, np.ones(len(y)))
        assert_readable(display.figure_)
        assert display.ax_.get_xticklabels()[0].get_rotation() == 45

    def test_on_given_axes(self, clf):
        _, ax = plt.subplots()
        assert ClassWeightDisplay.from_estimator(clf, ax=ax).ax_ is ax

    def test_bad_weights(self):
        with pytest.raises(ValueError, match="must hold finite numbers >= 0"):
            ClassWeightDisplay.from_weights([0, 1], [1, -1])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            ClassWeightDisplay.from_weights([0, 1], [1, 1, 1])


class TestSampleWeight:
    def test_it_shows_the_fit(self, clf, digits):
        display = SampleWeightDisplay.from_estimator(clf, digits.X, digits.y)
        problem = clf.transport_problem(digits.X, digits.y)
        rows = shown_rows(digits.y, clf.sample_weight_, 400)
        np.testing.assert_array_equal(display.sample_weight, clf.sample_weight_[rows])
        np.testing.assert_array_equal(display.y, digits.y[rows])
        np.testing.assert_allclose(display.cost, problem.cost[rows])
        (image,) = display.axes_[0].images
        np.testing.assert_allclose(image.get_array(), display.cost.T)

    def test_single_cells_of_a_large_table_are_seen(self):
        cost, labels = np.ones((1000, 1000)), np.arange(1000)
        np.fill_diagonal(cost, 0.0)
        display = SampleWeightDisplay.from_cost(cost, labels, np.ones(1000), labels)
        (image,) = display.axes_[0].images
        drawn = np.asarray(image.get_array())
        assert drawn.shape == (150, 400)
        assert (drawn.min(axis=0) == 0).all()
        assert (drawn.min(axis=1) == 0).all()
        assert (drawn == 0).mean() < 0.02
        assert image.get_extent() == [-0.5, 999.5, 999.5, -0.5]

    def test_it_says_how_many_rows_it_shows(self, clf, digits):
        def label(**params):
            display = SampleWeightDisplay.from_estimator(
                clf, digits.X, digits.y, **params
            )
            return display.axes_[1].get_xlabel()

        n = len(digits.y)
        assert label(max_rows=n) == f"{n} rows, by class"
        assert label(max_rows=30).endswith(f" of {n} rows, by class")

    @pytest.mark.parametrize("n_classes", SIZES)
    def test_it_can_be_read(self, n_classes):
        y, cost, weights = long_tail(n_classes)
        display = SampleWeightDisplay.from_cost(cost, y, weights, np.arange(n_classes))
        assert_readable(display.figure_)

    def test_rows_of_another_fit(self, clf, digits):
        with pytest.raises(ValueError, match="3 rows were given, but the estimator"):
            SampleWeightDisplay.from_estimator(clf, digits.X[:3], digits.y[:3])

    @pytest.mark.parametrize(
        "cost", [np.ones((2, 2)), np.ones(3), np.full((3, 2), np.nan)]
    )
    def test_bad_costs(self, cost):
        with pytest.raises(ValueError, match="expected finite numbers of shape"):
            SampleWeightDisplay.from_cost(cost, [0, 0, 1], [1, 1, 1], [0, 1])

    @pytest.mark.parametrize("n_labels", [1, 3])
    @pytest.mark.parametrize("kind", [SampleWeightDisplay, TransportPlanDisplay])
    def test_bad_point_labels(self, kind, n_labels):
        with pytest.raises(ValueError, match=f"{n_labels} point_labels .* the 2 col"):
            kind.from_cost(np.ones((3, 2)), [0, 0, 1], [1, 1, 1], range(n_labels))


class TestTransportPlan:
    def test_the_plans_have_the_marginals(self, clf, digits):
        display = TransportPlanDisplay.from_estimator(clf, digits.X, digits.y)
        rows = shown_rows(digits.y, clf.sample_weight_, 100)
        weights = clf.sample_weight_[rows]
        n = len(rows)
        np.testing.assert_allclose(display.before.sum(1), 1 / n)
        np.testing.assert_allclose(display.after.sum(1), weights / weights.sum())
        for plan in (display.before, display.after):
            np.testing.assert_allclose(plan.sum(0), 0.1, atol=1e-3)
        assert len(display.axes_) == 5

    def test_weights_lower_the_cost(self, clf, digits):
        display = TransportPlanDisplay.from_estimator(
            clf, digits.X, digits.y, max_rows=len(digits.y)
        )
        before, after = (
            (display.cost * plan).sum() for plan in (display.before, display.after)
        )
        assert after < before

    @pytest.mark.parametrize("n_classes", SIZES)
    def test_it_can_be_read(self, n_classes):
        y, cost, weights = long_tail(n_classes)
        display = TransportPlanDisplay.from_cost(
            cost, y, weights, np.arange(n_classes), reg=0.2
        )
        assert_readable(display.figure_)


class TestTraining:
    def test_stages_and_panels(self, clf):
        display = TrainingDisplay.from_estimator(clf)
        titles = [ax.get_ylabel() for ax in display.axes_]
        assert titles == ["loss", "effective sample size / n"]
        loss = display.axes_[0].lines[0].get_ydata()
        np.testing.assert_array_equal(loss, clf.history_[:, "train_loss"])
        n_first = clf.history_[:, "stage"].count(1)
        assert display.axes_[0].lines[1].get_xdata()[0] == n_first + 0.5

    def test_validation_and_columns_of_callbacks(self, digits):
        scoring = EpochScoring("accuracy", False, name="own score")
        net = small_net(max_epochs=2, callbacks=[scoring], train_split=ValidSplit(3))
        clf = quick(net).fit(digits.X, digits.y)
        display = TrainingDisplay.from_estimator(
            clf, x="seconds", metrics=["own score"]
        )
        titles = [ax.get_ylabel() for ax in display.axes_]
        assert titles == ["loss", "accuracy", "effective sample size / n", "own score"]
        assert [line.get_label() for line in display.axes_[0].lines[:2]] == [
            "training",
            "validation",
        ]
        seconds = np.cumsum(clf.history_[:, "dur"])
        for ax, column in zip(display.axes_[1:], COLUMNS, strict=True):
            np.testing.assert_array_equal(ax.lines[0].get_xdata(), seconds)
            np.testing.assert_array_equal(
                ax.lines[0].get_ydata(), clf.history_[:, column]
            )
        assert display.axes_[-1].get_xlabel() == "seconds"
        assert_readable(display.figure_)

    def test_of_a_plain_net(self, digits):
        net = small_net(max_epochs=2, module__n_features=64, module__n_classes=10)
        net.fit(digits.X, digits.y)
        display = TrainingDisplay.from_estimator(net)
        assert [ax.get_ylabel() for ax in display.axes_] == ["loss"]
        assert len(display.axes_[0].lines) == 1  # no border between stages

    def test_of_two_fits_on_the_same_axes(self, clf):
        display = TrainingDisplay.from_estimator(clf)
        again = TrainingDisplay.from_estimator(clf, axes=display.axes_)
        assert again.figure_ is display.figure_
        with pytest.raises(ValueError, match="1 axes were given, but 2 are drawn on"):
            TrainingDisplay.from_estimator(clf, axes=display.axes_[:1])

    def test_what_is_not_there(self, clf):
        with pytest.raises(ValueError, match=r"has no \['auc'\]; it has \['dur', "):
            TrainingDisplay.from_estimator(clf, metrics=["auc"])
        with pytest.raises(ValueError, match="x='hours' is not known"):
            TrainingDisplay.from_estimator(clf, x="hours")
        with pytest.raises(NotFittedError):
            TrainingDisplay.from_estimator(OTReweightedClassifier())

    def test_nothing_was_trained(self, clf, digits):
        frozen = quick(FrozenEstimator(clf.net_.module_), max_epochs=0)
        frozen.fit(digits.X, digits.y)
        for estimator in (frozen, frozen.net_):
            with pytest.raises(ValueError, match="has no epochs: nothing was trained"):
                TrainingDisplay.from_estimator(estimator)


class TestRecall:
    def test_it_shows_the_recalls_in_the_order_of_the_counts(self, clf, digits):
        plain = quick(max_epochs=0).fit(digits.X, digits.y)
        display = RecallDisplay.from_estimator(
            clf, digits.X_test, digits.y_test, before=plain
        )
        order = np.argsort(-clf.class_counts_, kind="stable")
        heights = [bar.get_height() for bar in display.ax_.patches]
        expected = [
            recall_score(digits.y_test, model.predict(digits.X_test), average=None)
            for model in (plain, clf)
        ]
        np.testing.assert_allclose(
            heights, np.concatenate([x[order] for x in expected])
        )
        texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
        assert texts == [
            f"before (mean {expected[0].mean():.3f})",
            f"after (mean {expected[1].mean():.3f})",
        ]

    def test_of_predictions_alone(self):
        display = RecallDisplay.from_predictions(["b", "a", "a"], ["b", "a", "b"])
        assert [bar.get_height() for bar in display.ax_.patches] == [0.5, 1]
        assert display.ax_.get_xlabel() == "class"

    def test_classes_that_the_test_lacks(self):
        display = RecallDisplay.from_predictions(
            [0, 0, 1], [0, 1, 1], y_train=[2, 2, 2, 1, 1, 0]
        )
        np.testing.assert_array_equal(display.classes, [0, 1, 2])
        np.testing.assert_array_equal(display.recall["recall"], [0.5, 1, np.nan])

    @pytest.mark.parametrize("n_classes", SIZES)
    def test_it_can_be_read(self, n_classes):
        y_train = long_tail(n_classes)[0]
        y = np.repeat(np.arange(n_classes), 5)
        y_pred = np.where(np.arange(len(y)) % 5 < 2, y, 0)
        display = RecallDisplay.from_predictions(
            y, y_pred, before=np.zeros_like(y), y_train=y_train
        )
        assert_readable(display.figure_)

    def test_lengths_that_differ(self):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            RecallDisplay.from_predictions([0, 1], [0, 1], before=[0])


class TestComparison:
    def test_it_shows_the_table_best_first(self, table):
        display = ComparisonDisplay.from_table(table, highlight=["inverse"])
        means = table["balanced_accuracy", "mean"].sort_values()
        points = display.axes_[0].collections[-1].get_offsets()
        np.testing.assert_allclose(points[:, 0], means)
        names = [label.get_text() for label in display.axes_[0].get_yticklabels()]
        assert sorted(names) == sorted(table.index)
        assert table.loc[names[-1], ("balanced_accuracy", "mean")] == means.max()
        assert_readable(display.figure_)

    @pytest.mark.parametrize("figure", ["log_loss", "ece", "fit_time", "time_ratio"])
    def test_the_smallest_cost_is_on_top(self, figure, table):
        table = table.copy()
        table.loc["ce", (figure, "mean")] = np.nan
        display = ComparisonDisplay.from_table(table, figures=[figure])
        names = [label.get_text() for label in display.axes_[0].get_yticklabels()]
        assert names[0] == "ce"  # that failed
        assert names[-1] == table[figure, "mean"].idxmin()

    def test_times_of_many_sizes_are_on_a_log_scale(self, table):
        table = table.copy()
        table["time_ratio", "mean"] = [1.0, 1.5, 20.0]
        display = ComparisonDisplay.from_table(table, figures=["ece", "time_ratio"])
        assert [ax.get_xscale() for ax in display.axes_] == ["linear", "log"]
        assert_readable(display.figure_)

    def test_a_method_that_failed_has_no_point(self, table):
        table = table.copy()
        table.loc["ce", [("few", "mean"), ("few", "std")]] = np.nan
        display = ComparisonDisplay.from_table(table, figures=["few"])
        assert_readable(display.figure_)

    def test_what_is_not_there(self, table):
        with pytest.raises(ValueError, match="figures='f1' is not known"):
            ComparisonDisplay.from_table(table, figures=["f1"])
        with pytest.raises(ValueError, match="highlight='sgd' is not known"):
            ComparisonDisplay.from_table(table, highlight=["sgd"])


def test_matplotlib_is_imported_when_something_is_drawn(monkeypatch):
    script = "import sys, sk_otreweight.plotting; print('matplotlib' in sys.modules)"
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, text=True) == "False\n"
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="Pictures need matplotlib: pip install"):
        ClassWeightDisplay.from_weights([0, 1], [1, 1])
