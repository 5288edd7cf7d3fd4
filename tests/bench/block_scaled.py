"""Products with 4 bit weights (`MatMulNBits`): ours, the same product with float32 weights, and ONNX Runtime, in turns.

    python -m tests.bench.block_scaled [--rows 1 128] [--size 4096] [--rounds 9] [--threads 1]

The same weights also as `DequantizeLinear` in blocks before a `MatMul`: ours, ours with the weight written out as float32 (as
before the pass `block-scaled`), and ONNX Runtime, which rounds activations to 8 bits there.

Prints for each case the median time of a call in ms and its ratio to ONNX Runtime's, and the largest error relative to the
largest result in float64. Blocks of 32, symmetric and with zero points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK, BITS = 32, 4


def model_bytes(columns: int, inner: int, rows: int, weights: dict[str, np.ndarray], accuracy: int) -> Any:
    """A model of one `MatMulNBits`, or of one `MatMul` if the only weight is `w`."""
    from onnx import helper, numpy_helper

    if list(weights) == ["w"]:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        node = helper.make_node(
            "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", K=inner, N=columns, bits=BITS, block_size=BLOCK,
            accuracy_level=accuracy,
        )  # fmt: skip
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", 1, (rows, inner))],
        [helper.make_tensor_value_info("y", 1, (rows, columns))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def dequantized_bytes(columns: int, inner: int, rows: int, weights: dict[str, np.ndarray]) -> Any:
    """The same weights as a DequantizeLinear of [inner, columns] before a MatMul."""
    from onnx import TensorProto, helper, numpy_helper

    def narrow(name: str, packed: np.ndarray, length: int) -> Any:
        numbers = unpacked(packed, columns).T
        data = (numbers[:, ::2] | numbers[:, 1::2] << 4).astype(np.uint8).tobytes()
        return TensorProto(name=name, data_type=TensorProto.UINT4, dims=(length, columns), raw_data=data)

    blocks = inner // BLOCK
    scales = numpy_helper.from_array(np.ascontiguousarray(weights["scales"].reshape(columns, blocks).T), "scales")
    # without zero points 4 bits without a sign are 8 too large
    zeros = weights.get("zeros", np.full(columns * blocks // 2, 0x88, np.uint8))
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", 1, (rows, inner))],
        [helper.make_tensor_value_info("y", 1, (rows, columns))],
        [narrow("codes", weights["codes"], inner), scales, narrow("zeros", zeros, blocks)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def unpacked(packed: np.ndarray, columns: int) -> np.ndarray:
    """Bytes as a row of 4 bit numbers for each column."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(columns, -1)


def session_of(model: Any, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda x: session.run(None, {"x": x})[0]


def ours(model: Any, **options: Any) -> Callable[[Any], Any]:
    import dlcompiler

    compiled = dlcompiler.compile(model, options=options)

    def call(x: Any) -> Any:
        result = compiled(x)
        return result[0] if isinstance(result, (tuple, list)) else result

    return call


def measure(rows: int, size: int, zero_points: bool, rounds: int, threads: int) -> None:
    import torch

    random = np.random.default_rng(0)
    blocks = size // BLOCK
    codes = random.integers(0, 256, (size, blocks, BLOCK // 2), dtype=np.uint8)
    scales = (random.random((size, blocks)) * 0.01 + 0.001).astype(np.float32)
    weights = {"codes": codes, "scales": scales.reshape(-1)}
    zeros = np.full((size, blocks), 8.0)
    if zero_points:
        weights["zeros"] = random.integers(0, 256, size * blocks // 2, dtype=np.uint8)
        zeros = unpacked(weights["zeros"], size).astype(np.float64)
    wide = (unpacked(codes, size) - np.repeat(zeros, BLOCK, axis=1)) * np.repeat(scales.astype(np.float64), BLOCK, axis=1)
    x = random.standard_normal((rows, size)).astype(np.float32)
    expected = x.astype(np.float64) @ wide.T
    tensor = torch.from_numpy(x)

    def model(accuracy: int) -> Any:
        return model_bytes(size, size, rows, weights, accuracy)

    plain = model_bytes(size, size, rows, {"w": np.ascontiguousarray(wide.T).astype(np.float32)}, 0)
    dequantized = dequantized_bytes(size, size, rows, weights)
    systems: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "onnxruntime": (session_of(model(0), threads), x),
        "onnxruntime, int8 activations": (session_of(model(4), threads), x),
        "ours": (ours(model(0)), tensor),
        "ours, float32 weights": (ours(plain), tensor),
        "onnxruntime, DequantizeLinear": (session_of(dequantized, threads), x),
        "ours, DequantizeLinear": (ours(dequantized), tensor),
        "ours, it written out": (ours(dequantized, disabled_passes={"block-scaled"}), tensor),
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    errors = {}
    for name, (call, given) in systems.items():
        errors[name] = np.abs(np.asarray(call(given)) - expected).max() / np.abs(expected).max()
    for _ in range(rounds):
        for name, (call, given) in systems.items():
            for _ in range(2):  # the second finds what the first left in caches
                start = time.perf_counter()
                call(given)
                elapsed = time.perf_counter() - start
            times[name].append(elapsed)
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{rows} x {size} x {size}, {'zero points' if zero_points else 'symmetric'}")
    for name, each in medians.items():
        print(f"  {name:32}{1e3 * each:9.3f} ms{each / medians['onnxruntime']:8.2f}   error {errors[name]:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    for rows in given.rows:
        for zero_points in (False, True):
            measure(rows, given.size, zero_points, given.rounds, given.threads)


if __name__ == "__main__":
    main()
