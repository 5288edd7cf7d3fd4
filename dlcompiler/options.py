"""Every option there is, in one frozen dataclass, resolved in one place.

An option is given explicitly (`options={...}`, a command-line flag), else by its environment variable, else by the preset of
`mode`, else by its default. The environment is read here and nowhere else. `Options.sources` remembers which it was, and
`dlcompiler doctor` prints it.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.errors import OptionError

if TYPE_CHECKING:
    from dlcompiler.codegen.target import Target

logger = logging.getLogger("dlcompiler")

# options that name places of this machine, or say how it talks and how long it may search: no file carries them
OF_THIS_MACHINE = frozenset({"dump_dir", "cache_dir", "cache_bytes", "disable_cache", "logs", "progress", "tune_budget"})
LOG_TOPICS = ("fusion", "recompiles", "cache", "memory")
# What each mode of torch.compile sets here. A CPU program has no launches that a CUDA graph could hold.
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "reduce-overhead": {"cuda_graphs": True},
    "max-autotune": {"optimization_level": 3, "cuda_graphs": True, "tune_budget": 60.0},
    "max-autotune-no-cudagraphs": {"optimization_level": 3, "cuda_graphs": False, "tune_budget": 60.0},
}


@dataclass(frozen=True)
class Kind:
    """What an option takes. `check` converts a Python value, `parse` an environment variable's text; both raise ValueError."""

    says: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any]


def _flag() -> Kind:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]

    return Kind("true or false", check, parse)


def _integer(low: int, high: int | None = None) -> Kind:
    says = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError
        return value

    return Kind(says, check, lambda text: check(int(text)))


def _part() -> Kind:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError
        return float(value)

    return Kind("a number from 0 to 1", check, lambda text: check(float(text)))


def _seconds() -> Kind:
    says = "seconds, 0 or more"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError
        return float(value)

    return Kind(says, check, lambda text: check(float(text)))


def _choice(*names: str) -> Kind:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(names)}", check, check)


def _names(*known: str) -> Kind:
    def check(value: Any) -> frozenset[str]:
        parts = value.split(",") if isinstance(value, str) else list(value)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError
        found = frozenset(part.strip() for part in parts if part.strip())
        if known and not found <= set(known):
            raise ValueError
        return found

    return Kind(f"names out of {', '.join(known)}" if known else "names", check, check)


def _folder() -> Kind:
    def check(value: Any) -> str:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise ValueError
        return os.path.expanduser(os.fspath(value))

    return Kind("a folder", check, check)


def _optional(kind: Kind) -> Kind:
    return Kind(f"{kind.says}, or None", lambda value: None if value is None else kind.check(value), kind.parse)


def _option(default: Any, kind: Kind, doc: str, environment: str | None = None) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc, "environment": environment})


@dataclass(frozen=True)
class Options:
    """How to compile. Make one with `Options.resolve`, which checks every value; equal options make equal code."""

    optimization_level: int = _option(
        2, _integer(0, 3), "0: only what is needed to run; 1: cheap and bit for bit; 2: normal; 3: also what costs memory"
    )
    disabled_passes: frozenset[str] = _option(frozenset(), _names(), "passes to leave out")
    fuel: int | None = _option(
        None, _optional(_integer(0)), "apply only this many rewrites; for finding a wrong one", "DLCOMPILER_FUEL"
    )
    numerics: str = _option(
        "fast",
        _choice("fast", "eager"),
        "eager: only rewrites that keep every bit (f16 and bf16 stay in f32 inside a kernel either way)",
    )
    float32: str = _option(
        "torch",
        _choice("torch", "ieee", "tf32x3", "tf32"),
        "how GPUs multiply float32: ieee (no tensor cores), tf32x3 (three products of parts, nearly as exact), tf32, or as "
        "torch.get_float32_matmul_precision() says: highest is ieee, the others tf32; convolutions too",
    )
    activation_memory_budget: float | None = _option(
        None,
        _optional(_part()),
        "the part of what training holds between its passes that may be held: train_step computes the rest again where pointwise "
        "operations can, torch.compile tells torch's partitioner; None: computed again is what costs no pass over memory",
    )
    strict: bool = _option(False, _flag(), "an op that nobody mapped is an error, not a call of ATen", "DLCOMPILER_STRICT")
    verify: bool = _option(
        False, _flag(), "compare each compiled graph with the reference interpreter on its first call", "DLCOMPILER_VERIFY"
    )
    dump_dir: str | None = _option(None, _optional(_folder()), "one folder a compilation is written here", "DLCOMPILER_DUMP_DIR")
    cache_dir: str | None = _option(None, _optional(_folder()), "where compiled work is kept", "DLCOMPILER_CACHE_DIR")
    cache_bytes: int = _option(
        2 << 30,
        _integer(0),
        "most bytes kept in cache_dir, the least recently used go first; 0: nothing is kept on disk",
        "DLCOMPILER_CACHE_BYTES",
    )
    disable_cache: bool = _option(False, _flag(), "compile every kernel anew", "DLCOMPILER_DISABLE_CACHE")
    tune_budget: float = _option(
        0.0,
        _seconds(),
        "seconds for trying other schedules than the cost model's on this machine; decisions are kept in cache_dir; 0: none",
        "DLCOMPILER_TUNE_BUDGET",
    )
    logs: frozenset[str] = _option(frozenset(), _names(*LOG_TOPICS), "topics to log on stderr", "DLCOMPILER_LOGS")
    progress: bool = _option(True, _flag(), "on a terminal, show work of more than 2 s", "DLCOMPILER_PROGRESS")
    mode: str = _option("default", _choice(*MODES), "a preset, named as in torch.compile")
    dynamic: bool = _option(False, _flag(), "every size of a torch model's inputs is known only when called (dlcompiler.compile)")
    cuda_graphs: bool | None = _option(
        None, _optional(_flag()), "hold a static GPU program's launches in a CUDA graph; None: where copies of inputs are small"
    )
    gpu_writer: str = _option(
        "triton", _choice("triton", "cuda"), "language of kernels for GPUs; cuda: C++ for pointwise and reductions, else Triton"
    )
    fix_batch: bool = _option(
        False,
        _flag(),
        "rewrite constant shapes of an ONNX model that hold a size which its inputs leave open, if proved",
    )
    # where each value came from: "explicit", the environment variable's name, "mode ..." or "default"
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def resolve(
        cls, explicit: Options | Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> Options:
        """Explicit > environment > mode > default, all checked. Options that are resolved already are returned as they are.

        `environment` defaults to `os.environ`. Raises OptionError for an unknown name (with the nearest known ones) or a value of
        the wrong kind.
        """
        if isinstance(explicit, Options):
            return explicit
        explicit = dict(explicit or {})
        environment = os.environ if environment is None else environment
        declared = {f.name: f for f in fields(cls) if f.metadata}
        for name in explicit:
            if name not in declared:
                near = difflib.get_close_matches(str(name), declared, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(declared)}"
                raise OptionError(f"unknown option {name!r}", hint=hint)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, declaration in declared.items():
            kind, variable = declaration.metadata["kind"], declaration.metadata["environment"]
            if name in explicit:
                values[name], sources[name] = _checked(kind.check, explicit[name], f"option {name!r}", kind), "explicit"
            elif variable and environment.get(variable):
                values[name], sources[name] = _checked(kind.parse, environment[variable], variable, kind), variable
        mode = values.get("mode", "default")
        for name, value in MODES[mode].items():
            if name not in values:
                values[name], sources[name] = value, f"mode {mode}"
        if "cache_dir" not in values:
            values["cache_dir"], sources["cache_dir"] = default_cache_dir(environment), "default"
        elif values["cache_dir"] is not None and not could_write(values["cache_dir"]):
            _warn_once(values["cache_dir"], "cache", "no permission to write, or no folder")
            values["cache_dir"] = None
        for name in declared:
            sources.setdefault(name, "default")
        return cls(**values, sources=sources)

    @classmethod
    def documentation(cls) -> list[tuple[str, str, Any, str | None, str]]:
        """A row for every option: name, what it takes, default, environment variable, what it does."""
        return [
            (f.name, f.metadata["kind"].says, f.default, f.metadata["environment"], f.metadata["doc"])
            for f in fields(cls)
            if f.metadata
        ]

    def configure(self, target: Target) -> Target:
        """The target with what these options say of it. `float32="torch"` asks torch, if the process has loaded it."""
        if target.kind != "cuda":
            return target
        precision = self.float32
        if precision == "torch":
            torch = sys.modules.get("torch")
            is_exact = torch is None or torch.get_float32_matmul_precision() == "highest"
            precision = "ieee" if is_exact else "tf32"
        return replace(target, float32=precision)

    def as_dict(self) -> dict[str, Any]:
        """The values, JSON-able; sets as sorted lists."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}


def _checked(convert: Callable[[Any], Any], value: Any, what: str, kind: Kind) -> Any:
    try:
        return convert(value)
    except (ValueError, TypeError):
        known = kind.says.removeprefix("one of ").split(", ")
        near = difflib.get_close_matches(value, known, 1) if isinstance(value, str) else []
        hint = f"did you mean {near[0]!r}?" if near else None
        raise OptionError(f"{what} takes {kind.says}, not {value!r}", hint=hint) from None


def default_cache_dir(environment: Mapping[str, str]) -> str | None:
    """`$XDG_CACHE_HOME/dlcompiler`, else `~/.cache/dlcompiler`; None where there is no home folder."""
    base = environment.get("XDG_CACHE_HOME")
    if not base:
        home = environment.get("HOME") or os.path.expanduser("~")
        if home == "~":
            return None
        base = os.path.join(home, ".cache")
    return os.path.join(base, "dlcompiler")


def could_write(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder takes files, or could be made. Makes nothing."""
    path = Path(os.path.abspath(folder))
    for place in (path, *path.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


_warned: set[str] = set()


def _warn_once(folder: str | os.PathLike[str], purpose: str, reason: str) -> None:
    if str(folder) not in _warned:
        _warned.add(str(folder))
        logger.warning("cannot write the %s folder %s (%s); going on without it", purpose, folder, reason)


def writable_folder(path: str | os.PathLike[str], purpose: str) -> Path | None:
    """`path` as a folder that exists and takes files; None, after one warning in a process, where it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = "no permission to write"
    except OSError as error:
        reason = error.strerror or str(error)
    _warn_once(folder, purpose, reason)
    return None
