"""Files in the format of CIFAR's python batches."""

from __future__ import annotations

import pickle
import struct

import numpy as np

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"]
TEN += ["ship", "truck"]
FOLDERS = {10: "cifar-10-batches-py", 100: "cifar-100-python"}


def by_python_2(value):
    """Write a value as the files of CIFAR were: by Python 2, protocol 2."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value):
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value  # str of Python 2
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case None:
            return b"N"
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            items = (opcodes(key) + opcodes(item) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        case np.ndarray():
            kind = value.dtype.str.encode()
            state = (3, kind[:1], None, None, None, -1, -1, 0)
            dtype = b"cnumpy\ndtype\n" + opcodes((kind[1:], 0, 1)) + b"R"
            dtype += opcodes(state) + b"b"
            start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
            start += opcodes((0,)) + opcodes(b"b") + b"tR"
            shape = opcodes((1, value.shape))[1:-1]
            content = opcodes(value.flags.fnc) + opcodes(value.tobytes("A"))
            return start + b"(" + shape + dtype + content + b"tb"
    raise TypeError(value)


def by_python_3(protocol):
    return lambda value: pickle.dumps(value, protocol)


def by_old_numpy(value):
    written = pickle.dumps(value, protocol=2)
    return written.replace(b"numpy._core.", b"numpy.core.")


WRITERS = {
    "Python 2": by_python_2,
    "numpy 1": by_old_numpy,
    **{f"protocol {k}": by_python_3(k) for k in range(6)},
}


def batch(n_rows, n_classes, seed):
    rng = np.random.default_rng(seed)
    content = {
        b"batch_label": b"some batch",
        b"data": rng.integers(0, 256, (n_rows, 3072), dtype=np.uint8),
        b"filenames": [b"%d.png" % k for k in range(n_rows)],
    }
    if n_classes == 10:
        return content | {b"labels": rng.integers(0, 10, n_rows).tolist()}
    fine = rng.integers(0, 100, n_rows).tolist()
    return content | {b"fine_labels": fine, b"coarse_labels": [k // 5 for k in fine]}


def batches(n_classes):
    if n_classes == 100:
        return {"train": batch(9, 100, 0), "test": batch(4, 100, 1)}
    train = {f"data_batch_{k}": batch(k, 10, k) for k in range(1, 6)}
    return train | {"test_batch": batch(4, 10, 6)}


def names(n_classes):
    if n_classes == 10:
        return {b"num_vis": 3072, b"label_names": [name.encode() for name in TEN]}
    return {
        b"fine_label_names": [b"fine %d" % k for k in range(100)],
        b"coarse_label_names": [b"coarse %d" % k for k in range(20)],
    }


def write_cifar(folder, n_classes, write=by_python_2, **changes):
    files = batches(n_classes)
    files["batches.meta" if n_classes == 10 else "meta"] = names(n_classes)
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(write(content | changes.get(name, {})))
    return folder


def write_balanced_cifar(folder, n_classes, n_train, n_test):
    """Write as many images of noise of each class, brighter by class."""
    folder.mkdir()
    key = b"labels" if n_classes == 10 else b"fine_labels"
    names_of_training = (
        [f"data_batch_{k}" for k in range(1, 6)] if n_classes == 10 else ["train"]
    )
    test = "test_batch" if n_classes == 10 else "test"
    sizes = {name: n_train // len(names_of_training) for name in names_of_training}
    for name, size in (sizes | {test: n_test}).items():
        rng = np.random.default_rng(size)
        labels = np.repeat(np.arange(n_classes), size)
        bright = 100 * labels[:, None] / n_classes
        pixels = rng.integers(0, 150, (len(labels), 3072)) + bright
        content = {b"data": pixels.astype(np.uint8), key: labels.tolist()}
        (folder / name).write_bytes(by_python_2(content))
    meta = "batches.meta" if n_classes == 10 else "meta"
    (folder / meta).write_bytes(by_python_2(names(n_classes)))
    return folder
