"""The door to torch's memory: dtypes, tensors over raw addresses, fresh tensors of given strides.

A view that a library call works on is made over an address and owns nothing. As long as a call is in progress its inputs,
outputs and arena are held by the call; between calls such a view keeps nobody's memory alive, and it is good again whenever the
same address comes back with the same layout.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from dlcompiler.ir.types import DType
from torch import Tensor

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u64": torch.uint64, "u32": torch.uint32, "u16": torch.uint16, "u8": torch.uint8,
    "bool": torch.bool, "c64": torch.complex64, "c128": torch.complex128,
}  # fmt: skip
_EIGHT_BIT_FLOATS = {
    "f8e4m3fn": torch.float8_e4m3fn, "f8e4m3fnuz": torch.float8_e4m3fnuz, "f8e5m2": torch.float8_e5m2,
    "f8e5m2fnuz": torch.float8_e5m2fnuz, "f8e8m0": torch.float8_e8m0fnu,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in (TORCH_DTYPES | _EIGHT_BIT_FLOATS).items()}
# what torch has no type for, one number a byte, is handed over as bytes
TORCH_DTYPES |= {**{name: torch.uint8 for name in ("f6e2m3", "f6e3m2", "f4e2m1", "i4", "u4", "i2", "u2")}, **_EIGHT_BIT_FLOATS}

Shape = tuple[int, ...]


def _empty_strided(shape: Shape, strides: Shape, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


def _find_empty_strided() -> Callable[[Shape, Shape, torch.dtype], Tensor]:
    """torch's own short way, half the cost of `torch.empty_strided`, where this release has it."""
    try:
        from torch._C._dynamo.guards import _empty_strided_cpu  # type: ignore[attr-defined]
    except ImportError:
        return _empty_strided
    return _empty_strided_cpu


empty_strided = _find_empty_strided()


def copy_strided(source: Tensor, strides: Shape) -> Tensor:
    """A copy in fresh memory with those strides. Elements that come to share memory (stride 0, windows) must be equal."""
    shape, dtype = tuple(source.shape), source.dtype
    if source.numel() == 0:
        return empty_strided(shape, strides, dtype)
    for dimension, stride in enumerate(strides):
        if stride == 0:
            source = source.narrow(dimension, 0, 1)
    sizes = tuple(source.shape)
    copy = empty_strided(sizes, strides, dtype)
    if _may_overlap(sizes, strides):
        count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))
        places = torch.arange(count).as_strided(sizes, strides)
        copy.as_strided((count,), (1,))[places.reshape(-1)] = source.reshape(-1)
    else:
        copy.copy_(source)
    return copy.as_strided(shape, strides)


def _may_overlap(shape: Shape, strides: Shape) -> bool:
    """Whether two elements may share memory: a stride is not beyond the reach of all smaller ones."""
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape) if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def guard_like(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Whether tensors are of the same type, dtype, device, shape and strides as these, in one call; None if torch has none.

    It may say no to some that are (given twice, or in inference mode), and holds none of them.
    """
    if not _guards_tensors():
        return None
    check = _guard_of(tensors)
    return check if check(*tensors) else None


def _guard_of(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    from torch._C._dynamo.guards import TensorGuards

    sizes: Any = [list(tensor.shape) for tensor in tensors]
    strides: Any = [list(tensor.stride()) for tensor in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


@functools.cache
def _guards_tensors() -> bool:
    """Whether this release of torch has Dynamo's check of many tensors at once, and it tells apart what we need told apart."""
    try:
        like = torch.zeros(2, 3)
        check = _guard_of([like])
    except (ImportError, TypeError):
        return False
    others = [torch.zeros(3, 2), torch.zeros(3, 2).t(), torch.zeros(2, 3, 1), like.int(), like.double(), torch.zeros(2, 4)[:, :3]]
    others += [like._neg_view(), like.to_sparse(), like.to("meta"), torch.nn.Parameter(like)]
    complex_like = like.to(torch.complex64)
    is_conjugate_known = not _guard_of([complex_like])(complex_like.conj())
    return check(like.clone()) and is_conjugate_known and not any(check(other) for other in others)


def picker(positions: Sequence[int], count: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Takes the values at these positions out of `count`."""
    if len(positions) == count:
        return lambda values: values
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda values: [values[position] for position in positions]


def torch_dtype(dtype: DType) -> torch.dtype:
    return TORCH_DTYPES[dtype.name]


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one touched; 0 for an empty tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


def tensor_at(address: int, dtype: torch.dtype, shape: Shape, strides: Shape) -> Tensor:
    """A tensor over memory that somebody else owns and must outlive every use of it. `strides` in elements."""
    elements = span(shape, strides)
    if not elements:
        return _empty_strided(shape, strides, dtype)
    memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def tensor_over(address: int, device: torch.device, dtype: torch.dtype, shape: Shape, strides: Shape) -> Tensor:
    """As `tensor_at`, for memory of any device."""
    if device.type == "cpu":
        return tensor_at(address, dtype, shape, strides)
    elements = span(shape, strides)
    with torch.inference_mode(False):
        empty = torch.empty(0, dtype=dtype, device=device)
        if not elements:
            return empty.new_empty_strided(shape, strides)
        # how torch itself makes tensors over memory of a CUDA graph
        storage = torch._C._construct_storage_from_data_pointer(address, device, elements * dtype.itemsize)
        return empty.set_(storage, 0, shape, strides)


def tensor_in(memory: Tensor, dtype: torch.dtype, shape: Shape, strides: Shape) -> Tensor | None:
    """A tensor in the memory of another, which is given up; None if that has not just the bytes for it."""
    storage = memory.untyped_storage()
    if memory.storage_offset() or storage.nbytes() != span(shape, strides) * dtype.itemsize:
        return None
    with torch.no_grad():
        return _empty_strided((0,), (1,), dtype).set_(storage, 0, shape, strides)


def same_layout(shape: Sequence[int], left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two strides put every element in the same place: strides of dimensions of size 1 do not matter."""
    return 0 in shape or all(size == 1 or a == b for size, a, b in zip(shape, left, right))


def is_held_once(tensor: Tensor) -> bool:
    """Whether nothing but one entry of a list holds a tensor's memory, besides the caller's own name for it.

    A graph that is kept for another backward pass, a view, a hook, a user's variable: each counts as one more.
    """
    return _holders(tensor) == _holders_of_one()


def _holders(tensor: Tensor) -> tuple[int, int, int]:
    """References to the Python object, to the tensor, to its memory."""
    counted: Any = tensor  # whose stubs lack the count
    return sys.getrefcount(tensor), counted._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@functools.cache
def _holders_of_one() -> tuple[int, int, int]:
    """The same of a tensor that only a list holds, asked as `is_held_once` asks."""
    held = [_empty_strided((1,), (1,), torch.uint8)]

    def ask(tensor: Tensor) -> tuple[int, int, int]:
        return _holders(tensor)

    tensor = held[0]
    return ask(tensor)
