"""One record for each op: inputs that it takes, with shapes and dtypes that matter, and inputs that it must refuse.

`samples(name)` and `error_samples(name)` are what the tests of every level draw from: type rules, text, kernels, compiled code.
Shapes have odd sizes, size 1 and size 0; floats include NaN, infinities and -0.0 where the op is pointwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dlcompiler.ir.errors import CompilerError, DTypeError, ShapeError
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.ops.compaction import BLOCK
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import (
    FLOATS,
    INTEGERS,
    NARROW_TYPES,
    DType,
    TensorType,
    bf16,
    boolean,
    dtype_of,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
)  # fmt: skip

SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, 65504.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """Operands and attributes that the op takes. `exact`: every way to compute it gives the same bits."""

    op: str
    inputs: tuple[np.ndarray, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True

    def __str__(self) -> str:
        shapes = ",".join(f"{dtype_of(x)}{list(x.shape)}" for x in self.inputs)
        return f"{self.op}({shapes}){dict(self.attributes) or ''}".replace(" ", "")

    def graph(self) -> Graph:
        """A graph of this one node."""
        builder = Builder(self.op.replace(".", "_"))
        operands = [builder.input(f"x{k}", TensorType(dtype_of(x), x.shape)) for k, x in enumerate(self.inputs)]
        return builder.finish(tensors_of(builder, builder(self.op, *operands, **self.attributes)))


def tensors_of(builder: Builder, node: Node) -> list[Node]:
    """The node, or each tensor of a tuple."""
    if isinstance(node.type, TensorType):
        return [node]
    return [builder("tuple.get", node, index=k) for k in range(len(node.type.elements))]


@dataclass(frozen=True, eq=False)
class ErrorSample:
    """Operand types and attributes that the op's type rule must refuse with this class of error."""

    op: str
    types: tuple[TensorType, ...]
    attributes: Mapping[str, Any]
    error: type[CompilerError]

    def __str__(self) -> str:
        return f"{self.op}({','.join(map(str, self.types))}){dict(self.attributes) or ''}".replace(" ", "")


@dataclass(frozen=True, eq=False)
class Record:
    samples: Callable[[], Iterator[Sample]]
    errors: tuple[ErrorSample, ...]


RECORDS: dict[str, Record] = {}
# ops that no sample can hold: sources that only a graph has, ops run by ATen or the host, control flow (tests/ir/test_control.py)
WITHOUT_RECORD = frozenset(
    {"input", "size", "aten.call", "tuple.get", "host.call", "if", "loop", "sizes", "check", "random_seed"}
)


def samples(name: str) -> list[Sample]:
    """The samples of one op; the same arrays each time."""
    return list(RECORDS[name].samples())


def error_samples(name: str) -> tuple[ErrorSample, ...]:
    return RECORDS[name].errors


# -- arrays ------------------------------------------------------------------------------------------------------------------


def array(dtype: DType, *shape: int, seed: int = 0, low: float = -4, high: float = 4, special: bool = False) -> np.ndarray:
    """Random elements in [low, high]; `special` puts NaN, infinities, zeros of both signs and the like among floats."""
    random = np.random.default_rng((seed, *shape, dtype.bits))
    if dtype is boolean:
        return np.asarray(random.random(shape) < 0.5)
    if dtype.is_integer:
        low = max(low, 0) if not dtype.is_signed else low
        values = np.asarray(random.integers(int(low), int(high) + 1, shape, dtype=np.int64))
        if special and values.size:
            info = np.iinfo(dtype.numpy)
            edge = np.array([info.min, info.max, 0, 1], dtype=dtype.numpy)
            result = values.astype(dtype.numpy).reshape(-1)
            result[: len(edge)] = edge[: result.size]
            return result.reshape(shape)
        return values.astype(dtype.numpy)
    values = np.asarray(random.uniform(low, high, shape))
    if special and values.size:
        flat = values.reshape(-1)
        flat[:: max(flat.size // len(SPECIAL), 1)][: len(SPECIAL)] = SPECIAL[: len(flat[:: max(flat.size // len(SPECIAL), 1)])]
    with np.errstate(all="ignore"):
        return values.astype(dtype.numpy)


def T(dtype: DType, *shape: int) -> TensorType:
    return TensorType(dtype, shape)


def record(name: str, *errors: tuple[tuple[TensorType, ...], dict[str, Any], type[CompilerError]]):
    """Register the generator below as the samples of op `name`, with what it must refuse."""

    def apply(samples: Callable[[], Iterator[Sample]]) -> Callable[[], Iterator[Sample]]:
        assert name not in RECORDS, name
        RECORDS[name] = Record(samples, tuple(ErrorSample(name, *e) for e in errors))
        return samples

    return apply


# -- pointwise ---------------------------------------------------------------------------------------------------------------


def _dtypes(takes: str) -> tuple[DType, ...]:
    integers = (i64, i32, i8, u8)
    numbers = (*FLOATS, *integers)
    return {"float": FLOATS, "integer": (*integers, boolean), "number": numbers, "any": (*numbers, boolean), "i64": (i64,)}[takes]


BROADCASTS = (
    ((7, 3), (7, 3), (7, 3)),
    ((5, 1, 3), (4, 1), (3,)),
    ((), (2, 3), (1,)),
    ((0, 3), (1, 3), (3,)),
    ((), (), ()),
)


def _pointwise_samples(name: str) -> Callable[[], Iterator[Sample]]:
    scalar = SCALARS[name]

    def generate() -> Iterator[Sample]:
        for dtype in _dtypes(scalar.takes):
            shapes_of = BROADCASTS if scalar.arity > 1 else (((4, 9),), ((0, 3),), ((),), ((1, 1),))
            for shapes in shapes_of:
                dtypes = [dtype] * scalar.arity
                if name == "where":
                    dtypes[0] = boolean
                operands = [array(d, *shape, seed=k, special=True) for k, (d, shape) in enumerate(zip(dtypes, shapes))]
                yield Sample(name, tuple(operands))

    return generate


def _pointwise_errors(name: str):
    scalar = SCALARS[name]
    good = {"float": f32, "integer": i32, "number": f32, "any": f32, "i64": i64}[scalar.takes]
    first = boolean if name == "where" else good
    types = [T(first, 3), *(T(good, 3) for _ in range(scalar.arity - 1))]
    yield (*types, T(good, 3)), {}, ShapeError  # one operand too many
    if scalar.arity > 1:
        yield (*types[:-1], T(good, 4)), {}, ShapeError
        yield (*types[:-1], T(f64 if good is f32 else i16, 3)), {}, DTypeError
    bad = {"float": i32, "integer": f32, "number": boolean, "i64": i32}.get(scalar.takes)
    if bad is not None:
        yield tuple(T(bad, 3) for _ in range(scalar.arity)), {}, DTypeError
    if name == "where":
        yield (T(f32, 3), T(f32, 3), T(f32, 3)), {}, DTypeError


for _name in SCALARS:
    record(_name, *_pointwise_errors(_name))(_pointwise_samples(_name))


@record("cast", ((T(f32, 3),), {"dtype": "f31"}, DTypeError))
def _():
    for source, target in itertools.product((*FLOATS, i64, i32, i8, u8, boolean), repeat=2):
        # a float outside an integer's range is converted as the machine likes
        plain = source.is_float and not target.is_float
        low, high = (0, 100) if plain and not target.is_signed else (-100, 100)
        yield Sample("cast", (array(source, 3, 5, low=low, high=high, special=not plain),), {"dtype": target.name})


@record("bitcast", ((T(f32, 3),), {"dtype": "i64"}, DTypeError), ((T(f32, 3),), {"dtype": "f31"}, DTypeError))
def _():
    for source, target in ((f32, u32), (u32, f32), (f64, i64), (f16, i16), (bf16, u16), (i8, u8), (boolean, u8), (i64, f64)):
        yield Sample("bitcast", (array(source, 3, 5, special=not target.is_float),), {"dtype": target.name})
    for narrow in NARROW_TYPES:
        yield Sample("bitcast", (array(u8, 3, 5, low=0, high=3),), {"dtype": narrow.name})


@record("copy")
def _():
    for dtype in (f32, bf16, i64, boolean):
        yield Sample("copy", (array(dtype, 3, 5, special=True),))


# -- composites --------------------------------------------------------------------------------------------------------------


def _activation(name: str, *attributes: dict[str, Any], dtypes: tuple[DType, ...] = FLOATS, errors: tuple = ()):
    def generate() -> Iterator[Sample]:
        for dtype in dtypes:
            for each in attributes or ({},):
                for shape in ((5, 7), (0, 2), ()):
                    yield Sample(name, (array(dtype, *shape, special=True),), each)

    refused = () if set(dtypes) - set(FLOATS) else (((T(i32, 3),), (attributes or ({},))[0], DTypeError),)
    record(name, *refused, *errors)(generate)


_activation("relu", dtypes=(*FLOATS, i32, i8, u8))
_activation("clamp", {"low": -1, "high": 2}, {"low": None, "high": 1}, {"low": 0}, dtypes=(*FLOATS, i32, i8))
_activation("gelu", {}, {"approximate": "none"}, {"approximate": "tanh"})
_activation("silu")
_activation("hardsigmoid")
_activation("hardswish")
_activation("leaky_relu", {"slope": 0.1})
_activation("elu", {}, {"alpha": 1.7, "scale": 1.05, "input_scale": 0.5})
_activation("softplus", {}, {"beta": 2.0, "threshold": 3.0})
_activation("mish")
_activation("reciprocal")


def _statistic(name: str, *attributes: dict[str, Any]):
    @record(
        name,
        ((T(f32, 3, 4),), {"axes": (2,)} | attributes[0], ShapeError),
        ((T(f32, 3, 4),), {"axes": (-1,)} | attributes[0], ShapeError),
        ((T(i32, 3, 4),), {"axes": (0,)} | attributes[0], DTypeError),
    )
    def _():
        for dtype in FLOATS:
            for each in attributes:
                for axes, keepdims in (((1,), False), ((0, 2), True), ((0, 1, 2), False)):
                    yield Sample(name, (array(dtype, 3, 5, 4),), {"axes": axes, "keepdims": keepdims, **each}, exact=False)
        yield Sample(name, (array(f32, 3, 0),), {"axes": (0,), **attributes[0]}, exact=False)
        yield Sample(name, (array(f32, 1, 4),), {"axes": (0,), **attributes[0]}, exact=False)
        yield Sample(name, (array(f64, 13),), {"axes": (0,), "keepdims": False, **attributes[0]}, exact=False)


_statistic("mean", {})
_statistic("variance", {}, {"correction": 1})
_statistic("logsumexp", {})


def _along_axis(name: str):
    @record(name, ((T(f32, 3, 4),), {"axis": 2}, ShapeError), ((T(i64, 3, 4),), {"axis": 1}, DTypeError))
    def _():
        for dtype in FLOATS:
            for axis in (0, 1, -1):
                yield Sample(name, (array(dtype, 3, 7, 5),), {"axis": axis}, exact=False)
        yield Sample(name, (np.array([[0, -np.inf, 1], [-np.inf] * 3, [np.nan, 1, 2]], np.float32),), {"axis": 1}, exact=False)
        for shape in ((3, 0), (0, 3), (3, 1), ()):
            yield Sample(name, (array(f32, *shape),), {"axis": -1}, exact=False)


_along_axis("softmax")
_along_axis("log_softmax")


def _normalization(name: str, parameters: int):
    @record(
        name,
        ((T(f32, 3, 4),), {"rank": 3, "epsilon": 1e-5}, ShapeError),
        ((T(f32, 3, 4), T(f32, 3)), {"rank": 1, "epsilon": 1e-5}, ShapeError),
        ((T(i32, 3, 4),), {"rank": 1, "epsilon": 1e-5}, DTypeError),
    )
    def _():
        for dtype in FLOATS:
            for count in range(parameters + 1):
                for rank in (1, 2):
                    shape = (3, 5, 4)[3 - rank :]
                    affine = [array(dtype, *shape, seed=k) for k in range(count)]
                    attributes = {"rank": rank, "epsilon": 1e-5}
                    yield Sample(name, (array(dtype, 3, 5, 4), *affine), attributes, exact=False)
        yield Sample(name, (array(f32, 0, 4),), {"rank": 1, "epsilon": 1e-5}, exact=False)
        yield Sample(name, (array(f32, 3, 1),), {"rank": 1, "epsilon": 1e-5}, exact=False)


_normalization("layer_norm", 2)
_normalization("rms_norm", 1)


@record(
    "group_norm",
    ((T(f32, 2, 6, 3),), {"groups": 4, "epsilon": 1e-5}, ShapeError),
    ((T(f32, 2, 6, 3), T(f32, 5)), {"groups": 3, "epsilon": 1e-5}, ShapeError),
)
def _():
    for dtype in (f32, f16, bf16):
        for groups in (1, 2, 6):
            for count in (0, 2):
                affine = [array(dtype, 6, seed=k) for k in range(count)]
                yield Sample("group_norm", (array(dtype, 2, 6, 3, 5), *affine), {"groups": groups, "epsilon": 1e-5}, exact=False)


@record(
    "batch_norm",
    ((T(f32, 2, 6, 3), T(f32, 5), T(f32, 6), T(f32, 6), T(f32, 6)), {"epsilon": 1e-5}, ShapeError),
    ((T(f32, 2, 6, 3), T(f32, 6)), {"epsilon": 1e-5}, ShapeError),
)
def _():
    for dtype in (f32, f64, bf16):
        for shape in ((2, 3, 4, 5), (4, 3), (0, 3, 2)):
            statistics = [array(dtype, 3, seed=k) for k in range(3)]
            variance = array(dtype, 3, low=0.1, high=3)
            yield Sample("batch_norm", (array(dtype, *shape), *statistics, variance), {"epsilon": 1e-5}, exact=False)


def _pool_attributes() -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    plain = {"kernel": (3,), "strides": (1,), "padding": (0,), "dilations": (1,)}
    yield (2, 3, 7), plain
    yield (2, 3, 7), plain | {"strides": (2,), "padding": (1,)}
    square = {"kernel": (3, 2), "strides": (2, 1), "padding": (1, 1), "dilations": (1, 1)}
    yield (2, 3, 7, 6), square
    yield (2, 3, 7, 6), square | {"ceil_extra": (1, 0)}
    yield (1, 1, 4, 5), square | {"padding_high": (0, 2)}
    yield (0, 1, 4, 5), square
    yield (1, 2, 5, 5), {"kernel": (1, 1), "strides": (1, 1), "padding": (0, 0), "dilations": (1, 1)}
    yield (1, 1, 4, 4, 4), {"kernel": (2, 2, 2), "strides": (2, 2, 2), "padding": (0, 0, 1), "dilations": (1, 1, 1)}


_BAD_POOL = ((T(f32, 1, 1, 2),), {"kernel": (4,), "strides": (1,), "padding": (0,), "dilations": (1,)}, ShapeError)


@record("max_pool", _BAD_POOL)
def _():
    for shape, attributes in _pool_attributes():
        for dtype in (f32, bf16, i32):
            yield Sample("max_pool", (array(dtype, *shape),), attributes)
        yield Sample("max_pool", (array(f32, *shape, special=True),), attributes)
    dilated = {"kernel": (2,), "strides": (1,), "padding": (1,), "dilations": (3,)}
    yield Sample("max_pool", (array(f64, 2, 1, 7),), dilated)


@record("average_pool", (_BAD_POOL[0], _BAD_POOL[1] | {"count_padding": True}, ShapeError))
def _():
    for shape, attributes in _pool_attributes():
        for counting in ({"count_padding": True}, {"count_padding": False}, {"count_padding": True, "divisor": 3}):
            for dtype in (f32, f16):
                yield Sample("average_pool", (array(dtype, *shape),), attributes | counting, exact=False)


# -- contractions ------------------------------------------------------------------------------------------------------------


@record(
    "matmul",
    ((T(f32, 3, 4), T(f32, 3, 4)), {}, ShapeError),
    ((T(f32, 4), T(f32, 4, 2)), {}, ShapeError),
    ((T(f32, 2, 3, 4), T(f32, 3, 4, 2)), {}, ShapeError),
    ((T(f32, 3, 4), T(f16, 4, 2)), {}, DTypeError),
    ((T(boolean, 3, 4), T(boolean, 4, 2)), {}, DTypeError),
)
def _():
    for dtype in (*FLOATS, i64, i32, u8):
        yield Sample("matmul", (array(dtype, 5, 7), array(dtype, 7, 3, seed=1)), exact=False)
    for a, b in (
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 1)),
        ((3, 0), (0, 2)),
        ((0, 3), (3, 2)),
        ((1, 1),) * 2,
    ):
        yield Sample("matmul", (array(f32, *a), array(f32, *b, seed=1)), exact=False)


@record(
    "linear",
    ((T(f32, 3, 4), T(f32, 4, 5)), {}, ShapeError),
    ((T(f32, 3, 4), T(f32, 5, 4), T(f32, 4)), {}, ShapeError),
    ((T(f32), T(f32, 5, 4)), {}, ShapeError),
    ((T(f32, 3, 4), T(f64, 5, 4)), {}, DTypeError),
    ((T(boolean, 3, 4), T(boolean, 5, 4)), {}, DTypeError),
)
def _():
    for dtype in (*FLOATS, i32):
        for shape in ((3, 4), (4,), (2, 3, 4), (0, 4)):
            weight, bias = array(dtype, 5, 4, seed=1), array(dtype, 5, seed=2)
            yield Sample("linear", (array(dtype, *shape), weight), exact=False)
            yield Sample("linear", (array(dtype, *shape), weight, bias), exact=False)
    yield Sample("linear", (array(f32, 3, 0), array(f32, 5, 0), array(f32, 5)), exact=False)


def _convolution(spatial: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "strides": (1,) * spatial, "padding": (0,) * spatial, "dilations": (1,) * spatial, "output_padding": (0,) * spatial,
        "groups": 1, "transposed": False,
    }  # fmt: skip
    return plain | changes


@record(
    "convolution",
    ((T(f32, 1, 3, 5), T(f32, 4, 2, 3)), _convolution(1), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 4, 3, 7)), _convolution(1), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 4, 3, 3), T(f32, 3)), _convolution(1), ShapeError),
    ((T(f32, 1, 4, 5), T(f32, 3, 2, 3)), _convolution(1, groups=2), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 4, 3, 3)), _convolution(2), ShapeError),
    ((T(f32, 1, 3, 5), T(f16, 4, 3, 3)), _convolution(1), DTypeError),
    ((T(boolean, 1, 3, 5), T(boolean, 4, 3, 3)), _convolution(1), DTypeError),
)
def _():
    for dtype in (f32, f64, bf16, i32):
        yield Sample("convolution", (array(dtype, 2, 3, 7), array(dtype, 4, 3, 3), array(dtype, 4)), _convolution(1), exact=False)
    cases = (
        ((2, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "padding": (1, 0), "strides": (2, 1)}),
        ((1, 3, 9, 8), (2, 3, 3, 3), {"dilations": (2, 3), "padding": (2, 3)}),
        ((2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "padding": (1, 1)}),
        ((0, 3, 5, 5), (2, 3, 3, 3), {}),
        ((1, 0, 5, 5), (2, 0, 3, 3), {}),
        ((1, 2, 4, 4), (3, 2, 1, 1), {"strides": (3, 2)}),
        (
            (2, 4, 3, 4),
            (4, 3, 3, 2),
            {"transposed": True, "groups": 2, "strides": (2, 1), "padding": (1, 0), "output_padding": (1, 0)},
        ),
        ((1, 3, 4, 4), (3, 2, 4, 4), {"transposed": True, "strides": (2, 2), "padding": (1, 1)}),
        ((1, 2, 3, 3), (2, 2, 2, 2), {"transposed": True, "dilations": (2, 3)}),
    )
    for x, weight, changes in cases:
        yield Sample("convolution", (array(f32, *x), array(f32, *weight, seed=1)), _convolution(2, **changes), exact=False)
    yield Sample("convolution", (array(f32, 1, 2, 3, 4, 4), array(f32, 3, 2, 2, 2, 2)), _convolution(3), exact=False)


def _weight_gradient(taps: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    plain = _convolution(len(taps), **changes)
    return {"taps": taps, **{name: plain[name] for name in ("strides", "padding", "dilations", "groups")}}


@record(
    "convolution_weight",
    ((T(f32, 1, 3, 5), T(f32, 1, 4, 4)), _weight_gradient((3,)), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 2, 4, 3)), _weight_gradient((3,)), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 1, 4, 3)), _weight_gradient((3,), groups=3), ShapeError),
    ((T(f32, 1, 3, 5), T(f32, 1, 4, 3, 3)), _weight_gradient((3,)), ShapeError),
    ((T(f32, 1, 3, 5), T(f64, 1, 4, 3)), _weight_gradient((3,)), DTypeError),
    ((T(i32, 1, 3, 5), T(i32, 1, 4, 3)), _weight_gradient((3,)), DTypeError),
)
def _():
    for dtype in (f32, f64, bf16):
        yield Sample("convolution_weight", (array(dtype, 2, 3, 7), array(dtype, 2, 4, 5)), _weight_gradient((3,)), exact=False)
    cases = (
        ((2, 4, 7, 6), (2, 6, 4, 5), (3, 2), {"groups": 2, "padding": (1, 0), "strides": (2, 1)}),
        ((1, 3, 9, 8), (1, 2, 9, 8), (3, 3), {"dilations": (2, 3), "padding": (2, 3)}),
        ((2, 4, 5, 5), (2, 4, 5, 5), (3, 3), {"groups": 4, "padding": (1, 1)}),
        ((1, 2, 5, 4), (1, 3, 2, 2), (1, 1), {"strides": (3, 2)}),
        ((0, 3, 5, 5), (0, 2, 3, 3), (3, 3), {}),
    )
    for x, dy, taps, changes in cases:
        operands = array(f32, *x), array(f32, *dy, seed=1)
        yield Sample("convolution_weight", operands, _weight_gradient(taps, **changes), exact=False)


_ATTENTION = {"scale": 0.5, "causal": False}


@record(
    "attention",
    ((T(f32, 2, 3, 4), T(f32, 2, 5, 3), T(f32, 2, 5, 6)), _ATTENTION, ShapeError),
    ((T(f32, 2, 3, 4), T(f32, 2, 5, 4), T(f32, 2, 4, 6)), _ATTENTION, ShapeError),
    ((T(f32, 2, 3, 4), T(f32, 2, 5, 4), T(f32, 2, 5, 6), T(boolean, 4, 5)), _ATTENTION, ShapeError),
    ((T(f32, 2, 3, 4), T(f16, 2, 5, 4), T(f32, 2, 5, 6)), _ATTENTION, DTypeError),
    ((T(i32, 2, 3, 4), T(i32, 2, 5, 4), T(i32, 2, 5, 6)), _ATTENTION, DTypeError),
    ((T(f32, 3, 4), T(f32, 5, 4), T(f32, 5, 6), T(i32, 3, 5)), _ATTENTION, ShapeError),
)
def _():
    for dtype in (f32, f64, f16, bf16):
        qkv = array(dtype, 2, 3, 5, 4), array(dtype, 2, 3, 7, 4, seed=1), array(dtype, 2, 3, 7, 6, seed=2)
        yield Sample("attention", qkv, _ATTENTION, exact=False)
        yield Sample("attention", qkv, {"scale": 0.3, "causal": True}, exact=False)
    qkv = array(f32, 2, 5, 4), array(f32, 2, 7, 4, seed=1), array(f32, 2, 7, 6, seed=2)
    yield Sample("attention", (*qkv, array(f32, 5, 7)), _ATTENTION, exact=False)
    yield Sample("attention", (*qkv, array(boolean, 2, 1, 7)), _ATTENTION, exact=False)
    # a row that sees nothing
    yield Sample("attention", (*qkv, np.arange(35).reshape(5, 7) >= 7), _ATTENTION, exact=False)
    yield Sample("attention", (array(f32, 1, 3, 2), array(f32, 1, 0, 2), array(f32, 1, 0, 4)), _ATTENTION, exact=False)


@record(
    "attention_with_logsumexp",
    ((T(f32, 2, 3, 4), T(f32, 2, 5, 3), T(f32, 2, 5, 6)), _ATTENTION, ShapeError),
    ((T(i32, 2, 3, 4), T(i32, 2, 5, 4), T(i32, 2, 5, 6)), _ATTENTION, DTypeError),
)
def _():
    for dtype in (f32, f64, f16, bf16):
        qkv = array(dtype, 2, 3, 5, 4), array(dtype, 2, 3, 7, 4, seed=1), array(dtype, 2, 3, 7, 6, seed=2)
        yield Sample("attention_with_logsumexp", qkv, _ATTENTION, exact=False)
        yield Sample("attention_with_logsumexp", qkv, {"scale": 0.3, "causal": True}, exact=False)
    qkv = array(f32, 2, 5, 4), array(f32, 2, 7, 4, seed=1), array(f32, 2, 7, 6, seed=2)
    yield Sample("attention_with_logsumexp", (*qkv, np.arange(35).reshape(5, 7) >= 7), _ATTENTION, exact=False)


@record(
    "linear_logsumexp",
    ((T(f32, 3, 4), T(f32, 5, 3)), {"parts": 1}, ShapeError),
    ((T(f32, 3, 4), T(f32, 5, 4)), {"parts": 4}, ShapeError),
    ((T(f32, 2, 3, 4), T(f32, 5, 4)), {"parts": 1}, ShapeError),
    ((T(f32, 3, 4), T(f16, 5, 4)), {"parts": 1}, DTypeError),
)
def _():
    for dtype in (f32, f64, f16, bf16):
        operands = array(dtype, 3, 4), array(dtype, 7, 4, seed=1), array(dtype, 7, seed=2)
        yield Sample("linear_logsumexp", operands, {"parts": 3}, exact=False)
        yield Sample("linear_logsumexp", operands[:2], {"parts": 1}, exact=False)


_ROWS = T(f32, 2, 3)
_QKV = T(f32, 2, 3, 4), T(f32, 2, 5, 4), T(f32, 2, 5, 6)


@record(
    "attention_backward",
    ((T(f32, 2, 3, 5), *_QKV, _ROWS, _ROWS), _ATTENTION, ShapeError),
    ((T(f32, 2, 3, 6), *_QKV, _ROWS, T(f32, 2, 4)), _ATTENTION, ShapeError),
    ((T(f32, 2, 3, 6), T(f32, 2, 3, 4), T(f32, 1, 5, 4), T(f32, 1, 5, 6), _ROWS, _ROWS), _ATTENTION, ShapeError),
    ((T(f16, 2, 3, 6), T(f16, 2, 3, 4), T(f32, 2, 5, 4), T(f32, 2, 5, 6), _ROWS, _ROWS), _ATTENTION, DTypeError),
)
def _():
    for dtype in (f32, f64, f16, bf16):
        qkv = array(dtype, 2, 5, 4), array(dtype, 2, 7, 4, seed=1), array(dtype, 2, 7, 6, seed=2)
        wide = f64 if dtype is f64 else f32
        rows = array(wide, 2, 5, seed=4) + wide.numpy.type(4), array(wide, 2, 5, seed=5)
        for attributes in (_ATTENTION, {"scale": 0.3, "causal": True}):
            yield Sample("attention_backward", (array(dtype, 2, 5, 6, seed=3), *qkv, *rows), attributes, exact=False)


def _recurrent_types(gates: int, states: int) -> tuple[TensorType, ...]:
    """Operands of a whole layer: 4 steps, a batch of 2, 3 inputs, 5 hidden units."""
    state = (T(f32, 1, 2, 5),) * states
    return (T(f32, 4, 2, 3), *state, T(f32, 5 * gates, 3), T(f32, 5 * gates, 5), T(f32, 5 * gates), T(f32, 5 * gates))


def _recurrent_layer(name: str, gates: int, states: int, *kinds: dict[str, Any]) -> None:
    """The record of a whole layer; `kinds` are the attributes that only some layers have."""
    types = _recurrent_types(gates, states)
    given = {"layers": 1, "bidirectional": False, "has_biases": True, "batch_first": False, **kinds[0]}

    @record(
        name,
        (types[:-1], given, ShapeError),
        ((T(f32, 4, 3), *types[1:]), given, ShapeError),
        ((T(f32, 4, 2, 4), *types[1:]), given, ShapeError),
        ((*types[:1], T(f32, 2, 2, 5), *types[2:]), given, ShapeError),
        ((*types[:-1], T(f64, 5 * gates)), given, DTypeError),
        (tuple(t.with_dtype(i32) for t in types), given, DTypeError),
    )
    def _():
        layouts = ((1, False, True, False), (2, True, True, True), (2, False, False, False))
        for dtype, (layers, bidirectional, biases, batch_first), kind in itertools.product((f32, f64, bf16), layouts, kinds):
            directions = 1 + bidirectional
            weights = []
            for layer, direction in itertools.product(range(layers), range(directions)):
                width = 3 if layer == 0 else 5 * directions
                shapes = [(5 * gates, width), (5 * gates, 5)] + ([(5 * gates,), (5 * gates,)] if biases else [])
                weights += [array(dtype, *s, seed=layer * 2 + direction, low=-1, high=1) for s in shapes]
            initial = [array(dtype, layers * directions, 2, 5, seed=k, low=-1, high=1) for k in range(7, 7 + states)]
            x = array(dtype, *((2, 4, 3) if batch_first else (4, 2, 3)))
            attributes = {"layers": layers, "bidirectional": bidirectional, "has_biases": biases, "batch_first": batch_first}
            yield Sample(name, (x, *initial, *weights), attributes | kind, exact=False)


def _recurrent_scan(name: str, gates: int, states: int, biased: bool, *kinds: dict[str, Any]) -> None:
    """The record of the recurrence of one layer."""
    each = (T(f32, 4, 2, 5 * gates), T(f32, 5 * gates, 5), T(f32, 5 * gates))[: 3 if biased else 2]
    types = ((T(f32, 1, 2, 5),) * states) + each
    given = {"reverse": (False,), **kinds[0]}

    @record(
        name,
        (types[:-1], given, ShapeError),
        (types, {**given, "reverse": ()}, ShapeError),
        (types, {**given, "reverse": (False, True)}, ShapeError),
        ((T(f32, 2, 5), *types[1:]), given, ShapeError),
        ((*types[:states], T(f32, 4, 3, 5 * gates), *types[states + 1 :]), given, ShapeError),
        ((*types[:-1], types[-1].with_dtype(f64)), given, DTypeError),
        (tuple(t.with_dtype(i32) for t in types), given, DTypeError),
    )
    def _():
        for dtype, reverse, kind in itertools.product((f32, f64, bf16), ((False,), (True,), (False, True)), kinds):
            initial = [array(dtype, len(reverse), 2, 5, seed=k, low=-1, high=1) for k in range(states)]
            operands = [array(dtype, *t.shape, seed=9 + d, low=-1, high=1) for d in range(len(reverse)) for t in each]
            yield Sample(name, (*initial, *operands), {"reverse": reverse} | kind, exact=False)
        empty = [np.zeros((1, 2, 5), np.float32)] * states + [np.zeros((0, *t.shape[1:]), np.float32) for t in each[:1]]
        yield Sample(name, (*empty, *(array(f32, *t.shape) for t in each[1:])), given, exact=False)


_RNN_KINDS = {"activation": "tanh"}, {"activation": "relu"}
_recurrent_layer("lstm", 4, 2, {})
_recurrent_layer("gru", 3, 1, {})
_recurrent_layer("rnn", 1, 1, *_RNN_KINDS)
_recurrent_scan("lstm_scan", 4, 2, False, {})
_recurrent_scan("gru_scan", 3, 1, True, {})
_recurrent_scan("rnn_scan", 1, 1, False, *_RNN_KINDS)
_recurrent_scan("lstm_scan_keeping", 4, 2, False, {})
_recurrent_scan("gru_scan_keeping", 3, 1, True, {})
_recurrent_scan("rnn_scan_keeping", 1, 1, False, *_RNN_KINDS)


def _scan_backward(name: str, gates: int, states: int, more: int) -> None:
    """The record of the gradients of the recurrence of one layer: 4 steps, a batch of 2, 5 hidden units."""
    types = (
        T(f32, 4, 2, 5),
        *(T(f32, 1, 2, 5),) * states,
        *(T(f32, 1, 4, 2, 5 * k) for k in (gates, more) if k),
        T(f32, 5 * gates, 5),
    )
    given = {"reverse": (False,)}

    @record(
        name,
        (types[:-1], given, ShapeError),
        (types, {"reverse": ()}, ShapeError),
        (types, {"reverse": (False, True)}, ShapeError),
        ((T(f32, 2, 5), *types[1:]), given, ShapeError),
        ((*types[:-2], T(f32, 1, 4, 2, 4), types[-1]), given, ShapeError),
        ((*types[:-1], types[-1].with_dtype(f64)), given, DTypeError),
        (tuple(t.with_dtype(i32) for t in types), given, DTypeError),
    )
    def _():
        for dtype, reverse in itertools.product((f32, f64, bf16), ((False,), (True,), (False, True))):
            both = len(reverse)
            shapes = [
                (4, 2, 5 * both),
                *[(both, 2, 5)] * states,
                *((both, 4, 2, 5 * k) for k in (gates, more) if k),
                *[(5 * gates, 5)] * both,
            ]
            operands = [array(dtype, *shape, seed=k, low=-1, high=1) for k, shape in enumerate(shapes)]
            yield Sample(name, tuple(operands), {"reverse": reverse}, exact=False)


_scan_backward("lstm_scan_backward", 4, 2, 2)
_scan_backward("gru_scan_backward", 3, 1, 2)
_scan_backward("rnn_scan_backward", 1, 1, 0)


_BLOCK = {"bits": 4, "block": 8, "columns": 5}


@record(
    "block_linear",
    ((T(f32, 3, 16), T(u8, 5, 8)), _BLOCK, ShapeError),
    ((T(f32, 3, 16), T(u8, 5, 8), T(f64, 5, 2)), _BLOCK, DTypeError),
    ((T(f32, 3, 16), T(i8, 5, 8), T(f32, 5, 2)), _BLOCK, DTypeError),
    ((T(f32, 3, 15), T(u8, 5, 8), T(f32, 5, 2)), _BLOCK, ShapeError),
    ((T(f32, 3, 16), T(u8, 5, 7), T(f32, 5, 2)), _BLOCK, ShapeError),
    ((T(f32, 3, 16), T(u8, 5, 8), T(f32, 5, 2)), _BLOCK | {"columns": 6}, ShapeError),
    ((T(f32, 3, 16), T(u8, 5, 8), T(f32, 5, 2)), _BLOCK | {"bits": 3}, ShapeError),
    ((T(f32, 3, 6), T(u8, 5, 3), T(f32, 5, 2)), _BLOCK | {"block": 3}, ShapeError),
)
def _():
    for dtype, bits, lead in itertools.product((f32, f64, bf16), (2, 4, 8), ((3,), (), (2, 0), (2, 1))):
        x, codes = array(dtype, *lead, 16), array(u8, 5, 2 * bits, high=255)
        yield Sample("block_linear", (x, codes, array(dtype, 5, 2, seed=1)), _BLOCK | {"bits": bits}, exact=False)


# -- order, scans, scatters ------------------------------------------------------------------------------------------------

_SCAN = {"axis": 1, "kind": "add", "exclusive": False, "reverse": False}


@record(
    "scan",
    ((T(f32, 3, 4),), _SCAN | {"axis": 2}, ShapeError),
    ((T(f32, 3, 4),), _SCAN | {"kind": "xor"}, ShapeError),
    ((T(boolean, 3, 4),), _SCAN, DTypeError),
    ((T(i32, 3, 4),), _SCAN | {"kind": "logaddexp"}, DTypeError),
)
def _():
    for dtype in (f32, f64, bf16, i64, u8):
        for kind in ("add", "mul", "max", "min", "logaddexp")[: 5 if dtype.is_float else 4]:
            attributes = _SCAN | {"kind": kind, "exclusive": dtype is not f32, "reverse": dtype is f64}
            low, high = (0.5, 1.5) if kind == "mul" else (-4, 4)
            yield Sample("scan", (array(dtype, 3, 7, 2, low=low, high=high),), attributes, exact=False)
    for shape in ((0, 3), (3, 0), (3, 1)):
        yield Sample("scan", (array(f32, *shape),), _SCAN | {"exclusive": True}, exact=False)


@record("running_extreme", ((T(f32, 3),), {"axis": 1, "largest": True}, ShapeError),
        ((T(boolean, 3),), {"axis": 0, "largest": True}, DTypeError))  # fmt: skip
def _():
    for dtype in (f32, bf16, i64, u8):
        for axis, largest in ((0, True), (1, False)):
            yield Sample("running_extreme", (array(dtype, 7, 5, special=True),), {"axis": axis, "largest": largest})
    yield Sample("running_extreme", (array(f32, 0, 3),), {"axis": 0, "largest": True})


@record("sort", ((T(f32),), {"descending": False}, ShapeError))
def _():
    for dtype in (f32, bf16, i64, u8, boolean):
        for descending in (False, True):
            yield Sample("sort", (array(dtype, 3, 40, special=True),), {"descending": descending})
    yield Sample("sort", (array(f32, 3, 0),), {"descending": True})


@record("topk", ((T(f32, 3),), {"k": 4, "largest": True}, ShapeError), ((T(f32),), {"k": 1, "largest": True}, ShapeError))
def _():
    for dtype in (f32, bf16, i64, boolean):
        for k, largest in ((5, True), (40, False), (0, True)):
            yield Sample("topk", (array(dtype, 3, 40, special=True),), {"k": k, "largest": largest})


@record("places", ((T(boolean, 5), T(i64, 2)), {"count": 3}, ShapeError), ((T(i64, 5), T(i64, 1)), {"count": 3}, DTypeError))
def _():
    for length in (0, 5, 1024, 3000):
        mask = array(boolean, length)
        counts = np.add.reduceat(mask, np.arange(0, length, BLOCK), dtype=np.int64) if length else np.zeros(0, np.int64)
        begins = np.cumsum(counts) - counts
        for count in (int(mask.sum()), int(mask.sum()) // 2, int(mask.sum()) + 3):
            if length or not count:
                yield Sample("places", (mask, begins), {"count": count})


_SCATTER = {"axis": 0, "kind": "add", "shape": (5, 3)}


@record(
    "scatter",
    ((T(f32, 4, 3), T(f32, 2, 3), T(i64, 2, 3)), _SCATTER, ShapeError),
    ((T(f32), T(f32, 2, 3), T(i64, 2, 2)), _SCATTER, ShapeError),
    ((T(f32), T(f32, 2, 4), T(i64, 2, 4)), _SCATTER, ShapeError),
    ((T(f32), T(f32, 2, 3), T(i64, 2, 3)), _SCATTER | {"kind": "xor"}, ShapeError),
    ((T(f32), T(f32, 2, 3), T(f32, 2, 3)), _SCATTER, DTypeError),
    ((T(f32), T(f64, 2, 3), T(i64, 2, 3)), _SCATTER, DTypeError),
    ((T(boolean), T(boolean, 2, 3), T(i64, 2, 3)), _SCATTER, DTypeError),
)
def _():
    for dtype in (f32, bf16, i64, boolean):
        for kind in ("set", "add", "mul", "max", "min"):
            if dtype is boolean and kind in ("add", "mul"):
                continue
            for axis, written in ((0, (9, 2)), (1, (5, 7))):
                at = array(i64, *written, low=-1, high=5)  # some lie outside
                operands = (array(dtype, 5, 3), array(dtype, *written, seed=1), at)
                yield Sample("scatter", operands, {"axis": axis, "kind": kind, "shape": (5, 3)})
    yield Sample("scatter", (array(f32), array(f32, 0, 3), array(i64, 0, 3)), _SCATTER)


_UPDATE = {"axes": (0,), "kind": "add", "shape": (5, 3)}


@record(
    "index_update",
    ((T(f32), T(f32, 2, 4), T(i64, 2)), _UPDATE, ShapeError),
    ((T(f32, 2, 5, 3), T(f32, 2, 3), T(i64, 2)), _UPDATE, ShapeError),
    ((T(f32), T(f32, 2), T(i64, 2), T(i64, 2)), _UPDATE | {"axes": (1, 0)}, ShapeError),
    ((T(f32), T(f32, 2, 3), T(f32, 2)), _UPDATE, DTypeError),
)
def _():
    for dtype in (f32, bf16, i64, boolean):
        kind = "max" if dtype is boolean else "add"
        at = array(i64, 4, low=-1, high=5)
        yield Sample("index_update", (array(dtype, 5, 3), array(dtype, 4, 3, seed=1), at), _UPDATE | {"kind": kind})
        yield Sample("index_update", (array(dtype), array(dtype, 4, 3, seed=1), at), _UPDATE | {"kind": "set"})
    both = (array(i32, 4, 1, low=0, high=4), array(i64, 2, low=0, high=2))
    operands = (array(f32, 2, 5, 3), array(f32, 2, 4, 2, seed=1), *both)
    yield Sample("index_update", operands, {"axes": (1, 2), "kind": "mul", "shape": (2, 5, 3)})
    yield Sample("index_update", (array(f32), array(f32, 0, 3), array(i64, 0)), _UPDATE)


# -- reductions --------------------------------------------------------------------------------------------------------------


def _reduction(name: str, dtypes: tuple[DType, ...], wrong: DType, exact: bool) -> None:
    good = dtypes[0]

    @record(
        name,
        ((T(good, 3, 4),), {"axes": (2,)}, ShapeError),
        ((T(good, 3, 4),), {"axes": (-1,)}, ShapeError),
        ((T(good, 3, 4),), {"axes": (0, 0)}, ShapeError),
        ((T(wrong, 3, 4),), {"axes": (0,)}, DTypeError),
    )
    def _():
        for dtype in dtypes:
            for axes, keepdims in (((1,), False), ((0, 2), True), ((2, 0), False), ((0, 1, 2), False), ((), False)):
                is_exact = exact or not dtype.is_float
                yield Sample(name, (array(dtype, 3, 5, 4),), {"axes": axes, "keepdims": keepdims}, exact=is_exact)
            yield Sample(name, (array(dtype, 3, 0),), {"axes": (1,), "keepdims": False}, exact=True)
            yield Sample(name, (array(dtype, 0, 3),), {"axes": (1,)}, exact=True)
            yield Sample(name, (array(dtype, 1, 3),), {"axes": (0,)}, exact=True)
        yield Sample(name, (array(good, 4, 11, special=True),), {"axes": (1,), "keepdims": True}, exact=exact)


_NUMBERS = (f32, f64, f16, bf16, i64, i32, i8, u8)
_reduction("reduce_sum", _NUMBERS, boolean, exact=False)
_reduction("reduce_prod", _NUMBERS, boolean, exact=False)
_reduction("reduce_max", _NUMBERS, boolean, exact=True)
_reduction("reduce_min", _NUMBERS, boolean, exact=True)
_reduction("reduce_any", (boolean,), f32, exact=True)
_reduction("reduce_all", (boolean,), f32, exact=True)


def _position(name: str) -> None:
    @record(
        name,
        ((T(f32, 3, 4),), {"axes": (2,)}, ShapeError),
        ((T(f32, 3, 4),), {"axes": (0, 1)}, ShapeError),
        ((T(f32, 3, 0),), {"axes": (1,)}, ShapeError),
        ((T(boolean, 3, 4),), {"axes": (0,)}, DTypeError),
    )
    def _():
        for dtype in _NUMBERS:
            for axis in range(3):
                # few values, so that ties are decided by position
                yield Sample(name, (array(dtype, 3, 6, 4, low=0, high=2).round(),), {"axes": (axis,), "keepdims": axis == 1})
        yield Sample(name, (array(f32, 3, 11, special=True),), {"axes": (1,)})
        yield Sample(name, (array(f32, 3, 1),), {"axes": (1,)})
        yield Sample(name, (array(f32, 0, 3),), {"axes": (1,)})


_position("argmax")
_position("argmin")

# -- sources -----------------------------------------------------------------------------------------------------------------


@record("constant")
def _():
    for dtype in (*FLOATS, *INTEGERS, boolean):
        for shape in ((), (3,), (0, 2), (5, 7)):
            yield Sample("constant", (), {"value": array(dtype, *shape, special=True)})


@record("dim")
def _():
    yield Sample("dim", (), {"value": 12})


@record("iota", ((), {"size": -1}, ShapeError))
def _():
    for size in (0, 1, 9):
        yield Sample("iota", (), {"size": size})


# -- views -------------------------------------------------------------------------------------------------------------------

VIEW_DTYPES = (f32, bf16, i64, boolean)


def _views(name: str, *cases: tuple[tuple[tuple[int, ...], ...], dict[str, Any]], errors: tuple = ()) -> None:
    @record(name, *errors)
    def _():
        for number, (shapes, attributes) in enumerate(cases):
            for dtype in VIEW_DTYPES if number == 0 else (f32,):
                yield Sample(name, tuple(array(dtype, *shape, seed=k) for k, shape in enumerate(shapes)), attributes)


_views(
    "reshape",
    (((6, 4),), {"shape": (2, 3, 4)}),
    (((2, 3, 4),), {"shape": (6, 4)}),
    (((6, 4),), {"shape": (4, 6)}),
    (((3, 4, 5),), {"shape": (5, 12)}),
    (((2, 1, 3),), {"shape": (1, 6, 1)}),
    (((1,),), {"shape": ()}),
    (((),), {"shape": (1, 1)}),
    (((0, 3),), {"shape": (3, 0, 2)}),
    (((12, 10),), {"shape": (8, 15)}),
    errors=(((T(f32, 2, 3),), {"shape": (4,)}, ShapeError), ((T(f32, 2, 3),), {"shape": (-1, 3)}, ShapeError),
            ((T(f32, 4),), {"shape": (-2, -2)}, ShapeError)),
)  # fmt: skip
_views("kept", (((2, 3),), {}), (((),), {}), (((0, 3),), {}))
_views(
    "permute",
    (((2, 3, 4),), {"dims": (2, 0, 1)}),
    (((2, 3),), {"dims": (1, 0)}),
    (((),), {"dims": ()}),
    (((3, 0),), {"dims": (1, 0)}),
    errors=(((T(f32, 2, 3),), {"dims": (0, 0)}, ShapeError), ((T(f32, 2, 3),), {"dims": (0,)}, ShapeError)),
)
_views(
    "expand",
    (((3, 1),), {"shape": (3, 4)}),
    (((3, 1),), {"shape": (2, 3, 5)}),
    (((),), {"shape": (2, 2)}),
    (((1, 3),), {"shape": (0, 3)}),
    (((3,),), {"shape": (3,)}),
    errors=(((T(f32, 3, 2),), {"shape": (3, 4)}, ShapeError), ((T(f32, 3, 2),), {"shape": (2,)}, ShapeError),
            ((T(f32, 1),), {"shape": (-1,)}, ShapeError)),
)  # fmt: skip
_views(
    "flip",
    (((3, 4),), {"axes": (1,)}),
    (((3, 4),), {"axes": (0, 1)}),
    (((3, 4),), {"axes": ()}),
    (((0, 4),), {"axes": (0,)}),
    errors=(((T(f32, 3, 4),), {"axes": (2,)}, ShapeError), ((T(f32, 3, 4),), {"axes": (1, 1)}, ShapeError)),
)
_views(
    "slice",
    (((7, 5),), {"starts": (1, 0), "limits": (6, 5), "steps": (2, 1)}),
    (((7, 5),), {"starts": (3, 2), "limits": (3, 3), "steps": (1, 1)}),
    (((7, 5),), {"starts": (0, 4), "limits": (7, 5), "steps": (3, 2)}),
    (((0, 5),), {"starts": (0, 0), "limits": (0, 5), "steps": (1, 4)}),
    errors=(
        ((T(f32, 7),), {"starts": (1,), "limits": (8,), "steps": (1,)}, ShapeError),
        ((T(f32, 7),), {"starts": (3,), "limits": (2,), "steps": (1,)}, ShapeError),
        ((T(f32, 7),), {"starts": (-1,), "limits": (2,), "steps": (1,)}, ShapeError),
        ((T(f32, 7),), {"starts": (0,), "limits": (2,), "steps": (0,)}, ShapeError),
        ((T(f32, 7, 2),), {"starts": (0,), "limits": (2,), "steps": (1,)}, ShapeError),
    ),
)
_views(
    "pad",
    (((3, 4),), {"low": (1, 0), "high": (0, 2), "value": 1}),
    (((3, 4),), {"low": (2, 1), "high": (1, 3), "value": -2.5}),
    (((0, 4),), {"low": (1, 0), "high": (1, 0), "value": 0.0}),
    (((3,),), {"low": (0,), "high": (0,), "value": 7.0}),
    (((3,),), {"low": (1,), "high": (1,), "value": -math.inf}),
    (((),), {"low": (), "high": (), "value": 0}),
    errors=(((T(f32, 3),), {"low": (-1,), "high": (0,), "value": 0}, ShapeError),
            ((T(f32, 3),), {"low": (1, 1), "high": (0, 0), "value": 0}, ShapeError)),
)  # fmt: skip
_views(
    "concat",
    (((2, 3), (2, 1), (2, 4)), {"axis": 1}),
    (((2, 3), (5, 3)), {"axis": 0}),
    (((2, 3), (0, 3), (1, 3)), {"axis": 0}),
    (((0, 3), (0, 3)), {"axis": 0}),
    (((4,),), {"axis": 0}),
    errors=(
        ((T(f32, 2, 3), T(f32, 3, 3)), {"axis": 1}, ShapeError),
        ((T(f32, 2, 3), T(f32, 2)), {"axis": 0}, ShapeError),
        ((T(f32, 2), T(f32, 2)), {"axis": 1}, ShapeError),
        ((T(f32), T(f32)), {"axis": 0}, ShapeError),
        ((T(f32, 2), T(i32, 2)), {"axis": 0}, DTypeError),
        ((), {"axis": 0}, ShapeError),
    ),
)
_views(
    "slice_update",
    (((7, 5), (3, 5)), {"starts": (1, 0), "steps": (2, 1)}),
    (((7, 5), (2, 2)), {"starts": (5, 1), "steps": (1, 3)}),
    (((7, 5), (0, 5)), {"starts": (1, 0), "steps": (1, 1)}),
    (((3,), (3,)), {"starts": (0,), "steps": (1,)}),
    (((0, 3), (0, 3)), {"starts": (0, 0), "steps": (1, 1)}),
    errors=(
        ((T(f32, 7), T(f32, 3)), {"starts": (5,), "steps": (1,)}, ShapeError),
        ((T(f32, 7), T(f32, 3)), {"starts": (2,), "steps": (3,)}, ShapeError),
        ((T(f32, 7), T(f32, 3)), {"starts": (-1,), "steps": (1,)}, ShapeError),
        ((T(f32, 7), T(f32, 3)), {"starts": (0,), "steps": (0,)}, ShapeError),
        ((T(f32, 7), T(f32, 3, 1)), {"starts": (0,), "steps": (1,)}, ShapeError),
        ((T(f32, 7), T(f64, 3)), {"starts": (0,), "steps": (1,)}, DTypeError),
    ),
)
_views(
    "window",
    (((2, 7),), {"axes": (1,), "sizes": (3,), "strides": (2,), "dilations": (1,)}),
    (((6, 7),), {"axes": (0, 1), "sizes": (2, 3), "strides": (1, 2), "dilations": (3, 2)}),
    (((0, 7),), {"axes": (1,), "sizes": (7,), "strides": (1,), "dilations": (1,)}),
    (((4,),), {"axes": (0,), "sizes": (1,), "strides": (3,), "dilations": (1,)}),
    errors=(
        ((T(f32, 4),), {"axes": (0,), "sizes": (3,), "strides": (1,), "dilations": (2,)}, ShapeError),
        ((T(f32, 4),), {"axes": (1,), "sizes": (2,), "strides": (1,), "dilations": (1,)}, ShapeError),
        ((T(f32, 4),), {"axes": (0,), "sizes": (2,), "strides": (0,), "dilations": (1,)}, ShapeError),
        ((T(f32, 4),), {"axes": (0,), "sizes": (0,), "strides": (1,), "dilations": (1,)}, ShapeError),
        ((T(f32, 4),), {"axes": (0,), "sizes": (2, 2), "strides": (1,), "dilations": (1,)}, ShapeError),
    ),
)


def _indices(size: int, *shape: int, dtype: DType = i64, seed: int = 0) -> np.ndarray:
    """Indices into a dimension of `size`, a few of them outside it."""
    return np.random.default_rng((seed, *shape)).integers(-2, size + 2, shape).astype(dtype.numpy)


@record(
    "index",
    ((T(f32, 3), T(f32, 2)), {"axes": (0,)}, DTypeError),
    ((T(f32, 3), T(i64, 2)), {"axes": (1,)}, ShapeError),
    ((T(f32, 3, 4, 5), T(i64, 2), T(i64, 2)), {"axes": (0, 2)}, ShapeError),
    ((T(f32, 3, 4), T(i64, 2), T(i64, 3)), {"axes": (0, 1)}, ShapeError),
    ((T(f32, 3, 4), T(i64, 2)), {"axes": (0, 1)}, ShapeError),
    ((T(f32, 3, 4),), {"axes": ()}, ShapeError),
    ((T(f32, 0, 4), T(i64, 2)), {"axes": (0,)}, ShapeError),
)
def _():
    for dtype in VIEW_DTYPES:
        yield Sample("index", (array(dtype, 5, 3), _indices(5, 4)), {"axes": (0,)})
    x = array(f32, 5, 3, 4)
    yield Sample("index", (x, _indices(3, 2, 2, dtype=i32)), {"axes": (1,)})
    yield Sample("index", (x, _indices(5, 6), _indices(3, 6, seed=1)), {"axes": (0, 1)})
    yield Sample("index", (x, _indices(3, 2, 1), _indices(4, 3, seed=1)), {"axes": (1, 2)})
    yield Sample("index", (x, _indices(4)), {"axes": (2,)})
    yield Sample("index", (x, _indices(5, 0)), {"axes": (0,)})
    yield Sample("index", (array(f32, 300), np.array([0, 255], np.uint8)), {"axes": (0,)})
    yield Sample("index", (array(f32, 0, 4), _indices(3, 0)), {"axes": (0,)})
    yield Sample("index", (array(f32, 4, 0), _indices(4, 3)), {"axes": (0,)})


@record(
    "gather",
    ((T(f32, 3, 4), T(f32, 3, 4)), {"axis": 1}, DTypeError),
    ((T(f32, 3, 4), T(i64, 3)), {"axis": 1}, ShapeError),
    ((T(f32, 3, 4), T(i64, 4, 4)), {"axis": 1}, ShapeError),
    ((T(f32, 3, 4), T(i64, 3, 4)), {"axis": 2}, ShapeError),
    ((T(f32, 3, 0), T(i64, 3, 2)), {"axis": 1}, ShapeError),
)
def _():
    for dtype in VIEW_DTYPES:
        yield Sample("gather", (array(dtype, 5, 3), _indices(3, 5, 2)), {"axis": 1})
    yield Sample("gather", (array(f32, 5, 3), _indices(5, 7, 2, dtype=i32)), {"axis": 0})
    yield Sample("gather", (array(f32, 5, 3), _indices(3, 4, 0)), {"axis": 1})
    yield Sample("gather", (array(f32, 5), _indices(5, 8)), {"axis": 0})
