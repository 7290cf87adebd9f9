"""Single files out of archives, which are never unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

# Ten times what is needed: more is another file, or one made to fill the memory.
LARGEST = 50_000_000


def read_nested(path: Path, names: Sequence[str]) -> bytes:
    """Return the content of a file, or of one inside it.

    Parameters
    ----------
    path : Path
        The wanted file, or a ``.tar.gz`` with it or with another of `names` in it.
    names : sequence of str
        Names, without folders, of the archives that may be in an archive, and of the
        wanted file.

    Raises
    ------
    ValueError
        If an archive cannot be read or has none of `names`, or if a file is absurdly
        large.
    """
    _check_size(path.stat().st_size, path)
    content = path.read_bytes()
    for _ in names:
        if content.startswith(b"\x1f\x8b"):
            content = _read_member(content, names, path)
    return content


def _read_member(content: bytes, names: Sequence[str], path: Path) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            # tarfile reads headers whole, which may be as large as any file.
            plain = file.read(LARGEST + 1)
        _check_size(len(plain), path)
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for member in archive:
                if member.isfile() and PurePosixPath(member.name).name in names:
                    _check_size(member.size, path)
                    return archive.extractfile(member).read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be read as a tar.gz archive ({error}). It is truncated or "
            "damaged; get it again."
        ) from error
    raise ValueError(
        f"{path}: has no file named {' or '.join(names)}. Check that this is the right "
        "archive."
    )


def _check_size(size: int, path: Path) -> None:
    if size > LARGEST:
        raise ValueError(
            f"{path}: it, or a file in it, has more than the {LARGEST} bytes that are "
            "expected at most. Check that this is the right archive."
        )
