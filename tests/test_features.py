from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from sk_otreweight.features import (
    FeatureExtractor,
    Head,
    Tap,
    _Forward,
    extractor_parameters,
    find_head,
    first_output,
)

D, H, K = 6, 8, 3  # inputs, features, classes


class Body(nn.Module):
    """What most of the zoo has in common."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, H), nn.ReLU())


class Plain(Body):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(H, K)

    def forward(self, X):
        return self.head(self.body(X))


class Softmax(Plain):
    def forward(self, X):
        return super().forward(X).softmax(-1)


class LogSoftmax(Plain):
    def forward(self, X):
        return super().forward(X).log_softmax(-1)


class Sigmoid(Plain):
    def forward(self, X):
        return super().forward(X).sigmoid()


class WithAuxiliary(Plain):
    """Returns (scores, auxiliary scores), and computes the latter last."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(H, K)

    def forward(self, X):
        features = self.body(X)
        return self.head(features), self.aux(features)


class HeadFirst(nn.Module):
    """The head is registered before the body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(H, K)
        self.body = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H))

    def forward(self, X):
        return self.head(self.body(X))


class Tied(nn.Module):
    """Embeds and scores with the same matrix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(K, H, bias=False)
        self.body = nn.Linear(D, H)
        self.head = nn.Linear(H, K, bias=False)
        self.mix = nn.Linear(H, H)
        self.embed.weight = nn.Parameter(torch.randn(H, K))
        self.head.weight = nn.Parameter(torch.randn(K, H))
        self.body.weight = nn.Parameter(torch.randn(H, D))

    def forward(self, X):
        return self.head(self.mix(self.body(X)).relu())


class DropoutBefore(Plain):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, X):
        return self.head(self.dropout(self.body(X)))


class WeightNorm(Plain):
    def __init__(self):
        super().__init__()
        self.head = weight_norm(self.head)


class OneLogit(Body):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(H, 1)

    def forward(self, X):
        return self.head(self.body(X)).squeeze(-1)


class Calibrated(Plain):
    """A second layer after the scores; that one is the head then."""

    def __init__(self):
        super().__init__()
        self.calibration = nn.Linear(K, K)

    def forward(self, X):
        return self.calibration(super().forward(X))


class Functional(Body):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, H))

    def forward(self, X):
        return F.linear(self.body(X), self.weight)


class Cosine(Functional):
    def forward(self, X):
        return F.normalize(self.body(X)) @ F.normalize(self.weight).T


class ConvolutionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, K, 1)

    def forward(self, X):
        return self.head(X[:, None, None]).mean((2, 3))


class ByKeyword(Plain):
    def forward(self, X):
        return self.head(input=self.body(X))


class CalledTwice(Plain):
    """The same head on two views."""

    def forward(self, X):
        features = self.body(X)
        first, second = self.head(features), self.head(features + 0.0)
        return (first + second) / 2


class ThreeHeads(Body):
    """An ensemble of equal heads at the start of its training."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(H, K) for _ in range(3))
        for head in self.heads:
            head.load_state_dict(self.heads[0].state_dict())

    def forward(self, X):
        features = self.body(X)
        return torch.stack([head(features) for head in self.heads]).mean(0)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Plain()

    def forward(self, X):
        return self.module(X)


class ScoreOfEachToken(nn.Module):
    """Scores every position, then picks one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(1, H)
        self.score = nn.Linear(H, K)

    def forward(self, X):
        return self.score(self.body(X[..., None]))[:, -1]


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.body.requires_grad_(False)


class Skip(Body):
    """A parameter that only the scores depend on, apart from the head."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(H, K)
        self.temperature = nn.Parameter(torch.ones(()))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, X):
        return self.head(self.body(X)) * self.temperature


FOUND = [
    (Plain, "head", "logits"),
    (Softmax, "head", "softmax"),
    (LogSoftmax, "head", "log_softmax"),
    (Sigmoid, "head", "sigmoid"),
    (WithAuxiliary, "head", None),  # a loss may use the other output
    (HeadFirst, "head", "logits"),
    (ByKeyword, "head", "logits"),
    (Tied, "head", "logits"),
    (DropoutBefore, "head", "logits"),
    (WeightNorm, "head", "logits"),
    (OneLogit, "head", "logits"),
    (Calibrated, "calibration", "logits"),
    (Wrapped, "module.head", "logits"),
    (Frozen, "head", "logits"),
]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(module_class):
    return module_class().eval(), torch.randn(4, D)


@pytest.mark.parametrize(("module_class", "name", "activation"), FOUND)
def test_head_is_found(module_class, name, activation):
    module, X = make(module_class)
    head = find_head(module, module, X)
    assert (head.name, head.function) == (name, None)
    assert head.activation == activation
    assert head.can_replay == (activation is not None)
    assert head.output_shape == tuple(first_output(module(X)).shape[1:])


@pytest.mark.parametrize(("module_class", "name", "activation"), FOUND)
def test_finding_the_head_leaves_no_trace(module_class, name, activation):
    module, X = make(module_class)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    find_head(module, module, X)
    for layer in module.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("module_class", "name"),
    [(m, n) for m, n, a in FOUND if a is not None],
)
def test_replay_is_the_modules_output(module_class, name):
    module, _ = make(module_class)
    X = torch.randn(11, D)
    head = find_head(module, module, X[:4])
    features = head.features(module, module, X)
    assert features.shape[0] == 11
    torch.testing.assert_close(head.replay(module, features), module(X))
    for n_rows in (1, 2):
        replayed = head.replay(module, features[:n_rows])
        assert replayed.shape == module(X[:n_rows]).shape


@pytest.mark.parametrize("module_class", [Plain, HeadFirst, DropoutBefore, WeightNorm])
def test_features_are_the_input_of_the_head(module_class):
    module, X = make(module_class)
    head = find_head(module, module, X)
    expected = module.body(X)
    torch.testing.assert_close(head.features(module, module, X), expected)
    with head.tap(module) as tap:
        module(X)
    torch.testing.assert_close(tap.features(), expected)


def test_features_after_dropout_in_training():
    """In training the features are those that the head is given, dropout included."""
    module, X = make(DropoutBefore)
    head = find_head(module, module, X)
    module.train()
    with head.tap(module) as tap:
        scores = module(X)
    features = tap.features()
    assert (features == 0).sum() > (module.body(X) == 0).sum()
    torch.testing.assert_close(module.head(features), scores)


def test_features_of_the_calibrated_are_the_scores():
    module, X = make(Calibrated)
    head = find_head(module, module, X)
    assert head.features(module, module, X).shape == (4, K)
    named = find_head(module, module, X, "head")
    assert named.features(module, module, X).shape == (4, H)
    assert not named.can_replay  # something follows it


@pytest.mark.parametrize("module_class", [Functional, Cosine])
def test_functional_head_is_asked_for(module_class):
    module, X = make(module_class)
    with pytest.raises(ValueError, match="Could not find") as error:
        find_head(module, module, X)
    assert "body.0 (input (4, 6))" in str(error.value)
    assert "head='<name of a module>'" in str(error.value)
    assert "head(module, X)" in str(error.value)


def test_module_without_linear_layers_is_asked_for():
    module, X = make(ConvolutionalHead)
    with pytest.raises(ValueError, match="in order: none"):
        find_head(module, module, X)


@pytest.mark.parametrize(
    ("module_class", "candidates"),
    [(CalledTwice, "['head']"), (ThreeHeads, "['heads.0', 'heads.1', 'heads.2']")],
)
def test_ambiguous_head_is_asked_for(module_class, candidates):
    module, X = make(module_class)
    with pytest.raises(ValueError, match="ambiguous") as error:
        find_head(module, module, X)
    assert candidates in str(error.value)
    assert "head='<one of them>'" in str(error.value)


def test_scores_of_each_token():
    module, X = make(ScoreOfEachToken)
    with pytest.raises(ValueError, match=r"score \(input \(4, 6, 8\)\)"):
        find_head(module, module, X)
    named = find_head(module, module, X, "score")
    with pytest.raises(ValueError, match=r"shape \(4, 6, 8\).*\(n, d\)"):
        named.features(module, module, X)


def test_head_by_name():
    module, X = make(Plain)
    assert find_head(module, module, X, "head").can_replay
    deeper = find_head(module, module, X, "body.1")  # a ReLU: any module will do
    assert not deeper.can_replay
    assert deeper.features(module, module, X).shape == (4, H)
    twice, X = make(CalledTwice)
    assert find_head(twice, twice, X, "head").name == "head"


def test_a_layer_that_is_called_by_keyword_is_listed():
    module, X = make(ByKeyword)
    with pytest.raises(ValueError, match=r"head \(input \(4, 8\)\)"):
        find_head(module, lambda X: module(X) ** 2, X)


def test_one_of_several_equal_heads_is_not_replayed():
    """Trained alone it would no longer return the output of the module."""
    module, X = make(ThreeHeads)
    assert not find_head(module, module, X, "heads.1").can_replay


def test_unknown_name_lists_the_modules():
    module, X = make(Plain)
    with pytest.raises(ValueError, match="head='fc' is not a module") as error:
        find_head(module, module, X, "fc")
    assert "['body', 'body.0', 'body.1', 'head']" in str(error.value)


def test_name_of_a_module_that_is_not_called():
    module, X = make(Plain)
    module.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="head='spare' was not called"):
        find_head(module, module, X, "spare")


def test_head_by_function():
    module, X = make(Functional)
    head = find_head(module, module, X, lambda module, X: module.body(X))
    assert not head.can_replay
    torch.testing.assert_close(head.features(module, module, X), module.body(X))
    with head.tap(module) as tap:  # nothing is tapped
        module(X)
    assert tap.caught == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.zeros(4, 2, 2), r"shape \(4, 2, 2\)"),
        (np.zeros((4, 2)), "a ndarray"),
        (None, "a NoneType"),
    ],
)
def test_function_that_returns_no_features(returned, message):
    head = Head(function=lambda module, X: returned)
    with pytest.raises(ValueError, match=message + ".*one vector per row"):
        head.features(nn.Identity(), nn.Identity(), torch.zeros(4, 2))


def test_head_that_is_not_called_any_more():
    module, X = make(Plain)
    head = find_head(module, module, X)
    with pytest.raises(RuntimeError, match="was not called"):
        head.features(module, module.body, X)


def test_infer_is_what_runs_the_module():
    """A net may change the inputs before the module sees them."""
    module, X = make(Plain)

    def infer(X):
        return module(2 * X)

    head = find_head(module, infer, X)
    torch.testing.assert_close(head.features(module, infer, X), module.body(2 * X))


@pytest.mark.parametrize(
    ("module_class", "expected"),
    [
        (Plain, {"body.0.weight", "body.0.bias"}),
        (Softmax, {"body.0.weight", "body.0.bias"}),
        (WithAuxiliary, {"body.0.weight", "body.0.bias"}),
        (WeightNorm, {"body.0.weight", "body.0.bias"}),
        (Skip, {"body.0.weight", "body.0.bias"}),
        (HeadFirst, {"body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"}),
        (Frozen, set()),  # those that are not trained anyway are not listed
    ],
)
def test_extractor_parameters(module_class, expected):
    module, X = make(module_class)
    name = None if module_class is not Skip else "head"
    head = find_head(module, module, X, name)
    assert extractor_parameters(head, module, module, X) == expected
    assert all(parameter.grad is None for parameter in module.parameters())


def test_extractor_parameters_of_a_deeper_head():
    module, X = make(HeadFirst)
    head = find_head(module, module, X, "body.2")
    assert extractor_parameters(head, module, module, X) == {
        "body.0.weight",
        "body.0.bias",
    }


def test_parameters_behind_a_relu_that_is_off_belong_to_the_extractor():
    """Their gradient is zero for these rows, but they are used."""
    module, X = make(Plain)
    with torch.no_grad():
        module.body[0].bias.fill_(-1e3)
    head = find_head(module, module, X)
    names = extractor_parameters(head, module, module, X)
    assert names == {"body.0.weight", "body.0.bias"}


def test_a_weight_tied_to_the_extractor_belongs_to_it():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(K, H, bias=False)
            self.head = nn.Linear(H, K, bias=False)
            self.head.weight = nn.Parameter(self.body.weight.detach().T.clone())

        def forward(self, X):
            features = F.linear(X[:, :K], self.head.weight.T)
            return self.head(features)

    module, X = make(Shared)
    head = find_head(module, module, X)
    assert extractor_parameters(head, module, module, X) == {"head.weight"}


def test_first_output():
    scores = torch.zeros(2, 3)
    assert first_output(scores) is scores
    assert first_output((scores, None)) is scores


@pytest.mark.parametrize("module_class", [Plain, Softmax, WeightNorm])
def test_features_under_other_parameters(module_class):
    module, X = make(module_class)
    head = find_head(module, module, X)
    extractor = FeatureExtractor(module, head, lambda X: module(X))
    torch.testing.assert_close(extractor(X), module.body(X))
    weight = (2 * module.body[0].weight).detach().requires_grad_()
    moved = functional_call(extractor, {"module.body.0.weight": weight}, (X,))
    expected = F.linear(X, weight, module.body[0].bias).relu()
    torch.testing.assert_close(moved, expected)
    moved.sum().backward()
    assert weight.grad.abs().sum() > 0
    assert module.body[0].weight.grad is None


@pytest.mark.parametrize("kind", [Tap, _Forward])
def test_hooks_leave_the_passes_of_other_threads_alone(kind):
    """Also of one that sees a hook before it is known to take keywords."""
    watcher, layer = kind(), nn.Linear(2, 3)
    if kind is Tap:
        layer.register_forward_pre_hook(watcher.catch)
    else:
        layer.register_forward_hook(partial(watcher._note, "layer"))
    with ThreadPoolExecutor(1) as other:
        assert other.submit(layer, torch.ones(4, 2)).result().shape == (4, 3)
    assert not (watcher.caught if kind is Tap else watcher.outputs)
