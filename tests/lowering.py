"""A whole graph as one kernel, or as a program of one launch for each node: lowering where no pass decides what is worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate, symbols
from dlcompiler.ir.graph import Builder, Graph, Node, Rewriter
from dlcompiler.ir.interpret import bind_inputs, interpret_kernel
from dlcompiler.ir.kernel_builder import KernelBuilder
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.program import Launch, Placement, Program, Slot
from dlcompiler.ir.types import contiguous_strides


def expand_composites(graph: Graph) -> Graph:
    """Every composite written with other ops, until none is left."""
    while any(node.has(Trait.COMPOSITE) for node in graph.nodes):
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.has(Trait.COMPOSITE):
                rewriter.location = node.location
                rewriter.replace(node, node.op.expand(rewriter, tuple(rewriter.new[i] for i in node.inputs), node.attributes))
            else:
                rewriter.keep(node)
        graph = rewriter.finish_like()
    return graph


def graph_kernel(graph: Graph) -> tuple[K.Kernel, dict[str, np.ndarray]]:
    """One kernel with a buffer for each input, `out0`, `out1` ... for the outputs, and arrays for the constants it reads."""
    graph = expand_composites(graph)
    buffers: dict[Node, K.Buffer] = {}
    constants: dict[str, np.ndarray] = {}

    def buffer_of(node: Node) -> K.Buffer | None:
        if node.op.name == "constant" and node.attributes["value"].size != 1:
            constants[node.name] = node.attributes["value"]
        elif node.op.name != "input":
            return None
        if node not in buffers:
            strides = node.attributes.get("strides") or contiguous_strides(node.shape)
            buffers[node] = K.Buffer(node.name, node.dtype, node.shape, strides)
        return buffers[node]

    builder = KernelBuilder(buffer_of)
    stores = []
    for position, node in enumerate(graph.outputs):
        index: list[Dim] = []
        for size in node.shape:
            taken = frozenset().union(*(symbols(i) for i in index))
            index.append(builder.axis(size, taken))
        value = builder.store_value(builder.element(node, tuple(index)), node.dtype)
        out = K.Buffer(f"out{position}", node.dtype, node.shape, contiguous_strides(node.shape), "out")
        stores.append(K.Store(out, tuple(index), value))
    everything = (*buffers.values(), *(s.buffer for s in stores))
    return K.Kernel(graph.name, tuple(builder.axes.values()), everything, tuple(stores)), constants


def run_as_kernel(graph: Graph, inputs: Sequence[np.ndarray | int]) -> list[np.ndarray]:
    """The graph's outputs, computed by its one kernel in the kernel interpreter."""
    kernel, arrays = graph_kernel(graph)
    sizes = bind_inputs(graph, inputs)
    arrays = dict(arrays)
    arrays.update({node.name: np.asarray(given) for node, given in zip(graph.inputs, inputs)})
    results = []
    for store, node in zip(kernel.stores, graph.outputs):
        shape = tuple(evaluate(d, sizes) for d in node.shape)
        memory = bytearray(b"\xaa" * max(math.prod(shape) * node.dtype.bytes, node.dtype.bytes))
        results.append(np.ndarray(shape, node.dtype.numpy, memory))
        arrays[store.buffer.name] = results[-1]
    interpret_kernel(kernel, arrays, sizes)
    return results


def node_kernel(node: Node) -> K.Kernel:
    """One node as a kernel: buffers x0, x1 ... for its operands and y for its result."""
    buffers = {}
    for operand in node.inputs:
        if operand not in buffers:
            buffers[operand] = K.Buffer(f"x{len(buffers)}", operand.dtype, operand.shape, contiguous_strides(operand.shape))
    builder = KernelBuilder(buffers.get)
    index = tuple(builder.new_axis(size) for size in node.shape)
    value = builder.store_value(builder.element(node, index), node.dtype)
    out = K.Buffer("y", node.dtype, node.shape, contiguous_strides(node.shape), "out")
    return K.Kernel(node.name, tuple(builder.axes.values()), (*buffers.values(), out), (K.Store(out, index, value),))


def graph_program(graph: Graph) -> Program:
    """The graph with one launch for each node, every output copied into a slot of its own, and a first-fit memory plan."""
    whole, graph = graph, expand_composites(graph)
    slots: dict[Node, Slot] = {}
    constants: list[np.ndarray] = []
    steps: list[Launch] = []
    for position, node in enumerate(graph.inputs):
        slots[node] = Slot(node.name, node.dtype, node.shape, contiguous_strides(node.shape), "input", position)
    for node in graph.nodes:
        if node.op.name == "constant":
            slots[node] = Slot(node.name, node.dtype, node.shape, contiguous_strides(node.shape), "constant", len(constants))
            constants.append(node.attributes["value"])
        else:
            slots[node] = Slot(node.name, node.dtype, node.shape, contiguous_strides(node.shape), "intermediate")
            steps.append(_launch(node_kernel(node), node.inputs, slots, slots[node]))
    outputs = []
    for position, node in enumerate(graph.outputs):
        copied = Builder("copy").make(lookup("copy"), (node,), {}, node.type, f"{node.name}.output{position}")
        slots[copied] = Slot(copied.name, node.dtype, node.shape, contiguous_strides(node.shape), "output", position)
        steps.append(_launch(node_kernel(copied), (node,), slots, slots[copied]))
        outputs.append(slots[copied].view())
    inputs = tuple(slots[node] for node in graph.inputs)
    program = Program(graph.name, whole, tuple(slots.values()), tuple(steps), inputs, tuple(outputs), tuple(constants))
    return program if program.graph.symbols else program.replace(placement=first_fit(program))


def _launch(kernel: K.Kernel, operands: Sequence[Node], slots: Mapping[Node, Slot], result: Slot) -> Launch:
    return Launch(kernel, (*(slots[o].view() for o in dict.fromkeys(operands)), result.view()), (f"%{result.name}",))


def first_fit(program: Program) -> Placement:
    """Each intermediate at the lowest offset that is free during its life."""
    placed: list[tuple[int, int, int, int]] = []  # first step, last step, start, end
    offsets: dict[Slot, int] = {}
    for slot, (first, last) in program.lifetimes.items():
        size = evaluate(slot.bytes, {})
        start = 0
        for begin, end in sorted((s, e) for f, l, s, e in placed if f <= last and first <= l):
            if begin < start + size and start < end:
                start = end
        offsets[slot] = start
        placed.append((first, last, start, start + size))
    top = max((end for *_, end in placed), default=0)
    live = max((sum(e - s for f, l, s, e in placed if f <= step <= l) for step in range(len(program.steps))), default=0)
    return Placement(offsets, top, live)
