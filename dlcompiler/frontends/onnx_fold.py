"""Evaluating small values while a graph is built.

ONNX has no shapes as attributes: a `Reshape` reads its shape from a tensor that other nodes compute (`Shape`, `Gather`,
`Concat`, `Mul`, ...). `FoldingBuilder` is a `Builder` that keeps, beside each small tensor whose elements are known, those
elements: numbers, or `Dim` expressions where sizes are symbolic. A node whose elements are all numbers becomes a constant.
Nothing larger than `LIMIT` elements is ever evaluated, so a file cannot make the import allocate more than it holds itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from dlcompiler.ir.control import bound_by, tensor_types
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import (
    Dim,
    Expression,
    floor_div,
    is_non_negative,
    maximum,
    minimum,
    modulo,
    symbol,
    symbols,
    terms_of,
)
from dlcompiler.ir.graph import Attributes, Builder, Node
from dlcompiler.ir.ops import Op, Trait
from dlcompiler.ir.types import TensorType, Type, i64

# name of a symbol -> lowest and highest size
Limits: TypeAlias = dict[str, tuple[int, int | None]]

LIMIT = 4096
MOST_ELEMENTS = 2**60
MOST_DIMENSIONS = 64  # NumPy has no more


class Unknown(Exception):
    """An element that cannot be told before the sizes are known."""


def _compare(decide: Callable[[Dim, Dim], bool | None]) -> Callable[[Dim, Dim], bool]:
    def compare(a: Dim, b: Dim) -> bool:
        answer = decide(a, b)
        if answer is None:
            raise Unknown
        return answer

    return compare


def _equal(a: Dim, b: Dim) -> bool | None:
    if a == b:
        return True
    apart = is_non_negative(a - b - 1) or is_non_negative(b - a - 1)
    return False if apart or isinstance(a - b, int) else None


def _less(a: Dim, b: Dim) -> bool | None:
    if is_non_negative(b - a - 1):
        return True
    return False if is_non_negative(a - b) else None


def _less_equal(a: Dim, b: Dim) -> bool | None:
    strictly_greater = _less(b, a)
    return None if strictly_greater is None else not strictly_greater


def _positive_divisor(a: Dim, b: Dim) -> None:
    if not is_non_negative(b - 1) and (isinstance(b, int) or not is_non_negative(b)):
        raise Unknown


def _floor_div(a: Dim, b: Dim) -> Dim:
    _positive_divisor(a, b)
    return floor_div(a, b)


def _trunc_div(a: Dim, b: Dim) -> Dim:
    _positive_divisor(a, b)
    if is_non_negative(a):
        return floor_div(a, b)
    if is_non_negative(a * -1):
        return floor_div(a * -1, b) * -1
    raise Unknown


def _remainder(a: Dim, b: Dim) -> Dim:
    _positive_divisor(a, b)
    return modulo(a, b)


def _sign(a: Dim) -> Dim:
    if is_non_negative(a - 1):
        return 1
    raise Unknown


def _absolute(a: Dim) -> Dim:
    if is_non_negative(a):
        return a
    raise Unknown


# what a scalar operation does with dimensions; anything not here is unknown when an element is symbolic
_ON_DIMS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: a * -1,
    "abs": _absolute,
    "sign": _sign,
    "floor_div": _floor_div,
    "trunc_div": _trunc_div,
    "remainder": _remainder,
    "maximum": maximum,
    "minimum": minimum,
    "eq": _compare(_equal),
    "ne": _compare(lambda a, b: None if _equal(a, b) is None else not _equal(a, b)),
    "lt": _compare(_less),
    "le": _compare(_less_equal),
    "gt": _compare(lambda a, b: _less(b, a)),
    "ge": _compare(lambda a, b: _less_equal(b, a)),
    "where": lambda condition, a, b: a if condition else b,
}
_FOLDS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "reduce_sum": lambda a, b: a + b,
    "reduce_prod": lambda a, b: a * b,
    "reduce_max": maximum,
    "reduce_min": minimum,
}


def _elementwise(function: Callable[..., Any], operands: Sequence[np.ndarray]) -> np.ndarray:
    """`function` on broadcast arrays of dimensions; NumPy's own integers become Python's first."""
    arrays = np.broadcast_arrays(*(_as_objects(o) for o in operands))
    result = np.empty(arrays[0].shape, dtype=object)
    for at in np.ndindex(*result.shape):
        result[at] = function(*(a[at] for a in arrays))
    return result


def _as_objects(array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        return array
    result = np.empty(array.shape, dtype=object)
    for at in np.ndindex(*array.shape):
        result[at] = array[at].item()
    return result


def _reduce(function: Callable[[Dim, Dim], Dim], x: np.ndarray, attributes: Attributes, type: TensorType) -> np.ndarray:
    axes = attributes["axes"]
    kept = [a for a in range(x.ndim) if a not in axes]
    flat = x.transpose(kept + sorted(axes)).reshape([*(x.shape[a] for a in kept), -1])
    result = np.empty(flat.shape[:-1], dtype=object)
    for at in np.ndindex(*result.shape):
        row = flat[at]
        if len(row) == 0:
            raise Unknown
        result[at] = functools.reduce(function, row)
    return result.reshape(type.known_shape)


def _line(value: Dim, name: str) -> tuple[int, int]:
    """(a, b) if `value` is a*name + b; a is 0 if it is not."""
    terms = dict(terms_of(value))
    rest = terms.pop((), 0)
    (slope,) = terms.values() if len(terms) == 1 else (0,)
    return (slope, rest) if value == symbol(name) * slope + rest else (0, 0)


class FoldingBuilder(Builder):
    """A `Builder` that knows the elements of small tensors; see the module."""

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        super().__init__(name)
        self._known: dict[Node, np.ndarray] = {}
        # what the graph relies on: lowest and highest (or None) size that a symbol may stand for
        self.limits: Limits = dict(limits or {})
        # the symbols that a call can be held to, those of the model's inputs; None: all
        self.checked: set[str] | None = None
        # the builder of the graph around a region
        self.around: FoldingBuilder | None = None

    def region(self, name: str) -> FoldingBuilder:
        """A builder for a graph inside this one: it knows what this one knows, and its names are not taken here."""
        inner = FoldingBuilder(name)
        inner._known, inner.limits, inner._names, inner.location = self._known, self.limits, self._names, self.location
        inner.around, inner.checked = self, self.checked
        return inner

    def known_symbols(self) -> set[str]:
        """Sizes that inputs or barriers tell so far, of this graph and those around it."""
        known = {s for n in self.inputs for type in tensor_types(n.type) for d in type.shape for s in symbols(d)}
        known = known.union(*(bound_by(n) for n in self.nodes)) if self.nodes else known
        return known if self.around is None else known | self.around.known_symbols()

    # -- relying on sizes ------------------------------------------------------------------------------------------------

    def at_most(self, small: Dim, large: Dim, *, bounded: bool = False, always: bool = False) -> bool:
        """Whether `small <= large`: provably, or because every call is held to it from now on (see `limits`).

        A call is held to what hardly excludes one: sizes of at least 1; `always` to more than that. With `bounded` also to sizes
        of at most some number.
        """
        difference = large - small
        if is_non_negative(difference):
            return True
        names = symbols(difference)
        if len(names) != 1:
            return False
        (name,) = names
        slope, rest = _line(difference, name)
        if slope == 0 or (self.checked is not None and name not in self.checked):
            return False
        lowest, highest = self.limits.get(name, (0, None))
        if slope > 0:
            least = -(rest // slope)
            if least > 1 and not always and least > lowest:
                return False
            lowest = max(lowest, least)
        elif not bounded and not always:
            return False
        else:
            most = rest // -slope
            highest = most if highest is None else min(highest, most)
        if highest is not None and highest < max(lowest, 1):
            return False
        self.limits[name] = (lowest, highest)
        return True

    # -- asking ----------------------------------------------------------------------------------------------------------

    def elements(self, node: Node) -> np.ndarray | None:
        """The elements of `node` if they are known: numbers of its dtype, or objects (`Dim`s) where some are symbolic."""
        if node.op.name == "constant":
            return node.attributes["value"]
        return self._known.get(node)

    def array(self, node: Node) -> np.ndarray | None:
        """The elements if all are numbers, else None."""
        elements = self.elements(node)
        return None if elements is None or elements.dtype == object else elements

    def dims(self, node: Node) -> tuple[Dim, ...] | None:
        """The elements of an integer tensor, flattened, as dimensions; None if unknown."""
        elements = self.elements(node)
        return None if elements is None else tuple(_as_objects(elements).reshape(-1))

    # -- making ----------------------------------------------------------------------------------------------------------

    def from_dims(self, dims: np.ndarray | Sequence[Dim]) -> Node:
        """An i64 tensor of these dimensions (an array of objects keeps its shape)."""
        array = np.empty(len(dims), dtype=object) if not isinstance(dims, np.ndarray) else dims
        if not isinstance(dims, np.ndarray):
            array[:] = dims
        if all(isinstance(d, int) for d in array.reshape(-1)):
            return self.constant(array.astype(np.int64))
        if array.ndim == 0:
            node = super().make(_op("dim"), (), {"value": array.item()}, TensorType(i64, ()), None)
        else:
            parts = [self.reshape(self.from_dims(_scalar(d)), shape=(1,)) for d in array.reshape(-1)]
            flat = parts[0] if len(parts) == 1 else super().__call__("concat", *parts, axis=0)
            node = flat if array.ndim == 1 else super().__call__("reshape", flat, shape=array.shape)
        self._known[node] = array
        return node

    def make(self, op: Op, inputs: tuple[Node, ...], attributes: Attributes, type: Type, name: str | None = None) -> Node:
        """As `Builder.make`, but a node whose small result is known becomes a constant."""
        if isinstance(type, TensorType) and type.rank > MOST_DIMENSIONS:
            raise ShapeError(f"{op.name} gives {type.rank} dimensions, more than {MOST_DIMENSIONS}")
        if isinstance(type, TensorType) and type.is_static and math.prod(d for d in type.known_shape if d) >= MOST_ELEMENTS:
            raise ShapeError(f"{op.name} gives {type}, more elements than memory can address")
        if op.name != "constant" and isinstance(type, TensorType):
            if op.evaluate is None and op.expand is not None and inputs and all(self._is_small(i) for i in inputs):
                return op.expand(self, inputs, attributes)
            elements = self._evaluate(op, inputs, attributes, type)
            if elements is not None and elements.dtype != object:
                # a copy: a view's result would be strided, and keep its operand alive
                return self.constant(elements.copy(order="C"))
            if elements is not None and elements.ndim == 0 and type.dtype is i64 and op.name != "dim":
                return self.from_dims(elements)
            node = super().make(op, inputs, attributes, type, name)
            if elements is not None:
                self._known[node] = elements
            return node
        return super().make(op, inputs, attributes, type, name)

    def _is_small(self, node: Node) -> bool:
        elements = self.elements(node)
        return elements is not None and elements.size <= LIMIT

    def _evaluate(self, op: Op, inputs: tuple[Node, ...], attributes: Attributes, type: TensorType) -> np.ndarray | None:
        """The elements of the result, or None if they are too many or not known."""
        if op.evaluate is None or op.has(Trait.IMPURE) or not type.is_static or type.known_numel > LIMIT:
            return None
        if not all(self._is_small(i) for i in inputs):
            return None
        operands = [e for e in map(self.elements, inputs) if e is not None]
        if op.name == "dim":
            result: np.ndarray | None = _scalar(attributes["value"])
        elif any(o.dtype == object for o in operands):
            result = self._evaluate_symbolic(op, operands, attributes, type, inputs)
        else:
            with np.errstate(all="ignore"):
                result = np.asarray(op.evaluate(operands, attributes))
            return result if result.dtype == type.dtype.numpy else result.astype(type.dtype.numpy)
        if result is None or any(isinstance(d, Expression) for d in result.reshape(-1)):
            return result
        try:
            return result.astype(type.dtype.numpy)
        except OverflowError:
            return None

    def _evaluate_symbolic(self, op, operands, attributes, type, inputs) -> np.ndarray | None:
        try:
            if op.name in _ON_DIMS:
                return _elementwise(_ON_DIMS[op.name], operands)
            if op.name in _FOLDS:
                return _reduce(_FOLDS[op.name], operands[0], attributes, type)
            if op.name == "cast":
                return operands[0] if type.dtype.name in ("i64", "i32") and inputs[0].dtype.is_integer else None
            if op.has(Trait.VIEW) or op.name in ("index", "gather"):
                if any(o.dtype == object for o in operands[1:]) and op.name != "concat":
                    return None
                return np.asarray(op.evaluate([_as_objects(operands[0]), *operands[1:]], attributes))
        except Unknown:
            return None
        return None


def _scalar(value: Dim) -> np.ndarray:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _op(name: str) -> Op:
    from dlcompiler.ir.ops import lookup

    return lookup(name)
