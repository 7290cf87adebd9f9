"""CIFAR-10 and CIFAR-100: small photographs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from sk_otreweight._validation import check_choice
from sk_otreweight.datasets.images import scale_images
from sk_otreweight.datasets.unpickling import read_pickled_dict


class _Layout(NamedTuple):
    """The names of the files."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str


LAYOUTS = {
    10: _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{k}" for k in range(1, 6)),
        ("test_batch",),
        "batches.meta",
    ),
    100: _Layout("cifar-100-python", ("train",), ("test",), "meta"),
}


def load_cifar(
    folder: str | os.PathLike[str],
    n_classes: Literal[10, 100] = 10,
    *,
    coarse: bool = False,
) -> Bunch:
    """Load CIFAR-10 or CIFAR-100 from your copy, scaled to [0, 1].

    60,000 colour photographs of 32x32 pixels in balanced classes (Krizhevsky, 2009).
    The files are pickles, but nothing in them is executed: a file that asks for more
    than arrays, lists and strings is refused.

    Parameters
    ----------
    folder : str or path-like
        The unpacked archive of the "python version": ``cifar-10-batches-py`` or
        ``cifar-100-python``, or the folder it is in.
    n_classes : {10, 100}, default=10
        Which of the two data sets.
    coarse : bool, default=False
        Whether to label CIFAR-100 with its 20 superclasses.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        X_train : ndarray of shape (50000, 3, 32, 32), dtype float32
            Training images: red, green and blue, then rows, then columns.
        y_train : ndarray of shape (50000,), dtype int64
            Training labels, from 0.
        X_test : ndarray of shape (10000, 3, 32, 32), dtype float32
            Test images.
        y_test : ndarray of shape (10000,), dtype int64
            Test labels, from 0.
        target_names : list of str
            Names of the classes. Only if the folder has the file of names,
            ``batches.meta`` or ``meta``.

    Raises
    ------
    FileNotFoundError
        If a file is missing in `folder`.
    ValueError
        If `n_classes` is neither 10 nor 100; if `coarse` is asked of CIFAR-10; if a
        file is damaged, holds something else, or asks for a function or class that
        such a file has no need of.

    See Also
    --------
    make_long_tailed : Make the data imbalanced.
    load_fashion_mnist : Images that need no files of yours.

    Notes
    -----
    Both archives are on https://www.cs.toronto.edu/~kriz/cifar.html; no licence is
    stated there, and the report below is to be cited. The images take 740 MB of memory,
    and some more while they are read.

    References
    ----------
    .. [1] A. Krizhevsky, "Learning multiple layers of features from tiny images",
       technical report, University of Toronto, 2009.

    Examples
    --------
    >>> from sk_otreweight.datasets import load_cifar
    >>> data = load_cifar("cifar-10-batches-py")  # doctest: +SKIP
    >>> data.X_train.shape  # doctest: +SKIP
    (50000, 3, 32, 32)
    """
    check_choice(n_classes, name="n_classes", choices=tuple(LAYOUTS))
    if coarse and n_classes == 10:
        raise ValueError(
            "coarse=True was given with n_classes=10, but CIFAR-10 has no "
            "superclasses. Leave coarse out, or pass n_classes=100."
        )
    kind = "label" if n_classes == 10 else "coarse_label" if coarse else "fine_label"
    n_labels = 20 if coarse else n_classes
    root = _find_files(Path(folder), n_classes)
    layout = LAYOUTS[n_classes]
    data = Bunch()
    for split, names in (("train", layout.train), ("test", layout.test)):
        X, y = _read_split([root / name for name in names], f"{kind}s", n_labels)
        data[f"X_{split}"], data[f"y_{split}"] = X, y
    if (root / layout.meta).is_file():
        data.target_names = _read_names(root / layout.meta, f"{kind}_names", n_labels)
    return data


def _find_files(folder: Path, n_classes: int) -> Path:
    """Return the folder that the files are in."""
    layout = LAYOUTS[n_classes]
    inner = folder / layout.folder
    root = inner if inner.is_dir() else folder
    names = [*layout.train, *layout.test]
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {', '.join(missing)}; the files {', '.join(names)} are "
            f"expected there. Download the python version of CIFAR-{n_classes} from "
            "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and pass the "
            f"folder {layout.folder}."
        )
    return root


def _read_split(
    paths: Sequence[Path], key: str, n_labels: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    batches = [_read_batch(path, key, n_labels) for path in paths]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return scale_images(images.reshape(-1, 3, 32, 32)), labels


def _read_batch(
    path: Path, key: str, n_labels: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = read_pickled_dict(path)
    images, labels = _entry(batch, "data", path), _entry(batch, key, path)
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if dtype != np.uint8 or len(shape) != 2 or shape[0] == 0 or shape[1] != 3072:
        raise ValueError(
            f"{path}: the images are {dtype or type(images).__name__} of shape "
            f"{shape}; uint8 of shape (n, 3072) is expected. Get the files of CIFAR "
            "again."
        )
    if not _are_labels(labels, len(images), n_labels):
        raise ValueError(
            f"{path}: {key} is not a list of {len(images)} integers from 0 to "
            f"{n_labels - 1}, one for each image. Get the files of CIFAR again."
        )
    return images, np.asarray(labels, dtype=np.int64)


def _are_labels(labels: Any, n_rows: int, n_labels: int) -> bool:
    if isinstance(labels, list) and not all(type(label) is int for label in labels):
        return False
    labels = np.asarray(labels)
    if labels.shape != (n_rows,) or labels.dtype.kind not in "iu":
        return False
    return bool(labels.min() >= 0 and labels.max() < n_labels)


def _read_names(path: Path, key: str, n_labels: int) -> list[str]:
    names = _entry(read_pickled_dict(path), key, path)
    if not isinstance(names, list) or len(names) != n_labels:
        raise ValueError(
            f"{path}: {key} is not a list of {n_labels} names. Get the files of CIFAR "
            "again, or remove this one: it is not needed."
        )
    return [
        name.decode("latin-1") if isinstance(name, bytes) else str(name)
        for name in names
    ]


def _entry(content: dict[str, Any], key: str, path: Path) -> Any:
    if key not in content:
        raise ValueError(
            f"{path}: has no {key!r}, only {list(content)}. Check that n_classes is "
            "that of this data set, and get its files again."
        )
    return content[key]
