"""How the loss, the accuracy and the weights went on in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sk_otreweight._validation import check_choice
from sk_otreweight.plotting.axes import BLUE, GREY, ORANGE, make_axes

# What is drawn of the history of a net, if it is there: names of columns by panel.
_PANELS = {
    "loss": ("train_loss", "valid_loss"),
    "accuracy": ("valid_acc",),
    "effective sample size / n": ("weights_ess",),
}
_STYLES = {
    "train_loss": {"color": BLUE, "label": "training"},
    "valid_loss": {"color": ORANGE, "label": "validation"},
    "valid_acc": {"color": ORANGE, "label": "validation"},
    "weights_ess": {"color": BLUE},
}


class TrainingDisplay:
    """Loss, accuracy and effective sample size over both stages (Fig. 4).

    What a net did not record is left out: a validation loss and accuracy need its
    `train_split`, or a callback that writes into its history.

    Parameters
    ----------
    history : list of dict
        An entry per epoch, as in ``net.history``.
    metrics : sequence of str, default=()
        Further columns to draw, a panel each.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        A panel below the other.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> from sk_otreweight.plotting import TrainingDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = OTReweightedClassifier(random_state=0).fit(data.X, data.y)
    >>> display = TrainingDisplay.from_estimator(clf, x="seconds")
    """

    def __init__(self, *, history: Any, metrics: Any = ()):
        self.history = history
        self.metrics = metrics

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, x: str = "epoch", metrics: Any = (), axes: Any = None
    ) -> TrainingDisplay:
        """Draw the training of a fitted classifier, or of a skorch net.

        Parameters
        ----------
        estimator : classifier with ``history_``, or skorch net with ``history``
        x : {"epoch", "seconds"}, default="epoch"
            What goes from left to right.
        metrics : sequence of str, default=()
            Further columns of the history, such as those of skorch's `EpochScoring`.
        axes : sequence of matplotlib Axes, default=None
            One per panel; None makes a new figure.

        Returns
        -------
        display : TrainingDisplay

        Raises
        ------
        ValueError
            If `x` is not known, the history lacks one of `metrics`, or nothing was
            trained.
        """
        if not hasattr(estimator, "history"):
            check_is_fitted(estimator, "history_")
        history = getattr(estimator, "history_", None)
        history = estimator.history if history is None else history
        return cls(history=list(history), metrics=tuple(metrics)).plot(axes, x=x)

    def plot(self, axes: Any = None, *, x: str = "epoch") -> TrainingDisplay:
        """Draw a panel for each kind of figure.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, default=None
            One per panel; None makes a new figure.
        x : {"epoch", "seconds"}, default="epoch"

        Returns
        -------
        display : TrainingDisplay
        """
        check_choice(x, name="x", choices=("epoch", "seconds"))
        panels = self._panels()
        self.axes_ = make_axes(
            axes, len(panels), sharex=True, figsize=(7, 1 + 1.8 * len(panels))
        )
        self.figure_ = self.axes_[0].figure
        places = np.arange(1, len(self.history) + 1)
        if x == "seconds":
            places = np.cumsum(self._column("dur"))
        border = self._border(places)
        for ax, (title, names) in zip(self.axes_, panels.items(), strict=True):
            for name in names:
                style = {"color": BLUE} | _STYLES.get(name, {})
                ax.plot(places, self._column(name), marker=".", **style)
            if border is not None:
                ax.axvline(border, color=GREY, linestyle="--", linewidth=1)
            ax.set_ylabel(title)
            if len(names) > 1 or "label" in _STYLES.get(names[0], {}):
                ax.legend(frameon=False)
        if border is not None:
            self.axes_[0].annotate(
                "stage 2",
                (border, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                color="0.4",
            )
        self.axes_[-1].set_xlabel(x)
        return self

    def _panels(self) -> dict[str, list[str]]:
        if not self.history:
            raise ValueError(
                "The history has no epochs: nothing was trained, as with max_epochs=0. "
                "Train for an epoch at least."
            )
        known = {key for epoch in self.history for key in epoch}
        lacking = [name for name in self.metrics if name not in known]
        if lacking:
            valid = sorted(known - {"batches"})
            raise ValueError(
                f"The history has no {lacking}; it has {valid}. Columns of your own "
                "come from callbacks such as skorch's EpochScoring."
            )
        panels = {
            title: [name for name in names if name in known]
            for title, names in _PANELS.items()
        } | {name: [name] for name in self.metrics}
        return {title: names for title, names in panels.items() if names}

    def _column(self, name: str) -> np.ndarray:
        values = [epoch.get(name) for epoch in self.history]
        return np.array([np.nan if x is None else x for x in values], dtype=float)

    def _border(self, places: np.ndarray) -> float | None:
        """Return where stage 2 begins, None if there are not two stages."""
        stages = np.array([epoch.get("stage", 1) for epoch in self.history])
        if not (stages == 1).any() or not (stages == 2).any():
            return None
        first = int(np.argmax(stages == 2))
        return float(places[first - 1 : first + 1].mean())
