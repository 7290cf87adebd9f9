"""The same seed has the same result: in another process, and nearly on more threads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from determinism_worker import CHAOTIC
from processes_for_tests import run

WORKER = Path(__file__).parent / "determinism_worker.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what fits came to by threads and hash seed of Python."""
    folder, found = tmp_path_factory.mktemp("results"), {}
    for threads, hash_seed in ((1, 1), (1, 2), (2, 1), (2, 2)):
        path = folder / f"{threads}_{hash_seed}.json"
        variables = {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
        run(WORKER, threads, path, **variables)
        found[threads, hash_seed] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_has_the_same_result(results, threads):
    assert results[threads, 1] == results[threads, 2]
    hashes = {fit["hash"] for fit in results[threads, 1].values()}
    assert len(hashes) == len(results[threads, 1])


@pytest.mark.slow
def test_more_threads_round_in_another_way_at_most(results):
    for name in set(results[1, 1]) - {CHAOTIC}:
        np.testing.assert_allclose(
            results[2, 1][name]["probabilities"],
            results[1, 1][name]["probabilities"],
            atol=1e-5,
            err_msg=name,
        )
