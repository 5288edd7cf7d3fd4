"""The hand-written kernel of attention computes what the op means, on every machine, and touches no other memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.ir.expression import Dim, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.program import RoutineCall, Slot
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, contiguous_strides, f16, f32, f64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.attention_runs import assert_close, guarded, laid_out, meanings, random, run_routine
from tests.codegen.cpu.run import machines

every_machine = pytest.mark.parametrize("described", machines(), ids=lambda m: m.name)
# no multiple of any machine's lanes but the shortest
WIDTH = 20
# -- running -----------------------------------------------------------------------------------------------------------------


def run(
    operands: Sequence[np.ndarray], out: np.ndarray, described: Machine, scale: float = 0.3, causal: bool = False, **settings
) -> None:
    """Run the routine; `settings` as of `run_routine`."""
    run_routine("attention", operands, [out], described, {"scale": scale, "causal": causal}, **settings)


def meaning(operands: Sequence[np.ndarray], scale: float = 0.3, causal: bool = False) -> np.ndarray:
    """What the op's definition gives, in float64."""
    (result,) = meanings("attention", operands, {"scale": scale, "causal": causal})
    return result


def check(operands: Sequence[np.ndarray], described: Machine, out: np.ndarray | None = None, **settings) -> None:
    want = meaning(operands, **{k: v for k, v in settings.items() if k in ("scale", "causal")})
    if out is None:
        out = np.zeros(want.shape, operands[0].dtype)
    run(operands, out, described, **settings)
    assert_close(out, want)


# -- properties --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Sizes and forms of one call: leading dimensions, and which of them each operand lacks or has as 1."""

    lead: tuple[int, ...]
    missing: tuple[int, int, int, int]
    ones: tuple[bool, bool, bool, bool]
    length: int
    seen: int
    width: int
    depth: int
    dtype: DType
    mask: str
    causal: bool
    order: int
    step: int
    symbolic: bool
    seed: int


def lead_of(case: Case, operand: int) -> tuple[int, ...]:
    """An operand's own leading dimensions; q has them all."""
    if operand == 0:
        return case.lead
    lead = tuple(1 if case.ones[operand] and d == len(case.lead) - 1 else size for d, size in enumerate(case.lead))
    # matrices of q, k and v have at least one leading dimension
    most = len(lead) - (1 if operand < 3 else 0)
    return lead[min(case.missing[operand], most) :]


MASKS = {
    "none": None,
    "full": (True, True, False),
    "keys": (False, True, False),
    "rows": (True, False, False),
    "bool": (True, True, True),
    "bool keys": (False, True, True),
}
cases = st.builds(
    Case,
    lead=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3).map(tuple),
    missing=st.tuples(*[st.integers(0, 2)] * 4),
    ones=st.tuples(*[st.booleans()] * 4),
    length=st.sampled_from([1, 2, 3, 6, 7, 8, 16, 17, 33, 70]),
    seen=st.sampled_from([1, 3, 7, 8, 15, 16, 17, 40, 128, 131, 137, 150, 530]),
    width=st.sampled_from([1, 3, 8, 16, 24, 32, 64]),
    depth=st.sampled_from([1, 5, 8, 16, 20, 32, 64]),
    dtype=st.sampled_from([f32, f32, f64, f16, bf16]),
    mask=st.sampled_from(list(MASKS)),
    causal=st.booleans(),
    order=st.integers(0, 3),
    step=st.sampled_from([1, 1, 2]),
    symbolic=st.booleans(),
    seed=st.integers(0, 1000),
)


def arrays_of(case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """Operands in some layout, and the memory of a result."""
    rng = np.random.default_rng(case.seed)
    matrices = [(case.length, case.width), (case.seen, case.width), (case.seen, case.depth)]
    operands = [random(rng, (*lead_of(case, k), *matrix), case.dtype) for k, matrix in enumerate(matrices)]
    form = MASKS[case.mask]
    if form is not None:
        rows, keys, kept = form
        shape = (*lead_of(case, 3), case.length if rows else 1, case.seen if keys else 1)
        mask = random(rng, shape, boolean if kept else case.dtype)
        if kept:
            mask[..., 0, :] &= bool(case.seed % 2)  # a row that sees nothing
        operands.append(mask)
    out = np.full((*case.lead, case.length, case.depth), 7, case.dtype.numpy)
    if case.symbolic:
        return operands, out
    laid = []
    for array in (*operands, out):
        rank = array.ndim
        orders = [range(rank), (*range(rank - 2), rank - 1, rank - 2), (rank - 2, *range(rank - 2), rank - 1), range(rank)[::-1]]
        laid.append(laid_out(array, list(orders[case.order]), case.step))
    return laid[:-1], laid[-1]


def symbolic_views(case: Case, arrays: Sequence[np.ndarray]) -> list[tuple[tuple[Dim, ...], tuple[Dim, ...]]]:
    """Row major shapes and strides in which both lengths, and the first leading dimension, are names."""
    length, seen, batch = symbol("L"), symbol("S"), symbol("N")
    views = []
    for k, array in enumerate(arrays):
        lead: list[Dim] = list(array.shape[:-2])
        if len(lead) == len(case.lead) and lead[0] == case.lead[0] != 1:
            lead[0] = batch
        is_mask = k == 3 and len(arrays) == 5
        rows = (length if array.shape[-2] != 1 else 1) if is_mask else seen if k in (1, 2) else length
        columns = (seen if array.shape[-1] != 1 else 1) if is_mask else array.shape[-1]
        shape = (*lead, rows, columns)
        views.append((shape, contiguous_strides(shape)))
    return views


@every_machine
@settings(derandomize=True, deadline=None, max_examples=16)
@given(case=cases)
def test_any_attention_computes_its_meaning(described, case):
    assume(case.dtype is not f16 or described.has_half_conversion)
    operands, out = arrays_of(case)
    views: Sequence = ()
    if case.symbolic:
        views = symbolic_views(case, [*operands, out])
    sizes = {"L": case.length, "S": case.seen, "N": case.lead[0]}
    check(operands, described, out, causal=case.causal, views=views, sizes=sizes)


@every_machine
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize(
    "length, seen, width, depth, mask",
    [(5, 19, 64, 64, "keys"), (37, 19, 20, 12, "full"), (3, 5, 4, 4, "none"), (21, 3, 3, 5, "bool"), (65, 137, 16, 16, "none")],
)
def test_no_memory_beside_operands_is_touched(described, at_end, length, seen, width, depth, mask):
    case = Case(
        (2,), (0, 0, 0, 0), (False,) * 4, length, seen, width, depth, f32, mask, mask == "none", 0, 1, False, 1
    )  # fmt: skip
    operands, out = arrays_of(case)
    check([guarded(x, at_end) for x in operands], described, guarded(out, at_end), causal=case.causal)


@every_machine
@pytest.mark.parametrize("mask", [None, (3, 4, 1, 40), (3, 1, 1, 40)], ids=str)
def test_single_rows_of_heads_that_share_keys(described, mask):
    rng = np.random.default_rng(0)
    for heads in (4, 9):
        operands = [random(rng, shape, f32) for shape in ((3, heads, 1, 16), (3, 1, 40, 16), (3, 1, 40, 32))]
        if mask is not None:
            operands.append(random(rng, (3, heads if mask[1] > 1 else 1, 1, 40), f32))
        check(operands, described)


# -- values that are not finite -----------------------------------------------------------------------------------------------


def finite_operands(length: int = 20, seen: int = 24) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [random(rng, (2, n, WIDTH), f32) for n in (length, seen, seen)]


@every_machine
@pytest.mark.parametrize("length", [3, 20])
def test_rows_that_see_nothing_give_zeros(described, length):
    operands = finite_operands(length)
    for mask in (np.ones((length, 24), bool), np.zeros((length, 24), np.float32)):
        mask[1] = False if mask.dtype == bool else -np.inf
        out = np.ones((2, length, WIDTH), np.float32)
        run([*operands, mask], out, described)
        assert not out[:, 1].any() and out[:, 0].all()
        assert_close(out, meaning([*operands, mask]))


@every_machine
@pytest.mark.parametrize("length", [3, 20])
def test_not_finite_numbers_spread_as_the_meaning_says(described, length):
    for operand, value in ((0, np.nan), (0, np.inf), (1, np.nan), (2, np.nan), (2, np.inf)):
        operands = finite_operands(length)
        operands[operand][0, 2, 5] = value
        with np.errstate(invalid="ignore"):
            want = meaning(operands)
        out = np.zeros(want.shape, np.float32)
        run(operands, out, described)
        finite = np.isfinite(want)
        np.testing.assert_array_equal(out[~finite], want[~finite].astype(np.float32))
        assert_close(np.where(finite, out, 0).astype(np.float32), np.where(finite, want, 0))
    # all scores of a row are -inf, and no mask says so
    operands = finite_operands(length)
    operands[0][0, 1, :], operands[1][0] = -np.inf, np.abs(operands[1][0])
    out = np.zeros((2, length, WIDTH), np.float32)
    run(operands, out, described)
    assert np.isnan(out[0, 1]).all() and np.isfinite(out[1]).all()


@every_machine
@pytest.mark.parametrize("length", [3, 20])
def test_a_bool_mask_hides_scores_that_are_not_finite(described, length):
    operands = finite_operands(length)
    operands[1][:, 4] = np.nan
    mask = np.ones((length, 24), bool)
    mask[:, 4] = False
    check([*operands, mask], described)


@every_machine
def test_no_keys_give_zeros(described):
    operands = finite_operands(20, 0)
    for mask in ([], [np.ones((20, 0), np.float32)]):
        out = np.ones((2, 20, WIDTH), np.float32)
        run([*operands, *mask], out, described)
        assert not out.any()
    views = [((2, n, WIDTH), contiguous_strides((2, n, WIDTH))) for n in (symbol("L"), symbol("S"), symbol("S"), symbol("L"))]
    out = np.ones((2, 20, WIDTH), np.float32)
    run(operands, out, described, views=views, sizes={"L": 20, "S": 0})
    assert not out.any()


@every_machine
def test_an_addend_that_hides_nearly_everything_leaves_an_average(described):
    operands = finite_operands()
    check([*operands, np.full((1, 24), np.finfo(np.float32).min)], described)


@every_machine
def test_scores_that_grow_scale_down_what_was_summed(described):
    operands = finite_operands(40, 400)
    operands[1] *= np.linspace(0.01, 30, 400, dtype=np.float32)[:, None]
    check(operands, described, scale=1.0)


# -- what it is asked for ------------------------------------------------------------------------------------------------------


def test_heads_of_unknown_or_great_width_go_to_the_library():
    for width, found in ((64, True), (256, True), (257, False), (symbol("E"), False)):
        b = Builder()
        q, k, v = (b.input(name, TensorType(f32, (2, 5, width))) for name in "qkv")
        routine = find_routine(b.attention(q, k, v, scale=1.0, causal=False), machines()[0])
        assert (routine is not None) == found


def test_scratch_stays_on_a_small_stack():
    for dtype, width in itertools.product((f32, f64, bf16), (128, 256)):
        shape = (1, 100, width)
        slots = [Slot(f"x{k}", dtype, shape, contiguous_strides(shape), "intermediate") for k in range(4)]
        *reads, out = (slot.view() for slot in slots)
        call = RoutineCall("attention", tuple(reads), (out,), {"scale": 1.0, "causal": False})
        text, _ = write_kernel(call, machines()[0])
        number = {name: int(count) for name, count in re.findall(r"(%\w+) = llvm.mlir.constant\((\d+) : i64\)", text)}
        counts = [number[name] for name in re.findall(r"llvm.alloca (%\w+) x", text)]
        assert sum(counts) * (8 if dtype is f64 else 4) <= 256 << 10
