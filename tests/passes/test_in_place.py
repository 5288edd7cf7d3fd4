"""In-place reuse: taken where element meets element, and refused in each near miss."""

from __future__ import annotations

import pytest
from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.program import Launch, LibraryCall, Program, RoutineCall, Slot
from dlcompiler.ir.text.equal import programs_equal
from dlcompiler.ir.text.program import parse_program, print_program
from dlcompiler.ir.types import DType, f16, f32, i32
from dlcompiler.ir.verify_program import verify_program
from dlcompiler.passes.dataflow.in_place import find_aliases, safe_pairs

M, N = 6, 8
i, j = symbol("i"), symbol("j")
AXES = (K.Axis("i", M), K.Axis("j", N))


def buffer(name: str, role="in", shape=(M, N), strides=(N, 1), dtype: DType = f32) -> K.Buffer:
    return K.Buffer(name, dtype, shape, strides, role)


X, Y = buffer("x"), buffer("y", "out")


def load(b: K.Buffer, *index, guard=()) -> K.Load:
    return K.Load(b.dtype, b, index, guard)


def kernel(*stores: K.Store, axes=AXES) -> K.Kernel:
    reads = dict.fromkeys(v.buffer for v in K.Kernel("", axes, (), stores).values if isinstance(v, K.Load))
    return K.Kernel("k", axes, (*reads, *(s.buffer for s in stores)), stores)


def compute(op: str, *values: K.Value, dtype: DType = f32) -> K.Compute:
    return K.Compute(dtype, op, values)


def slot_of(b: K.Buffer, role="intermediate") -> Slot:
    return Slot(b.name, b.dtype, b.shape, b.strides, role)


def aliases(k: K.Kernel, used_later=(), roles=None, slots=None) -> set[tuple[str, str]]:
    """Names of (result, operand) pairs that share memory when `k` runs between a step that makes its operands and one that reads
    its results.
    """
    slots = slots or {b.name: slot_of(b, (roles or {}).get(b.name, "intermediate")) for b in k.buffers}
    arguments = tuple(slots[b.name].view() for b in k.buffers)
    reads = tuple(v for v, b in zip(arguments, k.buffers) if b.role == "in")
    writes = tuple(v for v, b in zip(arguments, k.buffers) if b.role == "out")
    later = (*writes, *(slots[name].view() for name in used_later))
    steps = (LibraryCall("make", (), reads), Launch(k, arguments), LibraryCall("use", later, ()))
    program = Program("p", Builder().finish(()), tuple(slots.values()), steps, (), ())
    return {(a.name, b.name) for a, b in find_aliases(program).items()}


def test_pointwise_takes_over_an_operand_that_dies() -> None:
    k = kernel(K.Store(Y, (i, j), compute("exp", load(X, i, j))))
    assert aliases(k) == {("y", "x")}
    assert aliases(k, used_later=("x",)) == set()


@pytest.mark.parametrize("role", ["input", "constant", "output", "extern"])
def test_only_intermediates_share(role: str) -> None:
    k = kernel(K.Store(Y, (i, j), compute("exp", load(X, i, j))))
    assert aliases(k, roles={"x": role}) == set()
    assert aliases(k, roles={"y": role}) == set()


def test_the_same_elements_under_other_names() -> None:
    flat = buffer("y", "out", (M * N,), (1,))
    k = kernel(K.Store(flat, (i * N + j,), compute("exp", load(X, i, j))))
    assert aliases(k) == {("y", "x")}


@pytest.mark.parametrize(
    "value",
    [
        compute("add", load(X, i, j), load(X, i, (j * -1) + N - 1)),  # also reads another element
        load(buffer("x", shape=(N, M), strides=(M, 1)), j, i),  # transposed
        load(buffer("x", shape=(M, 1), strides=(1, 1)), i, 0),  # smaller, broadcast
        compute("cast", load(buffer("x", dtype=f16), i, j)),  # narrower
    ],
)
def test_near_misses(value: K.Value) -> None:
    assert aliases(kernel(K.Store(Y, (i, j), value))) == set()


def test_another_type_of_the_same_width_may() -> None:
    assert aliases(kernel(K.Store(Y, (i, j), compute("cast", load(buffer("x", dtype=i32), i, j))))) == {("y", "x")}


def test_one_operand_is_taken_once_and_by_one_argument() -> None:
    z = buffer("z", "out")
    value = load(X, i, j)
    two = kernel(K.Store(Y, (i, j), compute("exp", value)), K.Store(z, (i, j), compute("neg", value)))
    assert len(aliases(two)) == 1
    # the operand is also given as a second argument: its elements are read twice
    other = buffer("w")
    both = kernel(K.Store(Y, (i, j), compute("add", load(X, i, j), load(other, j % M, i))))
    shared = slot_of(X)
    assert aliases(both, slots={"x": shared, "w": shared, "y": slot_of(Y)}) == set()


def test_two_loads_beside_two_stores_are_refused() -> None:
    z = buffer("z", "out")
    guard = (K.Bound(j, N - 1),)
    two = kernel(
        K.Store(Y, (i, j), compute("exp", load(X, i, j))), K.Store(z, (i, j), compute("neg", load(X, i, j, guard=guard)))
    )
    assert aliases(two) == set()


def reduced(value: K.Value, over: str) -> K.Reduce:
    return K.Reduce(f32, "add", value, (over,))


def test_softmax_may_overwrite_its_rows() -> None:
    value = load(X, i, j)
    assert aliases(kernel(K.Store(Y, (i, j), compute("div", value, reduced(value, "j"))))) == {("y", "x")}


def test_reductions_of_rows_and_of_columns_together_may_not() -> None:
    value = load(X, i, j)
    both = compute("add", compute("sub", value, reduced(value, "j")), reduced(value, "i"))
    assert aliases(kernel(K.Store(Y, (i, j), both))) == set()


def test_a_reduction_with_a_second_store_may_not() -> None:
    value = load(X, i, j)
    total = reduced(value, "j")
    sums = buffer("s", "out", (M,), (1,))
    assert aliases(kernel(K.Store(Y, (i, j), compute("div", value, total)), K.Store(sums, (i,), total))) == set()


def test_a_store_that_leaves_an_axis_out_may_not() -> None:
    small = buffer("y", "out", (M,), (1,))
    column = buffer("x", shape=(M,), strides=(1,))
    wide = buffer("z", "out")
    value = load(column, i)
    assert aliases(kernel(K.Store(small, (i,), value), K.Store(wide, (i, j), value))) == set()


def test_a_window_on_a_slot_is_not_the_slot() -> None:
    k = kernel(K.Store(Y, (i, j), compute("exp", load(X, i, j))))
    larger = Slot("x", f32, (2 * M, N), (N, 1), "intermediate")
    from dlcompiler.ir.program import View

    target = slot_of(Y)
    step = Launch(k, (View(larger, (M, N), (N, 1), 0), target.view()))
    steps = (LibraryCall("make", (), (larger.view(),)), step, LibraryCall("use", (target.view(),), ()))
    assert find_aliases(Program("p", Builder().finish(()), (larger, target), steps, (), ())) == {}


def test_an_update_takes_the_place_of_what_it_reads_where_its_sum_ends() -> None:
    """p[i] - sum(g[i, j]) over j may be written over p, but not if the sum reads p too."""
    p, g = buffer("p", shape=(M,), strides=(1,)), buffer("g")
    out, state = (buffer(name, "out", (M,), (1,)) for name in ("y", "z"))
    total = K.Reduce(f32, "add", load(g, i, j), ("j",))
    old = load(p, i)
    two = kernel(K.Store(out, (i,), compute("sub", old, total)), K.Store(state, (i,), total))
    assert safe_pairs(two)[2] == (two.buffers.index(p),)
    summed = K.Reduce(f32, "add", compute("mul", load(g, i, j), old), ("j",))
    near_miss = kernel(K.Store(out, (i,), compute("sub", old, summed)), K.Store(state, (i,), summed))
    assert safe_pairs(near_miss)[2] == ()


def routine(operand: Slot, result: Slot, *used_later: Slot, in_place=((0, 0),)) -> Program:
    """A routine that reads one and writes the other, between a step that makes its operand and one that reads its result."""
    steps = (
        LibraryCall("matmul", (), (operand.view(),)),
        RoutineCall("lstm_scan", (operand.view(),), (result.view(),), in_place=in_place),
        LibraryCall("matmul", (result.view(), *(s.view() for s in used_later)), ()),
    )
    return Program("p", Builder().finish(()), (operand, result), steps, (), ())


def test_a_routine_writes_in_place_what_it_says_it_may() -> None:
    gates = Slot("gates", f32, (3, M, N), (M * N, N, 1), "intermediate")
    kept = Slot("kept", f32, (1, 3, M, N), (3 * M * N, M * N, N, 1), "intermediate")
    program = routine(gates, kept)
    assert find_aliases(program) == {kept: gates}
    shared = program.replace(aliases={kept: gates})
    verify_program(shared)
    assert programs_equal(parse_program(print_program(shared)), shared) is None
    with pytest.raises(VerifyError, match="kept is read and written by one call"):
        verify_program(routine(gates, kept, in_place=()).replace(aliases={kept: gates}))
    assert find_aliases(routine(gates, kept, in_place=())) == {}
    assert find_aliases(routine(gates, kept, gates)) == {}
    turned = Slot("kept", f32, (1, 3, M, N), (3 * M * N, N, 3 * N, 1), "intermediate")
    assert find_aliases(routine(gates, turned)) == {}
