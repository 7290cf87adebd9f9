"""
Class weights at several imbalance factors
==========================================

How many rows each class has, and what they weigh (figure 3 of the paper): the rarer a
class, the more a row of it counts, and the more so the longer the tail is. That is how
the weights of the paper balance the classes (``loss="net"``); by default an adjusted
loss does, and all classes have the same mean weight.
"""

# %%
# Handwritten digits, cut to four long tails; the last class keeps 1/5 to 1/50 of the
# rows of the first one.
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from sk_otreweight import OTReweightedClassifier, make_long_tailed
from sk_otreweight.plotting import ClassWeightDisplay

X, y = load_digits(return_X_y=True)
fig, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
for ax, factor in zip(axes.flat, (50, 20, 10, 5), strict=True):
    data = make_long_tailed(X / 16, y, imbalance_factor=factor, random_state=0)
    clf = OTReweightedClassifier(loss="net", random_state=0)
    clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    display = ClassWeightDisplay.from_estimator(clf, ax=ax)
    display.weight_ax_.set_ylim(0.2, 20)  # the same for all
    ax.set_title(f"imbalance factor {factor}")
    # Inverse frequencies would be the same in all classes.
    shares = clf.class_weight_ * clf.class_counts_ / len(data.y)
    print(f"IF {factor:2d}: share of each class in the weighted rows", shares.round(3))

# %%
# The classes share the weight about equally, as they share the mass of Q. Within a
# class the rows differ: see the example on costs.
folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
fig.savefig(folder / "output" / "class_weights.png", dpi=120)
plt.show()
