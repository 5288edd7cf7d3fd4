"""The elementary functions against float64 and exact values; tests/bench/elementary.py tries every f32 input."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from dlcompiler.codegen.cpu.elementary import TABLE
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.machine import MACHINES, host

from tests.bench.elementary import ARITY, compile_function, truth, ulp_errors

pytest.importorskip("torch_mlir")

UNARY = [name for name in TABLE if name not in ARITY]
INF, NAN = math.inf, math.nan
SPECIAL_BITS = [
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000,
    0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0xBF7FFFFF, 0xBF800001, 0x7F7FFFFF, 0xFF7FFFFF,
    0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x42B17217, 0x42B17218, 0xC2AEAC4F,
    0xC2CFF1B5, 0x4B000000, 0x4E800000, 0xCE800000, 0x4E7FFFFF, 0x7E800000, 0x3F490FDB, 0x3FC90FDB,
]  # fmt: skip
# name -> (argument, exact result) in both formats; zeros compare with their sign
EXACT: dict[str, list[tuple[float, float]]] = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (-2000.0, 0.0), (2000.0, INF), (NAN, NAN)],
    "exp2": [(0.0, 1.0), (10.0, 1024.0), (-3.0, 0.125), (INF, INF), (-INF, 0.0), (NAN, NAN), (-126.0, 2.0**-126)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (-200.0, -1.0), (NAN, NAN), (2000.0, INF)],
    "sigmoid": [(0.0, 0.5), (INF, 1.0), (-INF, 0.0), (200.0, 1.0), (-2000.0, 0.0), (NAN, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (50.0, 1.0), (-50.0, -1.0), (NAN, NAN)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (-2000.0, -INF), (NAN, NAN)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (2000.0, INF), (NAN, NAN)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (-INF, NAN), (NAN, NAN)],
    "log2": [(1.0, 0.0), (8.0, 3.0), (2.0**-126, -126.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF)],
    "log10": [(1.0, 0.0), (1000.0, 3.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (NAN, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (INF, INF), (-INF, NAN), (NAN, NAN)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (NAN, NAN)],
    "acosh": [(1.0, 0.0), (0.5, NAN), (-3e38, NAN), (INF, INF), (-INF, NAN), (NAN, NAN)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (-INF, NAN), (NAN, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (NAN, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN), (NAN, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (NAN, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.5, NAN), (-INF, NAN), (NAN, NAN)],
    "acos": [(1.0, 0.0), (1.5, NAN), (-1.5, NAN), (INF, NAN), (NAN, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (NAN, NAN)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (10.0, 1.0), (NAN, NAN)],
    "erfc": [(0.0, 1.0), (INF, 0.0), (-INF, 2.0), (-10.0, 2.0), (30.0, 0.0), (NAN, NAN)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (4.0, 2.0), (-1.0, NAN), (INF, INF), (NAN, NAN)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (4.0, 0.5), (-1.0, NAN), (INF, 0.0), (NAN, NAN)],
    "cbrt": [(0.0, 0.0), (-0.0, -0.0), (-8.0, -2.0), (INF, INF), (NAN, NAN)],
    "digamma": [(0.0, -INF), (-0.0, INF), (-1.0, NAN), (-7.0, NAN), (INF, INF), (-INF, NAN), (NAN, NAN)],
    "erfinv": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (INF, NAN), (NAN, NAN)],
    "lgamma": [(1.0, 0.0), (2.0, 0.0), (0.0, INF), (-1.0, INF), (INF, INF), (-INF, INF), (NAN, NAN)],
}
POWERS = [
    (0.0, -3.0, INF), (-0.0, -3.0, -INF), (0.0, -2.5, INF), (-0.0, -2.0, INF), (0.0, 3.0, 0.0), (-0.0, 3.0, -0.0),
    (-0.0, 2.0, 0.0), (-1.0, INF, 1.0), (-1.0, -INF, 1.0), (1.0, NAN, 1.0), (NAN, 0.0, 1.0), (NAN, 1.0, NAN),
    (0.5, INF, 0.0), (0.5, -INF, INF), (2.0, INF, INF), (2.0, -INF, 0.0), (-INF, -3.0, -0.0), (-INF, -2.0, 0.0),
    (-INF, 3.0, -INF), (-INF, 2.0, INF), (INF, -1.0, 0.0), (INF, 2.0, INF), (-2.0, 3.0, -8.0), (-2.0, 0.5, NAN),
    (-2.0, -1.0, -0.5), (0.0, 0.0, 1.0), (-8.0, 1 / 3, NAN), (0.0, INF, 0.0), (0.0, -INF, INF), (3.0, 4.0, 81.0),
]  # fmt: skip
# name -> where to draw float64 arguments from
RANGES = {
    "exp": (-745, 709), "exp2": (-1074, 1023), "expm1": (-5, 5), "sigmoid": (-700, 40), "tanh": (-3, 3),
    "sinh": (-3, 3), "cosh": (-700, 700), "log": (0, 4), "log2": (0, 4), "log10": (0, 4), "log1p": (-1, 3),
    "asinh": (-4, 4), "acosh": (1, 3), "atanh": (-1, 1), "sin": (-100, 100), "cos": (-100, 100), "tan": (-100, 100),
    "asin": (-1, 1), "acos": (-1, 1), "atan": (-5, 5), "erf": (-3, 3), "erfc": (-6, 26.5), "sqrt": (0, 9),
    "rsqrt": (0, 9), "cbrt": (-9, 9), "erfinv": (-1, 1),
}  # fmt: skip
# where cancellation, a change of method or a singular point would show: offsets on either side, as powers of two
HARD_POINTS = {
    "erfinv": (1.0, -1.0, 0.5), "atanh": (1.0, -1.0), "acosh": (1.0,), "log": (1.0, 4 / 3), "log2": (1.0, 4 / 3),
    "log10": (1.0, 4 / 3), "log1p": (-1.0, 1 / 3), "asin": (1.0, 0.5), "acos": (1.0, -1.0, 0.5), "sin": (math.pi, 355.0),
    "cos": (math.pi / 2, 11.0), "tan": (math.pi / 2, 355.0), "expm1": (0.3466, -0.3466), "tanh": (0.625, 19.0),
    "sinh": (1.0, 710.0), "cosh": (0.3466, 710.0), "erf": (0.925, 5.9), "erfc": (0.5, -0.5, 26.5),
    "atan": (0.41421356, 2.41421356), "exp": (-708.4,), "exp2": (-1022.0,), "sigmoid": (-708.4, 0.5),
}  # fmt: skip
# mpmath's functions where they are called otherwise
SPELLED = {
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "log2": lambda x: mpmath.log(x) / mpmath.log(2),
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
}


def host_has(level: str) -> bool:
    return host().name.startswith("x86") and host().vector_bytes >= MACHINES[level].vector_bytes


def padded(values: np.ndarray, lanes: int = 16) -> np.ndarray:
    """With ones up to a multiple of `lanes`."""
    return np.concatenate([values, np.ones(-values.size % lanes, values.dtype)])


def same(result: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Equal in value and sign, or both NaN."""
    equal = (result == expected) & (np.signbit(result) == np.signbit(expected))
    return equal | (np.isnan(result) & np.isnan(expected))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("level", ["x86-64-v4", None])
def test_single_precision_within_two_units(name: str, level: str | None) -> None:
    """A strided sweep of the bit patterns plus the edges, with the machine's own instructions and without."""
    if level is not None and not host_has(level):
        pytest.skip(f"this machine is below {level}")
    step = 8171 if name not in ("lgamma", "cbrt", "digamma", "erfinv") else 81707
    bits = np.concatenate([np.array(SPECIAL_BITS), np.arange(0, 1 << 32, step)]).astype(np.uint32)
    x = padded(bits.view(np.float32))
    result = compile_function(name, "f32", 16, level)(x)
    errors = ulp_errors(result, truth(name, x))
    worst = int(np.argmax(errors))
    assert errors[worst] <= 2.0, (name, x[worst], result[worst])


@pytest.mark.parametrize("element", ["f32", "f64"])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_values(name: str, element: str) -> None:
    dtype = np.float32 if element == "f32" else np.float64
    x, expected = (padded(np.array(side, dtype), 8) for side in zip(*EXACT[name], strict=True))
    result = compile_function(name, element, 8)(x)
    right = same(result, expected)[: len(EXACT[name])]
    assert right.all(), [(a, b) for a, b, fine in zip(x, result, right, strict=False) if not fine]


@pytest.mark.parametrize("element", ["f32", "f64"])
def test_pow_edges(element: str) -> None:
    """IEEE 754-2019 section 9.2.1 (the cases of C's annex F)."""
    dtype = np.float32 if element == "f32" else np.float64
    x, y, expected = (padded(np.array(side, dtype), 8) for side in zip(*POWERS, strict=True))
    result = compile_function("pow", element, 8)(x, y)
    right = same(result, expected)[: len(POWERS)]
    assert right.all(), [(a, b, c) for a, b, c, fine in zip(x, y, result, right, strict=False) if not fine]


@pytest.mark.parametrize("element", ["f32", "f64"])
def test_atan2_quadrants_and_zeros(element: str) -> None:
    dtype = np.float32 if element == "f32" else np.float64
    values = np.array([0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e-30, -2.5], dtype)
    y, x = (padded(np.ascontiguousarray(side.ravel()), 8) for side in np.meshgrid(values, values))
    result, expected = compile_function("atan2", element, 8)(y, x), np.arctan2(y, x)
    near = np.abs(result - expected) <= 2 * np.spacing(np.abs(expected))
    assert ((np.isnan(result) & np.isnan(expected)) | near).all()
    assert (np.isnan(result) | (np.signbit(result) == np.signbit(y))).all()


@pytest.mark.parametrize("name", sorted(ARITY))
def test_two_arguments_within_two_units(name: str) -> None:
    random = np.random.default_rng(7)
    patterns = random.integers(0, 1 << 32, (2, 1 << 17), dtype=np.uint32).view(np.float32)
    moderate = (random.normal(size=(2, 1 << 17)) * [[4.0], [25.0]]).astype(np.float32)
    first, second = (np.ascontiguousarray(side) for side in np.concatenate([patterns, moderate], axis=1))
    result = compile_function(name, "f32", 16)(first, second)
    errors = ulp_errors(result, truth(name, first, second))
    worst = int(np.argmax(errors))
    assert errors[worst] <= 2.0, (first[worst], second[worst], result[worst])


@pytest.mark.parametrize("name", sorted(RANGES))
def test_double_precision_within_two_units(name: str) -> None:
    """Against mpmath at 120 bits: a plain range, and tiny or large magnitudes where the function has them."""
    low, high = RANGES[name]
    random = np.random.default_rng(11)
    powers = 10.0 ** random.uniform(-310, 15, 400) * random.choice([-1, 1], 400)
    x = np.concatenate([random.uniform(low, high, 400), powers[(powers > low) & (powers < high)]])
    if name in ("sin", "cos", "tan", "atan", "asinh"):
        x = np.concatenate([x, powers])
    x = x[: x.size // 8 * 8]
    result = compile_function(name, "f64", 8)(x)
    exact = SPELLED.get(name) or getattr(mpmath, name)
    with mpmath.workprec(120):
        for argument, value in zip(x.tolist(), result.tolist(), strict=True):
            true = exact(mpmath.mpf(argument))
            assert abs(mpmath.mpf(value) - true) <= 2 * math.ulp(float(true)), (argument, value, float(true))


@pytest.mark.parametrize("name", sorted(HARD_POINTS))
def test_double_precision_at_hard_points(name: str) -> None:
    """Uniform samples miss these: erfinv was 8 units off next to 1 while every uniform sample was within 2."""
    offsets = 2.0 ** np.arange(-52.0, -3.0)
    x = np.concatenate([c + side * offsets * max(abs(c), 1) for c in HARD_POINTS[name] for side in (1, -1)])
    result = compile_function(name, "f64", 0)(x)
    exact = SPELLED.get(name) or getattr(mpmath, name)
    tried = 0
    with mpmath.workprec(200):
        for argument, value in zip(x.tolist(), result.tolist(), strict=True):
            if not math.isfinite(value):
                continue  # outside the domain, or at its end: test_exact_values has those
            true = exact(mpmath.mpf(argument))
            assert abs(mpmath.mpf(value) - true) <= 2 * math.ulp(float(true)), (argument, value, float(true))
            tried += 1
    assert tried >= offsets.size


@pytest.mark.parametrize("name", ["exp", "tanh", "sin", "pow", "erfc", "log1p"])
def test_lanes_do_not_matter(name: str) -> None:
    """Scalar code and vectors of any length give the same bits, one machine word or many."""
    random = np.random.default_rng(5)
    inputs = [(random.normal(size=64) * 30).astype(np.float32) for _ in range(ARITY.get(name, 1))]
    inputs[0][5], inputs[0][6] = 1e30, -0.0
    results = [compile_function(name, "f32", lanes)(*inputs) for lanes in (0, 4, 16, 32)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_half_precision_is_refused(name: str) -> None:
    e = Emitter()
    with pytest.raises(TypeError, match="convert first"), e.func("f", [("args", "ptr")]) as (args,):
        x = e.load(args, 0, "bf16", 8)
        TABLE[name](e, *[x] * ARITY.get(name, 1))
