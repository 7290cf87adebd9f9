"""A long stream takes no more memory than a short one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes_for_tests import run

WORKER = Path(__file__).parent / "soak_worker.py"


N_CHUNKS = 200
STREAMS = [("memmap", "semirelaxed"), ("dask", "net")]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "weights"), STREAMS)
def test_memory_stays_flat_over_a_stream(source, weights, tmp_path, record_property):
    run(WORKER, source, weights, N_CHUNKS, tmp_path)
    found = json.loads((tmp_path / f"{source}_{weights}.json").read_text())
    in_use = found["in_use"]
    assert len(in_use) == N_CHUNKS
    assert found["bytes"] > 5e8
    grown, read = max(in_use[100:]) - max(in_use[:100]), found["bytes"] / 2
    assert grown < 0.05 * read, f"{grown:,} bytes"
    assert found["accuracy"] > 0.6  # of four classes
    record_property("chunks streamed", len(in_use))
