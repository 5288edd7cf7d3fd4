"""`dlcompiler.compile`, `load` and `reset`: what a Python program uses.

compiled = dlcompiler.compile(module, (x,))          # or an ExportedProgram, an ONNX model, a path
y = compiled(x)
compiled.save("model.dlc")
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dlcompiler import report as _report
from dlcompiler.artifact import Artifact, load_artifact, save_artifact
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.graph_file import read_graph_file
from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.expression import Dim, Expression, evaluate, symbol_name
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.program import Program
from dlcompiler.ir.types import TensorType
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.observe import Observer
from dlcompiler.options import OF_THIS_MACHINE, Options
from dlcompiler.report import Report, Timings

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx import SeenNode
    from dlcompiler.recorded import AnyExecutable
    from dlcompiler.runtime.profile import StepTime

TEXT_SUFFIXES = (".txt", ".graph")


class Convention(Protocol):
    """How a call's arguments become a value for each graph input, and the outputs what the model returns."""

    def flatten(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Any]:
        """A tensor, array or int for each graph input. Raises InputError."""
        ...

    def unflatten(self, outputs: list[Any]) -> Any: ...

    def as_dict(self) -> dict[str, Any]:
        """What an artefact keeps of it, JSON-able."""
        ...


class ByName:
    """The convention of ONNX models and Graph text: by position, by keyword, or one mapping of names.

    One output is returned as it is, several as a tuple.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def flatten(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Any]:
        if len(arguments) == 1 and not keywords and isinstance(named := arguments[0], Mapping):
            return self.flatten((), named)
        if len(arguments) > len(self.names):
            raise InputError(f"{len(arguments)} inputs given, the model takes {len(self.names)}: {', '.join(self.names)}")
        values = dict(zip(self.names, arguments))
        for name, value in keywords.items():
            if name not in self.names:
                raise InputError(f"the model has no input {name!r}", hint=f"its inputs are {', '.join(self.names) or 'none'}")
            if name in values:
                raise InputError(f"input {name!r} is given twice")
            values[name] = value
        missing = [name for name in self.names if name not in values]
        if missing:
            raise InputError(f"no value for input {', '.join(map(repr, missing))}")
        return [values[name] for name in self.names]

    def unflatten(self, outputs: list[Any]) -> Any:
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def as_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Source:
    """A model as a graph, before it is compiled.

    target, options  what an artefact was saved with
    model            the torch module or function itself, if it is one
    """

    graph: Graph
    convention: Convention
    timings: Timings = field(default_factory=Timings)
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Any = None


class Compiled:
    """A compiled model. Call it as the model it was made of; see `dlcompiler.compile`.

    graph         as captured
    program       steps, slots and the memory plan; of a model of several programs (`report().pieces`) the one with the most steps
    input_names   one for each input of the graph, in call order
    """

    def __init__(
        self,
        source: Source,
        executable: AnyExecutable,
        program: Program,
        target: Target,
        options: Options,
        report: Report,
    ):
        self.graph = source.graph
        self.program = program
        self.target = target
        self.options = options
        self.input_names = names_of_inputs(source.graph)
        self.output_names = names_of_outputs(source.graph)
        self._source, self._executable, self._report = source, executable, report
        self._check = InputCheck(source.graph, self.input_names)

    def report(self) -> Report:
        """What was done; prints as one screen."""
        return self._report

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run. torch tensors in give torch tensors out, NumPy arrays in give NumPy arrays out.

        Raises InputError naming the input, what was expected and what was given.
        """
        values = self._source.convention.flatten(inputs, keywords)
        tensors, as_arrays = self._as_tensors(values)
        try:
            outputs = self._executable(tensors)
        except InputError:
            # the runtime knows slots; the user knows the model's own names
            self._check(tensors)
            raise
        if as_arrays:
            from dlcompiler.arrays import array_from_tensor

            outputs = [
                array_from_tensor(output, node.dtype) if isinstance(node.type, TensorType) else output
                for output, node in zip(outputs, self.graph.outputs)
            ]
        return self._source.convention.unflatten(outputs)

    def _as_tensors(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Every array as a tensor over its memory, and whether results are to be arrays."""
        torch = sys.modules.get("torch")
        if torch is not None and values and not [value for value in values if type(value) is not torch.Tensor]:
            return values, False
        on_host = [not isinstance(node.type, TensorType) for node in self.graph.inputs]
        if torch is not None and any(isinstance(value, torch.Tensor) for value in values):
            arrays = [isinstance(value, np.ndarray | np.generic) for value in values]
            as_arrays = False
        else:
            arrays = [not isinstance(value, int) or isinstance(value, bool) for value in values]
            as_arrays = any(arrays) or self._source.model is None
        arrays = [is_array and not (k < len(on_host) and on_host[k]) for k, is_array in enumerate(arrays)]
        if True not in arrays:
            return values, as_arrays
        from dlcompiler.arrays import tensor_from_array

        written = {node for _, node in self.graph.writebacks}
        tensors = list(values)
        for k, node in enumerate(self.graph.inputs[: len(values)]):
            if arrays[k]:
                array = _array(values[k], self.input_names[k])
                if node in written and not array.flags.writeable:
                    raise InputError(f"input {self.input_names[k]!r} is written by the model, and the array given is read-only")
                tensors[k] = tensor_from_array(array)
        return tensors, as_arrays

    def profile(self, *inputs: Any, rounds: int = 10, **keywords: Any) -> list[StepTime]:
        """Run `rounds` times, each step of the program on its own: the median seconds of every step, in order.

        Raises LaunchError for a GPU program on a machine that cannot run it, UnsupportedError for a model of several programs.
        """
        from dlcompiler.runtime.profile import profile
        from dlcompiler.runtime.staged import StagedExecutable

        if isinstance(self._executable, StagedExecutable):
            raise UnsupportedError(f"{self.graph.name} is several programs with control flow or calls of the host between them")
        values, _ = self._as_tensors(self._source.convention.flatten(inputs, keywords))
        self._check(values)
        return profile(self._executable, values, rounds)

    def simulate(self, *inputs: Any, **keywords: Any) -> Any:
        """Run a GPU program's emitted Triton through Triton's interpreter on the CPU; inputs and results as for a call.

        Raises UnsupportedError for a CPU program, which runs as it is.
        """
        if self.target.kind != "cuda":
            raise UnsupportedError(f"simulate runs GPU programs, and this one is for {self.target}", hint="call it instead")
        from dlcompiler.arrays import array_from_tensor, is_tensor, tensor_from_array
        from dlcompiler.codegen.gpu.simulate import simulate

        values, as_arrays = self._as_tensors(self._source.convention.flatten(inputs, keywords))
        self._check(values)
        outputs = simulate(self.program, [array_from_tensor(v) if is_tensor(v) else v for v in values])
        return self._source.convention.unflatten(outputs if as_arrays else [tensor_from_array(o) for o in outputs])

    def save(self, path: str | os.PathLike[str], *others: Compiled) -> None:
        """Write a `.dlc` that `dlcompiler.load` and `dlcompiler run` read: the graph, the weights, what to compile for, and for
        GPUs the kernels. `others` are the same model compiled for other targets, which the file is good for too.

        The file appears whole or not at all. Raises OSError, and UnsupportedError for a model whose calls change its own tensors.
        """
        if getattr(self._source.convention, "state", ()):
            raise UnsupportedError(
                f"{self.graph.name} changes its own tensors when called, which an artefact does not hold",
                hint="call model.eval() before compiling",
            )
        given = {name for name, origin in self.options.sources.items() if origin == "explicit"}
        options = {name: value for name, value in self.options.as_dict().items() if name in given - OF_THIS_MACHINE}
        first, *rest = (str(each.target.kind if each.target.host else each.target) for each in (self, *others))
        code = {each.target.arch: _code_files(each.program) for each in (self, *others) if each.target.kind == "cuda"}
        save_artifact(path, Artifact(self.graph, first, options, self._source.convention.as_dict(), tuple(rest), code))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {node.type}" for name, node in zip(self.input_names, self.graph.inputs))
        return f"<dlcompiler.Compiled {self.graph.name} on {self.target}: {inputs}>"


def _code_files(program: Program) -> dict[str, bytes]:
    from dlcompiler.codegen.gpu.compile import program_files

    return program_files(program)


def _array(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiubcV" or array.dtype.names:
        raise InputError(f"input {name!r} must be an array of numbers, not {type(value).__name__} of {array.dtype}")
    return array


# -- checks ------------------------------------------------------------------------------------------------------------------


class InputCheck:
    """Compares the tensors of a call with the graph's inputs."""

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        self.graph, self.names = graph, names

    def __call__(self, values: Sequence[Any]) -> None:
        """Raises InputError naming the input, what was expected and what was given."""
        graph = self.graph
        if len(values) != len(graph.inputs):
            raise InputError(f"{len(values)} inputs given, the program takes {len(graph.inputs)}: {', '.join(self.names)}")
        for name, node, value in zip(self.names, graph.inputs, values):
            if isinstance(node.type, TensorType):
                self._check_kind(name, node, value)
        bindings = graph.bind([value if isinstance(value, int) else tuple(getattr(value, "shape", ())) for value in values])
        for name, node, value in zip(self.names, graph.inputs, values):
            if node.op.name != "size" and isinstance(node.type, TensorType):
                self._check_shape(name, node, value, bindings)

    @staticmethod
    def _check_kind(name: str, node: Node, value: Any) -> None:
        from dlcompiler.runtime.tensors import DTYPE_NAMES, torch_dtype

        if node.op.name == "size":
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"input {name!r} is the size {node.attributes['symbol']}, an int, not {type(value).__name__}")
            return
        if not hasattr(value, "dtype"):
            raise InputError(f"input {name!r} must be a tensor or array of type {node.type}, not {type(value).__name__}")
        if value.dtype is not torch_dtype(node.dtype):
            given = DTYPE_NAMES.get(value.dtype, str(value.dtype))
            shape = ", ".join(map(str, value.shape))
            raise InputError(f"input {name!r} must be {node.type}, not {given}[{shape}]", hint=f"convert it to {node.dtype}")

    @staticmethod
    def _check_shape(name: str, node: Node, value: Any, bindings: Mapping[str, int]) -> None:
        shape = tuple(value.shape)
        given = f"{node.dtype}[{', '.join(map(str, shape))}]"
        if len(shape) != len(node.shape):
            raise InputError(f"input {name!r} must be {node.type}, not {given}")
        for axis, (dim, size) in enumerate(zip(node.shape, shape)):
            expected = _known(dim, bindings)
            if expected is not None and expected != size:
                why = f": {dim} is {expected}" if isinstance(dim, Expression) else ""
                hint = None if isinstance(dim, Expression) else "compile with dynamic_shapes to take other sizes"
                raise InputError(
                    f"input {name!r} must be {node.type}, not {given}: dimension {axis}{why or ' differs'}", hint=hint
                )


def _known(dim: Dim, bindings: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    name = symbol_name(dim)
    return bindings.get(name) if name is not None else evaluate(dim, bindings)


# -- reading models ----------------------------------------------------------------------------------------------------------


def read_source(
    model: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    inventory: list[SeenNode] | None = None,
    *,
    fix_batch: bool = False,
) -> Source:
    """Any model that `compile` takes, as a graph. `inventory` receives the nodes of an ONNX model, also where that fails.

    `fix_batch`: see `Options.fix_batch`.

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
        return _capture_torch(model, example_inputs, dynamic_shapes, timings)
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
        with timings.stage("import"):
            artifact = load_artifact(path)
        source = _from_artifact(artifact, timings)
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
        graph = import_onnx(model, dict(shapes) if shapes else None, inventory=inventory, fix_batch=fix_batch)
    return Source(graph, ByName(names_of_inputs(graph)), timings)


def _from_artifact(artifact: Artifact, timings: Timings) -> Source:
    graph = artifact.graph
    if artifact.code:
        from dlcompiler.codegen.gpu.compile import offer
        from dlcompiler.codegen.gpu.kept import from_files

        for arch, files in artifact.code.items():
            offer(from_files(arch, files, files.__getitem__))
    convention: Convention = ByName(names_of_inputs(graph))
    return Source(graph, convention, timings, best_target(artifact.targets), artifact.options)


def _capture_torch(model: Callable[..., Any], example_inputs: Any, dynamic_shapes: Any, timings: Timings) -> Source:
    from dlcompiler.frontends.fx import capture

    with timings.stage("capture"):
        captured = capture(model, example_inputs, dynamic_shapes)
    return Source(captured.graph, captured, timings, model=model)


def _all_dynamic(example_inputs: Any) -> Any:
    """`dynamic_shapes` of torch.export in which it decides for each size whether it can stay unknown."""
    import torch
    from torch.utils import _pytree

    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    automatic = torch.export.Dim.AUTO
    return _pytree.tree_map(lambda x: dict.fromkeys(range(x.dim()), automatic) if isinstance(x, torch.Tensor) else None, inputs)


# -- the public functions ----------------------------------------------------------------------------------------------------


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str = "cpu",
    dynamic_shapes: Any = None,
    options: Options | Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile a model for `target`.

    model           an nn.Module or function (with `example_inputs`, a tuple of its arguments), a torch.export.ExportedProgram, an
                    onnx.ModelProto, or the path of an .onnx, .dlc or Graph text file
    target          cpu, cpu:x86-64-v3, cuda, cuda:sm_90; a cuda target needs no GPU to compile for
    dynamic_shapes  for torch models as in torch.export; for ONNX `{input name: shape}`, where a str is a size known when called
    options         names and values of `dlcompiler.Options`

    Raises OptionError, InvalidModelError, UnsupportedError (its `items` lists all that is not supported), InputError.
    """
    resolved = Options.resolve(options)
    parse_target(target)
    if resolved.dynamic and dynamic_shapes is None and example_inputs is not None:
        dynamic_shapes = _all_dynamic(example_inputs)
    return build(read_source(model, example_inputs, dynamic_shapes, fix_batch=resolved.fix_batch), target, resolved)


def build(source: Source, target: str, options: Options, observe: Observer | None = None) -> Compiled:
    """Compile a model that was read. `observe` is told of every stage."""
    from dlcompiler.recorded import compile_recorded

    parsed = options.configure(parse_target(target))
    executable, report = compile_recorded(source.graph, parsed, options, timings=Timings(source.timings.seconds), observe=observe)
    return Compiled(source, executable, executable.program, parsed, options, report)


def load(path: str | os.PathLike[str], *, target: str | None = None, options: Mapping[str, Any] | None = None) -> Compiled:
    """The model saved in a `.dlc`, for one of the targets it was saved for unless another is given.

    Of several targets the one for this machine's GPU is taken, else the first for a CPU, else the first. Its weights are mapped,
    not read. Kernels for a GPU that the file carries are used as they are, and run on the GPU when the model is called: load such
    a file only from whom you would take a program. Raises InvalidModelError for a file that is missing, damaged or of another
    format version.
    """
    path = Path(path)
    timings = Timings()
    with timings.stage("import"):
        artifact = load_artifact(path)
        source = _from_artifact(artifact, timings)
    if target is None:
        target = best_target(artifact.targets)
    return build(source, target, Options.resolve({**source.options, **(options or {})}))


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


def reset() -> None:
    """Forget compiled kernels and reports. Programs that are still held go on working."""
    from dlcompiler.recorded import forget_kernels

    _report.clear()
    forget_kernels()
