"""What the cost model and the roofline know of each architecture: numbers of one well-known product, from its data sheet.

Code is made for the architecture alone; another product of it (fewer multiprocessors, slower memory) runs the same code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One GPU.

    multiprocessors   how many; registers and shared_bytes are of one of them, `block_shared_bytes` the most of one block
    copy_bandwidth    bytes/s that a large copy moves in practice (reads and writes counted), about 90 % of the data sheet's
    float32, half     multiply-adds count twice: FLOP/s of float32 outside and of float16 inside matrix units
    """

    product: str
    arch: str
    multiprocessors: int
    threads: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    copy_bandwidth: float
    float32: float
    half: float


DEVICES = {
    device.arch: device
    for device in (
        Device("T4", "sm_75", 40, 1024, 16, 65536, 64 << 10, 64 << 10, 0.27e12, 8.1e12, 65e12),
        Device("A100", "sm_80", 108, 2048, 32, 65536, 164 << 10, 163 << 10, 1.8e12, 19.5e12, 312e12),
        Device("RTX 3090", "sm_86", 82, 1536, 16, 65536, 100 << 10, 99 << 10, 0.84e12, 35.6e12, 142e12),
        Device("L40S", "sm_89", 142, 1536, 24, 65536, 100 << 10, 99 << 10, 0.78e12, 91.6e12, 362e12),
        Device("H200", "sm_90", 132, 2048, 32, 65536, 228 << 10, 227 << 10, 4.3e12, 66.9e12, 989e12),
        Device("B200", "sm_100", 148, 2048, 32, 65536, 228 << 10, 227 << 10, 7.2e12, 75e12, 2250e12),
        Device("B300", "sm_103", 148, 2048, 32, 65536, 228 << 10, 227 << 10, 7.2e12, 75e12, 2250e12),
        Device("RTX 5090", "sm_120", 170, 1536, 24, 65536, 100 << 10, 99 << 10, 1.6e12, 104e12, 209e12),
        Device("GB10", "sm_121", 48, 1536, 24, 65536, 100 << 10, 99 << 10, 0.24e12, 31e12, 62e12),
    )
}


def device_of(arch: str) -> Device:
    """The description for an architecture, as `sm_90`. Raises KeyError for one that is not known."""
    return DEVICES[arch]
