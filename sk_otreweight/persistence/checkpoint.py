"""How far a training run is, in a file that is written after every epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from sklearn.base import BaseEstimator
from skorch import NeuralNet
from torch import Tensor

from sk_otreweight._validation import warn_checkpoint_not_written
from sk_otreweight.fingerprint import data_digest, settings, versions
from sk_otreweight.persistence.codec import Decoder, Encoder
from sk_otreweight.persistence.file import opened, remove_parts, write
from sk_otreweight.persistence.plain import KINDS
from sk_otreweight.persistence.state import (
    State,
    module_states,
    net_state,
    random_state,
    set_module_states,
    set_net_state,
    set_random_state,
    set_state,
    state_of,
)
from sk_otreweight.processes import Processes, device_of

_DATA = ("X", "y", "X_meta", "y_meta")
_SHOWN = 60  # characters


class FitCheckpoint:
    """The file, and what is in it.

    Parameters
    ----------
    path : path
    identity : mapping of str to str
        What the run depends on: data, parameters and versions, by their names.
    resume : bool
        Go on from the file, if there is one.
    processes : Processes, default=None
        Those that train the net: all read the file, and the first one writes it.

    Attributes
    ----------
    saved : dict or None
        What the file says; None if the run begins.

    Raises
    ------
    FileExistsError
        If there is a file, and it is not to be resumed from.
    ValueError
        If the file is not of this run, no checkpoint, or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        identity: Mapping[str, str],
        *,
        resume: bool,
        processes: Processes | None = None,
    ):
        self.writes = processes is None or processes.rank == 0
        self.path = Path(path)
        named = {f"version of {name}": number for name, number in versions().items()}
        self.identity = {**identity, **named}
        self.saved: State | None = None
        self._after_stage_one: State | None = None
        if self.writes:
            remove_parts(self.path)  # of a run that was killed while it wrote
        if not self.path.exists():
            return
        if not resume:
            raise FileExistsError(
                f"There is a checkpoint already: {self.path}. Pass resume=True to go "
                "on from it, or another path; to begin anew, delete it."
            )
        self.saved = self._read()

    @classmethod
    def of(
        cls, estimator: BaseEstimator, rows: Any, path: Any, *, resume: bool
    ) -> FitCheckpoint:
        """Return the checkpoint of an estimator's fit.

        Parameters
        ----------
        estimator : BaseReweightedClassifier
        rows : TrainingRows
            As checked, with meta rows if some were given.
        path : path
        resume : bool
        """
        params = estimator.get_params(deep=False)
        params.pop("verbose")
        X_meta, y_meta = (None, None) if rows.meta is None else rows.meta
        data = dict(zip(_DATA, (rows.X, rows.y, X_meta, y_meta), strict=True))
        identity = {"estimator": type(estimator).__name__}
        identity |= {name: settings(value) for name, value in params.items()}
        identity |= {name: data_digest(x) for name, x in data.items() if x is not None}
        processes = Processes.of(estimator.net)
        file = cls(path, identity, resume=resume, processes=processes)
        place = file.saved or {"stage": 1, "n_epochs": 0}
        processes.check_alike(stage=place["stage"], n_epochs=place["n_epochs"])
        return file

    def seed(self, new: int) -> int:
        """Return the seed of the run: that of the file, or `new` if it begins."""
        self._seed = new if self.saved is None else self.saved["seed"]
        return self._seed

    def begin(self, net: NeuralNet, rows: Tensor | None) -> None:
        """Note which rows are trained on, and make sure that a file can be written.

        Parameters
        ----------
        net : skorch.NeuralNet
            Initialised.
        rows : Tensor of shape (n_train,) or None
            Of the training set that were not split off.

        Raises
        ------
        OSError
            If the file cannot be written.
        ValueError
            If other rows were split off before.
        """
        self._rows = rows
        if self.saved is None:
            try:
                self._write(net, stage=1, n_epochs=0, is_over=False, step=None)
            except SafetensorError as error:
                raise OSError(
                    f"The checkpoint {self.path} cannot be written: {error}"
                ) from error
            return
        before = self.saved["rows"]
        is_same = before is rows or (
            before is not None and rows is not None and before.equal(rows)
        )
        if not is_same:
            raise ValueError(
                f"Cannot resume from {self.path}: the net's train_split now holds out "
                "other rows than it did. Give it a random_state."
            )

    def enter(self, stage: int, n_epochs: int, net: NeuralNet, step: Any) -> int:
        """Bring a stage to where the file says it was, and return its epochs done.

        Parameters
        ----------
        stage : int
        n_epochs : int
            Of the stage: what is returned if it is over.
        net : skorch.NeuralNet
        step : Stage2Step or None
            What has a state beside the net.
        """
        saved = self.saved
        if saved is None or stage > saved["stage"]:
            return 0
        if stage < saved["stage"]:
            self._after_stage_one = after = saved["after_stage_one"]
            set_module_states(net, after["modules"])
            set_random_state(after["random"], device_of(net))
            return n_epochs
        if step is not None and saved["step"] is not None:
            set_state(step, saved["step"])
        set_net_state(net, saved["net"])
        set_random_state(saved["random"], device_of(net))
        return n_epochs if saved["is_over"] else saved["n_epochs"]

    def leave(self, stage: int, net: NeuralNet) -> None:
        """Note what stage 2 begins with, unless that is known."""
        if stage == 1 and self._after_stage_one is None:
            self._after_stage_one = {
                "modules": module_states(net),
                "random": random_state(device_of(net)),
            }

    def save(
        self, net: NeuralNet, *, stage: int, n_epochs: int, is_over: bool, step: Any
    ) -> None:
        """Write the file after an epoch; if that fails, warn and keep the last one.

        Parameters
        ----------
        net : skorch.NeuralNet
        stage, n_epochs : int
            The stage, and how many epochs of it are done.
        is_over : bool
            Whether a callback ended the stage.
        step : Stage2Step or None
        """
        try:
            self._write(net, stage=stage, n_epochs=n_epochs, is_over=is_over, step=step)
        except (OSError, SafetensorError) as error:
            warn_checkpoint_not_written(self.path, error)

    def _write(self, net: NeuralNet, *, step: Any, **place: Any) -> None:
        if not self.writes:
            return
        state = {
            **place,
            "seed": self._seed,
            "rows": self._rows,
            "net": net_state(net),
            "random": random_state(device_of(net)),
            "step": None if step is None else state_of(step),
            "after_stage_one": self._after_stage_one,
        }
        encoder = Encoder(KINDS)
        node = encoder(state, "")
        write(
            self.path,
            {"checkpoint": node, "identity": dict(self.identity)},
            encoder.tensors,
        )

    def _read(self) -> State:
        with opened(self.path) as (content, read):
            if "checkpoint" not in content:
                raise ValueError(
                    f"Cannot resume from {self.path}: it is a saved model, not a "
                    "checkpoint. Give the checkpoint another path."
                )
            self._check_identity(content["identity"])
            return Decoder(KINDS, read)(content["checkpoint"])

    def _check_identity(self, other: Mapping[str, str]) -> None:
        names = [name for name in self.identity if name in other]
        names += [name for name in other if name not in self.identity]
        names += [name for name in self.identity if name not in other]
        found = [
            _difference(name, other.get(name), self.identity.get(name))
            for name in names
            if other.get(name) != self.identity.get(name)
        ]
        if found:
            raise ValueError(
                f"Cannot resume from {self.path}: it is of another fit. "
                f"{'; '.join(found)}. Fit as it was begun, or give another path."
            )


def _difference(name: str, there: str | None, here: str | None) -> str:
    texts = [text for text in (there, here) if text is not None]
    if name in _DATA or len(texts) < 2 or max(map(len, texts)) > _SHOWN:
        return f"{name} is another"
    return f"{name} was {there}, and is {here}"
