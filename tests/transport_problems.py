"""Transport problems that several test modules solve."""

from __future__ import annotations

import math

import torch

DTYPES = [torch.float64, torch.float32]
SHAPES = {
    "n > m": (9, 4),
    "n < m": (4, 9),
    "n = m": (5, 5),
    "batch": (2, 3, 6, 4),
    "batch, n < m": (3, 3, 5),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def uniform(size, dtype=torch.float64):
    return torch.full((size,), 1 / size, dtype=dtype)


def random_mass(*shape, generator, skew=1.0, floor=0.0):
    mass = torch.rand(*shape, generator=generator, dtype=torch.float64) ** skew + floor
    return mass / mass.sum(-1, keepdim=True)


def random_problem(*shape, seed=0, floor=0.1):
    """Cost in [0, 1] and marginals without tiny entries."""
    generator = seeded(seed)
    C = torch.rand(*shape, generator=generator, dtype=torch.float64)
    a = random_mass(*shape[:-1], generator=generator, floor=floor)
    b = random_mass(*shape[:-2], shape[-1], generator=generator, floor=floor)
    return C, a, b


def two_blocks(surplus, sizes=(7, 4), cost=2.0):
    """Label cost, two classes; the first has `surplus` more mass than its prototype."""
    labels = torch.tensor([0] * sizes[0] + [1] * sizes[1])
    C = cost * (labels[:, None] != torch.arange(2)).double()
    mass = torch.tensor([0.5 + surplus, 0.5 - surplus], dtype=torch.float64)
    return C, (mass / torch.tensor(sizes))[labels], uniform(2), labels


def block_flow(surplus, cost, reg):
    """Mass x from the first class to the second prototype, and its slope.

    The plan has the blocks (a0 - x, x; x - d, b1 - x) with surplus d and cross ratio
    x (x - d) / ((a0 - x) (b1 - x)) = exp(-2 cost / reg): a quadratic equation.
    """
    kappa = math.exp(-2 * cost / reg)
    a0, b1 = 0.5 + surplus, 0.5
    linear = kappa * (a0 + b1) - surplus
    root = math.sqrt(linear**2 + 4 * (1 - kappa) * kappa * a0 * b1)
    if linear < 0:
        x = (root - linear) / (2 * (1 - kappa))
    else:
        x = 2 * kappa * a0 * b1 / (linear + root)
    return x, ((1 - kappa) * x + kappa * b1) / root
