"""Inputs that are not as the program was compiled for: made to fit, or refused with one clear line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from dlcompiler.ir.errors import InputError
from dlcompiler.runtime.plan import Layout, Plan
from dlcompiler.runtime.tensors import DTYPE_NAMES, same_layout
from torch import Tensor


def adapt(plan: Plan, position: int, tensor: Any) -> Tensor:
    """`tensor` itself if strides that do not matter are all that differs, else a copy where and as input `position` must lie.

    Raises InputError naming the input for another type, device, dtype or shape.
    """
    layout = plan.inputs[position]
    assert layout is not None
    check_input(plan, position, layout, tensor)
    is_there = tensor.device == plan.device and not tensor.data_ptr() % plan.input_alignment
    negated = tensor.is_neg() or tensor.is_conj()
    if same_layout(layout.shape, tensor.stride(), layout.strides) and not negated and is_there:
        return tensor
    if any(stride == 0 and size > 1 for size, stride in zip(layout.shape, layout.strides)):
        raise InputError(
            f"{_name(plan, position)} has strides {tensor.stride()}, but was compiled for an expanded one with {layout.strides}",
            hint="compile again with this input",
        )
    with torch.no_grad():
        return torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device=plan.device).copy_(tensor)


def check_indices(plan: Plan, inputs: Sequence[Any]) -> None:
    """Raises InputError for an input that is to hold positions in a dimension and holds another number."""
    for position, lowest, highest, allowed in plan.indices:
        tensor = inputs[position]
        if not tensor.numel():
            continue
        least, most = (int(x) for x in tensor.aminmax())
        if least >= lowest and most <= highest:
            continue
        wrong = (tensor < lowest) | (tensor > highest)
        wrong = wrong if allowed is None else wrong & (tensor != allowed)
        if wrong.any():
            found = int(tensor[wrong][0])
            raise InputError(
                f"{_name(plan, position)} holds the index {found}, out of bounds for a dimension of size {highest + 1}",
                location=plan.program.graph.inputs[position].location,
            )


def describe_mismatch(plan: Plan, inputs: Sequence[Any]) -> None:
    """Raise InputError for the first input that does not fit, if one does not."""
    for position, layout in enumerate(plan.inputs):
        if layout is not None:
            check_input(plan, position, layout, inputs[position])


def _name(plan: Plan, position: int) -> str:
    nodes = plan.program.graph.inputs
    return f"input {nodes[position].name}" if position < len(nodes) else f"input {position}"


def check_input(plan: Plan, position: int, layout: Layout, value: Any) -> None:
    """Raises InputError if a value cannot be made to fit input `position`. A program for a GPU also takes tensors on the CPU."""
    if not isinstance(value, Tensor):
        raise InputError(f"{_name(plan, position)} must be a tensor, not {type(value).__name__}")
    if value.device.type != "cpu" and value.device != plan.device:
        where = "the CPU" if plan.device.type == "cpu" else str(plan.device)
        raise InputError(f"{_name(plan, position)} lies on {value.device}, but the program runs on {where}")
    if value.layout is not torch.strided:
        raise InputError(f"{_name(plan, position)} is {value.layout}", hint="give a dense tensor")
    if value.dtype is not layout.dtype:
        expected, given = (DTYPE_NAMES.get(d, str(d)) for d in (layout.dtype, value.dtype))
        raise InputError(f"{_name(plan, position)} has dtype {given}, not {expected}")
    if value.shape != layout.shape:
        raise InputError(f"{_name(plan, position)} has shape {list(value.shape)}, not {list(layout.shape)}")


def finish_writes(written: Iterable[int], inputs: Sequence[Any], replaced: Mapping[int, Tensor]) -> None:
    """Arguments that a program has written to, by position: copied back where a copy was written, and counted as changed."""
    with torch.no_grad():
        for position in written:
            tensor = inputs[position]
            if position in replaced:
                tensor.copy_(replaced[position])
            elif not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
