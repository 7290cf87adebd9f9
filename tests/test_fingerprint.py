"""What a fit depends on, as text and hashes."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.utils.data import TensorDataset

from sk_otreweight.fingerprint import data_digest, settings

FORMATS = ("csr", "csc", "coo", "dok", "lil", "bsr")


def rows(seed=0, n=4):
    return np.random.default_rng(seed).normal(size=(n, 3))


def hashed(*parts):
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (rows(), [b"float64(4, 3)", rows().tobytes()]),
        (rows().T, [b"float64(3, 4)", rows().T.tobytes()]),
        (np.array(["a", None, 2.5]), [b"object(3,)", b"['a', None, 2.5]"]),
        (pd.Series([1, 2]), [b"int64(2,)", np.array([1, 2]).tobytes()]),
        (None, [b"object(1,)", b"[None]"]),
        ({"b": [1.0], "a": [2.0]}, [
            *(b"'a'", b"float64(1,)", np.float64(2).tobytes()),
            *(b"'b'", b"float64(1,)", np.float64(1).tobytes()),
        ]),
        (TensorDataset(torch.ones(5)), [b"TensorDataset5"]),
    ],
)  # fmt: skip
def test_digests_stay_those_of_kept_fits(part, expected):
    assert data_digest(part) == hashed(*expected)
    assert data_digest(part, also="more") == hashed(*expected, b"more")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_a_tensor_is_the_array_it_holds(dtype):
    tensor = torch.from_numpy(10 * rows()).to(dtype)
    for x in (tensor, tensor.T, tensor[0], tensor[0, 0]):
        assert data_digest(x) == data_digest(x.numpy())


def test_tensors_that_numpy_does_not_take():
    tensor = torch.from_numpy(rows()).float()
    assert data_digest(tensor.clone().requires_grad_()) == data_digest(tensor)
    half = tensor.bfloat16()
    assert data_digest(half) == data_digest(half.clone())
    assert data_digest(half) != data_digest(2 * half)
    assert data_digest(half) != data_digest(half.view(torch.int16))


@pytest.mark.parametrize("kind", FORMATS)
def test_sparse_matrices_are_told_apart_by_what_they_hold(kind):
    dense = np.diag([1.0, 2.0, 3.0])
    make = getattr(sparse, f"{kind}_matrix")
    assert data_digest(make(dense)) == data_digest(make(dense))
    digests = {data_digest(make(x)) for x in (dense, 2 * dense, dense[[1, 0, 2]])}
    assert len(digests) == 3


@pytest.mark.parametrize("part", [object(), {1, 2}, (x for x in "ab")])
def test_data_that_cannot_be_told_apart(part):
    with pytest.raises(TypeError, match="cannot be told from other data of that type"):
        data_digest(part)


def changed(array):
    """Return an array that differs where texts are cut short."""
    other = array.clone() if isinstance(array, torch.Tensor) else array.copy()
    other[len(other) // 2] += 1
    return other


@pytest.mark.parametrize("n", [900, 2000])
@pytest.mark.parametrize("kind", [np.arange, torch.arange], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "place",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: {"key": x},
        lambda x: {"key": [x]},
        lambda x: Holder(x),
    ],
    ids=["alone", "list", "dict", "dict of lists", "attribute"],
)
def test_settings_with_large_arrays(place, kind, n):
    array = kind(n)
    assert settings(place(array)) == settings(place(kind(n)))
    assert settings(place(array)) != settings(place(changed(array)))


class Holder:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("kind", [pd.Series, sparse.csr_array, sparse.coo_array])
def test_settings_with_frames_and_sparse_arrays(kind):
    array = np.arange(100)
    given = [array, changed(array)]
    if kind is not pd.Series:
        given = [x[None] for x in given]
    first, second = map(kind, given)
    assert settings(first) == settings(first.copy())
    assert settings(first) != settings(second)


def test_objects_of_arrays_of_unlike_lengths():
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.arange(2000), np.arange(3)]
    other = ragged.copy()
    other[0] = changed(ragged[0])
    assert data_digest(ragged) != data_digest(other)


@pytest.mark.parametrize(
    "value",
    [
        1,
        "a",
        None,
        2.5,
        {"a": 1, 0: "x", "b": [1.0, 2]},
        np.arange(1000),
        np.float64(3),
    ],
)
def test_texts_of_small_settings_stay_those_of_kept_fits(value):
    assert settings(value) == repr(value)
