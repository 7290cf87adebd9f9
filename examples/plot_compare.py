"""
All methods side by side
========================

Does re-weighting help, or would a simpler method do? :func:`~sk_otreweight.compare`
fits every method of :data:`~sk_otreweight.BASELINES` and
:class:`~sk_otreweight.OTReweightedClassifier` on the same data, with the same net,
epochs and seeds, each with its default settings, and tells what the rare classes get of
it. Nothing is tuned here, and the test rows choose nothing. Of this package there are
the defaults (``ot``) and the recipe "adjusted", which trains on the meta rows as well.
"""

# %%
# Digits with a long tail, 50 times more zeros than nines, and ten meta rows of each
# digit. The test split stays balanced.
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sk_otreweight import (
    BASELINES,
    OTReweightedClassifier,
    compare,
    make_long_tailed,
)
from sk_otreweight.plotting import ComparisonDisplay

torch.set_num_threads(1)  # a net this small is faster on one thread
X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    X.astype(np.float32) / 16, y, test_size=0.4, stratify=y, random_state=0
)
data = make_long_tailed(X, y, imbalance_factor=50, random_state=0)

# %%
# The meta rows are labelled rows, too: methods that do not take them go without, but
# ``ce_meta`` trains on them, and ``meta_head`` learns its last layer from them alone.
# Both are controls: what is worse has not made good use of the meta rows. A third one
# trains on them with the loss of the recipe "adjusted", which is that recipe without
# transport.
CONTROL = {
    "logit_adjustment + meta rows": BASELINES["logit_adjustment"](train_on_meta=True)
}
OURS = {
    "ot": OTReweightedClassifier(),
    "ot_adjusted": OTReweightedClassifier.from_recipe("adjusted"),
}
table = compare(
    {name: method() for name, method in BASELINES.items()} | CONTROL | OURS,
    data.X,
    data.y,
    X_test,
    y_test,
    meta=(data.X_meta, data.y_meta),
    seeds=2,
    thresholds=(1 / 3, 2 / 3),
    by="quantile",
    verbose=False,
)
table = table.sort_values(("balanced_accuracy", "mean"))
shown = ["balanced_accuracy", "few", "log_loss", "ece", "time_ratio"]
means = table.xs("mean", axis=1, level=1)[shown]
print(means.round(3).to_string())

failed = table["error", ""].dropna()
print(f"methods that failed: {len(failed)}")

# %%
# Points are means over the seeds, lines reach a standard deviation to each side. The
# recall is that of the rarest third of the classes.
display = ComparisonDisplay.from_table(table, highlight=list(OURS))

folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
path = folder / "output" / "compare.png"
display.figure_.savefig(path, dpi=100)
print(f"Figure: {path}")
plt.show()
