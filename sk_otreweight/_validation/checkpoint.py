"""Checkpoints: where they are, and what if they cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sk_otreweight._validation.warning import warn_user


def check_resume(resume: object, checkpoint: Any) -> None:
    """Raise if a fit is to go on from nowhere."""
    if resume and checkpoint is None:
        raise ValueError(
            "resume=True needs a file to go on from: pass checkpoint=path as well."
        )


def warn_checkpoint_not_written(path: Path, error: Exception) -> None:
    """Warn that the file is that of an epoch before; the training goes on."""
    warn_user(
        f"The checkpoint {path} could not be written ({error}). The training goes on, "
        "and the file is that of an epoch before; it is tried again after the next "
        "one. Is the disk full?"
    )
