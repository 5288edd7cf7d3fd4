"""The FX frontend against eager, through the graph interpreter: promotion, views, reductions, indexing, layers, mutation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from dlcompiler.ir.text import parse_graph, print_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.frontends.interpreted import Interpreting

quick = functools.partial(settings, derandomize=True, deadline=None)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def values(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Small numbers, so that integers do not overflow and quotients are tame."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.rand(tuple(shape), generator=generator) > 0.5
    if dtype.is_floating_point:
        return (torch.randn(tuple(shape), generator=generator) * 2).to(dtype)
    return torch.randint(0 if dtype is torch.uint8 else -5, 9, tuple(shape), generator=generator).to(dtype)


def check(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 0.0, native: bool = True) -> Interpreting:
    """Eager's values, dtypes, shapes and strides, from a graph without calls of ATen."""
    interpreting = Interpreting()
    expected = pytree.tree_leaves(function(*[x.clone() for x in inputs]))
    found = pytree.tree_leaves(interpreting.function(function)(*[x.clone() for x in inputs]))
    assert len(found) == len(expected)
    for ours, eager in zip(found, expected):
        assert (ours.dtype, ours.shape, strides(ours)) == (eager.dtype, eager.shape, strides(eager))
        torch.testing.assert_close(ours, eager, rtol=tolerance, atol=tolerance, equal_nan=True)
    if native:
        assert not [op for op in interpreting.ops() if op.startswith("aten.")]
    return interpreting


def strides(tensor: Tensor) -> list[int]:
    """Strides that matter; of dimensions of size 1, torch's own fake tensors have others than its tensors."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape) if size != 1 and tensor.numel()]


# -- promotion ---------------------------------------------------------------------------------------------------------------

NUMBERS = (2, 3.5, True, 0.1)
ARITHMETIC: tuple[Callable[..., Tensor], ...] = (torch.add, torch.mul, torch.maximum, torch.minimum)
COMPARISONS: tuple[Callable[..., Tensor], ...] = (torch.eq, torch.lt, torch.ge, torch.logical_and, torch.logical_xor)


@quick(max_examples=20)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_two_tensors_promote_as_in_eager(first: torch.dtype, second: torch.dtype, first_0d: bool, second_0d: bool) -> None:
    def together(x: Tensor, y: Tensor) -> list[Tensor]:
        results = [op(x, y) for op in (*ARITHMETIC, *COMPARISONS)]
        results += [torch.where(x > 0, x, y), torch.true_divide(x, y), torch.cat([x.reshape(-1), y.reshape(-1)])]
        if torch.bool not in (first, second):
            results += [x - y, torch.sub(x, y, alpha=2), torch.add(x, y, alpha=3)]
        return results

    x, y = values(() if first_0d else (3, 4), first), values(() if second_0d else (4,), second, seed=1)
    narrow = torch.bfloat16 in (first, second)
    check(together, x, y, tolerance=2e-2 if narrow else 1e-6)


@quick(max_examples=20)
@given(st.sampled_from(DTYPES), st.sampled_from(NUMBERS), st.booleans())
def test_tensor_and_number_promote_as_in_eager(dtype: torch.dtype, number: float, zero_d: bool) -> None:
    def together(x: Tensor) -> list[Tensor]:
        results = [x + number, x * number, x / number, x == number, x > number, torch.where(x > 0, x, number)]
        results += [torch.clamp_min(x, number)] if dtype is not torch.bool else []
        return results + (
            [x - number, number - x, x % number] if not isinstance(number, bool) and dtype is not torch.bool else []
        )

    check(together, values(() if zero_d else (2, 5), dtype), tolerance=1e-2 if dtype is torch.bfloat16 else 1e-6)


@quick(max_examples=20)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(["floor", "trunc", None]))
def test_division_rounds_and_promotes_as_in_eager(first: torch.dtype, second: torch.dtype, mode: str | None) -> None:
    if first is torch.bool and second is torch.bool:
        return
    x, y = values((20,), first), values((20,), second, seed=1)
    y = torch.where(y == 0, torch.ones_like(y), y)
    tolerance = 2e-2 if torch.bfloat16 in (first, second) and mode is None else 1e-6
    check(lambda x, y: [torch.div(x, y, rounding_mode=mode), torch.remainder(x, y), torch.fmod(x, y)], x, y, tolerance=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions_of_integers_are_floats(dtype: torch.dtype) -> None:
    names = "exp sin tanh sigmoid erf rsqrt sqrt log1p atan".split()
    check(lambda x: [getattr(torch, name)(x.abs() + 1) for name in names] if dtype is not torch.bool else torch.exp(x),
          values((7,), dtype), tolerance=1e-2 if dtype is torch.bfloat16 else 1e-6)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_floats_meet_numbers_that_they_cannot_hold(dtype: torch.dtype) -> None:
    """Bit for bit: eager rounds 0.1 to the dtype before a sum or a comparison, but not before a product or a quotient.

    (A float16 quotient is a product with the reciprocal in eager, which may differ in the last bit.)
    """

    def function(x: Tensor) -> list[Tensor]:
        sums = [x + 1e-3, 0.1 - x, torch.add(x, x, alpha=0.1), x % 0.1, x.clamp(max=0.1), x == 0.1, x.fmod(0.3)]
        return [*sums, x * 0.1, x.div(0.1, rounding_mode="floor"), functional.leaky_relu(x, 0.1)]

    # whole vectors: the scalar tail of eager's loops rounds once more
    x = torch.cat([values((1984,), dtype), torch.full((64,), 0.1, dtype=dtype)])
    check(function, x)
    check(lambda x: x / 0.1, x, tolerance=2 * torch.finfo(dtype).eps)


@quick(max_examples=20)
@given(st.sampled_from([2, 3, 4, 0.5, -0.5, -1, -2, 0, 1, 2.5, 7]), st.sampled_from([torch.float32, torch.float64]))
def test_powers(exponent: float, dtype: torch.dtype) -> None:
    check(lambda x: [x.abs().pow(exponent), torch.pow(2.0, x), torch.pow(x.abs(), x)], values((30,), dtype), tolerance=2e-6)


def test_not_a_number_goes_where_eager_lets_it() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1.0, -2.0])

    def together(x: Tensor) -> list[Tensor]:
        pairs = x[:, None], x[None, :]
        return [
            torch.maximum(*pairs), torch.minimum(*pairs), torch.fmax(*pairs), torch.fmin(*pairs), x.clamp(-1, 1), torch.relu(x),
            torch.sign(x), x.isnan(), x.isinf(), x.isfinite(), x.signbit(), x.amax(), x.argmax(), x == x, functional.hardtanh(x),
            torch.softmax(x[3:], 0), torch.logsumexp(x[1:2], 0), x.nan_to_num(),
        ]  # fmt: skip

    check(together, x, tolerance=1e-6)


# -- views -------------------------------------------------------------------------------------------------------------------


@st.composite
def view_chains(draw: Any) -> tuple[list[int], list[tuple[str, Any]]]:
    """A shape, and view operations that fit one after another."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    first, steps = list(shape), []
    for _ in range(draw(st.integers(1, 4))):
        rank = len(shape)
        axis = draw(st.integers(-rank, rank - 1))
        kind = draw(
            st.sampled_from(["permute", "slice", "select", "unsqueeze", "reshape", "flip", "narrow", "repeat", "roll", "pad"])
        )
        if kind == "permute":
            argument: Any = draw(st.permutations(range(rank)))
        elif kind == "slice":
            argument = (axis, draw(st.integers(-4, 4)), draw(st.integers(-4, 4)), draw(st.integers(1, 3)))
        elif kind == "reshape":
            argument = draw(st.sampled_from([[-1], [shape[0], -1], [-1, shape[-1]]]))
        elif kind == "pad":
            argument = draw(st.lists(st.integers(-1, 2), min_size=2, max_size=2))
        else:
            argument = (axis, draw(st.integers(0, shape[axis] - 1))) if shape[axis] else (axis, 0)
        example = apply_view(torch.zeros(shape), kind, argument)
        if 0 < example.numel() < 2000 and example.dim():
            steps.append((kind, argument))
            shape = list(example.shape)
    return first, steps


def apply_view(x: Tensor, kind: str, argument: Any) -> Tensor:
    match kind:
        case "permute":
            return x.permute(argument)
        case "slice":
            axis, start, stop, step = argument
            index = [slice(None)] * x.dim()
            index[axis] = slice(start, stop, step)
            return x[tuple(index)]
        case "select":
            return x.select(*argument)
        case "unsqueeze":
            return x.unsqueeze(argument[0])
        case "reshape":
            return x.reshape(argument) if x.numel() else x
        case "flip":
            return x.flip(argument[0])
        case "narrow":
            return x.narrow(*argument, x.shape[argument[0]] - argument[1])
        case "repeat":
            counts = [1] * x.dim()
            counts[argument[0]] = argument[1] + 1
            return x.repeat(counts)
        case "roll":
            return x.roll(argument[1] + 1, argument[0])
    return functional.pad(x, argument, value=7.0) if x.shape[-1] + sum(argument) > 0 and -min(argument) < x.shape[-1] else x


@quick(max_examples=20)
@given(view_chains())
def test_chains_of_views(chain: tuple[list[int], list[tuple[str, Any]]]) -> None:
    shape, steps = chain

    def function(x: Tensor) -> Tensor:
        for kind, argument in steps:
            x = apply_view(x, kind, argument)
        return x + 0.0

    check(function, values(shape, torch.float32))


def test_joining_and_splitting() -> None:
    x, y = values((2, 6), torch.float32), values((3, 6), torch.int64)

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        parts = [*x.split(4, 1), *x.chunk(3, 1), *y.unbind(0), *torch.tensor_split(y, 2), *y.split_with_sizes([1, 5], 1)]
        joined = [torch.cat([x, y], 0), torch.stack([x, x * 2], -1), torch.cat([torch.empty(0), x.reshape(-1)])]
        return [p + 1 for p in parts] + joined

    check(function, x, y)


VIEWS_BEFORE: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x, lambda x: x.t(), lambda x: x[1:], lambda x: x[:, ::2], lambda x: x.split(2)[1], lambda x: x.flatten()[3:],
    lambda x: x.as_strided((2, 4), (1, 3), 1), lambda x: x.relu().t(), lambda x: x.relu().as_strided((3, 4), (2, 3))[1:],
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS_BEFORE, ids=map(str, range(len(VIEWS_BEFORE))))
def test_strides_said_outright_are_of_the_memory_behind_a_view(view: Callable[[Tensor], Tensor]) -> None:
    def windows(x: Tensor) -> list[Tensor]:
        own = view(x * 2)
        written = x * 3
        written.as_strided((2, 2), (3, 1), 2).mul_(5)
        return [
            own.as_strided((3, 2), (2, 1), 1) * 1,
            own.as_strided((2, 3), (1, 4)) * 1,
            view(x).as_strided((2, 2), (5, 2)) * 1,
            written,
        ]

    check(windows, values((4, 5), torch.float32))


def test_windows_and_diagonals() -> None:
    check(lambda x: [x.unfold(0, 3, 2) * 1, torch.diagonal(x.view(3, 4), 1) * 1], values((12,), torch.float32))
    check(lambda x: x.unfold(0, 0, 1), values((3,), torch.float32), native=False)


def test_makers_of_tensors() -> None:
    def makers(x: Tensor) -> list[Tensor]:
        return [
            torch.arange(7), torch.arange(2, 9, 3), torch.arange(9, 0, -2.0, dtype=torch.int64),
            torch.arange(0.5, 3.0, 0.25), torch.eye(3, 4), torch.full((2, 3), 7),
            torch.zeros(3, dtype=torch.bool), torch.ones_like(x), torch.full_like(x, -1.5), torch.linspace(0, 1, 5), x.tril(),
            x.triu(1), torch.ones(4, 4, dtype=torch.bool).tril(-1), x.new_zeros(2), torch.scalar_tensor(3, dtype=torch.float64),
        ]  # fmt: skip

    check(makers, values((4, 5), torch.float32), tolerance=1e-6)


# -- reductions --------------------------------------------------------------------------------------------------------------


@quick(max_examples=20)
@given(
    st.lists(st.sampled_from([1, 2, 3, 5]), min_size=0, max_size=4), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 15)
)
def test_reductions(shape: list[int], dtype: torch.dtype, keepdim: bool, mask: int) -> None:
    dims = [d - len(shape) if d % 2 else d for d in range(len(shape)) if mask >> d & 1]
    one = dims[0] if dims else -1

    def function(x: Tensor) -> list[Tensor]:
        results = [x.sum(dims, keepdim), x.sum(), x.amax(dims, keepdim), x.amin(dims, keepdim), x.any(), x.all(), x.prod()]
        results += [x.any(one, keepdim), x.all(one, keepdim)]
        if dtype is not torch.bool:
            results += [*x.max(one, keepdim), x.min(one, keepdim)[0], x.argmin(one, keepdim), x.argmax(), x.cumsum(one)]
        if dtype.is_floating_point:
            results += [x.mean(dims, keepdim), x.logsumexp(one, keepdim), x.softmax(one), x.log_softmax(one)]
            results += [x.var(dims, correction=0, keepdim=keepdim), torch.std(x, dims, correction=0)]
            results += [*torch.var_mean(x, dims, correction=0), x.norm(), x.sum(dims, dtype=torch.float64)]
        return results

    check(function, values(shape, dtype), tolerance=4e-2 if dtype is torch.bfloat16 else 1e-5)


def test_reductions_of_nothing() -> None:
    check(lambda x: [x.sum(0), x.prod(0), x.any(0), x.all(), x.mean(0), x.sum(1), x.softmax(1)], torch.zeros(0, 3))


# -- indexing ----------------------------------------------------------------------------------------------------------------

INDEXINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one axis": lambda x, i, j: x[i],
    "negative": lambda x, i, j: x[-i - 1],
    "inner axis": lambda x, i, j: x[:, :, j],
    "two next to each other": lambda x, i, j: x[:, i, j],
    "two apart": lambda x, i, j: x[i, :, j],
    "broadcast": lambda x, i, j: x[i[:, None], :, j[None, :] - 2],
    "with slices": lambda x, i, j: x[1:, i, ::2],
    "with a new axis": lambda x, i, j: x[None, i, :, 1],
    "32-bit": lambda x, i, j: x[i.int()],
    "by a list": lambda x, i, j: x[[0, 2, -1]],
    "index_select": lambda x, i, j: x.index_select(1, i),
    "gather": lambda x, i, j: x.gather(1, i[None, :, None].expand(2, -1, 4)),
    "take": lambda x, i, j: x.take(i * 3 - 5),
    "embedding": lambda x, i, j: functional.embedding(i, x[0]),
    "take_along_dim": lambda x, i, j: x.take_along_dim(i[:, None, None], 0),
}


@pytest.mark.parametrize("name", INDEXINGS)
def test_indexing(name: str) -> None:
    x = values((3, 3, 4), torch.float32)
    check(INDEXINGS[name], x, torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0]))


def test_only_positions_that_may_be_negative_are_wrapped() -> None:
    graph = check(lambda x: x[torch.arange(3) + 1], values((5, 2), torch.float32)).graph
    assert "lt" not in [n.op.name for n in graph.nodes]


# -- layers ------------------------------------------------------------------------------------------------------------------


def test_products() -> None:
    x, y, z = values((2, 3, 4), torch.float32), values((4, 5), torch.float32), values((2, 4, 3), torch.float32)

    def function(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
        return [
            x @ y, x @ z, x[0] @ y, x[0, 0] @ y, y.t() @ x[0, 0], torch.dot(x[0, 0], x[1, 1]), functional.linear(x, y.t(), y[0]),
            torch.addmm(y[0], x[0], y), torch.addmm(y[:3], x[0], y, beta=0.5, alpha=2), torch.baddbmm(x[..., :3], x, z, alpha=3),
            torch.einsum("bij,bjk->bik", x, z), torch.addmm(y[:3], x[0], y, beta=0),
        ]  # fmt: skip

    check(function, x, y, z, tolerance=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    x, w = values((2, 4, 7, 6), torch.float32), values((6, 4 // groups, 3, 2), torch.float32, 1)
    wt, b = values((4, 6 // groups, 3, 2), torch.float32, 2), values((6,), torch.float32, 3)

    def function(x: Tensor, w: Tensor, wt: Tensor, b: Tensor) -> list[Tensor]:
        return [
            functional.conv2d(x, w, b, stride=2, padding=1, groups=groups), functional.conv2d(x, w, dilation=2, groups=groups),
            functional.conv_transpose2d(x, wt, b, stride=2, padding=1, output_padding=1, groups=groups),
            functional.conv1d(x[..., 0], w[..., 0], padding="same", groups=groups),
            functional.conv3d(x[:, :, None], w[:, :, None], groups=groups), functional.conv2d(x[0], w, groups=groups),
        ]  # fmt: skip

    check(function, x, w, wt, b, tolerance=1e-4)


def test_pooling_and_resizing() -> None:
    x = values((1, 2, 7, 9), torch.float32)

    def function(x: Tensor) -> list[Tensor]:
        return [
            functional.max_pool2d(x, 3, 2, 1), functional.max_pool2d(x, 2, ceil_mode=True), functional.avg_pool2d(x, 3, 2, 1),
            functional.avg_pool2d(x, 2, 2, 0, True), functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            functional.adaptive_avg_pool2d(x, 1), functional.adaptive_avg_pool2d(x, (3, 4)), functional.max_pool1d(x[0], 2),
            functional.adaptive_max_pool2d(x, (7, 3)), functional.adaptive_max_pool2d(x, (2, 4)), functional.lp_pool2d(x, 2, 2),
            functional.interpolate(x, scale_factor=2), functional.avg_pool1d(x[0], 3),
            functional.interpolate(x, size=(5, 12), mode="bilinear"),
        ]  # fmt: skip

    check(function, x, tolerance=1e-5)


def test_normalisations_and_activations() -> None:
    x, w, b = values((2, 4, 3, 3), torch.float32), values((4,), torch.float32, 1), values((4,), torch.float32, 2)

    def function(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        last = x.movedim(1, -1)
        return [
            *(functional.layer_norm(last, (4,), weight, bias) for weight, bias in ((w, b), (None, None), (None, b), (w, None))),
            functional.group_norm(x, 2, w, b), functional.group_norm(x, 4), functional.rms_norm(last, (4,), w),
            functional.batch_norm(x, b, w.abs(), w, b), functional.batch_norm(x, None, None, w, b, True), functional.gelu(x),
            functional.instance_norm(x), functional.gelu(x, approximate="tanh"), functional.silu(x), functional.mish(x),
            functional.softplus(x), functional.elu(x), functional.leaky_relu(x, 0.2), functional.hardswish(x),
            functional.hardsigmoid(x), functional.selu(x), functional.relu6(x), functional.logsigmoid(x), functional.glu(x, 1),
            functional.prelu(x, b), functional.normalize(x), functional.cosine_similarity(x[0], x[1]), functional.tanhshrink(x),
        ]  # fmt: skip

    check(function, x, w, b, tolerance=1e-5)


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention_stays_whole(mask: str) -> None:
    q, k = values((2, 3, 5, 8), torch.float32), values((2, 3, 7, 8), torch.float32, 1)
    masks = {"bool": torch.ones(5, 7, dtype=torch.bool).tril(), "float": values((5, 7), torch.float32, 2)}

    def function(q: Tensor, k: Tensor, v: Tensor, *mask_given: Tensor) -> Tensor:
        chosen = mask_given[0] if mask_given else None
        return functional.scaled_dot_product_attention(q, k, v, chosen, is_causal=mask == "causal")

    given = [masks[mask]] if mask in masks else []
    assert check(function, q, k, values(k.shape, torch.float32, 3), *given, tolerance=1e-5).ops().count("attention") == 1


# -- mutation and aliasing -----------------------------------------------------------------------------------------------------


def add_then_read(x: Tensor, y: Tensor) -> Tensor:
    before = x * 2
    x.add_(y)
    return before + x


def write_slices(x: Tensor, y: Tensor) -> Tensor:
    x[1:3] = y[:2] * 2
    x[:, 0] += 1
    x[-1, ::2].mul_(3)
    return x.sum()


def swap(x: Tensor, y: Tensor) -> None:
    saved = x.clone()
    x.copy_(y)
    y.copy_(saved)


def transpose_in_place(x: Tensor, y: Tensor) -> Tensor:
    x.copy_(x.t().clone())
    return x + y


def narrowing_copy(x: Tensor, y: Tensor) -> None:
    x.copy_((y * 3).to(torch.float64))
    y.zero_()


@pytest.mark.parametrize(
    "function", [add_then_read, write_slices, swap, transpose_in_place, narrowing_copy], ids=lambda f: f.__name__
)
def test_inputs_are_written_as_in_eager(function: Callable[..., Any]) -> None:
    ours, eager = [[values((4, 4), torch.float32, seed) for seed in range(2)] for _ in range(2)]
    interpreting = Interpreting()
    found, expected = interpreting.function(function)(*ours), function(*eager)
    assert interpreting.graph.writebacks
    for mine, theirs in zip((*ours, found), (*eager, expected)):
        assert mine is theirs is None or torch.equal(mine, theirs)


def test_results_share_memory_only_where_eager_shares() -> None:
    interpreting = Interpreting()

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return x.clone(), y, y.clone(), y.view(-1).clone(), torch.zeros(2), x.t().contiguous()

    results = interpreting.function(function)(values((3, 4), torch.float32))
    graph = interpreting.graph
    assert len({id(root) for root in map(_root, graph.outputs)}) == len(results)
    assert not {_root(o) for o in graph.outputs} & set(graph.inputs)
    assert not [o for o in graph.outputs if _root(o).op.name == "constant"]


def _root(node: Any) -> Any:
    while node.op.name in ("reshape", "permute", "expand", "slice"):
        (node,) = node.inputs
    return node


# -- what is left to ATen ------------------------------------------------------------------------------------------------------


def test_calls_of_aten_carry_their_arguments_through_text() -> None:
    def function(x: Tensor) -> list[Tensor]:
        most, at = x.mode(1)
        return [most + 1, at, x.nanmedian(0)[0], torch.fft.rfft(x).real, x.nanmedian(), torch.polygamma(2, x.abs() + 1)]

    interpreting = check(function, values((3, 5), torch.float32), tolerance=1e-4, native=False)
    graph = interpreting.graph
    calls = [n for n in graph.nodes if n.op.name == "aten.call"]
    assert {"aten.mode.default", "aten.nanmedian.dim", "aten._fft_r2c.default"} <= {n.attributes["target"] for n in calls}
    assert all(n.attributes["reason"] for n in calls) and not any(n.attributes["impure"] for n in calls)
    again = parse_graph(print_graph(graph))
    assert [dict(n.attributes) for n in again.nodes if n.op.name == "aten.call"] == [dict(n.attributes) for n in calls]


def test_random_numbers_are_impure_and_follow_the_seed() -> None:
    interpreting = Interpreting()

    def function(x: Tensor) -> Tensor:
        return torch.poisson(x) + torch.randperm(4)

    compiled = interpreting.function(function)
    torch.manual_seed(3)
    first = compiled(torch.ones(4))
    torch.manual_seed(3)
    torch.testing.assert_close(first, function(torch.ones(4)))
    assert [n.attributes["impure"] for n in interpreting.graph.nodes if n.op.name == "aten.call"] == [True, True]


def test_complex_numbers_are_left_to_aten() -> None:
    check(lambda x: torch.view_as_real(torch.complex(x, x * 2) * 2j + 1) * 2, values((3,), torch.float32), native=False)
