"""What nets return."""

from __future__ import annotations

import torch
from torch import Tensor


def check_output_width(output: Tensor, *, n_rows: int, n_classes: int) -> None:
    """Raise unless a net returns K scores per row, or one score if K = 2."""
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
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"The training loss became {loss.item()} in stage {stage}, epoch {epoch}, "
            f"batch {batch}. The parameters were not updated with it. Lower the "
            "learning rate (the net's `lr` for stage 1, `lr` for stage 2), scale the "
            "inputs, or clip the gradients."
        )
