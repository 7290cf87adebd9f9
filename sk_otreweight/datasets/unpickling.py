"""Pickled dicts of arrays, read without executing what they say."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_pickled_dict(path: Path) -> dict[str, Any]:
    """Read a dict of integer arrays, lists, numbers, strings and bytes.

    Python 2 and 3 and all versions of numpy write such files in ways of their own, all
    of which are read. Strings of Python 2 become bytes; the keys become `str`.

    Raises
    ------
    ValueError
        If the file is no pickled dict, is damaged, or names any function or class that
        is not needed for its arrays. Nothing of it was executed then.
    """
    content = path.read_bytes()
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {_as_text(key): _as_array(item) for key, item in value.items()}
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(
            f"{path}: cannot be read as a pickled dict of arrays "
            f"({type(error).__name__}: {error}). Nothing in it was executed. It is "
            "damaged or another file; get it again."
        ) from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a function or class that the file names."""
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which arrays, lists and strings do not need"
        )


# None of numpy's own functions is handed out: with `ndarray`, which lays an array of
# objects over any bytes, and `dtype`, which takes any state, a forged file could crash
# the interpreter or worse. These do what arrays of integers need and no more.


class _Dtype:
    def __init__(self, code: str | bytes, align: bool = False, copy: bool = True):
        self.code, self.order = _as_text(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _as_text(state[1])

    def to_numpy(self) -> np.dtype[Any]:
        if not re.fullmatch("[iu][1248]", self.code):
            raise ValueError(f"it has an array of type {self.code!r}, not of integers")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    values: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        flat = np.frombuffer(content, dtype.to_numpy())
        self.values = flat.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(kind: str, shape: tuple[int, ...], code: bytes) -> _Array:
    """Return an array that is not filled yet."""
    return _Array()


def _frombuffer(
    content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str
) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes, which Python 3 writes as text into pickles for Python 2."""
    return text.encode("latin-1")


def _as_text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _as_array(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value


_STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of `_reconstruct`
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
