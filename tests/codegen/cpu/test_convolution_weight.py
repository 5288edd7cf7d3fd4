"""The gradient of a convolution's weight: the routine computes what the op means, and touches nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.machine import machine as machine_called
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.codegen.cpu.routines.convolution_weight_form import weight_problem
from dlcompiler.codegen.cpu.routines.convolution_weight_winograd import tiles_of
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.ops.contraction import convolution_size
from dlcompiler.ir.types import TensorType, contiguous_strides, f32, f64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.attention_runs import assert_close, guarded, meanings, node_of, random, run_routine
from tests.codegen.cpu.run import machines

V4 = machine_called("x86-64-v4")


def attributes_of(taps, strides, padding, dilations, groups=1) -> dict:
    return {"taps": taps, "strides": strides, "padding": padding, "dilations": dilations, "groups": groups}


def channels_innermost(array: np.ndarray, at_end: bool) -> np.ndarray:
    """The same elements, a pixel's channels side by side, next to a page that no one may touch."""
    inside = np.ascontiguousarray(np.moveaxis(array, 1, -1))
    return np.moveaxis(guarded(inside, at_end), -1, 1)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(data=st.data())
def test_it_computes_what_the_op_means(data):
    draw = data.draw
    spatial = draw(st.sampled_from([1, 2, 2, 2, 3]))
    taps, strides, dilations = (tuple(draw(st.integers(1, most)) for _ in range(spatial)) for most in (4, 2, 2))
    padding = tuple(draw(st.integers(0, t)) for t in taps)
    size = tuple(draw(st.integers(1, 9)) for _ in range(spatial))
    # groups of channels and columns: plain, depthwise, groups that share a vector, and groups that fill one
    groups, channels, columns = draw(
        st.sampled_from([(1, 3, 64), (1, 9, 20), (1, 1, 5), (40, 1, 1), (12, 4, 4), (5, 2, 8), (2, 5, 32)])
    )
    out = tuple(convolution_size(*s) for s in zip(size, taps, strides, padding, dilations))
    assume(min(out) > 0)
    attributes = attributes_of(taps, strides, padding, dilations, groups)
    dtype, images, cores = draw(st.sampled_from([f32, f32, f64])), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5]))
    check(dtype, images, groups, channels, columns, size, out, attributes, cores, draw(st.booleans()))


def check(dtype, images, groups, channels, columns, size, out, attributes, cores, at_end, tolerance=None) -> None:
    rng = np.random.default_rng(0)
    x = channels_innermost(random(rng, (images, groups * channels, *size), dtype), at_end)
    dy = channels_innermost(random(rng, (images, groups * columns, *out), dtype), at_end)
    want = meanings("convolution_weight", [x, dy], attributes)[0]
    n = symbol("images")
    for described in machines():
        described = dataclasses.replace(described, cores=cores)
        types = [TensorType(dtype, a.shape) for a in (x, dy)]
        if weight_problem(types[0], types[1], attributes, described) is None:
            assert groups > 1  # narrow vectors do not hold every group
            continue
        result = guarded(np.full(want.shape, np.nan, dtype.numpy), at_end)
        views = [((n, *a.shape[1:]), tuple(s // a.itemsize for s in a.strides)) for a in (x, dy)]
        views.append((result.shape, contiguous_strides(result.shape)))
        run_routine("convolution_weight", [x, dy], [result], described, attributes, views, {"images": images})
        assert_close(result, want, tolerance)


@pytest.mark.parametrize(
    ("channels", "columns", "size", "taps", "padding"),
    [
        (64, 64, (9, 14), (3, 3), (1, 1)),
        (32, 96, (8, 8), (3, 3), (0, 2)),
        (64, 64, (1, 64), (1, 3), (0, 1)),
        (64, 64, (8, 8), (2, 5), (1, 2)),
    ],
)
def test_fewer_multiplications(channels, columns, size, taps, padding):
    out = tuple(convolution_size(s, t, 1, p, 1) for s, t, p in zip(size, taps, padding))
    attributes = attributes_of(taps, (1, 1), padding, (1, 1))
    types = TensorType(f32, (8, channels, *size)), TensorType(f32, (8, columns, *out))
    problem = weight_problem(*types, attributes, V4)
    assert problem is not None and tiles_of(problem, 8, V4) is not None
    check(f32, 8, 1, channels, columns, size, out, attributes, 2, True)


def test_a_result_that_is_wanted_otherwise():
    """Gradients of a weight whose channels are innermost lie as the weight does."""
    rng = np.random.default_rng(0)
    x, dy = (channels_innermost(random(rng, (2, 32, 6, 6), f32), True) for _ in range(2))
    attributes = attributes_of((3, 3), (1, 1), (1, 1), (1, 1))
    result = np.moveaxis(np.full((32, 3, 3, 32), np.nan, np.float32), -1, 1)
    run_routine("convolution_weight", [x, dy], [result], V4, attributes)
    assert_close(result, meanings("convolution_weight", [x, dy], attributes)[0])


@pytest.mark.parametrize(
    ("shapes", "attributes", "applies"),
    [
        (((2, 3, 9, 9), (2, 64, 9, 9)), attributes_of((3, 3), (1, 1), (1, 1), (1, 1)), True),
        (((2, 64, 9, 9), (2, 64, 9, 9)), attributes_of((1, 1), (1, 1), (0, 0), (1, 1)), False),  # a matrix product
        (((2, 32, 9, 9), (2, 32, 9, 9)), attributes_of((3, 3), (1, 1), (1, 1), (1, 1), 8), True),
        (((2, 32, 9, 9), (2, 32, 9, 9)), attributes_of((3, 3), (1, 1), (1, 1), (1, 1), 32), False),  # depthwise
        # more channels than columns, and columns that are no part of a vector
        (((2, 48, 9, 9), (2, 16, 9, 9)), attributes_of((3, 3), (1, 1), (1, 1), (1, 1), 16), False),
        (
            ((2, 12, 9, 9), (2, 9, 9, 9)),
            attributes_of((3, 3), (1, 1), (1, 1), (1, 1), 3),
            False,
        ),
    ],
)
def test_where_it_applies(shapes, attributes, applies):
    node = node_of("convolution_weight", [TensorType(f32, shape) for shape in shapes], attributes)
    assert (find_routine(node, V4) is not None) == applies


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
@pytest.mark.parametrize(("channels", "taps"), [(3, (7, 7)), (64, (3, 3)), (1, (3, 3, 3))])
def test_work_is_divided_evenly(channels: int, taps: tuple[int, ...], cores: int) -> None:
    described: Machine = dataclasses.replace(V4, cores=cores)
    ones = (1,) * len(taps)
    types = [TensorType(f32, (8, c, *(16,) * len(taps))) for c in (channels, 64)]
    problem = weight_problem(*types, attributes_of(taps, ones, tuple(t // 2 for t in taps), ones), described)
    assert problem is not None
    busiest = -(-problem.work // cores) * problem.taps_at_once * problem.block
    everything = problem.tap_count * problem.channels * problem.panels
    assert busiest <= 1.35 * max(everything / cores, 1 if problem.rows == 1 else problem.rows)
