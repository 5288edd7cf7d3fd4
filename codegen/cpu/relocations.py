"""What a linker writes into code: the relocations of ELF objects that LLVM makes for x86-64 and aarch64.

Letters as in the processors' ABI documents: S is the address of the symbol, A the addend, P the address of the place that is
written, GOT the address of the table of addresses, G of the symbol's slot in it, L of something near that jumps to the symbol.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

X86_64, AARCH64 = 62, 183  # e_machine
STUB_BYTES = 16


class ObjectFileError(Exception):
    """An object file that cannot be loaded: damaged, or holding what this loader does not know."""


@dataclass(frozen=True)
class Place:
    """One relocation with every address known: what the module's docstring calls S, A, P, GOT, G and L."""

    symbol: int
    addend: int
    address: int
    table: int
    slot: int
    stub: int

    @property
    def target(self) -> int:
        """S + A."""
        return self.symbol + self.addend


def _page(address: int) -> int:
    return address >> 12


# type -> (struct format, value)
_X86_64: dict[int, tuple[str, Callable[[Place], int]]] = {
    0: ("", lambda r: 0),  # NONE
    1: ("<Q", lambda r: r.target & (1 << 64) - 1),  # 64
    2: ("<i", lambda r: r.stub + r.addend - r.address),  # PC32
    4: ("<i", lambda r: r.stub + r.addend - r.address),  # PLT32
    9: ("<i", lambda r: r.slot + r.addend - r.address),  # GOTPCREL
    10: ("<I", lambda r: r.target),  # 32
    11: ("<i", lambda r: r.target),  # 32S
    24: ("<q", lambda r: r.target - r.address),  # PC64
    25: ("<q", lambda r: r.target - r.table),  # GOTOFF64
    26: ("<i", lambda r: r.table + r.addend - r.address),  # GOTPC32
    27: ("<q", lambda r: r.slot - r.table + r.addend),  # GOT64
    28: ("<q", lambda r: r.slot + r.addend - r.address),  # GOTPCREL64
    29: ("<q", lambda r: r.table + r.addend - r.address),  # GOTPC64
    31: ("<q", lambda r: r.stub + r.addend - r.table),  # PLTOFF64
    41: ("<i", lambda r: r.slot + r.addend - r.address),  # GOTPCRELX
    42: ("<i", lambda r: r.slot + r.addend - r.address),  # REX_GOTPCRELX
}

_AARCH64_DATA: dict[int, tuple[str, Callable[[Place], int]]] = {
    0: ("", lambda r: 0),  # NONE
    257: ("<Q", lambda r: r.target & (1 << 64) - 1),  # ABS64
    258: ("<I", lambda r: r.target),  # ABS32
    260: ("<q", lambda r: r.target - r.address),  # PREL64
    261: ("<i", lambda r: r.target - r.address),  # PREL32
}


def _adr_page(r: Place, target: int) -> int:
    """The pages from here to there, as `adrp` holds them: two low bits at 29, nineteen at 5."""
    pages = _signed(_page(target) - _page(r.address), 21, "page")
    return (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _branch(r: Place) -> int:
    distance = r.stub + r.addend - r.address
    return _signed(distance >> 2, 26, "branch") & 0x3FFFFFF


def _low_bits(shift: int) -> Callable[[Place], int]:
    """The address within its page, in units of the access's 1 << shift bytes, at bit 10."""
    return lambda r: (r.target & 0xFFF) >> shift << 10


def _move(piece: int) -> Callable[[Place], int]:
    """Sixteen bits of the address, at bit 5."""
    return lambda r: (r.target >> 16 * piece & 0xFFFF) << 5


# type -> (bits of the instruction that are replaced, what they become)
_AARCH64_CODE: dict[int, tuple[int, Callable[[Place], int]]] = {
    **{263 + k: (0xFFFF << 5, _move(k // 2)) for k in range(7)},  # MOVW_UABS_G0, G0_NC, G1, G1_NC, G2, G2_NC, G3
    275: (0x60FFFFE0, lambda r: _adr_page(r, r.target)),  # ADR_PREL_PG_HI21
    276: (0x60FFFFE0, lambda r: _adr_page(r, r.target)),  # ADR_PREL_PG_HI21_NC
    277: (0xFFF << 10, _low_bits(0)),  # ADD_ABS_LO12_NC
    278: (0xFFF << 10, _low_bits(0)),  # LDST8_ABS_LO12_NC
    282: (0x3FFFFFF, _branch),  # JUMP26
    283: (0x3FFFFFF, _branch),  # CALL26
    284: (0xFFF << 10, _low_bits(1)),  # LDST16_ABS_LO12_NC
    285: (0xFFF << 10, _low_bits(2)),  # LDST32_ABS_LO12_NC
    286: (0xFFF << 10, _low_bits(3)),  # LDST64_ABS_LO12_NC
    299: (0xFFF << 10, _low_bits(4)),  # LDST128_ABS_LO12_NC
    311: (0x60FFFFE0, lambda r: _adr_page(r, r.slot)),  # ADR_GOT_PAGE
    312: (0xFFF << 10, lambda r: (r.slot & 0xFFF) >> 3 << 10),  # LD64_GOT_LO12_NC
}


def _signed(value: int, bits: int, what: str) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ObjectFileError(f"a {what} is too far away")
    return value


def relocate(memory: memoryview, offset: int, machine: int, kind: int, place: Place) -> None:
    """Write one relocation of type `kind` at `memory[offset:]`.

    Raises ObjectFileError for a type that is not known, and for a value that does not fit.
    """
    if machine == AARCH64 and kind in _AARCH64_CODE:
        mask, field = _AARCH64_CODE[kind]
        (instruction,) = struct.unpack_from("<I", memory, offset)
        struct.pack_into("<I", memory, offset, instruction & ~mask | field(place))
        return
    known = {X86_64: _X86_64, AARCH64: _AARCH64_DATA}[machine]
    if kind not in known:
        raise ObjectFileError(f"relocation of type {kind} for machine {machine} is not known")
    layout, value = known[kind]
    try:
        struct.pack_into(layout, memory, offset, *([value(place)] if layout else []))
    except struct.error:
        raise ObjectFileError(f"a relocation of type {kind} does not fit, or lies outside of its section") from None


def stub(machine: int, address: int, slot: int, target: int) -> bytes:
    """Code of STUB_BYTES at `address` that jumps to `target`, whose address stands in the table at `slot`."""
    if machine == X86_64:  # jmp [rip + distance]
        return (b"\xff\x25" + struct.pack("<i", slot - address - 6)).ljust(STUB_BYTES, b"\xcc")
    return struct.pack("<IIQ", 0x58000050, 0xD61F0200, target)  # ldr x16, the last 8 bytes; br x16
