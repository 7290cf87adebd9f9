"""Imbalanced data for examples, tests and benchmarks."""

from sk_otreweight.datasets.fashion_mnist import load_fashion_mnist
from sk_otreweight.datasets.idx import read_idx
from sk_otreweight.datasets.long_tailed import make_long_tailed

__all__ = ["load_fashion_mnist", "make_long_tailed", "read_idx"]
