"""The static memory plan: no overlap, bounded by the largest live set from below and by the sum from above."""

from __future__ import annotations

import random
import time

import pytest
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.program import LibraryCall, Placement, Program, Slot
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.dataflow.memory import (
    ALIGNMENT,
    Interval,
    aligned,
    check_placement,
    eager_peak,
    largest_live_sum,
    place,
    place_intervals,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcompiler.garbage import collecting_later

sizes = st.one_of(st.integers(0, 4096), st.sampled_from([0, 1, 64, 65, 1 << 20]))
lives = st.builds(
    lambda size, first, length: Interval(size, first, first + length), sizes, st.integers(0, 40), st.integers(0, 12)
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(lives, max_size=40))
def test_random_lifetimes_do_not_overlap(intervals: list[Interval]) -> None:
    offsets, height = place_intervals(intervals)
    for k, (a, low) in enumerate(zip(intervals, offsets)):
        assert low % ALIGNMENT == 0 and 0 <= low <= low + a.bytes <= height
        for b, other in list(zip(intervals, offsets))[:k]:
            together = a.first <= b.last and b.first <= a.last and a.bytes and b.bytes
            assert not together or low + a.bytes <= other or other + b.bytes <= low
    assert largest_live_sum(intervals) <= height <= sum(aligned(i.bytes) for i in intervals)


def chain(count: int) -> list[Interval]:
    """Layer after layer, each needing only the one before."""
    return [Interval(random.choice([1, 2, 3, 4]) * 1024, k, k + 1) for k in range(count)]


def transformer(layers: int) -> list[Interval]:
    """Residual stream, queries, keys, values, scores, a wide hidden layer."""
    unit, found = 128 * 768 * 4, []
    for t in range(0, 12 * layers, 12):
        found += [
            Interval(unit, t, t + 12),
            Interval(12 * 128 * 128 * 4, t + 4, t + 6),
            Interval(12 * 128 * 128 * 4, t + 5, t + 6),
        ]
        found += [Interval(unit, t + k, t + 4) for k in (1, 2, 3)]
        found += [Interval(unit, t + 6, t + 7), Interval(unit, t + 7, t + 8), Interval(unit, t + 8, t + 13)]
        found += [Interval(4 * unit, t + 9, t + 10), Interval(4 * unit, t + 10, t + 11), Interval(unit, t + 11, t + 12)]
    return found


def branches(blocks: int) -> list[Interval]:
    """Inception: branches of several layers whose ends are joined."""
    found, t = [], 0
    for _ in range(blocks):
        ends = []
        for _ in range(random.randint(2, 5)):
            for _ in range(random.randint(0, 3)):
                found.append(Interval(random.randint(1, 30) * 7777, t, t + 1))
                t += 1
            ends.append((random.randint(1, 30) * 7777, t))
            t += 1
        found += [Interval(size, start, t) for size, start in ends]
        t += 1
    return found


def unet(depth: int) -> list[Interval]:
    """Ever smaller layers, ever larger again, skips across."""
    found, t, size, skips = [], 0, 1 << 22, []
    for _ in range(depth):
        found += [Interval(size * random.choice([1, 2]), t + k, t + k + 1) for k in range(3)]
        skips.append((size, t + 3))
        t, size = t + 3, size // 2
    for size, start in reversed(skips):
        found += [Interval(size, start, t + 1), *(Interval(size * random.choice([1, 2]), t + k, t + k + 1) for k in range(3))]
        t += 3
    return found


def training(layers: int) -> list[Interval]:
    """A forward pass that saves half of its results for the backward pass."""
    saved = [Interval(random.choice([1, 4, 4, 16]) * 10240, k, 2 * layers - k) for k in range(0, layers, 2)]
    passing = [Interval(random.choice([1, 4, 16]) * 10240, k, k + 2) for k in range(2 * layers)]
    return saved + passing


@pytest.mark.parametrize("pattern", [chain, transformer, branches, unet, training])
@pytest.mark.parametrize("seed", range(5))
def test_realistic_patterns_are_within_a_tenth_of_the_lower_bound(pattern, seed: int) -> None:
    random.seed(seed)
    intervals = pattern(8 if pattern is unet else 60)
    _, height = place_intervals(intervals)
    assert height <= 1.10 * largest_live_sum(intervals)


def test_time_grows_with_the_number_of_slots() -> None:
    def seconds(count: int) -> float:
        intervals = chain(count) + [Interval(random.randint(1, 10**6), s := random.randrange(count), s + 8) for _ in range(count)]
        with collecting_later():  # as while compiling: a collection goes through all that this process ever made
            start = time.process_time()
            place_intervals(intervals)
            return time.process_time() - start

    random.seed(0)
    small, large = (min(seconds(count) for _ in range(2)) for count in (1_000, 8_000))
    assert large < 30 * max(small, 0.02)


def make_program(chain_length: int, size=1000) -> tuple[Program, list[Slot]]:
    """x -> t0 -> t1 -> ... -> y, each by a library call."""
    builder = Builder("chain")
    x = builder.input("x", TensorType(f32, (size,)))
    node = x
    for _ in range(chain_length + 1):
        node = builder.relu(node)
    graph = builder.finish([node])
    given, result = Slot("x", f32, (size,), (1,), "input", 0), Slot("y", f32, (size,), (1,), "output", 0)
    middle = [Slot(f"t{k}", f32, (size,), (1,), "intermediate") for k in range(chain_length)]
    slots = [given, *middle, result]
    steps = tuple(LibraryCall("relu", (a.view(),), (b.view(),)) for a, b in zip(slots, slots[1:]))
    return Program("chain", graph, tuple(slots), steps, (given,), (result.view(),)), middle


def test_a_chain_needs_two_buffers_and_in_place_one() -> None:
    program, middle = make_program(6)
    plain = place(program, {})
    assert plain.arena_bytes == 2 * aligned(4000) and plain.lower_bound == 8000
    assert plain.eager_peak == 8000
    in_place = program.replace(aliases=dict(zip(middle[1:], middle)))
    joined = place(in_place, {})
    assert joined.arena_bytes == aligned(4000) and set(joined.offsets) == set(middle)
    check_placement(program, plain)
    check_placement(in_place, joined)


def test_symbolic_sizes_are_placed_for_a_binding() -> None:
    program, _ = make_program(3, symbol("n"))
    small, large = (place(program, {"n": n}) for n in (16, 1 << 20))
    assert small.arena_bytes == 128 and large.arena_bytes == 8 << 20
    assert place(program, {"n": 0}).arena_bytes == 0
    with pytest.raises(KeyError, match="n"):
        place(program, {})


def test_the_check_sees_overlap_and_what_sticks_out() -> None:
    program, middle = make_program(3)
    with pytest.raises(VerifyError, match="t1 and t0 are alive at step 1"):
        check_placement(program, Placement({middle[0]: 0, middle[1]: 3999, middle[2]: 0}, 9000, 0))
    with pytest.raises(VerifyError, match="outside"):
        check_placement(program, Placement({middle[0]: 0, middle[1]: 4000, middle[2]: 0}, 7999, 0))


def test_eager_keeps_results_and_views_until_the_last_use() -> None:
    b = Builder()
    x = b.input("x", TensorType(f32, (8, 4)))
    t = b.exp(x)  # 128 bytes, alive through its view until the product
    view = b.reshape(t, shape=(32,))
    u = b.exp(b.exp(x))  # two of 128
    product = b.mul(b.reshape(u, shape=(32,)), view)
    y = b.relu(b.reduce_sum(product, axes=(0,), keepdims=False))
    # exp, exp(exp) and the product are alive together; results are not counted
    assert eager_peak(b.finish([y]), {}) == 3 * 128
    assert eager_peak(b.finish([product]), {}) == 3 * 128
    assert eager_peak(b.finish([t, u]), {}) == 128 + 4
