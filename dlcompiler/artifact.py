"""The `.dlc` artefact: a compiled model in one file, as data and nothing that runs when loaded.

A zip of `manifest.json` (what it is, and a SHA-256 of every other member), `graph.txt` (the captured Graph),
`weights.safetensors`, and for each GPU architecture that it was compiled for its kernels, as `code/sm_90/0000.cubin`. Members are
stored, not compressed, and the weights begin at a multiple of 64 bytes, so that loading maps them. Kernels for a CPU are rebuilt
when it is loaded. A file from elsewhere is not trusted: names, sizes, digests, targets and options are checked before use,
nothing is unpacked to disk, and no option that names a place on this machine is taken from it. A digest finds damage, it does not
say who made the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dlcompiler.codegen.target import parse_target
from dlcompiler.files import write_atomically
from dlcompiler.graph_file import graph_from_text
from dlcompiler.ir.errors import InvalidModelError, OptionError
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.text import graph_constants, print_graph
from dlcompiler.ir.types import TensorType
from dlcompiler.options import OF_THIS_MACHINE, Options
from dlcompiler.passes.pipeline import check_pass_names
from dlcompiler.version import __version__
from dlcompiler.weights import ALIGNMENT, map_file, read_safetensors, write_safetensors

FORMAT_VERSION = 1
CODE = re.compile(r"code/sm_\d{2,3}/(index\.json|\d{4,6}\.(py|cu|ptx|cubin))")
MANIFEST, GRAPH, WEIGHTS = "manifest.json", "graph.txt", "weights.safetensors"
LARGEST = {MANIFEST: 64 << 20, GRAPH: 1 << 30}  # bytes; weights are bounded by the file itself
LARGEST_CODE = 64 << 20
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class Artifact:
    """What an artefact holds. `options` are the explicit ones; `structure` says how inputs and outputs were nested.

    target  the first of the targets that it was compiled for; `others` are the rest
    code    architecture -> name of a file -> its contents: kernels for that GPU
    digest  of all that was read, once it was
    """

    graph: Graph
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    code: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    digest: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target, *self.others)


def save_artifact(path: str | os.PathLike[str], artifact: Artifact) -> None:
    """Write `path` in one go: a reader sees the old file or the whole new one. Raises OSError."""
    text, weights = print_graph(artifact.graph, digests=False), graph_constants(artifact.graph)
    members: dict[str, dict[str, Any]] = {}

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            members[GRAPH] = _add_content(archive, file, GRAPH, text.encode())
            members[WEIGHTS] = _add(archive, file, WEIGHTS, lambda out: write_safetensors(out, weights))
            for arch, files in artifact.code.items():
                for file_name, content in files.items():
                    name = f"code/{arch}/{file_name}"
                    members[name] = _add_content(archive, file, name, content)
            _add_content(archive, file, MANIFEST, json.dumps(_manifest(artifact, members), indent=1).encode())

    write_atomically(path, write)


def _manifest(artifact: Artifact, members: Mapping[str, Any]) -> dict[str, Any]:
    graph = artifact.graph
    names = graph.output_names or tuple(f"output_{k}" for k in range(len(graph.outputs)))
    return {
        "format": "dlcompiler artefact",
        "format_version": FORMAT_VERSION,
        "dlcompiler_version": __version__,
        "name": graph.name,
        "targets": list(artifact.targets),
        "options": dict(artifact.options),
        "inputs": [_described(node.name, node) for node in graph.inputs],
        "outputs": [_described(name, node) for name, node in zip(names, graph.outputs)],
        "structure": dict(artifact.structure),
        "members": dict(members),
    }


def _described(name: str, node: Node) -> dict[str, Any]:
    if node.op.name == "size":
        return {"name": name, "size": node.attributes["symbol"]}
    if not isinstance(node.type, TensorType):
        return {"name": name, "type": str(node.type)}
    return {"name": name, "dtype": str(node.dtype), "shape": [d if isinstance(d, int) else str(d) for d in node.shape]}


class _Digest:
    """A file that is written to, and the SHA-256 and length of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, write: Callable[[Any], object]) -> dict[str, Any]:
    """Append a stored member whose data begins at a multiple of ALIGNMENT bytes; its digest and size."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same content makes the same file
    info.external_attr = 0o644 << 16
    zip64_field, own_field = 20, 4  # bytes that zipfile adds, and the header of the padding
    begin = file.tell() + 30 + len(name.encode()) + zip64_field + own_field
    info.extra = struct.pack("<HH", 0xDA7A, padding := -begin % ALIGNMENT) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as out:
        digest = _Digest(out)  # type: ignore[arg-type]
        write(digest)
    return {"sha256": digest.sha256.hexdigest(), "bytes": digest.bytes}


def _add_content(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes) -> dict[str, Any]:
    return _add(archive, file, name, lambda out: out.write(content))


@dataclass(frozen=True)
class _Contents:
    """What a file holds, its digests checked. `digest` tells it apart from every other."""

    manifest: dict[str, Any]
    graph: bytes
    weights: memoryview
    code: Mapping[str, bytes]
    digest: str


def load_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read and check an artefact. Weights are views of the mapped file.

    Raises InvalidModelError with one line for a file that is missing, damaged, unsafe, or of another format version.
    """
    where = os.fspath(path)
    contents = _read_contents(path)
    try:
        source = contents.graph.decode()
    except UnicodeDecodeError:
        raise InvalidModelError(f"{where}: {GRAPH} is not UTF-8") from None
    manifest = contents.manifest
    graph = graph_from_text(source, read_safetensors(contents.weights, f"{where}: {WEIGHTS}"), f"{where}: {GRAPH}")
    target, *others = manifest["targets"]
    by_arch: dict[str, dict[str, bytes]] = {}
    for name, content in contents.code.items():
        _, arch, file_name = name.split("/")
        by_arch.setdefault(arch, {})[file_name] = content
    return Artifact(graph, target, manifest["options"], manifest["structure"], tuple(others), by_arch, contents.digest)


def content_digest(path: str | os.PathLike[str]) -> str:
    """`Artifact.digest` of a file, read and checked as `load_artifact` does, without its graph. Raises InvalidModelError."""
    return _read_contents(path).digest


def _read_contents(path: str | os.PathLike[str]) -> _Contents:
    where = os.fspath(path)
    try:
        data = map_file(path)
        with zipfile.ZipFile(path) as archive:
            infos = _checked_infos(archive, where)
            manifest_text = _read_member(archive, infos[MANIFEST], where)
            manifest = _checked_manifest(manifest_text, where)
            text = _read_member(archive, infos[GRAPH], where)
            code = {name: _read_member(archive, info, where) for name, info in infos.items() if CODE.fullmatch(name)}
            offset = _data_offset(data, infos[WEIGHTS], where)
    except OSError as error:
        raise InvalidModelError(f"cannot read {where}: {error.strerror or error}") from None
    except InvalidModelError:
        raise
    except ZIP_ERRORS as error:
        raise InvalidModelError(f"{where} is no readable .dlc artefact ({error})", hint="compile the model again") from None
    weights = data[offset : offset + infos[WEIGHTS].file_size]
    members: dict[str, bytes | memoryview] = {GRAPH: text, WEIGHTS: weights, **code}
    for name, content in members.items():
        _check_digest(manifest, name, content, where)
    # the manifest holds the members' digests; where the weights begin is for who maps them without reading the rest
    digest = hashlib.sha256(b"%d\n" % offset + manifest_text).hexdigest()
    return _Contents(manifest, text, weights, code, digest)


def _checked_infos(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The members by name, every one with a plain name, plain flags and a believable size."""
    size = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename not in (MANIFEST, GRAPH, WEIGHTS) and not CODE.fullmatch(info.filename):
            raise InvalidModelError(f"{where} holds a member that no artefact has: {info.filename!r}")
        if info.filename in infos:
            raise InvalidModelError(f"{where} holds {info.filename} twice")
        if info.flag_bits & 1:
            raise InvalidModelError(f"{where}: {info.filename} is encrypted")
        # so nothing can unfold to more than the file holds
        if info.compress_type != zipfile.ZIP_STORED:
            raise InvalidModelError(f"{where}: {info.filename} must be stored, not compressed")
        if info.compress_size != info.file_size or info.file_size > size:
            raise InvalidModelError(f"{where}: {info.filename} claims {info.file_size} bytes in a file of {size}")
        if info.file_size > LARGEST.get(info.filename, LARGEST_CODE if CODE.fullmatch(info.filename) else size):
            raise InvalidModelError(f"{where}: {info.filename} claims {info.file_size} bytes, more than allowed")
        infos[info.filename] = info
    missing = [name for name in (MANIFEST, GRAPH, WEIGHTS) if name not in infos]
    if missing:
        raise InvalidModelError(f"{where} is no artefact: {', '.join(missing)} missing")
    return infos


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> bytes:
    with archive.open(info) as file:
        content = file.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise InvalidModelError(f"{where}: {info.filename} has {len(content)} bytes and claims {info.file_size}")
    return content


def _checked_manifest(text: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{where}: {MANIFEST} is not JSON ({error})") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise InvalidModelError(
            f"{where} has format version {version!r}; this dlcompiler ({__version__}) reads version {FORMAT_VERSION}",
            hint="compile the model again with this version",
        )
    kinds: dict[str, type] = {"targets": list, "options": dict, "structure": dict, "members": dict}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise InvalidModelError(f"{where}: {MANIFEST} has no {key}")
    if not manifest["targets"] or not all(isinstance(target, str) for target in manifest["targets"]):
        raise InvalidModelError(f"{where}: {MANIFEST} names no target")
    _check_choices(manifest["targets"], manifest["options"], where)
    return manifest


def _check_choices(targets: Sequence[str], options: Mapping[str, Any], where: str) -> None:
    """The targets and the options that a file asks for: known ones, and none that would write or read where it chooses."""
    foreign = sorted(set(options) & OF_THIS_MACHINE)
    if foreign:
        raise InvalidModelError(f"{where} sets the option {foreign[0]!r}, which no file may", hint="do not trust it")
    try:
        for target in targets:
            parse_target(target)
    except OptionError as error:
        raise InvalidModelError(f"{where} was saved for a target that is not known here: {error.message}") from None
    try:
        check_pass_names(Options.resolve(options, {}).disabled_passes)
    except OptionError as error:
        raise InvalidModelError(f"{where} was saved with an option that does not fit: {error.message}") from None


def _data_offset(data: memoryview, info: zipfile.ZipInfo, where: str) -> int:
    """Where a stored member's bytes begin, out of its local header."""
    at = info.header_offset
    if not 0 <= at <= len(data) - 30 or bytes(data[at : at + 4]) != b"PK\x03\x04":
        raise InvalidModelError(f"{where}: the header of {info.filename} is damaged")
    name_length, extra_length = struct.unpack_from("<HH", data, at + 26)
    offset = at + 30 + name_length + extra_length
    if offset + info.file_size > len(data) or info.compress_size != info.file_size:
        raise InvalidModelError(f"{where}: {info.filename} reaches past the end of the file")
    return offset


def _check_digest(manifest: Mapping[str, Any], name: str, content: bytes | memoryview, where: str) -> None:
    entry = manifest["members"].get(name)
    declared = entry.get("sha256") if isinstance(entry, dict) else None
    if hashlib.sha256(content).hexdigest() != declared:
        raise InvalidModelError(f"{where}: {name} is not what was saved (its SHA-256 differs)", hint="the file is damaged")
