"""Reductions over whole axes: `reduce_sum(x, axes=(1,), keepdims=False)` and its kin, and `argmax`, `argmin`."""

from __future__ import annotations

from typing import Any

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import distinct_axes, require_numbers, require_operands
from dlcompiler.ir.types import TensorType, boolean, i64


def _reduced_shape(name: str, type: TensorType, attributes: Any) -> tuple[Dim, ...]:
    axes = distinct_axes(name, attributes["axes"], type.rank)
    keepdims = attributes.get("keepdims", False)
    return tuple(1 if d in axes else size for d, size in enumerate(type.shape) if keepdims or d not in axes)


def _infer(name: str, takes_bool: bool):
    def infer(types: tuple[TensorType, ...], attributes: Any) -> TensorType:
        require_operands(name, types, 1)
        (type,) = types
        if takes_bool != (type.dtype is boolean):
            raise DTypeError(f"{name} {'needs' if takes_bool else 'does not take'} bool, got {type.dtype}", hint="insert a cast")
        return type.with_shape(_reduced_shape(name, type, attributes))

    return infer


def _evaluate(function, identity):
    """An empty range gives the identity: for max and min the infinity, or the integer, that any element beats."""

    def evaluate(operands, attributes):
        (x,) = operands
        wide = x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x
        result = function(
            wide, axis=tuple(attributes["axes"]), keepdims=attributes.get("keepdims", False), **identity(wide.dtype)
        )
        return np.asarray(result).astype(x.dtype)

    return evaluate


def _no_identity(dtype: np.dtype) -> dict[str, Any]:
    return {}


def _lowest(dtype: np.dtype) -> dict[str, Any]:
    return {"initial": -np.inf if dtype.kind == "f" else np.iinfo(dtype).min}


def _highest(dtype: np.dtype) -> dict[str, Any]:
    return {"initial": np.inf if dtype.kind == "f" else np.iinfo(dtype).max}


def _full_index(node, index, position):
    """The operand's index: the result's index with the reduced axes filled from `position`."""
    axes = node.attributes["axes"]
    kept, reduced = iter(index), iter(position)
    full = []
    for axis in range(node.inputs[0].tensor.rank):
        if axis in axes:
            full.append(next(reduced))
            if node.attributes.get("keepdims", False):
                next(kept)
        else:
            full.append(next(kept))
    return tuple(full)


def _element(kind: str):
    def element(builder, node, index):
        shape = node.inputs[0].shape
        extents = [shape[a] for a in sorted(node.attributes["axes"])]
        return builder.reduce(kind, extents, index, lambda at: builder.operand(node, 0, _full_index(node, index, at)))

    return element


for _name, _function, _identity, _kind, _takes_bool in (
    ("reduce_sum", np.sum, _no_identity, "add", False),
    ("reduce_prod", np.prod, _no_identity, "mul", False),
    ("reduce_max", np.max, _lowest, "max", False),
    ("reduce_min", np.min, _highest, "min", False),
    ("reduce_any", np.any, _no_identity, "or", True),
    ("reduce_all", np.all, _no_identity, "and", True),
):
    register(
        _name, _infer(_name, _takes_bool), Trait.REDUCTION, evaluate=_evaluate(_function, _identity), element=_element(_kind)
    )


def _infer_arg(name: str):
    def infer(types: tuple[TensorType, ...], attributes: Any) -> TensorType:
        require_operands(name, types, 1)
        (type,) = types
        require_numbers(name, type.dtype)
        shape = _reduced_shape(name, type, attributes)
        if len(attributes["axes"]) != 1:
            raise ShapeError(f"{name} is over one axis, not {tuple(attributes['axes'])}")
        if type.shape[attributes["axes"][0]] == 0:
            raise ShapeError(f"{name} of an empty range has no value: {type}")
        return TensorType(i64, shape)

    return infer


def _evaluate_arg(function):
    def evaluate(operands, attributes):
        (x,) = operands
        wide = x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x
        return np.asarray(function(wide, axis=attributes["axes"][0], keepdims=attributes.get("keepdims", False)))

    return evaluate


for _name, _position in (("argmax", np.argmax), ("argmin", np.argmin)):
    register(_name, _infer_arg(_name), Trait.REDUCTION, evaluate=_evaluate_arg(_position), element=_element(_name))
