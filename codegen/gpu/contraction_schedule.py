"""Schedules of matrix products on GPUs, as data, and the cost model that chooses among them.

A program multiplies a tile of `rows` x `depth` by one of `depth` x `columns` again and again, while `stages` such pairs are on
their way to shared memory. The model counts, for every candidate, what one multiprocessor spends on multiplying, on the second
cache and on waiting, times the waves of programs, and compares with what device memory takes. Of a program that is alone on its
multiprocessor, its first loads and what it does to its sums are added; of several, one multiplies meanwhile. Rates are those of
data sheets, so that the choice is the same on every machine; a tuner on a live GPU tries the first few of `candidates`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dlcompiler.codegen.gpu.contraction_form import EIGHTH, Form, has_plain_factors
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.schedule import ceiling, power_of_two
from dlcompiler.codegen.schedule import EXPENSIVE, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.types import DType

PRECISIONS = ("ieee", "tf32x3", "tf32")
WARP = 32
# Rows of tiles that are worked on together, so that their programs find each other's columns in the second cache.
GROUP = 8
# Sums one thread may hold: all its registers are 255, and operands and addresses need the rest.
MOST_SUMS = 128
# With operands that pass through registers (no wgmma or tcgen05), and with much to do to each sum.
MOST_SUMS_BESIDE_OPERANDS = 64
# Seconds: a launch with its first loads and last stores; one load from the second cache and from device memory.
START, CACHE_LATENCY, MEMORY_LATENCY = 2.5e-6, 0.3e-6, 0.7e-6
# Instructions for each sum after the loop: to store it, and for each scalar operation (a short sequence on average).
STORE_WORK, WORK = 4, 2
# Parts of a sum are only made where they are expected to take at most this share of the time; and no more of them than take
# so much longer than the best number: what they save is an estimate, what they write and read again is certain.
WORTH_SPLITTING, AS_GOOD = 0.8, 1.25
# and of so many summed positions at least; a quarter of them where other axes are summed too
SHORTEST_PART = 128


@dataclass(frozen=True)
class MatrixSchedule:
    """How a matrix product runs; prints on one line.

    rows, columns, depth  of a tile, powers of two of at least 16
    group        rows of tiles that run together; 1: in order
    persistent   as many programs as multiprocessors, each of which takes tile after tile
    descriptors  tiles are copied by the tensor memory accelerator (sm_90 and later)
    flat         the summed axes are flattened into one; else the loop goes over points of all but the last, in blocks of that
    precision    of float32 products: ieee, tf32x3 or tf32
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = GROUP
    persistent: bool = False
    descriptors: bool = False
    flat: bool = True
    precision: str = "ieee"

    def shared_bytes(self, dtype: DType) -> int:
        """Shared memory that the pairs of tiles on their way take."""
        return self.stages * (self.rows + self.columns) * self.depth * dtype.bytes

    @property
    def sums(self) -> int:
        """Sums that one thread holds."""
        return self.rows * self.columns // (self.warps * WARP)

    def __str__(self) -> str:
        parts = [f"tile {self.rows} x {self.columns} x {self.depth}", f"{self.warps} warps", f"{self.stages} stages"]
        parts += [f"groups of {self.group}"] if self.group > 1 else []
        parts += [word for word, is_on in (("persistent", self.persistent), ("descriptors", self.descriptors)) if is_on]
        return ", ".join([*parts, *([self.precision] if self.precision else [])])


@dataclass(frozen=True)
class Rates:
    """What multiplying costs on a device, from data sheets: operations a second, and bytes a second from the second cache.

    eighth: of bytes, and of 8-bit floats where these are multiplied (`takes_eighths`)
    group_products: whether four warps multiply together with operands in shared memory (wgmma, tcgen05)
    """

    tf32: float
    eighth: float
    cache: float
    group_products: bool = False


RATES = {
    "sm_75": Rates(8e12, 130e12, 1.0e12),
    "sm_80": Rates(156e12, 624e12, 4.5e12),
    "sm_86": Rates(71e12, 284e12, 2.5e12),
    "sm_89": Rates(183e12, 733e12, 4.0e12),
    "sm_90": Rates(494e12, 1979e12, 6.5e12, True),
    "sm_100": Rates(1125e12, 4500e12, 12e12, True),
    "sm_103": Rates(1125e12, 4500e12, 12e12, True),
    "sm_120": Rates(105e12, 419e12, 5.0e12),
    "sm_121": Rates(31e12, 125e12, 1.5e12),
}


def takes_eighths(device: Device) -> bool:
    """Whether tensor cores multiply 8-bit floats, and one instruction converts them: from compute capability 8.9 on."""
    return int(device.arch.removeprefix("sm_")) >= 89


def rate(device: Device, dtype: DType, precision: str) -> float:
    """Operations a second of products of a dtype; of float32 by precision."""
    rates = RATES[device.arch]
    if dtype.bits == 16 or (dtype in EIGHTH and not takes_eighths(device)):
        return device.half
    if dtype.bits == 8:
        return rates.eighth
    return {"ieee": device.float32, "tf32x3": rates.tf32 / 3, "tf32": rates.tf32}[precision]


# -- the candidates ------------------------------------------------------------------------------------------------------------

_TENSOR_TILES = (
    (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (256, 64, 4), (128, 64, 4), (64, 128, 4),
    (64, 64, 4), (128, 32, 4), (32, 128, 4), (64, 32, 4), (32, 64, 4), (32, 32, 4), (16, 256, 4), (16, 128, 4), (16, 64, 4),
    (16, 32, 2), (128, 16, 4), (64, 16, 4), (32, 16, 2), (16, 16, 1),
)  # fmt: skip
_SCALAR_TILES = (
    (128, 128, 8), (128, 64, 8), (64, 128, 8), (64, 64, 4), (64, 32, 4), (32, 64, 4), (32, 32, 4), (16, 128, 4), (16, 64, 2),
    (16, 32, 2), (32, 16, 2), (64, 16, 4), (16, 16, 1),
)  # fmt: skip


def matrix_candidates(form: Form, device: Device, precision: str) -> Iterator[MatrixSchedule]:
    """Schedules that fit the device, the one the model expects to be quickest first. Deterministic; never looks at data."""
    found = {each: (_seconds(each, form, device), _busy(each, form, device)) for each in _fitting(form, device, precision)}
    # of equals the one with the most on its way
    yield from sorted(found, key=lambda each: (found[each], -each.stages * each.depth, str(each)))


def tuning_candidates(form: Form, device: Device, precision: str, most: int = 24) -> list[MatrixSchedule]:
    """What a tuner on a live GPU should try: the model's first choices, and these as persistent kernels and with descriptors."""
    best = list(matrix_candidates(form, device, precision))[:most]
    more = [replace(each, persistent=True) for each in best[:4]]
    if RATES[device.arch].group_products and has_plain_factors(form):
        more += [replace(each, descriptors=True, persistent=is_on) for each in best[:4] for is_on in (False, True)]
    return best + more


def _fitting(form: Form, device: Device, precision: str) -> Iterator[MatrixSchedule]:
    narrow = form.dtype.bits <= 16
    is_scalar = not narrow and precision == "ieee"
    groups = RATES[device.arch].group_products
    rows, columns = size_estimate(form.size(form.rows)), size_estimate(form.size(form.columns))
    most = MOST_SUMS if groups and not is_scalar and _work_after(form) <= 12 else MOST_SUMS_BESIDE_OPERANDS
    last = form.axes[form.summed[-1]] if form.summed else 1
    for height, width, warps in _SCALAR_TILES if is_scalar else _TENSOR_TILES:
        if height > max(16, power_of_two(rows)) or width > max(16, power_of_two(columns)):
            continue
        deepest = 1024 // form.dtype.bits
        # few rows multiply little and wait for columns: twice as many of these on their way
        for depth in (*((2 * deepest,) if height < 64 else ()), deepest, deepest // 2, *((32,) if form.dtype.bits == 8 else ())):
            flat = len(form.summed) <= 1 or not _walks(last, depth)
            for stages in (4, 3, 2):
                each = MatrixSchedule(height, width, depth, warps, stages, flat=flat, precision="" if narrow else precision)
                if each.shared_bytes(form.dtype) <= device.block_shared_bytes - 2048 and each.sums <= most:
                    yield each if -(-rows // height) > 1 else replace(each, group=1)


def _walks(last: Dim, depth: int) -> bool:
    """Whether blocks of the innermost summed axis waste little, so that the loop may go over the points of the others."""
    return isinstance(last, int) and -(-last // depth) * depth <= 1.15 * last


def _work_after(form: Form) -> int:
    """Scalar operations done to each sum, expensive ones counted more."""
    reached = {v for s in form.kernel.stores for v in form.kernel.values if isinstance(v, K.Compute | K.Load)}
    under: set[K.Value] = set()
    stack: list[K.Value] = [form.reduce]
    while stack:
        value = stack.pop()
        if value not in under:
            under.add(value)
            stack.extend(value.operands)
    return sum(4 if isinstance(v, K.Compute) and v.op in EXPENSIVE else 1 for v in reached - under)


# -- the model -----------------------------------------------------------------------------------------------------------------


def _seconds(each: MatrixSchedule, form: Form, device: Device, parts: int = 1) -> float:
    """What a launch is expected to take, the sum made in so many parts by as many programs."""
    least = minimal_bytes(form.kernel)
    busy = max(_busy(each, form, device, parts), _waiting(each, form, device, least)) + _exposed(each, form, device)
    return START + max(busy, least / device.copy_bandwidth)


def _waiting(each: MatrixSchedule, form: Form, device: Device, least: int) -> float:
    """For loads, by which share of them comes from device memory: what other programs have read before is in the second cache."""
    waves, _ = _waves(each, form, device)
    steps = _steps(each, form)
    moved = size_estimate(tiles_of(form, each)) * steps * (each.rows + each.columns) * each.depth * form.dtype.bytes
    latency = CACHE_LATENCY + (MEMORY_LATENCY - CACHE_LATENCY) * min(1.0, least / moved)
    return waves * (MEMORY_LATENCY + steps * latency / max(each.stages - 1, 1))


def _exposed(each: MatrixSchedule, form: Form, device: Device) -> float:
    """What programs do before and after multiplying, as far as no other program of the multiprocessor multiplies meanwhile."""
    waves, here = _waves(each, form, device)
    work = each.rows * each.columns * (STORE_WORK + WORK * _work_after(form))
    once = MEMORY_LATENCY + work / (device.float32 / 2 / device.multiprocessors)
    return (waves if here == 1 else 1) * once


def _waves(each: MatrixSchedule, form: Form, device: Device, parts: int = 1) -> tuple[int, int]:
    """How often multiprocessors are given programs, and how many at once."""
    rows, columns, batch = (size_estimate(form.size(names)) for names in (form.rows, form.columns, form.batch))
    tiles = batch * parts * -(-rows // each.rows) * -(-columns // each.columns)
    here = min(_programs_at_once(each, form, device), -(-tiles // device.multiprocessors))
    return -(-tiles // (device.multiprocessors * here)), here


def _busy(each: MatrixSchedule, form: Form, device: Device, parts: int = 1) -> float:
    """How long multiprocessors are at work, whatever device memory gives."""
    rates = RATES[device.arch]
    steps = -(-_steps(each, form) // parts)
    waves, here = _waves(each, form, device, parts)
    each_rate = (
        rate(device, form.dtype, each.precision or "ieee")
        / device.multiprocessors
        * _efficiency(each, device, len(form.summed) > 1)
    )
    multiply = 2 * each.rows * each.columns * each.depth * steps / each_rate
    moved = (each.rows + each.columns) * each.depth * steps * form.dtype.bytes
    from_cache = moved / (rates.cache / device.multiprocessors)
    waiting = MEMORY_LATENCY + steps * CACHE_LATENCY / max(each.stages - 1, 1)
    return waves * max(here * multiply, here * from_cache, waiting)


def _steps(each: MatrixSchedule, form: Form) -> int:
    """Times round the loop."""
    sizes = [size_estimate(form.axes[a]) for a in form.summed]
    if not sizes:
        return 1
    if each.flat:
        total = 1
        for size in sizes:
            total *= size
        return -(-total // each.depth)
    total = -(-sizes[-1] // each.depth)
    for size in sizes[:-1]:
        total *= size
    return total


def _efficiency(each: MatrixSchedule, device: Device, several: bool) -> float:
    """The share of the peak that a tile reaches: what is read from shared memory for it grows with its edges, not its area."""
    area, edges = each.rows * each.columns, each.rows + each.columns
    share = 0.95 * area / (area + 32 * edges)
    if each.precision == "ieee":
        return 0.75 * share
    if RATES[device.arch].group_products and each.rows < 64:
        return share / 2  # four warps multiply 64 rows together; fewer go through registers
    if each.flat and several:
        share *= 0.6  # every number's address is computed in every step
    return share if each.depth >= 32 else 0.8 * share


def _programs_at_once(each: MatrixSchedule, form: Form, device: Device) -> int:
    """Programs that one multiprocessor holds."""
    threads = each.warps * WARP
    registers = min(255, each.sums + (64 if each.sums >= 64 else 96))
    by_shared = device.shared_bytes // (each.shared_bytes(form.dtype) + 1024)
    return max(1, min(by_shared, device.registers // (registers * threads), device.threads // threads, device.blocks))


def minimal_bytes(kernel: K.Kernel) -> int:
    """Bytes of a kernel's buffers, each moved once."""
    total = 0
    for buffer in kernel.buffers:
        count = buffer.dtype.bytes
        for size, stride in zip(buffer.shape, buffer.strides):
            count *= 1 if stride == 0 else size_estimate(size)
        total += count
    return total


def operations(form: Form) -> int:
    """Multiplications and additions of the product."""
    names = (*form.batch, *form.rows, *form.columns, *form.summed)
    total = 2
    for name in names:
        total *= size_estimate(form.axes[name])
    return total


def choose_parts(form: Form, device: Device, precision: str) -> int:
    """Parts in which sums are made by programs of their own, and then added up; 1 where enough programs have work anyway."""
    if not form.summed or not all(isinstance(e, int) for e in form.kernel.extents.values()):
        return 1
    longest = max(size_estimate(form.kernel.extents[a]) for a in form.reduce.over)
    shortest = SHORTEST_PART if len(form.reduce.over) == 1 else SHORTEST_PART // 4

    schedules, least_moved = list(_fitting(form, device, precision)), minimal_bytes(form.kernel) / device.copy_bandwidth

    def best(parts: int) -> float:
        return START + max(least_moved, min(_busy(each, form, device, parts) for each in schedules))

    results = size_estimate(form.size((*form.batch, *form.rows, *form.columns)))
    most = best(1) * WORTH_SPLITTING
    seconds = {}
    for parts in (2, 4, 8, 16):
        if longest % parts == 0 and longest // parts >= shortest:
            seconds[parts] = best(parts) + START + 2 * parts * results * 4 / RATES[device.arch].cache
    least = min(seconds.values(), default=most)
    return next((parts for parts, taken in seconds.items() if taken < most and taken <= AS_GOOD * least), 1)


def tiles_of(form: Form, each: MatrixSchedule) -> Dim:
    """Tiles of the whole product."""
    return form.size(form.batch) * ceiling(form.size(form.rows), each.rows) * ceiling(form.size(form.columns), each.columns)
