"""An operator of your own, in an ONNX file and in a torch model, and a rewrite of your own."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper

import dlcompiler
from dlcompiler import extend


@extend.operator("com.example::SoftClip", "example::soft_clip")
def soft_clip(b, x, limit=1.0):
    """limit * tanh(x / limit), by ops of the IR: it is fused with what is around it."""
    return b.mul(b.tanh(b.div(x, limit)), limit)


extend.rewrite("log-exp", "log(exp(x)) --> x", exact=False)


# in an ONNX file: a node of the domain com.example, beside others
nodes = [
    helper.make_node("Relu", ["x"], ["h"]),
    helper.make_node("SoftClip", ["h"], ["y"], domain="com.example", limit=2.0),
]
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
model = helper.make_model(helper.make_graph(nodes, "clipped", [x], [y]), opset_imports=opsets, ir_version=10)
compiled = dlcompiler.compile(model)
values = np.linspace(-4, 4, 128, dtype=np.float32).reshape(2, 64)
assert np.allclose(compiled(values), 2 * np.tanh(np.maximum(values, 0) / 2), atol=1e-6)
print(f"ONNX: {len(compiled.program.steps)} kernel for Relu and SoftClip")


# in a torch model: an operator made with torch.library, and how it is differentiated
@torch.library.custom_op("example::soft_clip", mutates_args=())
def torch_soft_clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return limit * torch.tanh(x / limit)


@torch_soft_clip.register_fake
def _(x: torch.Tensor, limit: float) -> torch.Tensor:
    return torch.empty_like(x)


def backward(ctx, gradient):
    (x,) = ctx.saved_tensors
    return gradient * (1 - torch.tanh(x / ctx.limit) ** 2), None


def setup_context(ctx, inputs, output):
    x, ctx.limit = inputs
    ctx.save_for_backward(x)


torch_soft_clip.register_autograd(backward, setup_context=setup_context)


def forward(x: torch.Tensor) -> torch.Tensor:
    return 3 * torch.log(torch.exp(torch_soft_clip(torch.relu(x), 2.0)))


example = torch.randn(4, 64, requires_grad=True)
fast = torch.compile(forward, backend="dlcompiler", options={"strict": True})
result = fast(example)
result.sum().backward()
gradient, example.grad = example.grad, None
expected = forward(example)
expected.sum().backward()
torch.testing.assert_close(result, expected)
torch.testing.assert_close(gradient, example.grad)
for report in dlcompiler.reports()[-2:]:
    print(f"torch: {report.name}: {report.kernels} kernel, {len(report.aten)} calls of ATen")
    print("\n".join(f"    {line}" for line in report.history if "own-rewrites" in line))
