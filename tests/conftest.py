from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from nets_for_tests import long_tailed_digits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted with `record_property`."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        counts.update(dict(report.user_properties))
    for name, count in counts.items():
        terminalreporter.write_line(f"{name}: {count:,}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Nets this small are faster on one thread, many times so on a busy machine.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return long_tailed_digits(0)


@pytest.fixture(scope="module")
def few():
    """Three digits, about 50 rows, for what takes many fits."""
    data = long_tailed_digits(0)
    rows = np.flatnonzero(data.y > 6)
    meta = np.flatnonzero(data.y_meta > 6)
    rows = np.concatenate([rows, np.flatnonzero(data.y == 4)])
    meta = np.concatenate([meta, np.flatnonzero(data.y_meta == 4)])
    return data.X[rows], data.y[rows], (data.X_meta[meta], data.y_meta[meta])
