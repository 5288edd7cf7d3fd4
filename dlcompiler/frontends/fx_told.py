"""Numbers that data tells: what is read out of tensors, sizes of results that only data knows, and what a model asserts of them.

    n = x.item()                    -->  %n as a number, and  sizes(%n) {symbols = ("u0",)}  where it is used as a size
    torch._check(n <= y.shape[0])   -->  check() {relation = "le", left = u0, right = s1, message = ...}
    nonzero(x)                      -->  sizes(how many), then the places as a tensor of that size (`fx_compaction`)

torch calls such a number u0. One that may be negative is the difference of two sizes of ours, u0.plus - u0.minus (`fx_types`).
What nothing reads as a size stays a 0-d tensor, so that a graph which only computes with it is one program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dlcompiler.frontends.fx_numbers import integer_of_sizes, relation_of_sizes, truth_of_sizes
from dlcompiler.frontends.fx_types import WeakNumber, dim_from_sympy, dim_from_torch, is_told_by_data, stand_in
from dlcompiler.ir.control import bound_by
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim, is_non_negative, symbol, symbol_name, symbols
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import TupleType, boolean, f64, i64

if TYPE_CHECKING:
    from dlcompiler.frontends.fx_import import Importer

READ = "aten._local_scalar_dense.default"
ASSERT = "aten._assert_scalar.default"
# assertions: those on sizes of inputs are guards, or the runtime's own check of its inputs
CHECKS = (
    "aten._assert_tensor_metadata.default",
    ASSERT,
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
)
# what torch says where a model gave no words of its own
_GENERIC = "Runtime assertion failed for expression"
_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def tells_sizes(node: torch.fx.Node) -> bool:
    """Whether a node's result has sizes, or is a number, that only its data tells."""
    return bool(node.meta.get("unbacked_bindings"))


def unite_equal_sizes(module: torch.fx.GraphModule) -> None:
    """Let sizes that a model asserts to be equal be one size of ours: torch._check(u1 == u0) --> u1 is u0.

    That is asked where the second is read (`Told.tell`).
    """
    for node in module.graph.nodes:
        is_check = str(node.target) == ASSERT and isinstance(node.args[0], torch.fx.Node)
        asserted = node.args[0].meta.get("val") if is_check else None
        if not isinstance(asserted, torch.SymBool) or type(asserted.node.expr).__name__ != "Equality":
            continue
        environment, pair = asserted.node.shape_env, asserted.node.expr.args
        if not all(each.is_Symbol for each in pair):
            continue
        dims = [dim_from_sympy(each, environment) for each in pair]
        for own, dim, other in zip(pair, dims, reversed(dims)):
            if dim != other and is_told_by_data(own.name) and symbol_name(dim) == own.name and symbol_name(other):
                stand_in(environment, own, other)
                break


class Told:
    """What data has told an importer so far.

    floats   f64 numbers by the names of torch's symbols for them; `truths`: bools by torch's expressions
    """

    def __init__(self, importer: Importer) -> None:
        self.importer = importer
        self.floats: dict[str, Node] = {}
        self.truths: dict[Any, Node] = {}
        self._numbers: dict[Dim, Node] = {}
        self._bound: dict[str, Node] = {}
        self._is_any = False
        self._made = 0

    def __bool__(self) -> bool:
        """Whether anything was told, here or around this region."""
        return self._is_any or bool(self.floats or self.truths or self._bound)

    def inside(self, inner: Importer) -> Told:
        """For a region, which is given sizes and no numbers."""
        told = Told(inner)
        told._is_any = bool(self)
        return told

    def forget(self, names: Any) -> None:
        """Keep only what was made of nodes with these names."""
        tables: tuple[dict[Any, Node], ...] = (self.floats, self.truths, self._numbers, self._bound)
        for table in tables:
            for key in [key for key, node in table.items() if node.name not in names]:
                del table[key]

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def read(self, source: Node, example: Any) -> Any:
        """`tensor.item()`; `example` is torch's symbol for it: what it then stands for."""
        i = self.importer
        number = i.b.reshape(source, shape=()) if source.tensor.rank else source
        if isinstance(example, torch.SymFloat | float):
            number = i.cast(number, f64)
            expression = None if isinstance(example, float) else example.node.expr
            if expression is not None and expression.is_Symbol:
                self.floats[expression.name] = number
            elif expression is None or expression.is_Number:  # what the model asserts of it
                wanted = float(example if expression is None else expression)
                self._append_truth(i.b.eq(number, i.number(wanted, f64)), f"a number that is read == {wanted}")
            return WeakNumber(number)
        if isinstance(example, torch.SymBool | bool):
            truth = i.cast(number, boolean)
            expression = example.node.expr if isinstance(example, torch.SymBool) else None
            if expression is None or not expression.free_symbols:  # what the model asserts of it
                wanted = bool(example if expression is None else expression)
                self._append_truth(truth if wanted else i.b.bitwise_not(truth), f"a truth that is read == {wanted}")
            else:
                self.truths[expression] = truth
                for told in expression.free_symbols:
                    self.tell(i.cast(truth, i64), symbol(told.name))
            return WeakNumber(truth)
        dim = dim_from_torch(example)
        self.tell(i.cast(number, i64), dim)
        return dim

    def size(self, size: int | torch.SymInt) -> Dim:
        """A size that is computed from others; one that dimensions cannot say is computed as a number, and told."""
        try:
            return dim_from_torch(size)
        except UnsupportedError:
            assert isinstance(size, torch.SymInt)
            expression, environment = size.node.expr, size.node.shape_env
            number = integer_of_sizes(self.importer, expression, environment)
            dim = self._fresh(expression, environment)
            stand_in(environment, expression, dim)
            self.tell(number, dim)
            return dim

    def number(self, dim: Dim) -> Node | None:
        """A size as a number, if it can be had without reading it: it was told, or is a polynomial of such."""
        found = self._numbers.get(dim)
        if found is not None or isinstance(dim, int) or not any(symbol(name) in self._numbers for name in symbols(dim)):
            return found
        if any(atom.kind != "symbol" for monomial in dim.terms for atom in monomial):
            return None
        b, total = self.importer.b, None
        for monomial, coefficient in dim.terms.items():
            term = None
            for atom in monomial:
                factor = self.importer.size(symbol(str(atom)))
                term = factor if term is None else b.mul(term, factor)
            if term is None or coefficient != 1:
                constant = b.constant(coefficient, i64)
                term = constant if term is None else b.mul(term, constant)
            total = term if total is None else b.add(total, term)
        return total

    def tell(self, number: Node, dim: Dim) -> None:
        """Let `number`, a 0-d i64, be what `dim` is from here on; where that is known already, it must agree."""
        name = symbol_name(dim)
        if name is not None and not self._is_bound(name):
            self._numbers[dim] = number
            self._bind((name,), number)
            return
        positive, negative = self._signed(dim)
        if positive is not None and negative is not None:
            self._numbers[dim] = number
            self._bind_signed(positive, negative, number)
            return
        self._made += 1
        fresh = f"told.{self._made}"
        if is_non_negative(dim):
            read: Dim = symbol(fresh)
            self._bind((fresh,), number)
        else:
            read = symbol(f"{fresh}.plus") - symbol(f"{fresh}.minus")
            self._bind_signed(f"{fresh}.plus", f"{fresh}.minus", number)
        self._append_check("eq", read, dim, f"a number that is read == {dim} does not hold")

    @contextmanager
    def apart(self, examples: Iterable[Any]) -> Iterator[None]:
        """While this holds, torch's symbols among `examples` are numbers of their own, as in a loop's condition."""
        before = []
        for example in examples:
            if isinstance(example, torch.SymInt) and example.node.expr.is_Symbol and _is_told(example.node.expr):
                expression, environment = example.node.expr, example.node.shape_env
                before.append((environment, expression, stand_in(environment, expression, self._fresh(expression, environment))))
        try:
            yield
        finally:
            for environment, expression, dim in before:
                stand_in(environment, expression, dim)

    def _fresh(self, expression: Any, environment: Any) -> Dim:
        """A size of its own, or the difference of two where it may be negative."""
        self._made += 1
        name = f"told.{self._made}"
        if bool(environment.bound_sympy(expression).lower >= 0):
            return symbol(name)
        return symbol(f"{name}.plus") - symbol(f"{name}.minus")

    def note(self, node: Node) -> None:
        """Remember what a barrier's result binds."""
        self._bound.update((name, node) for name in bound_by(node) if not self._is_bound(name))

    def is_of(self, dim: Dim) -> bool:
        """Whether a number was told, or is made of one that was."""
        return any(is_told_by_data(name.partition(".")[0]) or name.startswith("told.") for name in symbols(dim))

    def is_known(self, dim: Dim) -> bool:
        """Whether every size in it is bound by what came before."""
        return all(self._is_bound(name) for name in symbols(dim))

    def tell_argument(self, number: Node, dim: Dim) -> None:
        """As `tell`, of an integer argument, which no kernel takes as an operand: it becomes a tensor between two programs."""
        positive, _ = self._signed(dim)
        self.tell(number, dim)
        if positive is not None:
            b, both = self.importer.b, self._bound[positive]
            parts = [b.reshape(b.slice(both, starts=(k,), limits=(k + 1,), steps=(1,)), shape=()) for k in range(2)]
            self._numbers[dim] = b.sub(*parts)

    def _signed(self, dim: Dim) -> tuple[str | None, str | None]:
        """The names in u0.plus - u0.minus, where neither is bound."""
        for name in symbols(dim):
            stem, _, side = name.rpartition(".")
            if side == "plus" and dim == symbol(name) - symbol(f"{stem}.minus") and not self._is_bound(name):
                return name, f"{stem}.minus"
        return None, None

    def _is_bound(self, name: str) -> bool:
        if name in self._bound:
            return True
        for node in self.importer.b.inputs:
            shape = () if node.op.name == "size" else node.shape
            if node.attributes.get("symbol") == name or any(symbol_name(dim) == name for dim in shape):
                self._bound[name] = node
                return True
        return False

    def _bind(self, names: tuple[str, ...], *numbers: Node) -> None:
        b = self.importer.b
        lines = [b.reshape(number, shape=(1,)) for number in numbers]
        vector = lines[0] if len(lines) == 1 else b.concat(*lines, axis=0)
        node = b.make(lookup("sizes"), (vector,), {"symbols": names}, vector.type, "sizes")
        self._bound.update(dict.fromkeys(names, node))

    def _bind_signed(self, positive: str, negative: str, number: Node) -> None:
        b = self.importer.b
        parts = [b.maximum(each, 0) for each in (number, b.neg(number))]
        self._numbers.update(zip(map(symbol, (positive, negative)), parts))
        self._bind((positive, negative), *parts)

    # -- asserting -------------------------------------------------------------------------------------------------------------

    def check(self, target: str, args: Sequence[Any]) -> None:
        """One of CHECKS, whose arguments are FX nodes."""
        if target == "aten._assert_tensor_metadata.default":
            return
        asserted = args[0].meta.get("val") if isinstance(args[0], torch.fx.Node) else args[0]
        if target == ASSERT:
            if isinstance(asserted, torch.SymBool):
                words = "" if str(args[1]).startswith(_GENERIC) else f"{args[1]}: "
                self._assert(asserted.node.expr, asserted.node.shape_env, words)
        elif isinstance(asserted, torch.SymInt) and _is_told(asserted.node.expr):
            for relation, limit in zip(("ge", "le"), (*args[1:], None, None)):
                if limit is not None:
                    text = f"{asserted.node.expr} {_SIGNS[relation]} {limit} does not hold"
                    self._append_check(relation, dim_from_torch(asserted), limit, text)

    def _assert(self, expression: Any, environment: Any, words: str) -> None:
        if not _is_told(expression):
            return
        if type(expression).__name__ == "And":
            for each in expression.args:
                self._assert(each, environment, words)
            return
        found = relation_of_sizes(self.importer, expression, environment)
        if found is not None:
            relation, left, right = found
            self._append_check(relation, left, right, f"{words}{left} {_SIGNS[relation]} {right} does not hold")
            return
        truth = truth_of_sizes(self.importer, expression, environment)
        self._append_truth(truth, f"{words}{expression}")

    def _append_truth(self, truth: Node, asserted: str) -> None:
        self.importer.b.make(lookup("check"), (truth,), {"message": f"{asserted} does not hold"}, TupleType(()), "check")

    def _append_check(self, relation: str, left: Dim, right: Dim, message: str) -> None:
        if not _always_holds(relation, left, right):
            attributes = {"relation": relation, "left": left, "right": right, "message": message}
            self.importer.b.make(lookup("check"), (), attributes, TupleType(()), "check")


def _is_told(expression: Any) -> bool:
    return any(is_told_by_data(each.name) for each in expression.free_symbols)


def _always_holds(relation: str, left: Dim, right: Dim) -> bool:
    """Whether a relation follows from sizes being no less than zero."""
    match relation:
        case "eq":
            return left == right
        case "ge":
            return is_non_negative(left - right)
        case "gt":
            return is_non_negative(left - right - 1)
        case "le":
            return is_non_negative(right - left)
        case "lt":
            return is_non_negative(right - left - 1)
    return False
