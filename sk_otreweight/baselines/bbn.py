"""Bilateral-branch network: a branch for rows as they come, one for rare classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from skorch.utils import to_tensor
from torch import Tensor, nn

from sk_otreweight.baselines.base import BaselineClassifier, BaselineStep
from sk_otreweight.baselines.heads import head_layer, replace_head
from sk_otreweight.extraction import batch_features
from sk_otreweight.features import ReplacedHead
from sk_otreweight.inputs import batch_of
from sk_otreweight.priors import named_prior
from sk_otreweight.processes import device_of
from sk_otreweight.sampling import rows_of_classes
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


class BBNHead(ReplacedHead):
    """Two branches on the same features, and a linear layer on both.

    Parameters
    ----------
    linear : nn.Linear
        The layer that it takes the place of, for its sizes.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        width = linear.in_features
        self.conventional = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.rebalancing = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.linear = nn.Linear(2 * width, linear.out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the class scores (n, K), of both branches alike."""
        return self.mixed(features, features, 0.5)

    def mixed(self, features: Tensor, rare_features: Tensor, alpha: float) -> Tensor:
        """Return the scores of two rows, one for each branch."""
        parts = [
            2 * alpha * self.conventional(features),
            2 * (1 - alpha) * self.rebalancing(rare_features),
        ]
        return self.linear(torch.cat(parts, 1))


@dataclass(eq=False, repr=False, kw_only=True)
class BBNClassifier(BaselineClassifier):
    """Two branches that share an extractor, one for rare classes (BBN).

    Zhou et al., CVPR 2020. One branch learns from the rows as they come, the other from
    rows of rare classes; the focus moves from the first to the second in the course of
    the training. The last layer of the net, an ``nn.Linear``, is replaced by two
    branches of one hidden layer, and a linear layer on both; the paper doubles the
    last block of a ResNet.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import BBNClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = BBNClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "bbn"
    paper = "Zhou et al., CVPR 2020"
    needs = frozenset({"counts", "features"})
    can_stream = False

    def _adapt_net(self) -> None:
        replace_head(self.net_, self._head, BBNHead)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _BBNStep(data)

    def _assumed_prior(self) -> np.ndarray:
        return named_prior("uniform", self.class_counts_)


class _BBNStep(BaselineStep):
    """The loss of mixed scores; see `BBNClassifier`."""

    needs_features = True

    def __init__(self, data: Stage2Data):
        super().__init__(data)
        self.generator = torch.Generator().manual_seed(data.seed)
        self.labels = data.labels.cpu()[data.train_rows]
        counts = self.labels.bincount().double()
        self.rare = torch.where(counts > 0, 1 / counts, 0.0)

    @property
    def alpha(self) -> float:
        """Return the share of the conventional branch, from 1 down to 0."""
        return 1 - self.progress**2

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each pair of rows (n,)."""
        net, n, alpha = self.data.net, len(batch.labels), self.alpha
        classes = self.rare.multinomial(n, replacement=True, generator=self.generator)
        drawn = rows_of_classes(classes, self.labels, self.generator)
        rows = self.data.train_rows[drawn]
        X = to_tensor(batch_of(net, self.data.X, rows.numpy()), device=device_of(net))
        rare_features = batch_features(net, self.data.head, X)
        head = head_layer(net, self.data.head)
        scores = head.mixed(batch.features, rare_features, alpha)
        common = F.cross_entropy(scores, batch.labels, reduction="none")
        rare = F.cross_entropy(scores, classes.to(scores.device), reduction="none")
        return alpha * common + (1 - alpha) * rare
