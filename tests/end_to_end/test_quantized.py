"""Quantised models through every front end: equal where sums are exact, a quantum off where a rounding may fall the other way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from dlcompiler.ir.program import Launch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import dlcompiler
from tests.end_to_end.support import compile_with

quantized = torch.ops.quantized_decomposed


class Layers(nn.Module):
    """A convolution and a linear layer as PT2E writes them: bytes in, bytes out, float32 between."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.register_buffer("kernel", torch.randint(-127, 128, (12, 5, 3, 3), dtype=torch.int8, generator=random))
        self.register_buffer("matrix", torch.randint(-127, 128, (7, 12), dtype=torch.int8, generator=random))
        self.register_buffer("kernel_scales", torch.rand(12, generator=random) * 0.01 + 0.001)
        self.register_buffer("matrix_scales", torch.rand(7, generator=random) * 0.01 + 0.001)
        self.register_buffer("kernel_zeros", torch.zeros(12, dtype=torch.int64))
        self.register_buffer("matrix_zeros", torch.zeros(7, dtype=torch.int64))

    def through(self, x: Tensor, scale: float, zero: int) -> Tensor:
        """Quantised and back."""
        rounded = quantized.quantize_per_tensor(x, scale, zero, 0, 255, torch.uint8)
        return quantized.dequantize_per_tensor(rounded, scale, zero, 0, 255, torch.uint8)

    def weight(self, name: str) -> Tensor:
        """A weight in float32."""
        scales, zeros = getattr(self, f"{name}_scales"), getattr(self, f"{name}_zeros")
        return quantized.dequantize_per_channel(getattr(self, name), scales, zeros, 0, -127, 127, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(self.through(x, 0.03, 117), self.weight("kernel"), padding=1).relu()
        x = self.through(x, 0.05, 0).permute(0, 2, 3, 1)
        return self.through(nn.functional.linear(x, self.weight("matrix")), 0.1, 128)


def test_layers_as_pt2e_writes_them(entry: str) -> None:
    torch.manual_seed(0)
    module, x = Layers().eval(), torch.randn(2, 5, 9, 11)
    with torch.no_grad():
        compiled = compile_with(entry, module, (x,))
        got, expected = compiled(x), module(x)
    assert (got - expected).abs().max() <= 0.1 * 1.001  # one quantum, where a rounding falls the other way
    assert (got != expected).float().mean() < 0.01
    assert dlcompiler.reports()[-1].as_dict()["library"] == {}


def test_products_of_bytes(entry: str) -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor, y: Tensor, half: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
            return torch._int_mm(x, y), torch.ops.aten._weight_int8pack_mm(half, y.t().contiguous(), scales)

    random = torch.Generator().manual_seed(1)
    x, y = (torch.randint(-128, 128, shape, dtype=torch.int8, generator=random) for shape in ((33, 64), (64, 40)))
    half, scales = torch.randn(33, 64, generator=random).bfloat16(), torch.rand(40, generator=random).bfloat16()
    module = Products()
    with torch.no_grad():
        whole, scaled = compile_with(entry, module, (x, y, half, scales))(x, y, half, scales)
    assert torch.equal(whole, x.int() @ y.int())
    truth = (half.double() @ y.double()) * scales.double()
    assert (scaled.double() - truth).abs().max() / truth.abs().max() < 2.0**-7


CASES = {
    # type of x, zero point of x, type of the weights, their zero points
    "u8 i8": (np.uint8, 117, np.int8, 0),
    "u8 u8": (np.uint8, 3, np.uint8, 128),
    "i8 i8": (np.int8, -5, np.int8, 0),
    "weights with zero points": (np.uint8, 0, np.int8, 9),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(1, 64, 48), (37, 77, 51)], ids=str)
def test_qlinear_matmul_is_exact(case: str, shape: tuple[int, int, int]) -> None:
    """Against the sums in int64 and the scale in float32, as ONNX Runtime computes it."""
    (rows, inner, columns), (x_type, zero, w_type, w_zero) = shape, CASES[case]
    random = np.random.default_rng(0)
    x, w = (
        random.integers(np.iinfo(t).min, np.iinfo(t).max + 1, s).astype(t)
        for t, s in ((x_type, (rows, inner)), (w_type, (inner, columns)))
    )
    scales = [np.float32(0.02), np.float32(0.01), np.float32(0.5)]
    names = ["xs", "xz", "w", "ws", "wz", "ys", "xz"]
    values = dict(zip(names, [scales[0], x_type(zero), w, scales[1], w_type(w_zero), scales[2]]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(x_type))
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", ["x", *names], ["y"])], "g",
        [helper.make_tensor_value_info("x", kind, (rows, inner))], [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    compiled = dlcompiler.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    total = (x.astype(np.int64) - zero) @ (w.astype(np.int64) - w_zero)
    scaled = total.astype(np.float32) * (scales[0] * scales[1] / scales[2])
    limits = np.iinfo(x_type)
    np.testing.assert_array_equal(compiled(x), np.clip(np.rint(scaled) + zero, limits.min, limits.max).astype(x_type))
    assert all(isinstance(step, Launch) for step in compiled.program.steps)


def test_dynamic_quantisation_of_onnx() -> None:
    random = np.random.default_rng(0)
    x, w = random.standard_normal((5, 70)).astype(np.float32), random.integers(0, 256, (70, 33)).astype(np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (5, 70))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)]
        + [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in "qz"],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.uint8(100), "wz")],
    )  # fmt: skip
    compiled = dlcompiler.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    y, q, z = compiled(x)
    np.testing.assert_array_equal(y, (q.astype(np.int64) - int(z)) @ (w.astype(np.int64) - 100))
