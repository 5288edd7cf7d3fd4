"""Constants as addresses: NumPy arrays and torch tensors, never copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import known
from dlcompiler.ir.program import Program, Slot
from dlcompiler.ir.types import dtype_of
from dlcompiler.runtime.tensors import TORCH_DTYPES, same_layout, tensor_at, torch_dtype
from torch import Tensor


def constant_tensors(program: Program) -> tuple[dict[Slot, Tensor], list[Any]]:
    """A tensor for each constant slot, sharing its memory, and what must be held for that memory to live."""
    tensors: dict[Slot, Tensor] = {}
    held: list[Any] = []
    for slot in program.slots:
        if slot.role == "constant":
            value = program.constants[slot.position]
            owner = value.detach() if isinstance(value, Tensor) else np.asarray(value)
            held.append(owner)
            tensors[slot] = _tensor_of(slot, owner)
    return tensors, held


def tensor_behind(value: Any) -> Tensor | None:
    """The torch tensor whose memory a constant shares; None for an array of its own, which nobody changes."""
    while isinstance(value, np.ndarray):
        value = value.base
    return value if isinstance(value, Tensor) else None


def remember_source(array: np.ndarray, tensor: Tensor) -> None:
    """Say that an array over a copy on the CPU stands for a tensor on a device, whose changes are to be followed."""
    copy = tensor_behind(array)
    assert copy is not None
    copy.on_device = tensor.detach()  # type: ignore[attr-defined]  # with the version counter of the tensor itself


def source_of(value: Any) -> Tensor | None:
    """As `tensor_behind`; the tensor on a device that it stands for, if it does for one."""
    behind = tensor_behind(value)
    return getattr(behind, "on_device", behind)


def tensor_on_device(value: Any, slot: Slot, device: torch.device, alignment: int) -> Tensor | None:
    """A model's own tensor on a device as the constant that it is, or a part of it; None where a copy must be made.

    A copy is made of what lies on another device, in another layout or dtype than the slot says, or at an address that kernels
    cannot read vectors from. Who reads the tensor itself sees every later change of it.
    """
    copy, source = tensor_behind(value), source_of(value)
    if copy is None or source is None or source.device != device or copy.stride() != source.stride():
        return None
    array = np.asarray(value)
    shape, strides = tuple(map(known, slot.shape)), tuple(map(known, slot.strides))
    if source.dtype is not torch_dtype(slot.dtype) or array.shape != shape or source.is_neg() or source.is_conj():
        return None
    if any(step % array.itemsize for step in array.strides):
        return None
    if not same_layout(shape, tuple(step // array.itemsize for step in array.strides), strides):
        return None
    first = (array.ctypes.data - copy.data_ptr()) // array.itemsize
    found = source.detach().as_strided(shape, strides, source.storage_offset() + first)
    return None if found.data_ptr() % alignment else found


def update_copy(value: Any) -> None:
    """Bring the copy on the CPU of a tensor that lies on a device up to date."""
    copy, source = tensor_behind(value), source_of(value)
    if copy is not None and source is not None and source is not copy:
        copy.copy_(source.view(copy.dtype))


def _tensor_of(slot: Slot, value: Tensor | np.ndarray) -> Tensor:
    shape, slot_strides = tuple(map(known, slot.shape)), tuple(map(known, slot.strides))
    if isinstance(value, Tensor):
        address, strides, dtype = value.data_ptr(), value.stride(), value.dtype
        on_cpu = value.device.type == "cpu"
    else:
        address = value.ctypes.data
        strides = tuple(s // value.itemsize for s in value.strides)
        dtype = TORCH_DTYPES[dtype_of(value).name]
        on_cpu = True
    if not on_cpu or dtype is not torch_dtype(slot.dtype) or tuple(value.shape) != shape:
        raise LaunchError(f"constant {slot.name} is {dtype}{list(value.shape)} but its slot is {slot}")
    if not same_layout(shape, strides, slot_strides):
        raise LaunchError(f"constant {slot.name} has strides {strides} but its slot {slot.strides}")
    return tensor_at(address, dtype, shape, slot_strides)
