"""Parameters of estimators and components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone


def resolve(
    value: Any,
    *,
    slot: str,
    table: Mapping[str, type],
    base: type,
    wrap: Callable[[Any], Any] | None = None,
) -> Any:
    """Turn what a user put in a slot (name, instance, callable) into a component.

    Parameters
    ----------
    value : str, instance of `base` or callable
        What was given. Instances are cloned, so that what the user holds is
        never changed.
    slot : str
        Name of the parameter, for the message.
    table : mapping of str to class
        The names that are known and the class each stands for.
    base : type
        Base class of the components of this slot.
    wrap : callable, default=None
        Makes a component of any other callable.

    Returns
    -------
    component : instance of `base`

    Raises
    ------
    ValueError
        If `value` is neither of these; the message lists the valid names.
    """
    if isinstance(value, str) and value in table:
        return table[value]()
    if isinstance(value, base):
        return clone(value)
    if wrap is not None and callable(value) and not isinstance(value, str):
        return wrap(value)
    also = " or a callable" if wrap is not None else ""
    raise ValueError(
        f"{slot}={value!r} is not known. Valid names are {sorted(table)}; "
        f"an instance of {base.__name__}{also} is accepted as well."
    )


def check_choice(value: Any, *, name: str, choices: Sequence[Any]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"{name}={value!r} is not known. Valid are {list(choices)}.")


def check_real(
    value: Any, *, name: str, minimum: float = 0.0, maximum: float = np.inf
) -> None:
    """Raise unless `value` is a finite number between `minimum` and `maximum`."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not (good and np.isfinite(value) and minimum <= value <= maximum):
        limit = "" if maximum == np.inf else f" and <= {maximum:g}"
        raise ValueError(
            f"{name}={value!r} is not valid: give a finite number >= {minimum:g}"
            f"{limit}."
        )


def check_can_restart(finetune: str, *, is_trained: bool) -> None:
    """Raise if stage 2 cannot begin with the net as it was before stage 1."""
    if finetune == "head":
        raise ValueError(
            "restart=True trains the whole net anew, but finetune='head' keeps what "
            "stage 1 learned. Use finetune='all', or restart=False."
        )
    if is_trained:
        raise ValueError(
            "restart=True needs a net that is trained here, but net is a "
            "FrozenEstimator, which has no beginning to go back to. Give the net as it "
            "is before training, or restart=False."
        )


def check_reg(reg: Any) -> None:
    """Raise unless `reg`, the weight of the entropy, is a positive number."""
    if isinstance(reg, Real) and not isinstance(reg, bool) and 0 < reg < np.inf:
        return
    raise ValueError(
        f"reg={reg!r} is not valid: the weight of the entropy must be a finite "
        "number > 0. The paper uses 0.1; 0.01 to 1 is the usual range."
    )


def check_count(value: Any, *, name: str, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or (value < minimum):
        raise ValueError(
            f"{name}={value!r} is not valid: give an integer >= {minimum}."
        )


def component_repr(component: Any) -> str:
    """Return a short name of a component, for messages."""
    if isinstance(component, BaseEstimator):
        return repr(component)
    return getattr(component, "__name__", type(component).__name__)
