"""Small graphs with something to choose in each."""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.types import DTYPES, TensorType
from dlcompiler.passes.strides import channels_last_strides


def _type(*shape: int, dtype: str = "f32") -> TensorType:
    return TensorType(DTYPES[dtype], shape)


def linear(rows: int, columns: int, inner: int, dtype: str = "f32") -> Graph:
    """tanh(linear(x, w, b)) of a module's own w and b."""
    b = Builder("linear")
    x = b.input("x", _type(rows, inner, dtype=dtype))
    w = b.input("w", _type(columns, inner, dtype=dtype), is_parameter=True)
    bias = b.input("b", _type(columns, dtype=dtype), is_parameter=True)
    return b.finish([b.tanh(b.linear(x, w, bias))])


def product() -> Graph:
    """A batch of products of two things that change in each call."""
    b = Builder("product")
    x, y = b.input("x", _type(3, 45, 33)), b.input("y", _type(3, 33, 70))
    return b.finish([b.matmul(x, y)])


def convolution(channels: int, out: int, groups: int = 1) -> Graph:
    """relu(convolution 3x3) of an image with channels innermost."""
    b = Builder("convolution")
    shape = (1, channels, 13, 11)
    x = b.input("x", _type(*shape), strides=channels_last_strides(shape))
    w = b.input("w", _type(out, channels // groups, 3, 3), is_parameter=True)
    settings = {
        "strides": (1, 1), "padding": (1, 1), "dilations": (1, 1), "transposed": False, "output_padding": (0, 0), "groups": groups
    }  # fmt: skip
    y = b.relu(b.convolution(x, w, **settings))
    return b.finish([y], output_strides=(channels_last_strides(y.shape),))


def attention() -> Graph:
    b = Builder("attention")
    q, k, v = (b.input(name, _type(1, 2, 20, 16)) for name in "qkv")
    return b.finish([b.attention(q, k, v, scale=0.25, causal=True)])


def normalized() -> Graph:
    """A row less its mean: a reduction, and what follows it."""
    b = Builder("normalized")
    x = b.input("x", _type(37, 301))
    return b.finish([b.sub(x, b.mul(b.reduce_sum(x, axes=(1,), keepdims=True), 1 / 301))])


def pointwise() -> Graph:
    b = Builder("pointwise")
    x, y = b.input("x", _type(70, 333)), b.input("y", _type(333))
    return b.finish([b.exp(b.neg(b.add(x, y)))])


GRAPHS: dict[str, Callable[[], Graph]] = {
    "linear": lambda: linear(45, 130, 70),
    "row": lambda: linear(1, 130, 70),
    "long sums": lambda: linear(19, 50, 1100),
    "f64": lambda: linear(21, 45, 37, "f64"),
    "product": product,
    "convolution": lambda: convolution(20, 70),
    "depthwise": lambda: convolution(48, 48, 48),
    "attention": attention,
    "normalized": normalized,
    "pointwise": pointwise,
}
