"""torch's operators for CUDA tensors where there is no GPU: each computes on the CPU, in the same memory as the device's.

    add(x, y) on the device  -->  add on CPU tensors over the same memory; its result lies in memory of the device

So eager's results, gradients and optimizers on the stand-in are real numbers to compare with. While a stream is recorded, an
operator computes with each replay of the graph. Operators that the CPU has not (cuDNN's, attention's) are written with others.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

RUN = ctypes.CFUNCTYPE(None, ctypes.c_long)
# what makes memory, or says where it is, and computes nothing
_OF_MEMORY = ("set_", "resize_", "_resize_output_", "record_stream", "is_pinned", "_pin_memory", "resize_as_", "is_set_to")

# what has one kernel for all devices, which starts another of the device's
_FOR_ALL = ("copy_",)

aten = torch.ops.aten


def host(tensor: Tensor) -> Tensor:
    """A CPU tensor over the same memory."""
    if tensor.device.type != "cuda":
        return tensor
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    raw = torch.frombuffer((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()), dtype=torch.uint8)
    found = torch.empty(0, dtype=tensor.dtype)
    return found.set_(raw.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def in_clean_thread(function: Callable[[], Any]) -> Any:
    """Run where nothing is excluded from dispatch: below autograd, where kernels run, no gradient can be made."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def gradients(function: Callable[..., Any], inputs: Sequence[Tensor], given: Sequence[Tensor | None]) -> list[Tensor]:
    """Of a function's results times `given`, by its inputs."""

    def run() -> list[Tensor]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
            results = function(*leaves)
            results = results if isinstance(results, tuple | list) else (results,)
            pairs = [(r, g) for r, g in zip(results, given) if g is not None and r.requires_grad]
            wanted = [x for x in leaves if x.requires_grad]
            found = iter(torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
            return [next(found) if x.requires_grad else torch.zeros_like(x) for x in leaves]

    return in_clean_thread(run)


# -- what the CPU has not ----------------------------------------------------------------------------------------------------


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.float() @ k.float().mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).tril().logical_not(), -torch.inf)
    return scores if bias is None else scores + bias.float()


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False, scale: float | None = None) -> Any:
    scores = _scores(q, k, bias, causal, scale)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    # heads side by side, as the real kernels leave them
    out = (scores.softmax(-1) @ v.float()).to(q.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2), scores.logsumexp(-1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, mask: bool = False, *, scale: Any = None
) -> Any:
    assert not dropout
    out, sums = _attend(q, k, v, None, causal, scale)
    empty = torch.zeros((), dtype=torch.int64)
    return out, sums, None, None, q.shape[2], k.shape[2], torch.zeros(2, dtype=torch.uint64), empty, torch.empty(0, dtype=q.dtype)


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Any, sums: Any, cum_q: Any, cum_k: Any, max_q: Any, max_k: Any,
    dropout: float, causal: bool, seed: Any, offset: Any, *, scale: Any = None,
) -> Any:  # fmt: skip
    return tuple(gradients(lambda q, k, v: _attend(q, k, v, None, causal, scale)[0], (q, k, v), (grad,)))


def _cudnn(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, sums: bool, dropout: float = 0.0, causal: bool = False, mask: bool = False, *,
    scale: Any = None,
) -> Any:  # fmt: skip
    out, found, *rest = (
        _flash(q, k, v, dropout, causal, mask, scale=scale) if bias is None else _attend(q, k, v, bias, causal, scale)
    )
    rest = rest or [None, None, q.shape[2], k.shape[2], *(torch.zeros((), dtype=torch.int64) for _ in range(2)), q.new_empty(0)]
    return out, found[..., None], *rest


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Any, sums: Any, seed: Any, offset: Any, bias: Any, cum_q: Any, cum_k: Any,
    max_q: Any, max_k: Any, dropout: float, causal: bool, *, scale: Any = None,
) -> Any:  # fmt: skip
    mask = bias if bias is not None and bias.numel() else None  # an empty one stands for none
    return tuple(gradients(lambda q, k, v: _attend(q, k, v, mask, causal, scale)[0], (q, k, v), (grad,)))


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, bias: Any, sums: bool, dropout: float = 0.0, causal: bool = False, *, scale: Any = None
) -> Any:
    assert not dropout
    out, found = _attend(q, k, v, bias, causal, scale)
    return out, found if sums else found.new_empty(0), *(torch.zeros((), dtype=torch.int64) for _ in range(2))


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Any, out: Any, sums: Any, seed: Any, offset: Any, dropout: float,
    mask: Sequence[bool], causal: bool = False, *, scale: Any = None,
) -> Any:  # fmt: skip
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    found = gradients(lambda q, k, v, bias=None: _attend(q, k, v, bias, causal, scale)[0], inputs, (grad,))
    return (*found, None)[:4]


def _cudnn_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, epsilon: float) -> Any:
    results = aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, epsilon)
    return *results, torch.empty(0, dtype=torch.uint8)


def _cudnn_norm_backward(
    x: Tensor, grad: Tensor, weight: Any, mean: Any, var: Any, saved_mean: Any, saved_var: Any, epsilon: float, reserve: Any
) -> Any:
    return aten.native_batch_norm_backward(grad, x, weight, mean, var, saved_mean, saved_var, True, epsilon, [True, True, True])


def _lstm_cell(x: Tensor, h: Tensor, c: Tensor, bias_x: Any = None, bias_h: Any = None) -> Any:
    sums = x + h if bias_x is None else x + h + bias_x + bias_h
    i, f, g, o = sums.chunk(4, 1)
    gates = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 1)
    i, f, g, o = gates.chunk(4, 1)
    after = f * c + i * g
    return o * after.tanh(), after, gates


def _lstm_cell_backward(dh: Any, dc: Any, before: Tensor, after: Tensor, gates: Tensor, has_bias: bool) -> Any:
    i, f, g, o = gates.chunk(4, 1)
    dh = torch.zeros_like(after) if dh is None else dh
    along = dh * o * (1 - after.tanh() ** 2) + (0 if dc is None else dc)
    parts = (along * g * i * (1 - i), along * before * f * (1 - f), along * i * (1 - g * g), dh * after.tanh() * o * (1 - o))
    grad = torch.cat(parts, 1)
    return grad, along * f, grad.sum(0) if has_bias else None


_WRITTEN: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
    "_scaled_dot_product_cudnn_attention": _cudnn,
    "_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "cudnn_batch_norm": _cudnn_norm,
    "cudnn_batch_norm_backward": _cudnn_norm_backward,
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "cudnn_is_acceptable": lambda x: False,  # asked by recurrent layers alone, whose memory cuDNN's own functions would lay out
    "_cudnn_rnn_flatten_weight": lambda weights, *_: torch.empty(0, dtype=weights[0].dtype),
    "convolution": aten.convolution.default,
}


# -- each operator as a kernel -----------------------------------------------------------------------------------------------


class Operators:
    """All operators of CUDA tensors. `library` is the stand-in of the CUDA runtime, to which launches are given."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.recorded: list[Callable[[], None]] = []
        self.run = RUN(lambda number: self.recorded[number]())
        self.table = torch.library.Library("aten", "IMPL", "CUDA")
        names = {n.removeprefix("aten::") for n in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA") if "aten::" in n}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch's own are replaced
            for name in sorted({*names, *_WRITTEN, *_FOR_ALL}):
                packet, _, overload = name.partition(".")
                operator = getattr(getattr(aten, packet), overload or "default")
                if self._computes(operator, packet):
                    self.table.impl(name, partial(self.call, _WRITTEN.get(name, operator)), allow_override=True)

    @staticmethod
    def _computes(operator: Any, packet: str) -> bool:
        schema = operator._schema
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        return not is_view and packet not in _OF_MEMORY and any("Tensor" in str(a.type) for a in schema.arguments)

    def call(self, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        mine = [self._host(leaf) for leaf in leaves]
        recording = torch.cuda.is_current_stream_capturing()

        def compute(given: Sequence[Any]) -> Any:
            args, kwargs = _pytree.tree_unflatten(list(given), spec)
            return operator(*args, **kwargs)

        # what is written while a stream is recorded is only written by a replay
        given = [x.clone() if recording and isinstance(x, Tensor) else x for x in mine]
        found, shape = _pytree.tree_flatten(compute(given))
        results = [self._result(r, leaves, given) for r in found]
        if recording:
            self._record(compute, leaves, results)
        return _pytree.tree_unflatten(results, shape)

    def _record(self, compute: Callable[[Sequence[Any]], Any], leaves: Sequence[Any], results: Sequence[Any]) -> None:
        def again() -> None:
            made = _pytree.tree_leaves(compute([self._host(leaf) for leaf in leaves]))
            for result, new in zip(results, made, strict=True):
                if isinstance(result, Tensor) and result.numel() and host(result).data_ptr() != new.data_ptr():
                    host(result).copy_(new)

        self.recorded.append(again)
        self.library.stand_in_launch(torch.cuda.current_stream().cuda_stream, self.run, len(self.recorded) - 1)

    @staticmethod
    def _host(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return host(leaf)
        if isinstance(leaf, torch.Generator):
            return None
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    @staticmethod
    def _result(result: Any, leaves: Sequence[Any], given: Sequence[Any]) -> Any:
        if not isinstance(result, Tensor):
            return result
        for leaf, mine in zip(leaves, given):
            if mine is result:
                if leaf.shape != mine.shape:  # given empty, to be made as large as it turns out to be
                    host(leaf.resize_(mine.shape)).copy_(mine)
                return leaf
        made = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device="cuda")
        if result.numel():
            host(made).copy_(result)
        return made
