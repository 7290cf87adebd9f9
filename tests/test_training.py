from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from nets_for_tests import (
    NormDropoutMLP,
    OneLogitMLP,
    SmallMLP,
    SoftmaxMLP,
    small_net,
)
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.callbacks import GradientNormClipping
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn.functional import cross_entropy

from sk_otreweight import OTReweightedClassifier, WeightVector
from sk_otreweight.extraction import extract_features
from sk_otreweight.features import find_head
from sk_otreweight.loaders import RowLoader
from sk_otreweight.progress import Progress
from sk_otreweight.stage2 import Stage2Step
from sk_otreweight.training import TrainingRun

N, D, K = 40, 5, 3
rng = np.random.default_rng(0)
Y = rng.choice(K, p=[0.6, 0.3, 0.1], size=N)
Y[:K] = range(K)
X = (rng.normal(size=(N, D)) + 2 * np.eye(K, D)[Y]).astype(np.float32)
META = X[:6], Y[:6]


def make_net(module=SmallMLP, **params):
    sizes = {"module__n_features": D, "module__n_classes": K}
    given = {"batch_size": 16, "iterator_train": RowLoader, "max_epochs": 2}
    return small_net(module, **(sizes | given | params))


def state(net):
    return {name: value.clone() for name, value in net.module_.state_dict().items()}


def assert_same(first, second, **tolerance):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


def changed(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


class Uniform(Stage2Step):
    """Weighs all rows alike."""

    def weigh(self, batch):
        return torch.ones(len(batch.losses))


class Watching(Stage2Step):
    """Gives each row a weight of its own, and remembers what it was given."""

    needs_features = True

    def __init__(self):
        self.batches, self.epochs = [], 0

    def begin_epoch(self, batches):
        self.epochs += 1

    def weigh(self, batch):
        self.batches.append(batch)
        return batch.rows / N

    def record(self):
        return {"mean_row": 7.0}


def head_of(net):
    net.module_.eval()
    return find_head(net.module_, net.infer, X[:4])


def run_stage_two(net, step, epochs=1, **params):
    y, progress = params.pop("y", Y), Progress((0, epochs))
    with TrainingRun(net, X, y, {"mean_row": 0.0}, progress) as run:
        run.stage_two(epochs, step, head=head_of(net), **params)
    return net


# The step


@pytest.mark.parametrize("cached", [False, True])
def test_what_a_step_is_given(cached):
    net = make_net(NormDropoutMLP, batch_size=16).initialize()
    step, before = Watching(), state(net)
    features = extract_features(net, head_of(net), X)
    inputs = features if cached else torch.from_numpy(X)
    frozen = {"freeze": True, "cached": features} if cached else {"freeze": True}
    scores = net.module_(torch.from_numpy(X))  # in evaluation mode, as when frozen
    losses = cross_entropy(scores, torch.from_numpy(Y), reduction="none").detach()
    run_stage_two(net, step, epochs=2, **frozen)
    assert step.epochs == 2
    assert [len(batch.losses) for batch in step.batches] == [16, 16, 8] * 2
    first = step.batches[0]
    assert torch.equal(first.X, inputs[first.rows])
    assert torch.equal(first.labels, torch.from_numpy(Y)[first.rows])
    torch.testing.assert_close(first.features, features[first.rows])
    assert not first.features.requires_grad
    torch.testing.assert_close(first.losses.detach(), losses[first.rows])
    assert first.losses.requires_grad
    rows = torch.cat([batch.rows for batch in step.batches[:3]])
    assert rows.sort().values.tolist() == list(range(N))
    weighted = (first.rows / N * first.losses.detach()).mean().item()
    recorded = net.history[0]["batches"][0]["train_loss"]
    assert recorded == pytest.approx(weighted, rel=1e-6)
    assert net.history[:, "mean_row"] == [7.0, 7.0]
    assert all("head" in name for name in changed(before, state(net)))


def test_features_in_training_mode_are_those_of_the_batch():
    """With dropout: what the head was given in the very pass that is trained."""
    net = make_net(NormDropoutMLP).initialize()
    step = Watching()
    caught = []
    net.module_.head.register_forward_pre_hook(
        lambda module, args: caught.append(args[0].detach())
    )
    run_stage_two(net, step)
    for batch, given in zip(step.batches, caught[-3:], strict=True):
        assert torch.equal(batch.features, given)


def test_features_are_not_read_if_the_step_needs_none():
    class Blind(Watching):
        needs_features = False

    net, step = make_net().initialize(), Blind()
    run_stage_two(net, step)
    assert all(batch.features is None for batch in step.batches)


def test_one_forward_pass_per_batch():
    net, calls = make_net().initialize(), []
    head = head_of(net)
    with TrainingRun(net, X, Y, {}, Progress((0, 2))) as run:
        net.module_.register_forward_hook(lambda *args: calls.append(1))
        run.stage_two(2, Watching(), head=head)
    assert len(calls) == 6


class L1Net(NeuralNetClassifier):
    """Adds a penalty to the loss, as skorch's documentation shows."""

    def get_loss(self, y_pred, y_true, X=None, training=False):
        loss = super().get_loss(y_pred, y_true, X=X, training=training)
        return loss + 0.01 * sum(w.abs().sum() for w in self.module_.parameters())


def nets():
    sizes = {
        "module__n_features": D,
        "module__n_classes": K,
        "batch_size": 16,
        "iterator_train": RowLoader,
        "train_split": None,
        "verbose": 0,
    }
    return {
        "cross entropy": make_net(),
        "dropout": make_net(NormDropoutMLP),
        "nll": make_net(SoftmaxMLP, criterion=nn.NLLLoss),
        "label smoothing": make_net(criterion__label_smoothing=0.2),
        "momentum": make_net(
            optimizer=torch.optim.SGD, optimizer__momentum=0.9, lr=0.1
        ),
        "weight decay": make_net(optimizer__weight_decay=0.1),
        "parameter groups": make_net(optimizer__param_groups=[("head.*", {"lr": 0.1})]),
        "lbfgs": make_net(optimizer=torch.optim.LBFGS, lr=0.5, batch_size=-1),
        "penalty": L1Net(
            SmallMLP,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            **sizes,
        ),
        "clipping": make_net(callbacks=[GradientNormClipping(0.1)]),
        "two scores": NeuralNetBinaryClassifier(
            OneLogitMLP,
            optimizer=torch.optim.Adam,
            **{k: v for k, v in sizes.items() if k != "module__n_classes"},
        ),
    }


@pytest.mark.parametrize("kind", list(nets()))
def test_uniform_weights_are_plain_training(kind):
    """Stage 2 with weights 1 does the same steps as skorch, whatever the net."""
    y = (Y > 0).astype(np.float32) if kind == "two scores" else Y
    plain, ours = nets()[kind], nets()[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain.initialize().partial_fit(X, y, epochs=3)
        torch.manual_seed(3)
        run_stage_two(ours.initialize(), Uniform(), epochs=3, y=y)
    np.testing.assert_allclose(
        ours.history[:, "train_loss"], plain.history[:, "train_loss"], rtol=1e-6
    )
    assert_same(state(plain), state(ours), rtol=1e-5, atol=1e-6)


def test_extra_batch_is_added():
    class Extra(Uniform):
        def extra_batch(self):
            return 2.5, torch.from_numpy(META[0]), torch.from_numpy(META[1])

    net = make_net(batch_size=-1).initialize()
    module = net.module_

    def loss(X, y):
        with torch.no_grad():
            return cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))

    expected = loss(X, Y) + 2.5 * loss(*META)
    run_stage_two(net, Extra())
    assert net.history[0, "train_loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("own_loss", [False, True])
def test_nothing_of_the_net_stays_replaced(own_loss):
    net = make_net().initialize()
    mine = partial(NeuralNetClassifier.get_loss, net)
    if own_loss:  # a method that the user put on the instance
        vars(net)["get_loss"] = mine
    before = set(vars(net))
    run_stage_two(net, Watching(), freeze=True)
    assert set(vars(net)) - {"classes_inferred_"} == before
    if own_loss:
        assert net.get_loss is mine
    assert net.criterion_.reduction == "mean"
    assert all(parameter.requires_grad for parameter in net.module_.parameters())
    for layer in net.module_.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_of_the_net_stays_replaced_after_an_error(error):
    class Failing(Watching):
        def weigh(self, batch):
            raise error("stop here")

    net = make_net(criterion__reduction="sum").initialize()
    before = set(vars(net))
    if error is KeyboardInterrupt:
        run_stage_two(net, Failing(), freeze=True)
    else:
        with pytest.raises(error, match="stop here"):
            run_stage_two(net, Failing(), freeze=True)
    assert set(vars(net)) - {"classes_inferred_"} == before
    assert net.criterion_.reduction == "sum"
    assert all(parameter.requires_grad for parameter in net.module_.parameters())
    assert all(not layer._forward_pre_hooks for layer in net.module_.modules())


def test_freezing_a_net_whose_features_need_all_parameters():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(D, K, bias=False)

        def forward(self, X):
            return self.head(X @ self.head.weight.T @ self.head.weight)

    net = small_net(Shared, batch_size=16).initialize()
    with pytest.raises(ValueError, match="no parameter to train") as error:
        run_stage_two(net, Uniform(), freeze=True)
    assert "finetune='all'" in str(error.value)
    assert net.module_.head.weight.requires_grad


# The run as a whole


def make_clf(net, **params):
    return OTReweightedClassifier(
        net, **({"max_epochs": 3, "random_state": 0} | params)
    )


@pytest.mark.parametrize("finetune", ["head", "all"])
@pytest.mark.parametrize("weights", ["vector", "net", "semirelaxed"])
def test_lbfgs(weights, finetune):
    """The optimizer asks for the loss many times; the weights are moved once."""
    net = make_net(optimizer=torch.optim.LBFGS, lr=0.5, batch_size=-1)
    clf = make_clf(net, weights=weights, finetune=finetune, max_epochs=4)
    clf.fit(X, Y, meta=META)
    assert clf.score(X, Y) > 0.8
    if weights == "vector":
        adam = make_net(batch_size=-1)
        one_step = make_clf(adam, max_epochs=4, finetune="head", cost="label")
        lbfgs = make_clf(net, max_epochs=4, finetune="head", cost="label")
        for clf in (one_step, lbfgs):  # label weights do not depend on the features
            clf.set_params(weights=weights).fit(X, Y)
        np.testing.assert_allclose(
            lbfgs.sample_weight_, one_step.sample_weight_, rtol=1e-5
        )


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_reduction_and_loss_are_those_of_the_net_again(finetune):
    net = make_net(criterion__reduction="mean")
    clf = make_clf(net, finetune=finetune).fit(X, Y, meta=META)
    assert clf.net_.criterion_.reduction == "mean"
    assert "get_loss" not in vars(clf.net_)
    assert "infer" not in vars(clf.net_)
    clf.net_.partial_fit(X, Y, epochs=1)  # a skorch net as any other
    assert len(clf.net_.history) == 6


def test_validation_loss_is_plain_in_both_stages():
    """It is the mean loss of the split, not weighted."""
    net = make_net(train_split=ValidSplit(3), batch_size=-1)
    clf = make_clf(net, finetune="all", weights="vector", max_epochs=1)
    clf.fit(X, Y, meta=META)
    valid = np.asarray(clf.net_.get_split_datasets(X, Y)[1].indices)
    with torch.no_grad():
        scores = clf.net_.module_(torch.from_numpy(X[valid]))
    expected = cross_entropy(scores, torch.from_numpy(Y[valid])).item()
    assert clf.history_[-1, "valid_loss"] == pytest.approx(expected, rel=1e-5)


def test_features_of_all_rows_are_those_in_evaluation_mode():
    net = make_net(NormDropoutMLP, max_epochs=1).fit(X, Y)
    head = head_of(net)
    net.module_.train()
    features = extract_features(net, head, X)
    with torch.no_grad():
        expected = net.module_.eval().body(torch.from_numpy(X))
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad


@pytest.mark.parametrize("finetune", ["head", "all"])
def test_training_goes_on_from_the_optimizers_state(finetune):
    """One optimizer for both stages: its moments are not forgotten."""
    clf = make_clf(make_net(), weights=WeightVector(lr=0), finetune=finetune)
    clf.fit(X, Y, meta=META)
    steps = {
        name: int(clf.net_.optimizer_.state[parameter]["step"])
        for name, parameter in clf.net_.module_.named_parameters()
    }
    both, first = 5 * 3, 2 * 3
    assert steps["head.weight"] == both
    assert steps["body.0.weight"] == (first if finetune == "head" else both)
