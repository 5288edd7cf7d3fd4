"""Library calls against eager, over the layouts and sizes that decide how a routine calls the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.program import LibraryCall, Slot, View
from dlcompiler.ir.types import contiguous_strides
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.library import join_dimensions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.programs import program_of, slot


def strided(draw, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(strides, order) of memory laid out in a random order of dimensions."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides), tuple(order)


def fill(slot: Slot) -> Tensor:
    return torch.empty_strided(slot.shape, slot.strides).copy_(torch.randn(slot.shape))


def run_call(
    op: str, reads: Sequence[Slot], writes: Sequence[Slot], attributes: Any = None, constants: Sequence[Any] = ()
) -> Any:
    """(inputs, results) of one library call on random inputs; slots of role constant take `constants`."""
    given_slots = [s for s in reads if s.role == "input"]
    call = LibraryCall(op, tuple(s.view() for s in reads), tuple(s.view() for s in writes), attributes or {})
    program = program_of(given_slots, (call,), tuple(s.view() for s in writes), constants)
    tensors = [fill(s) for s in given_slots]
    return tensors, Executable(program)(tensors)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data())
def test_matmul_broadcasts_over_any_strides(data) -> None:
    draw = data.draw
    m, k, n = (draw(st.integers(0 if draw(st.booleans()) else 1, 5)) for _ in range(3))
    batch = draw(st.lists(st.sampled_from([1, 2, 3]), max_size=3))
    slots = []
    for position, tail in enumerate(((m, k), (k, n))):
        own = batch[draw(st.integers(0, len(batch))) :]
        shape = (*(1 if draw(st.booleans()) else size for size in own), *tail)
        slots.append(slot("ab"[position], shape, "input", position, strides=strided(draw, shape)[0]))
    lead = torch.broadcast_shapes(slots[0].shape[:-2], slots[1].shape[:-2])
    shape = (*lead, m, n)
    out = slot("out", shape, "output", 0, strides=strided(draw, shape)[0])
    (a, b), (result,) = run_call("matmul", slots, [out])
    torch.testing.assert_close(result, a @ b, rtol=1e-5, atol=1e-5)
    assert result.stride() == out.strides


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_linear(data) -> None:
    draw = data.draw
    shape = (*draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.integers(1, 5)))
    columns, bias = draw(st.integers(1, 5)), draw(st.booleans())
    x = slot("x", shape, "input", 0, strides=strided(draw, shape)[0])
    w = slot("w", (columns, shape[-1]), "input", 1, strides=strided(draw, (columns, shape[-1]))[0])
    reads = [x, w, slot("b", (columns,), "input", 2)] if bias else [x, w]
    tensors, (result,) = run_call("linear", reads, [slot("out", (*shape[:-1], columns), "output", 0)])
    torch.testing.assert_close(result, functional.linear(*tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_linear_goes_to_onednn(constant: bool, bias: bool) -> None:
    m, k, n = 64, 512, 520
    role = "constant" if constant else "input"
    x, w, b = slot("x", (m, k), "input", 0), slot("w", (n, k), role, 0), slot("b", (n,), role, 1)
    weights = [np.random.default_rng(0).standard_normal(s.shape, dtype=np.float32) for s in (w, b)]
    reads = [x, w, b] if bias else [x, w]
    constants = weights[: len(reads) - 1] if constant else []
    tensors, (result,) = run_call("linear", reads, [slot("out", (m, n), "output", 0)], constants=constants)
    operands = [tensors[0], *map(torch.from_numpy, constants)] if constant else tensors
    torch.testing.assert_close(result, functional.linear(*operands), rtol=1e-4, atol=1e-4)


CONVOLUTIONS = [
    # input, weight, strides, padding, dilations, groups
    ((2, 3, 9, 8), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 4, 7, 7), (6, 2, 3, 2), (2, 1), (0, 1), (1, 2), 2),
    ((2, 6, 5, 5), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6),
    ((1, 8, 4, 4), (5, 8, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 11), (4, 3, 3), (2,), (1,), (1,), 1),
    ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 1), 1),
    ((1, 64, 2, 2), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # a weight that outweighs the images
    ((0, 3, 5, 5), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1), 1),
]


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor whose dimension 1 lies last in memory."""
    moved = contiguous_strides((shape[0], *shape[2:], shape[1]))
    return (moved[0], moved[-1], *moved[1:-1])


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_the_gradient_of_a_convolutions_weight(case) -> None:
    shape, weight_shape, strides, padding, dilations, groups = case
    weight = torch.randn(weight_shape, requires_grad=True)
    y = torch.convolution(torch.randn(shape), weight, None, strides, padding, dilations, False, [0] * len(strides), groups)
    reads = [slot("x", shape, "input", 0), slot("dy", tuple(y.shape), "input", 1, strides=channels_last(tuple(y.shape)))]
    numbers = {"strides": strides, "padding": padding, "dilations": dilations, "groups": groups, "taps": weight_shape[2:]}
    (x, dy), (result,) = run_call("convolution_weight", reads, [slot("out", weight_shape, "output", 0)], numbers)
    y = torch.convolution(x, weight, None, strides, padding, dilations, False, [0] * len(strides), groups)
    torch.testing.assert_close(result, torch.autograd.grad(y, weight, dy)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case, constant: bool, last: bool) -> None:
    shape, weight_shape, strides, padding, dilations, groups = case
    layout = channels_last if last else contiguous_strides
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal(weight_shape, dtype=np.float32), rng.standard_normal(weight_shape[0], dtype=np.float32)
    role = "constant" if constant else "input"
    x = slot("x", shape, "input", 0, strides=layout(shape))
    w, b = slot("w", weight_shape, role, 0), slot("b", (weight_shape[0],), role, 1)
    expected_shape = torch.convolution(
        torch.empty(shape), torch.from_numpy(weight), None, strides, padding, dilations, False, [0] * len(strides), groups
    ).shape
    out = slot("out", expected_shape, "output", 0, strides=layout(tuple(expected_shape)))
    attributes = {
        "strides": strides, "padding": padding, "dilations": dilations, "groups": groups,
        "transposed": False, "output_padding": (0,) * len(strides),
    }  # fmt: skip
    tensors, (result,) = run_call("convolution", [x, w, b], [out], attributes, [weight, bias] if constant else ())
    operands = [tensors[0], *map(torch.from_numpy, (weight, bias))] if constant else tensors
    expected = torch.convolution(*operands, strides, padding, dilations, False, [0] * len(strides), groups)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert result.stride() == out.strides


@pytest.mark.parametrize("last", [False, True])
def test_transposed_convolution(last: bool) -> None:
    shape, weight_shape = (2, 4, 5, 6), (4, 3, 4, 3)
    layout = channels_last if last else contiguous_strides
    x, w, b = (
        slot("x", shape, "input", 0, strides=layout(shape)),
        slot("w", weight_shape, "input", 1),
        slot("b", (3,), "input", 2),
    )
    out_shape = (2, 3, 11, 12)
    out = slot("out", out_shape, "output", 0, strides=layout(out_shape))
    attributes = {
        "strides": (2, 2), "padding": (1, 1), "dilations": (1, 1), "groups": 1, "transposed": True, "output_padding": (1, 1),
    }  # fmt: skip
    tensors, (result,) = run_call("convolution", [x, w, b], [out], attributes)
    torch.testing.assert_close(result, functional.conv_transpose2d(*tensors, 2, 1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lead", [(2, 3), (3,), (2, 1, 3)])
@pytest.mark.parametrize("mask_kind", ["none", "bool", "float", "small"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention(lead: tuple[int, ...], mask_kind: str, causal: bool) -> None:
    length, seen, width = 5, 7, 4
    q, k, v = (slot(n, (*lead, s, width), "input", p) for p, (n, s) in enumerate((("q", length), ("k", seen), ("v", seen))))
    # as BERT has it: [batch, length, heads, width] in memory
    out_shape = (*lead, length, width)
    order = contiguous_strides((*lead[:-1], length, lead[-1], width))
    out = slot("out", out_shape, "output", 0, strides=(*order[:-3], order[-2], order[-3], 1))
    rng = np.random.default_rng(0)
    masks: dict[str, list[Any]] = {
        "none": [],
        "bool": [rng.random((*lead, length, seen)) < 0.7],
        "float": [rng.standard_normal((*lead, length, seen)).astype(np.float32)],
        "small": [rng.standard_normal((seen,)).astype(np.float32)],
    }
    constants = masks[mask_kind]
    from dlcompiler.ir.types import boolean, f32

    dtype = boolean if mask_kind == "bool" else f32
    reads = [q, k, v, *(slot("mask", m.shape, "constant", 0, dtype=dtype) for m in constants)]
    tensors, (result,) = run_call("attention", reads, [out], {"scale": 0.3, "causal": causal}, constants)
    scores = 0.3 * tensors[0] @ tensors[1].transpose(-1, -2)
    if constants:
        mask = torch.from_numpy(constants[0])
        scores = scores.masked_fill(~mask, -torch.inf) if mask_kind == "bool" else scores + mask
    if causal:
        scores = scores.masked_fill(~torch.ones(length, seen, dtype=torch.bool).tril(), -torch.inf)
    expected = torch.softmax(scores, -1).nan_to_num(0) @ tensors[2]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert result.stride() == out.strides


def test_attention_with_keys_shared_by_the_batch() -> None:
    q, k, v = slot("q", (2, 3, 5, 4), "input", 0), slot("k", (1, 3, 5, 4), "input", 1), slot("v", (3, 5, 4), "input", 2)
    tensors, (result,) = run_call(
        "attention", [q, k, v], [slot("out", (2, 3, 5, 4), "output", 0)], {"scale": 1.0, "causal": False}
    )
    expected = torch.softmax(tensors[0] @ tensors[1].transpose(-1, -2), -1) @ tensors[2]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm(batch_first: bool, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.LSTM(3, 4, 2, batch_first=batch_first, bidirectional=bidirectional).requires_grad_(False)
    directions = 2 if bidirectional else 1
    x_shape = (2, 6, 3) if batch_first else (6, 2, 3)
    state = (2 * directions, 2, 4)
    x, h, c = slot("x", x_shape, "input", 0), slot("h", state, "input", 1), slot("c", state, "input", 2)
    weights = list(layer.parameters())
    reads = [x, h, c, *(slot(f"w{k}", tuple(w.shape), "constant", k) for k, w in enumerate(weights))]
    y_shape = (*x_shape[:2], 4 * directions)
    writes = [slot("y", y_shape, "output", 0), slot("hn", state, "output", 1), slot("cn", state, "output", 2)]
    attributes = {"layers": 2, "bidirectional": bidirectional, "has_biases": True, "batch_first": batch_first}
    tensors, results = run_call("lstm", reads, writes, attributes, weights)
    y, (hn, cn) = layer(tensors[0], (tensors[1], tensors[2]))
    for result, expected in zip(results, (y, hn, cn)):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_window_of_a_slot_is_read_in_place() -> None:
    x, y = slot("x", (4, 10), "input", 0), slot("y", (4, 3), "output", 0)
    w = slot("w", (5, 3), "input", 1)
    window = View(x, (4, 5), (10, 2), 1)
    call = LibraryCall("matmul", (window, w.view()), (y.view(),))
    given_x, given_w = torch.randn(4, 10), torch.randn(5, 3)
    (result,) = Executable(program_of((x, w), (call,), (y.view(),)))([given_x, given_w])
    torch.testing.assert_close(result, given_x[:, 1::2] @ given_w)


def test_packing_can_be_turned_off() -> None:
    w = np.zeros((8, 8, 3, 3), dtype=np.float32)
    x, y = slot("x", (1, 8, 6, 6), "input", 0), slot("y", (1, 8, 4, 4), "output", 0)
    settings = {
        "strides": (1, 1),
        "padding": (0, 0),
        "dilations": (1, 1),
        "groups": 1,
        "transposed": False,
        "output_padding": (0, 0),
    }
    call = LibraryCall("convolution", (x.view(), slot("w", w.shape, "constant", 0).view()), (y.view(),), settings)
    program = program_of((x,), (call,), (y.view(),), [w])
    packed, shared = Executable(program), Executable(program, pack_constants=False)
    w += 1  # a packed copy does not follow
    ones = [torch.ones(1, 8, 6, 6)]
    assert packed(ones)[0].abs().max() == 0 and shared(ones)[0].min() == 72


def test_an_op_that_no_library_has_is_refused() -> None:
    x, y = slot("x", (3,), "input", 0), slot("y", (3,), "output", 0)
    with pytest.raises(UnsupportedError, match="no library routine for roll"):
        Executable(program_of((x,), (LibraryCall("roll", (x.view(),), (y.view(),)),), (y.view(),)))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data())
def test_joined_dimensions_walk_over_the_same_elements(data) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), max_size=4))
    all_strides = [strided(data.draw, shape)[0] for _ in range(2)]
    sizes, joined = join_dimensions(shape, *all_strides)
    for strides, own in zip(all_strides, joined):
        memory = torch.arange(256)
        assert torch.equal(memory.as_strided(shape, strides).reshape(-1), memory.as_strided(sizes, own).reshape(-1))
