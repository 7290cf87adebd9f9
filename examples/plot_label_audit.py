"""
Rows whose labels look wrong
============================

Handwritten digits, three labels of ten replaced by another digit. A net is trained on
these labels; then its method ``suspicious_rows`` ranks the rows by how unlike
their class they are: by the share of transported mass that they get from the prototypes
of other classes. The ranking is compared with the self-confidence of cleanlab, the
probability that a net gives to the label of a row.
"""

# %%
# The data. Which labels are wrong is known here, and only used to judge the rankings.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import OTReweightedClassifier, make_long_tailed

try:
    from cleanlab.rank import get_label_quality_scores
except ImportError:
    get_label_quality_scores = None

SEEDS = (0, 1, 2)
FOLDS = 5
torch.set_num_threads(1)  # a net this small is faster on one thread


def digits_with_wrong_labels(seed):
    """Return digits, equally many of each class, of whose labels 30 % are wrong."""
    images, labels = load_digits(return_X_y=True)
    return make_long_tailed(
        (images / 16).astype(np.float32),
        labels,
        imbalance_factor=1,
        meta_per_class=0,
        label_noise=0.3,
        random_state=seed,
    )


# %%
# The net. The input of its head are the features of a row that are compared.
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


def skorch_net(max_epochs):
    """Return the net with its training settings."""
    return NeuralNetClassifier(
        DigitsMLP,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=2e-3,
        batch_size=64,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


# %%
# The two ways to rank. Self-confidence is meant for probabilities that a net gives to
# rows it was not trained on, which takes a net per fold; those of the net
# trained on all rows, the one that the transport looks at, are shown too.
def transport_scores(clf, data):
    """Return the score of each row, and the ranking."""
    rows = clf.suspicious_rows(data.X, data.y)
    scores = np.empty(len(data.y))
    scores[rows.index] = rows.score
    return scores, rows


def confidence_scores(probabilities, data):
    """Return 1 - self-confidence of each row."""
    return 1 - get_label_quality_scores(
        data.y, probabilities, method="self_confidence", adjust_pred_probs=False
    )


def precision(scores, flipped):
    """Return the share of wrong labels among the first rows, as many as are wrong."""
    first = np.argsort(-scores, kind="stable")[: flipped.sum()]
    return flipped[first].mean()


# %%
# Training, over three seeds. All nets are trained for the same number of epochs.
OURS, SAME_NET = "optimal transport", "self-confidence, same net"
HELD_OUT = f"self-confidence, {FOLDS} folds"
nets = {OURS: 1, SAME_NET: 1, HELD_OUT: FOLDS}
results = {name: [] for name in nets}
for seed in SEEDS:
    data = digits_with_wrong_labels(seed)
    net = skorch_net(max_epochs=8)
    clf = OTReweightedClassifier(net, max_epochs=4, random_state=seed)
    clf.fit(data.X, data.y)
    scores = {}
    scores[OURS], rows = transport_scores(clf, data)

    if get_label_quality_scores is not None:
        scores[SAME_NET] = confidence_scores(clf.predict_proba(data.X), data)
        torch.manual_seed(seed)
        plain = skorch_net(max_epochs=8 + clf.max_epochs)
        probabilities = cross_val_predict(
            plain, data.X, data.y, cv=FOLDS, method="predict_proba"
        )
        scores[HELD_OUT] = confidence_scores(probabilities, data)

    for name, score in scores.items():
        quality = roc_auc_score(data.flipped, score), precision(score, data.flipped)
        results[name].append(quality)

# %%
# How well the wrong labels are found: the area under the ROC curve, and the share of
# wrong labels among the first k rows, k being the number of wrong labels.
n_wrong = int(data.flipped.sum())
print(f"Wrong labels: {n_wrong} of {len(data.y)}. Mean over {len(SEEDS)} seeds\n")
print("                              nets   AUC     (lowest)   precision@k")
for name, quality in results.items():
    if not quality:
        continue
    (auc, found), lowest = np.mean(quality, axis=0), np.min(quality, axis=0)[0]
    print(f"{name:30s}{nets[name]:4d}  {auc:6.4f}  ({lowest:6.4f})  {found:10.3f}")
if get_label_quality_scores is None:
    print("\nFor the comparison with cleanlab: pip install cleanlab")

# %%
# The twenty most suspicious digits of the last seed.
fig, axes = plt.subplots(4, 5, figsize=(7, 6.5), constrained_layout=True)
for rank, ax in enumerate(axes.flat):
    index = rows.index[rank]
    ax.imshow(data.X[index].reshape(8, 8), cmap="gray_r")
    ax.set_title(
        f"label {rows.label[rank]}, like {rows.nearest_class[rank]}",
        fontsize=9,
        color="C2" if data.flipped[index] else "C3",
    )
    ax.set_axis_off()
fig.suptitle("The most suspicious labels (green: indeed wrong)")

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "label_audit.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
