"""
Who is taken for whom
=====================

Confusion matrices of plain training, of MetaSAug and of re-weighting (figure 2 of the
paper), and the recall of each class beside each other. A net that was trained plainly
takes rare digits for frequent ones; the weights move the border.
"""

# %%
# Digits with a long tail; the classes are in the order of their frequency.
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, balanced_accuracy_score
from sklearn.model_selection import train_test_split

from sk_otreweight import BASELINES, OTReweightedClassifier, make_long_tailed
from sk_otreweight.plotting import RecallDisplay

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    X / 16, y, test_size=0.4, stratify=y, random_state=0
)
data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)
meta = data.X_meta, data.y_meta

# %%
# All train the same net for as many epochs, and have their default settings.
models = {
    "cross-entropy": BASELINES["ce"](random_state=0).fit(data.X, data.y),
    "MetaSAug": BASELINES["metasaug"](random_state=0),
    "ours": OTReweightedClassifier(random_state=0),
}
for name in ("MetaSAug", "ours"):
    models[name].fit(data.X, data.y, meta=meta)

fig, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
for ax, (name, model) in zip(axes, models.items(), strict=True):
    predicted = model.predict(X_test)
    ConfusionMatrixDisplay.from_predictions(
        y_test, predicted, normalize="true", values_format=".1f", colorbar=False, ax=ax
    )
    score = balanced_accuracy_score(y_test, predicted)
    ax.set_title(f"{name}: balanced accuracy {score:.3f}")
    print(f"{name:14s}{score:.3f}")

folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
fig.savefig(folder / "output" / "confusions.png", dpi=120)

# %%
# The diagonals beside each other.
display = RecallDisplay.from_estimator(
    models["ours"], X_test, y_test, before=models["cross-entropy"]
)
plt.show()
