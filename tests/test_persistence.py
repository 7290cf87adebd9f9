"""Files without pickle: what comes back, what is refused, and that nothing is run."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nets_for_tests
import numpy as np
import pandas as pd
import pytest
import torch
from classifier_helpers import STRATEGIES, quick
from nets_for_tests import (
    DoubleMLP,
    MeanWeights,
    NormDropoutMLP,
    OneLogitMLP,
    SmallMLP,
    small_net,
)
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import Dataset, ValidSplit
from torch import Tensor, nn

from sk_otreweight import (
    CombinedCost,
    FunctionCost,
    OTReweightedClassifier,
    POTSolver,
    RandomMetaSet,
    WeightNet,
    load,
)
from sk_otreweight.baselines import LDAMClassifier
from sk_otreweight.persistence.codec import Decoder, Encoder
from sk_otreweight.persistence.estimators import KINDS
from sk_otreweight.persistence.file import opened, remove_parts, write


class Scores:
    def __init__(self, logits: Tensor):
        self.logits = logits


class ObjectMLP(SmallMLP):
    """Returns an object with the scores in it."""

    def forward(self, X: Tensor) -> Scores:
        return Scores(super().forward(X))


class LazyMLP(nn.Module):
    """Sees the number of features at its first batch."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU())
        self.head = nn.Linear(16, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class TiedMLP(nn.Module):
    """Uses a layer twice, and has one that is not trained."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        self.fixed = nn.Linear(n_features, 16).requires_grad_(False)
        self.twice = nn.Linear(16, 16)
        self.body = nn.Sequential(self.fixed, self.twice, nn.Tanh(), self.twice)
        self.head = nn.Linear(16, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class SizedMLP(nn.Module):
    """Has arguments that only its maker knows."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class CountBatches(Callback):
    """A callback of one's own, with a state."""

    def __init__(self, every: int = 1):
        self.every = every

    def initialize(self) -> CountBatches:
        self.count_ = 0
        return self

    def on_batch_end(self, net, **kwargs) -> None:
        self.count_ += self.every


class HalvedLoss(nn.CrossEntropyLoss):
    """A criterion of one's own."""

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return super().forward(scores, labels) / 2


class OwnDataset(Dataset):
    """A data set of one's own."""


def make_mlp(n_features: int, n_classes: int) -> nn.Module:
    return SmallMLP(n_features, n_classes)


def city_block(z, y, z_meta, y_meta):
    return torch.cdist(z, z_meta, 1)


def body_of(module, X):
    return module.body(X)


HERE = __name__
NETS = SmallMLP.__module__


def fitted(digits, *args, **params):
    clf = quick(*args, **params)
    return clf.fit(digits.X, digits.y, meta=digits.meta)


def reload(clf, tmp_path, **kwargs):
    path = tmp_path / "model.safetensors"
    clf.save(path)
    return load(path, **{"trusted": [NETS, HERE]} | kwargs)


def assert_same(loaded, clf, data):
    """Compare what was learned, and what is learned from there and from the start."""
    assert type(loaded) is type(clf)
    assert loaded.get_params().keys() == clf.get_params().keys()
    assert vars(loaded).keys() == vars(clf).keys()
    assert loaded.history_ is loaded.net_.history
    np.testing.assert_equal(list(loaded.history_), list(clf.history_))
    for name in ("classes_", "sample_weight_", "class_weight_", "class_counts_"):
        first, second = getattr(loaded, name), getattr(clf, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert_same_predictions(loaded, clf, data)
    again = [clone(c).fit(data.X, data.y, meta=data.meta) for c in (loaded, clf)]
    assert_same_predictions(*again, data)
    for rows in (slice(0, 70), slice(70, 120)):
        for one in (loaded, clf):
            one.partial_fit(data.X[rows], data.y[rows])
        assert_same_predictions(loaded, clf, data)
        np.testing.assert_array_equal(loaded.sample_weight_, clf.sample_weight_)
        np.testing.assert_array_equal(loaded.class_weight_, clf.class_weight_)


def assert_same_predictions(first, second, data):
    np.testing.assert_array_equal(
        first.predict_proba(data.X_test), second.predict_proba(data.X_test)
    )
    np.testing.assert_array_equal(
        first.predict(data.X_test), second.predict(data.X_test)
    )


def edited(path: Path, edit) -> Path:
    """Change the content of a file and give it the right checksum."""
    with opened(path) as (content, read):
        names = sorted(header_of(path).keys() - {"__metadata__"})
        tensors = {name: read(name) for name in names}
    edit(content)
    write(path, content, tensors)
    return path


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.fixture(scope="module")
def saved(digits, tmp_path_factory):
    """Return a file of a classifier with a class of modules, as bytes."""
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    fitted(digits, max_epochs=1).save(path)
    return path.read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    return path


# What comes back


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_round_trip_of_each_strategy(weights, finetune, digits, tmp_path):
    clf = fitted(digits, weights=weights, finetune=finetune)
    loaded = reload(clf, tmp_path)
    assert loaded.weights_ is loaded._reweighter.weights_
    assert_same(loaded, clf, digits)


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(None, id="none"),
        pytest.param(SmallMLP, id="class"),
        pytest.param(small_net(NormDropoutMLP, module__hidden=24), id="buffers"),
        pytest.param(small_net(DoubleMLP), id="float64"),
        pytest.param(small_net(LazyMLP), id="lazy"),
        pytest.param(small_net(TiedMLP), id="tied"),
        pytest.param(small_net(ObjectMLP), id="object"),
        pytest.param(
            small_net(
                criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
                optimizer=torch.optim.SGD,
                optimizer__momentum=0.9,
                optimizer__param_groups=[("head*", {"lr": 0.05})],
                train_split=ValidSplit(0.2, random_state=0),
                callbacks=[
                    ("schedule", LRScheduler("StepLR", step_size=1, gamma=0.5)),
                    EarlyStopping(patience=3, load_best=True, sink=print),
                    EpochScoring("balanced_accuracy", lower_is_better=False),
                    GradientNormClipping(1.0),
                    CountBatches(every=2),
                    Freezer("body.0.bias"),
                ],
            ),
            id="callbacks",
        ),
    ],
)
def test_round_trip_of_each_net(net, digits, tmp_path):
    clf = OTReweightedClassifier(net, max_epochs=2, random_state=0)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    loaded = reload(clf, tmp_path)
    for name in vars(clf.net_):
        assert hasattr(loaded.net_, name), name
    for (first, one), (second, other) in zip(
        loaded.net_.callbacks_, clf.net_.callbacks_, strict=True
    ):
        assert (first, type(one)) == (second, type(other))
        if isinstance(one, CountBatches):
            assert one.count_ == other.count_ > 0
    for one, other in zip(
        loaded.net_.module_.named_parameters(),
        clf.net_.module_.named_parameters(),
        strict=True,
    ):
        assert one[0] == other[0]
        assert one[1].dtype == other[1].dtype
        assert one[1].requires_grad == other[1].requires_grad
    assert_same(loaded, clf, digits)


def test_round_trip_of_components_with_parameters(digits, tmp_path):
    clf = fitted(
        digits,
        cost=CombinedCost(mix=0.4),
        weights=WeightNet(lr=0.01, hidden=7, optimizer=torch.optim.Adam),
        meta_set=RandomMetaSet(per_class=3),
        solver=POTSolver(max_iter=50, tol=1e-4),
        random_state=np.random.RandomState(3),  # noqa: NPY002
        meta_loss_weight=0.5,
        lr=0.003,
        finetune="head",
    )
    loaded = reload(clf, tmp_path)
    assert loaded.weights.optimizer is torch.optim.Adam
    assert loaded.get_params()["solver__max_iter"] == 50
    state = clf.random_state.get_state()
    rows = slice(0, 80)
    for one in (loaded, clf):
        one.random_state.set_state(state)
        one.partial_fit(digits.X[rows], digits.y[rows])
    assert_same_predictions(loaded, clf, digits)


def test_round_trip_without_meta_data(digits, tmp_path):
    clf = quick(weights="vector", meta_set="random").fit(digits.X, digits.y)
    loaded = reload(clf, tmp_path)
    for one in (loaded, clf):
        one.partial_fit(digits.X[:80], digits.y[:80])
    assert_same_predictions(loaded, clf, digits)


def test_round_trip_in_the_middle_of_a_stream(digits, tmp_path):
    clf = quick(weights="net", meta_set="random")
    clf.partial_fit(digits.X[:60], digits.y[:60], range(10), meta=digits.meta)
    loaded = reload(clf, tmp_path)
    for _ in range(3):
        loaded = reload(loaded, tmp_path)
        for one in (loaded, clf):
            one.partial_fit(digits.X[60:120], digits.y[60:120])
        assert_same_predictions(loaded, clf, digits)


@pytest.mark.parametrize("dtype", [str, object])
def test_labels_and_column_names(dtype, digits, tmp_path):
    names = np.array([f"digit {k}" for k in range(10)])
    X = pd.DataFrame(digits.X, columns=[f"pixel {i}" for i in range(64)])
    y = names[digits.y].astype(dtype)
    clf = quick(max_epochs=1).fit(X, y)
    loaded = reload(clf, tmp_path)
    assert loaded.classes_.dtype == clf.classes_.dtype
    assert loaded.feature_names_in_.tolist() == list(X.columns)
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(X[X.columns[::-1]])


@pytest.mark.parametrize("is_bare", [True, False])
def test_one_score_for_two_classes(is_bare, tmp_path):
    X, y = load_breast_cancer(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    net = OneLogitMLP
    if not is_bare:
        net = NeuralNetBinaryClassifier(
            net, module__n_features=30, max_epochs=2, verbose=0, train_split=None
        )
    clf = quick(net).fit(X, y)
    loaded = reload(clf, tmp_path)
    assert isinstance(loaded.net_.criterion_, nn.BCEWithLogitsLoss)
    for one in (loaded, clf):
        one.partial_fit(X[:50], y[:50])
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_a_dict_of_inputs(few, tmp_path):
    X, y, (X_meta, y_meta) = few
    halves = {"left": X[:, :32], "right": X[:, 32:]}
    meta = {"left": X_meta[:, :32], "right": X_meta[:, 32:]}, y_meta
    net = small_net(TwoInputs, max_epochs=1)
    clf = quick(net).fit(halves, y, meta=meta)
    loaded = reload(clf, tmp_path)
    for one in (loaded, clf):
        one.partial_fit(halves, y)
    np.testing.assert_array_equal(
        loaded.predict_proba(halves), clf.predict_proba(halves)
    )
    with pytest.raises(ValueError, match="Rows of X have shape"):
        loaded.predict(X)


class TwoInputs(nn.Module):
    def __init__(self, n_classes: int):
        super().__init__()
        self.head = nn.Linear(64, n_classes)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([left, right], 1))


@pytest.mark.parametrize("is_module", [True, False])
def test_a_frozen_net(is_module, digits, tmp_path):
    net = small_net(NormDropoutMLP, module__n_features=64, module__n_classes=10)
    net.fit(digits.X, digits.y.astype(np.int64))
    clf = fitted(digits, FrozenEstimator(net.module_ if is_module else net))
    given = {"module": NormDropoutMLP(64, 10)} if is_module else {}
    loaded = reload(clf, tmp_path, **given)
    inner = loaded.net.estimator
    inner = inner if is_module else inner.module_
    torch.testing.assert_close(
        inner.state_dict(), net.module_.state_dict(), rtol=0, atol=0
    )
    if not is_module:
        assert len(loaded.net.estimator.history) == 4
    assert_same(loaded, clf, digits)


@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize(
    "given", [SizedMLP(20), lambda: SizedMLP(20)], ids=["instance", "callable"]
)
def test_a_module_instance_is_asked_for(given, is_wrapped, digits, tmp_path):
    module = SizedMLP(20)
    clf = fitted(digits, small_net(module) if is_wrapped else module)
    before = given.state_dict() if isinstance(given, nn.Module) else {}
    before = {name: value.clone() for name, value in before.items()}
    clf.save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{HERE}.SizedMLP, whose cons.*module=Sized"):
        load(tmp_path / "model")
    loaded = load(tmp_path / "model", module=given)
    assert_same(loaded, clf, digits)
    for name, value in before.items():  # what the user holds stays as it was
        assert torch.equal(given.state_dict()[name], value)


def test_a_module_that_does_not_fit_is_refused(digits, tmp_path):
    fitted(digits, SizedMLP(20), max_epochs=0).save(tmp_path / "model")
    with pytest.raises(ValueError, match="size mismatch for body.0.weight"):
        load(tmp_path / "model", module=SizedMLP(21))
    with pytest.raises(ValueError, match="Unexpected key.*body.0.weight"):
        load(tmp_path / "model", module=nn.Linear(64, 10))
    with pytest.raises(ValueError, match="got a int: pass module=SizedMLP"):
        load(tmp_path / "model", module=lambda: 20)


def test_a_module_instance_gets_the_dtype_that_was_saved(digits, tmp_path):
    clf = fitted(digits, SizedMLP(20).double())
    assert_same(reload(clf, tmp_path, module=SizedMLP(20)), clf, digits)


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_factory(is_wrapped, digits, tmp_path):
    def wrap(make):
        return small_net(make) if is_wrapped else make

    clf = fitted(digits, wrap(make_mlp))
    clf.save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"trusted=\['{HERE}.make_mlp'\]"):
        load(tmp_path / "model")
    for trusted in ([f"{HERE}.make_mlp"], f"{HERE}", [HERE, "other"]):
        loaded = load(tmp_path / "model", trusted=trusted)
        assert_same_predictions(loaded, clf, digits)
    assert_same(loaded, clf, digits)
    clf = fitted(digits, wrap(lambda n_features, n_classes: SmallMLP(64, 10)))
    clf.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"made by .*<lambda>.*module="):
        load(tmp_path / "model")
    for given in (SmallMLP, SmallMLP(64, 10), make_mlp):
        loaded = load(tmp_path / "model", module=given)
        assert_same_predictions(loaded, clf, digits)
        for one in (loaded, pickle.loads(pickle.dumps(loaded))):
            one.partial_fit(digits.X[:20], digits.y[:20])


def test_a_local_class_is_asked_for(digits, tmp_path):
    class Local(SmallMLP):
        pass

    clf = fitted(digits, small_net(Local))
    clf.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"Local, which cannot be imported"):
        load(tmp_path / "model")
    assert_same(load(tmp_path / "model", module=Local), clf, digits)


def test_functions_are_named_by_the_user(digits, tmp_path):
    clf = fitted(digits, cost=city_block, head=body_of, weights="vector")
    clf.save(tmp_path / "model")
    cost, head = f"{HERE}.city_block", f"{HERE}.body_of"
    for trusted, missing in (([], cost), ([cost], head), ([cost[:-1], head], cost)):
        with pytest.raises(ValueError, match=f"uses the function {missing}"):
            load(tmp_path / "model", trusted=[SmallMLP, *trusted])
    load(tmp_path / "model", trusted=[NETS, city_block, body_of])
    loaded = load(tmp_path / "model", trusted=[NETS, cost, head])
    assert loaded.cost is city_block
    assert_same(loaded, clf, digits)


def test_a_weight_net_of_ones_own(digits, tmp_path):
    clf = fitted(digits, weights=MeanWeights)
    assert_same(reload(clf, tmp_path), clf, digits)


@pytest.mark.parametrize("make", [nn.Linear, nn.LazyLinear])
def test_a_module_that_is_trained_further(make, digits, tmp_path):
    """Refits begin with the parameters that the instance came with, if it has any."""

    def module():
        sizes = (64, 16) if make is nn.Linear else (16,)
        return nn.Sequential(make(*sizes), nn.ReLU(), nn.Linear(16, 10))

    given = module()
    clf = fitted(digits, given)
    loaded = reload(clf, tmp_path, module=module())
    assert_same(loaded, clf, digits)
    assert torch.equal(loaded.net[2].weight, given[2].weight)
    assert not torch.equal(loaded.net[2].weight, loaded.net_.module_[2].weight)


def assert_equal(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    elif isinstance(first, (np.ndarray, np.generic, Tensor)):
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        is_tensor = isinstance(first, Tensor)
        assert (torch.equal if is_tensor else np.array_equal)(first, second)
    else:
        np.testing.assert_equal(first, second)


MATRIX = torch.arange(12.0).reshape(3, 4)
VALUES = {
    "scalars": [None, True, 0, -(2**80), 0.1, 1e-320, "é\n"],
    "not finite": [float("nan"), float("inf"), -float("inf")],
    "containers": ((), [[]], {}, {"a": (1, [2])}, {3, 4}, {1: {2: 3}, (4,): 5}),
    "no node": {"kind": "function", "name": "os:system"},
    "numbers": [np.float32(0.1), np.int8(3), np.bool_(True), np.str_("a")],
    "arrays": [
        np.zeros((0, 3), np.float16),
        np.float64(3.5).reshape(()),
        np.arange(6, dtype=np.uint32).reshape(2, 3).T,
        np.array(["a", "bcd"]),
        np.array([["a", None], [1, 0.5]], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.arange(3, dtype=">i4"),
    ],
    "tensors": [
        MATRIX,
        MATRIX.T,
        MATRIX[1:],
        MATRIX[:, 1],
        MATRIX.bfloat16(),
        torch.tensor(3),
        torch.zeros(0, 2),
        torch.tensor([True, False]),
    ],
    "torch": [torch.float16, torch.device("cpu")],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name, tmp_path):
    value, encoder = VALUES[name], Encoder(KINDS)
    node = encoder(value, "")
    # A tensor and another one of the same name, whatever the values are called.
    other = encoder(torch.ones(2), ""), encoder(torch.zeros(2), "")
    write(tmp_path / "file", [node, *other], encoder.tensors)
    with opened(tmp_path / "file") as (content, read):
        decoder = Decoder(KINDS, read)
        assert_equal(decoder(content[0]), value)
        assert_equal(decoder(content[1:]), [torch.ones(2), torch.zeros(2)])


def test_what_is_stored_once_is_one_object_again(tmp_path):
    cost, encoder = CombinedCost(0.3), Encoder(KINDS)
    weight = torch.ones(5)
    node = encoder([cost, {"again": cost}, weight, weight.clone(), weight], "value")
    assert list(encoder.tensors) == ["value[2]", "value[3]"]
    first, again, *_ = Decoder(KINDS, encoder.tensors.get)(node)
    assert again["again"] is first
    assert first.mix == 0.3


def test_a_net_that_is_on_no_device_of_its_own(digits, tmp_path):
    clf = fitted(digits, small_net(device=None), max_epochs=1)
    assert_same(reload(clf, tmp_path), clf, digits)


def test_metadata_requests(digits, tmp_path):
    with config_context(enable_metadata_routing=True):
        clf = fitted(digits, max_epochs=0).set_fit_request(meta=True, meta_mask="mask")
    loaded = reload(clf, tmp_path)
    requests = loaded.get_metadata_routing().fit.requests
    assert requests == clf.get_metadata_routing().fit.requests
    assert requests["meta_mask"] == "mask"


def test_global_generators_stay_untouched(digits, tmp_path):
    clf = fitted(digits, weights="net", max_epochs=1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    reload(clf, tmp_path)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002


@pytest.mark.slow
def test_in_another_process(path, digits, tmp_path):
    code = (
        "import sys, numpy as np, torch; torch.set_num_threads(1)\n"
        "from sk_otreweight import load\n"
        f"clf = load(sys.argv[1], trusted={NETS!r})\n"
        "np.save(sys.argv[2], clf.predict_proba(np.load(sys.argv[3])))\n"
    )
    rows, result = tmp_path / "rows.npy", tmp_path / "result.npy"
    np.save(rows, digits.X_test)
    tests = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, path, result, rows],
        env=os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    expected = load(path, trusted=SmallMLP).predict_proba(digits.X_test)
    np.testing.assert_array_equal(np.load(result), expected)


def test_the_file_is_little_larger_than_the_state(digits, tmp_path):
    clf = fitted(digits, small_net(module__hidden=2000, max_epochs=1), max_epochs=1)
    clf.save(tmp_path / "model")
    tensors = list(clf.net_.module_.state_dict().values())
    tensors += [
        value
        for state in clf.net_.optimizer_.state.values()
        for value in state.values()
    ]
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    rows = clf._meta.X.nbytes + clf._reweighter._meta_features.nbytes * 2
    size = (tmp_path / "model").stat().st_size
    assert n_bytes < size < n_bytes + rows + 60_000


def test_saving_again_replaces_the_file_as_a_whole(path, digits, monkeypatch):
    clf, before = load(path, trusted=SmallMLP), path.read_bytes()

    def full_disk(tensors, name, metadata):
        Path(name).write_bytes(b"the beginning")
        raise OSError("No space left on device")

    monkeypatch.setattr("sk_otreweight.persistence.file.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        clf.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    clf.partial_fit(digits.X[:50], digits.y[:50]).save(path)
    assert path.read_bytes() != before
    assert_same_predictions(load(str(path), trusted=SmallMLP), clf, digits)
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def replaced(path, tmp_path, monkeypatch):
    """Return a function that has the next `n` reads find the file replaced."""

    def let(n):
        others = [tmp_path / f"other {number}" for number in range(n)]
        for number, other in enumerate(others, start=n):
            shutil.copy(path, other)
            edited(other, lambda content, n=number: content.update(number=n))

        def replace_and_open(name, **kwargs):
            if others:
                others.pop(0).replace(name)
            return safe_open(name, **kwargs)

        monkeypatch.setattr(
            "sk_otreweight.persistence.file.safe_open", replace_and_open
        )

    return let


def test_a_file_that_is_replaced_while_it_is_read(path, replaced):
    replaced(1)
    with opened(path) as (content, _):
        assert content["number"] == 1  # all of the new one
    replaced(5)
    with pytest.raises(ValueError, match="it was replaced by another file each time"):
        load(path, trusted=SmallMLP)


def test_only_parts_of_the_file_itself_are_removed(tmp_path):
    own, other = (tmp_path / f"{name}.{'0a' * 16}.part" for name in ("run", "run.2"))
    for part in (own, other, tmp_path / "run.9.part"):
        part.touch()
    remove_parts(tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == sorted([other, tmp_path / "run.9.part"])


# What cannot be saved


def test_an_unfitted_classifier_cannot_be_saved(tmp_path):
    with pytest.raises(NotFittedError):
        OTReweightedClassifier().save(tmp_path / "model")


def test_a_place_that_does_not_exist(path, tmp_path):
    clf = load(path, trusted=SmallMLP)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere. Create"):
        clf.save(tmp_path / "nowhere" / "model")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        clf.save(tmp_path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"cost": lambda z, y, z_meta, y_meta: torch.cdist(z, z_meta)},
            r"cost=<function .*def or class at the top level",
        ),
        (
            {"cost": FunctionCost(lambda z, y, z_meta, y_meta: torch.cdist(z, z_meta))},
            r"cost.function=<function ",
        ),
        ({"head": lambda module, X: module.body(X)}, r"head=<function "),
        ({"weights": lambda: nn.Linear(32, 1)}, r"weights=<function "),
        (
            {"net": small_net(predict_nonlinearity=lambda scores: scores.softmax(1))},
            r"net.predict_nonlinearity=<function ",
        ),
        (
            {"net": small_net(callbacks=[EpochScoring(lambda net, X, y: 1.0)])},
            r"net.callbacks\[0\].scoring=<function ",
        ),
        (
            {"net": small_net(callbacks=[("stop", EarlyStopping(sink=sys.stdout))])},
            r"net.callbacks\[0\]\[1\].sink is a \w+, which cannot be saved without",
        ),
    ],
)
def test_what_has_no_name_is_refused(params, message, digits, tmp_path):
    # Without an epoch: a callback may be of no use, and is not asked.
    params = {"net": small_net(max_epochs=0), "max_epochs": 0} | params
    clf = OTReweightedClassifier(**params, random_state=0)
    if isinstance(params["net"], NeuralNetClassifier):
        params["net"].set_params(max_epochs=0)
    clf.fit(digits.X, digits.y, meta=digits.meta)
    with pytest.raises(TypeError, match=message):
        clf.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


class LearnedLoss(nn.CrossEntropyLoss):
    """Has a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, scores, labels):
        return super().forward(self.scale * scores, labels)


class HiddenLoss(nn.CrossEntropyLoss):
    """Does not say what it was made with."""

    def __init__(self, strength: float):
        super().__init__(label_smoothing=strength / 2)


@pytest.mark.parametrize("criterion", [LearnedLoss(), HiddenLoss(0.1)])
def test_a_criterion_that_cannot_be_rebuilt_is_refused(criterion, digits, tmp_path):
    clf = fitted(digits, small_net(criterion=criterion, max_epochs=0), max_epochs=0)
    message = f"net.criterion is a {type(criterion).__name__}, which cannot be saved"
    with pytest.raises(TypeError, match=message):
        clf.save(tmp_path / "model")


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        np.zeros(2, dtype=[("a", int)]),
        object(),
        b"bytes",
        lambda: None,
        torch.relu,
    ],
)
def test_values_that_cannot_be_saved(value):
    with pytest.raises(TypeError, match=r"^there\[0\]( is|=).*cannot be saved"):
        Encoder(KINDS)([value], "there")


def test_a_class_of_main_is_refused(digits, tmp_path, monkeypatch):
    class MainCost(CombinedCost):
        pass

    MainCost.__module__, MainCost.__qualname__ = "__main__", "MainCost"
    monkeypatch.setattr(sys.modules["__main__"], "MainCost", MainCost, raising=False)
    clf = fitted(digits, cost=MainCost(), max_epochs=0)
    with pytest.raises(TypeError, match=r"class of cost=.*not in __main__"):
        clf.save(tmp_path / "model")


# Files that are refused


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "model")


def test_every_changed_byte_is_noticed(path, saved):
    start = 8 + int.from_bytes(saved[:8], "little")
    some = np.random.default_rng(0).integers(len(saved), size=150)
    offsets = {*range(12), *range(start, start + 3), len(saved) - 1, *some.tolist()}
    for offset in offsets:
        changed = bytearray(saved)
        changed[offset] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"Cannot load {path}: it "):
            load(path, trusted=SmallMLP)
    path.write_bytes(saved)
    assert isinstance(load(path, trusted=SmallMLP), OTReweightedClassifier)


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.99, 1.01])
def test_a_cut_or_extended_file(share, path, saved):
    path.write_bytes((saved * 2)[: int(share * len(saved))])
    with pytest.raises(ValueError, match="damaged"):
        load(path)


@pytest.mark.parametrize(
    "kind", ["pickle", "text", "safetensors", "metadata", "no digest"]
)
def test_a_file_of_something_else(kind, path):
    tensors = {"weight": torch.zeros(3)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(OTReweightedClassifier()))
    elif kind == "text":
        path.write_text("a" * 1000)
    else:
        text = {"metadata": "[]", "no digest": '{"sha256": 3}'}.get(kind)
        save_file(tensors, path, metadata=text and {"sk_otreweight": text})
    with pytest.raises(ValueError, match="no model that was saved by sk_otreweight"):
        load(path)


def test_a_file_of_a_later_version(path, saved, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("sk_otreweight.persistence.file.FORMAT", 2)
        with pytest.raises(ValueError, match=r"format 1.*reads format 2"):
            load(path)
        patch.setattr(
            "sk_otreweight.persistence.file.versions",
            lambda packages: {"sk-otreweight": "9.1"},
        )
        write(path, {}, {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has format 2, of sk_otreweight 9.1.*Update"):
        load(path)


def test_a_file_that_lacks_something(path):
    def edit(content):
        del content["state"]["net_"]["state"]["optimizers"]

    with pytest.raises(ValueError, match="lacks what this version expects"):
        load(edited(path, edit), trusted=SmallMLP)


def test_a_class_that_takes_other_parameters_now(path):
    def edit(content):
        solver = content["state"]["_reweighter"]["fields"]["solver_"]
        solver["params"]["patience"] = 3

    message = r"SinkhornSolver does not take the parameters .*'patience'\] any more"
    with pytest.raises(ValueError, match=message):
        load(edited(path, edit), trusted=SmallMLP)


def test_a_class_that_cannot_be_imported(path, digits):
    def rename(name):
        def edit(content):
            for net in (content["params"]["net"], content["state"]["net_"]):
                net["params"]["module"]["name"] = name

        return edit

    for name in ("nowhere_to_be_found:Net", "nets_for_tests:NoSuchNet"):
        edited(path, rename(name))
        module, _, qualname = name.partition(":")
        message = f"needs {qualname} of the module {module}, which"
        with pytest.raises(ImportError, match=message):
            load(path, trusted=module)
    moved = load(path, module=SmallMLP)
    edited(path, rename("nets_for_tests:SmallMLP"))
    assert_same_predictions(moved, load(path, trusted=SmallMLP), digits)


HARMFUL = [
    "os:system",
    "posix:system",
    "subprocess:Popen",
    "subprocess:run",
    "builtins:eval",
    "builtins:exec",
    "shutil:rmtree",
    "nets_for_tests:small_net",
    "nets_for_tests:cache",
    "torch.hub:load",
    "torch:load",
    "numpy:load",
    "torch.nn:os.system",
    "torch.utils.cpp_extension:subprocess.Popen",
]


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail if what a harmful file names is called."""
    called = []
    for owner, name in (
        (os, "system"),
        (subprocess, "run"),
        (subprocess, "Popen"),
        (shutil, "rmtree"),
        (torch, "load"),
        (torch.hub, "load"),
        (np, "load"),
        (nets_for_tests, "small_net"),
    ):
        own = getattr(owner, name)
        spy = functools.wraps(own)(lambda *args, _=own, **kw: called.append(_))
        monkeypatch.setattr(owner, name, spy)
    yield
    assert called == []


def node_places(content):
    """Yield, for each place where a file names something, how to change it."""
    net = content["state"]["net_"]
    params = net["params"]
    for owner in (net["params"], content["params"]["net"]["params"]):
        for place in ("module", "criterion", "optimizer", "dataset", "callbacks"):
            yield owner, place
    yield params, "iterator_train"
    for place in ("cost", "weights", "meta_set", "solver", "head", "net"):
        yield content["params"], place
    yield content["state"], "_reweighter"


N_PLACES = 18


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_classes_of_others_are_named_by_the_user(is_wrapped, digits, tmp_path):
    clf = fitted(digits, small_net() if is_wrapped else SmallMLP, max_epochs=1)
    clf.save(tmp_path / "model")
    name = f"{NETS}.SmallMLP"
    for trusted in ([], [name[:-1]], [NormDropoutMLP]):
        with pytest.raises(ValueError, match=rf"class {name}, .*trusted=\['{name}'\]"):
            load(tmp_path / "model", trusted=trusted)
    for trusted in (SmallMLP, name, [name], [CountBatches, SmallMLP], NETS):
        loaded = load(tmp_path / "model", trusted=trusted)
        assert_same_predictions(loaded, clf, digits)
    loaded = load(tmp_path / "model", module=SmallMLP)  # then its name is not read
    assert_same_predictions(loaded, clf, digits)


def test_classes_of_others_in_every_place(digits, tmp_path):
    net = small_net(
        criterion=HalvedLoss(), dataset=OwnDataset, callbacks=[CountBatches()]
    )
    clf = fitted(digits, net, weights=MeanWeights, max_epochs=1)
    clf.save(tmp_path / "model")
    used = [SmallMLP, HalvedLoss, OwnDataset, CountBatches, MeanWeights]
    assert_same_predictions(load(tmp_path / "model", trusted=used), clf, digits)
    for kind in used:
        others = [other for other in used if other is not kind]
        with pytest.raises(ValueError, match=f"uses the class .*{kind.__name__}"):
            load(tmp_path / "model", trusted=others)


def test_the_module_of_a_class_that_is_not_trusted_is_not_imported(path, tmp_path):
    (tmp_path / "harmful_nets.py").write_text("raise SystemExit('was imported')")

    def edit(content):
        net = content["state"]["net_"]["params"]
        net["module"] = {"kind": "class", "name": "harmful_nets:Net"}

    with pytest.raises(ValueError, match=r"trusted=\['harmful_nets.Net'\]"):
        load(edited(path, edit), trusted=SmallMLP)


@pytest.mark.parametrize(
    "name",
    [
        "torch.distributed.nn.api.remote_module:RemoteModule",
        "torch.jit._script:ScriptModule",
    ],
)
def test_not_all_of_torch_is_trusted(name, path):
    def edit(content):
        content["state"]["net_"]["params"]["criterion"] = {
            "kind": "class",
            "name": name,
        }

    with pytest.raises(ValueError, match="uses the class torch"):
        load(edited(path, edit), trusted=SmallMLP)


@pytest.mark.parametrize("trusted", [[nets_for_tests], [None], [small_net()]])
def test_what_cannot_be_trusted(trusted, path):
    with pytest.raises(
        TypeError, match="give classes, functions or their dotted names"
    ):
        load(path, trusted=trusted)


@pytest.mark.parametrize("options", [{"weights_only": False}, {"mmap": True}])
def test_nets_that_read_pickles(options, path):
    def edit(content):
        content["state"]["net_"]["state"]["data"]["torch_load_kwargs"] = options

    with pytest.raises(ValueError, match=r"torch.load.* trusted=\['torch.load'\]"):
        load(edited(path, edit), trusted=SmallMLP)
    loaded = load(path, trusted=[SmallMLP, "torch.load"])
    assert loaded.net_.torch_load_kwargs == options


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("kind", ["class", "function", "component", "record", "net"])
@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_name_is_refused_in_every_place(name, kind, path, saved):
    node = {
        "kind": kind,
        "name": name,
        "class": name,
        "params": {"module": None, "criterion": None, "device": "cpu", "command": "x"},
        "fields": {},
        "state": {},
    }
    if kind == "net":
        node["params"] |= {"optimizer": None, "dataset": None}
    for number in range(N_PLACES):
        path.write_bytes(saved)

        def edit(content, number=number):
            places = list(node_places(content))
            assert len(places) == N_PLACES
            owner, place = places[number]
            owner[place] = node

        refused = "do not trust|pass trusted=|no class of this package|cannot be import"
        with pytest.raises((ValueError, ImportError), match=refused):
            load(edited(path, edit), trusted=SmallMLP)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", ["os:system", "sklearn.linear_model:LinearRegression"])
def test_only_our_estimators_are_loaded(name, path):
    def edit(content):
        content["class"] = name

    with pytest.raises(ValueError, match="do not trust this file"):
        load(edited(path, edit))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("module", "torch.optim.sgd:SGD"),
        ("criterion", "skorch.dataset:Dataset"),
        ("optimizer", "nets_for_tests:SmallMLP"),
        ("dataset", "nets_for_tests:SmallMLP"),
    ],
)
def test_a_class_of_the_wrong_kind_is_refused(place, name, path, monkeypatch):
    def edit(content):
        content["state"]["net_"]["params"][place] = {"kind": "class", "name": name}

    edited(path, edit)
    monkeypatch.setattr(
        SmallMLP, "__init__", lambda *args, **kwargs: pytest.fail("was called")
    )
    # The net that was given is read first, and builds nothing.
    with pytest.raises(ValueError, match=rf"as {place}, which is no subclass of"):
        load(path, trusted=NETS)


def test_an_estimator_of_the_wrong_kind_is_refused(path):
    def edit(content):
        content["class"] = "sklearn.svm._classes:SVC"

    edited(path, edit)
    with pytest.raises(ValueError, match=r"names sklearn\.svm\._classes\.SVC,"):
        load(path, trusted=NETS)


def test_a_standard_module_is_not_even_imported(path):
    def edit(content):
        content["params"]["cost"] = {"kind": "class", "name": "antigravity:fly"}

    with pytest.raises(ValueError, match="antigravity.fly, of Python's standard libr"):
        load(edited(path, edit), trusted=["antigravity", "builtins"])
    assert "antigravity" not in sys.modules


def test_arrays_of_objects_cannot_be_made_of_bytes(path):
    def edit(content):
        content["state"]["sample_weight_"]["dtype"] = "|O"

    with pytest.raises(ValueError, match="Cannot load"):
        load(edited(path, edit))


def test_a_dtype_must_be_one(path):
    def edit(content):
        content["params"]["lr"] = {"kind": "dtype", "name": "load"}

    with pytest.raises(ValueError, match="dtype torch.load, which is none"):
        load(edited(path, edit))


def test_what_is_trusted_must_be_a_function(path):
    def edit(content):
        content["params"]["cost"] = {"kind": "function", "name": f"{HERE}:SizedMLP"}

    with pytest.raises(ValueError, match=r"SizedMLP is a type, not a function"):
        load(edited(path, edit), trusted=[HERE])


# Devices


def test_a_device_that_is_not_there(path, monkeypatch):
    def edit(content):
        for net in (content["params"]["net"], content["state"]["net_"]):
            net["params"]["device"] = "meta2"

    edited(path, edit)
    with pytest.raises(ValueError, match=r"'meta2' is not available.*device='cpu'"):
        load(path, trusted=SmallMLP)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_model_from_a_gpu_is_loaded_on_the_cpu(path, digits):
    expected = load(path, trusted=SmallMLP).predict_proba(digits.X_test)

    def edit(content):
        for net in (content["params"]["net"], content["state"]["net_"]):
            net["params"]["device"] = "cuda"
        content["state"]["_reweighter"]["fields"]["_labels"]["device"] = "cuda:0"

    edited(path, edit)
    with pytest.raises(ValueError, match=r"'cuda.*' is not available.*device='cpu'"):
        load(path, trusted=SmallMLP)
    loaded = load(path, device="cpu", trusted=SmallMLP)
    np.testing.assert_array_equal(loaded.predict_proba(digits.X_test), expected)
    loaded.partial_fit(digits.X[:50], digits.y[:50])


@pytest.mark.gpu
@pytest.mark.parametrize("weights", STRATEGIES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_devices(weights, device, digits, tmp_path):
    clf = fitted(digits, small_net(device=device), weights=weights)
    for other in ("cuda", "cpu"):
        loaded = reload(clf, tmp_path, device=other)
        assert next(loaded.net_.module_.parameters()).device.type == other
        np.testing.assert_allclose(
            loaded.predict_proba(digits.X_test),
            clf.predict_proba(digits.X_test),
            atol=1e-5,
        )
        loaded.partial_fit(digits.X[:60], digits.y[:60])
    loaded = reload(clf, tmp_path)
    assert next(loaded.net_.module_.parameters()).device.type == device
    for one in (loaded, clf):
        one.partial_fit(digits.X[:60], digits.y[:60])
    assert_same_predictions(loaded, clf, digits)


# Compiled modules, and callbacks that make folders


def test_a_compiled_instance_is_loaded_into_a_plain_one(digits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(SmallMLP(64, 10), backend="eager")
        clf = fitted(digits, compiled)
        clf.save(tmp_path / "clf")
        expected = clf.predict_proba(digits.X_test)
    loaded = load(tmp_path / "clf", module=SmallMLP(64, 10))
    np.testing.assert_allclose(loaded.predict_proba(digits.X_test), expected, atol=1e-6)


def test_a_folder_that_cannot_be_made(digits, tmp_path):
    folder = tmp_path / "run"
    net = small_net(callbacks=[Checkpoint(dirname=folder / "a", monitor=None)])
    clf = fitted(digits, net)
    clf.save(tmp_path / "clf")
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    with pytest.raises(ValueError, match="a callback could not make its folder"):
        load(tmp_path / "clf", trusted=SmallMLP)


@pytest.mark.parametrize("name", ["torch.nn.modules.linear:Linear", "os:system"])
def test_only_our_layers_are_put_into_a_net(name, digits, tmp_path):
    clf = LDAMClassifier(small_net(max_epochs=1), max_epochs=0, random_state=0)
    clf.fit(digits.X, digits.y).save(tmp_path / "model.safetensors")

    def edit(content):
        text = json.dumps(content)
        assert text.count("baselines.heads:CosineHead") == 1
        own = "sk_otreweight.baselines.heads:CosineHead"
        content.update(json.loads(text.replace(own, name)))

    with pytest.raises((ValueError, ImportError), match="trust"):
        load(edited(tmp_path / "model.safetensors", edit), trusted=SmallMLP)
