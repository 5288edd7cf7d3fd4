"""Results written into inputs: in place where nothing else needs the old contents, with a copy where something does."""

from __future__ import annotations

from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.program import Program
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.ir.verify_program import verify_program
from dlcompiler.passes.dataflow.program import plan_graph

SHAPE = TensorType(f32, (4, 6))


def planned(graph: Graph) -> tuple[Program, set[str]]:
    """The program, and the names of inputs that some step writes."""
    program = plan_graph(graph, parse_target("cpu"))
    verify_program(program)
    written = {v.slot.name for step in program.steps for v in step.writes if v is not None and v.slot.role == "input"}
    return program, written


def test_an_update_is_one_step() -> None:
    b = Builder()
    p, g = b.input("p", SHAPE), b.input("g", SHAPE)
    program, written = planned(b.finish((), writebacks=((b.sub(p, g), p),)))
    assert len(program.steps) == 1 and written == {"p"}
    assert program.placement is not None and program.placement.arena_bytes == 0


def test_what_reads_the_old_contents_runs_first() -> None:
    """The product reads p, and is planned after the update, which does not depend on it."""
    b = Builder()
    p, g, x = (b.input(name, SHAPE) for name in "pgx")
    new = b.sub(p, b.reduce_sum(g, axes=(1,), keepdims=True))
    other = b.reduce_max(b.mul(x, p), axes=(0,))
    program, written = planned(b.finish((other,), writebacks=((new, p),)))
    assert written == {"p"}
    reads = [k for k, step in enumerate(program.steps) if any(v.slot.name == "p" for v in step.reads)]
    writes = [k for k, step in enumerate(program.steps) if any(v is not None and v.slot.name == "p" for v in step.writes)]
    assert len(writes) == 1 and max(reads) <= writes[0]


def test_a_result_that_depends_on_the_update_and_on_the_old_contents_needs_a_copy() -> None:
    b = Builder()
    p, g = b.input("p", SHAPE), b.input("g", SHAPE)
    total = b.reduce_sum(b.mul(p, g), axes=(0, 1))
    new = b.sub(p, total)
    late = b.reduce_max(b.mul(b.reduce_sum(new, axes=(0, 1)), p), axes=(0,))
    program, written = planned(b.finish((late,), writebacks=((new, p),)))
    last_read = max(k for k, step in enumerate(program.steps) if any(v.slot.name == "p" for v in step.reads))
    first_write = min(k for k, step in enumerate(program.steps) if any(v and v.slot.name == "p" for v in step.writes))
    assert written == {"p"} and first_write >= last_read


def test_a_value_with_two_places_is_computed_in_one_and_copied_to_the_other() -> None:
    b = Builder()
    p, q, g = (b.input(name, SHAPE) for name in "pqg")
    new = b.sub(p, g)
    program, written = planned(b.finish((), writebacks=((new, p), (new, q))))
    assert len(program.steps) == 2 and written == {"p", "q"}
