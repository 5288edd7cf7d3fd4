"""The order of launches: a topological order under which less memory is alive at the worst moment.

    units in the order they were captured --> the same units, reordered where that lowers the peak

Scheduling for least memory is NP-hard (Sethi, "Complete register allocation problems", 1975). Three list schedules are made, each
in near linear time, and compared with the order given; a lower peak wins, the given order wins a tie.

    forward   of what is ready, what frees more than it makes, else the next in the given order
    greedy    of what is ready, what leaves the fewest bytes alive
    backward  from the results on: what keeps the fewest bytes alive before it, so that everything is made as late as it can be

Each looks one unit ahead. So they are made of clusters too: a unit and those that only make what it reads, as the packing of an
operand, which grows what is alive before the product makes it fall.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from dlcompiler.ir.expression import evaluate, symbols
from dlcompiler.ir.program import AtenCall, LibraryCall, Program, Slot, Step

# What a symbolic size counts as when orders are compared.
TYPICAL_SIZE = 64


@dataclass(frozen=True)
class Unit:
    """One thing to run. Values are any integers.

    reads   values it needs; one that no unit writes is there from the beginning and costs nothing
    writes  (value, bytes) it makes; each value is made once
    after   positions of units that must run before it for reasons that are not values
    """

    reads: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]
    after: tuple[int, ...] = ()


def order_steps(program: Program) -> Program:
    """The program with its steps in an order of low peak memory; the same object where the order given is as good.

    Steps that touch one slot, one of them writing, keep their order, and so do those that may draw random numbers.
    """
    units, given, stays = _units(program)
    order = order_units(units, given=given, stays=stays)
    if order == list(range(len(order))):
        return program
    return program.replace(steps=tuple(program.steps[k] for k in order))


def dependencies(program: Program) -> list[set[int]]:
    """For each step those before it that must stay so: they touch one slot, one of them writing, or both may draw."""
    written: dict[Slot, int] = {}
    read: dict[Slot, list[int]] = {}
    last_call: set[int] = set()
    found = []
    for number, step in enumerate(program.steps):
        reads = dict.fromkeys(view.slot for view in step.reads)
        writes = dict.fromkeys(view.slot for view in step.writes if view is not None)
        after = {written[slot] for slot in (*reads, *writes) if slot in written}
        after.update(k for slot in writes for k in read.pop(slot, ()))
        if _may_draw(step):
            after |= last_call
            last_call = {number}
        found.append(after)
        written.update(dict.fromkeys(writes, number))
        for slot in reads:
            read.setdefault(slot, []).append(number)
    return found


def _may_draw(step: Step) -> bool:
    """Whether a step may use torch's generator, whose state it then changes."""
    return isinstance(step, AtenCall) or (isinstance(step, LibraryCall) and step.op == "random_seed")


def _units(program: Program) -> tuple[list[Unit], dict[int, int], set[int]]:
    """A unit for each step; the bytes of what the program owns from the beginning; and of which values the memory stays.

    Of a pass of a training step, which frees and allocates as it goes, results count too.
    """
    values = {slot: k for k, slot in enumerate(slot for slot in program.inputs if slot in program.owned)}
    given = {k: _bytes(slot) for slot, k in values.items()}
    stays: set[int] = set()
    units = []
    for step, after in zip(program.steps, dependencies(program)):
        reads = dict.fromkeys(view.slot for view in step.reads)
        # what is read before anything writes it is there from the beginning, and is not what a later step writes there
        needs = tuple(values[slot] for slot in reads if slot in values)
        makes = []
        for view in step.writes:
            if view is not None and view.slot not in values:
                value = values[view.slot] = len(values)
                is_result = program.frees and view.slot.role == "output"
                if is_result:
                    stays.add(value)
                makes.append((value, _bytes(view.slot) if is_result else slot_bytes(view.slot)))
        units.append(Unit(needs, tuple(makes), tuple(sorted(after))))
    return units, given, stays


def slot_bytes(slot: Slot) -> int:
    """Bytes of arena or ATen memory that a slot takes, symbolic sizes taken for typical ones; 0 for any other."""
    return _bytes(slot) if slot.role in ("intermediate", "extern") else 0


def _bytes(slot: Slot) -> int:
    return evaluate(slot.bytes, dict.fromkeys(symbols(slot.bytes), TYPICAL_SIZE))


def order_units(
    units: Sequence[Unit], results: Collection[int] = (), given: Mapping[int, int] | None = None, stays: Collection[int] = ()
) -> list[int]:
    """Positions of `units` in the order to run them.

    `results` are values that live outside the memory that counts; `given` the bytes of values that are there from the beginning
    and freed after their last reader; values in `stays` are not freed. The order given must be a valid one. Deterministic.
    """
    problem = _Problem(units, frozenset(results), given or {}, frozenset(stays))
    best = list(range(len(units)))
    lowest = problem.peak(best)
    clusters = _clusters(problem)
    joined = _joined(problem, clusters)
    for schedule in (_forward, _backward, _greedy):
        alone, together = schedule(problem), [k for number in schedule(joined) for k in clusters[number]]
        for candidate in (alone, together):
            height = problem.peak(candidate)
            if height < lowest:
                best, lowest = candidate, height
    return best


def peak_bytes(units: Sequence[Unit], order: Iterable[int], results: Collection[int] = ()) -> int:
    """The most bytes alive while units run in that order: what a unit reads and what it writes are alive together."""
    return _Problem(units, frozenset(results), {}, frozenset()).peak(order)


class _Problem:
    """Units with their edges, and the bytes of each value that counts; `freed`: those that its last reader frees."""

    def __init__(self, units: Sequence[Unit], results: frozenset[int], given: Mapping[int, int], stays: frozenset[int]) -> None:
        self.units, self.given = units, given
        self.bytes: dict[int, int] = dict(given)
        writer: dict[int, int] = {}
        for k, unit in enumerate(units):
            for value, size in unit.writes:
                writer[value] = k
                self.bytes[value] = 0 if value in results else size
        self.freed = {value: 0 if value in stays else size for value, size in self.bytes.items()}
        self.reads = [tuple(dict.fromkeys(v for v in unit.reads if v in self.bytes)) for unit in units]
        self.writes = [tuple(v for v, _ in unit.writes) for unit in units]
        self.readers: dict[int, list[int]] = {value: [] for value in self.bytes}
        self.before: list[list[int]] = []
        self.next: list[list[int]] = [[] for _ in units]
        for k, unit in enumerate(units):
            for value in self.reads[k]:
                self.readers[value].append(k)
            self.before.append(list(dict.fromkeys([*(writer[v] for v in self.reads[k] if v in writer), *unit.after])))
            for other in self.before[k]:
                self.next[other].append(k)

    def peak(self, order: Iterable[int]) -> int:
        left = {value: len(readers) for value, readers in self.readers.items()}
        alive = highest = sum(self.given.values())
        for k in order:
            alive += sum(self.bytes[v] for v in self.writes[k])
            highest = max(highest, alive)
            for value in self.reads[k]:
                left[value] -= 1
                if not left[value]:
                    alive -= self.freed[value]
            alive -= sum(self.freed[v] for v in self.writes[k] if not self.readers[v])
        return highest


def _clusters(problem: _Problem) -> list[list[int]]:
    """The units in runs, each of one unit and those before it whose values are read within the run only; in a valid order.

    A unit joins the run of the unit that reads what it makes if all that must come after it then still does: in the order given,
    in which each unit has been moved down to its run, runs stay whole, so they do not wait for each other in a circle.
    """
    run_of: list[int] = list(range(len(problem.units)))  # named after their last units
    runs: dict[int, list[int]] = {}  # from the last unit to the first
    for k in reversed(range(len(problem.units))):
        readers = {reader for value in problem.writes[k] for reader in problem.readers[value]}
        first = min((run_of[other] for other in problem.next[k]), default=k)
        if readers and {run_of[reader] for reader in readers} == {first}:
            run_of[k] = first
        runs.setdefault(run_of[k], []).append(k)
    return [runs[last][::-1] for last in sorted(runs)]


def _joined(problem: _Problem, clusters: Sequence[Sequence[int]]) -> _Problem:
    """The problem with each cluster as one unit."""
    place = {k: number for number, cluster in enumerate(clusters) for k in cluster}
    units = []
    for number, cluster in enumerate(clusters):
        reads = dict.fromkeys(value for k in cluster for value in problem.reads[k])
        inside = {value for k in cluster for value in problem.writes[k]}
        writes = [v for v in inside if {place[r] for r in problem.readers[v]} != {number}]
        after = {place[other] for k in cluster for other in problem.before[k]} - {number}
        sizes = tuple((value, problem.bytes[value]) for value in sorted(writes))
        units.append(Unit(tuple(v for v in reads if v not in inside), sizes, tuple(sorted(after))))
    stays = frozenset(value for value, size in problem.freed.items() if size != problem.bytes[value])
    return _Problem(units, frozenset(), problem.given, stays)


def _schedule(
    waits_for: Sequence[Sequence[int]],
    releases: Sequence[Sequence[int]],
    key: Callable[[int], tuple],
    done: Callable[[int], Iterable[int]],
) -> list[int]:
    """List scheduling: again and again the ready unit with the smallest key.

    `done(k)` is told that k has been scheduled and gives the units whose key has fallen by that.
    """
    missing = [len(w) for w in waits_for]
    heap = [(key(k), k) for k, count in enumerate(missing) if not count]
    heapify(heap)
    scheduled = [False] * len(missing)
    order: list[int] = []
    while heap:
        _, k = heappop(heap)
        if scheduled[k]:
            continue
        scheduled[k] = True
        order.append(k)
        for other in releases[k]:
            missing[other] -= 1
            if not missing[other]:
                heappush(heap, (key(other), other))
        for other in done(k):
            if not missing[other] and not scheduled[other]:
                heappush(heap, (key(other), other))
    assert len(order) == len(missing), "units wait for each other"
    return order


def _by_growth(problem: _Problem, key_of: Callable[[int, int], tuple]) -> list[int]:
    """Forward list scheduling; `key_of(bytes by which what is alive grows, unit)`."""
    left = {value: len(readers) for value, readers in problem.readers.items()}
    finished = [False] * len(problem.units)
    # bytes that unit k frees: values of which it is the last reader that has not run, and results that nobody reads
    frees = [sum(problem.freed[v] for v in writes if not problem.readers[v]) for writes in problem.writes]
    for value, readers in problem.readers.items():
        if len(readers) == 1:
            frees[readers[0]] += problem.freed[value]
    makes = [sum(problem.bytes[v] for v in writes) for writes in problem.writes]

    def done(k: int) -> Iterable[int]:
        finished[k] = True
        for value in problem.reads[k]:
            left[value] -= 1
            if left[value] == 1:
                # each value comes to its last reader once, so these searches are linear altogether
                last = next(r for r in problem.readers[value] if not finished[r])
                frees[last] += problem.freed[value]
                yield last

    return _schedule(problem.before, problem.next, lambda k: key_of(makes[k] - frees[k], k), done)


def _forward(problem: _Problem) -> list[int]:
    return _by_growth(problem, lambda growth, k: (growth >= 0, k))


def _greedy(problem: _Problem) -> list[int]:
    return _by_growth(problem, lambda growth, k: (growth, k))


def _backward(problem: _Problem) -> list[int]:
    """The reverse of a list schedule of the reversed graph: running unit k backwards ends its writes and begins its reads."""
    needed: set[int] = set()
    begins = [sum(problem.freed[v] for v in reads) for reads in problem.reads]
    ends = [sum(problem.bytes[v] for v in writes if problem.readers[v] or not problem.freed[v]) for writes in problem.writes]

    def done(k: int) -> Iterable[int]:
        for value in problem.reads[k]:
            if value not in needed:
                needed.add(value)
                for reader in problem.readers[value]:
                    begins[reader] -= problem.freed[value]
                    yield reader

    reverse = _schedule(problem.next, problem.before, lambda k: (begins[k] - ends[k], -k), done)
    return reverse[::-1]
