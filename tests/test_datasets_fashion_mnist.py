from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils import Bunch

from sk_otreweight.datasets import (
    fashion_mnist,
    load_fashion_mnist,
    make_long_tailed,
    read_idx,
)

needs_fashion_mnist = pytest.mark.skipif(
    not fashion_mnist.FASHION_MNIST_PACKAGE.is_dir(),
    reason="the Debian package dataset-fashion-mnist is not installed",
)


# --- read_idx -----------------------------------------------------------------


def idx_bytes(array, code):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, content, *, compressed=False):
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")],
)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 1, 2), (0, 4)])
def test_read_idx(tmp_path, shape, code, dtype, compressed):
    size = int(np.prod(shape))
    array = (np.arange(size).reshape(shape) * 7 % 120).astype(dtype)
    path = write(tmp_path / "array", idx_bytes(array, code), compressed=compressed)
    for spelling in (path, str(path)):
        result = read_idx(spelling)
        assert result.dtype == array.dtype
        np.testing.assert_array_equal(result, array, strict=True)
    result[...] = 0  # writeable: torch warns of arrays that are not


LABELS = idx_bytes(np.arange(10, dtype=np.uint8), 8)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LABELS[:-1], "announces 10 bytes .* the file has 9. .*truncated"),
        (LABELS[:8], "announces 10 bytes .* the file has 0. "),
        (LABELS + b"\0", "announces 10 bytes .* the file has more. "),
        (LABELS[:6], "an IDX header of 1 .* 8 bytes; the file has 6. .*truncated"),
        (LABELS[:3], "not an IDX file: it begins with 0x000008; .*get it again"),
        (b"", "not an IDX file"),
        (b"\0\1" + LABELS[2:], "not an IDX file: it begins with 0x00010801"),
        (b"\0\0\x0a" + LABELS[3:], "not an IDX file: it begins with 0x00000a01"),
        (b"\0\0\x08\0\x05", "an IDX header of 0 dimension"),
        (b"\0\0\x08\xff" + b"\xff" * 1020, "announces .* bytes"),
        (b"\x80\x04\x95not a pickle either.", "not an IDX file"),
    ],
)
def test_damaged_idx(tmp_path, content, message, compressed):
    path = write(tmp_path / "labels", content, compressed=compressed)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_small_file_that_would_fill_the_memory(tmp_path):
    header = b"\0\0\x08\2" + struct.pack(">2I", 2**17, 2**17)
    path = write(tmp_path / "images.gz", header + bytes(1000), compressed=True)
    with pytest.raises(ValueError, match="more than the .* compressed file"):
        read_idx(path)


def test_no_more_is_decompressed_than_was_announced(tmp_path, monkeypatch):
    taken, own = [], gzip.GzipFile.read

    def read(self, size=-1):
        content = own(self, size)
        taken.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", read)
    path = write(tmp_path / "labels.gz", LABELS + bytes(10**7), compressed=True)
    with pytest.raises(ValueError, match="the file has more"):
        read_idx(path)
    assert sum(taken) == len(LABELS) + 1


def damaged_gzips():
    whole = gzip.compress(LABELS)
    yield "truncated", whole[:-9]
    yield "header only", whole[:5]
    yield "wrong checksum", whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    yield "wrong data", whole[:10] + b"\xff" * 8 + whole[18:]


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=name) for name, content in damaged_gzips()]
)
def test_damaged_gzip(tmp_path, content):
    path = write(tmp_path / "labels.gz", content)
    with pytest.raises(ValueError, match="cannot be decompressed .*get it again"):
        read_idx(path)


def test_no_such_idx_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "labels")


# --- load_fashion_mnist -------------------------------------------------------


def small_fashion_mnist(n_train=20, n_test=10):
    rng = np.random.default_rng(0)
    for key, n in (("train", n_train), ("test", n_test)):
        yield f"X_{key}", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        yield f"y_{key}", np.arange(n, dtype=np.uint8) % 10


def write_fashion_mnist(folder: Path, parts, *, compressed=()):
    for key, array in parts.items():
        suffix = ".gz" if key in compressed else ""
        path = folder / f"{fashion_mnist.FASHION_MNIST_FILES[key]}{suffix}"
        write(path, idx_bytes(array, 8), compressed=key in compressed)


def assert_fashion_mnist(data, parts):
    for split in ("train", "test"):
        X, y = data[f"X_{split}"], data[f"y_{split}"]
        assert X.dtype == np.float32
        assert y.dtype == np.int64
        assert X.shape == (len(y), 1, 28, 28)
        expected = parts[f"X_{split}"] / np.float32(255)
        np.testing.assert_array_equal(X[:, 0], expected)
        np.testing.assert_array_equal(y, parts[f"y_{split}"])
    assert len(data.target_names) == 10
    assert data.target_names[7] == "Sneaker"


@pytest.fixture
def no_download(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("nothing must be downloaded here")

    monkeypatch.setattr(fashion_mnist, "fetch_openml", fail)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("compressed", [(), ("X_train", "y_test")])
@pytest.mark.parametrize("spelling", [str, Path])
def test_fashion_mnist_from_a_folder(tmp_path, compressed, spelling):
    parts = dict(small_fashion_mnist())
    write_fashion_mnist(tmp_path, parts, compressed=compressed)
    data = load_fashion_mnist(spelling(tmp_path))
    assert_fashion_mnist(data, parts)
    assert data.source == str(tmp_path)


def test_fashion_mnist_check_can_fail(tmp_path):
    parts = dict(small_fashion_mnist())
    write_fashion_mnist(tmp_path, parts)
    data = load_fashion_mnist(tmp_path)
    parts["X_test"][3, 4, 5] ^= 1
    with pytest.raises(AssertionError):
        assert_fashion_mnist(data, parts)


@pytest.mark.usefixtures("no_download")
def test_missing_files(tmp_path):
    parts = dict(small_fashion_mnist())
    del parts["y_train"], parts["X_test"]
    write_fashion_mnist(tmp_path, parts)
    with pytest.raises(FileNotFoundError) as caught:
        load_fashion_mnist(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "lacks t10k-images-idx3-ubyte, train-labels-idx1-ubyte (" in message
    assert "Put them into the folder, or leave data_home out" in message


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("X_train", np.zeros((20, 28, 27), np.uint8)),
        ("X_train", np.zeros((19, 28, 28), np.uint8)),
        ("X_train", np.zeros((20, 784), np.uint8)),
        ("y_train", np.zeros((20, 1), np.uint8)),
        ("y_train", np.full(20, 10, np.uint8)),
    ],
)
def test_files_of_other_data(tmp_path, key, array):
    write_fashion_mnist(tmp_path, dict(small_fashion_mnist()) | {key: array})
    with pytest.raises(ValueError, match="train images are .*are expected. Get the"):
        load_fashion_mnist(tmp_path)


@pytest.mark.usefixtures("no_download")
def test_fashion_mnist_of_the_package(tmp_path, monkeypatch):
    parts = dict(small_fashion_mnist())
    write_fashion_mnist(tmp_path, parts, compressed=parts)
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_PACKAGE", tmp_path)
    data = load_fashion_mnist()
    assert_fashion_mnist(data, parts)
    assert data.source == str(tmp_path)


@pytest.mark.parametrize("incomplete", [False, True])
def test_fashion_mnist_from_openml(tmp_path, monkeypatch, incomplete):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60_030, 784), dtype=np.uint8)
    labels = rng.integers(0, 10, 60_030)
    calls = []

    def fetch_openml(*args, **kwargs):
        calls.append((args, kwargs))
        fetched = {"data": pixels.astype(float), "target": labels.astype(str)}
        return Bunch(**fetched)

    if incomplete:
        write_fashion_mnist(tmp_path, {"y_test": np.zeros(3, np.uint8)})
    monkeypatch.setattr(fashion_mnist, "fetch_openml", fetch_openml)
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_PACKAGE", tmp_path)
    data = load_fashion_mnist()

    assert calls == [(("Fashion-MNIST",), {"version": 1, "as_frame": False})]
    images = pixels.reshape(-1, 28, 28)
    n = 60_000
    parts = {"X_train": images[:n], "X_test": images[n:]}
    parts |= {"y_train": labels[:n], "y_test": labels[n:]}
    assert_fashion_mnist(data, parts)
    assert "OpenML" in data.source


@needs_fashion_mnist
@pytest.mark.usefixtures("no_download")
def test_real_fashion_mnist():
    data = load_fashion_mnist()
    assert data.X_train.shape == (60_000, 1, 28, 28)
    assert data.X_test.shape == (10_000, 1, 28, 28)
    assert np.bincount(data.y_train).tolist() == [6000] * 10
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    for X in (data.X_train, data.X_test):
        assert X.dtype == np.float32
        assert X.flags["C_CONTIGUOUS"]
        assert X.min() == 0
        assert X.max() == 1
    assert data.X_train.mean() == pytest.approx(0.2860, abs=5e-5)
    assert data.X_train.std(dtype=np.float64) == pytest.approx(0.3530, abs=5e-5)
    assert data.source == str(fashion_mnist.FASHION_MNIST_PACKAGE)


@needs_fashion_mnist
def test_long_tailed_fashion_mnist():
    data = load_fashion_mnist()
    tail = make_long_tailed(data.X_train, data.y_train, 200, random_state=0)
    assert tail.class_counts[[0, -1]].tolist() == [5990, 29]
    assert tail.X.shape == (len(tail.y), 1, 28, 28)
