"""ATen calls: operators that nobody mapped, run by torch, which allocates their results.

The template of a call is `{"args": (...), "kwargs": {...}}` of plain data. Numbers, strings, None and tuples stand for
themselves; everything else is a dictionary of one entry:

    {"operand": k}     operand k                          {"number": k}     the Python number in 0-d operand k
    {"dim": e}         a size                             {"dtype": "f32"}  torch.float32
    {"memory_format": "channels_last"}                    {"layout": "strided"}
    {"device": "cpu"}                                     {"complex": (re, im)}
    {"written": k}     a copy of operand k, which the operator writes to; it is a result of the call, behind the operator's own
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import evaluate
from dlcompiler.runtime.tensors import TORCH_DTYPES, copy_strided
from torch import Tensor

CPU = torch.device("cpu")


def find_operator(target: str) -> Callable[..., Any]:
    """The operator called `target`, as "aten.sort.default". Raises UnsupportedError if torch does not have it."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.rpartition(".")
    found: Any = torch.ops
    for part in (namespace, name, overload):
        # torch.ops raises AttributeError for an operator that is not registered
        found = getattr(found, part, None) if part else None
        if found is None:
            raise UnsupportedError(f"this torch has no operator {target}", items=(target,))
    return found


def prepare_aten(
    target: str,
    template: Mapping[str, Any],
    positions: Sequence[int],
    bindings: Mapping[str, int],
    device: torch.device = CPU,
) -> Callable[[Sequence[Tensor]], Any]:
    """A function that runs the operator on tensors taken from a list; operand k lies at `positions[k]`.

    `device` is where the program runs, in place of the one that its graph was captured on.
    """
    operator = find_operator(target)
    written: list[int] = []
    args = tuple(_argument(value, positions, bindings, device, written) for value in template["args"])
    kwargs = {name: _argument(value, positions, bindings, device, written) for name, value in template["kwargs"].items()}

    def run(tensors: Sequence[Tensor]) -> Any:
        results = operator(*(give(tensors) for give in args), **{name: give(tensors) for name, give in kwargs.items()})
        return _flat(results) if isinstance(results, tuple | list) else results

    def run_writing(tensors: Sequence[Tensor]) -> Any:
        copies = [_copy(tensors[position]) for position in written]
        results = run([*tensors, *copies])
        return [*(results if isinstance(results, list) else [results]), *copies]

    return run_writing if written else run


def _flat(results: Any) -> list[Any]:
    """An operator's results, those in lists among them, one after the other."""
    return [x for r in results for x in (_flat(r) if isinstance(r, tuple | list) else [r])]


def _copy(tensor: Tensor) -> Tensor:
    """A copy that lies as the tensor does."""
    return tensor.clone() if 0 in tensor.stride() else copy_strided(tensor, tensor.stride())


def _argument(
    value: Any, positions: Sequence[int], bindings: Mapping[str, int], device: torch.device, written: list[int]
) -> Callable[[Sequence[Tensor]], Any]:
    """A function from the list of tensors to the argument that `value`, a piece of the template, stands for.

    written  where the tensors lie of which the call gets copies, the copies being at the list's end; added to
    """
    if isinstance(value, tuple | list):
        parts = [_argument(v, positions, bindings, device, written) for v in value]
        return lambda tensors: [part(tensors) for part in parts]
    if not isinstance(value, Mapping):
        return lambda tensors: value
    ((kind, content),) = value.items()
    if kind == "written":
        number = len(written)
        written.append(positions[content])
        return lambda tensors: tensors[number - len(written)]
    if kind in ("operand", "number"):
        position = positions[content]
        return (lambda tensors: tensors[position]) if kind == "operand" else (lambda tensors: tensors[position].item())
    is_place = kind == "device" and content.partition(":")[0] in ("cpu", "cuda")
    known = device if is_place else _constant_argument(kind, content, bindings)
    return lambda tensors: known


def _constant_argument(kind: str, content: Any, bindings: Mapping[str, int]) -> Any:
    match kind:
        case "dim":
            return evaluate(content, bindings)
        case "dtype":
            return TORCH_DTYPES[content]
        case "device":
            return torch.device(content)
        case "complex":
            return complex(*content)
        case "memory_format" | "layout":
            return getattr(torch, content)
    raise UnsupportedError(f"an argument of kind {kind!r}", items=(kind,))
