"""A whole graph as one kernel, by the kernel builder alone: no fusion decides what is worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate, symbols
from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.interpret import bind_inputs, interpret_kernel
from dlcompiler.ir.kernel_builder import KernelBuilder
from dlcompiler.ir.ops import Trait
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
