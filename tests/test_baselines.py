"""What every baseline can do, and has in common with the others."""

from __future__ import annotations

import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from nets_for_tests import NormDropoutMLP, SmallCNN, SmallMLP, small_net
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetClassifier
from torch import nn

from sk_otreweight import load
from sk_otreweight.baselines import BASELINES
from sk_otreweight.baselines.learned import MetaClassifier

NAMES = sorted(BASELINES)
STREAMING = [name for name in NAMES if BASELINES[name].can_stream]


def quick(name: str, net=None, **params):
    if net is None:
        net = small_net(max_epochs=2)
    return BASELINES[name](net, **{"max_epochs": 2, "random_state": 0} | params)


@pytest.fixture(scope="module")
def blobs():
    """Three classes of 60, 30 and 10 rows, and 5 meta rows of each."""
    X, y = make_blobs([80, 50, 30], n_features=4, random_state=0, cluster_std=2.0)
    X = X.astype(np.float32)
    rows = np.concatenate(
        [np.flatnonzero(y == k)[:n] for k, n in ((0, 60), (1, 30), (2, 10))]
    )
    meta = np.concatenate([np.flatnonzero(y == k)[-5:] for k in range(3)])
    return X[rows], y[rows], (X[meta], y[meta])


@pytest.mark.parametrize("name", NAMES)
def test_alone_it_learns(name, blobs):
    X, y, meta = blobs
    clf = BASELINES[name](small_net(max_epochs=20), random_state=0).fit(X, y, meta=meta)
    assert clf.score(X, y) > 0.8
    proba = clf.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    assert clf.sample_weight_.shape == y.shape
    assert clf.prior_.sum() == pytest.approx(1)
    assert len(clf.history_) == 30


@pytest.mark.parametrize("name", NAMES)
def test_meta_rows_are_optional(name, blobs):
    X, y, _ = blobs
    assert quick(name).fit(X, y).predict(X).shape == y.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_refit_is_identical_and_leaves_the_generators(name, blobs):
    X, y, meta = blobs
    clf = quick(name, small_net(NormDropoutMLP, max_epochs=2))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = clf.fit(X, y, meta=meta).predict_proba(X)
    again = clone(clf).fit(X, y, meta=meta).predict_proba(X)
    np.testing.assert_array_equal(first, clf.fit(X, y, meta=meta).predict_proba(X))
    np.testing.assert_array_equal(first, again)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(), numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
def test_clone_and_pickle(name, blobs):
    X, y, meta = blobs
    clf = quick(name).fit(X, y, meta=meta)
    cloned = clone(clf)
    assert not hasattr(cloned, "net_")
    own, others = clf.get_params(deep=False), cloned.get_params(deep=False)
    del own["net"], others["net"]
    assert own == others
    loaded = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_any_kind(name, blobs):
    X, y, (X_meta, y_meta) = blobs
    names = np.array(["ant", "bee", "cat"])
    clf = quick(name).fit(X, y, meta=(X_meta, y_meta))
    named = quick(name).fit(X, names[y], meta=(X_meta, names[y_meta]))
    np.testing.assert_array_equal(named.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(named.predict(X), names[clf.predict(X)])


@pytest.mark.parametrize("name", NAMES)
def test_two_classes(name, blobs):
    X, y, (X_meta, y_meta) = blobs
    rows, meta = y != 1, y_meta != 1
    clf = quick(name, small_net(max_epochs=20))
    clf.fit(X[rows], y[rows], meta=(X_meta[meta], y_meta[meta]))
    assert clf.predict_proba(X).shape == (len(X), 2)
    assert clf.score(X[rows], y[rows]) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_one_row(name, blobs):
    X, y, meta = blobs
    net = small_net(max_epochs=1, batch_size=1)
    clf = quick(name, net, max_epochs=1).fit(X[::2], y[::2], meta=meta)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_meta_set_that_lacks_a_class(name, blobs):
    X, y, (X_meta, y_meta) = blobs
    rows = y_meta != 1
    missed = pytest.warns(UserWarning, match="No meta row is of class")
    with missed if BASELINES[name].needs_meta else nullcontext():
        clf = quick(name).fit(X, y, meta=(X_meta[rows], y_meta[rows]))
    assert clf.predict_proba(X).shape == (len(X), 3)
    assert (clf.predict_proba(X) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_images(name, digits):
    X = digits.X.reshape(-1, 1, 8, 8).astype(np.float32)
    meta = digits.X_meta.reshape(-1, 1, 8, 8).astype(np.float32), digits.y_meta
    clf = quick(name, small_net(SmallCNN, max_epochs=1), max_epochs=1)
    clf.fit(X, digits.y, meta=meta)
    assert clf.predict_proba(X).shape == (len(X), 10)


@pytest.mark.parametrize("name", NAMES)
def test_a_net_that_is_trained_already(name, blobs):
    X, y, meta = blobs
    sized = {"module__n_features": 4, "module__n_classes": 3}
    net = small_net(max_epochs=20, **sized).fit(X, y)
    before = {k: v.clone() for k, v in net.module_.state_dict().items()}
    clf = quick(name, FrozenEstimator(net)).fit(X, y, meta=meta)
    assert len(clf.history_) == len(net.history) + 2
    for key, value in net.module_.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", STREAMING)
def test_a_stream(name, blobs):
    X, y, meta = blobs
    clf = quick(name)
    order = np.random.default_rng(0).permutation(len(X))
    for number, rows in enumerate(np.array_split(np.tile(order, 8), 32)):
        given = {"meta": meta} if number == 0 else {}
        clf.partial_fit(X[rows], y[rows], classes=[0, 1, 2], **given)
    assert clf.score(X, y) > 0.7


@pytest.mark.parametrize("name", STREAMING)
def test_a_stream_that_begins_without_a_class(name, blobs):
    X, y, meta = blobs
    clf = quick(name)
    few = np.flatnonzero(y != 2)
    given = {"meta": meta} if BASELINES[name].needs_meta else {}
    clf.partial_fit(X[few], y[few], classes=[0, 1, 2], **given)
    assert np.isfinite(clf.predict_proba(X)).all()
    clf.partial_fit(X, y)
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(STREAMING)))
def test_others_have_no_partial_fit(name):
    assert not hasattr(BASELINES[name](), "partial_fit")


# Equal class counts: what the method is then.
EQUAL = {
    "inverse": ("ce", {}),
    "class_balanced": ("ce", {}),
    "logit_adjustment": ("ce", {}),
    "balanced_softmax": ("ce", {}),
    "logit_adjustment_posthoc": ("ce", {}),
    "cb_focal": ("cb_focal", {"beta": 0.0}),
    "ldam_drw": ("ldam", {}),
    "ib_cb": ("ib", {}),
    "ib": ("ib_cb", {"beta": 0.0}),
    "ib_focal": ("ib_focal", {}),
    "disalign": ("disalign", {"rho": 0.0}),
    "meta_class_weight": ("ce", {"eps_lr": 0.0}),
    "metasaug": ("metasaug", {"beta": 0.0}),
}


@pytest.mark.parametrize("name", EQUAL)
def test_with_equal_class_counts_counts_play_no_part(name):
    X, y = make_blobs([30, 30, 30], n_features=4, random_state=0, cluster_std=2.0)
    X, meta = X.astype(np.float32), (X[:9].astype(np.float32), y[:9])
    reference, params = EQUAL[name]
    own = params if name == "meta_class_weight" else {}
    others = {} if name == "meta_class_weight" else params
    first = quick(name, **own).fit(X, y, meta=meta).predict_proba(X)
    second = quick(reference, **others).fit(X, y, meta=meta).predict_proba(X)
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_margins_are_constant_with_equal_class_counts():
    from sk_otreweight.losses import LDAMLoss

    assert LDAMLoss([30, 30, 30]).margins.unique().tolist() == [0.5]


# Methods that draw rows class by class, or begin with a new head: another numbering of
# the classes is another draw.
DRAWING = {"crt", "lws", "oltr", "bbn", "balms"}


class Given(nn.Module):
    """A net whose last layer is permuted."""

    def __init__(self, order: tuple[int, ...]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 4)
            self.head.weight.copy_(self.head.weight[list(order)])
            self.head.bias.copy_(self.head.bias[list(order)])

    def forward(self, X):
        return self.head(self.body(X))


@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWING))
def test_other_numbers_of_the_classes_are_other_columns(name, blobs):
    X, y, (X_meta, y_meta) = blobs
    order = np.array([2, 0, 1])  # new class k is old class order[k]
    renamed = np.argsort(order)

    def fitted(order, y, y_meta):
        net = NeuralNetClassifier(
            Given(tuple(order)),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=0.01,
            max_epochs=2,
            train_split=None,
            verbose=0,
        )
        return quick(name, net).fit(X, y, meta=(X_meta, y_meta))

    plain = fitted(range(3), y, y_meta).predict_proba(X)
    other = fitted(order, renamed[y], renamed[y_meta]).predict_proba(X)
    np.testing.assert_allclose(other, plain[:, order], atol=2e-3)


@pytest.mark.parametrize("name", sorted(DRAWING))
def test_other_numbers_of_the_classes_do_as_well(name, blobs):
    X, y, (X_meta, y_meta) = blobs
    renamed = np.array([1, 2, 0])
    clf = quick(name, small_net(max_epochs=20), max_epochs=10)
    plain = clf.fit(X, y, meta=(X_meta, y_meta)).score(X, y)
    other = clone(clf).fit(X, renamed[y], meta=(X_meta, renamed[y_meta]))
    assert other.score(X, renamed[y]) == pytest.approx(plain, abs=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_for_other_shares(name, blobs):
    X, y, meta = blobs
    clf = quick(name).fit(X, y, meta=meta)
    plain = clf.predict_proba(X)
    clf.set_params(target_prior=clf.prior_)
    np.testing.assert_allclose(clf.predict_proba(X), plain, atol=1e-9)
    target = np.array([0.2, 0.3, 0.5])
    clf.set_params(target_prior=target)
    expected = plain * target / clf.prior_
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-9)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if issubclass(BASELINES[n], MetaClassifier)]
)
@pytest.mark.parametrize("finetune", ["all", "head"])
@pytest.mark.parametrize("module", [SmallMLP, NormDropoutMLP])
def test_both_forms_of_the_methods_with_a_meta_gradient(name, finetune, module, blobs):
    X, y, meta = blobs
    clf = quick(
        name, small_net(module, max_epochs=10), finetune=finetune, max_epochs=10
    )
    assert clf.fit(X, y, meta=meta).score(X, y) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_what_the_table_of_methods_says(name):
    baseline = BASELINES[name]
    assert baseline.short_name == name
    assert baseline.paper
    assert baseline.needs <= {"counts", "meta", "features"}
    assert baseline.stages in ("1", "2", "after training")
    assert baseline.begins_with is None or baseline().begins_with in (
        "net",
        "training",
        None,
    )


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name, blobs, tmp_path):
    X, y, meta = blobs
    clf = quick(name).fit(X, y, meta=meta)
    clf.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", trusted=SmallMLP)
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    again = loaded.fit(X, y, meta=meta).predict_proba(X)
    np.testing.assert_array_equal(again, clf.predict_proba(X))
