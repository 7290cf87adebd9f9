from __future__ import annotations

import pytest
import torch

from sk_otreweight import batches as module
from sk_otreweight.batches import are_distinct, stacked


def split(rows, size):
    return list(torch.tensor(rows).split(size))


@pytest.mark.parametrize("size", [1, 3, 4, 10])
@pytest.mark.parametrize("together", [1, 2, 256])
def test_distinct_rows(size, together, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BATCHES", together)
    assert are_distinct(split([4, 0, 9, 2, 7, 1, 3, 8, 6, 5], size), 10)
    assert are_distinct(split([4, 0, 9], size), 10)
    assert not are_distinct(split([4, 0, 9, 2, 7, 1, 3, 8, 6, 4], size), 10)
    assert not are_distinct(split([4, 4], size), 10)


def test_stacked_batches_of_one_size(monkeypatch):
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    batches = list(order.split(4))
    (whole, last) = stacked(batches, 5)
    assert whole.tolist() == [batch.tolist() for batch in batches[:-1]]
    assert last.tolist() == [batches[-1].tolist()]


def test_stacked_batches_are_bounded():
    batches = list(torch.arange(128 * 100).split(128))
    parts = list(stacked(batches, 64))
    assert torch.cat(parts).tolist() == [batch.tolist() for batch in batches]
    assert max(part.numel() * 64 for part in parts) <= 2**18
    assert len(parts) == 4
    # A batch is never divided.
    assert [len(part) for part in stacked(batches[:3], 10**6)] == [1, 1, 1]
