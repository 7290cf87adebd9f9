from __future__ import annotations

import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import sklearn
import torch
from classifier_helpers import quick
from nets_for_tests import MeanWeights, SmallMLP, long_tailed_digits, small_net
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr
from torch import nn

from sk_otreweight import (
    CombinedCost,
    FunctionCost,
    LabelCost,
    ModuleWeights,
    OTReweightedClassifier,
    SinkhornSolver,
    WeightNet,
    WeightVector,
)
from sk_otreweight.display import html_repr, mime_bundle, short_repr

VOID = {"meta", "link", "br", "hr", "img", "input"}


def make_net(n_features, n_classes):
    return SmallMLP(n_features, n_classes)


class Holder(BaseEstimator):
    """Has a parameter of any kind."""

    def __init__(self, value, *, other=0.5):
        self.value = value
        self.other = other


class Verbose(LabelCost):
    """Writes its own representation."""

    def __repr__(self):
        return "Verbose\n   (in two lines)"


class Page(HTMLParser):
    """Reads a page, checks that its tags are closed in order, and keeps what it finds.

    ``titles`` are the summaries of the blocks with the number of blocks around each.
    """

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), []
        self.titles, self.rows, self.texts = [], {}, []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        if inside == "summary":
            self.titles.append((self.open.count("details") - 1, data))
        elif inside == "th":
            self.rows[data] = None
            self.last = data
        elif inside == "td":
            self.rows[self.last] = data
        elif inside in ("div", "pre"):
            self.texts.append(data)


# One line


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({}, ""),
        ({"reg": 0.1, "cost": "combined", "head": None}, ""),  # the defaults
        ({"net": small_net()}, "net=NeuralNetClassifier(SmallMLP)"),
        ({"net": small_net(SmallMLP(64, 10))}, "net=NeuralNetClassifier(SmallMLP)"),
        ({"net": small_net(make_net)}, "net=NeuralNetClassifier(make_net)"),
        ({"net": SmallMLP}, "net=SmallMLP"),
        ({"net": SmallMLP(64, 10)}, "net=SmallMLP(...)"),
        ({"net": make_net}, "net=make_net"),
        ({"net": partial(make_net, 64)}, "net=partial(make_net, ...)"),
        (
            {"net": FrozenEstimator(small_net())},
            "net=FrozenEstimator(NeuralNetClassifier(SmallMLP))",
        ),
        ({"net": FrozenEstimator(nn.ReLU())}, "net=FrozenEstimator(ReLU(...))"),
        ({"cost": CombinedCost()}, "cost=CombinedCost()"),
        ({"cost": CombinedCost(mix=0.2)}, "cost=CombinedCost(mix=0.2)"),
        ({"cost": Verbose()}, "cost=Verbose (in two lines)"),
        ({"cost": FunctionCost(make_net)}, "cost=FunctionCost(make_net)"),
        ({"cost": lambda *args: None}, "cost=<lambda>"),
        (
            {"weights": ModuleWeights(MeanWeights, lr=1.0)},
            "weights=ModuleWeights(MeanWeights, lr=1.0)",
        ),
        (  # not in alphabetical order, but in that of the signature
            {"verbose": 1, "finetune": "head", "reg": np.float64(0.01)},
            "reg=0.01, finetune='head', verbose=1",
        ),
        (
            {"random_state": np.random.RandomState(0)},
            "random_state=RandomState(MT19937)",
        ),
    ],
)
def test_parameters_that_are_not_the_defaults(params, line):
    assert repr(OTReweightedClassifier(**params)) == f"OTReweightedClassifier({line})"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.arange(3), "array([0, 1, 2])"),
        (np.zeros((2, 3)), "array([[0., 0., 0.], [0., 0., 0.]])"),
        (np.zeros((200, 3)), "ndarray of shape (200, 3)"),
        (torch.zeros(2), "tensor([0., 0.])"),
        (torch.zeros(7), "Tensor of shape (7,)"),
        (list(range(1000)), "[0, 1, 2, 3, 4, 5, ...]"),
        (object(), "<object object>"),
        (float("nan"), "nan"),
    ],
)
def test_values_are_shortened(value, shown):
    assert short_repr(Holder(value)) == f"Holder({shown})"


def test_nan_and_arrays_may_be_defaults():
    class Defaults(BaseEstimator):
        def __init__(self, a=float("nan"), b=np.ones(3)):  # noqa: B008
            self.a = a
            self.b = b

    assert short_repr(Defaults(float("nan"), np.ones(3))) == "Defaults()"
    assert short_repr(Defaults(b=np.zeros(1))) == "Defaults(b=array([0.]))"


def test_a_long_line_is_cut_in_the_middle():
    clf = OTReweightedClassifier(
        small_net(),
        cost=CombinedCost(0.2),
        weights=WeightVector(lr=2.0, n_steps=3),
        solver=SinkhornSolver(tol=1e-9),
        finetune="all",
        max_epochs=100,
        verbose=1,
    )
    line = repr(clf)
    assert len(line) <= 120
    assert line.startswith("OTReweightedClassifier(net=NeuralNetClassifier(SmallMLP), ")
    assert ", ..., " in line
    assert line.endswith(", verbose=1)")
    whole = clf.__repr__(N_CHAR_MAX=1000)
    assert "..." not in whole
    left, right = line.split("..., ")
    assert whole.startswith(left)
    assert whole.endswith(right)
    assert "weights=WeightVector(lr=2.0, n_steps=3)" in whole
    for length in range(1, 150):  # ends, whatever the length
        assert len(short_repr(clf, length)) <= max(length, 70)


def test_a_long_text_is_cut():
    line = repr(OTReweightedClassifier(head="body." * 100))
    assert len(line) <= 120
    assert line.startswith("OTReweightedClassifier(head='body.body.")
    assert line.endswith("body.body.')")


def test_all_parameters_on_request():
    clf = OTReweightedClassifier(small_net())
    with sklearn.config_context(print_changed_only=False):
        line = repr(clf)
    shown = re.findall(r"[(,] ?(\w+)=", line)
    assert set(shown) == clf.get_params(deep=False).keys()


def test_fitting_does_not_change_the_line(few):
    X, y, meta = few
    clf = quick(small_net())
    before = repr(clf)
    assert repr(clf.fit(X, y, meta=meta)) == before
    assert "NeuralNetClassifier(SmallMLP)" in before


def test_in_the_line_of_other_estimators():
    """scikit-learn prints the parts of its own estimators itself, net included."""
    clf = OTReweightedClassifier(small_net(), reg=0.3)
    search = GridSearchCV(make_pipeline(StandardScaler(), clf), {"x__reg": [1.0]})
    for estimator in (search, search.estimator, FrozenEstimator(clf)):
        text = repr(estimator)
        assert "OTReweightedClassifier(net=" in text
        assert "SmallMLP" in text
        assert len("".join(text.split())) <= 710
    assert "OTReweightedClassifier(net=" in short_repr(Holder(clf))


# HTML


def test_blocks_of_an_estimator_that_is_not_fitted():
    clf = OTReweightedClassifier(small_net(), weights=WeightNet(hidden=7), reg=0.25)
    html = html_repr(clf)
    page = Page(html)
    assert page.titles == [
        (0, "OTReweightedClassifier (not fitted)"),
        (1, "net: NeuralNetClassifier(SmallMLP)"),
        (1, "weights: WeightNet(hidden=7)"),
        (1, "parameters"),
    ]
    # Names have nothing to unfold.
    assert page.texts == [
        "cost: 'combined'", "meta_set: 'prototype'", "solver: 'sinkhorn'"
    ]  # fmt: skip
    shown = {"hidden": "7", "reg": "0.25", "optimizer": "SGD", "batch_size": "64"}
    assert shown.items() <= page.rows.items()
    assert "classes_" not in page.rows
    assert re.findall(r'<tr class="set"><th>(\w+)', html) == ["hidden", "reg"]
    plain = set(clf.get_params(deep=False)) - {
        "net", "cost", "weights", "meta_set", "solver"
    }  # fmt: skip
    assert plain <= page.rows.keys()


def test_blocks_of_a_fitted_estimator(few):
    X, y, meta = few
    clf = quick(small_net(max_epochs=3), weights="net").fit(X, y, meta=meta)
    page = Page(html_repr(clf))
    assert page.titles == [
        (0, "OTReweightedClassifier (fitted)"),
        (1, "net: NeuralNetClassifier(SmallMLP)"),
        (2, "layers"),
        (1, "cost: 'combined' → CombinedCost()"),
        (1, "weights: 'net' → WeightNet()"),
        (1, "meta_set: 'prototype' → PrototypeMetaSet()"),
        (1, "parameters"),
    ]
    n_numbers = sum(p.numel() for p in clf.net_.module_.parameters())
    weights = [
        f"{label}: {weight:.2g}"
        for label, weight in zip(clf.classes_, clf.class_weight_, strict=True)
    ]
    facts = {
        "classes_": "4: 4, 7, 8, 9",
        "n_features_in_": "64",
        "history_": "3 epochs in stage 1, 2 in stage 2",
        "sample_weight_": f"{len(X)} rows",
        "class_weight_": ", ".join(weights),
        "parameters": f"{n_numbers:,} in 4 tensors",
    }
    assert facts.items() <= page.rows.items()
    assert repr(clf.net_.module_) in page.texts


@pytest.mark.parametrize(
    ("net", "title"),
    [
        (None, "net: None → NeuralNetClassifier(MLP)"),
        (SmallMLP, "net: SmallMLP → NeuralNetClassifier(SmallMLP)"),
        (SmallMLP(64, 4), "net: SmallMLP(...) → NeuralNetClassifier(SmallMLP)"),
    ],
)
def test_the_net_as_given_and_as_used(few, net, title):
    X, y, meta = few
    clf = OTReweightedClassifier(net, max_epochs=1)
    assert Page(html_repr(clf)).titles[0][1] == "OTReweightedClassifier (not fitted)"
    titles = Page(html_repr(clf.fit(X, y, meta=meta))).titles
    assert (1, title) in titles


def test_the_layers_of_a_module_that_is_not_fitted():
    module = SmallMLP(64, 10)
    for net in (module, FrozenEstimator(module)):
        page = Page(html_repr(OTReweightedClassifier(net)))
        assert repr(module) in page.texts


def test_of_many_classes_the_least_and_the_greatest():
    data = long_tailed_digits(0, imbalance_factor=10)
    bright = data.X.mean(axis=1) > np.median(data.X.mean(axis=1))
    digits = (9 - data.y).astype(str)  # so that the rarest come first
    y = np.char.add(digits, np.where(bright, " bright", " dark"))
    clf = quick(small_net(max_epochs=1), cost="label", max_epochs=1).fit(data.X, y)
    rows = Page(html_repr(clf)).rows
    classes, weights = clf.classes_, clf.class_weight_
    assert rows["classes_"].startswith("20: 0 bright, 0 dark, 1 bright, ")
    assert rows["classes_"].endswith(", ...")
    order = weights.argsort()
    assert rows["class_weight_"] == (
        f"{classes[order[0]]}: {weights[order[0]]:.2g} ... "
        f"{classes[order[-1]]}: {weights[order[-1]]:.2g}"
    )


def test_everything_is_escaped(few):
    attack = "<script>alert('1 & 2')</script></td>"

    class Attack(SmallMLP):
        def extra_repr(self):
            return attack

    Attack.__name__ = Attack.__qualname__ = "A<b>"
    X, y, meta = few
    y = np.where(y == 9, attack, "no <i>nine")
    clf = quick(small_net(Attack), cost="label").fit(X, y)
    clf.set_params(head=attack)
    page = Page(html_repr(clf))
    assert page.tags.isdisjoint({"script", "b", "i"})
    assert page.rows["classes_"] == f"2: {attack}, no <i>nine"
    assert page.rows["head"] == repr(attack)
    assert repr(clf.net_.module_) in page.texts
    assert attack in repr(clf.net_.module_)
    assert (1, "net: NeuralNetClassifier(A<b>)") in page.titles


def test_needs_no_script_no_network_and_no_colours_of_its_own(few):
    X, y, meta = few
    html = html_repr(quick(weights="attention").fit(X, y, meta=meta))
    page = Page(html)
    assert page.tags == {
        "div", "style", "details", "summary", "table", "tr", "th", "td", "pre"
    }  # fmt: skip
    assert {name for name, _ in page.attributes} == {"class", "open"}
    (style,) = re.findall("<style>(.*)</style>", html)
    assert not re.search(r"url|import|http", style)
    # Half transparent greys and the page's own colour of text: dark pages too.
    assert set(re.findall(r"rgba?\([^)]*\)|#\w+", style)) == {
        "rgba(128,128,128,.5)", "rgba(128,128,128,.08)"
    }  # fmt: skip
    assert not re.search(r"[{;]color:", style)


@pytest.mark.parametrize("is_fitted", [False, True])
def test_in_the_pages_of_other_estimators(few, is_fitted):
    """scikit-learn draws these itself."""
    X, y, meta = few
    clf = quick(small_net(max_epochs=1), max_epochs=1, cost=CombinedCost(0.25))
    pipeline = make_pipeline(StandardScaler(), clf)
    search = GridSearchCV(clf, {"reg": [0.1, 1.0]}, cv=2)
    if is_fitted:
        pipeline.fit(X, y, otreweightedclassifier__meta=meta)
        search.fit(X, y, meta=meta)
    for estimator in (pipeline, search):
        html = estimator_html_repr(estimator)
        assert "OTReweightedClassifier" in html
        assert "net: NeuralNetClassifier" in html
        assert "CombinedCost" in html


def test_the_reader_of_pages_finds_faults():
    for wrong in ("<div><table></div></table>", "<details>"):
        with pytest.raises(AssertionError):
            Page(wrong)


# Notebooks


def test_what_a_notebook_shows():
    clf = OTReweightedClassifier(small_net())
    page = html_repr(clf)
    bundle = clf._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {"text/plain": repr(clf), "text/html": page} == mime_bundle(clf)
    assert clf._repr_html_() == page


def test_text_in_a_notebook_on_request():
    clf = OTReweightedClassifier(small_net())
    with sklearn.config_context(display="text"):
        assert clf._repr_mimebundle_() == {"text/plain": repr(clf)}
        assert clf._repr_html_() is None
