"""Cost, meta set, weights and transport put together: the weights of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sk_otreweight._validation import check_choice, check_real, check_reg, resolve
from sk_otreweight.batches import are_distinct, stacked
from sk_otreweight.costs import Cost, full_precision, resolve_cost
from sk_otreweight.meta_sets import Atoms, MetaSet, resolve_meta_set
from sk_otreweight.statistics import WeightStatistics
from sk_otreweight.transport import (
    SOLVERS,
    Problem,
    TransportPlan,
    TransportSolver,
    adjoint_potentials,
    centred,
    cost_gradient,
    in_fitting_parts,
    result_dtype,
    unflattened,
    warn_unconverged,
)
from sk_otreweight.weights import (
    START_WEIGHTS,
    Rows,
    WeightStrategy,
    class_start_weights,
    resolve_weights,
)

# Rows whose weights are read at a time, in case their features are not kept.
_BLOCK_ROWS = 2**14

# How a change of the cost reaches the batch's loss weights: dL/dC (n, m) -> (n,).
Chain = Callable[[Tensor, Tensor], Tensor]


class Reweighter:
    """Learns the weights of training rows, batch by batch, in plain torch.

    Usable in a hand-written training loop: tell it the training labels and the meta
    set, then give it each batch's features, labels and row numbers.

    Parameters
    ----------
    cost : str, Cost or callable, default="combined"
        ``"label"`` (7), ``"feature"`` (8), ``"combined"`` (9), ``"sqeuclidean"``, an
        instance, or a function (see :class:`FunctionCost`).
    weights : str, WeightStrategy or nn.Module class, default="vector"
        ``"vector"``, ``"net"`` (11), ``"attention"`` (13), ``"semirelaxed"``, an
        instance, or a module class used as weight net.
    meta_set : str or MetaSet, default="prototype"
        ``"prototype"`` (12), ``"whole"`` (5), ``"random"``, or an instance.
    reg : float, default=0.1
        Weight lambda of the entropy (10).
    solver : str or TransportSolver, default="sinkhorn"
        ``"sinkhorn"``, ``"pot"`` or an instance.
    weight_lr : float, default=None
        Step size beta of the weights; None leaves the strategy's own.
    init_weights : {"uniform", "class_balanced", "inverse"}, default="uniform"
        Where the weights start.
    random_state : int, default=0
        Seed of everything that is drawn here; global generators stay untouched.

    Attributes
    ----------
    cost_, weights_, meta_set_, solver_
        The components in use.
    unconverged_ : int
        Transport problems of the current training set left above the tolerance.

    Raises
    ------
    ValueError
        If a name is unknown or a number out of range; the message lists what is
        valid.

    Examples
    --------
    >>> import torch
    >>> from sk_otreweight import Reweighter
    >>> labels = torch.tensor([0] * 9 + [1] * 3)
    >>> reweighter = Reweighter(cost="label", weights="semirelaxed", reg=0.01)
    >>> reweighter.set_meta(torch.tensor([0, 1])).set_training_set(labels)
    Reweighter(cost=LabelCost(), weights=SemiRelaxedWeights(), ...)
    >>> batch = torch.tensor([0, 1, 10])
    >>> reweighter(None, labels[batch], batch)
    tensor([0.6667, 0.6667, 2.0000])
    """

    # What has a state of its own, in a checkpoint.
    stateful = ("weights_", "_statistics")

    def __init__(
        self,
        cost: Any = "combined",
        weights: Any = "vector",
        meta_set: Any = "prototype",
        *,
        reg: float = 0.1,
        solver: Any = "sinkhorn",
        weight_lr: float | None = None,
        init_weights: str = "uniform",
        random_state: int = 0,
    ):
        check_reg(reg)
        check_choice(init_weights, name="init_weights", choices=tuple(START_WEIGHTS))
        self.cost_: Cost = resolve_cost(cost)
        self.weights_: WeightStrategy = resolve_weights(weights)
        self.meta_set_: MetaSet = resolve_meta_set(meta_set)
        self.solver_: TransportSolver = resolve(
            solver, slot="solver", table=SOLVERS, base=TransportSolver
        )
        if weight_lr is not None:
            check_real(weight_lr, name="weight_lr")
            if "lr" in self.weights_.get_params(deep=False):
                self.weights_.set_params(lr=weight_lr)
        for component in (self.cost_, self.weights_, self.meta_set_, self.solver_):
            component.check_parameters()
        if self.solves_training_set:
            self.meta_set_ = self.meta_set_.complete()
        self.reg = reg
        self.init_weights = init_weights
        self.seed = int(random_state)
        self.generator = torch.Generator().manual_seed(self.seed)
        self._meta_labels: Tensor | None = None
        self._labels: Tensor | None = None
        self.unconverged_ = 0
        self._statistics = WeightStatistics()

    def __repr__(self) -> str:
        return f"Reweighter(cost={self.cost_!r}, weights={self.weights_!r}, ...)"

    @property
    def needs_meta_features(self) -> bool:
        """Whether the cost looks at features, so that meta rows are needed."""
        return "features" in self.cost_.needs

    @property
    def needs_features(self) -> bool:
        """Whether batches must come with features."""
        return self.needs_meta_features or "features" in self.weights_.needs

    @property
    def solves_training_set(self) -> bool:
        """Whether the weights of all rows are found at once, not batch by batch."""
        return "training_set" in self.weights_.needs

    def take_settings(self, other: Reweighter) -> None:
        """Go on with the settings of another reweighter.

        What the weights have learned is kept, unless they are of another kind or net.
        """
        self.reg, self.init_weights = other.reg, other.init_weights
        self.cost_, self.meta_set_ = other.cost_, other.meta_set_
        self.solver_ = other.solver_
        self.weights_ = self.weights_.going_on_as(other.weights_)

    def set_meta(self, labels: Tensor, features: Tensor | None = None) -> Reweighter:
        """Set the meta rows that the balanced distribution Q is built from.

        Parameters
        ----------
        labels : Tensor of shape (n_meta,)
            Labels 0 ... K-1. For the label cost, each class once is enough.
        features : Tensor of shape (n_meta, d), default=None
            Features of the meta rows; may be left out if the cost needs none.

        Returns
        -------
        self : Reweighter
        """
        self._meta_labels = labels
        self._meta_features = None if features is None else features.detach()
        self._atoms: Atoms | None = None
        self._condensed: tuple[Tensor | None, Tensor] | None = None
        return self

    def set_training_set(
        self,
        labels: Tensor,
        features: Tensor | None = None,
        class_counts: Tensor | None = None,
    ) -> Reweighter:
        """Set the rows to be weighted and start their weights; after `set_meta`.

        Parameters
        ----------
        labels : Tensor of shape (n,)
            Labels 0 ... K-1 of the training rows.
        features : Tensor of shape (n, d), default=None
            Their features; needed by weight nets and by ``"semirelaxed"`` if
            the cost looks at features.
        class_counts : Tensor of shape (K,), default=None
            Rows of each class that the start weights are computed from; None counts
            `labels`. In a stream: the counts so far.

        Returns
        -------
        self : Reweighter
        """
        if self._meta_labels is None:
            raise ValueError("No meta rows were given: call set_meta first.")
        self._labels = labels
        self.unconverged_ = 0
        if class_counts is None:
            class_counts = labels.bincount()
        dtype = torch.get_default_dtype() if features is None else features.dtype
        class_start = class_start_weights(self.init_weights, class_counts)
        self._class_start = class_start.to(labels.device, dtype)
        self.weights_.start(self._rows(labels, features, None), self.seed)
        if self.solves_training_set:
            self.refresh(features)
        return self

    @full_precision()
    def refresh(self, features: Tensor | None = None) -> None:
        """Solve for the weights of the whole training set again.

        To be called when features or meta rows have changed; does nothing for
        strategies that learn batch by batch.

        Parameters
        ----------
        features : Tensor of shape (n, d), default=None
            Features of the training rows; not needed if the cost looks at labels only.
        """
        if not self.solves_training_set:
            return
        atoms = self._present(self._draw_atoms(None))
        labels = self._labels

        def cost(rows: slice) -> Tensor:
            block = None if features is None else features[rows]
            return self._cost(block, labels[rows], atoms)

        with torch.no_grad():
            self._statistics.add_costs(
                self.weights_.solve(cost, atoms.mass, self.reg, len(labels))
            )

    @full_precision()
    def weights(
        self,
        features: Tensor | None,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        record: bool = True,
    ) -> Tensor:
        """Return the current weights of a batch (n,), for its losses.

        Multiply the losses with them and take the plain mean. Their mean is 1 over the
        training set (weight nets: over the batch). Unless `record` is False, they
        count in `statistics`.
        """
        with torch.no_grad():
            rows = self._rows(labels, features, index)
            weights = self.weights_.loss_weights(rows)
        if record:
            per_batch = self.weights_.per_batch
            self._statistics.add_weights(weights, rows, per_batch=per_batch)
        return weights

    def begin_batch(
        self, features: Tensor | None, labels: Tensor, index: Tensor | None = None
    ) -> int:
        """Set a batch's weights back if the strategy starts each batch anew.

        `update` does so too; to be called before it if the weights that the batch
        begins with are of interest.

        Returns
        -------
        n_steps : int
            Steps that `update` will take.
        """
        return self.weights_.begin_batch(self._rows(labels, features, index))

    @full_precision()
    def update(
        self,
        features: Tensor | None,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        cost_features: Tensor | None = None,
        meta_features: Tensor | None = None,
        chain: Chain | None = None,
    ) -> None:
        """Move the weights of a batch against the gradient of the transport cost.

        Step (b) of Algorithms 1 and 2.

        Parameters
        ----------
        features : Tensor of shape (n, d) or None
            Features that a weight net reads.
        labels : Tensor of shape (n,)
        index : Tensor of shape (n,), default=None
            Row numbers in the training set.
        cost_features, meta_features : Tensor, default=None
            Features that the cost compares, for batch and meta rows, when they are not
            `features` and those given to `set_meta`: after step (a), those of the
            virtually updated extractor.
        chain : callable, default=None
            ``chain(C, dL/dC)`` returns the gradient (n,) that reaches the loss weights
            of the batch through the cost, for the exact form of step (a).
        """
        if self.solves_training_set:
            return
        if features is not None:  # the steps are not the extractor's
            features = features.detach()
        rows = self._rows(labels, features, index)
        n_steps = self.weights_.begin_batch(rows)
        atoms = self._draw_atoms(meta_features)
        if cost_features is None:
            cost_features = features
        C = self._cost(cost_features, labels, atoms)
        self._step(rows, C, atoms.mass, n_steps, chain)

    def synchronise(
        self,
        features: Tensor | None,
        labels: Tensor,
        index: Tensor | None,
        *,
        processes: Any,
    ) -> None:
        """Let all processes have what each has learned from a batch of its own.

        Parameters
        ----------
        features, labels, index
            As given to `update`.
        processes : Processes
            With methods ``gather`` and ``mean``.
        """
        if not self.solves_training_set:
            rows = self._rows(labels, features, index)
            self.weights_.synchronise(rows, processes)

    @property
    def steps_together(self) -> bool:
        """Whether the batches of an epoch can be stepped together.

        So it is if the weights are read off no features, and the steps of a batch leave
        those of all other rows alone.
        """
        return self.weights_.separable and "features" not in self.weights_.needs

    @full_precision()
    def update_epoch(self, features: Tensor | None, batches: Sequence[Tensor]) -> None:
        """Move the weights of all batches of an epoch.

        The same as :meth:`update` batch after batch, for features that stay as they
        are through the epoch; where possible (see `steps_together`) many batches
        at a time, which takes a fraction of the time.

        Parameters
        ----------
        features : Tensor of shape (n, d) or None
            Features of all training rows; None if neither cost nor weights need them.
        batches : sequence of Tensor of shape (batch_size,)
            Row numbers of each batch.
        """
        if self.solves_training_set or not batches:
            return
        device = self._labels.device
        if not self.steps_together or not are_distinct(batches, len(self._labels)):
            for index in batches:
                index = index.to(device)
                part = None if features is None else features[index]
                self.update(part, self._labels[index], index)
            return
        n_features = 0 if features is None else features.shape[1]
        for index in stacked(batches, max(len(self._meta_labels), n_features)):
            index = index.to(device)
            rows = self._rows(self._labels[index], None, index)
            C, mass = self._epoch_cost(features, index)
            self._step(rows, C, mass, self.weights_.begin_batch(rows))

    def _epoch_cost(
        self, features: Tensor | None, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the costs (P, B, m) of P batches, and the masses (m,) or (P, m)."""
        labels = self._labels[index]
        if not self.needs_meta_features:
            features = None

        def cost(rows: Tensor, labels: Tensor, atoms: Atoms) -> Tensor:
            part = None if features is None else features[rows]
            return self._cost(part, labels, atoms)

        if self.meta_set_.stochastic:
            drawn = [self._draw_atoms(None) for _ in index]
            C = [cost(*batch) for batch in zip(index, labels, drawn, strict=True)]
            return torch.stack(C), torch.stack([atoms.mass for atoms in drawn])
        atoms = self._draw_atoms(None)
        C = cost(index.flatten(), labels.flatten(), atoms)
        return C.reshape(*index.shape, -1), atoms.mass

    def _step(
        self,
        rows: Rows,
        C: Tensor,
        mass: Tensor,
        n_steps: int,
        chain: Chain | None = None,
    ) -> None:
        """Take steps for a batch, or for several: C (B, m) or (P, B, m)."""
        for _ in range(n_steps):
            with torch.no_grad():
                a = self.weights_.masses(rows)
            if chain is None:
                grad = self._gradients(C, a, mass)
            else:
                grad = self._chained_gradient(C, a, mass, rows, chain)
            self.weights_.step(rows, grad)

    def _gradients(self, C: Tensor, a: Tensor, mass: Tensor) -> Tensor:
        """Return the gradients with respect to `a`, of the shape of it."""

        def gradients(C: Tensor, a: Tensor, mass: Tensor) -> Tensor:
            on_arrays = self.solver_.takes_arrays
            problem = Problem.of(C, a, mass, None, on_arrays=on_arrays).normalised()
            solution = self.solver_.solve_problem(problem, self.reg)
            p, _ = adjoint_potentials(problem.C, solution)
            self._note(solution)
            return unflattened(centred(p), C.shape[:-2], result_dtype(C))

        if C.ndim == 2:  # a single problem has no parts: an error that says what helps
            return in_fitting_parts(lambda _: gradients(C, a, mass), 1)
        masses = mass.expand(len(C), -1)

        def in_parts(size: int) -> Tensor:
            parts = zip(C.split(size), a.split(size), masses.split(size), strict=True)
            return torch.cat([gradients(*part) for part in parts])

        return in_fitting_parts(in_parts, len(C))

    def _chained_gradient(
        self, C: Tensor, a: Tensor, mass: Tensor, rows: Rows, chain: Chain
    ) -> Tensor:
        """Return the gradient with what reaches the weights through the cost."""
        problem = Problem.of(C, a, mass, None, on_arrays=False).normalised()
        solution = self.solver_.solve_problem(problem, self.reg)
        self._note(solution)
        p, q = adjoint_potentials(problem.C, solution)
        grad_C = cost_gradient(problem.C, solution, self.reg, p, q)
        scale = self.weights_.loss_weights(rows).detach().sum()
        dtype = result_dtype(C)
        grad = unflattened(centred(p), (), dtype)
        return grad + scale * chain(C, unflattened(grad_C, (), dtype))

    def __call__(
        self, features: Tensor | None, labels: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Update the weights of a batch and return them.

        Parameters
        ----------
        features : Tensor of shape (n, d) or None
            Input of the classifier head; None if neither cost nor weights need it.
        labels : Tensor of shape (n,)
            Labels 0 ... K-1.
        index : Tensor of shape (n,), default=None
            Row numbers in the training set; needed by ``"vector"`` and
            ``"semirelaxed"``.

        Returns
        -------
        weights : Tensor of shape (n,)
            Factors of the losses, for a plain mean.
        """
        self.update(features, labels, index)
        return self.weights(features, labels, index)

    @full_precision()
    def sample_weight(self, features: Tensor | None = None) -> Tensor:
        """Return the weights of all training rows (n,), of mean 1.

        Parameters
        ----------
        features : Tensor of shape (n, d), default=None
            Features of the training rows, for weight nets.
        """
        labels, log_weights = self._labels, None
        numbers = torch.arange(len(labels), device=labels.device)
        with torch.no_grad():
            for start in range(0, len(labels), _BLOCK_ROWS):
                block = slice(start, start + _BLOCK_ROWS)
                part = None if features is None else features[block]
                rows = self._rows(labels[block], part, numbers[block])
                part = self.weights_.log_weights(rows)
                # Written to one place: small parts that are kept between the features
                # of the blocks would scatter the memory.
                if log_weights is None:
                    log_weights = part.new_empty(len(labels))
                log_weights[block] = part
            return len(labels) * torch.softmax(log_weights, 0)

    def statistics(self) -> dict[str, float]:
        """Return how far the weights moved since the last call.

        Returns
        -------
        statistics : dict
            ``weights_ess``, effective sample size (sum w)^2 / (n sum w^2), 1 for
            uniform weights; ``weights_kl``, Kullback-Leibler divergence from the start
            weights; ``ot_cost``, mean transport cost.
        """
        return self._statistics.summary()

    def _rows(
        self, labels: Tensor, features: Tensor | None, index: Tensor | None
    ) -> Rows:
        needs = self.weights_.needs
        if self._labels is None:
            raise ValueError("No training rows were given: call set_training_set.")
        if "index" in needs and index is None and len(labels) != len(self._labels):
            raise ValueError(
                f"{self.weights_!r} keeps a weight per training row, but the batch of "
                f"{len(labels)} rows came without row numbers: pass index, or load "
                "the batches with a DataLoader or RowLoader, which number their rows."
            )
        if "features" not in needs:
            features = None
        elif features is None:
            raise ValueError(
                f"{self.weights_!r} reads weights off the features: pass the features "
                "of the rows, the input of the classifier head."
            )
        else:  # under autocast, they may come in a lower precision than they started
            features = features.to(self._class_start.dtype)
        return Rows(features, labels, self._class_start, index)

    def _cost(self, features: Tensor | None, labels: Tensor, atoms: Atoms) -> Tensor:
        """Return the cost (n, m) between rows and the points from `_draw_atoms`."""
        return self.cost_.to_points(features, labels, atoms.features, atoms.labels)

    def _draw_atoms(self, features: Tensor | None) -> Atoms:
        """Return Q, with the points that the cost looks at as its features.

        It is built once unless it is random or `features` are new.
        """
        meta_set, labels = self.meta_set_, self._meta_labels
        if features is None and self._atoms is not None:
            return self._atoms
        if features is not None:
            atoms = meta_set.atoms(features, labels, self.generator)
        else:
            if self._condensed is None:
                self._condensed = meta_set.condense(self._meta_features, labels)
            atoms = meta_set.draw(*self._condensed, self.generator)
        mass = atoms.mass.double()
        atoms = atoms._replace(mass=mass / mass.sum())  # float32's is 1 within 1e-7
        if atoms.features is not None:
            atoms = atoms._replace(features=self.cost_.points(atoms.features))
        if features is None and not meta_set.stochastic:
            self._atoms = atoms
        return atoms

    def _present(self, atoms: Atoms) -> Atoms:
        """Leave out classes that no training row has: nobody could take their mass."""
        present = torch.isin(atoms.labels, self._labels)
        if bool(present.all()) or not bool(present.any()):
            return atoms
        features = None if atoms.features is None else atoms.features[present]
        mass = atoms.mass[present]
        return Atoms(features, atoms.labels[present], mass / mass.sum())

    def _note(self, solution: TransportPlan) -> None:
        self._statistics.add_costs(solution.cost)
        if solution.converged:
            return
        if self.unconverged_ == 0:
            warn_unconverged(
                solution,
                max_iter=self.solver_.max_iter,
                tol=self.solver_.tol,
                reg=self.reg,
            )
        is_left = ~(solution.marginal_error <= self.solver_.tol)
        self.unconverged_ += max(1, int(is_left.sum()))
