"""Imbalanced data for examples, tests and benchmarks."""

from sk_otreweight.datasets.cifar import load_cifar
from sk_otreweight.datasets.fashion_mnist import load_fashion_mnist
from sk_otreweight.datasets.idx import read_idx
from sk_otreweight.datasets.long_tailed import make_long_tailed
from sk_otreweight.datasets.modelnet10 import load_modelnet10
from sk_otreweight.datasets.movie_reviews import load_movie_reviews
from sk_otreweight.datasets.solids import make_solids

__all__ = [
    "load_cifar",
    "load_fashion_mnist",
    "load_modelnet10",
    "load_movie_reviews",
    "make_long_tailed",
    "make_solids",
    "read_idx",
]
