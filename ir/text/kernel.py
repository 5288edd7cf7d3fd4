"""Kernels as text.

kernel softmax(x: f32[M, N] strides [1, M], out y: f32[M, N]) for i < M, j < N from "%softmax at bert.py:12" {
  v0 = load x[i, j] : f32
  v1 = reduce.max(v0) over j : f32
  v2 = sub(v0, v1) : f32
  v3 = load mask[i - 1, @0] using (v7) if 0 <= i - 1 < M : bool
  v4 = within 0 <= i - 1 < M : bool
  v5 = index 4*i + j : i64
  v6 = constant 0.5 : f32
  store y[i, j] = v2
}

A bundle has kernels in its body, which are its parts.

A kernel that may be computed by Winograd's algorithm says so after its axes: `for n < 8, k < 64 as winograd(transformed, 4, 4)`.
"""

from __future__ import annotations

from typing import Literal

from dlcompiler.ir import kernel as K
from dlcompiler.ir.kernel import REDUCTIONS, Kernel
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.text.scanner import Scanner
from dlcompiler.ir.text.values import quote, read_element, show_dims, show_element, show_name
from dlcompiler.ir.types import contiguous_strides

# a longer header has one buffer a line
HEADER_WIDTH = 110


def print_kernel(kernel: Kernel, *, label: str | None = None) -> str:
    """The text of a kernel; `label` is what it is called instead of its own name."""
    buffers = [_show_buffer(b) for b in kernel.buffers]
    axes = ", ".join(f"{a.name} < {a.extent}" for a in kernel.axes)
    way = _show_winograd(kernel.winograd) if kernel.winograd is not None else ""
    tail = (f" for {axes}" if axes else "") + way + (f" from {', '.join(map(quote, kernel.origin))}" if kernel.origin else "")
    start = f"kernel {label or show_name(kernel.name)}"
    header = f"{start}({', '.join(buffers)}){tail} {{"
    if len(header) > HEADER_WIDTH:
        header = f"{start}(\n    " + ",\n    ".join(buffers) + f"\n){tail} {{"
    names = {value: f"v{k}" for k, value in enumerate(kernel.values)}
    lines = [f"  {names[v]} = {show_kernel_value(v, names)} : {v.dtype}" for v in kernel.values]
    lines += [f"  store {show_name(s.buffer.name)}{show_dims(s.index)} = {names[s.value]}" for s in kernel.stores]
    if isinstance(kernel, K.Bundle):
        lines += ["  " + line for part in kernel.parts for line in print_kernel(part).splitlines()]
    return "\n".join((header, *lines, "}")) + "\n"


def _show_winograd(winograd: K.Winograd) -> str:
    return f" as winograd({show_name(winograd.weights.name)}, {', '.join(map(str, winograd.sizes))})"


def _show_buffer(buffer: K.Buffer) -> str:
    strides = "" if buffer.strides == contiguous_strides(buffer.shape) else f" strides {show_dims(buffer.strides)}"
    role = "out " if buffer.role == "out" else ""
    return f"{role}{show_name(buffer.name)}: {buffer.dtype}{show_dims(buffer.shape)}{strides}"


def show_kernel_value(value: K.Value, names: dict[K.Value, str]) -> str:
    """What defines a value, its operands by `names`."""
    match value:
        case K.Constant():
            return f"constant {show_element(value.value, value.dtype)}"
        case K.Index():
            return f"index {value.expression}"
        case K.Within():
            return f"within {_show_bounds(value.bounds)}"
        case K.Load():
            using = f" using ({', '.join(names[v] for v in value.indirect)})" if value.indirect else ""
            guard = f" if {_show_bounds(value.guard)}" if value.guard else ""
            return f"load {show_name(value.buffer.name)}{show_dims(value.index)}{using}{guard}"
        case K.Compute():
            return f"{value.op}({', '.join(names[v] for v in value.inputs)})"
        case K.Reduce():
            return f"reduce.{value.kind}({names[value.operand]}) over {', '.join(value.over)}".rstrip()
    raise TypeError(f"{type(value).__name__} is not a kernel value")


def _show_bounds(bounds: tuple[K.Bound, ...]) -> str:
    return ", ".join(map(str, bounds))


def parse_kernel(text: str) -> Kernel:
    """The kernel that `text` describes. Raises ParseError with line and column."""
    scanner = Scanner(text)
    kernel, _ = read_kernel(scanner)
    scanner.end()
    return kernel


def read_kernel(scanner: Scanner) -> tuple[Kernel, tuple[str, int]]:
    """A kernel and the label it was printed under."""
    return _Reader(scanner).read()


class _Reader:
    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.buffers: dict[str, K.Buffer] = {}
        self.axes: dict[str, K.Axis] = {}
        self.values: dict[str, K.Value] = {}
        self.stores: list[K.Store] = []
        self.parts: list[Kernel] = []

    def read(self) -> tuple[Kernel, tuple[str, int]]:
        scanner = self.scanner
        scanner.expect("kernel")
        label = scanner.label("the kernel's name")
        scanner.expect("(")
        while not scanner.accept(")"):
            self.buffer()
            if scanner.peek() != ")":
                scanner.expect(",")
        if scanner.accept("for"):
            self.axis()
            while scanner.accept(","):
                self.axis()
        winograd = self.winograd() if scanner.accept("as") else None
        origin: list[str] = []
        if scanner.accept("from"):
            origin.append(scanner.string())
            while scanner.accept(","):
                origin.append(scanner.string())
        scanner.expect("{")
        while not scanner.accept("}"):
            if scanner.accept("store"):
                self.store()
            elif scanner.peek() == "kernel" and scanner.tokens[scanner.at + 1] != "=":
                self.parts.append(read_kernel(scanner)[0])
            else:
                self.value()
        axes, buffers = tuple(self.axes.values()), tuple(self.buffers.values())
        if self.parts:
            return K.Bundle(label[0], axes, buffers, tuple(self.stores), tuple(origin), winograd, tuple(self.parts)), label
        return Kernel(label[0], axes, buffers, tuple(self.stores), tuple(origin), winograd), label

    def winograd(self) -> K.Winograd:
        scanner = self.scanner
        scanner.expect("winograd")
        scanner.expect("(")
        weights, sizes = self.known_buffer(), []
        while scanner.accept(","):
            sizes.append(scanner.integer())
        scanner.expect(")")
        return K.Winograd(tuple(sizes), weights)

    def buffer(self) -> None:
        scanner = self.scanner
        role: Literal["in", "out"] = "out" if scanner.peek() == "out" and scanner.tokens[scanner.at + 1] != ":" else "in"
        if role == "out":
            scanner.at += 1
        at = scanner.at
        name = scanner.name("a buffer's name")
        if name in self.buffers:
            scanner.error(f"buffer {name!r} is defined twice", at)
        scanner.expect(":")
        type = scanner.tensor_type()
        strides = scanner.dims() if scanner.accept("strides") else contiguous_strides(type.shape)
        self.buffers[name] = K.Buffer(name, type.dtype, type.shape, strides, role)

    def axis(self) -> None:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.name("an axis")
        if name in self.axes:
            scanner.error(f"axis {name!r} is defined twice", at)
        scanner.expect("<")
        self.axes[name] = K.Axis(name, scanner.dim())

    def known_buffer(self) -> K.Buffer:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.name("a buffer")
        if name not in self.buffers:
            scanner.error(f"there is no buffer {name!r}", at)
        return self.buffers[name]

    def operand(self) -> K.Value:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.take("name", "a value")
        if name not in self.values:
            scanner.error(f"{name} is not defined above", at)
        return self.values[name]

    def operands(self) -> tuple[K.Value, ...]:
        scanner = self.scanner
        scanner.expect("(")
        found: list[K.Value] = []
        while not scanner.accept(")"):
            found.append(self.operand())
            if scanner.peek() != ")":
                scanner.expect(",")
        return tuple(found)

    def bounds(self) -> tuple[K.Bound, ...]:
        found = [self.bound()]
        while self.scanner.accept(","):
            found.append(self.bound())
        return tuple(found)

    def bound(self) -> K.Bound:
        scanner, at = self.scanner, self.scanner.at
        if scanner.dim() != 0:
            scanner.error("a bound begins '0 <='", at)
        scanner.expect("<=")
        expression = scanner.dim()
        scanner.expect("<")
        return K.Bound(expression, scanner.dim())

    def store(self) -> None:
        scanner = self.scanner
        buffer = self.known_buffer()
        index = scanner.dims()
        scanner.expect("=")
        self.stores.append(K.Store(buffer, index, self.operand()))

    def value(self) -> None:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.take("name", "'value =', store or '}'")
        if name in self.values:
            scanner.error(f"{name} is defined twice", at)
        scanner.expect("=")
        self.values[name] = self.definition()

    def definition(self) -> K.Value:
        scanner, at = self.scanner, self.scanner.at
        what = scanner.take("name", "a definition")
        if what == "constant":
            return self.constant()
        if what == "index":
            expression = scanner.dim()
            return K.Index(self.dtype(), expression)
        if what == "within":
            bounds = self.bounds()
            return K.Within(self.dtype(), bounds)
        if what == "load":
            buffer, index = self.known_buffer(), scanner.dims()
            indirect = self.operands() if scanner.accept("using") else ()
            guard = self.bounds() if scanner.accept("if") else ()
            return K.Load(self.dtype(), buffer, index, guard, indirect)
        if what.startswith("reduce."):
            return self.reduction(what.removeprefix("reduce."), at)
        if what not in ("cast", "bitcast") and what not in SCALARS:
            scanner.error(f"there is no scalar operation {what!r}", at)
        inputs = self.operands()
        return K.Compute(self.dtype(), what, inputs)

    def reduction(self, kind: str, at: int) -> K.Reduce:
        scanner = self.scanner
        if kind not in REDUCTIONS:
            scanner.error(f"there is no reduction {kind!r} ({', '.join(REDUCTIONS)})", at)
        operands = self.operands()
        if len(operands) != 1:
            scanner.error("a reduction has one operand", at)
        over: list[str] = []
        scanner.expect("over")
        while scanner.peek() != ":":
            axis_at = scanner.at
            over.append(scanner.name("an axis"))
            if over[-1] not in self.axes:
                scanner.error(f"there is no axis {over[-1]!r}", axis_at)
            if scanner.peek() != ":":
                scanner.expect(",")
        return K.Reduce(self.dtype(), kind, operands[0], tuple(over))

    def dtype(self):
        self.scanner.expect(":")
        return self.scanner.dtype()

    def constant(self) -> K.Constant:
        """The dtype comes last, so the element is read once it is known."""
        scanner, content = self.scanner, self.scanner.at
        while scanner.peek() != ":":
            if scanner.kinds[scanner.at] not in ("number", "name", "mark"):
                scanner.unexpected("a number and ':'")
            scanner.at += 1
        dtype = self.dtype()
        after, scanner.at = scanner.at, content
        element = read_element(scanner, dtype)
        if scanner.peek() != ":":
            scanner.unexpected("':'")
        scanner.at = after
        return K.Constant(dtype, element.item() if dtype.name != "bf16" else float(element))
