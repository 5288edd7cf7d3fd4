"""Assembled kernels as files, and files as kernels: what a `.dlc` carries for a GPU, so that nothing is compiled where it is run.

Each kernel is three files (its Triton, its PTX, its cubin), and one index names them all with what starting a kernel needs.
A kernel is known by its Kernel IR and by which of its buffers are aligned, so a file serves whoever makes that kernel again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import InvalidModelError
from dlcompiler.ir.expression import parse_dim

INDEX = "index.json"
VERSION = 1
SUFFIXES = {"triton": "py", "cuda": "cu", "ptx": "ptx"}
# of an index entry, besides names of files: what a DeviceKernel has
_NUMBERS = ("threads", "shared_bytes", "extra_words", "scratch_bytes")


def kernel_key(kernel: K.Kernel, arch: str, aligned: frozenset[str], variant: str = "") -> str:
    """By what an assembled kernel is known: equal for kernels that differ in name and origin alone."""
    if isinstance(kernel, K.Bundle):
        kernel = kernel.replace(parts=tuple(part.replace(name="part", origin=()) for part in kernel.parts))
    text = f"{kernel.replace(name='kernel', origin=())}\n{arch} {sorted(aligned)} {variant}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class KeptKernel:
    """One kernel out of an index: its entry, and how to read one of its files."""

    arch: str
    entry: Mapping[str, Any]
    read: Callable[[str], bytes]


def to_files(kernels: Iterable[tuple[str, Any]]) -> dict[str, bytes]:
    """Name -> contents for (key, DeviceKernel) of one architecture."""
    files: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for key, kernel in kernels:
        if key in entries:
            continue
        number = f"{len(entries):04d}"
        names = {stage: f"{number}.{suffix}" for stage, suffix in SUFFIXES.items() if stage in kernel.stages}
        files |= {name: kernel.stages[stage].encode() for stage, name in names.items()}
        files[f"{number}.cubin"] = kernel.binary
        constants = getattr(kernel.written, "constants", {})
        entries[key] = {
            "name": kernel.name,
            "files": {**names, "cubin": f"{number}.cubin"},
            "grid": str(kernel.grid),
            "schedule": kernel.schedule,
            "repeats": None if kernel.repeats is None else str(kernel.repeats),
            "constants": dict(constants),
            **{name: getattr(kernel, name) for name in _NUMBERS},
        }
    files[INDEX] = json.dumps({"version": VERSION, "kernels": entries}, indent=1).encode()
    return files


def from_files(arch: str, files: Mapping[str, Any], read: Callable[[str], bytes]) -> dict[str, KeptKernel]:
    """Key -> kernel out of the index. `files`: the names there are; `read` gives a file's contents.

    Raises InvalidModelError for an index that is none.
    """
    try:
        index = json.loads(read(INDEX))
        if index["version"] != VERSION:
            return {}
        found = {}
        for key, entry in index["kernels"].items():
            parse_dim(entry["grid"])
            if entry.get("repeats") is not None:
                parse_dim(entry["repeats"])
            numbers = [entry[name] for name in _NUMBERS] + list(entry["constants"].values())
            texts = [entry["name"], entry["schedule"], *entry["files"].values()]
            if not all(isinstance(n, int) and n >= 0 for n in numbers) or not all(isinstance(t, str) for t in texts):
                raise ValueError(f"entry {key}")
            if (
                not entry["threads"]
                or not {"cubin", "ptx"} <= set(entry["files"])
                or not set(entry["files"].values()) <= set(files)
            ):
                raise ValueError(f"files of {key}")
            found[key] = KeptKernel(arch, entry, read)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"the index of kernels for {arch} is damaged ({error})") from None
