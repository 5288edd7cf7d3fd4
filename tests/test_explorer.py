"""The page to look around in: whole, without a network, and every link in its data leads somewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.types import TensorType, f32

from dlcompiler.api import build
from dlcompiler.explorer import compilation_data, explorer_page
from dlcompiler.observe import Collector
from dlcompiler.options import Options
from dlcompiler.sources import read_source

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028 {{DATA}}"


def graph() -> Graph:
    """A softmax, a product with an exponential, and a place in the model whose name tries to be markup."""
    b = Builder("model")
    x = b.input("x", TensorType(f32, (6, 6)))
    b.location = "net.py:3"
    soft = b.softmax(x, axis=1)
    b.location = HOSTILE
    product = b.matmul(soft, x)
    b.location = "net.py:5"
    return b.finish([b.exp(b.neg(b.neg(product)))])


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    source = read_source(graph())
    collector = Collector()
    compiled = build(source, "cpu", Options.resolve({}), observe=collector)
    return compilation_data(collector.graphs, compiled.program, compiled.target, compiled.report())


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def test_nothing_is_loaded_from_elsewhere(data: dict[str, Any]) -> None:
    page = explorer_page(data)
    elements = parsed(page)
    for tag, attributes in elements.found:
        assert not {"src", "srcset", "action", "data", "background"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert set(re.findall(r"https?://[^\s\"'`)]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|\bimport\(|innerHTML|document\.write|\beval\(", page)


def test_names_of_the_model_stay_text(data: dict[str, Any]) -> None:
    elements = parsed(explorer_page(data))
    assert "img" not in {tag for tag, _ in elements.found}
    document, script = elements.scripts
    assert json.loads(document) == json.loads(json.dumps(data))
    assert HOSTILE in {node[5] for node in json.loads(document)["stages"][0]["nodes"]}
    assert "{{" not in script.replace(HOSTILE, "")


def test_every_reference_in_the_data_resolves(data: dict[str, Any]) -> None:
    for stage in data["stages"]:
        names = [node[0] for node in stage["nodes"]]
        assert len(names) == len(set(names))
        assert {name for node in stage["nodes"] for name in node[3]} | set(stage["outputs"]) <= set(names)
    last = {node[0] for node in data["stages"][-1]["nodes"]}
    slots = {slot["name"] for slot in data["memory"]["slots"]}
    for number, step in enumerate(data["steps"]):
        assert step["number"] == number and step["ops"] and set(step["ops"]) <= last
        assert set(step["reads"]) | set(step["writes"]) <= slots
        assert number in data["kernels"][step["kernel"]]["steps"]
    for number, kernel in enumerate(data["kernels"]):
        assert {"kernel.txt", "schedule.txt", "kernel.mlir", "kernel.llvm.mlir"} <= set(kernel["files"])
        assert all(data["steps"][step]["kernel"] == number for step in kernel["steps"])


def test_from_a_line_to_its_kernel(data: dict[str, Any]) -> None:
    last = {node[0]: node for node in data["stages"][-1]["nodes"]}
    places = [{last[name][5] for name in kernel["ops"]} for kernel in data["kernels"]]
    assert {"net.py:3"} in places and {HOSTILE, "net.py:5"} in places
    assert [stage["name"] for stage in data["stages"]][0] == "captured" and len(data["stages"]) > 1
    assert all(stage["event"] for stage in data["stages"][1:])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_shows_it(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(explorer_page(data), encoding="utf-8")
    wanted = {"#/kernels/0": "kernel kernel_", "#/memory": "lower bound"}
    for address, text in wanted.items():
        shown = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=2000", "--dump-dom", f"file://{path}{address}"],
            capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        body = shown.partition('<div id="body">')[2].partition("<noscript>")[0]
        assert text in body, address
