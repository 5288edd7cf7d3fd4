"""Operators of `com.microsoft.nchwc`: images whose channels lie in blocks, as ONNX Runtime saves a fully optimised model.

    ReorderInput, Conv, MaxPool, ..., ReorderOutput  -->  Conv, MaxPool, ... of images as they are

A value of this domain is declared [N, C, H, W] and lies as [N, C / block, H, W, block], with channels of zeros behind the last;
here it is [N, C, H, W]. Only constant weights have the blocks in the file, and are put in order again. How many channels a block
has the file does not say: it is what suits the processor that saved it, and is read as ONNX Runtime reads it, for this one.
"""

from __future__ import annotations

import numpy as np

from dlcompiler.codegen.cpu import machine
from dlcompiler.frontends.onnx_ops_contrib_fused import WINDOWS, activated, channels_first, channels_last
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node

BLOCKED = "com.microsoft.nchwc"


def block_size() -> int:
    """Channels in a block on this processor: 16 with 512-bit vectors and on ARM, else 8."""
    return 8 if machine.host().name in ("x86-64-v2", "x86-64-v3") else 16


@operator("ReorderInput", domain=BLOCKED)
def reorder_input(call: Call) -> Node:
    x = call.require_rank(0, 4, 4)
    x = channels_first(call, x) if call.flag("channels_last") else x
    channels, block = x.shape[1], block_size()
    rounded = floor_div(channels + block - 1, block) * block
    return x if rounded == channels else call.b.pad(x, low=(0,) * 4, high=(0, rounded - channels, 0, 0), value=0.0)


@operator("ReorderOutput", domain=BLOCKED)
def reorder_output(call: Call) -> Node:
    x, channels = call.require_rank(0, 4, 4), call.attribute("channels")
    if isinstance(x.shape[1], int) and channels > x.shape[1]:
        call.misfit(f"{channels} of {x.shape[1]} channels")
    x = call.slice(x, 1, 0, channels)
    return channels_last(call, x) if call.flag("channels_last") else x


@operator("Conv", domain=BLOCKED)
def blocked_conv(call: Call) -> Node:
    """activation(conv(x, w, bias) + sum)"""
    x, weight = call.require_rank(0, 4, 4), call.array(1, "weights in blocks")
    groups, block = call.attribute("group", 1), block_size()
    if weight.ndim != 4 or weight.shape[0] % block or weight.shape[1] < 1:
        call.misfit(f"weights {list(weight.shape)} are not in blocks of {block} filters, as this processor's are")
    filters, channels = weight.shape[:2]
    # of an image that is not in blocks, and of one channel a group, only filters lie in blocks
    inner = block if channels >= block and channels % block == 0 else 1
    ordered = weight.reshape(filters // block, channels // inner, *weight.shape[2:], inner, block)
    ordered = np.ascontiguousarray(ordered.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)
    if groups == 1 and x.shape[1] != channels:
        call.misfit(f"weights {list(weight.shape)} do not fit {x.type}")
    given = call.chosen(*WINDOWS)
    result = call.apply("Conv", x, call.b.constant(ordered), call.get(2), given=given)
    return activated(call, result if call.get(3) is None else call.b.add(result, call[3]))


@operator("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", domain=BLOCKED)
def blocked_pool(call: Call) -> Node:
    return call.apply(call.op_type, call.require_rank(0, 4, 4), given=call.chosen(*WINDOWS))


@operator("Upsample", domain=BLOCKED)
def blocked_upsample(call: Call) -> Node:
    """An image whose height and width are whole multiples."""
    scales = call.attribute("scales") or (1, 1, 1, 1)
    given = call.chosen("mode", "coordinate_transformation_mode")
    if given.get("mode", "nearest") == "nearest":
        given = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return call.apply("Resize", call[0], None, call.b.constant(np.asarray(scales, np.float32)), given=given)
