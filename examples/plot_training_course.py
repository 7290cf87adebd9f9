"""
The course of a training
========================

Loss and accuracy over both stages (figure 4 of the paper), beside a plain training of
as many epochs. skorch's callbacks write what is drawn: a balanced accuracy on
validation rows, epoch by epoch.
"""

# %%
# Long-tailed digits, and balanced validation rows. The net holds them out by itself, as
# skorch does with ``predefined_split``.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn, optim

from sk_otreweight import OTReweightedClassifier, make_long_tailed
from sk_otreweight.plotting import TrainingDisplay

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X, X_valid, y, y_valid = train_test_split(
    X, y, test_size=0.4, stratify=y, random_state=0
)
data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)
meta = data.X_meta, data.y_meta


class DigitsMLP(nn.Module):
    """Two hidden layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        )
        self.head = nn.Linear(64, 10)

    def forward(self, X):
        """Return the class scores."""
        return self.head(self.body(X))


net = NeuralNetClassifier(
    DigitsMLP,
    criterion=nn.CrossEntropyLoss,
    optimizer=optim.Adam,
    lr=1e-3,
    batch_size=32,
    max_epochs=20,
    iterator_train__shuffle=True,
    train_split=predefined_split(Dataset(X_valid, y_valid)),
    callbacks=[EpochScoring("balanced_accuracy", False, name="balanced accuracy")],
    verbose=0,
)

# %%
# Two trainings of 40 epochs: all of them plain, and 20 of them re-weighted.
plain = OTReweightedClassifier(
    net.set_params(max_epochs=40), loss="net", max_epochs=0, random_state=0
)
plain.fit(data.X, data.y, meta=meta)
clf = OTReweightedClassifier(  # the weights balance the classes, as in the paper
    net.set_params(max_epochs=20), loss="net", max_epochs=20, random_state=0
)
clf.fit(data.X, data.y, meta=meta)

# %%
# The re-weighted one, with all that was recorded.
display = TrainingDisplay.from_estimator(clf, metrics=["balanced accuracy"])
folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
display.figure_.savefig(folder / "output" / "training_course.png", dpi=120)

# %%
# Both in one picture: accuracy rises once the weights come in. It is one training of
# each, and single epochs can go astray.
fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, model in {"plain": plain, "re-weighted": clf}.items():
    ax.plot(range(1, 41), model.history_[:, "balanced accuracy"], label=name)
ax.axvline(20.5, color="0.6", linestyle="--")
ax.set(xlabel="epoch", ylabel="balanced accuracy on validation rows")
ax.legend()
plt.show()
for name, model in {"plain": plain, "re-weighted": clf}.items():
    print(f"{name:12s}{model.history_[-1, 'balanced accuracy']:.3f}")
