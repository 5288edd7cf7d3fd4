"""Operators that order, scan, scatter and pool, as eager, with nothing left to ATen: forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlcompiler.ir.errors import InputError
from torch import Tensor

import dlcompiler

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, 16, generator=GENERATOR)
IMAGE = torch.randn(2, 3, 12, 10, generator=GENERATOR)
VOLUME = torch.randn(1, 2, 6, 6, 6, generator=GENERATOR)
AT = torch.randint(0, 6, (5,), generator=GENERATOR)
EACH = torch.randint(0, 6, (4, 5, 16), generator=GENERATOR)
NEW = torch.randn(4, 5, 16, generator=GENERATOR)
WORDS = torch.randint(0, 20, (3, 7), generator=GENERATOR)
TABLE = torch.randn(20, 8, generator=GENERATOR)
GRID = torch.rand(2, 4, 5, 2, generator=GENERATOR) * 2 - 1


def reductions(x: Tensor, at: Tensor, new: Tensor) -> list[Tensor]:
    kinds = ("sum", "prod", "mean", "amax", "amin")
    return [x.scatter_reduce(1, at, new, kind, include_self=own) for kind in kinds for own in (True, False)]


def masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[y > 0] = 1.5
    return y


def padded(image: Tensor, volume: Tensor) -> list[Tensor]:
    modes = ("reflect", "replicate", "circular")
    return [F.pad(image, (2, 1, 1, 2), mode=m) for m in modes] + [F.pad(volume, (2, 1, 1, 2, 1, 1), mode="replicate")]


def resized(image: Tensor, x: Tensor) -> list[Tensor]:
    modes = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    return [F.interpolate(image, scale_factor=1.5, mode=m) for m in modes] + [F.interpolate(x, scale_factor=2, mode="linear")]


def shrunk(image: Tensor) -> list[Tensor]:
    return [F.interpolate(image, size=(6, 5), mode=m, antialias=True, align_corners=c)
            for m in ("bilinear", "bicubic") for c in (False, True)]  # fmt: skip


def maxima(image: Tensor, volume: Tensor) -> list[Any]:
    return [
        F.max_pool2d(image, 3, 2, 1, return_indices=True), F.max_pool2d(image, 2, dilation=2, padding=1, return_indices=True),
        F.max_pool2d(image, (3, 2), ceil_mode=True), F.max_pool3d(volume, 2, return_indices=True),
        F.adaptive_max_pool2d(image, (5, 4), return_indices=True), F.adaptive_max_pool2d(image, (6, 5), return_indices=True),
    ]  # fmt: skip


def averages(image: Tensor, volume: Tensor) -> list[Tensor]:
    return [
        F.avg_pool2d(image, 2), F.avg_pool2d(image, 3, 2, 1), F.avg_pool2d(image, 3, 2, 1, count_include_pad=False),
        F.avg_pool2d(image, 3, 2, ceil_mode=True), F.avg_pool2d(image, 2, divisor_override=3), F.avg_pool3d(volume, 2),
        F.adaptive_avg_pool2d(image, (5, 4)), F.adaptive_avg_pool3d(volume, 4),
    ]  # fmt: skip


def unpooled(image: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(image, 2, return_indices=True), 2)


# what is computed, and its inputs; those of floats get gradients
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "embedding": (lambda t, w: [F.embedding(t, w), F.embedding(t, w, padding_idx=3)], (WORDS, TABLE)),
    "reads": (lambda x, i, e: [x.gather(1, e), x.index_select(1, i), x[:, i], x[i % 4, i], x.take(i)], (X, AT, EACH)),
    "scatter": (lambda x, e, s: [x.scatter(1, e, 1.5), x.scatter_add(1, e, s)], (X, EACH, NEW)),
    "updates": (
        lambda x, i, s: [x.index_add(1, i, s), x.index_copy(1, torch.arange(5), s), x.index_fill(1, i, 2.0),
                         x.index_put((i % 4,), s[0, 0, 0], accumulate=True), x.put(i, s[0, :, 0], accumulate=True)],
        (X, AT, NEW),
    ),
    "masks": (lambda x: [masked(x), x.masked_scatter(x > 0, x * 2)], (X,)),
    "scans": (
        lambda x: [x.cumsum(-1), x.cumsum(0), x.cumprod(1), (x > 0).cumsum(1), x.logcumsumexp(2), x.cummax(1), x.cummin(2)], (X,)
    ),
    "order": (
        lambda x: [x.sort(-1), torch.sort(x, dim=1, stable=True, descending=True), x.argsort(0), x.topk(3, -1),
                   x.topk(2, 0, largest=False), x.kthvalue(3, 1), x.median(-1), x.quantile(0.3, -1)],
        (X,),
    ),
    "maxima": (maxima, (IMAGE, VOLUME)),
    "averages": (averages, (IMAGE, VOLUME)),
    "unpooled": (unpooled, (IMAGE,)),
    "padded": (padded, (IMAGE, VOLUME)),
    "resized": (resized, (IMAGE, X)),
    "shrunk": (shrunk, (IMAGE,)),
    "loss": (lambda x, t: [F.cross_entropy(x, t), x.max(1)[0]], (TABLE, torch.arange(20) % 8)),
}  # fmt: skip
WITHOUT_GRADIENT: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "reductions": (reductions, (X, EACH, NEW)),
    "searches": (
        lambda a, v: [torch.searchsorted(a, v), torch.searchsorted(a, v, right=True, out_int32=True),
                      torch.bucketize(v, torch.linspace(-1, 1, 9))],
        (X[0].sort(-1)[0], torch.cat([X[1], X[0, :, :3], torch.full((6, 1), torch.nan)], 1)),
    ),
    "sampled": (lambda x, g: F.grid_sample(x, g, padding_mode="border", align_corners=True), (IMAGE, GRID)),
}  # fmt: skip


def leaves(result: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(result)


def run(function: Callable[..., Any], inputs: tuple[Tensor, ...], gradients: bool) -> list[Tensor]:
    """Results, and gradients of their sum with weights that tell elements apart."""
    given = [x.clone().requires_grad_(gradients and x.is_floating_point()) for x in inputs]
    results = leaves(function(*given))
    if not gradients:
        return results
    total = sum((r * torch.arange(r.numel()).reshape(r.shape).cos()).sum() for r in results if r.requires_grad)
    return [*results, *torch.autograd.grad(total, [x for x in given if x.requires_grad])]


@pytest.mark.parametrize("name", [*CASES, *WITHOUT_GRADIENT])
def test_as_eager(name: str) -> None:
    function, inputs = {**CASES, **WITHOUT_GRADIENT}[name]
    compiled = torch.compile(function, backend="dlcompiler", options={"strict": True}, fullgraph=True)
    for got, want in zip(run(compiled, inputs, name in CASES), run(function, inputs, name in CASES), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_sums_are_as_accurate_as_eager() -> None:
    x = torch.randn(64, 5000, generator=GENERATOR) + 1
    compiled = torch.compile(lambda x: (x.cumsum(-1), x.t().cumsum(0)), backend="dlcompiler", options={"strict": True})
    exact = x.double().cumsum(-1)
    along, across = compiled(x)
    eager = (x.cumsum(-1) - exact).abs().max()
    assert (along - exact).abs().max() <= eager and (across.t() - exact).abs().max() <= eager


def test_equal_elements_keep_their_order() -> None:
    x = torch.randint(0, 3, (4, 200), generator=GENERATOR).float()
    compiled = torch.compile(lambda x: (x.topk(20, -1), x.sort(-1, descending=True)), backend="dlcompiler")
    top, ordered = compiled(x)
    expected = torch.sort(x, dim=-1, stable=True, descending=True)
    torch.testing.assert_close(ordered[1], expected[1])
    torch.testing.assert_close(top[1], expected[1][:, :20])


def test_one_program_for_all_sizes() -> None:
    def function(x: Tensor, at: Tensor, new: Tensor) -> list[Tensor]:
        return [x.cumsum(0), x.cumsum(1), x.sort(0)[0], x.topk(2, 0)[0], x.index_add(0, at, new), x.cummax(0)[0]]

    compiled = torch.compile(function, backend="dlcompiler", options={"strict": True}, dynamic=True)
    for rows, updates in ((7, 3), (300, 40), (30, 500)):
        x = torch.randn(rows, 5, generator=GENERATOR)
        at, new = torch.randint(0, rows, (updates,), generator=GENERATOR), torch.randn(updates, 5, generator=GENERATOR)
        for got, want in zip(compiled(x, at, new), function(x, at, new)):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_an_update_outside_writes_nothing() -> None:
    compiled = torch.compile(lambda x, i, s: x.index_add(0, i * 1, s), backend="dlcompiler")
    x, new = torch.zeros(4, 3), torch.ones(3, 3)
    result = compiled(x, torch.tensor([1, 4, 1 << 40]), new)
    assert result[1].eq(1).all() and result.sum() == 3


def test_a_library_takes_what_no_routine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcompiler.codegen.cpu.routines.routines", lambda: {})

    def function(x: Tensor, at: Tensor, each: Tensor, new: Tensor) -> list[Any]:
        return [x.sort(-1), x.cummin(1), x.topk(3), x.cumsum(1), x.index_add(1, at, new), x.scatter_add(1, each, new)]

    compiled = torch.compile(function, backend="dlcompiler", options={"strict": True})
    inputs = (X, AT, EACH, NEW)
    for got, want in zip(leaves(compiled(*inputs)), leaves(function(*inputs)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "function, right, wrong",
    [
        (lambda at: TABLE[at], [0, 19, -20], [20]),
        (lambda at: TABLE[at], [1, -1], [-21]),
        (lambda at: F.embedding(at, TABLE), [0, 19], [-1]),
        (lambda at: TABLE.index_select(0, at), [0, 19], [20]),
        (lambda at: TABLE.gather(1, at.view(-1, 1).expand(-1, 4)), [0, 7], [8]),
        (lambda at: F.cross_entropy(TABLE[: len(at)], at), [0, 7, -100], [8]),
        (lambda at: F.cross_entropy(TABLE[: len(at)], at), [3, -100], [-1, -100]),
    ],
)
def test_indices_that_a_call_gives_are_checked(function: Callable[[Tensor], Tensor], right: list[int], wrong: list[int]) -> None:
    """As in eager, a number outside its dimension is an error and not the nearest element; also in a file that NumPy runs."""
    compiled = torch.compile(function, backend="dlcompiler")
    torch.testing.assert_close(compiled(torch.tensor(right)), function(torch.tensor(right)))
    with pytest.raises((IndexError, RuntimeError)):
        function(torch.tensor(wrong + right[1:]))
    with pytest.raises(InputError, match=f"holds the index {wrong[0]}, out of bounds"):
        compiled(torch.tensor(wrong + right[1:]))


def test_indices_are_checked_where_a_kept_program_runs(tmp_path: Path) -> None:
    path = tmp_path / "table.dlc"
    dlcompiler.compile(torch.nn.Embedding(5, 3), (torch.tensor([1, 2]),)).save(path)
    dlcompiler.load(path)(np.array([4, 0]))
    for array in (np.array([4, 0]), np.array([0, 5]), np.array([-1, 0])):
        model = dlcompiler.load(path)
        if array.min() >= 0 and array.max() < 5:
            assert model(array).shape == (2, 3)
        else:
            with pytest.raises(InputError, match="out of bounds for a dimension of size 5"):
                model(array)
