"""Sizes and numbers that are read out of tensors, through both ways in, against eager: any number of elements, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from dlcompiler.ir.errors import CheckError
from torch import Tensor

import dlcompiler
from tests.end_to_end.support import ENTRIES, check, compile_with, ours_only, random_tensor

pytestmark = ours_only


@pytest.fixture(autouse=True)
def whole_graphs() -> Iterator[None]:
    settings = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch._dynamo.config.patch(settings):
        yield


def number(value: Any) -> Tensor:
    return torch.tensor(value)


def size(n: Tensor, x: Tensor) -> int:
    """A number out of a tensor, from none to all of the rows of another. Added, so that it is no argument of the graph."""
    k = (n + 0).item()
    torch._check(k >= 0)
    torch._check(k <= x.shape[0])
    return k


def rows_before(x: Tensor, n: Tensor) -> Any:
    k = size(n, x)
    return x[:k].exp(), torch.arange(k) * 2, x[k:].sum(0), k


def any_slice(x: Tensor, a: Tensor, b: Tensor) -> Any:
    return x[(a + 0).item() : (b + 0).item() : 2] + 1


def sign_of(x: Tensor, n: Tensor) -> Any:
    k = (n * 2).item()
    return x * k - 3 * k + 1, k * k, torch.full((2,), k)


def numbers(x: Tensor, v: Tensor) -> Any:
    f = (v * 0.5).item()
    return x * f + 1, (v > 1).item(), f


def compact(x: Tensor) -> Any:
    mask = x > 0.3
    return x[mask] * 2, torch.nonzero(mask).sum(1), torch.masked_select(x, x[0] > 0), x[mask.any(1)].sum(0)


def put(x: Tensor, y: Tensor) -> Any:
    mask = x > 0
    z = y.clone()
    z[mask] = x[mask] * 3
    z[:, mask[0]] = 7.0
    return z.cos()


def count(x: Tensor, n: Tensor) -> Any:
    n = n % 4
    parts = torch.histc(x, 7, -1.0, 1.5)
    return torch.repeat_interleave(x, n, dim=0) + 1, torch.bincount(n), torch.bincount(n, minlength=9), parts


def distinct(x: Tensor) -> Any:
    rounded = x.round()
    values, which, counts = torch.unique(rounded, return_inverse=True, return_counts=True)
    runs, lengths = torch.unique_consecutive(rounded, return_counts=True)
    return values * 2, which, counts, runs, lengths, torch.unique(rounded > 0)


def parts(x: Tensor, lengths: Tensor) -> Any:
    sizes = lengths.tolist()
    places = torch.arange(x.shape[0]) < lengths[:, None]
    padded = x.new_zeros(*places.shape, x.shape[1]).masked_scatter(places[..., None], x)
    return [p.sum(0) for p in torch.split(x, sizes)], padded.amax(1), padded[places] * 2


def equal(x: Tensor) -> Any:
    first, second = torch.nonzero(x > 0), torch.nonzero(-x < 0)
    torch._check(first.shape[0] == second.shape[0])
    return (first * 2 + second).sum(1)


def keep_boxes(boxes: Tensor, scores: Tensor) -> Any:
    kept = scores > 0.2
    boxes, scores = boxes[kept], scores[kept]
    order = scores.argsort(descending=True)
    corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    overlap = (torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner).clamp(min=0).prod(-1)
    alone = (overlap.triu(diagonal=1) < 0.1).all(0)
    return boxes[order], scores[alone], torch.where(alone)[0]


def experts(x: Tensor, gate: Tensor, weights: Tensor) -> Any:
    share, chosen = (x @ gate).softmax(-1).topk(2)
    out = torch.zeros_like(x)
    for e in range(weights.shape[0]):
        row, place = torch.where(chosen == e)
        out.index_add_(0, row, torch.tanh(x[row] @ weights[e]) * share[row, place, None])
    return out


def branches(x: Tensor, n: Tensor) -> Any:
    k = (n + 0).item()
    y = torch.cond(k > 1, lambda a: a[a > 0] + 1, lambda a: a[a < 0], (x.flatten(),))
    return torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a * 2, (y,)) * k


def loop(x: Tensor, n: Tensor) -> Any:
    k = (n + 0).item()
    return torch._higher_order_ops.while_loop(lambda i, a: i < 4, lambda i, a: (i + 1, a * 2 + i), (k, x))


def rounded_size(x: Tensor, n: Tensor) -> Any:
    k = size(n, x)
    return torch.ones(torch.sym_int(k * 1.5) + 1).cumsum(0), torch.zeros(max(k, 3), k // 2 + 1) + k


def written(x: Tensor, a: Tensor, b: Tensor) -> Any:
    y = x * 2
    y[(a + 0).item()] = 5.0
    return y.cos(), y[(b + 0).item()] - 1


x54, lines = (
    random_tensor(5, 4),
    torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 1.1, 0.9], [2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 6.0]]),
)
CASES: dict[Callable[..., Any], list[tuple[Any, ...]]] = {
    rows_before: [(x54, number(n)) for n in (3, 0, 5, 1)],
    any_slice: [(x54, number(a), number(b)) for a, b in ((1, 4), (-3, 9), (4, 2), (-9, -1))],
    written: [(x54, number(a), number(b)) for a, b in ((1, 4), (-5, -1))],
    sign_of: [(x54, number(n)) for n in (2, -3, 0)],
    numbers: [(x54, number(v)) for v in (3.0, -1.5)],
    compact: [(x54,), (x54 - 9,), (x54 + 9,)],
    put: [(x54, random_tensor(5, 4, seed=1)), (x54 - 9, x54), (x54 + 9, x54)],
    count: [(x54, number([1, 0, 3, 2, 1])), (x54, number([0, 0, 0, 4, 0]))],
    distinct: [(x54,), (x54 * 0,)],
    parts: [(x54, number([2, 2, 1])), (x54, number([0, 1, 4]))],
    equal: [(x54,), (x54 - 9,)],
    keep_boxes: [(lines, number([0.9, 0.8, 0.1, 0.5])), (lines, number([0.0, 0.1, 0.1, 0.1]))],
    experts: [(random_tensor(7, 4), random_tensor(4, 3, seed=1), random_tensor(3, 4, 4, seed=2))],
    branches: [(x54, number(n)) for n in (2, 0)],
    loop: [(x54, number(n)) for n in (1, -2, 9)],
    rounded_size: [(x54, number(n)) for n in (3, 0, 5)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "entry"),
    # what comes from torch.export goes the same way from there: some of each kind
    [(function, "torch.compile") for function in CASES]
    + [(function, "dlcompiler.compile") for function in (rows_before, sign_of, compact, put, parts, keep_boxes, branches)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_what_data_tells_is_eagers_and_no_graph_runs_in_torch(function: Callable[..., Any], entry: str) -> None:
    settings = {"fullgraph": True} if entry == "torch.compile" else {}
    compiled = compile_with(entry, function, CASES[function][0], **settings)
    for inputs in CASES[function]:
        check(function, inputs, compiled=compiled)
    for report in dlcompiler.reports():
        assert report.target != "torch" and not report.aten and not report.host, str(report)


def test_what_is_only_computed_with_is_one_program() -> None:
    check(sign_of, (x54, number(4)), compiled=torch.compile(sign_of, backend="dlcompiler", fullgraph=True))
    assert dlcompiler.reports()[-1].pieces == 1


def test_results_are_views_of_inputs_where_eagers_are() -> None:
    def function(x: Tensor, n: Tensor) -> tuple[Any, ...]:
        k = size(n, x[1:])
        return x[k], x[k:].t(), x * 2, k, x[:k]

    compiled = torch.compile(function, backend="dlcompiler", fullgraph=True)
    for n in (2, 0, 4):
        ours, eager = compiled(x54, number(n)), function(x54, number(n))
        torch.testing.assert_close(ours, eager)
        for k in (0, 1, 4):
            assert ours[k].data_ptr() == eager[k].data_ptr() and ours[k].stride() == eager[k].stride()
    assert all(report.target != "torch" for report in dlcompiler.reports())


GRADIENTS: dict[str, Callable[..., Tensor]] = {
    "masked loss": lambda x, y: ((x - y) ** 2)[y > 0].mean(),
    "rows": lambda x, y: (x[torch.nonzero(y.sum(1) > 0)[:, 0]] @ y.t()).tanh().sum(),
    "selected": lambda x, y: torch.masked_select(x * y, y < 0).exp().sum(),
    "repeated": lambda x, y: (torch.repeat_interleave(x, (y[:, 0] > 0) + 1, dim=0).sin()).sum(),
    "cut": lambda x, y: (x[: (y > 0).any(1).sum().item()].exp() * 2).sum(),
    "any cut": lambda x, y: (x[(y > 0).sum().item() - 14 :].exp() * y[(y > 1).sum().item() - 4]).sum(),
    "experts": lambda x, y: experts(x, y.t() @ y, torch.stack([y.t() @ y, (y * 2).t() @ y])).square().sum(),
    "put": lambda x, y: torch.zeros_like(y).masked_scatter(y > 0, x[y > 0] * 2).square().sum() + put(y, x).sum(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_eagers(name: str) -> None:
    function = GRADIENTS[name]

    def gradients(f: Callable[..., Tensor], dtype: torch.dtype, seed: int) -> list[Tensor]:
        leaves = [random_tensor(6, 4, seed=seed + k).to(dtype).requires_grad_() for k in range(2)]
        f(*leaves).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    compiled = torch.compile(function, backend="dlcompiler", fullgraph=True)
    for seed in (0, 5):
        found, wanted = gradients(compiled, torch.float32, seed), gradients(function, torch.float64, seed)
        for ours, judge in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), judge, rtol=2e-5, atol=1e-5)
    assert all(report.target != "torch" for report in dlcompiler.reports())


def asserts(x: Tensor, n: Tensor) -> Tensor:
    k = (n * 1).item()
    torch._check(k >= 2)
    torch._check(k % 2 == 0, lambda: "must be even")
    v = x.sum().item()
    torch._check(v > 0.5)
    torch._check((x < 2).all().item())
    return torch.ones(k) * v


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("n", "scale", "message"),
    [
        (-3, 1, "u. that the model|does not hold"),
        (1, 1, "2 does not hold"),
        (3, 1, "even|mod"),
        (4, -1, "0.5"),
        (4, 9, "True does|>= 1 does"),
    ],
)
def test_what_a_model_asserts_is_asked_in_each_call(entry: str, n: int, scale: int, message: str) -> None:
    settings = {"fullgraph": True} if entry == "torch.compile" else {}
    x = torch.ones(3)
    compiled = compile_with(entry, asserts, (x, number(4)), **settings)
    check(asserts, (x, number(6)), compiled=compiled)
    with pytest.raises(CheckError, match=message):
        compiled(x * scale, number(n))
    with pytest.raises(RuntimeError):  # as in eager
        asserts(x * scale, number(n))


def test_sizes_asserted_to_be_equal_are_asked_for() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        first, second = torch.nonzero(x), torch.nonzero(y)
        torch._check(first.shape[0] == second.shape[0])
        return first + second

    compiled = torch.compile(function, backend="dlcompiler", fullgraph=True)
    check(function, (number([1, 0, 2]), number([0, 1, 1])), compiled=compiled)
    with pytest.raises(CheckError, match="does not hold"):
        compiled(number([1, 0, 2]), number([1, 1, 1]))


@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs_are_written_as_in_eager(entry: str) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        k = (x > 0).sum().item()
        torch._check(k >= 0)
        y.mul_(k)
        y[x > 0] = 0
        x.add_(torch.ones(k).sum())
        return x * 2, y[y > 0]

    settings = {"fullgraph": True} if entry == "torch.compile" else {}
    compiled = compile_with(entry, function, (x54.clone(), x54.abs()), **settings)
    for seed in (0, 3):
        check(function, (random_tensor(5, 4, seed=seed), random_tensor(5, 4, seed=9).abs()), compiled=compiled)
    assert all(report.target != "torch" for report in dlcompiler.reports())


class Masked(torch.nn.Module):
    """Rows chosen by a mask and a branch chosen by data, with statistics that a call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.norm = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), torch.nn.BatchNorm1d(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        chosen = self.norm(self.into(x).tanh())[mask]
        return torch.cond(x.sum() > 0, lambda h: self.out(h), lambda h: self.out(h * 2) + 1, (chosen,))


def test_a_training_step_with_masks_and_branches_is_eagers() -> None:
    def loss_of(model: torch.nn.Module, batch: Any) -> Tensor:
        return (model(*batch) ** 2).mean()

    torch.manual_seed(0)
    model = Masked()
    reference = Masked()
    reference.load_state_dict(model.state_dict())
    batches = [(random_tensor(9, 4, seed=k), random_tensor(9, seed=k) > 0) for k in range(4)]
    optimizer, own = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, reference))
    step = dlcompiler.train_step(model, loss_of, optimizer, batches[0])
    for batch in batches:
        own.zero_grad()
        wanted = loss_of(reference, batch)
        wanted.backward()
        own.step()
        torch.testing.assert_close(step(batch), wanted.detach())
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_programs_with_told_sizes_are_saved_and_simulated(tmp_path: Any) -> None:
    def function(x: Tensor) -> Any:
        return torch.nonzero(x > 0) * 2, torch.unique(x.round(), dim=0) + 1

    compiled = dlcompiler.compile(function, (x54,))
    assert [call.name for call in compiled.report().host] == ["aten.unique_dim.default"]
    compiled.save(tmp_path / "told.dlc")
    for x in (x54, -x54):
        torch.testing.assert_close(dlcompiler.load(tmp_path / "told.dlc")(x), function(x))
    on_gpu = dlcompiler.compile(lambda x: x[x > 0] * 2, (x54,), target="cuda:sm_90")
    torch.testing.assert_close(on_gpu.simulate(-x54), -x54[x54 < 0] * 2)
