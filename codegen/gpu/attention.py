"""What the kernels of attention on GPUs are written for: operands and their strides, what a mask is, tiles; and which apply.

The scores never exist as a whole: a program takes a block of query rows of one head and walks over blocks of keys with an online
softmax (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; tiled as in Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from dlcompiler.codegen.gpu.contraction_schedule import RATES
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.schedule import NARROW_LIMIT, ceiling, power_of_two
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, known, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import DType, bf16, f16, f32

WIDEST = 256  # numbers of a head
SMALLEST_BLOCK = 16  # of any dimension of a product on tensor cores


@dataclass(frozen=True)
class Strided:
    """One operand or result: strides in elements, 0 where it is broadcast. `column` is 0 for what has one number a row."""

    name: str
    dtype: DType
    lead: tuple[Dim, ...]
    row: Dim
    column: Dim


@dataclass(frozen=True)
class Problem:
    """One call of attention: q[lead, length, width], k[lead, seen, width], v[lead, seen, depth], out[lead, length, depth].

    operands  by role: query, key, value, mask, out, and for training logsumexp, delta and gradients
    buffers   the same as the kernel's parameters, in order
    """

    lead: tuple[Dim, ...]
    length: Dim
    seen: Dim
    width: int
    depth: int
    scale: float
    causal: bool
    dtype: DType
    operands: dict[str, Strided]
    buffers: tuple[K.Buffer, ...]
    origin: tuple[str, ...] = ()

    @property
    def mask(self) -> Strided | None:
        return self.operands.get("mask")

    @property
    def heads(self) -> Dim:
        """How many times the whole is done."""
        return product(self.lead)

    @property
    def narrow(self) -> bool:
        """Whether every distance in elements fits 32 bits; sizes not known now count as large."""
        return all(reach is not None and reach < NARROW_LIMIT // 2 for reach in map(_reach, self.buffers))

    @property
    def parameters(self) -> K.Kernel:
        """The kernel's parameters, as launching asks for them; what it computes is no loop nest of Kernel IR."""
        return K.Kernel("attention", (), self.buffers, (), self.origin)

    def without_origin(self) -> Problem:
        """The same for calls that come from elsewhere."""
        return replace(self, origin=())

    def operations(self) -> int:
        """Multiplications and additions, of a causal problem only those that count."""
        total = 2 * size_estimate(self.heads) * size_estimate(self.length) * size_estimate(self.seen) * (self.width + self.depth)
        return total // 2 if self.causal else total


def _reach(buffer: K.Buffer) -> int | None:
    if not all(isinstance(d, int) for d in (*buffer.shape, *buffer.strides)):
        return None
    return 1 + sum(abs(known(s)) * max(known(n) - 1, 0) for n, s in zip(buffer.shape, buffer.strides))


def strided(name: str, view: View, lead: tuple[Dim, ...]) -> Strided:
    """How an operand lies; missing and single leading dimensions are broadcast, and all those of a mask."""
    has_columns = name not in ONE_NUMBER_A_ROW
    kept = 2 if has_columns else 1
    single = len(view.shape) if name == "mask" else len(view.shape) - kept
    steps = [0 if size == 1 and d < single else step for d, (size, step) in enumerate(zip(view.shape, view.strides))]
    steps = [*(0,) * (len(lead) + kept - len(steps)), *steps]
    rest = steps[len(lead) :]
    return Strided(name, view.dtype, tuple(steps[: len(lead)]), rest[0], rest[1] if has_columns else 0)


def buffer(name: str, view: View, role: Literal["in", "out"]) -> K.Buffer:
    """A parameter."""
    return K.Buffer(name, view.dtype, view.shape, view.strides, role)


ROLES = {
    "attention": (("query", "key", "value", "mask"), ("out",)),
    "attention_with_logsumexp": (("query", "key", "value", "mask"), ("out", "logsumexp")),
    "attention_backward": (
        ("grad", "query", "key", "value", "logsumexp", "delta", "mask"), ("grad_query", "grad_key", "grad_value"),
    ),
}  # fmt: skip
ONE_NUMBER_A_ROW = ("logsumexp", "delta")


def problem_of(call: RoutineCall) -> Problem:
    """What a call of `attention`, or of one of the two ops that training needs, computes."""
    reads, writes = ROLES[call.op]
    roles = dict(zip(reads, call.reads)) | {role: view for role, view in zip(writes, call.writes) if view is not None}
    query, key, value = (roles[role] for role in ("query", "key", "value"))
    lead = roles.get("out", query).shape[:-2]
    width, depth = query.shape[-1], value.shape[-1]
    assert isinstance(width, int) and isinstance(depth, int)
    found = Problem(
        lead, query.shape[-2], key.shape[-2], width, depth, float(call.attributes["scale"]), bool(call.attributes["causal"]),
        query.dtype, {role: strided(role, view, lead) for role, view in roles.items()},
        tuple(buffer(role, view, "out" if role in writes else "in") for role, view in roles.items()), call.origin,
    )  # fmt: skip
    return found if call.op == "attention_backward" else _heads_as_rows(found)


def _heads_as_rows(problem: Problem) -> Problem:
    """With one query row a head, heads that share keys and values are rows of one head, so that these are read once."""
    operands = problem.operands
    if problem.length != 1 or not problem.lead or problem.lead[-1] == 1 or problem.causal:
        return problem
    if operands["key"].lead[-1] != 0 or operands["value"].lead[-1] != 0:
        return problem

    def turned(x: Strided) -> Strided:
        shared = x.name in ("key", "value")
        return replace(x, lead=x.lead[:-1]) if shared else replace(x, lead=x.lead[:-1], row=x.lead[-1])

    turned_operands = {role: turned(x) for role, x in operands.items()}
    return replace(problem, lead=problem.lead[:-1], length=problem.lead[-1], operands=turned_operands)


def applies(node: Node) -> bool:
    """Whether our kernels compute this attention: heads of a known width up to 256, in float32, float16 or bfloat16."""
    operands = dict(zip(ROLES[node.op.name][0], (operand.tensor for operand in node.inputs)))
    query, value = operands["query"], operands["value"]
    mask = [operands["mask"]] if "mask" in operands else []
    sizes = (query.shape[-1], value.shape[-1])
    fits = all(isinstance(size, int) and 0 < size <= WIDEST for size in sizes)
    return fits and query.dtype in (f32, f16, bf16) and all(m.rank > 0 for m in mask)


# -- schedules -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionSchedule:
    """How it runs; prints on one line. A program takes `rows` query rows, a step `keys` keys, both powers of two."""

    rows: int
    keys: int
    warps: int
    stages: int
    precision: str = ""

    def __str__(self) -> str:
        parts = [f"attention of {self.rows} rows x {self.keys} keys", f"{self.warps} warps", f"{self.stages} stages"]
        return ", ".join([*parts, *([self.precision] if self.precision else [])])


def attention_candidates(problem: Problem, device: Device, precision: str) -> Iterator[AttentionSchedule]:
    """Schedules, the preferred one first: as many rows as give every multiprocessor work and fit its registers."""
    wide = padded(max(problem.width, problem.depth))
    is_narrow = problem.dtype.bits == 16
    word = "" if is_narrow else precision
    rows = power_of_two(size_estimate(problem.length))
    if is_narrow or precision != "ieee":
        groups = RATES[device.arch].group_products
        tiles = [(128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 64, 4), (16, 128, 4), (16, 64, 4)]
        most = 128 * 128 if groups else 128 * 64
    else:
        tiles = [(64, 64, 8), (64, 32, 4), (32, 32, 4), (16, 64, 4), (16, 32, 4)]
        most = 64 * 64
    fitting = []
    for height, keys, warps in tiles:
        # two tiles of sums, scores and the result, and the operands between them
        held = height * (keys + wide) // (warps * 32)
        too_tall = height > max(SMALLEST_BLOCK, rows)
        if too_tall or held > 160 or height * max(keys, wide) > max(most, 16 * wide):
            continue
        for stages in (3, 2, 1):
            shared = (height * wide + stages * keys * 2 * wide) * problem.dtype.bytes
            if shared <= device.block_shared_bytes - 4096:
                fitting.append(AttentionSchedule(height, keys, warps, stages, word))
    programs = {s: size_estimate(problem.heads) * -(-size_estimate(problem.length) // s.rows) for s in fitting}

    def key(s: AttentionSchedule) -> tuple:
        # fewer rows than 64 use tensor cores badly, so half of the multiprocessors may have none
        idle = 2 * programs[s] < device.multiprocessors
        # one stage: nothing is on its way while the tensor cores work
        return (s.stages == 1, idle and s.rows > SMALLEST_BLOCK, -s.rows if not idle else s.rows, fitting.index(s))

    yield from sorted(fitting, key=key)
    yield AttentionSchedule(SMALLEST_BLOCK, SMALLEST_BLOCK * 2, 4, 1, word)


def backward_candidates(problem: Problem, device: Device, precision: str) -> Iterator[AttentionSchedule]:
    """Schedules of the backward pass: `rows` of what a program keeps, `keys` of what it walks over."""
    wide = padded(max(problem.width, problem.depth))
    is_narrow = problem.dtype.bits == 16
    word = "" if is_narrow else precision
    longest = power_of_two(max(size_estimate(problem.length), size_estimate(problem.seen)))
    # of heads of 256 only the last three keep to registers, the first of them with eight warps
    tiles = [(128, 64, 8), (128, 32, 8), (128, 32, 4), (64, 64, 8), (64, 32, 4), (32, 32, 8), (32, 32, 4), (16, 32, 4)]
    if not (is_narrow or precision != "ieee"):
        tiles = [(64, 32, 8), (32, 32, 8), (32, 32, 4), (16, 32, 4)]
    for kept, step, warps in tiles:
        if kept > max(SMALLEST_BLOCK, longest) or 2 * kept * wide // (warps * 32) > 128:
            continue
        for stages in (3, 2, 1):
            shared = (2 * kept + 2 * stages * step) * wide * problem.dtype.bytes + kept * step * problem.dtype.bytes
            if shared <= device.block_shared_bytes - 4096:
                yield AttentionSchedule(kept, step, warps, stages, word)
    yield AttentionSchedule(SMALLEST_BLOCK, SMALLEST_BLOCK, 4, 1, word)


def padded(width: int) -> int:
    """The block that holds so many numbers of a head."""
    return max(SMALLEST_BLOCK, power_of_two(width))


def row_blocks(problem: Problem, schedule: AttentionSchedule) -> Dim:
    """Programs of one head."""
    return ceiling(problem.length, schedule.rows)


def attention_writers(
    problem: Problem, device: Device, precision: str, aligned: frozenset[str], name: str = "kernel"
) -> Iterator[TritonKernel]:
    """The kernel by one schedule after another, the preferred one first, each written when it is asked for."""
    from dlcompiler.codegen.gpu.attention_backward import write_attention_backward
    from dlcompiler.codegen.gpu.attention_writer import write_attention

    is_backward = "grad_query" in problem.operands
    choose, write = (backward_candidates, write_attention_backward) if is_backward else (attention_candidates, write_attention)
    return (write(problem, s, name, aligned) for s in choose(problem, device, precision))
