"""
The weights in a training loop of your own
==========================================

:class:`~sk_otreweight.Reweighter` needs neither scikit-learn nor skorch: give it each
batch's features, labels and row numbers, and multiply the losses with what it returns.
Here a net that was trained as usual gets its last layer trained again, Algorithm 1 of
the paper with the extractor frozen.
"""

# %%
# Long-tailed digits as tensors.
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy

from sk_otreweight import Reweighter, WeightVector, make_long_tailed

torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    X / 16, y, test_size=0.4, stratify=y, random_state=0
)
data = make_long_tailed(X, y, imbalance_factor=30, meta_per_class=10, random_state=0)
X, X_meta, X_test = (
    torch.tensor(x, dtype=torch.float32) for x in (data.X, data.X_meta, X_test)
)
y, y_meta = torch.tensor(data.y), torch.tensor(data.y_meta)

# %%
# Stage 1: plain training.
extractor = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
head = nn.Linear(128, 10)


def batches(n_rows, size):
    """Return row numbers in random order, batch by batch."""
    return torch.randperm(n_rows).split(size)


optimizer = torch.optim.Adam([*extractor.parameters(), *head.parameters()], lr=3e-3)
for _ in range(30):
    for rows in batches(len(y), 32):
        loss = cross_entropy(head(extractor(X[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def report(title):
    """Print the recall of all classes and of the three rarest."""
    with torch.no_grad():
        predicted = head(extractor(X_test)).argmax(1)
    recall = recall_score(y_test, predicted, average=None)
    print(f"{title}: mean recall {recall.mean():.3f}, rarest {recall[-3:].mean():.3f}")


report("Stage 1        ")

# %%
# Stage 2: the weights of each batch take a step on the transport cost, then the
# head takes a step on the weighted loss.
with torch.no_grad():
    features, features_meta = extractor(X), extractor(X_meta)

reweighter = Reweighter(cost="combined", weights=WeightVector(lr=0.3), reg=0.1)
reweighter.set_meta(y_meta, features_meta).set_training_set(y, features)

optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
for _ in range(20):
    for rows in batches(len(y), 32):
        weights = reweighter(features[rows], y[rows], rows)
        losses = cross_entropy(head(features[rows]), y[rows], reduction="none")
        optimizer.zero_grad()
        (weights * losses).mean().backward()
        optimizer.step()

report("Stage 1 and 2  ")

# %%
# What the rows of each class weigh in the end.
weights = reweighter.sample_weight()
print("class   rows   mean weight")
for k in range(10):
    print(f"{k:5d} {(y == k).sum():6d} {weights[y == k].mean():13.2f}")
