"""What happened in a compilation: `Report` is data, prints as one screen, and keeps nothing of the program alive.

timings = Timings()
with timings.stage("optimize"):
    graph = optimize(graph, target, options)
report = record(program, captured, target, options, timings, kernels_compiled=3)
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import AtenCall, DeviceCode, Launch, LibraryCall, Placement, Program, RoutineCall

if TYPE_CHECKING:
    from dlcompiler.options import Options
    from dlcompiler.tuner import Tuning

STAGES = ("capture", "import", "optimize", "fuse", "tune", "plan", "emit", "load")
KEPT_REPORTS = 256  # in a process; older ones are forgotten
KEPT_REFUSALS = 5000  # sentences in one report; `refusals_omitted` counts the rest
SHOWN = 6  # lines of each list on the printed screen


class Timings:
    """Seconds by stage. A stage entered twice adds up; stages do not nest."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the `with` body under `name`, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def as_dict(self) -> dict[str, float]:
        """Stages in the order of the data, others after them, and their sum as `total`."""
        known = {name: self.seconds[name] for name in STAGES if name in self.seconds}
        return {**known, **{k: v for k, v in self.seconds.items() if k not in known}, "total": sum(self.seconds.values())}


@dataclass(frozen=True)
class AtenNode:
    """An operator that ATen runs: how many nodes, why it is not ours, and where in the model the first one stands."""

    name: str
    count: int
    reason: str
    location: str | None = None


@dataclass(frozen=True)
class Report:
    """One compilation. Seconds are wall clock, memory is in bytes.

    nodes_captured     nodes of the graph as captured, inputs and constants left out
    native             nodes of the optimized graph that became part of our own kernels
    library            op -> number of calls into a library, in planned memory
    aten               operators run by ATen in memory of its own
    kernels, distinct  launches of our kernels, and how many different kernels they are
    compiled, loaded, reused   distinct kernels compiled now, taken from the cache on disk, and taken from those of this process
    planned_peak       arena of intermediates; None until the sizes of a dynamic program are bound
    lower_bound        no plan can be smaller; eager_peak: what eager execution of the captured graph holds
    evidence           of a GPU program, for each step what is known without running it (`codegen.gpu.evidence.Evidence`)
    host               operators that the host runs, between `pieces` programs (bodies of loops and branches are programs too)
    recompile          why the same code was compiled again, None for a first compilation
    tuning             what the tuner did (`tuner.Tuning`), None where it was off
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbols: tuple[str, ...]
    nodes_captured: int
    native: int
    library: Mapping[str, int]
    aten: tuple[AtenNode, ...]
    kernels: int
    distinct: int
    compiled: int
    reused: int
    seconds: Mapping[str, float]
    planned_peak: int | None = None
    lower_bound: int | None = None
    eager_peak: int | None = None
    refusals: tuple[str, ...] = ()
    refusals_omitted: int = 0
    history: tuple[str, ...] = ()
    code_key: str | None = field(default=None, repr=False)
    compilation: int = 0
    recompile: str | None = None
    dump: str | None = None
    loaded: int = 0
    evidence: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    host: tuple[AtenNode, ...] = ()
    pieces: int = 1
    tuning: Tuning | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*self._what(), *self._tuning(), *self._memory_and_time(), *self._why()])

    def _what(self) -> list[str]:
        aten = sum(a.count for a in self.aten)
        library = sum(self.library.values())
        calls = f" ({_tally(self.library)})" if library else ""
        lines = [
            f"{self.name} on {self.target}: {_several(self.inputs) or 'no inputs'} --> {_several(self.outputs)}",
            f"  nodes     {self.nodes_captured} captured; {self.native} native, {library} library{calls}, {aten} aten",
        ]
        lines += [f"            aten: {a.name} x{a.count}: {a.reason}{_at(a.location)}" for a in self.aten[:SHOWN]]
        lines += _more(len(self.aten), "aten operators")
        lines += [f"            host: {a.name} x{a.count}: {a.reason}{_at(a.location)}" for a in self.host[:SHOWN]]
        lines += _more(len(self.host), "host operators")
        if self.pieces != 1:
            lines.append(f"  pieces    {self.pieces} programs with barriers between them")
        lines.append(
            f"  kernels   {self.kernels} launches of {self.distinct} distinct; "
            f"{self.compiled} compiled, {self.loaded} from disk, {self.reused} reused"
        )
        return lines + self._gpu()

    def _gpu(self) -> list[str]:
        ours = [row for row in self.evidence if row["kind"] == "kernel"]
        if not ours:
            return []
        moved, least = (sum(row[name] for row in ours) for name in ("bytes", "minimum_bytes"))
        times = f" (x{moved / least:.2f} of the least)" if least else ""
        seconds = sum(row["roofline_seconds"] for row in self.evidence)
        return [
            f"  gpu       {format_bytes(moved)} moved by kernels{times}, {max(row['registers'] for row in ours)} registers, "
            f"{sum(bool(row['spilled_bytes']) for row in ours)} spill; all steps take {seconds * 1e6:.3g} us or more"
        ]

    def _tuning(self) -> list[str]:
        t = self.tuning
        if t is None:
            return []
        left = f", {t.undecided} not reached" if t.undecided else ""
        lines = [
            f"  tuned     {len(t.tuned)} of {t.distinct} distinct steps run quicker in another way; {t.measured} measured "
            f"({t.tried} ways tried in {t.seconds:.1f} s, {t.threads} threads), {t.loaded} from disk{left}"
        ]
        gains = sorted(t.tuned, key=lambda each: (each.after - each.before) * each.count)
        lines += [
            f"            {g.name} x{g.count}: {g.before * 1e6:.1f} --> {g.after * 1e6:.1f} us ({g.choice})"
            for g in gains[:SHOWN]
        ]
        return lines + _more(len(gains), "tuned steps") + [f"            left out: {text}" for text in t.wrong[:SHOWN]]

    def _memory_and_time(self) -> list[str]:
        stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in self.seconds.items() if name != "total")
        lines = [f"  seconds   {self.seconds.get('total', 0.0):.3f}{f' = {stages}' if stages else ''}"]
        if self.planned_peak is None:
            lines.append(f"  memory    planned at the first call (sizes {', '.join(self.symbols)})")
        else:
            over = f" (x{self.planned_peak / self.lower_bound:.2f})" if self.lower_bound else ""
            peak, bound, eager = (format_bytes(n) for n in (self.planned_peak, self.lower_bound, self.eager_peak))
            lines.append(f"  memory    planned peak {peak}, lower bound {bound}{over}, eager {eager}")
        return lines

    def _why(self) -> list[str]:
        lines = [f"  recompile {self.recompile}"] if self.recompile else []
        count = len(self.refusals) + self.refusals_omitted
        lines.append(f"  not fused {count}{':' if count else ''}")
        lines += [f"            {sentence}" for sentence in self.refusals[:SHOWN]] + _more(count, "refusals")
        if self.dump:
            lines.append(f"  dump      {self.dump}")
        return lines


def _more(count: int, what: str) -> list[str]:
    return [f"            and {count - SHOWN} more {what}"] if count > SHOWN else []


def _several(texts: tuple[str, ...]) -> str:
    """The first few, and how many more."""
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")


def _at(location: str | None) -> str:
    return f" (at {location})" if location else ""


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def format_bytes(count: int | None) -> str:
    """`12.3 MiB`; `?` where the count is not known."""
    if count is None:
        return "?"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size < 1024 or unit == "EiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


_lock = threading.Lock()
_reports: deque[Report] = deque(maxlen=KEPT_REPORTS)


def reports() -> list[Report]:
    """One for every graph compiled in this process since the last reset, newest last (at most KEPT_REPORTS)."""
    with _lock:
        return list(_reports)


def clear() -> None:
    """Forget every report."""
    with _lock:
        _reports.clear()


def record(
    program: Program,
    captured: Graph,
    target: object,
    options: Options,
    timings: Timings,
    *,
    kernels_compiled: int = 0,
    kernels_loaded: int = 0,
    code_key: str | None = None,
    dump: str | None = None,
    tuning: Tuning | None = None,
) -> Report:
    """Make the report of a finished compilation and remember it.

    program    with code attached; `captured` is the graph as the frontend made it
    kernels_compiled, kernels_loaded  distinct kernels compiled by this compilation, and taken from the cache on disk; the other
               distinct ones were reused
    code_key   names the user's code (frame), so that a second compilation of it is called a recompilation, with the reason
    """
    launches = [step for step in program.steps if isinstance(step, Launch | RoutineCall)]
    distinct = _distinct_kernels(program)
    library = Counter(step.op for step in program.steps if type(step) is LibraryCall)
    aten = _aten_nodes(program)
    computed = sum(not node.has(Trait.SOURCE) for node in program.graph.nodes if node.op.name != "tuple.get")
    placement = program.placement
    report = Report(
        name=captured.name,
        target=str(target),
        inputs=tuple(_signature(node) for node in captured.inputs),
        outputs=tuple(str(node.type) for node in captured.outputs),
        symbols=tuple(captured.symbols),
        nodes_captured=sum(not node.has(Trait.SOURCE) for node in captured.nodes),
        native=max(0, computed - sum(library.values()) - sum(a.count for a in aten)),
        library=dict(library.most_common()),
        aten=aten,
        kernels=len(launches) + _further_starts(program),
        distinct=distinct,
        compiled=kernels_compiled,
        loaded=kernels_loaded,
        reused=max(0, distinct - kernels_compiled - kernels_loaded),
        seconds=timings.as_dict(),
        refusals=tuple(program.refusals[:KEPT_REFUSALS]),
        refusals_omitted=max(0, len(program.refusals) - KEPT_REFUSALS),
        history=tuple(str(event) for event in (program.history or program.graph.history)),
        code_key=code_key,
        dump=dump,
        evidence=_evidence(program),
        tuning=tuning,
        **_memory(placement),
    )
    with _lock:
        report = _explain_recompilation(report)
        _reports.append(report)
    _log(report, options)
    return report


def record_staged(
    captured: Graph, target: object, options: Options, timings: Timings, parts: Sequence[Report], host: Sequence[Node]
) -> Report:
    """The report of a graph of several programs, which have reports of their own. Remembered like any other.

    Counts and seconds are sums; a peak is the largest of any program. `host`: the calls of the host.
    """
    library: Counter[str] = Counter()
    seconds: Counter[str] = Counter({k: v for k, v in timings.as_dict().items() if k != "total"})
    for part in parts:
        library.update(part.library)
        seconds.update({k: v for k, v in part.seconds.items() if k != "total"})
    calls = Counter(_host_name(node) for node in host)
    first = {_host_name(node): node.location for node in reversed(host)}
    peaks = [part for part in parts if part.planned_peak is not None]
    largest = max(peaks, key=lambda part: part.planned_peak or 0, default=None) if len(peaks) == len(parts) else None
    report = Report(
        name=captured.name,
        target=str(target),
        inputs=tuple(_signature(node) for node in captured.inputs),
        outputs=tuple(str(node.type) for node in captured.outputs),
        symbols=tuple(captured.symbols),
        nodes_captured=sum(not node.has(Trait.SOURCE) for node in captured.nodes),
        native=sum(part.native for part in parts),
        library=dict(library.most_common()),
        aten=tuple(a for part in parts for a in part.aten),
        kernels=sum(part.kernels for part in parts),
        distinct=sum(part.distinct for part in parts),
        compiled=sum(part.compiled for part in parts),
        loaded=sum(part.loaded for part in parts),
        reused=sum(part.reused for part in parts),
        seconds=Timings(seconds).as_dict(),
        refusals=tuple(r for part in parts for r in part.refusals)[:KEPT_REFUSALS],
        dump=next((part.dump for part in parts if part.dump), None),
        host=tuple(AtenNode(name, count, reason, first[name, reason]) for (name, reason), count in calls.most_common()),
        pieces=len(parts),
        planned_peak=largest.planned_peak if largest else None,
        lower_bound=largest.lower_bound if largest else None,
        eager_peak=largest.eager_peak if largest else None,
    )
    with _lock:
        _reports.append(report)
    _log(report, options)
    return report


def _host_name(node: Node) -> tuple[str, str]:
    """What a call of the host runs, and why it is no kernel."""
    return str(node.attributes["target"]), str(node.attributes.get("reason") or "no kernel for it")


def record_fallback(name: str, operators: Sequence[str], reason: str, options: Options) -> Report:
    """The report of a graph that torch runs op by op, since it holds something that no program can. Remembered like any other.

    operators  what torch calls, once for each call
    """
    counts = Counter(operators)
    report = Report(
        name=name,
        target="torch",
        inputs=(),
        outputs=(),
        symbols=(),
        nodes_captured=len(operators),
        native=0,
        library={},
        aten=tuple(AtenNode(operator, count, reason) for operator, count in counts.most_common()),
        kernels=0,
        distinct=0,
        compiled=0,
        reused=0,
        seconds={},
    )
    with _lock:
        _reports.append(report)
    _log(report, options)
    return report


def _further_starts(program: Program) -> int:
    """Starts of kernels beyond one a step, as of one that is started for each time step."""
    kernels = program.code.kernels if isinstance(program.code, DeviceCode) else ()
    return sum(kernel.known_starts - 1 for kernel in kernels if kernel is not None)


def _evidence(program: Program) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(program.code, DeviceCode):
        return ()
    from dlcompiler.codegen.gpu.evidence import program_evidence

    return tuple(row.as_dict() for row in program_evidence(program))


def _memory(placement: Placement | None) -> dict[str, Any]:
    if placement is None:
        return {}
    return {
        "planned_peak": placement.arena_bytes,
        "lower_bound": placement.lower_bound,
        "eager_peak": placement.eager_peak,
    }


def _distinct_kernels(program: Program) -> int:
    if program.code is not None:
        return len({id(code) for code in program.code.kernels if code is not None})
    return len({id(step.kernel) for step in program.steps if isinstance(step, Launch)})


def _aten_nodes(program: Program) -> tuple[AtenNode, ...]:
    calls = [step for step in program.steps if isinstance(step, AtenCall)]
    counts = Counter((step.target, step.reason) for step in calls)
    first: dict[tuple[str, str], str | None] = {}
    for step in calls:
        first.setdefault((step.target, step.reason), step.origin[-1].partition(" at ")[2] or None if step.origin else None)
    return tuple(
        AtenNode(target, count, reason or "no rule for it", first[target, reason])
        for (target, reason), count in counts.most_common()
    )


def _signature(node: Node) -> str:
    return f"{node.name}: {node.attributes['symbol']}" if node.op.name == "size" else f"{node.name}: {node.type}"


def _explain_recompilation(report: Report) -> Report:
    """Compare with the last compilation of the same code. Called with the lock held."""
    if report.code_key is None:
        return report
    earlier = [r for r in _reports if r.code_key == report.code_key]
    if not earlier:
        return report
    last = earlier[-1]
    changes = _changed_inputs(last, report)
    why = "; ".join(changes) or "inputs look the same: a guard on something else failed (TORCH_LOGS=recompiles names it)"
    hint = "" if report.symbols or not changes else " (dynamic=True or mark_dynamic compiles once for all sizes)"
    return replace(report, compilation=last.compilation + 1, recompile=f"no. {last.compilation + 1}: {why}{hint}")


def _changed_inputs(last: Report, report: Report) -> list[str]:
    """Which tensors have another type than last time. Integer arguments come and go with symbols and are left out."""
    old, new = ([text for text in r.inputs if "[" in text] for r in (last, report))
    if len(old) != len(new):
        return [f"{len(old)} tensors became {len(new)}"]
    changes = []
    for before, after in zip(old, new):
        (_, before_type), (name, after_type) = before.split(": ", 1), after.split(": ", 1)
        if before_type != after_type:
            changes.append(f"{name}: {before_type} became {after_type}")
    return [*changes[:SHOWN], *([f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else [])]


def _log(report: Report, options: Options) -> None:
    """Write what `options.logs` asks for to the loggers `dlcompiler.<topic>`."""
    lines = {
        "fusion": [f"{report.name}: {sentence}" for sentence in report.refusals],
        "recompiles": [f"{report.name}: recompile {report.recompile}"] if report.recompile else [],
        "cache": [f"{report.name}: {report.compiled} kernels compiled, {report.loaded} from disk, {report.reused} reused"],
        "memory": [report._memory_and_time()[-1].strip()],
    }
    for topic in sorted(options.logs):
        topic_logger = topic_logger_for(topic)
        for line in lines[topic]:
            topic_logger.info("%s", line)


class _StandardError(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def topic_logger_for(topic: str) -> logging.Logger:
    """The logger `dlcompiler.<topic>`, made to reach stderr where the program set up no logging of its own."""
    found = logging.getLogger(f"dlcompiler.{topic}")
    found.setLevel(logging.INFO)
    if not found.hasHandlers():
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        found.addHandler(handler)
    return found
