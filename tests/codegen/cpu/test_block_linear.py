"""The compiled product with block-scaled weights against the meaning of its op in float64, and `MatMulNBits` as a whole."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.ir.expression import evaluate, known, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import evaluate_op, interpret_graph
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.program import RoutineCall, Slot, View
from dlcompiler.ir.types import TensorType, contiguous_strides, dtype_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import dlcompiler
from tests.codegen.cpu.run import machines

OP = "block_linear"
GUARD = 16  # elements before and after a result, which must stay as they are


def packed_operands(operands: Sequence[np.ndarray], attributes: Mapping[str, int], machine: Machine) -> list[np.ndarray]:
    """The operands as the code is given them."""
    builder = Builder("packing")
    node = builder(OP, *(builder.input("x", TensorType(dtype_of(x), x.shape)) for x in operands), **attributes)
    routine = find_routine(node, machine)
    assert routine is not None
    found = list(operands)
    for position, arrange in routine.packing(node, machine).items():
        build = Builder("arrange")
        graph = build.finish([arrange(build, build.input("w", node.inputs[position].tensor))])
        found[position] = np.ascontiguousarray(interpret_graph(graph, [operands[position]])[0])
    return found


def run_routine(
    operands: Sequence[np.ndarray], attributes: Mapping[str, int], machine: Machine, *, symbolic: bool = False, cut: float = 0.5,
    columns_outside: bool = False,
) -> np.ndarray:  # fmt: skip
    """The routine's result, its work done in two parts; `symbolic`: the first size of x is not known.

    `columns_outside`: the result lies in memory with its last dimension outermost.
    """
    x, codes, scales = packed_operands(operands, attributes, machine)
    sizes = {"R": x.shape[0]} if symbolic else {}
    lead = (symbol("R"), *x.shape[1:-1]) if symbolic else x.shape[:-1]
    columns = attributes["columns"]
    step = math.prod(x.shape[:-1])
    assert not (symbolic and columns_outside)
    strides = (*contiguous_strides(x.shape[:-1]), step) if columns_outside else contiguous_strides((*lead, columns))
    y_shape = (*lead, columns)

    def view(name: str, array: np.ndarray) -> View:
        return Slot(name, dtype_of(array), array.shape, contiguous_strides(array.shape), "input").view()

    x_strides = tuple(s // x.itemsize for s in x.strides)
    if symbolic:
        x_strides = contiguous_strides((*lead, x.shape[-1]))
    x_view = Slot("x", dtype_of(x), (*lead, x.shape[-1]), x_strides, "input").view()
    y_view = Slot("y", dtype_of(x), y_shape, strides, "output").view()
    call = RoutineCall(OP, (x_view, view("codes", codes), view("scales", scales)), (y_view,), attributes)
    text, written = write_kernel(call, machine)
    function = compile_mlir(text, ["kernel"]).function("kernel")
    memory = np.full(step * columns + 2 * GUARD, np.nan, np.float32)
    pointers = [a.ctypes.data for a in (x, codes, scales)] + [memory.ctypes.data + 4 * GUARD]
    words = (ctypes.c_int64 * (len(pointers) + 1))(*pointers, *(sizes[s] for s in call.size_symbols))
    work = evaluate(written.work, sizes)
    middle = round(work * cut)
    for low, high in ((0, middle), (middle, work)):
        if low < high:
            function(ctypes.addressof(words), low, high)
    assert np.isnan(memory[:GUARD]).all() and np.isnan(memory[len(memory) - GUARD :]).all()
    inside = memory[GUARD : len(memory) - GUARD]
    if columns_outside:
        return np.moveaxis(inside.reshape(columns, *x.shape[:-1]), 0, -1)
    return inside.reshape(*x.shape[:-1], columns)


@st.composite
def products(draw) -> tuple[list[np.ndarray], dict[str, int]]:
    """Operands and attributes; at times x is not row major."""
    bits, block = draw(st.sampled_from(((2, 16), (4, 8), (4, 16), (4, 32), (4, 128), (8, 4), (8, 32), (4, 512), (8, 768))))
    blocks = draw(st.sampled_from((1, 2, 3, 5, 17) if block <= 32 else (1, 2, 3)))
    columns = draw(st.sampled_from((1, 3, 8, 16, 17, 47, 48, 49, 100)))
    lead = draw(st.sampled_from(((1,), (2,), (3,), (7,), (16,), (17,), (2, 9), (29,), (70,), (0,), (), (3, 1, 2))))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    x = random.standard_normal((*lead, blocks * block)).astype(np.float32)
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    codes = random.integers(0, 256, (columns, blocks * block * bits // 8), dtype=np.uint8)
    scales = random.uniform(-1, 1, (columns, blocks)).astype(np.float32)
    return [x, codes, scales], {"bits": bits, "block": block, "columns": columns}


def error_of(actual: np.ndarray, operands: Sequence[np.ndarray], attributes: Mapping[str, int]) -> float:
    """The largest error relative to the sum of the products' absolute values, which bounds what rounding can do."""
    x, codes, scales = operands
    expected = evaluate_op(lookup(OP), [x.astype(np.float64), codes, scales.astype(np.float64)], attributes)
    assert actual.shape == expected.shape
    weight = evaluate_op(lookup(OP), [np.eye(x.shape[-1]), codes, scales.astype(np.float64)], attributes)
    bound = np.abs(x).astype(np.float64) @ np.abs(weight)
    return float((np.abs(actual - expected) / np.maximum(bound, 1e-30)).max(initial=0))


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    product=products(),
    cut=st.floats(0, 1),
    how=st.sampled_from(("plain", "symbolic", "columns outside")),
    cores=st.sampled_from((1, 64)),
)
def test_products_equal_their_meaning(machine, product, cut, how, cores) -> None:
    machine = dataclasses.replace(machine, cores=cores)
    operands, attributes = product
    x = operands[0]
    symbolic = how == "symbolic" and x.ndim > 1 and x.flags.c_contiguous and x.shape[0] not in (0, 1)
    actual = run_routine(operands, attributes, machine, symbolic=symbolic, cut=cut, columns_outside=how == "columns outside")
    assert error_of(actual, operands, attributes) < 1e-6


@settings(max_examples=20, deadline=None, derandomize=True)
@given(product=products())
def test_the_meaning_takes_panels_and_equals_its_expansion(product) -> None:
    operands, attributes = product
    expected = evaluate_op(lookup(OP), operands, attributes)
    np.testing.assert_array_equal(
        evaluate_op(lookup(OP), packed_operands(operands, attributes, machines()[0]), attributes), expected
    )
    builder = Builder("expanded")
    inputs = tuple(builder.input("x", TensorType(dtype_of(x), x.shape)) for x in operands)
    expand = lookup(OP).expand
    assert expand is not None
    graph = builder.finish([expand(builder, inputs, attributes)])
    np.testing.assert_allclose(interpret_graph(graph, operands)[0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_numbers_that_are_missing_stay_in_their_row(rows) -> None:
    """NaN in a row of x reaches all of that row and no other; in a scale, that column alone."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 64)).astype(np.float32)
    scales = np.ones((50, 2), np.float32)
    codes = random.integers(0, 256, (50, 32), dtype=np.uint8)
    x[rows // 2, 5] = np.nan
    scales[7, 1] = np.nan
    actual = run_routine([x, codes, scales], {"bits": 4, "block": 32, "columns": 50}, machines()[0])
    expected = np.zeros((rows, 50), bool)
    expected[rows // 2], expected[:, 7] = True, True
    np.testing.assert_array_equal(np.isnan(actual), expected)


@pytest.mark.parametrize("constant", [True, False], ids=["constant weights", "weights of the call"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("zero_points", [False, True])
def test_matmul_n_bits_compiled(dtype, zero_points, constant) -> None:
    """Equals the product with the dequantised weight; the weight is not kept in float32, and K may end within a block."""
    rows, inner, columns, block = 3, 88, 70, 32
    random = np.random.default_rng(1)
    blocks = -(-inner // block)
    codes = random.integers(0, 256, (columns, blocks, block // 2), dtype=np.uint8)
    scales = random.uniform(0.5, 1, (columns, blocks)).astype(dtype)
    zeros = random.integers(0, 16, (columns, blocks)) if zero_points else np.full((columns, blocks), 8)
    padded = np.pad(zeros, ((0, 0), (0, blocks % 2))).astype(np.uint8)
    weights = {"codes": codes, "scales": scales.reshape(-1)}
    if zero_points:
        weights["zeros"] = (padded[:, ::2] | padded[:, 1::2] << 4).reshape(-1)
    x = random.standard_normal((rows, inner)).astype(dtype)
    settings = {"K": inner, "N": columns, "bits": 4, "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", **settings)
    given = {"x": x} if constant else {"x": x, **weights}
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()]
    held = [numpy_helper.from_array(a, n) for n, a in weights.items()] if constant else []
    graph = helper.make_graph([node], "product", infos, [helper.make_empty_tensor_value_info("y")], held)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    compiled = dlcompiler.compile(helper.make_model(graph, opset_imports=imports, ir_version=8))
    results = compiled(*(torch.from_numpy(a) for a in given.values()))
    actual = (results[0] if isinstance(results, (tuple, list)) else results).numpy()
    numbers = np.stack([codes & 15, codes >> 4], axis=-1).reshape(columns, blocks, block) - zeros[:, :, None].astype(np.float64)
    weight = (numbers * scales[:, :, None].astype(np.float64)).reshape(columns, -1)[:, :inner]
    expected = x.astype(np.float64) @ weight.T
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=(2e-6 if dtype == np.float32 else 1e-3) * np.abs(expected).max())
    assert [step.op for step in compiled.program.steps if isinstance(step, RoutineCall)] == [OP]
    kept = [slot for slot in compiled.program.slots if slot.role == "prepared" and slot.dtype.is_float]
    assert sum(math.prod(map(known, slot.shape)) for slot in kept) < inner * columns
