"""Tensors by name in a file: the safetensors format, written and read without copying the data.

The library of that name copies everything through one bytes object, and knows no bfloat16 in NumPy; the format itself is a
length, a JSON header and the data. A complex tensor is written as its real and imaginary parts, a trailing dimension of 2, and
named under `complex` in the header's metadata; one of fewer than 16 bits as bytes, with its dtype under `narrow`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from dlcompiler.ir.errors import InvalidModelError
from dlcompiler.ir.types import DTYPES, DType, dtype_of

NAMES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8",
    "u64": "U64", "u32": "U32", "u16": "U16", "u8": "U8", "bool": "BOOL",
}  # fmt: skip
DTYPE_OF_NAME: dict[str, DType] = {theirs: DTYPES[ours] for ours, theirs in NAMES.items()}
ALIGNMENT = 64  # of the data within the file: a cache line
MAXIMUM_HEADER = 100 << 20  # bytes; the library's own limit


def write_safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """Write `tensors` to `file`. Wide elements come first, so that each tensor is aligned for its own dtype."""
    arrays = {name: _storable(array) for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    complex_names = sorted(name for name, array in tensors.items() if np.iscomplexobj(array))
    narrow = {name: dtype_of(array).name for name, array in tensors.items() if dtype_of(array).is_narrow}
    metadata = {"complex": complex_names, "narrow": narrow}
    if complex_names or narrow:
        header["__metadata__"] = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items() if value}
    position = 0
    for name in order:
        array = arrays[name]
        end = position + array.nbytes
        dtype = NAMES[dtype_of(array).name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        if arrays[name].size:
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)


def _storable(array: np.ndarray) -> np.ndarray:
    if dtype_of(array).is_narrow:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.shape)
    if not np.iscomplexobj(array):
        return array
    parts = np.float32 if array.dtype == np.complex64 else np.float64
    return np.ascontiguousarray(array).reshape(-1).view(parts).reshape(*array.shape, 2)


def read_safetensors(data: memoryview, where: str) -> dict[str, np.ndarray]:
    """The tensors in `data`, as views of it (copied only where not aligned for their dtype).

    Everything the header says is checked before it is used. Raises InvalidModelError naming `where` and the tensor.
    """
    header, begin = _read_header(data, where)
    metadata = header.pop("__metadata__", {})
    tensors: dict[str, np.ndarray] = {}
    size = len(data) - begin
    covered = 0
    for name, entry in header.items():
        dtype, shape, start, end = _checked_entry(name, entry, size, where)
        covered += end - start
        array = np.frombuffer(data, dtype=np.uint8, count=end - start, offset=begin + start)
        if array.size and array.ctypes.data % dtype.bytes:
            array = array.copy()
        tensors[name] = array.view(dtype.numpy).reshape(shape)
    if covered != size:
        raise InvalidModelError(f"{where}: tensors take {covered} bytes of {size} bytes of data", hint="the file is damaged")
    return _narrowed(_joined_complex(tensors, metadata, where), metadata, where)


def _read_header(data: memoryview, where: str) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise InvalidModelError(f"{where}: {len(data)} bytes are too few for safetensors")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAXIMUM_HEADER):
        raise InvalidModelError(f"{where}: a header of {length} bytes does not fit", hint="the file is damaged or no safetensors")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{where}: the safetensors header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise InvalidModelError(f"{where}: the safetensors header is not a JSON object")
    return header, 8 + length


def _checked_entry(name: str, entry: Any, size: int, where: str) -> tuple[DType, tuple[int, ...], int, int]:
    problem = InvalidModelError(f"{where}: the entry of tensor {name!r} is wrong: {str(entry)[:120]}")
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPE_OF_NAME:
        raise problem
    dtype: DType = DTYPE_OF_NAME[entry["dtype"]]
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise problem
    if len(offsets) != 2 or len(shape) > 64:
        raise problem
    start, end = offsets
    if not start <= end <= size or math.prod(shape) * dtype.bytes != end - start:
        raise problem
    return dtype, tuple(shape), start, end


def _listed(metadata: Any, key: str, kind: type, where: str) -> Any:
    """The collection of tensors' names under a key of the metadata, empty if there is none. Raises InvalidModelError."""
    listed = metadata.get(key) if isinstance(metadata, dict) else None
    if listed is None:
        return kind()
    try:
        names = json.loads(listed)
    except (ValueError, TypeError):
        names = None
    if not isinstance(names, kind):
        raise InvalidModelError(f"{where}: the list of {key} tensors is not one")
    return names


def _joined_complex(tensors: dict[str, np.ndarray], metadata: Any, where: str) -> dict[str, np.ndarray]:
    names = _listed(metadata, "complex", list, where)
    for name in names:
        array = tensors.get(name) if isinstance(name, str) else None
        if array is None or array.dtype not in (np.float32, np.float64) or array.ndim == 0 or array.shape[-1] != 2:
            raise InvalidModelError(f"{where}: {name!r} is not a pair of real and imaginary parts")
        joined = np.complex64 if array.dtype == np.float32 else np.complex128
        tensors[name] = array.reshape(-1).view(joined).reshape(array.shape[:-1])
    return tensors


def _narrowed(tensors: dict[str, np.ndarray], metadata: Any, where: str) -> dict[str, np.ndarray]:
    names = _listed(metadata, "narrow", dict, where)
    for name, dtype in names.items():
        array, known = tensors.get(name), DTYPES.get(dtype) if isinstance(dtype, str) else None
        if array is None or array.dtype != np.uint8 or known is None or not known.is_narrow:
            raise InvalidModelError(f"{where}: {name!r} is no tensor of {str(dtype)[:40]}")
        tensors[name] = array.view(known.numpy)
    return tensors


class MappedFile(mmap.mmap):
    """A file's bytes in memory; `path` is where it lies."""

    path: str


def map_file(path: str | os.PathLike[str]) -> memoryview:
    """A file's bytes, mapped and not read. The mapping is private: writing to it changes no file. Raises OSError."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_COPY)
    mapped.path = os.path.realpath(path)
    return memoryview(mapped)


def place_in_file(array: np.ndarray) -> tuple[str, int] | None:
    """The file that an array's memory is mapped from, and how many bytes into it that begins; None for other memory."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    if not isinstance(mapped, MappedFile):
        return None
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    return mapped.path, array.__array_interface__["data"][0] - start
