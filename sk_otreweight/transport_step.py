"""What `OTReweightedClassifier` does in a batch, and in an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sk_otreweight.batches import are_distinct
from sk_otreweight.extraction import (
    BlockFeatures,
    extract_features,
    training_features,
)
from sk_otreweight.inputs import take
from sk_otreweight.meta_rows import loss_inputs, meta_features, meta_rows
from sk_otreweight.processes import Processes, device_of
from sk_otreweight.reweighter import Reweighter
from sk_otreweight.sampling import power_rows
from sk_otreweight.scores import class_scores
from sk_otreweight.stage2 import Stage2Data, Stage2Step, StepBatch
from sk_otreweight.virtual_step import VirtualStep

# Features, labels and row numbers.
Points = tuple[Tensor | None, Tensor, Tensor | None]


class PlainStep(Stage2Step):
    """A loss of scores and labels in the place of the net's own, if one is given."""

    def __init__(self, net: NeuralNet, loss: nn.Module | None):
        self.net, self.loss = net, loss

    def losses(self, batch: StepBatch) -> Tensor:
        """Return the loss of each row (n,)."""
        if self.loss is None:
            return super().losses(batch)
        return self.loss(class_scores(self.net, batch.outputs), batch.labels)

    def weigh(self, batch: StepBatch) -> Tensor:
        """Weigh the rows alike."""
        return torch.ones_like(batch.losses)


class TransportStep(PlainStep):
    """Steps (a) and (b) of Algorithms 1 and 2 for a batch; skorch does step (c)."""

    stateful = ("reweighter",)

    def __init__(
        self,
        reweighter: Reweighter,
        data: Stage2Data,
        *,
        n_classes: int,
        virtual_step: str | None,
        meta_loss_weight: float,
        loss: nn.Module | None,
        is_fixed: bool,
        sampling_power: float,
        gather_features: bool,
    ) -> None:
        super().__init__(data.net, loss)
        self.processes = Processes.of(data.net)
        # Those whose rows make one transport problem.
        self.together = self.processes if gather_features else Processes()
        self.sampling_power = sampling_power
        self.draws_rows = sampling_power > 0
        self.reweighter, self.data = reweighter, data
        self.is_fixed = is_fixed and reweighter.solves_training_set
        self.n_classes = n_classes
        self.meta_loss_weight = meta_loss_weight
        self.is_frozen = data.features is not None
        moves_cost = reweighter.needs_meta_features and not self.is_frozen
        takes_steps = not reweighter.solves_training_set
        self.virtual_step = virtual_step if moves_cost and takes_steps else None
        self.needs_losses = self.virtual_step is not None
        self.differentiates_twice = self.virtual_step == "exact"
        # The features that a closed form looks at are extracted once per epoch.
        self.needs_features = takes_steps and reweighter.needs_features
        self.generator = torch.Generator().manual_seed(data.seed)
        self._set_meta()
        reweighter.set_training_set(
            data.labels, self._start_features(), data.class_counts
        )
        self.is_fresh = True

    def draw_rows(self, labels: Tensor) -> Tensor:
        """Return as many rows as there are, more of rare classes."""
        n, power = len(labels), self.sampling_power
        return power_rows(labels, n, power, self.generator)

    def begin_epoch(self, batches: Sequence[Tensor] | None) -> None:
        """Refresh what an epoch depends on, and step weights that need no net."""
        if not self.is_fresh and self._changes_between_epochs():
            self._set_meta()
            self.reweighter.refresh(self._solved_features())
        self.is_fresh = False
        self.epoch_weights = None
        if batches and self._knows_weights(batches):
            reads = self.reweighter.needs_features
            self.reweighter.update_epoch(self.data.features if reads else None, batches)
            self._fix_weights(torch.cat(list(batches)))

    def _changes_between_epochs(self) -> bool:
        """Return whether what the meta set and a closed form look at is not the same.

        So that what is left alone is neither extracted nor solved for again.
        """
        if self.is_fixed:  # stage 2 keeps the weights that stage 1 led to
            return False
        if self.data.meta is None and self._reads_meta_rows:  # drawn anew
            return True
        # Features move while the extractor is trained.
        return self.reweighter.needs_meta_features and not self.is_frozen

    @property
    def _reads_meta_rows(self) -> bool:
        """Whether meta rows count by more than their labels."""
        return self.reweighter.needs_meta_features or self.meta_loss_weight > 0

    def _knows_weights(self, batches: Sequence[Tensor]) -> bool:
        """Return whether the weights of an epoch do not depend on its steps."""
        if self.reweighter.solves_training_set:
            return True
        n_rows = len(self.data.labels)
        if not (self.reweighter.steps_together and are_distinct(batches, n_rows)):
            return False
        # The features of an epoch are known if they stay as they are, and are kept.
        is_known = isinstance(self.data.features, Tensor)
        return is_known or not self.reweighter.needs_features

    def _fix_weights(self, rows: Tensor) -> None:
        """Look the weights of an epoch's rows up once."""
        labels = self.data.labels
        rows = rows.to(labels.device)
        weights = self.reweighter.weights(None, labels[rows], rows)
        self.epoch_weights = weights.new_zeros(len(labels))
        self.epoch_weights[rows] = weights

    def weigh(self, batch: StepBatch) -> Tensor:
        """Return the weights of a batch after steps (a) and (b)."""
        if self.epoch_weights is not None:
            return self.epoch_weights[batch.rows]
        points = self._points(batch)
        if self.virtual_step is None:
            self.reweighter.update(*points)
        else:
            self._virtual_update(batch, points)
        if self.processes.n > self.together.n:
            self.reweighter.synchronise(*points, processes=self.processes)
        return self.together.own(self.reweighter.weights(*points))

    def _points(self, batch: StepBatch) -> Points:
        """Return features, labels and rows of one transport problem."""
        features = batch.features.detach() if self.needs_features else None
        gather = self.together.gather
        return tuple(
            None if part is None else gather(part)
            for part in (features, batch.labels, batch.rows)
        )

    def _virtual_update(self, batch: StepBatch, points: Points) -> None:
        """Take step (a), and step (b) with the cost that it leads to."""
        self.reweighter.begin_batch(*points)
        virtual = VirtualStep(
            self.data.net,
            self.data.head,
            batch.losses,
            self.together.own(self.reweighter.weights(*points, record=False)),
            is_exact=self.virtual_step == "exact",
        )
        cost_features, meta_features = virtual.features(batch.X, self.meta_inputs)
        self.reweighter.update(
            *points,
            cost_features=self.together.gather(cost_features),
            meta_features=meta_features,
            chain=virtual.chain if self.virtual_step == "exact" else None,
        )

    def extra_batch(self) -> tuple[float, Any, Any] | None:
        """Return the meta rows if their loss counts too."""
        if not self.meta_loss_weight:
            return None
        return self.meta_loss_weight, *self._meta_batch

    def record(self) -> Mapping[str, float]:
        """Return how far the weights moved in this epoch."""
        figures = self.reweighter.statistics()
        return {name: self.processes.mean_of(x) for name, x in figures.items()}

    def training_features(self) -> Tensor | BlockFeatures | None:
        """Return the features of all training rows, if they are of use."""
        if self.is_frozen:
            return self.data.features
        if not self.reweighter.needs_features:
            return None
        return training_features(self.data.net, self.data.head, self.data.X)

    def _start_features(self) -> Tensor | BlockFeatures | None:
        """Return what the weights start from: of those that step, width and dtype."""
        if self.reweighter.solves_training_set:
            return self.training_features()
        if not self.reweighter.needs_features:
            return None
        few = take(self.data.X, slice(2))
        return extract_features(self.data.net, self.data.head, few)

    def _solved_features(self) -> Tensor | BlockFeatures | None:
        return self.training_features() if self.reweighter.solves_training_set else None

    def _set_meta(self) -> None:
        """Give the reweighter its meta rows: those given, or some of the training."""
        data, reweighter = self.data, self.reweighter
        if data.meta is None and not self._reads_meta_rows:
            reweighter.set_meta(
                torch.arange(self.n_classes, device=device_of(data.net))
            )
            return
        per_class = reweighter.meta_set_.per_class
        X, labels = meta_rows(data, per_class, self.generator)
        if self.meta_loss_weight:
            self._meta_batch = loss_inputs(data, X), labels.to(data.target_dtype)
        if not reweighter.needs_meta_features:
            reweighter.set_meta(labels)
            return
        self.meta_inputs, labels, features = meta_features(
            data,
            reweighter.meta_set_,
            X,
            labels,
            needs_inputs=self.virtual_step is not None,
        )
        reweighter.set_meta(labels, features)
