"""Library calls: one op each, run by ATen (oneDNN, MKL; cuBLAS, cuDNN) into planned memory.

A routine is prepared once for the sizes of a plan: it decides how to call the library, asks for the views it wants, and gives
back a function that takes the frame's list of tensors. What it decides was measured on f32 with one and two threads of an AVX-512
AMD processor: oneDNN beats MKL's gemm from about 16 M multiplications on (by 20 %, with packed weights 30 %), packed weights make
a convolution up to twice as fast as `aten.convolution`, and a copy of the result into planned memory costs 1 to 3 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.runtime import library_indexing
from dlcompiler.runtime.tensors import Shape
from torch import Tensor

Routine = Callable[[Sequence[Tensor]], object]

# Multiplications from which oneDNN's inner product, whose result is then copied, is quicker than MKL's gemm in place.
ONEDNN_LINEAR = 1 << 24
# How many times as large as its input and output together an unpacked weight may be before its rearrangement for channels last
# (which oneDNN does slowly, in each call) costs more than a copy of the input with channels first.
HEAVY_WEIGHT = 6
# At most so many bmm calls for batch dimensions that strides do not let join.
MOST_BATCHES = 64


@dataclass(frozen=True)
class Operand:
    """A view that a call reads or writes. `position` is its place in the frame's list of tensors.

    constant   the tensor itself if it never changes, for packing
    """

    position: int
    dtype: torch.dtype
    shape: Shape
    strides: Shape
    constant: Tensor | None = None


class Views(Protocol):
    def view(self, operand: Operand, shape: Shape, strides: Shape, offset: int = 0) -> Operand:
        """The same memory seen with other sizes; strides and offset in elements."""
        ...

    def packed(self, key: tuple, make: Callable[[], Tensor]) -> Tensor | None:
        """`make()`, made once for all plans of a program; None if packing is off."""
        ...


@dataclass(frozen=True)
class Call:
    """One library call with the sizes of a plan."""

    op: str
    reads: Sequence[Operand]
    writes: Sequence[Operand]
    attributes: Mapping[str, Any]
    views: Views = field(repr=False)
    device: torch.device = torch.device("cpu")

    def has_onednn(self, operator: str) -> bool:
        """Whether torch has the operator of oneDNN, and operands lie where it can be used."""
        return self.device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, operator)


def prepare(call: Call) -> Routine:
    """The function that runs `call`. Raises UnsupportedError for an op that no library claims."""
    routine = ROUTINES.get(call.op)
    if routine is None:
        raise UnsupportedError(f"no library routine for {call.op}", items=(call.op,))
    return routine(call)


# -- shapes ------------------------------------------------------------------------------------------------------------------


def join_dimensions(shape: Sequence[int], *all_strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The fewest dimensions over the same elements under each of several strides: neighbours joined where all allow it."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in all_strides]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(s[-1] == size * given[d] for s, given in zip(strides, all_strides)):
            sizes[-1] *= size
            for s, given in zip(strides, all_strides):
                s[-1] = given[d]
        else:
            sizes.append(size)
            for s, given in zip(strides, all_strides):
                s.append(given[d])
    return sizes, strides


def _broadcast_strides(operand: Operand, lead: Sequence[int]) -> list[int]:
    """Strides of the leading dimensions of an operand of a matrix product, broadcast to `lead`."""
    own_shape, own_strides = operand.shape[:-2], operand.strides[:-2]
    missing = len(lead) - len(own_shape)
    return [0] * missing + [0 if size == 1 else stride for size, stride in zip(own_shape, own_strides)]


# -- matmul, linear ------------------------------------------------------------------------------------------------------------


def _matmul(call: Call) -> Routine:
    (a, b), (out,) = call.reads, call.writes
    lead = out.shape[:-2]
    if 0 in (*out.shape, a.shape[-1]):
        return _general_matmul(a, b, out)
    rows = _rows_of_one_matrix(call, a, b, out)
    if rows is not None:
        return rows
    all_strides = [_broadcast_strides(x, lead) for x in (a, b, out)]
    sizes, strides = join_dimensions(lead, *all_strides)
    outer, inner = (sizes[:-1], sizes[-1:]) if sizes else ([], [])
    products: list[Routine] = []
    offsets = _offsets(outer, [s[: len(outer)] for s in strides])
    if len(offsets) > MOST_BATCHES:
        return _general_matmul(a, b, out)
    for at in offsets:
        x, y, z = (
            call.views.view(operand, (*inner, *operand.shape[-2:]), (*s[len(outer) :], *operand.strides[-2:]), offset).position
            for operand, s, offset in zip((a, b, out), strides, at)
        )
        products.append(_product(torch.bmm if inner else torch.mm, x, y, z))
    return products[0] if len(products) == 1 else _sequence(products)


def _rows_of_one_matrix(call: Call, a: Operand, b: Operand, out: Operand) -> Routine | None:
    """If `b` is one matrix for all and the rows of `a` and of `out` follow each other: a single product."""
    if len(b.shape) > 2 and any(size != 1 for size in b.shape[:-2]) or a.shape[:-1] != out.shape[:-1]:
        return None
    sizes, (a_rows, out_rows) = join_dimensions(out.shape[:-1], a.strides[:-1], out.strides[:-1])
    if len(sizes) > 1:
        return None
    rows = sizes[0] if sizes else 1
    a_step, out_step = (a_rows[0], out_rows[0]) if sizes else (a.shape[-1], out.shape[-1])
    x = call.views.view(a, (rows, a.shape[-1]), (a_step, a.strides[-1]))
    y = call.views.view(b, b.shape[-2:], b.strides[-2:])
    z = call.views.view(out, (rows, out.shape[-1]), (out_step, out.strides[-1]))
    return _product(torch.mm, x.position, y.position, z.position)


def _offsets(sizes: Sequence[int], all_strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Offset of every index of `sizes` under each of the strides."""
    offsets = [(0,) * len(all_strides)]
    for d, size in enumerate(sizes):
        offsets = [tuple(o + i * s[d] for o, s in zip(at, all_strides)) for at in offsets for i in range(size)]
    return offsets


def _product(function: Callable[..., Tensor], x: int, y: int, z: int) -> Routine:
    return lambda tensors: function(tensors[x], tensors[y], out=tensors[z])


def _sequence(routines: Sequence[Routine]) -> Routine:
    def run(tensors: Sequence[Tensor]) -> None:
        for routine in routines:
            routine(tensors)

    return run


def _general_matmul(a: Operand, b: Operand, out: Operand) -> Routine:
    return _product(torch.matmul, a.position, b.position, out.position)


def _linear(call: Call) -> Routine:
    x, weight, *bias = call.reads
    (out,) = call.writes
    columns, inner = weight.shape
    sizes, (x_rows, out_rows) = join_dimensions(out.shape[:-1], x.strides[:-1], out.strides[:-1])
    b = bias[0].position if bias else None
    if len(sizes) > 1 or 0 in (*out.shape, inner):
        i, w, o = x.position, weight.position, out.position
        return lambda tensors: torch.ops.aten.linear.out(
            tensors[i], tensors[w], None if b is None else tensors[b], out=tensors[o]
        )
    rows = sizes[0] if sizes else 1
    x_step, out_step = (x_rows[0], out_rows[0]) if sizes else (inner, columns)
    x2 = call.views.view(x, (rows, inner), (x_step, x.strides[-1])).position
    out2 = call.views.view(out, (rows, columns), (out_step, out.strides[-1])).position
    if rows > 1 and rows * columns * inner >= ONEDNN_LINEAR and x.dtype is torch.float32 and call.has_onednn("_linear_pointwise"):
        return _onednn_linear(call, x2, weight, _onednn_bias(bias), out2, rows)
    transposed = call.views.view(weight, (inner, columns), (weight.strides[1], weight.strides[0])).position
    if b is None:
        return _product(torch.mm, x2, transposed, out2)
    return lambda tensors: torch.addmm(tensors[b], tensors[x2], tensors[transposed], out=tensors[out2])


def _onednn_bias(bias: Sequence[Operand]) -> Callable[[Sequence[Tensor]], Tensor | None]:
    """How to get the bias, if there is one, for oneDNN, whose operators take no notice of its stride."""
    if not bias:
        return lambda tensors: None
    b = bias[0].position
    return (lambda tensors: tensors[b]) if bias[0].strides == (1,) else lambda tensors: tensors[b].contiguous()


def _onednn_linear(
    call: Call, x: int, weight: Operand, bias: Callable[[Sequence[Tensor]], Tensor | None], out: int, rows: int
) -> Routine:
    linear, w = torch.ops.mkldnn._linear_pointwise.default, weight.position
    packed = None
    if weight.constant is not None:
        key = ("linear", weight.constant.data_ptr(), weight.shape, weight.strides)
        packed = call.views.packed(key, lambda: torch.ops.mkldnn._reorder_linear_weight(weight.constant, rows))

    def run(tensors: Sequence[Tensor]) -> None:
        result = linear(tensors[x], tensors[w] if packed is None else packed, bias(tensors), "none", [], "")
        tensors[out].copy_(result)

    return run


# -- convolution -----------------------------------------------------------------------------------------------------------------


def _convolution(call: Call) -> Routine:
    x, weight, *bias = call.reads
    (out,) = call.writes
    attributes = {k: list(call.attributes[k]) for k in ("strides", "padding", "dilations", "output_padding")}
    plain = not call.attributes["transposed"] and x.dtype is torch.float32 and not {0} & {*x.shape, *weight.shape, *out.shape}
    if plain and call.has_onednn("_convolution_pointwise"):
        return _onednn_convolution(call, attributes)
    arguments = (
        attributes["strides"],
        attributes["padding"],
        attributes["dilations"],
        bool(call.attributes["transposed"]),
        attributes["output_padding"],
        call.attributes["groups"],
    )
    convolution = torch.ops.aten.convolution.default
    i, w, o = x.position, weight.position, out.position
    b = bias[0].position if bias else None
    # of integers ATen convolves with dilations, and transposed, only the widest; modulo their size all give the same
    whole = not (x.dtype.is_floating_point or x.dtype.is_complex)
    widened = whole and (call.attributes["transposed"] or max(attributes["dilations"]) > 1)

    def run(tensors: Sequence[Tensor]) -> None:
        given = [tensors[i], tensors[w], None if b is None else tensors[b]]
        if widened:
            given = [None if t is None else t.to(torch.int64) for t in given]
        tensors[o].copy_(convolution(*given, *arguments))

    return run


def _convolution_weight(call: Call) -> Routine:
    """The gradient of a convolution's weight, of which ATen wants to see no more than the sizes."""
    (x, dy), (out,) = call.reads, call.writes
    numbers = [list(call.attributes[k]) for k in ("strides", "padding", "dilations")]
    weight = torch.empty(out.shape, dtype=out.dtype, device=call.device)
    arguments = (None, *numbers, False, [0] * len(numbers[0]), call.attributes["groups"], [False, True, False])
    backward = torch.ops.aten.convolution_backward.default

    def run(tensors: Sequence[Tensor]) -> None:
        tensors[out.position].copy_(backward(tensors[dy.position], tensors[x.position], weight, *arguments)[1])

    return run


def _onednn_convolution(call: Call, attributes: dict[str, list[int]]) -> Routine:
    """oneDNN keeps the layout of its input: channels last stays channels last."""
    x, weight, *bias = call.reads
    (out,) = call.writes
    if len(x.shape) == 3:  # oneDNN's operator takes images: a line is an image of height 1
        x, weight, out = (
            call.views.view(operand, (*operand.shape[:2], 1, operand.shape[2]), (*operand.strides[:2], *_height_one(operand)))
            for operand in (x, weight, out)
        )
        attributes = {k: [1 if k in ("strides", "dilations") else 0, *v] for k, v in attributes.items()}
    strides, padding, dilations = attributes["strides"], attributes["padding"], attributes["dilations"]
    groups = call.attributes["groups"]
    packed = None
    # oneDNN describes no tensor with a size of more than 31 bits
    if weight.constant is not None and len(x.shape) == 4 and max(x.shape) < 1 << 31:
        key = ("convolution", weight.constant.data_ptr(), weight.shape, weight.strides, *padding, *strides, *dilations, groups)
        constant = weight.constant

        def pack() -> Tensor:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            return reorder(constant, padding, strides, dilations, groups, list(x.shape))

        packed = call.views.packed(key, pack)
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    i, w, o = x.position, weight.position, out.position
    bias_of = _onednn_bias(bias)
    activations = prod(x.shape) + prod(out.shape)
    channels_first = packed is None and groups == 1 and prod(weight.shape) > HEAVY_WEIGHT * activations

    def run(tensors: Sequence[Tensor]) -> None:
        result = convolution(
            tensors[i].contiguous() if channels_first else tensors[i],
            tensors[w] if packed is None else packed,
            bias_of(tensors),
            padding,
            strides,
            dilations,
            groups,
            "none",
            [],
            "",
        )
        tensors[o].copy_(result)

    return run


def _height_one(operand: Operand) -> tuple[int, int]:
    """Strides of [1, width]: those with which torch recognises the layout that the operand has."""
    width = operand.strides[2]
    return (operand.shape[2] * width, width)


# -- attention, recurrent layers -------------------------------------------------------------------------------------------------


def _attention(call: Call) -> Routine:
    q, k, v, *mask = call.reads
    (out,) = call.writes
    lead = out.shape[:-2]
    if len(lead) > 2:
        sizes, all_strides = join_dimensions(lead, *(_broadcast_strides(x, lead) for x in (q, k, v, out)))
    else:
        sizes, all_strides = list(lead), [_broadcast_strides(x, lead) for x in (q, k, v, out)]
    if len(sizes) > 2 or mask and len(lead) > 2:
        q4, k4, v4, out4 = (x.position for x in (q, k, v, out))
    else:  # torch's fused kernel takes exactly [batch, heads, length, width]
        ones = (1,) * (2 - len(sizes))
        q4, k4, v4, out4 = (
            call.views.view(x, (*ones, *sizes, *x.shape[-2:]), (*(0 for _ in ones), *strides, *x.strides[-2:])).position
            for x, strides in zip((q, k, v, out), all_strides)
        )
    m = _mask_view(call, mask[0], len(lead)) if mask else None
    scale, causal = float(call.attributes["scale"]), bool(call.attributes["causal"])
    attend = torch.nn.functional.scaled_dot_product_attention
    if m is None:

        def run(tensors: Sequence[Tensor]) -> None:
            tensors[out4].copy_(attend(tensors[q4], tensors[k4], tensors[v4], is_causal=causal, scale=scale))

        return run
    dtype = q.dtype
    corner = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=call.device).tril() if causal else None

    def run_masked(tensors: Sequence[Tensor]) -> None:
        seen = tensors[m]
        if corner is not None:
            seen = seen & corner if seen.dtype is torch.bool else seen.masked_fill(~corner, -torch.inf)
        elif seen.dtype not in (torch.bool, dtype):
            seen = seen.to(dtype)
        tensors[out4].copy_(attend(tensors[q4], tensors[k4], tensors[v4], attn_mask=seen, scale=scale))

    return run_masked


def _mask_view(call: Call, mask: Operand, lead: int) -> int:
    """The mask with as many dimensions as the other operands have: at least four, new ones of size 1."""
    missing = max(lead, 2) + 2 - len(mask.shape)
    return call.views.view(mask, (*(1,) * missing, *mask.shape), (*(0,) * missing, *mask.strides)).position


def _recurrent(call: Call) -> Routine:
    """`lstm`, `gru` and `rnn` by torch's functions of these names."""
    name, a = call.op, call.attributes
    function = getattr(torch, f"rnn_{a['activation']}" if name == "rnn" else name)
    states = 2 if name == "lstm" else 1
    x, *rest = (operand.position for operand in call.reads)
    initial, weights = rest[:states], rest[states:]
    outs = [operand.position for operand in call.writes]
    settings = (bool(a["has_biases"]), int(a["layers"]), 0.0, False, bool(a["bidirectional"]), bool(a["batch_first"]))

    def run(tensors: Sequence[Tensor]) -> None:
        given = [tensors[h] for h in initial]
        results = function(tensors[x], given if states > 1 else given[0], [tensors[w] for w in weights], *settings)
        for out, result in zip(outs, results):
            tensors[out].copy_(result)

    return run


# -- random_seed ---------------------------------------------------------------------------------------------------------------


def draw_seed(device: torch.device | str = "cpu") -> Tensor:
    """A number in [0, 2^63) as a 0-d tensor: one draw from torch's generator of the device."""
    return torch.empty((), dtype=torch.int64, device=device).random_()


def _random_seed(call: Call) -> Routine:
    """A draw in place, which a CUDA graph repeats with the generator as it then is."""
    (out,) = call.writes
    return lambda tensors: tensors[out.position].random_()


ROUTINES: dict[str, Callable[[Call], Routine]] = {
    "random_seed": _random_seed,
    "matmul": _matmul,
    "linear": _linear,
    "convolution": _convolution,
    "convolution_weight": _convolution_weight,
    "attention": _attention,
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn": _recurrent,
    **library_indexing.ROUTINES,
}
