"""Reductions over whole axes: `reduce_sum(x, axes=(1,), keepdims=False)` and its kin, and `argmax`, `argmin`."""

from __future__ import annotations

from typing import Any

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import normalize_axis
from dlcompiler.ir.types import TensorType, boolean, i64


def _reduced_shape(type: TensorType, axes: tuple[int, ...], keepdims: bool):
    for axis in axes:
        if normalize_axis(axis, type.rank) != axis:
            raise ShapeError(f"reduction axes count from the front: {axes}")
    return tuple(1 if d in axes else size for d, size in enumerate(type.shape) if keepdims or d not in axes)


def _infer(name: str, takes_bool: bool):
    def infer(types: tuple[TensorType, ...], attributes: Any) -> TensorType:
        (type,) = types
        if takes_bool != (type.dtype is boolean):
            raise DTypeError(f"{name} {'needs' if takes_bool else 'does not take'} bool, got {type.dtype}", hint="insert a cast")
        axes = attributes["axes"]
        if name in ("reduce_max", "reduce_min") and any(type.shape[a] == 0 for a in axes):
            raise ShapeError(f"{name} of an empty range has no value: {type} over axes {tuple(axes)}")
        return type.with_shape(_reduced_shape(type, axes, attributes.get("keepdims", False)))

    return infer


def _evaluate(function):
    def evaluate(operands, attributes):
        (x,) = operands
        wide = x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x
        with np.errstate(all="ignore"):
            result = function(wide, axis=tuple(attributes["axes"]), keepdims=attributes.get("keepdims", False))
        return np.asarray(result).astype(x.dtype)

    return evaluate


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


for _name, _function, _kind, _takes_bool in (
    ("reduce_sum", np.sum, "add", False),
    ("reduce_prod", np.prod, "mul", False),
    ("reduce_max", np.max, "max", False),
    ("reduce_min", np.min, "min", False),
    ("reduce_any", np.any, "or", True),
    ("reduce_all", np.all, "and", True),
):
    register(_name, _infer(_name, _takes_bool), Trait.REDUCTION, evaluate=_evaluate(_function), element=_element(_kind))


def _infer_arg(types: tuple[TensorType, ...], attributes: Any) -> TensorType:
    (type,) = types
    (axis,) = attributes["axes"]
    if type.shape[axis] == 0:
        raise ShapeError(f"argmax and argmin of an empty range have no value: {type}")
    return TensorType(i64, _reduced_shape(type, (axis,), attributes.get("keepdims", False)))


def _evaluate_arg(function):
    def evaluate(operands, attributes):
        (x,) = operands
        wide = x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x
        return np.asarray(function(wide, axis=attributes["axes"][0], keepdims=attributes.get("keepdims", False)))

    return evaluate


for _name, _function in (("argmax", np.argmax), ("argmin", np.argmin)):
    register(_name, _infer_arg, Trait.REDUCTION, evaluate=_evaluate_arg(_function), element=_element(_name))
