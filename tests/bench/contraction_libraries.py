"""What the libraries under torch do with a contraction: ATen as eager calls it, oneDNN and MKL with weights packed before.

These operators are what Inductor calls with frozen weights; each candidate is a call without arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench.contraction_cases import Case, Epilogue, Product

Calls = dict[str, Callable[[], Tensor]]
# pointwise operations that oneDNN's operators take along: ours -> (name, algorithm)
FUSED = {"gelu": ("gelu", "none"), "relu": ("relu", "")}


def has_onednn() -> bool:
    """Whether this torch was built with oneDNN and its operators for packed weights."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def candidates(case: Case) -> Calls:
    """The library calls that compute the case; ATen's is always there, MKL's for float32, oneDNN's for that and bfloat16."""
    module, inputs = case.module, case.inputs
    if not isinstance(module, nn.Linear | Epilogue | Product):
        return convolution(module, inputs[0])
    calls: Calls = {"aten": lambda: module(*inputs)}
    if inputs[0].dtype not in (torch.float32, torch.bfloat16):
        return calls
    if isinstance(module, nn.Linear):
        return calls | linear(module, None, inputs)
    if isinstance(module, Epilogue):
        return calls | linear(module.linear, module, inputs)
    return calls | product(module, inputs)


def linear(layer: nn.Linear, epilogue: Epilogue | None, inputs: tuple[Tensor, ...]) -> Calls:
    """oneDNN with the epilogue inside, MKL with it behind."""
    x, weight, bias = inputs[0], layer.weight, layer.bias
    rows = x.shape[0]
    calls: Calls = {}
    if has_onednn():
        pointwise = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        if epilogue is not None and epilogue.kind == "add":
            calls["onednn"] = lambda: pointwise.binary(x, inputs[1], packed, bias, "add")
        else:
            name, algorithm = FUSED[epilogue.kind] if epilogue else ("none", "")
            calls["onednn"] = lambda: pointwise.default(x, packed, bias, name, [], algorithm)
    if x.dtype is torch.float32 and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"):
        repacked = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)

        def mkl() -> Tensor:
            result = torch.ops.mkl._mkl_linear(x, repacked, weight, bias, rows)
            return result if epilogue is None else epilogue.finish(result, *inputs[1:])

        calls["mkl"] = mkl
    return calls


def product(module: Product, inputs: tuple[Tensor, ...]) -> Calls:
    """oneDNN's inner product, which takes two matrices; torch has no other way to it for a batch in float32."""
    a, b = module.sides(*inputs)
    if a.dim() != 2 or not has_onednn():
        return {}
    return {"onednn": lambda: torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")}


def convolution(module: Any, x: Tensor) -> Calls:
    """Both layouts of the image, whichever one ours is given; oneDNN's weights packed for it."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layouts = {"channels first": x.contiguous()}
    if x.dim() in formats:
        layouts["channels last"] = x.to(memory_format=formats[x.dim()])
    calls: Calls = {f"aten {name}": lambda image=image: module(image) for name, image in layouts.items()}
    if has_onednn():
        calls |= {f"onednn {name}": onednn_convolution(module, image) for name, image in layouts.items()}
    return calls


def onednn_convolution(module: Any, x: Tensor) -> Callable[[], Tensor]:
    """oneDNN's convolution with its weight reordered once; a line is an image of height 1."""
    operators, bias, line = torch.ops.mkldnn, module.bias, x.dim() == 3
    weight = module.weight.unsqueeze(2) if line else module.weight
    image = x.unsqueeze(2) if line else x
    padding, stride, dilation = (
        [neutral] * line + list(sizes) for neutral, sizes in ((0, module.padding), (1, module.stride), (1, module.dilation))
    )
    if module.transposed:
        where = (padding, list(module.output_padding), stride, dilation, module.groups)
        packed = operators._reorder_convolution_transpose_weight(weight, *where, list(image.shape))
        return lambda: operators._convolution_transpose_pointwise(image, packed, bias, *where, "none", [], "")
    where = (padding, stride, dilation, module.groups)
    if image.dim() == 5:
        packed = torch._C._nn.mkldnn_reorder_conv3d_weight(weight.to_mkldnn(), *where, list(image.shape))
    else:
        packed = operators._reorder_convolution_weight(weight, *where, list(image.shape))
    pointwise = operators._convolution_pointwise.default
    if line:
        return lambda: pointwise(image, packed, bias, *where, "none", [], "").squeeze(2)
    return lambda: pointwise(image, packed, bias, *where, "none", [], "")
