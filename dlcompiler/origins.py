"""From a step of a program back to the nodes of the graph that it computes."""

from __future__ import annotations

import re

from dlcompiler.ir.program import Launch, RoutineCall, Step

NODE_NAME = re.compile(r"%([A-Za-z0-9_.]+)")


def origin(step: Step) -> tuple[str, ...]:
    """A line for each node, `gelu %gelu_3 at model.py:12`."""
    return step.origin or (step.kernel.origin if isinstance(step, Launch) else ())


def origin_names(step: Step) -> list[str]:
    """Names of the graph nodes that a step computes."""
    return list(dict.fromkeys(name for line in origin(step) for name in NODE_NAME.findall(line.split(" at ")[0])))


def what_it_computes(step: Launch | RoutineCall) -> str:
    """A name out of the nodes that a kernel computes, `index_add_layer_norm`: parts of one composite count once.

    The parts of `%layer_norm_1` are `%layer_norm_1.mean` and so on, and itself the last. A node that is no part stands as its op,
    since a rewritten one keeps the name of what it replaces.
    """
    nodes = [line.split(" at ")[0].partition(" %")[::2] for line in origin(step)]
    composites = {name.partition(".")[0] for _, name in nodes if "." in name}
    found = []
    for op, name in nodes:
        whole = name.partition(".")[0]
        stem = re.sub(r"_\d+$", "", whole)
        found.append(stem if whole in composites and stem and not stem.isdigit() else op)
    return "_".join(list(dict.fromkeys(found))[:4]) or (step.kernel.name if isinstance(step, Launch) else step.op)
