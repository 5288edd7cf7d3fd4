"""Attention with the logarithms of its sums, and its gradients from those: kernels compute what the ops mean."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.ir.expression import Dim, symbol
from dlcompiler.ir.program import RoutineCall, Slot
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, contiguous_strides, f16, f32, f64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.attention_runs import (
    TOLERANCE,
    assert_close,
    guarded,
    laid_out,
    meanings,
    node_of,
    random,
    run_routine,
)
from tests.codegen.cpu.run import machines

every_machine = pytest.mark.parametrize("described", machines(), ids=lambda m: m.name)
FORWARD, BACKWARD = "attention_with_logsumexp", "attention_backward"


@dataclass(frozen=True)
class Case:
    lead: tuple[int, ...]
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
    cores: int
    seed: int

    @property
    def attributes(self) -> dict:
        return {"scale": 0.3, "causal": self.causal}


cases = st.builds(
    Case,
    lead=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2).map(tuple),
    length=st.sampled_from([1, 3, 8, 16, 17, 33, 70, 130]),
    seen=st.sampled_from([1, 3, 7, 16, 17, 40, 64, 67, 131, 200]),
    width=st.sampled_from([1, 3, 8, 20, 32, 64, 72]),
    depth=st.sampled_from([1, 5, 8, 20, 64, 136]),
    dtype=st.sampled_from([f32, f32, f64, f16, bf16]),
    mask=st.sampled_from(["none", "full", "keys", "rows", "bool", "bool keys"]),
    causal=st.booleans(),
    order=st.integers(0, 3),
    step=st.sampled_from([1, 1, 2]),
    symbolic=st.booleans(),
    cores=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)


def operands_of(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """q, k, v and perhaps a mask; a gradient of the output."""
    rng = np.random.default_rng(case.seed)
    rows, keys = (case.length, case.width), (case.seen, case.width)
    columns = (case.seen, case.depth), (case.length, case.depth)
    q, k, v, grad = (random(rng, (*case.lead, *matrix), case.dtype) for matrix in (rows, keys, *columns))
    masks = []
    if case.mask != "none":
        sizes = {"keys": (1, case.seen), "bool keys": (1, case.seen), "rows": (case.length, 1)}
        dtype = boolean if case.mask.startswith("bool") else case.dtype
        masks = [random(rng, sizes.get(case.mask, (case.length, case.seen)), dtype)]
        if dtype is boolean:
            masks[0][0] &= bool(case.seed % 2)  # a row that sees nothing, or all of them
    return [q, k, v, *masks], [grad]


def in_layout(array: np.ndarray, order: int, step: int) -> np.ndarray:
    rank = array.ndim
    orders = [range(rank), (*range(rank - 2), rank - 1, rank - 2), (rank - 2, *range(rank - 2), rank - 1), range(rank)[::-1]]
    return laid_out(array, list(orders[order if rank > 2 else 0]), step)


def named_sizes(case: Case, array: np.ndarray, mask: bool) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    """A row major shape with both lengths, and the first leading dimension, as names."""
    names = {case.length: symbol("L"), case.seen: symbol("S")}
    shape: list[Dim] = list(array.shape)
    if mask:
        shape = [names[size] if size != 1 else 1 for size in array.shape]
    elif len(case.lead) == array.ndim - 1:
        shape = [*shape[:-1], symbol("L")]
    else:
        shape[-2] = names[array.shape[-2]]
    if not mask and case.lead[0] != 1:
        shape[0] = symbol("N")
    return tuple(shape), contiguous_strides(tuple(shape))


def computed(op: str, case: Case, described: Machine, operands: Sequence[np.ndarray], outs: Sequence[np.ndarray]) -> None:
    """Fill `outs`."""
    has_mask = case.mask != "none"
    views = []
    if case.symbolic:
        views = [named_sizes(case, x, has_mask and k == len(operands) - 1) for k, x in enumerate((*operands, *outs))]
    sizes = {"L": case.length, "S": case.seen, "N": case.lead[0]}
    run_routine(op, operands, outs, replace(described, cores=case.cores), case.attributes, views=views, sizes=sizes)


def backward_operands(case: Case, given: Sequence[np.ndarray], grad: np.ndarray) -> list[np.ndarray]:
    """What the op's definition takes, with sums and delta as the forward pass gives them."""
    out, logsumexp = meanings(FORWARD, given, case.attributes)
    wide = np.float64 if case.dtype is f64 else np.float32
    delta = (out * grad.astype(np.float64)).sum(-1)
    return [grad, *given[:3], logsumexp.astype(wide), delta.astype(wide), *given[3:]]


@every_machine
@settings(derandomize=True, deadline=None, max_examples=4)
@given(case=cases)
def test_any_attention_gives_its_sums_and_its_gradients(described, case):
    assume(case.dtype is not f16 or described.has_half_conversion)
    # names stand for one size each
    assume(not case.symbolic or (case.length != case.seen and 1 not in (case.length, case.seen)))
    given, (grad,) = operands_of(case)
    wide = np.float64 if case.dtype is f64 else np.float32
    arranged = (lambda x: x) if case.symbolic else (lambda x: in_layout(x, case.order, case.step))
    outs = [np.full((*case.lead, case.length, case.depth), 7, case.dtype.numpy), np.full((*case.lead, case.length), 7, wide)]
    outs = [arranged(x) for x in outs]
    computed(FORWARD, case, described, [arranged(x) for x in given], outs)
    for got, want in zip(outs, meanings(FORWARD, given, case.attributes)):
        assert_close(got, want)

    operands = backward_operands(case, given, grad)
    gradients = [arranged(np.full(x.shape, 7, case.dtype.numpy)) for x in given[:3]]
    computed(BACKWARD, case, described, [arranged(x) for x in operands], gradients)
    # where a row sees one key its slopes are differences of equal numbers
    products = np.abs(grad.astype(np.float64)).sum(-1).max(initial=0) * np.abs(given[2].astype(np.float64)).max(initial=0)
    for got, want in zip(gradients, meanings(BACKWARD, operands, case.attributes)):
        assert_close(got, want, 2 * TOLERANCE[case.dtype], floor=float(products))


@every_machine
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("length, seen, width, depth, mask", [(37, 19, 20, 12, "bool"), (65, 137, 3, 16, "none")])
def test_no_memory_beside_operands_is_touched(described, at_end, length, seen, width, depth, mask):
    case = Case((2,), length, seen, width, depth, f32, mask, mask == "none", 0, 1, False, 3, 1)
    given, (grad,) = operands_of(case)
    operands = backward_operands(case, given, grad)
    gradients = [guarded(np.zeros_like(x), at_end) for x in given[:3]]
    computed(BACKWARD, case, described, [guarded(x, at_end) for x in operands], gradients)
    for got, want in zip(gradients, meanings(BACKWARD, operands, case.attributes)):
        assert_close(got, want)


@every_machine
def test_sums_do_not_depend_on_how_the_work_is_divided(described):
    """A head's keys in parts: whoever finishes last adds up, always in the same order."""
    case = Case((1,), 70, 200, 20, 16, f32, "none", True, 0, 1, False, 3, 0)
    given, (grad,) = operands_of(case)
    operands = backward_operands(case, given, grad)
    found = []
    for parts in (1, 2, 3):
        gradients = [np.zeros_like(x) for x in given[:3]]
        run_routine(BACKWARD, operands, gradients, replace(described, cores=3), case.attributes, parts=parts)
        found.append([x.tobytes() for x in gradients])
    assert found[0] == found[1] == found[2]


@every_machine
def test_gradients_that_are_not_finite_stay_in_their_rows(described):
    case = Case((2,), 20, 24, 20, 20, f32, "none", False, 0, 1, False, 1, 0)
    given, (grad,) = operands_of(case)
    operands = backward_operands(case, given, grad)
    operands[0][0, 2, 5] = np.nan
    gradients = [np.zeros_like(x) for x in given[:3]]
    computed(BACKWARD, case, described, operands, gradients)
    for got, want in zip(gradients, meanings(BACKWARD, operands, case.attributes)):
        assert_close(got, want)
    assert np.isnan(gradients[0][0, 2]).all() and np.isfinite(gradients[0][0, 3]).all()


def test_heads_of_unknown_or_great_width_are_written_out():
    for width, found in ((64, True), (256, True), (257, False), (symbol("E"), False)):
        matrix, rows = TensorType(f32, (2, 5, width)), TensorType(f32, (2, 5))
        attributes = {"scale": 1.0, "causal": False}
        for op, types in ((FORWARD, [matrix] * 3), (BACKWARD, [*[matrix] * 4, rows, rows])):
            assert (find_routine(node_of(op, types, attributes), machines()[0]) is not None) == found


def test_scratch_stays_on_a_small_stack():
    for described, dtype, width in itertools.product(machines()[:1], (f32, f64, bf16), (128, 256)):
        wide = f64 if dtype is f64 else f32
        matrix, row = ((1, 100, width), dtype), ((1, 100), wide)
        shapes = [*[matrix] * 4, row, row, ((100, 100), boolean), *[matrix] * 3]
        shapes += [((1, 100, width), f32)] * (2 if dtype is bf16 else 0)
        slots = [Slot(f"x{k}", dt, s, contiguous_strides(s), "intermediate").view() for k, (s, dt) in enumerate(shapes)]
        call = RoutineCall(BACKWARD, tuple(slots[:7]), tuple(slots[7:]), {"scale": 1.0, "causal": False})
        text, _ = write_kernel(call, described)
        number = {name: int(count) for name, count in re.findall(r"(%\w+) = llvm.mlir.constant\((\d+) : i64\)", text)}
        counts = [number[name] for name in re.findall(r"llvm.alloca (%\w+) x", text)]
        assert sum(counts) * (8 if dtype is f64 else 4) <= 256 << 10
