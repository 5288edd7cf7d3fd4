"""From a step of a program back to the nodes of the graph that it computes."""

from __future__ import annotations

import re

from dlcompiler.ir.program import Launch, RoutineCall, Step

NODE_NAME = re.compile(r"%([A-Za-z0-9_.]+)")


def origin_names(step: Step) -> list[str]:
    """Names of the graph nodes that a step computes, out of its origin (`gelu %gelu_3 at model.py:12`)."""
    origin = step.origin or (step.kernel.origin if isinstance(step, Launch) else ())
    return list(dict.fromkeys(name for line in origin for name in NODE_NAME.findall(line.split(" at ")[0])))


def what_it_computes(step: Launch | RoutineCall) -> str:
    """A name out of the nodes that a kernel computes, `index_add_layer_norm`: parts of one composite count once.

    A node whose name is a number, as in Graph text, stands as its op.
    """
    stems = []
    for line in step.origin or (step.kernel.origin if isinstance(step, Launch) else ()):
        op, _, rest = line.split(" at ")[0].partition(" %")
        stem = re.sub(r"_\d+$", "", rest.split(".")[0])
        stems.append(op if not stem or stem.isdigit() else stem)
    return "_".join(list(dict.fromkeys(stems))[:4]) or (step.kernel.name if isinstance(step, Launch) else step.op)
