"""Random numbers as pure functions: torch's random operators written with a counter-based generator.

    mask = native_dropout(x, p)
    -->  seed = dlcompiler.random_seed(); bits = dlcompiler.random_bits(seed, position, shape); mask = bits < q

One seed is drawn from torch's generator of the device in each call of a graph; so `torch.manual_seed`, forked generators and
checkpoints of their states mean what they mean in eager. Everything else is a function of the seed, of a draw's position among
those of its graph, and of an element's index. Positions are given in the order of capture, before anything is moved. Hence bits
can be computed again anywhere, and of all of them a backward pass needs to be given the seed alone.

torch breaks operators up by the functions below while it traces (`decompositions`); `number_draws` then gives positions.
Distributions without one stay calls of ATen: permutations, multinomial, Poisson, gamma and their kin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy

from dlcompiler.frontends.fx_rules import rule
from dlcompiler.frontends.random_draws import bits_at
from dlcompiler.ir.philox import INCREMENTS, MULTIPLIERS, ROUNDS, WORD
from dlcompiler.runtime.library import draw_seed

UNNUMBERED = -1
# bits of a uniform number of each dtype, as many as its mantissa holds, so that it is never rounded to 1
_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


# -- the operators -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _operators() -> tuple[Any, Any]:
    """`random_seed` and `random_bits`, defined when first needed; torch can run both where a graph falls back to it."""
    library = torch.library.Library("dlcompiler", "FRAGMENT")  # torch drops the operators together with this object
    library.define("random_seed(*, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
    library.define("random_bits(Tensor seed, int position, SymInt[] size) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl("random_seed", lambda *, device: draw_seed(device), "CompositeExplicitAutograd")
    library.impl("random_bits", random_bits, "CompositeExplicitAutograd")
    torch.library.register_fake(
        "dlcompiler::random_seed", lambda *, device: torch.empty((), dtype=torch.int64, device=device), lib=library
    )
    torch.library.register_fake("dlcompiler::random_bits", lambda seed, position, size: seed.new_empty(size), lib=library)
    _operators.library = library  # type: ignore[attr-defined]
    return torch.ops.dlcompiler.random_seed.default, torch.ops.dlcompiler.random_bits.default


def random_bits(seed: Tensor, position: int, size: Sequence[int]) -> Tensor:
    """What `ir.philox` defines, by torch: 64 bits for each element of an i64 tensor of this size."""
    index = torch.arange(math.prod(size), device=seed.device).reshape(list(size))
    return philox(index, torch.full((), position, dtype=torch.int64, device=seed.device), seed)


def philox(index: Tensor, position: Tensor, seed: Tensor) -> Tensor:
    """`ir.philox.philox` in torch's signed arithmetic: products wrap, and a shift's copies of the sign are cut off."""

    def high(x: Tensor) -> Tensor:
        return x >> 32 & WORD

    c0, c1, c2, c3 = index & WORD, high(index), position & WORD, high(position)
    k0, k1 = seed & WORD, high(seed)
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = high(second) ^ c1 ^ k0, second & WORD, high(first) ^ c3 ^ k1, first & WORD
        k0, k1 = k0 + INCREMENTS[0] & WORD, k1 + INCREMENTS[1] & WORD
    return c0 | c1 << 32


def number_draws(module: torch.fx.GraphModule) -> None:
    """Give each draw of a captured graph its position, all of them one seed a device; draws that have a position keep it.

    A seed must be kept for the backward pass, never drawn again; bits are rather computed again than kept.
    """
    random_seed, bits = _operators()
    graph = module.graph
    calls = [n for n in graph.nodes if n.op == "call_function" and n.target in (random_seed, bits)]
    if not calls:
        return
    first: dict[Any, torch.fx.Node] = {}
    position = max((n.args[1] for n in calls if n.target is bits), default=UNNUMBERED) + 1
    for node in calls:
        if node.target is bits:
            if node.args[1] == UNNUMBERED:
                node.update_arg(1, position)
                position += 1
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
            continue
        kept = first.setdefault(node.kwargs["device"], node)
        kept.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph.erase_node(node)
    module.recompile()


# -- distributions -------------------------------------------------------------------------------------------------------------


def _bits(size: Sequence[Any], device: torch.device) -> Tensor:
    random_seed, bits = _operators()
    return bits(random_seed(device=device), UNNUMBERED, list(size))


def _fraction(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform in [0, 1), from the lowest bits."""
    digits = _DIGITS[dtype]
    kept = bits & ((1 << digits) - 1)
    return (kept if digits > 31 else kept.to(torch.int32)).to(dtype) * 2.0**-digits


def _uniform(size: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    return _fraction(_bits(size, device), dtype)


def _chance(size: Sequence[Any], probability: float, device: torch.device) -> Tensor:
    """Bools that are true with this probability: 32 bits compared with it."""
    limit = round(probability * 2**32)
    if limit >= 2**32:
        return torch.ones(list(size), dtype=torch.bool, device=device)
    return _bits(size, device).to(torch.int32) < limit - 2**31


def _is_probability(p: Any) -> bool:
    """Whether it is a number known now that ATen would not complain about."""
    return isinstance(p, int | float) and 0 <= p <= 1


def _normal(size: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers (Box and Muller 1958): a radius of one half of the bits, an angle of the other."""
    if dtype is torch.float64:
        radius = (_fraction(_bits(size, device), dtype) - 1).neg()  # in (0, 1]
        angle = _fraction(_bits(size, device), dtype) * (2 * math.pi)
        return (radius.log() * -2).sqrt() * angle.cos()
    bits = _bits(size, device)
    radius = ((bits & 0x7FFFFFFF).to(torch.int32).to(torch.float32) + 1) * 2.0**-31
    angle = (bits >> 32).to(torch.int32).to(torch.float32) * (math.pi * 2.0**-31)
    return ((radius.log() * -2).sqrt() * angle.cos()).to(dtype)


def _integers(size: Sequence[Any], low: Any, high: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform in [low, high): 32 bits scaled to the range, or 63 bits modulo a large one, as even as 2^-32 of its width."""
    if not (isinstance(low, int) and isinstance(high, int)) or not low < high or high - low >= 2**62:
        return NotImplemented
    bits = _bits(size, device)
    width = high - low
    within = (bits & WORD) * width >> 32 if width < 2**31 else (bits & (2**63 - 1)) % width
    return (within + low).to(dtype)


def _kind(dtype: torch.dtype | None, layout: Any, device: Any, **like: Tensor) -> tuple[torch.dtype, torch.device] | None:
    """The dtype and device of a result; None where it is no dense tensor of floats."""
    given = next(iter(like.values()), None)
    if dtype is None:
        dtype = given.dtype if given is not None else torch.get_default_dtype()
    if dtype not in _DIGITS or layout not in (None, torch.strided):
        return None
    if device is None:
        device = given.device if given is not None else torch.get_default_device()
    return dtype, torch.device(device)


def _sized(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def new(size, *, dtype=None, layout=None, device=None, pin_memory=None):
        kind = _kind(dtype, layout, device)
        return NotImplemented if kind is None else draw(size, *kind)

    return new


def _as(x: Tensor, result: Tensor, memory_format: Any = None) -> Tensor:
    """The result laid out as eager lays out a tensor like `x`."""
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        return result.contiguous(memory_format=memory_format)
    if memory_format is torch.contiguous_format or x.is_contiguous():
        return result
    order, _ = torch._prims_common.compute_elementwise_output_logical_to_physical_perm(x)
    return result.permute(order).contiguous().permute([order.index(d) for d in range(len(order))])


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def new(x, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        kind = _kind(dtype, layout, device, like=x)
        return NotImplemented if kind is None or x.layout is not torch.strided else _as(x, draw(x.shape, *kind), memory_format)

    return new


def _filled(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator that fills `x`; `draw(x, *settings)` gives the new contents."""

    def new(x, *settings, generator=None, **named):
        if x.dtype not in _DIGITS or x.layout is not torch.strided or generator is not None:
            return NotImplemented
        result = draw(x, *settings, **named)
        return result if result is NotImplemented else _as(x, result)

    return new


def _native_dropout(x, p, train=None):
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    if x.dtype not in _DIGITS or not _is_probability(p):
        return NotImplemented
    mask = _as(x, _chance(x.shape, 1 - p, x.device))
    return x * (mask.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p))), mask


def _bernoulli_of(x, p, *, generator=None):
    """1 where a uniform number is below `p`: a number, or a tensor that broadcasts to `x`."""
    if generator is not None or x.is_complex():
        return NotImplemented
    if isinstance(p, Tensor):
        kind = p.dtype if p.dtype in (torch.float32, torch.float64) else torch.float32
        return _as(x, (_uniform(x.shape, kind, x.device) < p.to(kind)).to(x.dtype))
    return _as(x, _chance(x.shape, p, x.device).to(x.dtype)) if _is_probability(p) else NotImplemented


def _bernoulli(p, *, generator=None):
    return _bernoulli_of(p, p, generator=generator) if p.is_floating_point() else NotImplemented


def _randint(size, low, high, dtype, device):
    return _integers(size, low, high, dtype or torch.int64, torch.device(device or torch.get_default_device()))


def _randint_high(high, size, *, dtype=torch.int64, layout=None, device=None, pin_memory=None):
    return _randint(size, 0, high, dtype, device)


def _randint_low(low, high, size, *, dtype=torch.int64, layout=None, device=None, pin_memory=None):
    return _randint(size, low, high, dtype, device)


def _randint_like_low(x, low, high, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    result = _randint(x.shape, low, high, dtype or x.dtype, device or x.device)
    return result if result is NotImplemented else _as(x, result, memory_format)


def _randint_like(x, high, **settings):
    return _randint_like_low(x, 0, high, **settings)


def _normal_of(mean, std, size=None, *, generator=None, dtype=None, layout=None, device=None, pin_memory=None):
    """Normal numbers of given means and deviations, numbers or tensors."""
    like = next((x for x in (mean, std) if isinstance(x, Tensor)), None)
    kind = _kind(dtype, layout, device, **({} if like is None else {"like": like}))
    if kind is None or generator is not None or (not isinstance(std, Tensor) and std < 0):
        return NotImplemented
    if size is None:
        size = torch.broadcast_shapes(*(x.shape for x in (mean, std) if isinstance(x, Tensor)))
    result = _normal(size, *kind) * std + mean
    return result if like is None or like.shape != result.shape else _as(like, result)


def _functions() -> dict[str, Callable[..., Any]]:
    """Operators of ATen by name, and what they are broken up into."""

    # what ATen complains about is left to it

    def between(x, low=0.0, high=1.0):
        return _uniform(x.shape, x.dtype, x.device) * (high - low) + low if low <= high else NotImplemented

    def normal(x, mean=0.0, std=1.0):
        return _normal(x.shape, x.dtype, x.device) * std + mean if std >= 0 else NotImplemented

    def exponential(x, rate=1.0):
        if not rate > 0:
            return NotImplemented
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        chance = 1 - _uniform(x.shape, wide, x.device)  # in (0, 1]
        return (chance.log() * (-1 / rate)).to(x.dtype)

    return {
        "native_dropout.default": _native_dropout,
        "rand.default": _sized(_uniform), "rand_like.default": _like(_uniform),
        "randn.default": _sized(_normal), "randn_like.default": _like(_normal),
        "uniform.default": _filled(between), "normal_functional.default": _filled(normal),
        "exponential.default": _filled(exponential),
        "bernoulli.default": _bernoulli, "bernoulli.p": _bernoulli_of, "bernoulli.Tensor": _bernoulli_of,
        "randint.default": _randint_high, "randint.low": _randint_low,
        "randint_like.default": _randint_like, "randint_like.low_dtype": _randint_like_low,
        "normal.Tensor_float": lambda mean, std=1.0, **s: _normal_of(mean, std, **s),
        "normal.float_Tensor": _normal_of, "normal.Tensor_Tensor": _normal_of, "normal.float_float": _normal_of,
    }  # fmt: skip


@lru_cache(maxsize=1)
def random_decompositions() -> dict[Any, Callable[..., Any]]:
    """What torch breaks its random operators up into, by overload."""
    found = {}
    for name, function in _functions().items():
        packet, _, overload = name.partition(".")
        found[getattr(getattr(torch.ops.aten, packet), overload)] = function
    return found


# -- rules ---------------------------------------------------------------------------------------------------------------------


@rule("dlcompiler.random_seed.default")
def _random_seed_rule(i, *, device):
    return i.b.random_seed(name="seed")


@rule("dlcompiler.random_bits.default")
def _random_bits_rule(i, seed, position, size):
    return bits_at(i.b, seed, position, i.shape)
