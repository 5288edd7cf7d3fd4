"""ONNX operators against the reference evaluator, on random shapes and attributes, with fixed and with symbolic sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_checks import by_onnxruntime, check_node, interpret, model_of

few = settings(max_examples=10, derandomize=True, deadline=None)
shapes = st.lists(st.integers(0, 4), min_size=0, max_size=4).map(tuple)
filled = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**16)


def normal(shape, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) * 3
    return np.asarray(values).astype(dtype)


def whole(shape, seed: int = 0, low: int = -9, high: int = 9, dtype: str = "int64") -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).integers(low, high + 1, shape)).astype(dtype)


# -- elementwise -------------------------------------------------------------------------------------------------------------

ANY_FLOAT = (
    "Abs Neg Ceil Floor Round Sign Exp Sigmoid Tanh Sin Cos Erf Relu Elu Selu Celu LeakyRelu ThresholdedRelu Softplus Softsign "
    "HardSigmoid HardSwish Mish Gelu Shrink Identity IsNaN IsInf Atan Sinh Asinh Reciprocal"
).split()


@pytest.mark.parametrize("op", ANY_FLOAT)
def test_unary(op):
    x = normal((3, 5), 1)
    x[0, :3] = (0.0, 1.0, -1.0)
    if op == "Reciprocal":
        x[0, 0] = 2
    check_node(op, {"x": x})


@pytest.mark.parametrize(
    "op, low, high",
    [("Log", 0.1, 5), ("Sqrt", 0, 5), ("Acos", -1, 1), ("Asin", -1, 1), ("Acosh", 1, 5), ("Atanh", -0.9, 0.9), ("Tan", -1, 1)],
)
def test_unary_on_its_domain(op, low, high):
    check_node(op, {"x": np.linspace(low, high, 12, dtype=np.float32).reshape(3, 4)})


@pytest.mark.parametrize("op", "Add Sub Mul Div Equal Less LessOrEqual Greater GreaterOrEqual Max Min Pow".split())
@few
@given(shape=shapes, flat=st.integers(0, 15), seed=seeds)
def test_binary_broadcasts(op, shape, flat, seed):
    other = tuple(1 if flat >> d & 1 else size for d, size in enumerate(shape))[flat % (len(shape) + 1) :]
    a, b = np.abs(normal(shape, seed)) + 0.5, normal(other, seed + 1)
    check_node(op, {"a": a, "b": b})
    integers = {"a": whole(shape, seed), "b": whole(other, seed + 1, 1)}
    if op != "Pow":
        check_node(op, integers)


@pytest.mark.parametrize("fmod", [0, 1])
@few
@given(seed=seeds)
def test_mod_of_integers(fmod, seed):
    divisor = whole((6,), seed + 1, 1) * np.where(whole((6,), seed, 0, 1) == 1, -1, 1)
    check_node("Mod", {"a": whole((6,), seed), "b": divisor}, fmod=fmod)
    check_node("Mod", {"a": normal((6,), seed), "b": divisor.astype(np.float32)}, fmod=1)


def test_integer_division_is_towards_zero():
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    check_node("Div", {"a": a, "b": b}, expected=[np.array([3, -3, -3, 3])])


@pytest.mark.parametrize(
    "base, exponent", [("float32", "int64"), ("int64", "float32"), ("int32", "int32"), ("float16", "float32")]
)
def test_power_of_two_dtypes(base, exponent):
    a, b = np.array([1, 2, 3, 4]).astype(base), np.array([0, 1, 2, 3]).astype(exponent)
    check_node("Pow", {"a": a, "b": b}, expected=[np.array([1, 2, 9, 64]).astype(base)])


@pytest.mark.parametrize("source", "float32 float64 float16 int32 int64 uint8 int8 bool".split())
@pytest.mark.parametrize("to", [1, 2, 3, 6, 7, 9, 10, 11])
def test_cast(source, to):
    x = np.array([0, 1, 5, 100]).astype(source)
    check_node("Cast", {"x": x}, to=to)


def test_clip_before_and_since_bounds_are_inputs():
    x = normal((4, 3))
    check_node("Clip", {"x": x}, opset=6, min=-1.0, max=0.5, expected=[np.clip(x, -1, 0.5)])
    check_node("Clip", {"x": x}, {"high": np.float32(0.5)}, order=("x", "", "high"))


@few
@given(
    shape=filled, seed=seeds, reverse=st.integers(0, 1), exclusive=st.integers(0, 1), op=st.sampled_from(["CumSum", "CumProd"])
)
def test_scans(shape, seed, reverse, exclusive, op):
    axis = seed % len(shape)
    opset = 26 if op == "CumProd" else 14
    check_node(op, {"x": normal(shape, seed)}, {"axis": np.int64(axis)}, opset=opset, reverse=reverse, exclusive=exclusive)


# -- reductions --------------------------------------------------------------------------------------------------------------

REDUCTIONS = "Sum Mean Max Min Prod SumSquare L1 L2 LogSumExp".split()


@pytest.mark.parametrize("op", REDUCTIONS)
@few
@given(shape=filled, chosen=st.integers(0, 15), keepdims=st.integers(0, 1), negative=st.booleans(), seed=seeds)
def test_reductions_in_both_forms(op, shape, chosen, keepdims, negative, seed):
    x = normal(shape, seed)
    rank = len(shape)
    axes = [d - rank if negative else d for d in range(rank) if chosen >> d & 1]
    given_axes = {"axes": np.array(axes, dtype=np.int64)} if axes else {}
    check_node(f"Reduce{op}", {"x": x}, given_axes, opset=18, keepdims=keepdims)
    old = 11 if op != "Sum" else 11
    numpy_axes = tuple(axes) if axes else None
    if op in ("Sum", "Mean", "Max", "Min", "Prod"):
        want = np.asarray(getattr(np, op.lower())(x, axis=numpy_axes, keepdims=bool(keepdims)), dtype=np.float32)
        check_node(f"Reduce{op}", {"x": x}, opset=old, keepdims=keepdims, expected=[want], **({"axes": axes} if axes else {}))


def test_reduction_of_no_axes_can_be_the_input():
    x = normal((2, 3))
    empty = {"axes": np.zeros(0, np.int64)}
    check_node("ReduceSum", {"x": x}, empty, noop_with_empty_axes=1, expected=[x])
    check_node("ReduceSum", {"x": x}, empty, keepdims=0, expected=[np.asarray(x.sum(dtype=np.float32))])


@few
@given(shape=filled, seed=seeds, keepdims=st.integers(0, 1), last=st.integers(0, 1), op=st.sampled_from(["ArgMax", "ArgMin"]))
def test_arg_extremes(shape, seed, keepdims, last, op):
    x = whole(shape, seed, 0, 2).astype(np.float32)  # with ties
    check_node(op, {"x": x}, axis=seed % len(shape), keepdims=keepdims, select_last_index=last)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@few
@given(shape=filled, seed=seeds)
def test_softmax_flattens_before_opset_13(op, shape, seed):
    x = normal(shape, seed)
    axis = seed % len(shape)
    check_node(op, {"x": x}, axis=axis)
    rows = x.reshape(int(np.prod(shape[:axis])), -1).astype(np.float64)
    powers = np.exp(rows - rows.max(1, keepdims=True))
    soft = powers / powers.sum(1, keepdims=True)
    hard = np.zeros_like(rows)
    hard[np.arange(len(rows)), rows.argmax(1)] = 1
    want = {"Softmax": soft, "LogSoftmax": np.log(soft), "Hardmax": hard}[op]
    check_node(op, {"x": x}, axis=axis, opset=11, expected=[want.reshape(shape).astype(np.float32)])


# -- shapes ------------------------------------------------------------------------------------------------------------------


@few
@given(shape=filled, seed=seeds)
def test_reshape_keeps_and_infers(shape, seed):
    x = normal(shape, seed)
    kept = seed % len(shape)
    check_node("Reshape", {"x": x}, {"shape": np.array([0] * kept + [-1], dtype=np.int64)})
    check_node("Reshape", {"x": x}, {"shape": np.array([x.size, 1], dtype=np.int64)})
    check_node("Flatten", {"x": x}, axis=kept)


@few
@given(shape=filled, seed=seeds)
def test_transpose_squeeze_unsqueeze(shape, seed):
    x = normal(shape, seed)
    order = np.random.default_rng(seed).permutation(len(shape)).tolist()
    check_node("Transpose", {"x": x}, perm=order)
    place = np.array([seed % (len(shape) + 1)], dtype=np.int64)
    graph = check_node("Unsqueeze", {"x": x}, {"axes": place})
    assert graph.outputs[0].tensor.rank == len(shape) + 1
    check_node("Squeeze", {"x": np.expand_dims(x, int(place[0]))}, {"axes": place})


@few
@given(shape=filled, seed=seeds)
def test_slice(shape, seed):
    """Starts and ends on both sides of the dimension, steps of both signs.

    Against onnxruntime, which clamps as the specification says; the reference evaluator slices as NumPy does.
    """
    random = np.random.default_rng(seed)
    axes = [d for d in range(len(shape)) if random.random() < 0.7] or [0]
    bounds = {
        "starts": random.integers(-6, 7, len(axes)),
        "ends": np.where(random.random(len(axes)) < 0.2, 2**62, random.integers(-6, 7, len(axes))),
        "axes": np.array(axes),
        "steps": random.choice([-3, -2, -1, 1, 2, 3], len(axes)),
    }
    constants = {k: v.astype(np.int64) for k, v in bounds.items()}
    check_node("Slice", {"x": normal(shape, seed)}, constants, oracle=by_onnxruntime)


@few
@given(shape=filled, seed=seeds, mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad(shape, seed, mode):
    random = np.random.default_rng(seed)
    most = [max(size - 1, 0) if mode == "reflect" else 3 for size in shape] * 2
    pads = np.array([random.integers(0, m + 1) for m in most], dtype=np.int64)
    constants = {"pads": pads, "value": np.float32(1.5)} if mode == "constant" else {"pads": pads}
    check_node("Pad", {"x": normal(shape, seed)}, constants, opset=19, mode=mode)


def test_pad_by_a_negative_amount_crops():
    x = normal((3, 5))
    padded = np.pad(x, ((0, 2), (0, 0)))[1:, 1:4]
    check_node("Pad", {"x": x}, {"pads": np.array([-1, -1, 2, -1])}, expected=[padded])


@few
@given(shape=filled, parts=st.integers(1, 3), seed=seeds)
def test_split_and_concat(shape, parts, seed):
    axis = seed % len(shape)
    wide = (*shape[:axis], shape[axis] * parts, *shape[axis + 1 :])
    check_node("Split", {"x": normal(wide, seed)}, outputs=parts, axis=axis, num_outputs=parts)
    sizes = np.random.default_rng(seed).multinomial(shape[axis], [1 / parts] * parts).astype(np.int64)
    check_node("Split", {"x": normal(shape, seed)}, {"split": sizes}, outputs=parts, axis=axis)
    check_node("Concat", {f"x{k}": normal(shape, seed + k) for k in range(parts)}, axis=axis)


@few
@given(shape=filled, seed=seeds)
def test_tile_and_expand(shape, seed):
    random = np.random.default_rng(seed)
    check_node("Tile", {"x": normal(shape, seed)}, {"repeats": random.integers(0, 3, len(shape))})
    target = np.array([2, *(random.choice([1, s]) for s in shape)], dtype=np.int64)
    check_node("Expand", {"x": normal(shape, seed)}, {"shape": target})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    check_node("DepthToSpace", {"x": normal((2, 8, 2, 3))}, blocksize=2, mode=mode)
    check_node("SpaceToDepth", {"x": normal((2, 3, 4, 6))}, blocksize=2)


# -- reading where data says -------------------------------------------------------------------------------------------------


@few
@given(shape=filled, seed=seeds, count=st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_gather(shape, seed, count):
    axis = seed % len(shape)
    size = shape[axis]
    places = whole(count, seed, -size, size - 1)
    check_node("Gather", {"x": normal(shape, seed), "places": places}, axis=axis)
    check_node("Gather", {"x": normal(shape, seed)}, {"places": places}, axis=axis)


@few
@given(shape=filled, seed=seeds)
def test_gather_elements(shape, seed):
    axis = seed % len(shape)
    places = whole(shape, seed, -shape[axis], shape[axis] - 1)
    check_node("GatherElements", {"x": normal(shape, seed), "places": places}, axis=axis)


@few
@given(seed=seeds, batch=st.integers(0, 1), length=st.integers(1, 2))
def test_gather_nd(seed, batch, length):
    shape = (2, 3, 4)
    lead = (2, 2) if batch else (3,)
    places = np.stack([whole(lead, seed + k, 0, shape[batch + k] - 1) for k in range(length)], axis=-1)
    check_node("GatherND", {"x": normal(shape, seed), "places": places}, batch_dims=batch)


@few
@given(shape=filled, seed=seeds, largest=st.integers(0, 1))
def test_first_in_order(shape, seed, largest):
    axis = seed % len(shape)
    k = np.array([1 + seed % shape[axis]])
    check_node("TopK", {"x": normal(shape, seed)}, {"k": k}, outputs=2, axis=axis, largest=largest)


@few
@given(shape=filled, seed=seeds, reduction=st.sampled_from(["none", "add", "mul", "max", "min"]))
def test_scatter_elements(shape, seed, reduction):
    """Each place once where nothing says how two updates combine."""
    axis = seed % len(shape)
    order = np.argsort(normal(shape, seed + 1), axis=axis)
    places = order - shape[axis] * (order % 2) if reduction == "none" else whole(shape, seed, -shape[axis], shape[axis] - 1)
    feeds = {"x": normal(shape, seed), "places": places, "updates": normal(shape, seed + 2)}
    check_node("ScatterElements", feeds, axis=axis, reduction=reduction, opset=18)


@few
@given(seed=seeds, length=st.integers(1, 3), reduction=st.sampled_from(["none", "add", "mul", "max", "min"]))
def test_scatter_nd(seed, length, reduction):
    shape = (5, 4, 3)
    rows = np.random.default_rng(seed).permutation(5)[:3]
    places = np.stack([rows, *(whole((3,), seed + k, 0, shape[k] - 1) for k in range(1, length))], axis=-1)
    feeds = {"x": normal(shape, seed), "places": places, "updates": normal((3, *shape[length:]), seed + 1)}
    check_node("ScatterND", feeds, reduction=reduction, opset=18)


@few
@given(seed=seeds, axis=st.integers(-3, 2))
def test_one_hot(seed, axis):
    places = whole((2, 3), seed, -5, 4)
    check_node("OneHot", {"places": places}, {"depth": np.int64(5), "values": np.array([2, 7], np.float32)}, axis=axis)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-2, 0, 1])
def test_trilu(upper, k):
    check_node("Trilu", {"x": normal((2, 3, 4))}, {"k": np.int64(k)}, upper=upper)


@pytest.mark.parametrize("bounds", [(0, 7, 2), (5, -3, -2), (3, 3, 1), (0.5, 3.0, 0.75)])
def test_range(bounds):
    names = ("start", "limit", "delta")
    dtype = np.int64 if all(isinstance(b, int) for b in bounds) else np.float32
    check_node("Range", {}, dict(zip(names, map(dtype, bounds))))


# -- sums of products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, b", [((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 3, 4), (4,)), ((4,), (4,)), ((2, 1, 3, 4), (5, 4, 2))])
def test_matmul(a, b):
    check_node("MatMul", {"a": normal(a), "b": normal(b, 1)})


@few
@given(seed=seeds, bias=st.sampled_from([None, (), (5,), (1, 5), (3, 1), (3, 5)]))
def test_gemm(seed, bias):
    flags = {"transA": seed & 1, "transB": seed >> 1 & 1, "alpha": [1.0, 0.5][seed >> 2 & 1], "beta": [1.0, 2.0][seed >> 3 & 1]}
    a = normal((4, 3) if flags["transA"] else (3, 4), seed)
    b = normal((5, 4) if flags["transB"] else (4, 5), seed)
    check_node("Gemm", {"a": a, "b": b, **({} if bias is None else {"c": normal(bias, seed)})}, **flags)


@few
@given(
    seed=seeds, spatial=st.integers(1, 2), groups=st.sampled_from([1, 2]), auto=st.sampled_from(["", "SAME_UPPER", "SAME_LOWER"])
)
def test_conv(seed, spatial, groups, auto):
    random = np.random.default_rng(seed)
    kernel = random.integers(1, 4, spatial).tolist()
    geometry = {"strides": random.integers(1, 4, spatial).tolist(), "dilations": random.integers(1, 3, spatial).tolist()}
    if auto:
        geometry |= {"auto_pad": auto, "dilations": [1] * spatial}
    else:
        geometry["pads"] = random.integers(0, 3, 2 * spatial).tolist()
    x = normal((2, 4, *random.integers(6, 9, spatial)), seed)
    weight = {"w": normal((6, 4 // groups, *kernel), seed), "b": normal((6,), seed)}
    check_node("Conv", {"x": x}, weight, group=groups, **geometry)


@few
@given(seed=seeds, groups=st.sampled_from([1, 2]), how=st.sampled_from(["pads", "same", "shape"]))
def test_conv_transpose(seed, groups, how):
    random = np.random.default_rng(seed)
    kernel, strides = random.integers(1, 4, 2).tolist(), random.integers(1, 4, 2).tolist()
    geometry = {"strides": strides, "dilations": random.integers(1, 3, 2).tolist()}
    if how == "pads":
        geometry["pads"] = [int(random.integers(0, 2)) for _ in range(4)]
        geometry["output_padding"] = [int(random.integers(0, s)) for s in strides]
    elif how == "same":
        geometry |= {"auto_pad": ["SAME_UPPER", "SAME_LOWER"][seed & 1], "dilations": [1, 1]}
        assume(all(k >= s for k, s in zip(kernel, strides)))
    else:
        geometry |= {"output_shape": [(4 - 1) * s + 2 for s in strides], "dilations": [2, 2]}
        assume(min(kernel) > 1)
    weight = {"w": normal((4, 3, *kernel), seed), "b": normal((3 * groups,), seed)}
    check_node("ConvTranspose", {"x": normal((2, 4, 4, 4), seed)}, weight, group=groups, oracle=by_onnxruntime, **geometry)


@pytest.mark.parametrize(
    "equation, operands",
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bij,bjk->bki", [(2, 3, 4), (2, 4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("ii->i", [(3, 3)]),
        ("ij->", [(3, 4)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (4, 5)]),
        ("bhqd,bhkd,bkhe->bqhe", [(2, 2, 3, 4), (2, 2, 5, 4), (2, 5, 2, 3)]),
        ("ij,ij", [(3, 4), (3, 4)]),
        ("ba,cb", [(3, 4), (2, 3)]),
    ],
)
def test_einsum(equation, operands):
    feeds = {f"x{k}": normal(shape, k) for k, shape in enumerate(operands)}
    check_node("Einsum", feeds, equation=equation, expected=[np.asarray(np.einsum(equation, *feeds.values()), dtype=np.float32)])


# -- pools and normalisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@few
@given(seed=seeds, spatial=st.integers(1, 2), ceil=st.integers(0, 1))
def test_pools(op, seed, spatial, ceil):
    random = np.random.default_rng(seed)
    kernel = random.integers(2, 4, spatial).tolist()
    attributes = {"kernel_shape": kernel, "strides": random.integers(1, 4, spatial).tolist(), "ceil_mode": ceil}
    attributes["pads"] = [int(random.integers(0, k)) for k in kernel * 2]
    if op == "AveragePool":
        attributes["count_include_pad"] = seed & 1
    check_node(op, {"x": normal((2, 3, *random.integers(5, 9, spatial)), seed)}, oracle=by_onnxruntime, **attributes)


def test_max_pool_places():
    x = normal((2, 2, 6, 5), 3)
    for order in (0, 1):
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "storage_order": order}
        check_node("MaxPool", {"x": x}, outputs=2, **attributes)
    check_node("GlobalAveragePool", {"x": x})
    check_node("GlobalMaxPool", {"x": x})


@few
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=seeds)
def test_normalizations(shape, seed):
    x = normal(tuple(shape), seed)
    channels = {n: np.abs(normal((shape[1],), seed + k)) + 0.5 for k, n in enumerate(("scale", "bias", "mean", "variance"))}
    check_node("BatchNormalization", {"x": x}, channels, opset=15, epsilon=1e-3)
    axis = seed % len(shape)
    last = {n: normal(tuple(shape[axis:]), seed + k) for k, n in enumerate(("scale", "bias"))}
    check_node("LayerNormalization", {"x": x}, last, outputs=3, axis=axis)
    check_node("LRN", {"x": x}, size=1 + seed % 4, alpha=0.1, bias=2.0, expected=[_response(x, 1 + seed % 4)])
    if len(shape) > 2:
        pair = {n: channels[n] for n in ("scale", "bias")}
        check_node("InstanceNormalization", {"x": x}, pair)


def _response(x: np.ndarray, size: int) -> np.ndarray:
    """The formula of the specification, channel by channel."""
    total = np.zeros_like(x, dtype=np.float64)
    for c in range(x.shape[1]):
        low, high = max(0, c - (size - 1) // 2), min(x.shape[1] - 1, c + size // 2)
        total[:, c] = (x[:, low : high + 1].astype(np.float64) ** 2).sum(1)
    return (x / (2.0 + 0.1 / size * total) ** 0.75).astype(np.float32)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_per_group_and_per_channel(opset):
    x = normal((2, 6, 3), 1)
    width = 3 if opset == 18 else 6
    scale, bias = normal((width,), 2), normal((width,), 3)
    grouped = x.reshape(2, 3, 6).astype(np.float64)
    flat = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    repeat = 6 // width
    want = flat.reshape(x.shape) * np.repeat(scale, repeat)[:, None] + np.repeat(bias, repeat)[:, None]
    check_node("GroupNormalization", {"x": x}, {"s": scale, "b": bias}, opset=opset, num_groups=3, expected=[want.astype("f4")])


# -- resize ------------------------------------------------------------------------------------------------------------------

TRANSFORMATIONS = "half_pixel pytorch_half_pixel align_corners asymmetric half_pixel_symmetric".split()


@few
@given(
    seed=seeds,
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    transformation=st.sampled_from(TRANSFORMATIONS),
    rounding=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
)
def test_resize(seed, mode, transformation, rounding):
    random = np.random.default_rng(seed)
    x = normal((1, 2, *random.integers(2, 6, 2)), seed)
    attributes = {"mode": mode, "coordinate_transformation_mode": transformation}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    elif mode == "cubic":
        attributes["exclude_outside"] = seed & 1
    scales = np.array([1, 1, *random.choice([0.5, 0.75, 1.5, 2, 3], 2)], dtype=np.float32)
    check_node("Resize", {"x": x}, {"scales": scales}, order=("x", "", "scales"), opset=19, **attributes)
    sizes = np.array([1, 2, *random.integers(1, 9, 2)], dtype=np.int64)
    check_node("Resize", {"x": x}, {"sizes": sizes}, order=("x", "", "", "sizes"), opset=19, **attributes)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_antialias(mode):
    scales = {"scales": np.array([1, 1, 0.4, 0.6], dtype=np.float32)}
    check_node("Resize", {"x": normal((1, 1, 9, 8))}, scales, order=("x", "", "scales"), opset=19, mode=mode, antialias=1)


# -- recurrent ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("GRU-after", 3), ("RNN", 1), ("RNN-relu", 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("biased", [False, True])
def test_recurrent_layers(op, gates, direction, biased):
    """Against onnxruntime: the reference evaluator knows only the forward direction."""
    op, _, kind = op.partition("-")
    steps, batch, width, hidden = 4, 2, 3, 5
    both = 2 if direction == "bidirectional" else 1
    constants = {"w": normal((both, gates * hidden, width), 1) / 3, "r": normal((both, gates * hidden, hidden), 2) / 3}
    if biased:
        constants["b"] = normal((both, 2 * gates * hidden), 3)
    feeds = {"x": normal((steps, batch, width), 4), "h": normal((both, batch, hidden), 5)}
    order = ["x", "w", "r", "b" if biased else "", "", "h"]
    if op == "LSTM":
        feeds["c"] = normal((both, batch, hidden), 6)
        order.append("c")
    extra = {"after": {"linear_before_reset": 1}, "relu": {"activations": ["Relu"] * both}}.get(kind, {})
    settings = {"hidden_size": hidden, "direction": direction, **extra}
    check_node(op, feeds, constants, outputs=3 if op == "LSTM" else 2, order=order, oracle=by_onnxruntime, **settings)


# -- attention, quantisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [None, "bool", "float32"])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention(causal, masked, heads):
    feeds = {"q": normal((2, heads, 3, 4)), "k": normal((2, 2, 5, 4), 1), "v": normal((2, 2, 5, 6), 2)}
    if masked:
        feeds["mask"] = np.ones((3, 5), bool) if masked == "bool" else normal((3, 5), 3)
        if masked == "bool":
            feeds["mask"][1, 2:4] = False
    check_node("Attention", feeds, opset=23, is_causal=causal)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantize_and_dequantize(dtype):
    x = normal((3, 4), 1)
    scale, zero = np.float32(0.1), np.array(3, dtype=dtype)
    check_node("QuantizeLinear", {"x": x}, {"scale": scale, "zero": zero})
    each = {"scale": np.array([0.1, 0.2, 0.3], np.float32), "zero": np.array([1, 2, 3], dtype=dtype)}
    check_node("QuantizeLinear", {"x": x}, each, axis=0)
    check_node("DequantizeLinear", {"x": whole((3, 4), 1, 0, 100, dtype)}, each, axis=0)


# -- before opset 7 ----------------------------------------------------------------------------------------------------------


def test_old_broadcasting_from_an_axis():
    x, y = normal((2, 3, 4)), normal((3,), 1)
    check_node("Add", {"x": x, "y": y}, opset=6, broadcast=1, axis=1, expected=[x + y[:, None]])
    check_node("Mul", {"x": x, "y": normal((4,), 1)}, opset=6, broadcast=1, expected=[x * normal((4,), 1)])


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 9])
def test_split_of_a_size_known_only_when_called(count, rows):
    names = [f"y{k}" for k in range(count)]
    model = model_of([helper.make_node("Split", ["x"], names, num_outputs=count)], {"x": ("float32", ["N"])}, names)
    x = np.arange(rows, dtype=np.float32)
    part = -(-rows // count)
    for k, found in enumerate(interpret(import_onnx(model), {"x": x})):
        np.testing.assert_array_equal(found, x[k * part : (k + 1) * part if k < count - 1 else rows])
