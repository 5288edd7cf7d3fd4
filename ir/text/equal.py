"""Whether two graphs, kernels or programs are the same: each function gives None, or the first difference as a sentence.

Objects are matched by position, not by identity, so a graph equals what its text parses to. Floats are compared by their bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Program, Slot, View
from dlcompiler.ir.text.graph import print_node
from dlcompiler.ir.text.kernel import show_kernel_value


def same_value(left: Any, right: Any) -> bool:
    """Whether two attribute values are equal, with their kinds (1, 1.0 and true differ) and the bits of their floats."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and same_array(left, right)
    left, right = (x.item() if isinstance(x, np.generic) else x for x in (left, right))
    if isinstance(left, Graph) and isinstance(right, Graph):
        return graphs_equal(left, right) is None
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same_value(left[k], right[k]) for k in left)
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right) or (left != left and right != right)
    if isinstance(left, complex):
        return same_value(left.real, right.real) and same_value(left.imag, right.imag)
    return left == right


def same_array(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays have one dtype, one shape and the same bits."""
    if left is right:
        return True
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (left, right))
    return np.array_equal(one, other)


def graphs_equal(left: Graph, right: Graph) -> str | None:
    """None, or the first difference in structure, types, attributes, names, locations or the bits of constants."""
    if left.name != right.name:
        return f"one graph is called {left.name!r}, the other {right.name!r}"
    for what in ("inputs", "nodes", "outputs", "writebacks"):
        if len(getattr(left, what)) != len(getattr(right, what)):
            return f"one graph has {len(getattr(left, what))} {what}, the other {len(getattr(right, what))}"
    match: dict[Node, Node] = {}
    for a, b in zip((*left.inputs, *left.nodes), (*right.inputs, *right.nodes)):
        difference = _node_difference(a, b, match)
        if difference is not None:
            return f"{difference}:\n  {print_node(a, digests=False)}\n  {print_node(b, digests=False)}"
        match[a] = b
    for k, (a, b) in enumerate(zip(left.outputs, right.outputs)):
        if match[a] is not b:
            return f"output {k} is %{a.name} in one and %{b.name} in the other"
    for k, ((value, into), (other, other_into)) in enumerate(zip(left.writebacks, right.writebacks)):
        if match[value] is not other or match[into] is not other_into:
            return f"writeback {k} is %{value.name} -> %{into.name} in one and %{other.name} -> %{other_into.name} in the other"
    none = (None,) * len(left.outputs)
    if (left.output_strides or none) != (right.output_strides or none):
        return f"output strides are {left.output_strides} in one and {right.output_strides} in the other"
    if left.output_names != right.output_names:
        return f"output names are {left.output_names} in one and {right.output_names} in the other"
    return None


def _node_difference(a: Node, b: Node, match: Mapping[Node, Node]) -> str | None:
    if a.name != b.name:
        return f"%{a.name} and %{b.name} stand at one place"
    if a.op is not b.op:
        return f"%{a.name} is {a.op.name} in one and {b.op.name} in the other"
    if len(a.inputs) != len(b.inputs) or any(match.get(x) is not y for x, y in zip(a.inputs, b.inputs)):
        return f"%{a.name} has other operands"
    if a.type != b.type:
        return f"%{a.name} is {a.type} in one and {b.type} in the other"
    if a.location != b.location:
        return f"%{a.name} comes from {a.location} in one and {b.location} in the other"
    for key in {**a.attributes, **b.attributes}:
        if key not in a.attributes or key not in b.attributes or not same_value(a.attributes[key], b.attributes[key]):
            return f"attribute {key} of %{a.name} differs"
    return None


def kernels_equal(left: Kernel, right: Kernel) -> str | None:
    """None, or the first difference."""
    for what in ("name", "axes", "buffers", "origin", "winograd"):
        if getattr(left, what) != getattr(right, what):
            return f"{what} of the kernels differ: {getattr(left, what)} and {getattr(right, what)}"
    if isinstance(left, K.Bundle) or isinstance(right, K.Bundle):
        parts = K.parts_of(left), K.parts_of(right)
        if type(left) is not type(right) or len(parts[0]) != len(parts[1]):
            return "the kernels have different numbers of parts"
        return next(filter(None, map(kernels_equal, *parts)), None)
    if len(left.values) != len(right.values) or len(left.stores) != len(right.stores):
        return "the kernels have different numbers of values or stores"
    names = {v: f"v{k}" for k, v in enumerate(left.values)}
    other = {v: f"v{k}" for k, v in enumerate(right.values)}
    for a, b in zip(left.values, right.values):
        same = a.dtype is b.dtype and show_kernel_value(a, names) == show_kernel_value(b, other)
        if not same or (isinstance(a, K.Constant) and isinstance(b, K.Constant) and not same_value(a.value, b.value)):
            return (
                f"{names[a]} is {show_kernel_value(a, names)} : {a.dtype} in one "
                f"and {show_kernel_value(b, other)} : {b.dtype} in the other"
            )
    for k, (s, t) in enumerate(zip(left.stores, right.stores)):
        if (s.buffer, s.index, names[s.value]) != (t.buffer, t.index, other[t.value]):
            return f"store {k} differs"
    return None


def programs_equal(left: Program, right: Program) -> str | None:
    """None, or the first difference. Attached code and history are not compared."""
    if left.name != right.name or left.refusals != right.refusals:
        return "names or refusals differ"
    difference = graphs_equal(left.graph, right.graph)
    if difference is not None:
        return f"the graphs differ: {difference}"
    for what in ("slots", "steps", "preparation", "inputs", "outputs", "constants"):
        if len(getattr(left, what)) != len(getattr(right, what)):
            return f"one program has {len(getattr(left, what))} {what}, the other {len(getattr(right, what))}"
    match: dict[Slot | None, Slot | None] = {None: None, **dict(zip(left.slots, right.slots))}
    for a, b in zip(left.slots, right.slots):
        if (a.name, a.dtype, a.shape, a.strides, a.role, a.position) != (b.name, b.dtype, b.shape, b.strides, b.role, b.position):
            return f"slot {a!r} is {b!r} in the other"
        if match[left.aliases.get(a)] is not right.aliases.get(b):
            return f"slot {a.name} takes over other memory"
    if [match[s] for s in left.inputs] != list(right.inputs):
        return "inputs differ"
    for k, (x, y) in enumerate(zip((*left.preparation, *left.steps), (*right.preparation, *right.steps))):
        difference = _step_difference(x, y, match)
        if difference is not None:
            return f"step {k}: {difference}"
    if not _same_views(left.outputs, right.outputs, match):
        return "outputs differ"
    for k, (x, y) in enumerate(zip(left.constants, right.constants)):
        if x is not y and not same_array(np.asarray(x), np.asarray(y)):
            return f"constant {k} differs"
    return _placement_difference(left, right, match)


def _placement_difference(left: Program, right: Program, match: Mapping[Slot | None, Slot | None]) -> str | None:
    a, b = left.placement, right.placement
    if a is None or b is None:
        return None if a is b else "only one has a placement"
    if any(getattr(a, k) != getattr(b, k) for k in ("arena_bytes", "lower_bound", "eager_peak", "extern_bytes")):
        return "the placements' sizes differ"
    return None if {match[s]: o for s, o in a.offsets.items()} == dict(b.offsets) else "the placements' offsets differ"


def _same_views(left: tuple, right: tuple, match: Mapping[Slot | None, Slot | None]) -> bool:
    def data(view: View | None) -> Any:
        return view and (view.shape, view.strides, view.offset)

    return len(left) == len(right) and all(
        data(a) == data(b) and match[a and a.slot] is (b and b.slot) for a, b in zip(left, right)
    )


def _step_difference(a: Any, b: Any, match: Mapping[Slot | None, Slot | None]) -> str | None:
    if type(a) is not type(b):
        return f"a {type(a).__name__} in one, a {type(b).__name__} in the other"
    if not _same_views(a.reads, b.reads, match) or not _same_views(a.writes, b.writes, match):
        return "other views"
    if a.origin != b.origin:
        return "other origins"
    match a, b:
        case Launch(), Launch():
            return kernels_equal(a.kernel, b.kernel)
        case LibraryCall(), LibraryCall():
            same = a.op == b.op and same_value(dict(a.attributes), dict(b.attributes))
            same = same and getattr(a, "in_place", ()) == getattr(b, "in_place", ())
        case AtenCall(), AtenCall():
            same = (a.target, a.reason) == (b.target, b.reason) and same_value(a.arguments, b.arguments)
    return None if same else "other ops or attributes"
