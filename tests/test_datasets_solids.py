from __future__ import annotations

import numpy as np
import pytest
from datasets_helpers import global_generator_untouched

from sk_otreweight.datasets import make_solids
from sk_otreweight.datasets.solids import SOLIDS
from sk_otreweight.datasets.surfaces import (
    fit_unit_sphere,
    sample_capsule,
    sample_cone,
    sample_cylinder,
    sample_ellipsoid,
    sample_polyhedron,
    sample_sphere,
    sample_torus,
    sample_triangles,
    triangle_areas,
)

N = 40_000
SQUARE = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def assert_shares(of_points, areas):
    """Regions hold points in proportion to their areas, and hold them all."""
    counts = np.array([region.sum() for region in of_points])
    n = len(of_points[0])
    assert counts.sum() == n
    shares = np.asarray(areas) / np.sum(areas)
    deviation = np.sqrt(shares * (1 - shares) / n)
    np.testing.assert_array_less(np.abs(counts / n - shares), 5 * deviation)


def close(values, to):
    return np.isclose(values, to, rtol=0, atol=1e-9)


# --- surfaces -----------------------------------------------------------------


def test_shares_check_can_fail(rng):
    uniform = rng.random(N) < 0.5
    assert_shares([uniform, ~uniform], [1, 1])
    with pytest.raises(AssertionError):
        assert_shares([uniform, ~uniform], [1.1, 1])
    with pytest.raises(AssertionError):
        assert_shares([uniform, uniform], [1, 1])


def test_triangles(rng):
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 4]])
    triangles = np.array([[0, 1, 2], [0, 1, 3], [1, 1, 3]])
    np.testing.assert_allclose(triangle_areas(vertices, triangles), [3, 4, 0])
    points = sample_triangles(vertices, triangles, N, rng)
    assert points.shape == (N, 3)
    assert points.min() >= 0
    flat, steep = points[:, 2] == 0, points[:, 1] == 0
    assert_shares([flat, steep], [3, 4])
    x, y, _ = points[flat].T / [[2], [3], [4]]
    assert (x + y).max() <= 1
    # The medians cut a triangle into six parts of equal area.
    rest = 1 - x - y
    order = np.argsort([x, y, rest], axis=0)
    kinds = np.unique(order, axis=1, return_inverse=True)[1].ravel()
    assert_shares([kinds == kind for kind in range(6)], np.ones(6))


def test_box(rng):
    points = sample_polyhedron(SQUARE * [2, 3], 5, 1, N, rng)
    planes = [(0, -2), (0, 2), (1, -3), (1, 3), (2, 0), (2, 5)]
    faces = [close(points[:, axis], at) for axis, at in planes]
    assert_shares(faces, [6 * 5, 6 * 5, 4 * 5, 4 * 5, 4 * 6, 4 * 6])
    assert np.all(np.abs(points - [0, 0, 2.5]) <= [2, 3, 2.5])


def test_pyramid(rng):
    points = sample_polyhedron(SQUARE, 2, 0, N, rng)
    x, y, z = points.T
    base = z == 0
    width = 1 - z / 2
    sides = [
        close(width, along) & (z > 0) & (np.abs(across) <= width)
        for along, across in [(x, y), (-x, y), (y, x), (-y, x)]
    ]
    assert_shares([base, *sides], [4, *[np.sqrt(1 + 2**2)] * 4])


def test_frustum(rng):
    points = sample_polyhedron(SQUARE, 3, 0.5, N, rng)
    bottom, top = points[:, 2] == 0, points[:, 2] == 3
    slant = np.hypot(0.5, 3)
    assert_shares([bottom, top, ~(bottom | top)], [4, 1, 4 * 1.5 * slant])


def test_sphere(rng):
    points = sample_sphere(N, rng)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    for axis in range(3):  # slices of one thickness have one area
        slices = np.floor((points[:, axis] + 1) / 0.25)
        assert_shares([slices == k for k in range(8)], np.ones(8))


def test_cylinder(rng):
    points = sample_cylinder(3, N, rng)
    radius, z = np.linalg.norm(points[:, :2], axis=1), points[:, 2]
    bottom, top = z == 0, z == 3
    side = close(radius, 1) & ~bottom & ~top
    inner = bottom & (radius < 0.5)
    low = side & (z < 1)
    assert_shares(
        [inner, bottom & ~inner, top, low, side & ~low], [0.25, 0.75, 1, 2, 4]
    )
    assert radius.max() <= 1 + 1e-12


def test_cone(rng):
    points = sample_cone(2, N, rng)
    radius, z = np.linalg.norm(points[:, :2], axis=1), points[:, 2]
    base = z == 0
    np.testing.assert_allclose(z[~base], 2 * (1 - radius[~base]))
    inner, slant = radius < 0.5, np.sqrt(5)
    regions = [base & inner, base & ~inner, ~base & inner, ~base & ~inner]
    assert_shares(regions, [0.25, 0.75, slant / 4, slant * 3 / 4])


def test_capsule(rng):
    points = sample_capsule(2, N, rng)
    z = points[:, 2]
    to_axis = points - np.clip(z, 0, 2)[:, None] * [0, 0, 1]
    np.testing.assert_allclose(np.linalg.norm(to_axis, axis=1), 1)
    below, above = z < 0, z > 2
    assert_shares([below, above, ~(below | above)], [2, 2, 4])


def test_torus(rng):
    points = sample_torus(0.5, N, rng)
    distance = np.linalg.norm(points[:, :2], axis=1)
    np.testing.assert_allclose(np.hypot(distance - 1, points[:, 2]), 0.5)
    # Pappus: the centre of an arc of half a circle is 2 r / pi off its middle.
    outer = distance > 1
    assert_shares([outer, ~outer], [1 + 2 * 0.5 / np.pi, 1 - 2 * 0.5 / np.pi])
    angle = np.arctan2(points[:, 1], points[:, 0]) + np.pi
    quarter = np.floor(angle / (np.pi / 2))
    assert_shares([quarter == k for k in range(4)], np.ones(4))


def test_ellipsoid(rng):
    radii = np.array([1.0, 0.7, 0.4])
    points = sample_ellipsoid(radii, N, rng)
    np.testing.assert_allclose(np.linalg.norm(points / radii, axis=1), 1)
    # The area between two heights, by the triangles of a fine grid.
    theta, phi = np.linspace(0, np.pi, 401), np.linspace(0, 2 * np.pi, 401)
    grid = radii * np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), np.ones_like(phi)),
        ],
        axis=-1,
    )
    number = np.arange(401 * 401).reshape(401, 401)
    corner, right = number[:-1, :-1], number[:-1, 1:]
    below, across = number[1:, :-1], number[1:, 1:]
    halves = [(corner, right, below), (across, right, below)]
    triangles = np.stack([np.stack(half, axis=-1) for half in halves], axis=2)
    areas = triangle_areas(grid.reshape(-1, 3), triangles.reshape(-1, 3))
    bands = areas.reshape(8, -1).sum(axis=1)
    found = np.floor(np.arccos(points[:, 2] / radii[2]) / (np.pi / 8))
    assert_shares([found == k for k in range(8)], bands)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points(n, rng):
    for solid in SOLIDS.values():
        assert solid(n, rng).shape == (n, 3)


def test_fit_unit_sphere(rng):
    points = fit_unit_sphere(rng.normal(5, 3, (50, 3)))
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)


# --- make_solids --------------------------------------------------------------


def test_shapes_and_dtypes():
    data = make_solids(3, 64, random_state=0)
    assert data.X.shape == (30, 64, 3)
    assert data.X.dtype == np.float32
    assert data.X.flags["C_CONTIGUOUS"]
    assert np.isfinite(data.X).all()
    assert data.y.dtype == np.int64
    np.testing.assert_array_equal(data.y, [*range(10)] * 3)
    assert data.target_names == sorted(SOLIDS)


def test_size_of_an_experiment():
    data = make_solids(100, random_state=0)
    assert data.X.shape == (1000, 512, 3)
    assert len({cloud.tobytes() for cloud in data.X}) == 1000


def test_random_state_determines_everything():
    first, again, other = (make_solids(2, 32, random_state=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.X, again.X)
    assert not np.array_equal(first.X, other.X)
    one, two = (
        make_solids(2, 32, random_state=np.random.RandomState(3)) for _ in range(2)
    )
    np.testing.assert_array_equal(one.X, two.X)


def test_more_clouds_only_add_rows():
    few, more = make_solids(2, 32, random_state=0), make_solids(5, 32, random_state=0)
    np.testing.assert_array_equal(few.X, more.X[:20])


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generator_is_untouched(random_state):
    with global_generator_untouched():
        make_solids(1, 16, random_state=random_state)


def test_without_random_state_every_call_differs():
    assert not np.array_equal(make_solids(1, 16).X, make_solids(1, 16).X)


def test_scale_and_shift():
    X = make_solids(30, 256, noise=0, dropout=0, random_state=0).X.astype(float)
    centres = X.mean(axis=1)
    sizes = np.linalg.norm(X - centres[:, None], axis=2).max(axis=1)
    for values, low, high in [(sizes, 0.8, 1.25), (centres, -0.1, 0.1)]:
        assert low - 1e-6 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high + 1e-6


def test_the_vertical_axis_stays_vertical():
    data = make_solids(20, 512, noise=0, dropout=0, random_state=0)
    for name in ("box", "cylinder", "prism"):
        z = data.X[data.y == data.target_names.index(name), :, 2]
        on_top = np.isclose(z, z.max(axis=1, keepdims=True), atol=1e-5)
        assert (on_top.mean(axis=1) > 0.05).all()
    boxes = data.X[data.y == 0]
    assert not np.isclose(boxes[..., 0], boxes[..., 0].max(), atol=1e-5).sum() > 20


def test_noise():
    clean, noisy = (
        make_solids(5, 256, noise=noise, dropout=0, random_state=0).X
        for noise in (0, 0.05)
    )
    assert (noisy - clean).std() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(("dropout", "lowest"), [(0, 200), (0.5, 100), (1, 1)])
def test_dropout(dropout, lowest):
    X = make_solids(30, 200, dropout=dropout, random_state=0).X
    left = [len(np.unique(cloud, axis=0)) for cloud in X]
    assert lowest <= min(left) <= lowest + 5
    assert max(left) >= 195
    assert np.mean(left) == pytest.approx(200 * (1 - dropout / 2), rel=0.05)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_per_class": 0}, "n_per_class=0 is not valid: give an integer >= 1"),
        ({"n_per_class": 2.0}, "n_per_class=2.0 is not valid"),
        ({"n_points": 1}, "n_points=1 is not valid: give an integer >= 2"),
        ({"noise": -0.1}, "noise=-0.1 is not valid: give a finite number >= 0"),
        ({"noise": np.nan}, "noise=nan is not valid"),
        ({"dropout": 1.5}, "dropout=1.5 is not valid: .* >= 0 and <= 1"),
        ({"dropout": "half"}, "dropout='half' is not valid"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_solids(**parameters)


def test_bad_random_state():
    with pytest.raises(ValueError, match="cannot be used to seed"):
        make_solids(random_state="seed")
