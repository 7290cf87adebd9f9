"""Files in the IDX format of the MNIST data sets."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDX_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


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
        header says.

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
    content = _read_bytes(Path(path))
    dtype, shape, start = _parse_idx_header(content, path)
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"{path}: the header announces {expected} bytes of data (shape {shape}, "
            f"{dtype.itemsize} per entry), the file has {len(content) - start}. It is "
            "truncated or damaged; get it again."
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be decompressed ({error}). It is truncated or damaged; "
            "get it again."
        ) from error


def _parse_idx_header(
    content: bytes, path: str | os.PathLike[str]
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES:
        codes = ", ".join(f"0x{code:02x}" for code in IDX_DTYPES)
        raise ValueError(
            f"{path}: not an IDX file: it begins with 0x{content[:4].hex()}; two zero "
            f"bytes, a type ({codes}) and the number of dimensions are expected. Check "
            "that this is the right file and get it again."
        )
    n_dims = content[3]
    start = 4 + 4 * n_dims
    if n_dims == 0 or len(content) < start:
        raise ValueError(
            f"{path}: an IDX header of {n_dims} dimension(s) needs at least one "
            f"dimension and {start} bytes; the file has {len(content)}. It is "
            "truncated or damaged; get it again."
        )
    shape = struct.unpack(f">{n_dims}I", content[4:start])
    return np.dtype(IDX_DTYPES[content[2]]), shape, start
