"""The rules of Kernel IR, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import Dim, Expression, symbols
from dlcompiler.ir.kernel import REDUCTIONS, Kernel
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.text.kernel import print_kernel
from dlcompiler.ir.types import bf16, boolean, f16, i64

NARROW = (f16, bf16)
CONTEXT = 5


def verify_kernel(kernel: Kernel) -> None:
    """Raise VerifyError unless the kernel keeps every rule of its IR.

    Axes and buffers have names of their own and extents made of sizes only; every value has the dtype its operation gives (narrow
    floats are only loaded, cast and stored); indices use declared axes and one entry a dimension; an indirect index is an i64;
    a stored value depends on no axis that its store does not have; every out buffer is stored to and no in buffer is. A bundle
    has the buffers of its parts, in order, and nothing else.
    """
    _Check(kernel).run()


class _Check:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.axes = kernel.extents
        self.lines = 0

    def fail(self, message: str, line: int) -> NoReturn:
        """`line`: of the fault, counted over values and then stores; -1 for the header."""
        text = print_kernel(self.kernel).splitlines()
        at = len(text) - 1 - len(self.kernel.values) - len(self.kernel.stores) + line
        shown = [f"{'>' if k == at else ' '} {text[k]}" for k in range(max(at - CONTEXT, 0), min(at + CONTEXT, len(text)))]
        raise VerifyError(f"kernel {self.kernel.name}: {message}\n" + "\n".join(shown))

    def run(self) -> None:
        self.header()
        if isinstance(self.kernel, K.Bundle):
            self.bundle(self.kernel)
            return
        for line, value in enumerate(self.kernel.values):
            fault = self.value(value)
            if fault is not None:
                self.fail(fault, line)
        stored: set[K.Buffer] = set()
        for line, store in enumerate(self.kernel.stores, len(self.kernel.values)):
            fault = self.store(store)
            if fault is not None:
                self.fail(fault, line)
            stored.add(store.buffer)
        for buffer in self.kernel.buffers:
            if buffer.role == "out" and buffer not in stored:
                self.fail(f"nothing is stored to {buffer.name}", -1)

    def bundle(self, bundle: K.Bundle) -> None:
        """Parts are kernels of their own; a bundle in a bundle would be one that is not flat."""
        if bundle.stores or bundle.axes or any(isinstance(part, K.Bundle) for part in bundle.parts):
            self.fail("a bundle has parts that are plain kernels, and nothing else", -1)
        theirs = [(b.dtype, b.shape, b.strides, b.role) for part in bundle.parts for b in part.buffers]
        if theirs != [(b.dtype, b.shape, b.strides, b.role) for b in bundle.buffers]:
            self.fail("the buffers are not those of its parts", -1)
        for part in bundle.parts:
            verify_kernel(part)

    def header(self) -> None:
        kernel = self.kernel
        for names, what in (([a.name for a in kernel.axes], "axes"), ([b.name for b in kernel.buffers], "buffers")):
            if len(set(names)) != len(names):
                self.fail(f"two {what} have one name: {names}", -1)
        for axis in kernel.axes:
            if self.axes_in([axis.extent]):
                self.fail(f"the extent of {axis.name} depends on an axis: {axis.extent}", -1)
        for buffer in kernel.buffers:
            if len(buffer.shape) != len(buffer.strides) or self.axes_in((*buffer.shape, *buffer.strides)):
                self.fail(f"the shape or the strides of {buffer.name} are not sizes", -1)

        winograd = kernel.winograd
        if winograd is not None and (winograd.weights not in kernel.buffers or winograd.weights.role != "in"):
            self.fail(f"{winograd.weights.name} is not an in buffer of the kernel", -1)
        if winograd is not None and (not winograd.sizes or min(winograd.sizes) < 1):
            self.fail("winograd needs the size of a tile along each window", -1)

    def axes_in(self, dims: Iterable[Dim]) -> set[str]:
        return {s for d in dims if isinstance(d, Expression) for s in symbols(d) if s in self.axes}

    def value(self, value: K.Value) -> str | None:
        """What is wrong with it, or None."""
        match value:
            case K.Constant() | K.Index():
                return self.no_indirect(value)
            case K.Within():
                return self.no_indirect(value) or ("a within is a bool" if value.dtype is not boolean else None)
            case K.Load():
                return self.load(value)
            case K.Compute():
                return self.compute(value)
            case K.Reduce():
                return self.reduce(value)
        return f"a {type(value).__name__} is not a value"

    def no_indirect(self, value: K.Value) -> str | None:
        return "only a load has indirect indices" if any(s.startswith("@") for s in value._index_symbols()) else None

    def load(self, value: K.Load) -> str | None:
        if value.buffer not in self.kernel.buffers:
            return f"{value.buffer.name} is not a buffer of the kernel"
        if value.dtype is not value.buffer.dtype:
            return f"a load from {value.buffer.dtype} gives no {value.dtype}"
        if len(value.index) != len(value.buffer.shape):
            return f"{value.buffer.name} has {len(value.buffer.shape)} dimensions, not {len(value.index)}"
        used = {s for e in value.index for s in symbols(e) if s.startswith("@")}
        if any(s.startswith("@") for b in value.guard for s in symbols(b.expression)):
            return "an indirect index does not decide what is read"
        declared = {f"@{k}" for k in range(len(value.indirect))}
        if used != declared:
            return f"indirect indices {sorted(used)} are used, {sorted(declared)} are given"
        if any(v.dtype is not i64 for v in value.indirect):
            return "an indirect index is an i64"
        return None

    def compute(self, value: K.Compute) -> str | None:
        if value.op == "cast":
            return None if len(value.inputs) == 1 else "a cast has one operand"
        if value.op == "bitcast":
            fits = len(value.inputs) == 1 and value.inputs[0].dtype.bits == value.dtype.bits
            return None if fits else "a bitcast has one operand, of the same width"
        scalar = SCALARS.get(value.op)
        if scalar is None:
            return f"there is no scalar operation {value.op!r}"
        if len(value.inputs) != scalar.arity:
            return f"{value.op} takes {scalar.arity} operands, not {len(value.inputs)}"
        operands = [v.dtype for v in value.inputs]
        if value.op == "where":
            if operands[0] is not boolean:
                return "the condition of where is a bool"
            operands = operands[1:]
        if any(d is not operands[0] for d in operands):
            return f"{value.op} of {', '.join(map(str, operands))}"
        if operands[0] in NARROW and value.op != "where":  # a choice computes nothing
            return f"{operands[0]} is computed in f32: cast before and after"
        if not scalar.accepts(operands[0]):
            return f"{value.op} does not take {operands[0]}"
        result = scalar.result(operands[0])
        return None if value.dtype is result else f"{value.op} gives {result}, not {value.dtype}"

    def reduce(self, value: K.Reduce) -> str | None:
        operand = value.operand.dtype
        if value.kind not in REDUCTIONS:
            return f"there is no reduction {value.kind!r}"
        if any(name not in self.axes for name in value.over) or len(set(value.over)) != len(value.over):
            return f"cannot reduce over {', '.join(value.over)}"
        if not value.over and value.kind not in ("argmax", "argmin"):
            return "a reduction over nothing"
        if operand in NARROW:
            return f"{operand} is reduced in f32: cast before and after"
        if (operand is boolean) != (value.kind in ("and", "or")):
            return f"reduce.{value.kind} does not take {operand}"
        result = i64 if value.kind in ("argmax", "argmin") else operand
        return None if value.dtype is result else f"reduce.{value.kind} gives {result}, not {value.dtype}"

    def store(self, store: K.Store) -> str | None:
        if store.buffer not in self.kernel.buffers:
            return f"{store.buffer.name} is not a buffer of the kernel"
        if store.buffer.role != "out":
            return f"{store.buffer.name} is not an out buffer"
        if store.value.dtype is not store.buffer.dtype:
            return f"a store of {store.value.dtype} into {store.buffer.dtype}"
        if len(store.index) != len(store.buffer.shape):
            return f"{store.buffer.name} has {len(store.buffer.shape)} dimensions, not {len(store.index)}"
        free = self.kernel.axes_of[store.value] - self.axes_in(store.index)
        if free:
            return f"the value depends on {', '.join(sorted(free))}, which the store's index does not have"
        return None
