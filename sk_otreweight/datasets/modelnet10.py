"""ModelNet10: point clouds of furniture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.utils import Bunch

from sk_otreweight._validation import check_count
from sk_otreweight.datasets.off import read_off
from sk_otreweight.datasets.surfaces import fit_unit_sphere, sample_triangles
from sk_otreweight.randomness import draw_seed

CLASSES = (
    "bathtub",
    "bed",
    "chair",
    "desk",
    "dresser",
    "monitor",
    "night_stand",
    "sofa",
    "table",
    "toilet",
)


def load_modelnet10(
    folder: str | os.PathLike[str],
    n_points: int = 512,
    *,
    random_state: int | RandomState | None = None,
) -> Bunch:
    """Draw point clouds from the meshes of ModelNet10.

    4,899 meshes of ten classes of furniture (Wu et al., 2015), in an official split.
    Points are drawn uniformly from the surface of each, moved to mean 0 and scaled so
    that the farthest is at distance 1.

    Parameters
    ----------
    folder : str or path-like
        The folder ``ModelNet10`` of the unpacked archive, with the meshes in
        ``<class>/train/*.off`` and ``<class>/test/*.off``, or the folder it is in.
    n_points : int, default=512
        Number of points of each cloud, at least 2.
    random_state : int, RandomState instance or None, default=None
        Determines the points. `None` gives different ones at every call; numpy's
        global generator is never used.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        X_train : ndarray of shape (3991, n_points, 3), dtype float32
            Clouds of the training meshes. The last axis is x, y and z, with z
            vertical.
        y_train : ndarray of shape (3991,), dtype int64
            Their classes, 0 to 9, sorted.
        X_test : ndarray of shape (908, n_points, 3), dtype float32
            Clouds of the test meshes.
        y_test : ndarray of shape (908,), dtype int64
            Their classes, 0 to 9, sorted.
        target_names : list of str
            Names of the ten classes.

    Raises
    ------
    FileNotFoundError
        If `folder` lacks meshes of a class.
    ValueError
        If `n_points` is not an integer of at least 2, or a file is damaged.

    See Also
    --------
    make_solids : Clouds that need no download.
    make_long_tailed : Make the data imbalanced.

    Notes
    -----
    The archive ``ModelNet10.zip`` (450 MB) is on https://modelnet.cs.princeton.edu. The
    meshes were collected from the web, their authors hold the copyright, and they are
    provided for academic research only.

    The files are text, and reading all of them takes minutes; keep the clouds, with
    `numpy.savez` for one, if you need them again. The points of a mesh depend on
    `random_state` and on what is in its file and its name, not on other files.

    References
    ----------
    .. [1] Z. Wu, S. Song, A. Khosla, F. Yu, L. Zhang, X. Tang, J. Xiao, "3D ShapeNets:
       a deep representation for volumetric shapes", CVPR 2015.

    Examples
    --------
    >>> from sk_otreweight.datasets import load_modelnet10
    >>> data = load_modelnet10("ModelNet10", random_state=0)  # doctest: +SKIP
    >>> data.X_train.shape  # doctest: +SKIP
    (3991, 512, 3)
    """
    check_count(n_points, name="n_points", minimum=2)
    files = _find_meshes(Path(folder))
    seed = draw_seed(random_state)
    labels = np.arange(len(CLASSES), dtype=np.int64)
    data = Bunch(target_names=list(CLASSES))
    for split in ("train", "test"):
        of_class = [files[name, split] for name in CLASSES]
        paths = [path for paths in of_class for path in paths]
        data[f"X_{split}"] = _draw_clouds(paths, n_points, seed)
        data[f"y_{split}"] = np.repeat(labels, [len(paths) for paths in of_class])
    return data


def _find_meshes(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the files of each class and split."""
    inner = folder / "ModelNet10"
    root = inner if inner.is_dir() else folder
    files = {
        (name, split): sorted((root / name / split).glob("[!.]*.off"))
        for name in CLASSES
        for split in ("train", "test")
    }
    missing = [
        f"{'/'.join(place)}/*.off" for place, found in files.items() if not found
    ]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"{root} lacks {', '.join(missing[:3])}{more}; a folder for each of the "
            "ten classes of ModelNet10, with train and test in it, is expected. "
            "Download ModelNet10.zip from https://modelnet.cs.princeton.edu, unpack it "
            "and pass the folder ModelNet10."
        )
    return files


def _draw_clouds(
    paths: Sequence[Path], n_points: int, seed: int
) -> NDArray[np.float32]:
    clouds = np.empty((len(paths), n_points, 3), np.float32)
    for cloud, path in zip(clouds, paths, strict=True):
        # A generator for each file: others before it make no difference.
        rng = np.random.default_rng([seed, crc32(path.name.encode())])
        points = sample_triangles(*read_off(path), n_points, rng)
        cloud[:] = fit_unit_sphere(points)
    return clouds
