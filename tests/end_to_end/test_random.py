"""Random numbers through torch.compile and the direct entries: their distributions, seeds, backward passes and other targets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dlcompiler
from tests.end_to_end.support import ours_only

pytestmark = ours_only
COUNT = 1 << 16


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(function: Callable, **options) -> Callable:
    return torch.compile(function, backend="dlcompiler", fullgraph=True, options=options or None)


def with_seed(seed: int, function: Callable, *arguments):
    torch.manual_seed(seed)
    return function(*arguments)


def near(value: Tensor | float, expected: float, deviation: float, count: int = COUNT) -> None:
    """A mean of `count` numbers of this standard deviation is within five of its own."""
    assert abs(float(value) - expected) < 5 * deviation / math.sqrt(count), (float(value), expected)


# -- distributions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uniform_and_normal_numbers(dtype):
    def draw() -> tuple[Tensor, Tensor]:
        return torch.rand(COUNT, dtype=dtype), torch.randn(COUNT, dtype=dtype)

    uniform, normal = compiled(draw)()
    assert uniform.dtype is normal.dtype is dtype
    assert uniform.min() >= 0 and uniform.max() < 1
    spread = torch.histc(uniform.float(), 64, 0, 1)
    # chi-squared with 63 degrees of freedom: 63 on average, a standard deviation of sqrt(126)
    assert abs(float(((spread - COUNT / 64) ** 2 / (COUNT / 64)).sum()) - 63) < 5 * math.sqrt(126)
    wide = normal.double()
    for power, moment, deviation in ((1, 0, 1), (2, 1, math.sqrt(2)), (3, 0, math.sqrt(15)), (4, 3, math.sqrt(96))):
        near((wide**power).mean(), moment, deviation)
    near((wide[1:] * wide[:-1]).mean(), 0, 1)  # neighbours
    near((wide * (uniform.double() - 0.5)).mean(), 0, 1 / math.sqrt(12))  # the two draws


def test_other_distributions():
    rates = torch.tensor([0.0, 0.1, 0.5, 1.0])[:, None].expand(4, COUNT)

    def draw(rates: Tensor) -> list[Tensor]:
        empty = torch.empty(COUNT)
        return [
            torch.bernoulli(rates), empty.clone().uniform_(2, 6), empty.clone().normal_(3, 2), empty.clone().bernoulli_(0.25),
            empty.clone().exponential_(2.0), torch.randint(-3, 5, (COUNT,)), torch.randint(0, 1 << 40, (COUNT,)),
            torch.normal(1.0, 3.0, (COUNT,)), torch.normal(empty.fill_(5), 0.5), torch.rand_like(rates.mT),
        ]  # fmt: skip

    function = compiled(draw)
    chances, uniform, normal, quarter, exponential, small, large, scaled, moved, turned = function(rates)
    for rate, row in zip((0.0, 0.1, 0.5, 1.0), chances):
        near(row.mean(), rate, math.sqrt(rate * (1 - rate)) + 1e-9)
    assert uniform.min() >= 2 and uniform.max() <= 6
    near(uniform.mean(), 4, 4 / math.sqrt(12))
    near(normal.mean(), 3, 2)
    near(quarter.mean(), 0.25, math.sqrt(3) / 4)
    assert exponential.min() >= 0
    near(exponential.mean(), 0.5, 0.5)
    assert small.dtype is torch.int64 and sorted(small.unique().tolist()) == list(range(-3, 5))
    near(small.double().mean(), 0.5, math.sqrt(63 / 12))
    assert 0 <= large.min() and large.max() < 1 << 40
    near(large.double().mean() / 2**40, 0.5, 1 / math.sqrt(12))
    near(scaled.mean(), 1, 3)
    near(moved.mean(), 5, 0.5)
    assert turned.stride() == torch.rand_like(rates.mT).stride()
    (report,) = dlcompiler.reports()
    assert not report.as_dict()["aten"] and report.as_dict()["library"] == {"random_seed": 1}


@pytest.mark.parametrize(
    "draw", [lambda x: x.bernoulli_(1.5), lambda x: x.uniform_(2, 1), lambda x: x.exponential_(-1.0), lambda x: x.normal_(0, -1)]
)
def test_what_eager_refuses_is_refused(draw):
    with pytest.raises(RuntimeError, match="expects|must|in"):
        compiled(lambda x: draw(x.clone()))(torch.zeros(5))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate):
    x = torch.ones(256, 256)
    y = compiled(lambda x: F.dropout(x, rate))(x)
    kept = y != 0
    near(kept.double().mean(), 1 - rate, math.sqrt(rate * (1 - rate)))
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)))
    # rows, columns and neighbours know nothing of each other
    centred = kept.double() - (1 - rate)
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1]), (centred[:128], centred[128:])):
        near((a * b).mean(), 0, rate * (1 - rate), a.numel())


def test_kinds_of_dropout():
    x = torch.randn(64, 16, 8, 8)

    def drop(x: Tensor) -> list[Tensor]:
        return [F.dropout2d(x, 0.5), F.dropout(x, 0.0), F.dropout(x, 1.0), F.dropout(x, 0.3, training=False)]

    whole, same, nothing, untrained = compiled(drop)(x)
    dropped = (whole == 0).flatten(2).double().mean(-1)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(same, x) and torch.equal(untrained, x) and not nothing.any()


# -- seeds ---------------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Equal layers, each with a dropout."""

    def __init__(self, count: int = 3, width: int = 64, rate: float = 0.25) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.rate = rate

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.dropout(layer(x), self.rate) for layer in self.layers]


@pytest.mark.parametrize("entry", ["torch.compile", "dlcompiler.compile"])
def test_a_seed_gives_the_same_masks_again(entry):
    model, x = Layers(), torch.randn(32, 64)
    run = compiled(model) if entry == "torch.compile" else dlcompiler.compile(model, x)
    with torch.no_grad():
        first, again, other = with_seed(1, run, x), with_seed(1, run, x), run(x)
        state = torch.get_rng_state()
        third = run(x)
        torch.set_rng_state(state)
        with torch.random.fork_rng():
            forked = run(x)
        repeated = run(x)
    masks = [[y != 0 for y in ys] for ys in (first, again, other, third, forked, repeated)]
    for layer in range(3):
        a, b, c, d, e, f = (mask[layer] for mask in masks)
        assert torch.equal(a, b) and torch.equal(d, e) and torch.equal(d, f)
        assert not torch.equal(a, c) and not torch.equal(c, d)
    # equal layers draw other masks, by one compiled kernel
    assert not torch.equal(masks[0][0], masks[0][1]) and not torch.equal(masks[0][1], masks[0][2])
    report = dlcompiler.reports()[-1].as_dict()
    assert (report["kernels"], report["distinct"]) == (3, 1)


def test_sizes_known_only_when_called():
    run = torch.compile(lambda x: F.dropout(x, 0.5), backend="dlcompiler", dynamic=True)
    rows = {n: with_seed(3, run, torch.ones(n, 48)) for n in (5, 9, 200)}
    assert len(dlcompiler.reports()) == 1
    # an element's number depends on its index alone
    assert torch.equal(rows[5], rows[9][:5]) and torch.equal(rows[9], rows[200][:9])
    near((rows[200] != 0).double().mean(), 0.5, 0.5, rows[200].numel())


def test_eager_numerics_draw_what_eager_draws():
    x = torch.randn(64, 33)

    def draw(x: Tensor) -> list[Tensor]:
        return [F.dropout(x, 0.2), torch.rand(7), torch.randn_like(x), torch.bernoulli(x.sigmoid()), torch.randint(0, 9, (5,))]

    for ours, eager in zip(with_seed(4, compiled(draw, numerics="eager"), x), with_seed(4, draw, x)):
        assert torch.equal(ours, eager)
    assert torch.equal(with_seed(5, dlcompiler.compile(draw, x, options={"numerics": "eager"}), x)[0], with_seed(5, draw, x)[0])


def test_verifying_draws_the_same_seed():
    run = dlcompiler.compile(lambda x: F.dropout(x, 0.2) + torch.randn_like(x), torch.zeros(9, 11), options={"verify": True})
    x = torch.zeros(9, 11)
    plain = dlcompiler.compile(lambda x: F.dropout(x, 0.2) + torch.randn_like(x), x)
    assert torch.equal(with_seed(6, run, x), with_seed(6, plain, x))


# -- backward passes -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(32, 64), nn.Linear(64, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(F.gelu(self.up(x)), 0.3)
        return self.norm(x + F.dropout(self.down(y), 0.2))


def test_backward_uses_the_forward_mask():
    x = torch.randn(40, 64, requires_grad=True)
    y = compiled(lambda x: F.dropout(x * 1.0, 0.4))(x)
    y.backward(torch.ones_like(y))
    expected = (y.detach() != 0) / 0.6
    torch.testing.assert_close(x.grad, expected.to(x.dtype))


def test_backward_is_given_a_seed_and_no_mask():
    model, x = Block(), torch.randn(16, 32)
    compiled(model)(x).sum().backward()
    forward, _ = dlcompiler.reports()
    results = forward.as_dict()["outputs"]
    assert "i64[]" in results and not any(result.startswith("bool") for result in results)


def gradients(model: nn.Module, run: Callable, x: Tensor, seed: int = 7) -> list[Tensor]:
    torch.manual_seed(seed)
    model.zero_grad()
    run(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_checkpointing_draws_the_same_masks():
    """Outside of the compiled function the generator's state is restored; inside, the graph draws one seed."""
    model, x = Block(), torch.randn(16, 32, requires_grad=True)
    run = compiled(model)
    plain = gradients(model, run, x)
    outside = gradients(model, lambda x: checkpoint(run, x, use_reentrant=False), x)
    inside = gradients(model, compiled(lambda x: checkpoint(model, x, use_reentrant=False)), x)
    for a, b, c in zip(plain, outside, inside, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_gradients_are_those_of_the_masked_function():
    """The compiled function with a seed, differentiated numerically in float64."""
    torch.manual_seed(0)
    model = Block().double()
    x = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    run = compiled(model)
    (gradient,) = torch.autograd.grad(with_seed(8, run, x).square().sum(), x)
    for k in (0, 17, 40):
        step = torch.zeros(64, dtype=torch.float64)
        step[k] = 1e-5
        with torch.no_grad():
            high, low = (with_seed(8, run, x.detach() + s.reshape(2, 32)).square().sum() for s in (step, -step))
        assert abs(float((high - low) / 2e-5 - gradient.reshape(-1)[k])) < 1e-4


def test_losses_are_within_the_noise_of_eager():
    torch.manual_seed(0)
    model, x, target = Block(), torch.randn(256, 32), torch.randn(256, 32)

    def loss(x: Tensor) -> Tensor:
        return (model(x) - target).square().mean()

    run = compiled(loss)
    with torch.no_grad():
        ours, eager = (torch.stack([f(x) for _ in range(40)]) for f in (run, loss))
    noise = math.hypot(float(ours.std()), float(eager.std())) / math.sqrt(40)
    assert abs(float(ours.mean() - eager.mean())) < 4 * noise
    assert 0.5 < float(ours.std() / eager.std()) < 2


# -- whole steps and other targets -----------------------------------------------------------------------------------------------


def make_step(seed: int = 0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.Dropout(0.5), nn.Linear(128, 1))
    batch = torch.randn(64, 32), torch.randn(64, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = dlcompiler.train_step(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), optimizer, batch, options=options)
    return step, model, batch


def test_a_training_step_with_dropout():
    step, model, batch = make_step()
    losses = [float(with_seed(k, step, batch)) for k in range(30)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    again, twin, _ = make_step()
    assert [float(with_seed(k, again, batch)) for k in range(30)] == losses
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.equal(a, b)
    first, second = (float(step(batch)) for _ in range(2))
    assert first != second


def test_a_training_step_keeps_no_mask():
    step, *_ = make_step()
    kept, *_ = make_step(disabled_passes=["repeat-random"])
    repeated, stored = (s.reports[0].as_dict()["planned_peak"] for s in (step, kept))
    assert repeated < stored


@pytest.mark.parametrize("writer", ["triton", "cuda"])
def test_gpu_programs_draw_the_same_numbers(writer):
    """By Triton's interpreter, and the kernel interpreter for C++; bit for bit, since masks are integers compared."""
    x = torch.ones(6, 70)

    def draw(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.dropout(x, 0.3), torch.rand_like(x)

    on_gpu = dlcompiler.compile(draw, x, target="cuda:sm_90", options={"gpu_writer": writer})
    on_cpu = dlcompiler.compile(draw, x)
    for a, b in zip(with_seed(9, on_gpu.simulate, x), with_seed(9, on_cpu, x)):
        assert torch.equal(a, b)
