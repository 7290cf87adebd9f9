"""A classifier of any kind, fitted with optimal transport weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
    is_classifier,
)
from sklearn.utils import Tags, get_tags
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from sk_otreweight._validation import (
    check_meta_arguments,
    check_meta_mask,
    check_two_classes,
    warn_user,
)
from sk_otreweight.display import mime_bundle, short_repr
from sk_otreweight.restore import kept_on_error
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.sample_weight.weights import (
    check_row_labels,
    new_reweighter,
    row_weights,
)


def _delegates(name: str) -> Callable[[Any], bool]:
    """Return a check for `available_if`: whether the classifier inside has a method."""

    def check(self: OTReweightedEstimator) -> bool:
        getattr(getattr(self, "estimator_", self.estimator), name)
        return True

    return check


class OTReweightedEstimator(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Fit any classifier with optimal transport weights of its training rows.

    `fit` computes the weights of :func:`compute_ot_sample_weight` from the rows that
    it is given, in cross-validation those of the fold, and hands them to the
    classifier as `sample_weight`. Whatever can predict before can do so after.

    Parameters
    ----------
    estimator : classifier
        Its `fit` must take `sample_weight`. To be given without a `class_weight`: the
        two would be multiplied.
    cost : str, Cost or callable, default=None
        ``"label"`` (Eq. 7), ``"feature"`` (8), ``"combined"`` (9), ``"sqeuclidean"``,
        a :class:`Cost`, or a function (see :class:`FunctionCost`). None is
        ``CombinedCost(mix=0.9)``, in which features count a fifth: columns that no net
        has learned tell less about how typical a row is. Columns that are
        not numeric, text and sparse X need a cost that looks at labels only.
    meta_set : str or MetaSet, default="prototype"
        ``"prototype"`` (12), ``"whole"`` (5), ``"random"``, or a :class:`MetaSet`,
        whose `per_class` says how many rows are drawn when no meta data is given.
    reg : float, default=0.1
        Weight lambda of the entropy (10), in units of the cost.
    random_state : int, RandomState instance or None, default=None
        Seed of the rows that are drawn; the classifier has its own.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    sample_weight_ : ndarray of shape (n_samples,)
        Weight of each row of X, of mean 1; 0 for rows held out by `meta_mask`, which
        do not count in that mean.
    class_counts_ : ndarray of shape (n_classes,)
        Training rows of each class.
    class_weight_ : ndarray of shape (n_classes,)
        Mean weight of the rows of each class.
    n_features_in_ : int
        Number of columns, if X has some.
    feature_names_in_ : ndarray of shape (n_features,)
        If X had column names.

    See Also
    --------
    compute_ot_sample_weight : The weights alone.
    OTReweightedClassifier : For nets; learns the features that rows are compared by.

    References
    ----------
    Guo, Li, Zheng, Zhao, Zhou, Zha, "Learning to re-weight examples with optimal
    transport for imbalanced classification", NeurIPS 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from sk_otreweight import OTReweightedEstimator, make_long_tailed
    >>> X, y = load_wine(return_X_y=True)
    >>> data = make_long_tailed(X, y, imbalance_factor=10, random_state=0)
    >>> clf = OTReweightedEstimator(DecisionTreeClassifier(random_state=0))
    >>> clf = clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    >>> bool(clf.class_weight_[2] > clf.class_weight_[0])
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        cost: Any = None,
        meta_set: Any = "prototype",
        reg: float = 0.1,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.cost = cost
        self.meta_set = meta_set
        self.reg = reg
        self.random_state = random_state

    def __repr__(self, N_CHAR_MAX: int = 120) -> str:
        return short_repr(self, N_CHAR_MAX)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return mime_bundle(self)

    def _repr_html_(self) -> str | None:
        return mime_bundle(self).get("text/html")

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        meta: tuple[Any, Any] | None = None,
        X_meta: Any = None,
        y_meta: Any = None,
        meta_mask: Any = None,
        **fit_params: Any,
    ) -> OTReweightedEstimator:
        """Compute the weights of the rows and fit a clone of the classifier.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
            Reaches the classifier as it is given.
        y : array-like of shape (n_samples,)
            Class labels of any type.
        meta : tuple (X_meta, y_meta), default=None
            A small balanced set of trusted rows, apart from the training rows. With
            none, it is drawn from the training rows.
        X_meta, y_meta : array-like, default=None
            The same as two arguments, for pipelines that transform ``X_meta``.
        meta_mask : array-like of bool of shape (n_samples,), default=None
            The same as a mask: these rows of X are the meta set and are not trained
            on.
        **fit_params : dict
            Passed on to `fit` of the classifier; with metadata routing, those that it
            requests.

        Returns
        -------
        self : OTReweightedEstimator

        Raises
        ------
        ValueError
            If `estimator` is no classifier or takes no `sample_weight`, or an argument
            or parameter is not valid; the message says what was given and what is
            expected.
        """
        # Meta-estimators that route metadata pass None for what was not given.
        _check_estimator(self.estimator, fit_params.pop("sample_weight", None))
        reweighter = new_reweighter(
            self.cost, self.meta_set, self.reg, self.random_state
        )
        if get_config()["enable_metadata_routing"]:
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        with kept_on_error(self):
            validate_data(self, X, y, skip_check_array=True)
            y = check_row_labels(X, y)
            pair = check_meta_arguments(
                meta, X_meta, y_meta, meta_mask, n_rows=len(y), in_folds=True
            )
            is_trained_on = np.ones(len(y), dtype=bool)
            if meta_mask is not None:
                held_out = check_meta_mask(meta_mask, n_rows=len(y))
                is_trained_on = ~held_out
                pair = _take_rows(X, held_out), y[held_out]
                X, y = _take_rows(X, is_trained_on), y[is_trained_on]
            classes, labels = np.unique(y, return_inverse=True)
            check_two_classes(classes)
            weights = row_weights(reweighter, X, y, pair)
            estimator = clone(self.estimator)
            estimator.fit(X, y, sample_weight=weights, **fit_params)
            self.estimator_, self.classes_ = estimator, classes
            self.sample_weight_ = np.zeros(len(is_trained_on))
            self.sample_weight_[is_trained_on] = weights
            self.class_counts_ = np.bincount(labels)
            self.class_weight_ = np.bincount(labels, weights) / self.class_counts_
        return self

    @available_if(_delegates("predict"))
    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted class of each row.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.predict(X)

    @available_if(_delegates("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities, those of the re-weighted problem.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            In the order of ``classes_``.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.predict_proba(X)

    @available_if(_delegates("predict_log_proba"))
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of the class probabilities.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
            In the order of ``classes_``.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.predict_log_proba(X)

    @available_if(_delegates("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the classes.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            In the order of ``classes_``; for two classes those of the second.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.decision_function(X)

    @available_if(_delegates("score"))
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the score that the classifier defines, mostly the accuracy.

        Parameters
        ----------
        X : array-like, DataFrame or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows that are scored.

        Returns
        -------
        score : float
        """
        check_is_fitted(self, "estimator_")
        params = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self.estimator_.score(X, y, **params)

    def get_metadata_routing(self) -> MetadataRouter:
        """Return which metadata is used here, and which by the classifier."""
        return (
            MetadataRouter(owner=type(self).__name__)
            .add_self_request(self)
            .add(
                estimator=_without_weight_request(self.estimator),
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        if self._compares_features():
            tags.input_tags.sparse = False
            tags.input_tags.string = False
            tags.input_tags.categorical = False
        if inner.classifier_tags is not None:
            tags.classifier_tags = inner.classifier_tags
            tags.classifier_tags.multi_label = False
        tags.non_deterministic = inner.non_deterministic
        return tags

    def _compares_features(self) -> bool:
        try:
            return Reweighter(self.cost).needs_meta_features
        except ValueError:  # `fit` will say what is wrong with the cost
            return True


def _without_weight_request(estimator: Any) -> Any:
    """Return an estimator that does not ask others for weights: it gets them here."""
    is_routed = get_config()["enable_metadata_routing"]
    if not (is_routed and hasattr(estimator, "set_fit_request")):
        return estimator
    return clone(estimator).set_fit_request(sample_weight=False)


def _check_estimator(estimator: Any, sample_weight: Any) -> None:
    """Raise unless it is a classifier that can be given weights, and has none yet."""
    name = type(estimator).__name__
    if not has_fit_parameter(estimator, "sample_weight"):
        raise ValueError(
            f"fit of {name} takes no sample_weight, so that it cannot be given weights."
            " Use a classifier that takes it, such as HistGradientBoostingClassifier, "
            "LogisticRegression or SVC. A pipeline or a search goes around this "
            "estimator: make_pipeline(StandardScaler(), OTReweightedEstimator(...))."
        )
    if not is_classifier(estimator):
        raise ValueError(f"{name} is not a classifier: weights are balanced by class.")
    if getattr(estimator, "class_weight", None) is not None:
        warn_user(
            f"{name} has class_weight={estimator.class_weight!r}, and OT weights are "
            "given to it on top of that: rare classes count twice. Leave class_weight "
            "out."
        )
    if sample_weight is not None:
        raise ValueError(
            "sample_weight was given, but OTReweightedEstimator computes it: leave it "
            f"out, or fit {name} itself with it."
        )


def _take_rows(X: Any, mask: np.ndarray) -> Any:
    """Return some rows of an array, a frame, a sparse matrix or a list, as such."""
    rows = np.flatnonzero(mask)
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    if hasattr(X, "tocsr"):
        return X.tocsr()[rows]
    return X[rows] if hasattr(X, "shape") else [X[row] for row in rows]
