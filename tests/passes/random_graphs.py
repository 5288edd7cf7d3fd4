"""Random graphs: views, pointwise ops, reductions, composites and contractions over a few values that are read several times."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, f16, f32, f64, i8, i32, i64
from hypothesis import strategies as st

SHAPES = ((2, 3), (3,), (), (1, 3), (2, 1), (4, 2, 3), (0, 3), (1,))
NUMBERS = {"float": (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0), "int": (0, 1, -1, 2, 3), "bool": (True, False)}
CALM_UNARY = ("neg", "abs", "tanh", "sigmoid", "sin", "relu", "gelu", "silu")
UNARY = {
    "float": (*CALM_UNARY, "exp", "sqrt", "rsqrt", "floor", "sign", "ceil", "round", "erf"),
    "int": ("neg", "abs", "sign", "relu", "bitwise_not"),
    "bool": ("bitwise_not",),
}
BINARY = {
    "float": ("add", "sub", "mul", "div", "maximum", "minimum", "pow"),
    "int": ("add", "sub", "mul", "maximum", "minimum", "floor_div", "remainder", "bitwise_and", "bitwise_or", "bitwise_xor"),
    "bool": ("bitwise_and", "bitwise_or", "bitwise_xor", "maximum", "eq", "ne"),
}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
REDUCTIONS = {
    "float": ("reduce_sum", "reduce_max", "mean"),
    "int": ("reduce_sum", "reduce_min"),
    "bool": ("reduce_any", "reduce_all"),
}


@st.composite
def graphs(draw: Callable, calm: bool = False, contractions: bool = True, most: int = 25) -> Graph:
    """A graph of up to `most` ops. `calm`: float64 and ops that do not magnify errors."""
    b = Builder("random")
    dtypes = (f64, i64) if calm else (f32, f32, f64, f16, bf16, i64, i32, i8, boolean)
    for k in range(draw(st.integers(1, 3))):
        b.input(f"x{k}", TensorType(draw(st.sampled_from(dtypes)), draw(st.sampled_from(SHAPES))))
    values = list(b.inputs)
    for _ in range(draw(st.integers(1, most))):
        kinds = [_pointwise, _pointwise, _pointwise, _view, _view, _reduction, _with_number, _with_number, _comparison]
        make = draw(st.sampled_from(kinds + [_normalization] + ([_contraction] if contractions else [])))
        try:
            node = make(draw, b, draw(st.sampled_from(values[-6:])), values, calm)
        except CompilerError:
            continue
        if node is not None and isinstance(node.tensor.numel, int) and node.tensor.numel <= 400:
            values.append(node)
    read = {i for n in b.nodes for i in n.inputs}
    unread = [v for v in values[len(b.inputs) :] if v not in read] or values[-1:]
    return b.finish([*unread, draw(st.sampled_from(values))])


def _pointwise(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node | None:
    kind = _kind(x.dtype)
    if draw(st.booleans()):
        return b(draw(st.sampled_from(CALM_UNARY if calm and kind == "float" else UNARY[kind])), x)
    others = [v for v in values if v.dtype is x.dtype]
    ops = ("add", "sub", "maximum") if calm and kind == "float" else BINARY[kind]
    operands = [x, draw(st.sampled_from(others))]
    return b(draw(st.sampled_from(ops)), *(operands if draw(st.booleans()) else operands[::-1]))


def _with_number(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node:
    kind = _kind(x.dtype)
    number = b.constant(draw(st.sampled_from(NUMBERS[kind])), x.dtype)
    if draw(st.booleans()) and x.shape and all(x.shape):
        number = b.expand(number, shape=x.shape[-1:])
    ops = ("add", "sub", "mul") if calm and kind == "float" else BINARY[kind]
    operands = [x, number]
    return b(draw(st.sampled_from(ops)), *(operands if draw(st.booleans()) else operands[::-1]))


def _comparison(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node | None:
    other = draw(st.sampled_from([v for v in values if v.dtype is x.dtype]))
    if calm and x.dtype.is_float:
        return None
    mask = b(draw(st.sampled_from(COMPARISONS)), x, other)
    return b.where(mask, x, other) if draw(st.booleans()) else mask


def _view(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node | None:
    shape, rank = x.shape, x.tensor.rank
    match draw(st.sampled_from(("reshape", "permute", "expand", "slice", "concat", "pad", "flip", "cast", "unreshape"))):
        case "reshape":
            size = math.prod(shape)
            return b.reshape(x, shape=_split(draw, size) if size else (0, 2))
        case "unreshape":
            return b.reshape(x, shape=tuple(d for d in shape if d != 1))
        case "permute":
            return b.permute(x, dims=tuple(draw(st.permutations(range(rank)))))
        case "expand":
            return b.expand(x, shape=(*([2] if draw(st.booleans()) else []), *(3 if d == 1 else d for d in shape)))
        case "slice":
            starts = tuple(draw(st.integers(0, d)) for d in shape)
            limits = tuple(draw(st.integers(s, d)) for s, d in zip(starts, shape))
            return b.slice(x, starts=starts, limits=limits, steps=tuple(draw(st.integers(1, 2)) for _ in shape))
        case "concat" if rank:
            fitting = [v for v in values if v.dtype is x.dtype and v.shape == shape]
            return b.concat(
                *draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3)), axis=draw(st.integers(0, rank - 1))
            )
        case "pad":
            amounts = [tuple(draw(st.integers(0, 1)) for _ in shape) for _ in range(2)]
            return b.pad(x, low=amounts[0], high=amounts[1], value=False if x.dtype is boolean else draw(st.integers(0, 1)))
        case "flip":
            return b.flip(x, axes=tuple(d for d in range(rank) if draw(st.booleans())))
        case "cast":
            targets = ("f64",) if calm and x.dtype.is_float else ("f32", "f16", "i64", "bool", "f64", "i8")
            target = draw(st.sampled_from(targets))
            # what a float out of an integer's range becomes is nobody's promise
            return None if x.dtype.is_float and target in ("i64", "i8") else b.cast(x, dtype=target)
    return None


def _split(draw, size: int) -> tuple[int, ...]:
    first = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    return (first, size // first) if draw(st.booleans()) else (size,)


def _reduction(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node:
    axes = tuple(d for d in range(x.tensor.rank) if draw(st.booleans()))
    return b(draw(st.sampled_from(REDUCTIONS[_kind(x.dtype)])), x, axes=axes, keepdims=draw(st.booleans()))


def _normalization(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node | None:
    if not x.dtype.is_float or not x.shape or not all(x.shape):
        return None
    if draw(st.booleans()):
        return b.softmax(x, axis=x.tensor.rank - 1)
    return b.layer_norm(x, rank=1, epsilon=0.5)


def _contraction(draw, b: Builder, x: Node, values: list[Node], calm: bool) -> Node | None:
    if x.dtype not in (f32, f64) or x.tensor.rank < 2:
        return None
    seed = draw(st.integers(0, 9))
    weight = np.random.default_rng(seed).integers(-2, 3, (x.shape[-1], 3)).astype(x.dtype.numpy)
    y = b.matmul(x, b.constant(weight))
    if draw(st.booleans()):
        y = b.add(y, b.constant(np.arange(3), x.dtype))
    return b.mul(y, b.constant([0.5, 2.0, 1.0], x.dtype)) if draw(st.booleans()) else y


def _kind(dtype: DType) -> str:
    return "int" if dtype.is_integer else "bool" if dtype is boolean else "float"
