"""Type rules that several ops share."""

from __future__ import annotations

from collections.abc import Iterable

from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.types import DType, TensorType


def broadcast_shapes(shapes: Iterable[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """NumPy's rule, decided at compile time: dimensions are equal or 1. Raises ShapeError."""
    shapes = list(shapes)
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for position, size in enumerate(shape, rank - len(shape)):
            if size == 1 or size == result[position]:
                continue
            if result[position] != 1:
                raise ShapeError(f"shapes {', '.join(show(s) for s in shapes)} do not broadcast together")
            result[position] = size
    return tuple(result)


def show(shape: Iterable[Dim]) -> str:
    """A shape as a person writes it."""
    return f"[{', '.join(map(str, shape))}]"


def same_dtype(name: str, types: Iterable[TensorType]) -> DType:
    """The one dtype of all operands. Raises DTypeError."""
    dtypes = [t.dtype for t in types]
    if any(d != dtypes[0] for d in dtypes):
        raise DTypeError(f"{name} needs operands of one dtype, not {', '.join(map(str, dtypes))}", hint="insert a cast")
    return dtypes[0]


def normalize_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises ShapeError if it is out of range."""
    if not -rank <= axis < max(rank, 1):
        raise ShapeError(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


def require_rank(name: str, type: TensorType, rank: int) -> None:
    if type.rank != rank:
        raise ShapeError(f"{name} needs rank {rank}, not {type}")
