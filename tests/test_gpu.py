"""What is computed on a CUDA device is what is computed on the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from classifier_helpers import STRATEGIES, quick
from nets_for_tests import DoubleMLP, NormDropoutMLP, SmallMLP, small_net
from oracles import assert_same
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn
from transport_problems import (
    DTYPES,
    SHAPES,
    random_problem,
    seeded,
    two_blocks,
    uniform,
)

from sk_otreweight import (
    PrototypeMetaSet,
    RandomMetaSet,
    Reweighter,
    SinkhornSolver,
    WeightVector,
    compare,
    semirelaxed_weights,
    sinkhorn,
    transport_cost,
    transport_value_and_grad,
)
from sk_otreweight.fingerprint import data_digest
from sk_otreweight.loaders import RowLoader
from sk_otreweight.transport import transport_gradient

DEVICE = "cuda"
EXACT = SinkhornSolver(max_iter=1000, tol=1e-12)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def moved(*tensors):
    return [x.to(DEVICE) for x in tensors]


def assert_agree(found, expected, *, atol=1e-5):
    """On the device, and the same as on the CPU."""
    assert found.device.type == DEVICE
    assert found.dtype == expected.dtype
    assert_same(found.cpu(), expected, atol=atol)


# --- transport ------------------------------------------------------------------------


def almost_separate(n_problems=6):
    """Needs Newton steps, some problems longer than others."""
    parts = [two_blocks(0.01 * k) for k in range(1, n_problems + 1)]
    C, a = (torch.stack([part[i] for part in parts]) for i in range(2))
    return C, a, uniform(2).expand(n_problems, 2)


PROBLEMS = {name: random_problem(*shape) for name, shape in SHAPES.items()}
PROBLEMS |= {
    "large": random_problem(200, 100),
    "large batch": random_problem(20, 128, 10),
    "chunks": random_problem(6, 300, 200),
    "almost separate": almost_separate(),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reg", [1e-3, 0.1, 1.0])
@every_problem
def test_plans_agree(problem, reg, dtype):
    C, a, b = (x.to(dtype) for x in problem)
    expected = sinkhorn(C, a, b, reg)
    found = sinkhorn(*moved(C, a, b), reg)
    assert found.converged
    assert expected.converged
    for field in ("plan", "conditional", "row_cost", "cost"):
        assert_agree(getattr(found, field), getattr(expected, field))
    again = sinkhorn(*moved(C, a, b), reg, init=found.g)
    assert_agree(again.plan, expected.plan)
    assert again.n_iter <= found.n_iter


@pytest.mark.parametrize("reg", [0.05, 1.0])
@every_problem
def test_values_and_gradients_agree(problem, reg):
    found = transport_value_and_grad(*moved(*problem), reg)
    expected = transport_value_and_grad(*problem, reg)
    for x, other in zip(found, expected, strict=True):
        assert_agree(x, other)
    C, a, b = problem
    solution, on_device = sinkhorn(C, a, b, reg), sinkhorn(*moved(C, a, b), reg)
    found = transport_gradient(C.to(DEVICE), on_device, reg)
    for x, other in zip(found, transport_gradient(C, solution, reg), strict=True):
        assert_agree(x, other)


@every_problem
def test_autograd_agrees(problem):
    leaves = [x.clone().requires_grad_() for x in problem]
    on_device = [x.clone().requires_grad_() for x in moved(*problem)]
    for points in (leaves, on_device):
        transport_cost(*points, 0.1).sum().backward()
    for x, other in zip(on_device, leaves, strict=True):
        assert_agree(x.grad, other.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reg", [0.01, 0.1, 1.0])
@every_problem
def test_closed_forms_agree(problem, reg, dtype):
    C, _, b = (x.to(dtype) for x in problem)
    expected = semirelaxed_weights(C, b, reg)
    C_moved, b_moved = moved(C, b)
    assert_agree(semirelaxed_weights(C_moved, b_moved, reg), expected)
    if C.ndim == 2:
        blocks = semirelaxed_weights(
            lambda rows: C_moved[rows].clone(), b_moved, reg, n_rows=len(C)
        )
        assert_agree(blocks, expected)


# --- waiting for the device -----------------------------------------------------------


def count_waits(function, *args, **kwargs):
    """Return how often a call waits for the device, and what it returns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    messages = [str(warning.message) for warning in caught]
    return sum("called a synchronizing" in text for text in messages), result


def test_waits_are_counted():
    x = torch.ones(3, device=DEVICE)
    assert count_waits(lambda: (x + x).sum())[0] == 0
    assert count_waits(lambda: x.sum().item())[0] == 1


@pytest.mark.parametrize("reg", [1.0, 0.05, 0.02])
@pytest.mark.parametrize("n_problems", [1, 8, 64])
def test_a_solve_waits_a_few_times_in_ten_sweeps(n_problems, reg):
    C, a, b = random_problem(16, 10)
    problem = moved(C.expand(n_problems, 16, 10), a, b)
    solver = SinkhornSolver()
    solver.solve(*problem, reg)  # libraries are loaded at their first call
    n_waits, solution = count_waits(solver.solve, *problem, reg)
    assert solution.converged
    assert 1 <= n_waits <= 8 + 5 * solution.n_iter / 10


def test_waits_do_not_grow_with_the_number_of_problems():
    C, a, b = random_problem(16, 10)
    solver, found = SinkhornSolver(), []
    for n_problems in (2, 8, 64):
        problem = moved(C.expand(n_problems, 16, 10), a, b)
        solver.solve(*problem, 0.05)
        found.append(count_waits(solver.solve, *problem, 0.05)[0])
    assert max(found) <= min(found) + 5  # rounding may cost ten sweeps


def test_plain_sweeps_wait_twice_in_ten_at_most():
    problem = moved(*random_problem(8, 16, 10))
    few, many = (SinkhornSolver(n, tol=0.0, accelerate=False) for n in (50, 100))
    few.solve(*problem, 0.05)
    fifty, _ = count_waits(few.solve, *problem, 0.05)
    hundred, _ = count_waits(many.solve, *problem, 0.05)
    assert 5 <= hundred - fifty <= 10


# --- weights --------------------------------------------------------------------------


def training_rows(dtype):
    labels = torch.arange(60) % 11 % 4
    meta_labels = torch.arange(20) % 4
    centres = 2 * torch.randn(4, 6, generator=seeded(0), dtype=torch.float64)
    z, z_meta = (
        centres[y] + torch.randn(len(y), 6, generator=seeded(seed), dtype=torch.float64)
        for seed, y in ((1, labels), (2, meta_labels))
    )
    return z.to(dtype), labels, z_meta.to(dtype), meta_labels


def epochs(size=16):
    for seed in range(2):
        yield torch.randperm(60, generator=seeded(seed)).split(size)


def started(z, labels, z_meta, meta_labels, **params):
    reweighter = Reweighter(**params, solver=EXACT, random_state=3)
    return reweighter.set_meta(meta_labels, z_meta).set_training_set(labels, z)


def weights_after_batches(rows_of_training, size=16, **params):
    z, labels, *_ = rows_of_training
    reweighter = started(*rows_of_training, **params)
    for batches in epochs(size):
        for rows in batches:
            rows = rows.to(z.device)
            reweighter(z[rows], labels[rows], rows)
    assert reweighter.unconverged_ == 0
    return reweighter.sample_weight(z)


def weights_after_epochs(rows_of_training, size=16, **params):
    reweighter = started(*rows_of_training, **params)
    for batches in epochs(size):
        reweighter.update_epoch(rows_of_training[0], batches)
    assert reweighter.unconverged_ == 0
    return reweighter.sample_weight(rows_of_training[0])


META_SETS = {
    "prototype": "prototype",
    "whole": "whole",
    "random": RandomMetaSet(),
    "some prototypes": PrototypeMetaSet(n_prototypes=3),
}


@pytest.mark.parametrize("meta_set", META_SETS.values(), ids=META_SETS)
@pytest.mark.parametrize(
    ("cost", "dtype", "atol"),
    [
        ("label", torch.float64, 1e-5),
        ("feature", torch.float64, 1e-5),
        ("combined", torch.float64, 1e-5),
        ("sqeuclidean", torch.float64, 1e-5),
        ("combined", torch.float32, 1e-3),  # costs are rounded, and steps are long
    ],
    ids=str,
)
@pytest.mark.parametrize("weights", STRATEGIES)
def test_weights_agree(weights, cost, dtype, atol, meta_set):
    params = {"weights": weights, "cost": cost, "meta_set": meta_set, "reg": 0.3}
    rows = training_rows(dtype)
    expected = weights_after_batches(rows, **params)
    assert (expected - 1).abs().max() > 0.01  # something was there to agree on
    assert_agree(weights_after_batches(moved(*rows), **params), expected, atol=atol)
    assert_agree(weights_after_epochs(moved(*rows), **params), expected, atol=atol)


@pytest.mark.parametrize("update", ["multiplicative", "sgd"])
@pytest.mark.parametrize("keep", [True, False])
def test_weights_of_several_steps_agree(keep, update):
    weights = WeightVector(2.0, update, keep, n_steps=3)
    rows = training_rows(torch.float64)
    expected = weights_after_batches(rows, weights=weights)
    assert_agree(weights_after_batches(moved(*rows), weights=weights), expected)
    assert_agree(weights_after_epochs(moved(*rows), weights=weights), expected)


def test_an_epoch_waits_less_than_its_batches_do():
    rows = moved(*training_rows(torch.float64))
    weights_after_epochs(rows, size=4)
    together, _ = count_waits(weights_after_epochs, rows, size=4)
    one_by_one, _ = count_waits(weights_after_batches, rows, size=4)
    assert 2 * together < one_by_one


# --- the classifier -------------------------------------------------------------------


def on(device, net):
    """Return a trained net with the same parameters on a device."""
    other = clone(net).set_params(device=device).initialize()
    other.module_.load_state_dict(net.module_.state_dict())
    return FrozenEstimator(other)


@pytest.fixture(scope="module")
def encoded(few):
    X, y, (X_meta, y_meta) = few
    classes, y = np.unique(y, return_inverse=True)
    return X, y, (X_meta, np.searchsorted(classes, y_meta))


@pytest.fixture(scope="module", params=[DoubleMLP, SmallMLP])
def net(request, encoded):
    """A net that is trained, in double or in single precision."""
    X, y, _ = encoded
    net = small_net(
        request.param,
        batch_size=16,
        iterator_train=RowLoader,
        module__n_features=X.shape[1],
        module__n_classes=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = np.float64 if request.param is DoubleMLP else np.float32
        return net.fit(X.astype(dtype), y)


@pytest.mark.parametrize("draws_meta", [False, True])
@pytest.mark.parametrize("cost", ["label", "combined"])
@pytest.mark.parametrize("weights", STRATEGIES)
def test_fitted_classifiers_agree(weights, cost, draws_meta, net, encoded):
    X, y, meta = encoded
    params = {"weights": weights, "cost": cost, "finetune": "head"}
    host, device = (
        quick(on(name, net), **params).fit(X, y, meta=None if draws_meta else meta)
        for name in ("cpu", DEVICE)
    )
    parameters = list(device.net_.module_.parameters())
    assert {parameter.device.type for parameter in parameters} == {DEVICE}
    assert np.abs(host.sample_weight_ - 1).max() > 0.1
    atol = 1e-5 if parameters[0].dtype == torch.float64 else 5e-5
    np.testing.assert_allclose(device.sample_weight_, host.sample_weight_, atol=atol)
    np.testing.assert_allclose(
        device.predict_proba(X), host.predict_proba(X), atol=10 * atol
    )


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_the_generator_of_the_device_stays_untouched(device, encoded):
    X, y, meta = encoded
    before = torch.cuda.get_rng_state()
    quick(small_net(NormDropoutMLP, device=device)).fit(X, y, meta=meta)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("part", ["iterator_train", "iterator_valid"])
@pytest.mark.parametrize("finetune", ["head", "all"])
def test_workers_and_pinned_memory(finetune, part, encoded):
    """Neither can be had for what is on the device already."""
    X, y, meta = encoded
    loading = {f"{part}__num_workers": 1, f"{part}__pin_memory": True}
    net = small_net(device=DEVICE, max_epochs=1, **loading)
    clf = quick(net, finetune=finetune, max_epochs=1).fit(X, y, meta=meta)
    assert np.isfinite(clf.sample_weight_).all()


class GRUNet(nn.Module):
    def __init__(self, n_classes: int):
        super().__init__()
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, n_classes)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(X)[0][:, -1])


@pytest.mark.parametrize(
    "params", [{"finetune": "head"}, {"finetune": "all", "virtual_step": "exact"}]
)
def test_recurrent_nets(params, encoded):
    """cuDNN differentiates them neither in evaluation mode nor twice."""
    X, y, (X_meta, y_meta) = encoded
    X, X_meta = X.reshape(-1, 8, 8), X_meta.reshape(-1, 8, 8)
    net = small_net(GRUNet, max_epochs=1, device=DEVICE)
    clf = quick(net, weights="vector", **params).fit(X, y, meta=(X_meta, y_meta))
    assert np.isfinite(clf.predict_proba(X)).all()
    assert np.ptp(clf.sample_weight_) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digests_of_data_agree(dtype):
    X = random_problem(5, 4, 3)[0].to(dtype)
    assert data_digest(X.to(DEVICE)) == data_digest(X)


def test_rows_on_the_device_are_compared_and_kept(encoded, tmp_path):
    X, y, _ = encoded
    rows = [torch.as_tensor(part, device=DEVICE) for part in (X, y, X, y)]
    net = small_net(max_epochs=1, device=DEVICE)
    path = tmp_path / "fits.jsonl"
    given = {"net": net, "seeds": 1, "path": path, "verbose": False}
    first = compare(["ce"], *rows, **given)
    assert first["balanced_accuracy", "mean"].notna().all()
    assert compare(["ce"], *rows, **given).equals(first)
    assert len(path.read_text().splitlines()) == 1


def test_a_full_device_solves_in_smaller_parts():
    C = torch.rand(2**14, 64, device=DEVICE)  # whose kernel takes 8 MiB in float64
    b = uniform(64).to(DEVICE)
    expected = semirelaxed_weights(C, b, 0.1)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 6 * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2**20, dtype=torch.float64, device=DEVICE)
        found = semirelaxed_weights(C, b, 0.1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(found, expected, atol=1e-6)
