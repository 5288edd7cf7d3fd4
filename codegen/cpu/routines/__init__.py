"""Hand-written kernels: ops whose loops no formula of one element gives well, as attention, recurrences and sorting.

A routine is one module with the code of one op (or of a family of them). It says for which operands it applies, what scratch
memory it wants, and writes a function `void kernel(void **words, int64 low, int64 high)` as every kernel of ours does: `words`
are the addresses of the op's reads and writes, then its scratch, then the sizes that are symbols; [low, high) is a part of the
work. An op without a routine that applies goes to a library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType


@dataclass(frozen=True)
class Written:
    """What a routine says of the function it wrote: see `ir.program.CompiledKernel`. `summary` is one line for a listing."""

    work: Dim
    grain: int
    summary: str
    multiple: int = 1


class Routine(Protocol):
    """The code of one op."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """Whether this routine can compute the node, and is expected to be quicker than the library."""
        ...

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Memory it wants besides operands and results; row major, shared by all threads. Integers are 0 when the code starts."""
        ...

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        """Write the function `name` into an open module."""
        ...


@runtime_checkable
class Packs(Protocol):
    """A routine that reads some operands in an arrangement of its own."""

    def packing(self, node: Node, machine: Machine) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """For these operands, how each is written with views; the code is given that, stored row major, in the operand's place.

        It is stored once for what stays the same between calls, else in each call. The op's meaning must take it too, since the
        interpreter of programs is given what the code is given.
        """
        ...


@runtime_checkable
class WritesInPlace(Protocol):
    """A routine that may write a result in the memory of an operand."""

    def in_place(self, node: Node) -> Mapping[int, int]:
        """Numbers of results -> numbers of operands of as many elements: each is read for the last time by whoever writes there.

        The planner lets them share memory where they lie alike and the operand is not used again.
        """
        ...


def routines() -> Mapping[str, Routine]:
    """The routine of each op that has one."""
    from dlcompiler.codegen.cpu.routines.attention import Attention
    from dlcompiler.codegen.cpu.routines.attention_backward import AttentionBackward
    from dlcompiler.codegen.cpu.routines.block_linear import BlockLinear
    from dlcompiler.codegen.cpu.routines.convolution_weight import ConvolutionWeight
    from dlcompiler.codegen.cpu.routines.indexing import INDEXING
    from dlcompiler.codegen.cpu.routines.recurrent import Recurrent
    from dlcompiler.codegen.cpu.routines.recurrent_backward import RecurrentBackward

    forward, backward = Recurrent(), RecurrentBackward()
    scans: dict[str, Routine] = {}
    for cell in ("lstm", "gru", "rnn"):
        scans |= {f"{cell}_scan": forward, f"{cell}_scan_keeping": forward, f"{cell}_scan_backward": backward}
    attention = Attention()
    return {
        "attention": attention, "attention_with_logsumexp": attention, "attention_backward": AttentionBackward(),
        "block_linear": BlockLinear(), "convolution_weight": ConvolutionWeight(), **scans, **INDEXING,
    }  # fmt: skip


def find_routine(node: Node, machine: Machine) -> Routine | None:
    """The routine that computes the node on this machine, or None."""
    routine = routines().get(node.op.name)
    return routine if routine is not None and routine.applies(node, machine) else None
