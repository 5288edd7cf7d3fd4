"""What ops mean, against torch: every scalar operation on values that matter, and composites, reductions and contractions."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import evaluate_op, interpret_graph
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.scalar import SCALARS, apply_scalar
from dlcompiler.ir.types import DTYPES, DType, TensorType, bf16, boolean, dtype_of, f16, f32, f64, i8, i32, i64, u8

from dlcompiler.frontends.fx_random import philox
from tests.samples import samples

FLOAT_VALUES = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -7.25, 0.1, -0.9, 0.99, 1e-7, -1e-7, 30.0, -30.0, 88.0, 100.0, -100.0,
    1e10, 1e-40, math.pi, math.inf, -math.inf, math.nan,
)  # fmt: skip
INTEGER_VALUES = (0, 1, -1, 2, 3, -3, 7, -8, 100, 127, -128)
SAME_NAME = """exp exp2 expm1 log log2 log10 log1p sqrt sin cos tan sinh cosh tanh floor ceil trunc asin acos atan asinh acosh
atanh round rsqrt sigmoid erf erfc erfinv lgamma digamma isnan isinf isfinite signbit neg abs sign bitwise_not add sub mul
remainder fmod pow atan2 hypot copysign maximum minimum bitwise_and bitwise_or bitwise_xor eq ne lt le gt ge where""".split()
TORCH = {name: getattr(torch, name) for name in SAME_NAME}
TORCH |= {
    "div": torch.true_divide,
    "floor_div": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "trunc_div": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "shift_left": torch.bitwise_left_shift,
    "shift_right": torch.bitwise_right_shift,
    "philox": philox,
}
QUOTIENTS = ("floor_div", "trunc_div", "remainder", "fmod")
# how far torch itself may be off
LOOSE = {"digamma": 2e-5, "lgamma": 5e-6, "erfinv": 5e-6, "tan": 5e-6, "erfc": 5e-6, "pow": 5e-6}


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def assert_near(actual: np.ndarray, expected: torch.Tensor, tolerance: float, what: str) -> None:
    wanted = to_numpy(expected)
    assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape), what
    if actual.dtype.kind in "iub":
        np.testing.assert_array_equal(actual, wanted, what)
        return
    a, b = actual.astype(np.float64), wanted.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * 1e-3, err_msg=what)


def values(dtype: DType) -> np.ndarray:
    if dtype is boolean:
        return np.array([True, False])
    if dtype.is_float:
        with np.errstate(all="ignore"):
            return np.array(FLOAT_VALUES).astype(dtype.numpy)
    return np.array(INTEGER_VALUES).astype(dtype.numpy) if dtype.is_signed else np.abs(INTEGER_VALUES).astype(dtype.numpy)


def test_every_scalar_is_compared():
    assert set(TORCH) == set(SCALARS)


@pytest.mark.parametrize("name", SCALARS)
def comparable(name: str, dtype: DType, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Without what torch refuses, leaves open or gets wrong."""
    if name in QUOTIENTS:
        b = operands[1]
        # eager raises where an integer divides by 0; it divides by a denormal number as by 0
        keep = (np.isnan(b) | (np.abs(b) > 1e-30) | (b == 0)) if dtype.is_float else b != 0
    elif name.startswith("shift"):
        keep = (operands[1] >= 0) & (operands[1] < dtype.bits)
    else:
        return operands
    return [x[keep] for x in operands]


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_mean_what_torch_means(name):
    scalar = SCALARS[name]
    for dtype in (f32, f64, f16, bf16, i64, i32, i8, u8, boolean):
        # torch has no sign or shift of bools, and rounds a narrow quotient before it cuts its fraction off
        skipped = {boolean} if name == "sign" or name.startswith("shift") else {f16, bf16} if name in QUOTIENTS else set()
        if not scalar.accepts(dtype) or dtype in skipped:
            continue
        each = values(dtype)
        operands = list(map(np.ravel, np.meshgrid(*[each] * min(scalar.arity, 2))))
        if name == "where":
            operands.insert(0, np.arange(operands[0].size) % 2 == 0)
        if name == "philox":
            operands.append(operands[0] * 0x123456789)
        operands = comparable(name, dtype, operands)
        actual = apply_scalar(name, *operands)
        try:
            expected = TORCH[name](*map(to_torch, operands))
        except (NotImplementedError, RuntimeError) as error:
            assert "not implemented" in str(error) or "does not support" in str(error), error
            continue
        tolerance = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}.get(actual.dtype.name, 0)
        assert_near(actual, expected, max(tolerance, LOOSE.get(name, 0) if dtype is f32 else 0), f"{name} of {dtype}")


def test_integer_division_by_zero_is_zero():
    a, b = np.array([5, -5], np.int32), np.zeros(2, np.int32)
    for name in QUOTIENTS:
        assert apply_scalar(name, a, b).tolist() == [0, 0]


def check_samples(name, reference, tolerance=1e-5, takes=lambda sample: True):
    """`reference(*operands, **attributes)` in torch, on every sample of the op that it takes."""
    count = 0
    for sample in samples(name):
        if not takes(sample):
            continue
        count += 1
        actual = evaluate_op(lookup(name), sample.inputs, sample.attributes)
        expected = reference(*map(to_torch, sample.inputs), **sample.attributes)
        narrow = {"float16": 4e-3, "bfloat16": 3e-2, "float64": 1e-9}.get(sample.inputs[0].dtype.name, tolerance)
        for a, e in zip(*(x if isinstance(x, tuple) else (x,) for x in (actual, expected))):
            largest = float(np.nanmax(np.abs(np.where(np.isfinite(a.astype(float)), a.astype(float), 0)), initial=1))
            wanted = to_numpy(e)
            assert (a.dtype, a.shape) == (wanted.dtype, wanted.shape), sample
            np.testing.assert_allclose(
                a.astype(np.float64), wanted.astype(np.float64), rtol=narrow, atol=narrow * largest, err_msg=str(sample)
            )
    assert count


ACTIVATIONS = {
    "relu": F.relu,
    "clamp": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "gelu": F.gelu,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "elu": lambda x, alpha=1.0, scale=1.0, input_scale=1.0: torch.ops.aten.elu(x, alpha, scale, input_scale),
    "softplus": F.softplus,
    "mish": F.mish,
    "reciprocal": torch.reciprocal,
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
    "mean": lambda x, axes, keepdims=False: torch.mean(x, axes, keepdims),
    "variance": lambda x, axes, keepdims=False, correction=0: torch.var(x, axes, correction=correction, keepdim=keepdims),
    "logsumexp": lambda x, axes, keepdims=False: torch.logsumexp(x, axes, keepdims),
    "layer_norm": lambda x, w=None, b=None, *, rank, epsilon: F.layer_norm(x, x.shape[-rank:], w, b, epsilon),
    "rms_norm": lambda x, w=None, *, rank, epsilon: F.rms_norm(x, x.shape[-rank:], w, epsilon),
    "group_norm": lambda x, w=None, b=None, *, groups, epsilon: F.group_norm(x, groups, w, b, epsilon),
    "batch_norm": lambda x, w, b, mean, var, *, epsilon: F.batch_norm(x, mean, var, w, b, eps=epsilon),
    "argmax": lambda x, axes, keepdims=False: torch.argmax(x, axes[0], keepdims),
    "argmin": lambda x, axes, keepdims=False: torch.argmin(x, axes[0], keepdims),
    "cast": lambda x, dtype: x.to(getattr(torch, DTYPES[dtype].numpy.name)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_composites_mean_what_torch_means(name):
    def takes(sample) -> bool:
        x = sample.inputs[0]
        if name == "gelu":  # torch gives NaN for infinity
            return not np.isinf(x).any()
        return bool(x.size) or name not in ("variance", "batch_norm", "logsumexp", "mean")  # eager refuses, or warns of, nothing

    check_samples(name, ACTIVATIONS[name], takes=takes)


REDUCTIONS = {
    "reduce_sum": lambda x, axes, keepdims=False: torch.sum(x, axes, keepdims).to(x.dtype) if axes else x,
    "reduce_max": lambda x, axes, keepdims=False: torch.amax(x, axes, keepdims) if axes else x,
    "reduce_min": lambda x, axes, keepdims=False: torch.amin(x, axes, keepdims) if axes else x,
    "reduce_any": lambda x, axes, keepdims=False: torch.any(x, axes, keepdims) if axes else x,
    "reduce_all": lambda x, axes, keepdims=False: torch.all(x, axes, keepdims) if axes else x,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_mean_what_torch_means(name):
    check_samples(name, REDUCTIONS[name], takes=lambda s: s.inputs[0].size or name in ("reduce_sum", "reduce_any", "reduce_all"))


def test_an_empty_maximum_is_the_lowest_number():
    empty = np.zeros((2, 0), np.float32)
    assert evaluate_op(lookup("reduce_max"), [empty], {"axes": (1,)}).tolist() == [-np.inf] * 2
    assert evaluate_op(lookup("reduce_min"), [empty.astype(np.int8)], {"axes": (1,)}).tolist() == [127] * 2


def pool(function, **fixed):
    def reference(x, kernel, strides, padding, dilations, **rest):
        return function[len(kernel) - 1](
            x, kernel, strides, padding, **({"dilation": dilations} if not rest else {}), **fixed | rest
        )

    return reference


def torch_pools(sample) -> bool:
    """Paddings that torch can say: the same before and behind, at most half the kernel."""
    attributes = sample.attributes
    plain = not {"ceil_extra", "padding_high"} & set(attributes)
    return plain and all(2 * p <= k for p, k in zip(attributes["padding"], attributes["kernel"]))


def test_pools_mean_what_torch_means():
    def floats(sample):
        return torch_pools(sample) and sample.inputs[0].size and sample.inputs[0].dtype.kind in "fV"

    check_samples("max_pool", pool([F.max_pool1d, F.max_pool2d, F.max_pool3d]), takes=floats)

    def average(x, kernel, strides, padding, dilations, count_padding, divisor=None):
        if len(kernel) == 1:
            return F.avg_pool1d(x, kernel, strides, padding, False, count_padding)
        function = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
        return function(x, kernel, strides, padding, False, count_padding, divisor)

    def sayable(sample) -> bool:
        dimensions = len(sample.attributes["kernel"])
        if dimensions == 3 and sample.inputs[0].dtype == np.float16:
            return False
        return floats(sample) and (dimensions > 1 or "divisor" not in sample.attributes)

    check_samples("average_pool", average, takes=sayable)


def test_ceil_mode_of_pools():
    """`ceil_extra` is how a frontend says ceil_mode: the extra is never counted."""
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 5)).astype(np.float32)
    common = {"kernel": (3, 2), "strides": (2, 2), "padding": (1, 1), "dilations": (1, 1), "ceil_extra": (1, 0)}
    for counting in (True, False):
        expected = F.avg_pool2d(to_torch(x), (3, 2), (2, 2), (1, 1), True, counting)
        actual = evaluate_op(lookup("average_pool"), [x], common | {"count_padding": counting})
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-5)
    actual = evaluate_op(lookup("max_pool"), [x], common)
    np.testing.assert_array_equal(actual, F.max_pool2d(to_torch(x), (3, 2), (2, 2), (1, 1), 1, True).numpy())


def convolution(x, weight, bias=None, *, strides, padding, dilations, output_padding, groups, transposed):
    return torch.convolution(x, weight, bias, strides, padding, dilations, transposed, output_padding, groups)


def attention(q, k, v, mask=None, *, scale, causal):
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)


def lstm(x, h, c, *weights, layers, bidirectional, has_biases, batch_first):
    return torch.lstm(x, (h, c), list(weights), has_biases, layers, 0.0, False, bidirectional, batch_first)


def gru(x, h, *weights, layers, bidirectional, has_biases, batch_first):
    return torch.gru(x, h, list(weights), has_biases, layers, 0.0, False, bidirectional, batch_first)


def rnn(x, h, *weights, activation, **settings):
    function = torch.rnn_tanh if activation == "tanh" else torch.rnn_relu
    given = (settings[k] for k in ("bidirectional", "batch_first"))
    return function(x, h, list(weights), settings["has_biases"], settings["layers"], 0.0, False, *given)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("matmul", torch.matmul),
        ("linear", F.linear),
        ("convolution", convolution),
        ("attention", attention),
        ("lstm", lstm),
        ("gru", gru),
        ("rnn", rnn),
    ],
)
def test_contractions_mean_what_torch_means(name, reference):
    check_samples(name, reference, takes=lambda s: all(x.dtype.kind in "fVb" and x.size for x in s.inputs))


def scan(x, *, axis, kind, exclusive, reverse):
    """Not of narrow integers, which torch's scans widen, and the neutral element put in front by hand."""
    fill = {"add": 0, "mul": 1, "max": -math.inf, "logaddexp": -math.inf, "min": math.inf}[kind]
    x = x.flip(axis) if reverse else x
    if exclusive:
        x = torch.cat([torch.full_like(x.narrow(axis, 0, 1), fill), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    first = {"max": lambda x, d: torch.cummax(x, d)[0], "min": lambda x, d: torch.cummin(x, d)[0]}
    functions = {"add": torch.cumsum, "mul": torch.cumprod, "logaddexp": torch.logcumsumexp, **first}
    result = functions[kind](x, axis)
    return result.flip(axis) if reverse else result


def scatter(x, updates, indices, *, axis, kind, shape):
    """An index outside goes to a row that is cut off again."""
    longer = torch.cat([x.expand(shape), torch.zeros_like(x.expand(shape).narrow(axis, 0, 1))], axis)
    size = shape[axis]
    at = torch.where((indices >= 0) & (indices < size), indices, size)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return longer.scatter_reduce(axis, at, updates, names[kind]).narrow(axis, 0, size)


def test_scans_orders_and_scatters_mean_what_torch_means():
    check_samples("scan", scan, takes=lambda s: s.inputs[0].dtype.kind in "fV" and s.inputs[0].size)
    for name, function in (("running_extreme", {True: torch.cummax, False: torch.cummin}),):
        check_samples(name, lambda x, *, axis, largest, f=function: f[largest](x, axis), takes=lambda s: s.inputs[0].size)
    check_samples("sort", lambda x, *, descending: torch.sort(x, stable=True, dim=-1, descending=descending))
    check_samples("topk", lambda x, *, k, largest: tuple(r[..., :k] for r in torch.sort(x, stable=True, descending=largest)))
    check_samples("scatter", scatter, takes=lambda s: s.attributes["kind"] != "set" and s.inputs[0].dtype != bool)


def test_views_mean_what_numpy_means():
    """The ops whose meaning is not one NumPy call: slice_update, window, index, gather."""
    x = np.arange(35).reshape(7, 5)
    y = -np.arange(6).reshape(3, 2)
    updated = evaluate_op(lookup("slice_update"), [x, y], {"starts": (1, 0), "steps": (2, 3)})
    wanted = x.copy()
    wanted[1:6:2, 0:4:3] = y
    np.testing.assert_array_equal(updated, wanted)
    windows = evaluate_op(lookup("window"), [x], {"axes": (0,), "sizes": (3,), "strides": (2,), "dilations": (2,)})
    assert windows.shape == (2, 5, 3) and windows[1, 4].tolist() == [x[2, 4], x[4, 4], x[6, 4]]
    indices = np.array([[0, 9], [-3, 6]])  # outside is clamped
    np.testing.assert_array_equal(evaluate_op(lookup("index"), [x, indices], {"axes": (0,)}), x[[[0, 6], [0, 6]]])
    at = np.array([[0, 4, 2]] * 7)
    expected = torch.gather(torch.from_numpy(x), 1, torch.from_numpy(at)).numpy()
    np.testing.assert_array_equal(evaluate_op(lookup("gather"), [x, at], {"axis": 1}), expected)


def test_sizes_are_numbers_of_the_call():
    builder = Builder()
    size = symbol("N")
    x = builder.input("x", TensorType(f32, (size, 2)))
    graph = builder.finish([builder.iota(size=2 * size), builder.dim(value=size + 1), builder.mean(x, axes=(0,))])
    iota, dim, mean = interpret_graph(graph, [np.ones((3, 2), np.float32)])
    assert iota.tolist() == list(range(6)) and dim == 4 and mean.tolist() == [1, 1] and dtype_of(iota) is i64
