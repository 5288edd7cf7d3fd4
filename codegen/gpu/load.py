"""Triton source text as a function: from memory, without a file, compiled or interpreted."""

from __future__ import annotations

import hashlib
import linecache
from typing import Any


def load_function(source: str, name: str, interpret: bool) -> Any:
    """The function called `name` in the source: a `JITFunction`, or one that Triton's interpreter runs on CPU tensors."""
    import triton

    filename = f"<dlcompiler {name} {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    # Triton reads a function's text through `inspect`, which finds it here
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": f"dlcompiler_{name}"}
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpret
        exec(compile(source, filename, "exec"), namespace)  # our own text, made in this process
    if interpret:
        from dlcompiler.codegen.gpu.emulate import Libdevice

        namespace["libdevice"] = Libdevice()
    return namespace[name]
