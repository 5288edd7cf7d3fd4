"""AOTAutograd's joint graph, prepared for its partitioner.

    %logs = _log_softmax(%x); ... gather(%logs) ...; backward: exp(%logs)
    -->  %less = sub(%x, amax(%x)); %logs = sub(%less, log(sum(exp(%less)))); ...

The backward part of a loss reads the logarithms of a softmax, which are as large as the logits. Taken apart, they can be made
again from the logits, which the product in front has stored anyway, and two numbers for each row: so the partitioner keeps those,
and nobody stores the logarithms.

    %padded = constant_pad_nd(%x, ...); convolution(%padded); backward: convolution_backward(.., %padded, ..)
    -->  the backward part pads %x itself

A padded image is index arithmetic for whoever reads it. Saved, it is one more image to write beside the one that it is made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

_LOG_SOFTMAX = torch.ops.aten._log_softmax.default
_CAST = torch.ops.prims.convert_element_type.default
_PAD = torch.ops.aten.constant_pad_nd.default


def pad_again(joint: GraphModule) -> None:
    """Have the backward part of a joint graph pad images for itself, in place; what the user's checkpointing says goes first."""
    for node in joint.graph.nodes:
        if node.op == "call_function" and node.target is _PAD:
            node.meta.setdefault("recompute", CheckpointPolicy.PREFER_RECOMPUTE)


def take_log_softmax_apart(joint: GraphModule) -> None:
    """Write each `_log_softmax` of a joint graph with its parts, in place."""
    graph = joint.graph
    found = [node for node in graph.nodes if node.op == "call_function" and node.target is _LOG_SOFTMAX]
    for logs in found:
        if isinstance(logs.meta.get("val"), torch.Tensor) and logs.meta["val"].numel() != 0:
            logs.replace_all_uses_with(_parts(graph, logs))
            graph.erase_node(logs)
    if found:
        joint.recompile()


def _parts(graph: Graph, logs: Node) -> Node:
    """Computed as wide as eager does, and rounded as its result is."""
    x, axis = logs.args[:2]
    assert isinstance(x, Node)
    dtype, narrow = logs.meta["val"].dtype, x.meta["val"].dtype
    wide = torch.float32 if narrow in (torch.float16, torch.bfloat16) else narrow
    aten = torch.ops.aten

    def call(target: torch._ops.OpOverload, *arguments: Any) -> Node:
        node = graph.call_function(target, arguments)
        node.meta = {key: value for key, value in logs.meta.items() if key not in ("val", "tensor_meta")}
        node.meta["val"] = target(*(a.meta["val"] if isinstance(a, Node) else a for a in arguments))
        return node

    with graph.inserting_before(logs):
        x = x if wide is narrow else call(_CAST, x, wide)
        less = call(aten.sub.Tensor, x, call(aten.amax.default, x, [axis], True))
        total = call(aten.sum.dim_IntList, call(aten.exp.default, less), [axis], True)
        made = call(aten.sub.Tensor, less, call(aten.log.default, total))
        return made if dtype is wide else call(_CAST, made, dtype)
