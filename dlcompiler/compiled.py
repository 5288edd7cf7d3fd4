"""`Compiled`, what a compilation gives: call it as the model it was made of."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dlcompiler.ir.errors import InputError, UnsupportedError
from dlcompiler.ir.expression import Dim, Expression, evaluate, symbol_name
from dlcompiler.ir.types import DTYPES, TensorType, Type
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.options import OF_THIS_MACHINE, Options

if TYPE_CHECKING:
    from dlcompiler.codegen.target import Target
    from dlcompiler.ir.graph import Graph, Node
    from dlcompiler.ir.program import Program
    from dlcompiler.recorded import AnyExecutable
    from dlcompiler.report import Report
    from dlcompiler.runtime.kept import KeptExecutable
    from dlcompiler.runtime.profile import StepTime
    from dlcompiler.sources import Source


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


class Compiled:
    """A compiled model. Call it as the model it was made of; see `dlcompiler.compile`.

    graph         as captured
    program       steps, slots and the memory plan; of a model of several programs (`report().pieces`) the one with the most steps
    input_names   one for each input of the graph, in call order
    source, executable  what it was read from, and what runs it
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
        self.source, self.executable, self._report = source, executable, report
        self._check = InputCheck(source.graph, self.input_names)

    @property
    def input_types(self) -> tuple[Type, ...]:
        """What each input is: element type and shape, as a rule."""
        return tuple(node.type for node in self.graph.inputs)

    def report(self) -> Report:
        """What was done; prints as one screen."""
        return self._report

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run. torch tensors in give torch tensors out, NumPy arrays in give NumPy arrays out.

        Raises InputError naming the input, what was expected and what was given.
        """
        values = self.source.convention.flatten(inputs, keywords)
        tensors, as_arrays = self._as_tensors(values)
        try:
            outputs = self.executable(tensors)
        except InputError:
            # the runtime knows slots; the user knows the model's own names
            self._check(tensors)
            raise
        return self.source.convention.unflatten(self._as_arrays(outputs) if as_arrays else outputs)

    def _as_arrays(self, outputs: Sequence[Any]) -> list[Any]:
        from dlcompiler.arrays import array_from_tensor

        return [
            array_from_tensor(output, node.dtype) if isinstance(node.type, TensorType) else output
            for output, node in zip(outputs, self.graph.outputs)
        ]

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
            as_arrays = any(arrays) or self.source.model is None
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

        if isinstance(self.executable, StagedExecutable):
            raise UnsupportedError(f"{self.graph.name} is several programs with control flow or calls of the host between them")
        values, _ = self._as_tensors(self.source.convention.flatten(inputs, keywords))
        self._check(values)
        return profile(self.executable, values, rounds)

    def simulate(self, *inputs: Any, **keywords: Any) -> Any:
        """Run a GPU program's emitted Triton through Triton's interpreter on the CPU; inputs and results as for a call.

        Raises UnsupportedError for a CPU program, which runs as it is.
        """
        if self.target.kind != "cuda":
            raise UnsupportedError(f"simulate runs GPU programs, and this one is for {self.target}", hint="call it instead")
        from dlcompiler.simulated import simulated

        values, as_arrays = self._as_tensors(self.source.convention.flatten(inputs, keywords))
        self._check(values)
        outputs = simulated(self.executable)(values)
        return self.source.convention.unflatten(self._as_arrays(outputs) if as_arrays else outputs)

    def save(self, path: str | os.PathLike[str], *others: Compiled) -> None:
        """Write a `.dlc` that `dlcompiler.load` and `dlcompiler run` read: the graph, the weights, what to compile for, and for
        GPUs the kernels. `others` are the same model compiled for other targets, which the file is good for too.

        The file appears whole or not at all. Raises OSError, and UnsupportedError for a model whose calls change its own tensors.
        """
        if getattr(self.source.convention, "state", ()):
            raise UnsupportedError(
                f"{self.graph.name} changes its own tensors when called, which an artefact does not hold",
                hint="call model.eval() before compiling",
            )
        given = {name for name, origin in self.options.sources.items() if origin == "explicit"}
        options = {name: value for name, value in self.options.as_dict().items() if name in given - OF_THIS_MACHINE}
        first, *rest = (str(each.target.kind if each.target.host else each.target) for each in (self, *others))
        code = {each.target.arch: _code_files(each.executable) for each in (self, *others) if each.target.kind == "cuda"}
        from dlcompiler.artifact import Artifact, save_artifact

        if self.target.kind == "cuda":
            from dlcompiler.ir.text import graph_constants
            from dlcompiler.runtime.constants import update_copy

            for value in graph_constants(self.graph).values():
                update_copy(value)
        save_artifact(path, Artifact(self.graph, first, options, self.source.convention.as_dict(), tuple(rest), code))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {node.type}" for name, node in zip(self.input_names, self.graph.inputs))
        return f"<dlcompiler.Compiled {self.graph.name} on {self.target}: {inputs}>"


class KeptCompiled(Compiled):
    """A model whose program an earlier process compiled (see `dlcompiler.kept`): calls with arrays need neither torch nor the
    compiler. For all else, and for inputs that are not as they should be, `make` compiles it.
    """

    def __init__(self, executable: KeptExecutable, names: Mapping[str, Sequence[str]], make: Callable[[], Compiled]) -> None:
        self.input_names, self.output_names = tuple(names["inputs"]), tuple(names["outputs"])
        self._kept, self._convention, self._make = executable, ByName(self.input_names), make
        self._lock = threading.Lock()

    @property
    def input_types(self) -> tuple[Type, ...]:
        return tuple(TensorType(DTYPES[tensor.dtype], tensor.shape) for tensor in self._kept.program.inputs)

    def __getattr__(self, name: str) -> Any:
        """What the parts of a compiled model are, asked for the first time: compiled now."""
        if name not in ("graph", "program", "target", "options", "source", "executable", "_report", "_check"):
            raise AttributeError(f"a compiled model has no attribute {name!r}")
        with self._lock:
            if "graph" not in vars(self):
                made = self._make()
                parts = ("program", "target", "options", "source", "executable", "_report", "_check", "graph")
                vars(self).update({part: getattr(made, part) for part in parts})
        return vars(self)[name]

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        from dlcompiler.kept import threads_to_use

        values = self._convention.flatten(inputs, keywords)
        torch = sys.modules.get("torch")
        are_tensors = torch is not None and any(isinstance(value, torch.Tensor) for value in values)
        arrays = _arrays_of_tensors(values) if are_tensors else [np.asarray(value) for value in values]
        if not self._kept.fits(arrays):
            return super().__call__(*values)
        outputs: list[Any] = self._kept(arrays, threads_to_use())
        if are_tensors:
            from dlcompiler.arrays import tensor_from_array

            outputs = [tensor_from_array(output) for output in outputs]
        return self._convention.unflatten(outputs)


def _arrays_of_tensors(values: Sequence[Any]) -> list[np.ndarray]:
    """Arrays over the memory of tensors; none at all where one has no such memory, or is wanted a gradient of."""
    import torch

    from dlcompiler.arrays import array_from_tensor

    plain = all(
        not isinstance(v, torch.Tensor) or (v.layout is torch.strided and v.is_cpu and not v.requires_grad) for v in values
    )
    return [array_from_tensor(v) if isinstance(v, torch.Tensor) else np.asarray(v) for v in values] if plain else []


def _code_files(executable: AnyExecutable) -> dict[str, bytes]:
    from dlcompiler.codegen.gpu.compile import program_files
    from dlcompiler.runtime.staged import StagedExecutable

    return program_files(executable.programs if isinstance(executable, StagedExecutable) else [executable.program])


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
                hint = (
                    None
                    if isinstance(dim, Expression)
                    else "other sizes need a model compiled for them (dynamic_shapes, --input-shape)"
                )
                raise InputError(
                    f"input {name!r} must be {node.type}, not {given}: dimension {axis}{why or ' differs'}", hint=hint
                )


def _known(dim: Dim, bindings: Mapping[str, int]) -> int | None:
    if isinstance(dim, int):
        return dim
    name = symbol_name(dim)
    return bindings.get(name) if name is not None else evaluate(dim, bindings)
