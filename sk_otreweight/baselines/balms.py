"""Balanced meta-softmax: a balanced loss, and a sampler that meta rows teach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sk_otreweight._validation import check_real
from sk_otreweight.baselines.base import two_stage_epochs
from sk_otreweight.baselines.learned import MetaClassifier, MetaRows, MetaStep
from sk_otreweight.baselines.losses import adjusted_prior
from sk_otreweight.losses import BalancedSoftmaxLoss
from sk_otreweight.sampling import rows_of_classes
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch


@dataclass(eq=False, repr=False, kw_only=True)
class BALMSClassifier(MetaClassifier):
    """Balanced softmax on rows from a sampler that is learned from meta rows (BALMS).

    Ren et al., NeurIPS 2020, "meta-softmax" in the paper's tables. A class is drawn
    with probability ``n_k rho_k``, then one of its rows. The rates rho move, by
    straight-through Gumbel samples, against the gradient of the plain loss on the meta
    rows after a virtual gradient step.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    finetune : {"head", "all"}, default="head"
        As in :class:`MetaClassifier`; the paper's is "head".
    per_class, meta_batch_size
        See :class:`MetaClassifier`.
    sampler_lr : float, default=0.01
        Step size of Adam for the sampler.
    init_power : float, default=0.0
        The rates begin in proportion to ``n_k^-init_power``: 0 draws all rows alike, 1
        all classes.

    Attributes
    ----------
    sampling_rate_ : ndarray of shape (n_classes,)
        The rates rho at the end.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import BALMSClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = BALMSClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "balms"
    paper = "Ren et al., NeurIPS 2020"
    needs = frozenset({"counts", "meta", "features"})
    stages = "2"
    begins_with = "net"
    can_stream = False

    finetune: str = "head"
    sampler_lr: float = 0.01
    init_power: float = 0.0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real(self.sampler_lr, name="sampler_lr")
        check_real(self.init_power, name="init_power")

    def _epochs(self, *, stage_one: bool, is_stream: bool) -> tuple[int, int]:
        return two_stage_epochs(self, stage_one=stage_one, is_stream=is_stream)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        self._sampler = ClassSampler(self._counts(), self.init_power, self.sampler_lr)
        return _SampledStep(data, self._meta_rows(), self._counts(), self._sampler)

    def _finish(self, data: Stage2Data) -> None:
        self.sampling_rate_ = self._sampler.rates().numpy()
        del self._sampler

    def _assumed_prior(self) -> np.ndarray:
        return adjusted_prior(self.class_counts_, 1.0)


class ClassSampler:
    """Rates of the classes, with which their rows are drawn.

    Parameters
    ----------
    class_counts : ndarray of shape (K,)
    init_power : float
    lr : float
    """

    def __init__(self, class_counts: np.ndarray, init_power: float, lr: float):
        self.log_counts = torch.from_numpy(class_counts).double().log()
        rates = (-init_power * self.log_counts).exp()
        rates = rates / (rates.min() + rates.max())
        self.scores = torch.logit(rates, eps=1e-6)
        self.optimizer = torch.optim.Adam([self.scores], lr=lr)

    def rates(self) -> Tensor:
        """Return the rates rho (K,), in (0, 1)."""
        return self.scores.detach().sigmoid()

    def log_shares(self) -> Tensor:
        """Return the log-probabilities (K,) that a row of a class is drawn."""
        return (self.log_counts + self.rates().log()).log_softmax(0)

    def shares(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return what a softmax makes of the noise with which rows were drawn (n, K).

        A row of a class is drawn if that wins when Gumbel noise is added to the
        log-probabilities. Given the class that won, the noise follows a known law, and
        is drawn from it.
        """
        log_shares = self.log_shares()
        noise = torch.rand(
            len(labels), len(log_shares), generator=generator, dtype=torch.float64
        )
        noise = -(-noise.clamp(1e-12, 1 - 1e-12).log()).log()
        # The largest of all is a Gumbel variable itself; the others lie below it.
        top = noise.gather(1, labels[:, None])
        below = -torch.logaddexp(-log_shares - noise, -top)
        return below.scatter(1, labels[:, None], top).softmax(1)

    def step(self, shares: Tensor, labels: Tensor, grad: Tensor) -> None:
        """Move the rates against a gradient with respect to the rows' weights (n,).

        That of a straight-through draw: a weight is 1, and changes as the share of its
        row's class does.
        """
        parts = grad[:, None] * shares.gather(1, labels[:, None])
        others = (parts * shares).sum(0)  # what a softmax takes from all classes
        slope = -others.index_add(0, labels, parts[:, 0], alpha=-1)
        self.scores.grad = slope * (1 - self.rates())
        self.optimizer.step()


class _SampledStep(MetaStep):
    """Draws rows and teaches the sampler; see `BALMSClassifier`."""

    draws_rows = True
    stateful = ("sampler",)

    def __init__(
        self,
        data: Stage2Data,
        rows: MetaRows,
        class_counts: np.ndarray,
        sampler: ClassSampler,
    ):
        super().__init__(
            data, rows, BalancedSoftmaxLoss(class_counts, reduction="none")
        )
        self.sampler = sampler

    def draw_rows(self, labels: Tensor) -> Tensor:
        """Return as many rows as there are, by the sampler's rates."""
        shares = self.sampler.log_shares().exp()
        shares = shares * (labels.cpu().bincount(minlength=len(shares)) > 0)
        n = len(labels)
        classes = shares.multinomial(n, replacement=True, generator=self.generator)
        return rows_of_classes(classes, labels, self.generator)

    def batch_weights(self, batch: StepBatch) -> Tensor:
        """Teach the sampler, and weigh the rows alike."""
        n = len(batch.labels)
        steps = torch.full_like(batch.losses, self.lr / n).detach()
        products: Any = self.products(batch, steps)
        labels = batch.labels.cpu()
        shares = self.sampler.shares(labels, self.generator)
        self.sampler.step(shares, labels, (-self.lr / n * products).cpu().double())
        return torch.ones_like(batch.losses)
