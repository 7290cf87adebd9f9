"""How well each class is recognised, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_otreweight.metrics import class_recall
from sk_otreweight.plotting.axes import (
    BLUE,
    GREY,
    label_classes,
    make_axes,
)

# Of more classes than this the means of groups are drawn, so many.
_MOST_BARS, _GROUPS = 50, 20


class RecallDisplay:
    """Recall of each class, from the most frequent to the rarest.

    What Fig. 2 of the paper shows on the diagonals of confusion matrices; for these
    themselves see ``sklearn.metrics.ConfusionMatrixDisplay``.

    Parameters
    ----------
    recall : dict of str to ndarray of shape (n_classes,)
        Recall of each class by the name of a model, at most two.
    classes : ndarray of shape (n_classes,)
        Labels.
    class_counts : ndarray of shape (n_classes,), default=None
        Training rows of each class, to order them by; None keeps the order.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> from sk_otreweight.plotting import RecallDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> X, X_test, y, y_test = train_test_split(X / 16, y, random_state=0)
    >>> data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)
    >>> plain = OTReweightedClassifier(loss="net", max_epochs=0, random_state=0)
    >>> plain = plain.fit(data.X, data.y)
    >>> clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    >>> display = RecallDisplay.from_estimator(clf, X_test, y_test, before=plain)
    """

    def __init__(
        self,
        *,
        recall: dict[str, np.ndarray],
        classes: np.ndarray,
        class_counts: np.ndarray | None = None,
    ):
        self.recall = recall
        self.classes = classes
        self.class_counts = class_counts

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, before: Any = None, ax: Any = None
    ) -> RecallDisplay:
        """Draw the recalls of a fitted classifier.

        Parameters
        ----------
        estimator : classifier
            If it has ``class_counts_``, classes are ordered by these.
        X, y : inputs and labels of the test
        before : classifier, default=None
            Another one to compare with, fitted on the same classes.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : RecallDisplay
        """
        y = column_or_1d(y)
        classes = getattr(estimator, "classes_", np.unique(y))
        return cls._of(
            y,
            estimator.predict(X),
            None if before is None else before.predict(X),
            classes,
            getattr(estimator, "class_counts_", None),
            ax,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_pred: Any,
        *,
        before: Any = None,
        y_train: Any = None,
        ax: Any = None,
    ) -> RecallDisplay:
        """Draw the recalls of predictions.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n_samples,)
            Labels of the test, and what was predicted.
        before : array-like of shape (n_samples,), default=None
            Predictions to compare with.
        y_train : array-like of shape (n_train,), default=None
            Labels of the training rows, whose numbers order the classes.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : RecallDisplay

        Raises
        ------
        ValueError
            If the lengths of labels and predictions differ.
        """
        classes, counts = np.unique(column_or_1d(y_true)), None
        if y_train is not None:
            y_train = column_or_1d(y_train)
            classes = np.union1d(classes, y_train)
            counts = np.array([(y_train == label).sum() for label in classes])
        return cls._of(y_true, y_pred, before, classes, counts, ax)

    @classmethod
    def _of(
        cls,
        y_true: Any,
        y_pred: Any,
        before: Any,
        classes: np.ndarray,
        counts: np.ndarray | None,
        ax: Any,
    ) -> RecallDisplay:
        models = {"before": before, "after": y_pred}
        if before is None:
            models = {"recall": y_pred}
        check_consistent_length(y_true, *models.values())
        recall = {
            name: class_recall(y_true, predicted, labels=classes)
            for name, predicted in models.items()
        }
        return cls(recall=recall, classes=classes, class_counts=counts).plot(ax)

    def plot(self, ax: Any = None) -> RecallDisplay:
        """Draw the recalls side by side.

        Of many classes, each is a point, and the means of groups of neighbours are
        lines.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : RecallDisplay
        """
        (self.ax_,) = make_axes(ax, 1)
        self.figure_ = self.ax_.figure
        n, what = len(self.classes), "class"
        order = np.arange(n)
        if self.class_counts is not None:
            order = np.argsort(-np.asarray(self.class_counts), kind="stable")
            what = "class, most frequent first"
        colors = [GREY, BLUE] if len(self.recall) == 2 else [BLUE]
        draw = self._bars if n <= _MOST_BARS else self._points
        for i, ((name, recall), color) in enumerate(
            zip(self.recall.items(), colors, strict=True)
        ):
            label = f"{name} (mean {np.nanmean(recall):.3f})"
            draw(recall[order], i - (len(colors) - 1) / 2, color, label)
        self.ax_.set(ylabel="recall", ylim=(0, 1.02))
        label_classes(self.ax_.xaxis, self.classes[order], what)
        # Above the axes: bars reach up to everywhere within.
        self.ax_.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        return self

    def _bars(self, recall: np.ndarray, side: float, color: str, label: str) -> None:
        width = 0.8 / len(self.recall)
        places = np.arange(len(recall)) + side * width
        self.ax_.bar(places, recall, width, color=color, label=label)

    def _points(self, recall: np.ndarray, side: float, color: str, label: str) -> None:
        places = np.arange(len(recall))
        self.ax_.plot(places, recall, ".", color=color, markersize=3, alpha=0.4)
        groups = np.array_split(places, _GROUPS)
        means = [np.nanmean(recall[group]) for group in groups]
        edges = [group[0] - 0.5 for group in groups] + [len(recall) - 0.5]
        self.ax_.stairs(
            means, edges, baseline=None, color=color, linewidth=2, label=label
        )
