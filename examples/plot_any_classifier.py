"""
Weights for any scikit-learn classifier
=======================================

No net is needed to weigh rows by optimal transport:
:class:`~sk_otreweight.OTReweightedEstimator` computes the weights from the columns of X
and gives them to any classifier that takes `sample_weight`. Here these are gradient
boosted trees and logistic regression, on handwritten digits with a long tail: 50 times
more zeros than nines. Each is trained without weights, with the inverse class
frequencies that ``class_weight="balanced"`` stands for, and with the transport's.
All settings are the defaults, except for the iterations that the linear model may take;
nothing was tuned, least of all on the test split.
"""

# %%
# The data: the training split loses most rows of its later classes, the test
# split stays balanced. The rows that the weights aim at are drawn from the training
# split, so that all methods see the same rows.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_otreweight import OTReweightedEstimator, make_long_tailed

SEEDS = (0, 1, 2)
METHODS = ("no weights", "balanced", "transport")
torch.set_num_threads(1)


def long_tailed_digits(seed):
    """Return the long-tailed training data and the balanced test data."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.4, stratify=y, random_state=seed
    )
    data = make_long_tailed(
        X, y, imbalance_factor=50, meta_per_class=0, random_state=seed
    )
    return data, X_test, y_test


# %%
# The classifiers. In a pipeline, it is the last step that is wrapped.
def trees(class_weight=None):
    """Return gradient boosted trees."""
    return HistGradientBoostingClassifier(class_weight=class_weight, random_state=0)


def linear(class_weight=None):
    """Return a logistic regression."""
    return LogisticRegression(class_weight=class_weight, max_iter=1000)


def pipeline(method, classifier, seed):
    """Return a classifier with the weights of a method."""
    if method == "balanced":
        step = classifier(class_weight="balanced")
    elif method == "transport":
        step = OTReweightedEstimator(classifier(), random_state=seed)
    else:
        step = classifier()
    return make_pipeline(StandardScaler(), step)


# %%
# Training, over three seeds.
CLASSIFIERS = {"boosted trees": trees, "logistic regression": linear}
rows = [(name, method) for name in CLASSIFIERS for method in METHODS]
recalls = {row: [] for row in rows}
accuracies = {row: [] for row in rows}
for seed in SEEDS:
    data, X_test, y_test = long_tailed_digits(seed)
    for name, method in rows:
        fitted = pipeline(method, CLASSIFIERS[name], seed).fit(data.X, data.y)
        predicted = fitted.predict(X_test)
        recall = recall_score(y_test, predicted, average=None)
        recalls[name, method].append(recall)
        accuracies[name, method].append(accuracy_score(y_test, predicted))

# %%
# Means over the seeds. An asterisk marks the best of the three methods; where inverse
# frequencies do better than transport, that is where it stands.
counts = data.class_counts
rarest = np.argsort(counts, kind="stable")[:3]
recall = {row: np.mean(recalls[row], axis=0) for row in rows}
table = {
    row: (recall[row].mean(), recall[row][rarest].mean(), np.mean(accuracies[row]))
    for row in rows
}
title = f"mean over {len(SEEDS)} seeds"
print(f"{title:34s}balanced accuracy   3 rarest classes   accuracy")
for name in CLASSIFIERS:
    best = np.max([table[name, method] for method in METHODS], axis=0)
    for method in METHODS:
        cells = [
            f"{value:.3f}{'*' if value == top else ' '}"
            for value, top in zip(table[name, method], best, strict=True)
        ]
        print(f"{name:22s}{method:12s}{cells[0]:>18s}{cells[1]:>19s}{cells[2]:>11s}")

# %%
# Recall of each class, from the most frequent to the rarest.
fig, axes = plt.subplots(
    2, 1, figsize=(7, 6.5), sharex=True, sharey=True, constrained_layout=True
)
digits = np.arange(10)
for axis, name in zip(axes, CLASSIFIERS, strict=True):
    for k, (method, color) in enumerate(zip(METHODS, ("0.6", "C1", "C0"), strict=True)):
        position = digits + 0.27 * (k - 1)
        axis.bar(position, recall[name, method], 0.27, color=color, label=method)
    axis.set(title=name, ylabel="recall on the test split", xticks=digits)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
axes[1].set_xticks(digits, [f"{k}\n{counts[k]}" for k in digits])
axes[1].set_xlabel("class, and its training rows")

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "any_classifier.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
