"""Points drawn uniformly from surfaces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]


def fit_unit_sphere(points: Points) -> Points:
    """Move the mean of points, of shape (n, 3), to 0 and the farthest to distance 1."""
    centred = points - points.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1).max()


def triangle_areas(vertices: Points, triangles: NDArray[np.int64]) -> Points:
    """Return the areas, of shape (m,), of triangles given by vertex numbers (m, 3)."""
    first, second, third = np.moveaxis(vertices[triangles], 1, 0)
    return np.linalg.norm(np.cross(second - first, third - first), axis=1) / 2


def sample_triangles(
    vertices: Points, triangles: NDArray[np.int64], n: int, rng: Generator
) -> Points:
    """Draw n points, of shape (n, 3), from the triangles of a mesh."""
    areas = triangle_areas(vertices, triangles)
    chosen = triangles[rng.choice(len(areas), n, p=areas / areas.sum())]
    first, second, third = np.moveaxis(vertices[chosen], 1, 0)
    along = rng.random((2, n, 1))
    # A point of the parallelogram beyond the triangle is turned back into it.
    along = np.where(along.sum(axis=0) > 1, 1 - along, along)
    return first + along[0] * (second - first) + along[1] * (third - first)


def sample_polyhedron(
    base: Points, height: float, taper: float, n: int, rng: Generator
) -> Points:
    """Draw from a prism (`taper` 1), a pyramid (0) or what is between them.

    `base`, of shape (k, 2), are the corners of a convex polygon around 0, in order;
    the top is the base times `taper`. The sides are two triangles each; those that a
    taper of 0 leaves without area are never drawn from.
    """
    k = len(base)
    bottom = np.column_stack([base, np.zeros(k)])
    top = np.column_stack([taper * base, np.full(k, height)])
    here, right = np.arange(k), np.roll(np.arange(k), -1)
    fan = np.column_stack([np.zeros(k - 2, int), here[1:-1], here[2:]])
    sides = [
        np.column_stack([here, right, here + k]),
        np.column_stack([right, right + k, here + k]),
    ]
    triangles = np.concatenate([*sides, fan, fan + k])
    return sample_triangles(np.concatenate([bottom, top]), triangles, n, rng)


def sample_sphere(n: int, rng: Generator) -> Points:
    """Draw from the sphere of radius 1."""
    points = rng.standard_normal((n, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def sample_ellipsoid(radii: Points, n: int, rng: Generator) -> Points:
    """Draw from the ellipsoid with the three `radii`."""

    def propose(size: int) -> tuple[Points, Points]:
        points = sample_sphere(size, rng)
        # How much stretching the sphere enlarges the area around each of its points.
        enlargement = np.linalg.norm(points / radii, axis=1)
        return points * radii, enlargement * radii.min()

    return _accept(propose, n, rng)


def sample_torus(tube: float, n: int, rng: Generator) -> Points:
    """Draw from a torus around z: a tube of radius `tube` whose middle has radius 1."""

    def propose(size: int) -> tuple[Points, Points]:
        section = _circle(size, rng)
        distance = 1 + tube * section[:, :1]
        points = np.column_stack([distance * _circle(size, rng), tube * section[:, 1]])
        return points, distance[:, 0] / (1 + tube)

    return _accept(propose, n, rng)


def sample_cylinder(height: float, n: int, rng: Generator) -> Points:
    """Draw from a closed cylinder of radius 1 around z."""
    n_side = rng.binomial(n, height / (height + 1))
    side = np.column_stack([_circle(n_side, rng), rng.uniform(0, height, n_side)])
    caps = np.column_stack([_disc(n - n_side, rng), _ends(height, n - n_side, rng)])
    return np.concatenate([side, caps])


def sample_cone(height: float, n: int, rng: Generator) -> Points:
    """Draw from a closed cone around z, its base of radius 1 at z = 0."""
    slant = np.hypot(1, height)
    n_side = rng.binomial(n, slant / (slant + 1))
    radius = np.sqrt(rng.random((n_side, 1)))
    side = np.column_stack([radius * _circle(n_side, rng), height * (1 - radius)])
    base = np.column_stack([_disc(n - n_side, rng), np.zeros(n - n_side)])
    return np.concatenate([side, base])


def sample_capsule(height: float, n: int, rng: Generator) -> Points:
    """Draw from a cylinder of radius 1 around z that ends in half spheres."""
    n_side = rng.binomial(n, height / (height + 2))
    side = np.column_stack([_circle(n_side, rng), rng.uniform(0, height, n_side)])
    ends = sample_sphere(n - n_side, rng)
    ends[:, 2] += height * (ends[:, 2] > 0)
    return np.concatenate([side, ends])


def _accept(
    propose: Callable[[int], tuple[Points, Points]], n: int, rng: Generator
) -> Points:
    """Keep proposals with their probability until there are n."""
    kept = np.empty((0, 3))
    while len(kept) < n:
        points, probability = propose(2 * n)
        points = points[rng.random(2 * n) < probability]
        kept = np.concatenate([kept, points])
    return kept[:n]


def _circle(n: int, rng: Generator) -> Points:
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def _disc(n: int, rng: Generator) -> Points:
    return np.sqrt(rng.random((n, 1))) * _circle(n, rng)


def _ends(height: float, n: int, rng: Generator) -> Points:
    return height * rng.integers(0, 2, n)
