"""Compiled code from the disk: without MLIR, once for all processes, and never for another graph, option, source or processor."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dlcompiler.codegen import cache
from dlcompiler.codegen.cache import HEADER, Store, entry_name, open_store
from dlcompiler.codegen.cpu import compile as compiling
from dlcompiler.codegen.cpu import machine_code
from dlcompiler.codegen.cpu.compile import kernel_key
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.machine import machine
from dlcompiler.codegen.cpu.object_file import load_object
from dlcompiler.ir.text import parse_graph

import dlcompiler

TEXT = """graph small {
  input %x : f32[4, 30]
  input %y : f32[4, 30]
  %1 = mul(%x, %y) : f32[4, 30]
  %2 = tanh(%1) : f32[4, 30]
  %3 = reduce_sum(%2) {axes = (1,), keepdims = false} : f32[4]
  output %3
}
"""
# Processes that compile, without torch to be quick, and say how many kernels they compiled and loaded ...
COMPILES = """
import json, sys
from dlcompiler.codegen import emit
from dlcompiler.codegen.cpu.compile import compiled_count, loaded_count
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.text import parse_graph
from dlcompiler.options import Options
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
target, options = parse_target("cpu"), Options.resolve()
graph = optimize(parse_graph(sys.argv[1]), target, options)
emit(plan(fuse(graph, target, options), target, options), target, options)
print(json.dumps({"compiled": compiled_count(), "loaded": loaded_count()}))
"""
# ... and one that runs what it finds, where importing MLIR is an ImportError.
RUNS = """
import json, sys
sys.modules["torch_mlir"] = None
import numpy as np
import dlcompiler
from dlcompiler.ir.text import parse_graph
compiled = dlcompiler.compile(parse_graph(sys.argv[1]))
x = np.linspace(-2, 2, 120, dtype=np.float32).reshape(4, 30)
report = compiled.report()
print(json.dumps({"compiled": report.compiled, "loaded": report.loaded, "answer": compiled(x, x).tolist()}))
"""


def expected() -> np.ndarray:
    x = np.linspace(-2, 2, 120, dtype=np.float32).reshape(4, 30)
    return np.tanh(x * x).sum(1)


def start(code: str, folder: Path, threads: int = 1) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "DLCOMPILER_CACHE_DIR": str(folder), "DLCOMPILER_CACHE_BYTES": str(1 << 30),
        "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    command = [sys.executable, "-c", code, TEXT]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == "", err
    return json.loads(out.splitlines()[-1])


def test_eight_processes_compile_once_and_a_ninth_needs_no_mlir(tmp_path: Path) -> None:
    answers = [finish(process) for process in [start(COMPILES, tmp_path) for _ in range(8)]]
    assert sorted((a["compiled"], a["loaded"]) for a in answers) == [(0, 1)] * 7 + [(1, 0)]
    # a function of the kernel, three of the driver
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".function"] * 4 + [".object"] * 2
    before = {path.name for path in tmp_path.iterdir()}
    ninth = finish(start(RUNS, tmp_path, threads=2))
    np.testing.assert_allclose(ninth.pop("answer"), expected(), rtol=1e-5)
    assert ninth == {"compiled": 0, "loaded": 1}
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Nothing compiled, warnings caught."""
    caplog.set_level(logging.WARNING, "dlcompiler")
    monkeypatch.setattr(logging.getLogger("dlcompiler"), "propagate", True)
    monkeypatch.setattr(cache, "_said", set())
    dlcompiler.reset()
    yield caplog
    dlcompiler.reset()


def compile_anew(folder: Path, text: str = TEXT, **options: Any) -> dlcompiler.Compiled:
    """As a new process would: what this one holds is forgotten."""
    dlcompiler.reset()
    machine_code._objects.clear()
    given = {"cache_dir": str(folder), "cache_bytes": 1 << 30, **options}
    return dlcompiler.compile(parse_graph(text), options=given)


def counts(compiled: dlcompiler.Compiled) -> tuple[int, int, int]:
    report = compiled.report()
    return report.compiled, report.loaded, report.reused


def check(compiled: dlcompiler.Compiled) -> None:
    x = np.linspace(-2, 2, 120, dtype=np.float32).reshape(4, 30)
    np.testing.assert_allclose(compiled(x, x), expected(), rtol=1e-5)


def test_report_says_where_kernels_came_from(in_process: Any, tmp_path: Path) -> None:
    first = compile_anew(tmp_path)
    assert counts(first) == (1, 0, 0)
    second = compile_anew(tmp_path)
    assert counts(second) == (0, 1, 0) and "0 compiled, 1 from disk, 0 reused" in str(second.report())
    again = dlcompiler.compile(parse_graph(TEXT), options={"cache_dir": str(tmp_path), "cache_bytes": 1 << 30})
    assert counts(again) == (0, 0, 1)
    for compiled in (first, second, again):
        check(compiled)
    assert counts(compile_anew(tmp_path, disable_cache=True)) == (1, 0, 0)
    assert counts(compile_anew(tmp_path, cache_bytes=0)) == (1, 0, 0)


def test_a_changed_model_compiles_what_changed(in_process: Any, tmp_path: Path) -> None:
    two = TEXT.replace("output %3", "%4 = exp(%x) : f32[4, 30]\n  output %3\n  output %4")
    assert counts(compile_anew(tmp_path)) == (1, 0, 0)
    changed = compile_anew(tmp_path, two)
    assert changed.report().distinct == 2 and counts(changed) == (1, 1, 0)
    assert counts(compile_anew(tmp_path, two)) == (0, 2, 0)


def test_sizes_known_when_called_come_back_from_disk(in_process: Any, tmp_path: Path) -> None:
    text = TEXT.replace("[4, 30]", "[N, 30]").replace("f32[4]", "f32[N]")
    works = []
    for expected_counts in ((1, 0, 0), (0, 1, 0)):
        compiled = compile_anew(tmp_path, text)
        assert counts(compiled) == expected_counts
        check(compiled)
        works += [(code.work, code.grain, code.multiple) for code in compiled.program.code.kernels if code is not None]
    assert works[0] == works[1] and not isinstance(works[0][0], int)


@pytest.mark.parametrize("suffix", [".function", ".object"])
@pytest.mark.parametrize("how", ["cut", "flipped", "intact, but no object"])
def test_damage_is_compiled_again_with_one_warning(
    in_process: pytest.LogCaptureFixture, tmp_path: Path, suffix: str, how: str
) -> None:
    compile_anew(tmp_path)
    (path,) = (p for p in tmp_path.glob(f"*{suffix}"))
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:-5])
    elif how == "flipped":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif suffix == ".object":
        Store(tmp_path, 1 << 20).put(path.name, b"\x7fELF, and no more")
    else:
        Store(tmp_path, 1 << 20).put(path.name, (entry_name("object", "never made") + "\n[]").encode())
    again = compile_anew(tmp_path)
    assert counts(again) == (1, 0, 0)
    check(again)
    said = [record.getMessage() for record in in_process.records]
    quiet = suffix == ".function" and how.startswith("intact")  # an object that was removed to make room is no damage
    assert len(said) == (0 if quiet else 1) and all(str(path) in text for text in said)
    assert path.read_bytes() == whole
    third = compile_anew(tmp_path)
    assert counts(third) == (0, 1, 0)
    check(third)


def test_a_folder_that_cannot_be_written(in_process: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        compiled = compile_anew(tmp_path / "file" / "cache")
        assert counts(compiled) == (1, 0, 0)
        check(compiled)
    assert len(in_process.records) <= 1  # the options have warned of it, in this process or just now


def test_what_a_key_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_process: Any) -> None:
    program = dlcompiler.compile(parse_graph(TEXT)).program
    kernel = next(step.kernel for step in program.steps)
    keys = {kernel_key(kernel, machine(name)) for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")}
    assert len(keys) == 4
    renamed = kernel.replace(name="other", origin=("elsewhere",))
    assert kernel_key(renamed, machine("x86-64-v3")) in keys
    assert "/" not in machine_code.fingerprint().split("\n")[0] and str(Path.home()) not in machine_code.fingerprint()
    compile_anew(tmp_path)
    before = machine_code.fingerprint()
    monkeypatch.setattr(machine_code, "processor", lambda: "another processor")
    machine_code.fingerprint.cache_clear()
    assert machine_code.fingerprint() != before
    assert counts(compile_anew(tmp_path)) == (1, 0, 0)
    machine_code.fingerprint.cache_clear()


def test_options_that_change_the_graph_change_the_key(in_process: Any, tmp_path: Path) -> None:
    text = TEXT.replace("tanh(%1)", "div(%1, %y)")
    assert counts(compile_anew(tmp_path, text, optimization_level=2)) == (1, 0, 0)
    assert counts(compile_anew(tmp_path, text, optimization_level=2, disabled_passes=["simplify"])) in [(0, 1, 0), (1, 0, 0)]
    lower = dlcompiler.compile(
        parse_graph(text), target="cpu:x86-64-v2", options={"cache_dir": str(tmp_path), "cache_bytes": 1 << 30}
    )
    assert counts(lower) == (1, 0, 0)


def test_objects_are_mapped_once_and_unmapped_with_their_last_program(in_process: Any, tmp_path: Path) -> None:
    two = TEXT.replace("output %3", "%4 = exp(%x) : f32[4, 30]\n  output %3\n  output %4")
    compile_anew(tmp_path, two)
    compiled = compile_anew(tmp_path, two)
    assert compiled.report().loaded == 2 and len(machine_code._objects) <= 2
    kernels = [code for code in compiled.program.code.kernels if code is not None]
    assert kernels[0].keep_alive is kernels[1].keep_alive
    del compiled, kernels
    dlcompiler.reset()
    assert not any(name for name in machine_code._objects if name in {p.name for p in tmp_path.glob("*.object")})


def test_an_entry_holds_a_plain_object_file(in_process: Any, tmp_path: Path) -> None:
    compile_anew(tmp_path)
    (path,) = tmp_path.glob("*.object")
    functions = load_object(path.read_bytes()[HEADER.size :]).addresses
    assert any(name.startswith("k") for name in functions)
    store = open_store(dlcompiler.Options.resolve({"cache_dir": str(tmp_path), "cache_bytes": 1 << 30}, {}))
    assert store is not None and store.usage().entries == 2 and compiling.loaded_count() >= 0


def test_modules_are_compiled_side_by_side_and_an_error_in_one_is_raised():
    """Each name finds its function in the object of its own module; a module that is wrong says where, whatever the others do."""
    count = 6

    def text(name: str, number: int) -> str:
        e = Emitter()
        with e.func(name, [("target", "ptr")]) as (target,):
            e.store(e.constant(number, "i32"), target, e.constant(0, "i64"))
        return e.text()

    names = [f"gives_{number}" for number in range(count)]
    found = machine_code.find_functions(
        names, lambda missing: ((text(name, names.index(name)), {name: f"facts of {name}"}) for name in missing)
    )
    assert len({id(function.code) for function in found.values()}) == count
    for number, name in enumerate(names):
        answer = ctypes.c_int32(-1)
        found[name].code.function(name, ctypes.c_void_p)(ctypes.addressof(answer))
        assert answer.value == number and found[name].facts == f"facts of {name}"
    with pytest.raises(Exception, match="nonsense") as raised:
        machine_code.find_functions(
            names,
            lambda missing: (("module { nonsense }" if name == names[3] else text(name, 0), {name: ""}) for name in missing),
        )
    assert type(raised.value).__name__ == "MLIRError"
