"""torch.fx graphs of ATen operators, as AOTAutograd and torch.export hand them over, become a Graph.

Each operator has a rule: a function of the importer and the operator's arguments that appends nodes and returns the result. Rules
live in tables by subject (`fx_pointwise`, `fx_view`, ...). An operator without a rule, or whose rule raises `NoRule`, becomes an
`aten.call` node with the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_flatten, tree_unflatten

from dlcompiler import extend
from dlcompiler.arrays import array_from_tensor
from dlcompiler.frontends.fx_alias import Owners, root_of
from dlcompiler.frontends.fx_call import make_template, refuse_misdescribed, sees_strides
from dlcompiler.frontends.fx_control import higher_order
from dlcompiler.frontends.fx_guards import Limit
from dlcompiler.frontends.fx_location import location_of
from dlcompiler.frontends.fx_numbers import bool_of_sizes, float_of_sizes
from dlcompiler.frontends.fx_random import number_draws
from dlcompiler.frontends.fx_results import flat_results, result_kinds
from dlcompiler.frontends.fx_rules import RULES, NoRule, refuse_values
from dlcompiler.frontends.fx_told import CHECKS, READ, Told, tells_sizes, unite_equal_sizes
from dlcompiler.frontends.fx_types import (
    WeakNumber,
    dim_from_torch,
    is_scalar,
    largest_of,
    non_negative,
    strides_of_fake,
    type_of_fake,
)
from dlcompiler.ir.control import bound_by, has_effect, needed, symbols_of
from dlcompiler.ir.errors import InvalidModelError, ShapeError, UnsupportedError, VerifyError
from dlcompiler.ir.expression import Dim, Expression, evaluate, symbol_name, symbols
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import DType, TensorType, TupleType, boolean, compute_dtype, contiguous_strides, f64, i64
from dlcompiler.runtime.constants import remember_source

# what orders effects in AOTAutograd's graphs, as the order of our nodes does
_TOKENS = ("prims._make_token.default", "prims._sink_tokens.default")
# checks on data, which give nothing and may raise
_DATA_CHECKS = ("aten._linalg_check_errors.default", "aten._assert_async.msg", "aten._assert_async.default")


def import_fx(
    graph_module: torch.fx.GraphModule,
    *,
    inputs: Sequence[Any] | None = None,
    name: str = "main",
    constants: Mapping[str, Any] | None = None,
    mutations: Mapping[int, str] | None = None,
    called: Sequence[str] = (),
    parameters: Collection[int] = (),
    marks: Mapping[int, Collection[str]] | None = None,
    limits: Mapping[str, Collection[Limit]] | None = None,
    numerics: str = "fast",
    saved: Collection[int] = (),
) -> Graph:
    """The Graph of an ATen-level FX graph.

    inputs     a fake tensor, SymInt or int for each placeholder; None: the placeholders' own `meta["val"]`
    constants  placeholders that are not arguments but known: tensors (frozen parameters; memory is shared) or Python values
    called     what the user calls each placeholder, for messages
    parameters positions of placeholders that are a module's own tensors, the same ones in nearly every call
    marks      positions of placeholders -> what is known of them, see `Builder.input`
    limits     placeholders' names -> limits of sizes that a call must keep to
    numerics   eager: random numbers are drawn by ATen, also in what is traced while importing
    saved      positions of results that only a backward graph reads: views of inputs among them may be copies
    mutations  results that are not outputs but new values of placeholders: position -> name (torch.export's signature)

    Results that are not tensors stand among the outputs as 0-d tensors (a SymInt as i64) or are left out (None): see
    `result_kinds`. Raises UnsupportedError for what not even `aten.call` can express, listing what it was.
    """
    number_draws(graph_module)
    unite_equal_sizes(graph_module)
    importer = Importer(graph_module, name, constants or {}, mutations or {})
    placeholders = [str(n.target) for n in graph_module.graph.nodes if n.op == "placeholder"]
    if len(placeholders) == len(called):
        importer.called = dict(zip(placeholders, called))
    importer.parameters = frozenset(name for k, name in enumerate(placeholders) if k in parameters)
    importer.saved = frozenset(saved)
    importer.marks = {placeholders[k]: found for k, found in (marks or {}).items()}
    importer.limits = limits or {}
    importer.numerics = numerics
    return importer.run(inputs)


class Importer:
    """One import: the builder of the new graph and what each FX node has become in it.

    What rules use: `b` (the builder), `meta` (the example result of the operator at hand), `dtype` and `shape` (its type), and
    the methods `cast`, `number`, `tensor`, `operands`, `hint`, `uses`.
    """

    def __init__(
        self, graph_module: torch.fx.GraphModule, name: str, constants: Mapping[str, Any], mutations: Mapping[int, str]
    ) -> None:
        self.module = graph_module
        self.constants = constants
        self.mutations = mutations
        self.called: Mapping[str, str] = {}
        self.parameters: frozenset[str] = frozenset()
        self.marks: Mapping[str, Collection[str]] = {}
        self.limits: Mapping[str, Collection[Limit]] = {}
        self.numerics = "fast"
        self.saved: frozenset[int] = frozenset()
        self.b = Builder(name)
        self.values: dict[torch.fx.Node, Any] = {}
        self.writebacks: dict[Node, Node] = {}
        self.node: torch.fx.Node = next(iter(graph_module.graph.nodes))
        self.meta: Any = None
        self.told = Told(self)
        self._hints: dict[str, int] = {}
        self._derived: list[Dim] = []  # integer arguments
        self._dims: dict[Dim, Node] = {}
        self.non_negative: dict[Node, bool] = {}
        self.is_whole = True  # and no region, whose operators may not run

    # -- the walk ------------------------------------------------------------------------------------------------------------

    def run(self, inputs: Sequence[Any] | None) -> Graph:
        """Import every node in order."""
        given = iter(inputs) if inputs is not None else None
        for node in self.module.graph.nodes:
            self.node, self.meta = node, node.meta.get("val")
            self.b.location = location_of(node)
            match node.op:
                case "placeholder":
                    self.values[node] = self._placeholder(node, given)
                case "get_attr":
                    self.values[node] = self._attribute(node)
                case "call_function":
                    self.values[node] = self._call(node)
                case "output":
                    return self._finish(node)
                case _:
                    raise UnsupportedError(f"an FX node of kind {node.op}", items=(node.op,), location=self.b.location)
        raise VerifyError("an FX graph without an output")

    def part(self, name: str) -> Importer:
        """An importer with a builder of its own, for a region of what is being imported."""
        inner = Importer(self.module, name, {}, {})
        inner.numerics = self.numerics
        inner._hints, inner.told, inner.is_whole = self._hints, self.told.inside(inner), False
        return inner

    def inline(self, module: torch.fx.GraphModule, arguments: Iterable[Any]) -> list[Any]:
        """The results of another FX graph, whose nodes are appended here; `arguments` are its placeholders' values."""
        outer = self.module, self.node, self.meta
        given = iter(arguments)
        self.module = module
        try:
            for node in module.graph.nodes:
                self.node, self.meta = node, node.meta.get("val")
                self.b.location = location_of(node)
                match node.op:
                    case "placeholder":
                        self.values[node] = next(given)
                    case "get_attr":
                        self.values[node] = self._attribute(node)
                    case "call_function":
                        self.values[node] = self._call(node)
                    case "output":
                        results = flat_results(module)
                        return [self.values[r] if isinstance(r, torch.fx.Node) else r for r in results]
                    case _:
                        raise UnsupportedError(f"an FX node of kind {node.op}", items=(node.op,), location=self.b.location)
            raise VerifyError("an FX graph without an output")
        finally:
            self.module, self.node, self.meta = outer

    def _placeholder(self, node: torch.fx.Node, given: Any) -> Any:
        name = str(node.target)
        if name in self.constants:
            known = self.constants[name]
            return self.constant(known, name) if isinstance(known, torch.Tensor) else known
        example = self.meta if given is None else next(given)
        if isinstance(example, torch.Tensor):
            self._remember_hints((*example.shape, *example.stride()))
            return self.b.input(
                name,
                type_of_fake(example),
                strides_of_fake(example),
                f"input {self.called.get(name, name)}",
                is_parameter=name in self.parameters,
                marks=self.marks.get(name, ()),
                limits=self.limits.get(name, ()),
            )
        if isinstance(example, int | torch.SymInt) and not isinstance(example, bool):
            self._remember_hints((example,))
            example = non_negative(example)
            dim = dim_from_torch(example)
            # specialised to a number, or made of other sizes: it still takes its place in the call, and nothing reads it
            number = self.b.size_input(name, symbol_name(dim) or f"unused_{name}", self.limits.get(name, ()))
            if symbol_name(dim) is None and self.told.is_of(dim):  # it may be negative, as no size can
                self.told.tell_argument(number, dim)
            self._derived.append(dim)
            return dim
        raise UnsupportedError(f"an argument of type {type_name(example)}", items=(type_name(example),), location=f"input {name}")

    def _attribute(self, node: torch.fx.Node) -> Any:
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return self.constant(value, str(node.target)) if isinstance(value, torch.Tensor) else value

    def constant(self, tensor: torch.Tensor, name: str) -> Node:
        """A constant that shares memory with the tensor."""
        type = type_of_fake(tensor)
        if isinstance(tensor, FakeTensor):
            raise UnsupportedError(f"a constant without data: {name}", items=(name,), hint="give it as an input")
        with unset_fake_temporarily():  # Dynamo's modes would make a fake of it
            array = array_from_tensor(tensor)
            if tensor.device.type != "cpu":
                remember_source(array, tensor)
        return self.b.make(lookup("constant"), (), {"value": array}, type, name)

    def _remember_hints(self, sizes: Iterable[Any]) -> None:
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for free in size.node.expr.free_symbols:
                    environment = size.node.shape_env
                    is_new = hasattr(environment, "backed_var_to_val")
                    known = environment.backed_var_to_val if is_new else environment.var_to_val
                    if free in known:
                        if not known[free].is_Integer:  # the lengths of a nested tensor's rows, as torch stands for them
                            raise UnsupportedError("a size of a nested tensor", items=("nested tensor",))
                        self._hints[free.name] = int(known[free])

    # -- one operator --------------------------------------------------------------------------------------------------------

    def _call(self, node: torch.fx.Node) -> Any:
        target = node.target
        if target is operator.getitem:
            source, index = node.args
            assert isinstance(source, torch.fx.Node)
            return self.values[source][index]
        if str(target) in CHECKS:
            return self.told.check(str(target), node.args)
        if str(target) == READ:
            (source,) = node.all_input_nodes
            return self.told.read(self.values[source], self.meta)
        if isinstance(self.meta, torch.SymInt) or type(self.meta) is int:
            return self.told.size(self.meta)
        if isinstance(self.meta, torch.SymFloat):
            return float_of_sizes(self, self.meta)
        if isinstance(self.meta, torch.SymBool | bool):
            if all(str(user.target) in CHECKS for user in node.users):
                return None
            return self.meta if isinstance(self.meta, bool) else bool_of_sizes(self, self.meta)
        args, kwargs = self._arguments(node.args), {k: self._arguments(v) for k, v in node.kwargs.items()}
        if str(target) in _DATA_CHECKS:
            self._check_data(str(target), args, kwargs)
            return None
        if target is torch.ops.higher_order.with_effects and str(args[1]) in _DATA_CHECKS:
            # (token, operator, *arguments) --> (token, result)
            self._check_data(str(args[1]), args[2:], kwargs)
            return None, None
        if str(target) in _TOKENS:
            return None
        if isinstance(target, torch._ops.HigherOrderOperator):
            return higher_order(self, target.name(), args, kwargs)
        if not isinstance(target, torch._ops.OpOverload):
            raise UnsupportedError(f"a call of {target}", items=(str(target),), location=self.b.location)
        return self.apply(str(target), args, kwargs)

    def _arguments(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return self.values[value]
        if isinstance(value, list | tuple):
            return [self._arguments(v) for v in value]
        if isinstance(value, torch.SymInt):
            return dim_from_torch(value)
        return value

    def apply(self, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an ATen operator: by its rule, else an `aten.call`."""
        own = extend.find(*target.split(".")[:2])
        if own is not None:
            return self._own(own, args, kwargs)
        rule = RULES.get(target)
        reason = "no rule for it"
        made, names = len(self.b.nodes), dict(self.b._names)
        try:
            if rule is None:
                raise NoRule(reason)
            refuse_values(target, (*args, *kwargs.values(), self.meta))
            result = rule(self, *args, **kwargs)
            self._check(target, result)
            return result
        except NoRule as refusal:
            reason = str(refusal)
        except ShapeError as error:
            # sizes that the dimensions' algebra cannot compare; with known sizes a misfit would be our bug
            if not self._hints and not self.told:
                raise VerifyError(f"{target}: {error}", location=self.b.location) from error
            reason = error.message
        del self.b.nodes[made:]
        self.b._names = names
        self._dims = {dim: node for dim, node in self._dims.items() if node.name in names}
        self.told.forget(names)
        return self.call(target, args, kwargs, reason)

    def _own(self, definition: extend.Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operator that the user has defined."""
        result = definition.build(self.b, args, kwargs)
        try:
            self._check(definition.name, result)
        except VerifyError as error:
            raise InvalidModelError(error.message, location=error.location, hint=f"see {definition.where}") from None
        return result

    def _check_data(self, target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """An impure call without results."""
        operands, template = make_template(args, kwargs)
        attributes = {"target": target, "arguments": template, "impure": True, "reason": "a check on data"}
        self.b.make(lookup("aten.call"), operands, attributes, TupleType(()), target.split(".")[1])

    def call(self, target: str, args: Sequence[Any], kwargs: Mapping[str, Any], reason: str) -> Any:
        """Append an `aten.call`. Raises UnsupportedError for one that writes to its operands, which a node never does."""
        own = self.node.target
        if isinstance(own, torch._ops.OpOverload) and str(own) == target and own._schema.is_mutable:
            raise UnsupportedError(f"{target}, which writes to its operands ({reason})", items=(target,))
        refuse_misdescribed(target, args)
        return self._append_call(target, self.node.target, *make_template(args, kwargs), reason)

    def call_writing(self, operator: Any, kwargs: Mapping[str, Any], written: Collection[str]) -> Any:
        """Append an `aten.call` of an operator that writes to these arguments: copies of them, which follow its results."""
        return self._append_call(str(operator), operator, *make_template((), kwargs, written), "an operator that is not ATen's")

    def _append_call(
        self, target: str, overload: Any, operands: tuple[Node, ...], template: Mapping[str, Any], reason: str
    ) -> Any:
        impure = torch.Tag.nondeterministic_seeded in getattr(overload, "tags", ())
        attributes: dict[str, Any] = {"target": target, "arguments": template, "impure": impure, "reason": reason}
        tells = tells_sizes(self.node)
        op = lookup("host.call" if tells else "aten.call")
        results, structure = tree_flatten(self.meta)
        strides = tuple(strides_of_fake(m) if isinstance(m, torch.Tensor) else None for m in results)
        if any(strides):
            attributes["strides"] = strides
        if sees_strides(overload):
            attributes["operand_strides"] = self._operand_strides(operands)
        short = target.split(".")[1]
        if tells:
            attributes |= {"operator": short, "domain": target.split(".")[0], "given": (True,) * len(operands)}
        elif isinstance(self.meta, torch.Tensor):
            return self.b.make(op, operands, attributes, type_of_fake(self.meta), short)
        if not isinstance(self.meta, torch.Tensor | tuple | list):
            raise UnsupportedError(f"{target} gives a {type_name(self.meta)}", items=(target,), location=self.b.location)
        if not all(m is None or isinstance(m, torch.Tensor) for m in results):
            raise UnsupportedError(f"{target} gives more than tensors", items=(target,), location=self.b.location)
        types = tuple(None if m is None else type_of_fake(m) for m in results)
        whole = self.b.make(op, operands, attributes, TupleType(types), short)
        if tells:
            self.told.note(whole)
        if isinstance(self.meta, torch.Tensor):
            return self.b("tuple.get", whole, index=0)
        if len(results) == len(self.meta):
            return self.elements(whole)
        # lists among the results
        parts = [None if t is None else self.b("tuple.get", whole, index=k) for k, t in enumerate(types)]
        return tree_unflatten(parts, structure)

    def _operand_strides(self, operands: Sequence[Node]) -> tuple[tuple[Dim, ...] | None, ...]:
        """The strides that each operand of the operator at hand has in eager."""
        found: dict[Node, tuple[Dim, ...] | None] = {}
        for node in self.node.all_input_nodes:
            example, value = node.meta.get("val"), self.values.get(node)
            if isinstance(example, torch.Tensor) and isinstance(value, Node) and example.layout is torch.strided:
                strides = strides_of_fake(example, exact=True) or contiguous_strides(value.shape)
                if found.setdefault(value, strides) != strides:
                    message = f"{self.node.target} of one tensor in two layouts"
                    raise UnsupportedError(message, items=(str(self.node.target),), location=self.b.location)
        return tuple(found.get(operand) for operand in operands)

    def elements(self, whole: Node) -> tuple[Node | None, ...]:
        """The results of a tuple node that somebody uses, None for the others."""
        assert isinstance(whole.type, TupleType)
        return tuple(
            self.b("tuple.get", whole, index=k) if self.uses(k) and type is not None else None
            for k, type in enumerate(whole.type.elements)
        )

    def _check(self, target: str, result: Any) -> None:
        """A rule must give what torch says the operator gives."""
        results = list(result) if isinstance(result, tuple | list) else [result]
        examples = list(self.meta) if isinstance(self.meta, tuple | list) else [self.meta]
        for got, example in zip(results, examples):
            if not isinstance(got, Node) or not isinstance(example, torch.Tensor):
                continue
            expected = type_of_fake(example)
            if got.type == expected:
                continue
            if got.dtype is not expected.dtype or (expected.is_static and got.tensor.is_static):
                raise VerifyError(f"the rule for {target} gave {got.type}, torch gives {expected}", location=self.b.location)
            raise ShapeError(f"cannot prove that {got.type} is {expected}")

    # -- what rules use ------------------------------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        """Type of the operator's (first) result."""
        return type_of_fake(self.meta[0] if isinstance(self.meta, tuple | list) else self.meta)

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @staticmethod
    def type_of(example: torch.Tensor) -> TensorType:
        """Type of one of the examples in `meta`."""
        return type_of_fake(example)

    def uses(self, index: int) -> bool:
        """Whether result `index` of the operator at hand is used."""
        return any(user.target is not operator.getitem or user.args[1] == index for user in self.node.users)

    def cast(self, node: Node, dtype: DType) -> Node:
        """`node` in that dtype, as torch converts: what is too large for an 8-bit float may become its largest number."""
        if node.dtype is dtype:
            return node
        if dtype.name == "f8e8m0":
            raise NoRule("a conversion to powers of two, which torch rounds in a way of its own")
        largest = largest_of(dtype) if dtype.is_narrow else None
        if largest is not None and (node.dtype.is_float or node.dtype.bits > 8):
            node = self.b.clamp(node if node.dtype.is_float else self.b.cast(node, dtype="f32"), low=-largest, high=largest)
        return self.b.cast(node, dtype=dtype.name)

    def size(self, dim: Dim) -> Node:
        """A size as a 0-d i64 node."""
        found = self._dims.get(dim)
        if found is None:
            found = self.told.number(dim)
            if found is None:
                found = self.b.constant(dim, i64) if isinstance(dim, int) else self.b.dim(value=dim)
            self._dims[dim] = found
        return found

    def number(self, value: Any, dtype: DType) -> Node:
        """A Python number, size or SymFloat as a 0-d node. Integers wrap as C's conversions do."""
        if isinstance(value, WeakNumber):
            return self.cast(value.node, dtype)
        if isinstance(value, Expression):
            return self.cast(self.size(value), dtype)
        if dtype.is_integer:
            whole = int(value) & ((1 << dtype.bits) - 1)
            if dtype.is_signed and whole >> (dtype.bits - 1):
                whole -= 1 << dtype.bits
            return self.b.constant(whole, dtype)
        largest = largest_of(dtype) if dtype.is_narrow else None
        if largest is not None and not math.isnan(value):
            value = min(max(value, -largest), largest)
        with np.errstate(over="ignore"):
            return self.b.constant(np.asarray(value).astype(dtype.numpy))

    def tensor(self, value: Any, dtype: DType) -> Node:
        """A node or number, in that dtype."""
        return self.cast(value, dtype) if isinstance(value, Node) else self.number(value, dtype)

    def operands(self, dtype: DType, *values: Any, exact_numbers: bool = False) -> list[Node]:
        """Nodes and numbers in one dtype, which the caller computes in; it narrows the result where that is not `dtype`.

        Most of ATen's kernels round a number to float16 or bfloat16 tensors' dtype. Products and quotients hold it in float32
        (`exact_numbers`), so that these must be computed wide if the number does not fit.
        """
        if exact_numbers and compute_dtype(dtype) is not dtype and any(not _holds(dtype, v) for v in values):
            dtype = compute_dtype(dtype)
        return [self.tensor(v, dtype) for v in values]

    def hint(self, dim: Dim) -> int:
        """The value that a size had at capture. What is decided by it, torch has guarded."""
        try:
            return evaluate(dim, self._hints)
        except KeyError as error:
            raise NoRule(f"the size {error} is not known at capture") from None

    def hint_of(self, size: int | torch.SymInt) -> int:
        """The value at capture of a number of torch's own."""
        return self.hint(dim_from_torch(size))

    # -- the end -------------------------------------------------------------------------------------------------------------

    def _finish(self, node: torch.fx.Node) -> Graph:
        self.b.location = None
        kinds = result_kinds(self.module)
        results = []
        for position, (result, kind) in enumerate(zip(flat_results(self.module), kinds)):
            if position in self.mutations:
                self._write_back(self.mutations[position], self.values[result])
            elif kind != "none":
                results.append((result, position in self.saved))
        outputs: list[Node] = []
        strides: list[tuple[Dim, ...] | None] = []
        owners = Owners(self)
        for pair in self.writebacks.items():
            owners.claim_input(*pair)
        # an input's memory written into another's, or into its own in another order, must be read before anything is written
        writebacks = tuple(
            (self.b.copy(value) if root_of(value).op.name in ("input", "constant") else value, target)
            for target, value in self.writebacks.items()
        )
        for result, is_saved in results:
            value = self.values[result] if isinstance(result, torch.fx.Node) else result
            example = result.meta["val"] if isinstance(result, torch.fx.Node) else result
            if isinstance(example, torch.Tensor):
                strides.append(strides_of_fake(example, exact=True))
                if not is_saved and owners.hides(value, example):
                    raise UnsupportedError("a view of an input from a place known only when called", items=(result.name,))
                if owners.would_alias(value, example):
                    value = self.b.copy(value)
                owners.claim(value, example)
            else:
                strides.append(None)
                value = self.number_result(value)
            outputs.append(value)
        self._require_bound()
        graph = self.b.finish(outputs, writebacks=writebacks, output_strides=tuple(strides))
        return _without_dead_nodes(graph)

    def _write_back(self, name: str, value: Node) -> None:
        """Let `value` be what the placeholder's memory holds after the call."""
        (placeholder,) = (n for n in self.values if n.op == "placeholder" and str(n.target) == name)
        target = self.values[placeholder]
        if target is not value:
            self.writebacks[target] = value

    def number_result(self, value: Any) -> Node:
        """A number that is a result, as a 0-d tensor."""
        if isinstance(value, WeakNumber):
            return value.node
        return self.number(value, f64 if isinstance(value, float) else boolean if isinstance(value, bool) else i64)

    def _require_bound(self) -> None:
        """Every symbol must be a whole dimension of some input, or nothing could bind it at a call."""
        bound = {node.attributes["symbol"] for node in self.b.inputs if node.op.name == "size"}
        used: set[str] = set().union(*map(symbols, self._derived))
        for node in self.b.inputs:
            if node.op.name != "size":
                for dim in node.shape:
                    bound.add(symbol_name(dim) or "")
                    used |= symbols(dim)
        late: set[str] = set()
        for node in self.b.nodes if self.told else ():
            bound |= bound_by(node)
            late |= symbols_of(node) - bound
        missing = (used - bound) | late
        if missing:
            raise UnsupportedError(f"no input has the size {', '.join(sorted(missing))} itself", items=("derived size",))


def type_name(value: Any) -> str:
    return type(value).__name__


def _holds(dtype: DType, value: Any) -> bool:
    """Whether a narrow float dtype represents a Python number exactly (a node always fits)."""
    if not is_scalar(value):
        return True
    if isinstance(value, bool | int | float):
        with np.errstate(over="ignore"):
            narrow = float(np.asarray(value, dtype=np.float64).astype(dtype.numpy))
        return narrow == value or value != value
    return False


def _without_dead_nodes(graph: Graph) -> Graph:
    """Drop nodes that nothing needs; random ones stay, since they advance the generator, and checks."""
    roots = [*graph.outputs, *(value for value, _ in graph.writebacks)]
    roots += [n for n in graph.nodes if has_effect(n)]
    live = needed(roots, graph.nodes)
    return graph.replace(nodes=tuple(n for n in graph.nodes if n in live))
