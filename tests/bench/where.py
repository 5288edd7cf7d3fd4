"""Where a model's time goes: its steps grouped by what they are, beside the least time that this machine could take.

    python -m tests.bench.where [--model bert-base,resnet50] [--threads 2] [--rounds 10] [--most 24] [--json FILE]

Every step is timed on its own (`Compiled.profile`). Its floor is the longer of two: its contractions' FLOP at the measured
multiply-add peak, and its bytes, each read or written once, at measured speeds: constants at the reading speed over as many
bytes as all constants have, the rest at the copying speed over as many bytes as the arena has, in cache or out of it. Arithmetic
other than contractions is not counted, so a step that is all erf or exp cannot reach its floor; padding is, so a convolution of a
small image may be below it. The whole call is timed plainly too: launches that follow each other start with one jump there.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from tests.bench import harness
from tests.bench.contractions import bursts, percent

CONTRACTIONS = ("linear", "matmul", "convolution", "attention", "lstm")
MOST_NAMES = 4  # of fused operations in one label


@dataclass(frozen=True)
class Limits:
    """The machine with so many threads: FLOP a second, and bytes a second for constants and for intermediates."""

    flops: float
    constants: float
    intermediates: float


@dataclass
class Group:
    """Steps that are alike: how many, their seconds and their floors' together."""

    label: str
    kind: str
    count: int = 0
    seconds: float = 0.0
    floor: float = 0.0
    flops: int = 0


def nodes_of(step: Any, graph_nodes: Mapping[str, Any]) -> list[Any]:
    """The graph's nodes that a step computes; origins read `op %name at place`."""
    names = [origin.split()[1].lstrip("%") for origin in step.origin if " %" in origin]
    return [graph_nodes[name] for name in names if name in graph_nodes]


def contraction_flops(node: Any) -> int:
    """FLOP of one contraction, two to a multiply-add, padding counted; 0 for any other op."""
    op, operands = node.op.name, node.inputs
    if op not in CONTRACTIONS:
        return 0
    if op == "lstm":
        x, weights = operands[0], [w for w in operands[3:] if len(w.shape) == 2]
        return 2 * prod(x.shape[:2]) * sum(prod(w.shape) for w in weights)
    first, second = operands[0].shape, operands[1].shape
    if op == "convolution":
        points = first if node.attributes["transposed"] else node.shape
        return 2 * points[0] * prod(points[2:]) * prod(second)
    if op == "attention":
        pairs = prod(first[:-1]) * second[-2]
        return (1 if node.attributes["causal"] else 2) * pairs * (first[-1] + operands[2].shape[-1])
    return 2 * prod(node.shape) * first[-1]


def bytes_of(step: Any) -> tuple[int, int]:
    """Bytes of constants, and of everything else, that a step must touch; what is looked up counts as what comes out."""
    written = sum(view_bytes(view) for view in step.writes if view is not None)
    constants, others = 0, written
    looked_up = tables(step)
    for position, view in enumerate(dict.fromkeys(step.reads)):
        size = min(view_bytes(view), written) if position in looked_up else view_bytes(view)
        if view.slot.role == "constant":
            constants += size
        else:
            others += size
    return constants, others


def view_bytes(view: Any) -> int:
    """Bytes of the distinct elements of a view: what it repeats is there once."""
    return prod(size for size, stride in zip(view.shape, view.strides) if stride) * view.dtype.bytes


def tables(step: Any) -> set[int]:
    """Positions, among what a kernel reads, of buffers that are read at indices found in other buffers."""
    from dlcompiler.ir.kernel import Load
    from dlcompiler.ir.program import Launch

    if not isinstance(step, Launch):
        return set()
    indirect = {value.buffer for value in step.kernel.values if isinstance(value, Load) and value.indirect}
    inputs = [buffer for buffer in step.kernel.buffers if buffer.role == "in"]
    return {position for position, buffer in enumerate(inputs) if buffer in indirect}


def floor_of(step: Any, flops: int, limits: Limits) -> float:
    """The least seconds of a step."""
    constants, others = bytes_of(step)
    return max(flops / limits.flops, constants / limits.constants + others / limits.intermediates)


def label_of(step: Any) -> str:
    """What a step is, in words that equal layers share: operations without their numbers, then sizes."""
    from dlcompiler.ir.program import Launch

    shapes = [step.writes[0].shape if step.writes and step.writes[0] is not None else ()]
    if isinstance(step, Launch):
        # a composite's parts are called after it: layer_norm_3.mul_1
        names = [re.sub(r"_\d+$", "", origin.split()[1].lstrip("%").split(".")[0]) for origin in step.origin if " %" in origin]
        distinct = list(dict.fromkeys(names))
        more = ["…"] if len(distinct) > MOST_NAMES else []
        words = "+".join(distinct[:MOST_NAMES] + more) or step.kernel.name
    else:
        words = getattr(step, "op", "") or step.target
        shapes = [*(view.shape for view in step.reads[:2]), *shapes]
    return f"{words} {' '.join('x'.join(map(str, shape)) for shape in shapes)}"


def groups_of(program: Any, times: Iterable[Any], limits: Limits) -> list[Group]:
    """Steps by label, the most expensive group first."""
    graph_nodes = {node.name: node for node in program.graph.nodes}
    found: dict[str, Group] = {}
    for time in times:
        step = program.steps[time.number]
        label = label_of(step)
        group = found.setdefault(label, Group(label, time.kind))
        flops = sum(contraction_flops(node) for node in nodes_of(step, graph_nodes))
        group.count += 1
        group.seconds += time.seconds
        group.flops += flops
        group.floor += floor_of(step, flops, limits)
    return sorted(found.values(), key=lambda group: -group.seconds)


def measured_limits(program: Any, threads: int) -> Limits:
    """The machine's limits for a program: how fast its constants and its arena can be read and copied."""
    import torch

    from tests.bench import machine_peak

    constants = sum(constant.nbytes for constant in program.constants)
    arena = program.placement.arena_bytes
    peak = machine_peak.multiply_add_peak(threads)
    limits = Limits(peak, machine_peak.read_bandwidth(threads, constants or 1), machine_peak.copy_bandwidth(threads, arena or 1))
    print(
        f"{threads} thread{'s' * (threads > 1)}: peak {peak / 1e9:.1f} GFLOP/s, {limits.constants / 1e9:.1f} GB/s for "
        f"{harness.mebibytes(constants)} MiB of constants, {limits.intermediates / 1e9:.1f} GB/s for an arena of "
        f"{harness.mebibytes(arena)} MiB."
    )
    print(machine_peak.busy_warning(threads, peak), end="\n\n")
    torch.set_num_threads(threads)
    return limits


def row(label: str, kind: str, groups: list[Group], whole: float) -> list[str]:
    """A line of the table for one or several groups."""
    seconds, floor = sum(g.seconds for g in groups), sum(g.floor for g in groups)
    flops = sum(g.flops for g in groups)
    return [
        label,
        kind,
        str(sum(g.count for g in groups)),
        f"{seconds * 1e3:.3f}",
        percent(seconds / whole),
        f"{floor * 1e3:.3f}",
        harness.ratio(seconds / floor if floor else math.nan),
        f"{flops / seconds / 1e9:.1f}" if flops else "",
    ]


def print_table(name: str, groups: list[Group], most: int) -> None:
    """The groups, the rest of them in one line, then sums by kind and all."""
    whole = sum(group.seconds for group in groups)
    rows = [row(group.label, group.kind, [group], whole) for group in groups[:most]]
    if rest := groups[most:]:
        rows.append(row(f"{len(rest)} other groups", "", rest, whole))
    for kind in dict.fromkeys(group.kind for group in groups):
        rows.append(row(f"all: {kind}", kind, [group for group in groups if group.kind == kind], whole))
    rows.append(row("all", "", groups, whole))
    print(harness.table([name, "kind", "steps", "ms", "share", "floor ms", "ms / floor", "GFLOP/s"], rows))


def measure(name: str, size: str, threads: int, rounds: int, most: int) -> dict[str, Any]:
    """Prints one model's table; returns what was measured."""
    import torch

    import dlcompiler
    from tests import zoo

    model = zoo.build(name, size)
    compiled = dlcompiler.compile(model.module, model.inputs)
    limits = measured_limits(compiled.program, threads)
    call = bursts({"call": lambda: compiled(*model.inputs)}, rounds, 0.1)["call"]
    groups = groups_of(compiled.program, compiled.profile(*model.inputs, rounds=rounds), limits)
    if torch.get_num_threads() != threads:
        raise SystemExit(f"{name}: timed with {torch.get_num_threads()} threads, not {threads}")
    print_table(name, groups, most)
    steps, floor = sum(group.seconds for group in groups), sum(group.floor for group in groups)
    print(
        f"\nA whole call takes {call * 1e3:.3f} ms, its steps one by one {steps * 1e3:.3f} ms; "
        f"the floor is {floor * 1e3:.3f} ms, {percent(floor / call)} of the call.\n",
        flush=True,
    )
    return {"call": call, "limits": asdict(limits), "groups": [asdict(group) for group in groups]}


def main() -> int:
    """Prints a table for each model."""
    from tests import zoo

    parser = harness.parser(__doc__.splitlines()[0], rounds=10)
    parser.add_argument("--model", default="bert-base,resnet50", help=f"comma-separated, of: {', '.join(zoo.NAMES)}")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--most", type=int, default=24, help="groups in a table (default 24)")
    parser.add_argument("--size", choices=("real", "tiny"), default="real", help="tiny checks the benchmark, not the compiler")
    arguments = parser.parse_args()
    import torch

    names = [full_name(name, zoo.NAMES) for name in arguments.model.split(",")]
    torch.set_num_threads(arguments.threads)
    harness.print_machine(arguments.threads)
    with torch.no_grad():
        found = {
            name: measure(name, arguments.size, arguments.threads, arguments.rounds, arguments.most)
            for name in harness.chosen(names, arguments.only)
        }
    harness.write_json(arguments.json, found)
    return 0


def full_name(word: str, names: tuple[str, ...]) -> str:
    """The model called so, or the only one, or the first, whose name begins so. Raises SystemExit for none."""
    found = [name for name in names if name == word] or [name for name in names if name.startswith(word)]
    if not found:
        raise SystemExit(f"no model {word!r} in the zoo; there are: {', '.join(names)}")
    return found[0]


if __name__ == "__main__":
    harness.keep_memory()
    sys.exit(main())
