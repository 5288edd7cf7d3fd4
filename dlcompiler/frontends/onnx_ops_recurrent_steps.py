"""Recurrent layers written out step by step: sequences of different lengths, other activations, clipped sums, peepholes.

    h[t] = step(x[t], h[t-1])          for t below the length of the row's sequence; behind it the state stays and the output is 0

Each step is ordinary ops; only a known number of steps is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from dlcompiler.frontends.onnx_recurrent_layer import Layer
from dlcompiler.frontends.onnx_registry import Call
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64

MOST_STEPS = 512
# new states of x[batch, input] and states[batch, hidden], the first of which is also the output
Step = Callable[[Node, list[Node]], list[Node]]
Activation = Callable[[Node], Node]
# the operator, or formula, of an activation and the defaults of its alpha and beta; None for one that it does not take
_ACTIVATIONS: Mapping[str, tuple[str, float | None, float | None]] = {
    "affine": ("Affine", 1.0, 0.0), "elu": ("Elu", 1.0, None), "hardsigmoid": ("HardSigmoid", 0.2, 0.5),
    "leakyrelu": ("LeakyRelu", 0.01, None), "relu": ("Relu", None, None), "scaledtanh": ("ScaledTanh", 1.0, 1.0),
    "sigmoid": ("Sigmoid", None, None), "softplus": ("Softplus", None, None), "softsign": ("Softsign", None, None),
    "tanh": ("Tanh", None, None), "thresholdedrelu": ("ThresholdedRelu", 1.0, None),
}  # fmt: skip


def activations(call: Call, layer: Layer, defaults: tuple[str, ...]) -> list[list[Activation]]:
    """For each direction its activations; alpha and beta are consumed in their order by those that take one."""
    names = call.attribute("activations") or defaults * layer.directions
    if len(names) != len(defaults) * layer.directions:
        call.invalid(f"{len(names)} activations, not {len(defaults)} for each direction")
    alphas, betas = iter(call.attribute("activation_alpha") or ()), iter(call.attribute("activation_beta") or ())
    made = [_activation(call, name, alphas, betas) for name in names]
    return [made[k : k + len(defaults)] for k in range(0, len(made), len(defaults))]


def _activation(call: Call, name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    found = _ACTIVATIONS.get(name.lower())
    if found is None:
        call.unsupported(f"activation {name!r}")
    operator, alpha, beta = found
    given: dict[str, float] = {}
    if alpha is not None:
        given["alpha"] = next(alphas, alpha)
    if beta is not None:
        given["beta"] = next(betas, beta)
    if operator == "Affine":
        return lambda x: call.b.add(call.b.mul(x, given["alpha"]), given["beta"])
    if operator == "ScaledTanh":
        return lambda x: call.b.mul(call.b.tanh(call.b.mul(x, given["beta"])), given["alpha"])
    return lambda x: call.apply(operator, x, given=given)


def clipped(call: Call, x: Node) -> Node:
    """A sum before its activation, within the bounds that `clip` gives."""
    bound = call.attribute("clip")
    return x if bound is None else call.b.clamp(x, low=-float(bound), high=float(bound))


def unrolled(call: Call, layer: Layer, states: int, step: Callable[[int], Step]) -> tuple[Node, ...]:
    """The layer whose direction k is `step(k)`, with so many states, which start as inputs 5, 6, ..."""
    if not isinstance(layer.steps, int) or layer.steps > MOST_STEPS:
        call.unsupported(f"a sequence of {layer.steps} steps; give their number with input shapes, {MOST_STEPS} at the most")
    sides, lasts = [], []
    for direction in range(layer.directions):
        backwards = direction == 1 or layer.direction == "reverse"
        side, last = _one_direction(call, layer, states, step(direction), direction, backwards)
        sides.append(side)
        lasts.append(last)
    return layer.results(call.concat(sides, 1), *(call.concat([last[k] for last in lasts], 0) for k in range(states)))


def _one_direction(
    call: Call, layer: Layer, states: int, apply: Step, direction: int, backwards: bool
) -> tuple[Node, list[Node]]:
    """Outputs [steps, 1, batch, hidden] and last states [1, batch, hidden]."""
    assert isinstance(layer.steps, int)
    shape = (layer.batch, layer.hidden)
    now = [call.reshape(call.slice(layer.state(5 + k), 0, direction, direction + 1), shape) for k in range(states)]
    lengths = None if layer.lengths is None else call.reshape(call.cast(layer.lengths, i64), (layer.batch, 1))
    outputs: dict[int, Node] = {}
    for t in reversed(range(layer.steps)) if backwards else range(layer.steps):
        new = apply(call.reshape(call.slice(layer.x, 0, t, t + 1), layer.x.shape[1:]), now)
        output = new[0]
        if lengths is not None:
            runs = call.b.gt(lengths, call.b.constant(t, i64))
            output = call.b.where(runs, output, call.number(0, output))
            new = [call.b.where(runs, after, before) for after, before in zip(new, now)]
        now = new
        outputs[t] = call.reshape(output, (1, 1, *shape))
    y = call.concat([outputs[t] for t in range(layer.steps)], 0) if layer.steps else layer.no_outputs()
    return y, [call.reshape(state, (1, *shape)) for state in now]


class Products:
    """x @ w.T + h @ r.T of one direction, gate by gate, with both biases."""

    def __init__(self, call: Call, layer: Layer, gates: int, direction: int) -> None:
        self.call = call
        self.w, self.r = (layer.blocks(layer.piece(k, direction), gates) for k in (1, 2))
        self.biases = layer.blocks(layer.piece(3, direction), 2 * gates) if call.get(3) is not None else None
        self.gates = gates

    def of_input(self, x: Node, gate: int) -> Node:
        return self._linear(x, self.w[gate], gate)

    def of_state(self, h: Node, gate: int) -> Node:
        return self._linear(h, self.r[gate], self.gates + gate)

    def both(self, x: Node, h: Node, gate: int) -> Node:
        return self.call.b.add(self.of_input(x, gate), self.of_state(h, gate))

    def _linear(self, x: Node, weight: Node, bias: int) -> Node:
        return self.call.b.linear(x, weight, *([self.biases[bias]] if self.biases is not None else []))


def lstm_steps(call: Call, layer: Layer) -> tuple[Node, ...]:
    """Gates i, o, f, c; peepholes [directions, 3 * hidden] of i, o, f look at the cell, that of o at the new one."""
    functions = activations(call, layer, ("Sigmoid", "Tanh", "Tanh"))

    def step(direction: int) -> Step:
        products = Products(call, layer, 4, direction)
        gate, candidate, shown = functions[direction]
        peepholes = layer.blocks(layer.piece(7, direction), 3) if call.get(7) is not None else None

        def total(x: Node, h: Node, cell: Node, which: int) -> Node:
            result = products.both(x, h, which)
            return clipped(call, result if peepholes is None else call.b.add(result, call.b.mul(peepholes[which], cell)))

        def apply(x: Node, states: list[Node]) -> list[Node]:
            h, cell = states
            entering = gate(total(x, h, cell, 0))
            if call.flag("input_forget"):
                kept = call.b.sub(call.number(1, entering), entering)
            else:
                kept = gate(total(x, h, cell, 2))
            new = candidate(clipped(call, products.both(x, h, 3)))
            cell = call.b.add(call.b.mul(kept, cell), call.b.mul(entering, new))
            return [call.b.mul(gate(total(x, h, cell, 1)), shown(cell)), cell]

        return apply

    return unrolled(call, layer, 2, step)


def gru_steps(call: Call, layer: Layer) -> tuple[Node, ...]:
    """Gates z, r, h; r is multiplied with the state before the recurrent product or, with `linear_before_reset`, after it."""
    functions = activations(call, layer, ("Sigmoid", "Tanh"))

    def step(direction: int) -> Step:
        products = Products(call, layer, 3, direction)
        gate, candidate = functions[direction]

        def apply(x: Node, states: list[Node]) -> list[Node]:
            (h,) = states
            update, reset = (gate(clipped(call, products.both(x, h, k))) for k in range(2))
            if call.flag("linear_before_reset"):
                recurrent = call.b.mul(reset, products.of_state(h, 2))
            else:
                recurrent = products.of_state(call.b.mul(reset, h), 2)
            new = candidate(clipped(call, call.b.add(products.of_input(x, 2), recurrent)))
            return [call.b.add(call.b.mul(call.b.sub(call.number(1, update), update), new), call.b.mul(update, h))]

        return apply

    return unrolled(call, layer, 1, step)


def rnn_steps(call: Call, layer: Layer) -> tuple[Node, ...]:
    functions = activations(call, layer, ("Tanh",))

    def step(direction: int) -> Step:
        products = Products(call, layer, 1, direction)
        (function,) = functions[direction]
        return lambda x, states: [function(clipped(call, products.both(x, states[0], 0)))]

    return unrolled(call, layer, 1, step)
