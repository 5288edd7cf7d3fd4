"""What torch makes of attention on NVIDIA GPUs, traced with fake tensors where there is none, means what autograd computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dlcompiler.ir.interpret import interpret_graph
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dlcompiler.frontends.fx import import_fx

aten = torch.ops.aten


def flash(q, k, v, grad, causal):
    r = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=0.25)
    return r[0], *aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, r[0], r[1], r[2], r[3], r[4], r[5], 0.0, causal, r[6], r[7], scale=0.25
    )


def efficient(q, k, v, grad, causal, mask=None):
    r = aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, causal, scale=0.25)
    wanted = [True, True, True, mask is not None]
    gradients = aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, mask, r[0], r[1], r[2], r[3], 0.0, wanted, causal, scale=0.25
    )
    return r[0], *gradients[: 3 if mask is None else 4]


def cudnn(q, k, v, grad, causal):
    r = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=0.25)
    gradients = aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, r[0], r[1], r[6], r[7], q.new_empty(0), None, None, r[4], r[5], 0.0, causal, scale=0.25
    )
    return r[0], *gradients


def on_cpu(q, k, v, grad, causal, mask=None):
    r = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=0.25)
    return r[0], *aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, r[0], r[1], 0.0, causal, attn_mask=mask, scale=0.25
    )


def expected(q, k, v, grad, causal, mask=None):
    q, k, v = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v))
    mask = None if mask is None else torch.tensor(mask, dtype=torch.float64, requires_grad=True)
    grouped = q.shape[1] != k.shape[1]
    seen = mask if mask is None or not causal else mask.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    is_causal = causal and mask is None  # torch takes one of both
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, 0.0, is_causal, scale=0.25, enable_gqa=grouped)
    out.backward(torch.tensor(grad, dtype=torch.float64))
    return out.detach(), q.grad, k.grad, v.grad, *([] if mask is None else [mask.grad])


@pytest.mark.parametrize(
    ("kind", "causal"),
    [
        ("flash", False), ("flash", True), ("grouped", True), ("efficient", False), ("efficient", True), ("masked", False),
        ("masked", True), ("broadcast masked", False), ("cudnn", False), ("cudnn", True), ("on_cpu", True),
        ("on_cpu masked", False),
    ],
)  # fmt: skip
def test_forward_and_backward(kind, causal):
    rng = np.random.default_rng(0)
    dtype = np.float16 if kind in ("flash", "grouped", "cudnn") else np.float32
    shapes = [(2, 4, 40, 16), *[(2, 2 if kind == "grouped" else 4, 40, 16)] * 2, (2, 4, 40, 16)]
    inputs = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    if "masked" in kind:
        inputs.append(rng.standard_normal((1, 4, 1, 40) if "broadcast" in kind else (2, 4, 40, 40)).astype(dtype))
    function = {"flash": flash, "grouped": flash, "cudnn": cudnn}.get(kind, on_cpu if "cpu" in kind else efficient)
    device = "cpu" if "cpu" in kind else "cuda"
    with FakeTensorMode():
        fake = [torch.empty(x.shape, dtype=torch.from_numpy(x).dtype, device=device) for x in inputs]
        module = make_fx(lambda q, k, v, g, *mask: function(q, k, v, g, causal, *mask))(*fake)
    graph = import_fx(module, name="g")
    assert {"attention_with_logsumexp", "attention_backward"} <= {node.op.name for node in graph.nodes}
    assert not any(node.op.name == "aten.call" for node in graph.nodes)
    for got, want in zip(interpret_graph(graph, inputs), expected(*inputs[:4], causal, *inputs[4:])):
        tolerance = 5e-3 if dtype is np.float16 else 1e-5
        np.testing.assert_allclose(got.astype(np.float64), want.numpy(), rtol=tolerance, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("name", ["flash", "efficient", "cudnn"])
def test_without_gradients_it_is_attention(name):
    def function(q, k, v):
        if name == "flash":
            return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False)[0]
        if name == "efficient":
            return aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]
        return aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]

    with FakeTensorMode():
        module = make_fx(function)(*(torch.empty(2, 4, 40, 16, dtype=torch.float16, device="cuda") for _ in range(3)))
    module.graph.eliminate_dead_code()  # as AOTAutograd does: nobody reads the other results
    assert [n.op.name for n in import_fx(module, name="g").nodes] == ["attention"]


def test_dropout_is_refused_by_name():
    with FakeTensorMode():
        fake = [torch.empty(2, 4, 40, 16, device="cuda") for _ in range(3)]
        module = make_fx(lambda q, k, v: aten._scaled_dot_product_efficient_attention(q, k, v, None, False, 0.1)[0])(*fake)
    module.graph.eliminate_dead_code()
    (call,) = (n for n in import_fx(module, name="g").nodes if n.op.name == "aten.call")
    assert "dropout" in call.attributes["reason"]
