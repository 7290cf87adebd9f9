"""How many rows the classes have, and what they weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sk_otreweight._validation import check_row_weights
from sk_otreweight.plotting.axes import (
    BLUE,
    GREY,
    draw_classes,
    label_classes,
    log_scale,
    make_axes,
)


class ClassWeightDisplay:
    """Class counts and mean weights (Fig. 3 of the paper).

    Parameters
    ----------
    class_counts : ndarray of shape (n_classes,)
        Training rows of each class.
    class_weight : ndarray of shape (n_classes,)
        Mean weight of these.
    classes : ndarray of shape (n_classes,)
        Their labels.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Of the counts.
    weight_ax_ : matplotlib Axes
        Of the weights, over the other one.
    figure_ : matplotlib Figure

    See Also
    --------
    SampleWeightDisplay : The weights of single rows.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> from sk_otreweight.plotting import ClassWeightDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    >>> display = ClassWeightDisplay.from_estimator(clf)
    """

    def __init__(
        self, *, class_counts: np.ndarray, class_weight: np.ndarray, classes: np.ndarray
    ):
        self.class_counts = class_counts
        self.class_weight = class_weight
        self.classes = classes

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> ClassWeightDisplay:
        """Draw the weights of a fitted classifier of this package.

        Parameters
        ----------
        estimator : classifier
            With ``class_counts_``, ``class_weight_`` and ``classes_``.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : ClassWeightDisplay
        """
        check_is_fitted(estimator, ["class_counts_", "class_weight_"])
        return cls(
            class_counts=estimator.class_counts_,
            class_weight=estimator.class_weight_,
            classes=estimator.classes_,
        ).plot(ax)

    @classmethod
    def from_weights(
        cls, y: Any, sample_weight: Any, *, ax: Any = None
    ) -> ClassWeightDisplay:
        """Draw weights of any origin.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels of the training rows.
        sample_weight : array-like of shape (n_samples,)
            Their weights.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : ClassWeightDisplay

        Raises
        ------
        ValueError
            If the lengths differ, or a weight is negative or not finite.
        """
        y, sample_weight = check_row_weights(y, sample_weight)
        classes, codes = np.unique(y, return_inverse=True)
        counts = np.bincount(codes)
        weights = np.bincount(codes, sample_weight) / counts
        return cls(class_counts=counts, class_weight=weights, classes=classes).plot(ax)

    def plot(self, ax: Any = None) -> ClassWeightDisplay:
        """Draw counts as bars and weights as points, both on log scales.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : ClassWeightDisplay
        """
        (self.ax_,) = make_axes(ax, 1)
        self.weight_ax_, self.figure_ = self.ax_.twinx(), self.ax_.figure
        order = np.argsort(-self.class_counts, kind="stable")
        places, few = np.arange(len(order)), len(order) <= 30
        draw_classes(self.ax_, self.class_counts[order], color=GREY, alpha=0.6)
        self.weight_ax_.plot(
            places,
            self.class_weight[order],
            color=BLUE,
            linewidth=1.5,
            marker="o" if few else None,
            markersize=5,
        )
        self.weight_ax_.axhline(1, color=BLUE, linewidth=0.8, linestyle=":")
        log_scale(self.ax_.yaxis)
        log_scale(self.weight_ax_.yaxis)
        self.ax_.set_ylabel("training rows (bars)")
        self.weight_ax_.set_ylabel("mean weight (line; dotted: 1)", color=BLUE)
        self.weight_ax_.tick_params(axis="y", which="both", colors=BLUE)
        label_classes(self.ax_.xaxis, self.classes[order], "class, most frequent first")
        return self
