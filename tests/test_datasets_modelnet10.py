from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets_helpers import global_generator_untouched

from sk_otreweight.datasets import load_modelnet10
from sk_otreweight.datasets.modelnet10 import CLASSES
from sk_otreweight.datasets.off import read_off
from sk_otreweight.datasets.surfaces import triangle_areas

TETRAHEDRON = """\
OFF
4 4 6
0 0 0
1 0 0
0 1 0
0 0 1
3 0 2 1
3 0 1 3
3 0 3 2
3 1 2 3
"""
CUBE = """\
OFF
8 6 0
0 0 0
1 0 0
1 1 0
0 1 0
0 0 1
1 0 1
1 1 1
0 1 1
4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path):
    """Boxes of another shape for each mesh: three to train, two to test."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for split, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
            for number in numbers:
                size = rng.uniform(0.5, 30, 3)
                lines = CUBE.splitlines()
                for i in range(2, 10):
                    corner = np.array(lines[i].split(), float) * size + 100
                    lines[i] = " ".join(map(str, corner))
                path = tmp_path / "ModelNet10" / name / split
                write(path / f"{name}_{number:04}.off", "\n".join(lines))
    return tmp_path / "ModelNet10"


# --- read_off -----------------------------------------------------------------


def test_triangles(tmp_path):
    vertices, triangles = read_off(write(tmp_path / "mesh.off", TETRAHEDRON))
    np.testing.assert_array_equal(vertices[1:], np.eye(3), strict=True)
    assert triangles.dtype == np.int64
    assert triangles.tolist() == [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]


def test_polygons(tmp_path):
    vertices, triangles = read_off(write(tmp_path / "mesh.off", CUBE))
    assert triangles.shape == (12, 3)
    np.testing.assert_allclose(triangle_areas(vertices, triangles), 0.5)
    # The triangles of a face lie in its plane.
    corners = vertices[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.abs(normals).max(axis=1) == np.abs(normals).sum(axis=1)).all()


def test_faces_of_several_sizes(tmp_path):
    angles = 2 * np.pi * np.arange(6) / 6
    hexagon = [f"{np.cos(angle)} {np.sin(angle)} 0" for angle in angles]
    text = "\n".join(["OFF", "6 2 0", *hexagon, "6 0 1 2 3 4 5", "3 0 2 4"])
    vertices, triangles = read_off(write(tmp_path / "mesh.off", text))
    areas = triangle_areas(vertices, triangles)
    assert len(areas) == 5
    small = np.sqrt(3) / 4
    assert sorted(areas) == pytest.approx(
        [small, small, 2 * small, 2 * small, 3 * small]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("OFF\n", "OFF"),
        lambda text: text.replace("OFF\n", "OFF "),
        lambda text: text.replace("OFF\n", "OFF\n# a comment\n\n"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("4 4 6", "4 4"),
        lambda text: text.replace("1 0 0", " 1.0\t0e0  -0.0  # corner"),
        lambda text: text.replace("3 0 2 1", "3 0 2 1 255 128 0"),
        lambda text: text + "a line after the mesh\n",
    ],
    ids=[
        "no line break",
        "space",
        "comment",
        "Windows",
        "no edges",
        "spaces",
        "colour",
        "longer",
    ],
)
def test_variants_of_the_format(tmp_path, change):
    expected = read_off(write(tmp_path / "mesh.off", TETRAHEDRON))
    changed = change(TETRAHEDRON)
    assert changed != TETRAHEDRON
    found = read_off(write(tmp_path / "changed.off", changed))
    for array, known in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, known, strict=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the OFF file of a mesh: it begins with ''; OFF and the numbers"),
        ("ply\nformat ascii 1.0", "it begins with 'ply format ascii 1.0'; OFF"),
        ("OFF\n", "it begins with 'OFF'"),
        ("OFF\n4\n", "it begins with 'OFF 4'"),
        ("OFF\n4 -4 0\n", "it begins with 'OFF 4 -4 0'"),
        ("OFF BINARY\n4 4 0\n", "it begins with 'OFF BINARY 4 4 0'"),
        ("OFF\n0 0 0\n", "it begins with 'OFF 0 0 0'"),
        (
            TETRAHEDRON[:-10],
            "announces 4 vertices and 4 faces, for which the file has 7 lines. It is "
            "truncated; get it again",
        ),
        (TETRAHEDRON[:-5], r"vertices or faces cannot be read \(.*get it again"),
        (TETRAHEDRON.replace("1 0 0", "1 zero 0"), "could not convert string 'zero'"),
        (TETRAHEDRON.replace("1 0 0", "1 0"), "cannot be read"),
        (TETRAHEDRON.replace("3 0 2 1", "3 0 2.5 1"), "cannot be read"),
        (TETRAHEDRON.replace("3 0 2 1", "2 0 1 1"), "a face has 2 corners, at least 3"),
        (TETRAHEDRON.replace("3 0 2 1", "4 0 2 1"), "a face of 4 corners has 3"),
        (TETRAHEDRON.replace("3 0 2 1", "4 0 2 1 x"), "cannot be read"),
        (
            TETRAHEDRON.replace("3 0 2 1", "3 0 2 4"),
            "the faces use the vertices 0 to 4; finite vertices from 0 to 3 are",
        ),
        (TETRAHEDRON.replace("3 0 2 1", "3 0 2 -1"), "the vertices -1 to 3; finite"),
        (TETRAHEDRON.replace("1 0 0", "1 nan 0"), "finite vertices from 0 to 3"),
        (TETRAHEDRON.replace("1 0 0", "1 inf 0"), "finite vertices from 0 to 3"),
        (
            "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n",
            "none of the 1 triangles has an area",
        ),
    ],
)
def test_damaged_off(tmp_path, text, message):
    path = write(tmp_path / "mesh.off", text)
    with pytest.raises(ValueError, match=message) as caught:
        read_off(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mesh.off"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="not the OFF file of a mesh"):
        read_off(path)


def test_size_of_a_real_mesh(tmp_path):
    n = 150
    x, y = np.mgrid[:n, :n].reshape(2, -1)
    vertices = "\n".join(f"{a} {b} {a * b / n:.6f}" for a, b in zip(x, y, strict=True))
    corner = np.arange(n * n).reshape(n, n)[:-1, :-1].ravel()
    halves = (corner, corner + 1, corner + n), (corner + n, corner + 1, corner + n + 1)
    faces = np.concatenate([np.column_stack(half) for half in halves])
    text = "\n".join(f"3 {a} {b} {c}" for a, b, c in faces)
    header = f"OFF{n * n} {len(faces)} 0"
    path = write(tmp_path / "mesh.off", f"{header}\n{vertices}\n{text}\n")
    found = read_off(path)
    np.testing.assert_array_equal(found[1], faces)
    np.testing.assert_allclose(found[0][:, 2], x * y / n, atol=1e-6)


# --- load_modelnet10 ----------------------------------------------------------


@pytest.mark.parametrize("spelling", [str, Path])
@pytest.mark.parametrize("inner", [True, False])
def test_shapes_and_dtypes(folder, spelling, inner):
    data = load_modelnet10(
        spelling(folder if inner else folder.parent), 32, random_state=0
    )
    for split, per_class in (("train", 3), ("test", 2)):
        X, y = data[f"X_{split}"], data[f"y_{split}"]
        assert X.shape == (10 * per_class, 32, 3)
        assert X.dtype == np.float32
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y, np.repeat(np.arange(10), per_class))
        np.testing.assert_allclose(X.mean(axis=1), 0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(X, axis=2).max(axis=1), 1, rtol=1e-6)
    assert data.target_names == list(CLASSES)


def test_points_are_those_of_the_surface(folder):
    data = load_modelnet10(folder, 20_000, random_state=0)
    vertices, triangles = read_off(folder / "bathtub" / "test" / "bathtub_0004.off")
    size = np.ptp(vertices, axis=0)
    cloud = data.X_test[0] * np.linalg.norm(size) / 2
    np.testing.assert_allclose(np.abs(cloud).max(axis=0), size / 2, rtol=0.05)
    to_face = (size / 2 - np.abs(cloud - (cloud.max(0) + cloud.min(0)) / 2)).min(axis=1)
    assert np.abs(to_face).max() < 0.02 * size.max()


def test_random_state_determines_everything(folder):
    first, again, other = (
        load_modelnet10(folder, 16, random_state=seed) for seed in (7, 7, 8)
    )
    for split in ("train", "test"):
        np.testing.assert_array_equal(first[f"X_{split}"], again[f"X_{split}"])
        assert not np.array_equal(first[f"X_{split}"], other[f"X_{split}"])
    clouds = [
        cloud.tobytes() for cloud in np.concatenate([first.X_train, first.X_test])
    ]
    assert len(set(clouds)) == 50


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generator_is_untouched(folder, random_state):
    with global_generator_untouched():
        load_modelnet10(folder, 16, random_state=random_state)


def test_without_random_state_every_call_differs(folder):
    first, second = load_modelnet10(folder, 16), load_modelnet10(folder, 16)
    assert not np.array_equal(first.X_test, second.X_test)


def test_other_files_make_no_difference(folder):
    before = load_modelnet10(folder, 16, random_state=0)
    (folder / "bathtub" / "train" / "bathtub_0001.off").unlink()
    write(folder / "bed" / "train" / "bed_0000.off", TETRAHEDRON)
    after = load_modelnet10(folder, 16, random_state=0)
    np.testing.assert_array_equal(after.X_train[:2], before.X_train[1:3])
    np.testing.assert_array_equal(after.X_train[3:], before.X_train[3:])
    np.testing.assert_array_equal(after.X_test, before.X_test)


def test_order_of_the_files_on_the_disk_makes_no_difference(folder, monkeypatch):
    expected = load_modelnet10(folder, 16, random_state=0)
    glob = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: sorted(glob(path, pattern), reverse=True)
    )
    found = load_modelnet10(folder, 16, random_state=0)
    np.testing.assert_array_equal(found.X_train, expected.X_train)


def test_files_that_are_no_meshes_are_left_out(folder):
    write(folder / "bed" / "train" / "._bed_0001.off", "left by a Mac")
    write(folder / "bed" / "train" / "bed_0001.txt", "notes")
    write(folder / "README.txt", "notes")
    assert len(load_modelnet10(folder, 16, random_state=0).X_train) == 30


def test_missing_meshes(folder):
    (folder / "sofa" / "test").rename(folder / "sofa" / "other")
    for path in (folder / "bed" / "train").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_modelnet10(folder)
    message = str(caught.value)
    assert f"{folder} lacks bed/train/*.off, sofa/test/*.off; a folder for" in message
    assert "Download ModelNet10.zip from https://modelnet.cs.princeton.edu" in message


def test_no_such_folder(tmp_path):
    message = (
        r"nowhere lacks bathtub/train/\*.off, bathtub/test.* and 17 more; a folder"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_modelnet10(tmp_path / "nowhere")


def test_a_damaged_file_is_named(folder):
    path = write(folder / "desk" / "test" / "desk_0009.off", "OFF\n")
    with pytest.raises(ValueError, match="not the OFF file") as caught:
        load_modelnet10(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("n_points", [1, 2.0, "512"])
def test_bad_n_points(folder, n_points):
    with pytest.raises(
        ValueError, match="n_points=.* is not valid: give an integer >="
    ):
        load_modelnet10(folder, n_points)
