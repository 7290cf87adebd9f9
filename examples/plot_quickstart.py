"""
Plain training against re-weighted training
===========================================

Handwritten digits with a long tail: 50 times more zeros than nines. A small
convolutional net is trained as usual; then the same net is put into
:class:`~sk_otreweight.OTReweightedClassifier`, which trains it in two stages, the
second with weights learned by optimal transport. In one run the weights balance the
classes, as in the paper (``loss="net"``). In the other, the default, an adjusted loss
does that in both stages, and the weights tell the rows of a class apart. All see the
same rows, the same seed and the same number of epochs. No further data is used: the
balanced distribution that the weights aim at is built from the training rows
themselves.
"""

# %%
# The data: the training split loses most rows of its later classes, the test
# split stays balanced.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import OTReweightedClassifier, make_long_tailed

SEEDS = (0, 1, 2)
torch.set_num_threads(1)  # a net this small is faster on one thread


def long_tailed_digits(seed):
    """Return the long-tailed training data and the balanced test data."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    X, X_test, y, y_test = train_test_split(
        images, labels, test_size=0.4, stratify=labels, random_state=seed
    )
    data = make_long_tailed(
        X, y, imbalance_factor=50, meta_per_class=0, random_state=seed
    )
    return data, X_test, y_test


# %%
# The net, as one would write it for skorch. Nothing in it knows of weights.
class DigitsCNN(nn.Module):
    """Two convolutional layers and one hidden layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, X):
        """Return the class scores."""
        return self.head(self.body(X))


def skorch_net(max_epochs):
    """Return the net with its training settings."""
    return NeuralNetClassifier(
        DigitsCNN,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        batch_size=32,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


# %%
# Training, over three seeds. Plain training gets as many epochs as both stages
# together.
recalls = {"plain": [], "weights": [], "default": []}
for seed in SEEDS:
    data, X_test, y_test = long_tailed_digits(seed)

    torch.manual_seed(seed)
    plain = skorch_net(max_epochs=40).fit(data.X, data.y)

    net = skorch_net(max_epochs=30)  # and 10 of stage 2
    weighted = OTReweightedClassifier(net, loss="net", random_state=seed)
    weighted.fit(data.X, data.y)

    default = OTReweightedClassifier(net, random_state=seed).fit(data.X, data.y)

    for own, clf in zip(recalls.values(), (plain, weighted, default), strict=True):
        own.append(recall_score(y_test, clf.predict(X_test), average=None))

recall = {name: np.mean(own, axis=0) for name, own in recalls.items()}

# %%
# Recall of each class. The rarest three are marked.
counts = data.class_counts
rarest = np.argsort(counts, kind="stable")[:3]
print(f"Mean over {len(SEEDS)} seeds           plain   weights   default")
for title, rows in (("all ten classes", slice(None)), ("three rarest classes", rarest)):
    print(f"{title:22s}", *(f"{own[rows].mean():9.3f}" for own in recall.values()))

print("\nclass   rows   weight    recall: plain   weights   default")
for k in range(10):
    mark = "  <- rare" if k in rarest else ""
    print(
        f"{k:5d} {counts[k]:6d} {weighted.class_weight_[k]:8.2f}       ",
        *(f"{own[k]:9.3f}" for own in recall.values()),
        mark,
    )

# %%
# Class counts, the mean weight that the rows of each class get if weights balance the
# classes (compare Figure 3 of the paper), and what comes of it.
fig, (top, middle, bottom) = plt.subplots(
    3, 1, figsize=(7, 7.5), sharex=True, constrained_layout=True
)
digits = np.arange(10)
top.bar(digits, counts, color="0.6")
top.set(ylabel="training rows", title="Long-tailed digits, imbalance factor 50")
middle.bar(digits, weighted.class_weight_, color="C0")
middle.axhline(1, color="0.3", linewidth=0.8)
middle.set(ylabel="mean learned weight")
labels = ("plain training", 'weights, loss="net"', "default")
for k, (label, color) in enumerate(zip(labels, ("0.6", "C0", "C1"), strict=True)):
    own = list(recall.values())[k]
    bottom.bar(digits + 0.27 * (k - 1), own, 0.27, color=color, label=label)
bottom.set(xlabel="class", ylabel="recall on the test split", xticks=digits)
bottom.set(ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))  # the legend is above 1
bottom.legend(loc="upper center", ncols=3)

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "quickstart.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
