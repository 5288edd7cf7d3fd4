"""What Triton's interpreter lacks, from NumPy: CUDA's libdevice, which it cannot call, and products of bfloat16."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from dlcompiler.codegen.gpu.scalars import LIBDEVICE
from dlcompiler.ir.scalar import SCALARS

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


_products = threading.RLock()


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Under this, the interpreter multiplies matrices of bfloat16 as numbers; by itself it takes their bits for integers."""
    from triton import language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    original = type(builder).create_dot

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        return original(builder, *(_widened(x) if x.dtype is tl.bfloat16 else x for x in (a, b)), *rest)

    def _widened(handle: Any) -> Any:
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    with _products:
        builder.create_dot = create_dot
        try:
            yield
        finally:
            del builder.create_dot
