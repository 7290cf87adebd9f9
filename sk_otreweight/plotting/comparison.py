"""Many methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sk_otreweight._validation import check_choice
from sk_otreweight.plotting.axes import BLUE, GREY, log_scale, make_axes

_TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "few": "recall of rare classes",
    "time_ratio": "time / plain training",
}
# Of which the smallest is the best.
_COSTS = ("log_loss", "ece", "fit_time", "time_ratio")


class ComparisonDisplay:
    """The table of :func:`~sk_otreweight.compare`, best method on top.

    Parameters
    ----------
    table : DataFrame
        As `compare` returns it.
    figures : sequence of str, default=("balanced_accuracy", "few", "time_ratio")
        Columns to draw, a panel each; methods are ordered by the first one.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        A panel beside the other.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sk_otreweight import OTReweightedClassifier, compare, make_long_tailed
    >>> from sk_otreweight.plotting import ComparisonDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> X, X_test, y, y_test = train_test_split(X / 16, y, random_state=0)
    >>> data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)
    >>> table = compare(
    ...     ["ce", OTReweightedClassifier()], data.X, data.y, X_test, y_test,
    ...     seeds=2, verbose=False,
    ... )
    >>> display = ComparisonDisplay.from_table(table)
    """

    def __init__(
        self,
        *,
        table: Any,
        figures: Sequence[str] = ("balanced_accuracy", "few", "time_ratio"),
    ):
        self.table = table
        self.figures = figures

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        figures: Sequence[str] = ("balanced_accuracy", "few", "time_ratio"),
        highlight: Sequence[str] = (),
        axes: Any = None,
    ) -> ComparisonDisplay:
        """Draw the table of `compare`.

        Parameters
        ----------
        table : DataFrame
            As `compare` returns it. Methods that failed have no point.
        figures : sequence of str
            Columns to draw, a panel each; methods are ordered by the first one.
        highlight : sequence of str, default=()
            Methods in another colour.
        axes : sequence of matplotlib Axes, default=None
            One per panel; None makes a new figure.

        Returns
        -------
        display : ComparisonDisplay

        Raises
        ------
        ValueError
            If the table has no such column or method.
        """
        return cls(table=table, figures=tuple(figures)).plot(axes, highlight=highlight)

    def plot(
        self, axes: Any = None, *, highlight: Sequence[str] = ()
    ) -> ComparisonDisplay:
        """Draw a point for each mean, with a line of a standard deviation to each side.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, default=None
            One per panel; None makes a new figure.
        highlight : sequence of str, default=()
            Methods in another colour.

        Returns
        -------
        display : ComparisonDisplay
        """
        table = self.table
        known = list(dict.fromkeys(name for name, _ in table.columns))
        for figure in self.figures:
            check_choice(figure, name="figures", choices=known)
        for name in highlight:
            check_choice(name, name="highlight", choices=list(table.index))
        table = table.sort_values(  # the last one is drawn on top
            (self.figures[0], "mean"),
            ascending=self.figures[0] not in _COSTS,
            na_position="first",
        )
        n = len(self.figures)
        self.axes_ = make_axes(
            axes,
            n,
            nrows=1,
            ncols=n,
            sharey=True,
            figsize=(2 + 2.5 * n, 1.2 + 0.25 * len(table)),
        )
        self.figure_ = self.axes_[0].figure
        places = np.arange(len(table))
        colors = [BLUE if name in highlight else GREY for name in table.index]
        for ax, figure in zip(self.axes_, self.figures, strict=True):
            means, spreads = table[figure, "mean"], table[figure, "std"].fillna(0)
            ax.hlines(places, means - spreads, means + spreads, colors=colors)
            ax.scatter(means, places, c=colors, s=25, zorder=3)
            ax.set_xlabel(_TITLES.get(figure, figure))
            ax.grid(axis="both", alpha=0.3)
            if means.min() > 0 and means.max() / means.min() > 5:
                log_scale(ax.xaxis)
        self.axes_[0].set_yticks(places, table.index)
        return self
