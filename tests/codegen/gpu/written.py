"""Graphs planned for a GPU and run by Triton's interpreter from what is written for each step, without assembling anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from dlcompiler.codegen.gpu.bundle import bundle_writers
from dlcompiler.codegen.gpu.contraction import product_writers
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.routines import routine_writers
from dlcompiler.codegen.gpu.simulate import run_interpreted
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.interpret import interpret_program
from dlcompiler.ir.kernel import Bundle
from dlcompiler.ir.program import Launch, Program, RoutineCall
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

TARGET = parse_target("cuda:sm_90")


def planned(graph: Graph, target: Target = TARGET) -> Program:
    """The graph's program for a GPU."""
    return plan(fuse(optimize(graph, target, None), target), target)


def written(step: Launch | RoutineCall, target: Target = TARGET) -> TritonKernel:
    """A step by the first of its schedules; its buffers at multiples of 16."""
    device = device_of(target.arch)
    if isinstance(step, RoutineCall):
        return next(routine_writers(step, device, target.float32, frozenset()))
    if isinstance(step.kernel, Bundle):
        return next(bundle_writers(step.kernel, device, frozenset()))
    products = product_writers(step.kernel, device, target.float32, frozenset(b.name for b in step.kernel.buffers))
    return next(products) if products is not None else write_triton(step.kernel)


def simulated(graph: Graph, inputs: Sequence[np.ndarray], target: Target = TARGET) -> tuple[list[np.ndarray], list[TritonKernel]]:
    """The graph's outputs, and the kernels that made them."""
    program = planned(graph, target)
    kernels: list[TritonKernel] = []

    def launch(number: int, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        step = program.steps[number]
        assert isinstance(step, Launch | RoutineCall)
        kernels.append(written(step, target))
        run_interpreted(kernels[-1], dict(zip((b.name for b in kernels[-1].kernel.buffers), arrays.values())), sizes)

    return interpret_program(program, inputs, launch=launch)[: len(program.outputs)], kernels


def products_of(kernels: Sequence[TritonKernel]) -> list[TritonKernel]:
    """Those that multiply on tensor cores."""
    return [kernel for kernel in kernels if "tl.dot(" in kernel.source]
