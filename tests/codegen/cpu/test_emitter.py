"""What the Emitter's operations compute, compiled and compared with NumPy; and what its text looks like."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import MACHINES, host, level_of_flags, machine

pytest.importorskip("torch_mlir")

DTYPES: dict[str, Any] = {
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
}  # fmt: skip
UNSIGNED: dict[str, Any] = {"i8": np.uint8, "i16": np.uint16, "i32": np.uint32, "i64": np.uint64}
FLOATS = ("f32", "f64", "f16", "bf16")
PRECISION = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
INTEGERS = ("i8", "i16", "i32", "i64")
LANES = 8


def run(body: Callable[..., None], *arrays: np.ndarray, machine_name: str | None = None) -> None:
    """Compile a kernel whose body gets the Emitter, one pointer an array and the element count of the first; run it."""
    e = Emitter(machine=machine(machine_name) if machine_name else None)
    with e.func("kernel", [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, _, high):
        body(e, *e.buffers(args, len(arrays)), high)
    function = compile_mlir(e.text(), ["kernel"]).function("kernel")
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    function(ctypes.addressof(pointers), 0, arrays[0].size)


def elementwise(
    operation: Callable[..., Value], elements: list[str], result: Any, *arrays: np.ndarray, lanes: int = LANES
) -> np.ndarray:
    """`operation(e, *values)` on every element of equally long arrays, in steps of `lanes` (0: scalar)."""
    out = np.zeros(arrays[0].shape, result)

    def body(e: Emitter, *pointers: Value) -> None:
        *sources, target, high = pointers
        with e.for_loop(0, high, max(lanes, 1)) as loop:
            values = [e.load(s, loop.index, element, lanes) for s, element in zip(sources, elements, strict=True)]
            e.store(operation(e, *values), target, loop.index)

    run(body, *arrays, out)
    return out


def samples(dtype: Any) -> np.ndarray:
    """Edges and random values of a dtype, a multiple of LANES."""
    random = np.random.default_rng(3)
    if dtype == np.bool_:
        return np.array([True, False] * 4)
    if np.dtype(dtype).kind in "iu":
        information = np.iinfo(dtype)
        edges = [0, 1, 2, information.max, information.max - 1, information.min, information.min + 1, information.max // 2]
        return np.concatenate([np.array(edges, dtype), random.integers(information.min, information.max, 1000, dtype=dtype)])
    edges = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 65520.0, 65519.99, 3.4e38, 3.3961775e38]
    edges += [1e-45, 1e-40, 6e-8, 2.98e-8]
    patterns = random.integers(0, 1 << 32, 4000, dtype=np.uint32).view(np.float32)
    normal = random.normal(size=4000) * 10
    with np.errstate(all="ignore"):
        return np.concatenate([np.array(edges), patterns.astype(np.float64), normal]).astype(dtype)


def halfway(source: str, target: str) -> np.ndarray:
    """Values of `source` exactly between two neighbours of `target`, and just beside them."""
    dtype, wide = DTYPES[target], DTYPES[source]
    unsigned, end = (np.uint16, 0x7B00) if np.dtype(dtype).itemsize == 2 else (np.uint32, 0x7F000000)
    bits = np.random.default_rng(4).integers(0, end, 2000).astype(unsigned)
    low, high = (pattern.view(dtype).astype(np.float64) for pattern in (bits, bits + unsigned(1)))
    with np.errstate(over="ignore"):
        middle = ((low + high) / 2).astype(wide)
    beside = [np.nextafter(middle, wide(side)) for side in (np.inf, -np.inf)]
    values = np.concatenate([middle, *beside])
    return np.concatenate([values, -values])


def assert_same(result: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, NaN equal to any NaN."""
    assert result.dtype == expected.dtype
    if result.dtype.kind in "fV" or result.dtype == ml_dtypes.bfloat16:
        nan = np.isnan(result.astype(np.float64))
        np.testing.assert_array_equal(nan, np.isnan(expected.astype(np.float64)))
        unsigned = f"u{result.dtype.itemsize}"
        np.testing.assert_array_equal(result.view(unsigned)[~nan], expected.view(unsigned)[~nan])
    else:
        np.testing.assert_array_equal(result, expected)


def rounded(x: np.ndarray, dtype: Any) -> np.ndarray:
    """To a float dtype with one rounding; NumPy's bf16 goes by f32, so a float64 is first rounded to odd there."""
    with np.errstate(all="ignore"):
        if dtype == ml_dtypes.bfloat16 and x.dtype == np.float64:
            single = x.astype(np.float32)
            inexact = (single.astype(np.float64) != x) & ~np.isnan(x)
            away = np.abs(single.astype(np.float64)) > np.abs(x)
            bits = single.view(np.int32)
            odd = np.where(inexact & (bits & 1 == 0), np.where(away, bits - 1, bits + 1), bits)
            x = odd.astype(np.int32).view(np.float32)
        return x.astype(dtype)


@pytest.mark.parametrize("lanes", [0, LANES, 32])
@pytest.mark.parametrize("source,target", list(itertools.permutations(FLOATS, 2)))
def test_float_to_float(source: str, target: str, lanes: int) -> None:
    x = samples(DTYPES[source])
    if PRECISION[source] > PRECISION[target]:
        x = np.concatenate([x, halfway(source, target)])
    x = x[: x.size // 32 * 32]
    result = elementwise(lambda e, v: e.convert(v, target), [source], DTYPES[target], x, lanes=lanes)
    assert_same(result, rounded(x, DTYPES[target]))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("source,target", list(itertools.product(FLOATS, INTEGERS)))
def test_float_to_integer(source: str, target: str, signed: bool) -> None:
    """In range as NumPy; out of range the wide integer's least value, cut to the width."""
    dtype = DTYPES[target] if signed else UNSIGNED[target]
    information = np.iinfo(dtype)
    x = samples(DTYPES[source])
    wide = x.astype(np.float64)
    fits = (np.trunc(wide) >= information.min) & (wide < float(information.max) + (0 if information.bits == 64 else 1))
    result = elementwise(lambda e, v: e.convert(v, target, signed=signed), [source], dtype, x)
    np.testing.assert_array_equal(result[fits], np.trunc(wide[fits]).astype(dtype))
    if signed and target in ("i32", "i64"):
        assert (result[~fits] == information.min).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("source,target", list(itertools.product(INTEGERS, FLOATS)))
def test_integer_to_float(source: str, target: str, signed: bool) -> None:
    x = samples(DTYPES[source] if signed else UNSIGNED[source])
    result = elementwise(lambda e, v: e.convert(v, target, source_signed=signed), [source], DTYPES[target], x)
    with np.errstate(all="ignore"):
        expected = x.astype(DTYPES[target]) if target in ("f32", "f64") else x.astype(np.float32).astype(DTYPES[target])
    assert_same(result, expected)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("source,target", list(itertools.permutations(INTEGERS, 2)))
def test_integer_to_integer(source: str, target: str, signed: bool) -> None:
    x = samples(DTYPES[source] if signed else UNSIGNED[source])
    result = elementwise(lambda e, v: e.convert(v, target, source_signed=signed), [source], DTYPES[target], x)
    np.testing.assert_array_equal(result, x.astype(DTYPES[target]))


@pytest.mark.parametrize("element", [*FLOATS, *INTEGERS])
def test_bool_conversions(element: str) -> None:
    x = samples(DTYPES[element])
    as_bool = elementwise(lambda e, v: e.convert(v, "i1"), [element], np.bool_, x)
    np.testing.assert_array_equal(as_bool, x.astype(np.float64) != 0)
    back = elementwise(lambda e, v: e.convert(v, element), ["i1"], DTYPES[element], as_bool)
    assert_same(back, as_bool.astype(DTYPES[element]))


@pytest.mark.parametrize("element", list(DTYPES))
@pytest.mark.parametrize("count", [-3, 0, 1, 5, 8, 9])
def test_masked_load_and_store_touch_only_their_lanes(element: str, count: int) -> None:
    source = samples(DTYPES[element])[:LANES].copy()
    target, whole = np.ones(LANES, DTYPES[element]), np.zeros(LANES, DTYPES[element])
    sizes = np.array([count], np.int64)

    def body(e: Emitter, given: Value, out: Value, copy: Value, size: Value, _: Value) -> None:
        mask = e.create_mask(e.load(size, 0, "i64"), LANES)
        zero = e.constant(0, element, LANES)
        value = e.masked_load(given, 0, mask, zero)
        e.store(value, copy, 0)
        e.masked_store(value, out, 0, mask)

    run(body, source, target, whole, sizes)
    valid = np.arange(LANES) < count
    assert_same(whole, np.where(valid, source, np.zeros(1, source.dtype)))
    assert_same(target, np.where(valid, source, np.ones(1, source.dtype)))


@pytest.mark.parametrize("element", list(DTYPES))
@pytest.mark.parametrize("index", ["i32", "i64"])
def test_gather_and_scatter(element: str, index: str) -> None:
    source = samples(DTYPES[element])[:LANES].copy()
    order = np.array([3, 1, 0, 2, 7, 6, 4, 5], DTYPES[index])
    gathered, scattered = np.zeros(LANES, DTYPES[element]), np.zeros(LANES + 1, DTYPES[element])

    def body(e: Emitter, given: Value, positions: Value, first: Value, second: Value, _: Value) -> None:
        where = e.load(positions, 0, index, LANES)
        mask = e.create_mask(6, LANES)
        value = e.gather(given, 0, where, mask, e.constant(1, element, LANES))
        e.store(value, first, 0)
        e.scatter(value, second, 1, where, mask)

    run(body, source, order, gathered, scattered)
    expected = np.where(np.arange(LANES) < 6, source[order], np.ones(1, source.dtype))
    assert_same(gathered, expected)
    placed = np.zeros(LANES + 1, source.dtype)
    placed[order[:6] + 1] = expected[:6]
    assert_same(scattered, placed)


@pytest.mark.parametrize("lanes", [0, LANES])
@pytest.mark.parametrize("name", ["maximum", "minimum", "maxnum", "minnum"])
@pytest.mark.parametrize("element", ["f32", "f64"])
def test_float_extrema(name: str, element: str, lanes: int) -> None:
    values = np.array([0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -3.0], DTYPES[element])
    a, b = (np.ascontiguousarray(side.ravel()) for side in np.meshgrid(values, values))
    result = elementwise(lambda e, x, y: getattr(e, name)(x, y), [element] * 2, DTYPES[element], a, b, lanes=lanes)
    reference = {"maximum": np.maximum, "minimum": np.minimum, "maxnum": np.fmax, "minnum": np.fmin}[name]
    np.testing.assert_array_equal(result, reference(a, b))


@pytest.mark.parametrize("predicate", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("element", ["f32", "f64", "i8", "i16", "i32", "i64"])
def test_compare(predicate: str, element: str) -> None:
    values = samples(DTYPES[element])[:8]
    a, b = (np.ascontiguousarray(side.ravel()) for side in np.meshgrid(values, values))
    names = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
    reference = getattr(np, names[predicate])
    result = elementwise(lambda e, x, y: e.compare(predicate, x, y), [element] * 2, np.bool_, a, b)
    np.testing.assert_array_equal(result, reference(a, b))
    if element in INTEGERS:
        result = elementwise(lambda e, x, y: e.compare(predicate, x, y, signed=False), [element] * 2, np.bool_, a, b)
        np.testing.assert_array_equal(result, reference(a.view(UNSIGNED[element]), b.view(UNSIGNED[element])))


@pytest.mark.parametrize("element", INTEGERS)
def test_integer_arithmetic(element: str) -> None:
    signed, unsigned = DTYPES[element], UNSIGNED[element]
    x = samples(signed)
    y = np.roll(x, 3)
    y[(y == 0) | (y == -1)] = 3
    shift = (np.abs(y.astype(np.int64)) % np.iinfo(signed).bits).astype(signed)
    magnitudes = np.abs(x.astype(object)) // np.abs(y.astype(object))
    quotient = (np.sign(x) * np.sign(y) * magnitudes).astype(signed)
    cases: list[tuple[Callable[..., Value], np.ndarray, np.ndarray]] = [
        (lambda e, a, b: a + b, y, x + y), (lambda e, a, b: a - b, y, x - y), (lambda e, a, b: a * b, y, x * y),
        (lambda e, a, b: a & b, y, x & y), (lambda e, a, b: a | b, y, x | y), (lambda e, a, b: a ^ b, y, x ^ y),
        (lambda e, a, b: a << b, shift, x << shift), (lambda e, a, b: a >> b, shift, x >> shift),
        (lambda e, a, b: e.shr(a, b, signed=False), shift, (x.view(unsigned) >> shift.view(unsigned)).view(signed)),
        (lambda e, a, b: e.div(a, b), y, quotient),
        (lambda e, a, b: e.rem(a, b), y, np.fmod(x, y)),
        (lambda e, a, b: e.div(a, b, signed=False), y, (x.view(unsigned) // y.view(unsigned)).view(signed)),
        (lambda e, a, b: e.rem(a, b, signed=False), y, (x.view(unsigned) % y.view(unsigned)).view(signed)),
        (lambda e, a, b: e.maximum(a, b), y, np.maximum(x, y)), (lambda e, a, b: e.minimum(a, b), y, np.minimum(x, y)),
        (lambda e, a, b: e.maximum(a, b, signed=False), y, np.maximum(x.view(unsigned), y.view(unsigned)).view(signed)),
        (lambda e, a, b: -a, y, -x), (lambda e, a, b: ~a, y, ~x), (lambda e, a, b: e.abs(a), y, np.abs(x)),
    ]  # fmt: skip
    for operation, second, expected in cases:
        np.testing.assert_array_equal(elementwise(operation, [element] * 2, signed, x, second), expected)


@pytest.mark.parametrize("element", ["f32", "f64"])
def test_float_arithmetic(element: str) -> None:
    x = samples(DTYPES[element])
    y = np.roll(x, 5)
    with np.errstate(all="ignore"):
        cases: list[tuple[Callable[..., Value], np.ndarray]] = [
            (lambda e, a, b: a + b, x + y), (lambda e, a, b: a - b, x - y), (lambda e, a, b: a * b, x * y),
            (lambda e, a, b: a / b, x / y), (lambda e, a, b: -a, -x), (lambda e, a, b: e.abs(a), np.abs(x)),
            (lambda e, a, b: e.sqrt(a), np.sqrt(x)), (lambda e, a, b: e.math("floor", a), np.floor(x)),
            (lambda e, a, b: e.math("roundeven", a), np.rint(x)), (lambda e, a, b: e.copysign(a, b), np.copysign(x, y)),
            (lambda e, a, b: e.select(a < b, a, b), np.where(x < y, x, y)), (lambda e, a, b: 1.0 - a, 1 - x),
        ]  # fmt: skip
    for operation, expected in cases:
        assert_same(elementwise(operation, [element] * 2, DTYPES[element], x, y), expected.astype(DTYPES[element]))


@pytest.mark.parametrize("element", ["f32", "f64", "i32", "i64"])
@pytest.mark.parametrize("kind", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_reduce(kind: str, element: str, lanes: int) -> None:
    x, out = np.arange(1, lanes + 1).astype(DTYPES[element]) - 2, np.zeros(1, DTYPES[element])
    run(lambda e, a, b, _: e.store(e.reduce(kind, e.load(a, 0, element, lanes)), b, 0), x, out)
    assert out[0] == {"add": np.sum, "mul": np.prod, "max": np.max, "min": np.min}[kind](x)


def test_reduce_keeps_nan_and_refuses_odd_lengths() -> None:
    x, out = np.array([1, np.nan, 3, 4], np.float32), np.zeros(1, np.float32)
    run(lambda e, a, b, _: e.store(e.reduce("max", e.load(a, 0, "f32", 4)), b, 0), x, out)
    assert np.isnan(out[0])
    e = Emitter()
    with pytest.raises(ValueError, match="power of two"), e.func("f", []):
        e.reduce("add", e.constant(1.0, "f32", 6))


@pytest.mark.parametrize("value", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 0.1, 1e-5, 3.4028234663852886e38, 1e30, -2.5])
@pytest.mark.parametrize("element", FLOATS)
@pytest.mark.parametrize("lanes", [0, LANES])
def test_float_constants_to_the_bit(value: float, element: str, lanes: int) -> None:
    out = np.zeros(max(lanes, 1), DTYPES[element])
    run(lambda e, a, _: e.store(e.constant(value, element, lanes), a, 0), out)
    with np.errstate(all="ignore"):
        assert_same(out, np.full(max(lanes, 1), np.float64(value).astype(DTYPES[element])))


def test_loops_and_branches() -> None:
    x, out = np.arange(100, dtype=np.float32), np.zeros(3, np.float32)

    def body(e: Emitter, given: Value, target: Value, high: Value) -> None:
        zero = e.constant(0.0, "f32")
        with e.for_loop(0, high, 1, [zero, zero]) as loop:
            total, even = loop.carried
            value = e.load(given, loop.index, "f32")
            is_even = e.compare("eq", loop.index & 1, 0)
            (chosen,) = e.if_else(is_even, lambda: (even + value,), lambda: (even,))
            loop.next(total + value, chosen)
        for number, result in enumerate(loop.results):
            e.store(result, target, number)
        with e.if_then(loop.results[0] > 10.0):
            e.store(e.constant(7.0, "f32"), target, 2)

    run(body, x, out)
    np.testing.assert_array_equal(out, [x.sum(), x[::2].sum(), 7])


def test_shuffle_insert_extract_any() -> None:
    x, out, flags = np.arange(8, dtype=np.float32), np.zeros(8, np.float32), np.zeros(2, np.bool_)

    def body(e: Emitter, given: Value, target: Value, found: Value, _: Value) -> None:
        v = e.load(given, 0, "f32", 8)
        turned = e.shuffle(v, v, range(7, -1, -1))
        e.store(e.insert(e.extract(v, 5) * 2.0, turned, 1), target, 0)
        e.store(e.any(v > 6.5), found, 0)
        e.store(e.any(v > 7.5), found, 1)

    run(body, x, out, flags)
    np.testing.assert_array_equal(out, [7, 10, 5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(flags, [True, False])


def test_functions_call_each_other_and_scratch_memory() -> None:
    e = Emitter()
    with e.func("square", [("x", "f64")], result="f64") as (x,):
        e.ret(x * x)
    with e.func("kernel", [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        (data,) = e.buffers(args, 1)
        buffer = e.scratch("f64", 4)
        result = e.call("square", [e.load(data, low, "f64")], "f64")
        assert result is not None
        e.store(result, buffer, 2)
        e.store(e.load(buffer, 2, "f64"), data, high)
    values = np.array([3.0, 0.0])
    pointers = (ctypes.c_void_p * 1)(values.ctypes.data)
    compile_mlir(e.text(), ["kernel"]).function("kernel")(ctypes.addressof(pointers), 0, 1)
    assert values[1] == 9.0


def test_text_has_each_constant_once_and_no_unused_one() -> None:
    e = Emitter()
    with e.func("f", [("p", "ptr")]) as (p,):
        x = e.load(p, 0, "f32", 4)
        e.constant(123.0, x)
        e.store((x * 2.0) + (x * 2.0), p, 0)
    assert (
        e.text()
        == """module {
llvm.func internal @f(%p: !llvm.ptr) {
%v4 = arith.constant dense<2.0> : vector<4xf32>
%v1 = llvm.getelementptr %p[0] : (!llvm.ptr) -> !llvm.ptr, f32
%v2 = llvm.load %v1 {alignment = 4 : i64} : !llvm.ptr -> vector<4xf32>
%v5 = arith.mulf %v2, %v4 : vector<4xf32>
%v6 = arith.mulf %v2, %v4 : vector<4xf32>
%v7 = arith.addf %v5, %v6 : vector<4xf32>
%v8 = llvm.getelementptr %p[0] : (!llvm.ptr) -> !llvm.ptr, f32
llvm.store %v7, %v8 {alignment = 4 : i64} : vector<4xf32>, !llvm.ptr
llvm.return
}
}
"""
    )


def test_mistakes_are_refused() -> None:
    e = Emitter()
    with e.func("f", [("p", "ptr")]) as (p,):
        x, h = e.load(p, 0, "f32", 4), e.load(p, 0, "bf16", 4)
        with pytest.raises(TypeError, match="convert"):
            e.add(x, e.load(p, 0, "f64", 4))
        with pytest.raises(TypeError, match="convert first"):
            e.add(h, h)
        with pytest.raises(TypeError, match="no integer"):
            e.constant(1.5, "i32")
        with pytest.raises(TypeError, match="broadcast"):
            e.add(x, e.load(p, 0, "f32", 8))
        with pytest.raises(ValueError, match="without an Emitter"):
            Value("%x", "f32") + 1.0
        with pytest.raises(ValueError, match="opened inside"), e.func("g", []):
            pass


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])
def test_a_lower_level_runs_here(level: str) -> None:
    """Code for a smaller machine compiles on this one and computes the same."""
    if not host().name.startswith("x86"):
        pytest.skip("needs an x86 host")
    x = np.arange(32, dtype=np.float32)
    run(lambda e, a, _: e.store(e.load(a, 0, "f32", 16) * 2.0, a, 0), x, machine_name=level)
    np.testing.assert_array_equal(x[:16], np.arange(16) * 2)


def test_machines() -> None:
    assert machine("x86-64-v4").lanes(4) == 16 and machine("x86-64-v3").lanes(8) == 4
    assert not MACHINES["x86-64-v4"].attributes() and "-avx512f" in MACHINES["x86-64-v3"].attributes()
    with pytest.raises(ValueError, match="x86-64-v4"):
        machine("z80")
    assert host().cores >= 1 and all(size > 0 for size in host().cache_bytes)
    assert level_of_flags("aarch64", frozenset()) == "aarch64"
    with pytest.raises(ValueError, match="SSE4.2"):
        level_of_flags("x86_64", frozenset({"sse"}))
