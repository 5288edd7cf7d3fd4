"""What code is made for. The architecture is an argument, never asked of the live machine inside the compiler."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dlcompiler.codegen.choices import Answer, Choices, Question
from dlcompiler.ir.errors import OptionError, UnsupportedError
from dlcompiler.ir.expression import known
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DType, TensorType, compute_dtype, f32

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Builder, Node
    from dlcompiler.ir.kernel import Buffer, Kernel

CPU_ARCHITECTURES = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")
GPU_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121")
# From here on code uses what the one architecture alone has, and runs on no later one of its family.
FIRST_ALONE = 90

# Ops that a library runs whole on each kind of target; everything else becomes kernels of our own.
LIBRARY_OPS = {
    "cpu": frozenset({
        "matmul", "linear", "block_linear", "convolution", "convolution_weight", "attention", "attention_with_logsumexp",
        "attention_backward", "lstm", "gru", "rnn", "scan",
    }),
    "cuda": frozenset({
        "matmul", "linear", "convolution", "convolution_weight", "attention", "attention_with_logsumexp", "attention_backward",
        "lstm", "gru", "rnn", "scan", "linear_logsumexp",
    }),
}  # fmt: skip
# Of these those that no library has: they are written out where no kernel of ours applies.
ROUTINES_ALONE = frozenset({"block_linear", "attention_with_logsumexp", "attention_backward", "linear_logsumexp"})
# Dtypes of recurrent layers that are scans of ours; those of others are a library's, whole.
SCANNED = {"cpu": frozenset({"f32", "f64"}), "cuda": frozenset({"f32", "f16", "bf16"})}
# The gradient of a weight of so many channels is written out as a convolution where no kernel of ours applies: with fewer, too
# few rows of the sum of products share what is loaded.
FEWEST_CHANNELS = 16


@dataclass(frozen=True)
class Target:
    """`kind` is cpu or cuda; `arch` the instruction set, as `x86-64-v3` or `sm_90`; `host` whether it is this very machine's.

    float32: of products on tensor cores: ieee (none are used), tf32x3 (three products of parts) or tf32
    choices   what a tuner has chosen; None: the cost model decides all
    """

    kind: str
    arch: str
    host: bool = False
    float32: str = "ieee"
    choices: Choices | None = field(default=None, compare=False, repr=False)

    def with_choices(self, choices: Choices) -> Target:
        """The same target, which asks `choices` before its cost model."""
        return replace(self, choices=choices)

    @property
    def can_be_tuned(self) -> bool:
        """Whether there is something to choose, and programs for it may run in this process: on a GPU if it has that one."""
        return self.kind == "cuda" or self.host

    def alternatives(self, question: Question) -> Sequence[Answer]:
        """Changes of the answer to a question that are worth trying, the most promising first."""
        chosen = self.choices.answers.get(question.key, {}) if self.choices is not None else {}
        if self.kind == "cuda":
            from dlcompiler.codegen.gpu.alternatives import alternatives as for_gpu

            return for_gpu(question, chosen, self)
        from dlcompiler.codegen.cpu.alternatives import alternatives
        from dlcompiler.codegen.cpu.compile import machine_of

        return alternatives(question, chosen, machine_of(self))

    @property
    def library_ops(self) -> frozenset[str]:
        """Ops kept whole for a library."""
        return LIBRARY_OPS[self.kind]

    def multiplies_quickly(self, dtype: DType) -> bool:
        """Whether a large matrix product takes no longer than writing and reading its result a few times: on tensor cores."""
        return self.kind == "cuda" and (dtype.bits == 16 or (dtype is f32 and self.float32 != "ieee"))

    @property
    def scanned_dtypes(self) -> frozenset[str]:
        """Names of the dtypes for which a recurrent layer is products and scans of ours."""
        return SCANNED[self.kind]

    def runs_whole(self, node: Node) -> bool:
        """Whether a composite is run as it is, by a library or by a hand-written kernel."""
        if node.op.name not in self.library_ops:
            return False
        if node.op.name in CELLS:
            return node.inputs[0].dtype.name not in self.scanned_dtypes
        if self._is_written_out_elsewhere(node):
            return self.tiles(node) or self.scratch_of_routine(node) is not None
        return node.op.name not in ROUTINES_ALONE or self.scratch_of_routine(node) is not None

    @staticmethod
    def _is_written_out_elsewhere(node: Node) -> bool:
        """Whether an op, where no kernel of ours applies, is written with others that are kernels of ours."""
        return node.op.name == "convolution_weight" and node.attributes["groups"] == 1 and known(node.shape[1]) >= FEWEST_CHANNELS

    def tiles(self, node: Node) -> bool:
        """Whether an op is a sum of products that kernels of ours may compute in tiles, if `contracts` says so of its kernel."""
        if node.op.name not in self.library_ops or node.op.element is None:
            return False
        # rows of a tile of a CPU want pixels side by side: there the gradient of a weight has a routine
        return node.op.name != "convolution_weight" or (self.kind == "cuda" and node.attributes["groups"] == 1)

    @property
    def tiles_sums(self) -> bool:
        """Whether kernels of ours compute matrix products and convolutions as well as a library, or better."""
        return True

    @property
    def takes_factors(self) -> bool:
        """Whether such kernels may compute their factors, tile by tile, from what they are made of."""
        return self.kind == "cuda"

    @property
    def multiplies_unsigned(self) -> bool:
        """Whether products of unsigned bytes are summed as quickly as of signed ones. Tensor cores are only given the latter."""
        return self.kind == "cpu"

    @property
    def counts_bytes(self) -> bool:
        """Whether groups of ops are revised in the end so that less is moved, and by fewer launches."""
        return self.kind == "cuda"

    @property
    def shares_launches(self) -> bool:
        """Whether launches that do not depend on each other become one. On CPUs one costs next to nothing."""
        return self.kind == "cuda"

    def form_to_share(self, kernel: Kernel) -> Hashable | None:
        """What kernels have in common that are written once in a launch of several; None for one that runs alone."""
        if self.kind == "cpu":
            return None
        from dlcompiler.codegen.gpu.bundle import form_to_share

        return form_to_share(kernel, self.arch)

    @property
    def parallel_rows(self) -> int:
        """How many independent pieces of work keep the target busy: a reduction with fewer results is split."""
        return 16 if self.kind == "cpu" else 512

    @property
    def rows_at_a_time(self) -> int:
        """Of how many rows a large product is worth starting: so that the weight, read for each part, costs little beside."""
        return 512 if self.kind == "cpu" else 2048

    def contracts(self, kernel: Kernel, fixed: Set[Buffer]) -> bool:
        """Whether a kernel is a sum of products that our tiles compute, and at least as quickly as a library.

        `fixed`: buffers that keep their contents between calls, so that they are packed once.
        """
        if self.kind == "cuda":
            from dlcompiler.codegen.gpu.contraction import contracts

            if not contracts(kernel):
                return False
            return self.choices is None or self.choices.ask("path", kernel, fixed).get("path") != "library"
        from dlcompiler.codegen.contraction import is_worth_it
        from dlcompiler.codegen.cpu.compile import machine_of

        if not is_worth_it(kernel, fixed, machine_of(self).tiles):
            return False
        return self.choices is None or self.choices.ask("path", kernel, fixed).get("path") != "library"

    def panel_width(self, kernel: Kernel, fixed: Set[Buffer]) -> int | None:
        """How wide the panels should be in which such a kernel reads its columns; None to read them where they lie."""
        if self.kind == "cuda":
            return None
        from dlcompiler.codegen.contraction import panel_width
        from dlcompiler.codegen.cpu.compile import machine_of

        if self.choices is None:
            return panel_width(kernel, fixed, machine_of(self).tiles)
        return panel_width(kernel, fixed, machine_of(self).tiles, self.choices.ask("columns", kernel, fixed))

    def winograd_sizes(self, convolution: Node, changes: bool) -> tuple[int, ...] | None:
        """The tiles by which Winograd's algorithm is expected to be quicker for a plain convolution; None if it is not.

        `changes`: whether its weights have to be transformed in each call.
        """
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.winograd import Convolution, choose_sizes

        if self.kind != "cpu":
            return None
        weight, (batch, _, *results) = convolution.inputs[1].tensor, convolution.shape
        if not weight.is_static or not all(isinstance(size, int) for size in results):
            return None
        columns, channels, *taps = weight.known_shape
        images = batch if isinstance(batch, int) else 1
        found = Convolution(images, tuple(known(size) for size in results), tuple(taps), channels, columns, changes)
        return choose_sizes(found, machine_of(self).tiles)

    def winograd_width(self, kernel: Kernel, fixed: Set[Buffer], sizes: tuple[int, ...]) -> int | None:
        """How wide panels should be for that; None where this target does not compute the kernel so."""
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.winograd import winograd_width

        width = winograd_width(kernel, fixed, sizes, machine_of(self).tiles) if self.kind == "cpu" else None
        if width is not None and self.choices is not None:
            return None if self.choices.ask("winograd", kernel, fixed).get("winograd") == "no" else width
        return width

    def arranged(self, kernel: Kernel, fixed: Set[Buffer]) -> tuple[Kernel, Kernel] | None:
        """A kernel that puts what such a kernel reads of `fixed` buffers in order, and one that reads that; None to leave it."""
        if self.kind == "cpu":
            return None
        from dlcompiler.codegen.gpu.contraction import arrange

        return arrange(kernel, fixed)

    def in_parts(self, kernel: Kernel) -> tuple[Kernel, Kernel] | None:
        """Such a kernel as one of partial sums and one that adds these up; None where one kernel is quicker."""
        if self.kind == "cpu":
            return None
        from dlcompiler.codegen.gpu.contraction import split
        from dlcompiler.codegen.gpu.device import device_of

        return split(kernel, device_of(self.arch), self.float32)

    def scratch_of_routine(self, node: Node) -> Sequence[TensorType] | None:
        """The scratch memory of the hand-written kernel that computes a graph node; None if there is no such kernel."""
        if self.kind == "cuda":
            from dlcompiler.codegen.gpu.routines import scratch

            return scratch(node)
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.cpu.routines import find_routine

        machine = machine_of(self)
        routine = find_routine(node, machine)
        if routine is None:
            return None
        if self.choices is not None and node.op.name in self.library_ops - ROUTINES_ALONE:
            if self.choices.ask("path", node).get("path") == "library":
                return None
        return routine.scratch(node, machine)

    def packing_of_routine(self, node: Node) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """Operands that this kernel reads in an arrangement of its own, and how to write that with views."""
        if self.kind == "cuda":
            return {}
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.cpu.routines import Packs, find_routine

        machine = machine_of(self)
        routine = find_routine(node, machine)
        return routine.packing(node, machine) if isinstance(routine, Packs) else {}

    def in_place_of_routine(self, node: Node) -> Mapping[int, int]:
        """Results that it writes element by element where it has read an operand for the last time, with these operands."""
        if self.kind == "cuda":
            return {}
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.cpu.routines import WritesInPlace, find_routine

        routine = find_routine(node, machine_of(self))
        return routine.in_place(node) if isinstance(routine, WritesInPlace) else {}

    def spells(self, op: str, dtype: DType) -> bool:
        """Whether kernels for this target can compute the graph op on (or to) elements of `dtype`; a library has to otherwise."""
        if dtype.kind == "complex":
            return self.kind == "cpu" and op not in SCALARS  # which is what only moves them
        if op not in SCALARS or not SCALARS[op].accepts(dtype):
            return True  # made of loads, casts and scalar operations that are asked one by one, or the other side of a comparison
        if self.kind == "cpu":
            from dlcompiler.codegen.cpu.scalars import spelled
        else:
            from dlcompiler.codegen.gpu.scalars import spelled
        return spelled(op, compute_dtype(dtype))

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


def nearest_architecture(capability: tuple[int, int]) -> str:
    """The newest architecture whose code a GPU of this compute capability runs. Raises UnsupportedError if there is none."""
    number = 10 * capability[0] + capability[1]
    known = [int(a.removeprefix("sm_")) for a in GPU_ARCHITECTURES]
    fitting = [n for n in known if n == number or (n // 10 == capability[0] and n < number < FIRST_ALONE)]
    if not fitting:
        oldest, name = f"sm_{min(known)}", f"sm_{number}"
        why = f"is older than {oldest}" if number < min(known) else "is not known to this version"
        raise UnsupportedError(
            f"a GPU of architecture {name} {why}", items=(name,), hint=f"one of {', '.join(GPU_ARCHITECTURES)}"
        )
    return f"sm_{max(fitting)}"


def parse_target(text: str) -> Target:
    """`cpu`, `cpu:x86-64-v3`, `cuda`, `cuda:sm_90`. Without an architecture: this machine's CPU, or sm_90.

    Raises OptionError naming the nearest target.
    """
    kind, _, arch = text.partition(":")
    if kind == "cpu":
        from dlcompiler.codegen.cpu.machine import host

        native = host().name
        if not arch or arch == native:
            return Target("cpu", native, host=True)
        if arch in CPU_ARCHITECTURES:
            return Target("cpu", arch)
    if kind == "cuda":
        if not arch:
            return Target("cuda", "sm_90")
        if arch in GPU_ARCHITECTURES:
            return Target("cuda", arch)
    known = known_targets()
    if kind == "cuda" and re.fullmatch(r"sm_\d{2,3}", arch):
        raise OptionError(f"there is no code for GPUs of architecture {arch!r}", hint=f"one of {', '.join(GPU_ARCHITECTURES)}")
    near = difflib.get_close_matches(text, known, 1)
    raise OptionError(f"unknown target {text!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}")


def known_targets() -> list[str]:
    """All that `parse_target` takes."""
    return ["cpu", "cuda", *(f"cpu:{a}" for a in CPU_ARCHITECTURES), *(f"cuda:{a}" for a in GPU_ARCHITECTURES)]
