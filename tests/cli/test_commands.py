"""Each command does what its help says, on an ONNX file, an artefact and Graph text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dlcompiler.codegen.cache import KINDS
from dlcompiler.ir.text import parse_graph

import dlcompiler
from dlcompiler.cli.commands import COMMANDS
from tests.cli.conftest import CLASSES, TEXT, WIDTH, Cli


def reference(model: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x:0": x})[0]


def test_compile_then_run_gives_what_the_file_gives(cli: Cli, model: Path, inputs: Path, tmp_path: Path) -> None:
    saved, direct, loaded = tmp_path / "m.dlc", tmp_path / "direct.npz", tmp_path / "loaded.npz"
    compiled = cli("compile", model, "-o", saved)
    assert compiled.code == 0 and "kernels" in compiled.out and f"saved {saved}" in compiled.out
    assert cli("run", model, "-i", inputs, "-o", direct).code == 0
    assert cli("run", saved, "-i", inputs, "-o", loaded).code == 0
    with np.load(inputs) as given, np.load(direct) as left, np.load(loaded) as right:
        assert left.files == right.files == ["y"]
        np.testing.assert_array_equal(left["y"], right["y"])
        np.testing.assert_allclose(left["y"], reference(model, given["x:0"]), rtol=1e-5, atol=1e-6)


def test_run_reads_an_npy_for_a_model_with_one_input(cli: Cli, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, WIDTH), np.float32))
    result = cli("run", model, "-i", tmp_path / "x.npy", "--json")
    assert result.code == 0
    assert result.json["outputs"][0]["shape"] == [2, CLASSES]


def test_filled_inputs_depend_on_the_seed_alone(cli: Cli, model: Path, tmp_path: Path) -> None:
    outputs = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{number}.npz"
        arguments = ("--fill", "random", "--seed", seed, "--input-shape", f"x:0=2,{WIDTH}")
        assert cli("run", model, *arguments, "-o", out).code == 0
        with np.load(out) as arrays:
            outputs.append(arrays["y"])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


@pytest.mark.parametrize("spelling", [f"x:0:2x{WIDTH}", f"x:0:[2,{WIDTH}]", f"x:0=2,{WIDTH}", f"x:0=(2, {WIDTH})"])
def test_every_spelling_of_a_shape(cli: Cli, model: Path, spelling: str) -> None:
    result = cli("run", model, "--fill", "ones", "--input-shape", spelling, "--json")
    assert result.json["outputs"][0]["shape"] == [2, CLASSES]


def test_a_letter_makes_a_size_symbolic(cli: Cli, model: Path) -> None:
    result = cli("inspect", model, "--stage", "captured", "--input-shape", f"x:0:Bx{WIDTH}")
    assert f" : f32[B, {WIDTH}]" in result.out.splitlines()[1]


@pytest.mark.parametrize(
    "stage",
    ["captured", "optimized", "dead-code", "simplify", "kernels", "mlir", "llvm", "program", "plan"],
)  # fmt: skip
def test_inspect_shows_every_stage(cli: Cli, text: Path, stage: str) -> None:
    shown = cli("inspect", text, "--stage", stage)
    assert shown.code == 0 and shown.out.strip()
    assert cli("inspect", text, "--stage", stage, "--json").json


def test_inspect_after_a_pass_is_the_graph_that_the_pass_left(cli: Cli, text: Path) -> None:
    before, after = (cli("inspect", text, "--stage", stage).out for stage in ("captured", "simplify"))
    assert [node.op.name for node in parse_graph(before).nodes].count("neg") == 2
    assert [node.op.name for node in parse_graph(after).nodes].count("neg") == 0


def test_inspect_memory_ops_and_summary(cli: Cli, text: Path) -> None:
    memory = cli("inspect", text, "--memory", "--json").json
    assert {slot["name"] for slot in memory["slots"]} >= {"x"}
    assert cli("inspect", text, "--ops", "--json").json["neg"] == {"captured": 2, "optimized": 0}
    summary = cli("inspect", text)
    assert "input  x: f32[4, 3]" in summary.out and "kernels" in summary.out


def test_opt_runs_the_named_passes_only(cli: Cli, text: Path, tmp_path: Path) -> None:
    same = cli("opt", "common-subexpressions", text)
    assert [n.op.name for n in parse_graph(same.out).nodes] == [n.op.name for n in parse_graph(TEXT).nodes]
    simplified = cli("opt", "simplify,dead-code", text)
    assert " = neg(" not in simplified.out and " = exp(" in simplified.out
    out = tmp_path / "out.txt"
    assert cli("opt", "all", text, "-o", out).code == 0
    assert " = neg(" not in out.read_text()
    assert cli("opt", "simplify", out).code == 0


def test_opt_writes_large_constants_beside_the_text(cli: Cli, model: Path, tmp_path: Path) -> None:
    captured = tmp_path / "captured.txt"
    captured.write_text(cli("inspect", model, "--stage", "captured").out)
    without = cli("opt", "dead-code", captured)
    assert without.code == 0 and "taken for zeros" in without.err
    # the weights cannot be told from the text alone, so compiling is refused
    refused = cli("compile", captured)
    assert refused.code == 3 and "captured.safetensors" in refused.err


def test_passes_that_are_disabled_do_not_run(cli: Cli, text: Path) -> None:
    history = cli("compile", text, "--disable-pass", "simplify", "--json").json["report"]["history"]
    assert not any(line.startswith("simplify") for line in history)
    history = cli("compile", text, "--json").json["report"]["history"]
    assert any(line.startswith("simplify") for line in history)


@pytest.mark.parametrize("judge", ["reference", "onnxruntime"])
def test_verify_agrees(cli: Cli, model: Path, judge: str) -> None:
    result = cli("verify", model, "--against", judge, "--input-shape", f"x:0:3x{WIDTH}", "--json")
    assert result.code == 0 and result.json["same"] is True


def test_bench_times_and_checks(cli: Cli, model: Path) -> None:
    shape = ("--input-shape", f"x:0:3x{WIDTH}")
    result = cli("bench", model, "--against", "onnxruntime", "--rounds", 2, "--warmup", 1, *shape, "--json")
    assert result.code == 0
    assert [row["system"] for row in result.json["systems"]] == ["dlcompiler", "onnxruntime"]
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in result.json["systems"])
    assert result.json["agreement"] == [{"system": "onnxruntime", "same": True, "worst": result.json["agreement"][0]["worst"]}]
    assert sum(step["share"] for step in result.json["steps"]) == pytest.approx(1)
    table = cli("bench", model, "--rounds", 1, *shape)
    assert "median" in table.out and "share" in table.out


def test_doctor_says_where_each_option_comes_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_STRICT", "1")
    result = cli("doctor", "--json")
    assert result.code == 0 and result.json["healthy"]
    options = {row["option"]: row for row in result.json["options"]}
    assert options["strict"]["value"] is True and options["strict"]["from"] == "DLCOMPILER_STRICT"
    assert options["fuel"]["from"] == "default"
    assert "target cpu" in cli("doctor").out


def test_what_the_tuner_decides_is_shown_and_kept(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DLCOMPILER_CACHE_BYTES", str(1 << 20))
    assert "tuned" not in cli("compile", text).out
    dlcompiler.reset()
    tuning = cli("compile", text, "--tune-budget", "0.001", "--json").json["report"]["tuning"]
    assert tuning["distinct"] == tuning["undecided"] == 1
    dlcompiler.reset()
    assert "1 not reached" in cli("compile", text, "--tune-budget", "0.001").out
    assert cli("cache", "info", "--json").json["kinds"]["tuned"] == 1
    assert "1 decisions of the tuner" in cli("cache", "info").out
    assert "1 of them decisions of the tuner" in cli("doctor").out
    assert cli("compile", text, "--tune-budget", "-1").code == 2


def test_cache_says_that_nothing_is_kept(cli: Cli) -> None:
    for action in ("info", "clear", "verify"):
        assert cli("cache", action, "--json").json["entries"] == 0
        assert "nothing is kept on disk" in cli("cache", action).out


def test_cache_shows_checks_and_clears(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DLCOMPILER_CACHE_BYTES", str(1 << 20))
    assert cli("cache", "info", "--json").json["entries"] == 0
    dlcompiler.reset()
    assert cli("compile", text, "--json").json["report"]["compiled"] == 1
    dlcompiler.reset()
    assert "0 compiled, 1 from disk" in cli("compile", text).out
    info = cli("cache", "info", "--json").json
    for kind in KINDS:
        (tmp_path / "cache" / f"{'0' * 64}.{kind}").write_bytes(b"")
    assert cli("cache", "info").out.count("1 ") >= len(KINDS) - 2  # each kind has a name to be shown by
    for kind in KINDS:
        (tmp_path / "cache" / f"{'0' * 64}.{kind}").unlink()
    assert info["entries"] >= 2 and info["on_disk"] and 0 < info["bytes"] < info["limit"] == 1 << 20
    assert "of at most 1.0 MiB" in cli("cache", "info").out
    assert cli("cache", "verify", "--json").json["damaged"] == {}
    damaged = next((tmp_path / "cache").glob("*.object"))
    damaged.write_bytes(b"")
    assert list(cli("cache", "verify", "--json").json["damaged"]) == [str(damaged)] and "1 damaged" in cli("cache", "verify").out
    assert cli("cache", "clear", "--json").json["removed"] == info["entries"]
    assert "0 removed" in cli("cache", "clear").out and list((tmp_path / "cache").iterdir()) == []


def test_a_model_from_a_python_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from torch import nn, ones\n\ndef build():\n    return nn.Sequential(nn.Linear(3, 2), nn.GELU()), (ones(4, 3),)\n"
    )
    assert cli("verify", f"{tmp_path / 'made.py'}:build").code == 0
    assert cli("verify", f"{tmp_path / 'made.py'}:missing").code == 3


def test_dump_is_written_where_it_is_asked_for(cli: Cli, text: Path, tmp_path: Path) -> None:
    result = cli("compile", text, "--dump", tmp_path / "dump", "--json")
    assert (Path(result.json["report"]["dump"]) / "index.md").is_file()


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_is_there(cli: Cli, command: str) -> None:
    result = cli(*([command] if command else []), "--help")
    assert result.code == 0 and "Usage: dlcompiler" in result.out


def test_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dlcompiler", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("dlcompiler ") and done.stderr == ""
