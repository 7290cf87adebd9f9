"""
Long-tailed Fashion-MNIST
=========================

The same comparison on 28x28 images: plain training against re-weighting, both for 18
epochs of which they share the first eight, over two seeds and up to 1,000 images of a
class. ``python examples/plot_fashion.py --largest 5990 --seeds 5`` takes some minutes.
"""

# %%
# The images come from the Debian package ``dataset-fashion-mnist``, from a folder, or
# from OpenML. The long tail is cut out of the training split with its meta set; the
# test split is used as it is.
import argparse
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import recall_score
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import (
    OTReweightedClassifier,
    load_fashion_mnist,
    make_long_tailed,
)
from sk_otreweight.baselines import CrossEntropyClassifier

parser = argparse.ArgumentParser(description="Long-tailed Fashion-MNIST")
parser.add_argument("--imbalance-factor", type=float, default=200)
parser.add_argument("--largest", type=int, default=1000, help="rows of class 0")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--data-home", default=None, help="folder of the IDX files")
arguments = sys.argv[1:] if Path(sys.argv[0]).name == "plot_fashion.py" else []
options = parser.parse_args(arguments)


# %%
# Stage 1 is the net's own training: eight epochs of Adam.
class FashionCNN(nn.Module):
    """Two convolutional layers and one hidden layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, X):
        """Return the class scores."""
        return self.head(self.body(X))


net = NeuralNetClassifier(
    FashionCNN,
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.Adam,
    lr=1e-3,
    batch_size=128,
    max_epochs=8,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
)

# %%
# Both go on from the same stage-1 net for ten epochs: plainly, and with weights.
images = load_fashion_mnist(options.data_home)
before, after = [], []
start = time.perf_counter()
for seed in range(options.seeds):
    data = make_long_tailed(
        images.X_train,
        images.y_train,
        options.imbalance_factor,
        n_max=options.largest,
        meta_per_class=10,
        random_state=seed,
    )
    meta = data.X_meta, data.y_meta
    stage_one = OTReweightedClassifier(net, loss="net", max_epochs=0, random_state=seed)
    trained = FrozenEstimator(stage_one.fit(data.X, data.y, meta=meta).net_)
    plain = CrossEntropyClassifier(trained, max_epochs=10, random_state=seed)
    plain.fit(data.X, data.y)
    clf = OTReweightedClassifier(  # the weights balance the classes, as in the paper
        trained, loss="net", max_epochs=10, random_state=seed
    )
    clf.fit(data.X, data.y, meta=meta)
    for model, recalls in ((plain, before), (clf, after)):
        predicted = model.predict(images.X_test)
        recalls.append(recall_score(images.y_test, predicted, average=None))
    print(
        f"seed {seed}: balanced error {100 * (1 - before[-1].mean()):.1f} % -> "
        f"{100 * (1 - after[-1].mean()):.1f} %",
        flush=True,
    )

# %%
# The table.
before, after = np.array(before), np.array(after)
error_before, error_after = 100 * (1 - before.mean()), 100 * (1 - after.mean())
reduction = 100 * (1 - error_after / error_before)
print(f"\n{options.seeds} seeds, {time.perf_counter() - start:.0f} s")
print(f"balanced error of plain training  {error_before:5.1f} %")
print(f"balanced error with weights       {error_after:5.1f} %")
print(f"relative reduction                {reduction:5.1f} %")
print("\nclass             rows   weight   recall before   recall after")
for k, name in enumerate(images.target_names):
    print(
        f"{name:15s} {data.class_counts[k]:6d} {clf.class_weight_[k]:8.2f}"
        f"{before[:, k].mean():16.3f} {after[:, k].mean():14.3f}"
    )

# %%
# The figure.
fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(8, 6), sharex=True, constrained_layout=True
)
classes = np.arange(10)
top.bar(classes - 0.2, data.class_counts, 0.4, color="0.6", label="training rows")
top.set(yscale="log", ylabel="training rows (log)")
weights = top.twinx()
weights.bar(classes + 0.2, clf.class_weight_, 0.4, color="C0")
weights.set(yscale="log", ylabel="mean learned weight (log)")
bottom.bar(classes - 0.2, before.mean(0), 0.4, color="0.6", label="plain")
bottom.bar(classes + 0.2, after.mean(0), 0.4, color="C0", label="re-weighted")
bottom.set(ylabel="recall on the test split")
bottom.set_xticks(classes, images.target_names, rotation=30, ha="right")
bottom.legend(loc="lower left")

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "fashion.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
