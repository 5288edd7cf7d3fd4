"""Operators and rewrites of a user's own: `from dlcompiler import extend`.

    @extend.operator("com.example::SoftClip", "example::soft_clip")
    def soft_clip(b, x, limit=1.0):
        return b.mul(b.tanh(b.div(x, limit)), limit)

An operator is written with the ops of the IR (`docs/extending.md` lists them), so it is fused with what is around it, is compiled
for every target, and has a meaning for the reference interpreter; there is nothing else to write. What cannot be written so is
a function of NumPy arrays that the host runs (`host_operator`). `rewrite` adds a line of algebra to the passes.

This module is only the register. It holds for the process, and is asked by the front ends and by the pass `own-rewrites`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.errors import CompilerError, InvalidModelError, OptionError

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Builder
    from dlcompiler.ir.types import TensorType

Function = Callable[..., Any]
# (types of the inputs, attributes) -> (element type, shape) of each result; None stands for a size that only data tells
Results = Callable[..., Sequence[tuple[str, Sequence[Any]]]]


@dataclass(frozen=True)
class Operator:
    """A function that builds an operator's results; `where` is the line that defines it."""

    name: str
    function: Function
    where: str

    def build(self, b: Builder, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
        """What the operator becomes: a node, or a tuple of nodes.

        Raises InvalidModelError if the function does not take these inputs and attributes, or fails.
        """
        self.require_fit(inputs, attributes, b)
        try:
            return self.function(b, *inputs, **attributes)
        except CompilerError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, NameError, ArithmeticError, AssertionError) as error:
            raise InvalidModelError(f"the definition of {self.name} fails: {error!r}", hint=f"see {self.where}") from error

    def require_fit(self, inputs: Sequence[Any], attributes: Mapping[str, Any], *before: Any) -> None:
        """Raise InvalidModelError unless the function takes these inputs and attributes."""
        try:
            inspect.signature(self.function).bind(*before, *inputs, **attributes)
        except TypeError as error:
            given = f"{len(inputs)} inputs" + (f" and the attributes {', '.join(attributes)}" if attributes else "")
            raise InvalidModelError(
                f"{self.name} is given {given}, which its definition does not take: {error}", hint=f"see {self.where}"
            ) from None


@dataclass(frozen=True)
class HostOperator(Operator):
    """A function of arrays, run on the host. `results`: see `host_operator`."""

    results: Results

    def types(self, inputs: Sequence[TensorType | None], attributes: Mapping[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
        """(element type, shape) of each result."""
        return [(dtype, tuple(shape)) for dtype, shape in self.results(*inputs, **attributes)]


_operators: dict[str, Operator] = {}
_rewrites: dict[str, Any] = {}
_lock = threading.Lock()


def operator(*names: str) -> Callable[[Function], Function]:
    """Say what operators of these names are, as a function `(b, *inputs, **attributes) -> node, or tuple of nodes`.

    names  `domain::Name` of an ONNX operator (`ai.onnx::Name` for the default domain), `library::name` of a torch operator, all
           of its overloads

    `b` is the graph's `Builder`: `b.add(x, 2.0)` appends an op and returns its node, whose `shape` and `dtype` are known. Inputs
    that an ONNX node leaves out are None. A torch operator's arguments come in its schema's order. The definition takes the place
    of one of ours or of the model file's own; it must give the types that the model declares. In training a torch operator's
    gradient is what `torch.library.register_autograd` says.

    Raises OptionError for a name that is no `domain::Name`, or one that is taken by another function.
    """

    def apply(function: Function) -> Function:
        return _register(function, names, lambda name: Operator(name, function, _where(function)))

    return apply


def host_operator(*names: str, results: Results) -> Callable[[Function], Function]:
    """Let the host run ONNX operators of these names, by a function `(*arrays, **attributes) -> array, or tuple of arrays`.

    results  (types of the inputs, attributes) -> [(element type as "f32" or "i64", shape)] of each result. A type has `dtype` and
             `shape`; None in a shape is a size that only data tells

    The program stops there for the call. An artefact holds the operator's name, so a process that loads it must define it too.
    A torch operator needs none of this: without a rule it is called as it is.

    Raises OptionError as `operator` does.
    """

    def apply(function: Function) -> Function:
        return _register(function, names, lambda name: HostOperator(name, function, _where(function), results))

    return apply


def rewrite(name: str, line: str, *, exact: bool, takes: str = "any", once: bool = False) -> None:
    """Add a rewrite `before --> after`, such as `"x * sigmoid(x) --> silu(x)"`, to the pass `own-rewrites`.

    exact   whether it gives the same bits for every operand; if not, it fires only under `numerics="fast"`
    takes   element types of x that it holds for: "any", "float", "integer", "signed", "wide float", "number", "bool", "whole"
    once    whether ops inside the left side must have no other reader

    A call is an op; `+ - * /` are add, sub, mul and div; a small letter is any value, and twice the same letter the same value; a
    capital is a constant of one element; a number is a constant of just that. Nothing proves that it is true:
    `dlcompiler verify --bisect` and `DLCOMPILER_VERIFY=1` name it where it is not.

    Raises OptionError for a line that is no rewrite, and for a name that is taken.
    """
    from dlcompiler.ir.errors import UnsupportedError
    from dlcompiler.passes.node.own_rewrites import add
    from dlcompiler.passes.pattern import TAKES, algebra

    if takes not in TAKES:
        raise OptionError(f"rewrite {name}: takes={takes!r} is none of {', '.join(TAKES)}")
    try:
        rule = algebra(name, line, exact=exact, takes=takes, once=once)
    except (ValueError, SyntaxError, UnsupportedError) as error:
        raise OptionError(f"rewrite {name}: {line!r} is no line `before --> after`: {error}") from None
    with _lock:
        if name in _rewrites:
            raise OptionError(f"there is a rewrite {name!r} already", hint="extend.forget() forgets all")
        _rewrites[name] = rule
    add(rule)


def forget() -> None:
    """Forget every operator and rewrite that was registered."""
    from dlcompiler.passes.node.own_rewrites import clear

    with _lock:
        _operators.clear()
        _rewrites.clear()
    clear()


def find(domain: str, name: str) -> Operator | None:
    """The definition of an operator, if there is one; the default domain of ONNX is "" or "ai.onnx"."""
    return _operators.get(f"{domain or 'ai.onnx'}::{name}")


def is_empty() -> bool:
    """Whether nothing was registered: whoever keeps programs between processes keeps none that hang on more than the model."""
    return not _operators and not _rewrites


def _register(function: Function, names: Sequence[str], make: Callable[[str], Operator]) -> Function:
    with _lock:
        for name in names:
            domain, separator, own = name.rpartition("::")
            if not (domain and separator and own):
                raise OptionError(f"{name!r} is no name of an operator", hint="as com.example::SoftClip or mylib::soft_clip")
            if name in _operators and _operators[name].function is not function:
                raise OptionError(f"{name} is defined already, by {_operators[name].where}", hint="extend.forget() forgets all")
        _operators.update({name: make(name) for name in names})
    return function


def _where(function: Function) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)
