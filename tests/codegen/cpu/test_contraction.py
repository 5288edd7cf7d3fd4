"""Contractions: the tiled loop gives what the kernel means, for every machine, layout, size and whatever follows the sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dlcompiler.codegen.contraction import ContractionSchedule, choose_tile, panel_width, schedule_contraction
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import find_contraction, pack_columns
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.interpret_kernel import interpret_kernel
from dlcompiler.ir.types import DTYPES, TensorType, contiguous_strides
from dlcompiler.ir.verify_kernel import verify_kernel
from dlcompiler.passes.block.lower import lower_group
from dlcompiler.passes.strides import channels_last_strides
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.run import concrete, machines, run_kernel, strided

f32, f64, f16, bf16, i8, u8, i32, i64 = (DTYPES[name] for name in ("f32", "f64", "f16", "bf16", "i8", "u8", "i32", "i64"))
# of the largest value; narrow results are rounded once, integers are exact
TOLERANCE = {f64: 1e-13, f32: 1e-5, f16: 2.0**-11, bf16: 2.0**-8, i32: 0, i64: 0}
SIZES = st.one_of(st.integers(1, 9), st.integers(10, 70), st.sampled_from([16, 48, 64, 96, 97]))


def lowered(nodes: list[Node], outputs: list[Node], strides=None, inlined=()) -> K.Kernel:
    kernel, _, _ = lower_group("k", nodes, outputs, lambda node: node in inlined, strides, cost_matters=False)
    return kernel


def check(
    kernel: K.Kernel, fixed=lambda b: True, sizes=None, pack: bool = True, must: bool = True, seed: int = 0, on=machines
) -> list[ContractionSchedule | None]:
    """Compiled code for every machine against the kernel's meaning; `must`: it has to be a contraction that is tiled.

    Returns the schedules.
    """
    schedules = []
    sizes = sizes or {}
    random = np.random.default_rng(seed)
    arrays = {}
    for b in kernel.buffers:
        arrays[b.name] = strided(concrete(b.shape, sizes), concrete(b.strides, sizes), b.dtype.numpy, misalign=1)
        arrays[b.name][...] = (
            random.integers(-(1 << 31), 1 << 31, arrays[b.name].shape).astype(b.dtype.numpy)  # the low bits, so all of bytes
            if b.dtype.is_integer
            else random.standard_normal(arrays[b.name].shape)
        )
    expected = {b.name: strided(concrete(b.shape, sizes), concrete(b.strides, sizes), b.dtype.numpy) for b in kernel.buffers}
    for name, array in arrays.items():
        expected[name][...] = array
    interpret_kernel(kernel, expected, sizes)
    for machine in on():
        if not machine.has_half_conversion and any(b.dtype is f16 for b in kernel.buffers):
            continue
        main, buffers = kernel, dict(arrays)
        width = panel_width(kernel, {b for b in kernel.buffers if fixed(b)}, machine.tiles) if pack else None
        if width is not None:
            found = find_contraction(kernel, {b for b in kernel.buffers if fixed(b)})
            assert found is not None
            packing, main = pack_columns(kernel, found, width)
            verify_kernel(packing)
            verify_kernel(main)
            out = packing.buffers[-1]
            buffers[out.name] = np.full(concrete(out.shape, sizes), np.nan if out.dtype.is_float else 77, out.dtype.numpy)
            run_kernel(packing, buffers, sizes, machine)
        schedule = schedule_contraction(main, machine.tiles)
        assert schedule is not None or not must, main
        schedules.append(schedule)
        for b in kernel.buffers:
            if b.role == "out":
                buffers[b.name] = strided(concrete(b.shape, sizes), concrete(b.strides, sizes), b.dtype.numpy)
                buffers[b.name][...] = 7
        run_kernel(main, buffers, sizes, machine, parts=3)
        for b in kernel.buffers:
            if b.role == "out" and buffers[b.name].size:
                scale = np.abs(expected[b.name]).max() or 1.0
                error = np.abs(buffers[b.name].astype(np.float64) - expected[b.name].astype(np.float64)).max() / scale
                assert error <= TOLERANCE[b.dtype], (machine.name, str(schedule))
    return schedules


@settings(max_examples=25, derandomize=True, deadline=None)
@given(rows=SIZES, inner=SIZES, columns=SIZES, batch=st.integers(1, 3), data=st.data())
def test_linear_with_whatever_follows(rows, inner, columns, batch, data):
    dtype = data.draw(st.sampled_from([f32, f64, bf16, bf16, f16]))
    b = Builder("g")
    x = b.input("x", TensorType(dtype, (batch, rows, inner)))
    w = b.input("w", TensorType(dtype, (columns, inner)))
    operands = (x, w, b.input("bias", TensorType(dtype, (columns,)))) if data.draw(st.booleans()) else (x, w)
    nodes = [b.linear(*operands)]
    outputs = []
    for step in data.draw(st.lists(st.sampled_from(["tanh", "residual", "scale", "keep"]), max_size=3)):
        if step == "tanh":
            nodes.append(b.tanh(nodes[-1]))
        elif step == "residual":
            nodes.append(b.add(nodes[-1], b.input("r", TensorType(dtype, (batch, rows, columns)))))
        elif step == "scale":
            nodes.append(b.mul(nodes[-1], b.input("s", TensorType(dtype, (batch, rows, 1)))))
        elif nodes[-1] not in outputs:
            outputs.append(nodes[-1])
    if dtype in (f16, bf16) and data.draw(st.booleans()):
        nodes.append(b.cast(nodes[-1], dtype="f32"))  # sums are not rounded before
    outputs += [nodes[-1]] if nodes[-1] not in outputs else []
    check(lowered(nodes, outputs), fixed=lambda buffer: buffer.shape == w.shape, must=min(rows * batch, columns, inner) > 1)


@pytest.mark.parametrize(("batch", "shared"), [(1, True), (3, True), (2, False)])
def test_rows_stay_in_the_second_cache_while_panels_go_by(batch, shared):
    """More rows than a small second cache holds, in blocks of which the last is not whole."""
    b = Builder("g")
    x = b.input("x", TensorType(f32, (batch, 700, 8)))
    y = b.input("y", TensorType(f32, (8, 130) if shared else (batch, 8, 130)))
    node = b.matmul(x, y)
    small = [replace(m, cache_bytes=(8 << 10, 16 << 10, 1 << 20)) for m in machines()]
    blocks = [s.block for s in check(lowered([node], [node]), fixed=lambda buffer: buffer.name == "x1", on=lambda: small) if s]
    assert len(blocks) == len(small) and all(block and 700 * (batch if shared else 1) > 32 * block for block in blocks)


def test_heads_side_by_side_are_columns():
    """What attention writes, as the columns of a weight's gradient: they are sums over batch and length, and no panels."""
    b = Builder("g")
    x = b.input("x", TensorType(f32, (2, 24, 40)))
    heads = b.input("h", TensorType(f32, (2, 3, 24, 16)))
    joined = b.reshape(b.permute(heads, dims=(0, 2, 1, 3)), shape=(48, 48))
    views = [b.permute(b.reshape(x, shape=(48, 40)), dims=(1, 0)), b.permute(joined, dims=(1, 0))]
    node = b.linear(*views)
    views += [views[0].inputs[0], joined, joined.inputs[0]]

    def strides(n: Node):
        return (24 * 48, 16, 48, 1) if n is heads else contiguous_strides(n.shape)

    check(lowered([*views, node], [node], strides, inlined=views), fixed=lambda buffer: False)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(rows=SIZES, inner=SIZES, columns=SIZES, data=st.data())
def test_matrix_products_in_any_layout(rows, inner, columns, data):
    b = Builder("g")
    lead = data.draw(st.sampled_from([(), (2,), (3, 2)]))
    shared = data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([f32, bf16, f16]))
    x = b.input("x", TensorType(dtype, (*lead, rows, inner)))
    y = b.input("y", TensorType(dtype, (*(1 for _ in lead), inner, columns) if shared else (*lead, inner, columns)))
    node = b.matmul(x, y)
    turned = {n: data.draw(st.booleans()) for n in (x, y, node)}

    def strides(n: Node):
        flat = contiguous_strides(n.shape)
        if not turned[n]:
            return flat
        swapped = contiguous_strides((*n.shape[:-2], n.shape[-1], n.shape[-2]))
        return (*swapped[:-2], swapped[-1], swapped[-2])

    kernel = lowered([node], [node], strides)
    check(kernel, fixed=lambda buffer: buffer.name == "x1", pack=data.draw(st.booleans()), must=False)


@pytest.mark.parametrize(
    ("dtype", "rows", "depth", "permuted"), [(f32, 16, 16, False), (f32, 16, 16, True), (bf16, 16, 2, True), (f16, 48, 2, False)]
)
def test_heads_that_are_indexed_as_panels_are(dtype, rows, depth, permuted):
    """x[b, h, t, d] read as rows (b, t) and sums (h, d), as after attention: its last indices are t mod T and d mod D."""
    b = Builder("g")
    x = b.input("x", TensorType(dtype, (3, 2, rows, depth)))
    w = b.input("w", TensorType(dtype, (33, 2 * depth)))
    joined = b.reshape(b.permute(x, dims=(0, 2, 1, 3)), shape=(3 * rows, 2 * depth))
    node = b.linear(joined, w)

    def strides(n: Node):
        return (2 * rows * depth, depth, 2 * depth, 1) if permuted and n is x else contiguous_strides(n.shape)

    views = [node.inputs[0], node.inputs[0].inputs[0]]
    kernel = lowered([*views, node], [node], strides, inlined=views)
    for pack in (True, False):
        check(kernel, fixed=lambda buffer: buffer.shape == w.shape, pack=pack, must=False)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(data=st.data())
def test_convolutions_of_images(data):
    channels, filters = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 70))
    height, width = data.draw(st.integers(3, 15)), data.draw(st.integers(3, 20))
    taps = data.draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]))
    strides, padding = data.draw(st.sampled_from([(1, 1), (2, 2), (1, 3)])), data.draw(st.sampled_from([(0, 0), (1, 1), (2, 1)]))
    dilations = data.draw(st.sampled_from([(1, 1), (2, 1)]))
    b = Builder("g")
    assume(all(n + 2 * p > d * (t - 1) for n, t, p, d in zip((height, width), taps, padding, dilations)))
    dtype = data.draw(st.sampled_from([f32, bf16, f16]))
    x = b.input("x", TensorType(dtype, (2, channels, height, width)))
    w = b.input("w", TensorType(dtype, (filters, channels, *taps)))
    node = b.convolution(
        x, w, strides=strides, padding=padding, dilations=dilations, groups=1, transposed=False, output_padding=(0, 0)
    )
    images = (x, node)
    kernel = lowered([node], [node], lambda n: channels_last_strides(n.shape) if n in images else contiguous_strides(n.shape))
    check(kernel, fixed=lambda buffer: buffer.shape == w.shape, must=channels > 1 and np.prod(node.shape) > 200)


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 100])
def test_sizes_that_are_known_when_called(rows, dtype):
    b = Builder("g")
    x = b.input("x", TensorType(dtype, (symbol("s"), 33)))
    w = b.input("w", TensorType(dtype, (50, 33)))
    node = b.linear(x, w)
    check(lowered([node], [node]), fixed=lambda buffer: buffer.shape == w.shape, sizes={"s": rows})


@pytest.mark.parametrize("inner", [1, 2, 7, 1023, 1024, 1025, 2050])
def test_sums_whose_length_is_known_when_called(inner):
    """Also of pairs: one number may be left over, in the last of several blocks."""
    b = Builder("g")
    x, y = b.input("x", TensorType(bf16, (30, symbol("s")))), b.input("y", TensorType(bf16, (symbol("s"), 50)))
    node = b.cast(b.matmul(x, y), dtype="f32")
    check(lowered([node.inputs[0], node], [node]), sizes={"s": inner})


def test_near_misses_are_no_contractions():
    b = Builder("g")
    x, w = b.input("x", TensorType(f32, (4, 6))), b.input("w", TensorType(f32, (5, 6)))
    linear = b.linear(x, w)
    assert find_contraction(lowered([linear], [linear])) is not None
    row_sum = b.reduce_sum(x, axes=(1,), keepdims=False)
    assert find_contraction(lowered([row_sum], [row_sum])) is None
    # softmax-like: the sum is spread over the summed axis again
    spread = b.mul(x, b.reduce_sum(b.mul(x, x), axes=(1,), keepdims=True))
    nodes = [n for n in (spread.inputs[1].inputs[0], spread.inputs[1], spread)]
    assert find_contraction(lowered(nodes, [spread])) is None


def test_tiles_fit_the_registers():
    for registers, lanes in ((16, 4), (16, 8), (32, 16), (32, 4)):
        for columns in (1, 7, 16, 48, 64, 100, 768, 1000):
            for rows in (1, 2, 7, 14, 49, 128):
                height, vectors = choose_tile(columns, rows, lanes, registers)
                assert height * vectors + vectors + 1 <= registers and 1 <= height <= max(rows, 1)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(data=st.data())
def test_depthwise_convolutions(data):
    channels = data.draw(st.sampled_from([3, 4, 16, 20, 32, 48, 70]))
    height, width = data.draw(st.integers(3, 12)), data.draw(st.integers(3, 20))
    taps, strides = data.draw(st.sampled_from([(3, 3), (5, 5), (1, 3)])), data.draw(st.sampled_from([(1, 1), (2, 2)]))
    padding = tuple(data.draw(st.integers(0, t // 2)) for t in taps)
    assume(all(n + 2 * p >= t for n, t, p in zip((height, width), taps, padding)))
    b = Builder("g")
    dtype = data.draw(st.sampled_from([f32, bf16, f16]))
    x, w = b.input("x", TensorType(dtype, (2, channels, height, width))), b.input("w", TensorType(dtype, (channels, 1, *taps)))
    node = b.convolution(
        x, w, strides=strides, padding=padding, dilations=(1, 1), groups=channels, transposed=False, output_padding=(0, 0)
    )
    images = (x, node)
    kernel = lowered([node], [node], lambda n: channels_last_strides(n.shape) if n in images else contiguous_strides(n.shape))
    check(kernel, fixed=lambda buffer: buffer.shape == w.shape, must=False)
    assert height < 8 or find_contraction(kernel) is not None


@settings(max_examples=20, derandomize=True, deadline=None)
@given(rows=SIZES, inner=SIZES, columns=SIZES, data=st.data())
def test_bytes_are_summed_exactly(rows, inner, columns, data):
    """Of any signedness, as rows and as columns, in any layout; also what is not bytes."""
    x_type, w_type = data.draw(st.sampled_from([(u8, i8), (i8, i8), (u8, u8), (i8, u8), (i32, i8), (u8, i32), (i64, i64)]))
    total = "i64" if x_type is i64 else "i32"
    b = Builder("g")
    x, w = b.input("x", TensorType(x_type, (rows, inner))), b.input("w", TensorType(w_type, (columns, inner)))
    left, right = b.cast(x, dtype=total), b.cast(w, dtype=total)
    node = b.linear(left, right)
    turned = data.draw(st.booleans())
    kernel = lowered(
        [node], [node], lambda n: (1, n.shape[0]) if turned and n is x else contiguous_strides(n.shape), (left, right)
    )
    check(kernel, fixed=lambda buffer: buffer.name == "x1", must=min(rows, inner, columns) > 1)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(data=st.data())
def test_convolutions_of_bytes_into_bytes(data):
    """With what follows in a quantised model: a scale for each channel, rounding, a zero point."""
    channels, filters = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 70))
    height, width = data.draw(st.integers(3, 9)), data.draw(st.integers(3, 12))
    b = Builder("g")
    x, w = b.input("x", TensorType(u8, (2, channels, height, width))), b.input("w", TensorType(i8, (filters, channels, 3, 3)))
    scale = b.input("s", TensorType(f32, (filters, 1, 1)))
    # padded with the zero point, or with zeros by the convolution itself
    zero = data.draw(st.sampled_from([0, 117]))
    padded = b.pad(x, low=(0, 0, 1, 1), high=(0, 0, 1, 1), value=zero) if zero else x
    left, right = b.cast(padded, dtype="i32"), b.cast(w, dtype="i32")
    steps = data.draw(st.sampled_from([(1, 1), (2, 1)]))
    total = b.convolution(
        left,
        right,
        strides=steps,
        padding=(0, 0) if zero else (1, 1),
        dilations=(1, 1),
        groups=1,
        transposed=False,
        output_padding=(0, 0),
    )
    wide = b.cast(total, dtype="f32")
    scaled = b.mul(wide, scale)
    images = (x, total, scaled)
    kernel = lowered(
        [total, wide, scaled], [scaled], lambda n: channels_last_strides(n.shape) if n in images else contiguous_strides(n.shape),
        (padded, left, right) if zero else (left, right),
    )  # fmt: skip
    check(kernel, fixed=lambda buffer: buffer.shape == w.shape, must=channels > 1 and np.prod(total.shape) > 200)


@pytest.mark.parametrize("dtype", [bf16, i8])
def test_float_rows_times_narrow_columns(dtype):
    b = Builder("g")
    x, w = b.input("x", TensorType(f32, (9, 77))), b.input("w", TensorType(dtype, (50, 77)))
    wide = b.cast(w, dtype="f32")
    node = b.linear(x, wide)
    check(lowered([node], [node], inlined=(wide,)), fixed=lambda buffer: buffer.shape == w.shape)
