"""Loads a relocatable ELF object, as LLVM writes it, into this process: what a linker and a loader do, without LLVM.

    loaded = load_object(data, libraries=["/.../libgomp.so.1"])
    loaded.function("kernel")(words, 0, work)

One anonymous mapping holds everything: first the code with stubs for functions that are too far away to call, then constants with
the table of addresses, then what is written to. Memory is never writable and executable at once. Unwinding tables are left
out: nothing throws through this code.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dlcompiler.codegen.cpu.relocations import AARCH64, STUB_BYTES, X86_64, ObjectFileError, Place, relocate, stub

ELF_MAGIC = b"\x7fELF"
# ELF's numbers, by ELF's names
SHT_SYMTAB, SHT_RELA, SHT_NOBITS = 2, 4, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_TLS = 1, 2, 4, 0x400
SHN_UNDEF, SHN_ABS, SHN_COMMON = 0, 0xFFF1, 0xFFF2
STB_WEAK, STT_FUNC = 2, 2
ET_REL = 1
CODE, CONSTANTS, DATA = range(3)


@dataclass(frozen=True)
class Section:
    """A section's header. `offset` and `size` are bytes of the file."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int

    @property
    def is_loaded(self) -> bool:
        """Whether it takes memory in a process: code, constants, data."""
        return bool(self.flags & SHF_ALLOC) and self.size > 0 and self.name != ".eh_frame"

    @property
    def region(self) -> int:
        """Where it belongs: CODE, CONSTANTS or DATA."""
        return CODE if self.flags & SHF_EXECINSTR else DATA if self.flags & SHF_WRITE else CONSTANTS


@dataclass(frozen=True)
class Symbol:
    """A name for the place `value` bytes into section number `section`."""

    name: str
    section: int
    value: int
    binding: int
    kind: int


@dataclass(frozen=True)
class ObjectFile:
    """An object file, parsed; nothing of it is loaded yet."""

    data: bytes
    machine: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    @classmethod
    def parse(cls, data: bytes) -> ObjectFile:
        """Raises ObjectFileError for anything but a 64-bit little-endian relocatable object for x86-64 or aarch64."""
        try:
            return cls._parse(data)
        except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
            raise ObjectFileError(f"not an object file: {error}") from None

    @classmethod
    def _parse(cls, data: bytes) -> ObjectFile:
        if data[:6] != ELF_MAGIC + b"\x02\x01":
            raise ObjectFileError("not a 64-bit little-endian ELF file")
        kind, machine = struct.unpack_from("<HH", data, 16)
        if kind != ET_REL or machine not in (X86_64, AARCH64):
            raise ObjectFileError(f"an ELF file of type {kind} for machine {machine} is not a relocatable object known here")
        (table,) = struct.unpack_from("<Q", data, 40)
        width, count, names = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + width * k) for k in range(count)]
        strings = headers[names][4]
        sections = tuple(
            Section(_text(data, strings + name), type, flags, offset, size, link, info, max(1, alignment))
            for name, type, flags, _, offset, size, link, info, alignment, _ in headers
        )
        for section in sections:
            if section.type != SHT_NOBITS and section.offset + section.size > len(data):
                raise ObjectFileError(f"section {section.name} reaches beyond the end of the file")
        symbols: list[Symbol] = []
        for section in sections:
            if section.type == SHT_SYMTAB:
                strings = sections[section.link].offset
                for at in range(section.offset, section.offset + section.size, 24):
                    name, info, _, home, value, _ = struct.unpack_from("<IBBHQQ", data, at)
                    symbols.append(Symbol(_text(data, strings + name), home, value, info >> 4, info & 15))
        return cls(data, machine, sections, tuple(symbols))

    def relocations(self) -> Iterable[tuple[int, int, int, Symbol, int, int]]:
        """(section, offset within it, type, symbol, the symbol's number, addend) for each one of a section that is loaded."""
        for section in self.sections:
            if section.type == SHT_RELA and self.sections[section.info].is_loaded:
                for at in range(section.offset, section.offset + section.size, 24):
                    offset, info, addend = struct.unpack_from("<QQq", self.data, at)
                    yield section.info, offset, info & 0xFFFFFFFF, self.symbols[info >> 32], info >> 32, addend


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


class LoadedObject:
    """Code in memory. The addresses are valid as long as this object lives."""

    def __init__(self, addresses: dict[str, int], keep_alive: Any) -> None:
        self.addresses = addresses
        self.keep_alive = keep_alive

    def address(self, name: str) -> int:
        """The plain C address of a function. Raises ObjectFileError if there is none of that name."""
        if name not in self.addresses:
            raise ObjectFileError(f"no function {name!r}")
        return self.addresses[name]

    def function(self, name: str, *argument_types: Any, result: Any = None) -> Any:
        """A function for ctypes that keeps this object alive; the default arguments are (void **, int64_t, int64_t)."""
        kinds = argument_types or (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        function: Any = ctypes.CFUNCTYPE(result, *kinds)(self.address(name))
        function.module = self
        return function


def load_object(data: bytes, libraries: Sequence[str] = ()) -> LoadedObject:
    """Map an object's code and data, with every address in it filled in.

    libraries   files of shared libraries that hold symbols which the C library, libm and this program do not
    Raises ObjectFileError for an object that cannot be loaded or names a symbol that is nowhere, OSError where the system
    gives no executable memory.
    """
    parsed = ObjectFile.parse(data)
    try:
        return _Loading(parsed, libraries).load()
    except (struct.error, IndexError) as error:
        raise ObjectFileError(f"not an object file that can be loaded: {error}") from None


class _Loading:
    """The steps of `load_object`: where everything lies, what it holds, who may do what with it."""

    def __init__(self, parsed: ObjectFile, libraries: Sequence[str]) -> None:
        self.parsed = parsed
        self.libraries = libraries
        self.undefined = {k: s for k, s in enumerate(parsed.symbols) if s.section == SHN_UNDEF and s.name}
        self.offsets: dict[int, int] = {}  # section -> bytes from the start of the mapping
        self.stubs: dict[int, int] = {}  # symbol -> bytes from the start of the mapping
        self.starts = self._lay_out()
        # private, so that a fork's child has its own
        self.memory = mmap.mmap(-1, self.starts[-1], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.external = {
            k: 0 if s.name == "_GLOBAL_OFFSET_TABLE_" else _find(s.name, libraries, optional=s.binding == STB_WEAK)
            for k, s in self.undefined.items()
        }

    def _lay_out(self) -> list[int]:
        """Place sections, stubs and the table; gives the start of each region and the end, all multiples of a page."""
        starts, at = [], 0
        for region in (CODE, CONSTANTS, DATA):
            starts.append(at)
            for number, section in enumerate(self.parsed.sections):
                if section.flags & SHF_TLS:
                    raise ObjectFileError("thread-local data is not known")
                if section.is_loaded and section.region == region:
                    if section.alignment > mmap.PAGESIZE:
                        raise ObjectFileError(f"section {section.name} is aligned to more than a page")
                    at = _aligned(at, section.alignment)
                    self.offsets[number] = at
                    at += section.size
            at = _aligned(at, 16)
            if region == CODE:
                for symbol in self.undefined:
                    self.stubs[symbol] = at
                    at += STUB_BYTES
            elif region == CONSTANTS:
                self.table = at
                at += 8 * len(self.parsed.symbols)
            at = _aligned(at, mmap.PAGESIZE)
        return [*starts, max(at, mmap.PAGESIZE)]

    def load(self) -> LoadedObject:
        parsed, base = self.parsed, self.base
        for number, offset in self.offsets.items():
            section = parsed.sections[number]
            if section.type != SHT_NOBITS:
                self.memory[offset : offset + section.size] = parsed.data[section.offset : section.offset + section.size]
        for symbol, offset in self.stubs.items():
            slot = base + self.table + 8 * symbol
            code = stub(parsed.machine, base + offset, slot, self.external[symbol])
            self.memory[offset : offset + STUB_BYTES] = code
        addresses = [self._address(number, symbol) for number, symbol in enumerate(parsed.symbols)]
        with memoryview(self.memory) as view:
            struct.pack_into(f"<{len(addresses)}Q", view, self.table, *addresses)
            for number, offset, kind, _, index, addend in parsed.relocations():
                place = Place(
                    symbol=addresses[index],
                    addend=addend,
                    address=base + self.offsets[number] + offset,
                    table=base + self.table,
                    slot=base + self.table + 8 * index,
                    stub=base + self.stubs[index] if index in self.stubs else addresses[index],
                )
                relocate(view, self.offsets[number] + offset, parsed.machine, kind, place)
        self._protect()
        functions = {
            symbol.name: addresses[number]
            for number, symbol in enumerate(parsed.symbols)
            if symbol.kind == STT_FUNC and symbol.section in self.offsets
        }
        return LoadedObject(functions, self.memory)

    def _address(self, number: int, symbol: Symbol) -> int:
        if symbol.section == SHN_COMMON:
            raise ObjectFileError(f"common symbol {symbol.name} is not known")
        if number in self.external:
            return self.base + self.table if symbol.name == "_GLOBAL_OFFSET_TABLE_" else self.external[number]
        if symbol.section == SHN_ABS:
            return symbol.value
        return self.base + self.offsets[symbol.section] + symbol.value if symbol.section in self.offsets else 0

    def _protect(self) -> None:
        """Code may be run and read, constants read."""
        code, constants, data, _ = self.starts
        library = ctypes.CDLL(None, use_errno=True)
        for start, end, rights in ((code, constants, mmap.PROT_READ | mmap.PROT_EXEC), (constants, data, mmap.PROT_READ)):
            place, size = ctypes.c_void_p(self.base + start), ctypes.c_size_t(end - start)
            if end > start and library.mprotect(place, size, rights):
                number = ctypes.get_errno()
                raise OSError(number, f"no executable memory for compiled code: {os.strerror(number)}")
        if self.parsed.machine == AARCH64:  # its instruction caches do not see what was written
            clear = getattr(ctypes.CDLL("libgcc_s.so.1"), "__clear_cache")
            clear(ctypes.c_void_p(self.base + code), ctypes.c_void_p(self.base + constants))


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _find(name: str, libraries: Sequence[str], optional: bool) -> int:
    """The address of a function of this program, the C library, libm, the compiler's own or `libraries`."""
    for library in (*libraries, None, "libm.so.6", "libgcc_s.so.1"):
        try:
            return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    if optional:
        return 0
    raise ObjectFileError(f"symbol {name} is not in this program and not in {', '.join(libraries) or 'any library'}")
