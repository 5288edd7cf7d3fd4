"""Recurrent layers: `lstm`, `gru` and `rnn` as one op each, and the recurrence of one layer that they are made of.

    lstm(x, h0, c0, weights)  -->  for each layer gates = linear(x, w_input, bias); y, h, c = lstm_scan(h0, c0, gates, w_hidden)

What depends on the input alone is one product for all time steps; only the scan goes step by step. T is the number of steps, B
the batch, I and H the sizes of the input and the hidden state, D the directions (1 or 2), G the gates of a cell, L the layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_float, require_operands, same_dtype
from dlcompiler.ir.scalar import apply_scalar
from dlcompiler.ir.types import TensorType, TupleType

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent cell.

    gates         G; the rows of its weights are in blocks of H, one for each gate
    states        arrays that go from step to step: h, and c of an lstm
    inner_bias    whether the bias of the recurrent product stays inside the recurrence, because a gate multiplies it
    step          (gates of the input [B, G*H], product with h [B, G*H], states, attributes) -> the next states
    """

    name: str
    gates: int
    states: int
    inner_bias: bool
    step: Callable[[Array, Array, tuple[Array, ...], Any], tuple[Array, ...]]


def sigmoid(x: Array) -> Array:
    return apply_scalar("sigmoid", x)


def _lstm_step(gates, product, states, attributes):
    _, c = states
    i, f, g, o = np.split(gates + product, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def _gru_step(gates, product, states, attributes):
    (h,) = states
    hidden = h.shape[-1]
    r, z = np.split(sigmoid(gates[:, : 2 * hidden] + product[:, : 2 * hidden]), 2, axis=-1)
    n = np.tanh(gates[:, 2 * hidden :] + r * product[:, 2 * hidden :])
    return ((1 - z) * n + z * h,)


def _rnn_step(gates, product, states, attributes):
    total = gates + product
    return (np.tanh(total) if attributes["activation"] == "tanh" else np.maximum(total, 0),)


CELLS = {
    cell.name: cell
    for cell in (
        Cell("lstm", 4, 2, False, _lstm_step),  # gates i, f, g, o
        Cell("gru", 3, 1, True, _gru_step),  # gates r, z, n
        Cell("rnn", 1, 1, False, _rnn_step),
    )
}


def scanned_cell(op_name: str) -> Cell | None:
    """The cell of a scan op (also of one that keeps what its gradients read), None for any other op."""
    name, _, rest = op_name.partition("_")
    return CELLS.get(name) if rest in ("scan", "scan_keeping") else None


def _require_activation(cell: Cell, attributes) -> None:
    if cell.name == "rnn" and attributes["activation"] not in ("tanh", "relu"):
        raise ShapeError(f"rnn with activation {attributes['activation']!r}, not tanh or relu")


# -- the recurrence of one layer ---------------------------------------------------------------------------------------------


def _infer_scan(cell: Cell):
    each = 3 if cell.inner_bias else 2

    def infer(types, attributes):
        """`scan(states[D, B, H]..., then for each direction gates[T, B, G*H], w_hidden[G*H, H] (, b_hidden[G*H]))` ->
        (y[T, B, D*H], states[D, B, H]...).

        attributes: reverse, for each direction whether it goes from the last step to the first; activation of an rnn.
        """
        name = f"{cell.name}_scan"
        directions = len(attributes["reverse"])
        if directions not in (1, 2):
            raise ShapeError(f"{name} in {directions} directions")
        require_operands(name, types, cell.states + directions * each)
        dtype = require_float(name, same_dtype(name, types))
        _require_activation(cell, attributes)
        h0, gates = types[0], types[cell.states]
        if h0.rank != 3 or gates.rank != 3:
            raise ShapeError(f"{name} of {h0}, {gates}: both need rank 3")
        steps, batch, hidden = gates.shape[0], gates.shape[1], h0.shape[2]
        rows = cell.gates * hidden
        wanted = [(directions, batch, hidden)] * cell.states
        wanted += [(steps, batch, rows), (rows, hidden), (rows,)][:each] * directions
        for type, shape in zip(types, wanted):
            if type.shape != shape:
                raise ShapeError(f"{name}: an operand is {type}, not of shape {list(shape)}")
        state = TensorType(dtype, h0.shape)
        return TupleType((TensorType(dtype, (steps, batch, directions * hidden)), *[state] * cell.states))

    return infer


def unpacked(x: Array, hidden: int) -> Array:
    """A weight [G*H, H] or bias [G*H] as it is, also of the panels [P, H, G, V, L] or [P, G, V, L] in which a program has it."""
    if x.ndim < 4:
        return x
    blocks = x.transpose(2, 0, 3, 4, 1) if x.ndim == 5 else x.transpose(1, 0, 2, 3)
    units = blocks.reshape(blocks.shape[0], -1, *blocks.shape[4:])[:, :hidden]
    return units.reshape(-1, *blocks.shape[4:])


def evaluate_scan(cell: Cell):
    """The meaning of the scan of a cell."""
    each = 3 if cell.inner_bias else 2

    def evaluate(operands, attributes):
        dtype = operands[0].dtype
        if dtype.name in ("float16", "bfloat16"):
            operands = [a.astype(np.float32) for a in operands]
        initial, rest = operands[: cell.states], operands[cell.states :]
        sides, lasts = [], []
        for direction, backwards in enumerate(attributes["reverse"]):
            gates, *packed = rest[direction * each : (direction + 1) * each]
            states = tuple(s[direction] for s in initial)
            weight, *bias = (unpacked(x, states[0].shape[-1]) for x in packed)
            y = np.empty((*gates.shape[:2], states[0].shape[-1]), gates.dtype)
            for t in reversed(range(len(gates))) if backwards else range(len(gates)):
                product = states[0] @ weight.T + (bias[0] if bias else 0)
                states = cell.step(gates[t], product, states, attributes)
                y[t] = states[0]
            sides.append(y)
            lasts.append(states)
        results = np.concatenate(sides, axis=-1), *(np.stack(each_state) for each_state in zip(*lasts))
        return tuple(r.astype(dtype) for r in results)

    return evaluate


# -- whole layers ------------------------------------------------------------------------------------------------------------


def _layer_counts(attributes) -> tuple[int, int, int]:
    """(layers, directions, weights and biases of one layer and direction)."""
    return attributes["layers"], 2 if attributes["bidirectional"] else 1, 4 if attributes["has_biases"] else 2


def _infer_layers(cell: Cell):
    def infer(types, attributes):
        """`lstm(x[T, B, I], h0[L*D, B, H], c0[L*D, B, H], *weights)` -> (y[T, B, D*H], h[L*D, B, H], c[L*D, B, H]).

        gru and rnn have no c. attributes: layers L, bidirectional (D is 2), has_biases, batch_first (x and y are [B, T, ...]),
        activation of an rnn. Weights in torch's order, for each layer and direction: input [G*H, I], hidden [G*H, H], then two
        biases [G*H] if has_biases; gates i, f, g, o of an lstm, r, z, n of a gru.
        """
        name = cell.name
        layers, directions, each = _layer_counts(attributes)
        require_operands(name, types, 1 + cell.states + layers * directions * each)
        require_float(name, same_dtype(name, types))
        _require_activation(cell, attributes)
        x, h0 = types[:2]
        if x.rank != 3 or h0.rank != 3:
            raise ShapeError(f"{name} of {x}, {h0}: both need rank 3")
        hidden = h0.shape[2]
        rows = cell.gates * hidden
        states = (layers * directions, x.shape[0 if attributes["batch_first"] else 1], hidden)
        weights = types[1 + cell.states :]
        for number in range(layers * directions):
            width = x.shape[2] if number < directions else directions * hidden
            wanted = [(rows, width), (rows, hidden), (rows,), (rows,)][:each]
            if [w.shape for w in weights[number * each : (number + 1) * each]] != wanted:
                raise ShapeError(f"{name}: the weights of layer {number // directions} are not {wanted}")
        if any(state.shape != states for state in types[1 : 1 + cell.states]):
            given = " and ".join(map(str, types[1 : 1 + cell.states]))
            raise ShapeError(f"{name} of {x}: {given} given as state, not {list(states)}")
        state = TensorType(x.dtype, h0.shape)
        return TupleType((x.with_shape((*x.shape[:2], directions * hidden)), *[state] * cell.states))

    return infer


def _evaluate_layers(cell: Cell):
    scan = evaluate_scan(cell)

    def evaluate(operands, attributes):
        dtype = operands[0].dtype
        if dtype.name in ("float16", "bfloat16"):
            operands = [a.astype(np.float32) for a in operands]
        layers, directions, each = _layer_counts(attributes)
        x, initial, weights = operands[0], operands[1 : 1 + cell.states], operands[1 + cell.states :]
        if attributes["batch_first"]:
            x = x.swapaxes(0, 1)
        lasts = []
        for layer in range(layers):
            first = layer * directions
            operands_of_scan = [s[first : first + directions] for s in initial]
            for number in range(first, first + directions):
                w_input, w_hidden, *biases = weights[number * each : (number + 1) * each]
                operands_of_scan += _scan_operands(cell, x @ w_input.T, w_hidden, biases, np.add)
            x, *states = scan(operands_of_scan, {**attributes, "reverse": (False, True)[:directions]})
            lasts.append(states)
        results = (x.swapaxes(0, 1) if attributes["batch_first"] else x), *(np.concatenate(s) for s in zip(*lasts))
        return tuple(r.astype(dtype) for r in results)

    return evaluate


def _scan_operands(cell: Cell, product, w_hidden, biases, add) -> list:
    """What a scan reads for one direction; `biases` are none, or the input's and the recurrent product's."""
    if cell.inner_bias:
        recurrent = biases[1] if biases else np.zeros(w_hidden.shape[0], w_hidden.dtype)
        return [add(product, biases[0]) if biases else product, w_hidden, recurrent]
    return [add(product, add(*biases)) if biases else product, w_hidden]


def _expand_layers(cell: Cell):
    def expand(b, operands, attributes):
        """One linear and one scan a layer, for a known hidden size; None for others: a library's."""
        layers, directions, each = _layer_counts(attributes)
        x, initial, weights = operands[0], operands[1 : 1 + cell.states], operands[1 + cell.states :]
        if not isinstance(initial[0].shape[2], int) or initial[0].shape[2] < 1:
            return None
        batch_first = attributes["batch_first"]
        kept = {"activation": attributes["activation"]} if cell.name == "rnn" else {}
        lasts = []
        for layer in range(layers):
            operands_of_scan = [_rows(b, state, layer * directions, directions) for state in initial]
            for number in range(layer * directions, (layer + 1) * directions):
                w_input, w_hidden, *biases = weights[number * each : (number + 1) * each]
                operands_of_scan += _projected(b, cell, x, w_input, w_hidden, biases, batch_first and layer == 0)
            result = b(f"{cell.name}_scan", *operands_of_scan, reverse=(False, True)[:directions], **kept)
            x, *states = (b("tuple.get", result, index=k) for k in range(1 + cell.states))
            lasts.append(states)
        joined = lasts[0] if layers == 1 else [b.concat(*states, axis=0) for states in zip(*lasts)]
        return (b.permute(x, dims=(1, 0, 2)) if batch_first else x, *joined)

    return expand


def _rows(b, state, first: int, count: int):
    """`state[first : first + count]` of a [L*D, B, H]."""
    if state.shape[0] == count:
        return state
    return b.slice(state, starts=(first, 0, 0), limits=(first + count, *state.shape[1:]), steps=(1, 1, 1))


def _projected(b, cell: Cell, x, w_input, w_hidden, biases, batch_first: bool) -> list:
    """One direction's operands of the scan, its input projected for all steps at once."""
    if cell.inner_bias:
        recurrent = biases[1] if biases else b.constant(np.zeros(w_hidden.shape[0], x.dtype.numpy))
        inner, outer = [recurrent], biases[:1]
    else:
        inner, outer = [], [b.add(*biases)] if biases else []
    gates = b.linear(x, w_input, *outer)
    return [b.permute(gates, dims=(1, 0, 2)) if batch_first else gates, w_hidden, *inner]


for _cell in CELLS.values():
    register(
        _cell.name,
        _infer_layers(_cell),
        Trait.LIBRARY,
        Trait.COMPOSITE,
        evaluate=_evaluate_layers(_cell),
        expand=_expand_layers(_cell),
    )
    register(f"{_cell.name}_scan", _infer_scan(_cell), Trait.LIBRARY, evaluate=evaluate_scan(_cell))
