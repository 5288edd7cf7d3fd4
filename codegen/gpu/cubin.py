"""What a cubin says about itself: registers of a thread, and bytes that a thread keeps in local memory.

A cubin is an ELF file. A kernel's code is in `.text.NAME`, whose header's `info` holds the number of registers in its upper byte;
`.nv.info.NAME` and `.nv.info` are lists of attributes, one of which is the size of the stack frame: registers that were spilled,
and arrays that could not be kept in any.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dlcompiler.ir.errors import UnsupportedError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
# of one attribute: its format, whose value 4 means that a length and so many bytes follow; its kind
_SIZED = 4
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F


@dataclass(frozen=True)
class Resources:
    """What one thread of a kernel takes: registers, and bytes of local memory (0: nothing was spilled)."""

    registers: int
    local_bytes: int


def resources_of(cubin: bytes, name: str) -> Resources:
    """The resources of the kernel called `name`. Raises UnsupportedError for bytes that are no cubin with that kernel."""
    try:
        sections = sections_of(cubin)
    except struct.error:
        raise UnsupportedError("this is no cubin", items=("cubin",)) from None
    if f".text.{name}" not in sections:
        raise UnsupportedError(f"the cubin has no kernel {name}", items=(name,))
    info, _ = sections[f".text.{name}"]
    attributes = _attributes(sections.get(".nv.info", (0, b""))[1])
    registers = max((v for k, v in attributes if k == _REGISTERS), default=0) or info >> 24
    return Resources(registers, max((v for k, v in attributes if k == _FRAME_SIZE), default=0))


def sections_of(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Section name -> (`info` of its header, contents)."""
    header = _HEADER.unpack_from(data, 0)
    if header[0][:4] != b"\x7fELF":
        raise struct.error("no ELF file")
    table, size, count, names_at = header[6], header[11], header[12], header[13]
    headers = [_SECTION.unpack_from(data, table + size * k) for k in range(count)]
    names = data[headers[names_at][4] : headers[names_at][4] + headers[names_at][5]]
    found = {}
    for entry in headers:
        end = names.index(b"\0", entry[0])
        contents = b"" if entry[1] == 8 else data[entry[4] : entry[4] + entry[5]]  # type 8 has no bytes in the file
        found[names[entry[0] : end].decode()] = (entry[7], contents)
    return found


def _attributes(data: bytes) -> list[tuple[int, int]]:
    """(kind, value) of every attribute that is a symbol's number and one value."""
    found, at = [], 0
    while at + 4 <= len(data):
        form, kind, length = struct.unpack_from("<BBH", data, at)
        if form != _SIZED:
            at += 4
            continue
        if length == 8:
            found.append((kind, struct.unpack_from("<I", data, at + 8)[0]))
        at += 4 + length
    return found
