"""The recurrence of a layer as training needs it: what each step's derivatives are made of is kept, and read by the gradients.

    y, h, c, kept, more = lstm_scan_keeping(h0, c0, gates, w_hidden)
    dgates, dh0, dc0 = lstm_scan_backward(dy, dh, dc, kept, more, w_hidden)

A step of the gradients needs a few numbers for each hidden unit, by which a derivative is multiplied on its way back; those are
kept, K of them, and nothing else. As many as there are gates lie in one result and the others, if any, in a second, so that
`kept` can take the place of `gates`, and `dgates` that of `kept`. Only the scan itself is here: gradients of weights are
products over all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, lookup, register
from dlcompiler.ir.ops.recurrent import CELLS, Array, Cell, evaluate_scan, sigmoid, unpacked
from dlcompiler.ir.ops.rules import require_float, require_operands, same_dtype
from dlcompiler.ir.types import TensorType, TupleType


@dataclass(frozen=True)
class Derivatives:
    """How derivatives go back through one step of a cell.

    count   K
    kept    (gates of the input [B, G*H], product with h [B, G*H], states before and after, attributes) -> K arrays [B, H]
    step    (dh [B, H], the other states' derivatives, kept) -> (derivatives of the gates [B, G*H], those of the product where
            they differ, those of the states before: of h what does not come through the product, or None)
    """

    count: int
    kept: Callable[..., list[Array]]
    step: Callable[[Array, Sequence[Array], Sequence[Array]], tuple[Array, Array | None, list[Array | None]]]


def _lstm_kept(gates, product, before, after, attributes):
    """Of i, f, g and o; then what dh adds to dc, and f itself."""
    (_, old), (_, new) = before, after
    i, f, g, o = np.split(gates + product, 4, axis=-1)
    i, f, g, o, grown = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o), np.tanh(new)
    return [g * i * (1 - i), old * f * (1 - f), i * (1 - g * g), grown * o * (1 - o), o * (1 - grown * grown), f]


def _lstm_back(dh, others, kept):
    of_i, of_f, of_g, of_o, of_c, f = kept
    dc = others[0] + dh * of_c
    gates = np.concatenate([dc * of_i, dc * of_f, dc * of_g, dh * of_o], axis=-1)
    return gates, None, [None, dc * f]


def _gru_kept(gates, product, before, after, attributes):
    """r, z, and of n from dh; then of z from dh, of r from dn."""
    ((old,),) = (before,)
    hidden = old.shape[-1]
    r, z = np.split(sigmoid(gates[:, : 2 * hidden] + product[:, : 2 * hidden]), 2, axis=-1)
    inner = product[:, 2 * hidden :]
    n = np.tanh(gates[:, 2 * hidden :] + r * inner)
    return [r, z, (1 - z) * (1 - n * n), (old - n) * z * (1 - z), inner * r * (1 - r)]


def _gru_back(dh, others, kept):
    r, z, of_n, of_z, of_r = kept
    dn = dh * of_n
    dr, dz = dn * of_r, dh * of_z
    return np.concatenate([dr, dz, dn], axis=-1), np.concatenate([dr, dz, dn * r], axis=-1), [dh * z]


def _rnn_kept(gates, product, before, after, attributes):
    """The slope of the activation."""
    (new,) = after
    return [1 - new * new if attributes["activation"] == "tanh" else (new > 0).astype(new.dtype)]


def _rnn_back(dh, others, kept):
    return dh * kept[0], None, [None]


DERIVATIVES = {
    "lstm": Derivatives(6, _lstm_kept, _lstm_back),
    "gru": Derivatives(5, _gru_kept, _gru_back),
    "rnn": Derivatives(1, _rnn_kept, _rnn_back),
}


def kept_widths(cell: Cell) -> tuple[int, ...]:
    """How many of the kept numbers lie in each result: as many as there are gates, then the others."""
    count = DERIVATIVES[cell.name].count
    return (cell.gates, count - cell.gates) if count > cell.gates else (cell.gates,)


def back_cell(op_name: str) -> Cell | None:
    """The cell of an op for the gradients of a scan, None for any other op."""
    name, _, rest = op_name.partition("_")
    return CELLS.get(name) if rest == "scan_backward" else None


# -- forward -------------------------------------------------------------------------------------------------------------------


def _infer_keeping(cell: Cell):
    def infer(types, attributes):
        """As the scan; also kept[D, T, B, G*H] and, where more is kept than that, more[D, T, B, (K-G)*H]."""
        scanned = lookup(f"{cell.name}_scan").infer(types, attributes)
        assert isinstance(scanned, TupleType)
        y, state = scanned.elements[:2]
        assert isinstance(y, TensorType) and isinstance(state, TensorType)
        directions, batch, hidden = state.shape
        kept = [TensorType(y.dtype, (directions, y.shape[0], batch, width * hidden)) for width in kept_widths(cell)]
        return TupleType((*scanned.elements, *kept))

    return infer


def _evaluate_keeping(cell: Cell):
    each = 3 if cell.inner_bias else 2
    derivatives, scan = DERIVATIVES[cell.name], evaluate_scan(cell)

    def evaluate(operands, attributes):
        results = scan(operands, attributes)
        dtype = operands[0].dtype
        wide = [x.astype(np.float32) if x.dtype.itemsize < 4 else x for x in operands]
        initial, rest = wide[: cell.states], wide[cell.states :]
        sides = []
        for direction, backwards in enumerate(attributes["reverse"]):
            gates, *packed = rest[direction * each : (direction + 1) * each]
            before = tuple(s[direction] for s in initial)
            weight, *bias = (unpacked(x, before[0].shape[-1]) for x in packed)
            kept = np.empty((*gates.shape[:2], derivatives.count * before[0].shape[-1]), gates.dtype)
            for t in reversed(range(len(gates))) if backwards else range(len(gates)):
                product = before[0] @ weight.T + (bias[0] if bias else 0)
                after = cell.step(gates[t], product, before, attributes)
                kept[t] = np.concatenate(derivatives.kept(gates[t], product, before, after, attributes), axis=-1)
                before = after
            sides.append(kept)
        kept = np.stack(sides).astype(dtype)
        return *results, *np.split(kept, [cell.gates * operands[0].shape[-1]], axis=-1)[: len(kept_widths(cell))]

    return evaluate


# -- backward ------------------------------------------------------------------------------------------------------------------


def _infer_backward(cell: Cell):
    def infer(types, attributes):
        """`scan_backward(dy[T, B, D*H], dstates[D, B, H]..., what the scan kept, w_hidden[G*H, H] of each direction)` ->
        (dgates[D, T, B, G*H] (, dproduct[D, T, B, G*H]), dstates[D, B, H]...).

        dproduct, where it differs from dgates, is the derivative of the product with h. attributes: reverse, as of the scan.
        """
        name = f"{cell.name}_scan_backward"
        directions = len(attributes["reverse"])
        if directions not in (1, 2):
            raise ShapeError(f"{name} in {directions} directions")
        require_operands(name, types, 1 + cell.states + len(kept_widths(cell)) + directions)
        dtype = require_float(name, same_dtype(name, types))
        dy, dh = types[:2]
        if dy.rank != 3 or dh.rank != 3:
            raise ShapeError(f"{name} of {dy}, {dh}: both need rank 3")
        (steps, batch), hidden = dy.shape[:2], dh.shape[2]
        rows = cell.gates * hidden
        wanted: list[tuple[Any, ...]] = [(steps, batch, directions * hidden), *[(directions, batch, hidden)] * cell.states]
        wanted += [(directions, steps, batch, width * hidden) for width in kept_widths(cell)]
        wanted += [(rows, hidden)] * directions
        for type, shape in zip(types, wanted):
            if type.shape != shape:
                raise ShapeError(f"{name}: an operand is {type}, not of shape {list(shape)}")
        gates = TensorType(dtype, (directions, steps, batch, rows))
        return TupleType((*[gates] * (2 if cell.inner_bias else 1), *[dh] * cell.states))

    return infer


def _evaluate_backward(cell: Cell):
    derivatives, parts = DERIVATIVES[cell.name], len(kept_widths(cell))

    def evaluate(operands, attributes: Any):
        dtype = operands[0].dtype
        dy, *rest = (x.astype(np.float32) if x.dtype.itemsize < 4 else x for x in operands)
        states, weights = rest[: cell.states], rest[cell.states + parts :]
        kept = np.concatenate(rest[cell.states : cell.states + parts], axis=-1)
        hidden = states[0].shape[-1]
        gates, products, firsts = [], [], []
        for direction, backwards in enumerate(attributes["reverse"]):
            weight = unpacked_rows(weights[direction], hidden)
            carried = [s[direction] for s in states]
            own = dy[..., direction * hidden : (direction + 1) * hidden]
            of_gates, of_products = (np.empty((*own.shape[:2], weight.shape[0]), own.dtype) for _ in range(2))
            for t in range(len(own)) if backwards else reversed(range(len(own))):
                factors = np.split(kept[direction, t], derivatives.count, axis=-1)
                found, product, before = derivatives.step(own[t] + carried[0], carried[1:], factors)
                of_gates[t], of_products[t] = found, found if product is None else product
                through = of_products[t] @ weight
                carried = [through if before[0] is None else through + before[0], *before[1:]]
            gates.append(of_gates)
            products.append(of_products)
            firsts.append(carried)
        results = [np.stack(gates), *([np.stack(products)] if cell.inner_bias else []), *map(np.stack, zip(*firsts))]
        return tuple(r.astype(dtype) for r in results)

    return evaluate


def unpacked_rows(x: Array, hidden: int) -> Array:
    """A weight [G*H, H] as it is, also of the panels [P, G*H, V, L] in which a program has it."""
    return x if x.ndim < 4 else x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)[:, :hidden]


for _cell in CELLS.values():
    register(f"{_cell.name}_scan_keeping", _infer_keeping(_cell), Trait.LIBRARY, evaluate=_evaluate_keeping(_cell))
    register(f"{_cell.name}_scan_backward", _infer_backward(_cell), Trait.LIBRARY, evaluate=_evaluate_backward(_cell))
