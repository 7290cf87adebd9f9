"""Axes, colours and class ticks that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sk_otreweight.plotting.rows import class_spans

# Okabe and Ito: told apart with any kind of colour vision, and in grey.
GREY, BLUE, ORANGE = "#999999", "#0072B2", "#D55E00"

# More classes than this are drawn as an outline: bars would be thinner than a pixel.
MOST_BARS = 100
# Labels that have room beside axes of the default size, and their letters in a row.
_MOST_TICKS, _MOST_LETTERS = 25, 60
# Rows, and points of Q, that have a pixel each.
_MOST_CELLS = (400, 150)


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or say how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Pictures need matplotlib: pip install "sk-otreweight[plot]".'
        ) from error
    return plt


def make_axes(axes: Any, n: int, **subplots: Any) -> np.ndarray:
    """Return `n` axes, those given or in a new figure.

    Parameters
    ----------
    axes : Axes, sequence of Axes or None
    n : int
    **subplots
        Of ``matplotlib.pyplot.subplots``, for a new figure.
    """
    if axes is None:
        subplots = {"nrows": n, "layout": "constrained"} | subplots
        _, axes = pyplot().subplots(**subplots)
    axes = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(axes) != n:
        raise ValueError(
            f"{len(axes)} axes were given, but {n} are drawn on: pass a list of {n} "
            "matplotlib Axes, or None for a new figure."
        )
    return axes


def draw_classes(ax: Any, values: np.ndarray, **style: Any) -> Any:
    """Draw a value of each class: bars, or their outline if there are many."""
    n = len(values)
    if n <= MOST_BARS:
        return ax.bar(np.arange(n), values, **style)
    return ax.stairs(values, np.arange(n + 1) - 0.5, fill=True, **style)


def label_classes(axis: Any, labels: Sequence[Any], what: str = "class") -> None:
    """Name the classes on an axis, or some of them if there are many.

    Parameters
    ----------
    axis : matplotlib Axis
        ``ax.xaxis`` or ``ax.yaxis``; class k is at k.
    labels : sequence
    what : str, default="class"
        Of the axis label.
    """
    names = [str(label) for label in labels]
    n, is_x = len(names), axis.axis_name == "x"
    if n > _MOST_TICKS:
        axis.set_label_text(f"{what} (by place)")
        return
    is_long = is_x and sum(map(len, names)) + n > _MOST_LETTERS
    style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(np.arange(n), names, **(style if is_long else {}))
    axis.set_label_text(what)


def log_scale(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten.

    Parameters
    ----------
    axis : matplotlib Axis
    """
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def draw_rows(
    ax: Any, table: np.ndarray, point_labels: Any, *, pool: np.ufunc, **style: Any
) -> Any:
    """Draw a table (n_rows, n_points) with rows from left to right, points downwards.

    Of more cells than there are pixels some would not be seen: those of a block are
    drawn as one.

    Parameters
    ----------
    ax : matplotlib Axes
    table : ndarray of shape (n_rows, n_points)
    point_labels : array-like of shape (n_points,)
    pool : ufunc
        What is drawn of a block, ``np.minimum`` or ``np.maximum``.
    **style
        For `imshow`.

    Returns
    -------
    image : matplotlib AxesImage
    """
    n_rows, n_points = table.shape
    for axis, most in enumerate(_MOST_CELLS):
        if table.shape[axis] > most:
            starts = np.linspace(0, table.shape[axis], most, endpoint=False)
            table = pool.reduceat(table, starts.astype(int), axis=axis)
    style = {"cmap": "viridis", "interpolation": "nearest"} | style
    extent = (-0.5, n_rows - 0.5, n_points - 0.5, -0.5)
    image = ax.imshow(table.T, aspect="auto", extent=extent, **style)
    label_classes(ax.yaxis, list(point_labels), "point of Q")
    return image


def label_spans(ax: Any, y: np.ndarray, what: str) -> None:
    """Name the runs of rows of a class below axes, those that have room."""
    labels, starts, ends = class_spans(y)
    n = len(y)
    middles = (starts + ends - 1) / 2
    names = [str(label) for label in labels]
    # Of the narrowest axes that are made here, a letter takes a fiftieth.
    is_shown = _with_room(middles / n, [(len(name) + 0.25) / 48 for name in names])
    ax.set_xticks(middles[is_shown], [names[i] for i in np.flatnonzero(is_shown)])
    if len(labels) <= _MOST_TICKS:
        ax.set_xticks(ends[:-1] - 0.5, minor=True)
        ax.tick_params(axis="x", which="minor", length=6)
        ax.tick_params(axis="x", which="major", length=0, pad=7)
    ax.set(xlabel=what, xlim=(-0.5, n - 0.5))


def _with_room(places: np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """Return which labels do not touch the one shown before them."""
    is_shown, end = np.zeros(len(places), dtype=bool), -np.inf
    for i, (place, width) in enumerate(zip(places, widths, strict=True)):
        if place - width / 2 >= end:
            is_shown[i], end = True, place + width / 2
    return is_shown
