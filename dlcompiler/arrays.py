"""NumPy arrays as torch tensors and back, sharing memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlcompiler.ir.types import DTYPES, DType, bf16, dtype_of
from dlcompiler.runtime.tensors import DTYPE_NAMES, torch_dtype


class _Writable:
    """An array's memory under an interface that does not say that it is read-only; keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def tensor_from_array(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory; a copy where torch cannot show it (negative strides, foreign byte order).

    A read-only array is shared too: compiled code writes only to inputs that the graph says are written.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array).reshape(array.shape)
    dtype = dtype_of(array) if array.dtype.kind in "Vf" else None
    hidden = dtype is bf16 or (dtype is not None and dtype.is_narrow)
    if hidden:
        array = array.view(f"uint{8 * array.itemsize}")
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    tensor = torch.from_numpy(array)
    return tensor.view(torch_dtype(dtype)) if dtype is not None and hidden else tensor


def array_from_tensor(tensor: torch.Tensor, dtype: DType | None = None) -> np.ndarray:
    """An array over the tensor's memory; over a copy of it if it lies on a device.

    `dtype` is its element type where torch has none: a 4-bit integer, say.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    if dtype is None:
        dtype = DTYPES[DTYPE_NAMES[plain.dtype]]
    if dtype is bf16 or dtype.is_narrow:
        return plain.view(torch.uint16 if dtype is bf16 else torch.uint8).numpy().view(dtype.numpy)
    return plain.numpy()


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
