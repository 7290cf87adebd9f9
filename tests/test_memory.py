"""How much memory training takes beside the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# In a process of its own, for the peak of a process is never taken back.
CHILD = """
import resource
import sys

import numpy as np
import torch
from nets_for_tests import SmallMLP, small_net

from sk_otreweight import OTReweightedClassifier
from sk_otreweight.loaders import RowLoader

torch.set_num_threads(1)
trainer, weights, n_rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(0)
X = rng.standard_normal((n_rows, 128), dtype=np.float32)
y = rng.choice(3, p=[0.8, 0.15, 0.05], size=n_rows)
net = small_net(
    module__n_features=128, module__n_classes=3, module__hidden=128,
    max_epochs=1, batch_size=4096, iterator_train=RowLoader,
)
if trainer == "ours":
    net = OTReweightedClassifier(net, weights=weights, max_epochs=1, random_state=0)
net.fit(X, y)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(trainer: str, weights: str, n_rows: int) -> int:
    """Return the most memory in bytes that a training took, data included."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, trainer, weights, str(n_rows)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


N_ROWS = 2**30 // (4 * 128)


@pytest.fixture(scope="module")
def plain():
    return peak("skorch", "", N_ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["semirelaxed", "net"])
def test_a_gigabyte_is_not_copied(weights, plain):
    """As wide as the data are the features, which would need as much if kept."""
    ours = peak("ours", weights, N_ROWS)
    assert plain > 2**30
    assert ours < 1.3 * plain, f"{ours / plain:.2f} times as much"
