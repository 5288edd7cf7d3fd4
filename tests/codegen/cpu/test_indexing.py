"""Routines that order, scan and scatter: compiled code against the meaning, in all dtypes, odd sizes, strided, empty."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import find_routine
from dlcompiler.ir.expression import evaluate, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import evaluate_op
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.program import RoutineCall, Slot, View
from dlcompiler.ir.types import (
    TensorType,
    TupleType,
    bf16,
    boolean,
    contiguous_strides,
    dtype_of,
    f16,
    f32,
    f64,
    i8,
    i32,
    i64,
    u8,
)

from tests.codegen.cpu.run import assert_close, machines, strided
from tests.samples import array, samples

every_machine = pytest.mark.parametrize("described", machines(), ids=lambda m: m.name)
Strides = tuple[int, ...]


def _view(name: str, type: TensorType, strides: Sequence[Any] | None = None) -> View:
    slot = Slot(name, type.dtype, type.shape, tuple(strides or contiguous_strides(type.shape)), "intermediate")
    return slot.view()


def run_routine(
    op: str, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any], described: Machine, parts: int = 3,
    strides: Sequence[Strides | None] = (), symbolic: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """The routine's results: inputs lie in memory with `strides` (None: row major); `symbolic` makes every first size one."""
    b = Builder()
    sizes = {f"N{k}": x.shape[0] for k, x in enumerate(inputs)} if symbolic else {}
    shapes = [(symbol(f"N{k}"), *x.shape[1:]) if symbolic else x.shape for k, x in enumerate(inputs)]
    node = b(op, *(b.input(f"x{k}", TensorType(dtype_of(x), s)) for k, (x, s) in enumerate(zip(inputs, shapes))), **attributes)
    routine = find_routine(node, described)
    assert routine is not None
    results = list(node.type.elements) if isinstance(node.type, TupleType) else [node.tensor]
    given = [*strides, *[None] * len(inputs)][: len(inputs)]
    reads = [_view(f"x{k}", i.tensor, s) for k, (i, s) in enumerate(zip(node.inputs, given))]
    writes = [_view(f"y{k}", t) for k, t in enumerate((*results, *routine.scratch(node, described)))]
    call = RoutineCall(op, tuple(reads), tuple(writes), dict(attributes))
    text, written = write_kernel(call, described)
    function = compile_mlir(text, ["kernel"]).function("kernel")
    arrays = []
    for x, view in zip(inputs, reads):
        held = strided(x.shape, [evaluate(s, sizes) for s in view.strides], x.dtype, misalign=1)
        held[...] = x
        arrays.append(held)
    # what lies around a result must stay as it is
    guards = [np.full(int(np.prod([evaluate(d, sizes) for d in v.shape])) * v.dtype.bytes + 128, 0xA5, np.uint8) for v in writes]
    words = [*(a.ctypes.data for a in arrays), *(g.ctypes.data + 64 for g in guards), *(sizes[s] for s in call.size_symbols)]
    block = (ctypes.c_int64 * (len(words) + 1))(*words)
    work, multiple = evaluate(written.work, sizes), written.multiple
    ends = [min(-(-work * k // parts // multiple) * multiple, work) for k in range(parts)] + [work]
    for low, high in zip(ends, ends[1:]):
        if low < high:
            function(ctypes.addressof(block), low, high)
    for guard in guards:
        assert (guard[:64] == 0xA5).all() and (guard[-64:] == 0xA5).all()
    return [
        np.frombuffer(g[64:-64].tobytes(), v.dtype.numpy).reshape([evaluate(d, sizes) for d in v.shape])
        for g, v in zip(guards, writes[: len(results)])
    ]


def check(op: str, inputs: Sequence[np.ndarray], attributes: Mapping[str, Any], described: Machine, **how: Any) -> None:
    expected = evaluate_op(lookup(op), list(inputs), attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(run_routine(op, inputs, attributes, described, **how), expected, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        tolerance = {"float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}.get(got.dtype.name, 3e-7)
        assert_close(got, np.asarray(want), tolerance)


def _skips(dtype, described) -> bool:
    """The C library's conversions of f16 are not there for machines without their own."""
    return dtype is f16 and not described.has_half_conversion


SCAN_DTYPES = (f32, f64, f16, bf16, i64, i32, i8, u8)


@every_machine
@pytest.mark.parametrize("kind", ["add", "mul", "max", "min", "logaddexp"])
def test_scans(kind, described):
    shapes = [(5, 67), (2, 33, 3), (2, 5, 70)] + ([(37,), (4, 1), (0, 3), (3, 0)] if kind == "add" else [])
    cases = [(f32, shape, axis) for shape in shapes for axis in range(len(shape))]
    cases += [(dtype, (3, 35), k % 2) for k, dtype in enumerate(SCAN_DTYPES[1:]) if described is machines()[0]]
    for number, (dtype, shape, axis) in enumerate(cases):
        if _skips(dtype, described) or (kind == "logaddexp" and not dtype.is_float):
            continue
        attributes = {"axis": axis, "kind": kind, "exclusive": number % 2 == 0, "reverse": number % 3 == 0}
        low, high = (0.5, 1.5) if kind == "mul" else (-4, 4)
        check("scan", [array(dtype, *shape, low=low, high=high)], attributes, described)


@every_machine
def test_running_extremes(described):
    for number, dtype in enumerate(d for d in SCAN_DTYPES if not _skips(d, described)):
        for shape, axis in (((5, 67), 1), ((7, 19), 0))[: 2 if number < 4 else 1]:
            x = array(dtype, *shape, special=True)
            check("running_extreme", [x], {"axis": axis, "largest": number % 2 == 0}, described)


SORT_DTYPES = (f32, f64, f16, bf16, i64, i32, i8, u8, boolean)


@every_machine
def test_sorts(described):
    for number, dtype in enumerate(d for d in SORT_DTYPES if not _skips(d, described)):
        for shape in ((3, 1), (2, 37), (2, 300), (0, 5), (3, 0)) if number < 2 else ((2, 50 + 350 * (number % 2)),):
            x = array(dtype, *shape, special=True)
            check("sort", [x], {"descending": number % 2 == 0}, described)
    x = array(i64, 3, 2, 270, low=-(2**62), high=2**62)
    check("sort", [x], {"descending": False}, described, strides=[(270, 810, 1)])
    check("sort", [array(f32, 5, 7)], {"descending": True}, described, strides=[(1, 5)], symbolic=True)


@every_machine
def test_largest_and_smallest(described):
    for number, dtype in enumerate(d for d in SORT_DTYPES if not _skips(d, described)):
        for shape, k in (((3, 40), 15), ((2, 3000), 9))[number % 2 :]:
            check("topk", [array(dtype, *shape, special=True)], {"k": k, "largest": number % 2 == 0}, described)
    rising = np.arange(4000, dtype=np.float32).reshape(2, 2000) // 3
    for x in (rising, rising[:, ::-1].copy(), np.zeros_like(rising), np.full_like(rising, np.nan)):
        for k in (1, 30):
            check("topk", [x], {"k": k, "largest": True}, described)
    check("topk", [array(f32, 4, 9)], {"k": 9, "largest": False}, described)
    check("topk", [array(f32, 4, 9)], {"k": 0, "largest": False}, described)


def _indices(size: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random indices, some of them outside."""
    return np.random.default_rng(seed).integers(-2, size + 2, shape)


UPDATE_DTYPES = (f32, f64, f16, bf16, i64, u8, boolean)


@every_machine
def test_scatters(described):
    shapes = [((7,), (12,), 0), ((5, 37), (11, 37), 0), ((5, 37), (4, 20), 1), ((3, 6, 19), (2, 9, 17), 1), ((4, 3), (0, 3), 0)]
    for number, (dtype, kind) in enumerate(zip(UPDATE_DTYPES, ["add", "max", "mul", "min", "set", "add", "max"])):
        if _skips(dtype, described) or (dtype is boolean and kind in ("add", "mul")):
            continue
        for target, written, axis in shapes if number == 0 else shapes[number % 4 :: 4]:
            x = array(dtype, *target) if number % 2 == 0 else array(dtype)
            at = _indices(target[axis], *written)
            check("scatter", [x, array(dtype, *written, seed=1), at], {"axis": axis, "kind": kind, "shape": target}, described)
    shared = np.broadcast_to(_indices(5, 11, 1), (11, 37))
    inputs = [array(f32), array(f32, 11, 37, seed=1), shared]
    attributes = {"axis": 0, "kind": "add", "shape": (5, 37)}
    check("scatter", inputs, attributes, described, strides=[None, None, (1, 0)])


@every_machine
def test_places(described):
    for sample in samples("places"):
        check("places", list(sample.inputs), dict(sample.attributes), described)
    mask = array(boolean, 3000)
    mask[100:2100] = False
    begins = np.array([int(mask[:k].sum()) for k in (0, 1024, 2048)])
    check("places", [mask, begins], {"count": int(mask.sum())}, described, strides=[(2,)])


@every_machine
def test_index_updates(described):
    cases = [
        ((9, 37), [(13,)], (0,)), ((4, 9, 5), [(3, 1), (1, 2)], (0, 1)), ((3, 9, 21), [(6,)], (1,)), ((9,), [(20,)], (0,)),
        ((3, 9), [(6,)], (1,)), ((2, 3, 4), [(5,), (5,), (5,)], (0, 1, 2)), ((4, 3), [(0,)], (0,)),
    ]  # fmt: skip
    for number, (dtype, kind) in enumerate(zip(UPDATE_DTYPES, ["add", "max", "add", "mul", "set", "add", "max"])):
        if _skips(dtype, described):
            continue
        for target, positions, axes in cases if number == 0 else cases[number % 3 :: 3]:
            at = [_indices(target[a], *p, seed=a).astype(np.int32 if a else np.int64) for p, a in zip(positions, axes)]
            shape = (*target[: axes[0]], *np.broadcast_shapes(*positions), *target[axes[-1] + 1 :])
            x = array(dtype, *target) if number % 2 == 0 else array(dtype)
            attributes = {"axes": axes, "kind": kind, "shape": target}
            check("index_update", [x, array(dtype, *shape, seed=1), *at], attributes, described)
