from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_files import (
    FOLDERS,
    TEN,
    WRITERS,
    batch,
    batches,
    by_python_2,
    by_python_3,
    write_cifar,
)

from sk_otreweight.datasets import load_cifar
from sk_otreweight.datasets.unpickling import read_pickled_dict

writers = pytest.mark.parametrize(
    "write", [pytest.param(write, id=name) for name, write in WRITERS.items()]
)


@pytest.fixture
def folder(tmp_path):
    return write_cifar(tmp_path / FOLDERS[10], 10)


def assert_rows(X, y, sources, key):
    """Images and labels are those of the batches, pixel by pixel."""
    row = 0
    for source in sources:
        for pixels, label in zip(source[b"data"], source[key], strict=True):
            assert y[row] == label
            for channel in range(3):
                for line in (0, 17, 31):
                    start = 1024 * channel + 32 * line
                    expected = pixels[start : start + 32] / np.float32(255)
                    np.testing.assert_array_equal(X[row, channel, line], expected)
            row += 1
    assert len(X) == len(y) == row


# --- reading ------------------------------------------------------------------


def test_writer_of_python_2_is_understood_by_pickle():
    content = batch(3, 10, 0)
    found = pickle.loads(by_python_2(content), encoding="bytes")
    np.testing.assert_array_equal(found.pop(b"data"), content.pop(b"data"), strict=True)
    assert found == content


@writers
@pytest.mark.parametrize("n_classes", [10, 100])
def test_batches(tmp_path, n_classes, write):
    folder = write_cifar(tmp_path / "files", n_classes, write)
    data = load_cifar(folder, n_classes)
    key = b"labels" if n_classes == 10 else b"fine_labels"
    *train, test = batches(n_classes).values()
    for split, sources in (("train", train), ("test", [test])):
        X, y = data[f"X_{split}"], data[f"y_{split}"]
        assert X.dtype == np.float32
        assert X.shape[1:] == (3, 32, 32)
        assert X.flags["C_CONTIGUOUS"]
        assert X.flags["WRITEABLE"]
        assert y.dtype == np.int64
        assert 0 <= X.min() < X.max() <= 1
        assert_rows(X, y, sources, key)
    assert len(data.target_names) == n_classes
    assert data.target_names[3] == ("cat" if n_classes == 10 else "fine 3")


def test_rows_check_can_fail(folder):
    data = load_cifar(folder)
    sources = [batches(10)["test_batch"]]
    assert_rows(data.X_test, data.y_test, sources, b"labels")
    data.X_test[1, 2, 17, 5] += 0.5
    with pytest.raises(AssertionError):
        assert_rows(data.X_test, data.y_test, sources, b"labels")


@pytest.mark.parametrize("protocol", range(6))
def test_text_keys(tmp_path, protocol):
    def with_text(content):
        content = {key.decode(): item for key, item in content.items()}
        return pickle.dumps(content, protocol)

    data = load_cifar(write_cifar(tmp_path / "files", 10, with_text))
    assert_rows(data.X_test, data.y_test, [batches(10)["test_batch"]], b"labels")
    assert data.target_names == TEN


def test_superclasses(tmp_path):
    folder = write_cifar(tmp_path / "files", 100)
    fine, coarse = load_cifar(folder, 100), load_cifar(folder, 100, coarse=True)
    np.testing.assert_array_equal(coarse.y_train, fine.y_train // 5)
    np.testing.assert_array_equal(coarse.X_train, fine.X_train)
    assert coarse.target_names == [f"coarse {k}" for k in range(20)]


@pytest.mark.parametrize("spelling", [str, Path])
@pytest.mark.parametrize("n_classes", [10, 100])
def test_the_folder_or_the_one_around_it(tmp_path, n_classes, spelling):
    inner = write_cifar(tmp_path / FOLDERS[n_classes], n_classes)
    first, second = (
        load_cifar(spelling(path), n_classes) for path in (inner, tmp_path)
    )
    np.testing.assert_array_equal(first.X_train, second.X_train)


def test_names_are_optional(folder):
    (folder / "batches.meta").unlink()
    assert "target_names" not in load_cifar(folder)


@writers
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<u8", ">i8"])
def test_arrays(tmp_path, write, order, dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype, order=order)
    path = tmp_path / "arrays"
    path.write_bytes(write({b"array": array}))
    found = read_pickled_dict(path)["array"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@writers
def test_labels_in_an_array(tmp_path, write):
    labels = np.array([3, 1, 4, 1])
    folder = write_cifar(tmp_path / "files", 10, write, test_batch={b"labels": labels})
    np.testing.assert_array_equal(load_cifar(folder).y_test, labels)


def test_size_of_a_real_batch(tmp_path):
    path = tmp_path / "batch"
    content = batch(10_000, 10, 0)
    path.write_bytes(by_python_2(content))
    found = read_pickled_dict(path)
    assert found["data"].base is not None  # the bytes are not copied
    np.testing.assert_array_equal(found["data"], content[b"data"])
    assert found["labels"] == content[b"labels"]


# --- what is refused ----------------------------------------------------------


class Command:
    """Unpickled as usual, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(folder, tmp_path, protocol):
    command = {b"data": Command(tmp_path / "made")}
    written = pickle.dumps(command, protocol)
    (folder / "data_batch_2").write_bytes(written)
    with pytest.raises(
        ValueError, match=r"it asks for \w+\.mkdir, which arrays"
    ) as caught:
        load_cifar(folder)
    assert str(folder / "data_batch_2") in str(caught.value)
    assert "Nothing in it was executed" in str(caught.value)
    assert not (tmp_path / "made").exists()
    pickle.loads(written)  # the file does what it should not
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"cnumpy.testing\nsuppress_warnings\n.", "numpy.testing.suppress_warnings"),
        (b"cnumpy\nfromfile\n.", "numpy.fromfile"),
        (
            b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
            "numpy.ndarray.__init__",
        ),
        (b"c_codecs\ndecode\n.", "_codecs.decode"),
        (b"cnumpy._core.multiarray\nscalar\n.", "numpy._core.multiarray.scalar"),
    ],
)
def test_other_functions_are_refused(folder, content, name):
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=f"it asks for {name}, which arrays, lists"):
        load_cifar(folder)


NDARRAY = b"\x80\x02}T\x04\0\0\0datacnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(tU\x01btR"


@pytest.mark.parametrize(
    "content",
    [
        # numpy's own ndarray would lay an array of objects over these bytes.
        NDARRAY + b"((K\x01tU\x01OU\x08aaaaaaaatRs.",
        NDARRAY + b"(K\x01tRs.",
        # An array that is never filled, and one that is filled with too little.
        b"\x80\x02}U\x04data" + RECONSTRUCT + b"s.",
        by_python_2({b"data": np.zeros(8, "u1")}).replace(
            b"T\x08\0\0\0" + b"\0" * 8, b"U\x01a"
        ),
        by_python_2({b"data": np.array([0.5])}),
        by_python_2({b"data": np.zeros(1, "V8")}),
        pickle.dumps({b"data": np.array(["object"], dtype=object)}, 2),
        b"\x80\x02U\x04data.",
        b"\x80\x02](K\x01e.",
        b"\x80\x02}K\x01K\x01s.",
        b"\x80\x02}U\x02\xc3\xa9K\x01s.",
        b"P1\n.",
        b"not a pickle",
        b"",
        b"\x80\x09.",
    ],
)
def test_other_pickles_are_refused(folder, content):
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot be read as a pickled dict|has no 'data'"
    ):
        load_cifar(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
@writers
def test_truncated_file(folder, write, share):
    written = write(batch(5, 10, 0))
    path = folder / "data_batch_5"
    path.write_bytes(written[: int(share * len(written))])
    with pytest.raises(ValueError, match="cannot be read as a pickled dict.*get it ag"):
        load_cifar(folder)


# --- errors -------------------------------------------------------------------


def test_missing_files(folder):
    (folder / "data_batch_3").unlink()
    (folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar(folder.parent)
    message = str(caught.value)
    assert f"{folder} lacks data_batch_3, test_batch; the files data_batch_1" in message
    assert "Download the python version of CIFAR-10 from https://www.cs.tor" in message
    assert message.endswith("pass the folder cifar-10-batches-py.")


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere lacks train, test; the files"):
        load_cifar(tmp_path / "nowhere", 100)


@pytest.mark.parametrize("n_classes", [20, "10", None])
def test_bad_n_classes(folder, n_classes):
    with pytest.raises(ValueError, match=r"n_classes=.* Valid are \[10, 100\]"):
        load_cifar(folder, n_classes)


def test_superclasses_of_cifar_10(folder):
    with pytest.raises(ValueError, match="CIFAR-10 has no superclasses. Leave coarse"):
        load_cifar(folder, coarse=True)


def test_files_of_the_other_data_set(folder):
    (folder / "data_batch_1").rename(folder / "train")
    (folder / "test_batch").rename(folder / "test")
    with pytest.raises(
        ValueError, match="has no 'fine_labels', only .*'labels'.*n_clas"
    ):
        load_cifar(folder, 100)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((4, 3071), np.uint8), r"uint8 of shape \(4, 3071\)"),
        (np.zeros((4, 3, 1024), np.uint8), r"uint8 of shape \(4, 3, 1024\)"),
        (np.zeros((0, 3072), np.uint8), r"uint8 of shape \(0, 3072\)"),
        (np.zeros((4, 3072), np.int64), r"int64 of shape \(4, 3072\)"),
        (b"bytes", "bytes of shape None"),
    ],
)
def test_bad_images(tmp_path, images, found):
    write = by_python_3(4)
    folder = write_cifar(tmp_path / "files", 10, write, test_batch={b"data": images})
    with pytest.raises(ValueError, match=f"test_batch: the images are {found}; uint8"):
        load_cifar(folder)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 10],
        [0, 1, 2, -1],
        [0, 1, 2, 2**70],
        [0, 1, 2, 1.0],
        [0, 1, 2, True],
        [0, 1, 2, [3]],
        [[0, 1, 2, 3]],
        b"0123",
        {},
        None,
        np.zeros((4, 1), int),
    ],
    ids=str,
)
def test_bad_labels(tmp_path, labels):
    write = by_python_3(4)
    folder = write_cifar(tmp_path / "files", 10, write, test_batch={b"labels": labels})
    with pytest.raises(
        ValueError, match="test_batch: labels is not a list of 4 integers from 0 to 9"
    ):
        load_cifar(folder)


@pytest.mark.parametrize("found", [[b"cat"], b"cat", None])
def test_bad_names(tmp_path, found):
    meta = {b"label_names": found}
    folder = write_cifar(
        tmp_path / "files", 10, by_python_3(4), **{"batches.meta": meta}
    )
    with pytest.raises(
        ValueError, match="label_names is not a list of 10 names. .*not n"
    ):
        load_cifar(folder)
