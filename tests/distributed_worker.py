"""Fits of a process among several; run by test_distributed.py.

``python distributed_worker.py FOLDER`` writes what each fit came to into
``FOLDER/<processes>_<rank>.json``.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit
from skorch.hf import AccelerateMixin
from torch import nn

from sk_otreweight import BASELINES, OTReweightedClassifier, make_long_tailed

BATCH = 64


class CPUAccelerator(Accelerator):
    """Leaves a loss without parameters alone, as `Accelerator` does on GPUs."""

    def prepare_model(self, model, *args, **kwargs):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        return super().prepare_model(model, *args, **kwargs)


class Net(AccelerateMixin, NeuralNetClassifier):
    """A net that several processes train."""


class RaiseOnce(Callback):
    """Raises at the end of an epoch, the first time it is reached."""

    raised = False

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch and not RaiseOnce.raised:
            RaiseOnce.raised = True
            raise ZeroDivisionError


def module():
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )


def plain_module():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_net(accelerator, of=plain_module, **params):
    defaults = {
        "criterion": nn.CrossEntropyLoss,
        "max_epochs": 3,
        "lr": 0.1,
        "batch_size": BATCH,
        "train_split": None,
        "iterator_train__shuffle": True,
        "callbacks__print_log__sink": lambda *args: None,
    }
    return Net(of, accelerator=accelerator, **defaults | params)


CASES = {
    "closed form": {},
    "closed form, head": {"finetune": "head"},
    "vector": {"weights": "vector"},
    "vector, no virtual step": {"weights": "vector", "virtual_step": None},
    "vector, head": {"weights": "vector", "finetune": "head"},
    "net": {"weights": "net"},
    "attention, head": {"weights": "attention", "finetune": "head"},
    "label cost": {"cost": "label", "weights": "vector"},
    "no meta rows": {"weights": "vector", "meta_set": "whole"},
    "loss of the meta rows": {"meta_loss_weight": 1.0},
    "adjusted": {"loss": "logit_adjusted", "sampling": "square_root"},
    "restart": {"restart": True},
    "vector, apart": {"weights": "vector", "gather_features": False},
    "net, apart": {"weights": "net", "gather_features": False},
}


def digits(factor=20):
    X, y = load_digits(return_X_y=True)
    data = make_long_tailed(X / 16, y, imbalance_factor=factor, random_state=0)
    n = len(data.y) // BATCH * BATCH
    X = data.X[:n].astype(np.float32)
    return X, data.y[:n], (data.X_meta.astype(np.float32), data.y_meta)


def outcome(clf, X):
    return {
        "weights": clf.sample_weight_.tolist(),
        "probabilities": clf.predict_proba(X[:50]).ravel().tolist(),
        "losses": list(clf.history_[:, "train_loss"]),
        "ess": list(clf.history_[:, "weights_ess"]),
        "epochs": len(clf.history_),
    }


def message_of(fit):
    try:
        fit()
    except ValueError as error:
        return str(error)
    return None


def main(folder):
    Path(folder).mkdir(exist_ok=True)
    torch.set_num_threads(1)
    loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
    accelerator = CPUAccelerator(cpu=True, dataloader_config=loading)
    n, rank = accelerator.num_processes, accelerator.process_index
    X, y, meta = digits()

    def fit(net=None, *, data=(X, y, meta), checkpoint=None, resume=False, **params):
        net = make_net(accelerator) if net is None else net
        clf = OTReweightedClassifier(
            net, **{"max_epochs": 2, "random_state": 0} | params
        )
        X, y, meta = data
        return clf.fit(X, y, meta=meta, checkpoint=checkpoint, resume=resume)

    if accelerator.mixed_precision != "no":
        names = "closed form", "closed form, head", "vector", "net"
        found = {name: outcome(fit(**CASES[name]), X) for name in names}
        (Path(folder) / f"{n}_{rank}.json").write_text(json.dumps(found))
        return
    found = {}
    for name, params in CASES.items():
        data = (X, y, None if name == "no meta rows" else meta)
        found[name] = outcome(fit(data=data, **params), X)

    found["no seed"] = outcome(fit(random_state=None), X)
    found["batch norm"] = outcome(fit(make_net(accelerator, module)), X)
    # As many rows as do not fill the batches of the processes.
    uneven = (X[: 3 * BATCH + 5], y[: 3 * BATCH + 5], meta)
    found["uneven"] = outcome(fit(data=uneven, weights="vector"), X)

    split = ValidSplit(4, stratified=True)
    stopping = ("stopping", EarlyStopping(patience=1, threshold=0.05))
    net = make_net(accelerator, train_split=split, callbacks=[stopping], max_epochs=30)
    found["early stopping"] = outcome(fit(net, max_epochs=30), X)

    path = Path(folder) / f"checkpoint_{n}"
    net = make_net(accelerator, callbacks=[("raise", RaiseOnce(4))])
    with suppress(ZeroDivisionError):
        fit(net, weights="vector", checkpoint=path)
    found["resumed"] = outcome(
        fit(net, weights="vector", checkpoint=path, resume=True), X
    )

    clf = OTReweightedClassifier(
        make_net(accelerator, unwrap_after_train=False), random_state=0
    )
    for chunk in (slice(0, 256), slice(256, 512)):
        clf.partial_fit(X[chunk], y[chunk], classes=np.arange(10), meta=meta)
    found["chunks"] = outcome(clf, X)

    rows = slice(0, len(y) - rank)
    found["messages"] = [
        message_of(lambda: fit(data=(X[rows], y[rows], meta))),
        message_of(lambda: fit(virtual_step="exact", weights="vector")),
        message_of(lambda: BASELINES["ce"](make_net(accelerator)).fit(X, y)),
    ]
    (Path(folder) / f"{n}_{rank}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
