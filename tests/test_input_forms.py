"""Tensors, dicts, data sets and frames of other libraries as inputs."""

from __future__ import annotations

import pickle

import numpy as np
import polars as pl
import pytest
import torch
from classifier_helpers import STRATEGIES, quick
from nets_for_tests import SmallMLP, TokenMean, small_net
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.preprocessing import StandardScaler
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import SliceDataset, SliceDict, predefined_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sk_otreweight import (
    OTReweightedClassifier,
    PrototypeMetaSet,
    WeightNet,
    WholeMetaSet,
    load,
)
from sk_otreweight.extraction import extract_features, training_features
from sk_otreweight.features import Head
from sk_otreweight.inputs import cast, n_bytes_on
from sk_otreweight.training import TrainingRun


class HalvesNet(nn.Module):
    """Takes the upper and the lower half of a digit as two inputs."""

    def __init__(self, n_classes: int = 10, hidden: int = 16):
        super().__init__()
        self.upper = nn.Linear(32, hidden)
        self.lower = nn.Linear(32, hidden)
        self.head = nn.Linear(2 * hidden, n_classes)

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        both = torch.cat([self.upper(upper), self.lower(lower)], 1)
        return self.head(both.relu())


class WholeNet(HalvesNet):
    """The same net with one input, as an oracle."""

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X[:, :32], X[:, 32:])


def halves(X):
    return {"upper": X[:, :32], "lower": X[:, 32:]}


def one_per_class(y):
    mask = np.zeros(len(y), dtype=bool)
    mask[np.unique(y, return_index=True)[1]] = True
    return mask


class Items(Dataset):
    """Hands out rows one by one and counts how often."""

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.n_reads = 0

    def __len__(self):
        return len(self.X)

    def __getitem__(self, row):
        self.n_reads += 1
        return torch.from_numpy(self.X[row]), self.y[row]


def in_order(module=SmallMLP, **params):
    """Return a net whose batches do not depend on how rows are shuffled."""
    return small_net(module, max_epochs=2, iterator_train__shuffle=False, **params)


VARIANTS = [
    {"finetune": finetune, "weights": weights}
    for finetune in ("head", "all")
    for weights in STRATEGIES
] + [{"meta_loss_weight": 0.5}, {"finetune": "all", "virtual_step": "exact"}]


# Dicts


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_dict_of_inputs_is_as_good_as_one_array(variant, digits):
    X, y, (X_meta, y_meta) = digits.X, digits.y, digits.meta
    whole = quick(in_order(WholeNet), **variant).fit(X, y, meta=digits.meta)
    parts = quick(in_order(HalvesNet), **variant)
    parts.fit(halves(X), y, meta=(halves(X_meta), y_meta))
    np.testing.assert_array_equal(parts.sample_weight_, whole.sample_weight_)
    np.testing.assert_array_equal(
        parts.predict_proba(halves(digits.X_test)), whole.predict_proba(digits.X_test)
    )
    parts.partial_fit(halves(X[:99]), y[:99])
    whole.partial_fit(X[:99], y[:99])
    np.testing.assert_array_equal(
        parts.predict_proba(halves(X)), whole.predict_proba(X)
    )
    assert not hasattr(parts, "n_features_in_")


@pytest.mark.parametrize("meta", ["drawn", "mask"])
def test_meta_rows_of_a_dict(meta, few):
    X, y, _ = few
    mask = one_per_class(y)
    given = {} if meta == "drawn" else {"meta_mask": mask}
    whole = quick(in_order(WholeNet, module__n_classes=4)).fit(X, y, **given)
    parts = quick(in_order(HalvesNet, module__n_classes=4)).fit(halves(X), y, **given)
    np.testing.assert_array_equal(parts.sample_weight_, whole.sample_weight_)


def test_slice_dict_in_cross_validation_and_searches(digits):
    X, meta = SliceDict(**halves(digits.X)), (halves(digits.X_meta), digits.y_meta)
    scores = cross_validate(
        quick(small_net(HalvesNet, max_epochs=10)),
        X, digits.y, cv=2, params={"meta": meta}, scoring="balanced_accuracy",
    )["test_score"]  # fmt: skip
    assert scores.min() > 0.3
    search = GridSearchCV(quick(small_net(HalvesNet)), {"reg": [0.1, 1.0]}, cv=2)
    search.fit(X, digits.y, meta=meta)
    assert search.score(X, digits.y) > 0.3


def test_values_of_a_dict_may_be_frames_and_tensors(few):
    X, y, _ = few
    net = in_order(HalvesNet, module__n_classes=4)
    expected = quick(net).fit(halves(X), y).predict_proba(halves(X))
    mixed = {"upper": pl.DataFrame(X[:, :32]), "lower": torch.from_numpy(X[:, 32:])}
    np.testing.assert_array_equal(
        quick(net).fit(mixed, y).predict_proba(mixed), expected
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"lower": np.zeros((3, 32))}, ("X", "rows", "'upper': 43", "'lower': 3")),
        ({"lower": np.full((43, 32), np.nan)}, ("X['lower'] contains NaN",)),
        (
            {"lower": sparse.csr_array((43, 32))},
            ("Sparse data was passed for X['lower']",),
        ),
    ],
)
def test_bad_dicts(change, parts, few):
    X, y, _ = few
    error = TypeError if "Sparse" in parts[0] else ValueError
    with pytest.raises(error) as raised:
        quick(in_order(HalvesNet)).fit(halves(X) | change, y)
    assert all(part in str(raised.value) for part in parts)


def test_empty_dict_and_dict_of_other_inputs(few):
    X, y, (X_meta, y_meta) = few
    net = in_order(HalvesNet, module__n_classes=4)
    with pytest.raises(ValueError, match="X is an empty dict"):
        quick(net).fit({}, y)
    clf = quick(net).fit(halves(X), y)
    other = {"upper": X[:, :32], "lower": X[:, 30:]}
    with pytest.raises(ValueError, match=r"Rows of X have shape .*'lower': \(34,\)"):
        clf.predict(other)
    with pytest.raises(ValueError, match="Rows of X have shape"):
        clf.predict(X)
    with pytest.raises(ValueError, match="Rows of X_meta have shape"):
        quick(net).fit(halves(X), y, meta=(X_meta, y_meta))


# Data sets


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_data_set_is_as_good_as_its_arrays(variant, digits):
    X, y, meta = digits.X, digits.y, digits.meta
    arrays = quick(in_order(), **variant).fit(X, y, meta=meta)
    items = quick(in_order(), **variant).fit(Items(X, y), None, meta=Items(*meta))
    np.testing.assert_array_equal(items.sample_weight_, arrays.sample_weight_)
    expected = arrays.predict_proba(digits.X_test)
    np.testing.assert_array_equal(items.predict_proba(digits.X_test), expected)
    test = Items(digits.X_test, digits.y_test)
    np.testing.assert_array_equal(items.predict_proba(test), expected)
    items.partial_fit(Items(X[:99], y[:99]), None)
    arrays.partial_fit(X[:99], y[:99])
    np.testing.assert_array_equal(items.predict_proba(X), arrays.predict_proba(X))


def test_labels_of_a_data_set_may_be_strings_and_not_start_at_0(few):
    X, y, meta = few
    expected = quick(in_order()).fit(X, y, meta=meta)
    names = np.array([f"digit {k}" for k in range(10)])
    clf = quick(in_order()).fit(
        Items(X, names[y]), None, meta=(meta[0], names[meta[1]])
    )
    assert clf.classes_.tolist() == ["digit 4", "digit 7", "digit 8", "digit 9"]
    np.testing.assert_array_equal(clf.sample_weight_, expected.sample_weight_)


def test_labels_given_beside_a_data_set_are_the_ones_that_count(few):
    X, y, meta = few
    items = Items(X, np.full(len(y), -1))
    clf = quick(in_order(), max_epochs=1).fit(items, y, meta=meta)
    expected = quick(in_order(), max_epochs=1).fit(X, y, meta=meta)
    np.testing.assert_array_equal(clf.predict_proba(X), expected.predict_proba(X))
    read, without = items.n_reads, Items(X, y)
    quick(in_order(), max_epochs=1).fit(without, None, meta=meta)
    one_pass = without.n_reads - read
    assert len(X) <= one_pass <= len(X) + 1  # to learn the labels


def test_mask_over_a_data_set(few):
    X, y, _ = few
    mask = one_per_class(y)
    items = quick(in_order()).fit(Items(X, y), None, meta_mask=mask)
    arrays = quick(in_order()).fit(X, y, meta_mask=mask)
    np.testing.assert_array_equal(items.sample_weight_, arrays.sample_weight_)


def test_meta_rows_drawn_from_a_data_set(few):
    X, y, _ = few
    items = quick(in_order(), meta_loss_weight=1.0).fit(Items(X, y), None)
    arrays = quick(in_order(), meta_loss_weight=1.0).fit(X, y)
    np.testing.assert_array_equal(items.sample_weight_, arrays.sample_weight_)


def test_two_tensors_as_a_data_set_are_sliced(few):
    X, y, _ = few
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = quick(in_order()).fit(data, None)
    np.testing.assert_array_equal(
        clf.predict_proba(data), quick(in_order()).fit(X, y).predict_proba(X)
    )
    assert clf.n_features_in_ == 64


def test_default_net_takes_a_data_set_of_vectors(few):
    X, y, _ = few
    clf = OTReweightedClassifier(max_epochs=1, random_state=0).fit(Items(X, y), None)
    assert clf.score(Items(X, y), y) > 0.5


class Pairs(Items):
    """Hands out the halves of a row as two inputs."""

    def __getitem__(self, row):
        X, y = super().__getitem__(row)
        return (X[:32], X[32:]), y


class PairNet(HalvesNet):
    def forward(self, X):
        return super().forward(*X)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_data_set_of_several_inputs(variant, few):
    X, y, meta = few
    whole = quick(in_order(WholeNet, module__n_classes=4), **variant)
    pairs = quick(in_order(PairNet, module__n_classes=4), **variant)
    whole.fit(X, y, meta=meta)
    pairs.fit(Pairs(X, y), None, meta=Pairs(*meta))
    np.testing.assert_allclose(pairs.sample_weight_, whole.sample_weight_, rtol=1e-5)
    np.testing.assert_allclose(
        pairs.predict_proba(Pairs(X, y)), whole.predict_proba(X), atol=1e-6
    )


def test_labels_that_are_missing_from_the_items(few):
    X, y, _ = few
    items = Items(X, [None] * len(y))
    clf = quick(in_order()).fit(items, y)
    expected = quick(in_order()).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(clf.predict_proba(items), expected)


def test_cross_validation_of_a_data_set(digits):
    data = SliceDataset(Items(digits.X, digits.y))
    clf = quick(small_net(max_epochs=10))
    scores = cross_validate(
        clf, data, digits.y, cv=2, params={"meta": digits.meta}, error_score="raise"
    )["test_score"]
    assert scores.min() > 0.6


def test_nan_in_the_items_of_a_data_set(few):
    X, y, _ = few
    X = X.copy()
    X[0, 3] = np.nan
    with pytest.raises(ValueError, match="returned NaN or infinity.*items of X"):
        quick().fit(Items(X, y), None)


def test_a_data_set_of_three_tensors(few):
    X, y, _ = few
    data = TensorDataset(*(torch.from_numpy(part) for part in (X, X, y)))
    with pytest.raises(ValueError, match="holds 3 tensors.*as a dict"):
        quick().fit(data, y)


# Splits of one's own


class Doubled(Dataset):
    """Each row of a data set twice, the second time darker."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 2 * len(self.dataset)

    def __getitem__(self, row):
        X, y = self.dataset[row // 2]
        return (X * 0.9 if row % 2 else X), y


def doubled_split(dataset, y=None, **kwargs):
    train, valid = ValidSplit(3)(dataset, y)
    return Doubled(train), valid


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_rows_that_a_split_makes_are_those_that_are_trained_on(finetune, digits):
    net = small_net(train_split=doubled_split, max_epochs=2)
    clf = quick(net, weights="net", finetune=finetune)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    sizes = [
        sum(batch.get("train_batch_size", 0) for batch in epoch["batches"])
        for epoch in clf.history_
    ]
    assert len(set(sizes)) == 1
    with pytest.raises(ValueError, match="came without row numbers"):
        clf.set_params(weights="semirelaxed").fit(digits.X, digits.y, meta=digits.meta)


@pytest.mark.parametrize("dtype", [int, str])
def test_labels_of_a_validation_set_are_like_y(dtype, few):
    X, y, meta = few
    labels = y.astype(dtype)
    net = small_net(train_split=predefined_split(SkorchDataset(X, labels)))
    clf = quick(net).fit(X, labels, meta=(meta[0], meta[1].astype(dtype)))
    assert clf.history_[-1, "valid_acc"] == pytest.approx(clf.score(X, labels))
    codes = predefined_split(SkorchDataset(X, np.searchsorted(np.unique(y), y)))
    with pytest.raises(ValueError, match="The validation set holds labels.*unknown"):
        quick(small_net(train_split=codes)).fit(X, labels)


class Ragged(Dataset):
    """Sequences of tokens of different lengths."""

    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        tokens = torch.from_numpy(np.flatnonzero(self.X[row] > 0.5))
        return tokens, int(self.y[row])


def pad_items(items):
    """Pad the sequences of a batch to the same length with a token of their own."""
    rows, labels = zip(*items, strict=True)
    rows = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=64)
    return rows, torch.tensor(labels)


class TokenSum(TokenMean):
    """Does not look at the token that fills up."""

    def forward(self, X):
        return self.head((self.embed(X) * (X < 64)[..., None]).sum(1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_sequences_of_different_lengths_with_a_collate_of_ones_own(variant, digits):
    collate = {
        "iterator_train__collate_fn": pad_items, "iterator_valid__collate_fn": pad_items
    }  # fmt: skip
    net = small_net(
        TokenSum, module__n_tokens=65, module__n_classes=10,
        max_epochs=20, lr=0.05, **collate,
    )  # fmt: skip
    data = Ragged(digits.X, digits.y)
    clf = quick(net, **variant).fit(data, None, meta=Ragged(*digits.meta))
    assert clf.score(Ragged(digits.X_test, digits.y_test), digits.y_test) > 0.4


def scale_down(items):
    """Divide by a power of two, which is exact: twice would not go unnoticed."""
    rows, labels = zip(*items, strict=True)
    return torch.stack([torch.as_tensor(row) / 16 for row in rows]), torch.tensor(
        labels
    )


def scaling(**params):
    names = ("iterator_train__collate_fn", "iterator_valid__collate_fn")
    return in_order(**dict.fromkeys(names, scale_down), **params)


COLLATED = [
    {},
    {"finetune": "head"},
    {"finetune": "head", "cost": "label"},
    {"weights": "vector"},
    {"weights": "vector", "virtual_step": "exact"},
    {"meta_loss_weight": 0.5},
    {"meta_loss_weight": 0.5, "finetune": "head"},
]


@pytest.mark.parametrize("meta", ["given", "drawn"])
@pytest.mark.parametrize("form", [lambda X, y: X, Items], ids=["array", "data set"])
@pytest.mark.parametrize(
    "variant", [*COLLATED, {"meta_set": PrototypeMetaSet(space="input")}], ids=str
)
def test_a_collate_of_ones_own_is_applied_once(variant, form, meta, few):
    X, y, (X_meta, y_meta) = few
    meta = {} if meta == "drawn" else {"X_meta": X_meta, "y_meta": y_meta}
    plain = quick(in_order(), **variant).fit(X, y, **meta)
    if meta:
        meta["X_meta"] = form(16 * X_meta, y_meta)
    clf = quick(scaling(), **variant).fit(form(16 * X, y), y, **meta)
    np.testing.assert_array_equal(clf.sample_weight_, plain.sample_weight_)
    scores = clf.predict_proba(form(16 * X, y))
    np.testing.assert_array_equal(scores, plain.predict_proba(X))
    problems = [fit.transport_problem(x, y) for fit, x in ((clf, 16 * X), (plain, X))]
    np.testing.assert_array_equal(problems[0].cost, problems[1].cost)


WORDS = np.array([f"w{k}" for k in range(64)])


class Texts(Dataset):
    """Sentences: a word for each pixel that is dark."""

    def __init__(self, X, y):
        self.texts, self.y = [" ".join(WORDS[row > 0.5]) for row in X], y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.texts[row], int(self.y[row])


def tokenised(items):
    """Turn sentences into tokens and a mask, as tokenisers do."""
    texts, labels = zip(*items, strict=True)
    rows = [torch.tensor([int(word[1:]) for word in text.split()]) for text in texts]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return {"tokens": tokens.clamp(min=0), "mask": tokens >= 0}, torch.tensor(labels)


class TextNet(nn.Module):
    def __init__(self, n_classes: int = 4):
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.head = nn.Linear(16, n_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.embed(tokens) * mask[..., None]).sum(1))


def text_net(**params):
    names = ("iterator_train__collate_fn", "iterator_valid__collate_fn")
    collate = dict.fromkeys(names, tokenised)
    return small_net(TextNet, max_epochs=10, lr=0.1, **collate, **params)


@pytest.mark.parametrize("meta", ["given", "drawn"])
@pytest.mark.parametrize("variant", COLLATED, ids=str)
def test_texts_that_a_collate_tokenises(variant, meta, few):
    X, y, (X_meta, y_meta) = few
    meta = {} if meta == "drawn" else {"meta": Texts(X_meta, y_meta)}
    clf = quick(text_net(), **variant).fit(Texts(X, y), None, **meta)
    assert clf.score(Texts(X, y), y) > 0.8
    clf.partial_fit(Texts(X[:20], y[:20]), None)
    assert np.isfinite(clf.predict_proba(Texts(X, y))).all()


def test_meta_rows_that_a_collate_makes_are_saved(few, tmp_path):
    X, y, meta = few
    clf = quick(text_net()).fit(Texts(X, y), None, meta=Texts(*meta))
    clf.save(tmp_path / "model")
    loaded = load(tmp_path / "model", trusted=[tokenised, TextNet])
    for copy in (pickle.loads(pickle.dumps(clf)), loaded):
        scores = [fit.suspicious_rows(Texts(X, y), y).score for fit in (clf, copy)]
        np.testing.assert_array_equal(*scores)
    for fit in (clf, loaded):
        fit.partial_fit(Texts(X[:20], y[:20]), None)
    probabilities = [fit.predict_proba(Texts(X, y)) for fit in (clf, loaded)]
    np.testing.assert_array_equal(*probabilities)


class NoLength(IterableDataset):
    def __iter__(self):
        yield torch.zeros(64), 0


class OnlyInputs(Items):
    def __getitem__(self, row):
        return torch.from_numpy(self.X[row])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (NoLength(), TypeError, "X is a NoLength without a length"),
        (
            OnlyInputs(np.ones((3, 64)), np.ones(3)),
            ValueError,
            r"pair \(inputs, label\)",
        ),
        (Items(np.ones((0, 64)), np.ones(0)), ValueError, "Found 0 items in the data"),
    ],
)
def test_bad_data_sets(data, error, message):
    with pytest.raises(error, match=message):
        quick().fit(data, None)


def test_as_many_labels_as_items(few):
    X, y, _ = few
    with pytest.raises(ValueError, match="X has 43 rows and y 42 labels"):
        quick().fit(Items(X, y), y[:-1])


def test_a_loader_is_no_data_set(few):
    X, y, _ = few
    with pytest.raises(ValueError, match="DataLoader"):
        quick().fit(DataLoader(Items(X, y)), y)


# Tensors


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_tensors_are_as_good_as_arrays(variant, few):
    X, y, meta = few
    expected = quick(**variant).fit(X, y, meta=meta).predict_proba(X)
    X, y, X_meta, y_meta = (torch.from_numpy(part) for part in (X, y, *meta))
    clf = quick(**variant).fit(X, y, meta=(X_meta, y_meta))
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    assert isinstance(clf._meta.X, Tensor)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.asfortranarray])
def test_inputs_are_trained_on_where_they_are(form, few, monkeypatch):
    """No copy, so that tensors stay on their device and arrays in one piece."""
    runs = []

    class Watched(TrainingRun):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            runs.append(self)

    monkeypatch.setattr("sk_otreweight.base.TrainingRun", Watched)
    X, y, _ = few
    X = form(X)
    quick().fit(X, y)
    same = np.shares_memory(np.asarray(runs[0].X), np.asarray(X))
    assert same
    assert isinstance(runs[0].X, type(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int16])
def test_dtypes_of_tensors(dtype, few):
    X, y, _ = few
    X = torch.from_numpy((16 * X).round()).to(dtype)
    expected = quick().fit(X.float().numpy(), y).predict_proba(X.float().numpy())
    np.testing.assert_array_equal(quick().fit(X, y).predict_proba(X), expected)


class HalfMLP(SmallMLP):
    def __init__(self, n_features, n_classes):
        super().__init__(n_features, n_classes)
        self.half()


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_half_precision_is_for_those_who_ask_for_it(form, few):
    X, y, _ = few
    X = form(X.astype(np.float16))
    net = small_net(HalfMLP, max_epochs=1, lr=1e-3, optimizer=torch.optim.SGD)
    clf = quick(net, max_epochs=1).fit(X, y)
    assert cast(clf.net_, X, name="X") is X
    assert np.isfinite(clf.predict_proba(X)).all()
    single = cast(quick(max_epochs=0).fit(X, y).net_, X, name="X")
    assert single.dtype in (np.float32, torch.float32)


def test_tensors_with_a_graph(few):
    X, y, _ = few
    grown = torch.from_numpy(X).requires_grad_() * 1
    expected = quick().fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(quick().fit(grown, y).predict_proba(grown), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_tensors_stay_on_their_device(variant, few):
    X, y, meta = few
    X, y, X_meta, y_meta = (torch.from_numpy(part).cuda() for part in (X, y, *meta))
    net = small_net(max_epochs=2, device="cuda")
    clf = quick(net, **variant).fit(X, y, meta=(X_meta, y_meta))
    assert clf._meta.X.is_cuda
    assert clf.predict_proba(X).shape == (len(X), 4)
    on_cpu = quick(net, **variant).fit(X.cpu(), y.cpu(), meta=(X_meta.cpu(), y_meta))
    np.testing.assert_allclose(
        clf.predict_proba(X), on_cpu.predict_proba(X.cpu()), atol=1e-3
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X: X[:, 0], ValueError, "one row per sample"),
        (lambda X: X[:0], ValueError, "Found 0 samples in X"),
        (lambda X: X.to_sparse(), TypeError, "pass X.to_dense"),
        (lambda X: X + 0j, ValueError, "Complex data not supported"),
        (lambda X: X.to("meta"), ValueError, "holds no numbers"),
        (lambda X: X / 0, ValueError, "X contains NaN or infinity"),
        (lambda X: 1e300 * X.double(), ValueError, "infinity in torch.float32"),
    ],
)
def test_bad_tensors(change, error, message, few):
    X, y, _ = few
    with pytest.raises(error, match=message):
        quick().fit(change(torch.from_numpy(X)), y)


def test_tensor_of_another_width_when_predicting(few):
    X, y, _ = few
    clf = quick().fit(torch.from_numpy(X), y)
    with pytest.raises(ValueError, match="X has 63 features, but OTReweighted"):
        clf.predict(torch.from_numpy(X[:, 1:]))
    images = quick(small_net(_Flat)).fit(torch.from_numpy(X).reshape(-1, 1, 8, 8), y)
    with pytest.raises(ValueError, match=r"\(1, 4, 16\).*\(1, 8, 8\)"):
        images.predict(torch.from_numpy(X).reshape(-1, 1, 4, 16))


class _Flat(SmallMLP):
    def __init__(self, n_classes: int):
        super().__init__(64, n_classes)

    def forward(self, X):
        return super().forward(X.flatten(1))


def test_labels_missing(few):
    X, y, _ = few
    with pytest.raises(ValueError, match="y=None: give one class label per row"):
        quick().fit(torch.from_numpy(X), None)
    with pytest.raises(ValueError, match="requires y to be passed"):
        quick().fit(X, None)


# The net for tables


@pytest.mark.parametrize(
    ("form", "given"),
    [
        (lambda X: halves(X), "a dict"),
        (lambda X: torch.from_numpy(X).reshape(-1, 8, 8), r"rows of shape \(8, 8\)"),
        (lambda X: Items(X.reshape(-1, 8, 8), np.arange(len(X))), r"rows of shape \(8"),
    ],
)
def test_default_net_is_for_tables(form, given, few):
    X, y, _ = few
    with pytest.raises(ValueError, match=f"net=None is a net for tables.*{given}"):
        OTReweightedClassifier().fit(form(X), y)


# Frames, strides, maps


def test_polars(few):
    X, y, (X_meta, y_meta) = few
    names = [f"pixel {k}" for k in range(64)]
    expected = quick().fit(X, y.astype(str), meta=(X_meta, y_meta.astype(str)))
    clf = quick().fit(
        pl.DataFrame(X, schema=names),
        pl.Series(y.astype(str)),
        meta=(pl.DataFrame(X_meta, schema=names), pl.Series(y_meta.astype(str))),
    )
    assert clf.feature_names_in_.tolist() == names
    frame = pl.DataFrame(X, schema=names)
    np.testing.assert_array_equal(clf.predict(frame), expected.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame.rename({"pixel 0": "pixel zero"}))
    with pytest.raises(ValueError, match="columns of X_meta"):
        quick().fit(
            frame, y,
            meta=(pl.DataFrame(X_meta, schema=names[::-1]), y_meta),
        )  # fmt: skip


def test_a_map_of_a_file_is_not_copied(tmp_path, few):
    X, y, meta = few
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    expected = quick().fit(X, y, meta=meta).predict_proba(X)
    clf = quick().fit(mapped, y, meta=meta)
    np.testing.assert_array_equal(clf.predict_proba(mapped), expected)


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_real_tables(load):
    X, y = load(return_X_y=True, as_frame=True)
    names = np.array(load().target_names, dtype=object)
    scaled = StandardScaler().set_output(transform="pandas").fit_transform(X)
    clf = OTReweightedClassifier(max_epochs=3, random_state=0)
    clf.fit(scaled, names[y])
    assert clf.feature_names_in_.tolist() == X.columns.tolist()
    assert clf.score(scaled, names[y]) > 0.95
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(scaled[scaled.columns[::-1]])


def test_columns_are_forgotten_when_fitted_on_something_else(few):
    X, y, _ = few
    clf = quick(in_order(HalvesNet, module__n_classes=4)).fit(halves(X), y)
    clf.set_params(net=in_order()).fit(pl.DataFrame(X), y)
    assert clf.n_features_in_ == 64
    clf.set_params(net=in_order(HalvesNet, module__n_classes=4)).fit(halves(X), y)
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "feature_names_in_")


@pytest.mark.parametrize("form", [halves, lambda X: (16 * X).astype(int)])
def test_means_of_inputs_that_have_none(form, few):
    X, y, _ = few
    module = HalvesNet if form is halves else TokenMean
    net = small_net(module, module__n_classes=4)
    clf = quick(net, meta_set=PrototypeMetaSet(space="input"))
    with pytest.raises(ValueError, match="averages the inputs of each class.*space='f"):
        clf.fit(form(X), y)


# Memory


def test_meta_rows_of_a_data_set_are_read_batch_by_batch(few, monkeypatch):
    """All at once they may be more than a device holds."""
    X, y, _ = few
    sizes = []

    class Watching(SmallMLP):
        def forward(self, X):
            sizes.append(len(X))
            return super().forward(X)

    def unused(*args):
        raise AssertionError("all meta rows were made one batch")

    monkeypatch.setattr("sk_otreweight.meta_rows.batch_of", unused)
    net = in_order(Watching, batch_size=4)
    quick(net, meta_set=WholeMetaSet(per_class=5)).fit(Items(X, y), None)
    assert max(sizes) == 4


@pytest.mark.parametrize(
    ("form", "is_kept"),
    [
        (lambda X, y: X, True),
        (lambda X, y: torch.from_numpy(X), True),
        (lambda X, y: {"X": X}, True),
        (lambda X, y: Items(X, y), False),  # may be lazy
    ],
    ids=["array", "tensor", "dict", "data set"],
)
def test_features_are_kept_beside_large_inputs_in_memory(
    form, is_kept, few, monkeypatch
):
    X, y, _ = few
    monkeypatch.setattr("sk_otreweight.extraction._KEPT_BYTES", 0)
    net = small_net(module__n_features=64, module__n_classes=4, module__hidden=8)
    net.initialize()
    head = Head(name="head")
    features = training_features(net, head, form(X, y))
    assert isinstance(features, Tensor) == is_kept
    expected = extract_features(net, head, X)
    np.testing.assert_array_equal(features[:], expected)
    assert n_bytes_on(torch.device("meta"), form(X, y)) == 0


@pytest.mark.parametrize(
    "variant",
    [*VARIANTS, {"weights": WeightNet(), "meta_set": "whole", "cost": "label"}],
    ids=str,
)
def test_features_that_are_not_kept_give_the_same(variant, few, monkeypatch):
    X, y, meta = few
    kept = quick(in_order(), **variant).fit(X, y, meta=meta)
    monkeypatch.setattr("sk_otreweight.extraction._KEPT_BYTES", 0)
    monkeypatch.setattr("sk_otreweight.extraction._KEPT_SHARE", 0)
    computed = quick(in_order(), **variant).fit(X, y, meta=meta)
    np.testing.assert_allclose(
        computed.sample_weight_, kept.sample_weight_, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        computed.predict_proba(X), kept.predict_proba(X), rtol=1e-3, atol=1e-5
    )
