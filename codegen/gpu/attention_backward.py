"""The gradients of attention -> Triton, in one launch, scores made again from the logarithms of their sums.

    p = exp(scale * q @ k.T + mask - logsumexp)         as in the forward pass
    dv = p.T @ grad
    ds = p * (grad @ v.T - delta)                       delta: of each row the sum of grad * out
    dq = scale * ds @ k,   dk = scale * ds.T @ q

The first programs take a block of keys each and walk over the rows that see them, for dk and dv; the others take a block of rows
and walk over keys, for dq. Nobody adds to what another program writes, so the order of all sums is fixed. (Dao, FlashAttention-2,
2023, section 3.1.2, without its atomic additions.)
"""

from __future__ import annotations

from dlcompiler.codegen.gpu.attention import AttentionSchedule, Problem, padded
from dlcompiler.codegen.gpu.attention_writer import LOG2_E, AttentionLines, across, down
from dlcompiler.codegen.gpu.schedule import ceiling
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.expression import Dim


def write_attention_backward(
    problem: Problem, schedule: AttentionSchedule, name: str = "kernel", aligned: frozenset[str] = frozenset()
) -> TritonKernel:
    """The gradients with respect to query, key and value as one Triton kernel.

    `schedule.rows`: of how many keys or rows a program keeps the gradients; `schedule.keys`: how many of the others a step takes.
    """
    return _Backward(problem, schedule).write(name, aligned)


class _Backward(AttentionLines):
    def __init__(self, problem: Problem, schedule: AttentionSchedule) -> None:
        super().__init__(problem, schedule.precision)
        self.schedule = schedule
        self.operands = problem.operands

    def write(self, name: str, aligned: frozenset[str]) -> TritonKernel:
        """The file."""
        problem, schedule = self.problem, self.schedule
        key_blocks, row_blocks = ceiling(problem.seen, schedule.rows), ceiling(problem.length, schedule.rows)
        blocks = key_blocks + row_blocks
        self.line("program = tl.program_id(0)")
        self.line(f"block = program % {self.text(blocks)}")
        self.heads(f"(program // {self.text(blocks)}){self.integer}", list(self.operands.values()))
        self.columns()
        self.line(f"if block < {self.text(key_blocks)}:")
        self.indent += 1
        self.keys()
        self.indent -= 1
        self.line("else:")
        self.indent += 1
        self.line(f"block = block - {self.text(key_blocks)}")
        self.rows()
        constants = {"KEPT": schedule.rows, "STEP": schedule.keys, "WIDTH": padded(problem.width), "DEPTH": padded(problem.depth)}
        return self.kernel(name, problem.heads * blocks, constants, schedule, aligned)

    # -- one block of keys -----------------------------------------------------------------------------------------------------

    def keys(self) -> None:
        """dk and dv of a block of keys."""
        problem, operands = self.problem, self.operands
        exists = self.block("key_row", "block * KEPT", "KEPT", problem.seen, self.schedule.rows)
        exists_down = down(exists)
        self.line(f"k = {self.tile('key', 'key_row[:, None]', 'e[None, :]', [exists_down])}")
        self.line(f"v = {self.tile('value', 'key_row[:, None]', 'f[None, :]', [exists_down])}")
        self.line("dk = tl.full([KEPT, WIDTH], 0.0, tl.float32)")
        self.line("dv = tl.full([KEPT, DEPTH], 0.0, tl.float32)")
        # row r sees keys up to r
        first = "block * KEPT // STEP * STEP" if problem.causal else "0"
        self.line(f"for start in range({first}, {self.text(problem.length)}, STEP):")
        self.indent += 1
        rows = self.block("row", "start", "STEP", problem.length, self.schedule.keys)
        rows_down = down(rows)
        self.line(f"q = {self.tile('query', 'row[:, None]', 'e[None, :]', [rows_down])}")
        self.line(f"grad_tile = {self.tile('grad', 'row[:, None]', 'f[None, :]', [rows_down])}")
        self.numbers_of_rows(rows)
        self.line(f"scores = {self.dot('k', 'q.T')}")
        rows_across = across(rows)
        masks = [exists_down, rows_across, "(key_row[:, None] <= row[None, :])" if problem.causal else ""]
        self.weights("[None, :]", "row[None, :]", "key_row[:, None]", masks, rows_across)
        self.line(f"dv = {self.dot(self.narrowed('weights', problem.dtype), 'grad_tile', 'dv')}")
        self.line(f"products = {self.dot('v', 'grad_tile.T')}")
        self.line("slopes = weights * (products - mean[None, :])")
        self.line(f"dk = {self.dot(self.narrowed('slopes', problem.dtype), 'q', 'dk')}")
        self.indent -= 1
        self.line(f"dk = dk * {problem.scale!r}")
        self.put(operands["grad_key"], "dk", "key_row[:, None]", "e[None, :]", [exists_down, across(self.width_mask)])
        self.put(operands["grad_value"], "dv", "key_row[:, None]", "f[None, :]", [exists_down, across(self.depth_mask)])

    # -- one block of rows -----------------------------------------------------------------------------------------------------

    def rows(self) -> None:
        """dq of a block of rows."""
        problem, operands = self.problem, self.operands
        rows = self.block("row", "block * KEPT", "KEPT", problem.length, self.schedule.rows)
        rows_down = down(rows)
        self.line(f"q = {self.tile('query', 'row[:, None]', 'e[None, :]', [rows_down])}")
        self.line(f"grad_tile = {self.tile('grad', 'row[:, None]', 'f[None, :]', [rows_down])}")
        self.numbers_of_rows(rows)
        self.line("dq = tl.full([KEPT, WIDTH], 0.0, tl.float32)")
        seen = self.text(problem.seen)
        end = f"tl.minimum((block + 1) * KEPT, {seen})" if problem.causal else seen
        self.line(f"for start in range(0, {end}, STEP):")
        self.indent += 1
        exists = self.block("key_row", "start", "STEP", problem.seen, self.schedule.keys)
        keys_down = down(exists)
        self.line(f"k = {self.tile('key', 'key_row[:, None]', 'e[None, :]', [keys_down])}")
        self.line(f"v = {self.tile('value', 'key_row[:, None]', 'f[None, :]', [keys_down])}")
        self.line(f"scores = {self.dot('q', 'k.T')}")
        exists_across = across(exists)
        masks = [exists_across, rows_down, "(key_row[None, :] <= row[:, None])" if problem.causal else ""]
        self.weights("[:, None]", "row[:, None]", "key_row[None, :]", masks, rows_down)
        self.line(f"products = {self.dot('grad_tile', 'v.T')}")
        self.line("slopes = weights * (products - mean[:, None])")
        self.line(f"dq = {self.dot(self.narrowed('slopes', problem.dtype), 'k', 'dq')}")
        self.indent -= 1
        self.line(f"dq = dq * {problem.scale!r}")
        self.put(operands["grad_query"], "dq", "row[:, None]", "e[None, :]", [rows_down, across(self.width_mask)])

    # -- parts -------------------------------------------------------------------------------------------------------------------

    def weights(self, shape: str, row: str, key: str, masks: list[str], rows_shaped: str) -> None:
        """Masked scores, and the weights of the forward pass from them."""
        self.scale("scores", row, key, masks, rows_shaped)
        self.line(f"weights = tl.exp2(scores - log_sum{shape})")

    def numbers_of_rows(self, rows: str) -> None:
        """What there is one number a row of."""
        end = f", {rows}, 0)" if rows else ")"
        self.line(f"log_sum = tl.load({self.address(self.operands['logsumexp'], 'row', '')}{end} * {LOG2_E!r}")
        self.line(f"mean = tl.load({self.address(self.operands['delta'], 'row', '')}{end}  # delta")

    def block(self, name: str, start: str, size: str, limit: Dim, step: int) -> str:
        """Indices of a block, and the variable that says which exist, if not all do."""
        text = f"{start} + tl.arange(0, {size})"
        self.line(f"{name} = {f'({text})' + self.integer if self.integer else text}")
        if isinstance(limit, int) and limit % step == 0:
            return ""
        self.line(f"{name}_inside = {name} < {self.text(limit)}")
        return f"{name}_inside"

    def tile(self, role: str, row: str, column: str, mask: list[str]) -> str:
        """A tile of an operand; columns that pad a head are 0."""
        padding = self.width_mask if column.startswith("e") else self.depth_mask
        return self.load(self.operands[role], row, column, [*mask, across(padding)])
