"""Baselines on every form of input, and on nets of every make."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets_for_tests import OneLogitMLP, SoftmaxMLP, small_net
from sklearn.base import clone
from sklearn.datasets import make_blobs
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import Tensor, nn
from torch.utils.data import Dataset

from sk_otreweight import OTReweightedClassifier, compare, load
from sk_otreweight.baselines import (
    BASELINES,
    CrossEntropyClassifier,
    CrossEntropyWithMetaClassifier,
    InfluenceBalancedClassifier,
    InfluenceBalancedFocalClassifier,
    LDAMClassifier,
    LDAMDRWClassifier,
    MetaSAugClassifier,
)
from sk_otreweight.baselines.base import BaselineStep


@pytest.fixture(scope="module")
def data():
    X, y = make_blobs([60, 30, 10], n_features=4, random_state=0, cluster_std=2.0)
    X = X.astype(np.float32)
    meta = np.concatenate([np.flatnonzero(y == k)[-3:] for k in range(3)])
    return X, y, meta


# Meta rows that are trained on


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([a, b], 1))


class Items(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.X[row], self.y[row]


def as_given(form, X, y):
    if form == "tensor":
        return torch.from_numpy(X), y
    if form == "dict":
        return {"a": X[:, :1], "b": X[:, 1:]}, y
    if form == "dataset":
        return Items(X, y), None
    return X, y


@pytest.mark.parametrize("form", ["array", "tensor", "dict", "dataset"])
def test_with_meta_rows_is_plain_training_on_all(form, data):
    X, y, meta = data
    rest = np.setdiff1d(np.arange(len(y)), meta)
    order = np.concatenate([rest, meta])
    net = NeuralNetClassifier(
        TwoInputs if form == "dict" else nn.Linear(4, 3),
        criterion=nn.CrossEntropyLoss,
        train_split=None,
        verbose=0,
        max_epochs=2,
    )
    X_meta, y_meta = as_given(form, X[meta], y[meta])
    given = (X_meta, y[meta]) if y_meta is None else (X_meta, y_meta)
    clf = CrossEntropyWithMetaClassifier(net, random_state=0)
    clf.fit(
        *as_given(form, X[rest], y[rest]), meta=given[0] if form == "dataset" else given
    )
    plain = CrossEntropyClassifier(net, random_state=0)
    plain.fit(*as_given(form, X[order], y[order]))
    rows, _ = as_given(form, X, y)
    np.testing.assert_allclose(
        clf.predict_proba(rows), plain.predict_proba(rows), atol=1e-6
    )
    assert clf.sample_weight_.shape == rest.shape


def test_a_mask_of_meta_rows_is_no_mask_then(data):
    X, y, meta = data
    mask = np.isin(np.arange(len(y)), meta)
    clf = CrossEntropyWithMetaClassifier(small_net(max_epochs=1), random_state=0)
    clf.fit(X, y, meta_mask=mask)
    np.testing.assert_array_equal(clf.sample_weight_, 1)


def test_meta_rows_of_another_form(data):
    X, y, meta = data
    clf = CrossEntropyWithMetaClassifier(nn.Linear(4, 3), random_state=0)
    with pytest.raises(TypeError, match="must be of the same form"):
        clf.fit(Items(X, y), None, meta=(X[meta], y[meta]))


# Collate functions of one's own


def scale_down(items):
    """Divide by a power of two, which is exact: twice would not go unnoticed."""
    rows, labels = zip(*items, strict=True)
    return torch.tensor(np.stack(rows)) / 16, torch.tensor(labels)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("l2rw", {}),
        ("l2rw", {"finetune": "head"}),
        ("meta_head", {}),
        ("metasaug", {"finetune": "head"}),
        ("bbn", {}),
        ("oltr", {}),
        ("disalign", {}),
        ("ot_posthoc", {}),
    ],
)
def test_a_collate_of_ones_own_is_applied_once(name, params, is_given, data):
    X, y, meta = data
    given = {"meta": Items(16 * X[meta], y[meta])} if is_given else {}
    names = ("iterator_train__collate_fn", "iterator_valid__collate_fn")
    # Of one's own, so that neither fit knows the rows of its batches beforehand.
    loader = {"iterator_train__shuffle": False, "iterator_train__num_workers": 0}
    net = small_net(max_epochs=2, **loader)
    plain = BASELINES[name](net, random_state=0, **params)
    plain.fit(X, y, meta=(X[meta], y[meta]) if is_given else None)
    net = net.set_params(**dict.fromkeys(names, scale_down))
    clf = BASELINES[name](net, random_state=0, **params)
    clf.fit(Items(16 * X, y), None, **given)
    np.testing.assert_allclose(
        clf.predict_proba(Items(16 * X, y)), plain.predict_proba(X), atol=1e-6
    )


# Nets that return other things than a score per class


class OneProbability(OneLogitMLP):
    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X).sigmoid()


SINGLE = {
    "logit": (OneLogitMLP, nn.BCEWithLogitsLoss),
    "probability": (OneProbability, nn.BCELoss),
}
ON_SCORES = [
    *("focal", "logit_adjustment", "balanced_softmax", "ib", "ib_cb", "ib_focal"),
    *("l2rw", "meta_weight_net", "meta_class_weight", "balms", "hu2019"),
]


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("name", ON_SCORES)
def test_a_single_score_for_two_classes(name, kind, data):
    X, y, meta = data
    rows, meta = y < 2, meta[y[meta] < 2]
    module, criterion = SINGLE[kind]
    net = NeuralNetBinaryClassifier(
        module,
        module__n_features=4,
        criterion=criterion,
        optimizer=torch.optim.Adam,
        lr=0.02,
        max_epochs=20,
        train_split=None,
        verbose=0,
    )
    clf = BASELINES[name](net, random_state=0)
    clf.fit(X[rows], y[rows], meta=(X[meta], y[meta]))
    assert clf.score(X[rows], y[rows]) > 0.8
    if name == "logit_adjustment":  # the shares of the classes are taken into account
        plain = CrossEntropyClassifier(net, random_state=0).fit(X[rows], y[rows])
        own, others = clf.predict_proba(X)[:, 1], plain.predict_proba(X)[:, 1]
        assert own.mean() > others.mean()


@pytest.mark.parametrize("name", ON_SCORES)
def test_nets_that_return_probabilities(name, data):
    X, y, meta = data
    net = small_net(SoftmaxMLP, criterion=nn.NLLLoss, max_epochs=20)
    clf = BASELINES[name](net, random_state=0).fit(X, y, meta=(X[meta], y[meta]))
    assert clf.score(X, y) > 0.7


# Rows that the net holds out


@pytest.mark.parametrize(
    "clf",
    [
        BASELINES["bbn"](),
        BASELINES["oltr"](),
        BASELINES["oltr"](finetune="all"),
        BASELINES["meta_head"](),
        BASELINES["l2rw"](),
        BASELINES["l2rw"](finetune="head"),
        OTReweightedClassifier(cost="label", meta_loss_weight=10.0),
    ],
    ids=str,
)
def test_rows_that_are_held_out_are_not_trained_on(clf, data):
    X, y, _ = data
    net = small_net(max_epochs=2, train_split=ValidSplit(3, stratified=True))
    _, valid = net.get_split_datasets(X, y)
    other = X.copy()
    other[valid.indices] *= -2
    clf.set_params(net=net, max_epochs=2, random_state=0)
    states = [clone(clf).fit(x, y).net_.module_.state_dict() for x in (X, other)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


# Schedules and variants


@pytest.mark.parametrize(
    ("clf", "reference"),
    [
        (InfluenceBalancedClassifier(start=1.0), CrossEntropyClassifier()),
        (LDAMDRWClassifier(start=1.0), LDAMClassifier()),
        (InfluenceBalancedFocalClassifier(gamma=0.0), InfluenceBalancedClassifier()),
        (LDAMClassifier(max_margin=0.0), LDAMDRWClassifier(max_margin=0.0, beta=0.0)),
    ],
    ids=["ib that never starts", "drw that never starts", "no focal term", "no margin"],
)
def test_what_is_the_same(clf, reference, data):
    X, y, _ = data
    for estimator in (clf, reference):
        estimator.set_params(net=small_net(max_epochs=3), max_epochs=2, random_state=0)
        estimator.fit(X, y)
    expected = reference.predict_proba(X)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    np.testing.assert_allclose(clf.prior_, reference.prior_, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "n_epochs", "first"),
    [
        *[(0.8, 1, 0), (0.8, 2, 1), (0.8, 4, 3), (0.8, 5, 4), (0.8, 6, 5)],
        *[(0.8, 10, 8), (0.8, 200, 160), (0.5, 1, 0), (0.5, 3, 2), (0.5, 10, 5)],
        *[(0.0, 1, 0), (0.0, 10, 0), (0.99, 10, 9), (1.0, 1, None), (1.0, 10, None)],
    ],
)
def test_where_the_last_part_of_the_training_begins(start, n_epochs, first):
    labels = torch.zeros(3)
    data = SimpleNamespace(labels=labels, is_stream=False, epochs=n_epochs)
    step, has_begun = BaselineStep(data), []
    for _ in range(n_epochs):
        step.begin_epoch(None)
        has_begun.append(step.has_begun(start))
    n_before = n_epochs if first is None else first
    assert has_begun == [False] * n_before + [True] * (n_epochs - n_before)


@pytest.mark.parametrize(
    ("clf", "without"),
    [
        (LDAMDRWClassifier(), LDAMClassifier()),
        (InfluenceBalancedClassifier(), CrossEntropyClassifier()),
    ],
    ids=["drw", "ib"],
)
@pytest.mark.parametrize("n_epochs", [1, 2, 4])
def test_short_trainings_have_a_last_part(clf, without, n_epochs, data):
    """What `prior_` says was in fact used."""
    X, y, _ = data
    for estimator in (clf, without):
        estimator.set_params(net=small_net(max_epochs=1), max_epochs=n_epochs - 1)
        estimator.set_params(random_state=0).fit(X, y)
    assert np.abs(clf.predict_proba(X) - without.predict_proba(X)).max() > 1e-4
    assert np.abs(clf.prior_ - without.prior_).max() > 0.1


@pytest.mark.parametrize(
    ("clf", "reference"),
    [
        (LDAMDRWClassifier(start=1.0), LDAMClassifier()),
        (InfluenceBalancedClassifier(start=1.0), CrossEntropyClassifier()),
    ],
    ids=["drw", "ib"],
)
def test_what_never_starts_does_not_in_a_stream(clf, reference, data):
    X, y, _ = data
    for estimator in (clf, reference):
        estimator.set_params(net=small_net(), random_state=0)
        estimator.partial_fit(X, y, classes=range(3))
    np.testing.assert_array_equal(clf.predict_proba(X), reference.predict_proba(X))
    np.testing.assert_array_equal(clf.prior_, reference.prior_)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ldam"])
def test_losses_of_the_augmentation(loss, data):
    X, y, meta = data
    clf = MetaSAugClassifier(small_net(max_epochs=20), loss=loss, random_state=0)
    assert clf.fit(X, y, meta=(X[meta], y[meta])).score(X, y) > 0.8


@pytest.mark.parametrize("loss", ["focal", "ldam"])
def test_losses_of_the_class_weights(loss, data):
    X, y, meta = data
    kind = BASELINES["meta_class_weight"]
    clf = kind(small_net(max_epochs=20), loss=loss, random_state=0)
    assert clf.fit(X, y, meta=(X[meta], y[meta])).score(X, y) > 0.8
    assert clf.begins_with == (None if loss == "ldam" else "net")


# Files, priors and bad parameters


def test_a_lone_layer_is_saved_and_loaded(data, tmp_path):
    X, y, _ = data
    net = small_net(nn.Linear, module__in_features=4, module__out_features=3)
    clf = LDAMClassifier(net, max_epochs=2, random_state=0).fit(X, y)
    clf.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_priors_of_the_weights(data):
    X, y, meta = data
    net = small_net(max_epochs=2)
    clf = OTReweightedClassifier(net, loss="net", random_state=0)
    clf.fit(X, y, meta=(X[meta], y[meta]))
    mass = np.bincount(y) * clf.class_weight_
    np.testing.assert_allclose(clf.prior_, mass / mass.sum())
    plain = clf.predict_proba(X)
    clf.set_params(target_prior="train")
    shares = np.bincount(y) / len(y)
    expected = plain * shares / clf.prior_
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected)
    clf.set_params(target_prior="uniform")
    expected = plain / clf.prior_
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected)
    clf.set_params(target_prior=[0.0, 0.5, 0.5])
    assert not clf.predict_proba(X)[:, 0].any()


@pytest.mark.parametrize(
    ("target_prior", "message"),
    [
        ("balanced", "target_prior='balanced'"),
        ([0.5, 0.5], "2 entries for 3 classes"),
        ([0.5, 0.5, 0.5], "sums up to 1.5"),
        ([1.5, -0.5, 0.0], "must be >= 0"),
        (0.5, "is one number"),
    ],
)
def test_bad_priors(target_prior, message, data):
    X, y, meta = data
    net = small_net(max_epochs=1)
    clf = OTReweightedClassifier(net, target_prior=target_prior, max_epochs=1)
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, meta=(X[meta], y[meta])).predict_proba(X)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("inverse", {"gamma": -1}),
        ("class_balanced", {"beta": 1.0}),
        ("focal", {"gamma": "2"}),
        ("cb_focal", {"link": "probit"}),
        ("ldam", {"max_margin": -1}),
        ("ldam", {"scale": np.inf}),
        ("ldam_drw", {"start": 2}),
        ("logit_adjustment", {"tau": None}),
        ("ib", {"alpha": "best"}),
        ("ib", {"detach": "no"}),
        ("ib_cb", {"beta": -1}),
        ("ib_focal", {"gamma": -1}),
        ("logit_adjustment_posthoc", {"tau": -1}),
        ("tau_norm", {"tau": "best"}),
        ("ncm", {"feature_transform": "l1"}),
        ("ot_posthoc", {"eps": 0}),
        ("disalign", {"rho": -1}),
        ("meta_head", {"per_class": 0}),
        ("l2rw", {"per_class": 0}),
        ("l2rw", {"finetune": "tail"}),
        ("l2rw", {"meta_batch_size": 0}),
        ("meta_weight_net", {"weight_lr": -1}),
        ("meta_weight_net", {"normalize": "sum"}),
        ("meta_class_weight", {"loss": "hinge"}),
        ("hu2019", {"decay": 0.5}),
        ("hu2019", {"normalize": "sum"}),
        ("metasaug", {"covariance": "low rank"}),
        ("metasaug", {"strength": -1}),
        ("balms", {"sampler_lr": -1}),
        ("oltr", {"finetune": "tail"}),
        ("ce", {"max_epochs": -1}),
        ("ce", {"verbose": 3}),
    ],
)
def test_bad_parameters(name, params, data):
    X, y, _ = data
    ((key, _),) = params.items()
    with pytest.raises(ValueError, match=f"{key}="):
        BASELINES[name](**params).fit(X, y)


def test_compared_on_a_dict_and_with_names_as_labels(data, tmp_path):
    X, y, _ = data
    names = np.array(["ant", "bee", "cat"], dtype=object)
    net = NeuralNetClassifier(
        TwoInputs, criterion=nn.CrossEntropyLoss, verbose=0, max_epochs=1
    )
    rows = {"a": X[:, :1], "b": X[:, 1:]}
    given = {"net": net, "seeds": 1, "path": tmp_path / "fits", "verbose": False}
    table = compare(["ce"], rows, names[y], rows, names[y], **given)
    assert table["error", ""].isna().all()
    assert ("recall_cat", "mean") in table.columns
    again = compare(["ce"], rows, names[y], rows, names[y], **given)
    assert table["fit_time", "mean"].item() == again["fit_time", "mean"].item()


def test_compared_on_a_data_set(data, tmp_path):
    X, y, meta = data
    items = Items(X, y)
    given = {"seeds": 1, "path": tmp_path / "fits", "verbose": False}
    given |= {"net": nn.Linear(4, 3), "meta": Items(X[meta], y[meta])}
    table = compare(["ce", "ce_meta"], items, y, items, y, **given)
    assert table["error", ""].isna().all()
