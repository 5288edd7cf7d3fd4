"""Reports: what they say, what they keep, and that they keep no program alive."""

from __future__ import annotations

import gc
import json
import logging
import weakref

import numpy as np
import pytest
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.program import AtenCall, LibraryCall, Placement, Program, Slot
from dlcompiler.ir.types import TensorType, f32

import dlcompiler
from dlcompiler import report as module
from dlcompiler.options import Options
from dlcompiler.report import Timings, record

STATIC = TensorType(f32, (4, 8))


@pytest.fixture(autouse=True)
def no_reports() -> None:
    dlcompiler.reset()


def graph_of(type: TensorType = STATIC, name: str = "g") -> Graph:
    b = Builder(name)
    x = b.input("x", type)
    return b.finish([b.exp(b.neg(x))])


def program_of(graph: Graph, refusals: int = 0) -> Program:
    """A plan that nothing can run: one library call, two aten calls."""
    x, y = (Slot(n, f32, (4, 8), (8, 1), role, 0) for n, role in (("x", "input"), ("y", "output")))  # type: ignore[arg-type]
    steps = (
        LibraryCall("matmul", (x.view(),), (y.view(),)),
        AtenCall("aten.sort.default", {}, (x.view(),), (y.view(),), ("sort %s at m.py:3",), "no rule for it"),
        AtenCall("aten.sort.default", {}, (x.view(),), (y.view(),), (), "no rule for it"),
    )
    texts = tuple(f"%{k} is not fused" for k in range(refusals))
    return Program("g", graph, (x, y), steps, (x,), (y.view(),), placement=Placement({}, 110, 100, 300), refusals=texts)


def made(code_key: str | None = None, type: TensorType = STATIC, refusals: int = 0, **options: object) -> module.Report:
    graph = graph_of(type)
    return record(
        program_of(graph, refusals), graph, "cpu:x", Options.resolve(options, {}), Timings(), code_key=code_key
    )  # fmt: skip


def test_of_a_real_compilation() -> None:
    compiled = dlcompiler.compile(graph_of())
    report = compiled.report()
    assert dlcompiler.reports() == [report]
    assert (report.kernels, report.distinct, report.compiled, report.reused) == (1, 1, 1, 0)
    assert (report.nodes_captured, report.native, report.library, report.aten) == (2, 2, {}, ())
    assert set(report.seconds) == {"optimize", "fuse", "plan", "emit", "total"}
    assert report.seconds["total"] == pytest.approx(sum(v for k, v in report.seconds.items() if k != "total"))
    again = dlcompiler.compile(graph_of()).report()
    assert (again.compiled, again.reused) == (0, 1)
    fresh = dlcompiler.compile(graph_of(), options={"disable_cache": True}).report()
    assert (fresh.compiled, fresh.reused) == (1, 0)


def test_counts_and_memory() -> None:
    report = made(refusals=3)
    assert report.library == {"matmul": 1}
    assert report.aten == (module.AtenNode("aten.sort.default", 2, "no rule for it", "m.py:3"),)
    assert (report.planned_peak, report.lower_bound, report.eager_peak) == (110, 100, 300)
    text = str(report)
    assert "aten.sort.default x2: no rule for it (at m.py:3)" in text and "x1.10" in text and "%2 is not fused" in text


def test_is_json_and_one_screen() -> None:
    report = made(refusals=500)
    assert json.loads(json.dumps(report.as_dict()))["refusals"][499] == "%499 is not fused"
    assert len(str(report).splitlines()) <= 24 and "and 494 more refusals" in str(report)


def test_memory_is_bounded() -> None:
    for _ in range(module.KEPT_REPORTS + 10):
        made()
    assert len(dlcompiler.reports()) == module.KEPT_REPORTS
    many = made(refusals=module.KEPT_REFUSALS + 7)
    assert (len(many.refusals), many.refusals_omitted) == (module.KEPT_REFUSALS, 7)
    dlcompiler.reset()
    assert dlcompiler.reports() == []


def test_recompilation_says_what_changed() -> None:
    assert made("frame 0").recompile is None
    second = made("frame 0", TensorType(f32, (5, 8)))
    assert second.recompile == ("no. 1: x: f32[4, 8] became f32[5, 8] (dynamic=True or mark_dynamic compiles once for all sizes)")
    assert made("frame 0", TensorType(f32, (symbol("N"), 8))).recompile == "no. 2: x: f32[5, 8] became f32[N, 8]"
    assert made("frame 1").recompile is None
    assert "guard" in str(made("frame 1").recompile)


def test_does_not_keep_weights_alive() -> None:
    class Weights(np.ndarray):
        """An array that can be weakly referenced."""

    weights = np.ones((64, 64), np.float32).view(Weights)
    alive = weakref.ref(weights)
    b = Builder("g")
    x = b.input("x", TensorType(f32, (64, 64)))
    graph = b.finish([b.add(x, b.constant(weights))])
    constant = next(n for n in graph.nodes if n.op.name == "constant")
    constant.attributes["value"] = weights  # type: ignore[index]
    compiled = dlcompiler.compile(graph)
    compiled(np.ones((64, 64), np.float32))
    del weights, b, x, graph, constant
    gc.collect()
    assert alive() is not None, "the program needs them"
    del compiled
    gc.collect()
    assert alive() is None and len(dlcompiler.reports()) == 1


def test_logs_go_to_their_topics(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("dlcompiler")
    logger.propagate = True
    caplog.set_level(logging.INFO, "dlcompiler")
    made(refusals=2, logs="fusion,memory,cache")
    topics = [record.name for record in caplog.records]
    assert topics == ["dlcompiler.cache", "dlcompiler.fusion", "dlcompiler.fusion", "dlcompiler.memory"]
    caplog.clear()
    made(refusals=2)
    assert not caplog.records


def test_timings_add_up_and_survive_errors() -> None:
    timings = Timings({"import": 1.0})
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), timings.stage("emit"):
            raise ZeroDivisionError
    with timings.stage("fuse"):
        pass
    assert list(timings.as_dict()) == ["import", "fuse", "emit", "total"]
    assert timings.as_dict()["total"] >= 1.0


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB"), (None, "?")])
def test_format_bytes(count: int | None, text: str) -> None:
    assert module.format_bytes(count) == text
