"""Plain training, and then other predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from sk_otreweight._validation import check_choice, check_real
from sk_otreweight.baselines.base import BaselineClassifier
from sk_otreweight.baselines.heads import linear_head
from sk_otreweight.baselines.losses import adjusted_prior
from sk_otreweight.baselines.means import class_means
from sk_otreweight.extraction import extract_features, training_features
from sk_otreweight.inputs import take
from sk_otreweight.priors import named_prior, with_prior
from sk_otreweight.stage2 import Stage2Data
from sk_otreweight.transport import sinkhorn

_TAUS = np.linspace(0, 2, 21)
# Probabilities that the class factors of transport are computed from at most.
_MOST_ENTRIES = 2**22


@dataclass(eq=False, repr=False, kw_only=True)
class PosthocLogitAdjustmentClassifier(BaselineClassifier):
    """Plain training, and predictions by ``z - tau log pi``.

    Menon et al., ICLR 2021. ``tau=1`` turns probabilities for the frequencies pi of
    the training set into those for classes of equal shares.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    tau : float, default=1.0
        Strength; 0 leaves the predictions as they are.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import PosthocLogitAdjustmentClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = PosthocLogitAdjustmentClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "logit_adjustment_posthoc"
    paper = "Menon et al., ICLR 2021"
    needs = frozenset({"counts"})
    stages = "after training"
    begins_with = "training"

    tau: float = 1.0

    def _check_parameters(self) -> None:
        check_real(self.tau, name="tau")

    def _probabilities(self, X: Any) -> np.ndarray:
        shares = self._counts() / self._counts().sum()
        return with_prior(
            super()._probabilities(X), shares, adjusted_prior(self._counts(), self.tau)
        )

    def _assumed_prior(self) -> np.ndarray:
        return adjusted_prior(self.class_counts_, self.tau)


class _AfterTraining(BaselineClassifier):
    """Base of the methods that need the whole training set when training is over."""

    stages = "after training"
    begins_with = "training"
    can_stream = False

    def _assumed_prior(self) -> np.ndarray:
        return named_prior("uniform", self.class_counts_)


@dataclass(eq=False, repr=False, kw_only=True)
class TauNormClassifier(_AfterTraining):
    """Plain training, and then class vectors of more equal lengths.

    Kang et al., ICLR 2020: the rows of the last layer's weights become
    ``w_k / |w_k|^tau``, and its biases 0.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    tau : float or "auto", default="auto"
        1 gives all of them length 1, 0 leaves them. "auto" tries 0, 0.1, ... 2 and
        takes what has the best balanced accuracy on the meta rows, or without these on
        the training rows.

    Attributes
    ----------
    tau_ : float
        As used.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import TauNormClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = TauNormClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "tau_norm"
    paper = "Kang et al., ICLR 2020"
    needs = frozenset({"features"})

    tau: float | str = "auto"

    def _check_parameters(self) -> None:
        if self.tau != "auto":
            check_real(self.tau, name="tau")

    def _adapt_net(self) -> None:
        linear_head(self.net_, self._head)  # or raise before the training

    def _finish(self, data: Stage2Data) -> None:
        layer = linear_head(self.net_, self._head)
        if layer.bias is not None:
            layer.bias.data.zero_()
        lengths = layer.weight.data.norm(dim=1, keepdim=True)
        lengths.clamp_(min=torch.finfo(lengths.dtype).tiny)
        self.tau_ = self._best_tau(data, layer.weight.data, lengths)
        layer.weight.data /= lengths**self.tau_

    def _best_tau(self, data: Stage2Data, weight: Tensor, lengths: Tensor) -> float:
        if self.tau != "auto":
            return float(self.tau)
        X, labels = calibration_rows(data)
        scores = extract_features(self.net_, self._head, X) @ weight.T
        accuracy = [
            balanced_accuracy_score(
                labels, (scores / lengths.T**tau).argmax(1).cpu().numpy()
            )
            for tau in _TAUS
        ]
        return float(_TAUS[int(np.argmax(accuracy))])


@dataclass(eq=False, repr=False, kw_only=True)
class NearestClassMeanClassifier(_AfterTraining):
    """Plain training, and then the class whose mean feature is nearest.

    Kang et al., ICLR 2020. Probabilities are a softmax of the negative squared
    distances.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    feature_transform : {"cl2n", "l2n", None}, default="cl2n"
        What is done to the features: subtract the mean of the training set and scale to
        length 1, scale only, or nothing.

    Attributes
    ----------
    class_means_ : ndarray of shape (n_classes, n_hidden)
        Of the transformed features.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import NearestClassMeanClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = NearestClassMeanClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ncm"
    paper = "Kang et al., ICLR 2020"
    needs = frozenset({"features"})

    feature_transform: str | None = "cl2n"

    def _check_parameters(self) -> None:
        check_choice(
            self.feature_transform,
            name="feature_transform",
            choices=("cl2n", "l2n", None),
        )

    def _finish(self, data: Stage2Data) -> None:
        features = training_features(self.net_, self._head, data.X)
        together = torch.zeros_like(data.labels)
        self._center = class_means(features, together, 1)[0]
        means = class_means(
            features, data.labels, len(self.classes_), self._transformed
        )
        self.class_means_ = means.cpu().numpy()

    def _transformed(self, features: Tensor) -> Tensor:
        if self.feature_transform == "cl2n":
            features = features - self._center
        if self.feature_transform is None:
            return features
        return torch.nn.functional.normalize(features)

    def _probabilities(self, X: Any) -> np.ndarray:
        features = extract_features(self.net_, self._head, X).double()
        means = torch.from_numpy(self.class_means_).to(features.device)
        distances = torch.cdist(self._transformed(features), means)
        return (-(distances**2)).softmax(1).cpu().numpy()


@dataclass(eq=False, repr=False, kw_only=True)
class OTPosthocClassifier(_AfterTraining):
    r"""Plain training, and then predictions whose class shares are as wanted.

    The exact core of post-hoc corrections by optimal transport (Peng et al., ICLR 2022,
    have a learned cost on top, which was never published): the plan between rows
    of mass 1 and classes of the wanted shares, with the cost ``-log p``,

    .. math:: Y_{ik} = u_i \, p_{ik}^{1 / \epsilon} v_k .

    The class factors v come from the meta rows, or without these from the training
    rows weighed to equal classes, so a row is predicted whatever its company:
    a logit adjustment by an estimated offset.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    eps : float, default=1.0
        Weight of the entropy.

    Attributes
    ----------
    class_factor_ : ndarray of shape (n_classes,)
        The factors v, of geometric mean 1.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import OTPosthocClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = OTPosthocClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ot_posthoc"
    paper = "core of Peng et al., ICLR 2022"
    needs = frozenset({"counts"})

    eps: float = 1.0

    def _check_parameters(self) -> None:
        check_real(self.eps, name="eps", minimum=1e-3)

    def _finish(self, data: Stage2Data) -> None:
        X, labels = calibration_rows(data)
        n_kept = max(len(self.classes_), _MOST_ENTRIES // len(self.classes_))
        if len(labels) > n_kept:
            rows = np.random.default_rng(data.seed).permutation(len(labels))[:n_kept]
            X, labels = take(X, np.sort(rows)), labels[np.sort(rows)]
        probabilities = super()._probabilities(X)
        self.class_factor_ = ot_class_factors(probabilities, labels, self.eps)

    def _probabilities(self, X: Any) -> np.ndarray:
        scores = _log(super()._probabilities(X)) / self.eps
        return softmax(scores + np.log(self.class_factor_), axis=1)


def ot_class_factors(
    probabilities: np.ndarray, labels: np.ndarray, eps: float
) -> np.ndarray:
    """Return the class factors v of the plan with equal class shares.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K)
    labels : ndarray of shape (n,)
        Rows are weighed so that each class that occurs has the same mass.
    eps : float

    Returns
    -------
    factors : ndarray of shape (K,)
        Of geometric mean 1 over the classes that occur; 1 for the others.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    present = counts > 0
    cost = torch.from_numpy(-_log(probabilities[:, present]))
    rows = torch.from_numpy(1 / counts[labels])
    columns = torch.ones(cost.shape[1], dtype=torch.float64)
    share = present.sum()
    plan = sinkhorn(cost, rows / share, columns / share, eps, max_iter=1000, tol=1e-7)
    log_factors = plan.g.numpy() / eps
    factors = np.ones(len(counts))
    factors[present] = np.exp(log_factors - log_factors.mean())
    return factors


def calibration_rows(data: Stage2Data) -> tuple[Any, np.ndarray]:
    """Return the meta rows and their labels, or without these the training rows."""
    if data.meta is None:
        return data.X, data.labels.cpu().numpy()
    return data.meta.X, data.meta.y


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(probabilities.clip(min=np.finfo(np.float64).tiny))
