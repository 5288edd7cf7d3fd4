"""What `inspect` shows beyond text, completion, help, and what is never overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import helper

from dlcompiler.cli.commands import COMMANDS
from dlcompiler.memory_table import memory_picture
from tests.cli.conftest import WIDTH, Cli, save


def test_check_lists_every_operator(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("inspect", model, "--check", "--json")
    assert result.code == 0 and result.json["supported"] and result.json["nodes"] == 4
    rows = {row["op"]: row for row in result.json["operators"]}
    assert set(rows) == {"MatMul", "Add", "Relu", "Softmax"}
    # a product becomes part of a kernel under another name, and is native all the same
    assert all(row["runs_as"] == {"native": 1} for row in rows.values())
    assert (rows["MatMul"]["first"], rows["MatMul"]["version"], rows["MatMul"]["inputs"]) == ("dense", 21, ["f32", "f32"])
    written = cli("inspect", model, "--check", "-o", tmp_path / "table.txt")
    assert written.out == "" and "MatMul ai.onnx f32 f32 native dense 21 1" in " ".join(
        (tmp_path / "table.txt").read_text().split()
    )


def test_check_lists_all_that_is_missing_and_the_rest(cli: Cli, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x:0"], ["a"], name="first", domain="acme"),
        helper.make_node("Frobnicate", ["a"], ["b"], name="second", domain="acme"),
        helper.make_node("Relu", ["x:0"], ["c"], name="third"),
        helper.make_node("Add", ["b", "c"], ["y"], name="last"),
    ]
    path = save(tmp_path / "odd.onnx", nodes, [2, 3], [2, 3])
    result = cli("inspect", path, "--check", "--json")
    assert result.code == 4 and not result.json["supported"]
    missing = [row for row in result.json["operators"] if not row["supported"]]
    assert {(row["op"], row["domain"], row["first"]) for row in missing} == {
        ("Frobnicate", "acme", n) for n in ("first", "second")
    }
    assert {row["op"] for row in result.json["operators"] if row["supported"]} == {"Relu", "Add"}
    shown = cli("inspect", path, "--check")
    assert shown.code == 4 and "UNSUPPORTED" in shown.out and shown.err.startswith("dlcompiler: error: ")


def test_check_of_graph_text(cli: Cli, text: Path) -> None:
    result = cli("inspect", text, "--check", "--json")
    assert result.code == 0
    assert {row["op"]: row["count"] for row in result.json["operators"]} == {"mul": 1, "neg": 2, "exp": 1}


def test_html_is_written_whole(cli: Cli, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = cli("inspect", model, "--html", page, "--input-shape", f"x:0:3x{WIDTH}")
    assert result.code == 0 and f"wrote {page}" in result.out
    assert page.read_text().startswith("<!doctype html>") and "dense" in page.read_text()
    assert cli("inspect", model, "--html", tmp_path / "no/page.html").code == 2


def test_a_memory_plan_is_drawn(cli: Cli, model: Path) -> None:
    shown = cli("inspect", model, "--memory", "--input-shape", f"x:0:3x{WIDTH}").out
    assert "the arena: steps to the right, offsets upwards" in shown and "live bytes by step" in shown


@pytest.mark.parametrize("steps", [1, 7, 50, 333])
def test_the_picture_shows_each_slot_where_it_lies(steps: int) -> None:
    def slot(name: str, offset: int, size: int, first: int, last: int) -> dict[str, object]:
        return {"name": name, "offset": offset, "bytes": size, "first_step": first, "last_step": last}

    plan = {"steps": steps, "slots": [slot("low", 0, 600, 0, steps - 1), slot("high", 600, 600, 0, steps - 1)]}
    lines = [line.partition("|")[2] for line in memory_picture(plan) if "|" in line]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    drawn = "".join(lines)
    assert drawn == "B" * (len(drawn) // 2) + "A" * (len(drawn) // 2)
    plan["slots"] = [slot("late", 0, 100, steps - 1, steps - 1)]
    last = memory_picture(plan)[1].partition("|")[2]
    assert last.endswith("A") and (steps == 1 or last.startswith("."))
    assert memory_picture({"steps": 3, "slots": []}) == ["nothing lies in the arena"]


def test_the_model_is_not_overwritten(cli: Cli, text: Path, tmp_path: Path) -> None:
    before = text.read_bytes()
    os.link(text, tmp_path / "other-name.txt")
    for arguments in (
        ["compile", text, "-o", text], ["run", text, "--fill", "ones", "-o", tmp_path / "other-name.txt"],
        ["inspect", text, "--html", text], ["opt", "simplify", text, "-o", text],
    ):  # fmt: skip
        result = cli(*arguments)
        assert result.code == 2 and "the model itself" in result.err
    assert text.read_bytes() == before


def test_opt_takes_a_model_too(cli: Cli, model: Path) -> None:
    result = cli("opt", "dead-code", model)
    assert result.code == 0 and result.out.startswith("graph ")


def test_the_bare_name_shows_what_there_is(cli: Cli) -> None:
    result = cli()
    assert result.code == 2 and result.out == "" and "Commands:" in result.err and "error" not in result.err.splitlines()[0]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "cache"])
def test_help_has_examples_and_exit_codes(cli: Cli, command: str) -> None:
    shown = cli(command, "--help").out
    assert "Examples:\n" in shown and f"dlcompiler {command}" in shown and "Exit codes: 0 ok" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).out
    assert "_DLCOMPILER_COMPLETE" in script and f"{shell}_complete" in script


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("dlcompiler comp", {"compile", "completion"}),
        ("dlcompiler inspect --stage comm", {"common-subexpressions"}),
        ("dlcompiler compile --target cuda:sm_9", {"cuda:sm_90"}),
        ("dlcompiler compile --disable-pass simp", {"simplify"}),
        ("dlcompiler opt dead-code,simp", {"dead-code,simplify"}),
        ("dlcompiler bench --against eager,onnx", {"eager,onnxruntime"}),
        ("dlcompiler compile some", {"some"}),
    ],
)
def test_what_is_completed(words: str, wanted: set[str]) -> None:
    environment = {
        **os.environ, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_DLCOMPILER_COMPLETE": "bash_complete",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "dlcompiler"], env=environment, capture_output=True, text=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == wanted, done.stderr


def test_every_command_prints_one_document(cli: Cli, text: Path, tmp_path: Path) -> None:
    """With --json, stdout is one document, whatever the command and however it ends."""
    out = tmp_path / "out"
    commands = [
        ["compile", text], ["run", text, "--fill", "ones"], ["inspect", text], ["inspect", text, "--memory"],
        ["inspect", text, "--ops"], ["inspect", text, "--check"], ["inspect", text, "--html", out], ["verify", text],
        ["bench", text, "--rounds", 1], ["opt", "all", text], ["cache", "info"], ["doctor"],
        ["compile", "missing.onnx"], ["run", text], ["opt", "no-such-pass", text], ["inspect", text, "--stage", "nothing"],
    ]  # fmt: skip
    for command in commands:
        json.loads(cli(*command, "--json").out)
