"""Order of steps: valid, never worse than the order given, and better where that is known to be possible."""

from __future__ import annotations

import itertools
import time

from dlcompiler.ir.graph import Builder
from dlcompiler.ir.program import AtenCall, LibraryCall, Program, Slot
from dlcompiler.ir.types import f32
from dlcompiler.passes.dataflow.order import Unit, order_steps, order_units, peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def unit_lists(draw, most: int = 12) -> list[Unit]:
    """Unit k writes value k (sometimes also 100 + k) and reads values of earlier ones, or -1, which nobody writes."""
    units: list[Unit] = []
    made: list[int] = []
    for k in range(draw(st.integers(1, most))):
        reads = draw(st.lists(st.sampled_from([-1, *made]), max_size=3))
        writes = [(k, draw(st.integers(0, 100)))]
        if draw(st.booleans()):
            writes.append((100 + k, draw(st.integers(0, 100))))
        after = draw(st.lists(st.integers(0, k - 1), max_size=1)) if k else []
        units.append(Unit(tuple(reads), tuple(writes), tuple(after)))
        made += [value for value, _ in writes]
    return units


def is_valid(units: list[Unit], order: list[int]) -> bool:
    place = {k: position for position, k in enumerate(order)}
    writer = {value: k for k, unit in enumerate(units) for value, _ in unit.writes}
    return sorted(order) == list(range(len(units))) and all(
        place[other] < place[k]
        for k, unit in enumerate(units)
        for other in (*unit.after, *(writer[v] for v in unit.reads if v in writer))
    )


@settings(derandomize=True, deadline=None, max_examples=300)
@given(unit_lists(), st.sets(st.integers(0, 12), max_size=3))
def test_orders_are_valid_deterministic_and_never_worse(units: list[Unit], results: set[int]) -> None:
    order = order_units(units, results)
    assert is_valid(units, order)
    assert peak_bytes(units, order, results) <= peak_bytes(units, range(len(units)), results)
    assert order == order_units(units, results)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(unit_lists(most=6))
def test_small_cases_are_near_the_best_of_all_orders(units: list[Unit]) -> None:
    best = min(peak_bytes(units, o) for o in itertools.permutations(range(len(units))) if is_valid(units, list(o)))
    assert best <= peak_bytes(units, order_units(units)) <= 1.5 * best


def test_what_is_made_early_and_read_late_moves_down() -> None:
    # ten large values made first and each summed later: one at a time is enough
    units = [Unit((), ((k, 1000),)) for k in range(10)] + [Unit((k, 99 + k), ((100 + k, 10),)) for k in range(10)]
    assert peak_bytes(units, range(20)) == 10_010
    assert peak_bytes(units, order_units(units)) == 1020


def test_what_frees_moves_up() -> None:
    # large values, read by small reductions that the given order leaves to the end
    units = [Unit((), ((k, 1000),)) for k in range(5)] + [Unit((k,), ((10 + k, 1),)) for k in range(5)]
    order = order_units(units)
    assert peak_bytes(units, order) == 1001  # what nobody reads dies where it is made


def test_a_unit_is_looked_at_together_with_what_is_made_for_it_alone() -> None:
    # value 0 is needed beside the large value 2 only: made first, as what one look ahead prefers, it lies beside it to the end
    units = [Unit((), ((0, 10),)), Unit((), ((1, 10),)), Unit((1,), ((2, 30),)), Unit((0, 2), ((3, 1),)), Unit((2,), ((4, 10),))]
    assert peak_bytes(units, range(5)) == 50
    assert peak_bytes(units, order_units(units)) == 41


def test_a_long_chain_keeps_its_order_in_linear_time() -> None:
    units = [Unit((k - 1,), ((k, 8),)) for k in range(20_000)]
    start = time.process_time()
    assert order_units(units) == list(range(20_000))
    assert time.process_time() - start < 5


def slot(name: str, role="intermediate", size: int = 4) -> Slot:
    return Slot(name, f32, (size,), (1,), role)


def run(*pairs: tuple[tuple[Slot, ...], tuple[Slot, ...]]) -> Program:
    steps = tuple(LibraryCall(str(k), tuple(s.view() for s in r), tuple(s.view() for s in w)) for k, (r, w) in enumerate(pairs))
    slots = tuple(dict.fromkeys(s for r, w in pairs for s in (*r, *w)))
    return Program("p", Builder().finish(()), slots, steps, (), ())


def test_a_program_is_reordered_or_stays_the_same_object() -> None:
    a, b, c, d, y = slot("a", size=100), slot("b", size=100), slot("c"), slot("d"), slot("y", "output")
    program = run(((), (a,)), ((), (b,)), ((a,), (c,)), ((b,), (d,)), ((c, d), (y,)))
    better = order_steps(program)
    assert [s.op for s in better.steps] == ["0", "2", "1", "3", "4"]
    assert order_steps(better) is better


def test_an_input_is_written_after_its_readers() -> None:
    x, big, y = slot("x", "input"), slot("big", size=1000), slot("y", "output")
    # writing x early would free `big` at once; the reader of x must still come first
    program = run(((), (big,)), ((x,), (y,)), ((big,), (x,)))
    assert [s.op for s in order_steps(program).steps].index("1") < [s.op for s in order_steps(program).steps].index("2")


def test_no_step_is_lost_where_inputs_are_read_and_written() -> None:
    # two inputs, each read into a value that is written back into it
    x, y, a, b = slot("x", "input"), slot("y", "input"), slot("a"), slot("b")
    program = run(((x,), (a,)), ((y,), (b,)), ((a,), (x,)), ((b,), (y,)))
    ordered = [s.op for s in order_steps(program).steps]
    assert sorted(ordered) == ["0", "1", "2", "3"]
    assert ordered.index("0") < ordered.index("2") and ordered.index("1") < ordered.index("3")


def test_aten_calls_keep_their_order() -> None:
    large, small = slot("large", "extern", 1000), slot("small", "extern", 1)
    sums = [slot("s0"), slot("s1")]
    steps = (
        AtenCall("aten.rand.default", {}, (), (large.view(),)),
        AtenCall("aten.rand.default", {}, (), (small.view(),)),
        LibraryCall("sum", (large.view(),), (sums[0].view(),)),
        LibraryCall("sum", (small.view(),), (sums[1].view(),)),
    )
    program = Program("p", Builder().finish(()), (large, small, *sums), steps, (), ())
    ordered = [s for s in order_steps(program).steps if isinstance(s, AtenCall)]
    assert ordered == [steps[0], steps[1]]
