"""Winograd's algorithm: its matrices, what kernels with transformed weights compute, and when that is chosen."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from dlcompiler.codegen.cpu.machine import MACHINES, Machine
from dlcompiler.codegen.cpu.winograd import linear_forms
from dlcompiler.codegen.winograd import (
    Convolution,
    choose_blocking,
    choose_sizes,
    schedule_winograd,
    scratch_bytes,
    winograd_width,
)
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import find_contraction, pack_columns
from dlcompiler.ir.expression import evaluate, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret_kernel import interpret_kernel
from dlcompiler.ir.text import parse_kernel, print_kernel
from dlcompiler.ir.text.equal import kernels_equal
from dlcompiler.ir.types import DTYPES, TensorType, contiguous_strides
from dlcompiler.ir.verify_kernel import verify_kernel
from dlcompiler.ir.winograd import POINTS, find_windows, transform_panels, transforms
from dlcompiler.passes.block.lower import lower_group
from dlcompiler.passes.strides import channels_last_strides
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.run import concrete, machines, run_kernel, strided

f32 = DTYPES["f32"]
PAIRS = [(m, r) for m, r in itertools.product(range(1, 6), range(1, 6)) if m + r - 1 in POINTS]
V4 = MACHINES["x86-64-v4"]


@pytest.mark.parametrize("results, taps", PAIRS)
def test_matrices_compute_correlations(results, taps):
    random = np.random.default_rng(0)
    d, g = random.standard_normal(results + taps - 1), random.standard_normal(taps)
    data, weights, back = (np.array(m) for m in dataclasses.astuple(transforms(results, taps)))
    np.testing.assert_allclose(back @ ((weights @ g) * (data @ d)), np.correlate(d, g, "valid"), rtol=1e-12, atol=1e-12)
    for matrix, terms in ((data, d), (weights, g), (back, (weights @ g) * (data @ d))):
        found = linear_forms(tuple(map(tuple, matrix)), list(terms), lambda number, term, total: number * term + total)
        np.testing.assert_allclose(found, matrix @ terms, rtol=1e-12, atol=1e-12)


def test_pairs_of_points_share_additions():
    count = 0

    def multiply_add(number, term, total):
        nonlocal count
        count += 1
        return number * term + total

    linear_forms(transforms(4, 3).data, [1.0] * 6, multiply_add)
    assert count <= 8  # of the 17 numbers in the matrix that are neither 0 nor 1


def convolution_kernel(shape, filters, taps, padding, follows=(), batch=None) -> K.Kernel:
    b = Builder("g")
    x = b.input("x", TensorType(f32, (batch or shape[0], *shape[1:])))
    w = b.input("w", TensorType(f32, (filters, shape[1], *taps)))
    node = b.convolution(
        x, w, b.input("bias", TensorType(f32, (filters,))), strides=(1, 1), padding=padding, dilations=(1, 1), groups=1,
        transposed=False, output_padding=(0, 0),
    )  # fmt: skip
    nodes, outputs = [node], []
    for step in follows:
        if step == "tanh":
            nodes.append(b.tanh(nodes[-1]))
        elif step == "residual":
            nodes.append(b.add(nodes[-1], b.input("r", node.tensor)))
        elif nodes[-1] not in outputs:
            outputs.append(nodes[-1])
    outputs += [nodes[-1]] if nodes[-1] not in outputs else []

    def strides(n):
        return channels_last_strides(n.shape) if n.tensor.rank == 4 and n is not w else contiguous_strides(n.shape)

    return lower_group("k", nodes, outputs, lambda n: False, strides, cost_matters=False)[0]


def weights_of(kernel: K.Kernel) -> frozenset[K.Buffer]:
    return frozenset(b for b in kernel.buffers if b.name == "x1")


def transformed(kernel: K.Kernel, sizes: tuple[int, ...], machine: Machine):
    """(matrix, kernels to run in order) of a convolution; None where the machine does not do it."""
    width = winograd_width(kernel, weights_of(kernel), sizes, machine.tiles)
    if width is None:
        return None
    pack, packed = pack_columns(kernel, find_contraction(kernel, weights_of(kernel)), width)
    matrix, transform, main = transform_panels(packed, find_contraction(packed), sizes)
    return matrix, (pack, transform, main)


# a failing example is not made smaller: that would compile hundreds of kernels
@settings(max_examples=20, derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_kernels_compute_what_they_mean(data):
    taps = data.draw(st.sampled_from([(3, 3), (3, 3), (2, 2), (3, 1), (1, 3), (5, 5), (2, 4)]))
    sizes = tuple(data.draw(st.sampled_from([m for m, r in PAIRS if r == t and (m > 1 or t == 1)])) for t in taps)
    sizes = tuple(m for m, t in zip(sizes, taps) if t > 1)
    padding = tuple(data.draw(st.integers(0, t // 2 + (t > 1))) for t in taps)
    size = [data.draw(st.integers(t + 1, 13)) for t in taps]  # one result along an axis is no axis
    batch, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([16, 48]))
    filters = data.draw(st.sampled_from([3, 16, 40, 64]))
    follows = data.draw(st.lists(st.sampled_from(["tanh", "residual", "keep"]), max_size=3))
    is_symbolic = data.draw(st.booleans())
    kernel = convolution_kernel(
        (batch, channels, *size), filters, taps, padding, follows, symbol("images") if is_symbolic else None
    )
    check(kernel, sizes, {"images": batch} if is_symbolic else {})


def check(kernel: K.Kernel, sizes: tuple[int, ...], bound: dict[str, int]) -> None:
    random = np.random.default_rng(0)
    arrays = {b.name: strided(concrete(b.shape, bound), concrete(b.strides, bound), b.dtype.numpy) for b in kernel.buffers}
    for array in arrays.values():
        array[...] = random.standard_normal(array.shape)
    arrays["x1"] /= np.sqrt(np.prod(arrays["x1"].shape[1:]))  # sums about 1, as tanh has them
    expected = {b.name: strided(concrete(b.shape, bound), concrete(b.strides, bound), f32.numpy) for b in kernel.buffers}
    for name, array in arrays.items():
        expected[name][...] = array
    interpret_kernel(kernel, expected, bound)
    for machine in machines():
        matrix, kernels = transformed(kernel, sizes, machine)
        buffers = {**arrays, "matrix": matrix}
        for each in kernels:
            verify_kernel(each)
            for out in (b for b in each.buffers if b.role == "out"):
                buffers[out.name] = strided(concrete(out.shape, bound), concrete(out.strides, bound), f32.numpy)
                buffers[out.name][...] = np.nan
            assert each.winograd is None or schedule_winograd(each, machine.tiles) is not None
            run_kernel(each, buffers, bound, machine, parts=3)
        for b in (b for b in kernel.buffers if b.role == "out"):
            error = np.abs(buffers[b.name] - expected[b.name]).max() / np.abs(expected[b.name]).max()
            assert error < 1e-5, (machine.name, sizes)


def test_a_kernel_keeps_its_meaning_and_its_text():
    kernel = convolution_kernel((1, 16, 8, 8), 16, (3, 3), (1, 1), ["tanh"])
    _, (_, _, main) = transformed(kernel, (4, 4), V4)
    assert "as winograd(transformed, 4, 4)" in print_kernel(main)
    again = parse_kernel(print_kernel(main))
    assert kernels_equal(main, again) is None
    assert kernels_equal(main, again.replace(winograd=None)) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (1, 20, 8, 8), "filters": 16},  # channels that leave lanes empty
        {"shape": (1, 16, 8, 8), "filters": 16, "sizes": (4,)},  # a size for one window alone
        {"shape": (1, 16, 8, 8), "filters": 16, "sizes": (6, 6)},  # no points
        {"shape": (1, 4096, 8, 8), "filters": 16, "sizes": (4, 4)},  # not even one tile fits
    ],
)
def test_what_is_left_to_direct_tiles(arguments):
    kernel = convolution_kernel(arguments["shape"], arguments["filters"], (3, 3), (1, 1))
    assert winograd_width(kernel, weights_of(kernel), arguments.get("sizes", (4, 4)), V4.tiles) is None


def test_weights_that_change_must_save_more():
    two_cores = dataclasses.replace(V4, cores=2).tiles

    def sizes(channels: int, side: int, changes: bool) -> tuple[int, ...] | None:
        return choose_sizes(Convolution(8, (side, side), (3, 3), channels, channels, changes), two_cores)

    assert sizes(64, 28, True) == sizes(64, 28, False) == (4, 4)
    assert sizes(512, 4, False) is not None
    assert sizes(512, 4, True) is None


def test_windows_are_dimensions_along_which_a_filter_moves():
    kernel = convolution_kernel((2, 16, 8, 9), 16, (3, 2), (1, 0))
    first, second = find_windows(kernel, find_contraction(kernel, weights_of(kernel)))
    assert (first.start, first.extent) == (-1, 8) and (second.start, second.extent) == (0, None)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    tiles=st.integers(1, 5000), positions=st.sampled_from([9, 16, 36]), channels=st.sampled_from([16, 64, 256, 1024]),
    columns=st.integers(1, 600), cores=st.integers(1, 16), machine=st.sampled_from(list(MACHINES.values())),
)  # fmt: skip
def test_blocks_fit_caches_and_registers(tiles, positions, channels, columns, cores, machine):
    described = dataclasses.replace(machine, cores=cores).tiles
    blocking = choose_blocking(tiles, positions, channels, columns, described)
    if blocking is None:
        assert scratch_bytes(1, positions, channels, machine.vector_bytes // 4) > min(0.75 * described.second_cache, 1 << 20)
        return
    assert blocking.block % blocking.rows == 0
    assert blocking.rows * blocking.vectors + blocking.vectors + 1 <= described.registers
    width = blocking.vectors * machine.vector_bytes // 4
    # rounded up to whole register tiles
    assert scratch_bytes(blocking.block, positions, channels, width) <= described.second_cache + 4 * positions * 14 * channels * 2


def test_it_is_chosen_where_it_pays():
    machine = dataclasses.replace(V4, cores=2, cache_bytes=(32 << 10, 1 << 20, 32 << 20)).tiles
    assert choose_sizes(Convolution(1, (56, 56), (3, 3), 64, 64), machine) == (4, 4)
    few = choose_sizes(Convolution(1, (7, 7), (3, 3), 512, 512), machine)
    assert few is not None and np.prod(few) < 16  # more positions would be more weights to read than products are saved
    assert choose_sizes(Convolution(1, (224, 224), (3, 3), 3, 64), machine) is None
    assert choose_sizes(Convolution(1, (56, 56), (1, 1), 64, 64), machine) is None
    assert choose_sizes(Convolution(1, (56, 56), (7, 7), 64, 64), machine) is None


def test_work_is_divided_into_items():
    kernel = convolution_kernel((symbol("images"), 16, 8, 8), 40, (3, 3), (1, 1))
    _, (*_, main) = transformed(kernel, (4, 4), V4)
    schedule = schedule_winograd(main, V4.tiles)
    assert evaluate(schedule.tiles, {"images": 3}) == 12
    assert evaluate(schedule.work, {"images": 3}) == evaluate(schedule.blocks, {"images": 3}) * schedule.panels
    assert str(schedule).startswith("winograd F(4x4, 3x3)")
