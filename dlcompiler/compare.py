"""Whether two results are the same: tolerances by dtype, and the largest difference with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlcompiler.ir.errors import MismatchError

# (relative, absolute) by NumPy dtype name; the absolute one is a share of the largest finite magnitude expected
TOLERANCES: Mapping[str, tuple[float, float]] = {
    "float64": (1e-9, 1e-10), "float32": (1e-4, 1e-5), "float16": (1e-2, 1e-3), "bfloat16": (4e-2, 1e-2),
    "complex128": (1e-9, 1e-10), "complex64": (1e-4, 1e-5),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How far `actual` is from `expected`. `wrong` counts elements outside the tolerance, `worst` is the index of the worst."""

    name: str
    same: bool
    wrong: int
    elements: int
    largest_absolute: float
    largest_relative: float
    worst: tuple[int, ...] | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what is not finite becomes text."""
        return {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        verdict = "same" if self.same else "DIFFERS"
        largest = f"{self.largest_absolute:.3g} absolute, {self.largest_relative:.3g} relative"
        text = f"{self.name}: {verdict}; largest difference {largest}"
        if not self.same and not self.detail:
            text += f"; {self.wrong} of {self.elements} elements are off, worst at {list(self.worst or ())}"
        return f"{self.name}: {verdict}; {self.detail}" if self.detail else text


def compare(
    name: str, expected: np.ndarray, actual: np.ndarray, *, relative: float | None = None, absolute: float | None = None
) -> Difference:
    """`actual` judged against `expected`. Integers and bools must be equal; NaN equals NaN, an infinity itself.

    An element is right if |actual - expected| <= absolute * largest + relative * |expected|, where `largest` is the largest
    finite |expected| (at least 1). Both tolerances default by dtype.
    """
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        detail = f"{actual.dtype}{list(actual.shape)} where {expected.dtype}{list(expected.shape)} is expected"
        return Difference(name, False, expected.size, expected.size, float("inf"), float("inf"), detail=detail)
    if expected.size == 0:
        return Difference(name, True, 0, 0, 0.0, 0.0)
    defaults = TOLERANCES.get(expected.dtype.name, (0.0, 0.0))
    relative = defaults[0] if relative is None else relative
    absolute = defaults[1] if absolute is None else absolute
    wide: Any = np.complex128 if np.iscomplexobj(expected) else np.float64
    if expected.dtype.kind in "iubOSU":
        return _compare_exact(name, expected, actual)
    left, right = expected.astype(wide), actual.astype(wide)
    with np.errstate(all="ignore"):
        finite = np.isfinite(left)
        magnitude = np.abs(left)
        largest = float(max(1.0, magnitude[finite].max(initial=0.0)))
        gap = np.where(left == right, 0.0, np.abs(left - right))
        gap = np.where(np.isnan(left) & np.isnan(right), 0.0, gap)
        gap = np.where(np.isnan(gap) | (~finite & (gap > 0)), np.inf, gap)
        ok = gap <= absolute * largest + relative * np.where(finite, magnitude, 0.0)
        ratio = gap / np.maximum(np.where(finite, magnitude, 1.0), absolute * largest or np.finfo(np.float64).tiny)
    worst = np.unravel_index(int(np.argmax(gap)), gap.shape)
    wrong = int(gap.size - np.count_nonzero(ok))
    return Difference(name, wrong == 0, wrong, gap.size, float(gap.max()), float(ratio.max()), tuple(int(i) for i in worst))


def _compare_exact(name: str, expected: np.ndarray, actual: np.ndarray) -> Difference:
    different = expected != actual
    wrong = int(np.count_nonzero(different))
    if not wrong:
        return Difference(name, True, 0, expected.size, 0.0, 0.0)
    worst = np.unravel_index(int(np.argmax(different)), different.shape)
    if expected.dtype.kind in "OSU":
        return Difference(name, False, wrong, expected.size, float("inf"), float("inf"), tuple(int(i) for i in worst))
    gap = max(abs(int(a) - int(b)) for a, b in zip(expected[different][:1000], actual[different][:1000]))
    return Difference(name, False, wrong, expected.size, float(gap), float("inf"), tuple(int(i) for i in worst))


def compare_all(names: Sequence[str], expected: Sequence[Any], actual: Sequence[Any], **tolerances: Any) -> list[Difference]:
    """`compare` for each output, and each array of a sequence. Raises MismatchError if there are not as many as expected."""
    wanted, found = list(arrays_in(names, expected)), list(arrays_in(names, actual))
    if len(expected) != len(actual) or [name for name, _ in wanted] != [name for name, _ in found]:
        raise MismatchError(f"{len(found)} outputs where {len(wanted)} are expected")
    return [compare(name, array, ours, **tolerances) for (name, array), (_, ours) in zip(wanted, found)]


def arrays_in(names: Sequence[str], values: Sequence[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Each array with its name: those of a sequence as `name[0]` and so on, an optional that holds nothing not at all.

    A dictionary is its keys, in order, and its values; numbers of Python in it are float32 in the model.
    """
    for name, value in zip(names, values):
        if isinstance(value, Mapping):
            keys = sorted(value)
            held = np.array([value[key] for key in keys])
            yield f"{name}.keys", np.array(keys, dtype=object if keys and isinstance(keys[0], str) else None)
            yield f"{name}.values", held.astype(np.float32) if held.dtype.kind == "f" else held
        elif isinstance(value, list | tuple):
            yield from arrays_in([f"{name}[{k}]" for k in range(len(value))], value)
        elif value is not None:
            yield name, np.asarray(value)
