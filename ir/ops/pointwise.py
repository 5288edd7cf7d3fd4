"""Pointwise ops: every scalar operation on whole tensors, with NumPy broadcasting, and `cast`."""

from __future__ import annotations

from typing import Any

from dlcompiler.ir.errors import DTypeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import broadcast_shapes, require_operands, same_dtype
from dlcompiler.ir.scalar import SCALARS, Scalar, apply_scalar, bitcast_array, cast_array
from dlcompiler.ir.types import DTYPES, TensorType, boolean, compute_dtype


def _infer(scalar: Scalar):
    def infer(types: tuple[TensorType, ...], attributes: Any) -> TensorType:
        require_operands(scalar.name, types, scalar.arity)
        values = types
        if scalar.name == "where":
            if types[0].dtype is not boolean:
                raise DTypeError(f"where needs a bool condition, not {types[0].dtype}")
            values = types[1:]
        dtype = same_dtype(scalar.name, values)
        if not scalar.accepts(dtype):
            raise DTypeError(f"{scalar.name} does not take {dtype}", hint="insert a cast")
        return TensorType(scalar.result(dtype), broadcast_shapes(t.shape for t in types))

    return infer


def _evaluate(scalar: Scalar):
    return lambda operands, attributes: apply_scalar(scalar.name, *operands)


def _element(builder, node, index):
    operands = [builder.broadcast_operand(node, k, index) for k in range(len(node.inputs))]
    return builder.compute(node.op.name, *operands)


for _scalar in SCALARS.values():
    _traits = [Trait.POINTWISE] + ([Trait.COMMUTATIVE] if _scalar.commutative else [])
    register(_scalar.name, _infer(_scalar), *_traits, evaluate=_evaluate(_scalar), element=_element)


def _cast_element(builder, node, index):
    # rounding to a narrow dtype is what the model asked for, so it happens although the value stays in a wide register
    narrow = builder.cast(builder.operand(node, 0, index), node.dtype)
    return builder.cast(narrow, compute_dtype(node.dtype))


def _infer_cast(types, attributes):
    require_operands("cast", types, 1)
    dtype = DTYPES.get(attributes["dtype"])
    if dtype is None:
        raise DTypeError(f"there is no element type {attributes['dtype']!r}")
    return types[0].with_dtype(dtype)


register(
    "cast",
    _infer_cast,
    Trait.POINTWISE,
    evaluate=lambda operands, attributes: cast_array(operands[0], DTYPES[attributes["dtype"]]),
    element=_cast_element,
)


def _bitcast_element(builder, node, index):
    stored = builder.cast(builder.operand(node, 0, index), node.inputs[0].dtype)
    return builder.cast(builder.bitcast(stored, node.dtype), compute_dtype(node.dtype))


def _infer_bitcast(types, attributes):
    type = _infer_cast(types, attributes)
    if type.dtype.bits != types[0].dtype.bits or "complex" in (type.dtype.kind, types[0].dtype.kind):
        raise DTypeError(f"the bits of {types[0].dtype} are no {type.dtype}")
    return type


# the same bits as another element type of the same width
register(
    "bitcast",
    _infer_bitcast,
    Trait.POINTWISE,
    evaluate=lambda operands, attributes: bitcast_array(operands[0], DTYPES[attributes["dtype"]]),
    element=_bitcast_element,
)

# the same elements in memory of their own: what a frontend puts before a result that must share no other's memory
register(
    "copy",
    lambda types, attributes: types[0],
    Trait.POINTWISE,
    evaluate=lambda operands, attributes: operands[0].copy(),
    element=lambda builder, node, index: builder.operand(node, 0, index),
)
