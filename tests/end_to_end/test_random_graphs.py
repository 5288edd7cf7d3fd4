"""Everything agrees on random graphs: the graph interpreter, every pass, kernels under the memory plan, and compiled code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.interpret import interpret_graph, interpret_program
from dlcompiler.ir.program import Code
from dlcompiler.ir.types import dtype_of
from dlcompiler.ir.verify import verify_program
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.freeze import freeze
from dlcompiler.runtime.kept import KeptExecutable, KeptProgram
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcompiler.arrays import array_from_tensor, tensor_from_array
from dlcompiler.compiler import compile_graph
from dlcompiler.options import Options
from tests.strategies import Case, graphs

TARGET = parse_target("cpu")
OPTIONS = Options()

# plain cases most of the time; special values, symbolic sizes and written-back inputs each in a part of them
CASES = st.one_of(
    graphs(max_nodes=6), graphs(max_nodes=14), graphs(max_nodes=8, special=True), graphs(max_nodes=8, symbolic=True),
    graphs(max_nodes=8, writebacks=True),
)  # fmt: skip


@settings(max_examples=1000, derandomize=True, deadline=None)
@given(case=CASES)
def test_passes_and_kernels_under_the_plan_agree(case: Case):
    with np.errstate(all="ignore"):
        expected = case.expected()
        stages = []
        graph = optimize(case.graph, TARGET, OPTIONS, observe=lambda name, result: stages.append(result))
        for stage in stages:
            case.check(interpret_graph(stage, case.inputs), expected)
        program = plan(fuse(graph, TARGET, OPTIONS), TARGET, OPTIONS)
        verify_program(program)
        case.check(interpret_program(program, case.inputs), expected)


def run_frozen(executable: Executable, inputs: Sequence[object]) -> list[np.ndarray] | None:
    """What the program gives as data without torch, after a way through text; None where it cannot be that."""
    program, bindings = executable.program, dict(zip(executable.symbols, executable.sizes(inputs)))
    kept = freeze(program, executable.placement(bindings), bindings)
    if kept is None:
        return None
    kept = KeptProgram.from_text(kept.as_text())
    code = program.code
    assert isinstance(code, Code)
    by_name = {kernel.name: kernel.address for kernel in (*code.kernels, *code.preparation) if kernel is not None}
    constants = [np.array(value) for value in program.constants]
    run = KeptExecutable(kept, [by_name[name] for name in kept.functions], code.driver, constants, code)
    arrays = [value for value in inputs if isinstance(value, np.ndarray)]
    assert run.fits(arrays)
    return [np.array(output) for output in run(arrays, threads=2)]


@settings(max_examples=350, derandomize=True, deadline=None)
@given(case=CASES)
def test_compiled_code_agrees(case: Case):
    with np.errstate(all="ignore"):
        expected = case.expected()
    inputs = [tensor_from_array(np.array(x)) if isinstance(x, np.ndarray) else x for x in case.inputs]
    executable = compile_graph(case.graph, TARGET, OPTIONS)
    assert isinstance(executable, Executable)
    frozen = run_frozen(executable, case.inputs)
    outputs = executable(inputs)
    if frozen is not None:
        for kept, output in zip(frozen, outputs, strict=True):
            assert kept.tobytes() == array_from_tensor(output, dtype_of(kept)).tobytes()
    position = {node: k for k, node in enumerate(case.graph.inputs)}
    outputs += [inputs[position[target]] for _, target in case.graph.writebacks]
    case.check([array_from_tensor(x) for x in outputs], expected)
