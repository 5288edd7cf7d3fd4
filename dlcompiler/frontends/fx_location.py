"""Where in the user's model an FX node came from: module path, source file and line."""

from __future__ import annotations

import os
import re

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_SUBSCRIPT = re.compile(r"\[['\"]?([^'\"\]]+)['\"]?\]")
_TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep


def location_of(node: torch.fx.Node) -> str | None:
    """`encoder.layer.0.attention: modeling_bert.py:243`, as much of it as is known."""
    parts = [_module_path(node), _source_line(node.meta.get("stack_trace") or node.stack_trace)]
    return ": ".join(p for p in parts if p) or None


def _module_path(node: torch.fx.Node) -> str | None:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    return _readable(str(list(stack.values())[-1][0])) or None


def _readable(path: str) -> str:
    """`L['self']._modules['layer'][0]._parameters['weight']` --> `layer.0.weight`."""
    path = _SUBSCRIPT.sub(r".\1", path.removeprefix("L")).replace("()", "")
    parts = [part for part in path.split(".") if part and part not in ("_modules", "_parameters", "_buffers")]
    # what Dynamo calls the compiled module itself
    return ".".join(parts[1:] if parts and parts[0] in ("self", "fn") else parts)


def input_names(captured: torch.fx.GraphModule) -> list[str]:
    """What the user calls each input of Dynamo's graph: an argument, a parameter's path."""
    names = []
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            name = getattr(getattr(node, "_dynamo_source", None), "name", None)
            name = name() if callable(name) else name
            names.append(_readable(name) if isinstance(name, str) else str(node.target))
    return names


def _source_line(trace: str | None) -> str | None:
    """The last line of the trace that is not torch's own."""
    if not trace:
        return None
    frames = _FRAME.findall(trace)
    own = [f for f in frames if not f[0].startswith(_TORCH_FOLDER)]
    if not (own or frames):
        return None
    file, line = (own or frames)[-1]
    return f"{os.path.basename(file)}:{line}"
