"""Compiled programs kept on this machine's disk: a file that was compiled here before runs without being compiled again.

    place = Place("load", target, options, shapes)
    found = find(place, path)       # None: compile it
    keep(place, compiled)           # once it was

Three kinds of entries in the cache folder (`codegen/cache.py`). *seen*, named by a file's place, inode, size and times: what it
holds and which other files belong to it, so that nothing large is read to find out that nothing has changed. *program*, named by
what the files hold, every option, our own sources and this processor: a `KeptProgram`, the objects of its functions, and where in
the files each constant lies. *constants*: those that are in no file, folded while compiling.

A model file carries no code for a CPU and cannot bring any: only what this machine compiled itself, from the same contents, is
found, and the folder is its owner's alone. This module imports neither torch nor the compiler.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcompiler import extend
from dlcompiler.codegen.cache import Store, entry_name, open_store
from dlcompiler.codegen.cpu.driver import driver_names
from dlcompiler.codegen.cpu.jit import libgomp
from dlcompiler.codegen.cpu.machine import host, processor
from dlcompiler.codegen.cpu.machine_code import load_functions, objects_of
from dlcompiler.files import FileState, file_state
from dlcompiler.ir.expression import known
from dlcompiler.options import OF_THIS_MACHINE, Options
from dlcompiler.runtime.kept import KeptExecutable, KeptProgram
from dlcompiler.version import __version__
from dlcompiler.weights import map_file, place_in_file

if TYPE_CHECKING:
    from dlcompiler.compiled import Compiled
    from dlcompiler.ir.program import Program

FORMAT = "1"
MOST_CONSTANT_BYTES = 256 << 20  # that are in no file
Shapes = Mapping[str, Sequence[int | str]] | None


class Place:
    """Where the program of a file, read and compiled in one way, is kept. `store` is None where it is not to be."""

    def __init__(self, way: str, target: str | None, options: Options, shapes: Shapes) -> None:
        is_plain = (
            (target is None or target.partition(":")[0] == "cpu")
            and options.dump_dir is None
            and not (options.verify or options.tune_budget or options.logs or options.disable_cache)
            and extend.is_empty()
        )
        self.store: Store | None = open_store(options) if is_plain else None
        explicit = sorted(name for name, origin in options.sources.items() if origin == "explicit")
        values = {name: value for name, value in options.as_dict().items() if name not in OF_THIS_MACHINE}
        self.settings = json.dumps([way, target, explicit, values, {n: list(shape) for n, shape in (shapes or {}).items()}])

    def program_entry(self, content: str) -> str:
        return entry_name("program", FORMAT, __version__, compiler_state(), f"{host()} {processor()}", self.settings, content)


@cache
def compiler_state() -> str:
    """Changes with every change of our own sources: their sizes and times. (Reading them all takes longer than many a model.)"""
    facts = []
    for package in ("", ".ir", ".passes", ".codegen", ".runtime"):
        for folder in import_module(f"dlcompiler{package}").__path__:
            facts += _source_facts(folder)
    return json.dumps(sorted(facts))


def _source_facts(folder: str) -> list[tuple[str, int, int]]:
    facts = []
    with os.scandir(folder) as found:
        for item in found:
            if item.name.endswith(".py"):
                status = item.stat()
                facts.append((item.path, status.st_size, status.st_mtime_ns))
            elif item.is_dir() and item.name != "__pycache__":
                facts += _source_facts(item.path)
    return facts


# -- what files hold -----------------------------------------------------------------------------------------------------------


def _seen_entry(state: FileState) -> str:
    return entry_name("seen", FORMAT, json.dumps([state.path, state.facts]))


def _remember(store: Store, content: str, files: Sequence[FileState]) -> None:
    """That the first of the files, with the others, holds `content`; not of files so new that a change might not show."""
    if all(state.facts is not None and state.settled for state in files):
        payload = {"content": content, "files": [[state.path, state.facts] for state in files]}
        store.put(_seen_entry(files[0]), json.dumps(payload).encode())


def _content_of(store: Store, path: str) -> tuple[str, list[str]] | None:
    """What a file holds, and the files that belong to it; None where they have not been read before, or have changed since."""
    state = file_state(path)
    if state.facts is None:
        return None
    payload = store.get(_seen_entry(state))
    if payload is not None:
        seen = json.loads(payload)
        states = [file_state(place) for place, _ in seen["files"]]
        same = all(now.path == place and now.facts == tuple(facts) for now, (place, facts) in zip(states, seen["files"]))
        return (seen["content"], [now.path for now in states]) if same else None
    if not path.endswith(".dlc"):
        return None
    from dlcompiler.artifact import content_digest
    from dlcompiler.ir.errors import InvalidModelError

    try:
        content = content_digest(path)
    except InvalidModelError:  # said by whoever reads it next
        return None
    _remember(store, content, [state])
    return content, [state.path]


# -- programs ------------------------------------------------------------------------------------------------------------------


def find(place: Place, path: str) -> tuple[KeptExecutable, dict[str, Any]] | None:
    """What runs the model in a file, and its names: `{"inputs": [...], "outputs": [...]}`; None where it has to be compiled."""
    if place.store is None or (content := _content_of(place.store, path)) is None:
        return None
    payload = place.store.get(place.program_entry(content[0]))
    if payload is None:
        return None
    found = json.loads(payload)
    program = KeptProgram.from_dict(found["program"])
    names = [*program.functions, driver_names()["driver"]]
    functions = load_functions(names, found["objects"], place.store, libgomp())
    constants = _constants(found, content[1], place.store)
    if functions is None or constants is None:
        return None
    addresses = [function.address for function in functions]
    code = [function.code for function in functions]
    return KeptExecutable(program, addresses[:-1], addresses[-1], constants, code), found["names"]


def _constants(found: Mapping[str, Any], files: Sequence[str], store: Store) -> list[np.ndarray] | None:
    """The bytes of each constant: mapped from the model's files, or out of an entry of their own."""
    memory: dict[int, Any] = {}
    if found["constants"]:
        data = store.get(found["constants"])
        if data is None:
            return None
        memory[-1] = data
    arrays = []
    for file, offset, size in found["places"]:
        if file not in memory:
            try:
                memory[file] = map_file(files[file])
            except OSError:
                return None
        if offset + size > len(memory[file]):
            return None
        arrays.append(np.frombuffer(memory[file], np.uint8, size, offset))
    return arrays


def keep(place: Place, compiled: Compiled) -> None:
    """Keep what was compiled from a file, where it can run without torch and its sizes are known."""
    from dlcompiler.runtime.executable import Executable
    from dlcompiler.runtime.freeze import freeze

    source, executable = compiled.source, compiled.executable
    if place.store is None or not source.files or not isinstance(executable, Executable) or compiled.program.symbols:
        return
    if len(source.targets) > 1:  # which of them is taken depends on the GPU that is there
        return
    program = freeze(compiled.program, executable.placement())
    if program is None:
        return
    names = [*program.functions, driver_names()["driver"]]
    objects = objects_of(names, place.store)
    gathered = _gathered(compiled.program, [os.path.realpath(state.path) for state in source.files])
    if objects is None or gathered is None:
        return
    places, loose = gathered
    content = source.content or entry_name("seen", *(json.dumps([state.path, state.facts]) for state in source.files))
    entry = ""
    if loose:
        entry = entry_name("constants", loose)
        place.store.put(entry, loose)
    document = {
        "program": program.as_dict(),
        "objects": objects,
        "places": places,
        "constants": entry,
        "names": {"inputs": compiled.input_names, "outputs": compiled.output_names},
    }
    place.store.put(place.program_entry(content), json.dumps(document).encode())
    _remember(place.store, content, source.files)


def _gathered(program: Program, files: Sequence[str]) -> tuple[list[tuple[int, int, int]], bytes] | None:
    """(file, offset, bytes) of each constant, and the bytes of those in no file (-1), at multiples of 64; None: too many."""
    loose = bytearray()
    places = []
    slots = {slot.position: slot for slot in program.slots if slot.role == "constant"}
    for position, value in enumerate(program.constants):
        array = np.asarray(value)
        size = known(slots[position].bytes)
        found = place_in_file(array)
        if found is not None and found[0] in files:
            places.append((files.index(found[0]), found[1], size))
            continue
        if len(loose) + size > MOST_CONSTANT_BYTES:
            return None
        places.append((-1, len(loose), size))
        loose += ctypes.string_at(array.__array_interface__["data"][0], size) if size else b""
        loose += bytes(-len(loose) % 64)
    return places, bytes(loose)


def threads_to_use() -> int:
    """As many as torch would take: what it was told, if it is loaded; else OpenMP's number, but one for each core at the most."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else _default_threads()


@cache
def _default_threads() -> int:
    libraries = libgomp()
    if not libraries:
        return 1
    wanted = int(ctypes.CDLL(libraries[0]).omp_get_max_threads())
    return max(1, min(wanted, _physical_cores() or wanted))


def _physical_cores() -> int:
    """Cores of this machine, the two threads of one counted once; 0 where the system does not say."""
    cores = set()
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        try:
            cores.add(((folder / "physical_package_id").read_text(), (folder / "core_id").read_text()))
        except OSError:
            return 0
    return len(cores)
