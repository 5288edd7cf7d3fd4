"""How windows of convolutions and pools lie on their input: strides, dilations, explicit and automatic padding, ceil mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcompiler.frontends.onnx_registry import Call
from dlcompiler.ir.expression import Dim, floor_div, known, maximum


@dataclass(frozen=True)
class Windows:
    """One number for each spatial dimension. `extra` is what ceil mode adds behind, beyond `high`."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Dim, ...]
    high: tuple[Dim, ...]
    extra: tuple[Dim, ...] = ()

    @property
    def spans(self) -> tuple[int, ...]:
        """Elements from the first to the last that a window touches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations))


def windows(call: Call, sizes: Sequence[Dim], window: Sequence[Dim]) -> Windows:
    """The geometry that the node's attributes give for spatial `sizes`."""
    spatial = len(sizes)
    if any(not isinstance(k, int) for k in window):
        call.unsupported("a kernel of symbolic size")
    kernel = tuple(known(k) for k in window)
    strides = call.integers("strides", spatial, 1)
    dilations = call.integers("dilations", spatial, 1)
    if min((*kernel, *strides, *dilations), default=1) < 1:
        call.invalid(f"kernel {kernel}, strides {strides} and dilations {dilations} must be positive")
    plain = Windows(kernel, strides, dilations, (0,) * spatial, (0,) * spatial)
    mode = call.attribute("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        low, high = [], []
        for size, span, stride in zip(sizes, plain.spans, strides):
            total = maximum((floor_div(size + (stride - 1), stride) - 1) * stride + span - size, 0)
            smaller = floor_div(total, 2)
            larger = total - smaller
            low.append(smaller if mode == "SAME_UPPER" else larger)
            high.append(larger if mode == "SAME_UPPER" else smaller)
    elif mode == "VALID":
        low, high = [0] * spatial, [0] * spatial
    elif mode in ("NOTSET", ""):
        pads = call.integers("pads", 2 * spatial, 0)
        low, high = list(pads[:spatial]), list(pads[spatial:])
    else:
        call.invalid(f"auto_pad is {mode!r}, not NOTSET, SAME_UPPER, SAME_LOWER or VALID")
    for size, span, before, behind in zip(sizes, plain.spans, low, high):
        call.b.at_most(span, size + before + behind, always=True)  # there is no call with a window that does not fit
    return Windows(plain.kernel, strides, dilations, tuple(low), tuple(high), _ceil_extra(call, sizes, plain, low, high))


def _ceil_extra(call: Call, sizes: Sequence[Dim], plain: Windows, low: Sequence[Dim], high: Sequence[Dim]) -> tuple[Dim, ...]:
    """Elements behind the padding that the last window of ceil mode needs. A window that starts there is left out."""
    extra: list[Dim] = []
    for size, span, stride, before, behind in zip(sizes, plain.spans, plain.strides, low, high):
        if not call.flag("ceil_mode") or stride == 1:
            extra.append(0)
            continue
        padded = size + before + behind
        if not isinstance(padded, int) or not isinstance(before, int):
            call.unsupported("ceil_mode over a symbolic size")
        last = -(-(padded - span) // stride)
        if last * stride >= known(size) + before:
            last -= 1
        extra.append(max(last * stride + span - padded, 0))
    return tuple(extra)
