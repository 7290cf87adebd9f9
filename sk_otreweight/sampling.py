"""Draws of training rows in which classes have other shares."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_rows(
    labels: Tensor, n: int, generator: torch.Generator, *, together: int = 4
) -> Tensor:
    """Draw rows from all classes alike.

    The classes take turns in a random order, each with some rows at a time, and go
    through all of their rows before any of them comes again (Kang et al., ICLR 2020).

    Parameters
    ----------
    labels : Tensor of shape (n_rows,)
        Classes without rows are passed over.
    n : int
        How many rows to draw.
    generator : torch.Generator
        On the CPU.
    together : int, default=4
        Rows that a class gives at a time.

    Returns
    -------
    rows : Tensor of shape (n,)
    """
    members = class_members(labels)
    n_turns = -(-n // together)
    n_rounds = -(-n_turns // len(members))
    orders = [
        torch.randperm(len(members), generator=generator) for _ in range(n_rounds)
    ]
    turns = torch.cat(orders)[:n_turns].repeat_interleave(together)[:n]
    return _rows_in_turn(turns, members, generator)


def power_rows(
    labels: Tensor, n: int, power: float, generator: torch.Generator
) -> Tensor:
    r"""Draw rows with class shares between those of the rows and equal ones.

    The class of each is drawn with probabilities :math:`n_k^{1 - power}`, and a class
    goes through all of its rows before any of them comes again.

    Parameters
    ----------
    labels : Tensor of shape (n_rows,)
    n : int
        How many rows to draw.
    power : float
        At 0 the classes come as often as they have rows, at 1 alike; at 0.5 by the
        square root (Mahajan et al., ECCV 2018).
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    rows : Tensor of shape (n,)
    """
    members = class_members(labels)
    shares = torch.tensor([len(rows) ** (1 - power) for rows in members])
    turns = torch.multinomial(shares, n, replacement=True, generator=generator)
    return _rows_in_turn(turns, members, generator)


def _rows_in_turn(
    turns: Tensor, members: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Return a row of each class whose turn it is, by its position in `members`."""
    counts = turns.bincount(minlength=len(members)).tolist()
    drawn = [_in_turn(*x, generator) for x in zip(members, counts, strict=True)]
    rows = torch.empty(len(turns), dtype=torch.int64)
    rows[turns.argsort(stable=True)] = torch.cat(drawn)
    return rows


def class_members(labels: Tensor) -> list[Tensor]:
    """Return the row numbers of each class that has some."""
    order = labels.cpu().argsort(stable=True)
    counts = labels.cpu().bincount()
    return list(order.split(counts[counts > 0].tolist()))


def _in_turn(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Return `n` of the rows, all of them before any comes again."""
    n_rounds = -(-n // len(rows))
    orders = [torch.randperm(len(rows), generator=generator) for _ in range(n_rounds)]
    return rows[torch.cat(orders)[:n]] if orders else rows[:0]


def rows_of_classes(
    classes: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw a row of each of some classes, with replacement.

    Parameters
    ----------
    classes : Tensor of shape (n,)
        Each must have a row.
    labels : Tensor of shape (n_rows,)
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    rows : Tensor of shape (n,)
    """
    labels = labels.cpu()
    order, counts = labels.argsort(stable=True), labels.bincount()
    first = counts.cumsum(0) - counts
    places = torch.rand(len(classes), generator=generator, dtype=torch.float64)
    return order[first[classes] + (places * counts[classes]).long()]
