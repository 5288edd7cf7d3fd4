"""Reading models of every kind that `dlcompiler.compile` takes, as a graph and how its calls look."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dlcompiler.artifact import Artifact, load_artifact
from dlcompiler.codegen.target import parse_target
from dlcompiler.compiled import ByName, Convention
from dlcompiler.files import FileState, file_state
from dlcompiler.graph_file import read_graph_file
from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.names import names_of_inputs
from dlcompiler.report import Timings

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx import SeenNode

TEXT_SUFFIXES = (".txt", ".graph")


@dataclass(frozen=True)
class Source:
    """A model as a graph, before it is compiled.

    target, targets, options  what an artefact was saved with: the best of its targets here, all of them
    model            the torch module or function itself, if it is one
    files            that it was read from, as they were when that began
    content          tells apart what files hold, where that is known of them
    """

    graph: Graph
    convention: Convention
    timings: Timings = field(default_factory=Timings)
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Any = None
    files: tuple[FileState, ...] = ()
    targets: tuple[str, ...] = ()
    content: str | None = None


# -- reading models ----------------------------------------------------------------------------------------------------------


def read_source(
    model: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    inventory: list[SeenNode] | None = None,
    *,
    fix_batch: bool = False,
    numerics: str = "fast",
) -> Source:
    """Any model that `compile` takes, as a graph. `inventory` receives the nodes of an ONNX model, also where that fails.

    `fix_batch` and `numerics`: see `Options`.

    Raises InvalidModelError, UnsupportedError, InputError.
    """
    timings = Timings()
    if isinstance(model, str | os.PathLike):
        return _read_path(os.fspath(model), dynamic_shapes, timings, inventory, fix_batch)
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return _read_onnx(model, dynamic_shapes, timings, inventory, fix_batch)
    if isinstance(model, Graph):
        return Source(model, ByName(names_of_inputs(model)), timings)
    torch = sys.modules.get("torch")
    exported = sys.modules.get("torch.export")
    if torch is not None and (callable(model) or (exported is not None and isinstance(model, exported.ExportedProgram))):
        return _capture_torch(model, example_inputs, dynamic_shapes, timings, numerics)
    raise InvalidModelError(
        f"a {type(model).__name__} is no model",
        hint="give an nn.Module, a function, an ExportedProgram, a ModelProto, or the path of an .onnx, .dlc or Graph text file",
    )


def _read_path(path: str, dynamic_shapes: Any, timings: Timings, inventory: list[SeenNode] | None, fix_batch: bool) -> Source:
    """Told apart by their first bytes: a zip is an artefact, text that starts a graph is one, all else is for the ONNX reader."""
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise InvalidModelError(f"{path} is a device or a pipe, not a file", hint="write the model into a file first")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InvalidModelError(f"cannot read {path}: {error.strerror or error}") from None
    if start.startswith(b"PK") or path.endswith(".dlc"):
        if not zipfile.is_zipfile(path):
            raise InvalidModelError(f"{path} is no .dlc artefact ({os.path.getsize(path)} bytes)", hint="compile the model again")
        source = read_artifact(path, timings)
    elif path.endswith(TEXT_SUFFIXES) or is_graph_text(start):
        with timings.stage("import"):
            graph = read_graph_file(path)
        source = Source(graph, ByName(names_of_inputs(graph)), timings)
    else:
        return _read_onnx(path, dynamic_shapes, timings, inventory, fix_batch)
    _check_shapes_given(source.graph, dynamic_shapes)
    return source


def is_graph_text(start: bytes) -> bool:
    """Whether a file's first bytes are Graph text: `graph` after blank lines and comments."""
    lines = (line.strip() for line in start.splitlines())
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return first.startswith(b"graph ")


def _check_shapes_given(graph: Graph, shapes: Mapping[str, Sequence[int | str]] | None) -> None:
    """A graph's sizes are what they are: a shape given for an input must agree, and can only bind a symbol at a call."""
    names = names_of_inputs(graph)
    for name, shape in (shapes or {}).items():
        if name not in names:
            raise InputError(f"the model has no input {name!r}", hint=f"its inputs are {', '.join(names) or 'none'}")
        node = graph.inputs[names.index(name)]
        fits = len(shape) == len(node.shape) and all(
            not isinstance(d, int) or not isinstance(size, int) or d == size for d, size in zip(node.shape, shape)
        )
        if not fits:
            raise InputError(f"input {name!r} is {node.type}, which is not of shape {list(shape)}", hint="import the model anew")


def _read_onnx(
    model: Any,
    shapes: Mapping[str, Sequence[int | str]] | None,
    timings: Timings,
    inventory: list[SeenNode] | None,
    fix_batch: bool,
) -> Source:
    try:
        from dlcompiler.frontends.onnx import import_onnx
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("onnx", "google"):
            raise
        raise UnsupportedError("reading ONNX files needs the package onnx", items=("onnx",), hint="pip install onnx") from None
    with timings.stage("import"):
        state = file_state(model) if isinstance(model, str) else None
        files: list[str] = []
        graph = import_onnx(model, dict(shapes) if shapes else None, inventory=inventory, fix_batch=fix_batch, files=files)
    found = () if state is None else (state, *map(file_state, files))
    return Source(graph, ByName(names_of_inputs(graph)), timings, files=found)


def read_artifact(path: str, timings: Timings) -> Source:
    """The model in a `.dlc`. Raises InvalidModelError."""
    with timings.stage("import"):
        state = file_state(path)
        artifact = load_artifact(path)
    return replace(_from_artifact(artifact, timings), files=(state,), content=artifact.digest)


def _from_artifact(artifact: Artifact, timings: Timings) -> Source:
    graph = artifact.graph
    if artifact.code:
        from dlcompiler.codegen.gpu.compile import offer
        from dlcompiler.codegen.gpu.kept import from_files

        for arch, files in artifact.code.items():
            offer(from_files(arch, files, files.__getitem__))
    convention: Convention = ByName(names_of_inputs(graph))
    return Source(graph, convention, timings, best_target(artifact.targets), artifact.options, targets=artifact.targets)


def _capture_torch(
    model: Callable[..., Any], example_inputs: Any, dynamic_shapes: Any, timings: Timings, numerics: str
) -> Source:
    from dlcompiler.frontends.fx import capture

    with timings.stage("capture"):
        captured = capture(model, example_inputs, dynamic_shapes, numerics=numerics)
    return Source(captured.graph, captured, timings, model=model)


def all_dynamic(example_inputs: Any) -> Any:
    """`dynamic_shapes` of torch.export in which it decides for each size whether it can stay unknown."""
    import torch
    from torch.utils import _pytree

    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    automatic = torch.export.Dim.AUTO
    return _pytree.tree_map(lambda x: dict.fromkeys(range(x.dim()), automatic) if isinstance(x, torch.Tensor) else None, inputs)


def best_target(targets: Sequence[str]) -> str:
    """The one of several targets that suits this machine best. Raises OptionError for one that is not known."""
    parsed = {name: parse_target(name) for name in targets}
    on_gpu = [name for name, target in parsed.items() if target.kind == "cuda"]
    if len(targets) == 1 or not on_gpu:
        return targets[0]
    import torch

    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        fitting = [
            n
            for n in on_gpu
            if (number := int(parsed[n].arch.removeprefix("sm_"))) // 10 == capability[0] and number % 10 <= capability[1]
        ]
        if fitting:
            return max(fitting, key=lambda name: int(parsed[name].arch.removeprefix("sm_")))
    return next((name for name, target in parsed.items() if target.kind == "cpu"), targets[0])
