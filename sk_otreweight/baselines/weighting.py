"""Plain training, and training with weights by class frequency."""

from __future__ import annotations

from dataclasses import dataclass

from sk_otreweight._validation import check_beta, check_real
from sk_otreweight.baselines.base import BaselineClassifier, ClassWeightStep
from sk_otreweight.class_weights import (
    effective_number_weights,
    inverse_frequency_weights,
)
from sk_otreweight.stage2 import Stage2Data, Stage2Step


@dataclass(eq=False, repr=False, kw_only=True)
class CrossEntropyClassifier(BaselineClassifier):
    """The net trained as it is configured, by default with cross-entropy.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight.baselines import CrossEntropyClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = CrossEntropyClassifier(random_state=0).fit(X / 16, y)
    >>> bool(clf.score(X / 16, y) > 0.95)
    True
    """

    short_name = "ce"
    paper = "plain training"
    begins_with = "training"


@dataclass(eq=False, repr=False, kw_only=True)
class CrossEntropyWithMetaClassifier(BaselineClassifier):
    """The net trained on the training rows and the meta rows together.

    What the meta rows are worth as mere training data. Without meta rows the same
    as :class:`CrossEntropyClassifier`.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import CrossEntropyWithMetaClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = CrossEntropyWithMetaClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "ce_meta"
    paper = "control"
    needs = frozenset({"meta"})

    train_on_meta: bool = True


@dataclass(eq=False, repr=False, kw_only=True)
class InverseFrequencyClassifier(BaselineClassifier):
    """Losses weighed by the inverse class frequencies.

    The weights are of mean 1 over the training rows, those of scikit-learn's
    ``class_weight="balanced"``, to a power.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    gamma : float, default=1.0
        Exponent; 0.5 is gentler.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import InverseFrequencyClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = InverseFrequencyClassifier(random_state=0).fit(X, y)
    >>> clf.prior_.round(2)
    array([0.5, 0.5])
    """

    short_name = "inverse"
    paper = "class weights"
    needs = frozenset({"counts"})

    gamma: float = 1.0

    def _check_parameters(self) -> None:
        check_real(self.gamma, name="gamma")

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        weights = inverse_frequency_weights(
            self._counts(), self.gamma, normalize="samples"
        )
        return ClassWeightStep(data, weights)


@dataclass(eq=False, repr=False, kw_only=True)
class ClassBalancedClassifier(BaselineClassifier):
    """Losses weighed by the inverse effective number of rows of their class.

    Cui et al., CVPR 2019. The weights are of mean 1 over the classes.

    Parameters
    ----------
    net, head, max_epochs, lr, train_on_meta, target_prior, random_state, verbose
        See :class:`BaselineClassifier`.
    beta : float or "auto", default=0.9999
        See :func:`effective_number_weights`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_otreweight.baselines import ClassBalancedClassifier
    >>> X, y = make_classification(weights=[0.9], random_state=0)
    >>> clf = ClassBalancedClassifier(random_state=0).fit(X, y)
    >>> clf.predict_proba(X[:3]).shape
    (3, 2)
    """

    short_name = "class_balanced"
    paper = "Cui et al., CVPR 2019"
    needs = frozenset({"counts"})

    beta: float | str = 0.9999

    def _check_parameters(self) -> None:
        check_beta(self.beta)

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return ClassWeightStep(
            data, effective_number_weights(self._counts(), self.beta)
        )
