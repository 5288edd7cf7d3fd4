"""Text of numbers, names and attributes: exact, so that reading it gives the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import RESERVED_NAMES, Dim, Expression
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.text.scanner import IDENTIFIER, Scanner
from dlcompiler.ir.types import DType


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def show_name(name: str) -> str:
    """An identifier as it is, any other name as a string."""
    return name if IDENTIFIER.match(name) and name not in RESERVED_NAMES else quote(name)


def show_value(name: str, mark: str = "%") -> str:
    """`%name`, quoted where the name is not made of letters, digits, `_` and `.`."""
    plain = name.isidentifier() or name.replace(".", "0").replace("_", "0").isalnum()
    return mark + (name if plain else quote(name))


def show_labels(things: Iterable[Any]) -> dict[Any, str]:
    """What each thing with a `name` is called in a text: its name, with `~1`, `~2` behind where an earlier one has it too."""
    seen: dict[str, int] = {}
    labels: dict[Any, str] = {}
    for thing in things:
        count = seen.get(thing.name, 0)
        seen[thing.name] = count + 1
        labels[thing] = show_name(thing.name) + (f"~{count}" if count else "")
    return labels


def show_dims(dims: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def show_attributes(attributes: Mapping[str, Any]) -> str:
    """`{name = value, ...}`; raises VerifyError for a value that text cannot hold."""
    return "{" + ", ".join(f"{show_name(k)} = {show_attribute(v)}" for k, v in attributes.items()) + "}"


def show_attribute(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | Expression():
            return str(value)
        case float():
            return repr(value)
        case str():
            return quote(value)
        case complex():
            return f"complex({value.real!r}, {value.imag!r})"
        case tuple():
            return f"({', '.join(map(show_attribute, value))}{',' if len(value) == 1 else ''})"
        case list():
            return f"[{', '.join(map(show_attribute, value))}]"
        case Mapping():
            return show_attributes(value)
        case Graph():
            return str(value).strip()
    raise VerifyError(f"an attribute cannot be a {type(value).__name__}: {value!r}")


def show_element(value: Any, dtype: DType) -> str:
    """One element of a tensor: shortest decimal that reads back to the same bits, else `0x` and its bits."""
    if dtype.kind == "bool":
        return "true" if value else "false"
    if dtype.is_integer:
        return str(int(value))
    number = np.asarray(value).astype(dtype.numpy)[()]
    return f"({show_part(number.real)}, {show_part(number.imag)})" if dtype.kind == "complex" else show_part(number)


def show_part(value: Any) -> str:
    """A NumPy float."""
    bits = value.tobytes()
    for text in (str(value), repr(float(value))):
        if np.asarray(float(text)).astype(value.dtype).tobytes() == bits:
            return text if any(c in text for c in ".en") else f"{text}.0"
    return f"0x{int.from_bytes(bits, 'little'):0{2 * len(bits)}x}"


def read_element(scanner: Scanner, dtype: DType) -> Any:
    """The inverse of `show_element`: a NumPy number of `dtype`."""
    at = scanner.at
    if dtype.kind == "bool":
        if scanner.peek() not in ("true", "false"):
            scanner.unexpected("true or false")
        scanner.at += 1
        return np.bool_(scanner.tokens[at] == "true")
    if dtype.is_integer:
        number = -scanner.integer() if scanner.accept("-") else scanner.integer()
        info = np.iinfo(dtype.numpy)
        if not info.min <= number <= info.max:
            scanner.error(f"{number} does not fit {dtype}", at)
        return dtype.numpy.type(number)
    if dtype.kind == "complex":
        scanner.expect("(")
        half = np.dtype(f"float{dtype.bits // 2}")
        real = _read_part(scanner, half)
        scanner.expect(",")
        imaginary = _read_part(scanner, half)
        scanner.expect(")")
        return np.array([real, imaginary], dtype=half).view(dtype.numpy)[0]
    return _read_part(scanner, dtype.numpy)


def _read_part(scanner: Scanner, dtype: np.dtype) -> Any:
    token = scanner.peek()
    if token.startswith("0x"):
        at = scanner.at
        scanner.at += 1
        bits = int(token, 16)
        if bits >> (8 * dtype.itemsize):
            scanner.error(f"{token} has more bits than {dtype}", at)
        return np.frombuffer(bits.to_bytes(dtype.itemsize, "little"), dtype=dtype)[0]
    with np.errstate(all="ignore"):
        return np.asarray(scanner.float()).astype(dtype)[()]


def digest(array: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an array's elements, row major."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"sha256:{hashlib.sha256(flat.data).hexdigest()[:16]}"
