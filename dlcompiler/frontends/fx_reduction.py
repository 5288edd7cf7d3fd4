"""Rules for reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcompiler.frontends.fx_pointwise import as_bool
from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_view import axis_of, reshape
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, compute_dtype, u8


def axes_of(dim: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Reduced axes from the front, in order; None and [] mean all."""
    if dim is None or (not isinstance(dim, int) and not dim):
        return tuple(range(rank))
    dims = [dim] if isinstance(dim, int) else dim
    return tuple(sorted({axis_of(d, rank) for d in dims})) if rank else ()


def reduce(i: Any, op: str, x: Node, dim: Any, keepdim: bool = False) -> Node:
    """A reduction in the dtype of `x`."""
    axes = axes_of(dim, x.tensor.rank)
    if not axes and op in ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_any", "reduce_all"):
        return x
    return i.b(op, x, axes=axes, keepdims=bool(keepdim))


@rule("sum.default", "sum.dim_IntList", "prims.sum.default")
def _sum(i, x, dim=None, keepdim=False, dtype=None, output_dtype=None):
    return reduce(i, "reduce_sum", i.cast(x, i.dtype), dim, keepdim)


@rule("prod.default", "prod.dim_int")
def _prod(i, x, dim=None, keepdim=False, dtype=None):
    x = i.cast(x, i.dtype)
    return reduce(i, "reduce_all" if x.dtype is boolean else "reduce_prod", x, dim, keepdim)


@rule("mean.default", "mean.dim")
def _mean(i, x, dim=None, keepdim=False, dtype=None):
    axes = axes_of(dim, x.tensor.rank)
    x = i.cast(x, i.dtype)
    return i.b.mean(x, axes=axes, keepdims=bool(keepdim)) if axes else x


def _extreme(i: Any, name: str, x: Node, dim: Any, keepdim: bool) -> Node:
    if x.dtype is boolean:
        return reduce(i, {"max": "reduce_any", "min": "reduce_all"}[name], x, dim, keepdim)
    return reduce(i, f"reduce_{name}", x, dim, keepdim)


def _extreme_rules(name: str) -> None:
    @rule(f"a{name}.default")
    def _over_axes(i, x, dim=(), keepdim=False):
        return _extreme(i, name, x, dim, keepdim)

    @rule(f"{name}.default")
    def _over_all(i, x):
        return _extreme(i, name, x, None, False)

    @rule(f"{name}.dim")
    def _with_indices(i, x, dim, keepdim=False):
        values = _extreme(i, name, x, [dim], keepdim) if i.uses(0) else None
        return values, _position(i, f"arg{name}", x, dim, keepdim) if i.uses(1) else None

    @rule(f"arg{name}.default")
    def _arg(i, x, dim=None, keepdim=False):
        if dim is None and x.tensor.rank != 1:
            flat = _position(i, f"arg{name}", reshape(i, x, (x.tensor.numel,)), 0, False)
            return reshape(i, flat, i.shape)
        return _position(i, f"arg{name}", x, dim or 0, keepdim)


def _position(i: Any, op: str, x: Node, dim: int, keepdim: bool) -> Node:
    if x.dtype is boolean:
        x = i.cast(x, u8)
    if not x.tensor.rank:
        return i.number(0, i.type_of(i.meta[1] if isinstance(i.meta, tuple | list) else i.meta).dtype)
    return i.b(op, x, axes=(axis_of(dim, x.tensor.rank),), keepdims=bool(keepdim))


for _name in ("max", "min"):
    _extreme_rules(_name)


def _test_rule(name: str) -> None:
    @rule(f"{name}.default", f"{name}.dim", f"{name}.dims")
    def _test(i, x, dim=None, keepdim=False):
        return i.cast(reduce(i, f"reduce_{name}", as_bool(i, x), dim, keepdim), i.dtype)


for _name in ("any", "all"):
    _test_rule(_name)

# -- statistics --------------------------------------------------------------------------------------------------------------


def _variance(i: Any, x: Node, dim: Any, correction: Any, keepdim: bool) -> Node:
    axes = axes_of(dim, x.tensor.rank)
    correction = 1 if correction is None else correction
    if not isinstance(correction, int | float):
        raise NoRule("a correction that is not known at compile time")
    return i.b.variance(x, axes=axes, keepdims=bool(keepdim), correction=correction)


@rule("var.correction")
def _var(i, x, dim=None, correction=None, keepdim=False):
    return _variance(i, x, dim, correction, keepdim)


@rule("std.correction")
def _std(i, x, dim=None, correction=None, keepdim=False):
    wide = i.cast(x, compute_dtype(x.dtype))
    return i.cast(i.b.sqrt(_variance(i, wide, dim, correction, keepdim)), i.dtype)


@rule("var_mean.correction")
def _var_mean(i, x, dim=None, correction=None, keepdim=False):
    spread = _variance(i, x, dim, correction, keepdim) if i.uses(0) else None
    return spread, i.b.mean(x, axes=axes_of(dim, x.tensor.rank), keepdims=bool(keepdim)) if i.uses(1) else None


@rule("std_mean.correction")
def _std_mean(i, x, dim=None, correction=None, keepdim=False):
    spread = _std(i, x, dim, correction, keepdim) if i.uses(0) else None
    return spread, i.b.mean(x, axes=axes_of(dim, x.tensor.rank), keepdims=bool(keepdim)) if i.uses(1) else None


@rule("logsumexp.default")
def _logsumexp(i, x, dim, keepdim=False):
    x = i.cast(x, i.dtype)
    return i.b.logsumexp(x, axes=axes_of(dim, x.tensor.rank), keepdims=bool(keepdim))


def _softmax_rule(op: str):
    def apply(i, x, dim, half_to_float=False):
        x = i.cast(x, i.dtype)
        return i.b(op, x, axis=axis_of(dim, x.tensor.rank))

    return apply


rule("_softmax.default")(_softmax_rule("softmax"))
rule("_log_softmax.default")(_softmax_rule("log_softmax"))
