"""Fitted classifiers in one file, without pickle: nothing in the file is executed."""

from sk_otreweight.persistence.checkpoint import FitCheckpoint
from sk_otreweight.persistence.estimators import SaveMixin, load

__all__ = ["FitCheckpoint", "SaveMixin", "load"]
