"""The same seed has the same result: in another process, and nearly on more threads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from determinism_worker import CHAOTIC
from processes_for_tests import run

WORKER = Path(__file__).parent / "determinism_worker.py"


# One test, so that the fits are made once.
@pytest.mark.slow
def test_a_seed_has_one_result(tmp_path):
    """In another process bit for bit, on more threads but for rounding."""
    found = {}
    for threads, hash_seed in ((1, 1), (1, 2), (2, 1)):
        path = tmp_path / f"{threads}_{hash_seed}.json"
        variables = {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
        run(WORKER, threads, path, **variables)
        found[threads, hash_seed] = json.loads(path.read_text())
    assert found[1, 1] == found[1, 2]
    hashes = {fit["hash"] for fit in found[1, 1].values()}
    assert len(hashes) == len(found[1, 1])
    for name in set(found[1, 1]) - {CHAOTIC}:
        np.testing.assert_allclose(
            found[2, 1][name]["probabilities"],
            found[1, 1][name]["probabilities"],
            atol=1e-5,
            err_msg=name,
        )
