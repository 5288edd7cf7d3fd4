"""Recurrent layers as one op each; a GRU that resets before its product is written out step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node

MOST_STEPS = 512


class _Layer:
    """What LSTM, GRU and RNN share: directions, layout, and the pieces of their weights."""

    def __init__(self, call: Call, gates: int) -> None:
        self.call = call
        x = call.require_rank(0, 3, 3)
        self.batch_first = call.flag("layout")
        self.x = call.permute(x, (1, 0, 2)) if self.batch_first else x
        self.steps, self.batch, _ = self.x.shape
        self.direction = call.attribute("direction", "forward")
        if self.direction not in ("forward", "reverse", "bidirectional"):
            call.invalid(f"direction is {self.direction!r}, not forward, reverse or bidirectional")
        self.directions = 2 if self.direction == "bidirectional" else 1
        hidden = call.require_rank(2, 3, 3).shape[2]
        declared = call.attribute("hidden_size", hidden)
        if not isinstance(hidden, int) or declared != hidden:
            call.misfit(f"hidden_size {declared} does not fit the recurrent weight {call[2].type}")
        self.hidden = hidden
        self._check(1, (self.directions, gates * hidden, x.shape[2]))
        self._check(2, (self.directions, gates * hidden, hidden))
        self._check(3, (self.directions, 2 * gates * hidden))
        if call.get(4) is not None:
            if any(length != self.steps for length in call.dims(4, "lengths of sequences")):
                call.unsupported("sequences of different lengths")
        if call.attribute("clip") is not None:
            call.unsupported("clip")

    def _check(self, index: int, shape: tuple) -> None:
        node = self.call.get(index)
        if node is not None and node.shape != shape:
            self.call.misfit(f"input {index} is {node.type}, not of shape {list(shape)}")

    def state(self, index: int) -> Node:
        """An initial state [directions, batch, hidden]; zeros where it is not given."""
        call, shape = self.call, (self.directions, self.batch, self.hidden)
        node = call.get(index)
        if node is None:
            return call.full(0, self.x.dtype, shape)
        if self.batch_first:
            node = call.permute(node, (1, 0, 2))
        if node.shape != shape:
            call.misfit(f"the initial state is {node.type}, not of shape {list(shape)}")
        return node

    def piece(self, index: int, direction: int) -> Node:
        """One direction's part of a weight or bias."""
        node = self.call[index]
        return self.call.reshape(self.call.slice(node, 0, direction, direction + 1), node.shape[1:])

    def blocks(self, node: Node, count: int) -> list[Node]:
        """A weight or bias cut into `count` gates along dimension 0."""
        return [self.call.slice(node, 0, k * self.hidden, (k + 1) * self.hidden) for k in range(count)]

    def results(self, y: Node, *states: Node) -> tuple[Node, ...]:
        """y[steps, directions, batch, hidden] and states[directions, batch, hidden] in the wanted layout."""
        if not self.batch_first:
            return (y, *states)
        return (self.call.permute(y, (2, 0, 1, 3)), *(self.call.permute(s, (1, 0, 2)) for s in states))


def _default_activations(call: Call, layer: _Layer, names: tuple[str, ...]) -> bool:
    given = call.attribute("activations")
    plain = given is None or tuple(a.lower() for a in given) == tuple(a.lower() for a in names) * layer.directions
    return plain and not call.attribute("activation_alpha") and not call.attribute("activation_beta")


def _whole(call: Call, layer: _Layer, name: str, order: tuple[int, ...], **attributes: Any) -> tuple[Node, ...]:
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


@operator("LSTM")
def lstm(call: Call) -> tuple[Node, ...]:
    """ONNX orders the gates i, o, f, c; the op `lstm` i, f, g, o."""
    layer = _Layer(call, 4)
    if not _default_activations(call, layer, ("Sigmoid", "Tanh", "Tanh")):
        call.unsupported("other activations than sigmoid and tanh")
    if call.flag("input_forget"):
        call.unsupported("coupled input and forget gates")
    if call.get(7) is not None:
        call.unsupported("peephole weights")
    return _whole(call, layer, "lstm", (0, 2, 3, 1))


@operator("RNN")
def rnn(call: Call) -> tuple[Node, ...]:
    layer = _Layer(call, 1)
    activation = next((a for a in ("Tanh", "Relu") if _default_activations(call, layer, (a,))), None)
    if activation is None:
        call.unsupported("other activations than tanh, or relu, in all directions")
    return _whole(call, layer, "rnn", (0,), activation=activation.lower())


@operator("GRU")
def gru(call: Call) -> tuple[Node, ...]:
    """Gates in the order z, r, h; those of the op `gru` are r, z, n.

    The op multiplies by r after the recurrent product, which is ONNX's `linear_before_reset`; else the layer is written out.
    """
    layer = _Layer(call, 3)
    if not _default_activations(call, layer, ("Sigmoid", "Tanh")):
        call.unsupported("other activations than sigmoid and tanh")
    if call.flag("linear_before_reset"):
        return _whole(call, layer, "gru", (1, 0, 2))
    return _unrolled(call, layer, _reset_before_product(call, layer))


# -- written out -------------------------------------------------------------------------------------------------------------


def _unrolled(call: Call, layer: _Layer, step: Callable[[int], Callable[[Node, Node], Node]]) -> tuple[Node, ...]:
    """`step(direction)(x_t[batch, input], h[batch, hidden]) -> h` applied along the sequence."""
    if not isinstance(layer.steps, int) or layer.steps > MOST_STEPS:
        call.unsupported(f"a sequence of {layer.steps} steps")
    initial, lasts, sides = layer.state(5), [], []
    for direction in range(layer.directions):
        h = call.reshape(call.slice(initial, 0, direction, direction + 1), (layer.batch, layer.hidden))
        apply = step(direction)
        backwards = direction == 1 or layer.direction == "reverse"
        states: dict[int, Node] = {}
        for t in reversed(range(layer.steps)) if backwards else range(layer.steps):
            h = apply(call.reshape(call.slice(layer.x, 0, t, t + 1), layer.x.shape[1:]), h)
            states[t] = call.reshape(h, (1, 1, layer.batch, layer.hidden))
        sides.append(call.concat([states[t] for t in range(layer.steps)], 0))
        lasts.append(call.reshape(h, (1, layer.batch, layer.hidden)))
    return layer.results(call.concat(sides, 1), call.concat(lasts, 0))


def _reset_before_product(call: Call, layer: _Layer) -> Callable[[int], Callable[[Node, Node], Node]]:
    """A step of a gru that multiplies the state by r before the recurrent product."""

    def step(direction: int) -> Callable[[Node, Node], Node]:
        w, r = (layer.blocks(layer.piece(k, direction), 3) for k in (1, 2))
        biases = layer.blocks(layer.piece(3, direction), 6) if call.get(3) is not None else None

        def product(x: Node, weight: Node, bias: int) -> Node:
            return call.b.linear(x, weight, biases[bias]) if biases is not None else call.b.linear(x, weight)

        def apply(x: Node, h: Node) -> Node:
            update, reset = (call.b.sigmoid(call.b.add(product(x, w[k], k), product(h, r[k], 3 + k))) for k in range(2))
            recurrent = product(call.b.mul(reset, h), r[2], 5)
            new = call.b.tanh(call.b.add(product(x, w[2], 2), recurrent))
            return call.b.add(call.b.mul(call.b.sub(call.number(1, update), update), new), call.b.mul(update, h))

        return apply

    return step
