"""The compiled time loop of recurrent layers against the meaning of its op in float64, and whole layers against torch's."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.ir.expression import Dim, evaluate, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import evaluate_op, interpret_graph
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.ops.recurrent_training import kept_widths
from dlcompiler.ir.program import RoutineCall, Slot, View
from dlcompiler.ir.types import TensorType, contiguous_strides, dtype_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.run import machines

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


def strided(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The same array stored with its dimensions in `order`, the last one innermost."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


def view_of(name: str, array: np.ndarray, shape: Sequence[Dim]) -> View:
    """A view with the array's strides; a size that is a symbol stands in the strides too where that is possible."""
    strides = tuple(s // array.itemsize for s in array.strides)
    if strides == contiguous_strides(array.shape):
        strides = contiguous_strides(tuple(shape))
    return Slot(name, dtype_of(array), tuple(shape), strides, "input").view()


def run_routine(
    op: str,
    operands: Sequence[np.ndarray],
    attributes: Mapping[str, object],
    machine: Machine,
    cuts: Sequence[float] = (0.5,),
    sizes: Mapping[str, int] | None = None,
    in_place: bool = False,
) -> list[np.ndarray]:
    """Compile and run one routine, its work cut at these shares, every part in a thread; `sizes` are dimensions left unknown.

    in_place  results are written where operands lie, if the routine allows it
    """
    sizes = sizes or {}
    names = {number: symbol(name) for name, number in sizes.items()}
    # the hidden size has to be known: only the leading dimensions of gates and the batch of states are symbols
    shapes = [tuple(names.get(n, n) if d < x.ndim - 1 and x.ndim >= 3 else n for d, n in enumerate(x.shape)) for x in operands]
    builder = Builder("routine")
    inputs = [builder.input("x", TensorType(dtype_of(x), shape)) for x, shape in zip(operands, shapes)]
    node = builder(op, *inputs, **attributes)
    routine = find_routine(node, machine)
    assert routine is not None
    operands = list(operands)
    for position, arrange in routine.packing(node, machine).items():
        build = Builder("packing")
        packed = arrange(build, build.input("weight", node.inputs[position].tensor))
        graph = build.finish([packed])
        operands[position] = np.ascontiguousarray(interpret_graph(graph, [operands[position]])[0])
        shapes[position] = operands[position].shape
    written_types = [*node.type.elements, *routine.scratch(node, machine)]
    results = [np.zeros([evaluate(d, sizes) for d in t.shape], t.dtype.numpy) for t in written_types]
    results = [r if r.dtype.kind == "i" else np.full_like(r, np.nan) for r in results]
    for result, operand in routine.in_place(node).items() if in_place else ():
        operands[operand] = np.ascontiguousarray(operands[operand]).copy()
        results[result] = operands[operand].reshape(results[result].shape)
    reads = [view_of(f"x{k}", x, shape) for k, (x, shape) in enumerate(zip(operands, shapes))]
    writes = [view_of(f"y{k}", y, t.shape) for k, (y, t) in enumerate(zip(results, written_types))]
    call = RoutineCall(op, tuple(reads), tuple(writes), attributes)
    text, written = write_kernel(call, machine)
    function = compile_mlir(text, ["kernel"]).function("kernel")
    pointers = [x.ctypes.data for x in (*operands, *results)]
    words = (ctypes.c_int64 * (len(pointers) + len(call.size_symbols)))(*pointers, *(sizes[s] for s in call.size_symbols))
    work = evaluate(written.work, sizes)
    ends = [0, *(round(work * share) for share in sorted(cuts)), work]
    parts = [(a, b) for a, b in zip(ends, ends[1:]) if a < b]
    threads = [threading.Thread(target=function, args=(ctypes.addressof(words), *part)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[: len(node.type.elements)]


@st.composite
def scans(draw) -> tuple[str, list[np.ndarray], dict[str, object], dict[str, int]]:
    """An op, its operands and attributes, and sizes to be left unknown; at times with operands that are not row major."""
    cell = CELLS[draw(st.sampled_from(sorted(CELLS)))]
    steps, batch = draw(st.integers(0, 5)), draw(st.sampled_from((1, 2, 3, 7, 8, 13)))
    hidden = draw(st.sampled_from((1, 2, 5, 8, 15, 16, 17, 33, 64)))
    reverse = draw(st.sampled_from(((False,), (True,), (False, True))))
    dtype = draw(st.sampled_from((np.float32, np.float64)))
    random = np.random.default_rng(draw(st.integers(0, 1000)))

    def array(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(dtype)

    operands = [array(len(reverse), batch, hidden) for _ in range(cell.states)]
    if draw(st.booleans()):
        operands = [strided(x, draw(st.permutations(range(3)))) for x in operands]
    batch_first = draw(st.booleans())
    for _ in reverse:
        gates = array(steps, batch, cell.gates * hidden) * 2
        weight = array(cell.gates * hidden, hidden) / hidden**0.5
        operands += [strided(gates, (1, 0, 2)) if batch_first else gates]
        operands += [strided(weight, (1, 0)) if draw(st.booleans()) else weight]
        operands += [array(cell.gates * hidden)] if cell.inner_bias else []
    attributes: dict[str, object] = {"reverse": reverse}
    if cell.name == "rnn":
        attributes["activation"] = draw(st.sampled_from(("tanh", "relu")))
    unknown = {} if steps == batch or batch in (1, 2) or steps < 3 else draw(st.sampled_from(({}, {"T": steps, "B": batch})))
    if len(reverse) in unknown.values():
        unknown = {}
    form = draw(st.sampled_from(("scan", "scan_keeping")))
    return f"{cell.name}_{form}", operands, attributes, unknown


@st.composite
def gradients_of_scans(draw) -> tuple[str, list[np.ndarray], dict[str, object], dict[str, int]]:
    """As `scans`, of the op that goes back."""
    op, operands, attributes, unknown = draw(scans())
    cell = CELLS[op.partition("_")[0]]
    each = 3 if cell.inner_bias else 2
    reverse = attributes["reverse"]
    gates, *weights = operands[cell.states], *operands[cell.states + 1 :: each]
    directions, batch, hidden = operands[0].shape
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    shapes = [(len(gates), batch, directions * hidden)]
    shapes += [(directions, len(gates), batch, width * hidden) for width in kept_widths(cell)]
    dy, *kept = (random.normal(size=shape).astype(gates.dtype) for shape in shapes)
    if draw(st.booleans()):
        dy = strided(dy, (1, 0, 2))
    return f"{cell.name}_scan_backward", [dy, *operands[: cell.states], *kept, *weights], {"reverse": reverse}, unknown


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    scan=st.one_of(scans(), gradients_of_scans()),
    cores=st.sampled_from((1, 2, 3)),
    cuts=st.lists(st.floats(0, 1), max_size=2),
    in_place=st.booleans(),
)
def test_scan_equals_its_meaning(machine, scan, cores, cuts, in_place) -> None:
    op, operands, attributes, unknown = scan
    wide = [x.astype(np.float64) for x in operands]
    expected = evaluate_op(lookup(op), wide, attributes)
    actual = run_routine(op, operands, attributes, dataclasses.replace(machine, cores=cores), cuts, unknown, in_place)
    for got, want in zip(actual, expected):
        assert got.shape == want.shape
        error = np.abs(got - want).max(initial=0) / max(np.abs(want).max(initial=0), 1)
        assert error <= TOLERANCE[operands[0].dtype.name] * max(len(operands[-1]), 1) ** 0.5


@pytest.mark.parametrize("op", ["lstm_scan", "gru_scan", "rnn_scan"])
def test_far_and_missing_numbers(op) -> None:
    """Gates far outside the range of exp saturate, and NaN stays where it comes in: in its row."""
    machine = machines()[0]
    cell, hidden = CELLS[op.removesuffix("_scan")], 20
    gates = np.full((1, 6, cell.gates * hidden), 1.0, np.float32)
    gates[0, 0] = np.inf
    gates[0, 1] = -np.inf
    gates[0, 2] = 3e38
    gates[0, 3] = -300.0
    gates[0, 4] = np.nan
    states = [np.full((1, 6, hidden), 0.25, np.float32) for _ in range(cell.states)]
    weights = [np.zeros((cell.gates * hidden, hidden), np.float32)]
    weights += [np.zeros(cell.gates * hidden, np.float32)] if cell.inner_bias else []
    attributes = {"reverse": (False,), **({"activation": "tanh"} if cell.name == "rnn" else {})}
    operands = [*states, gates, *weights]
    expected = evaluate_op(lookup(op), operands, attributes)
    for got, want in zip(run_routine(op, operands, attributes, machine), expected):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_equal_input_rows_give_equal_results_wherever_they_are_computed() -> None:
    """A row's bits do not depend on the height of its tile (from two rows on), or the part of the work."""
    random = np.random.default_rng(0)
    row = random.normal(size=(4, 1, 4 * 40)).astype(np.float32)
    weight = random.normal(size=(160, 40)).astype(np.float32) / 6
    results = []
    for batch, cores in ((13, 1), (13, 2), (13, 3)):
        states = [np.zeros((1, batch, 40), np.float32)] * 2
        machine = dataclasses.replace(machines()[0], cores=cores)
        y = run_routine("lstm_scan", [*states, np.repeat(row, batch, 1), weight], {"reverse": (False,)}, machine, cuts=(0.4, 0.7))
        results += list(y[0].transpose(1, 0, 2))
    assert all(np.array_equal(results[0], other) for other in results)
