"""The table of ONNX operators, and what an operator's entry is given.

An entry is a function `(call) -> node | tuple of nodes | None` decorated with `@operator("Name")`. It reads inputs and
attributes through `Call`, which checks them, and appends nodes with `call.b`. Differences between operator versions are asked
of `call.version`, the version of the operator's schema (its `since_version`), not of the model's opset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from onnx import TensorProto

from dlcompiler.frontends.onnx_fold import FoldingBuilder
from dlcompiler.ir.errors import InvalidModelError, ShapeError, UnsupportedError
from dlcompiler.ir.expression import Dim, Expression, known
from dlcompiler.ir.graph import Node, reachable
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.types import DTYPES, DType, TensorType, compute_dtype, i64

Result = Node | tuple[Node | None, ...] | None
Entry = Callable[["Call"], Any]

# (domain, operator) -> entry; the default domain is ""
OPERATORS: dict[tuple[str, str], Entry] = {}
# a version of an operator that none is newer than
NEWEST = 1 << 30
# entries that also take values which are no tensors of numbers
TAKES_HOST_VALUES = frozenset({"Identity", "OptionalHasElement", "OptionalGetElement", "Tokenizer"})


def _newer_types() -> dict[int, DType]:
    """Types that the oldest onnx we take does not know."""
    names = {
        "INT4": "i4", "UINT4": "u4", "INT2": "i2", "UINT2": "u2",
        "FLOAT4E2M1": "f4e2m1", "FLOAT6E2M3": "f6e2m3", "FLOAT6E3M2": "f6e3m2", "FLOAT8E8M0": "f8e8m0",
    }  # fmt: skip
    known = dict(TensorProto.DataType.items())
    return {known[theirs]: DTYPES[ours] for theirs, ours in names.items() if theirs in known}


# ONNX's element types; strings, which are missing here, are no tensors of the IR
ELEMENT_TYPES: dict[int, DType] = {
    TensorProto.FLOAT: DTYPES["f32"],
    TensorProto.DOUBLE: DTYPES["f64"],
    TensorProto.FLOAT16: DTYPES["f16"],
    TensorProto.BFLOAT16: DTYPES["bf16"],
    TensorProto.INT8: DTYPES["i8"],
    TensorProto.INT16: DTYPES["i16"],
    TensorProto.INT32: DTYPES["i32"],
    TensorProto.INT64: DTYPES["i64"],
    TensorProto.UINT8: DTYPES["u8"],
    TensorProto.UINT16: DTYPES["u16"],
    TensorProto.UINT32: DTYPES["u32"],
    TensorProto.UINT64: DTYPES["u64"],
    TensorProto.BOOL: DTYPES["bool"],
    TensorProto.COMPLEX64: DTYPES["c64"],
    TensorProto.COMPLEX128: DTYPES["c128"],
    TensorProto.FLOAT8E4M3FN: DTYPES["f8e4m3fn"],
    TensorProto.FLOAT8E4M3FNUZ: DTYPES["f8e4m3fnuz"],
    TensorProto.FLOAT8E5M2: DTYPES["f8e5m2"],
    TensorProto.FLOAT8E5M2FNUZ: DTYPES["f8e5m2fnuz"],
    **_newer_types(),
}


class NeedsValuesError(UnsupportedError):
    """A shape or the like hangs on the values of inputs. `inputs` names them: import again with those values given."""

    def __init__(self, message: str, *, inputs: tuple[str, ...], **where: Any) -> None:
        self.inputs = inputs
        super().__init__(message, **where)


class ToFunctionBody(Exception):
    """Raised by an entry that leaves this case to the function body in the operator's schema."""


def operator(*names: str, domain: str = "") -> Callable[[Entry], Entry]:
    """Register a function as the entry of these operators of a domain."""

    def apply(entry: Entry) -> Entry:
        for name in names:
            assert (domain, name) not in OPERATORS, name
            OPERATORS[(domain, name)] = entry
        return entry

    return apply


def element_type(code: int) -> DType:
    """The IR's dtype for ONNX's number. Raises UnsupportedError naming the type."""
    dtype = ELEMENT_TYPES.get(code)
    if dtype is None:
        names = {v: k for k, v in TensorProto.DataType.items()}
        if code not in names or code == TensorProto.UNDEFINED:
            raise InvalidModelError(f"{code} is no ONNX element type")
        raise UnsupportedError(f"element type {names[code].lower()}", items=(names[code].lower(),))
    return dtype


@dataclass
class BakedSizes:
    """Constants of a file that hold the batch it was exported with, where its inputs leave the batch open.

    rewrite    whether they are made right (`Options.fix_batch`)
    fixed      a sentence for each that was
    suspected  a sentence for each that may be one, where nothing is rewritten
    """

    rewrite: bool = False
    fixed: list[str] = field(default_factory=list)
    suspected: list[str] = field(default_factory=list)

    def found(self, sentence: str) -> bool:
        """Whether the one that `sentence` describes is to be rewritten."""
        if self.rewrite:
            self.fixed.append(f"{sentence}; rewritten")
        else:
            self.suspected.append(sentence)
        return self.rewrite


@dataclass
class Call:
    """One ONNX node while it is being imported: checked access to its inputs and attributes."""

    op_type: str
    version: int
    inputs: list[Node | None]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    b: FoldingBuilder
    location: str
    # makes a symbol for a size that only data tells
    fresh: Callable[[str], Dim]
    baked: BakedSizes = field(default_factory=lambda: BakedSizes())
    # (node, version of its operator, inputs, types of results, reason) -> results: a call of the host
    host: Callable[..., Any] = lambda *_: ()

    # -- inputs ----------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Node:
        """A required input."""
        node = self.get(index)
        if node is None:
            self.invalid(f"input {index} is missing")
        return node

    def get(self, index: int) -> Node | None:
        """An optional input, None if it is not given."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def all(self) -> list[Node]:
        """Every input of a variadic operator."""
        return [self[k] for k in range(len(self.inputs))]

    def rank(self, index: int = 0) -> int:
        return self[index].tensor.rank

    def require_rank(self, index: int, low: int, high: float = math.inf) -> Node:
        """Input `index`, which must have a rank in `[low, high]`."""
        node = self[index]
        if not low <= node.tensor.rank <= high:
            wanted = f"{low}" if low == high else (f"{low} or more" if high == math.inf else f"{low} to {high}")
            self.invalid(f"input {index} has rank {node.tensor.rank}, not {wanted}")
        return node

    def array(self, index: int, what: str) -> np.ndarray:
        """The elements of an input that must be known now. Raises UnsupportedError naming it `what`."""
        array = self.b.array(self[index])
        if array is None:
            self.needs_value(index, what)
        return array

    def scalar(self, index: int, what: str) -> Any:
        """The one element of an input that must be known now, as a Python number."""
        array = self.array(index, what)
        if array.size != 1:
            self.invalid(f"{what} has {array.size} elements, not 1")
        return array.reshape(()).item()

    def dims(self, index: int, what: str, *, told: bool = False) -> tuple[Dim, ...]:
        """The elements of an integer input as dimensions, which must be known now (symbolic ones included).

        With `told` also numbers that data tells, none negative: then each is a symbol that is bound once it is computed.
        """
        node = self[index]
        if not node.dtype.is_integer or node.tensor.rank > 1:
            self.invalid(f"{what} must be a vector of integers, not {node.type}")
        dims = self.b.dims(node)
        if dims is not None:
            return dims
        if not told or self._inputs_behind(node) is not None or not isinstance(node.tensor.numel, int):
            self.needs_value(index, what)
        made = tuple(self.fresh("size") for _ in range(node.tensor.numel))
        vector = self.cast(self.reshape(node, (node.tensor.numel,)), i64)
        self.b.make(lookup("sizes"), (vector,), {"symbols": tuple(map(str, made))}, vector.type)
        return made

    def _inputs_behind(self, node: Node) -> tuple[str, ...] | None:
        """Names of the model's inputs that a value is computed from; None if it also hangs on what no compilation can know."""
        names = set()
        for each in reachable([node]):
            if each.has(Trait.BARRIER) or (each.op.name == "input" and each.location is None):
                return None
            if each.op.name == "input":
                names.add(each.location)
        return tuple(sorted(filter(None, names)))

    def sizes(self, node: Node, index: int, what: str) -> tuple[Dim, ...]:
        """The numbers in a vector, none negative, as sizes that are known once it is computed."""
        count = node.tensor.numel
        if not isinstance(count, int):
            self.needs_value(index, what)
        made = [self.fresh("size") for _ in range(count)]
        vector = self.cast(self.reshape(node, (count,)), i64)
        self.b.make(lookup("sizes"), (vector,), {"symbols": tuple(map(str, made))}, vector.type)
        return tuple(made)

    def numbers(self, index: int, what: str) -> tuple[int, ...]:
        """The elements of an integer input, which must be numbers known now."""
        dims = self.b.dims(self[index])
        if dims is None:
            self.needs_value(index, what)
        if any(isinstance(d, Expression) for d in dims):
            self.unsupported(f"{what} known only once symbolic sizes are")
        return tuple(known(d) for d in dims)

    # -- attributes ------------------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def chosen(self, *names: str) -> dict[str, Any]:
        """Those of some attributes that are given."""
        return {name: self.attributes[name] for name in names if name in self.attributes}

    def flag(self, name: str, default: int = 0) -> bool:
        return bool(self.attributes.get(name, default))

    def axis(self, default: int | None, rank: int, name: str = "axis", end: bool = False) -> int:
        """The axis attribute counted from the front; with `end`, the rank itself is allowed (a place between dimensions)."""
        return self.normalize(self.attributes.get(name, default), rank, end)

    def normalize(self, axis: int | None, rank: int, end: bool = False) -> int:
        if axis is None or not -rank <= axis < rank + (1 if end else 0):
            self.invalid(f"axis {axis} is out of range for rank {rank}")
        return axis + rank if axis < 0 else axis

    def normalize_all(self, axes: Iterable[int], rank: int) -> tuple[int, ...]:
        """Axes counted from the front; each at most once."""
        result = tuple(self.normalize(a, rank) for a in axes)
        if len(set(result)) != len(result):
            self.invalid(f"axes {result} name a dimension twice")
        return result

    def integers(self, name: str, length: int, default: int | None = None) -> tuple[int, ...]:
        """An attribute of `length` integers; `default` fills a missing one."""
        values = self.attributes.get(name)
        if values is None:
            if default is None:
                self.invalid(f"attribute {name} is missing")
            return (default,) * length
        if len(values) != length:
            self.invalid(f"attribute {name} has {len(values)} numbers, not {length}")
        return tuple(values)

    # -- other operators -------------------------------------------------------------------------------------------------

    def apply(self, name: str, *inputs: Node | None, version: int = NEWEST, given: Mapping[str, Any] | None = None) -> Node:
        """The first result of another operator of the default domain, as a part of this node; `given` are its attributes."""
        result = self.apply_all(name, *inputs, version=version, given=given, outputs=self.outputs[:1])
        return result[0] if isinstance(result, tuple) else result

    def apply_all(
        self,
        name: str,
        *inputs: Node | None,
        version: int = NEWEST,
        given: Mapping[str, Any] | None = None,
        outputs: tuple[str, ...] | None = None,
    ) -> Any:
        """The same, all results, for `outputs`: this node's where they are not given."""
        wanted = self.outputs if outputs is None else outputs
        attributes = dict(given or {})
        call = replace(self, op_type=name, version=version, inputs=list(inputs), attributes=attributes, outputs=wanted)
        return OPERATORS[("", name)](call)

    # -- failing ---------------------------------------------------------------------------------------------------------

    def invalid(self, message: str) -> NoReturn:
        raise InvalidModelError(f"{self.op_type}: {message}", location=self.location)

    def misfit(self, message: str) -> NoReturn:
        """Sizes that do not fit: the model's fault if all are numbers, else perhaps only unknown to fit."""
        raise ShapeError(message, location=self.location)

    def unsupported(self, reason: str) -> NoReturn:
        raise UnsupportedError(f"{self.op_type}: {reason}", items=(reason,), location=self.location)

    def needs_value(self, index: int, what: str) -> NoReturn:
        """Input `index` must be known now and is not."""
        names = self._inputs_behind(self[index])
        reason = f"{what} known only at run time"
        if not names:
            self.unsupported(reason)
        raise NeedsValuesError(f"{self.op_type}: {reason}", inputs=names, items=(reason,), location=self.location)

    # -- small things that many entries do -------------------------------------------------------------------------------

    def cast(self, node: Node, dtype: DType) -> Node:
        return node if node.dtype is dtype else self.b.cast(node, dtype=dtype.name)

    def wide(self, node: Node) -> Node:
        """`node` in the dtype that kernels compute in, so that a formula rounds once."""
        return self.cast(node, compute_dtype(node.dtype))

    def number(self, value: float, like: Node) -> Node:
        """A 0-d constant of another node's dtype."""
        return self.b.constant(value, like.dtype)

    def full(self, value: Any, dtype: DType, shape: tuple[Dim, ...]) -> Node:
        """A tensor of equal elements, which takes no memory."""
        scalar = self.b.constant(value, dtype)
        return self.b.expand(scalar, shape=shape) if shape else scalar

    def reshape(self, node: Node, shape: Iterable[Dim]) -> Node:
        shape = tuple(shape)
        return node if node.shape == shape else self.b.reshape(node, shape=shape)

    def expand(self, node: Node, shape: Iterable[Dim]) -> Node:
        shape = tuple(shape)
        return node if node.shape == shape else self.b.expand(node, shape=shape)

    def permute(self, node: Node, dims: Iterable[int]) -> Node:
        dims = tuple(dims)
        return node if dims == tuple(range(len(dims))) else self.b.permute(node, dims=dims)

    def slice(self, node: Node, axis: int, start: Dim, limit: Dim, step: int = 1) -> Node:
        """`node[start:limit:step]` along one axis."""
        if (start, limit, step) == (0, node.shape[axis], 1):
            return node
        starts: list[Dim] = [0] * node.tensor.rank
        limits = list(node.shape)
        steps = [1] * node.tensor.rank
        starts[axis], limits[axis], steps[axis] = start, limit, step
        return self.b.slice(node, starts=tuple(starts), limits=tuple(limits), steps=tuple(steps))

    def concat(self, nodes: Iterable[Node], axis: int) -> Node:
        nodes = list(nodes)
        return nodes[0] if len(nodes) == 1 else self.b.concat(*nodes, axis=axis)

    def size(self, dim: Dim, dtype: DType) -> Node:
        """A dimension as a 0-d tensor."""
        if isinstance(dim, int):
            if not -(2**63) <= dim < 2**63:
                self.invalid(f"it computes with {dim}, which is too large for a 64-bit integer")
            return self.b.constant(dim, dtype)
        return self.cast(self.b.dim(value=dim), dtype)

    def along(self, vector: Node, axis: int, rank: int) -> Node:
        """A 1-d tensor shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
        if vector.tensor.rank != 1 or axis >= rank:
            self.misfit(f"{vector.type} is no vector along dimension {axis} of {rank}")
        return self.reshape(vector, (*(1,) * axis, vector.shape[0], *(1,) * (rank - axis - 1)))

    def input_type(self, index: int) -> TensorType:
        return self[index].tensor
