"""Programs made by hand, with kernels written straight in MLIR: the runtime's tests need no pass and no kernel generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from dlcompiler.codegen.cpu.driver import compile_driver, driver_address
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, product, symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.program import Code, CompiledKernel, Launch, Program, Slot
from dlcompiler.ir.types import DType, TensorType, contiguous_strides, f32
from dlcompiler.passes.dataflow.memory import place


def slot(
    name: str, shape: Sequence[Dim], role: Any, position: int = -1, strides: Sequence[Dim] | None = None, dtype: DType = f32
):
    shape = tuple(shape)
    return Slot(name, dtype, shape, contiguous_strides(shape) if strides is None else tuple(strides), role, position)


def pointwise(op: str, inputs: int, shape: Sequence[Dim], dtype: DType = f32) -> K.Kernel:
    """`out = op(in0, in1, ...)` over contiguous buffers of a shape."""
    shape = tuple(shape)
    strides = contiguous_strides(shape)
    axes = tuple(K.Axis("ijkl"[d], size) for d, size in enumerate(shape))
    index = tuple(symbol(a.name) for a in axes)
    buffers = [K.Buffer(f"in{k}", dtype, shape, strides) for k in range(inputs)]
    out = K.Buffer("out", dtype, shape, strides, "out")
    value = K.Compute(dtype, op, tuple(K.Load(dtype, b, index) for b in buffers))
    return K.Kernel(f"{op}_{len(shape)}d", axes, (*buffers, out), (K.Store(out, index, value),))


@cache
def _machine_code(op: str, inputs: int, element: str):
    """A scalar loop over [low, high) that applies an Emitter method; it trusts that buffers are contiguous."""
    e = Emitter()
    with e.func("kernel", [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
        *sources, target = e.buffers(words, inputs + 1)
        with e.for_loop(low, high) as loop:
            values = [e.load(source, loop.index, element) for source in sources]
            e.store(getattr(e, op)(*values), target, loop.index)
    return compile_mlir(e.text(), ["kernel"])


def code_for(steps: Sequence[Any], grain: int = 1 << 60, multiple: int = 1) -> Code:
    kernels: list[CompiledKernel | None] = []
    for step in steps:
        if not isinstance(step, Launch):
            kernels.append(None)
            continue
        kernel = step.kernel
        op, inputs = kernel.name.split("_")[0], len(kernel.buffers) - 1
        module = _machine_code(op, inputs, str(kernel.buffers[0].dtype))
        work = product(a.extent for a in kernel.axes)
        kernels.append(CompiledKernel(kernel.name, module.address("kernel"), work, grain, multiple, keep_alive=module))
    return Code(tuple(kernels), driver_address(), keep_alive=compile_driver())


def graph_of(inputs: Sequence[Slot | str]) -> Graph:
    """A graph that only says what the inputs are: a slot is a tensor, a string an integer that binds that symbol."""
    builder = Builder("hand")
    for given in inputs:
        if isinstance(given, str):
            builder.size_input(given, given)
        else:
            builder.input(given.name, TensorType(given.dtype, given.shape))
    return builder.finish(())


def program_of(
    inputs: Sequence[Slot | str],
    steps: Sequence[Any],
    outputs: Sequence[Any],
    constants: Sequence[Any] = (),
    aliases: Mapping[Slot, Slot] | None = None,
    grain: int = 1 << 60,
    multiple: int = 1,
) -> Program:
    """A program; its slots are collected from inputs, steps and outputs."""
    graph = graph_of(inputs)
    slots = {given: None for given in inputs if isinstance(given, Slot)}
    for step in steps:
        slots.update({view.slot: None for view in (*step.reads, *step.writes) if view is not None})
    slots.update({view.slot: None for view in outputs})
    code = code_for(steps, grain, multiple)
    tensors = tuple(given if isinstance(given, Slot) else None for given in inputs)
    program = Program(
        "hand", graph, tuple(slots), tuple(steps), tensors, tuple(outputs), tuple(constants), aliases or {}, code=code
    )
    return program if graph.symbols else program.replace(placement=place(program))
