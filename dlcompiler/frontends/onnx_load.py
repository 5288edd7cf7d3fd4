"""Reading ONNX files that may be broken or hostile.

Everything that a file says about sizes and places is checked before it is believed: the number of bytes of a tensor against its
shape, the place of external data against its file and its folder. External data is mapped into memory, not copied.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, SparseTensorProto, TensorProto

from dlcompiler.frontends.onnx_fold import MOST_DIMENSIONS
from dlcompiler.frontends.onnx_registry import element_type
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError
from dlcompiler.ir.types import DType
from dlcompiler.weights import map_file

LARGEST_MESSAGE = 1 << 31  # bytes: protobuf's own limit
LARGEST_DENSE = 1 << 28  # bytes that a sparse tensor may take with its zeros


def printable(text: str) -> str:
    """A name as it may stand in a message of one line."""
    return text if text.isprintable() else ascii(text)[1:-1]


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file, its external data not yet read. Raises InvalidModelError, in one line, for what is no model."""
    shown = os.fspath(path)
    try:
        size = os.path.getsize(path)
        if size >= LARGEST_MESSAGE:
            raise InvalidModelError(
                f"{shown} has {size:,} bytes, and no ONNX message may have 2 GiB",
                hint="keep its weights in a file beside it (external data)",
            )
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidModelError(f"{shown}: no such file", hint="check the path") from None
    except IsADirectoryError:
        raise InvalidModelError(f"{shown} is a folder, not an ONNX file", hint="give the path of the .onnx file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidModelError(f"{shown} cannot be read: {reason}", hint="check the path and its permissions") from None
    if not data:
        raise InvalidModelError(f"{shown} is empty", hint="export or download the model again")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InvalidModelError(
            f"{shown} is not an ONNX file, or is cut short ({len(data):,} bytes)", hint="export or download the model again"
        ) from None
    check_header(model, shown)
    return model


def check_header(model: ModelProto, shown: str) -> None:
    """What a parsed message must have to be a model at all: bytes of another format often parse as an empty message."""
    check_text(model, shown)
    again = "the file may be cut short or of another format; export or download the model again"
    if model.ir_version < 1:
        raise InvalidModelError(f"{shown} is not an ONNX model: it has no IR version", hint=again)
    if not model.HasField("graph"):
        raise InvalidModelError(f"{shown} is not an ONNX model: it has no graph", hint=again)
    if model.ir_version >= 3 and not model.opset_import:
        raise InvalidModelError(f"{shown} imports no operator set", hint=again)
    if not model.graph.output:
        raise InvalidModelError(f"{shown}: the graph has no outputs", hint=again)


def check_text(model: ModelProto, shown: str) -> None:
    """Names must be UTF-8; protobuf hands over other bytes as they are. Tensors' contents are not touched."""
    stack: list[Message] = [model]
    while stack:
        message = stack.pop()
        if isinstance(message, TensorProto):
            values: list[Any] = [message.name, *(t for e in message.external_data for t in (e.key, e.value))]
        else:
            values = []
            for field, value in message.ListFields():
                if field.name == "doc_string" or field.cpp_type not in (field.CPPTYPE_STRING, field.CPPTYPE_MESSAGE):
                    continue
                each = [value] if isinstance(value, str | bytes | Message) else list(value)
                if field.type == field.TYPE_STRING:
                    values.extend(each)
                elif field.cpp_type == field.CPPTYPE_MESSAGE:
                    stack.extend(each)
        wrong = next((v for v in values if isinstance(v, bytes)), None)
        if wrong is not None:
            raise InvalidModelError(f"{shown}: the name {wrong[:40]!r} is not UTF-8", hint="the file may be damaged")


def opset_versions(model: ModelProto, shown: str) -> dict[str, int]:
    """Version of each imported operator set, by domain; "" and "ai.onnx" are the same."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version < 1:
            raise InvalidModelError(f"{shown} imports version {entry.version} of operator set {domain or 'ai.onnx'!r}")
        if versions.setdefault(domain, entry.version) != entry.version:
            raise InvalidModelError(f"{shown} imports two versions of operator set {domain or 'ai.onnx'!r}")
    if model.ir_version < 3:
        versions.setdefault("", 1)
    newest = newest_opset()
    if versions.get("", 1) > newest:
        item = f"operator set {versions['']}"
        raise UnsupportedError(
            f"{shown} uses {item}; the installed onnx package knows up to {newest}",
            items=(item,),
            hint="upgrade onnx, or export with a smaller opset_version",
        )
    return versions


def newest_opset() -> int:
    """The newest operator set that the installed onnx package knows."""
    return onnx.defs.onnx_opset_version()


# types of which a byte holds more than one: bits of each
PACKED_BITS = {"i4": 4, "u4": 4, "f4e2m1": 4, "i2": 2, "u2": 2, "f6e2m3": 6, "f6e3m2": 6}


def _unpacked(packed: np.ndarray, numel: int, width: int) -> np.ndarray:
    """Numbers of `width` bits, the first in the lowest bits, each in a byte of its own."""
    bits = np.unpackbits(packed, count=numel * width, bitorder="little").reshape(numel, width)
    return np.packbits(bits, axis=1, bitorder="little").reshape(numel)


def _bytes_stored(dtype: DType, numel: int) -> int:
    """As raw data: numbers of fewer than 8 bits lie side by side."""
    return -(-numel * PACKED_BITS.get(dtype.name, dtype.bits) // 8)


class TensorReader:
    """Turns tensors of a file into arrays; `folder` holds the external data (None: there is no file); `files` of it were read."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: list[str] = []
        self._maps: dict[str, np.ndarray] = {}

    def array(self, tensor: TensorProto) -> np.ndarray:
        """The elements. Raises InvalidModelError, or UnsupportedError for an element type that the IR does not have."""
        name = printable(tensor.name) or "a constant"
        dtype = element_type(tensor.data_type)
        shape = tuple(tensor.dims)
        if any(d < 0 for d in shape):
            raise InvalidModelError(f"tensor {name} has a negative dimension: {list(shape)}")
        if len(shape) > MOST_DIMENSIONS or math.prod(d for d in shape if d) * dtype.bytes >= 2**63:
            raise InvalidModelError(f"tensor {name} has a shape that no tensor can have: {str(shape)[:80]}")
        numel = math.prod(shape)
        width = PACKED_BITS.get(dtype.name, dtype.bits)
        wanted = _bytes_stored(dtype, numel)
        if tensor.HasField("segment"):
            raise InvalidModelError(f"tensor {name} is stored in segments, which ONNX no longer has")
        if tensor.data_location == TensorProto.EXTERNAL:
            raw = self._external(tensor, name, wanted)
        elif tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, dtype=np.uint8)
        else:
            return self._typed_fields(tensor, name, shape, numel)
        if raw.size != wanted:
            raise InvalidModelError(f"tensor {name} {list(shape)} of {dtype} takes {wanted:,} bytes, but {raw.size:,} are stored")
        if dtype.name == "bool":
            return (raw != 0).reshape(shape)
        if width < 8:
            return _unpacked(raw, numel, width).view(dtype.numpy).reshape(shape)
        if numel and raw.ctypes.data % min(dtype.bytes, 8):
            raw = raw.copy()
        return raw.view(dtype.numpy).reshape(shape)

    def dense(self, sparse: SparseTensorProto) -> np.ndarray:
        """The elements of a sparse tensor, zeros included. Raises InvalidModelError, or UnsupportedError for one too large."""
        values, places = self.array(sparse.values), self.array(sparse.indices)
        name, shape = printable(sparse.values.name) or "a constant", tuple(sparse.dims)
        numel = math.prod(shape)
        flat = values.ndim == 1 and places.dtype == np.int64 and len(places) == len(values) and places.ndim in (1, 2)
        if not shape or min(shape) < 0 or not flat or (places.ndim == 2 and places.shape[1] != len(shape)):
            raise InvalidModelError(f"sparse tensor {name} {list(shape)} has values {values.shape} at {places.shape}")
        if len(shape) > MOST_DIMENSIONS or numel * values.dtype.itemsize > LARGEST_DENSE:
            what = f"a sparse tensor of {numel:,} elements"
            raise UnsupportedError(what, items=(what,))
        limits = np.array(shape if places.ndim == 2 else [numel])
        if ((places < 0) | (places >= limits)).any():
            raise InvalidModelError(f"sparse tensor {name} {list(shape)} has values outside it")
        result = np.zeros(shape, values.dtype)
        result[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, shape)] = values
        return result

    def inlined(self, tensor: TensorProto) -> TensorProto:
        """The tensor with its bytes in the message. Raises InvalidModelError as `array` does."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        elements = self.array(tensor)  # which checks what the tensor says
        raw = self._external(tensor, printable(tensor.name), _bytes_stored(element_type(tensor.data_type), elements.size))
        return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw.tobytes())

    def _typed_fields(self, tensor: TensorProto, name: str, shape: tuple[int, ...], numel: int) -> np.ndarray:
        code = tensor.data_type
        if code in (TensorProto.FLOAT, TensorProto.COMPLEX64):
            values = tensor.float_data
        elif code in (TensorProto.DOUBLE, TensorProto.COMPLEX128):
            values = tensor.double_data
        elif code == TensorProto.INT64:
            values = tensor.int64_data
        elif code in (TensorProto.UINT32, TensorProto.UINT64):
            values = tensor.uint64_data
        else:
            values = tensor.int32_data
        dtype = element_type(code)
        width = PACKED_BITS.get(dtype.name, 8)
        if dtype.is_narrow:
            held = 8 // width if width in (2, 4) else 1  # six-bit numbers are packed in raw data only
            if len(values) != -(-numel // held):
                raise InvalidModelError(f"tensor {name} {list(shape)} of {dtype} is stored in {len(values):,} numbers")
            raw = np.asarray(values, dtype=np.int64).astype(np.uint8)
            codes = _unpacked(raw, numel, width) if held > 1 else raw & ((1 << width) - 1)
            return codes.view(dtype.numpy).reshape(shape)
        stored = len(values) // 2 if dtype.kind == "complex" else len(values)
        if stored != numel:
            raise InvalidModelError(f"tensor {name} {list(shape)} has {numel:,} elements, but {stored:,} are stored")
        if dtype.kind == "complex":
            return np.asarray(values, dtype=np.float64).view(np.complex128).astype(dtype.numpy).reshape(shape)
        if dtype.name in ("f16", "bf16"):
            return np.asarray(values, dtype=np.int64).astype(np.uint16).view(dtype.numpy).reshape(shape)
        if dtype.is_float:
            return np.asarray(values, dtype=dtype.numpy).reshape(shape)
        wide = np.asarray(values, dtype=np.uint64 if dtype.kind == "uint" and dtype.bits >= 32 else np.int64)
        return (wide != 0 if dtype.name == "bool" else wide.astype(dtype.numpy)).reshape(shape)

    def _external(self, tensor: TensorProto, name: str, wanted: int) -> np.ndarray:
        """The bytes of a tensor kept in a file of its own, mapped."""
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        data = self._map(name, location)
        numbers = {}
        for key, default in (("offset", 0), ("length", wanted)):
            text = entries.get(key, str(default))
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise InvalidModelError(f"tensor {name}: external data has {key} {text[:40]!r}, not a number of bytes")
            numbers[key] = int(text)
        offset, length = numbers["offset"], numbers["length"]
        if offset + length > data.size:
            raise InvalidModelError(
                f"tensor {name}: external data ends at byte {offset + length:,}, but {location} has {data.size:,}",
                hint="the data file is cut short or belongs to another model",
            )
        return data[offset : offset + length]

    def _map(self, name: str, location: str) -> np.ndarray:
        """All bytes of an external data file. The file must lie inside the model's folder, links followed."""
        if location in self._maps:
            return self._maps[location]
        if self.folder is None:
            raise InvalidModelError(
                f"tensor {name} is kept outside the model, in {location!r}",
                hint="give the path of the model instead of the model",
            )
        parts = location.replace("\\", "/").split("/")
        inside = location and "\0" not in location and not os.path.isabs(location) and ".." not in parts and ":" not in parts[0]
        folder = os.path.realpath(self.folder)
        file = os.path.realpath(os.path.join(folder, *parts)) if inside else ""
        if not inside or os.path.commonpath([folder, file]) != folder:
            raise InvalidModelError(
                f"tensor {name}: external data {location[:200]!r} lies outside the model's folder",
                hint="keep the data beside the model; a path upwards, an absolute path or a link out is refused",
            )
        if not os.path.isfile(file):
            raise InvalidModelError(f"tensor {name}: external data file {location} is missing", hint="keep it beside the model")
        try:
            data = np.frombuffer(map_file(file), np.uint8)
        except OSError as error:
            raise InvalidModelError(f"tensor {name}: external data file {location} cannot be read: {error.strerror}") from None
        data.flags.writeable = False
        self._maps[location] = data
        self.files.append(file)
        return data
