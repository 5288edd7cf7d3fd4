"""What goes wrong: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dlcompiler.ir import errors
from dlcompiler.passes.block import simplify
from dlcompiler.passes.pattern import algebra
from dlcompiler.passes.rewrite import RuleTable
from onnx import helper

from dlcompiler.cli import boundary
from tests.cli.conftest import TEXT, WIDTH, Cli, save


def one_line(text: str) -> str:
    """The message, which must be one line."""
    (line,) = text.strip().splitlines()
    assert line.startswith("dlcompiler: error: ")
    return line


@pytest.mark.parametrize("content", [None, b"", b"hello, I am no model\n", b"\x08\x07\x12\x04test", bytes(range(256)) * 8])
def test_no_onnx_file(cli: Cli, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    for command in ("compile", "run", "inspect", "verify", "bench"):
        result = cli(command, path)
        assert result.code == 3, command
        assert str(path) in one_line(result.err) and result.out == ""


def test_truncated_onnx_file(cli: Cli, model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    path = tmp_path / "cut.onnx"
    for end in range(1, len(data) - 1, len(data) // 12):
        path.write_bytes(data[:end])
        result = cli("compile", path)
        assert result.code in (3, 4), end
        assert result.err.startswith("dlcompiler: error: ")


def test_a_folder_is_no_model(cli: Cli, tmp_path: Path) -> None:
    assert cli("compile", tmp_path).code == 3


def test_wrong_input_at_run(cli: Cli, model: Path, tmp_path: Path) -> None:
    good = np.zeros((2, WIDTH), np.float32)
    cases = {
        "no input 'z'": {"z": good},
        "must be f32[batch, 12], not f64[2, 12]": {"x:0": good.astype(np.float64)},
        "must be f32[batch, 12], not f32[2, 11]": {"x:0": good[:, 1:]},
        "must be f32[batch, 12], not f32[12]": {"x:0": good[0]},
        "no value for input 'x:0'": {},
    }
    for message, arrays in cases.items():
        np.savez(tmp_path / "in.npz", **arrays)
        out = tmp_path / "out.npz"
        result = cli("run", model, "-i", tmp_path / "in.npz", "-o", out)
        assert result.code == 3
        assert message in one_line(result.err) and "x:0" in result.err
        assert not out.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip", b"\x93NUMPY", b"text", b"\x80\x04\x95 a pickle"])
def test_input_file_that_is_none(cli: Cli, model: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "in.npz"
    if content is not None:
        path.write_bytes(content)
    result = cli("run", model, "-i", path)
    assert result.code == 3 and str(path) in one_line(result.err)


def test_pickled_inputs_are_refused(cli: Cli, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **{"x:0": np.array([{"a": 1}], dtype=object)})
    assert cli("run", model, "-i", tmp_path / "in.npz").code == 3


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compil"], "did you mean 'compile'?"),
        (["compile"], "MODEL"),
        (["compile", "{model}", "--disable-pass", "simplfy"], "did you mean 'simplify'?"),
        (["compile", "{model}", "--target", "cuda:sm_9"], "did you mean 'cuda:sm_90'?"),
        (["compile", "{model}", "-O7"], "0<=x<=3"),
        (["compile", "{model}", "--no-such-flag"], "--no-such-flag"),
        (["run", "{model}", "--input-shape", "x"], "NAME:SHAPE"),
        (["run", "{model}", "--input-shape", "x:1x-3"], "neither a size nor a letter"),
        (["inspect", "{model}", "--stage", "simplfy"], "did you mean 'simplify'?"),
        (["inspect", "{model}", "--stage", "triton"], "has no stage 'triton'"),
        (["bench", "{model}", "--against", "tvm"], "no system 'tvm'"),
        (["bench", "{model}", "--against", "inductor", "--input-shape", "x:0:1x12"], "FILE.py:NAME"),
        (["opt", "simplfy", "{text}"], "did you mean 'simplify'?"),
        (["compile", "{model}", "-o", "/no/such/folder/m.dlc"], "there is no folder"),
    ],
)
def test_usage(cli: Cli, model: Path, text: Path, arguments: list[str], hint: str) -> None:
    result = cli(*(argument.format(model=model, text=text) for argument in arguments))
    assert result.code == 2
    assert hint in one_line(result.err) and result.out == ""


def test_unknown_name_in_input_shape(cli: Cli, model: Path) -> None:
    result = cli("compile", model, "--input-shape", "y:1x12")
    assert result.code == 3 and "'x:0'" in one_line(result.err)


def test_wrong_value_in_the_environment(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_FUEL", "much")
    result = cli("compile", model)
    assert result.code == 2 and "DLCOMPILER_FUEL" in one_line(result.err)


def test_unsupported_ops_are_all_listed(cli: Cli, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x:0"], ["a"], name="first", domain="acme"),
        helper.make_node("Transmogrify", ["a"], ["y"], name="second", domain="acme"),
    ]
    path = save(tmp_path / "odd.onnx", nodes, [2, 3], [2, 3])
    result = cli("compile", path)
    assert result.code == 4
    assert "Frobnicate" in result.err and "Transmogrify" in result.err
    listed = json.loads(cli("compile", path, "--json").out)["error"]
    assert listed["exit_code"] == 4 and len(listed["items"]) == 2


def test_parse_error_shows_line_and_column(cli: Cli, text: Path) -> None:
    text.write_text(TEXT.replace("neg(%1)", "neg(%nothing)"))
    result = cli("compile", text)
    assert result.code == 3 and "line 5, column 12" in result.err
    text.write_text(TEXT.replace("f32[4, 3]\n  %3", "f32[4, 4]\n  %3"))  # a type that is not the op's
    assert cli("compile", text).code == 3


def test_unwritable_output(cli: Cli, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "taken.npz"
    folder.mkdir()
    assert cli("run", text, "--fill", "ones", "-o", folder).code == 2
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        result = cli("run", text, "--fill", "ones", "-o", closed / "out.npz")
        assert result.code == 6 and "permission" in one_line(result.err).lower()
    full = cli("run", text, "--fill", "ones", "-o", "/proc/out.npz")
    assert full.code == 6 and "/proc/out.npz" in one_line(full.err)


@pytest.mark.parametrize("option", ["--dump"])
def test_unwritable_dump_folder_is_one_warning(cli: Cli, text: Path, tmp_path: Path, option: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = cli("compile", text, option, blocked / "dump")
    assert result.code == 0
    (warning,) = result.err.strip().splitlines()
    assert "cannot write the dump folder" in warning


def test_unwritable_cache_folder_is_one_warning(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("DLCOMPILER_CACHE_DIR", str(blocked / "cache"))
    result = cli("compile", text)
    assert result.code == 0
    (warning,) = result.err.strip().splitlines()
    assert "cannot write the cache folder" in warning


def test_verify_first_call_option(cli: Cli, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_VERIFY", "1")
    assert cli("run", text, "--fill", "ones").code == 0
    wrong = algebra("double-is-nothing", "x * 2 --> x", takes="float", exact=True)
    monkeypatch.setattr(simplify, "RULES", RuleTable((*simplify.RULES, wrong)))
    result = cli("run", text, "--fill", "ones")
    assert result.code == 5 and "differs from the reference" in one_line(result.err)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OptionError("x"), 2),
        (errors.InvalidModelError("x"), 3),
        (errors.ParseError("x", line=1, column=1), 3),
        (errors.ShapeError("x"), 3),
        (errors.InputError("x"), 3),
        (errors.UnsupportedError("x", items=("a", "b")), 4),
        (errors.LaunchError("x"), 6),
        (MemoryError("x"), 6),
        (OSError(28, "No space left on device"), 6),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 6),
        (KeyboardInterrupt(), 130),
        (errors.VerifyError("x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(
    cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("dlcompiler.sources.read_source", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = cli("compile", text)
    assert result.code == code
    if code == 1:
        (report,) = tmp_path.glob("dlcompiler-error-*.txt")
        assert str(report) in result.err and type(error).__name__ in report.read_text()
    if code == 4:
        assert result.err.splitlines()[1:] == ["  a", "  b"]
    documents = cli("compile", text, "--json")
    assert documents.code == code
    if code != 130:
        assert documents.json["error"]["exit_code"] == code


def test_every_error_class_is_mapped() -> None:
    """A new class must be given a code, or be a bug of ours on purpose."""
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.CompilerError)}
    ours = {errors.CompilerError, errors.VerifyError}
    unmapped = {c for c in classes - ours if not any(issubclass(c, kind) for kind, _ in boundary.EXIT_CODES)}
    assert unmapped == set()


def test_interrupted_run_leaves_nothing(text: Path, tmp_path: Path) -> None:
    """SIGINT in the middle of a long benchmark: 130, and no file but those that were there."""
    command = [sys.executable, "-m", "dlcompiler", "bench", str(text), "--rounds", "100000000", "--dump", str(tmp_path / "dump")]
    # a suite started in the background of a shell hands down an ignored SIGINT
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **listening)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "dump").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err and out == ""
    assert not list(tmp_path.rglob("*.partial"))


def test_reader_that_goes_away(text: Path) -> None:
    """`dlcompiler inspect ... | head -1` ends quietly."""
    command = f"{sys.executable} -m dlcompiler inspect {text} --stage llvm | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_flags_that_change_nothing_are_said(cli: Cli, text: Path, tmp_path: Path) -> None:
    """A flag that a command does not heed is an error or a warning, never silence."""
    two = cli("inspect", text, "--memory", "--ops")
    assert two.code == 2 and "one view at a time: --memory and --ops" in two.err
    idle = cli("opt", "all", text, "--dump", tmp_path / "dump", "--strict")
    assert idle.code == 0 and "--dump, --strict changes nothing" in idle.err and not (tmp_path / "dump").exists()
    fixed = cli("compile", text, "--fix-batch")
    assert fixed.code == 0 and "--fix-batch is for .onnx files" in fixed.err
