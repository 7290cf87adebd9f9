"""Where the mass of rows goes, before and after they are weighted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d

from sk_otreweight._validation import (
    check_cost_table,
    check_point_labels,
    check_row_weights,
)
from sk_otreweight.plotting.axes import BLUE, GREY, draw_rows, label_spans, make_axes
from sk_otreweight.plotting.rows import shown_rows, training_rows
from sk_otreweight.transport import sinkhorn


class TransportPlanDisplay:
    """Cost, and the transport plan of uniform and of learned weights (Fig. 5).

    Above each plan stands the mass of the rows: the same for all before, the weights
    after; beside it that of the points of Q. Where there are more than 400 rows or 150
    points of Q, the least cost and the largest mass of a block of cells are drawn.

    Parameters
    ----------
    cost : ndarray of shape (n_rows, n_points)
    before, after : ndarray of shape (n_rows, n_points)
        The plans; they sum to 1.
    y : ndarray of shape (n_rows,)
        Labels of the rows, in runs of the same.
    point_labels : ndarray of shape (n_points,)

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, shape (5,)
        Cost; rows and plan before; rows and plan after.
    figure_ : matplotlib Figure

    See Also
    --------
    SampleWeightDisplay : Cost and weights of more rows.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> from sk_otreweight.plotting import TransportPlanDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    >>> display = TransportPlanDisplay.from_estimator(clf, data.X, data.y)
    """

    def __init__(
        self,
        *,
        cost: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        y: np.ndarray,
        point_labels: np.ndarray,
    ):
        self.cost = cost
        self.before = before
        self.after = after
        self.y = y
        self.point_labels = point_labels

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, max_rows: int = 100, axes: Any = None
    ) -> TransportPlanDisplay:
        """Draw the plans of a fitted `OTReweightedClassifier`.

        Parameters
        ----------
        estimator : OTReweightedClassifier
        X, y : inputs and labels that it was fitted on
        max_rows : int, default=100
            Rows of a mini-batch that is drawn; of the most frequent classes, some are
            left out. Its plans are solved for anew, with the estimator's `reg`.
        axes : sequence of 5 matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : TransportPlanDisplay

        Raises
        ------
        ValueError
            If there are not as many rows as the estimator knows weights of.
        """
        given = training_rows(estimator, X, y)
        return cls.from_cost(**given, reg=estimator.reg, max_rows=max_rows, axes=axes)

    @classmethod
    def from_cost(
        cls,
        cost: Any,
        y: Any,
        sample_weight: Any,
        point_labels: Any,
        *,
        mass: Any = None,
        reg: float = 0.1,
        max_rows: int = 100,
        axes: Any = None,
    ) -> TransportPlanDisplay:
        """Draw the plans of a cost matrix and weights of any origin.

        Parameters
        ----------
        cost : array-like of shape (n_samples, n_points)
            Between training rows and points of Q.
        y : array-like of shape (n_samples,)
            Labels of the rows.
        sample_weight : array-like of shape (n_samples,)
            Their weights.
        point_labels : array-like of shape (n_points,)
            Labels of the points.
        mass : array-like of shape (n_points,), default=None
            Of the points; None is the same for all.
        reg : float, default=0.1
            Weight lambda of the entropy (10).
        max_rows, axes
            As in `from_estimator`.

        Returns
        -------
        display : TransportPlanDisplay

        Raises
        ------
        ValueError
            If shapes do not fit, a number is not finite or a weight negative, or `reg`
            is not positive.
        """
        y, sample_weight = check_row_weights(y, sample_weight)
        cost = check_cost_table(cost, n_rows=len(y))
        point_labels = check_point_labels(point_labels, n_points=cost.shape[1])
        rows = shown_rows(y, sample_weight, max_rows)
        cost, weights = cost[rows], sample_weight[rows]
        n, m = cost.shape
        mass = np.full(m, 1 / m) if mass is None else column_or_1d(mass)
        before, after = (
            sinkhorn(*map(torch.from_numpy, (cost, a, np.float64(mass))), reg).plan
            for a in (np.full(n, 1 / n), weights / weights.sum())
        )
        return cls(
            cost=cost,
            before=before.numpy(),
            after=after.numpy(),
            y=y[rows],
            point_labels=point_labels,
        ).plot(axes)

    def plot(self, axes: Any = None) -> TransportPlanDisplay:
        """Draw cost and plans below each other.

        Parameters
        ----------
        axes : sequence of 5 matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : TransportPlanDisplay
        """
        self.axes_ = make_axes(
            axes,
            5,
            sharex=True,
            figsize=(7, 7.5),
            height_ratios=(3, 1, 3, 1, 3),
        )
        self.figure_ = self.axes_[0].figure
        first = self.axes_[0]
        image = draw_rows(first, self.cost, self.point_labels, pool=np.minimum)
        self.figure_.colorbar(image, ax=first, label="cost", pad=0.1)
        highest = 1.1 * max(self.before.sum(1).max(), self.after.sum(1).max())
        places = np.arange(len(self.y))
        plans = {"before": self.before, "after": self.after}
        pairs = self.axes_[1:].reshape(2, 2)
        for (name, plan), (upper, lower) in zip(plans.items(), pairs, strict=True):
            upper.fill_between(places, plan.sum(1), step="mid", color=BLUE)
            upper.axhline(1 / len(places), color=GREY, linewidth=0.8)
            upper.set(ylabel="mass", ylim=(0, highest))
            style = {"pool": np.maximum, "vmin": 0}
            image = draw_rows(lower, plan, self.point_labels, **style)
            self.figure_.colorbar(image, ax=lower, label=f"plan {name}", pad=0.1)
            beside = lower.inset_axes((1.01, 0, 0.07, 1), sharey=lower)
            beside.barh(np.arange(plan.shape[1]), plan.sum(0), height=1, color=BLUE)
            beside.set_axis_off()
            beside.set_in_layout(False)  # between the plan and its colour bar
        label_spans(self.axes_[-1], self.y, f"{len(places):,} rows, by class")
        return self
