"""Recurrent layers where gradients are wanted: linears, and scans with backward passes of our own.

    torch.gru(x, h, weights, ...)  -->  of each layer gates = linear(x, w_input, bias); y, h, *kept = gru_scan(h, gates, w_hidden)

AOTAutograd then differentiates the linears as any others. A scan's backward pass is a scan the other way, that reads what the
first one kept (`ir.ops.recurrent_training`), and one product over all steps for the gradient of each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlcompiler.ir.ops import lookup
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.ops.recurrent_training import kept_widths

# torch's function -> (cell, its attributes)
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "rnn_tanh": ("rnn", {"activation": "tanh"}),
    "rnn_relu": ("rnn", {"activation": "relu"}),
}


NAMES = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}


def layers_with_gradients(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function that takes what torch's function of that name takes, for sequences of one length, and computes the same.

    Its last argument says whether scans may be of half precision: under autocast they then are of the dtype of its products, as
    on GPUs, else only these products are narrow.
    """
    return _LAYERS[name]


def is_suitable(name: str, arguments: Sequence[Any], scanned: Collection[str]) -> bool:
    """Whether a call with these (example) arguments is made of tensors that scans compute, one of which wants a gradient.

    scanned  names of the dtypes for which there are scans
    """
    x, hx, params, has_biases, layers, _, _, bidirectional, _ = arguments
    tensors = [x, *as_list(hx), *params]
    if not all(isinstance(t, Tensor) and t.device == x.device and t.dtype is x.dtype for t in tensors):
        return False
    count = layers * (2 if bidirectional else 1) * (4 if has_biases else 2)
    if NAMES.get(x.dtype) not in scanned or x.ndim != 3 or len(params) != count:
        return False
    is_sized = isinstance(params[1].shape[1], int) and params[1].shape[0] == CELLS[KINDS[name][0]].gates * params[1].shape[1]
    return is_sized and params[1].shape[1] > 0 and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def as_list(states: Any) -> list[Any]:
    """The states of an lstm, or the one of another cell, as a list."""
    return list(states) if isinstance(states, list | tuple) else [states]


def _layers(
    name: str, x: Tensor, hx: Any, params: Sequence[Tensor], has_biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, is_narrow_scanned: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    states, scan = as_list(hx), _scans()[name]
    y, lasts = (x.transpose(0, 1) if batch_first else x), []
    for layer in range(layers):
        if layer and dropout and train:
            y = torch.dropout(y, dropout, True)
        steps, batch, width = y.shape
        rows = y.reshape(steps * batch, width)
        gates, weights, inner = [], [], []
        for number in range(layer * directions, (layer + 1) * directions):
            w_input, w_hidden, *biases = params[number * each : (number + 1) * each]
            bias = biases[0] if biases else None
            if name == "gru":
                inner.append(biases[1] if biases else w_hidden.new_zeros(w_hidden.shape[0]))
            elif biases:
                bias = biases[0] + biases[1]
            gates.append(torch.nn.functional.linear(rows, w_input, bias).view(steps, batch, w_input.shape[0]))
            weights.append(w_hidden)
        first = layer * directions
        initial = [state[first : first + directions] for state in states]
        dtype = gates[0].dtype if is_narrow_scanned else initial[0].dtype  # they differ under autocast
        y, *found = scan(*([x.to(dtype) for x in each] for each in (initial, gates, weights, inner)))
        lasts.append(found[: len(states)])
    joined = [own[0] if layers == 1 else torch.cat(own) for own in zip(*lasts)]
    return (y.transpose(0, 1) if batch_first else y, *joined)


def _lstm(*arguments: Any) -> tuple[Tensor, ...]:
    return _layers("lstm", *arguments)


def _gru(*arguments: Any) -> tuple[Tensor, ...]:
    return _layers("gru", *arguments)


def _rnn_tanh(*arguments: Any) -> tuple[Tensor, ...]:
    return _layers("rnn_tanh", *arguments)


def _rnn_relu(*arguments: Any) -> tuple[Tensor, ...]:
    return _layers("rnn_relu", *arguments)


# Dynamo's graphs call functions by their names
_LAYERS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}


# -- the scans as operators ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _scans() -> dict[str, Any]:
    """The operators by the names of torch's functions, defined when first needed."""
    library = torch.library.Library("dlcompiler", "FRAGMENT")  # torch drops the operators together with this object
    for name in KINDS:
        _define(library, name)
    _scans.library = library  # type: ignore[attr-defined]
    return {name: getattr(torch.ops.dlcompiler, f"{name}_scan").default for name in KINDS}


def _define(library: torch.library.Library, name: str) -> None:
    """`NAME_scan`, its backward pass, and what both mean where nothing compiles them."""
    cell_name, attributes = KINDS[name]
    cell, widths = CELLS[cell_name], kept_widths(CELLS[cell_name])
    states, back = cell.states, 2 if cell.inner_bias else 1

    def forward(initial: Sequence[Tensor], gates: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Any:
        operands = [*initial, *(t for own in zip(gates, weights, *([biases] if biases else [])) for t in own)]
        return _meaning(f"{cell_name}_scan_keeping", operands, {"reverse": (False, True)[: len(gates)], **attributes})

    def shapes(initial: Sequence[Tensor], gates: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Any:
        (steps, batch, _), hidden, h = gates[0].shape, weights[0].shape[1], initial[0]
        firsts = [h.new_empty((len(gates), batch, hidden)) for _ in range(states)]
        kept = [h.new_empty((len(gates), steps, batch, width * hidden)) for width in widths]
        return (h.new_empty((steps, batch, len(gates) * hidden)), *firsts, *kept)

    def backward(grads: Sequence[Tensor], kept: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        reverse = (False, True)[: len(weights)]
        return _meaning(f"{cell_name}_scan_backward", [*grads, *kept, *weights], {"reverse": reverse})

    def backward_shapes(grads: Sequence[Tensor], kept: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
        gates = [torch.empty_like(kept[0], memory_format=torch.contiguous_format) for _ in range(back)]
        return (*gates, *(torch.empty_like(h, memory_format=torch.contiguous_format) for h in grads[1:]))

    results = ", ".join(["Tensor"] * (1 + states + len(widths)))
    library.define(f"{name}_scan(Tensor[] states, Tensor[] gates, Tensor[] weights, Tensor[] biases) -> ({results})")
    results = ", ".join(["Tensor"] * (states + back))
    library.define(f"{name}_scan_backward(Tensor[] grads, Tensor[] kept, Tensor[] weights) -> ({results})")
    for device in ("CPU", "CUDA"):
        library.impl(f"{name}_scan", forward, device)
        library.impl(f"{name}_scan_backward", backward, device)
    torch.library.register_fake(f"dlcompiler::{name}_scan", shapes, lib=library)
    torch.library.register_fake(f"dlcompiler::{name}_scan_backward", backward_shapes, lib=library)
    differentiate = _gradients(getattr(torch.ops.dlcompiler, f"{name}_scan_backward").default, states, back)
    torch.library.register_autograd(f"dlcompiler::{name}_scan", differentiate, setup_context=_remember, lib=library)


def _meaning(op: str, operands: Sequence[Tensor], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
    """What the op's definition gives."""
    evaluate = lookup(op).evaluate
    assert evaluate is not None
    first = operands[0]
    wide = first.dtype if first.dtype is torch.float64 else torch.float32  # half precision is computed in float32, and rounded
    results = evaluate([t.detach().to("cpu", wide).numpy() for t in operands], attributes)
    return tuple(torch.from_numpy(x).to(first.device, first.dtype) for x in results)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    initial, _, weights, biases = inputs
    y, *rest = output
    ctx.save_for_backward(initial[0], y, *rest[len(initial) :], *weights)
    ctx.directions, ctx.has_biases = len(weights), bool(biases)
    ctx.set_materialize_grads(True)


def _gradients(operator: Any, states: int, back: int) -> Callable[..., Any]:
    """The backward pass of a scan: of the states and gates by `operator`, of weights and biases by sums over all steps."""

    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        h, y, *rest = ctx.saved_tensors
        kept, weights = rest[: -ctx.directions], rest[-ctx.directions :]
        results = operator(list(grads[: 1 + states]), kept, weights)
        of_gates, of_products, of_states = results[0], results[back - 1], list(results[back:])
        hidden = h.shape[2]
        of_weights = []
        for direction in range(len(weights)):
            own = y[:, :, direction * hidden : (direction + 1) * hidden]
            first = h[direction : direction + 1]
            before = torch.cat([own[1:], first]) if direction else torch.cat([first, own[:-1]])
            product = of_products[direction].reshape(-1, of_products.shape[3])
            of_weights.append(product.t() @ before.reshape(-1, hidden))
        directions = range(len(weights))
        of_biases = [of_products[d].sum((0, 1)) for d in directions] if ctx.has_biases else []
        return of_states, [of_gates[d] for d in directions], of_weights, of_biases

    return differentiate
