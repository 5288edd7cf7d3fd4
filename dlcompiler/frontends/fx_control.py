"""Higher-order operators: control flow as region ops, and those that are inlined, since they only say something about a part.

    cond(p, f, g, [x])                --> if(p, x) {then = f, else = g}
    while_loop(c, f, [x], [y])        --> loop(endless, c(x, y), x, y) {body = (f(x, y), then c of that), carried = 1}
    scan(f, [h], [xs], [y])           --> loop(length, true, h, xs, y) {body = f(h, xs[iteration], y), carried = 1}
    map(f, [xs], [y])                 --> loop(length, true, xs, y) {body = f(xs[iteration], y), carried = 0}
    invoke_subgraph(f, name, x)       --> f(x)
    auto_functionalized(op, x=x)      --> aten.call of op with a copy of x, which is a result too
    flex_attention(q, k, v, f, ...)   --> scores, f of each of them, softmax, product

Their meaning is torch's; `ir.control` says what the region ops mean.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from dlcompiler.frontends.fx_alias import root_of
from dlcompiler.frontends.fx_types import WeakNumber, type_of_fake
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Expression, symbol, symbol_name, symbols
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import TensorType, TupleType, boolean, f64, i64

ENDLESS = 2**63 - 1


def higher_order(i: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The results of the higher-order operator at hand, a tuple. Raises UnsupportedError for one that is not known."""
    known = _OPERATORS.get(name)
    if known is None:
        raise _refused(i, name)
    return known(i, *args, **kwargs)


def _refused(i: Any, what: str) -> UnsupportedError:
    return UnsupportedError(f"a call of {what}", items=(what,), location=i.b.location)


# -- regions -------------------------------------------------------------------------------------------------------------------


class Region:
    """A graph that takes some values from around it: all that torch hands to a body, and the sizes that these do not tell."""

    def __init__(self, i: Any, name: str, head: Sequence[TensorType], values: Sequence[Any]) -> None:
        self.outer, self.inner = i, i.part(name)
        b = self.inner.b
        self.head = [b.input(f"own{k}", type) for k, type in enumerate(head)]
        tensors = [v for v in values if isinstance(v, Node)]
        for value in values:
            if not isinstance(value, Node | Expression | int | float | bool | None):
                raise _refused(i, f"a body that is given a {type(value).__name__}")
        inputs = {v: b.input(f"x{k}", v.tensor) for k, v in enumerate(dict.fromkeys(tensors))}
        self.operands: list[Node] = list(inputs)
        told = {symbol_name(d) for t in (*self.head, *tensors) for d in t.shape}
        used = set().union(
            *(symbols(d) for t in tensors for d in t.shape), *(symbols(v) for v in values if isinstance(v, Expression))
        )
        for size in sorted(used - told):
            b.size_input(f"size_{size}", size)
            self.operands.append(i.size(symbol(size)))
        self.values = [inputs[v] if isinstance(v, Node) else v for v in values]

    def close(self, outputs: Iterable[Any]) -> Graph:
        """The graph. What is handed through gets memory of its own, as in torch's."""
        b, given = self.inner.b, []
        for output in outputs:
            node = output if isinstance(output, Node) else self.inner.number_result(output)
            given.append(b.copy(node) if root_of(node).op.name in ("input", "constant") else node)
        return b.finish(given)


def _results(i: Any, op: str, operands: Sequence[Node], attributes: dict[str, Any]) -> tuple[Node, ...]:
    """The results, numbers among them read as torch's symbols for them."""
    types = tuple(type_of_fake(m) if isinstance(m, torch.Tensor) else _type_of_number(i, op, m) for m in i.meta)
    node = i.b.make(lookup(op), tuple(operands), attributes, TupleType(types), op)
    i.told.note(node)
    results = [i.b("tuple.get", node, index=k) for k in range(len(i.meta))]
    return tuple(r if isinstance(m, torch.Tensor) else i.told.read(r, m) for r, m in zip(results, i.meta))


def _type_of_number(i: Any, op: str, example: Any) -> TensorType:
    if isinstance(example, bool | torch.SymBool):
        return TensorType(boolean, ())
    if isinstance(example, int | torch.SymInt):
        return TensorType(i64, ())
    if isinstance(example, float | torch.SymFloat):
        return TensorType(f64, ())
    raise _refused(i, f"{op} that gives a {type(example).__name__}")


def _fits(i: Any, result: Any, example: Any) -> bool:
    """Whether what a region gives is what torch says, but for sizes that only the region tells."""
    if not isinstance(example, torch.Tensor):
        return not isinstance(result, Node)
    expected = type_of_fake(example)
    if not isinstance(result, Node) or result.dtype is not expected.dtype or result.tensor.rank != expected.rank:
        return False
    return all(
        own == size or (symbol_name(size) and not i.told.is_known(size)) for own, size in zip(result.shape, expected.shape)
    )


def _require_types(i: Any, given: Sequence[Any], wanted: Sequence[Any]) -> None:
    for value, like in zip(given, wanted, strict=True):
        if not isinstance(value, Node) or not isinstance(like, Node) or value.type != like.type:
            raise _refused(i, "a loop whose values change their types")


def _cond(i: Any, condition: Any, then: Any, other: Any, operands: Sequence[Any] = ()) -> Any:
    if isinstance(condition, WeakNumber | bool):  # a condition of sizes, or of a number that was read
        condition = i.number(condition, boolean)
    if not isinstance(condition, Node):
        raise _refused(i, "cond of what is no tensor")
    condition = i.b.reshape(i.cast(condition, boolean), shape=())
    regions = [Region(i, name, (), operands) for name in ("then", "else")]
    outputs = [region.inner.inline(module, region.values) for region, module in zip(regions, (then, other))]
    for results in outputs:
        for result, example in zip(results, i.meta):
            if not _fits(i, result, example):
                raise _refused(i, "cond whose branches give different types")
    attributes = {name: region.close(results) for name, region, results in zip(("then", "else"), regions, outputs)}
    return _results(i, "if", (condition, *regions[0].operands), attributes)


def _while_loop(i: Any, condition: Any, body: Any, carried: Sequence[Any], others: Sequence[Any] = ()) -> Any:
    carried = [c if isinstance(c, Node) else i.number_result(c) for c in carried]

    def run(importer: Any, module: Any, state: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        """A body's results, in which numbers that are carried as tensors are numbers again."""
        examples = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
        is_number = [isinstance(e, int | float | torch.SymInt | torch.SymFloat | torch.SymBool) for e in examples]
        given = [importer.told.read(s, e) if number else s for s, e, number in zip(state, examples, is_number)]
        return importer.inline(module, [*given, *rest])

    def going(importer: Any, state: Sequence[Any], rest: Sequence[Any]) -> Node:
        with importer.told.apart(n.meta.get("val") for n in condition.graph.nodes if n.op == "placeholder"):
            (result,) = run(importer, condition, state, rest)
        result = result if isinstance(result, Node) else importer.number(result, boolean)
        return importer.b.reshape(importer.cast(result, boolean), shape=())

    def step(importer: Any, iteration: Node, state: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        after = [x if isinstance(x, Node) else importer.number_result(x) for x in run(importer, body, state, rest)]
        _require_types(i, after, state)
        return [going(importer, after, rest), *after]

    first = going(i, carried, others)
    return _loop(i, i.number(ENDLESS, i64), first, carried, others, step)


def _scan(i: Any, combine: Any, carried: Sequence[Any], rows: Sequence[Node], others: Sequence[Any] = ()) -> Any:
    length = rows[0].shape[0]

    def step(importer: Any, iteration: Node, state: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        slices = [importer.b.index(x, iteration, axes=(0,)) for x in rest[: len(rows)]]
        after = importer.inline(combine, [*state, *slices, *rest[len(rows) :]])
        _require_types(i, after[: len(state)], state)
        return [importer.number(True, boolean), *after]

    return _loop(i, i.number(length, i64), i.number(True, boolean), carried, [*rows, *others], step)


def _map(i: Any, function: Any, rows: Sequence[Node], others: Sequence[Any] = ()) -> Any:
    return _scan(i, function, (), rows, others)


def _loop(
    i: Any,
    trips: Node,
    going: Node,
    carried: Sequence[Node],
    others: Sequence[Any],
    step: Callable[[Any, Node, Sequence[Any], Sequence[Any]], list[Any]],
) -> Any:
    """`step(importer, iteration, state, others)` gives the next condition, the next state and a row of each stacked result."""
    region = Region(i, "body", [TensorType(i64, ()), TensorType(boolean, ()), *(c.tensor for c in carried)], others)
    iteration, _, *state = region.head
    outputs = step(region.inner, iteration, state, region.values)
    attributes = {"body": region.close(outputs), "carried": len(carried)}
    return _results(i, "loop", (trips, going, *carried, *region.operands), attributes)


def own_arguments() -> AbstractContextManager[None]:
    """While torch makes graphs functional: an argument that is written to is said by itself, not as a part of a base."""
    from torch._inductor import config

    return config.patch(enable_auto_functionalized_v2=False)


# -- what is inlined ----------------------------------------------------------------------------------------------------------


def _invoke_subgraph(i: Any, module: Any, name: str, *operands: Any) -> Any:
    return tuple(i.inline(module, operands))


def _auto_functionalized(i: Any, operator: Any, _only_clone_these_tensors: Any = None, **kwargs: Any) -> Any:
    """(results of the operator, what it wrote to): the operator is given copies to write to."""
    arguments = operator._schema.arguments
    names = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    given = {a.name: kwargs[a.name] for a in arguments if a.name in kwargs}
    return i.call_writing(operator, given, names)


def _auto_functionalized_v2(i: Any, operator: Any, _all_bases: Sequence[Any] = (), **kwargs: Any) -> Any:
    """The same where arguments that are written to are said as views of bases, as torch does for operators named `x_`."""
    chosen: list[int] = []
    for argument in operator._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            base, prefix = kwargs.get(f"_{argument.name}_base_index"), f"_{argument.name}_"
            is_part = any(f"{prefix}{said}" in kwargs for said in ("size", "slice_dim", "length"))
            if base is None or base in chosen or is_part:
                raise _refused(i, f"{operator}, which writes to a part of a tensor")
            chosen.append(base)
            kwargs[argument.name] = _all_bases[base]
    given = {name: value for name, value in kwargs.items() if not name.startswith("_")}
    results = _auto_functionalized(i, operator, **given)
    first = len(results) - len(chosen)
    written = dict(zip(chosen, results[first:]))
    return (*results[:first], *(written[base] for base in range(len(_all_bases))))


def _flex_attention(i: Any, *args: Any) -> Any:
    """Scores written out: they exist as a whole, where a target has no kernel that makes them block by block."""
    from torch._guards import detect_fake_mode
    from torch.fx.experimental.proxy_tensor import make_fx

    from dlcompiler.frontends.fx_decompositions import decompositions

    written_out = importlib.import_module("torch._higher_order_ops.flex_attention").math_attention
    examples, operands = [], []

    def example(node: torch.fx.Node) -> Any:
        value = node.meta["val"] if "val" in node.meta else i.values[node]
        if isinstance(value, torch.Tensor):
            examples.append(value)
            operands.append(i.values[node])
        elif not isinstance(value, torch.nn.Module):
            raise _refused(i, "flex_attention of sizes known only when called")
        return value

    given = torch.fx.map_arg(i.node.args, example)
    leaves, spec = torch.utils._pytree.tree_flatten(given)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def call(*tensors: torch.Tensor) -> Any:
        for place, tensor in zip(places, tensors, strict=True):
            leaves[place] = tensor
        return written_out(*torch.utils._pytree.tree_unflatten(leaves, spec))

    mode = detect_fake_mode(examples)
    assert mode is not None, "an import has examples"
    with mode:
        traced = make_fx(call, decomposition_table=decompositions(i.numerics))(*examples)
    return tuple(i.inline(traced, operands))


_OPERATORS: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "scan": _scan,
    "map_impl": _map,
    "invoke_subgraph": _invoke_subgraph,
    "auto_functionalized": _auto_functionalized,
    "auto_functionalized_v2": _auto_functionalized_v2,
    "flex_attention": _flex_attention,
}
