"""A model's inputs: their types, and the symbols that stand for sizes known only when called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from onnx import GraphProto, TensorProto, ValueInfoProto

from dlcompiler.frontends.onnx_fold import MOST_DIMENSIONS
from dlcompiler.frontends.onnx_host import host_type
from dlcompiler.frontends.onnx_join import Joined
from dlcompiler.frontends.onnx_registry import element_type
from dlcompiler.ir.errors import CompilerError, InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.expression import Dim, size_name, symbol
from dlcompiler.ir.types import HostType, TensorType

NO_NAMES = frozenset({"", "?", "*", "_", "-1", "None", "none", "unk", "unknown"})


def declared_dims(info: ValueInfoProto) -> list[int | str | None] | None:
    """The dimensions as the file gives them: a number, a name, or None for neither. None if there is no shape at all.

    What exporters write for any size whatever, `?` say, is no name: dimensions that are called so are not all of one size.
    """
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        elif dim.HasField("dim_param") and dim.dim_param not in NO_NAMES:
            dims.append(dim.dim_param)
        else:
            dims.append(None)
    return dims


class Interface:
    """The inputs that a call must give (initializers, which old files list among the inputs, are not), with their types."""

    def __init__(self, graph: GraphProto, given: Mapping[str, Sequence[int | str]], joined: Joined | None = None) -> None:
        """`joined`: names of sizes, each with what it is to be equal to."""
        initialized = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.inputs = [i for i in graph.input if i.name not in initialized]
        for info in self.inputs:
            if not info.name:
                raise InvalidModelError("an input of the graph has no name")
        # a size given by the user overrides the file, so what the file says of other tensors no longer counts
        self.declared = {} if given else {i.name: i for i in (*graph.value_info, *graph.output)}
        self._joined = dict(joined or {})
        self._given = {name: tuple(shape) for name, shape in given.items()}
        self._symbols: dict[str, Dim] = {}
        self._taken: set[str] = set()
        self._check_given()
        self._fix_named_dims()

    def type_of(self, info: ValueInfoProto) -> TensorType | HostType:
        """The type of an input; a host type for what is no tensor of numbers."""
        tensor = info.type.tensor_type
        if info.type.WhichOneof("value") != "tensor_type" or tensor.elem_type == TensorProto.STRING:
            return host_type(info.type)
        dtype = element_type(info.type.tensor_type.elem_type)
        given = self._given.get(info.name)
        dims = declared_dims(info)
        if given is not None:
            return TensorType(dtype, tuple(d if isinstance(d, int) else self._symbol(d) for d in given))
        if dims is None:
            raise UnsupportedError("an input", items=("unknown rank (give its shape with input shapes)",))
        if len(dims) > MOST_DIMENSIONS:
            raise InvalidModelError(f"input {info.name!r} has {len(dims)} dimensions")
        shape = [
            d if isinstance(d, int) else self._symbol(d) if d is not None else self.fresh(f"{info.name}_{k}")
            for k, d in enumerate(dims)
        ]
        return TensorType(dtype, tuple(shape))

    def contradiction(self, name: str, type: TensorType) -> str | None:
        """How the file declares a tensor whose inferred type that is not: a sentence, None if they agree."""
        info = self.declared.get(name)
        if info is None:
            return None
        if info.type.tensor_type.elem_type:
            try:
                dtype = element_type(info.type.tensor_type.elem_type)
            except CompilerError:
                return None
            if dtype is not type.dtype:
                return f"{dtype}, but it is {type.dtype}"
        dims = declared_dims(info)
        if dims is None or _may_be(dims, type.shape):
            return None
        return f"shape {[d if d is not None else '?' for d in dims]}, but it is {list(type.shape)}"

    def _check_given(self) -> None:
        names = [i.name for i in self.inputs]
        for name, shape in self._given.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                listed = ", ".join(map(repr, names)) or "none"
                raise InputError(
                    f"the model has no input {name!r}; its inputs are {listed}",
                    hint=f"did you mean {near[0]!r}?" if near else None,
                )
            for size in shape:
                whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
                if not whole and not (isinstance(size, str) and size):
                    raise InputError(f"a dimension of input {name!r} is {size!r}, not a size or a name", location=name)
            dims = declared_dims(self.inputs[names.index(name)])
            if dims is not None and len(dims) != len(shape):
                shown = [d if d is not None else "?" for d in dims]
                raise InputError(
                    f"input {name!r} has {len(dims)} dimensions, {shown}, but {len(shape)} were given", location=name
                )

    def _fix_named_dims(self) -> None:
        """A size given for one input holds wherever the file uses the same name."""
        for info in self.inputs:
            dims, given = declared_dims(info), self._given.get(info.name)
            if dims is None or given is None:
                continue
            for name, size in zip(dims, given):
                if not isinstance(name, str):
                    continue
                value = size if isinstance(size, int) else self._symbol(size)
                if self._symbols.setdefault(name, value) != value:
                    raise InputError(
                        f"dimension {name!r} is given as {self._symbols[name]} and as {value}",
                        location=info.name,
                        hint="inputs that share a named dimension have the same size there",
                    )

    def _symbol(self, name: str) -> Dim:
        """The symbol of a named dimension: one for each name."""
        if name not in self._symbols:
            self._symbols[name] = self.fresh(name)
        return self._symbols[name]

    def fresh(self, hint: str) -> Dim:
        """A new symbol, called much as `hint`."""
        name, count = size_name(hint), 1
        while name in self._taken:
            name, count = size_name(f"{hint}_{count}"), count + 1
        self._taken.add(name)
        return self._joined.get(name, symbol(name))


def _may_be(declared: Sequence[int | str | None], actual: tuple[Dim, ...]) -> bool:
    if len(declared) != len(actual):
        return False
    return all(not isinstance(d, int) or not isinstance(a, int) or d == a for d, a in zip(declared, actual))
