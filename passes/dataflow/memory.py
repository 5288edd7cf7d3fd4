"""Static memory plan: an offset in one arena for every intermediate.

    slots with lifetimes --> Placement(offsets, arena_bytes), no two slots alive at one step overlapping

Placing intervals of time with heights so that the top is lowest is dynamic storage allocation, which is NP-hard. Several greedy
placements are made, each near linear, and the lowest is kept: allocation in the order of steps (best fit, as an allocator would,
but knowing everything that comes), and placement in the order of size, of area and of lifetime, each slot going into the lowest
or the tightest gap that its neighbours in time leave ("greedy by size" of Pisarchyk and Lee, "Efficient memory management for
deep neural net inference", 2020). The search ends as soon as one placement is within 0.2 % of the lower bound.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import Evaluator
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import Placement, Program, Role, Slot
from dlcompiler.ir.types import TensorType, TupleType

ALIGNMENT = 64
# How often placements may look at a slot or at a pair alive together, for each slot and in all; about 0.3 us each.
WORK_A_SLOT = 100
LEAST_WORK = 100_000
# How often the slots at the top are moved to the front of an order and all placed again.
REPAIRS = 8
# Less than goal / 2**9, 0.2 %, above the goal is not improved.
CLOSE_ENOUGH = 9
FOREVER = 1 << 62
# What eager gives without new memory. (reshape copies where strides do not allow a view; it is counted as free all the same.)
EAGER_VIEWS = frozenset({"reshape", "permute", "expand", "slice", "window"})


@dataclass(frozen=True)
class Interval:
    """Bytes that are needed from step `first` to step `last`, both included."""

    bytes: int
    first: int
    last: int


def place(program: Program, bindings: Mapping[str, int] | None = None) -> Placement:
    """Offsets for the intermediates of `program` once its symbols have the values in `bindings`.

    Slots joined by `program.aliases` share one place. Raises KeyError for a symbol that is not bound.
    """
    number = Evaluator(bindings or {})
    lifetimes = program.lifetimes

    def interval(members: Sequence[Slot]) -> Interval:
        return Interval(
            max(number(slot.bytes) for slot in members),
            min(lifetimes[slot][0] for slot in members),
            max(lifetimes[slot][1] for slot in members),
        )

    groups = _alias_groups(program, "intermediate")
    intervals = [interval(members) for members in groups]
    offsets, arena_bytes = place_intervals(intervals)
    # what takes over an owned input takes none
    groups_of_blocks = (m for m in _alias_groups(program, "block") if program.owned.isdisjoint(_sources(program, m)))
    blocks = [interval(members) for members in groups_of_blocks]
    externs = [Interval(number(slot.bytes), first, last) for slot, (first, last) in lifetimes.items() if slot.role == "extern"]
    return Placement(
        {slot: offset for members, offset in zip(groups, offsets) for slot in members},
        arena_bytes,
        largest_live_sum(intervals),
        eager_peak(program.graph, number.bindings),
        largest_live_sum([*externs, *blocks]),
    )


def _sources(program: Program, members: Iterable[Slot]) -> list[Slot]:
    """What these slots take over."""
    return [program.aliases[slot] for slot in members if slot in program.aliases]


def _alias_groups(program: Program, role: Role) -> list[list[Slot]]:
    """Slots of that role that are used, those that share memory in one list."""
    root: dict[Slot, Slot] = {}

    def find(slot: Slot) -> Slot:
        path = []
        while slot in root:
            path.append(slot)
            slot = root[slot]
        for passed in path:
            root[passed] = slot
        return slot

    for slot, source in program.aliases.items():
        a, b = find(slot), find(source)
        if a is not b:
            root[a] = b
    groups: dict[Slot, list[Slot]] = {}
    for slot in program.lifetimes:
        if slot.role == role:
            groups.setdefault(find(slot), []).append(slot)
    return list(groups.values())


def eager_peak(graph: Graph, bindings: Mapping[str, int]) -> int:
    """Bytes alive at the worst moment if each op makes its own result and frees it after the last use.

    Views hold what they view. Results stay to the end; they, inputs and constants are not counted, as they are not in the arena.
    """
    number = Evaluator(bindings)
    owner: dict[Node, Node] = {}
    last: dict[Node, int] = {}
    for position, node in enumerate(graph.nodes):
        is_view = node.op.name in EAGER_VIEWS or node.op.name == "tuple.get"
        owner[node] = owner.get(node.inputs[0], node.inputs[0]) if is_view else node
        for operand in (node, *node.inputs):
            last[owner.get(operand, operand)] = position
    outside = {owner.get(node, node) for node in graph.results}
    intervals = [
        Interval(_result_bytes(node, number), position, last[node])
        for position, node in enumerate(graph.nodes)
        if owner[node] is node and node not in outside and not node.has(Trait.SOURCE)
    ]
    return largest_live_sum(intervals)


def _result_bytes(node: Node, number: Evaluator) -> int:
    types = node.type.elements if isinstance(node.type, TupleType) else (node.type,)
    return sum(number(type.bytes) for type in types if isinstance(type, TensorType))


def largest_live_sum(intervals: Sequence[Interval]) -> int:
    """The most bytes that are needed at one step."""
    if not intervals:
        return 0
    change = [0] * (max(i.last for i in intervals) + 2)
    for interval in intervals:
        change[interval.first] += interval.bytes
        change[interval.last + 1] -= interval.bytes
    peak = total = 0
    for amount in change:
        total += amount
        peak = max(peak, total)
    return peak


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place_intervals(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """An offset for each interval, multiples of ALIGNMENT, and the bytes of the whole arena.

    Near linear: time grows with the number of intervals and, up to a limit, of pairs alive together.
    """
    solid = [k for k, i in enumerate(intervals) if i.bytes]
    items = [Interval(aligned(intervals[k].bytes), intervals[k].first, intervals[k].last) for k in solid]
    best, height = _search(items)
    offsets = [0] * len(intervals)
    for k, offset in zip(solid, best):
        offsets[k] = offset
    return offsets, height


def _search(items: list[Interval]) -> tuple[list[int], int]:
    """The lowest of the candidates, looking at no more of them than the work allowed for this many intervals."""
    if not items:
        return [], 0
    goal = largest_live_sum(items)
    best: list[int] = []
    height = -1
    work, limit = 0, max(LEAST_WORK, WORK_A_SLOT * len(items))
    for offsets, cost in _candidates(items, goal, limit):
        top = _height(items, offsets)
        if height < 0 or top < height:
            best, height = offsets, top
        work += cost
        if height - goal <= goal >> CLOSE_ENOUGH or work > limit:
            break
    return best, height


def _candidates(items: list[Interval], goal: int, limit: int) -> Iterator[tuple[list[int], int]]:
    """Placements, the most promising for their cost first, each with the number of steps of work it took."""
    for sided in (True, False):
        yield _by_step(items, goal if sided else 0), len(items)
    neighbours, pairs = _neighbours(items, limit)
    if neighbours is None:
        return
    cost = 2 * pairs + len(items)
    orders = [sorted(range(len(items)), key=key(items)) for key in (_size, _area, _lifetime)]
    for tightest in (False, True):
        for order in orders:
            yield _in_order(items, neighbours, order, tightest), cost
    for order in orders:
        # What sticks out at the top was placed too late to fit below: place it first and all again.
        for _ in range(REPAIRS):
            offsets = _in_order(items, neighbours, order, tightest=False)
            yield offsets, cost
            culprits = {k for k in order if offsets[k] + items[k].bytes > goal}
            order = [k for k in order if k in culprits] + [k for k in order if k not in culprits]


def _height(items: Sequence[Interval], offsets: Sequence[int]) -> int:
    return max(offset + item.bytes for item, offset in zip(items, offsets))


def _size(items: Sequence[Interval]) -> Callable[[int], tuple]:
    return lambda k: (-items[k].bytes, items[k].first, k)


def _area(items: Sequence[Interval]) -> Callable[[int], tuple]:
    return lambda k: (-items[k].bytes * (items[k].last - items[k].first + 1), items[k].first, k)


def _lifetime(items: Sequence[Interval]) -> Callable[[int], tuple]:
    return lambda k: (items[k].first - items[k].last, -items[k].bytes, k)


def _neighbours(items: Sequence[Interval], limit: int) -> tuple[list[list[int]] | None, int]:
    """For each interval those that share a step with it, and how many pairs that is; None if there are more than `limit`."""
    neighbours: list[list[int]] = [[] for _ in items]
    alive: list[int] = []
    pairs = 0
    for k in sorted(range(len(items)), key=lambda k: items[k].first):
        alive = [a for a in alive if items[a].last >= items[k].first]
        pairs += len(alive)
        if pairs > limit:
            return None, pairs
        for a in alive:
            neighbours[a].append(k)
        neighbours[k].extend(alive)
        alive.append(k)
    return neighbours, pairs


def _in_order(items: Sequence[Interval], neighbours: list[list[int]], order: Sequence[int], tightest: bool) -> list[int]:
    """Give each interval in turn the lowest (or the tightest) gap that those already placed leave it."""
    offsets = [-1] * len(items)
    for k in order:
        size = items[k].bytes
        taken = sorted((offsets[n], items[n].bytes) for n in neighbours[k] if offsets[n] >= 0)
        end, place, slack = 0, -1, -1
        for offset, length in taken:
            gap = offset - end
            if gap >= size and (place < 0 or gap < slack):
                place, slack = end, gap
                if not tightest:
                    break
            end = max(end, offset + length)
        offsets[k] = end if place < 0 else place
    return offsets


def _by_step(items: list[Interval], height: int) -> list[int]:
    """Walk over the steps as an allocator would: what starts takes the tightest free gap, what has ended is free again.

    With a `height` the arena begins as one gap of that many bytes, and what starts goes to the side of its gap where the
    neighbour lives longer (the ends of the arena live for ever), so that the rest of the gap can join what is freed next.
    """
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for k, item in enumerate(items):
        starts.setdefault(item.first, []).append(k)
        ends.setdefault(item.last + 1, []).append(k)
    space = _FreeSpace(height)
    offsets = [0] * len(items)
    for step in sorted({*starts, *ends}):
        for k in ends.get(step, ()):
            space.release(offsets[k], items[k].bytes)
        for k in sorted(starts.get(step, ()), key=lambda k: (items[k].first - items[k].last, -items[k].bytes)):
            offsets[k] = space.take(items[k].bytes, items[k].last)
    return offsets


class _FreeSpace:
    """Free gaps of an arena of `height` bytes that grows at its top when nothing fits."""

    def __init__(self, height: int) -> None:
        self.top = height
        self.by_size: list[tuple[int, int]] = []  # (bytes, offset), sorted
        self.length: dict[int, int] = {}  # offset -> bytes
        self.start: dict[int, int] = {}  # end -> offset
        self.last_from: dict[int, int] = {}  # offset of a taken piece -> last step of its life
        self.last_until: dict[int, int] = {}  # end of a taken piece -> the same
        if height:
            self._add(0, height)

    def take(self, size: int, last: int) -> int:
        """The offset of `size` bytes: in the tightest gap that fits; else the arena grows, using the gap at its top if any."""
        at = bisect_left(self.by_size, (size, -1))
        if at < len(self.by_size):
            length, gap = self.by_size[at]
            self._remove(gap)
            below = self.last_until.get(gap, FOREVER)
            above = self.last_from.get(gap + length, FOREVER)
            offset = gap if below >= above else gap + length - size
            if length > size:
                self._add(gap + size if offset == gap else gap, length - size)
        else:
            offset = self.start.get(self.top, self.top)
            if offset < self.top:
                self._remove(offset)
            self.top = offset + size
        self.last_from[offset] = self.last_until[offset + size] = last
        return offset

    def release(self, offset: int, size: int) -> None:
        del self.last_from[offset], self.last_until[offset + size]
        if offset + size in self.length:
            after = offset + size
            size += self.length[after]
            self._remove(after)
        if offset in self.start:
            before = self.start[offset]
            size += self.length[before]
            self._remove(before)
            offset = before
        self._add(offset, size)

    def _add(self, offset: int, size: int) -> None:
        insort(self.by_size, (size, offset))
        self.length[offset], self.start[offset + size] = size, offset

    def _remove(self, offset: int) -> None:
        size = self.length.pop(offset)
        del self.start[offset + size]
        del self.by_size[bisect_left(self.by_size, (size, offset))]


def check_placement(program: Program, placement: Placement, bindings: Mapping[str, int] | None = None) -> None:
    """Raise VerifyError if two slots that are alive together, and do not alias, overlap, or one does not lie in the arena."""
    number = Evaluator(bindings or {})
    group = {slot: number for number, members in enumerate(_alias_groups(program, "intermediate")) for slot in members}
    events: dict[int, list[Slot]] = {}
    for slot, (first, _) in program.lifetimes.items():
        if slot.role == "intermediate":
            events.setdefault(first, []).append(slot)
    alive: list[tuple[int, int, Slot]] = []
    for step in sorted(events):
        alive = [entry for entry in alive if program.lifetimes[entry[2]][1] >= step]
        for slot in events[step]:
            low = placement.offsets[slot]
            high = low + number(slot.bytes)
            if low < 0 or high > placement.arena_bytes:
                raise VerifyError(f"{slot.name} at [{low}, {high}) is outside an arena of {placement.arena_bytes} bytes")
            for other_low, other_high, other in alive:
                if low < other_high and other_low < high and group[slot] != group[other]:
                    raise VerifyError(f"{slot.name} and {other.name} are alive at step {step} and overlap in the arena")
            alive.append((low, high, slot))
