"""Open long-tailed recognition: features enriched from a memory of class centres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sk_otreweight._validation import check_choice
from sk_otreweight.baselines.base import BalancedStep, TwoStageClassifier
from sk_otreweight.baselines.heads import head_layer, replace_head
from sk_otreweight.baselines.means import class_means
from sk_otreweight.extraction import training_features
from sk_otreweight.features import ReplacedHead
from sk_otreweight.priors import named_prior
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch

# Of the paper's released code: scale of the cosines, distance that counts as reached,
# margin between classes, and what the two terms of the centre loss count.
_SCALE, _REACH, _MARGIN, _CENTRE, _REPEL = 16.0, 10.0, 10.0, 0.01, 0.01


class OLTRHead(ReplacedHead):
    """Features with what a memory says of them, and cosines with class vectors.

    A linear layer until :meth:`begin` is called.

    Parameters
    ----------
    linear : nn.Linear
    """

    is_open: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        width, n_classes = linear.in_features, linear.out_features
        self.linear = linear
        self.attention = nn.Linear(width, n_classes)
        self.selector = nn.Linear(width, width)
        self.centres = nn.Parameter(torch.zeros(n_classes, width))
        self.directions = nn.Parameter(torch.zeros(n_classes, width))
        self.register_buffer("is_open", torch.tensor(False))

    def begin(self, centres: Tensor) -> None:
        """Take the place of the linear layer, with centres (K, d) of the classes."""
        with torch.no_grad():
            self.centres.copy_(centres)
            self.directions.copy_(self.linear.weight)
            self.attention.weight.copy_(self.linear.weight)
            if self.linear.bias is not None:
                self.attention.bias.copy_(self.linear.bias)
            self.is_open.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """Return the class scores (n, K)."""
        if not self.is_open:
            return self.linear(features)
        memory = self.attention(features).softmax(1) @ self.centres
        chosen = self.selector(features).tanh()
        nearest = self._distances(features).amin(1, keepdim=True)
        reach = _REACH / nearest.clamp(min=1e-3)
        return cosine_scores(reach * (features + chosen * memory), self.directions)

    def _distances(self, features: Tensor) -> Tensor:
        """Return the distances (n, K) to the centres.

        Not by a matrix product: that would round a row differently in other company.
        """
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(features, self.centres, compute_mode=mode)

    def centre_losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return how far rows (n,) are from their centre, and others too near."""
        squares = self._distances(features) ** 2
        own = squares.gather(1, labels[:, None])[:, 0]
        apart = squares.scatter(1, labels[:, None], 0.0).mean()
        return own / 2 + _REPEL * (_MARGIN - apart).clamp(min=0)


def cosine_scores(points: Tensor, directions: Tensor) -> Tensor:
    """Return scaled cosines (n, K) that shrink with short points."""
    lengths = points.norm(dim=1, keepdim=True)
    return _SCALE * (points / (1 + lengths)) @ F.normalize(directions).T


@dataclass(eq=False, repr=False, kw_only=True)
class OLTRClassifier(TwoStageClassifier):
    """Features enriched from a memory of class centres, and a cosine head (OLTR).

    Liu et al., CVPR 2019, without its attention over positions of an image, which is
    made for one architecture, and without its rejection of unknown classes. Stage 2
    draws rows from all classes alike.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`. The net must end in an ``nn.Linear``.
    finetune : {"head", "all"}, default="head"
        Whether stage 2 trains the new head alone, or the whole net, as the released
        code does (there features have a tenth of the head's learning rate).

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import OLTRClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = OLTRClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "oltr"
    paper = "Liu et al., CVPR 2019"
    needs = frozenset({"counts", "features"})
    can_stream = False

    finetune: str = "head"

    def _check_parameters(self) -> None:
        check_choice(self.finetune, name="finetune", choices=("head", "all"))

    def _adapt_net(self) -> None:
        replace_head(self.net_, self._head, OLTRHead)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        features = data.features
        if features is None:
            features = training_features(data.net, data.head, data.X)
        # Rows that are held out are left aside as a class of their own.
        n_classes, rows = len(self.classes_), data.train_rows.to(data.labels.device)
        labels = torch.full_like(data.labels, n_classes)
        labels[rows] = data.labels[rows]
        centres = class_means(features, labels, n_classes + 1)[:n_classes]
        head_layer(data.net, data.head).begin(centres)
        return _OLTRStep(data)

    def _assumed_prior(self) -> np.ndarray:
        return named_prior("uniform", self.class_counts_)


class _OLTRStep(BalancedStep):
    """The net's own loss and that of the centres."""

    needs_features = True

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,)."""
        head = head_layer(self.data.net, self.data.head)
        centre = head.centre_losses(batch.features, batch.labels)
        return super().losses(batch) + _CENTRE * centre
