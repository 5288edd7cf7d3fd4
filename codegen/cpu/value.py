"""One SSA value of the text that `Emitter` writes, with operators so that formulas read like mathematics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dlcompiler.codegen.cpu.literals import ELEMENT_BITS, FLOATS, Number

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.emitter import Emitter


@dataclass(frozen=True)
class Value:
    """A scalar (lanes 0) or a vector of `lanes` elements. Its operators emit through the Emitter that made it.

    `/ < <= > >= >>` are the signed operations; the unsigned ones are methods of Emitter. `==` compares names, as for
    any dataclass.
    """

    name: str
    element: str
    lanes: int = 0
    emitter: Emitter | None = field(default=None, compare=False, repr=False)

    @property
    def type(self) -> str:
        """The MLIR type: `f32`, `vector<16xf32>`, `!llvm.ptr`."""
        scalar = "!llvm.ptr" if self.element == "ptr" else self.element
        return f"vector<{self.lanes}x{scalar}>" if self.lanes else scalar

    @property
    def is_float(self) -> bool:
        return self.element in FLOATS

    @property
    def bits(self) -> int:
        """The width of one element."""
        return ELEMENT_BITS[self.element]

    @property
    def owner(self) -> Emitter:
        """The Emitter that made this value; ValueError if it was made by hand."""
        if self.emitter is None:
            raise ValueError(f"{self.name} was made without an Emitter, so it has no operators")
        return self.emitter

    def __add__(self, other: Operand) -> Value:
        return self.owner.add(self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.owner.add(other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.owner.sub(self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.owner.sub(other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.owner.mul(self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.owner.mul(other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.owner.div(self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.owner.div(other, self)

    def __neg__(self) -> Value:
        return self.owner.neg(self)

    def __and__(self, other: Operand) -> Value:
        return self.owner.bit_and(self, other)

    def __or__(self, other: Operand) -> Value:
        return self.owner.bit_or(self, other)

    def __xor__(self, other: Operand) -> Value:
        return self.owner.bit_xor(self, other)

    def __invert__(self) -> Value:
        return self.owner.bit_not(self)

    def __lshift__(self, other: Operand) -> Value:
        return self.owner.shl(self, other)

    def __rshift__(self, other: Operand) -> Value:
        return self.owner.shr(self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.owner.compare("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.owner.compare("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.owner.compare("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.owner.compare("ge", self, other)


Operand: TypeAlias = Value | Number
