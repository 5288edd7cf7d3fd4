"""Tokens of the IR's text, and the parts that graphs, kernels and programs share: sizes, types, numbers, attributes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from dlcompiler.ir.errors import ParseError
from dlcompiler.ir.expression import OPERATIONS, RESERVED_NAMES, Dim, symbol
from dlcompiler.ir.types import DTYPES, DType, HostType, TensorType, TupleType, Type

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<value>%(?:[\w.]+|"(?:[^"\\\n]|\\.)*"))
      | (?P<number>0x[0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
      | (?P<copy>~\d+)
      | (?P<name>[^\W\d][\w.]*|@[\w.]+|@"(?:[^"\\\n]|\\.)*")
      | (?P<mark><=|->|[()\[\]{}=,:<+*-])
      | (?P<bad>.)""",
    re.VERBOSE,
)
DEEPEST = 64  # brackets in one another
MOST_DIGITS = 1000  # of an integer; Python converts no more than 4300
IDENTIFIER = re.compile(r"[^\W\d][\w.]*\Z")


class Scanner:
    """A cursor over the tokens of a text. Every failure is a ParseError at the token that does not fit."""

    def __init__(self, text: str) -> None:
        self.text = text
        # reads a graph that is an attribute's value
        self.read_region: Callable[[], Any] | None = None
        self.kinds: list[str] = []
        self.tokens: list[str] = []
        self.starts: list[int] = []
        self.at = 0
        self._depth = 0
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup
            if kind == "space":
                continue
            self.kinds.append(str(kind))
            self.tokens.append(match.group())
            self.starts.append(match.start())
        # two ends, so that one may look ahead from the last token
        self.kinds += ["end", "end"]
        self.tokens += ["", ""]
        self.starts += [len(text), len(text)]

    # -- tokens --------------------------------------------------------------------------------------------------------

    def error(self, message: str, at: int | None = None) -> NoReturn:
        """Raise ParseError at token number `at`, by default the next one."""
        position = self.starts[self.at if at is None else at]
        line = self.text.count("\n", 0, position) + 1
        start = self.text.rfind("\n", 0, position) + 1
        end = self.text.find("\n", position)
        source = self.text[start : end if end >= 0 else len(self.text)]
        raise ParseError(message, line=line, column=position - start + 1, source=source)

    def unexpected(self, wanted: str) -> NoReturn:
        found = repr(self.tokens[self.at]) if self.kinds[self.at] != "end" else "the end of the text"
        self.error(f"expected {wanted}, found {found}")

    def peek(self) -> str:
        """The next token, "" at the end. A string or %value never equals a keyword or mark."""
        return self.tokens[self.at]

    def accept(self, token: str) -> bool:
        """Step over `token` if it is next."""
        if self.tokens[self.at] == token:
            self.at += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if self.tokens[self.at] != token or self.kinds[self.at] == "end":
            self.unexpected(repr(token))
        self.at += 1

    def take(self, kind: str, wanted: str) -> str:
        if self.kinds[self.at] != kind:
            self.unexpected(wanted)
        self.at += 1
        return self.tokens[self.at - 1]

    def end(self) -> None:
        if self.kinds[self.at] != "end":
            self.unexpected("the end of the text")

    def string(self) -> str:
        at = self.at
        text = self.take("string", "a string")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            self.error(f"bad string: {error.msg}", at)

    def name(self, wanted: str = "a name") -> str:
        """An identifier, or a string for a name that is not one."""
        return self.string() if self.kinds[self.at] == "string" else self.take("name", wanted)

    def label(self, wanted: str) -> tuple[str, int]:
        """A name, and the number in `name~2`, which tells things of one name apart; 0 without it."""
        name = self.name(wanted)
        if self.kinds[self.at] != "copy":
            return name, 0
        self.at += 1
        return name, int(self.tokens[self.at - 1][1:])

    def value_name(self) -> str:
        """The name in `%name` or `%"any name"`."""
        return self.marked_name("value", "a %value")

    def marked_name(self, kind: str, wanted: str) -> str:
        """The name after a mark of one character, quoted or not."""
        at = self.at
        text = self.take(kind, wanted)[1:]
        if text[0] != '"':
            return text
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            self.error(f"bad name: {error.msg}", at)

    # -- sizes and types -----------------------------------------------------------------------------------------------

    def dim(self) -> Dim:
        """A size or an index: sums and products of integers, names and `div mod max min` of two of them."""
        if self.kinds[self.at] == "number" and self.tokens[self.at + 1] not in "+-*":
            return self.integer()
        total: Dim = 0
        sign = 1
        while True:
            total = total + self._product() * sign
            if self.accept("+"):
                sign = 1
            elif self.accept("-"):
                sign = -1
            else:
                return total

    def _product(self) -> Dim:
        result = self._factor()
        while self.accept("*"):
            result = result * self._factor()
        return result

    def _factor(self) -> Dim:
        with self._deeper():
            return self._factor_inside()

    def _factor_inside(self) -> Dim:
        kind, at = self.kinds[self.at], self.at
        if self.accept("-"):
            return self._factor() * -1
        if self.accept("("):
            inner = self.dim()
            self.expect(")")
            return inner
        if kind == "number":
            return self.integer()
        if kind != "name":
            self.unexpected("a size")
        name = self.take("name", "a size")
        if not self.accept("("):
            if name in RESERVED_NAMES:
                self.error(f"{name!r} is not a size", at)
            return symbol(name)
        if name not in OPERATIONS:
            self.error(f"{name!r} is not an operation on sizes (div, mod, max, min)", at)
        left = self.dim()
        self.expect(",")
        right = self.dim()
        self.expect(")")
        if name in ("div", "mod") and isinstance(right, int) and right < 1:
            self.error(f"{name} by {right}: a divisor is positive", at)
        return OPERATIONS[name](left, right)

    def integer(self) -> int:
        at = self.at
        text = self.take("number", "an integer")
        if not text.isdigit():
            self.error(f"expected an integer, found {text!r}", at)
        if len(text) > MOST_DIGITS:
            self.error(f"an integer of {len(text)} digits is too large", at)
        return int(text)

    def dims(self) -> tuple[Dim, ...]:
        """`[a, b, c]`"""
        self.expect("[")
        found: list[Dim] = []
        while not self.accept("]"):
            found.append(self.dim())
            if self.peek() != "]":
                self.expect(",")
        return tuple(found)

    def dtype(self) -> DType:
        at = self.at
        name = self.take("name", "an element type")
        if name not in DTYPES:
            self.error(f"{name!r} is not an element type ({', '.join(DTYPES)})", at)
        return DTYPES[name]

    def tensor_type(self) -> TensorType:
        dtype = self.dtype()
        return TensorType(dtype, self.dims())

    def value_type(self) -> TensorType | HostType:
        """`f32[N]`, or `host "seq(tensor(float))"`."""
        return HostType(self.string()) if self.accept("host") else self.tensor_type()

    def type(self) -> Type:
        if not self.accept("("):
            return self.value_type()
        elements: list[TensorType | HostType | None] = []
        while not self.accept(")"):
            elements.append(None if self.accept("none") else self.value_type())
            if self.peek() != ")":
                self.expect(",")
        return TupleType(tuple(elements))

    # -- attributes ----------------------------------------------------------------------------------------------------

    def attributes(self) -> dict[str, Any]:
        """`{name = value, ...}`, or nothing at all."""
        if self.peek() != "{":
            return {}
        result = self.attribute()
        assert isinstance(result, dict)
        return result

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        """One level further into brackets, of which a text from anywhere must not have as many as Python's stack."""
        self._depth += 1
        if self._depth > DEEPEST:
            self.error(f"nested more than {DEEPEST} deep")
        yield
        self._depth -= 1

    def attribute(self) -> Any:
        """One attribute's value: number, string, true, false, none, size, (tuple), [list], {dictionary}."""
        with self._deeper():
            return self._attribute_inside()

    def _attribute_inside(self) -> Any:
        kind, token, following = self.kinds[self.at], self.tokens[self.at], self.tokens[self.at + 1]
        if kind == "string":
            return self.string()
        if token == "(":
            return tuple(self._sequence("(", ")"))
        if token == "[":
            return self._sequence("[", "]")
        if token == "{":
            return self._dictionary()
        if kind == "name":
            if token == "graph" and self.kinds[self.at + 1] in ("name", "string") and self.read_region is not None:
                return self.read_region()
            if token in ("true", "false", "none"):
                self.at += 1
                return {"true": True, "false": False, "none": None}[token]
            if token in ("inf", "nan"):
                return self.float()
            if token == "complex" and following == "(":
                return self._complex()
            return self.dim()
        if kind == "number" and not token.isdigit():
            return self.float()
        if token == "-" and (following == "inf" or (self.kinds[self.at + 1] == "number" and not following.isdigit())):
            return self.float()
        if kind == "number" or token == "-":
            return self.dim()
        self.unexpected("a value")

    def float(self) -> float:
        """A decimal number, inf or nan, with a sign or without."""
        sign = -1.0 if self.accept("-") else 1.0
        if self.kinds[self.at] == "number":
            at = self.at
            try:
                return sign * float(self.take("number", "a number"))
            except ValueError:
                self.error("expected a decimal number", at)
        if self.peek() in ("inf", "nan"):
            self.at += 1
            return sign * float(self.tokens[self.at - 1])
        self.unexpected("a number")

    def _complex(self) -> complex:
        self.expect("complex")
        self.expect("(")
        real = self.float()
        self.expect(",")
        imaginary = self.float()
        self.expect(")")
        return complex(real, imaginary)

    def _sequence(self, opening: str, closing: str) -> list[Any]:
        self.expect(opening)
        found = []
        while not self.accept(closing):
            found.append(self.attribute())
            if self.peek() != closing:
                self.expect(",")
        return found

    def _dictionary(self) -> dict[str, Any]:
        self.expect("{")
        found: dict[str, Any] = {}
        while not self.accept("}"):
            at = self.at
            key = self.name("an attribute's name")
            if key in found:
                self.error(f"{key!r} is given twice", at)
            self.expect("=")
            found[key] = self.attribute()
            if self.peek() != "}":
                self.expect(",")
        return found
