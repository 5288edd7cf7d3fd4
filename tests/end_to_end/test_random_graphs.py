"""Everything agrees on random graphs: the graph interpreter, every pass, kernels under the memory plan, and compiled code."""

from __future__ import annotations

import numpy as np
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.interpret import interpret_graph, interpret_program
from dlcompiler.ir.verify import verify_program
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
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


@settings(max_examples=1500, derandomize=True, deadline=None)
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


@settings(max_examples=500, derandomize=True, deadline=None)
@given(case=CASES)
def test_compiled_code_agrees(case: Case):
    with np.errstate(all="ignore"):
        expected = case.expected()
    inputs = [tensor_from_array(np.array(x)) if isinstance(x, np.ndarray) else x for x in case.inputs]
    outputs = compile_graph(case.graph, TARGET, OPTIONS)(inputs)
    position = {node: k for k, node in enumerate(case.graph.inputs)}
    outputs += [inputs[position[target]] for _, target in case.graph.writebacks]
    case.check([array_from_tensor(x) for x in outputs], expected)
