"""Several processes that train one net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def check_can_distribute(name: str, can_distribute: bool) -> None:
    """Raise if an estimator is made for a process of its own."""
    if not can_distribute:
        raise ValueError(
            f"{name} trains in one process: launch one, or use OTReweightedClassifier, "
            "which several processes can train."
        )


def check_alike(numbers: Mapping[str, Sequence[int]]) -> None:
    """Raise unless each number is the same in all processes."""
    different = {name: x for name, x in numbers.items() if len(set(x)) > 1}
    if different:
        raise ValueError(
            "The processes of a training must be given the same: these differ from "
            f"process to process: {different}. Give every process all rows, in the "
            "same order, and one checkpoint that all can read."
        )


def check_is_wrapped(is_wrapped: bool) -> None:
    """Raise unless gradients will be averaged over the processes."""
    if not is_wrapped:
        raise ValueError(
            "The net's module does not average its gradients over the processes, as it "
            "is not wrapped in DistributedDataParallel (which is the one wrapper that "
            "works). A net that was trained before, or is trained in chunks, needs "
            "unwrap_after_train=False; a callback that builds the module anew, as "
            "InputShapeSetter does, cannot be used."
        )


def check_virtual_step(is_exact: bool) -> None:
    """Raise if the exact step (a) is asked of several processes."""
    if is_exact:
        raise ValueError(
            "virtual_step='exact' is not available for several processes: use "
            "'first_order' or None."
        )
