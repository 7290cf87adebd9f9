"""Files in the IDX format of the MNIST data sets."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# More than this is not taken out of a compressed file, which may be made to fill the
# memory.
LARGEST = 2**32


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an array from a file in the IDX format of the MNIST data sets.

    An IDX file is two zero bytes, one byte for the type of the entries, one for
    the number of dimensions, the dimensions as big-endian 32-bit integers, and
    the entries, big-endian, in C order. Nothing in the file is executed.

    Parameters
    ----------
    path : str or path-like
        The file, as it is or compressed with gzip.

    Returns
    -------
    array : ndarray
        The array in the byte order of the machine. Its shape and dtype are those
        that the file states.

    Raises
    ------
    ValueError
        If the file is not in the IDX format, or is shorter or longer than its
        header says; if a compressed one announces more than 4 GiB.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sk_otreweight.datasets import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    try:
        with _opened(Path(path)) as file:
            dtype, shape = _read_header(file, path)
            n_bytes = math.prod(shape) * dtype.itemsize
            is_compressed = isinstance(file, gzip.GzipFile)
            if is_compressed:
                _check_size(n_bytes, path)
            # A small compressed file can hold very much, a plain one what it is.
            content = file.read(n_bytes + 1 if is_compressed else -1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be decompressed ({error}). It is truncated or damaged; "
            "get it again."
        ) from error
    if len(content) != n_bytes:
        raise ValueError(
            f"{path}: the header announces {n_bytes} bytes of data (shape {shape}, "
            f"{dtype.itemsize} per entry), the file has "
            f"{'more' if len(content) > n_bytes else len(content)}. It is truncated or "
            "damaged; get it again."
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_compressed else path.open("rb")


def _check_size(n_bytes: int, path: str | os.PathLike[str]) -> None:
    if n_bytes > LARGEST:
        raise ValueError(
            f"{path}: the header announces {n_bytes} bytes, more than the {LARGEST} "
            "that are taken out of a compressed file. If you trust it, decompress it "
            "(gunzip) and read that."
        )


def _read_header(
    file: BinaryIO, path: str | os.PathLike[str]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    begin = file.read(4)
    if len(begin) < 4 or begin[:2] != b"\0\0" or begin[2] not in IDX_DTYPES:
        codes = ", ".join(f"0x{code:02x}" for code in IDX_DTYPES)
        raise ValueError(
            f"{path}: not an IDX file: it begins with 0x{begin.hex()}; two zero "
            f"bytes, a type ({codes}) and the number of dimensions are expected. Check "
            "that this is the right file and get it again."
        )
    n_dims = begin[3]
    sizes = file.read(4 * n_dims)
    if n_dims == 0 or len(sizes) < 4 * n_dims:
        raise ValueError(
            f"{path}: an IDX header of {n_dims} dimension(s) needs at least one "
            f"dimension and {4 + 4 * n_dims} bytes; the file has {4 + len(sizes)}. It "
            "is truncated or damaged; get it again."
        )
    return np.dtype(IDX_DTYPES[begin[2]]), struct.unpack(f">{n_dims}I", sizes)
