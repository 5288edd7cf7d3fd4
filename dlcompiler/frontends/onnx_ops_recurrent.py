"""Recurrent layers as one op each, where that computes them; else written out step by step."""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.onnx_ops_recurrent_steps import gru_steps, lstm_steps, rnn_steps
from dlcompiler.frontends.onnx_recurrent_layer import Layer
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node


def _default_activations(call: Call, layer: Layer, names: tuple[str, ...]) -> bool:
    given = call.attribute("activations")
    plain = given is None or tuple(a.lower() for a in given) == tuple(a.lower() for a in names) * layer.directions
    return plain and not call.attribute("activation_alpha") and not call.attribute("activation_beta")


def _whole(call: Call, layer: Layer, name: str, order: tuple[int, ...], **attributes: Any) -> tuple[Node, ...]:
    """The op `name`, whose k-th gate is ONNX's gate number `order[k]`."""
    gates = len(order)

    def reordered(node: Node) -> Node:
        blocks = layer.blocks(node, gates)
        return node if order == tuple(range(gates)) else call.concat([blocks[k] for k in order], 0)

    biased = call.get(3) is not None
    weights: list[Node] = []
    for direction in range(layer.directions):
        weights += [reordered(layer.piece(1, direction)), reordered(layer.piece(2, direction))]
        if biased:
            bias, half = layer.piece(3, direction), gates * layer.hidden
            weights += [reordered(call.slice(bias, 0, k * half, (k + 1) * half)) for k in range(2)]
    reverse = layer.direction == "reverse"
    x = call.b.flip(layer.x, axes=(0,)) if reverse else layer.x
    states = [layer.state(5), layer.state(6)] if name == "lstm" else [layer.state(5)]
    result = call.b(
        name, x, *states, *weights,
        layers=1, bidirectional=layer.directions == 2, has_biases=biased, batch_first=False, **attributes,
    )  # fmt: skip
    y, *lasts = (call.b("tuple.get", result, index=k) for k in range(1 + len(states)))
    if reverse:
        y = call.b.flip(y, axes=(0,))
    split = call.reshape(y, (layer.steps, layer.batch, layer.directions, layer.hidden))
    return layer.results(call.permute(split, (0, 2, 1, 3)), *lasts)


def _is_plain(call: Call, layer: Layer, *names: str) -> bool:
    """Whether a layer is what one op computes: the usual activations, and sequences of one length."""
    return _default_activations(call, layer, names) and layer.lengths is None and call.attribute("clip") is None


@operator("LSTM")
def lstm(call: Call) -> tuple[Node, ...]:
    """ONNX orders the gates i, o, f, c; the op `lstm` i, f, g, o."""
    layer = Layer(call, 4)
    if not _is_plain(call, layer, "Sigmoid", "Tanh", "Tanh") or call.flag("input_forget") or call.get(7) is not None:
        return lstm_steps(call, layer)
    return _whole(call, layer, "lstm", (0, 2, 3, 1))


@operator("RNN")
def rnn(call: Call) -> tuple[Node, ...]:
    layer = Layer(call, 1)
    activation = next((a for a in ("Tanh", "Relu") if _is_plain(call, layer, a)), None)
    return rnn_steps(call, layer) if activation is None else _whole(call, layer, "rnn", (0,), activation=activation.lower())


@operator("GRU")
def gru(call: Call) -> tuple[Node, ...]:
    """Gates in the order z, r, h; those of the op `gru` are r, z, n.

    The op multiplies by r after the recurrent product, which is ONNX's `linear_before_reset`; else the layer is written out.
    """
    layer = Layer(call, 3)
    if call.flag("linear_before_reset") and _is_plain(call, layer, "Sigmoid", "Tanh"):
        return _whole(call, layer, "gru", (1, 0, 2))
    return gru_steps(call, layer)
