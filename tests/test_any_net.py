"""Nets of every make: what they return, how they are built, what they are warned of."""

from __future__ import annotations

import pickle
import warnings
from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from classifier_helpers import STRATEGIES, assert_same_state, quick, state
from nets_for_tests import NormDropoutMLP, OneLogitMLP, SmallMLP, SoftmaxMLP, small_net
from sklearn.datasets import load_breast_cancer
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import scale
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sk_otreweight import OTReweightedClassifier, WeightVector, load

VARIANTS = [
    {"finetune": finetune, "weights": weights}
    for finetune in ("head", "all")
    for weights in STRATEGIES
] + [{"meta_loss_weight": 0.5}, {"finetune": "all", "virtual_step": "exact"}]


def assert_same_result(first, second, X):
    np.testing.assert_array_equal(first.sample_weight_, second.sample_weight_)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


# Modules that return more than scores


class Output:
    """As the models of Hugging Face return."""

    def __init__(self, logits):
        self.logits = logits
        self.hidden_states = None


class LogitsMLP(SmallMLP):
    def forward(self, X: Tensor) -> Output:
        return Output(super().forward(X))


class TupleMLP(SmallMLP):
    """Returns scores, and those of a second head that runs last."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__(n_features, n_classes)
        self.auxiliary = nn.Linear(32, n_classes)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(X)
        return self.head(hidden), self.auxiliary(hidden)


class DetachedTupleMLP(SmallMLP):
    """Draws the same first parameters as `SmallMLP`."""

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(X), X.sum(1)


FORMS = [
    *(("net", variant) for variant in VARIANTS),
    *((form, VARIANTS[0]) for form in ("class", "instance", "frozen")),
]


@pytest.mark.parametrize("module", [LogitsMLP, DetachedTupleMLP])
@pytest.mark.parametrize(("form", "variant"), FORMS, ids=str)
def test_modules_that_return_more_than_scores(form, variant, module, few):
    X, y, meta = few
    results = []
    for kind in (module, SmallMLP):
        if form in ("instance", "frozen"):
            torch.manual_seed(0)
        net = {
            "net": lambda kind: small_net(kind, max_epochs=2),
            "class": lambda kind: kind,
            "instance": lambda kind: kind(64, 4),
            "frozen": lambda kind: FrozenEstimator(kind(64, 4)),
        }[form](kind)
        clf = quick(net, **variant).fit(X, y, meta=meta)
        clf.partial_fit(X[:20], y[:20])
        results.append(pickle.loads(pickle.dumps(clf)))
    assert_same_result(*results, X)


def test_the_layer_before_the_first_of_several_outputs_is_the_head(few):
    X, y, meta = few
    net = small_net(TupleMLP, max_epochs=15)
    clf = quick(net).fit(X, y, meta=meta)
    assert clf._head.name == "head"
    assert clf.score(X, y) > 0.8


class TwoLossNet(NeuralNetClassifier):
    """Trains both outputs of a module."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        return sum(
            super(TwoLossNet, self).get_loss(scores, y_true) for scores in y_pred
        )


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_a_loss_that_reads_all_outputs_is_given_them(finetune, few):
    X, y, meta = few
    params = small_net().get_params(deep=False) | {"module": TupleMLP}
    params = {k: v for k, v in params.items() if not k.startswith("_")}
    clf = quick(TwoLossNet(**params), finetune=finetune).fit(X, y, meta=meta)
    with torch.no_grad():
        output = clf.net_.module_(torch.from_numpy(X))
    assert isinstance(output, tuple)
    untrained = TupleMLP(64, 4).auxiliary
    labels = torch.from_numpy(np.searchsorted(clf.classes_, y))
    loss = cross_entropy(output[1], labels)
    assert loss < cross_entropy(untrained(torch.rand(len(X), 32)), labels)


def test_a_loss_that_reads_all_outputs_must_predict_as_well():
    """skorch takes the first of a tuple to predict."""
    X, y = load_breast_cancer(return_X_y=True)
    params = small_net().get_params(deep=False) | {"module": TupleMLP}
    params = {k: v for k, v in params.items() if not k.startswith("_")}
    clf = quick(TwoLossNet(**params)).fit(scale(X).astype(np.float32), y)
    assert clf.score(scale(X), y) > 0.9


# Modules built in other ways


class NormedMLP(nn.Module):
    """Its head's weight is computed from two parameters."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_features, 32), nn.ReLU())
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(32, n_classes))

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class TiedMLP(nn.Module):
    """Its head shares its weight with the first layer."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__()
        self.encode = nn.Linear(n_features, n_classes)
        self.decode = nn.Linear(n_classes, n_features)
        self.head = nn.Linear(n_features, n_classes)
        self.head.weight = self.encode.weight

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(X).relu()).relu())


class LazyMLP(nn.Module):
    """Learns how many features there are from the first batch."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.ReLU())
        self.head = nn.LazyLinear(n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.body(X))


class HeadFirstMLP(SmallMLP):
    """Registers its head before the layers that run before it."""

    def __init__(self, n_features: int, n_classes: int):
        nn.Module.__init__(self)
        self.head = nn.Linear(32, n_classes)
        self.body = nn.Sequential(nn.Linear(n_features, 32), nn.ReLU())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    "module", [NormedMLP, TiedMLP, LazyMLP, HeadFirstMLP, NormDropoutMLP]
)
def test_modules_built_in_other_ways(module, variant, few):
    X, y, meta = few
    net = small_net(module, max_epochs=40, lr=0.03)
    clf = quick(net, **variant).fit(X, y, meta=meta)
    assert clf._head.name == "head"
    assert clf.score(X, y) > 0.8
    before = state(clf.net_.module_)
    clf.partial_fit(X, y)
    kept = [name for name in before if name.startswith("body")]
    if clf.finetune == "head" and kept:
        assert_same_state(before, state(clf.net_.module_), kept)


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("head", [None, lambda module, X: X])
def test_a_single_linear_layer(head, finetune, few):
    """Softmax regression: the features are the inputs."""
    X, y, meta = few
    net = small_net(nn.Linear, module__in_features=64, module__out_features=4)
    clf = quick(net, head=head, finetune=finetune).fit(X, y, meta=meta)
    assert clf.predict_proba(X).shape == (len(y), 4)
    bare = quick(nn.Linear(64, 4), finetune=finetune).fit(X, y, meta=meta)
    assert bare.score(X, y) > 0.5


class GRUNet(nn.Module):
    """Reads digits row by row."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.rnn(X)[0][:, -1])


class WatchedGRU(GRUNet):
    """Notes whether cuDNN may be used where a graph is built."""

    seen: ClassVar[list[tuple[bool, bool]]] = []

    def forward(self, X: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append((self.training, torch.backends.cudnn.enabled))
        return super().forward(X)


@pytest.mark.parametrize(
    ("params", "with_cudnn"),
    [
        ({"finetune": "head"}, {(True, True), (False, False)}),
        ({"finetune": "all", "virtual_step": "first_order"}, {(True, True)}),
        (
            {"finetune": "all", "virtual_step": "exact"},
            {(True, True), (True, False), (False, False)},
        ),
    ],
)
def test_what_cudnn_cannot_differentiate_is_left_to_torch(params, with_cudnn, digits):
    """Its recurrent layers: neither in evaluation mode nor twice."""
    WatchedGRU.seen.clear()
    X, X_meta = digits.X.reshape(-1, 8, 8), digits.X_meta.reshape(-1, 8, 8)
    net = small_net(WatchedGRU, max_epochs=1)
    clf = quick(net, weights="vector", max_epochs=1, **params)
    clf.fit(X, digits.y, meta=(X_meta, digits.y_meta))
    assert set(WatchedGRU.seen) == with_cudnn
    assert torch.backends.cudnn.enabled


class PointNet(nn.Module):
    """Sees the rows of a digit as a set of points."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.point = nn.Conv1d(8, 32, 1)
        self.head = nn.Linear(32, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.point(X).amax(-1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("module", [GRUNet, PointNet])
def test_sequences_and_point_clouds(module, variant, digits):
    X, X_meta = digits.X.reshape(-1, 8, 8), digits.X_meta.reshape(-1, 8, 8)
    net = small_net(module, max_epochs=10, lr=0.03)
    clf = quick(net, **variant).fit(X, digits.y, meta=(X_meta, digits.y_meta))
    assert clf.score(digits.X_test.reshape(-1, 8, 8), digits.y_test) > 0.35


class SizedMLP(SmallMLP):
    """Asks for one of the sizes only."""

    def __init__(self, n_classes: int, width: int = 64):
        super().__init__(width, n_classes)


@pytest.mark.parametrize("width", [None, 64])
def test_sizes_are_given_to_modules_that_ask_for_them(width, few):
    X, y, _ = few
    given = {} if width is None else {"module__width": width}
    clf = quick(small_net(SizedMLP, **given)).fit(X, y)
    assert clf.net_.module_.head.out_features == 4
    fixed = quick(small_net(SizedMLP, module__n_classes=7))
    with pytest.raises(ValueError, match=r"shape \(4, 7\).*y has 4 classes"):
        fixed.fit(X, y)


# Criteria


def test_binary_heads_agree(few):
    """A single score under BCE, by skorch's class for it or a bare module."""
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X).astype(np.float32)
    given = {
        "optimizer": torch.optim.Adam, "lr": 3e-3, "max_epochs": 30, "batch_size": 32,
        "iterator_train__shuffle": True, "train_split": None, "verbose": 0,
    }  # fmt: skip
    bare = quick(OneLogitMLP).fit(X, y)
    net = quick(NeuralNetBinaryClassifier(OneLogitMLP, **given)).fit(X, y)
    for clf in (bare, net):
        assert isinstance(clf.net_.criterion_, nn.BCEWithLogitsLoss)
        assert clf.score(X, y) > 0.95
        assert clf.predict_proba(X).shape == (len(X), 2)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_probabilities_under_nll_loss(variant, few):
    X, y, meta = few
    net = small_net(SoftmaxMLP, criterion=nn.NLLLoss, max_epochs=15)
    clf = quick(net, **variant).fit(X, y, meta=meta)
    assert clf._head.activation == "softmax"
    assert clf.score(X, y) > 0.8


def test_softmax_under_cross_entropy_warns(few):
    X, y, _ = few
    with pytest.warns(UserWarning, match="CrossEntropyLoss takes a softmax of them"):
        quick(small_net(SoftmaxMLP)).fit(X, y)


class LogSoftmaxMLP(SmallMLP):
    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X).log_softmax(-1)


def test_log_probabilities_under_cross_entropy_are_fine(few):
    X, y, _ = few
    scores = quick(small_net(max_epochs=2)).fit(X, y).predict_proba(X)
    log = quick(small_net(LogSoftmaxMLP, max_epochs=2)).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(log, scores, atol=1e-5)


@pytest.mark.parametrize("module", [SmallMLP, LogSoftmaxMLP])
@pytest.mark.parametrize("form", ["net", "frozen"])
def test_scores_under_nll_loss_are_an_error(form, module, few):
    """skorch's default criterion, with which such a net learns nothing but NaN."""
    X, y, _ = few
    net = NeuralNetClassifier(module, module__n_features=64, module__n_classes=4)
    if form == "frozen":
        net = FrozenEstimator(net.initialize())
    with pytest.raises(ValueError, match="not probabilities: it ranges from -.*Cross"):
        quick(net).fit(X, y)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (small_net(criterion__weight=torch.tensor([1.0, 2, 3, 4])), "weight"),
        (
            NeuralNetBinaryClassifier(
                OneLogitMLP, criterion__pos_weight=torch.tensor(3.0), verbose=0
            ),
            "pos_weight",
        ),
    ],
)
def test_class_weights_in_the_criterion_warn(net, name, few):
    X, y, _ = few
    y = y > 7 if name == "pos_weight" else y
    with pytest.warns(UserWarning, match=rf"class weights \({name}\).*rare classes"):
        quick(net).fit(X, y)


class CalibratedMLP(SmallMLP):
    """A layer after the head turns scores into scores."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__(n_features, n_classes)
        self.calibrate = nn.Linear(n_classes, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.calibrate(super().forward(X))


@pytest.mark.parametrize("head", [None, "head", "calibrate"])
def test_features_as_narrow_as_the_scores_warn(head, few):
    X, y, _ = few
    clf = quick(small_net(CalibratedMLP), head=head)
    expected = pytest.warns(UserWarning, match="'calibrate'.*4 inputs for 4 classes")
    with expected if head is None else nullcontext():
        clf.fit(X, y)
    width = 32 if head == "head" else 4
    assert clf._head.name == (head or "calibrate")
    layer = clf.net_.module_.get_submodule(clf._head.name)
    assert layer.in_features == width


class FocalLoss(nn.Module):
    """A loss that skorch knows no probabilities for."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        losses = cross_entropy(scores, labels, reduction="none")
        losses = (1 - (-losses).exp()) ** 2 * losses
        return losses.mean() if self.reduction == "mean" else losses


@pytest.mark.parametrize("criterion", [FocalLoss, nn.MultiMarginLoss])
def test_scores_under_any_criterion_become_probabilities(criterion, few):
    X, y, meta = few
    net = small_net(criterion=criterion, max_epochs=20)
    clf = quick(net).fit(X, y, meta=meta)
    assert clf.score(X, y) > 0.9
    with torch.no_grad():
        expected = clf.net_.module_(torch.from_numpy(X)).double().softmax(1).numpy()
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


class SquaredLogistic(nn.Module):
    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        losses = (scores.sigmoid() - labels) ** 2
        return losses.mean() if self.reduction == "mean" else losses


def squared_logistic():
    return NeuralNetBinaryClassifier(
        OneLogitMLP, criterion=SquaredLogistic, optimizer=torch.optim.Adam, lr=0.03,
        max_epochs=20, train_split=None, verbose=0,
    )  # fmt: skip


def test_a_single_score_under_any_criterion_becomes_probabilities(few):
    X, y, _ = few
    clf = quick(squared_logistic()).fit(X, y > 7)
    assert clf.score(X, y > 7) > 0.9
    with torch.no_grad():
        expected = clf.net_.module_(torch.from_numpy(X)).sigmoid().numpy()
    np.testing.assert_allclose(clf.predict_proba(X)[:, 1], expected, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_whether_scores_are_probabilities_is_not_read_off_the_rows(
    n_classes, few, tmp_path
):
    """Some scores of single rows could be probabilities."""
    X, y, _ = few
    y = y > 7 if n_classes == 2 else y
    net = squared_logistic() if n_classes == 2 else small_net(criterion=FocalLoss)
    clf = quick(net).fit(X, y)
    with torch.no_grad():
        layer = clf.net_.module_.head
        layer.weight.mul_(1e-3)
        layer.bias.fill_(1 / n_classes)
        scores = clf.net_.module_(torch.from_numpy(X)).double()
    assert bool(((scores > 0) & (scores < 1)).all())
    expected = clf.predict_proba(X)
    clf.save(tmp_path / "clf.safetensors")
    loaded = load(tmp_path / "clf.safetensors", trusted=[SmallMLP.__module__, __name__])
    for fitted in (clf, loaded):
        alone = np.concatenate([fitted.predict_proba(row[None]) for row in X])
        np.testing.assert_array_equal(alone, expected)
    softmax = scores.softmax(1) if n_classes > 2 else scores.sigmoid()
    np.testing.assert_allclose(
        expected if n_classes > 2 else expected[:, 1], softmax, atol=1e-6
    )


class FirstColumn(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, X: Tensor) -> Tensor:
        return self.scale * X[:, 0]


def test_a_later_chunk_may_show_that_scores_are_no_probabilities():
    X = np.linspace(0.1, 0.9, 8, dtype=np.float32)[:, None]
    net = squared_logistic().set_params(module=FirstColumn, lr=0.0)
    clf = quick(net, cost="label", finetune="all")
    clf.partial_fit(X, X[:, 0] > 0.5, [False, True])
    np.testing.assert_array_equal(clf.predict_proba(X)[:, 1], X[:, 0].astype(float))
    sigmoids = 1 / (1 + np.exp(-X[:, 0].astype(float)))
    for chunk in (4 * X, X):
        clf.partial_fit(chunk, X[:, 0] > 0.5)
        np.testing.assert_allclose(clf.predict_proba(X)[:, 1], sigmoids)
    clf.fit(X, X[:, 0] > 0.5)  # forgets it
    np.testing.assert_array_equal(clf.predict_proba(X)[:, 1], X[:, 0].astype(float))


@pytest.mark.parametrize("threshold", [0.05, 0.95])
def test_the_threshold_of_a_binary_net(threshold, few):
    X, y, _ = few
    net = NeuralNetBinaryClassifier(
        OneLogitMLP, threshold=threshold, train_split=None, verbose=0
    )
    clf = quick(net).fit(X, y > 7)
    second = clf.predict_proba(X)[:, 1]
    np.testing.assert_array_equal(clf.predict(X), second > threshold)
    assert not np.array_equal(clf.predict(X), second > 0.5)


class AdaptedMLP(SmallMLP):
    """A branch beside the head that does nothing before it is trained."""

    def __init__(self, n_features: int, n_classes: int):
        super().__init__(n_features, n_classes)
        self.skip = nn.Linear(n_features, n_classes)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X) + self.skip(X)


def test_a_branch_that_comes_to_life_in_stage_one_is_not_dropped(digits):
    net = small_net(AdaptedMLP, max_epochs=30, lr=0.03)
    clf = quick(net, max_epochs=1, weights=WeightVector(lr=0))
    clf.fit(digits.X, digits.y, meta=digits.meta)
    losses = clf.history_[-2:, "train_loss"]
    assert losses[1] < 1.5 * losses[0]  # with weights of 1: training goes on


class SqueezedMLP(SmallMLP):
    """Takes no batch of a single row."""

    def forward(self, X: Tensor) -> Tensor:
        hidden = self.body(X)[:, None].squeeze()
        return self.head(hidden)


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_modules_that_take_no_single_row(finetune, few):
    X, y, meta = few
    clf = quick(small_net(SqueezedMLP), finetune=finetune).fit(X, y, meta=meta)
    assert clf.predict_proba(X[:1]).shape == (1, 4)


@pytest.mark.parametrize("n", [65, 33])
def test_batch_norm_and_a_last_row_of_its_own(n, digits):
    """Batches are of 32 rows for nets that are made here."""
    rows = np.r_[np.arange(n - 2), -1, -2]
    X, y = digits.X[rows], digits.y[rows] % 2
    assert quick(NormDropoutMLP).fit(X, y).history_[0]["batches"]
    quick(NormDropoutMLP, finetune="all").partial_fit(X, y, classes=[0, 1])


class BagNet(nn.Module):
    def __init__(self, n_classes: int):
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 16)
        self.head = nn.Linear(16, n_classes)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.bag(X))


def test_a_bag_of_tokens(few):
    X, y, meta = few
    tokens, meta_tokens = ((16 * x).astype(int) for x in (X, meta[0]))
    clf = quick(small_net(BagNet)).fit(tokens, y, meta=(meta_tokens, meta[1]))
    assert clf.predict_proba(tokens).shape == (len(y), 4)


class DictMLP(SmallMLP):
    def forward(self, X: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(X)}


class ListMLP(SmallMLP):
    def forward(self, X: Tensor) -> list[Tensor]:
        return [super().forward(X), X]


class NoScoresMLP(SmallMLP):
    def forward(self, X: Tensor) -> dict[str, Tensor]:
        return {"scores": super().forward(X)}


@pytest.mark.parametrize("module", [DictMLP, ListMLP])
def test_scores_in_a_dict_or_a_list(module, few):
    X, y, meta = few
    expected = quick(small_net()).fit(X, y, meta=meta)
    assert_same_result(quick(small_net(module)).fit(X, y, meta=meta), expected, X)


def test_a_module_that_returns_no_scores(few):
    X, y, _ = few
    with pytest.raises(TypeError, match="returned a dict, not a tensor of scores"):
        quick(small_net(NoScoresMLP)).fit(X, y)


# torch.compile


@pytest.fixture
def _dynamo():
    """Let the compiler give the warnings that it gives itself while tracing."""
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compiled_nets_learn_the_same(variant, few):
    X, y, meta = few
    plain = quick(small_net(NormDropoutMLP, max_epochs=2), **variant)
    net = small_net(
        NormDropoutMLP, max_epochs=2, compile=True, compile__backend="eager"
    )
    compiled = quick(net, **variant)
    for clf in (plain, compiled):
        clf.fit(X, y, meta=meta)
    assert_same_result(compiled, plain, X)
    for clf in (plain, compiled):
        clf.partial_fit(X, y)
    assert_same_result(compiled, plain, X)
    assert hasattr(compiled.net_.module_, "_orig_mod")


@pytest.mark.usefixtures("_dynamo")
def test_a_module_that_was_compiled_and_used_before(few):
    """Layers hooked later are overlooked by what is compiled."""
    X, y, meta = few
    torch.manual_seed(0)
    module = SmallMLP(64, 4)
    compiled = torch.compile(module, backend="eager")
    for training in (True, False):
        compiled.train(training)(torch.from_numpy(X[:4]))
    for variant in VARIANTS:
        first = quick(compiled, **variant).fit(X, y, meta=meta)
        second = quick(module, **variant).fit(X, y, meta=meta)
        assert_same_result(first, second, X)


@pytest.mark.slow
@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("weights", ["vector", "semirelaxed"])
def test_a_net_compiled_by_inductor(weights, digits):
    results = []
    for params in ({"compile": True}, {}):
        clf = quick(small_net(**params), finetune="all", weights=weights)
        clf.fit(digits.X, digits.y, meta=digits.meta)
        results.append(clf.predict_proba(digits.X_test))
    np.testing.assert_allclose(*results, atol=1e-3)


def test_default_net_on_breast_cancer():
    X, y = load_breast_cancer(return_X_y=True)
    clf = OTReweightedClassifier(random_state=0).fit(scale(X), y)
    assert clf.score(scale(X), y) > 0.97
