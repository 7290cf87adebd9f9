from __future__ import annotations

import copy
import math

import pytest
import torch
from oracles import (
    assert_global_rng_untouched,
    assert_same,
    finite_differences,
)
from torch import nn

from sk_otreweight import (
    AttentionWeightNet,
    ModuleWeights,
    Reweighter,
    SemiRelaxedWeights,
    WeightNet,
    WeightStrategy,
    WeightVector,
    semirelaxed_weights,
)
from sk_otreweight.weights import (
    START_WEIGHTS,
    WEIGHTS,
    Rows,
    class_start_weights,
    resolve_weights,
)

N, D = 12, 3


def sample_weight(strategy, rows):
    """Return the weights of all rows, of mean 1."""
    return len(rows.start) * strategy.probabilities(rows)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def training_rows(start=None, dtype=torch.float64):
    start = torch.ones(N, dtype=dtype) if start is None else start
    return Rows(random(N, D).to(dtype), torch.arange(N), start, None)


def batch_of(rows, index):
    index = torch.tensor(index)
    return Rows(rows.features[index], index, rows.class_start, index)


def vector(start=None, **params):
    """A started weight vector and a batch of six of its twelve rows."""
    strategy, rows = WeightVector(**params), training_rows(start)
    strategy.start(rows, 0)
    return strategy, rows, batch_of(rows, [1, 3, 4, 7, 10, 11])


UNEVEN = torch.linspace(0.2, 1.8, N, dtype=torch.float64)


# --- the weight vector ----------------------------------------------------------------


def naive_sgd(weights, grad, lr):
    """A gradient step through p = w / sum(w), cut off at 0, mass restored."""
    leaf = weights.clone().requires_grad_()
    (through,) = torch.autograd.grad(leaf / leaf.sum(), leaf, grad)
    moved = [max(w - lr * g, 0.0) for w, g in zip(weights, through, strict=True)]
    return torch.tensor(moved) * weights.sum() / sum(moved)


def naive_multiplicative(weights, grad, lr):
    moved = [w * math.exp(-lr * g) for w, g in zip(weights, grad, strict=True)]
    return torch.tensor(moved, dtype=weights.dtype) * weights.sum() / sum(moved)


STEPS = {"sgd": naive_sgd, "multiplicative": naive_multiplicative}


@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("update", STEPS)
@pytest.mark.parametrize("start", [None, UNEVEN], ids=["uniform", "uneven"])
def test_a_step_is_the_naive_one(start, update, lr):
    strategy, rows, batch = vector(start, update=update, lr=lr)
    grad = random(6, seed=1)
    expected = rows.start.clone()
    for _ in range(3):
        strategy.step(batch, grad)
        moved = STEPS[update](expected[batch.index], grad, lr)
        expected[batch.index] = moved
        assert_same(sample_weight(strategy, rows), expected, atol=1e-14)
        assert_same(strategy.loss_weights(batch), moved, atol=1e-14)
        assert_same(strategy.probabilities(batch), moved / moved.sum(), atol=1e-14)


def test_the_two_steps_differ_and_both_go_downhill():
    grad = random(6, seed=1)
    before = torch.full((6,), 1 / 6, dtype=torch.float64)
    found = []
    for update in STEPS:
        strategy, _, batch = vector(update=update, lr=0.1)
        strategy.step(batch, grad)
        found.append(strategy.probabilities(batch))
        assert (found[-1] - before) @ grad < 0
    sgd, multiplicative = found
    with pytest.raises(AssertionError, match="an entry is off"):
        assert_same(sgd, multiplicative, atol=1e-3)


def test_the_plain_step_is_smaller_by_the_batch_size_squared():
    """Why the paper's step sizes barely move the weights."""
    grad = random(6, seed=1)
    moves = {}
    for update in STEPS:
        strategy, rows, batch = vector(update=update, lr=1e-6)
        strategy.step(batch, grad)
        moves[update] = (sample_weight(strategy, rows) - rows.start)[batch.index]
    assert_same(moves["multiplicative"], 6 * moves["sgd"], atol=1e-10)


@pytest.mark.parametrize("update", STEPS)
def test_mass_stays_in_the_batch(update):
    strategy, rows, batch = vector(UNEVEN, update=update, lr=2.0)
    for seed in range(20):
        before = sample_weight(strategy, rows)
        index = torch.randperm(N, generator=seeded(seed))[:5].tolist()
        strategy.step(batch_of(rows, index), random(5, seed=seed))
        after = sample_weight(strategy, rows)
        others = [i for i in range(N) if i not in index]
        assert_same(after[others], before[others], atol=1e-14)
        assert after[index].sum().item() == pytest.approx(before[index].sum().item())
        assert after.mean().item() == pytest.approx(1.0)
        assert (after >= 0).all()


@pytest.mark.parametrize("update", STEPS)
def test_a_constant_gradient_or_no_step_size_moves_nothing(update):
    strategy, rows, batch = vector(UNEVEN, update=update, lr=1.0)
    strategy.step(batch, torch.full((6,), 3.0, dtype=torch.float64))
    assert_same(sample_weight(strategy, rows), rows.start, atol=1e-14)
    strategy.set_params(lr=0.0).step(batch, random(6))
    assert_same(sample_weight(strategy, rows), rows.start, atol=1e-14)


@pytest.mark.parametrize("update", STEPS)
def test_not_kept_weights_start_afresh_with_each_batch(update):
    strategy, rows, batch = vector(UNEVEN, update=update, lr=0.5, keep=False, n_steps=4)
    grad = random(6, seed=1)
    for _ in range(2):
        assert strategy.begin_batch(batch) == 4
        assert_same(strategy.loss_weights(batch), batch.start, atol=1e-15)
        strategy.step(batch, grad)
        expected = STEPS[update](batch.start, grad, 0.5)
        assert_same(strategy.loss_weights(batch), expected, atol=1e-14)


def test_kept_weights_go_on_from_where_they_were():
    strategy, rows, batch = vector(lr=0.5, n_steps=2)
    strategy.step(batch, random(6))
    moved = sample_weight(strategy, rows)
    assert strategy.begin_batch(batch) == 2
    assert_same(sample_weight(strategy, rows), moved, atol=0.0)


def test_the_start_weights_are_not_written_to():
    strategy, rows, batch = vector(UNEVEN, lr=1.0)
    before = rows.start.clone()
    strategy.step(batch, random(6))
    assert_same(rows.start, before, atol=0.0)


def test_starting_again_forgets():
    strategy, rows, batch = vector(UNEVEN, lr=1.0)
    strategy.step(batch, random(6))
    strategy.start(rows, 0)
    assert_same(sample_weight(strategy, rows), rows.start, atol=1e-15)


@pytest.mark.parametrize("update", STEPS)
def test_a_row_of_weight_zero_stays_finite(update):
    strategy, rows, batch = vector(update=update, lr=0.1)
    strategy.values_[batch.index[:2]] = 0
    for _ in range(3):
        strategy.step(batch, random(6, seed=1))
        weights = strategy.loss_weights(batch)
        assert torch.isfinite(weights).all()
        assert weights.sum().item() == pytest.approx(4.0)


def test_the_plain_step_cuts_off_at_zero_and_can_come_back():
    strategy, _, batch = vector(update="sgd", lr=40.0)
    grad = torch.tensor([5.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    strategy.step(batch, grad)
    assert strategy.loss_weights(batch)[0] < 1e-9
    strategy.step(batch, -grad)
    assert strategy.loss_weights(batch)[0] > 1


@pytest.mark.parametrize("update", STEPS)
@pytest.mark.parametrize("steepness", [1e3, 1e6])
def test_a_steep_gradient_does_not_overflow(steepness, update):
    """Costs such as squared distances come in any unit."""
    strategy, _, batch = vector(update=update, lr=1.0)
    for sign in (1, -1, 1):
        strategy.step(batch, sign * steepness * random(6, seed=1))
        weights = strategy.loss_weights(batch)
        assert torch.isfinite(weights).all()
        assert weights.sum().item() == pytest.approx(6.0)


@pytest.mark.parametrize("update", STEPS)
def test_the_steepest_row_may_have_no_weight(update):
    strategy, _, batch = vector(update=update, lr=1.0)
    strategy.values_[batch.index[0]] = 0
    grad = torch.zeros(6, dtype=torch.float64)
    grad[0] = -1e4
    strategy.step(batch, grad)
    weights = strategy.loss_weights(batch)
    assert torch.isfinite(weights).all()
    assert weights.sum().item() == pytest.approx(5.0)


@pytest.mark.parametrize("update", STEPS)
def test_a_batch_without_weight_stays_finite(update):
    """The last, small batch of an epoch may hold rows of weight zero only."""
    strategy, rows, batch = vector(update=update, lr=1.0)
    strategy.values_[batch.index] = 0
    assert torch.isfinite(strategy.probabilities(batch)).all()
    strategy.step(batch, random(6))
    assert_same(strategy.loss_weights(batch), torch.zeros(6), atol=1e-9)
    others = [0, 2, 5, 6, 8, 9]
    assert_same(sample_weight(strategy, rows)[others], torch.full((6,), 2.0), atol=1e-9)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1 is not valid: give a finite number >= 0"),
        ({"lr": math.nan}, "lr=nan is not valid"),
        ({"update": "adam"}, r"update='adam' is not known.*'multiplicative', 'sgd'"),
        ({"n_steps": 0}, "n_steps=0 is not valid: give an integer >= 1"),
    ],
)
def test_wrong_parameters_of_the_vector(params, message):
    with pytest.raises(ValueError, match=message):
        vector(**params)


# --- the weight nets ------------------------------------------------------------------


def by_formula(strategy, z):
    """Scores of Eq. 11 and Eq. 13, row by row, from the net's parameters."""
    shapes = {name: p.detach() for name, p in strategy.module_.named_parameters()}
    scores = []
    for row in z:
        if isinstance(strategy, WeightNet):
            W, w_att = shapes.values()
            scores.append(w_att[0] @ torch.tanh(W @ row))
        else:
            W1, b1, W2, b2 = shapes.values()
            scores.append((W1 @ row + b1) @ (W2 @ row + b2) / math.sqrt(len(W1)))
    return torch.stack(scores)


NETS = [WeightNet(hidden=5), AttentionWeightNet(hidden=5)]


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_nets_are_the_papers_formulas(strategy):
    strategy, rows = copy.deepcopy(strategy), training_rows()
    strategy.start(rows, 0)
    scores = by_formula(strategy, rows.features)
    assert scores.std() > 0.01
    expected = scores.exp() / scores.exp().sum()
    assert_same(strategy.probabilities(rows), expected, atol=1e-14)
    assert_same(strategy.loss_weights(rows), N * expected, atol=1e-13)
    assert_same(sample_weight(strategy, rows), N * expected, atol=1e-13)


def test_the_papers_sizes_are_the_defaults():
    rows = training_rows()
    net, attention = WeightNet(), AttentionWeightNet()
    for strategy in (net, attention):
        strategy.start(rows, 0)
    shapes = [tuple(p.shape) for p in net.module_.parameters()]
    assert shapes == [(100, D), (1, 100)]  # without biases, as below Eq. 11
    shapes = [tuple(p.shape) for p in attention.module_.parameters()]
    assert shapes == [(128, D), (128,), (128, D), (128,)]
    assert attention.lr == 0.04
    assert isinstance(net.optimizer_, torch.optim.SGD)


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_scores_come_on_top_of_the_start_weights(strategy):
    strategy, rows = copy.deepcopy(strategy), training_rows(UNEVEN)
    strategy.start(rows, 0)
    weights = UNEVEN * by_formula(strategy, rows.features).exp()
    expected = N * weights / weights.sum()
    assert_same(strategy.loss_weights(rows), expected, atol=1e-13)


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_weights_of_a_batch_are_normalised_in_the_batch(strategy):
    strategy, rows = copy.deepcopy(strategy), training_rows(UNEVEN)
    strategy.start(rows, 0)
    batch = batch_of(rows, [1, 3, 4])
    weights = strategy.loss_weights(batch)
    whole = strategy.loss_weights(rows)[batch.index]
    assert weights.mean().item() == pytest.approx(1.0)
    assert_same(weights / weights.sum(), whole / whole.sum(), atol=1e-14)


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_a_step_of_a_net_is_plain_gradient_descent(strategy):
    strategy, rows = copy.deepcopy(strategy).set_params(lr=0.3), training_rows(UNEVEN)
    strategy.start(rows, 0)
    batch = batch_of(rows, [0, 2, 5, 6, 9])
    for seed in (1, 2):
        grad = random(5, seed=seed)
        expected = []
        for parameter in strategy.module_.parameters():

            def loss(value, parameter=parameter, grad=grad):
                kept = parameter.detach().clone()
                parameter.data.copy_(value)
                scores = by_formula(strategy, batch.features) + batch.start.log()
                parameter.data.copy_(kept)
                return grad @ torch.softmax(scores, 0)

            value = parameter.detach().clone()
            directions = torch.eye(value.numel()).double().reshape(-1, *value.shape)
            slopes = finite_differences(loss, value, directions, 1e-3)
            expected.append(value - 0.3 * slopes.reshape(value.shape))
        strategy.step(batch, grad)
        for parameter, value in zip(
            strategy.module_.parameters(), expected, strict=True
        ):
            assert_same(parameter, value, atol=1e-9)


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_the_gradient_reaches_the_probabilities_as_it_is(strategy):
    """A small step lowers the linear loss by lr times the squared gradient."""
    strategy, rows = copy.deepcopy(strategy).set_params(lr=1e-6), training_rows()
    strategy.start(rows, 0)
    grad = random(N, seed=1)
    before = strategy.probabilities(rows) @ grad
    squared = sum(
        g.square().sum()
        for g in torch.autograd.grad(before, list(strategy.module_.parameters()))
    )
    strategy.step(rows, grad)
    drop = before - strategy.probabilities(rows) @ grad
    assert drop.item() == pytest.approx(1e-6 * squared.item(), rel=1e-4)


def test_any_optimizer():
    strategy, rows = WeightNet(lr=0.01, optimizer=torch.optim.Adam), training_rows()
    strategy.start(rows, 0)
    before = [p.detach().clone() for p in strategy.module_.parameters()]
    strategy.step(rows, random(N, seed=1))
    for old, new in zip(before, strategy.module_.parameters(), strict=True):
        moved = (new - old).abs()  # the first step of Adam has the size of lr
        assert moved.median().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_nets_take_the_dtype_of_the_features(strategy, dtype):
    strategy, rows = copy.deepcopy(strategy), training_rows(dtype=dtype)
    strategy.start(rows, 0)
    strategy.step(rows, random(N))  # the gradient comes in float64
    assert strategy.loss_weights(rows).dtype == dtype
    assert {p.dtype for p in strategy.module_.parameters()} == {dtype}


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_the_seed_decides_and_the_global_generator_does_not(strategy):
    def started(seed):
        new = copy.deepcopy(strategy)
        new.start(training_rows(), seed)
        return torch.cat([p.flatten() for p in new.module_.parameters()])

    first = started(3)
    torch.rand(1)
    assert torch.equal(first, started(3))
    assert not torch.equal(first, started(4))
    assert_global_rng_untouched(lambda: started(5))


def test_a_started_net_goes_on_learning_when_started_again():
    strategy, rows = WeightNet(hidden=5), training_rows()
    strategy.start(rows, 0)
    strategy.step(rows, random(N, seed=1))
    before = strategy.loss_weights(rows)
    strategy.start(rows, 1)
    assert_same(strategy.loss_weights(rows), before, atol=0.0)


@pytest.mark.parametrize("strategy", NETS, ids=str)
def test_wrong_parameters_of_the_nets(strategy):
    for params in ({"hidden": 0}, {"hidden": 2.5}, {"lr": -1.0}):
        (name,) = params
        wrong = copy.deepcopy(strategy).set_params(**params)
        with pytest.raises(ValueError, match=f"{name}=.* is not valid"):
            wrong.start(training_rows(), 0)


# --- a net of one's own ---------------------------------------------------------------


class Sized(nn.Module):
    """Takes the number of features."""

    def __init__(self, n_features, hidden=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_features, hidden), nn.Linear(hidden, 1))

    def forward(self, z):
        return self.layers(z)


class Unsized(nn.Module):
    """Takes no argument that has no default."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z):
        return self.scale * z.sum(1)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "module", [Sized, Unsized, lazy, lambda n_features: nn.Linear(n_features, 1)]
)
def test_modules_of_any_signature(module, dtype):
    strategy, rows = resolve_weights(module), training_rows(dtype=dtype)
    assert isinstance(strategy, ModuleWeights)
    strategy.start(rows, 0)
    with torch.no_grad():
        scores = strategy.module_(rows.features).reshape(N)
    expected = N * torch.softmax(scores, 0)
    assert_same(strategy.loss_weights(rows), expected, atol=1e-6)
    before = strategy.probabilities(rows).detach()
    grad = random(N, seed=1).to(dtype)
    strategy.step(rows, grad)
    assert (strategy.probabilities(rows) - before) @ grad < 0


def test_module_weights_follow_the_seed():
    def parameters(seed):
        strategy = ModuleWeights(Sized)
        strategy.start(training_rows(), seed)
        return torch.cat([p.flatten() for p in strategy.module_.parameters()])

    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))
    assert_global_rng_untouched(lambda: parameters(1))


class Moody(nn.Module):
    """Behaves differently in training and in evaluation."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)
        )

    def forward(self, z):
        return self.layers(z)


def test_a_net_is_trained_by_its_steps_only():
    strategy, rows = ModuleWeights(Moody), training_rows()
    strategy.start(rows, 0)
    buffers = {name: x.clone() for name, x in strategy.module_.named_buffers()}
    before = strategy.loss_weights(rows)
    assert_same(strategy.loss_weights(rows), before, atol=0.0)
    alone = torch.cat([strategy.scores(row[None]) for row in rows.features])
    assert_same(alone, strategy.scores(rows.features), atol=1e-12)
    for name, x in strategy.module_.named_buffers():
        assert torch.equal(x, buffers[name])
    strategy.step(rows, random(N, seed=1))
    assert not torch.equal(strategy.module_.layers[1].running_mean, torch.zeros(8))
    assert not strategy.module_.training
    assert_same(strategy.loss_weights(rows), strategy.loss_weights(rows), atol=0.0)


def test_dropout_follows_the_seed_and_is_new_in_each_step():
    def masks(seed):
        strategy, rows = ModuleWeights(Moody, lr=0.0), training_rows()
        strategy.start(rows, seed)
        drawn = []
        strategy.module_.layers[2].register_forward_hook(
            lambda layer, args, output: drawn.append(output == 0)
        )
        for _ in range(3):
            torch.rand(1)
            strategy.step(rows, random(N))
        return torch.stack(drawn)

    first = masks(1)
    assert torch.equal(first, masks(1))
    assert not torch.equal(first, masks(2))
    assert not torch.equal(first[0], first[1])
    strategy = ModuleWeights(Moody)
    strategy.start(training_rows(), 0)
    assert_global_rng_untouched(lambda: strategy.step(training_rows(), random(N)))


def test_lazy_layers_follow_the_seed():
    def parameters(seed):
        strategy = ModuleWeights(lazy)
        strategy.start(training_rows(), seed)
        return torch.cat([p.flatten() for p in strategy.module_.parameters()])

    assert torch.equal(parameters(1), parameters(1))
    assert_global_rng_untouched(lambda: parameters(1))


@pytest.mark.parametrize("width", [2, 12])
def test_a_net_must_return_one_score_per_row(width):
    strategy = ModuleWeights(lambda n_features: nn.Linear(n_features, width))
    with pytest.raises(
        ValueError, match=rf"returned shape \(2, {width}\) .* one score"
    ):
        strategy.start(training_rows(), 0)


# --- the closed form ------------------------------------------------------------------


@pytest.mark.parametrize("with_start", [False, True])
def test_the_closed_form_is_scaled_to_mean_one(with_start):
    rows = training_rows(UNEVEN if with_start else None)
    strategy = SemiRelaxedWeights()
    strategy.start(rows, 0)
    assert_same(sample_weight(strategy, rows), torch.ones(N), atol=1e-15)
    C = torch.rand(N, 4, generator=seeded(), dtype=torch.float64)
    mass = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    cost = strategy.solve(lambda block: C[block], mass, 0.1, N)
    masses = semirelaxed_weights(C, mass, 0.1)
    assert_same(sample_weight(strategy, rows), N * masses, atol=1e-13)
    plan = torch.softmax(-C / 0.1, 0) * mass
    assert_same(cost, (C * plan).sum(), atol=1e-14)
    batch = batch_of(rows, [5, 0, 11])
    assert_same(strategy.loss_weights(batch), N * masses[[5, 0, 11]], atol=1e-13)
    part = masses[[5, 0, 11]]
    assert_same(strategy.probabilities(batch), part / part.sum(), atol=1e-14)


def test_stepping_what_is_solved_and_solving_what_is_stepped():
    with pytest.raises(NotImplementedError, match="SemiRelaxedWeights is solved"):
        SemiRelaxedWeights().step(training_rows(), random(N))
    with pytest.raises(NotImplementedError, match="WeightVector is stepped"):
        WeightVector().solve(None, None, 0.1, N)


# --- where the weights start ----------------------------------------------------------

COUNTS = torch.tensor([5000, 387, 50, 1])


def naive_start(name, counts):
    formula = {
        "uniform": lambda n: 1.0,
        "inverse": lambda n: 1 / n,
        "class_balanced": lambda n: (1 - 0.9999) / (1 - 0.9999**n),
    }[name]
    weights = [formula(n) if n else 0.0 for n in counts]
    mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / sum(counts)
    return torch.tensor([w / mean for w in weights], dtype=torch.float64)


@pytest.mark.parametrize("name", START_WEIGHTS)
def test_start_weights_are_the_naive_formulas(name):
    weights = class_start_weights(name, COUNTS)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(
        weights, naive_start(name, COUNTS.tolist()), rtol=1e-10, atol=0
    )
    assert (weights * COUNTS).sum().item() / COUNTS.sum().item() == pytest.approx(1.0)


def test_start_weights_order_the_classes():
    uniform, balanced, inverse = (
        class_start_weights(name, COUNTS)
        for name in ("uniform", "class_balanced", "inverse")
    )
    assert uniform.tolist() == [1.0] * 4
    # Between uniform and inverse, the closer to inverse the fewer the rows.
    assert 1 < balanced[3] / balanced[0] < inverse[3] / inverse[0]
    assert (inverse * COUNTS).tolist() == pytest.approx([COUNTS.sum().item() / 4] * 4)
    few = class_start_weights("class_balanced", torch.tensor([30, 3]))
    assert (few[1] / few[0]).item() == pytest.approx(10.0, rel=2e-3)
    many = class_start_weights("class_balanced", torch.tensor([10**7, 10**6]))
    assert (many[1] / many[0]).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", START_WEIGHTS)
def test_a_class_without_rows_changes_nothing_for_the_others(name):
    counts = torch.tensor([40, 0, 5])
    weights = class_start_weights(name, counts)
    assert torch.isfinite(weights).all()
    others = class_start_weights(name, counts[counts > 0])
    assert_same(weights[counts > 0], others, atol=1e-14)


@pytest.mark.parametrize("wrong", ["balanced", None, 0.5])
def test_an_unknown_start_lists_the_valid_ones(wrong):
    with pytest.raises(ValueError, match="init_weights=.* is not known") as error:
        class_start_weights(wrong, COUNTS)
    for name in START_WEIGHTS:
        assert repr(name) in str(error.value)


# --- the slot -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "strategy"), WEIGHTS.items())
def test_names(name, strategy):
    assert type(resolve_weights(name)) is strategy


def test_an_instance_is_cloned_unfitted():
    mine, _, _ = vector(lr=0.25, update="sgd", keep=False, n_steps=3)
    found = resolve_weights(mine)
    assert found.get_params() == mine.get_params()
    assert not hasattr(found, "values_")


@pytest.mark.parametrize("wrong", ["mlp", None, 0.1, [1.0, 2.0]])
def test_unknown_weights_list_the_valid_ones(wrong):
    with pytest.raises(ValueError, match="weights=.* is not known") as error:
        resolve_weights(wrong)
    for part in (*WEIGHTS, "an instance of WeightStrategy or a callable"):
        assert part in str(error.value)


@pytest.mark.parametrize("make", [lambda net: net, ModuleWeights], ids=["bare", "in"])
def test_an_instance_of_a_module_is_no_weight_net(make):
    with pytest.raises(ValueError, match="is an instance, but .* give its class"):
        Reweighter(weights=make(nn.Linear(D, 1)))


class FixedWeights(WeightStrategy):
    """Never moves."""

    def log_weights(self, rows):
        return rows.start.log()

    def step(self, rows, grad):
        pass


def test_a_strategy_of_ones_own():
    strategy, rows = resolve_weights(FixedWeights()), training_rows(UNEVEN)
    strategy.start(rows, 0)
    assert strategy.begin_batch(rows) == 1
    assert_same(sample_weight(strategy, rows), UNEVEN, atol=1e-14)
    with pytest.raises(TypeError, match="log_weights"):
        type("NoStrategy", (WeightStrategy,), {})()
