"""Weights that a small net reads off the losses (Meta-Weight-Net)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sk_otreweight._validation import check_choice, check_count, check_real
from sk_otreweight.baselines.learned import MetaClassifier, MetaRows, MetaStep
from sk_otreweight.processes import device_of
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch
from sk_otreweight.weights import WeightNet


@dataclass(eq=False, repr=False, kw_only=True)
class MetaWeightNetClassifier(MetaClassifier):
    """Rows count by their loss, in a way that a small net learns (Meta-Weight-Net).

    Shu et al., NeurIPS 2019: a net of one hidden layer maps the loss of a row to its
    weight in (0, 1), and learns from the loss on the meta rows.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    finetune, per_class, meta_batch_size
        See :class:`MetaClassifier`.
    weight_lr : float, default=1e-3
        Step size of the weight net.
    weight_optimizer : Optimizer class, default=torch.optim.Adam
        As in the authors' code for wrong labels. That for imbalance takes SGD with
        1e-5, which suits a net that learns with 0.1: the gradient of the weight net
        is in proportion to that rate, and with one of 1e-3 it would stay where it is.
    hidden : int, default=100
        Hidden units of the weight net.
    normalize : bool, default=True
        Scale the weights of a batch to a sum of 1; the authors' code for wrong labels
        does not, and nothing keeps all weights from going to 0.

    Attributes
    ----------
    weight_net_ : LossWeightNet
        Its ``module_`` maps losses (n, 1) to weights (n, 1).

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import MetaWeightNetClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = MetaWeightNetClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "meta_weight_net"
    paper = "Shu et al., NeurIPS 2019"

    weight_lr: float = 1e-3
    weight_optimizer: Any = torch.optim.Adam
    hidden: int = 100
    normalize: bool = True

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real(self.weight_lr, name="weight_lr")
        check_count(self.hidden, name="hidden")
        check_choice(self.normalize, name="normalize", choices=(True, False))

    def _begin_chunk(self) -> None:
        super()._begin_chunk()
        # So that an error leaves the one that learned from the chunks before.
        self.weight_net_ = copy.deepcopy(self.weight_net_)

    def _make_components(self, seed: int, is_stream: bool) -> None:
        if is_stream and hasattr(self, "weight_net_"):
            return
        self.weight_net_ = LossWeightNet(
            self.weight_lr, self.hidden, self.weight_optimizer
        )
        losses = torch.zeros(2, 1, device=device_of(self.net_))
        self.weight_net_.start_from(losses, seed)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return _WeightNetStep(data, self._meta_rows(), self.weight_net_, self.normalize)


class LossWeightNet(WeightNet):
    """A net of one hidden layer that maps losses (n, 1) to weights in (0, 1).

    Parameters
    ----------
    lr, hidden, optimizer
        As in :class:`WeightNet`, which maps features.
    """

    def _build(self, n_features: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(n_features, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 1),
            nn.Sigmoid(),
        )


class _WeightNetStep(MetaStep):
    stateful = ("weight_net",)

    def __init__(
        self,
        data: Stage2Data,
        rows: MetaRows,
        weight_net: LossWeightNet,
        normalize: bool,
    ):
        super().__init__(data, rows)
        self.weight_net, self.normalize = weight_net, normalize

    def batch_weights(self, batch: StepBatch) -> Tensor:
        losses = batch.losses.detach()
        shares = self._shares(losses)
        products = self.products(batch, self.lr * shares.detach())
        self.weight_net.optimizer_.zero_grad()
        shares.backward(-self.lr * products)
        self.weight_net.optimizer_.step()
        with torch.no_grad():
            return len(losses) * self._shares(losses)

    def _shares(self, losses: Tensor) -> Tensor:
        """Return what each row counts in the loss of the batch (n,)."""
        weights = self.weight_net.scores(losses.to(torch.float32)[:, None])
        weights = weights.to(losses.dtype)
        return weights / (weights.sum() if self.normalize else len(weights))
