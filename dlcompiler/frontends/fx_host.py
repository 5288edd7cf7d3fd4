"""What a graph for a GPU computes of numbers on the CPU alone is taken out of it, to be computed there.

    step: 0-d, on the CPU; p: on the GPU
    %s = add(step, 1); copy_(step, %s); %c = sub(1, pow(0.9, %s)); ... div(p, %c) ...
    -->  host:    %s = add(step, 1); copy_(step, %s); %c = sub(1, pow(0.9, %s)); gives rows(%c, ...)
         device:  ... div(p, select(rows, 0)) ...

torch keeps the count of an optimizer's steps on the CPU. Computed on the device, a count would be copied there and back by each
call, which then waits for all that the device has to do. The numbers that the device reads go there together, without waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

ROW_BYTES = 16  # of each number, so that all of them lie alike

aten = torch.ops.aten


@dataclass(frozen=True)
class HostPart:
    """A graph in two.

    host, device                of its nodes; those of `device` that read numbers of the host read rows of its last arguments
    host_inputs, device_inputs  positions of the whole's inputs that each takes
    place                       the device
    rows                        how many results `host` gives for `device`, in front of its own: each [n, m], a number in [k, 0]
    results                     for each of the whole's results whether it is the host's, and which of the results of that part
    """

    host: GraphModule
    device: GraphModule
    host_inputs: tuple[int, ...]
    device_inputs: tuple[int, ...]
    place: torch.device
    rows: int
    results: tuple[tuple[bool, int], ...]


def take_host_part(module: GraphModule) -> HostPart | None:
    """The two parts of a graph, or None where all inputs are on one kind of device or nothing is computed on the CPU alone."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    devices = [n.meta["val"].device for n in placeholders if isinstance(n.meta.get("val"), torch.Tensor)]
    device = next((d for d in devices if d.type == "cuda"), None)
    on_host = _on_host(module)
    computed = [n for n in module.graph.nodes if n.op == "call_function"]
    if device is None or all(n in on_host for n in computed) or not any(n in on_host for n in computed):
        return None
    (output,) = (n for n in reversed(module.graph.nodes) if n.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else [output.args[0]]
    wanted = [n for n in on_host if any(u not in on_host and u is not output for u in n.users)]
    groups: dict[torch.dtype, list[Node]] = {}
    for node in wanted:
        groups.setdefault(node.meta["val"].dtype, []).append(node)
    of_host = [r for r in results if isinstance(r, Node) and r in on_host]
    host, host_inputs = _host_graph(module, placeholders, on_host, list(groups.values()), of_host)
    rest, device_inputs = _device_graph(module, placeholders, on_host, list(groups.values()), results, device)
    places, of_device = [], 0
    for result in results:
        is_host = isinstance(result, Node) and result in on_host
        places.append((is_host, len(groups) + of_host.index(result) if is_host else of_device))
        of_device += not is_host
    return HostPart(host, rest, host_inputs, device_inputs, device, len(groups), tuple(places))


def _on_host(module: GraphModule) -> dict[Node, None]:
    """Numbers on the CPU that come from such numbers alone, in order; none that are drawn, which have places among all draws."""
    found: dict[Node, None] = {}
    for node in module.graph.nodes:
        example = node.meta.get("val")
        is_number = isinstance(example, torch.Tensor) and example.device.type == "cpu" and example.dim() == 0
        is_drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if is_number and not is_drawn and all(n in found for n in node.all_input_nodes):
            found[node] = None
    return found


def _host_graph(
    module: GraphModule,
    placeholders: Sequence[Node],
    on_host: Mapping[Node, None],
    groups: Sequence[Sequence[Node]],
    results: Sequence[Node],
) -> tuple[GraphModule, tuple[int, ...]]:
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in on_host:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = dict(node.meta)
    rows = []
    for group in groups:
        stack = _call(graph, aten.stack.default, [copies[n] for n in group])
        width = ROW_BYTES // group[0].meta["val"].dtype.itemsize
        rows.append(_call(graph, aten.constant_pad_nd.default, _call(graph, aten.unsqueeze.default, stack, 1), [0, width - 1]))
    graph.output((*rows, *(copies[r] for r in results)))
    return GraphModule(module, graph), tuple(k for k, p in enumerate(placeholders) if p in on_host)


def _device_graph(
    module: GraphModule,
    placeholders: Sequence[Node],
    on_host: Mapping[Node, None],
    groups: Sequence[Sequence[Node]],
    results: Sequence[Any],
    device: torch.device,
) -> tuple[GraphModule, tuple[int, ...]]:
    graph = Graph()
    copies: dict[Node, Node] = {}
    # a number that the device writes to is its argument as before
    written = {n.args[0] for n in module.graph.nodes if n.target is aten.copy_.default and n not in on_host}
    own = [p for p in placeholders if p not in on_host or p in written]
    for node in own:
        copies[node] = graph.node_copy(node)
        copies[node].meta = dict(node.meta)
    given = []
    for number, group in enumerate(groups):
        example = group[0].meta["val"]
        given.append(graph.placeholder(f"host_numbers_{number}"))
        with _mode_of(placeholders):
            shape = len(group), ROW_BYTES // example.dtype.itemsize
            given[-1].meta["val"] = torch.empty(shape, dtype=example.dtype, device=device)
    for rows, group in zip(given, groups):
        for k, node in enumerate(group):
            if node not in copies:
                copies[node] = _call(graph, aten.select.int, _call(graph, aten.select.int, rows, 0, k), 0, 0)
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output") and node not in on_host:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
    left = [r for r in results if not (isinstance(r, Node) and r in on_host)]
    graph.output(tuple(copies[r] if isinstance(r, Node) else r for r in left))
    return GraphModule(module, graph), tuple(k for k, p in enumerate(placeholders) if p in own)


def _call(graph: Graph, operator: Any, *arguments: Any) -> Node:
    """A node, with an example of its result."""
    node = graph.call_function(operator, arguments)
    given = torch.fx.map_arg(arguments, lambda n: n.meta["val"])
    node.meta["val"] = operator(*given)
    return node


def _mode_of(nodes: Sequence[Node]) -> Any:
    """The mode in which examples are made."""
    from torch._guards import detect_fake_mode

    mode = detect_fake_mode([n.meta["val"] for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)])
    assert mode is not None, "a graph to compile has examples"
    return mode
