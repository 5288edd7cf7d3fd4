"""Writes MLIR text one SSA value a line: the vocabulary in which every CPU kernel is spelled.

The text mixes arith, vector, scf and math with llvm: functions are `llvm.func`, a buffer is a plain `!llvm.ptr` and
memory is read with `llvm.load`, so that no memref descriptors exist, and functions call each other and are called from
C as they are. All indices are i64.

    e = Emitter()
    with e.func("scale", [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        source, target = e.buffers(args, 2)
        with e.for_loop(low, high, 16) as loop:
            x = e.load(source, loop.index, "f32", 16)
            e.store(x * 2.0, target, loop.index)
    text = e.text()

Elements are MLIR's names (f32 f64 f16 bf16 i1 i8 i16 i32 i64) and "ptr". Signedness belongs to the operation, not to
the type. An i1 lives in memory as one byte that is 0 or 1. Arithmetic exists for f32, f64 and integers; f16 and bf16
are storage, converted first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dlcompiler.codegen.cpu import conversions
from dlcompiler.codegen.cpu.literals import ELEMENT_BITS, Number, literal
from dlcompiler.codegen.cpu.loop import Loop
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.value import Operand, Value

__all__ = ["Emitter", "Loop", "Operand", "Value"]

PREDICATES = {
    "float": {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"},
    "signed": {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"},
    "unsigned": {"eq": "eq", "ne": "ne", "lt": "ult", "le": "ule", "gt": "ugt", "ge": "uge"},
}


class Emitter:
    """A module being written. Methods append to the open function and return the new Value; see the module's docstring.

    Numbers are accepted wherever a Value is, and become constants of the other operand's type; a scalar beside a vector
    is broadcast. Constants are hoisted to the function's top, once each, and left out when nothing uses them. With a
    `machine`, its own instructions are used where they help, and every function is held to its level; else the text
    suits any. `attributes` (MLIR text) are put on every function.
    """

    def __init__(self, attributes: str = "", machine: Machine | None = None) -> None:
        self.machine = machine
        self.attributes = attributes or (machine.attributes() if machine else "")
        self.top: list[str] = []  # lines of the functions written so far
        self._declared: dict[str, str] = {}
        self._lines: list[str] = []
        self._constants: dict[str, Value] = {}
        self._scratch: list[str] = []
        self._used: set[str] = set()
        self._counter = 0
        self._open_function: str | None = None

    # ---- writing ----

    def text(self) -> str:
        """The whole module."""
        return "\n".join(["module {", *self._declared.values(), *self.top, "}", ""])

    def raw(self, text: str) -> None:
        """Add module-level text as it is."""
        self.top.append(text)

    def value(self, element: str, lanes: int = 0) -> Value:
        """A fresh name of that type."""
        self._counter += 1
        return Value(f"%v{self._counter}", element, lanes, self)

    def line(self, text: str, *operands: Value) -> None:
        """Append one line; each `{}` in it is an operand's name."""
        pieces = text.split("{}")
        if len(pieces) != len(operands) + 1:
            raise ValueError(f"{len(operands)} operands for: {text}")
        self._used.update(operand.name for operand in operands)
        self._lines.append("".join(piece + operand.name for piece, operand in zip(pieces, operands)) + pieces[-1])

    def op(self, element: str, lanes: int, text: str, *operands: Value) -> Value:
        """Append `%new = text` and return the new value; each `{}` in the text is an operand's name."""
        result = self.value(element, lanes)
        self.line(f"{result.name} = {text}", *operands)
        return result

    @contextmanager
    def func(
        self,
        name: str,
        arguments: Sequence[tuple[str, str]],
        public: bool = False,
        result: str | None = None,
        inline: bool = True,
    ) -> Iterator[tuple[Value, ...]]:
        """Open a function and give its arguments as Values; `arguments` are (name, element). `ret` ends one that has a `result`.

        Functions are internal to the module unless `public`; `jit.compile_mlir` finds its entry points either way.
        One that is not `inline` stays a function of its own: less code to compile where a call costs nothing beside its work.
        """
        if self._open_function is not None:
            raise ValueError(f"function {name} opened inside {self._open_function}")
        self._open_function = name
        self._lines, self._constants, self._scratch, self._used = [], {}, [], set()
        values = tuple(Value(f"%{argument}", element, 0, self) for argument, element in arguments)
        yield values
        if result is None:
            self.line("llvm.return")
        signature = ", ".join(f"{value.name}: {value.type}" for value in values)
        returns = f" -> {Value('', result).type}" if result else ""
        words = [self.attributes] if self.attributes else []
        words += [] if inline else ['passthrough = ["noinline"]']
        attributes = f" attributes {{{', '.join(words)}}}" if words else ""
        constants = [
            f"{value.name} = arith.constant {text}" for text, value in self._constants.items() if value.name in self._used
        ]
        self.top += [
            f"llvm.func {'' if public else 'internal '}@{name}({signature}){returns}{attributes} {{",
            *constants,
            *self._scratch,
            *self._lines,
            "}",
        ]
        self._open_function = None

    def ret(self, value: Value) -> None:
        """Return `value` from a function that has a result; the last thing in it."""
        self.line(f"llvm.return {{}} : {value.type}", value)

    # ---- constants and operands ----

    def constant(self, value: Number | Sequence[Number], like_or_element: Value | str, lanes: int | None = None) -> Value:
        """A number (or one number a lane) as a value of the given type: `constant(1.5, x)`, `constant(0, "i32")`,
        `constant(-0.0, "f32", 16)`.
        """
        like = like_or_element
        kind = (
            Value("", like.element, like.lanes if lanes is None else lanes)
            if isinstance(like, Value)
            else Value("", like, lanes or 0)
        )
        text = literal(value, kind.element, kind.lanes)
        key = text if kind.element == "i1" and not kind.lanes else f"{text} : {kind.type}"
        if key not in self._constants:
            self._constants[key] = self.value(kind.element, kind.lanes)
        return self._constants[key]

    def iota(self, lanes: int, element: str = "i64") -> Value:
        """0, 1, 2, ... one number a lane."""
        return self.constant(list(range(lanes)), element, lanes)

    def broadcast(self, x: Value, lanes: int) -> Value:
        """A scalar in every lane; a vector of that many lanes is returned as it is."""
        if x.lanes == lanes:
            return x
        if x.lanes:
            raise TypeError(f"cannot broadcast {x.type} to {lanes} lanes")
        if x.element == "ptr":
            raise TypeError("pointers are not broadcast")
        return self.op(x.element, lanes, f"vector.broadcast {{}} : {x.type} to {Value('', x.element, lanes).type}", x)

    def unify(self, *operands: Operand) -> tuple[Value, ...]:
        """The operands with one type: numbers as constants of the Values' element, scalars broadcast beside vectors."""
        values = [operand for operand in operands if isinstance(operand, Value)]
        elements = {value.element for value in values}
        if len(elements) != 1:
            raise TypeError(f"operands of elements {sorted(elements)}: convert them to one")
        element, lanes = elements.pop(), max(value.lanes for value in values)
        return tuple(
            self.broadcast(operand, lanes) if isinstance(operand, Value) else self.constant(operand, element, lanes)
            for operand in operands
        )

    # ---- arithmetic ----

    def _arithmetic(self, name: str, *operands: Operand, flags: str = "") -> Value:
        """`arith.<name>` with the suffix of the operands' kind: `add` is addf or addi."""
        values = self.unify(*operands)
        kind = values[0]
        if kind.element in ("f16", "bf16"):
            raise TypeError(f"{name} of {kind.element}: arithmetic is done in f32, convert first")
        suffix = "f" if kind.is_float else "i"
        return self.op(
            kind.element, kind.lanes, f"arith.{name}{suffix} {', '.join('{}' for _ in values)}{flags} : {kind.type}", *values
        )

    def add(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("add", a, b)

    def sub(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("mul", a, b)

    def div(self, a: Operand, b: Operand, signed: bool = True) -> Value:
        """a / b; integers truncate towards zero. An integer b of 0, or least / -1, is undefined: guard them before."""
        return self._arithmetic("div" if self._is_float(a, b) else "divs" if signed else "divu", a, b)

    def rem(self, a: Operand, b: Operand, signed: bool = True) -> Value:
        """The remainder of an integer `div`, with a's sign. Not for floats, whose remainder is a library call."""
        if self._is_float(a, b):
            raise TypeError("rem is for integers")
        return self._arithmetic("rems" if signed else "remu", a, b)

    def neg(self, x: Value) -> Value:
        if not x.is_float:
            return self.sub(0, x)
        return self._arithmetic("neg", x)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c, rounded once."""
        values = self.unify(a, b, c)
        if values[0].element not in ("f32", "f64"):
            raise TypeError(f"fma of {values[0].element}")
        return self.op(values[0].element, values[0].lanes, f"math.fma {{}}, {{}}, {{}} : {values[0].type}", *values)

    def maximum(self, a: Operand, b: Operand, signed: bool = True) -> Value:
        """The larger; NaN if either is NaN. Which of -0.0 and 0.0 comes out is unspecified."""
        return self._extremum("max", "imum", a, b, signed)

    def minimum(self, a: Operand, b: Operand, signed: bool = True) -> Value:
        """The smaller; NaN if either is NaN. Which of -0.0 and 0.0 comes out is unspecified."""
        return self._extremum("min", "imum", a, b, signed)

    def maxnum(self, a: Operand, b: Operand) -> Value:
        """The larger; the number if the other is NaN (C's fmax)."""
        return self._extremum("max", "num", a, b, True)

    def minnum(self, a: Operand, b: Operand) -> Value:
        """The smaller; the number if the other is NaN (C's fmin)."""
        return self._extremum("min", "num", a, b, True)

    def _extremum(self, name: str, flavour: str, a: Operand, b: Operand, signed: bool) -> Value:
        if self._is_float(a, b):
            return self._arithmetic(name + flavour, a, b, flags=" fastmath<nsz>")
        return self._arithmetic(name + ("s" if signed else "u"), a, b)

    def math(self, name: str, x: Value) -> Value:
        """`math.<name>` of f32 or f64; meant for what is one instruction: sqrt floor ceil trunc roundeven absf."""
        if x.element not in ("f32", "f64"):
            raise TypeError(f"math.{name} of {x.element}: convert first")
        return self.op(x.element, x.lanes, f"math.{name} {{}} : {x.type}", x)

    def abs(self, x: Value) -> Value:
        """|x|; the least integer stays as it is."""
        return self.math("absf", x) if x.is_float else self.maximum(x, self.neg(x))

    def sqrt(self, x: Value) -> Value:
        return self.math("sqrt", x)

    def copysign(self, magnitude: Operand, sign: Value) -> Value:
        """|magnitude| with the sign bit of `sign`."""
        a, b = self.unify(magnitude, sign)
        return self.op(a.element, a.lanes, f"math.copysign {{}}, {{}} : {a.type}", a, b)

    @staticmethod
    def _is_float(*operands: Operand) -> bool:
        return any(isinstance(operand, Value) and operand.is_float for operand in operands)

    # ---- comparison and choice ----

    def compare(self, predicate: str, a: Operand, b: Operand, signed: bool = True) -> Value:
        """i1 of `eq ne lt le gt ge` (for floats: false with NaN, except ne), or of any exact MLIR predicate (`ult`,
        `uno`, `sgt`, ...).
        """
        left, right = self.unify(a, b)
        if left.element in ("f16", "bf16"):
            raise TypeError(f"comparison of {left.element}: convert first")
        kind = "float" if left.is_float else "signed" if signed else "unsigned"
        exact = PREDICATES[kind].get(predicate, predicate)
        return self.op(
            "i1", left.lanes, f"arith.cmp{'f' if left.is_float else 'i'} {exact}, {{}}, {{}} : {left.type}", left, right
        )

    def is_nan(self, x: Value) -> Value:
        return self.compare("uno", x, x)

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """`a` where the condition (i1, scalar or vector) holds, else `b`."""
        if not isinstance(a, Value) and not isinstance(b, Value):
            raise TypeError("select needs a Value among its two choices, to know their type")
        x, y = self.unify(a, b)
        if self._bits(x) is not x:
            return self.bitcast(self.select(condition, self._bits(x), self._bits(y)), x.element)
        if condition.lanes and not x.lanes:
            x, y = self.broadcast(x, condition.lanes), self.broadcast(y, condition.lanes)
        if x.lanes and condition.lanes:
            return self.op(x.element, x.lanes, f"arith.select {{}}, {{}}, {{}} : {condition.type}, {x.type}", condition, x, y)
        return self.op(x.element, x.lanes, f"arith.select {{}}, {{}}, {{}} : {x.type}", condition, x, y)

    # ---- bits and conversions ----

    def bit_and(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("and", a, b)

    def bit_or(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("or", a, b)

    def bit_xor(self, a: Operand, b: Operand) -> Value:
        return self._arithmetic("xor", a, b)

    def bit_not(self, x: Value) -> Value:
        return self.bit_xor(x, 1 if x.element == "i1" else -1)

    def shl(self, x: Operand, count: Operand) -> Value:
        """x << count; a count of the width or more is undefined."""
        return self._shift("arith.shli", x, count)

    def shr(self, x: Operand, count: Operand, signed: bool = True) -> Value:
        """x >> count, keeping the sign if signed; a count of the width or more is undefined."""
        return self._shift("arith.shrsi" if signed else "arith.shrui", x, count)

    def _shift(self, name: str, x: Operand, count: Operand) -> Value:
        a, b = self.unify(x, count)
        return self.op(a.element, a.lanes, f"{name} {{}}, {{}} : {a.type}", a, b)

    def cast(self, operation: str, x: Value, element: str) -> Value:
        """One arith cast (`arith.extf`, `arith.fptosi`, ...) to the element, as it is; `convert` knows which are right."""
        return self.op(element, x.lanes, f"{operation} {{}} : {x.type} to {Value('', element, x.lanes).type}", x)

    def bitcast(self, x: Value, element: str) -> Value:
        """The same bits as another element of the same width."""
        return x if element == x.element else self.cast("arith.bitcast", x, element)

    def reinterpret(self, x: Value, element: str) -> Value:
        """The same bits as a vector of elements of another width."""
        lanes = x.lanes * x.bits // ELEMENT_BITS[element]
        return self.op(element, lanes, f"vector.bitcast {{}} : {x.type} to {Value('', element, lanes).type}", x)

    def intrinsic(self, name: str, *operands: Value, like: Value) -> Value:
        """What one of LLVM's own functions gives, of the type of `like`; the machine must have its instruction."""
        kinds = ", ".join(operand.type for operand in operands)
        text = f'llvm.call_intrinsic "{name}"({", ".join("{}" for _ in operands)}) : ({kinds}) -> {like.type}'
        return self.op(like.element, like.lanes, text, *operands)

    def convert(self, x: Value, element: str, signed: bool = True, source_signed: bool = True) -> Value:
        """`x` as `element`; see conversions.py for what happens to values that do not fit."""
        return conversions.convert(self, x, element, signed, source_signed)

    # ---- memory ----

    def buffers(self, args: Value, count: int) -> tuple[Value, ...]:
        """The `count` pointers in the array that `args` points to."""
        return tuple(self.load(args, number, "ptr") for number in range(count))

    def offset(self, pointer: Value, index: Operand, element: str) -> Value:
        """The address of element `index` (i64, or an i32/i64 vector for one address a lane)."""
        memory = Value("", "i8" if element == "i1" else element).type
        if not isinstance(index, Value):
            return self.op("ptr", 0, f"llvm.getelementptr {{}}[{index}] : (!llvm.ptr) -> !llvm.ptr, {memory}", pointer)
        result = self.value("ptr", index.lanes)
        kind = f"vector<{index.lanes}x!llvm.ptr>" if index.lanes else "!llvm.ptr"
        self.line(
            f"{result.name} = llvm.getelementptr {{}}[{{}}] : (!llvm.ptr, {index.type}) -> {kind}, {memory}", pointer, index
        )
        return result

    def load(self, pointer: Value, index: Operand, element: str, lanes: int = 0, alignment: int | None = None) -> Value:
        """`lanes` consecutive elements (or one) from `index` on; the address is aligned as one element is, or as given."""
        address = self.offset(pointer, index, element)
        if element == "i1":
            return self.compare("ne", self.load(address, 0, "i8", lanes), 0)
        result = Value("", element, lanes)
        return self.op(
            element,
            lanes,
            f"llvm.load {{}} {{alignment = {alignment or self._alignment(element)} : i64}} : !llvm.ptr -> {result.type}",
            address,
        )

    def store(
        self, value: Value, pointer: Value, index: Operand, nontemporal: bool = False, alignment: int | None = None
    ) -> None:
        """Write the value's elements from `index` on; `nontemporal` goes past the caches and needs a naturally aligned
        address.
        """
        address = self.offset(pointer, index, value.element)
        value = self._stored(value)
        alignment = alignment or value.bits // 8 * (max(value.lanes, 1) if nontemporal else 1)
        attributes = f"{{alignment = {alignment} : i64{', nontemporal' if nontemporal else ''}}}"
        self.line(f"llvm.store {{}}, {{}} {attributes} : {value.type}, !llvm.ptr", value, address)

    def masked_load(self, pointer: Value, index: Operand, mask: Value, passthru: Value) -> Value:
        """As `load`, of passthru's type, touching memory only where the mask holds and giving `passthru` elsewhere."""
        address = self.offset(pointer, index, passthru.element)
        if passthru.element == "i1":
            return self.compare("ne", self.masked_load(address, 0, mask, self.convert(passthru, "i8")), 0)
        if self._bits(passthru) is not passthru:
            return self.bitcast(self.masked_load(address, 0, mask, self._bits(passthru)), passthru.element)
        attributes = f"{{alignment = {self._alignment(passthru.element)} : i32}}"
        kind = f"(!llvm.ptr, {mask.type}, {passthru.type}) -> {passthru.type}"
        return self.op(
            passthru.element,
            passthru.lanes,
            f"llvm.intr.masked.load {{}}, {{}}, {{}} {attributes} : {kind}",
            address,
            mask,
            passthru,
        )

    def masked_store(self, value: Value, pointer: Value, index: Operand, mask: Value) -> None:
        """As `store`, where the mask holds."""
        address = self.offset(pointer, index, value.element)
        value = self._stored(value)
        attributes = f"{{alignment = {self._alignment(value.element)} : i32}}"
        self.line(
            f"llvm.intr.masked.store {{}}, {{}}, {{}} {attributes} : {value.type}, {mask.type} into !llvm.ptr",
            value,
            address,
            mask,
        )

    def gather(self, pointer: Value, base: Operand, indices: Value, mask: Value, passthru: Value) -> Value:
        """Element `base + indices[lane]` in each lane where the mask holds, `passthru` elsewhere; i32 indices are
        quickest.
        """
        if passthru.element == "i1":
            return self.compare("ne", self.gather(pointer, base, indices, mask, self.convert(passthru, "i8")), 0)
        if self._bits(passthru) is not passthru:
            return self.bitcast(self.gather(pointer, base, indices, mask, self._bits(passthru)), passthru.element)
        addresses = self.offset(self.offset(pointer, base, passthru.element), indices, passthru.element)
        attributes = f"{{alignment = {self._alignment(passthru.element)} : i32}}"
        kind = f"({addresses.type}, {mask.type}, {passthru.type}) -> {passthru.type}"
        return self.op(
            passthru.element,
            passthru.lanes,
            f"llvm.intr.masked.gather {{}}, {{}}, {{}} {attributes} : {kind}",
            addresses,
            mask,
            passthru,
        )

    def scatter(self, value: Value, pointer: Value, base: Operand, indices: Value, mask: Value) -> None:
        """Write each lane where the mask holds to element `base + indices[lane]`; of equal indices the highest lane
        stays.
        """
        addresses = self.offset(self.offset(pointer, base, value.element), indices, value.element)
        value = self._stored(value)
        attributes = f"{{alignment = {self._alignment(value.element)} : i32}}"
        self.line(
            f"llvm.intr.masked.scatter {{}}, {{}}, {{}} {attributes} : {value.type}, {mask.type} into {addresses.type}",
            value,
            addresses,
            mask,
        )

    def prefetch(self, pointer: Value, index: Operand, element: str, write: bool = False) -> None:
        """Ask for the cache line of an element; any address is allowed."""
        address = self.offset(pointer, index, element)
        attributes = f"<{{cache = 1 : i32, hint = 3 : i32, rw = {int(write)} : i32}}>"
        self.line(f'"llvm.intr.prefetch"({{}}) {attributes} : (!llvm.ptr) -> ()', address)

    def scratch(self, element: str, count: int) -> Value:
        """A 64-byte aligned buffer of `count` elements on the stack, for as long as the function runs."""
        size, result = self.value("i64"), self.value("ptr")
        memory = Value("", "i8" if element == "i1" else element).type
        self._scratch += [
            f"{size.name} = llvm.mlir.constant({count} : i64) : i64",
            f"{result.name} = llvm.alloca {size.name} x {memory} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr",
        ]
        return result

    def _stored(self, value: Value) -> Value:
        return self.convert(value, "i8", signed=False) if value.element == "i1" else self._bits(value)

    @staticmethod
    def _alignment(element: str) -> int:
        return max(ELEMENT_BITS[element] // 8, 1)

    # ---- lanes ----

    def create_mask(self, count: Operand, lanes: int) -> Value:
        """i1 lanes of which the first `count` hold (none for a negative count, all for one beyond `lanes`)."""
        if not isinstance(count, Value):
            return self.constant([lane < count for lane in range(lanes)], "i1", lanes)
        clamped = self.convert(self.maximum(self.minimum(count, lanes), 0), "i32")
        return self.compare("lt", self.iota(lanes, "i32"), clamped)

    def extract(self, vector: Value, lane: int) -> Value:
        return self.op(vector.element, 0, f"vector.extract {{}}[{lane}] : {vector.element} from {vector.type}", vector)

    def insert(self, scalar: Value, vector: Value, lane: int) -> Value:
        return self.op(
            vector.element, vector.lanes, f"vector.insert {{}}, {{}} [{lane}] : {scalar.type} into {vector.type}", scalar, vector
        )

    def shuffle(self, a: Value, b: Value, pattern: Sequence[int]) -> Value:
        """Lane i of the result is lane pattern[i] of a and b side by side."""
        return self.op(a.element, len(pattern), f"vector.shuffle {{}}, {{}} {list(pattern)} : {a.type}, {b.type}", a, b)

    def reduce(self, kind: str, vector: Value, signed: bool = True) -> Value:
        """All lanes as one scalar, in a fixed tree: halves against each other. `kind`: add mul max min and or xor;
        float max and min keep NaN.
        """
        steps: dict[str, Callable[[Value, Value], Value]] = {
            "add": self.add,
            "mul": self.mul,
            "and": self.bit_and,
            "or": self.bit_or,
            "xor": self.bit_xor,
            "max": lambda a, b: self.maximum(a, b, signed),
            "min": lambda a, b: self.minimum(a, b, signed),
        }
        lanes = vector.lanes
        if lanes < 1 or lanes & lanes - 1:
            raise ValueError(f"reduce needs a power of two of lanes, not {vector.type}")
        while lanes > 1:
            lanes //= 2
            low = self.shuffle(vector, vector, range(lanes))
            vector = steps[kind](low, self.shuffle(vector, vector, range(lanes, 2 * lanes)))
        return self.extract(vector, 0)

    def any(self, mask: Value) -> Value:
        """A scalar i1: does any lane hold. One test of a mask register."""
        if not mask.lanes:
            return mask
        return self.op("i1", 0, f"vector.reduction <or>, {{}} : {mask.type} into i1", mask)

    # ---- control ----

    @contextmanager
    def for_loop(self, lower: Operand, upper: Operand, step: Operand = 1, carried: Sequence[Value] = ()) -> Iterator[Loop]:
        """`for index in range(lower, upper, step)` over i64 (step above 0), with carried values; see Loop."""
        bounds = [bound if isinstance(bound, Value) else self.constant(bound, "i64") for bound in (lower, upper, step)]
        loop = Loop(self.value("i64"), *(tuple(self.value(v.element, v.lanes) for v in carried) for _ in range(2)))
        head = "scf.for {} = {} to {} step {}"
        types = ", ".join(value.type for value in carried)
        if carried:
            head += f" iter_args({', '.join('{} = {}' for _ in carried)}) -> ({types})"
            results = ", ".join(value.name for value in loop.results)
            head = f"{results} = {head}"
        pairs = [value for pair in zip(loop.carried, carried) for value in pair]
        self.line(head + " : i64 {", loop.index, *bounds, *pairs)
        yield loop
        if carried:
            if loop.following is None:
                raise ValueError("a loop that carries values must call next")
            self.line(f"scf.yield {', '.join('{}' for _ in carried)} : {types}", *loop.following)
        self.line("}")

    @contextmanager
    def if_then(self, condition: Value) -> Iterator[None]:
        """Statements that run only if the scalar condition holds."""
        self.line("scf.if {} {", condition)
        yield
        self.line("}")

    def if_else(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> tuple[Value, ...]:
        """The values of `then()` if the scalar condition holds, else those of `otherwise()`; only one of the two runs."""
        outer, sides, types = self._lines, [], []
        for body in (then, otherwise):
            self._lines = []
            given = body()
            values = [self._bits(value) for value in given]
            types.append([value.type for value in values])
            if values:
                self.line(f"scf.yield {', '.join('{}' for _ in values)} : {', '.join(types[-1])}", *values)
            sides.append(self._lines)
        self._lines = outer
        if types[0] != types[1]:
            raise TypeError(f"the two sides of an if give {types[0]} and {types[1]}")
        results = tuple(self.value(value.element, value.lanes) for value in values)
        names = f"{', '.join(result.name for result in results)} = " if results else ""
        kinds = f" -> ({', '.join(types[0])})" if results else ""
        self.line(f"{names}scf.if {{}}{kinds} {{", condition)
        self._lines += [*sides[0], "} else {", *sides[1], "}"]
        return tuple(self.bitcast(result, value.element) for result, value in zip(results, given))

    def _bits(self, x: Value) -> Value:
        """Half precision as integers: to LLVM a choice among floats may be arithmetic, which a machine may not have for these."""
        return self.bitcast(x, "i16") if x.element in ("f16", "bf16") else x

    # ---- calls ----

    def declare(self, name: str, arguments: Sequence[str], result: str | None = None) -> None:
        """Make an outside C function known by its elements; the same one may be declared again."""
        kinds = ", ".join(Value("", element).type for element in arguments)
        returns = f" -> {Value('', result).type}" if result else ""
        self._declared[name] = f"llvm.func @{name}({kinds}){returns}"

    def call(self, name: str, arguments: Sequence[Value], result: str | None = None) -> Value | None:
        """Call a function of this module or a declared one."""
        kinds = ", ".join(argument.type for argument in arguments)
        text = f"llvm.call @{name}({', '.join('{}' for _ in arguments)}) : ({kinds}) -> "
        if result is None:
            self.line(text + "()", *arguments)
            return None
        return self.op(result, 0, text + Value("", result).type, *arguments)

    def address_of(self, name: str) -> Value:
        """A function of this module as a pointer, to hand to GOMP_parallel."""
        return self.op("ptr", 0, f"llvm.mlir.addressof @{name} : !llvm.ptr")
