"""Quantised ONNX models of one layer against ONNX Runtime: products of bytes a second, and where results differ.

    python -m tests.bench.quantized [--only 'qdq*'] [--threads 1,2] [--rounds 5]

Each case is a layer of a transformer or of ResNet-50 as ONNX writes it: QLinear operators, QDQ (bytes in and out, float32
between), or dynamic quantisation. Both systems get the same file and NumPy arrays, in turns, bursts as in `contractions`.
`different` counts results that are not equal to ONNX Runtime's: in QDQ a rounding may fall the other way, then by one quantum.
The peak is that of four products in each float32 lane of a multiply-add.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bench import harness
from tests.bench.contractions import bursts, path_of, thread_counts

Layer = tuple[list[onnx.NodeProto], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model of one input x, and how many operations its products are."""

    model: onnx.ModelProto
    x: np.ndarray
    operations: int


def made(nodes: list[onnx.NodeProto], constants: dict[str, Any], x: np.ndarray, operations: int) -> Case:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", kind, x.shape)], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8 if x.dtype == np.uint8 else TensorProto.FLOAT
    return Case(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), x, operations)


def numbers(*shape: int, dtype: type = np.int8) -> np.ndarray:
    least = -127 if dtype is np.int8 else 0
    return np.random.default_rng(sum(shape)).integers(least, least + 255, shape).astype(dtype)


def through(source: str, target: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    """Quantised and back."""
    quantize = helper.make_node("QuantizeLinear", [source, scale, zero], [f"{target}_q"])
    return [quantize, helper.make_node("DequantizeLinear", [f"{target}_q", scale, zero], [target])]


def scales(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).uniform(0.005, 0.015, channels).astype(np.float32)


COMMON = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.4)}


def qlinear_matmul(rows: int, columns: int, inner: int) -> Case:
    node = helper.make_node("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "ys", "xz"], ["y"])
    constants = COMMON | {"w": numbers(inner, columns), "ws": np.float32(0.01), "wz": np.int8(0)}
    return made([node], constants, numbers(rows, inner, dtype=np.uint8), 2 * rows * columns * inner)


def qdq_matmul(rows: int, columns: int, inner: int) -> Case:
    nodes = [
        *through("x", "xd", "xs", "xz"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        *through("a", "y", "ys", "xz"),
    ]
    w = {"w": numbers(inner, columns), "ws": scales(columns), "wz": np.zeros(columns, np.int8), "b": scales(columns)}
    x = np.random.default_rng(0).standard_normal((rows, inner)).astype(np.float32)
    return made(nodes, COMMON | w, x, 2 * rows * columns * inner)


def dynamic_matmul(rows: int, columns: int, inner: int) -> Case:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["y"]),
    ]
    x = np.random.default_rng(0).standard_normal((rows, inner)).astype(np.float32)
    w = {"w": numbers(inner, columns, dtype=np.uint8), "ws": np.float32(0.01), "wz": np.uint8(128)}
    return made(nodes, w, x, 2 * rows * columns * inner)


def image(channels: int, filters: int, taps: int, step: int, side: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(attributes, constants, operations) of a convolution."""
    constants = COMMON | {"w": numbers(filters, channels, taps, taps), "ws": scales(filters), "wz": np.zeros(filters, np.int8)}
    constants |= {"b": np.arange(filters, dtype=np.int32), "bs": scales(filters) * np.float32(0.02)}
    out = (side + 2 * (taps // 2) - taps) // step + 1
    return {"pads": [taps // 2] * 4, "strides": [step] * 2}, constants, 2 * out * out * channels * filters * taps * taps


def qlinear_conv(channels: int, filters: int, taps: int, step: int, side: int) -> Case:
    attributes, constants, operations = image(channels, filters, taps, step, side)
    node = helper.make_node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "xz", "b"], ["y"], **attributes)
    constants.pop("bs")
    return made([node], constants, numbers(1, channels, side, side, dtype=np.uint8), operations)


def qdq_conv(channels: int, filters: int, taps: int, step: int, side: int) -> Case:
    attributes, constants, operations = image(channels, filters, taps, step, side)
    nodes = [
        *through("x", "xd", "xs", "xz"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], **attributes),
        *through("c", "y", "ys", "xz"),
    ]
    x = np.random.default_rng(0).standard_normal((1, channels, side, side)).astype(np.float32)
    return made(nodes, constants, x, operations)


MATRICES = [
    (128, 768, 768),
    (128, 3072, 768),
    (128, 768, 3072),
    (197, 768, 768),
    (1, 4096, 4096),
    (8, 4096, 4096),
    (127, 515, 333),
]
IMAGES = [(64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 64, 1, 1, 56), (256, 256, 3, 2, 28), (512, 512, 3, 1, 7)]
CASES: dict[str, Callable[[], Case]] = {
    **{
        f"{name}-{'x'.join(map(str, size))}": lambda make=make, size=size: make(*size)
        for name, make in (("qlinear", qlinear_matmul), ("qdq", qdq_matmul), ("dynamic", dynamic_matmul))
        for size in MATRICES
    },
    **{
        f"{name}-{i}-{o}-{k}x{k}s{s}@{side}": lambda make=make, size=(i, o, k, s, side): make(*size)
        for name, make in (("qlinear-conv", qlinear_conv), ("qdq-conv", qdq_conv))
        for i, o, k, s, side in IMAGES
    },
}


def measure(name: str, threads: int, rounds: int, peak: float) -> list[str]:
    """A row of the table."""
    import onnxruntime
    import torch

    import dlcompiler

    case = CASES[name]()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(case.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    dlcompiler.reset()
    ours = dlcompiler.compile(case.model)
    torch.set_num_threads(threads)
    got, expected = np.asarray(ours(case.x)), session.run(None, {"x": case.x})[0]
    seconds = bursts({"ours": lambda: ours(case.x), "theirs": lambda: session.run(None, {"x": case.x})}, rounds)
    speed, other = (case.operations / seconds[system] for system in ("ours", "theirs"))
    # what is scaled only is compared as floats are
    close = np.isclose(got.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))
    return [
        name, path_of(ours.program), f"{speed / 1e9:.0f}", f"{100 * speed / peak:.0f} %", f"{other / 1e9:.0f}",
        harness.ratio(speed / other), f"{np.count_nonzero(~close)} of {close.size}",
    ]  # fmt: skip


def main() -> int:
    """Prints a table for each number of threads."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--threads", type=thread_counts, default=[1, 2], help="comma-separated (default 1,2)")
    arguments = parser.parse_args()
    import torch

    from tests.bench import machine_peak

    harness.print_machine("/".join(map(str, arguments.threads)))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        peak = 4 * machine_peak.multiply_add_peak(threads)
        rows = [measure(name, threads, arguments.rounds, peak) for name in harness.chosen(CASES, arguments.only)]
        print(f"{threads} thread{'s' * (threads > 1)}, four times the multiply-add peak: {peak / 1e9:.0f} GOP/s\n")
        header = ["layer", "path", "GOP/s", "of peak", "onnxruntime GOP/s", "ours / onnxruntime", "different"]
        print(harness.table(header, rows) + "\n")
        ratios = [float(row[5]) for row in rows]
        print(f"geomean of ratios {harness.ratio(harness.geomean(ratios))}, least {min(ratios):.2f}\n", flush=True)
    return 0


if __name__ == "__main__":
    harness.keep_memory()
    sys.exit(main())
