"""Point clouds of ten kinds of solids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator, RandomState
from numpy.typing import NDArray
from sklearn.utils import Bunch

from sk_otreweight._validation import check_count, check_real
from sk_otreweight.datasets.surfaces import (
    Points,
    fit_unit_sphere,
    sample_capsule,
    sample_cone,
    sample_cylinder,
    sample_ellipsoid,
    sample_polyhedron,
    sample_sphere,
    sample_torus,
)
from sk_otreweight.randomness import draw_seed

# As PointNet++ augments its clouds.
SCALE = (0.8, 1.25)
SHIFT = 0.1


def make_solids(
    n_per_class: int = 100,
    n_points: int = 512,
    *,
    noise: float = 0.02,
    dropout: float = 0.5,
    random_state: int | RandomState | None = None,
) -> Bunch:
    """Draw point clouds from the surfaces of ten kinds of solids.

    A solid of random proportions stands upright and is turned about the vertical
    axis. Its points are drawn uniformly from its surface, moved to mean 0 and to
    within distance 1 of it, then scaled by 0.8 to 1.25, shifted by up to 0.1 along
    each axis, and disturbed. No data have to be downloaded. Some solids of different
    kinds are much alike: a flat box and a prism, a cone and a pyramid with six sides,
    a sphere and an ellipsoid.

    Parameters
    ----------
    n_per_class : int, default=100
        Number of clouds of each kind.
    n_points : int, default=512
        Number of points of each cloud, at least 2.
    noise : float, default=0.02
        Standard deviation of the normal noise that is added to each coordinate.
    dropout : float, default=0.5
        Largest share, in [0, 1], of its points that a cloud can lose; the share is
        drawn uniformly. Lost points are replaced by copies of points that are left,
        one of which there always is.
    random_state : int, RandomState instance or None, default=None
        Determines the clouds. `None` gives different ones at every call; numpy's
        global generator is never used.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        X : ndarray of shape (10 * n_per_class, n_points, 3), dtype float32
            The clouds. The last axis is x, y and z, with z vertical.
        y : ndarray of shape (10 * n_per_class,), dtype int64
            Their kinds, in turn: 0 to 9, and again 0 to 9.
        target_names : list of str
            Names of the ten kinds.

    Raises
    ------
    ValueError
        If `n_per_class` is not an integer of at least 1, `n_points` not one of at
        least 2, `noise` is negative or `dropout` is not in [0, 1].

    See Also
    --------
    load_modelnet10 : Clouds of furniture.
    make_long_tailed : Make the data imbalanced.

    Notes
    -----
    With the same seed, further rows are all that a larger `n_per_class` changes.

    Examples
    --------
    >>> from sk_otreweight.datasets import make_solids
    >>> data = make_solids(n_per_class=5, n_points=128, random_state=0)
    >>> data.X.shape
    (50, 128, 3)
    >>> [data.target_names[k] for k in data.y[:4]]
    ['box', 'capsule', 'cone', 'cylinder']
    """
    check_count(n_per_class, name="n_per_class")
    check_count(n_points, name="n_points", minimum=2)
    check_real(noise, name="noise")
    check_real(dropout, name="dropout", maximum=1.0)
    seed = draw_seed(random_state)
    y = np.tile(np.arange(len(SOLIDS), dtype=np.int64), n_per_class)
    X = np.empty((len(y), n_points, 3), np.float32)
    solids = list(SOLIDS.values())
    for row, kind in enumerate(y):
        rng = np.random.default_rng([seed, row])
        cloud = _disturb(solids[kind](n_points, rng), noise, rng)
        X[row] = _drop(cloud, dropout, rng)
    return Bunch(X=X, y=y, target_names=list(SOLIDS))


def _disturb(points: Points, noise: float, rng: Generator) -> Points:
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    moved = rng.uniform(*SCALE) * fit_unit_sphere(points) @ turn
    moved += rng.uniform(-SHIFT, SHIFT, 3)
    return moved + noise * rng.standard_normal(points.shape)


def _drop(points: Points, dropout: float, rng: Generator) -> Points:
    n_kept = max(1, round(len(points) * (1 - rng.uniform(0, dropout))))
    kept = rng.permutation(len(points))[:n_kept]
    copies = rng.choice(kept, len(points) - n_kept)
    return points[np.concatenate([kept, copies])]


# Closed forms are exact and fast. The meshes of trimesh only come near to curved
# surfaces, take several times as long, and are one more dependency.


def _box(n: int, rng: Generator) -> Points:
    width, depth, height = rng.uniform(0.4, 1, 3)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    base = corners * [width, depth] / 2
    return sample_polyhedron(base, height, 1, n, rng)


def _capsule(n: int, rng: Generator) -> Points:
    return sample_capsule(rng.uniform(0.3, 2), n, rng)


def _cone(n: int, rng: Generator) -> Points:
    return sample_cone(rng.uniform(1, 2.5), n, rng)


def _cylinder(n: int, rng: Generator) -> Points:
    return sample_cylinder(rng.uniform(0.8, 3), n, rng)


def _ellipsoid(n: int, rng: Generator) -> Points:
    return sample_ellipsoid(rng.uniform(0.5, 1, 3), n, rng)


def _prism(n: int, rng: Generator) -> Points:
    base = _regular_polygon(rng.choice([3, 5, 6]))
    return sample_polyhedron(base, rng.uniform(0.8, 3), 1, n, rng)


def _pyramid(n: int, rng: Generator) -> Points:
    base = _regular_polygon(rng.choice([4, 5, 6]))
    return sample_polyhedron(base, rng.uniform(1, 2.5), 0, n, rng)


def _sphere(n: int, rng: Generator) -> Points:
    return sample_sphere(n, rng)


def _tetrahedron(n: int, rng: Generator) -> Points:
    base = _regular_polygon(3) * rng.uniform(0.6, 1, (3, 1))
    return sample_polyhedron(base, rng.uniform(0.8, 2), 0, n, rng)


def _torus(n: int, rng: Generator) -> Points:
    return sample_torus(rng.uniform(0.2, 0.6), n, rng)


def _regular_polygon(k: int) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(k) / k
    return np.column_stack([np.cos(angles), np.sin(angles)])


SOLIDS: dict[str, Callable[[int, Generator], Points]] = {
    "box": _box,
    "capsule": _capsule,
    "cone": _cone,
    "cylinder": _cylinder,
    "ellipsoid": _ellipsoid,
    "prism": _prism,
    "pyramid": _pyramid,
    "sphere": _sphere,
    "tetrahedron": _tetrahedron,
    "torus": _torus,
}
