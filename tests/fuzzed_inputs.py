"""Random arguments of `fit`: of all types, shapes and dtypes, many of them wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import torch
from scipy import sparse
from torch.utils.data import Dataset, TensorDataset


class Case(NamedTuple):
    """Arguments of a fit, and what was done to them."""

    X: Any
    y: Any
    meta: dict[str, Any]
    params: dict[str, Any]
    story: str


class Pairs(Dataset):
    """Items that are pairs, of whatever they were given."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, row):
        return self.X[row], self.y[row]


def with_entry(value):
    def change(X, rng):
        X = X.astype(np.float64)
        if X.size:
            X.reshape(-1)[rng.integers(X.size)] = value
        return X

    return change


def as_dtype(dtype):
    return lambda X, rng: X.astype(dtype)


def masked(X, rng):
    return np.ma.masked_array(X, mask=rng.random(X.shape) < 0.1)


def with_missing(X, rng):
    frame = pd.DataFrame(np.round(X).astype(int)).astype("Int64")
    frame.iloc[0, 0] = pd.NA
    return frame


def read_only(X, rng):
    X = X.copy()
    X.flags.writeable = False
    return X


def as_tensor(dtype):
    return lambda X, rng: torch.as_tensor(X).to(dtype)


# Each takes the inputs (n, d) in float64 and a generator.
INPUTS = {
    "array": lambda X, rng: X,
    "float32": as_dtype(np.float32),
    "float16": as_dtype(np.float16),
    "longdouble": as_dtype(np.longdouble),
    "int64": lambda X, rng: (8 * X).astype(np.int64),
    "uint8": lambda X, rng: np.abs(8 * X).astype(np.uint8),
    "bool": lambda X, rng: X > 0,
    "big-endian": as_dtype(">f8"),
    "complex": as_dtype(np.complex128),
    "objects": as_dtype(object),
    "strings": as_dtype(str),
    "words": lambda X, rng: np.full(X.shape, "word"),
    "dates": lambda X, rng: (1000 * X).astype(np.int64).astype("datetime64[s]"),
    "records": lambda X, rng: np.zeros(len(X), dtype=[("a", float), ("b", int)]),
    "list": lambda X, rng: X.tolist(),
    "ragged": lambda X, rng: [[1.0] * (1 + k % 2) for k in range(len(X))],
    "tuple": lambda X, rng: tuple(map(tuple, X)),
    "frame": lambda X, rng: pd.DataFrame(X, columns=list("abcdefg")[: X.shape[1]]),
    "numbered frame": lambda X, rng: pd.DataFrame(X),
    "missing": with_missing,
    "categories": lambda X, rng: pd.DataFrame(X > 0).astype("category"),
    "column": lambda X, rng: pd.Series(X[:, 0]),
    "polars": lambda X, rng: pl.DataFrame(X),
    "csr": lambda X, rng: sparse.csr_array(X),
    "coo": lambda X, rng: sparse.coo_matrix(X),
    "tensor": as_tensor(torch.float32),
    "double tensor": as_tensor(torch.float64),
    "half tensor": as_tensor(torch.float16),
    "bfloat16": as_tensor(torch.bfloat16),
    "integer tensor": as_tensor(torch.int64),
    "complex tensor": as_tensor(torch.complex64),
    "tensor with grad": lambda X, rng: torch.as_tensor(X).requires_grad_(),
    "sparse tensor": lambda X, rng: torch.as_tensor(X).to_sparse(),
    "meta tensor": lambda X, rng: torch.empty(X.shape, device="meta"),
    "dict": lambda X, rng: {"X": X.astype(np.float32)},
    "dict of tensors": lambda X, rng: {"X": torch.as_tensor(X).float()},
    "dict of lengths": lambda X, rng: {"X": X, "Y": X[:-1]},
    "empty dict": lambda X, rng: {},
    "wrong dict": lambda X, rng: {"other": X},
    "Fortran": lambda X, rng: np.asfortranarray(X),
    "backwards": lambda X, rng: X[::-1, ::-1],
    "every other": lambda X, rng: np.repeat(X, 2, axis=0)[::2],
    "read-only": read_only,
    "masked": masked,
    "NaN": with_entry(np.nan),
    "infinite": with_entry(np.inf),
    "huge": with_entry(1e300),
    "large": with_entry(1e30),
    "subnormal": lambda X, rng: X * 1e-310,
    "constant": lambda X, rng: np.ones_like(X),
    "no columns": lambda X, rng: X[:, :0],
    "no rows": lambda X, rng: X[:0],
    "one row": lambda X, rng: X[:1],
    "flat": lambda X, rng: X[:, 0],
    "deep": lambda X, rng: X[:, None],
    "scalar": lambda X, rng: X[0, 0],
    "None": lambda X, rng: None,
    "text": lambda X, rng: "X",
    "number": lambda X, rng: 3,
    "generator": lambda X, rng: iter(X.tolist()),
    "class": lambda X, rng: np.ndarray,
    "shuffled": lambda X, rng: rng.permutation(X),
}

# Each takes the codes (n,) of the labels and a generator.
LABELS = {
    "codes": lambda y, rng: y,
    "int8": as_dtype(np.int8),
    "uint64": as_dtype(np.uint64),
    "floats": as_dtype(np.float64),
    "float16": as_dtype(np.float16),
    "continuous": lambda y, rng: y + rng.random(len(y)),
    "NaN": with_entry(np.nan),
    "infinite": with_entry(np.inf),
    "large": lambda y, rng: y + 2**62,
    "negative": lambda y, rng: -y,
    "bool": lambda y, rng: y > 0,
    "complex": as_dtype(np.complex128),
    "strings": lambda y, rng: np.array(list("xyzuvw"))[y],
    "bytes": lambda y, rng: np.array([b"x", b"y", b"z", b"u", b"v", b"w"])[y],
    "objects": lambda y, rng: np.array(["x", "y", "z", "u", "v", "w"], object)[y],
    "mixed": lambda y, rng: np.array([1, "y", 2.5, "u", True, "w"], object)[y],
    "with None": lambda y, rng: np.array([None, "y", "z", "u", "v", "w"], object)[y],
    "tuples": lambda y, rng: [(int(k), 1) for k in y],
    "dates": lambda y, rng: y.astype("datetime64[D]"),
    "list": lambda y, rng: y.tolist(),
    "range": lambda y, rng: range(len(y)),
    "series": lambda y, rng: pd.Series(y, index=rng.permutation(len(y)) + 100),
    "categorical": lambda y, rng: pd.Categorical(np.array(list("xyzuvw"))[y]),
    "missing": lambda y, rng: pd.Series([pd.NA, *y[1:].tolist()], dtype="Int64"),
    "polars": lambda y, rng: pl.Series(y),
    "tensor": lambda y, rng: torch.as_tensor(y),
    "float tensor": lambda y, rng: torch.as_tensor(y).double(),
    "column": lambda y, rng: y[:, None],
    "columns": lambda y, rng: np.stack([y, y], axis=1),
    "one-hot": lambda y, rng: np.eye(6)[y],
    "short": lambda y, rng: y[:-1],
    "long": lambda y, rng: np.append(y, 0),
    "no rows": lambda y, rng: y[:0],
    "one class": lambda y, rng: np.zeros_like(y),
    "single row of a class": lambda y, rng: np.where(np.arange(len(y)) == 0, 5, y % 2),
    "all classes": lambda y, rng: np.arange(len(y)),
    "None": lambda y, rng: None,
    "text": lambda y, rng: "y",
    "number": lambda y, rng: 1,
    "frame": lambda y, rng: pd.DataFrame({"y": y}),
    "sparse": lambda y, rng: sparse.csr_array(y[:, None]),
    "generator": lambda y, rng: iter(y.tolist()),
}


def table(rng, n, d, n_classes):
    y = np.sort(rng.integers(n_classes, size=n) * rng.integers(2, size=n))
    y[: min(n, n_classes)] = np.arange(min(n, n_classes))
    return rng.standard_normal((n, d)) + y[:, None], y


def pick(rng, table, likely):
    """Return the name of one of a table's functions; often the likely one."""
    return likely if rng.random() < 0.5 else str(rng.choice(list(table)))


def meta_forms(rng, n, d, n_classes, forms):
    """Return functions that make the meta arguments of a fit, by name."""
    X_meta, _ = table(rng, 2 * n_classes, d, n_classes)
    y_meta = np.arange(2 * n_classes) % n_classes

    def formed(X, y):
        return INPUTS[forms[0]](X, rng), LABELS[forms[1]](y, rng)

    def wider():
        return formed(np.tile(X_meta, 2)[:, : d + 1], y_meta)

    def in_another_form():
        return INPUTS[pick(rng, INPUTS, "array")](X_meta, rng), y_meta

    def tensors():
        return TensorDataset(torch.tensor(X_meta).float(), torch.tensor(y_meta))

    def pair():
        return formed(X_meta, y_meta)

    def as_arguments():
        return dict(zip(("X_meta", "y_meta"), pair(), strict=True))

    mask, some = rng.random(n) < 0.3, y_meta > 0
    return {
        "none": dict,
        "pair": lambda: {"meta": pair()},
        "list": lambda: {"meta": list(pair())},
        "two arguments": as_arguments,
        "X_meta alone": lambda: {"X_meta": pair()[0]},
        "y_meta alone": lambda: {"y_meta": pair()[1]},
        "twice": lambda: {"meta": pair(), **as_arguments()},
        "mask": lambda: {"meta_mask": mask},
        "mask of numbers": lambda: {"meta_mask": np.flatnonzero(mask)},
        "mask as list": lambda: {"meta_mask": mask.tolist()},
        "short mask": lambda: {"meta_mask": mask[:-1]},
        "full mask": lambda: {"meta_mask": np.ones(n, bool)},
        "empty mask": lambda: {"meta_mask": np.zeros(n, bool)},
        "mask and pair": lambda: {"meta": pair(), "meta_mask": mask},
        "another form": lambda: {"meta": in_another_form()},
        "another width": lambda: {"meta": wider()},
        "other classes": lambda: {"meta": (pair()[0], y_meta + 50)},
        "a class missing": lambda: {"meta": formed(X_meta[some], y_meta[some])},
        "unequal lengths": lambda: {"meta": (pair()[0], y_meta[:-1])},
        "no rows": lambda: {"meta": (X_meta[:0], y_meta[:0])},
        "three": lambda: {"meta": (*pair(), 1)},
        "X alone": lambda: {"meta": pair()[0]},
        "data set": lambda: {"meta": Pairs(np.float32(X_meta), y_meta)},
        "tensors": lambda: {"meta": tensors()},
        "text": lambda: {"meta": "meta"},
        "number": lambda: {"meta": 1},
    }


def data_set(rng, X, y):
    """Return a data set, and the labels to give beside it."""
    X = np.float32(X)
    kind = rng.integers(4)
    if kind == 0:
        return Pairs(X, y), None
    if kind == 1:
        return TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), None
    if kind == 2:
        return TensorDataset(torch.from_numpy(X)), y
    return Pairs(X, [None] * len(y)), None if rng.random() < 0.5 else y


PARAMS = {
    "finetune": ["all", "head"],
    "cost": ["combined", "label", "feature", "sqeuclidean"],
    "weights": ["semirelaxed", "vector", "net", "attention"],
    "meta_set": ["prototype", "whole", "random"],
    "train_on_meta": [False, True],
    "virtual_step": ["first_order", "exact", None],
    "loss": ["net", "logit_adjusted"],
    "sampling": ["instance", "square_root"],
    "target_prior": [None, "uniform", "train"],
}


def random_case(seed):
    """Return arguments of a fit."""
    rng = np.random.default_rng(seed)
    n, d, n_classes = (int(rng.integers(*r)) for r in ((6, 40), (1, 6), (2, 5)))
    X, y = table(rng, n, d, n_classes)
    forms = pick(rng, INPUTS, "array"), pick(rng, LABELS, "codes")
    params = {
        name: values[rng.integers(len(values))]
        for name, values in PARAMS.items()
        if rng.random() < 0.3
    }
    kinds = meta_forms(rng, n, d, n_classes, forms)
    kind = pick(rng, kinds, "pair")
    if rng.random() < 0.05:
        X, y = data_set(rng, X, y)
        forms = "data set", "codes"
    else:
        X, y = INPUTS[forms[0]](X, rng), LABELS[forms[1]](y, rng)
    story = f"seed {seed}: X {forms[0]}, y {forms[1]}, meta {kind}, {params}"
    return Case(X, y, kinds[kind](), params, story)
