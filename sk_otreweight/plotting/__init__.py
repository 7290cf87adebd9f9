"""Pictures of weights, plans and results: scikit-learn's Display objects.

Each holds what it shows, draws it with ``plot(ax)`` and keeps the axes as ``ax_`` (or
``axes_``) and ``figure_``. They need matplotlib: ``pip install "sk-otreweight[plot]"``.
"""

from sk_otreweight.plotting.class_weight import ClassWeightDisplay
from sk_otreweight.plotting.comparison import ComparisonDisplay
from sk_otreweight.plotting.recall import RecallDisplay
from sk_otreweight.plotting.sample_weight import SampleWeightDisplay
from sk_otreweight.plotting.training import TrainingDisplay
from sk_otreweight.plotting.transport_plan import TransportPlanDisplay

__all__ = [
    "ClassWeightDisplay",
    "ComparisonDisplay",
    "RecallDisplay",
    "SampleWeightDisplay",
    "TrainingDisplay",
    "TransportPlanDisplay",
]
