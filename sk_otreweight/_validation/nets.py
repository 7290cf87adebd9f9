"""What nets return."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from sk_otreweight._validation.warning import warn_user


def check_output_width(output: Tensor, *, n_rows: int, n_classes: int) -> None:
    """Raise unless a net returns K scores per row, or one score if K = 2."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The net returned a {type(output).__name__}, not a tensor of scores: "
            "return the scores alone, first in a tuple, or as `logits`."
        )
    width = output.numel() // max(n_rows, 1)
    fits = output.ndim <= 2 and output.shape[0] == n_rows
    if fits and (width == n_classes or (width == 1 and n_classes == 2)):
        return
    also = " (or one, for two classes)" if n_classes == 2 else ""
    raise ValueError(
        f"The net returned an output of shape {tuple(output.shape)} for {n_rows} rows, "
        f"but y has {n_classes} classes: it must return {n_classes} scores per "
        f"row{also}. Change the width of the net's last layer."
    )


def check_makes_modules(module: Any) -> None:
    """Raise if a module is given where a class, or what makes one, is expected."""
    if isinstance(module, nn.Module):
        raise ValueError(
            f"The weight net {module} is an instance, but each fit begins with a new "
            "one: give its class, or a function that returns a module, such as "
            "lambda n_features: nn.Linear(n_features, 1)."
        )


def check_finite_output(output: Tensor) -> None:
    """Raise if a net returns NaN or infinity before it is trained."""
    if not bool(output.isfinite().all()):
        raise ValueError(
            "The net returned NaN or infinity for the first rows, before any training. "
            "Look for NaN in the items of X, or in the parameters the net came with."
        )


def check_criterion(criterion: nn.Module, output: Tensor, *, takes_log: bool) -> None:
    """Raise or warn if a criterion and what it is given do not go together.

    Parameters
    ----------
    criterion : nn.Module
    output : Tensor of shape (n, K) or (n,)
        What the module returns for a few rows.
    takes_log : bool
        Whether the net's loss is the criterion of the logarithm, as in skorch's
        classifiers with NLLLoss.
    """
    totals = output.double().sum(-1) if output.ndim == 2 else output.new_zeros(1)
    sums_to_one = bool((output >= 0).all() and ((totals - 1).abs() < 1e-4).all())
    if sums_to_one and isinstance(criterion, nn.CrossEntropyLoss):
        warn_user(
            "The net returns probabilities, and CrossEntropyLoss takes a softmax of "
            "them once more, which makes it learn slowly and badly. Leave the softmax "
            "out of the module."
        )
    if takes_log and isinstance(criterion, nn.NLLLoss) and not sums_to_one:
        raise ValueError(
            "The net's criterion is NLLLoss, of which skorch's classifiers compute the "
            "logarithm of the module's output, but the output is not probabilities: "
            f"it ranges from {output.min().item():.3g} to {output.max().item():.3g}. "
            "For a module that returns scores or log-probabilities pass "
            "criterion=torch.nn.CrossEntropyLoss, or end the module with a softmax."
        )
    given = [
        name
        for name in ("weight", "pos_weight")
        if getattr(criterion, name, None) is not None
    ]
    if given:
        warn_user(
            f"The criterion has class weights ({given[0]}), and the losses are weighed "
            "by optimal transport on top of them: rare classes count twice. Leave "
            f"criterion__{given[0]} out; init_weights='class_balanced' lets the "
            "weights start from class frequencies."
        )


def warn_narrow_features(head: str, width: int, *, n_classes: int) -> None:
    """Warn if the layer that was found sees as many features as there are classes."""
    if width == n_classes:
        warn_user(
            f"The features are the input of the layer {head!r}, which has {width} "
            f"inputs for {n_classes} classes: it may calibrate the scores of a head "
            f"before it. Pass head='<name of that layer>', or head={head!r} if this "
            "is right."
        )


def check_linear_head(layer: nn.Module | None, *, name: str | None) -> None:
    """Raise unless a net's last layer is one that can be read, or replaced."""
    if isinstance(layer, nn.Linear) and layer.out_features > 1:
        return
    found = "was given as a function" if layer is None else f"{name!r} is {layer}"
    raise ValueError(
        "This method works on the weights of the layer that produces the class scores, "
        f"an nn.Linear with one output per class, but the head {found}. Pass "
        "head='<name of such a layer>', or let the module end in one."
    )


def check_optimizer(optimizer: Any, *, known: tuple[type, ...]) -> None:
    """Raise unless an optimizer is of a kind whose steps can be told beforehand."""
    if not isinstance(optimizer, known) or optimizer.defaults.get("amsgrad"):
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(
            f"This method follows the steps of the optimizer row by row, and knows "
            f"those of {names} (without amsgrad), but the net has "
            f"{type(optimizer).__name__}: pass a net with one of these."
        )


def check_returns_scores(activation: str | None) -> None:
    """Raise if a net returns probabilities where scores are needed."""
    if activation in ("softmax", "log_softmax"):
        raise ValueError(
            "link='sigmoid' needs a module that returns scores, and this one returns "
            f"their {activation}: leave that out and use CrossEntropyLoss, or pass "
            "link='softmax'."
        )


def warn_lost_stage(epoch: int) -> None:
    """Warn that stage 2 was thrown away by a callback that loads the best epoch."""
    warn_user(
        f"Checkpoint(load_best=True) has loaded the parameters of epoch {epoch}, which "
        "is of stage 1: what stage 2 learned is lost. It monitored a figure that "
        "favours the frequent classes. Monitor balanced accuracy instead: "
        "EpochScoring('balanced_accuracy', lower_is_better=False, name='valid_bal') "
        "and Checkpoint(monitor='valid_bal_best', load_best=True); or leave load_best "
        "out."
    )


def check_losses(losses: Tensor, *, n_rows: int) -> Tensor:
    """Return one loss per row, or raise if the net reduced them already."""
    if losses.numel() != n_rows or (losses.ndim == 0 and n_rows > 1):
        raise ValueError(
            f"The net's loss has shape {tuple(losses.shape)} for a batch of {n_rows} "
            "rows: re-weighting needs one loss per row. Let the criterion have a "
            "`reduction` attribute that can be set to 'none', and let get_loss return "
            "what the criterion returns without averaging it."
        )
    return losses.reshape(n_rows)


def check_finite_loss(loss: Tensor, *, stage: int, epoch: int, batch: int) -> None:
    """Raise as soon as a training loss is NaN or infinite."""
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"The training loss became {value} in stage {stage}, epoch {epoch}, "
            f"batch {batch}. The parameters were not updated with it. Lower the "
            "learning rate (the net's `lr` for stage 1, `lr` for stage 2), scale the "
            "inputs, or clip the gradients."
        )


def check_finite_parameters(module: nn.Module, *, stage: int, epoch: int) -> None:
    """Raise if an epoch left a parameter that is NaN or infinite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise FloatingPointError(
                f"The parameter {name!r} became NaN or infinite in stage {stage}, "
                f"epoch {epoch}, though the losses were finite: a gradient was not, or "
                "a step was too large. Lower the learning rate, clip the gradients "
                "(skorch's GradientNormClipping), or look for a root or a logarithm "
                "of 0 in the net or its loss."
            )
