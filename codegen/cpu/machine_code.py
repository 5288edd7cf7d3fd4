"""Functions as machine code: from the cache on disk, else compiled, module by module, on all cores.

A function's name must say all that it depends on, but for the compiler and the processor, which are added here. On disk an entry
for each function names the object that holds it: what was compiled for one model serves every other that shares a kernel.
"""

from __future__ import annotations

import hashlib
import platform
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import dlcompiler.codegen
import dlcompiler.ir
from dlcompiler.codegen.cache import Store, entry_name
from dlcompiler.codegen.cpu.machine import host, processor
from dlcompiler.codegen.cpu.object_file import LoadedObject, load_object
from dlcompiler.codegen.cpu.relocations import ObjectFileError


@dataclass(frozen=True)
class Function:
    """A function of `code`, which has to live as long as it is called.

    facts     what its writer said of it, for whoever calls it
    compiled  by this process, now
    """

    name: str
    code: LoadedObject
    facts: str
    compiled: bool

    @property
    def address(self) -> int:
        return self.code.address(self.name)


# Names of functions --> modules that define them: MLIR text, and the facts of each function in it by its name.
Write: TypeAlias = Callable[[Sequence[str]], Iterable[tuple[str, Mapping[str, str]]]]


@cache
def fingerprint() -> str:
    """What code depends on besides its text: our sources and versions, and the live processor. No path, no number of threads."""
    sources = sources_digest(*dlcompiler.codegen.__path__, *dlcompiler.ir.__path__)
    versions = [f"{name} {_version(name)}" for name in ("dlcompiler", "torch-mlir")]
    return "\n".join([sources, *versions, platform.system(), platform.machine(), processor()])


def sources_digest(*folders: str) -> str:
    """Of all Python files in some folders: their names and contents."""
    digest = hashlib.sha256()
    for root in map(Path, folders):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"\n{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


# Objects in this process by their name in the cache: two kernels of one object map it once.
_objects: weakref.WeakValueDictionary[str, LoadedObject] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def find_functions(
    names: Sequence[str], write: Write, store: Store | None = None, libraries: Sequence[str] = ()
) -> dict[str, Function]:
    """Each name's function.

    write       gives the modules that have to be compiled; one is compiled while the next is written
    libraries   files of shared libraries that the functions call into
    Of several processes that ask for the same names at once, one compiles them. Raises as `jit.compile_mlir`.
    """
    if store is None:
        return {name: function for part, _ in _compile(names, write, libraries) for name, function in part.items()}
    entries = {name: entry_name("function", fingerprint(), name) for name in names}
    found = _load(entries, store, libraries)
    if len(found) == len(names):
        return found
    with store.lock(entry_name("object", *sorted(entries.values()))):
        found |= _load({name: entry for name, entry in entries.items() if name not in found}, store, libraries)
        missing = [name for name in names if name not in found]
        for compiled, data in _compile(missing, write, libraries) if missing else ():
            found |= compiled
            if data is not None:
                _keep(data, {entries[name]: function.facts for name, function in compiled.items()}, store)
    return found


def _compile(names: Sequence[str], write: Write, libraries: Sequence[str]) -> list[tuple[dict[str, Function], bytes | None]]:
    """For each module the functions, and the object that holds them. This thread writes, and one for each core compiles.

    They end before this returns: a pool that stayed would not survive a fork.
    """

    def compile_module(text: str, facts: Mapping[str, str]) -> tuple[dict[str, Function], bytes | None]:
        from dlcompiler.codegen.cpu.jit import compile_mlir

        module = compile_mlir(text, list(facts), libraries=libraries)
        return {name: Function(name, module.code, facts[name], True) for name in facts}, module.object

    with ThreadPoolExecutor(host().cores, "dlcompiler-compile") as pool:
        compiled = [pool.submit(compile_module, text, facts) for text, facts in write(names)]
    return [each.result() for each in compiled]


def _load(entries: Mapping[str, str], store: Store, libraries: Sequence[str]) -> dict[str, Function]:
    """The functions that are on disk, whole."""
    found = {}
    for name, entry in entries.items():
        payload = store.get(entry)
        if payload is not None:
            held_by, _, facts = payload.decode().partition("\n")
            code = _load_object(held_by, store, libraries)
            if code is not None and name in code.addresses:
                found[name] = Function(name, code, facts, False)
    return found


def _load_object(name: str, store: Store, libraries: Sequence[str]) -> LoadedObject | None:
    with _lock:
        code = _objects.get(name)
        if code is None:
            data = store.get(name)
            if data is None:
                return None
            try:
                code = load_object(data, libraries)
            except ObjectFileError as error:
                store.discard(name, str(error))
                return None
            _objects[name] = code
        return code


def objects_of(names: Sequence[str], store: Store) -> tuple[str, ...] | None:
    """The entry of the object that holds each function, for `load_functions`; None where `store` has not all of them."""
    held = [store.get(entry_name("function", fingerprint(), name)) for name in names]
    return tuple(payload.decode().partition("\n")[0] for payload in held if payload is not None) if all(held) else None


def load_functions(
    names: Sequence[str], objects: Sequence[str], store: Store, libraries: Sequence[str] = ()
) -> list[Function] | None:
    """Functions out of objects that `objects_of` named, with no question whether they are what would be compiled today; None
    where one is gone.
    """
    loaded = {name: _load_object(name, store, libraries) for name in dict.fromkeys(objects)}
    found = []
    for name, held_by in zip(names, objects, strict=True):
        code = loaded[held_by]
        if code is None or name not in code.addresses:
            return None
        found.append(Function(name, code, "", False))
    return found


def _keep(data: bytes, facts: Mapping[str, str], store: Store) -> None:
    """The object first, so that whoever finds a function finds its code. `facts` by entry."""
    name = entry_name("object", data)
    store.put(name, data)
    for entry, text in facts.items():
        store.put(entry, f"{name}\n{text}".encode())
