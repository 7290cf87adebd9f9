"""Meshes in the OFF format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sk_otreweight.datasets.surfaces import Points, triangle_areas


def read_off(path: Path) -> tuple[Points, NDArray[np.int64]]:
    """Read a mesh; polygons are cut into triangles, colours are left out.

    Returns
    -------
    vertices : ndarray of shape (n_vertices, 3), dtype float64
    triangles : ndarray of shape (n_triangles, 3), dtype int64
        The numbers of the vertices of each triangle.

    Raises
    ------
    ValueError
        If the file is no OFF file or is damaged.
    """
    lines = _content_lines(path.read_text("latin-1"))
    n_vertices, n_faces, start = _parse_header(lines, path)
    first_face, end = start + n_vertices, start + n_vertices + n_faces
    if len(lines) < end:
        raise ValueError(
            f"{path}: the header announces {n_vertices} vertices and {n_faces} faces, "
            f"for which the file has {len(lines) - start} lines. It is truncated; get "
            "it again."
        )
    try:
        vertices = np.loadtxt(lines[start:first_face], usecols=range(3), ndmin=2)
        triangles = _read_faces(lines[first_face:end])
    except ValueError as error:
        raise ValueError(
            f"{path}: the vertices or faces cannot be read ({error}). It is damaged; "
            "get it again."
        ) from error
    _check_mesh(vertices, triangles, path)
    return vertices, triangles


def _content_lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _parse_header(lines: Sequence[str], path: Path) -> tuple[int, int, int]:
    """Return the numbers of vertices and faces, and the line where these begin."""
    head = lines[0] if lines else ""
    # Many files of ModelNet lack the line break after "OFF": "OFF1568 1732 0".
    counts = head[3:].split() or " ".join(lines[1:2]).split()
    if head.startswith("OFF") and len(counts) > 1 and all(map(str.isdecimal, counts)):
        n_vertices, n_faces = int(counts[0]), int(counts[1])
        if n_vertices and n_faces:
            return n_vertices, n_faces, 1 if head[3:] else 2
    beginning = " ".join(lines[:2])[:50]
    raise ValueError(
        f"{path}: not the OFF file of a mesh: it begins with {beginning!r}; OFF and "
        "the numbers of vertices, faces and edges are expected. Check that this is the "
        "right file and get it again."
    )


def _read_faces(lines: Sequence[str]) -> NDArray[np.int64]:
    table = np.loadtxt(lines, np.int64, usecols=range(4), ndmin=2)
    sizes = table[:, 0]
    if sizes.min() < 3:
        raise ValueError(f"a face has {sizes.min()} corners, at least 3 are expected")
    polygons = np.flatnonzero(sizes > 3)
    fans = [fan for k in polygons for fan in _rest_of_fan(lines[k], sizes[k])]
    return np.concatenate([table[:, 1:], np.reshape(fans, (-1, 3)).astype(np.int64)])


def _rest_of_fan(line: str, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a polygon into the triangles that share its first corner, but the first."""
    corners = [int(entry) for entry in line.split()[1 : size + 1]]
    if len(corners) < size:
        raise ValueError(f"a face of {size} corners has {len(corners)}")
    for left, right in pairwise(corners[2:]):
        yield corners[0], left, right


def _check_mesh(vertices: Points, triangles: NDArray[np.int64], path: Path) -> None:
    known = triangles.min() >= 0 and triangles.max() < len(vertices)
    if not known or not np.isfinite(vertices).all():
        raise ValueError(
            f"{path}: the faces use the vertices {triangles.min()} to "
            f"{triangles.max()}; finite vertices from 0 to {len(vertices) - 1} are "
            "expected. It is damaged; get it again."
        )
    if not triangle_areas(vertices, triangles).sum() > 0:
        raise ValueError(
            f"{path}: none of the {len(triangles)} triangles has an area, so no points "
            "can be drawn from them. It is damaged; get it again."
        )
