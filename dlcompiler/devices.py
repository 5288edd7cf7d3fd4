"""Which target suits this machine, and tensors that are where they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dlcompiler.codegen.target import Target, nearest_architecture, parse_target
from dlcompiler.ir.errors import UnsupportedError


def target_of_devices(devices: Iterable[torch.device]) -> Target:
    """The target for tensors on these devices. Raises UnsupportedError if they are not of one that is compiled for."""
    found = set(devices)
    kinds = sorted({device.type for device in found}) or ["cpu"]
    if kinds == ["cpu"]:
        return parse_target("cpu")
    if kinds == ["cuda"] and len(found) == 1:
        if not torch.cuda.is_available():  # as when a graph is traced for a GPU that is elsewhere
            return parse_target("cuda")
        return parse_target("cuda:" + nearest_architecture(torch.cuda.get_device_capability(next(iter(found)))))
    named = sorted(map(str, found))
    raise UnsupportedError(f"tensors on {' and '.join(named)} in one graph", items=tuple(named))


def target_here(text: str) -> Target:
    """As `parse_target`, but `cuda` means this machine's GPU where there is one.

    Raises OptionError for an unknown target, UnsupportedError for a GPU that is not compiled for.
    """
    if text != "cuda" or not torch.cuda.is_available():
        return parse_target(text)
    return target_of_devices([torch.device("cuda", torch.cuda.current_device())])
