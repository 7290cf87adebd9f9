"""
Inside the attention weight net
===============================

The weight net of the paper's text experiments (figure 6, Eq. 13, table 8) encodes the
features of each row twice; the product of the two encodings is the row's score, and a
softmax over the batch makes weights of the scores. Here it is fitted to long-tailed
digits and opened.
"""

# %%
# The estimator trains it against the exact gradient of the transport cost
# (Algorithm 2).
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

from sk_otreweight import AttentionWeightNet, OTReweightedClassifier, make_long_tailed

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
data = make_long_tailed(X, y, imbalance_factor=20, random_state=0)
clf = OTReweightedClassifier(
    weights=AttentionWeightNet(hidden=32), max_epochs=20, random_state=0
)
clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
weight_net = clf.weights_.module_

# %%
# Its layers, as they are.
for name, layer in weight_net.named_children():
    print(f"{name:6s} {layer}")

# %%
# The features of some rows of each class pass through it: the input of the head, which
# a hook catches.
rows = np.concatenate([np.flatnonzero(data.y == k)[:5] for k in range(10)])
caught = []
head = clf.net_.module_.get_submodule("head")
hook = head.register_forward_hook(lambda module, args, output: caught.append(args[0]))
clf.net_.predict_proba(data.X[rows])
hook.remove()
z = torch.cat(caught)[: len(rows)]

with torch.no_grad():
    query, key = weight_net.query(z), weight_net.key(z)
    products = query @ key.T / query.shape[1] ** 0.5
    scores = weight_net(z)
    weights = len(scores) * torch.softmax(scores, 0)
print("the scores are the diagonal:", torch.allclose(products.diagonal(), scores))

# %%
# From left to right: features, both encodings, their products, and the weights that the
# diagonal leads to. The rows of rare classes are at the bottom.
fig, axes = plt.subplots(1, 5, figsize=(13, 4.5), layout="constrained")
steps = {
    f"features {tuple(z.shape)}": z,
    f"query {tuple(query.shape)}": query,
    f"key {tuple(key.shape)}": key,
    f"products {tuple(products.shape)}": products,
}
for ax, (title, table) in zip(axes, steps.items(), strict=False):
    ax.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.set(xticks=[], yticks=[])
axes[0].set_yticks(range(2, len(rows), 5), range(10))
axes[0].set_ylabel("class")
axes[4].barh(np.arange(len(rows)), weights, height=1)
axes[4].axvline(1, color="0.5", linewidth=0.8)
axes[4].set(ylim=(len(rows) - 0.5, -0.5), yticks=[])
axes[4].set_title("weights in this batch", fontsize=9)

folder = Path(__file__).parent if "__file__" in globals() else Path()
(folder / "output").mkdir(exist_ok=True)
fig.savefig(folder / "output" / "attention_weights.png", dpi=120)
plt.show()
