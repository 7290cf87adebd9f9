"""Counts, weights and scores of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sk_otreweight._validation.parameters import check_choice, check_real


def check_class_counts(class_counts: Sequence[float] | Tensor) -> Tensor:
    """Return the rows of each class in float64, or raise if a class has none."""
    counts = _as_vector(class_counts, name="class_counts")
    lacking = (counts <= 0).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(
            f"class_counts has no rows of the classes {lacking}: every class needs "
            "some. Count the labels of the whole training set, not of a batch, and "
            "leave classes out that do not occur in it."
        )
    return counts


def check_beta(beta: Any) -> None:
    """Raise unless `beta` is "auto" or a number in [0, 1)."""
    if isinstance(beta, str) and beta == "auto":
        return
    check_real(beta, name="beta", maximum=1.0)
    if beta == 1:
        raise ValueError(
            "beta=1 is not valid: give a number >= 0 and < 1, or 'auto'. The limit are "
            "the inverse class frequencies."
        )


def check_class_vector(
    values: Sequence[float] | Tensor, *, name: str, n_classes: int | None = None
) -> Tensor:
    """Return a number >= 0 for each class in float64, not all of them 0."""
    if isinstance(values, (int, float)):
        raise ValueError(
            f"{name}={values!r} is one number: give one for each class. The same for "
            "all classes would only change the step size."
        )
    vector = _as_vector(values, name=name)
    if n_classes is not None and len(vector) != n_classes:
        raise ValueError(
            f"{name} has {len(vector)} entries for {n_classes} classes: give one for "
            "each."
        )
    if bool((vector < 0).any()) or not bool(vector.any()):
        raise ValueError(
            f"{name} must be >= 0, and > 0 for some class, got {vector.tolist()}."
        )
    return vector


def check_shares(
    values: Sequence[float] | Tensor, *, name: str, n_classes: int
) -> Tensor:
    """Return a number > 0 for each class in float64, scaled to a sum of 1."""
    shares = check_class_vector(values, name=name, n_classes=n_classes)
    lacking = (shares == 0).nonzero().flatten().tolist()
    if lacking:
        raise ValueError(
            f"{name}={shares.tolist()} leaves no share to the classes {lacking}, whose "
            "loss would be infinite: give each class a share > 0, a small one to those "
            "that hardly occur."
        )
    return shares / shares.sum()


def check_class_scores(
    input: Tensor, target: Tensor, *, n_classes: int | None = None
) -> None:
    """Raise unless a loss is given class scores (n, K) and labels (n,)."""
    if input.ndim != 2 or input.shape[1] < 2:
        raise ValueError(
            f"The loss was given scores of shape {tuple(input.shape)}: it takes "
            "(n, n_classes) with at least two classes. For a single score z of two "
            "classes give torch.stack([0 * z, z], 1)."
        )
    if n_classes is not None and input.shape[1] != n_classes:
        raise ValueError(
            f"The loss knows {n_classes} classes, the scores have shape "
            f"{tuple(input.shape)}: give it the counts or weights of all classes."
        )
    if target.shape != input.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"The loss was given labels of shape {tuple(target.shape)} and dtype "
            f"{target.dtype} for scores of shape {tuple(input.shape)}: give one class "
            "number 0 ... n_classes - 1 per row."
        )


def check_features(features: Any, *, n_rows: int) -> None:
    """Raise unless a loss that looks at features is given some (n, d)."""
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == n_rows:
        return
    given = tuple(features.shape) if isinstance(features, Tensor) else features
    raise ValueError(
        f"The loss was given the features {given} for {n_rows} rows: it needs the "
        "input of the last layer, of shape (n, d), as a third argument, or a module "
        "that returns the tuple (scores, features)."
    )


def check_target_prior(
    target_prior: Any, *, n_classes: int | None = None
) -> str | np.ndarray | None:
    """Return None, a name or the shares of the classes, that sum up to 1."""
    if target_prior is None or isinstance(target_prior, str):
        check_choice(
            target_prior, name="target_prior", choices=("uniform", "train", None)
        )
        return target_prior
    prior = check_class_vector(
        target_prior, name="target_prior", n_classes=n_classes
    ).numpy()
    if abs(prior.sum() - 1) > 1e-6:
        raise ValueError(
            f"target_prior sums up to {prior.sum():.6g}: give the share of each class, "
            "which sum up to 1."
        )
    return prior / prior.sum()


def _as_vector(values: Any, *, name: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64).detach()
    if vector.ndim != 1 or not len(vector) or not bool(vector.isfinite().all()):
        raise ValueError(
            f"{name}={values!r} is not valid: give a list of finite numbers, one for "
            "each class."
        )
    return vector
