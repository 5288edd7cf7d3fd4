"""Calls of the C library's mathematics, one lane at a time: for what is rare and has no vector code of its own."""

from __future__ import annotations

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.value import Value


def call_lanes(e: Emitter, name: str, *values: Value) -> Value:
    """The C function `name` of f64 values, in a loop over the lanes; the result has their type."""
    e.declare(name, [value.element for value in values], values[0].element)
    lanes = values[0].lanes
    if not lanes:
        return _call(e, name, values)
    buffers = [e.scratch(value.element, lanes) for value in values]
    for value, buffer in zip(values, buffers, strict=True):
        e.store(value, buffer, 0)
    with e.for_loop(0, lanes) as loop:
        arguments = tuple(e.load(buffer, loop.index, "f64") for buffer in buffers)
        e.store(_call(e, name, arguments), buffers[0], loop.index)
    return e.load(buffers[0], 0, values[0].element, lanes)


def _call(e: Emitter, name: str, arguments: tuple[Value, ...]) -> Value:
    result = e.call(name, arguments, "f64")
    assert result is not None
    return result
