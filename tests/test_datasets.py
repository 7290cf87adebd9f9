from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits

from sk_otreweight.datasets import make_long_tailed

# The counts of CIFAR-10-LT at an imbalance of 100, as the literature gives them.
CIFAR_10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def table(sizes, labels=None):
    """One row per sample, its content the row number; classes interleaved."""
    labels = range(len(sizes)) if labels is None else labels
    y = np.repeat(np.asarray(labels), sizes)
    y = np.random.default_rng(0).permutation(y)
    return np.arange(len(y))[:, None], y


def exact_profile(n_max, imbalance_factor, n_classes):
    """Count with integers: n <= n_max IF^(-k/(K-1)) iff n^(K-1) IF^k <= n_max^(K-1)."""
    last = n_classes - 1
    counts = []
    for k in range(n_classes):
        n = n_max
        while n > 1 and n**last * Fraction(imbalance_factor) ** k > n_max**last:
            n -= 1
        counts.append(n)
    return counts


def assert_partition(data, X, y):
    """Every row is used at most once and comes with its own content and label."""
    rows = np.concatenate([data.train_indices, data.meta_indices])
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(y)
    np.testing.assert_array_equal(data.X, X[data.train_indices])
    np.testing.assert_array_equal(data.X_meta, X[data.meta_indices])
    np.testing.assert_array_equal(data.get("y_clean", data.y), y[data.train_indices])
    np.testing.assert_array_equal(data.y_meta, y[data.meta_indices])


# --- which rows ---------------------------------------------


def test_exact_profile_agrees_with_the_literature_and_can_fail():
    assert exact_profile(5000, 100, 10) == CIFAR_10_LT
    assert exact_profile(5000, 101, 10) != CIFAR_10_LT


def test_counts_of_cifar_10_lt():
    X, y = table([5000] * 10)
    data = make_long_tailed(X, y, 100, meta_per_class=0, random_state=0)
    assert data.class_counts.tolist() == CIFAR_10_LT
    assert np.bincount(data.y).tolist() == CIFAR_10_LT


@pytest.mark.parametrize(("n_max", "imbalance_factor"), [(98, 49), (30, 3), (1000, 10)])
def test_whole_counts_survive_rounding(n_max, imbalance_factor):
    X, y = table([n_max] * 3)
    data = make_long_tailed(X, y, imbalance_factor, meta_per_class=0, random_state=0)
    assert data.class_counts[0] == n_max
    assert data.class_counts[-1] == n_max // imbalance_factor


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(4, 40), min_size=2, max_size=6),
    imbalance_factor=st.integers(1, 200),
    meta_per_class=st.integers(0, 3),
    label_noise=st.sampled_from([0.0, 0.1, 0.5, 0.99]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_classes(sizes, imbalance_factor, meta_per_class, label_noise, seed):
    X, y = table(sizes)
    data = make_long_tailed(
        X,
        y,
        imbalance_factor,
        meta_per_class=meta_per_class,
        label_noise=label_noise,
        random_state=seed,
    )
    n_classes = len(sizes)
    n_max = min(sizes) - meta_per_class
    expected = exact_profile(n_max, imbalance_factor, n_classes)
    assert data.class_counts.tolist() == expected
    assert data.classes.tolist() == list(range(n_classes))
    clean = data.get("y_clean", data.y)
    assert np.bincount(clean, minlength=n_classes).tolist() == expected
    meta_counts = np.bincount(data.y_meta, minlength=n_classes)
    assert meta_counts.tolist() == [meta_per_class] * n_classes
    assert_partition(data, X, y)
    assert ("flipped" in data) == ("y_clean" in data) == (label_noise > 0)


def test_partition_check_can_fail():
    X, y = table([9, 9])
    data = make_long_tailed(X, y, 2, meta_per_class=2, random_state=0)
    assert_partition(data, X, y)
    data.meta_indices[0] = data.train_indices[0]
    with pytest.raises(AssertionError):
        assert_partition(data, X, y)


def test_rows_come_shuffled():
    X, y = table([200] * 5)
    data = make_long_tailed(X, y, 2, meta_per_class=20, random_state=0)
    for labels in (data.y, data.y_meta):
        changes = np.mean(labels[1:] != labels[:-1])
        assert changes > 0.6
    assert np.any(np.diff(data.train_indices) < 0)


def test_rows_are_drawn_at_random_from_the_class():
    X, y = table([100, 100])
    first, second = (
        make_long_tailed(X, y, 2, n_max=20, meta_per_class=5, random_state=seed)
        for seed in (0, 1)
    )
    assert set(first.train_indices) != set(second.train_indices)
    assert set(first.meta_indices) != set(second.meta_indices)


def test_n_max_is_the_size_of_the_first_class(digits):
    data = make_long_tailed(*digits, 10, n_max=50, random_state=0)
    assert data.class_counts.tolist() == exact_profile(50, 10, 10)


def test_n_max_may_exceed_the_smallest_class_where_the_tail_allows_it():
    X, y = table([60, 30, 12])
    data = make_long_tailed(X, y, 25, n_max=50, meta_per_class=10, random_state=0)
    assert data.class_counts.tolist() == [50, 10, 2]


def test_imbalance_factor_of_one_gives_equal_classes(digits):
    data = make_long_tailed(*digits, 1, random_state=0)
    assert set(data.class_counts) == {174 - 10}


def test_every_class_keeps_a_row():
    X, y = table([5, 5, 5])
    data = make_long_tailed(X, y, 1e6, meta_per_class=4, random_state=0)
    assert data.class_counts.tolist() == [1, 1, 1]


def test_no_meta_set(digits):
    data = make_long_tailed(*digits, meta_per_class=0, random_state=0)
    assert data.X_meta.shape == (0, 64)
    assert data.y_meta.shape == data.meta_indices.shape == (0,)


def test_same_meta_rows_whatever_the_profile(digits):
    wide = make_long_tailed(*digits, 1, random_state=3)
    narrow = make_long_tailed(*digits, 50, n_max=60, label_noise=0.2, random_state=3)
    np.testing.assert_array_equal(wide.meta_indices, narrow.meta_indices)
    assert set(narrow.train_indices) < set(wide.train_indices)


# --- kinds of input -----------------------------------------


def test_dataframe_in_dataframe_out(digits):
    X, y = digits
    frame = pd.DataFrame(X, index=[f"row {i}" for i in range(len(X))])
    frame = frame.rename(columns="pixel {}".format).astype({"pixel 0": "float32"})
    data = make_long_tailed(frame, pd.Series(y), 20, random_state=0)
    pd.testing.assert_frame_equal(data.X, frame.iloc[data.train_indices])
    pd.testing.assert_frame_equal(data.X_meta, frame.iloc[data.meta_indices])
    assert isinstance(data.y, np.ndarray)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, sparse.csr_array])
def test_kind_dtype_and_shape_of_X_are_kept(digits, kind):
    images = digits[0].astype(np.float32)
    X = kind(images)
    data = make_long_tailed(X, digits[1], 20, random_state=0)
    assert type(data.X) is type(X)
    assert data.X.dtype == X.dtype
    dense = data.X.toarray() if sparse.issparse(data.X) else np.asarray(data.X)
    np.testing.assert_array_equal(dense, images[data.train_indices])


def test_images(digits):
    images = digits[0].reshape(-1, 1, 8, 8)
    data = make_long_tailed(images, digits[1], 20, random_state=0)
    assert data.X.shape == (555, 1, 8, 8)
    assert data.X_meta.shape == (100, 1, 8, 8)


def test_lists_and_string_labels():
    X, y = table([8, 9, 7], labels=["cat", "dog", "ant"])
    data = make_long_tailed(
        X.tolist(), y.tolist(), 3, meta_per_class=1, label_noise=0.4, random_state=0
    )
    assert data.classes.tolist() == ["ant", "cat", "dog"]
    assert data.class_counts.tolist() == [6, 3, 2]
    assert set(data.y) <= {"ant", "cat", "dog"}
    assert_partition(data, X, y)


def test_pandas_string_labels():
    X, y = table([8, 9], labels=["cat", "ant"])
    labels = pd.Series(y, dtype="str")
    data = make_long_tailed(X, labels, 3, n_max=3, meta_per_class=1, random_state=0)
    assert data.class_counts.tolist() == [3, 1]
    assert_partition(data, X, y)


def test_the_input_is_not_changed(digits):
    X, y = digits[0].copy(), digits[1].copy()
    data = make_long_tailed(X, y, 20, label_noise=0.5, random_state=0)
    data.X[:] = -1
    data.y[:] = -1
    np.testing.assert_array_equal(X, digits[0])
    np.testing.assert_array_equal(y, digits[1])


# --- noise --------------------------------------------------


@pytest.mark.parametrize("label_noise", [0.2, 0.4, 0.999])
def test_share_of_flipped_labels(digits, label_noise):
    data = make_long_tailed(*digits, 10, label_noise=label_noise, random_state=0)
    np.testing.assert_array_equal(data.flipped, data.y != data.y_clean)
    assert data.flipped.dtype == bool
    assert data.flipped.sum() == round(label_noise * len(data.y))
    np.testing.assert_array_equal(data.y_meta, digits[1][data.meta_indices])


def test_noise_is_symmetric():
    X, y = table([12_000] * 4)
    data = make_long_tailed(X, y, 1, meta_per_class=0, label_noise=0.3, random_state=0)
    confusion = np.zeros((4, 4))
    np.add.at(confusion, (data.y_clean, data.y), 1)
    expected = np.where(np.eye(4, dtype=bool), 0.7, 0.1)
    # Five standard deviations of a share among 12 000 rows.
    np.testing.assert_allclose(
        confusion / 12_000, expected, atol=5 * 0.46 / 12_000**0.5
    )


def test_noise_leaves_the_rows_alone(digits):
    clean = make_long_tailed(*digits, 20, random_state=0)
    noisy = make_long_tailed(*digits, 20, label_noise=0.4, random_state=0)
    np.testing.assert_array_equal(clean.train_indices, noisy.train_indices)
    np.testing.assert_array_equal(clean.meta_indices, noisy.meta_indices)
    np.testing.assert_array_equal(clean.y, noisy.y_clean)
    np.testing.assert_array_equal(clean.class_counts, noisy.class_counts)


# --- randomness ---------------------------------------------


def test_random_state_determines_everything(digits):
    def draw(random_state):
        return make_long_tailed(*digits, 20, label_noise=0.2, random_state=random_state)

    first, again, other = draw(7), draw(np.random.RandomState(7)), draw(8)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first.train_indices, other.train_indices)


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generator_is_untouched(digits, random_state):
    def state():
        return np.random.get_state(legacy=False)["state"]  # noqa: NPY002

    before = state()
    make_long_tailed(*digits, label_noise=0.2, random_state=random_state)
    after = state()
    assert before["pos"] == after["pos"]
    np.testing.assert_array_equal(before["key"], after["key"])


def test_without_random_state_every_call_differs(digits):
    first, second = make_long_tailed(*digits), make_long_tailed(*digits)
    assert not np.array_equal(first.train_indices, second.train_indices)


# --- errors -------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"meta_per_class": 8},
            "meta_per_class=8 was given, but class 2 has 8 row.*at least one must stay "
            ".*meta_per_class=7 or less",
        ),
        (
            {"meta_per_class": -1},
            "meta_per_class=-1 was given; an integer of at least 0.*Use 0",
        ),
        ({"meta_per_class": 1.5}, "meta_per_class=1.5 was given; an integer"),
        (
            {"imbalance_factor": 0.5},
            r"imbalance_factor=0.5 was given; .*at least 1 is expected\. Pass largest",
        ),
        ({"imbalance_factor": np.nan}, "imbalance_factor=nan was given"),
        ({"imbalance_factor": np.inf}, "imbalance_factor=inf was given"),
        ({"imbalance_factor": "100"}, "imbalance_factor='100' was given"),
        (
            {"n_max": 11, "imbalance_factor": 1},
            "n_max=11 was given, which needs 11 training rows of class 0; it has 10 "
            r"beside its 2 meta row.*Lower n_max \(None always fits: 6 here\)",
        ),
        (
            {"n_max": 10, "imbalance_factor": 1},
            "n_max=10 was given, which needs 10 training rows of class 2; it has 6 ",
        ),
        ({"n_max": 0}, "n_max=0 was given; an integer of at least 1 or None.*Use None"),
        ({"n_max": 2.5}, "n_max=2.5 was given; an integer"),
        (
            {"label_noise": 1.0},
            r"label_noise=1.0 was given; a share in \[0, 1\) is expected. Use 0.2",
        ),
        ({"label_noise": -0.1}, "label_noise=-0.1 was given"),
        ({"label_noise": np.nan}, "label_noise=nan was given"),
        ({"label_noise": "0.2"}, "label_noise='0.2' was given"),
    ],
)
def test_bad_parameters(parameters, message):
    X, y = table([12, 12, 8])
    with pytest.raises(ValueError, match=message):
        make_long_tailed(X, y, **{"meta_per_class": 2, "random_state": 0} | parameters)


@pytest.mark.parametrize("to_X", [np.asarray, np.ndarray.tolist, pd.DataFrame])
def test_lengths_differ(to_X):
    X, y = table([12, 12])
    with pytest.raises(
        ValueError, match="X has 23 rows and y has 24 labels; one label "
    ):
        make_long_tailed(to_X(X[:-1]), y)


@pytest.mark.parametrize(("labels", "found"), [(["a"] * 9, r"\['a'\]"), ([], r"\[\]")])
def test_too_few_classes(labels, found):
    with pytest.raises(ValueError, match=f"classes {found}; at least two are expected"):
        make_long_tailed(np.zeros((len(labels), 2)), labels)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA])
def test_missing_labels(missing):
    y = pd.Series([0, 1, missing] * 4, dtype=object)
    with pytest.raises(ValueError, match="missing labels .*Drop the rows without"):
        make_long_tailed(np.zeros((12, 2)), y)


def test_missing_float_labels():
    with pytest.raises(ValueError, match="missing labels"):
        make_long_tailed(np.zeros((12, 2)), [0.0, 1.0, np.nan] * 4)


def test_labels_in_two_columns():
    with pytest.raises(ValueError, match="1d array"):
        make_long_tailed(np.zeros((12, 2)), np.zeros((12, 2)))
