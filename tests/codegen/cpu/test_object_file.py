"""The loader of object files: every relocation, what is loaded where, and what is refused."""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.jit import TABLE_FUNCTION, compile_mlir, table_entries
from dlcompiler.codegen.cpu.library import call_lanes
from dlcompiler.codegen.cpu.object_file import ObjectFile, load_object
from dlcompiler.codegen.cpu.relocations import AARCH64, X86_64, ObjectFileError, Place, relocate, stub

on_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="runs x86-64 code")

# symbol, addend, place, table, slot, stub
PLACE = Place(symbol=0x12345678, addend=8, address=0x12340100, table=0x12341000, slot=0x12341018, stub=0x12340800)


@pytest.mark.parametrize(
    ("kind", "layout", "expected"),
    [
        (1, "<Q", 0x12345680),
        (2, "<i", 0x12340800 + 8 - 0x12340100),
        (4, "<i", 0x12340800 + 8 - 0x12340100),
        (9, "<i", 0x12341018 + 8 - 0x12340100),
        (10, "<I", 0x12345680),
        (11, "<i", 0x12345680),
        (24, "<q", 0x12345680 - 0x12340100),
        (25, "<q", 0x12345680 - 0x12341000),
        (26, "<i", 0x12341000 + 8 - 0x12340100),
        (27, "<q", 0x18 + 8),
        (28, "<q", 0x12341018 + 8 - 0x12340100),
        (29, "<q", 0x12341000 + 8 - 0x12340100),
        (31, "<q", 0x12340800 + 8 - 0x12341000),
        (41, "<i", 0x12341018 + 8 - 0x12340100),
        (42, "<i", 0x12341018 + 8 - 0x12340100),
    ],
)
def test_x86_64_relocations(kind: int, layout: str, expected: int) -> None:
    memory = bytearray(b"\xaa" * 16)
    relocate(memoryview(memory), 4, X86_64, kind, PLACE)
    assert struct.unpack_from(layout, memory, 4) == (expected,)
    assert memory[:4] == b"\xaa" * 4 and memory[4 + struct.calcsize(layout) :] == b"\xaa" * (12 - struct.calcsize(layout))


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        # as an assembler's output disassembles once linked to these addresses: adrp 0x12345000 from page 0x12340 is 5 pages on
        (275, 0x90000000, 0x90000000 | 1 << 29 | 1 << 5),  # adrp x0, +5 pages
        (311, 0x90000001, 0x90000001 | 1 << 29),  # adrp x1, page of the slot: 1 page on
        (277, 0x91000000, 0x91000000 | 0x680 << 10),  # add x0, x0, #0x680
        (278, 0x39400000, 0x39400000 | 0x680 << 10),  # ldrb w0, [x0, #0x680]
        (284, 0x79400000, 0x79400000 | 0x340 << 10),  # ldrh
        (285, 0xB9400000, 0xB9400000 | 0x1A0 << 10),  # ldr w0
        (286, 0xF9400000, 0xF9400000 | 0xD0 << 10),  # ldr x0
        (299, 0x3DC00000, 0x3DC00000 | 0x68 << 10),  # ldr q0
        (312, 0xF9400021, 0xF9400021 | 3 << 10),  # ldr x1, [x1, #0x18]
        (283, 0x94000000, 0x94000000 | 0x708 >> 2),  # bl stub + 8
        (282, 0x14000000, 0x14000000 | 0x708 >> 2),  # b
        (264, 0xD2800000, 0xD2800000 | 0x5680 << 5),  # movz x0, #0x5680
        (266, 0xF2A00000, 0xF2A00000 | 0x1234 << 5),  # movk x0, #0x1234, lsl 16
        (268, 0xF2C00000, 0xF2C00000),
        (269, 0xF2E00000, 0xF2E00000),
        (257, 0, 0x12345680),
        (258, 0, 0x12345680),
        (260, 0, 0x5580),
        (261, 0, 0x5580),
    ],
)
def test_aarch64_relocations(kind: int, before: int, after: int) -> None:
    memory = bytearray(struct.pack("<IQ", before, 0))
    relocate(memoryview(memory), 0, AARCH64, kind, PLACE)
    assert struct.unpack_from("<I", memory)[0] == after


def test_aarch64_goes_backwards_and_to_both_ends() -> None:
    memory = bytearray(4)
    back = Place(symbol=0x1000, addend=0, address=0x3004, table=0, slot=0, stub=0x3000)
    relocate(memoryview(memory), 0, AARCH64, 283, back)
    assert struct.unpack("<I", memory)[0] == 0x3FFFFFF  # -1 word
    memory = bytearray(4)
    relocate(memoryview(memory), 0, AARCH64, 275, back)
    assert struct.unpack("<I", memory)[0] == (-2 & 3) << 29 | 0x7FFFF << 5  # -2 pages


@pytest.mark.parametrize(("machine", "kind"), [(X86_64, 2), (X86_64, 10), (X86_64, 11), (AARCH64, 275), (AARCH64, 283)])
def test_what_does_not_fit_is_refused(machine: int, kind: int) -> None:
    far = Place(symbol=1 << 40, addend=0, address=0, table=0, slot=0, stub=1 << 40)
    with pytest.raises(ObjectFileError, match=r"does not fit|too far"):
        relocate(memoryview(bytearray(8)), 0, machine, kind, far)


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
def test_an_unknown_relocation_is_refused(machine: int) -> None:
    with pytest.raises(ObjectFileError, match="type 9999"):
        relocate(memoryview(bytearray(8)), 0, machine, 9999, PLACE)


def test_stubs() -> None:
    assert stub(X86_64, 0x1000, 0x1106, 5)[:6] == b"\xff\x25\x00\x01\x00\x00"
    assert struct.unpack("<IIQ", stub(AARCH64, 0x1000, 0x1106, 5)) == (0x58000050, 0xD61F0200, 5)


# -- whole objects -----------------------------------------------------------------------------------------------------------

ALLOC, WRITE, EXECUTE = 2, 1, 4


def elf(
    sections: Sequence[tuple[str, int, int, bytes | int]],
    symbols: Sequence[tuple[str, int, int]],
    relocations: Sequence[tuple[int, int, str, int]] = (),
    machine: int = X86_64,
) -> bytes:
    """An object file. Sections are (name, flags, alignment, contents or a number of zeros), numbered from 1; symbols (name,
    section, value), section 0 for an outside one; relocations of section 1 (offset, type, symbol, addend).
    """
    names = [name for name, *_ in symbols]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    table = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", strings.index(name.encode() + b"\0"), 16 | (2 if home else 0), 0, home, value, 0)
        for name, home, value in symbols
    )
    rela = b"".join(struct.pack("<QQq", at, (1 + names.index(name)) << 32 | kind, add) for at, kind, name, add in relocations)
    count = len(sections)
    plain = [(n, 8 if isinstance(c, int) else 1, f, a, c, 0, 0) for n, f, a, c in sections]
    made = [
        *plain,
        (".rela.text", 4, 0, 8, rela, count + 2, 1),
        (".symtab", 2, 0, 8, table, count + 3, 1),
        (".strtab", 3, 0, 1, strings, 0, 0),
    ]
    section_names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in made) + b".names\0"
    made.append((".names", 3, 0, 1, section_names, 0, 0))
    body, headers = b"", [bytes(64)]
    for name, kind, flags, alignment, contents, link, info in made:
        size = contents if isinstance(contents, int) else len(contents)
        at = section_names.index(b"\0" + name.encode() + b"\0") + 1
        headers.append(struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, 64 + len(body), size, link, info, alignment, 0))
        body += b"" if isinstance(contents, int) else contents
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(headers), len(headers) - 1)
    return head + body + b"".join(headers)


CODE = bytes.fromhex(
    "8b05 00000000 c3"  # 0: mov eax, [rip + constant]; ret
    "90"
    "4883ec08 e8 00000000 4883c408 c3"  # 8: sub rsp, 8; call strlen; add rsp, 8; ret
    "9090"
    "488b05 00000000 ffe0"  # 24: mov rax, [rip + slot of strlen]; jmp rax
    "90909090909090"
    "48b8 0000000000000000 ff00 8b00 c3"  # 40: movabs rax, counter; inc dword [rax]; mov eax, [rax]; ret
)
SECTIONS = [
    (".text", ALLOC | EXECUTE, 16, CODE),
    (".rodata", ALLOC, 64, struct.pack("<ii", 1, 4711)),
    (".bss", ALLOC | WRITE, 32, 4096 * 3),
    (".data", ALLOC | WRITE, 8, struct.pack("<q", 6)),
    (".eh_frame", ALLOC, 8, bytes(24)),
    (".comment", 0, 1, b"not loaded"),
]
SYMBOLS = [
    ("constant", 1, 0), ("length", 1, 8), ("length_by_table", 1, 24), ("count", 1, 40),
    ("numbers", 2, 4), ("counter", 3, 4096), ("strlen", 0, 0),
]  # fmt: skip
RELOCATIONS = [(2, 2, "numbers", -4), (13, 4, "strlen", -4), (27, 42, "strlen", -4), (42, 1, "counter", 4)]


@on_x86_64
def test_code_finds_its_constants_its_data_and_the_c_library() -> None:
    loaded = load_object(elf(SECTIONS, SYMBOLS, RELOCATIONS))
    constant = loaded.function("constant", result=ctypes.c_int)
    assert constant(0, 0, 0) == 4711
    for name in ("length", "length_by_table"):
        assert loaded.function(name, ctypes.c_char_p, result=ctypes.c_size_t)(b"twelve bytes") == 12
    count = loaded.function("count", result=ctypes.c_int)
    assert [count(0, 0, 0) for _ in range(3)] == [1, 2, 3]
    again = load_object(elf(SECTIONS, SYMBOLS, RELOCATIONS)).function("count", result=ctypes.c_int)
    assert again(0, 0, 0) == 1  # a mapping of its own, that the function keeps


@on_x86_64
def test_no_memory_can_be_written_and_run() -> None:
    loaded = load_object(elf(SECTIONS, SYMBOLS, RELOCATIONS))
    start = loaded.address("constant")
    rights = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        for page in (0, 4096, 8192):
            if low <= start + page < high:
                rights[page] = line.split()[1]
    assert rights == {0: "r-xp", 4096: "r--p", 8192: "rw-p"}


def test_only_functions_have_addresses() -> None:
    with pytest.raises(ObjectFileError, match="no function 'strlen'"):
        load_object(elf(SECTIONS, SYMBOLS, RELOCATIONS)).address("strlen")


def test_a_symbol_that_is_nowhere_is_named() -> None:
    with pytest.raises(ObjectFileError, match="no_such_function_at_all"):
        load_object(elf(SECTIONS, [*SYMBOLS, ("no_such_function_at_all", 0, 0)]))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a 64-bit"),
        (b"MZ" + bytes(100), "not a 64-bit"),
        (b"\x7fELF\x02\x01", "not an object file"),
        (elf(SECTIONS, SYMBOLS, machine=8), "for machine 8"),
        (elf(SECTIONS, SYMBOLS)[:-1], "not an object file"),
        (elf([(".tdata", ALLOC | WRITE | 0x400, 8, bytes(8))], []), "thread-local"),
        (elf([(".rodata", ALLOC, 1 << 20, bytes(8))], []), "more than a page"),
        (elf(SECTIONS, [("common", 0xFFF2, 0)]), "common"),
    ],
)
def test_refused(data: bytes, says: str) -> None:
    with pytest.raises(ObjectFileError, match=says):
        load_object(data)


def test_cut_objects_are_refused_or_whole() -> None:
    data = elf(SECTIONS, SYMBOLS, RELOCATIONS)
    for length in range(0, len(data), 7):
        with pytest.raises(ObjectFileError):
            load_object(data[:length])


@on_x86_64
def test_what_mlir_makes_goes_round() -> None:
    e = Emitter()
    with e.func("apply", [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
        source, target = e.buffers(words, 2)
        with e.for_loop(low, high) as loop:
            x = e.load(source, loop.index, "f64")
            e.store(e.add(call_lanes(e, "lgamma", x), 0.5), target, loop.index)
    module = compile_mlir(e.text(), ["apply"])
    assert module.object is not None
    assert {"apply", TABLE_FUNCTION} <= {s.name for s in ObjectFile.parse(module.object).symbols}
    assert table_entries(module.address(f"_mlir_{TABLE_FUNCTION}"), ["apply"]) == {"apply": module.address("apply")}
    source, target = (ctypes.c_double * 3)(1.0, 3.0, 5.0), (ctypes.c_double * 3)()
    words = (ctypes.c_void_p * 2)(ctypes.addressof(source), ctypes.addressof(target))
    load_object(module.object).function("apply")(ctypes.addressof(words), 0, 3)
    assert list(target) == pytest.approx([0.5, 0.5 + 0.6931471805599453, 0.5 + 3.1780538303479458])
