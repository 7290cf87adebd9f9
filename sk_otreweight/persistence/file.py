"""The file: safetensors, with JSON and a checksum in its header."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sk_otreweight.fingerprint import versions

FORMAT = 1

_KEY = "sk_otreweight"
_PACKAGES = ("sk-otreweight", "torch", "skorch", "scikit-learn", "numpy", "safetensors")
_NO_DIGEST = "0" * 64
_ATTEMPTS = 3
_MAX_HEADER = 10**8  # of safetensors


def write(path: str | os.PathLike, content: Any, tensors: dict[str, Tensor]) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path : path
    content : JSON
    tensors : dict of str to Tensor

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot save to {path}: there is no folder {path.parent}. Create it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"Cannot save to {path}: it is a folder. Add a name.")
    header = {
        "sha256": _NO_DIGEST,
        "format": FORMAT,
        "versions": versions(_PACKAGES),
        "content": content,
    }
    text = json.dumps(header, allow_nan=False, separators=(",", ":"))
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, part, metadata={_KEY: text})
        with part.open("r+b") as file:
            digest, position = _digest(file, _NO_DIGEST)
            file.seek(position)
            file.write(digest.encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what `write` left of a file when it was killed."""
    hexadecimals = "[0-9a-f]" * len(uuid.uuid4().hex)  # "a.b" has parts of its own
    for part in path.parent.glob(f"{glob.escape(path.name)}.{hexadecimals}.part"):
        part.unlink(missing_ok=True)


@contextmanager
def opened(
    path: str | os.PathLike,
) -> Iterator[tuple[Any, Callable[[str], Tensor]]]:
    """Check a file and yield its content, and a function that reads a tensor of it.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If it was not written by `write`, or by that of a later version, or was changed
        since, or is replaced over and over.
    """
    path = Path(path)
    for _ in range(_ATTEMPTS):
        header = _checked_header(path)
        with safe_open(path, framework="pt") as tensors:
            # It opens the file anew, which may be another one by now.
            if header["sha256"] in (tensors.metadata() or {}).get(_KEY, ""):
                # A copy, so that nothing goes on looking at the file.
                yield header["content"], lambda name: tensors.get_tensor(name).clone()
                return
    raise ValueError(
        f"Cannot load {path}: it was replaced by another file each time it was read. "
        "Load it when nothing is saved there."
    )


def _checked_header(path: Path) -> dict[str, Any]:
    """Return what is in a file beside its tensors, if nothing was changed since."""
    if not path.is_file():
        raise FileNotFoundError(f"Cannot load {path}: there is no such file.")
    with path.open("rb") as file:
        header = _read_header(file, path)
        _check_format(header, path)
        if _digest(file, header["sha256"])[0] != header["sha256"]:
            raise ValueError(
                f"Cannot load {path}: it is damaged, or was changed after it was saved "
                "(its checksum is wrong). Take another copy, or save the model again."
            )
    return header


def _read_header(file: BinaryIO, path: Path) -> dict[str, Any]:
    size = int.from_bytes(file.read(8), "little")
    try:
        text = file.read(size if size <= _MAX_HEADER else 0)
        header = json.loads(json.loads(text)["__metadata__"][_KEY])
        bytes.fromhex(header["sha256"])
        return header
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Cannot load {path}: it is no model that was saved by sk_otreweight, or "
            "its beginning is damaged. Pickles are loaded with pickle or joblib."
        ) from error


def _check_format(header: dict[str, Any], path: Path) -> None:
    if header.get("format") != FORMAT:
        writer = header.get("versions", {}).get("sk-otreweight", "another version")
        raise ValueError(
            f"Cannot load {path}: it has format {header.get('format')!r}, of "
            f"sk_otreweight {writer}; this version reads format {FORMAT}. Update "
            "sk_otreweight."
        )


def _digest(file: BinaryIO, digest: str) -> tuple[str, int]:
    """Return the checksum of a file, and where in it `digest`, left out, stands."""
    file.seek(0)
    size = file.read(8)
    header = file.read(int.from_bytes(size, "little"))
    total = hashlib.sha256(size)
    total.update(header.replace(digest.encode(), _NO_DIGEST.encode(), 1))
    while block := file.read(2**20):
        total.update(block)
    return total.hexdigest(), 8 + header.index(digest.encode())
