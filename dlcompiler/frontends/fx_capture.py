"""A whole torch model through torch.export, with the convention of its calls."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from dlcompiler.frontends.fx_control import own_arguments
from dlcompiler.frontends.fx_decompositions import decompositions
from dlcompiler.frontends.fx_guards import limits_of
from dlcompiler.frontends.fx_import import import_fx
from dlcompiler.frontends.fx_results import flat_results
from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Graph

# Marks a leaf of the model's arguments that each call must give; any other is a value fixed at capture.
_GIVEN = object()
_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION)


@dataclass(frozen=True)
class Captured:
    """A Graph and how a call of the model maps to it.

    state     tensors of the model that a call changes (batch-norm statistics in training): the Graph's first inputs
    fixed     for each leaf of the arguments, `_GIVEN` or the value it had at capture and must have in each call
    results   for each leaf of the model's result, the Graph's output by position, or a 1-tuple of a value that is always the same
    numbers   positions of outputs that are Python numbers, not tensors
    """

    graph: Graph
    state: tuple[torch.Tensor, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    fixed: tuple[Any, ...]
    results: tuple[int | tuple[Any], ...]
    numbers: frozenset[int]

    def flatten(self, arguments: tuple, keywords: Mapping[str, Any]) -> list[Any]:
        """A value for each input of the Graph. Raises InputError where the arguments are not shaped as at capture."""
        if not keywords and len(arguments) == self._plain_count and all(isinstance(a, torch.Tensor) for a in arguments):
            return [*self.state, *arguments]
        keywords = self._in_order(keywords)
        leaves, spec = pytree.tree_flatten((tuple(arguments), keywords))
        if spec != self.in_spec:
            raise InputError(f"the model was captured with arguments {self._shown(self.in_spec)}, not {self._shown(spec)}")
        values: list[Any] = list(self.state)
        for position, (leaf, fixed) in enumerate(zip(leaves, self.fixed)):
            if fixed is _GIVEN:
                values.append(leaf)
            elif leaf is not fixed and (type(leaf) is not type(fixed) or leaf != fixed):
                raise InputError(
                    f"argument {position} was {fixed!r} at capture, not {leaf!r}", hint="compile once for each value"
                )
        return values

    @functools.cached_property
    def _plain_count(self) -> int | None:
        """How many arguments there are where each is one tensor, given by position; None otherwise."""
        positional, named = self.in_spec.child(0), self.in_spec.child(1)
        count = positional.num_children
        is_plain = named.num_leaves == 0 and positional.num_leaves == count and all(fixed is _GIVEN for fixed in self.fixed)
        return count if is_plain and all(positional.child(k).is_leaf() for k in range(count)) else None

    def _in_order(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments in the order of the capture, which a tree of a dictionary keeps."""
        expected = self.in_spec.child(1).context or []
        return {
            name: keywords[name]
            for name in (*(n for n in expected if n in keywords), *(n for n in keywords if n not in expected))
        }

    @staticmethod
    def _shown(spec: pytree.TreeSpec) -> str:
        positional, named = spec.child(0), spec.child(1)
        names = ", ".join(named.context or [])
        shown = f"{positional.num_children} by position"
        return f"{shown} and {names} by name" if names else f"{shown} ({spec.num_leaves} tensors or values in all)"

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The model's own result."""
        leaves = []
        for result in self.results:
            if isinstance(result, tuple):
                leaves.append(result[0])
            else:
                leaves.append(outputs[result].item() if result in self.numbers else outputs[result])
        return pytree.tree_unflatten(leaves, self.out_spec)

    def as_dict(self) -> dict[str, Any]:
        """Nothing: a loaded artefact is called by position or name and gives a tuple."""
        return {}


class _Function(torch.nn.Module):
    """A module around a function, as torch.export wants one; its arguments are called as the function calls them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function if _has_signature(function) else lambda *arguments, **keywords: function(*arguments, **keywords)


def _has_signature(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function)
    except ValueError:  # of a function written in C
        return False
    return True


# torch.export keeps its tracing modes in process-wide state: two threads that trace at once undo each other's
_tracing = threading.RLock()


def capture(
    model: Any,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    example_keywords: Any = None,
    numerics: str = "fast",
) -> Captured:
    """The Graph of a module, a function or an ExportedProgram.

    example_inputs  a tuple of the model's arguments (one tensor stands for a tuple of one); not needed for an ExportedProgram
    dynamic_shapes  as for torch.export
    numerics        eager: random numbers are drawn by ATen

    Parameters and buffers become constants that share memory with the model's; buffers that a call changes become inputs with
    writebacks. Raises InvalidModelError where torch.export cannot trace the model, UnsupportedError for what a Graph cannot hold.
    """
    with _tracing, warnings.catch_warnings():
        # an RNN's list of weights is set anew by every call; what it holds are parameters all the same
        warnings.filterwarnings("ignore", "The tensor attributes? self", UserWarning)
        # torch's own copying of its trees
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        program = (
            model if isinstance(model, ExportedProgram) else _export(model, example_inputs, dynamic_shapes, example_keywords)
        )
        with own_arguments():
            program = program.run_decompositions(decompositions(numerics))
    return _import_program(program, _name_of(model), numerics)


def _name_of(model: Any) -> str:
    named = model.graph_module if isinstance(model, ExportedProgram) else model
    name = getattr(named, "__name__", type(named).__name__)
    return name if name.isidentifier() else "main"


def _export(model: Any, inputs: Any, dynamic_shapes: Any, keywords: Any) -> ExportedProgram:
    if inputs is None:
        raise InputError("a torch model needs example_inputs", hint="give a tuple of the arguments that the model is called with")
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    module = model if isinstance(model, torch.nn.Module) else _Function(model)
    dynamic_shapes = _grouped(module.forward, inputs, dynamic_shapes)
    try:
        return torch.export.export(module, inputs, dict(keywords or {}), dynamic_shapes=dynamic_shapes, strict=False)
    except (torch._dynamo.exc.UserError, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode) as error:
        raise InvalidModelError(
            f"torch.export cannot trace the model: {_first_line(error)}", hint="see torch.export.draft_export"
        ) from error


def _grouped(forward: Callable[..., Any], inputs: tuple, shapes: Any) -> Any:
    """Shapes of arguments that `forward` takes as `*rest` as one tuple, as torch.export wants them: (a, b, c) --> (a, (b, c))."""
    kinds = [parameter.kind for parameter in inspect.signature(forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds or not isinstance(shapes, tuple | list) or len(shapes) != len(inputs):
        return shapes
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    rest = tuple(shapes[first:])
    return shapes if any(isinstance(shape, tuple | list) for shape in rest) else (*shapes[:first], rest)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _import_program(program: ExportedProgram, name: str, numerics: str) -> Captured:
    """The Graph of a decomposed program, its state and its conventions."""
    signature = program.graph_signature
    mutated = {spec.target for spec in signature.output_specs if spec.kind in _MUTATIONS}
    constants: dict[str, Any] = {}
    state: list[torch.Tensor] = []
    fixed: list[Any] = []
    of_target: dict[str, str] = {}
    for spec in signature.input_specs:
        argument = spec.arg
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(argument, ConstantArgument):
                constants[argument.name] = argument.value
                fixed.append(argument.value)
            else:
                fixed.append(_GIVEN)
                of_target[argument.name] = argument.name
            continue
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise UnsupportedError(f"a model with an input of kind {spec.kind.name}", items=(spec.kind.name,))
        tensor = _tensor_called(program, spec.target)
        of_target[spec.target] = argument.name
        if spec.target in mutated:
            state.append(tensor)
        else:
            constants[argument.name] = tensor
    _require_state_first(signature, mutated)
    mutations = {
        position: of_target[spec.target] for position, spec in enumerate(signature.output_specs) if spec.kind in _MUTATIONS
    }
    limits = limits_of(program)
    graph = import_fx(program.graph_module, name=name, constants=constants, mutations=mutations, limits=limits, numerics=numerics)
    results, numbers = _results(program)
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    return Captured(graph, tuple(state), in_spec, out_spec, tuple(fixed), results, numbers)


def _tensor_called(program: ExportedProgram, target: str) -> torch.Tensor:
    if target in program.state_dict:
        return program.state_dict[target]
    return program.constants[target]


def _require_state_first(signature: Any, mutated: set[str]) -> None:
    """torch.export puts a model's own tensors before the arguments; `Captured.flatten` relies on it."""
    seen_user = False
    for spec in signature.input_specs:
        seen_user |= spec.kind is InputKind.USER_INPUT
        assert not (seen_user and spec.target in mutated and spec.kind is not InputKind.USER_INPUT)


def _results(program: ExportedProgram) -> tuple[tuple[int | tuple[Any], ...], frozenset[int]]:
    """What each leaf of the model's result is, and which outputs of the Graph are numbers."""
    results: list[int | tuple[Any]] = []
    numbers: set[int] = set()
    count = 0
    values = flat_results(program.graph_module)
    for value, spec in zip(values, program.graph_signature.output_specs):
        if spec.kind in _MUTATIONS:
            continue
        if isinstance(spec.arg, ConstantArgument) or not isinstance(value, torch.fx.Node):
            results.append((spec.arg.value if isinstance(spec.arg, ConstantArgument) else value,))
            count += value is not None
            continue
        if not isinstance(value.meta["val"], torch.Tensor):
            numbers.add(count)
        results.append(count)
        count += 1
    return tuple(results), frozenset(numbers)
