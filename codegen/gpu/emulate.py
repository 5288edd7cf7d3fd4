"""CUDA's libdevice under Triton's interpreter, which cannot call device libraries: the same functions from NumPy."""

from __future__ import annotations

from collections.abc import Callable
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
