"""Attention as one kernel: `softmax(scale * q @ k.T + mask) @ v`, the scores never in memory as a whole.

For training it also writes the logarithm of each row's sum of exponentials, from which `attention_backward` makes scores again.

A work item is one head and a block of query rows. It walks over blocks of keys and keeps, for each row, the largest score so
far, the sum of exponentials and the weighted sum of values; when a block brings a larger score, what was summed before is scaled
down (the online softmax of Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; tiled as in Dao et al.,
FlashAttention, 2022). Two ways of filling lanes are written, for many query rows and for few: see `attention_tiles` and
`attention_rows`.

NaN and infinities come out as the op's meaning says, but for values of `v` at keys that a causal mask hides: those that lie in no
block that a row visits are not read, so 0 * NaN does not spread from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.routines.attention_problem import Numbers, Problem
from dlcompiler.codegen.cpu.routines.attention_rows import write_rows
from dlcompiler.codegen.cpu.routines.attention_tiles import write_tiles
from dlcompiler.ir.expression import Dim, floor_div, product
from dlcompiler.ir.types import TensorType, f16

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.machine import Machine
    from dlcompiler.codegen.cpu.routines import Written
    from dlcompiler.ir.graph import Node
    from dlcompiler.ir.program import RoutineCall

# Multiply-adds worth a thread of their own; starting one takes some microseconds.
WORTH_A_THREAD = 1 << 18
# The widest head that the scratch on the stack is made for.
MAXIMUM_WIDTH = 256
# What a size that is not known is taken for.
GUESS = 128


def suits(node: Node, machine: Machine, widths: Sequence[Dim]) -> bool:
    """Whether heads of these widths and the operands' types are what the kernels of attention are written for."""
    halves = any(operand.tensor.dtype is f16 for operand in node.inputs)
    known = all(isinstance(size, int) and 0 < size <= MAXIMUM_WIDTH for size in widths)
    return known and machine.has_fma and (machine.has_half_conversion or not halves)


class Attention:
    """The routine of the ops `attention` and `attention_with_logsumexp`."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """Heads of a known width up to 256, in float types that the machine converts, where there are fused multiply-adds.

        There it is quicker than the library; without them it takes twice as long (x86-64-v2, 12 heads of 128 x 64: 3.9 ms, the
        library held to SSE 4.2: 1.8 ms), since the exponential asks the C library for each one.
        """
        query, _, value, *mask = (operand.tensor for operand in node.inputs)
        return suits(node, machine, (query.shape[-1], value.shape[-1])) and all(operand.rank > 0 for operand in mask)

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """None: what a thread needs lies on its stack."""
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        """One function over the work items, and one for each of the two ways that may be needed."""
        from dlcompiler.codegen.cpu.routines import Written

        problem = Problem.of(call, machine)
        many = f"{name}.tiles" if problem.may_be_many() else None
        few = f"{name}.rows" if problem.may_be_few() else None
        if many is not None:
            write_tiles(e, problem, many)
        if few is not None:
            write_rows(e, problem, few)
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            numbers = Numbers(e, problem, words)
            pointers = e.buffers(words, len(problem.arguments))
            with e.for_loop(low, high) as loop:
                _work_item(numbers, words, pointers, loop.index, many, few)
        blocks = floor_div(problem.length + (problem.item_rows - 1), problem.item_rows)
        rows = min(problem.length, problem.item_rows) if isinstance(problem.length, int) else problem.item_rows
        seen = problem.seen if isinstance(problem.seen, int) else GUESS
        cost = rows * seen * (problem.width + problem.depth)
        ways = ([f"{problem.group_rows} rows at a time"] if many else []) + (["row by row"] if few else [])
        summary = f"attention {' or '.join(ways)}, {problem.lanes} lanes of {problem.element}"
        return Written(product(problem.lead) * blocks, max(1, WORTH_A_THREAD // max(cost, 1)), summary)


def _work_item(n: Numbers, words: Value, pointers: Sequence[Value], item: Value, many: str | None, few: str | None) -> None:
    """Find head and rows of a work item, and call the function for them."""
    e, problem = n.e, n.problem
    length = n.value(problem.length)
    blocks = e.div(length + (problem.item_rows - 1), problem.item_rows)
    block, rest = e.rem(item, blocks), e.div(item, blocks)
    if problem.causal:
        # first and last in turns, so that any half of the items is about half of the work
        half = block >> 1
        block = e.select(e.compare("eq", block & 1, 0), half, blocks - 1 - half)
    starts = n.heads(rest, pointers)
    row = block * problem.item_rows
    arguments = [words, *starts, row, e.minimum(length - row, problem.item_rows)]
    if many is None or few is None:
        e.call(many or few or "", arguments)
        return
    scarce = e.compare("le", length, problem.few)
    with e.if_then(scarce):
        e.call(few, arguments)
    with e.if_then(e.bit_not(scarce)):
        e.call(many, arguments)
