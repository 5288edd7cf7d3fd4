"""Matrix products and convolutions for GPUs: simulated they equal the graph interpreter; assembled they keep to registers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dlcompiler.codegen.gpu.compile import assemble, assemble_kernel
from dlcompiler.codegen.gpu.contraction import split
from dlcompiler.codegen.gpu.contraction_form import find_form
from dlcompiler.codegen.gpu.contraction_schedule import MatrixSchedule, matrix_candidates, tuning_candidates
from dlcompiler.codegen.gpu.contraction_writer import write_product
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.emulate import completed_interpreter
from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.simulate import run_interpreted
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph, interpret_kernel
from dlcompiler.ir.ops.contraction import convolution_size
from dlcompiler.ir.program import Launch
from dlcompiler.ir.types import DTYPES, TensorType, bf16, f16, f32, f64, i8, i64, u8
from dlcompiler.passes.strides import channels_last_strides
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcompiler.options import Options
from tests.codegen.cpu.run import assert_close
from tests.codegen.cpu.test_kernels import graph_of, random_array
from tests.codegen.gpu.written import planned, products_of, simulated
from tests.lowering import graph_kernel

pytest.importorskip("triton")

TOLERANCE = {"f16": 4e-3, "bf16": 3e-2}
CONVOLUTION = {
    "strides": (1, 1),
    "padding": (1, 1),
    "dilations": (1, 1),
    "groups": 1,
    "transposed": False,
    "output_padding": (0, 0),
}


def small_array(shape, dtype, seed):
    """Numbers whose sums of products stay small, so that errors are those of rounding."""
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(dtype.numpy)


def check(build, *types: TensorType, inputs=None, products: int | None = 1, target=None):
    """Simulated equals interpreted, in so many products on tensor cores; the kernels."""
    graph = graph_of(build, *types)
    inputs = inputs or [small_array(t.shape, t.dtype, k) if t.dtype.is_float else random_array(t.shape, t.dtype, k)
                        for k, t in enumerate(types)]  # fmt: skip
    got, kernels = simulated(graph, inputs, *([parse_target(target)] if target else []))
    for output, a, b in zip(graph.outputs, got, interpret_graph(graph, list(inputs))):
        assert_close(a, np.asarray(b), TOLERANCE.get(output.dtype.name, 5e-6))
    if products is not None:
        assert len(products_of(kernels)) == products
    return kernels


@settings(max_examples=14, derandomize=True, deadline=None)
@given(data=st.data())
def test_products_of_any_shape_dtype_and_layout(data):
    dtype = data.draw(st.sampled_from([f32, f16, bf16]))
    size = st.sampled_from([1, 2, 5, 16, 17, 33, 40])
    rows, columns, depth = data.draw(size), data.draw(size), data.draw(st.sampled_from([1, 3, 16, 33, 70, 128]))
    lead = data.draw(st.sampled_from([(), (3,), (2, 1)]))
    shared = data.draw(st.booleans())
    turned = data.draw(st.tuples(st.booleans(), st.booleans()))

    def operand(b, x, is_turned):
        rank = x.tensor.rank
        return b.permute(x, dims=(*range(rank - 2), rank - 1, rank - 2)) if is_turned else x

    def build(b, x, w, bias):
        y = b.matmul(operand(b, x, turned[0]), operand(b, w, turned[1]))
        return [b.add(b.gelu(b.add(y, bias)), 1.0), b.mul(y, 2.0)]

    shapes = [(rows, depth), (depth, columns)]
    shapes = [shape[::-1] if is_turned else shape for shape, is_turned in zip(shapes, turned)]
    types = [TensorType(dtype, (*lead, *shapes[0])), TensorType(dtype, shapes[1] if shared else (*lead, *shapes[1]))]
    check(build, *types, TensorType(dtype, (columns,)), products=None)


def test_linears_with_all_that_follows_are_one_kernel():
    for dtype in (f32, f16, bf16):
        x, w, c = TensorType(dtype, (2, 19, 48)), TensorType(dtype, (40, 48)), TensorType(dtype, (40,))
        r = TensorType(dtype, (2, 19, 40))
        kernels = check(lambda b, x, w, c, r: b.add(b.gelu(b.linear(x, w, c)), r), x, w, c, r)
        assert len(kernels) == 1


def test_sizes_that_are_arguments():
    graph = graph_of(
        lambda b, x, w: b.relu(b.matmul(x, w)), TensorType(f16, (symbol("N"), 40)), TensorType(f16, (40, 24))
    )  # fmt: skip
    for rows in (1, 33):
        inputs = [small_array((rows, 40), f16, 0), small_array((40, 24), f16, 1)]
        (got,), _ = simulated(graph, inputs)
        assert_close(got, interpret_graph(graph, inputs)[0], 4e-3)


def weights_graph(images: TensorType, weight: np.ndarray, **changes) -> Graph:
    b = Builder("g")
    x, w = b.input("x", images), b.constant(weight, images.dtype)
    return b.finish([b.relu(b.convolution(x, w, **{**CONVOLUTION, **changes}))])


@pytest.mark.parametrize(
    ("images", "weight", "changes"),
    [
        ((2, 32, 7, 9), (24, 32, 3, 3), {}),
        ((1, 3, 11, 11), (16, 3, 5, 5), {"strides": (2, 2), "padding": (2, 2)}),
        ((2, 32, 6, 6), (20, 32, 1, 1), {"padding": (0, 0)}),
        ((1, 32, 9, 9), (16, 32, 3, 3), {"dilations": (2, 2), "padding": (2, 2)}),
        ((1, 64, 5, 5), (32, 32, 3, 3), {"groups": 2}),
        ((1, 4, 3, 4), (4, 1, 3, 3), {"groups": 4}),
    ],
    ids=["3x3", "strided", "1x1", "dilated", "groups", "depthwise"],
)
def test_convolutions(images, weight, changes):
    is_depthwise = weight[1] == 1
    for dtype in (f16,) if is_depthwise else (f32, f16):
        graph = weights_graph(TensorType(dtype, images), small_array(weight, dtype, 1), **changes)
        inputs = [small_array(images, dtype, 0)]
        got, kernels = simulated(graph, inputs)
        assert_close(got[0], interpret_graph(graph, inputs)[0], TOLERANCE.get(dtype.name, 5e-6))
        assert len(products_of(kernels)) == (not is_depthwise)


def test_weights_are_put_in_order_once():
    """Channels of a tap next to each other, so that they are copied as vectors."""
    program = planned(weights_graph(TensorType(f16, (1, 64, 8, 8)), small_array((32, 64, 3, 3), f16, 1)))
    (prepared,) = program.preparation
    (product,) = (find_form(s.kernel) for s in program.steps if isinstance(s, Launch) and find_form(s.kernel))
    assert product.stride(product.right, product.summed[-1]) == 1
    assert prepared.writes[0].slot.role == "prepared"


def test_long_sums_of_few_tiles_are_made_in_parts():
    x, w = TensorType(f16, (20, 4096)), TensorType(f16, (33, 4096))
    kernels = check(lambda b, x, w: b.relu(b.linear(x, w)), x, w)
    assert len(kernels) == 2 and kernels[0].kernel.name.endswith("_parts")
    # many tiles: no parts
    wide = graph_of(lambda b, x, w: b.linear(x, w), TensorType(f16, (4096, 4096)), TensorType(f16, (4096, 4096)))
    (step,) = planned(wide).steps
    assert split(step.kernel, device_of("sm_90"), "ieee") is None


def test_factors_are_computed_in_the_tile_where_that_is_cheap():
    x, w, scale = TensorType(f16, (18, 64)), TensorType(i8, (32, 64)), TensorType(f16, (32, 1))
    kernels = check(lambda b, x, w, s: b.linear(x, b.mul(b.cast(w, dtype="f16"), s)), x, w, scale)
    assert len(kernels) == 1
    # an expensive function is stored first
    kernels = check(lambda b, x, w: b.linear(b.exp(x), w), TensorType(f16, (18, 64)), TensorType(f16, (32, 64)))
    assert len(kernels) == 2


EIGHTH = ("f8e4m3fn", "f8e5m2", "f8e5m2fnuz")


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90"])
def test_products_of_8_bit_floats(target):
    """As they are where tensor cores take them, else as float16; scales, bias and a narrow result are in the same kernel."""
    for first, second in (*((name, name) for name in EIGHTH), EIGHTH[:2]):
        x, w = TensorType(DTYPES[first], (2, 19, 70)), TensorType(DTYPES[second], (40, 70))
        inputs = [small_array(t.shape, f32, k).astype(t.dtype.numpy) for k, t in enumerate((x, w))]
        inputs += [np.random.default_rng(2).random(shape, np.float32) for shape in ((19, 1), (40,), (40,))]

        def build(b, x, w, rows, columns, bias, dtype=first):
            wide = b.linear(b.cast(x, dtype="f32"), b.cast(w, dtype="f32"))
            result = b.add(b.mul(b.mul(wide, rows), columns), bias)
            return [result, b.cast(result, dtype=dtype)]

        types = [x, w, *(TensorType(f32, a.shape) for a in inputs[2:])]
        graph = graph_of(build, *types)
        (got, small), kernels = simulated(graph, inputs, parse_target(target))
        expected, expected_small = interpret_graph(graph, inputs)
        assert_close(got, expected, 5e-6)
        # a sum in another order may be rounded to the next number
        assert np.mean(small.view(np.uint8) != np.asarray(expected_small).view(np.uint8)) < 0.01
        (kernel,) = products_of(kernels)
        assert ("pointer_type" in kernel.source) == (target.endswith("90") and "fnuz" not in first)


def test_weights_of_8_bit_floats_are_widened_in_the_tile():
    for target in ("cuda:sm_80", "cuda:sm_90"):
        for name in ("f8e4m3fn", "f8e5m2"):
            x, w = TensorType(bf16, (18, 64)), TensorType(DTYPES[name], (600, 64))
            inputs = [small_array(x.shape, bf16, 0), np.arange(600 * 64, dtype=np.uint32).astype(np.uint8).reshape(600, 64)]
            finite = np.isfinite(inputs[1].view(w.dtype.numpy).astype(np.float32))
            inputs[1] = np.where(finite, inputs[1], 0).view(w.dtype.numpy)
            kernels = check(lambda b, x, w: b.linear(x, b.cast(w, dtype="bf16")), x, w, inputs=inputs, target=target)
            assert len(kernels) == 1


@settings(max_examples=6, derandomize=True, deadline=None)
@given(data=st.data())
def test_products_of_bytes_are_exact(data):
    """Signed and unsigned, of matrices and images, with what follows; zero points are taken out before."""
    kind = data.draw(st.sampled_from([i8, u8]))
    rows, columns, is_image = (
        data.draw(st.sampled_from([2, 17, 33])),
        data.draw(st.sampled_from([16, 40])),
        data.draw(st.booleans()),
    )
    depth = data.draw(st.sampled_from([3, 8] if is_image else [32, 70]))
    shapes = ((2, depth, 5, 4), (columns, depth, 3, 3)) if is_image else ((rows, depth), (columns, depth))
    random = np.random.default_rng(0)
    image, weight = random.integers(0, 256, shapes[0]).astype(kind.numpy), random.integers(-128, 128, shapes[1]).astype(np.int8)

    def build(b, x):
        x, w = (b.cast(each, dtype="i32") for each in (x, b.constant(weight)))
        total = b.convolution(b.sub(x, 117), w, **CONVOLUTION) if is_image else b.linear(b.sub(x, 117), w)
        return [total, b.cast(b.clamp(b.round(b.mul(b.cast(total, dtype="f32"), 0.01)), low=-128.0, high=127.0), dtype="i8")]

    graph = graph_of(build, TensorType(kind, shapes[0]))
    got, kernels = simulated(graph, [image])
    for a, b in zip(got, interpret_graph(graph, [image])):
        np.testing.assert_array_equal(a, np.asarray(b))
    assert len(products_of(kernels)) == 1


def test_integers_that_no_tensor_core_takes_are_an_ordinary_reduction():
    x, w = TensorType(i64, (5, 9)), TensorType(i64, (9, 4))
    (step,) = planned(graph_of(lambda b, x, w: b.matmul(x, w), x, w)).steps
    assert isinstance(step, Launch) and find_form(step.kernel) is None
    inputs = [np.arange(math.prod(t.shape)).reshape(t.shape) - 20 for t in (x, w)]
    (got,), _ = simulated(graph_of(lambda b, x, w: b.matmul(x, w), x, w), inputs)
    np.testing.assert_array_equal(got, inputs[0] @ inputs[1])


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_blocks_are_widened_in_the_tile(bits):
    for dtype in (f16, bf16, f32):
        x, scales, codes = TensorType(dtype, (9, 64)), TensorType(dtype, (32, 2)), TensorType(u8, (32, 8 * bits))
        inputs = [small_array(x.shape, dtype, 0), random_array(codes.shape, u8, 1), small_array(scales.shape, dtype, 2)]
        kernels = check(
            lambda b, x, c, s: b.block_linear(x, c, s, bits=bits, block=32, columns=32), x, codes, scales, inputs=inputs
        )
        assert len(kernels) == 1


def test_what_stays_with_a_library():
    program = planned(graph_of(lambda b, x, w: b.matmul(x, w), *[TensorType(f64, (32, 32))] * 2))
    assert [type(s).__name__ for s in program.steps] == ["LibraryCall"]


def form_of(dtype, rows, columns, depth):
    types = TensorType(dtype, (rows, depth)), TensorType(dtype, (columns, depth))
    kernel, _ = graph_kernel(graph_of(lambda b, x, w: b.linear(x, w), *types))
    form = find_form(kernel)
    assert form is not None
    return kernel, form


@pytest.mark.parametrize("change", [{"persistent": True}, {"descriptors": True}, {"descriptors": True, "persistent": True}])
def test_other_forms_of_the_loop(change):
    kernel, form = form_of(f16, 70, 48, 72)
    schedule = replace(MatrixSchedule(32, 32, 32, 4, 3, precision=""), **change)
    arrays = {b.name: small_array(b.shape, f16, k) for k, b in enumerate(kernel.buffers)}
    expected = {name: array.copy() for name, array in arrays.items()}
    interpret_kernel(kernel, expected, {})
    # fewer programs than tiles
    written = write_product(form, schedule, replace(device_of("sm_90"), multiprocessors=4))
    run_interpreted(written, arrays, {})
    assert_close(arrays["out0"], expected["out0"], 4e-3)
    assembled = assemble(write_product(form, schedule, device_of("sm_90")), parse_target("cuda:sm_90"))
    assert ("cp.async.bulk.tensor" in assembled.stages["ptx"]) == schedule.descriptors


def test_schedules_fit_every_architecture():
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        device = device_of(arch)
        for dtype, shape in (
            (f16, (8192, 8192, 8192)),
            (f16, (1, 4096, 4096)),
            (f32, (128, 768, 3072)),
            (bf16, (37, 1000, 2048)),
        ):
            _, form = form_of(dtype, max(shape[0], 2), *shape[1:])
            for precision in ("ieee", "tf32"):
                found = list(matrix_candidates(form, device, precision))
                assert found and all(s.shared_bytes(dtype) <= device.block_shared_bytes for s in found)
                assert len(tuning_candidates(form, device, precision)) > 4
    large = next(matrix_candidates(form_of(f16, 8192, 8192, 8192)[1], device_of("sm_90"), "ieee"))
    assert large.rows * large.columns >= 128 * 256 and large.warps == 8


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "mma.sync"), ("sm_90", "wgmma.mma_async"), ("sm_100", "tcgen05.mma")]
)
def test_chosen_schedules_assemble_without_spills(arch, instruction):
    kernel, _ = form_of(f16, 4096, 4096, 1024)
    assembled = assemble_kernel(kernel, parse_target(f"cuda:{arch}"), frozenset(b.name for b in kernel.buffers))
    assert assembled.resources.local_bytes == 0
    assert instruction in assembled.stages["ptx"] and "cp.async" in assembled.stages["ptx"]


@pytest.mark.parametrize(
    ("arch", "dtype", "instruction"),
    [
        ("sm_80", "f8e4m3fn", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
        ("sm_90", "f8e4m3fn", "f32.e4m3.e4m3"),
        ("sm_100", "f8e4m3fn", "kind::f8f6f4"),
        ("sm_80", "i8", "s32.s8.s8.s32"),
        ("sm_90", "i8", "s32.s8.s8"),
        ("sm_100", "i8", "kind::i8"),
    ],
)  # fmt: skip
def test_products_of_8_bits_use_the_instructions_for_them(arch, dtype, instruction):
    types = TensorType(DTYPES[dtype], (2048, 512)), TensorType(DTYPES[dtype], (1024, 512))
    wide = "i32" if dtype == "i8" else "f32"
    graph = graph_of(lambda b, x, w: b.linear(b.cast(x, dtype=wide), b.cast(w, dtype=wide)), *types)
    kernel, _ = graph_kernel(graph)
    assembled = assemble_kernel(kernel, parse_target(f"cuda:{arch}"), frozenset(b.name for b in kernel.buffers))
    assert assembled.resources.local_bytes == 0
    assert instruction in assembled.stages["ptx"] and "cp.async" in assembled.stages["ptx"]


def test_float32_is_multiplied_as_the_policy_says():
    kernel, _ = form_of(f32, 256, 256, 256)
    aligned = frozenset(b.name for b in kernel.buffers)
    for precision, is_tensor_core in (("ieee", False), ("tf32", True), ("tf32x3", True)):
        target = replace(parse_target("cuda:sm_80"), float32=precision)
        assembled = assemble_kernel(kernel, target, aligned)
        assert f'input_precision="{precision}"' in assembled.text
        assert ("mma.sync" in assembled.stages["ptx"]) == is_tensor_core


def test_the_policy_is_an_option_and_torchs_unless_given():
    target = parse_target("cuda:sm_90")
    assert Options.resolve({}).configure(target).float32 == "ieee"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert Options.resolve({}).configure(target).float32 == "tf32"
        assert Options.resolve({"float32": "tf32x3"}).configure(target).float32 == "tf32x3"
    finally:
        torch.set_float32_matmul_precision(before)
    assert Options.resolve({"float32": "tf32"}).configure(parse_target("cpu")).float32 == "ieee"


def test_simulation_rounds_to_bfloat16_as_gpus_do():
    """Triton's interpreter by itself cuts the bits off."""
    x = np.linspace(1, 2, 999, dtype=np.float32).reshape(9, 111)
    (got,), _ = simulated(graph_of(lambda b, x: b.cast(x, dtype="bf16"), TensorType(f32, x.shape)), [x])
    np.testing.assert_array_equal(got.view(np.uint16), x.astype(bf16.numpy).view(np.uint16))


def test_simulation_masks_by_a_condition_of_one_number():
    source = """import triton
import triton.language as tl


@triton.jit
def kernel(x, y, SIZE: tl.constexpr):
    i = tl.program_id(0)
    j = tl.arange(0, SIZE)
    tl.store(y + i * SIZE + j, tl.load(x + j, (j < 3) & (i - 1 >= 0), 7.0))
"""
    x, y = torch.arange(4.0), torch.zeros(2, 4)
    with completed_interpreter():
        load_function(source, "kernel", interpret=True)[(2,)](x, y, SIZE=4)
    assert y.tolist() == [[7, 7, 7, 7], [0, 1, 2, 7]]


@pytest.mark.parametrize("changes", [{}, {"strides": (2, 2)}, {"dilations": (2, 1), "padding": (2, 1)}, {"padding": (0, 0)}])
def test_the_gradient_of_a_weight_is_one_product_that_reads_images_where_they_lie(changes):
    attributes = {name: CONVOLUTION[name] for name in ("strides", "padding", "dilations", "groups")} | changes
    sizes = [convolution_size(9, 3, s, p, d) for s, p, d in zip(*(attributes[n] for n in ("strides", "padding", "dilations")))]
    images = [TensorType(f32, (2, 17, 9, 9)), TensorType(f32, (2, 5, *sizes))]
    b = Builder("gradient")
    last = [b.input(name, t, channels_last_strides(t.shape)) for name, t in zip("xy", images)]
    graph = b.finish([b.convolution_weight(*last, taps=(3, 3), **attributes)])
    arrays = [np.moveaxis(random_array((2, *t.shape[2:], t.shape[1]), f32, k), -1, 1) for k, t in enumerate(images)]
    (got,), kernels = simulated(graph, arrays)
    assert_close(got, interpret_graph(graph, arrays)[0], 5e-6)
    assert len(products_of(kernels)) == len(kernels) == 1  # no image or gradient is put in another order
    columns = [line for line in kernels[0].source.splitlines() if " = column" in line]
    # neighbouring columns are channels, which lie side by side
    assert any("% 17" in line for line in columns), columns
