"""Where a mask holds: the places of its true elements, in order, as many as the graph has a size for."""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim, floor_div
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_operands, require_sizes
from dlcompiler.ir.types import TensorType, boolean, i64

# Elements of a mask that are counted together, and then written by one thread.
BLOCK = 1024


def blocks_of(length: Dim) -> Dim:
    """How many blocks a mask of that length has."""
    return floor_div(length + BLOCK - 1, BLOCK)


def _infer_places(types, attributes):
    """`places(mask, begins)` -> i64[count]. begins: how many places come before each block of the mask; attributes: count."""
    require_operands("places", types, 2)
    mask, begins = types
    if mask.dtype is not boolean or begins.dtype is not i64:
        raise DTypeError(f"places takes a mask and integers, not {mask} and {begins}")
    if mask.rank != 1 or begins.shape != (blocks_of(mask.shape[0]),):
        raise ShapeError(f"places of {mask} with {begins}, not {blocks_of(mask.shape[0])} numbers")
    return TensorType(i64, require_sizes("places", (attributes["count"],)))


def _evaluate_places(operands, attributes):
    found = np.flatnonzero(operands[0])[: attributes["count"]]
    return np.concatenate([found, np.zeros(attributes["count"] - found.size)]).astype(np.int64)


# The first `count` places, and 0 where a mask holds fewer.
register("places", _infer_places, Trait.LIBRARY, evaluate=_evaluate_places)
