"""What it costs to transport rows, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np

from sk_otreweight._validation import (
    check_cost_table,
    check_point_labels,
    check_row_weights,
)
from sk_otreweight.plotting.axes import BLUE, GREY, draw_rows, label_spans, make_axes
from sk_otreweight.plotting.rows import shown_rows, training_rows


class SampleWeightDisplay:
    """Cost matrix and weights of rows, grouped by class (Fig. 1 of the paper).

    Classes come from the most frequent to the rarest; within a class the rows are in
    the order of their weights. Where there are more than 400 rows or 150 points of Q,
    the least cost of a block of cells is drawn.

    Parameters
    ----------
    cost : ndarray of shape (n_rows, n_points)
        Between the rows that are shown and the points of Q.
    sample_weight : ndarray of shape (n_rows,)
    y : ndarray of shape (n_rows,)
        Labels of the rows.
    point_labels : ndarray of shape (n_points,)
    n_samples : int, default=None
        Rows that there are, of which those are some; None for the same number.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, shape (2,)
    figure_ : matplotlib Figure

    See Also
    --------
    ClassWeightDisplay : Means over the classes.
    TransportPlanDisplay : Where the mass of the rows goes.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> from sk_otreweight.plotting import SampleWeightDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    >>> display = SampleWeightDisplay.from_estimator(clf, data.X, data.y)
    """

    def __init__(
        self,
        *,
        cost: np.ndarray,
        sample_weight: np.ndarray,
        y: np.ndarray,
        point_labels: np.ndarray,
        n_samples: int | None = None,
    ):
        self.cost = cost
        self.sample_weight = sample_weight
        self.y = y
        self.point_labels = point_labels
        self.n_samples = n_samples

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, max_rows: int = 400, axes: Any = None
    ) -> SampleWeightDisplay:
        """Draw the weights of a fitted `OTReweightedClassifier`.

        Parameters
        ----------
        estimator : OTReweightedClassifier
        X, y : inputs and labels that it was fitted on
        max_rows : int, default=400
            Rows to be shown; of the most frequent classes, some are left out.
        axes : sequence of 2 matplotlib Axes, default=None
            For cost and weights; None makes a new figure.

        Returns
        -------
        display : SampleWeightDisplay

        Raises
        ------
        ValueError
            If there are not as many rows as the estimator knows weights of.
        """
        given = training_rows(estimator, X, y)
        given.pop("mass")
        return cls.from_cost(**given, max_rows=max_rows, axes=axes)

    @classmethod
    def from_cost(
        cls,
        cost: Any,
        y: Any,
        sample_weight: Any,
        point_labels: Any,
        *,
        max_rows: int = 400,
        axes: Any = None,
    ) -> SampleWeightDisplay:
        """Draw costs and weights of any origin.

        Parameters
        ----------
        cost : array-like of shape (n_samples, n_points)
            Between training rows and points of Q, in any order.
        y : array-like of shape (n_samples,)
            Labels of the rows.
        sample_weight : array-like of shape (n_samples,)
            Their weights.
        point_labels : array-like of shape (n_points,)
            Labels of the points.
        max_rows, axes
            As in `from_estimator`.

        Returns
        -------
        display : SampleWeightDisplay

        Raises
        ------
        ValueError
            If shapes do not fit, or a number is not finite or a weight negative.
        """
        y, sample_weight = check_row_weights(y, sample_weight)
        cost = check_cost_table(cost, n_rows=len(y))
        point_labels = check_point_labels(point_labels, n_points=cost.shape[1])
        rows = shown_rows(y, sample_weight, max_rows)
        return cls(
            cost=cost[rows],
            sample_weight=sample_weight[rows],
            y=y[rows],
            point_labels=point_labels,
            n_samples=len(y),
        ).plot(axes)

    def plot(self, axes: Any = None) -> SampleWeightDisplay:
        """Draw the cost above the weights.

        Parameters
        ----------
        axes : sequence of 2 matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : SampleWeightDisplay
        """
        self.axes_ = make_axes(axes, 2, sharex=True, figsize=(7, 5))
        top, bottom = self.axes_
        self.figure_ = top.figure
        image = draw_rows(top, self.cost, self.point_labels, pool=np.minimum)
        self.figure_.colorbar(image, ax=top, label="cost", pad=0.02)
        places = np.arange(len(self.y))
        bottom.fill_between(places, self.sample_weight, step="mid", color=BLUE)
        bottom.axhline(1, color=GREY, linewidth=0.8)
        bottom.set(ylabel="weight (grey: 1)", ylim=(0, None))
        n_samples = self.n_samples or len(self.y)
        some = f"{len(self.y):,} of " if n_samples > len(self.y) else ""
        label_spans(bottom, self.y, f"{some}{n_samples:,} rows, by class")
        return self
