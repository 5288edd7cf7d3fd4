"""The architecture, enforced: who may import whom, where each outside package's one door is, and how large a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "codegen", "runtime", "dlcompiler")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
# what a folder may import of ours, besides itself
MAY_IMPORT = {
    "ir": set(),
    "passes": {"ir"},
    "codegen": {"ir"},
    "runtime": {"ir"},
    "dlcompiler": {"ir", "passes", "codegen", "runtime"},
}
# outside package -> the only places that may import it
DOORS = {
    "torch": ("runtime/", "dlcompiler/frontends/fx", "dlcompiler/training/", "dlcompiler/torch_backend", "dlcompiler/arrays",
              "dlcompiler/reference", "dlcompiler/devices", "dlcompiler/simulated", "dlcompiler/compiled", "dlcompiler/sources",
              "dlcompiler/onnx_backend", "dlcompiler/cli/bench", "dlcompiler/cli/doctor",
              "dlcompiler/cli/shared", "codegen/gpu/"),
    "torch_mlir": ("codegen/cpu/",),
    "triton": ("codegen/gpu/", "runtime/"),
    "onnx": ("dlcompiler/frontends/onnx", "dlcompiler/onnx_backend"),
    "functorch": ("dlcompiler/torch_backend",),
    "onnxruntime": ("dlcompiler/cli/",),
    "openvino": ("dlcompiler/cli/",),
    "click": ("dlcompiler/cli/",),
}  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION = 600, 60
# one record an op, or a rule: they grow with these, and nobody reads them from top to bottom
TABLES = {"tests/samples.py", "tests/passes/rule_samples.py"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """Every module imported anywhere in a file, by absolute name, with its line; a name imported out of a package counts too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(), str(path)) for path in FILES}


def test_the_files_are_found() -> None:
    assert len(FILES) > 60


def test_import_order_between_folders(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        home = relative(path).split("/")[0]
        for name, line in imports(tree):
            parts = name.split(".")
            if parts[0] in FOLDERS[:-1]:
                wrong.append(f"{relative(path)}:{line}: bare import of {name}; say dlcompiler.{name}")
            if parts[0] != "dlcompiler":
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in FOLDERS[:-1] else "dlcompiler"
            if target != home and target not in MAY_IMPORT[home]:
                wrong.append(f"{relative(path)}:{line}: {home} may not import {name}")
    assert wrong == []


def test_outside_packages_come_in_by_their_doors(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        for name, line in imports(tree):
            doors = DOORS.get(name.split(".")[0])
            if doors is not None and not relative(path).startswith(doors):
                wrong.append(f"{relative(path)}:{line}: {name}")
    assert wrong == []


@pytest.mark.parametrize("package", ["torch_mlir", "triton", "onnxruntime", "openvino"])
def test_doors_are_opened_inside_functions(trees: dict[Path, ast.Module], package: str) -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(n.split(".")[0] == package for n, _ in imports(ast.Module([node])))
    ]
    assert wrong == []


def test_broad_handlers_are_at_the_one_boundary(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                if names & {"everything", "Exception", "BaseException"} and relative(path) != "dlcompiler/cli/boundary.py":
                    wrong.append(f"{relative(path)}:{node.lineno}")
    assert wrong == []


def test_the_environment_is_read_in_one_place(trees: dict[Path, ast.Module]) -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and relative(path) != "dlcompiler/options.py"
    ]
    assert wrong == []


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in [*FILES, *(ROOT / "tests").rglob("*.py")]}
    assert {name: length for name, length in lengths.items() if length >= LONGEST_FILE and name not in TABLES} == {}


def test_functions_are_short(trees: dict[Path, ast.Module]) -> None:
    long = {
        f"{relative(path)}:{node.lineno} {node.name}": length
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert long == {}
