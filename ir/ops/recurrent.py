"""Recurrent layers as one op each."""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.scalar import apply_scalar
from dlcompiler.ir.types import TensorType, TupleType


def _infer_lstm(types, attributes):
    """`lstm(x[T, B, I], h0[L*D, B, H], c0[L*D, B, H], *weights)` -> (y[T, B, D*H], h[L*D, B, H], c[L*D, B, H]).

    attributes: layers L, bidirectional (D is 2), has_biases, batch_first (x and y are [B, T, ...]). Weights in torch's order,
    for each layer and direction: input [4H, I], hidden [4H, H], then two biases [4H] if has_biases; gates i, f, g, o.
    """
    x, h0 = types[:2]
    directions = 2 if attributes["bidirectional"] else 1
    each = 4 if attributes["has_biases"] else 2
    if x.rank != 3 or h0.rank != 3 or len(types) != 3 + attributes["layers"] * directions * each:
        raise ShapeError(f"lstm of {', '.join(map(str, types[:3]))} with {len(types) - 3} weights: ranks or numbers do not fit")
    hidden = h0.shape[2]
    return TupleType(
        (x.with_shape((*x.shape[:2], directions * hidden)), TensorType(x.dtype, h0.shape), TensorType(x.dtype, h0.shape))
    )


def _run_direction(x, h, c, weights, reverse):
    w_input, w_hidden, *biases = weights
    gates_input = x @ w_input.T + (biases[0] + biases[1] if biases else 0)
    result = np.empty((*x.shape[:2], h.shape[-1]), dtype=x.dtype)
    steps = range(x.shape[0] - 1, -1, -1) if reverse else range(x.shape[0])
    for t in steps:
        i, f, g, o = np.split(gates_input[t] + h @ w_hidden.T, 4, axis=-1)
        c = apply_scalar("sigmoid", f) * c + apply_scalar("sigmoid", i) * np.tanh(g)
        h = apply_scalar("sigmoid", o) * np.tanh(c)
        result[t] = h
    return result, h, c


def _evaluate_lstm(operands, attributes):
    x, h0, c0, *weights = operands
    if attributes["batch_first"]:
        x = x.swapaxes(0, 1)
    directions = 2 if attributes["bidirectional"] else 1
    each = 4 if attributes["has_biases"] else 2
    last_h, last_c = [], []
    for layer in range(attributes["layers"]):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            y, h, c = _run_direction(x, h0[k], c0[k], weights[k * each : (k + 1) * each], direction == 1)
            outputs.append(y)
            last_h.append(h)
            last_c.append(c)
        x = np.concatenate(outputs, axis=-1)
    return (x.swapaxes(0, 1) if attributes["batch_first"] else x), np.stack(last_h), np.stack(last_c)


register("lstm", _infer_lstm, Trait.LIBRARY, evaluate=_evaluate_lstm)
