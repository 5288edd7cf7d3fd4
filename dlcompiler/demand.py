"""How much memory a call takes, as far as that is known before it, against what this process may have.

A file of a few hundred bytes can declare tensors of petabytes. That is found out before anything is allocated, and is a limit of
the machine for this model (UnsupportedError), unlike an allocation that fails while a model runs.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path

from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import evaluate, symbols
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType, TupleType, Type

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int | None:
    """Bytes that this process may still map, or that the machine or its control group has; None where nothing says."""
    limits = [*_of_machine(), *_of_groups()]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limits.append(max(allowed - _mapped(), 0))
    return min(limits, default=None)


def _of_machine() -> list[int]:
    """Memory and swap together."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if "SC_PHYS_PAGES" in os.sysconf_names else []
    sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest}
    return [sizes["MemTotal"] + sizes.get("SwapTotal", 0)] if "MemTotal" in sizes else []


def _of_groups() -> list[int]:
    """Limits of the control group that a container sees as its own, in either version of Linux's interface."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (CONTROL_GROUPS / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return found


def _mapped() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def bytes_of(types: Iterable[Type | None], bindings: Mapping[str, int]) -> int:
    """Of tensors whose sizes are known; others count as nothing."""
    total = 0
    for type in types:
        if isinstance(type, TupleType):
            total += bytes_of(type.elements, bindings)
        elif isinstance(type, TensorType) and all(symbols(size) <= bindings.keys() for size in type.shape):
            total += math.prod(evaluate(size, bindings) for size in type.shape) * type.dtype.bytes
    return total


def whole_tensors(graph: Graph) -> list[Node]:
    """What lies in memory as a whole, however the graph is compiled: inputs, outputs, operands and results of barriers."""
    barriers = [node for node in graph.nodes if node.has(Trait.BARRIER)]
    operands = [operand for node in barriers for operand in node.inputs]
    return list(dict.fromkeys([*graph.inputs, *graph.outputs, *barriers, *operands]))


def require_memory(graph: Graph, bindings: Mapping[str, int], planned: int = 0) -> None:
    """`bindings` of sizes, `planned` bytes of the arena, as far as they are known.

    Raises UnsupportedError for a model whose tensors this process cannot have.
    """
    from dlcompiler.report import format_bytes

    limit = memory_limit()
    nodes = whole_tensors(graph)
    needed = bytes_of((node.type for node in nodes), bindings) + planned
    if limit is None or needed <= limit:
        return
    largest = max(nodes, key=lambda node: bytes_of([node.type], bindings), default=None)
    at = f"; the largest, {largest.location or largest.name!r}, is {largest.type}" if largest is not None else ""
    raise UnsupportedError(
        f"the model's tensors take {format_bytes(needed)}, and this process may have {format_bytes(limit)}{at}",
        items=(f"size: tensors of {format_bytes(needed)}",),
        hint="run it where there is more memory, or fix other sizes (--input-shape)",
    )
