"""Searches whose fits run elsewhere find what they find here, bit for bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from processes_for_tests import left_behind, run

WORKER = Path(__file__).parent / "search_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_scores_are_those_of_this_process(backend, tmp_path):
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    run(WORKER, backend, tmp_path / "scores.json")
    here, there = json.loads((tmp_path / "scores.json").read_text())
    assert here == there
    assert len(set(here)) > 1
    assert not left_behind(WORKER.name, backend)
