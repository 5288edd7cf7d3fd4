"""Library calls of the ops that order, scan, or write where data says, for targets and operands that no kernel of ours takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlcompiler.runtime.library import Call, Routine

_SCANS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "add": lambda x, axis: torch.cumsum(x, axis, dtype=x.dtype),
    "mul": lambda x, axis: torch.cumprod(x, axis, dtype=x.dtype),
    "max": lambda x, axis: torch.cummax(x, axis)[0],
    "min": lambda x, axis: torch.cummin(x, axis)[0],
    "logaddexp": torch.logcumsumexp,
}
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _lowest(dtype: torch.dtype, largest: bool) -> float | int:
    """What no element is beaten by."""
    if dtype.is_floating_point:
        return -torch.inf if largest else torch.inf
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def _scan(call: Call) -> Routine:
    x, out = call.reads[0].position, call.writes[0].position
    axis, kind = call.attributes["axis"], call.attributes["kind"]
    exclusive, reverse = call.attributes["exclusive"], call.attributes["reverse"]
    largest = kind in ("max", "logaddexp")
    fill = {"add": 0, "mul": 1}.get(kind, _lowest(call.reads[0].dtype, largest))

    def run(tensors: Sequence[Tensor]) -> None:
        value = tensors[x].flip(axis) if reverse else tensors[x]
        if exclusive and value.shape[axis]:
            before = torch.full_like(value.narrow(axis, 0, 1), fill)
            value = torch.cat([before, value.narrow(axis, 0, value.shape[axis] - 1)], axis)
        result = _SCANS[kind](value, axis)
        tensors[out].copy_(result.flip(axis) if reverse else result)

    return run


def _pair(call: Call, function: Callable[[Tensor, tuple[Tensor, Tensor]], object]) -> Routine:
    """A call that writes values and positions."""
    x, (values, places) = call.reads[0].position, (operand.position for operand in call.writes)
    return lambda tensors: function(tensors[x], (tensors[values], tensors[places]))


def _running_extreme(call: Call) -> Routine:
    axis, extreme = call.attributes["axis"], torch.cummax if call.attributes["largest"] else torch.cummin
    return _pair(call, lambda x, out: extreme(x, axis, out=out))


def _sort(call: Call) -> Routine:
    descending = bool(call.attributes["descending"])
    return _pair(call, lambda x, out: torch.sort(x, stable=True, dim=-1, descending=descending, out=out))


def _topk(call: Call) -> Routine:
    k, largest = call.attributes["k"], bool(call.attributes["largest"])
    return _pair(call, lambda x, out: torch.topk(x, k, -1, largest=largest, out=out))


def _scatter(call: Call) -> Routine:
    """Into a target that is one longer along the axis: there go the updates whose index lies outside."""
    x, updates, indices = (operand.position for operand in call.reads)
    out, axis, kind = call.writes[0].position, call.attributes["axis"], call.attributes["kind"]
    size = call.writes[0].shape[axis]

    def run(tensors: Sequence[Tensor]) -> None:
        result, at = tensors[out], tensors[indices].long()
        longer = torch.cat([tensors[x].expand(result.shape), torch.zeros_like(result.narrow(axis, 0, min(size, 1)))], axis)
        if size:
            at = torch.where((at >= 0) & (at < size), at, size)
            if kind == "set":
                longer.scatter_(axis, at, tensors[updates])
            else:
                longer.scatter_reduce_(axis, at, tensors[updates], _REDUCTIONS[kind])
        result.copy_(longer.narrow(axis, 0, size))

    return run


def _index_update(call: Call) -> Routine:
    """As one dimension of all indexed ones, with one place more for the updates whose index lies outside."""
    x, updates, *indices = (operand.position for operand in call.reads)
    out, kind, axes = call.writes[0].position, call.attributes["kind"], call.attributes["axes"]
    shape, first = call.writes[0].shape, axes[0]

    def run(tensors: Sequence[Tensor]) -> None:
        result = tensors[out]
        at = torch.zeros((), dtype=torch.long)
        inside = torch.ones((), dtype=torch.bool)
        size = 1
        for axis, position in zip(axes, indices):
            index = tensors[position].long()
            inside = inside & (index >= 0) & (index < shape[axis])
            at = at * shape[axis] + index
            size *= shape[axis]
        flat = torch.where(inside, at, size).reshape(-1)
        lead, rest = shape[:first], shape[axes[-1] + 1 :]
        longer = result.new_zeros((*lead, size + 1, *rest))
        longer.narrow(first, 0, size).copy_(tensors[x].expand(shape).reshape(*lead, size, *rest))
        new = tensors[updates].reshape(*lead, flat.numel(), *rest)
        spread = flat.reshape(-1, *(1,) * len(rest)).expand(new.shape)
        if kind == "set":
            longer.scatter_(first, spread, new)
        else:
            longer.scatter_reduce_(first, spread, new, _REDUCTIONS[kind])
        result.copy_(longer.narrow(first, 0, size).reshape(shape))

    return run


def _places(call: Call) -> Routine:
    """Into a target that is one longer: there go the places that the mask does not hold, or for which there is no room."""
    mask, out = call.reads[0].position, call.writes[0].position
    (count,) = call.writes[0].shape

    def run(tensors: Sequence[Tensor]) -> None:
        held = tensors[mask]
        number = torch.cumsum(held, 0) - 1
        at = torch.where(held & (number < count), number, count)
        longer = number.new_zeros(count + 1)
        longer.scatter_(0, at, torch.arange(held.shape[0], device=held.device))
        tensors[out].copy_(longer[:count])

    return run


ROUTINES: dict[str, Callable[[Call], Routine]] = {
    "scan": _scan,
    "running_extreme": _running_extreme,
    "sort": _sort,
    "topk": _topk,
    "places": _places,
    "scatter": _scatter,
    "index_update": _index_update,
}
