"""Recurrent layers as one op each."""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_float, require_operands, same_dtype
from dlcompiler.ir.scalar import apply_scalar
from dlcompiler.ir.types import TensorType, TupleType


def _infer_lstm(types, attributes):
    """`lstm(x[T, B, I], h0[L*D, B, H], c0[L*D, B, H], *weights)` -> (y[T, B, D*H], h[L*D, B, H], c[L*D, B, H]).

    attributes: layers L, bidirectional (D is 2), has_biases, batch_first (x and y are [B, T, ...]). Weights in torch's order,
    for each layer and direction: input [4H, I], hidden [4H, H], then two biases [4H] if has_biases; gates i, f, g, o.
    """
    directions = 2 if attributes["bidirectional"] else 1
    each = 4 if attributes["has_biases"] else 2
    require_operands("lstm", types, 3 + attributes["layers"] * directions * each)
    require_float("lstm", same_dtype("lstm", types))
    x, h0, c0 = types[:3]
    if x.rank != 3 or h0.rank != 3:
        raise ShapeError(f"lstm of {x}, {h0}: both need rank 3")
    hidden = h0.shape[2]
    states = (attributes["layers"] * directions, x.shape[0 if attributes["batch_first"] else 1], hidden)
    weights = types[3:]
    for number in range(attributes["layers"] * directions):
        width = x.shape[2] if number < directions else directions * hidden
        wanted = [(4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)][:each]
        if [w.shape for w in weights[number * each : (number + 1) * each]] != wanted:
            raise ShapeError(f"lstm: the weights of layer {number // directions} are not {wanted}")
    if h0.shape != states or c0.shape != states:
        raise ShapeError(f"lstm of {x}: the states {h0} and {c0} are not {list(states)}")
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
    dtype = operands[0].dtype
    if dtype.name in ("float16", "bfloat16"):
        operands = [a.astype(np.float32) for a in operands]
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
    results = (x.swapaxes(0, 1) if attributes["batch_first"] else x), np.stack(last_h), np.stack(last_c)
    return tuple(r.astype(dtype) for r in results)


register("lstm", _infer_lstm, Trait.LIBRARY, evaluate=_evaluate_lstm)
