"""Updates where data says, on GPUs: deterministic, without atomics, in the order of the indices as the ops promise.

Each program owns places of the result and looks for the updates that go there. `index_update` along one axis (the gradient of an
embedding): a program owns a piece of one row, walks over the indices block by block, and adds the matching updates one by one.
`scatter` with few updates along its axis (the gradient of a loss that picks a class): each element looks at every one of them.
Where that would be too many comparisons the op is a library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.routine_text import broadcast_strides, finished, is_narrow, offset_text, parameters
from dlcompiler.codegen.gpu.schedule import ceiling, power_of_two
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.expression import evaluate, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.scatter import UPDATES
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, compute_dtype

MOST_COMPARISONS = 1 << 32  # about 2 ms of an H200
MOST_UPDATES = 16  # along the axis of a scatter
INDICES = 1024  # looked at together
COLUMNS = 1024
ELEMENTS = 512


def applies(node: Node) -> bool:
    """Whether these routines compute a graph node."""
    types = [node.tensor, *(i.tensor for i in node.inputs)]
    if node.op.name not in ("index_update", "scatter") or not all(t.is_static for t in types) or node.dtype.kind == "complex":
        return False
    if 0 in node.shape:
        return False
    if node.op.name == "scatter":
        return node.inputs[2].tensor.known_shape[node.attributes["axis"]] <= MOST_UPDATES
    if tuple(node.attributes["axes"]) != (0,):
        return False
    return node.tensor.known_shape[0] * max(node.inputs[2].tensor.known_numel, 1) <= MOST_COMPARISONS


def scratch(node: Node) -> Sequence[TensorType] | None:
    """No memory besides the results; None for a node that is not computed here."""
    return () if applies(node) else None


def key(call: RoutineCall) -> str:
    """What the text depends on besides the parameters."""
    return f"{call.op} {sorted(call.attributes.items())}"


def writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """The kernel."""
    yield _index_update(call, aligned) if call.op == "index_update" else _scatter(call, aligned)


def _combined(call: RoutineCall, old: str, new: str) -> str:
    operation, dtype = UPDATES[call.attributes["kind"]], compute_dtype(call.reads[1].dtype)
    return new if operation is None else scalars.compute(operation, dtype, old, new)


def _loaded(call: RoutineCall, address: str, mask: str) -> str:
    """An element in the type that is computed in."""
    return f"tl.load({address}, {mask}).to({scalars.type_name(compute_dtype(call.reads[1].dtype))})"


def _index_update(call: RoutineCall, aligned: frozenset[str]) -> TritonKernel:
    x, updates, at = call.reads
    (y,) = call.writes
    assert y is not None
    rest, count = y.shape[1:], math.prod(evaluate(d, {}) for d in at.shape)
    width, rank = product(rest), len(at.shape)
    assert isinstance(width, int)
    columns = min(COLUMNS, power_of_two(width))
    across = ceiling(width, columns)
    steps = broadcast_strides(x, y.shape)
    wide = "" if is_narrow(parameters(call).buffers) else ".to(tl.int64)"
    place_x = f"row * ({index_text(steps[0], {})}) + {offset_text('column', rest, steps[1:])}"
    place_y = f"row * ({index_text(y.strides[0], {})}) + {offset_text('column', rest, y.strides[1:])}"
    place_u = f"{offset_text('found', at.shape, updates.strides[:rank])} + {offset_text('column', rest, updates.strides[rank:])}"
    lines = [
        f"program = tl.program_id(0){wide}",
        f"row = program // {across}",
        f"column = program % {across} * COLUMNS + tl.arange(0, COLUMNS)",
        f"inside = column < {width}",
        f"value = {_loaded(call, f'x0 + ({place_x} + column * 0)', 'inside')}",
        f"for start in range(0, {count}, INDICES):",
        "    position = start + tl.arange(0, INDICES)",
        f"    at = tl.load(x2 + ({offset_text('position', at.shape, at.strides)} + position * 0), position < {count}, -1)",
        "    hits = at == row",
        f"    found = tl.reduce(tl.where(hits, position, {count}), 0, _minimum)",
        f"    while found < {count}:",
        f"        new = {_loaded(call, f'x1 + ({place_u} + column * 0)', 'inside')}",
        f"        value = {_combined(call, 'value', 'new')}",
        f"        found = tl.reduce(tl.where(hits & (position > found), position, {count}), 0, _minimum)",
        f"tl.store(y0 + ({place_y} + column * 0), value.to({scalars.type_name(y.dtype)}), inside)",
    ]
    body = "\n".join(f"    {line}" for line in lines) + "\n"
    indices = min(INDICES, power_of_two(count))
    blocks = {"COLUMNS": columns, "INDICES": indices}
    warps = max(1, min(8, max(columns, indices) // 256))
    schedule = f"one row of {width} a program, looked for among {count} indices, in order; {warps} warps"
    grid = y.shape[0] * across
    return finished(call, body, scalars.helpers_used(body), grid, blocks, warps, schedule, aligned)


def _scatter(call: RoutineCall, aligned: frozenset[str]) -> TritonKernel:
    x, updates, at = call.reads
    (y,), axis = call.writes, call.attributes["axis"]
    assert y is not None
    count = product(y.shape)
    wide = "" if is_narrow(parameters(call).buffers) else ".to(tl.int64)"
    rank = len(y.shape)
    indices = [f"i{d}" for d in range(rank)]
    lines = [f"element = tl.program_id(0){wide} * ELEMENTS + tl.arange(0, ELEMENTS)", f"inside = element < {count}"]
    for d, name in enumerate(indices):
        below = product(y.shape[d + 1 :])
        lines.append(f"{name} = element // {below}{f' % {y.shape[d]}' if d else ''}")

    def place(strides) -> str:
        return " + ".join(f"{n} * ({index_text(s, {})})" for n, s in zip(indices, strides) if s != 0) or "element * 0"

    reached = [f"({n} < {size})" for d, (n, size) in enumerate(zip(indices, at.shape)) if d != axis and size != y.shape[d]]
    there = " & ".join(["inside", *reached])

    def beside(strides) -> str:
        """The place of an element's update, but for its number along the axis."""
        return place([0 if d == axis else s for d, s in enumerate(strides)])

    update = f"x1 + ({beside(updates.strides)} + k * {updates.strides[axis]})"
    lines += [
        f"value = {_loaded(call, f'x0 + ({place(broadcast_strides(x, y.shape))} + element * 0)', 'inside')}",
        f"there = {there}",
        f"for k in range(0, {at.shape[axis]}):",
        f"    at = tl.load(x2 + ({beside(at.strides)} + k * {at.strides[axis]}), there, -1)",
        f"    hit = there & (at == i{axis})",
        f"    new = {_loaded(call, update, 'hit')}",
        f"    value = tl.where(hit, {_combined(call, 'value', 'new')}, value)",
        f"tl.store(y0 + ({place(y.strides)} + element * 0), value.to({scalars.type_name(y.dtype)}), inside)",
    ]
    body = "\n".join(f"    {line}" for line in lines) + "\n"
    schedule = f"{ELEMENTS} elements a program, each looks at {at.shape[axis]} updates in order; 4 warps"
    blocks = {"ELEMENTS": ELEMENTS}
    return finished(call, body, scalars.helpers_used(body), ceiling(count, ELEMENTS), blocks, 4, schedule, aligned)
