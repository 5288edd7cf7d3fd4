"""Kernel: what one fused loop nest computes, element by element over named axes, with no word about how it runs.

A kernel has axes, buffers and stores. What is stored is a `Value`: a function of some of the axes, built from loads, scalar
operations, constants, index arithmetic and reductions. A value is computed once for each point of the axes it depends on
(`Value.axes`); a `Reduce` removes axes. Elements stored as float16 or bfloat16 are cast to float32 after a load and back before
a store, by explicit casts.

    kernel softmax(x: f32[M, N], out y: f32[M, N]) for i < M, j < N {
      v0 = load x[i, j] : f32
      v1 = reduce.max(v0) over j : f32
      v2 = sub(v0, v1) : f32
      v3 = exp(v2) : f32
      v4 = reduce.add(v3) over j : f32
      v5 = div(v3, v4) : f32
      store y[i, j] = v5
    }
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from dlcompiler.ir.expression import Dim, symbols
from dlcompiler.ir.types import DType, contiguous_strides

# Reductions. max and min propagate NaN; argmax and argmin give the first position, counted row-major over the removed axes.
REDUCTIONS = ("add", "mul", "max", "min", "and", "or", "argmax", "argmin")


@dataclass(frozen=True)
class Axis:
    """A loop variable that runs over `[0, extent)`."""

    name: str
    extent: Dim


@dataclass(frozen=True)
class Buffer:
    """A parameter of the kernel: memory seen as a strided tensor. Strides are in elements."""

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    role: Literal["in", "out"] = "in"

    @property
    def is_contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape)

    def offset(self, index: tuple[Dim, ...]) -> Dim:
        """Elements from the start of the buffer to the element at `index`."""
        total: Dim = 0
        for position, stride in zip(index, self.strides):
            total = total + position * stride
        return total


@dataclass(frozen=True)
class Bound:
    """The condition `0 <= expression < extent`."""

    expression: Dim
    extent: Dim

    def __str__(self) -> str:
        return f"0 <= {self.expression} < {self.extent}"


@dataclass(frozen=True, eq=False)
class Value:
    """One scalar, as a function of `axes`. Compared by identity; the builder shares equal values."""

    dtype: DType

    @property
    def operands(self) -> tuple[Value, ...]:
        return ()

    def _index_symbols(self) -> frozenset[str]:
        """Symbols in index expressions of the value itself: axes, sizes, and names of indirect indices."""
        return frozenset()

    def _removed(self) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True, eq=False)
class Constant(Value):
    """A number known now."""

    value: Any


@dataclass(frozen=True, eq=False)
class Index(Value):
    """An index expression as a number of `dtype`."""

    expression: Dim

    def _index_symbols(self) -> frozenset[str]:
        return symbols(self.expression)


@dataclass(frozen=True, eq=False)
class Within(Value):
    """A bool: whether every bound holds."""

    bounds: tuple[Bound, ...]

    def _index_symbols(self) -> frozenset[str]:
        return frozenset().union(*(symbols(b.expression) | symbols(b.extent) for b in self.bounds))


@dataclass(frozen=True, eq=False)
class Load(Value):
    """`buffer[index]`. Where a bound in `guard` fails nothing is read and the value is unspecified (a `where` discards it).

    `indirect` are i64 values; in `index` the symbol `@k` stands for `indirect[k]`, clamped already where it was made.
    """

    buffer: Buffer
    index: tuple[Dim, ...]
    guard: tuple[Bound, ...] = ()
    indirect: tuple[Value, ...] = ()

    @property
    def operands(self) -> tuple[Value, ...]:
        return self.indirect

    def _index_symbols(self) -> frozenset[str]:
        found = frozenset().union(*(symbols(e) for e in self.index))
        return found.union(*(symbols(b.expression) | symbols(b.extent) for b in self.guard))


@dataclass(frozen=True, eq=False)
class Compute(Value):
    """A scalar operation of `ir.scalar`, or `cast` or `bitcast` to `dtype`."""

    op: str
    inputs: tuple[Value, ...]

    @property
    def operands(self) -> tuple[Value, ...]:
        return self.inputs


@dataclass(frozen=True, eq=False)
class Reduce(Value):
    """`operand` reduced over axes, one of REDUCTIONS. An empty range gives the identity (max: -inf)."""

    kind: str
    operand: Value
    over: tuple[str, ...]

    @property
    def operands(self) -> tuple[Value, ...]:
        return (self.operand,)

    def _removed(self) -> frozenset[str]:
        return frozenset(self.over)


@dataclass(frozen=True, eq=False)
class Store:
    """`buffer[index] = value` at every point of the axes in `index`."""

    buffer: Buffer
    index: tuple[Dim, ...]
    value: Value


@dataclass(frozen=True)
class Winograd:
    """That a kernel's sum of products may be computed by Winograd's algorithm, and what has been made ready for that.

    sizes    results of one tile along each window of the convolution (see `ir.winograd.find_windows`)
    weights  an in buffer that no load reads: the columns, transformed (`ir.winograd.transform_panels`)
    """

    sizes: tuple[int, ...]
    weights: Buffer


@dataclass(frozen=True, eq=False)
class Kernel:
    """One fused loop nest. `origin` names the graph nodes and source lines it came from.

    What a kernel computes is in its stores; `winograd` is a way to get (nearly) the same that whoever writes code may take.
    """

    name: str
    axes: tuple[Axis, ...]
    buffers: tuple[Buffer, ...]
    stores: tuple[Store, ...]
    origin: tuple[str, ...] = ()
    winograd: Winograd | None = None

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """Every value, operands first, in order of first use. Iterative: chains may be long."""
        done: dict[Value, None] = {}
        stack: list[tuple[Value, bool]] = [(s.value, False) for s in reversed(self.stores)]
        while stack:
            value, expanded = stack.pop()
            if value in done:
                continue
            if expanded:
                done[value] = None
            else:
                stack.append((value, True))
                stack.extend((o, False) for o in reversed(value.operands))
        return tuple(done)

    @cached_property
    def extents(self) -> dict[str, Dim]:
        return {a.name: a.extent for a in self.axes}

    @cached_property
    def axes_of(self) -> dict[Value, frozenset[str]]:
        """The axes each value depends on."""
        found: dict[Value, frozenset[str]] = {}
        for value in self.values:
            own = frozenset(s for s in value._index_symbols() if s in self.extents)
            found[value] = own.union(*(found[o] for o in value.operands)) - value._removed()
        return found

    @cached_property
    def reduced_axes(self) -> frozenset[str]:
        """Axes that some reduction removes."""
        return frozenset(a for v in self.values if isinstance(v, Reduce) for a in v.over)

    @cached_property
    def size_symbols(self) -> tuple[str, ...]:
        """Sizes that must be given at launch, sorted by name."""
        found: set[str] = set()
        for axis in self.axes:
            found |= symbols(axis.extent)
        for buffer in self.buffers:
            for dim in (*buffer.shape, *buffer.strides):
                found |= symbols(dim)
        for value in self.values:
            found |= value._index_symbols()
        for store in self.stores:
            found |= frozenset().union(*(symbols(e) for e in store.index))
        found = {s for s in found if s not in self.extents and not s.startswith("@")}
        return tuple(sorted(found))

    def replace(self, **changes: Any) -> Kernel:
        return replace(self, **changes)

    def called(self, name: str, origin: tuple[str, ...]) -> Kernel:
        """The same kernel for other nodes, with what is known of its values."""
        other = replace(self, name=name, origin=origin)
        facts = ("values", "extents", "axes_of", "reduced_axes", "size_symbols")
        other.__dict__.update({fact: self.__dict__[fact] for fact in facts if fact in self.__dict__})
        return other

    def __str__(self) -> str:
        from dlcompiler.ir.text import print_kernel

        return print_kernel(self)


@dataclass(frozen=True, eq=False)
class Bundle(Kernel):
    """Kernels that do not depend on each other, run by one launch: each of `parts` by programs of its own.

    `buffers` are those of all parts, in order, under names of their own. It has no axes, values or stores besides its parts'.
    """

    parts: tuple[Kernel, ...] = ()

    @cached_property
    def size_symbols(self) -> tuple[str, ...]:
        return tuple(sorted({s for part in self.parts for s in part.size_symbols}))

    def per_part(self, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What is given for each of `buffers`, part by part."""
        rest, found = iter(arguments), []
        for part in self.parts:
            found.append(tuple(next(rest) for _ in part.buffers))
        return found


def bundle(name: str, parts: Sequence[Kernel]) -> Bundle:
    """Kernels as one."""
    buffers = tuple(replace(b, name=f"{b.name}_{k}") for k, part in enumerate(parts) for b in part.buffers)
    origin = tuple(dict.fromkeys(line for part in parts for line in part.origin))
    return Bundle(name, (), buffers, (), origin, None, tuple(parts))


def parts_of(kernel: Kernel) -> tuple[Kernel, ...]:
    """The loop nests that a kernel is: its parts, or itself."""
    return kernel.parts if isinstance(kernel, Bundle) else (kernel,)
