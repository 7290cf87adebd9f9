"""Fashion-MNIST: images of clothes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch

from sk_otreweight.datasets.idx import read_idx
from sk_otreweight.datasets.images import scale_images

FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = {
    "X_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "X_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fashion_mnist(data_home: str | os.PathLike[str] | None = None) -> Bunch:
    """Load the Fashion-MNIST images, scaled to [0, 1].

    70,000 images of clothes in ten balanced classes (Xiao et al., 2017,
    arXiv:1708.07747).

    Parameters
    ----------
    data_home : str, path-like or None, default=None
        Folder with the four IDX files of the data set, compressed (``.gz``) or not.
        With `None` they are read from where the Debian package
        ``dataset-fashion-mnist`` puts them; if it is not installed, the data are
        downloaded from OpenML and cached by scikit-learn.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        X_train : ndarray of shape (60000, 1, 28, 28), dtype float32
            Training images.
        y_train : ndarray of shape (60000,), dtype int64
            Training labels, 0 to 9.
        X_test : ndarray of shape (10000, 1, 28, 28), dtype float32
            Test images.
        y_test : ndarray of shape (10000,), dtype int64
            Test labels, 0 to 9.
        target_names : list of str
            Names of the ten classes.
        source : str
            Where the data come from: a folder or the OpenML name.

    Raises
    ------
    FileNotFoundError
        If a file is missing in `data_home`.
    ValueError
        If a file is damaged or holds something else than 28x28 images or their
        labels.

    See Also
    --------
    make_long_tailed : Make the data imbalanced.
    read_idx : Read a single IDX file.

    Examples
    --------
    >>> from sk_otreweight.datasets import load_fashion_mnist
    >>> data = load_fashion_mnist()  # doctest: +SKIP
    >>> data.X_train.shape  # doctest: +SKIP
    (60000, 1, 28, 28)
    """
    if data_home is not None:
        parts, source = _read_fashion_mnist(Path(data_home)), str(data_home)
    elif len(_find_fashion_mnist(FASHION_MNIST_PACKAGE)) == len(FASHION_MNIST_FILES):
        parts = _read_fashion_mnist(FASHION_MNIST_PACKAGE)
        source = str(FASHION_MNIST_PACKAGE)
    else:
        parts, source = _fetch_fashion_mnist(), "OpenML: Fashion-MNIST, version 1"
    for split in ("train", "test"):
        _check_images(parts[f"X_{split}"], parts[f"y_{split}"], split, source)
    return Bunch(
        X_train=scale_images(parts["X_train"][:, None]),
        y_train=parts["y_train"].astype(np.int64),
        X_test=scale_images(parts["X_test"][:, None]),
        y_test=parts["y_test"].astype(np.int64),
        target_names=list(FASHION_MNIST_CLASSES),
        source=source,
    )


def _find_fashion_mnist(folder: Path) -> dict[str, Path]:
    return {
        key: path
        for key, name in FASHION_MNIST_FILES.items()
        for path in (folder / f"{name}.gz", folder / name)
        if path.is_file()
    }


def _read_fashion_mnist(folder: Path) -> dict[str, NDArray[Any]]:
    found = _find_fashion_mnist(folder)
    if len(found) < len(FASHION_MNIST_FILES):
        missing = [FASHION_MNIST_FILES[k] for k in FASHION_MNIST_FILES.keys() - found]
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(sorted(missing))} (with or without .gz); the "
            "four IDX files of Fashion-MNIST are expected there. Put them into the "
            "folder, or leave data_home out to use the Debian package "
            "dataset-fashion-mnist or OpenML."
        )
    return {key: read_idx(path) for key, path in found.items()}


def _check_images(
    images: NDArray[Any], labels: NDArray[Any], split: str, source: str
) -> None:
    valid = images.shape == (len(labels), 28, 28) and labels.ndim == 1
    valid = valid and images.dtype == labels.dtype == np.uint8
    if not valid or labels.max(initial=0) > 9:
        raise ValueError(
            f"{source}: the {split} images are {images.dtype} of shape {images.shape}, "
            f"their labels {labels.dtype} of shape {labels.shape} up to "
            f"{labels.max(initial=0)}; uint8 images of shape (n, 28, 28) and n uint8 "
            "labels from 0 to 9 are expected. Get the files of Fashion-MNIST again."
        )


def _fetch_fashion_mnist() -> dict[str, NDArray[Any]]:
    fetched = fetch_openml("Fashion-MNIST", version=1, as_frame=False)
    images = fetched.data.reshape(-1, 28, 28).astype(np.uint8)
    labels = fetched.target.astype(np.uint8)
    # OpenML keeps the 60 000 training images in front of the test images.
    X_train, X_test = np.split(images, [60_000])
    y_train, y_test = np.split(labels, [60_000])
    return {"X_train": X_train, "y_train": y_train, "X_test": X_test, "y_test": y_test}
