"""Type rules that several ops share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.types import DType, TensorType, boolean


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


def require_operands(name: str, types: Sequence[object], least: int, most: int | None = None) -> None:
    """Raise ShapeError unless there are from `least` to `most` operands (`most` None: as many as `least`)."""
    most = least if most is None else most
    if not least <= len(types) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ShapeError(f"{name} takes {wanted} operands, not {len(types)}")


def distinct_axes(name: str, axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """`axes`, each once and counted from the front. Raises ShapeError."""
    axes = tuple(axes)
    if any(not 0 <= axis < rank for axis in axes) or len(set(axes)) != len(axes):
        raise ShapeError(f"{name}: {axes} are not distinct axes, counted from the front, of rank {rank}")
    return axes


def require_numbers(name: str, dtype: DType) -> DType:
    """Raise DTypeError for bool, which has no arithmetic."""
    if dtype is boolean:
        raise DTypeError(f"{name} does not take bool", hint="insert a cast")
    return dtype


def require_float(name: str, dtype: DType) -> DType:
    if not dtype.is_float:
        raise DTypeError(f"{name} does not take {dtype}", hint="insert a cast")
    return dtype


def require_sizes(name: str, shape: Iterable[Dim]) -> tuple[Dim, ...]:
    """A shape whose known sizes are not negative. Raises ShapeError."""
    shape = tuple(shape)
    if any(isinstance(size, int) and size < 0 for size in shape):
        raise ShapeError(f"{name}: {show(shape)} has a negative size")
    return shape


def require_rank(name: str, type: TensorType, rank: int) -> None:
    if type.rank != rank:
        raise ShapeError(f"{name} needs rank {rank}, not {type}")
