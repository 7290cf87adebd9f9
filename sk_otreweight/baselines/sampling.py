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
    counts = turns.bincount(minlength=len(members)).tolist()
    drawn = [_in_turn(*x, generator) for x in zip(members, counts, strict=True)]
    rows = torch.empty(n, dtype=torch.int64)
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
