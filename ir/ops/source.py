"""Ops without operands: inputs, constants, sizes, index ranges. `aten.call` and `tuple.get` stand here too."""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import evaluate as evaluate_dim
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_sizes
from dlcompiler.ir.types import TensorType, TupleType, compute_dtype, dtype_of, i64

# ops whose type is the node's own, not inferred
GIVEN_TYPE = frozenset({"input", "aten.call", "host.call", "if", "loop"})


def own_type(types, attributes):
    """The rule of an op whose type is given with the node."""
    raise ShapeError("the type of this op is given, not inferred")


register("input", own_type, Trait.SOURCE)
# an integer argument of the call; binds attributes["symbol"]
register("size", lambda types, attributes: TensorType(i64, ()), Trait.SOURCE)


def _constant_element(builder, node, index):
    value = node.attributes["value"]
    assert value.size == 1, "a constant of many elements is a buffer"
    return builder.constant(value.reshape(()).astype(compute_dtype(node.dtype).numpy), compute_dtype(node.dtype))


# attributes["value"]: a NumPy array
register(
    "constant",
    lambda types, attributes: TensorType(dtype_of(attributes["value"]), attributes["value"].shape),
    Trait.SOURCE,
    evaluate=lambda operands, attributes: attributes["value"],
    element=_constant_element,
)

# a size as a number: attributes["value"] is a dimension; evaluated once its symbols are bound
register(
    "dim",
    lambda types, attributes: TensorType(i64, ()),
    Trait.SOURCE,
    evaluate=lambda operands, attributes: np.asarray(evaluate_dim(attributes["value"], {}), dtype=np.int64),
    element=lambda builder, node, index: builder.index(node.attributes["value"]),
)

# 0, 1, 2, ... : i64[size]
register(
    "iota",
    lambda types, attributes: TensorType(i64, require_sizes("iota", (attributes["size"],))),
    Trait.SOURCE,
    evaluate=lambda operands, attributes: np.arange(attributes["size"], dtype=np.int64),
    element=lambda builder, node, index: builder.index(index[0]),
)

# A number for this call alone, drawn from torch's generator of the device: what random numbers of our own depend on
register("random_seed", lambda types, attributes: TensorType(i64, ()), Trait.LIBRARY, Trait.IMPURE)

# An operator that nobody mapped, run by ATen. attributes: target "aten.sort.default", arguments (a template in which
# {"operand": k} stands for operand k), impure, operand_strides (how each operand must lie for an operator that sees it, None: in
# any way). Its result type is the node's own.
register("aten.call", own_type, Trait.EXTERN)


def _tuple_element_type(types, attributes):
    (type,) = types
    index = attributes["index"]
    element = type.elements[index] if isinstance(type, TupleType) and 0 <= index < len(type.elements) else None
    if element is None:
        raise ShapeError(f"{type} has no element {attributes['index']}")
    return element


register(
    "tuple.get",
    _tuple_element_type,
    Trait.EXTERN,
    evaluate=lambda operands, attributes: operands[0][attributes["index"]],
)
