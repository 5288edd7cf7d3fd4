"""What the kernel of attention's gradients is written for: sizes, blocks, and how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass

from dlcompiler.codegen.cpu.literals import ELEMENT_BITS
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines.attention_problem import WIDE, Problem, Strided, broadcast_numbers, of_rows, strided
from dlcompiler.ir.expression import Dim, evaluate, product, symbols
from dlcompiler.ir.graph import Node
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import TensorType, compute_dtype, i64

# Query rows of a block, and keys of a block; fewer of wide heads, so that what a thread has on its stack stays below 256 KiB.
ROWS = 64
KEYS = 64
# Heads wider than this have half as many keys in a block; wider than `WIDE`, half as many of both.
MEDIUM = 64
# Bytes. Rows of keys a multiple of this apart share few sets of the first cache, so that a block of them does not fit there.
CROWDED = 1024
# Keys whose gradients are in registers at the same time.
KEPT_KEYS = 4
# The most parts that a head's keys are divided into, where heads are too few for the cores.
MOST_PARTS = 8


@dataclass(frozen=True)
class GradientProblem(Problem):
    """One call of `attention_backward`: `out` is the gradient of the output, `keys` and `groups` as in `Problem`.

    delta        of each row: the sum of grad * out
    gradients    dq, dk, dv
    sums         where dk and dv are summed up: themselves, or scratch if they are narrower than sums
    parts        into which a head's keys are divided: each adds to a dq of its own, which the last one to finish adds up
    share        dq of each part [lead, parts, length, width], if there are several
    counter      parts of each head that have finished
    """

    delta: Strided
    gradients: tuple[Strided, Strided, Strided]
    sums: tuple[Strided, Strided]
    parts: int
    share: Strided | None
    counter: Strided | None

    @property
    def named(self) -> dict[str, Strided]:
        """Operands, results and scratch in the order of the call's words."""
        dq, dk, dv = self.gradients
        sum_k, sum_v = (None if own is gradient else own for own, gradient in zip(self.sums, (dk, dv)))
        given = {
            "grad": self.out, "query": self.query, "key": self.key, "value": self.value, "logsumexp": self.logsumexp,
            "delta": self.delta, "mask": self.mask, "dq": dq, "dk": dk, "dv": dv, "sum_k": sum_k, "sum_v": sum_v,
            "share": self.share, "counter": self.counter,
        }  # fmt: skip
        return {role: place for role, place in given.items() if place is not None}

    @property
    def arguments(self) -> tuple[Strided, ...]:
        """What `named` gives."""
        return tuple(self.named.values())

    @property
    def copies_keys(self) -> bool:
        """Whether blocks of keys are copied: here columns of them are read too, as those of values in `Problem`."""
        step, size = self.key.row, ELEMENT_BITS[self.key.memory] // 8
        return self.key.memory != self.element or (isinstance(step, int) and step > 0 and step * size % CROWDED == 0)

    @property
    def copies_values(self) -> bool:
        """Whether blocks of values are copied: to convert them."""
        return self.value.memory != self.element


def parts_of(lead: tuple[Dim, ...], seen: Dim, machine: Machine) -> int:
    """Into how many parts the keys of a head are divided, so that a number of heads that is known keeps all cores busy."""
    heads = product(lead)
    if symbols(heads):
        return 1
    count = evaluate(heads, {})
    blocks = MOST_PARTS if symbols(seen) else -(-evaluate(seen, {}) // KEYS)
    parts = 1
    while parts < min(MOST_PARTS, blocks) and count * parts < 2 * machine.cores and count * parts % machine.cores:
        parts += 1
    return parts


def is_narrow(node: Node) -> bool:
    """Whether gradients are stored narrower than they are summed up."""
    dtype = node.inputs[1].dtype
    return compute_dtype(dtype) is not dtype


def scratch_types(node: Node, machine: Machine) -> list[TensorType]:
    """Sums of dk and dv where these are narrow; dq of each part, and counters of parts that have finished."""
    q, k, v = (operand.tensor for operand in node.inputs[1:4])
    lead, wide = q.shape[:-2], compute_dtype(q.dtype)
    found = [TensorType(wide, x.shape) for x in (k, v)] if is_narrow(node) else []
    parts = parts_of(lead, k.shape[-2], machine)
    if parts > 1:
        found += [TensorType(wide, (*lead, parts, *q.shape[-2:])), TensorType(i64, lead or (1,))]
    return found


def gradient_problem(call: RoutineCall, machine: Machine) -> GradientProblem:
    """The problem of one call."""
    grad, q, k, v, logsumexp, delta, *mask = call.reads
    dq, dk, dv, *scratch = (view for view in call.writes if view is not None)
    lead = q.shape[:-2]
    width, depth = q.shape[-1], v.shape[-1]
    assert isinstance(width, int) and isinstance(depth, int)
    element = "f64" if q.dtype.name == "f64" else "f32"
    lanes = machine.lanes(8 if element == "f64" else 4)
    vectors = 1 if machine.vector_bytes == 64 else 2
    part = (1 if max(width, depth) <= WIDE else 2) * (2 if element == "f64" else 1)
    gradients = strided(dq, lead), strided(dk, lead), strided(dv, lead)
    sums = gradients[1:]
    if gradients[1].memory != element:
        sums = strided(scratch[0], lead), strided(scratch[1], lead)
        scratch = scratch[2:]
    share, counter = (_of_parts(scratch[0]), _of_heads(scratch[1], lead)) if scratch else (None, None)
    return GradientProblem(
        machine, element, lanes, lead, q.shape[-2], k.shape[-2], width, depth,
        float(call.attributes["scale"]), bool(call.attributes["causal"]),
        strided(q, lead), strided(k, lead), strided(v, lead), strided(mask[0], lead) if mask else None, strided(grad, lead),
        of_rows(logsumexp), call.size_symbols, vectors=vectors, broadcast=broadcast_numbers(machine), few=0,
        keys=KEYS // part // (2 if max(width, depth) > MEDIUM else 1),
        groups=max(1, ROWS // part // (vectors * lanes)), delta=of_rows(delta), gradients=gradients, sums=sums,
        parts=parts_of(lead, k.shape[-2], machine), share=share, counter=counter,
    )  # fmt: skip


def _of_parts(view: View) -> Strided:
    """Scratch [lead, parts, length, width]: the part is a last leading dimension."""
    *lead, row, column = view.strides
    return Strided("f64" if view.dtype.bytes == 8 else "f32", tuple(lead), row, column)


def _of_heads(view: View, lead: tuple[Dim, ...]) -> Strided:
    """One counter a head."""
    return Strided("i64", tuple(view.strides[: len(lead)]), 0, 0)
