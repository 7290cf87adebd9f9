"""How far a training run is: a bar over the epochs of its stages, and the time left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from skorch import NeuralNet


class Progress:
    """Tells how far a training run is, and how long the rest will take.

    Use as a context manager around the run. Nets that print a table of their epochs get
    a column of it, ``left``: the seconds that the rest of the run will take if its
    epochs take as long as those of the current stage so far. In the history it is
    ``"event_left"``, which callbacks that log numbers leave out.

    Parameters
    ----------
    epochs : sequence of int
        Epochs of each stage; early stopping may end a stage sooner.
    show_bar : bool, default=False
        Show a bar over the epochs of all stages on the standard error stream.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from sk_otreweight.progress import Progress
    >>> X, y = load_digits(return_X_y=True)
    >>> net = NeuralNetClassifier(
    ...     nn.Linear(64, 10), criterion=nn.CrossEntropyLoss, callbacks__print_log=None
    ... )
    >>> with Progress((2, 3)) as progress:
    ...     progress.begin_stage(1)
    ...     net = net.partial_fit(X.astype("float32"), y, epochs=1)
    ...     progress.end_epoch(net)
    >>> net.history[-1, "event_left"] >= 0
    True
    """

    def __init__(self, epochs: Sequence[int], *, show_bar: bool = False) -> None:
        self.epochs = epochs
        self.show_bar = show_bar
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.show_bar:
            # Only now, because it warns in a notebook that lacks widgets.
            from tqdm.auto import tqdm

            self._bar = tqdm(total=sum(self.epochs), unit="epoch")
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin_stage(self, stage: int, n_done: int = 0) -> None:
        """Begin a stage.

        Parameters
        ----------
        stage : int
            1 for the first.
        n_done : int, default=0
            Epochs of it that were done in an earlier run.
        """
        self._stage, self._done, self._first = stage, n_done, n_done
        self._start = perf_counter()
        if self._bar is not None:
            self._bar.update(n_done)
            self._bar.set_description(f"stage {stage}")

    def end_epoch(self, net: NeuralNet) -> None:
        """Count an epoch; before its callbacks, which print the table.

        Parameters
        ----------
        net : skorch.NeuralNet
            The last epoch of its history is the one that ends.
        """
        self._done += 1
        if net.verbose:
            net.history.record("event_left", self.seconds_left())
        if self._bar is not None:
            self._bar.set_postfix(train_loss=_train_loss(net), refresh=False)
            self._bar.update()

    def stop_stage(self) -> None:
        """Count no longer on the epochs that early stopping saved."""
        if self._bar is not None:
            self._bar.total -= self.epochs[self._stage - 1] - self._done
            self._bar.refresh()

    def seconds_left(self) -> int:
        """Return how long the rest will take, by the pace of the current stage.

        Returns
        -------
        seconds : int
            Rounded; 0 after the last epoch.
        """
        epochs_left = sum(self.epochs[self._stage - 1 :]) - self._done
        pace = (perf_counter() - self._start) / (self._done - self._first)
        return round(pace * epochs_left)


def _train_loss(net: NeuralNet) -> float:
    """Return the mean training loss of an epoch whose callbacks did not run yet."""
    batches = [row for row in net.history[-1]["batches"] if "train_loss" in row]
    total = sum(row["train_loss"] * row["train_batch_size"] for row in batches)
    n_rows = sum(row["train_batch_size"] for row in batches)
    return total / n_rows if n_rows else math.nan
