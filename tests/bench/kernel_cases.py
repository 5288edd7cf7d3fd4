"""Fused cases without contractions: what a compiler's own loops are worth, from 1 K to 16 M elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class KernelCase:
    """A function of tensors as a module, its inputs, and the bytes that must move at the least."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    bytes_moved: int


class FunctionModule(nn.Module):
    """A plain function in a module's clothes."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*tensors)


def chain(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Seven cheap operations over three inputs."""
    return torch.relu(x * y + z) * 0.5 - torch.abs(y - z) + x


def gelu_erf(x: Tensor) -> Tensor:
    """GELU as BERT has it."""
    return functional.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU as GPT-2 has it."""
    return functional.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The gate of Llama's feed-forward."""
    return functional.silu(gate) * up


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension."""
    return functional.softmax(x, dim=-1)


def log_softmax(x: Tensor) -> Tensor:
    """Log-softmax over the last dimension."""
    return functional.log_softmax(x, dim=-1)


def softmax_rows(x: Tensor) -> Tensor:
    """Softmax over dimension 0: the reduced axis is not the contiguous one."""
    return functional.softmax(x, dim=0)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Scaled attention scores with a boolean mask broadcast over heads."""
    return functional.softmax((scores * 0.125).masked_fill(~mask, -1e30), dim=-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the last dimension."""
    return functional.layer_norm(x, (x.shape[-1],), weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square normalisation as Llama writes it."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """What follows the first linear layer of a transformer's feed-forward."""
    return functional.gelu(x + bias)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Residual addition and layer-norm; the sum is needed too."""
    total = x + residual
    return total, functional.layer_norm(total, (x.shape[-1],), weight, bias)


def add_transposed(x: Tensor, y: Tensor) -> Tensor:
    """x + y^T with y contiguous: one operand is read across its rows."""
    return x + y.t()


def column_sum(x: Tensor) -> Tensor:
    """A sum over dimension 0, as in a bias gradient."""
    return x.sum(0)


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both moments of each row."""
    variance, mean = torch.var_mean(x, dim=-1)
    return mean, variance


def full_sum(x: Tensor) -> Tensor:
    """Everything to one number, with work before it."""
    return (x * x).sum()


def full_max(x: Tensor) -> Tensor:
    """The greatest absolute value."""
    return x.abs().amax()


def micro(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu * sigmoid, softmax and layer-norm of the same rows."""
    mixed = functional.softmax(functional.gelu(x) * torch.sigmoid(x), dim=-1)
    return mixed + functional.layer_norm(x, (x.shape[-1],), weight, bias)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _norm_inputs(rows: int, columns: int, tensors: int = 1) -> tuple[Tensor, ...]:
    parameters = (1 + 0.1 * _normal(columns), 0.1 * _normal(columns + 1)[1:].clone())
    return (*(_normal(rows, columns) + 0.5 * k for k in range(tensors)), *parameters)


def _mask(batch: int, length: int) -> Tensor:
    shown = length - torch.arange(batch)[:, None, None, None] % (length // 2)
    return (torch.arange(length) < shown).expand(batch, 1, length, length)


CASES: dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], Callable[[], tuple[Tensor, ...]]]] = {
    "chain-1k": (chain, lambda: tuple(_normal(1024) + k for k in range(3))),
    "chain-1m-odd": (chain, lambda: tuple(_normal(1023, 1025) + k for k in range(3))),
    "chain-16m": (chain, lambda: tuple(_normal(4096, 4096) + k for k in range(3))),
    "chain-1m-transposed": (chain, lambda: (_normal(1024, 1024).t(), _normal(1024, 1024) + 1, _normal(1024, 1024) + 2)),
    "gelu-erf-1m": (gelu_erf, lambda: (_normal(1024, 1024),)),
    "gelu-erf-16m": (gelu_erf, lambda: (_normal(4096, 4096),)),
    "gelu-tanh-400k": (gelu_tanh, lambda: (_normal(128, 3072),)),
    "swiglu-176k": (swiglu, lambda: (_normal(128, 1376), _normal(128, 1376) + 1)),
    "softmax-1k": (softmax, lambda: (_normal(8, 128),)),
    "softmax-2m": (softmax, lambda: (_normal(2048, 1024),)),
    "softmax-odd": (softmax, lambda: (_normal(1537, 197),)),
    "softmax-16m": (softmax, lambda: (_normal(4096, 4096),)),
    "softmax-dim0-2m": (softmax_rows, lambda: (_normal(2048, 1024),)),
    "softmax-masked": (masked_softmax, lambda: (_normal(8, 12, 128, 128), _mask(8, 128))),
    "log-softmax-6m": (log_softmax, lambda: (_normal(128, 50257),)),
    "layer-norm-98k": (layer_norm, lambda: _norm_inputs(128, 768)),
    "layer-norm-odd": (layer_norm, lambda: _norm_inputs(1000, 771)),
    "layer-norm-16m": (layer_norm, lambda: _norm_inputs(16384, 1024)),
    "rms-norm-2m": (rms_norm, lambda: _norm_inputs(2048, 1024)[:2]),
    "bias-gelu-400k": (bias_gelu, lambda: (_normal(128, 3072), _normal(3072))),
    "add-layer-norm-98k": (add_layer_norm, lambda: _norm_inputs(128, 768, 2)),
    "add-layer-norm-3m": (add_layer_norm, lambda: _norm_inputs(4096, 768, 2)),
    "add-transposed-4m": (add_transposed, lambda: (_normal(2048, 2048), _normal(2048, 2048) + 1)),
    "add-transposed-odd": (add_transposed, lambda: (_normal(1001, 777), _normal(777, 1001))),
    "column-sum-4m": (column_sum, lambda: (_normal(4096, 1024),)),
    "column-sum-odd": (column_sum, lambda: (_normal(10007, 65),)),
    "mean-variance-4m": (mean_and_variance, lambda: (_normal(4096, 1024),)),
    "chain-bf16-4m": (chain, lambda: tuple((_normal(2048, 2048) + k).bfloat16() for k in range(3))),
    "gelu-bf16-4m": (gelu_erf, lambda: (_normal(2048, 2048).bfloat16(),)),
    "full-sum-16m": (full_sum, lambda: (_normal(4096, 4096),)),
    "full-max-1m": (full_max, lambda: (_normal(1024, 1024),)),
    "micro-2m": (micro, lambda: _norm_inputs(2048, 1024)),
}

NAMES = tuple(CASES)


def build(name: str) -> KernelCase:
    """The case of that name with its inputs; bytes are counted from distinct input storage and the outputs."""
    function, make_inputs = CASES[name]
    inputs = make_inputs()
    with torch.no_grad():
        outputs = function(*inputs)
    results = outputs if isinstance(outputs, tuple) else (outputs,)
    moved = sum(tensor.untyped_storage().nbytes() for tensor in (*inputs, *results))
    return KernelCase(name, FunctionModule(function).eval(), inputs, moved)
