"""The logarithms of a layer's sums of exponentials, without the layer's result: what a loss over a large vocabulary needs of it.

    sums = linear_logsumexp(x, w, bias)  -->  logsumexp(linear(x, w, bias)) over each of `parts` of the columns

A kernel that walks over columns with a running largest value and sum never stores the product.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import known
from dlcompiler.ir.ops import Trait, lookup, register
from dlcompiler.ir.ops.rules import require_operands
from dlcompiler.ir.types import TensorType, compute_dtype


def column_parts(columns: int, parts: int) -> list[tuple[int, int]]:
    """The first column of each part and the one behind its last. All but the last are equally wide; a part may be empty."""
    width = -(-columns // parts)
    return [(min(k * width, columns), min((k + 1) * width, columns)) for k in range(parts)]


def _infer(types, attributes):
    """`linear_logsumexp(x[N, K], w[V, K], bias[V]?)` -> [parts, N], float32 (float64 of float64). V is known."""
    require_operands("linear_logsumexp", types, 2, 3)
    out = lookup("linear").infer(types, {})
    assert isinstance(out, TensorType)
    parts = attributes["parts"]
    if out.rank != 2 or not isinstance(out.shape[1], int):
        raise ShapeError(f"linear_logsumexp gives one number for each row of a matrix with a known number of columns, not {out}")
    if parts < 1 or any(low == high for low, high in column_parts(known(out.shape[1]), parts)):
        raise ShapeError(f"linear_logsumexp of {out.shape[1]} columns in {parts} parts leaves some empty")
    return TensorType(compute_dtype(out.dtype), (parts, out.shape[0]))


def _evaluate(operands, attributes):
    wide = np.float64 if operands[0].dtype == np.float64 else np.float32
    x, w, *bias = (a.astype(wide) for a in operands)
    product = x @ w.T + (bias[0] if bias else 0)
    return np.stack([_logsumexp(product[:, low:high]) for low, high in column_parts(w.shape[0], attributes["parts"])]).astype(
        wide
    )


def _logsumexp(x):
    largest = x.max(axis=1)
    shift = np.where(np.isinf(largest), 0, largest)
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(np.exp(x - shift[:, None]).sum(axis=1)) + shift


def _expand(b, operands, attributes):
    product = b.linear(*operands)
    dtype = compute_dtype(product.dtype)
    product = product if product.dtype is dtype else b.cast(product, dtype=dtype.name)
    rows, columns = product.shape
    cuts = [
        b.slice(product, starts=(0, low), limits=(rows, high), steps=(1, 1))
        for low, high in column_parts(known(columns), attributes["parts"])
    ]
    sums = [b.logsumexp(cut, axes=(1,), keepdims=True) for cut in cuts]
    return b.permute(sums[0] if len(sums) == 1 else b.concat(*sums, axis=1), dims=(1, 0))


register("linear_logsumexp", _infer, Trait.LIBRARY, Trait.COMPOSITE, evaluate=_evaluate, expand=_expand)
