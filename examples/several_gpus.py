"""Train one net on several GPUs, or on some processes of a CPU to try it out.

In one process, in two of this machine, and on two machines of four GPUs each, of which
the second one is launched with ``--node-rank 1``::

    python examples/several_gpus.py
    torchrun --nproc-per-node 2 examples/several_gpus.py
    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 \
        --master-addr 10.0.0.1 --master-port 29500 examples/several_gpus.py

They print much the same balanced accuracy: accelerate fills the last batch of an epoch
up with rows of the first one.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from skorch.hf import AccelerateMixin
from torch import nn

from sk_otreweight import OTReweightedClassifier, make_long_tailed


class AcceleratedNet(AccelerateMixin, NeuralNetClassifier):
    """A net that several processes train."""


class AnyAccelerator(Accelerator):
    """Leaves a loss without parameters alone on CPUs, as `Accelerator` does on GPUs."""

    def prepare_model(self, model, *args, **kwargs):
        """Wrap a module, if it has something to train."""
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        return super().prepare_model(model, *args, **kwargs)


def make_module():
    """Return the net of one process: called in each, with the same random numbers."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main():
    """Fit on digits, and print the accuracy once."""
    # A batch of 64 is shared by the processes; without split_batches, each of them
    # takes batches of 64.
    accelerator = AnyAccelerator(
        cpu=not torch.cuda.is_available(),
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True
        ),
    )
    net = AcceleratedNet(
        make_module,
        criterion=nn.CrossEntropyLoss,
        accelerator=accelerator,
        iterator_train__shuffle=True,
        batch_size=64,
        lr=0.1,
        max_epochs=30,
        train_split=None,
        callbacks__print_log__sink=lambda text: None,
    )
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)
    data = make_long_tailed(X, y, imbalance_factor=20, random_state=0)
    clf = OTReweightedClassifier(net, random_state=0)
    clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    labels = clf.predict(X_test)  # in all processes: each predicts some rows
    score = balanced_accuracy_score(y_test, labels)
    accelerator.print(f"balanced accuracy: {score:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
