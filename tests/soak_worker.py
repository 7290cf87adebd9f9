"""A stream of chunks of an array larger than memory; run by test_soak.py.

``python soak_worker.py SOURCE WEIGHTS N FOLDER`` lets `partial_fit` pass over N chunks
of a memory-mapped file, or of a dask array of it, with too little memory for the whole,
and writes the memory in use after each chunk into ``FOLDER/<SOURCE>_<WEIGHTS>.json``.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import dask
import numpy as np
import torch
from dask.array import concatenate, from_delayed
from nets_for_tests import SmallMLP, small_net

from sk_otreweight import OTReweightedClassifier

ROWS, FEATURES = 2_000, 320
CLASSES = np.arange(4)


def memory(kind):
    """Return "RssAnon", memory without pages of files, or "VmData", in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{kind}:")]
    return int(line.split()[1]) * 1024


def labels(rng):
    return rng.choice(CLASSES, p=[0.7, 0.2, 0.07, 0.03], size=ROWS)


def inputs(rng, y):
    X = rng.standard_normal((len(y), FEATURES), dtype=np.float32)
    X[:, : len(CLASSES)] += 2 * np.eye(len(CLASSES), dtype=np.float32)[y]
    return X


def write(path, n_chunks, rng):
    """Write all chunks to a file, and return their labels."""
    shape = (n_chunks * ROWS, FEATURES)
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    y = np.concatenate([labels(rng) for _ in range(n_chunks)])
    for start in range(0, len(y), ROWS):
        X[start : start + ROWS] = inputs(rng, y[start : start + ROWS])
    X.flush()
    return y


def blocks(path, n_chunks):
    """Return a dask array whose blocks are read from the file when they are needed."""
    read = dask.delayed(lambda k: np.array(chunk(np.load(path, mmap_mode="r"), k)))
    shape, dtype = (ROWS, FEATURES), np.float32
    parts = [from_delayed(read(k), shape, dtype) for k in range(n_chunks)]
    return concatenate(parts)


def chunk(X, k):
    return X[k * ROWS : (k + 1) * ROWS]


def main(source, weights, n_chunks, folder):
    n_chunks = int(n_chunks)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    path = Path(folder) / f"{source}.npy"
    y = write(path, n_chunks, rng)
    X = np.load(path, mmap_mode="r")
    n_bytes = X.nbytes
    if source == "dask":
        X = blocks(path, n_chunks)
    net = small_net(
        SmallMLP, module__n_features=FEATURES, module__n_classes=len(CLASSES)
    )
    clf = OTReweightedClassifier(net, weights=weights, random_state=0)
    y_meta = np.repeat(CLASSES, 10)
    meta = {"meta": (inputs(rng, y_meta), y_meta)}
    in_use = []
    for k in range(n_chunks):
        clf.partial_fit(chunk(X, k), chunk(y, k), classes=CLASSES, **meta)
        meta = {}
        in_use.append(memory("RssAnon"))
        if len(in_use) == 1:  # from now on, the file would not fit into memory
            limit = memory("VmData") + n_bytes // 4
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    y_test = np.repeat(CLASSES, 50)
    accuracy = (clf.predict(inputs(rng, y_test)) == y_test).mean()
    path.unlink()
    found = {"bytes": n_bytes, "in_use": in_use, "accuracy": accuracy}
    (Path(folder) / f"{source}_{weights}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
