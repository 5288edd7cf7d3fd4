"""Facts about CPUs. The compiler is told its machine; only `host()` and `processor()` look at the live one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlcompiler.codegen.contraction import TileMachine

V2_FLAGS = frozenset({"sse4_2", "ssse3", "popcnt", "cx16"})
V3_FLAGS = V2_FLAGS | {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}
V4_FLAGS = V3_FLAGS | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


@dataclass(frozen=True)
class Machine:
    """One architecture level: what a schedule may count on.

    `cpu` and `features` are LLVM's words: `features` lists what to switch off when code for this level is made on a bigger host.
    """

    name: str
    cpu: str
    vector_bytes: int
    vector_registers: int
    has_fma: bool
    has_masks: bool
    has_half_conversion: bool
    # instructions beyond the level, which only the live machine is known to have: sums of products of two bfloat16, of four bytes
    has_bfloat_products: bool = False
    has_byte_products: bool = False
    features: tuple[str, ...] = ()
    cores: int = 1
    cache_bytes: tuple[int, int, int] = (32 << 10, 512 << 10, 8 << 20)

    @property
    def tiles(self) -> TileMachine:
        """What schedules of contractions ask of a machine."""
        # imported here: who only loads compiled code asks for no tiles
        from dlcompiler.codegen.contraction import TileMachine

        return TileMachine(
            self.vector_bytes, self.vector_registers, self.has_masks, self.cache_bytes[1], self.cores,
            self.has_bfloat_products, self.has_byte_products,
        )  # fmt: skip

    def lanes(self, element_bytes: int) -> int:
        """How many elements of `element_bytes` one vector register holds."""
        return self.vector_bytes // element_bytes

    def attributes(self) -> str:
        """What `Emitter(attributes=...)` puts on functions so that a bigger host makes code of this level; empty for
        the highest.
        """
        if not self.features:
            return ""
        words = ", ".join(f'"{feature}"' for feature in self.features)
        return f'target_cpu = "{self.cpu}", target_features = #llvm.target_features<[{words}]>'


NO_AVX512 = (
    "-avx512f",
    "-avx512bw",
    "-avx512dq",
    "-avx512vl",
    "-avx512cd",
    "-avx512bf16",
    "-avx512vnni",
    "-avx512ifma",
    "-avx512vbmi",
    "-avx512vbmi2",
    "-avx512bitalg",
    "-avx512vpopcntdq",
    "-evex512",
)
NO_AVX = NO_AVX512 + ("-avx2", "-avx", "-fma", "-f16c", "-bmi", "-bmi2", "-movbe", "-vaes", "-vpclmulqdq", "-fma4")

MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine("x86-64-v2", "x86-64-v2", 16, 16, has_fma=False, has_masks=False, has_half_conversion=False, features=NO_AVX),
        Machine("x86-64-v3", "x86-64-v3", 32, 16, has_fma=True, has_masks=False, has_half_conversion=True, features=NO_AVX512),
        Machine("x86-64-v4", "x86-64-v4", 64, 32, has_fma=True, has_masks=True, has_half_conversion=True),
        Machine("aarch64", "generic", 16, 32, has_fma=True, has_masks=False, has_half_conversion=True),
    )
}


def machine(name: str) -> Machine:
    """The machine called `name`; ValueError lists the known names."""
    if name not in MACHINES:
        raise ValueError(f"unknown machine {name!r}; known: {', '.join(MACHINES)}")
    return MACHINES[name]


def level_of_flags(architecture: str, flags: frozenset[str]) -> str:
    """The name in `MACHINES` for a kernel's architecture word (`x86_64`, `aarch64`) and its /proc/cpuinfo flags."""
    if architecture in ("aarch64", "arm64"):
        return "aarch64"
    if architecture not in ("x86_64", "AMD64"):
        raise ValueError(f"no machine description for {architecture!r}")
    for name, needed in (("x86-64-v4", V4_FLAGS), ("x86-64-v3", V3_FLAGS), ("x86-64-v2", V2_FLAGS)):
        if needed <= flags:
            return name
    raise ValueError("an x86-64-v2 processor (SSE4.2) is the least that is supported")


@functools.cache
def host() -> Machine:
    """The live machine: its level, number of usable cores and cache sizes. Nothing else in `codegen` asks for them."""
    import dataclasses
    import os
    import platform

    flags = frozenset(_flags(_first_processor()))
    level = MACHINES[level_of_flags(platform.machine(), flags)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return dataclasses.replace(
        level,
        cores=cores,
        cache_bytes=_cache_bytes(level.cache_bytes),
        has_bfloat_products=level.has_masks and "avx512_bf16" in flags,
        has_byte_products=level.has_masks and "avx512_vnni" in flags,
    )


def processor() -> str:
    """Everything about the live processor that changes what LLVM makes for it: family, model and features, on one line."""
    import platform

    facts = _first_processor()
    names = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU variant", "CPU part")
    words = [f"{name} {facts[name]}" for name in names if name in facts] or [platform.processor()]
    return "; ".join([*words, " ".join(sorted(_flags(facts)))])


def _first_processor() -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo; empty where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        with open(cpuinfo) as lines:  # the kernel writes it as it is read: on many cores the whole takes long
            for line in lines:
                if not line.strip():
                    break
                name, _, value = line.partition(":")
                facts[name.strip()] = value.strip()
    return facts


def _flags(facts: dict[str, str]) -> list[str]:
    return facts.get("flags", facts.get("Features", "")).split()


def _cache_bytes(default: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sizes of the first core's data caches as Linux reports them, `default` for each one it does not."""
    sizes = list(default)
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size.endswith("K") and int(level) <= 3:
            sizes[int(level) - 1] = int(size[:-1]) << 10
    return sizes[0], sizes[1], sizes[2]
