"""
A search over a pipeline that scales the meta rows too
=======================================================

A :class:`~sklearn.preprocessing.StandardScaler` before the classifier learns its means
from the training rows of each fold. The meta rows have to be scaled by the same means,
and ``transform_input=["X_meta"]`` has the pipeline do so.
:class:`~sklearn.model_selection.GridSearchCV` then chooses the cost and the weight of
the entropy by cross-validation on the training rows; the test rows are looked at once,
at the end.
"""

# %%
# Digits with a long tail, 20 times more zeros than nines, and five meta rows of each
# digit. The test split stays balanced.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import OTReweightedClassifier, make_long_tailed

SEEDS = (0, 1, 2)
GRID = {"clf__cost": ["label", "combined"], "clf__reg": [0.01, 0.1, 1.0]}
torch.set_num_threads(1)  # a net this small is faster on one thread


def long_tailed_digits(seed):
    """Return training rows with a long tail, meta rows, and balanced test rows."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X.astype(np.float32), y, test_size=0.4, stratify=y, random_state=seed
    )
    data = make_long_tailed(
        X, y, imbalance_factor=20, meta_per_class=5, random_state=seed
    )
    return data, X_test, y_test


# %%
# The same net for all, with as many epochs for plain training as for both stages.
class DigitsMLP(nn.Module):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
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
        lr=3e-3,
        batch_size=32,
        max_epochs=max_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )


def plain_pipeline():
    """Return plain training behind a scaler."""
    return make_pipeline(StandardScaler(), skorch_net(max_epochs=40))


def reweighted_pipeline(seed):
    """Return re-weighted training behind a scaler, which scales X_meta as well."""
    clf = OTReweightedClassifier(skorch_net(max_epochs=30), random_state=seed)
    clf.set_fit_request(X_meta=True, y_meta=True)
    return Pipeline(
        [("scale", StandardScaler()), ("clf", clf)], transform_input=["X_meta"]
    )


# %%
# Five ways to use the same rows. One-element tuples say that the meta rows are not
# one value per row of X, so that no fold picks from them. In the last two ways the meta
# rows are trained on as well; a search should not do so, because a fold would then be
# scored on meta rows.
def trained(seed):
    """Return the models of a seed, none of which has seen a test row."""
    data, _, _ = long_tailed_digits(seed)
    meta = {"X_meta": (data.X_meta,), "y_meta": (data.y_meta,)}
    X_all = np.concatenate([data.X, data.X_meta])
    y_all = np.concatenate([data.y, data.y_meta])
    search = GridSearchCV(
        reweighted_pipeline(seed),
        GRID,
        scoring="balanced_accuracy",
        cv=StratifiedKFold(2, shuffle=True, random_state=seed),
    )
    torch.manual_seed(seed)
    return {
        "plain net": plain_pipeline().fit(data.X, data.y),
        "re-weighted, defaults": reweighted_pipeline(seed).fit(data.X, data.y, **meta),
        "re-weighted, searched": search.fit(data.X, data.y, **meta),
        "plain net, meta rows added": plain_pipeline().fit(X_all, y_all),
        "re-weighted, meta rows added": reweighted_pipeline(seed).fit(
            X_all, y_all, **meta
        ),
    }


with config_context(enable_metadata_routing=True):
    models = [trained(seed) for seed in SEEDS]

# %%
# What the searches chose, and how the folds scored it. The rare digits have a handful
# of rows, so that these scores tell the candidates apart only roughly.
for seed, model in zip(SEEDS, models, strict=True):
    search = model["re-weighted, searched"]
    chosen = {name.removeprefix("clf__"): v for name, v in search.best_params_.items()}
    print(f"seed {seed}: chosen {chosen}, {search.best_score_:.3f} in cross-validation")

# %%
# The test rows, for the first and only time. The search need not beat the defaults;
# rows of the rare classes to train on are worth more than either.
scores = {name: [] for name in models[0]}
for seed, model in zip(SEEDS, models, strict=True):
    _, X_test, y_test = long_tailed_digits(seed)
    for name, fitted in model.items():
        score = balanced_accuracy_score(y_test, fitted.predict(X_test))
        scores[name].append(score)

print(f"\nBalanced accuracy on the test rows, {len(SEEDS)} seeds")
print(f"{'':30s}  mean   of each seed")
for name, values in scores.items():
    each = "  ".join(f"{value:.3f}" for value in values)
    print(f"{name:30s} {np.mean(values):.3f}   {each}")

fig, ax = plt.subplots(figsize=(7, 2.8), constrained_layout=True)
names = list(scores)[::-1]
for place, name in enumerate(names):
    color = "0.5" if name.startswith("plain") else "C0"
    ax.plot(scores[name], [place] * len(SEEDS), "o", color=color, alpha=0.5)
    ax.plot(np.mean(scores[name]), place, "|", color=color, markersize=18)
ax.set(yticks=range(len(names)), yticklabels=names, xlabel="balanced accuracy")

folder = Path(__file__).parent if "__file__" in globals() else Path()
path = folder / "output" / "pipeline.png"
path.parent.mkdir(exist_ok=True)
fig.savefig(path, dpi=120)
print(f"\nFigure: {path}")
