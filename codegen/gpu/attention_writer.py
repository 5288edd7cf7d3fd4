"""Attention -> Triton: `softmax(scale * q @ k.T + mask) @ v`, and the logarithm of each row's sum of exponentials if asked for.

    for each block of keys:
        scores = query @ keys * scale, masked                      [ROWS, KEYS], in units of log 2
        new = the largest score of each row so far
        what was summed before is scaled down by exp2(old - new)
        weights = exp2(scores - new);  total += their sum;  sums += weights @ values
    out = sums / total

A causal problem walks over whole blocks first, without comparing, then over those on the diagonal. A row that sees nothing
gives zeros, as torch's kernels do. The order of all sums is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.attention import AttentionSchedule, Problem, Strided, padded, row_blocks
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.standalone import main_section
from dlcompiler.codegen.gpu.triton_writer import HEADER, TritonKernel
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.types import DType, boolean, f32

LOG2_E = 1 / math.log(2)


class AttentionLines:
    """Lines of a kernel of attention: what forward and backward have in common."""

    def __init__(self, problem: Problem, precision: str) -> None:
        self.problem, self.precision = problem, precision
        self.lines: list[str] = []
        self.indent = 1
        self.integer = "" if problem.narrow else ".to(tl.int64)"

    def line(self, text: str = "") -> None:
        """One line at the current indentation."""
        self.lines.append("    " * self.indent + text if text else "")

    def text(self, dim: Dim) -> str:
        """A size as text that may stand beside `*`, `//` or `%`."""
        text = index_text(dim, {})
        return text if text.isidentifier() or text.isdigit() else f"({text})"

    def dot(self, left: str, right: str, onto: str = "") -> str:
        """A product of two tiles, added to a third."""
        precision = f', input_precision="{self.precision}"' if self.problem.dtype is f32 else ""
        return f"tl.dot({left}, {right}{', ' + onto if onto else ''}{precision})"

    def heads(self, head: str, operands: Sequence[Strided]) -> None:
        """Each operand's address at a head: digits of the head's number times strides."""
        lead = self.problem.lead
        used = [d for d, size in enumerate(lead) if size != 1]
        for position, d in enumerate(used):
            below = product(lead[e] for e in used[position + 1 :])
            text = head if below == 1 else f"{head} // {self.text(below)}"
            self.line(f"lead{d} = {text}" if position == 0 else f"lead{d} = {text} % {self.text(lead[d])}")
        for x in operands:
            steps = [f"lead{d} * {self.text(x.lead[d])}" for d in used if x.lead[d] != 0]
            if steps:
                self.line(f"{x.name} += {' + '.join(steps)}")

    def address(self, x: Strided, row: str, column: str) -> str:
        """Pointers to a tile: `row` and `column` are indices already shaped to broadcast."""
        parts = [f"{row} * {self.text(x.row)}" if x.row != 1 else row] if x.row != 0 else []
        if column and x.column != 0:
            parts.append(f"{column} * {self.text(x.column)}" if x.column != 1 else column)
        return " + ".join([x.name, *parts])

    def load(self, x: Strided, row: str, column: str, mask: Sequence[str]) -> str:
        """A tile, 0 where nothing exists."""
        conditions = [m for m in mask if m]
        return f"tl.load({self.address(x, row, column)}" + (f", {' & '.join(conditions)}, 0)" if conditions else ")")

    def narrowed(self, name: str, dtype: DType) -> str:
        """A value of float32 as an operand of a product, or as what is stored."""
        return name if dtype is f32 else f"{name}.to({scalars.type_name(dtype)})"

    def put(self, x: Strided, name: str, row: str, column: str, mask: Sequence[str]) -> None:
        """Store a tile."""
        conditions = [m for m in mask if m]
        end = f", {' & '.join(conditions)})" if conditions else ")"
        self.line(f"tl.store({self.address(x, row, column)}, {self.narrowed(name, x.dtype)}{end}")

    def columns(self) -> None:
        """Indices along a head's width, and what says which exist."""
        problem = self.problem
        self.line("e = tl.arange(0, WIDTH)")
        self.line("f = tl.arange(0, DEPTH)")
        self.width_mask = self.depth_mask = ""
        if problem.width != padded(problem.width):
            self.width_mask = "e_inside"
            self.line(f"e_inside = e < {problem.width}")
        if problem.depth != padded(problem.depth):
            self.depth_mask = "f_inside"
            self.line(f"f_inside = f < {problem.depth}")

    def scale(self, scores: str, row: str, key: str, masks: Sequence[str], rows_exist: str = "") -> None:
        """Scores as they are compared: times the scale, plus or under the mask, in units of log 2, -inf where unseen.

        `row` and `key` are shaped indices of the tile; `masks` say which scores count.
        """
        problem = self.problem
        mask = problem.mask
        if mask is None or mask.dtype is boolean:
            self.line(f"{scores} = {scores} * {problem.scale * LOG2_E!r}")
        if mask is not None:
            conditions = [m for m in (rows_exist if mask.row != 0 else "", masks[0] if masks and mask.column != 0 else "") if m]
            pointer = self.address(mask, row, key)
            if mask.row == 0 and mask.column == 0:
                pointer += f" + {key} * 0"
                conditions = []
            load = f"tl.load({pointer}" + (f", {' & '.join(conditions)}, 0)" if conditions else ")")
            if mask.dtype is boolean:
                self.line(f'{scores} = tl.where({load}, {scores}, float("-inf"))')
            else:
                self.line(f"{scores} = ({scores} * {problem.scale!r} + {load}.to(tl.float32)) * {LOG2_E!r}")
        conditions = [m for m in masks if m]
        if conditions:
            self.line(f'{scores} = tl.where({" & ".join(conditions)}, {scores}, float("-inf"))')

    def kernel(
        self, name: str, grid: Dim, constants: dict[str, int], schedule: AttentionSchedule, aligned: frozenset[str]
    ) -> TritonKernel:
        """The file with these lines as a function called `name`."""
        problem = self.problem
        buffers, parameters = problem.buffers, problem.parameters
        sizes = parameters.size_symbols
        arguments = ", ".join([b.name for b in buffers] + list(sizes) + [f"{c}: tl.constexpr" for c in constants])
        body = "\n".join(self.lines) + "\n"
        lines = [line.replace("\\", "/").replace('"""', "'''") for line in problem.origin] or ["attention"]
        shape = f"{' x '.join(map(str, problem.lead)) or 1} heads, {problem.length} rows of {problem.width}, {problem.seen} keys"
        shape += f", values of {problem.depth}{', causal' if problem.causal else ''}"
        documentation = "".join(f"{text}\n    " for text in ["Computes", *(f"  {x}" for x in lines), f"{shape}; by {schedule}"])
        head = f'@triton.jit\ndef {name}({arguments}):\n    """{documentation}"""\n'
        helpers = scalars.helpers_used(body)
        source = f"{HEADER}{helpers}\n\n{head}{body}" + main_section(name, parameters, grid, constants, schedule.warps)
        signature = {b.name: scalars.pointer_name(b.dtype) for b in buffers}
        signature |= dict.fromkeys(sizes, "i64") | dict.fromkeys(constants, "constexpr")
        return TritonKernel(
            name, parameters, source, grid, constants, signature, aligned, schedule.warps, schedule.stages, str(schedule)
        )  # fmt: skip


def write_attention(
    problem: Problem, schedule: AttentionSchedule, name: str = "kernel", aligned: frozenset[str] = frozenset()
) -> TritonKernel:
    """Attention as Triton source; with an operand `logsumexp`, also that of each row of scores."""
    return _Forward(problem, schedule).write(name, aligned)


class _Forward(AttentionLines):
    def __init__(self, problem: Problem, schedule: AttentionSchedule) -> None:
        super().__init__(problem, schedule.precision)
        self.schedule, self.operands = schedule, problem.operands
        exact = isinstance(problem.length, int) and problem.length % schedule.rows == 0
        self.rows_exist = "" if exact else "row_inside[:, None]"

    def write(self, name: str, aligned: frozenset[str]) -> TritonKernel:
        """The file."""
        problem, schedule = self.problem, self.schedule
        blocks = row_blocks(problem, schedule)
        self.begin(blocks)
        self.walks()
        self.finish()
        constants = {"ROWS": schedule.rows, "KEYS": schedule.keys, "WIDTH": padded(problem.width), "DEPTH": padded(problem.depth)}
        return self.kernel(name, problem.heads * blocks, constants, schedule, aligned)

    def begin(self, blocks: Dim) -> None:
        """Which head and rows a program has, and what it keeps of them."""
        count = self.text(blocks)
        self.line("program = tl.program_id(0)")
        if blocks == 1:
            self.line("block = 0")
        elif self.problem.causal:
            self.line(f"block = {count} - 1 - program % {count}  # the longest walks first")
        else:
            self.line(f"block = program % {count}")
        self.heads(f"(program // {count}){self.integer}", list(self.operands.values()))
        row = "block * ROWS + tl.arange(0, ROWS)"
        self.line(f"row = {f'({row})' + self.integer if self.integer else row}")
        if self.rows_exist:
            self.line(f"row_inside = row < {self.text(self.problem.length)}")
        self.columns()
        mask = [self.rows_exist, across(self.width_mask)]
        self.line(f"q = {self.load(self.operands['query'], 'row[:, None]', 'e[None, :]', mask)}")
        self.line('largest = tl.full([ROWS], float("-inf"), tl.float32)')
        self.line("total = tl.full([ROWS], 0.0, tl.float32)")
        self.line("sums = tl.full([ROWS, DEPTH], 0.0, tl.float32)")

    def walks(self) -> None:
        """Loops over whole blocks of keys, where nothing needs to be compared, and over the rest."""
        problem, keys = self.problem, self.schedule.keys
        seen = self.text(problem.seen)
        exact = isinstance(problem.seen, int) and problem.seen % keys == 0
        if problem.causal:
            # row r sees keys up to r: whole blocks end at the first row of this block
            self.line(f"whole = tl.minimum(block * ROWS, {seen}) // KEYS * KEYS")
            self.line(f"end = tl.minimum((block + 1) * ROWS, {seen})")
            self.walk("0", "whole", False, False)
            self.walk("whole", "end", not exact, True)
        elif isinstance(problem.seen, int):
            whole = problem.seen // keys * keys
            if whole:
                self.walk("0", str(whole), False, False)
            if not exact:
                self.walk(str(whole), seen, True, False)
        else:
            self.line(f"whole = {seen} // KEYS * KEYS")
            self.walk("0", "whole", False, False)
            self.walk("whole", seen, True, False)

    def walk(self, begin: str, end: str, checks_keys: bool, checks_order: bool) -> None:
        """The loop over blocks of keys from `begin` to `end`."""
        value = self.operands["value"]
        self.line(f"for start in range({begin}, {end}, KEYS):")
        self.indent += 1
        index = "start + tl.arange(0, KEYS)"
        self.line(f"key_row = {f'({index})' + self.integer if self.integer else index}")
        exists = "key_inside" if checks_keys else ""
        if exists:
            self.line(f"key_inside = key_row < {self.text(self.problem.seen)}")
        mask = [across(exists), down(self.width_mask)]
        self.line(f"k = {self.load(self.operands['key'], 'key_row[None, :]', 'e[:, None]', mask)}")
        self.line(f"scores = {self.dot('q', 'k')}")
        masks = [across(exists), "(key_row[None, :] <= row[:, None])" if checks_order else ""]
        self.scale("scores", "row[:, None]", "key_row[None, :]", masks, self.rows_exist)
        self.line("new = tl.maximum(largest, tl.reduce(scores, 1, _maximum))")
        self.line('shift = tl.where(new == float("-inf"), 0.0, new)  # nothing seen yet')
        self.line("weights = tl.exp2(scores - shift[:, None])")
        self.line("fade = tl.exp2(largest - shift)")
        self.line("total = total * fade + tl.reduce(weights, 1, _add)")
        self.line(f"v = {self.load(value, 'key_row[:, None]', 'f[None, :]', [down(exists), across(self.depth_mask)])}")
        self.line(f"sums = {self.dot(self.narrowed('weights', value.dtype), 'v', 'sums * fade[:, None]')}")
        self.line("largest = new")
        self.indent -= 1

    def finish(self) -> None:
        """What is stored."""
        self.line("result = sums / tl.where(total == 0.0, 1.0, total)[:, None]")
        self.put(self.operands["out"], "result", "row[:, None]", "f[None, :]", [self.rows_exist, across(self.depth_mask)])
        if "logsumexp" in self.operands:
            # +inf for a row that sees nothing: its weights come out as 0 in the backward pass
            natural = f"(largest + tl.log2(total)) * {1 / LOG2_E!r}"
            self.line(f'sum_of_row = tl.where(total == 0.0, float("inf"), {natural})')
            self.put(self.operands["logsumexp"], "sum_of_row", "row", "", ["row_inside" if self.rows_exist else ""])


def across(mask: str) -> str:
    """A mask along the second dimension of a tile; none stays none."""
    return f"{mask}[None, :]" if mask else ""


def down(mask: str) -> str:
    """A mask along the first dimension of a tile."""
    return f"{mask}[:, None]" if mask else ""
