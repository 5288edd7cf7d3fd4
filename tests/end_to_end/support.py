"""What the end-to-end tests share: the two ways in, and float64 as the judge of both eager and compiled.

``DLCOMPILER_TEST_BACKEND=eager`` (or ``inductor``) runs the tests against another backend, to test the tests.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

BACKEND = os.environ.get("DLCOMPILER_TEST_BACKEND", "dlcompiler")
ENTRIES = ("torch.compile", "dlcompiler.compile")
# How near to float64 an answer must be at least, as a share of the largest value; or three times eager's own distance.
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

ours_only = pytest.mark.skipif(BACKEND != "dlcompiler", reason="asks dlcompiler itself, which a stand-in cannot answer")


class FunctionModule(nn.Module):
    """A plain function in a module's clothes, for entries that want a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def as_module(function: Callable[..., Any]) -> nn.Module:
    """The function as a module; modules stay as they are."""
    return function if isinstance(function, nn.Module) else FunctionModule(function)


def compile_with(entry: str, function: Callable[..., Any], inputs: Sequence[Any] = (), **settings: Any) -> Callable[..., Any]:
    """Compiles through one of ``ENTRIES``; a stand-in backend has only torch.compile."""
    if entry == "torch.compile" or BACKEND != "dlcompiler":
        return torch.compile(function, backend=BACKEND, **settings)
    import dlcompiler

    return dlcompiler.compile(as_module(function), tuple(inputs), **settings)


def compiled_graphs() -> int:
    """How many graphs were compiled since the last reset."""
    import dlcompiler

    return len(dlcompiler.reports())


def leaves(result: Any) -> list[Any]:
    """The tensors of a result, in order."""
    return [leaf for leaf in _pytree.tree_leaves(result) if leaf is not None]


def fresh(values: Any) -> Any:
    """Copies of tensors that keep strides, offset and overlap, so that a call cannot change its neighbour's inputs."""

    def copy_tensor(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.detach().untyped_storage().clone()
        made = torch.empty(0, dtype=value.dtype).set_(storage, value.storage_offset(), value.shape, value.stride())
        return made.requires_grad_(value.requires_grad)

    return _pytree.tree_map(copy_tensor, values)


def in_float64(values: Any) -> Any:
    """Floating tensors as float64, the rest unchanged."""
    return _pytree.tree_map(
        lambda value: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value, values
    )


def distance(actual: Tensor, reference: Tensor) -> float:
    """max|actual - reference| / max|reference| over the places where the reference is finite."""
    actual, reference = actual.detach().double(), reference.detach().double()
    finite = torch.isfinite(reference) & torch.isfinite(actual)
    if not finite.any():
        return 0.0
    scale = reference[finite].abs().max().clamp_min(1e-300)
    return float((actual[finite] - reference[finite]).abs().max() / scale)


def assert_same_layout(ours: Tensor, eager: Tensor, what: str = "output") -> None:
    """Shape, dtype, strides and device are eager's."""
    assert ours.shape == eager.shape, f"{what}: shape {tuple(ours.shape)}, eager {tuple(eager.shape)}"
    assert ours.dtype == eager.dtype, f"{what}: {ours.dtype}, eager {eager.dtype}"
    assert ours.stride() == eager.stride(), f"{what}: strides {ours.stride()}, eager {eager.stride()}"
    assert ours.device == eager.device


def assert_identical(ours: Tensor, eager: Tensor, what: str = "output") -> None:
    """Same layout and the same bits, NaN equal to NaN, -0.0 different from 0.0."""
    assert_same_layout(ours, eager, what)
    ours, eager = ours.detach(), eager.detach()
    different = ours != eager
    if eager.is_floating_point():
        different = (different | (ours.signbit() != eager.signbit())) & ~eager.isnan() | (ours.isnan() != eager.isnan())
    if different.any():
        places = different.nonzero()
        shown = ", ".join(f"{tuple(i.tolist())}: {ours[tuple(i)].item()}, eager {eager[tuple(i)].item()}" for i in places[:4])
        raise AssertionError(f"{what}: {len(places)} of {eager.numel()} differ, at {shown}")


def assert_near(ours: Tensor, eager: Tensor, judge: Tensor, what: str = "output", floor: float | None = None) -> None:
    """Ours is not further from float64 than three times eager's own distance, or the dtype's floor."""
    assert_same_layout(ours, eager, what)
    if not eager.is_floating_point():
        assert_identical(ours, eager, what)
        return
    for test in (torch.isnan, torch.isposinf, torch.isneginf):  # eager's gelu(inf) is NaN in float32 and inf in float64
        mine, same_as_either = test(ours), (test(ours) == test(eager)) | (test(ours) == test(judge))
        assert same_as_either.all(), f"{what}: {test.__name__} at {mine.nonzero().tolist()}, not as in eager nor in float64"
    allowed = max(3 * distance(eager, judge), FLOOR[eager.dtype] if floor is None else floor)
    found = distance(ours, judge)
    assert found <= allowed, f"{what}: {found:.2e} from float64, eager {distance(eager, judge):.2e}, allowed {allowed:.2e}"


def check(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    entry: str = "torch.compile",
    judge: Callable[..., Any] | None = None,
    compiled: Callable[..., Any] | None = None,
) -> Any:
    """Runs eager, compiled and float64 on copies of the inputs and compares outputs and whatever happened to the inputs."""
    reference_function = judge or (copy.deepcopy(function).double() if isinstance(function, nn.Module) else function)
    eager_inputs, our_inputs, judge_inputs = fresh(inputs), fresh(inputs), in_float64(fresh(inputs))
    eager = leaves(function(*eager_inputs))
    reference = leaves(reference_function(*judge_inputs))
    if compiled is None:
        compiled = compile_with(entry, function, fresh(inputs))
    ours = leaves(compiled(*our_inputs))
    assert len(ours) == len(eager)
    for position, (mine, theirs, exact) in enumerate(zip(ours, eager, reference)):
        if isinstance(theirs, Tensor):
            assert_near(mine, theirs, exact, f"output {position}")
        else:
            assert mine == theirs and type(mine) is type(theirs)
    for position, (mine, theirs, exact) in enumerate(zip(leaves(our_inputs), leaves(eager_inputs), leaves(judge_inputs))):
        if isinstance(theirs, Tensor):
            assert_near(mine, theirs, exact, f"input {position} afterwards")
    return ours


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers from a fixed seed, the shape mixed into it."""
    generator = torch.Generator().manual_seed(seed * 7919 + math.prod(shape) + len(shape))
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if not dtype.is_floating_point:
        low, high = (0, 200) if dtype == torch.uint8 else (-100, 100)
        return torch.randint(low, high, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
