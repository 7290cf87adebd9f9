"""
What each cost makes of a mini-batch
====================================

The toy example of the paper (its figures 1 and 5), on handwritten digits: a batch of
ten rows of class 0, nine of class 1, ... and one of class 9, and the prototypes of a
balanced meta set. A free weight for each row begins at the same for all and follows the
exact gradient of the transport cost (Algorithm 1). Which rows gain depends on the cost.
"""

# %%
# A net that was trained on balanced digits gives the features. The batch and the meta
# rows are others than it was trained on.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split

from sk_otreweight import OTReweightedClassifier, WeightVector
from sk_otreweight.plotting import SampleWeightDisplay, TransportPlanDisplay

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_first, X, y_first, y = train_test_split(X, y, stratify=y, random_state=0)
plain = OTReweightedClassifier(loss="net", max_epochs=0, random_state=0)
plain.fit(X_first, y_first)
net = FrozenEstimator(plain.net_.set_params(batch_size=55))

places = [np.flatnonzero(y == k) for k in range(10)]
batch = np.concatenate([rows[: 10 - k] for k, rows in enumerate(places)])
meta = np.concatenate([rows[10:20] for rows in places])


# %%
# The estimator learns the weights of these 55 rows, with the net as it is: all of them
# are one batch, so that an epoch is one step of the weights.
def fitted(cost):
    """Return an estimator with the weights of the batch."""
    weights = WeightVector(lr=0.1, update="multiplicative")
    clf = OTReweightedClassifier(
        net, cost=cost, weights=weights, max_epochs=100, random_state=0
    )
    return clf.fit(X[batch], y[batch], meta=(X[meta], y[meta]))


estimators = {cost: fitted(cost) for cost in ("feature", "label", "combined")}

# %%
# Costs and weights (figure 1). The feature cost weighs single rows, wherever they
# belong. The label cost gives one weight to a class, the larger the rarer it is. The
# combined cost does both: rare classes gain, and within a class the rows that look like
# it.
folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
for cost, clf in estimators.items():
    display = SampleWeightDisplay.from_estimator(clf, X[batch], y[batch])
    display.figure_.suptitle(f"{cost} cost")
    display.figure_.savefig(folder / "output" / f"weights_{cost}.png", dpi=120)
plt.show()

# %%
# Cost, and the transport plan before and after (figure 5). Before, all rows have the
# same mass, and that of the frequent classes has to go to the prototypes of the rare
# ones. After, each prototype is served by rows of its own.
for cost, clf in estimators.items():
    display = TransportPlanDisplay.from_estimator(clf, X[batch], y[batch])
    display.figure_.suptitle(f"{cost} cost")
    display.figure_.savefig(folder / "output" / f"plan_{cost}.png", dpi=120)
plt.show()

# %%
# How far the weights went: the cost that is left, and the effective sample size.
print("cost        transport cost, first and last epoch   effective rows of 55")
for cost, clf in estimators.items():
    first, last = clf.history_[-clf.max_epochs :, "ot_cost"][:: clf.max_epochs - 1]
    rows = 55 * clf.history_[-1, "weights_ess"]
    print(f"{cost:10s}{first:24.3f}{last:9.3f}{rows:28.1f}")
