"""Compile and run two real models on the CPU, beside eager, and show where the readable IR lies. `make demo` runs this."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnx.backend.test
import torch

import dlcompiler

DUMPS = Path("build/demo-dump")


def milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    """Median time of a call, after two that are not counted."""
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def torch_model() -> None:
    """A transformer encoder from PyTorch, by torch.compile and by dlcompiler.compile."""
    model, inputs = models.encoder()
    with torch.no_grad():
        expected = model(*inputs)
        through_torch = torch.compile(model, backend="dlcompiler")
        start = time.perf_counter()
        actual = through_torch(*inputs)
        print(
            f"  ready in {time.perf_counter() - start:.1f} s; largest difference to eager {(actual - expected).abs().max():.1e}"
        )
        eager, compiled = milliseconds(lambda: model(*inputs)), milliseconds(lambda: through_torch(*inputs))
        print(f"  eager {eager:.2f} ms, torch.compile(backend='dlcompiler') {compiled:.2f} ms: x{eager / compiled:.2f}")
    print(dlcompiler.reports()[-1])


def onnx_model() -> None:
    """A ResNet-50 that the onnx package brings along, whose expected output lies beside it."""
    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    compiled = dlcompiler.compile(folder / "light_resnet50.onnx", options={"dump_dir": str(DUMPS)})
    (node,) = compiled.graph.inputs
    shape = tuple(int(size) for size in node.shape)
    image = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
    expected = onnx.TensorProto()
    expected.ParseFromString((folder / "light_resnet50_output_0.pb").read_bytes())
    difference = np.abs(compiled(image) - onnx.numpy_helper.to_array(expected)).max()
    print(f"  largest difference to the packaged output {difference:.1e}; {milliseconds(lambda: compiled(image)):.2f} ms a call")
    print(compiled.report())
    print(f"\nStart reading at {Path(str(compiled.report().dump)) / 'index.md'}")


if __name__ == "__main__":
    print(f"A transformer encoder, {torch.get_num_threads()} threads")
    torch_model()
    print("\nResNet-50 from an ONNX file")
    onnx_model()
