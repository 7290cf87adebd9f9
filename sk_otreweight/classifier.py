"""`OTReweightedClassifier`: its parameters, and what they mean for a training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sk_otreweight._validation import (
    MetaData,
    check_can_restart,
    check_choice,
    check_drawable,
    check_real,
    check_virtual_step,
    encode_labels,
)
from sk_otreweight.base import BaseReweightedClassifier
from sk_otreweight.costs import resolve_cost
from sk_otreweight.extraction import extract_features
from sk_otreweight.inputs import cast
from sk_otreweight.losses import LogitAdjustedLoss
from sk_otreweight.meta_rows import meta_features, meta_rows
from sk_otreweight.processes import Processes, device_of
from sk_otreweight.randomness import draw_seed, untouched
from sk_otreweight.recipes import RECIPES
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.rows import check_labelled_rows
from sk_otreweight.scores import is_plain_cross_entropy
from sk_otreweight.stage2 import Stage2Data, Stage2Step
from sk_otreweight.transport_step import PlainStep, TransportStep
from sk_otreweight.weights import SemiRelaxedWeights

# Rows of a class are drawn by the number of its rows to the power of 1 minus these.
_SAMPLING = {"instance": 0.0, "square_root": 0.5, "class_balanced": 1.0}


class OTReweightedClassifier(BaseReweightedClassifier):
    """Train a net on imbalanced data with weights learned by optimal transport.

    Two stages (Guo et al. 2022). Stage 1 trains the net. Stage 2 weighs the training
    rows so that they are as close as possible, in transport cost, to a balanced
    distribution built from a small meta set, and goes on training with these weights.
    By default the loss balances the classes in both stages, if it is cross-entropy;
    else the weights do.

    Parameters
    ----------
    net : skorch net, nn.Module class or instance, FrozenEstimator or None, default=None
        What to train. A skorch net keeps its optimizer, batch size, callbacks, number
        of epochs (stage 1) and, but for what `loss` says, its criterion. A module is
        wrapped with cross-entropy, Adam (3e-3), batches of 32 and 30 epochs; a class is
        called with ``n_features`` and ``n_classes`` if its signature has them.
        ``FrozenEstimator(fitted_net)`` skips stage 1. None is a small MLP.
    cost : str, Cost or callable, default="combined"
        ``"label"`` (Eq. 7), ``"feature"`` (8), ``"combined"`` (9), ``"sqeuclidean"``,
        a :class:`Cost`, or a function (see :class:`FunctionCost`).
    weights : str, WeightStrategy or nn.Module class, default="semirelaxed"
        ``"semirelaxed"`` (closed form), ``"vector"`` (Algorithm 1), ``"net"`` (11)
        or ``"attention"`` (13) (Algorithm 2), a :class:`WeightStrategy`, or a
        module class used as weight net.
    meta_set : str or MetaSet, default="prototype"
        ``"prototype"`` (12), ``"whole"`` (5), ``"random"``, or a :class:`MetaSet`,
        whose parameters say how many rows are drawn when no meta data is given.
    reg : float, default=0.1
        Weight lambda of the entropy (10), in units of the cost.
    finetune : {"all", "head"}, default="all"
        What stage 2 trains: the whole net, or the classifier head alone, which is much
        faster; then the extractor before it stays as it is bit by bit.
    restart : bool, default=False
        Let stage 2 begin with the net as it was before stage 1, and keep the weights
        that a closed form finds with the net of stage 1 (else they are found anew in
        each epoch if features move). What stage 1 learned of wrong labels is forgotten.
        For ``finetune="all"``, and a net that is trained here.
    virtual_step : {"first_order", "exact", None}, default="first_order"
        Step (a) of the algorithms, for ``finetune="all"`` and a cost that looks at
        features: the cost is computed after a virtual update of the net.
        "exact" also differentiates that update with respect to the weights; None leaves
        step (a) out and takes the features of the step's own forward pass.
    head : str or callable, default=None
        Dotted name of the layer whose input are the features, or
        ``head(module, X)`` returning them, shape (n, d). None finds the layer that
        produces the class scores.
    max_epochs : int, default=10
        Epochs of stage 2.
    lr : float, default=None
        Learning rate alpha of stage 2; None keeps the optimizer's.
    weight_lr : float, default=None
        Step size beta of the weights; None takes the strategy's own.
    init_weights : {"uniform", "class_balanced", "inverse"}, default="uniform"
        Where the weights start; the closed form has no start.
    loss : {"auto", "net", "logit_adjusted"}, default="auto"
        Loss of the rows. "net" is the net's own, and the weights balance the classes,
        as in the paper. "logit_adjusted" is, in both stages, cross-entropy with
        the scores raised by the log of the class frequencies
        (:class:`LogitAdjustedLoss`), which balances the classes by itself and goes with
        ``weights=SemiRelaxedWeights(per_class=True)``. "auto" is that loss and these
        weights where it can be: if the net's loss is plain cross-entropy, `weights` is
        ``"semirelaxed"``, and the cost looks at features. Else it is "net".
    sampling : {"instance", "square_root", "class_balanced"}, default="instance"
        How often the rows of a class come in an epoch of stage 2: as often as they are,
        by the square root of their number, or as often as those of any other class
        (Kang et al. 2020). The weights and the adjustment of the loss, which then is
        for the shares that are drawn, apply to what is drawn. For weights that leave
        the classes as they are, as ``SemiRelaxedWeights(per_class=True)`` does.
    meta_loss_weight : float, default=0.0
        Factor of the mean loss on the meta set, added to the loss of each batch. The
        released code of the paper uses 10.
    solver : str or TransportSolver, default="sinkhorn"
        ``"sinkhorn"``, ``"pot"``, or an instance with its `max_iter` and `tol`.
    gather_features : bool, default=True
        Where several processes train the net (see :doc:`/guide/several_gpus`) and the
        weights are learned batch by batch: solve one transport problem for the rows
        that all of them have, as one process would. False solves one in each process,
        for its own rows, and then exchanges what was learned. The closed form takes
        the training set as a whole either way.
    train_on_meta : bool, default=False
        Train on the meta rows as well, if some are given: labelled rows of rare
        classes are worth more as such than the little that knowing them costs.
    target_prior : {"uniform", "train"} or array-like, default=None
        Shares of the classes where the model is used, (n_classes,) in the order of
        ``classes_``: predictions are corrected from ``prior_`` to these. "train" are
        the frequencies in the training set. None leaves them as learned.
    random_state : int, RandomState instance or None, default=None
        Seed of everything random. The global generators stay untouched.
    verbose : {0, 1, 2}, default=0
        Of nets that are made here: 1 prints a table of the epochs, 2 shows a progress
        bar over both stages instead. A skorch net has its own table; the bar is shown
        if that is silent (its ``verbose=0``).

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Size of the second dimension of X.
    feature_names_in_ : ndarray of shape (n_features,)
        If X had column names.
    net_ : skorch.NeuralNet
        The trained net.
    sample_weight_ : ndarray of shape (n_samples,)
        Weight of each row of X: of mean 1 over the training rows, and 0 for rows held
        out by `meta_mask`.
    class_counts_ : ndarray of shape (n_classes,)
        Training rows of each class; of a stream, those so far.
    class_weight_ : ndarray of shape (n_classes,)
        Mean weight of the rows of each class; 1 if the loss balances the classes.
    prior_ : ndarray of shape (n_classes,)
        Shares of the classes that the probabilities assume: those in the re-weighted
        training set, equal ones if the loss balances the classes, or those of the
        training set itself if there was no stage 2.
    history_ : skorch.history.History
        An entry per epoch; ``stage``, and how far the weights moved: ``weights_ess``
        (effective sample size over n), ``weights_kl`` (divergence from the
        start) and ``ot_cost``.
    weights_, cost_, meta_set_ : WeightStrategy, Cost, MetaSet
        The components as used.

    See Also
    --------
    Reweighter : The same weights in a training loop of your own.

    References
    ----------
    Guo, Li, Zheng, Zhao, Zhou, Zha, "Learning to re-weight examples with optimal
    transport for imbalanced classification", NeurIPS 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
    >>> X, y = load_digits(return_X_y=True)
    >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
    >>> clf = OTReweightedClassifier(random_state=0)
    >>> clf = clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
    >>> clf.sample_weight_.shape
    (455,)
    """

    can_distribute = True

    _columns = {"weights_ess": 1.0, "weights_kl": 0.0, "ot_cost": float("nan")}

    def __init__(
        self,
        net: Any = None,
        *,
        cost: Any = "combined",
        weights: Any = "semirelaxed",
        meta_set: Any = "prototype",
        reg: float = 0.1,
        finetune: str = "all",
        restart: bool = False,
        virtual_step: str | None = "first_order",
        head: Any = None,
        max_epochs: int = 10,
        lr: float | None = None,
        weight_lr: float | None = None,
        init_weights: str = "uniform",
        loss: str = "auto",
        sampling: str = "instance",
        meta_loss_weight: float = 0.0,
        solver: Any = "sinkhorn",
        gather_features: bool = True,
        train_on_meta: bool = False,
        target_prior: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.net = net
        self.cost = cost
        self.weights = weights
        self.meta_set = meta_set
        self.reg = reg
        self.finetune = finetune
        self.restart = restart
        self.virtual_step = virtual_step
        self.head = head
        self.max_epochs = max_epochs
        self.lr = lr
        self.weight_lr = weight_lr
        self.init_weights = init_weights
        self.loss = loss
        self.sampling = sampling
        self.meta_loss_weight = meta_loss_weight
        self.solver = solver
        self.gather_features = gather_features
        self.train_on_meta = train_on_meta
        self.target_prior = target_prior
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def from_recipe(
        cls, recipe: str, net: Any = None, **params: Any
    ) -> OTReweightedClassifier:
        """Return an estimator with a named set of parameters.

        Parameters
        ----------
        recipe : {"paper", "released-code", "adjusted", "robust", "pretrained"}
            "paper" takes Algorithm 1 as it is printed: plain gradient steps of 1e-3 on
            a vector of weights, which hardly move it. "released-code" follows the
            paper's published code: class-balanced start, 10 times the loss on the meta
            rows, the head alone. "adjusted" leaves the balance of the classes to a
            logit-adjusted loss and to draws by the square root of their size, tells the
            rows of a class apart by transport, and trains on the meta rows too.
            "robust" is the same for labels some of which may be wrong: the net is
            trained anew with the weights that the features of stage 1 lead to.
            "pretrained" is for features of an encoder that knows the task already,
            where a few good rows of each class are enough: rows are drawn as they are,
            and a small `reg` gives most weight to those that are most like the meta
            rows.
        net : optional
            As in the constructor.
        **params
            Parameters of the constructor, in the place of the recipe's.

        Returns
        -------
        estimator : OTReweightedClassifier
            Not fitted. The recipe is not remembered: `get_params` shows what it set.

        Raises
        ------
        ValueError
            If there is no recipe of this name.

        Examples
        --------
        >>> from sk_otreweight import OTReweightedClassifier
        >>> clf = OTReweightedClassifier.from_recipe("robust", random_state=0)
        >>> clf.loss
        'logit_adjusted'
        """
        check_choice(recipe, name="recipe", choices=tuple(RECIPES))
        return cls(net, **(RECIPES[recipe]() | params))

    @untouched()
    def transport_problem(self, X: Any, y: Any) -> Bunch:
        """Return what it costs to move rows to the points of Q, by the net as it is.

        The problem whose solution are the weights (Eq. 10), to look at it, as
        :class:`~sk_otreweight.plotting.TransportPlanDisplay` does.

        Parameters
        ----------
        X : array-like, Tensor, dict of these or Dataset of length n_samples
            The training rows, or some of them.
        y : array-like of shape (n_samples,)
            Their labels. If no meta rows were given to `fit`, those that Q is built
            from are drawn from these rows.

        Returns
        -------
        problem : Bunch
            With the cost and the points of Q:

            cost : ndarray of shape (n_samples, n_points)
            mass : ndarray of shape (n_points,)
                Of the points of Q; sums to 1.
            point_labels : ndarray of shape (n_points,)
                Their classes.

        Raises
        ------
        ValueError
            If X or y is not valid, or a class that Q is drawn from has a single row.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sk_otreweight import OTReweightedClassifier, make_long_tailed
        >>> X, y = load_digits(return_X_y=True)
        >>> data = make_long_tailed(X / 16, y, imbalance_factor=50, random_state=0)
        >>> clf = OTReweightedClassifier(random_state=0)
        >>> clf = clf.fit(data.X, data.y, meta=(data.X_meta, data.y_meta))
        >>> clf.transport_problem(data.X[:7], data.y[:7]).cost.shape
        (7, 10)
        """
        check_is_fitted(self)
        X, y = check_labelled_rows(self, X, y, reset=False)
        codes = encode_labels(y, self.classes_, name="y")
        net, cost, meta_set = self.net_, self.cost_, self.meta_set_
        X = cast(net, X, name="X")
        labels = torch.arange(len(self.classes_), device=device_of(net))
        features = points = None
        needs_features = "features" in cost.needs
        if self._meta is None and needs_features:
            counts = np.bincount(codes, minlength=len(self.classes_))
            check_drawable(counts, self.classes_)
        if self._needs_head() or self.finetune == "head":
            self._head = self._head_for(X)  # of a loaded model, it may not be known
        seed = draw_seed(self.random_state)
        data = self._stage_two_data(X, codes, self._targets(codes, X), False, 0, seed)
        generator = torch.Generator().manual_seed(seed)
        if self._meta is not None or needs_features:
            X_meta, labels = meta_rows(data, meta_set.per_class, generator)
        if needs_features:
            _, labels, points = meta_features(data, meta_set, X_meta, labels)
            if data.features is None:
                features = extract_features(net, data.head, X)
            else:
                features = data.features[:]
        atoms = meta_set.atoms(points, labels, generator)
        with torch.no_grad():
            C = cost(features, data.labels, atoms.features, atoms.labels)
        return Bunch(
            cost=C.cpu().numpy(),
            mass=atoms.mass.cpu().numpy(),
            point_labels=self.classes_[atoms.labels.cpu().numpy()],
        )

    def _check_parameters(self) -> None:
        check_choice(
            self.virtual_step,
            name="virtual_step",
            choices=("first_order", "exact", None),
        )
        check_choice(
            self.gather_features, name="gather_features", choices=(True, False)
        )
        if Processes.of(self.net).are_several:
            check_virtual_step(self.virtual_step == "exact")
        check_choice(self.restart, name="restart", choices=(True, False))
        if self.restart:
            is_trained = isinstance(self.net, FrozenEstimator)
            check_can_restart(self.finetune, is_trained=is_trained)
        check_choice(self.loss, name="loss", choices=("auto", "net", "logit_adjusted"))
        check_choice(self.sampling, name="sampling", choices=tuple(_SAMPLING))
        check_real(self.meta_loss_weight, name="meta_loss_weight")
        self._new_reweighter(seed=0)

    @property
    def begins_with(self) -> str | None:
        """Return what others may have trained for it."""
        is_own = not self._may_adjust()  # the loss of stage 1
        return "net" if is_own and not self.restart else None

    def _restarts(self) -> bool:
        return self.restart

    def _make_loss(self, power: float) -> nn.Module | None:
        """Return the loss in the place of the net's own, for rows so drawn."""
        if not self._adjusts():
            return None
        shares = self._counts() ** (1 - power)
        return LogitAdjustedLoss(shares, reduction="none").to(device_of(self.net_))

    def _counts(self) -> np.ndarray:
        return np.maximum(self.class_counts_, 1.0)  # a stream may lack a class so far

    def _may_adjust(self) -> bool:
        """Return whether the parameters let the loss balance the classes."""
        if self.loss != "auto":
            return self.loss == "logit_adjusted"
        is_closed_form = isinstance(self.weights, str) and self.weights == "semirelaxed"
        return is_closed_form and "features" in resolve_cost(self.cost).needs

    def _adjusts(self) -> bool:
        """Return whether the loss balances the classes, which is up to the net too."""
        if self.loss != "auto" or not self._may_adjust():
            return self._may_adjust()
        net = getattr(self, "net_", None)  # none while parameters are checked
        return net is not None and is_plain_cross_entropy(net)

    def _stage_one_step(self) -> Stage2Step | None:
        return PlainStep(self.net_, self._make_loss(0)) if self._adjusts() else None

    def _assumed_prior(self) -> np.ndarray:
        # The scores of the adjusted loss are those of balanced classes, but for the
        # weights, however the rows are drawn.
        power = 1 if self._adjusts() else _SAMPLING[self.sampling]
        prior = super()._assumed_prior() / self._counts() ** power
        return prior / prior.sum()

    def _begin_chunk(self) -> None:
        super()._begin_chunk()
        # So that an error leaves the one that learned from the chunks before.
        self._reweighter = copy.deepcopy(self._reweighter)

    def _new_reweighter(self, seed: int) -> Reweighter:
        weights = self.weights
        if self.loss == "auto" and self._adjusts():
            weights = SemiRelaxedWeights(per_class=True)
        return Reweighter(
            self.cost,
            weights,
            self.meta_set,
            reg=self.reg,
            solver=self.solver,
            weight_lr=self.weight_lr,
            init_weights=self.init_weights,
            random_state=seed,
        )

    def _needs_head(self) -> bool:
        return self._new_reweighter(seed=0).needs_features

    def _needs_meta_rows(self) -> bool:
        return self._new_reweighter(seed=0).needs_meta_features or bool(
            self.meta_loss_weight
        )

    def _check_meta(self, meta: MetaData | None, counts: np.ndarray) -> None:
        if meta is None and self._needs_meta_rows():
            check_drawable(counts, self.classes_)

    def _make_components(self, seed: int, is_stream: bool) -> None:
        new = self._new_reweighter(seed)
        if is_stream and hasattr(self, "_reweighter"):
            self._reweighter.take_settings(new)  # may have been set between two chunks
        else:
            self._reweighter = new
        self.weights_ = self._reweighter.weights_
        self.cost_ = self._reweighter.cost_
        self.meta_set_ = self._reweighter.meta_set_

    def _make_step(self, data: Stage2Data) -> Stage2Step:
        return TransportStep(
            self._reweighter,
            data,
            n_classes=len(self.classes_),
            virtual_step=self.virtual_step,
            meta_loss_weight=self.meta_loss_weight,
            loss=self._make_loss(_SAMPLING[self.sampling]),
            is_fixed=self.restart,
            sampling_power=_SAMPLING[self.sampling],
            gather_features=self.gather_features,
        )

    def _sample_weight(self, step: TransportStep, data: Stage2Data) -> Tensor:
        needs_features = "features" in self.weights_.needs
        features = step.training_features() if needs_features else None
        return self._reweighter.sample_weight(features)
