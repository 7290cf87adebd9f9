"""Computing in smaller parts when a device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# By how much parts shrink from one attempt to the next.
_SHRINK = 4


def in_fitting_parts(compute: Callable[[int], T], size: int) -> T:
    """Return ``compute(size)``, with a smaller size if that does not fit.

    Parameters
    ----------
    compute : callable
        Returns the same, but for rounding, for each size; must leave nothing changed
        if it runs out of memory.
    size : int
        Of the parts it computes in, at first.

    Raises
    ------
    torch.cuda.OutOfMemoryError
        If not even parts of size 1 fit.
    """
    while True:
        try:
            return compute(size)
        except torch.cuda.OutOfMemoryError as error:
            if size == 1:
                error.add_note(
                    "The transport problem does not fit on the device even in its "
                    "smallest parts: free memory there, or give Q fewer points "
                    "(meta_set='prototype', or its n_prototypes)."
                )
                raise
        # Only now: the error holds on to what was computed so far.
        torch.cuda.empty_cache()
        size = max(1, size // _SHRINK)
