"""Recurrent layers kept whole through AOTAutograd, which breaks them up step by step before a backend sees them.

    torch.gru(x, h, weights, ...)  -->  torch.ops.dlcompiler.gru(x, h, weights, ...)

Dynamo's graph calls torch's function; an operator of our own takes its place, which nobody knows how to break up. Only where no
gradient is wanted: for training, torch's own parts have the derivatives. Dynamo traces the layers of `torch.nn` only under
`torch._dynamo.config.allow_rnn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_SETTINGS = "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
_FUNCTIONS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}


def keep_recurrent_layers_whole(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Replace torch's recurrent functions in a graph of Dynamo's by our operators, unless a gradient may be asked for."""
    wants_gradient = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    if wants_gradient:
        return
    for node in module.graph.nodes:
        name = _NAMES.get(node.target) if node.op == "call_function" else None
        if name is not None and _is_plain(name, node):
            node.target = _operators()[name]
    module.recompile()


def _is_plain(name: str, node: torch.fx.Node) -> bool:
    """Whether it is a call for sequences of one length, all arguments by position, and without dropout."""
    if len(node.args) != 9 or node.kwargs or not isinstance(node.args[2], list | tuple):
        return False
    states, dropout, train = node.args[1], node.args[5], node.args[6]
    return isinstance(states, list | tuple) == (name == "lstm") and not (dropout and train)


@lru_cache(maxsize=1)
def _operators() -> dict[str, Any]:
    """Our operators by the names of torch's functions, defined when first needed."""
    library = torch.library.Library("dlcompiler", "DEF")  # torch drops the operators together with this object
    for name, function in _FUNCTIONS.items():
        states, results = ("Tensor[] hx", 3) if name == "lstm" else ("Tensor hx", 2)
        library.define(f"{name}(Tensor input, {states}, Tensor[] params, {_SETTINGS}) -> ({', '.join(['Tensor'] * results)})")
        library.impl(name, function, "CPU")
        library.impl(name, function, "CUDA")
        torch.library.register_fake(f"dlcompiler::{name}", _shapes, lib=library)
    _operators.library = library  # type: ignore[attr-defined]
    return {name: getattr(torch.ops.dlcompiler, name).default for name in _FUNCTIONS}


def _shapes(x: Tensor, hx: Any, params: Any, *settings: Any) -> tuple[Tensor, ...]:
    """Results of the right shapes, and with the strides that torch's functions give them."""
    bidirectional, batch_first = settings[4:]
    states = list(hx) if isinstance(hx, list | tuple) else [hx]
    width = states[0].shape[2] * (2 if bidirectional else 1)
    if batch_first:
        y = x.new_empty((x.shape[1], x.shape[0], width)).transpose(0, 1)
    else:
        y = x.new_empty((x.shape[0], x.shape[1], width))
    return (y, *(torch.empty_like(h, memory_format=torch.contiguous_format) for h in states))
