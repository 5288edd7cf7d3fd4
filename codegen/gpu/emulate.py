"""What Triton's interpreter lacks, from NumPy: CUDA's libdevice, which it cannot call, products of bfloat16, quick reductions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from dlcompiler.codegen.gpu.scalars import LIBDEVICE
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DTYPES, bf16

_BY_NAME = {libdevice: SCALARS[op].numpy for op, libdevice in LIBDEVICE.items()}


class Libdevice:
    """Stands for `triton.language.extra.libdevice`: attributes are functions of interpreter tensors."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _BY_NAME.get(name)
        if function is None:
            raise AttributeError(f"libdevice.{name} is not emulated")

        def apply(*operands: Any) -> Any:
            from triton.language import tensor
            from triton.runtime.interpreter import TensorHandle

            arrays = np.broadcast_arrays(*(o.handle.data for o in operands))
            with np.errstate(all="ignore"):
                result = np.asarray(function(*arrays)).astype(arrays[0].dtype)
            shaped = operands[int(np.argmax([o.handle.data.size for o in operands]))]
            return tensor(TensorHandle(result, shaped.handle.dtype), shaped.type)

        return apply


_patched = threading.RLock()


@contextmanager
def completed_interpreter() -> Iterator[None]:
    """Under this, the interpreter rounds to bfloat16 and multiplies it as GPUs do, and reduces whole slices at a time.

    By itself it cuts off the bits that bfloat16 lacks, takes those that it has for integers in products (8-bit floats' too), and
    calls a reduction's function for one element after another. A condition that is one number it spreads over a block as an
    integer. That of Triton 3.6 cannot loop up to a number that it computed, since NumPy no longer makes an int of an array of
    one element.
    """
    from triton import language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import TensorHandle

    builder = interpreter.interpreter_builder
    reductions = interpreter.ReduceOps
    generic, patch_tensor = reductions.generic_reduce, interpreter._patch_lang_tensor
    convert = interpreter._convert_float
    eighths = _eight_bit_types()

    def patch_tensor_too(tensor: Any, *rest: Any) -> None:
        patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    def convert_rounded(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source in eighths and target is tl.float32:
            return data.view(eighths[source]).astype(np.float32).view(np.uint32)
        if source is tl.float32 and target is tl.bfloat16:
            return np.ascontiguousarray(data, np.float32).astype(bf16.numpy).view(np.uint16)
        return convert(data, source, target, rounding)

    def spread(block: Any, handle: Any) -> Any:
        made = type(builder).create_splat(builder, block, handle)
        return TensorHandle(made.data.astype(np.bool_), tl.int1) if handle.data.dtype == np.bool_ else made

    with _patched:
        builder.create_dot = lambda a, b, *rest: type(builder).create_dot(builder, _widened(a), _widened(b), *rest)
        builder.create_splat = spread
        reductions.generic_reduce = _reduce_slices
        interpreter._patch_lang_tensor = patch_tensor_too
        interpreter._convert_float = convert_rounded
        try:
            yield
        finally:
            del builder.create_dot, builder.create_splat
            reductions.generic_reduce = generic
            interpreter._patch_lang_tensor = patch_tensor
            interpreter._convert_float = convert


def _eight_bit_types() -> dict[Any, np.dtype]:
    """Triton's 8-bit floats, which its interpreter holds as bytes -> NumPy's."""
    from triton import language as tl

    return {tl.float8e4nv: DTYPES["f8e4m3fn"].numpy, tl.float8e5: DTYPES["f8e5m2"].numpy}


def _widened(handle: Any) -> Any:
    """A tensor of bfloat16 or 8-bit floats as float32; any other as it is."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    eighth = _eight_bit_types().get(handle.dtype.scalar)
    if eighth is not None:
        return TensorHandle(handle.data.view(eighth).astype(np.float32), tl.float32)
    if handle.dtype.scalar is not tl.bfloat16 and handle.dtype is not tl.bfloat16:
        return handle
    bits = handle.data.view(np.uint16).astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)


def _reduce_slices(reduction: Any, tensors: Any) -> list[Any]:
    """One tensor for each that is reduced, by the reduction's own function."""
    flat = reduction.axis is None
    arrays = [t.handle.data.reshape(-1) if flat else t.handle.data for t in tensors]
    axis = 0 if flat else reduction.axis
    types = [t.dtype for t in tensors]

    def taken(position: int) -> list[Any]:
        return [reduction.to_tensor(np.asarray(a.take(position, axis)), t) for a, t in zip(arrays, types)]

    total = taken(0)
    for position in range(1, arrays[0].shape[axis]):
        result = reduction.combine_fn.fn(*total, *taken(position))
        total = list(result) if isinstance(result, tuple) else [result]
    found = [t.handle.data for t in total]
    if reduction.keep_dims:
        found = [a.reshape((1,) * tensors[0].handle.data.ndim) if flat else np.expand_dims(a, axis) for a in found]
    elif flat:
        found = [a.item() for a in found]
    return [reduction.to_tensor(a, t) for a, t in zip(found, types)]
