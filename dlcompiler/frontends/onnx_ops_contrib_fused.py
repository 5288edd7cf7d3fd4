"""Operators of `com.microsoft` that are several of the default domain in one: an activation, a bias, another layout of an image.

They are what ONNX Runtime's own optimisers leave in the files that they save.
"""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT, fused_matmul
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node

# what an activation's parameters, given in this order, are called by the operator of its name
_PARAMETERS = {
    "Clip": (), "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "HardSwish": (), "LeakyRelu": ("alpha",), "Relu": (),
    "Selu": ("alpha", "gamma"), "Sigmoid": (), "Softplus": (), "Softsign": (), "Tanh": (), "ThresholdedRelu": ("alpha",),
}  # fmt: skip
# how windows of convolutions and pools lie
WINDOWS = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def activated(call: Call, x: Node, default: str = "") -> Node:
    """`x` after the activation that the attribute names, with its parameters as a list or as `activation_alpha` and so on."""
    name = call.attribute("activation", default)
    if not name:
        return x
    names = _PARAMETERS.get(name)
    if names is None:
        call.unsupported(f"activation {name!r}")
    listed = call.attribute("activation_params")
    if name == "Clip":
        low, high = listed or (None, None)
        return call.b.clamp(x, low=low, high=high)
    if listed is not None:
        if len(listed) != len(names):
            call.invalid(f"activation {name} takes {len(names)} parameters, not {len(listed)}")
        return call.apply(name, x, given=dict(zip(names, listed)))
    given = {n: call.attribute(f"activation_{n}") for n in names}
    return call.apply(name, x, given={n: value for n, value in given.items() if value is not None})


def channels_first(call: Call, x: Node) -> Node:
    """[N, ..., C] --> [N, C, ...]"""
    rank = x.tensor.rank
    return call.permute(x, (0, rank - 1, *range(1, rank - 1)))


def channels_last(call: Call, x: Node) -> Node:
    """[N, C, ...] --> [N, ..., C]"""
    rank = x.tensor.rank
    return call.permute(x, (0, *range(2, rank), 1))


def in_layout(call: Call, last: bool, x: Node, compute: Callable[[Node], Node]) -> Node:
    """`compute`, which takes and gives channels first, of an image whose channels are last if `last` says so."""
    return channels_last(call, compute(channels_first(call, x))) if last else compute(x)


# -- images ------------------------------------------------------------------------------------------------------------------


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(call: Call) -> Node:
    """activation(conv(x, w, bias) + z)"""
    result = call.apply("Conv", *_given(call, 3), given=call.chosen(*WINDOWS))
    return activated(call, result if call.get(3) is None else call.b.add(result, call[3]))


@operator("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(call: Call) -> Node:
    """The same with channels last, of the image and of the weight [filters, ..., channels]."""
    weight = channels_first(call, call.require_rank(1, 3))

    def convolved(x: Node) -> Node:
        return call.apply("Conv", x, weight, call.get(2), given=call.chosen(*WINDOWS))

    result = in_layout(call, True, call.require_rank(0, 3), convolved)
    return activated(call, result if call.get(3) is None else call.b.add(result, call[3]))


def _given(call: Call, count: int) -> list[Node | None]:
    return [call.get(k) for k in range(count)]


@operator("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(call: Call) -> Node:
    return in_layout(call, True, call.require_rank(0, 3), lambda x: call.apply("MaxPool", x, given=call.chosen(*WINDOWS)))


@operator("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def group_norm(call: Call) -> tuple[Node, ...]:
    """silu(group_norm(x + skip + bias)), and the sum. `skip` may hold one number for each channel of each image."""
    x, skip, bias = call.require_rank(0, 3), call.get(3), call.get(4)
    last, groups = call.flag("channels_last", 1), call.attribute("groups")
    channels = x.shape[-1 if last else 1]
    if isinstance(channels, int) and (channels == 0 or channels % groups):
        call.misfit(f"{groups} groups do not divide {channels} channels")
    rank = x.tensor.rank
    if skip is not None:
        if skip.tensor.rank == 2:
            ones = (1,) * (rank - 2)
            skip = call.reshape(skip, (skip.shape[0], *ones, channels) if last else (skip.shape[0], channels, *ones))
        x = call.b.add(x, skip)
    if bias is not None:
        x = call.b.add(x, call.along(bias, rank - 1 if last else 1, rank))
    affine = [call.cast(call[k], x.dtype) for k in (1, 2)]
    epsilon = call.attribute("epsilon", 1e-5)
    result = in_layout(call, last, x, lambda image: call.b.group_norm(image, *affine, groups=groups, epsilon=epsilon))
    return call.b.silu(result) if call.flag("activation") else result, x


# -- products ----------------------------------------------------------------------------------------------------------------


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(call: Call) -> Node:
    return activated(call, call.apply("Gemm", *_given(call, 3), given=call.chosen("alpha", "beta", "transA", "transB")))


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(call: Call) -> Node:
    product = call.apply("MatMul", call[0], call[1])
    return call.b.gelu(product if call.get(2) is None else call.b.add(product, call[2]), approximate="tanh")


@operator("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(call: Call) -> Node:
    """Softmax, or an activation, of a FusedMatMul."""
    product = fused_matmul(call)
    if call.attribute("activation") == "Softmax":
        return call.apply("Softmax", product, given={"axis": call.attribute("activation_axis", -1)})
    return activated(call, product)


# -- sums of biases ----------------------------------------------------------------------------------------------------------


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(call: Call) -> Node:
    """Softmax, over the dimensions from `axis` on, of the sum; the bias broadcasts by its ones, or by dimensions it lacks."""
    return call.apply("Softmax", call.b.add(call[0], call[1]), version=11, given={"axis": call.attribute("axis", 1)})


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(call: Call) -> Node:
    return call.b.add(call.b.add(call[0], call[1]), call[2])


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(call: Call) -> Node:
    """left * gelu(right) of the two halves of x + bias along the last dimension."""
    total = call.b.add(call.require_rank(0, 1), call[1])
    axis = total.tensor.rank - 1
    width = total.shape[axis]
    half = floor_div(width, 2)
    left, right = call.slice(total, axis, 0, half), call.slice(total, axis, half, width)
    return call.b.mul(left, call.b.gelu(right, approximate="none"))
