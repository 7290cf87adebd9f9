"""
Plain training against re-weighted training
===========================================

Handwritten digits with a long tail: 50 times more zeros than nines. A small
convolutional net is trained as usual; then the same net is put into
:class:`~sk_otreweight.OTReweightedClassifier`, which trains it likewise and goes on
with weights learned by optimal transport. Both see the same rows, the same seed and
the same number of epochs. No further data is used: the balanced distribution that the
weights aim at is built from the training rows themselves.
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

SEEDS = range(5)
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
# Training, over five seeds. Plain training gets as many epochs as both stages
# together.
plain_recalls, recalls = [], []
for seed in SEEDS:
    data, X_test, y_test = long_tailed_digits(seed)

    clf = OTReweightedClassifier(skorch_net(max_epochs=30), random_state=seed)
    clf.fit(data.X, data.y)

    torch.manual_seed(seed)
    plain = skorch_net(max_epochs=30 + clf.max_epochs).fit(data.X, data.y)

    plain_recalls.append(recall_score(y_test, plain.predict(X_test), average=None))
    recalls.append(recall_score(y_test, clf.predict(X_test), average=None))

plain_recall, recall = np.mean(plain_recalls, axis=0), np.mean(recalls, axis=0)

# %%
# Recall of each class. The rarest three are marked.
counts = data.class_counts
rarest = np.argsort(counts, kind="stable")[:3]
print(f"Mean over {len(SEEDS)} seeds            plain   re-weighted")
print(f"overall balanced accuracy  {plain_recall.mean():6.3f}   {recall.mean():6.3f}")
print(
    f"three rarest classes       "
    f"{plain_recall[rarest].mean():6.3f}   {recall[rarest].mean():6.3f}\n"
)
print("class   rows   weight   recall plain   recall re-weighted")
for k in range(10):
    mark = "  <- rare" if k in rarest else ""
    print(
        f"{k:5d} {counts[k]:6d} {clf.class_weight_[k]:8.2f}"
        f"{plain_recall[k]:12.3f} {recall[k]:14.3f}{mark}"
    )

# %%
# Class counts, the mean weight that the rows of each class got (compare Figure 3 of the
# paper), and what it is good for.
fig, (top, middle, bottom) = plt.subplots(
    3, 1, figsize=(7, 7.5), sharex=True, constrained_layout=True
)
digits = np.arange(10)
top.bar(digits, counts, color="0.6")
top.set(ylabel="training rows", title="Long-tailed digits, imbalance factor 50")
middle.bar(digits, clf.class_weight_, color="C0")
middle.axhline(1, color="0.3", linewidth=0.8)
middle.set(ylabel="mean learned weight")
bottom.bar(digits - 0.2, plain_recall, 0.4, color="0.6", label="plain training")
bottom.bar(digits + 0.2, recall, 0.4, color="C0", label="re-weighted")
bottom.set(xlabel="class", ylabel="recall on the test split", xticks=digits)
bottom.legend(loc="upper right")

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "quickstart.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
