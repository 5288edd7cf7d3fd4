"""What recurrent layers share: directions, layout, lengths of sequences, and the pieces of their weights."""

from __future__ import annotations

from dlcompiler.frontends.onnx_registry import Call
from dlcompiler.ir.graph import Node


class Layer:
    """An LSTM, GRU or RNN node. Its weights are checked; `x` has the steps first."""

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
        self.lengths = self._lengths()

    def _check(self, index: int, shape: tuple) -> None:
        node = self.call.get(index)
        if node is not None and node.shape != shape:
            self.call.misfit(f"input {index} is {node.type}, not of shape {list(shape)}")

    def _lengths(self) -> Node | None:
        """Lengths [batch] of the sequences; None if all are as long as the input."""
        given = self.call.get(4)
        if given is None:
            return None
        known = self.call.b.dims(given)
        if known is not None and all(length == self.steps for length in known):
            return None
        self._check(4, (self.batch,))
        return given

    def no_outputs(self) -> Node:
        """The outputs of one direction where there are no steps."""
        return self.call.full(0, self.x.dtype, (0, 1, self.batch, self.hidden))

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
