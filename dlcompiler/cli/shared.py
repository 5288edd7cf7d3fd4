"""What the commands have in common: reading flags and models, making inputs, printing."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.progress import Progress
from dlcompiler.files import write_atomically
from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.expression import Dim, evaluate, symbol_name, symbols
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DTYPES, HostType, TensorType
from dlcompiler.names import names_of_inputs
from dlcompiler.observe import Observer, Observers
from dlcompiler.options import Options

if TYPE_CHECKING:
    from dlcompiler.compiled import Compiled
    from dlcompiler.frontends.onnx import SeenNode
    from dlcompiler.sources import Source

logger = logging.getLogger("dlcompiler")

OPTION_FLAGS = (
    "optimization_level", "disabled_passes", "fuel", "numerics", "dump_dir", "strict", "disable_cache", "tune_budget",
    "fix_batch",
)  # fmt: skip


@dataclass(frozen=True)
class Session:
    """The shared flags of one command, checked. `explicit` are the options given by flags."""

    target: str | None
    input_shapes: Mapping[str, tuple[int | str, ...]]
    explicit: Mapping[str, Any]
    options: Options
    as_json: bool
    quiet: bool

    @classmethod
    def start(cls, flags: Mapping[str, Any]) -> Session:
        """Read the flags and set up logging. Raises click.UsageError or OptionError."""
        set_up_logging(flags["verbose"], flags["quiet"])
        for extension in flags.get("extensions", ()):
            load_extension(extension)
        explicit = {name: flags[name] for name in OPTION_FLAGS if flags.get(name) not in (None, ())}
        shapes = dict(parse_input_shape(text) for text in flags.get("input_shapes", ()))
        options = Options.resolve(explicit)
        return cls(flags.get("target"), shapes, explicit, options, flags["as_json"], flags["quiet"])

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show on stderr what is being done, once it takes more than 2 s on a terminal."""
        shown = Progress(sys.stderr, enabled=self.options.progress and not self.quiet and sys.stderr.isatty())
        with shown:
            yield shown


def set_up_logging(verbose: int, quiet: bool) -> None:
    """Log to stderr: warnings, with -v what is being done, with -vv everything; with -q errors only."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logger.setLevel(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False


def parse_input_shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    """`x:1x3x224x224`, `x:[1,3,224,224]` or `x=1,3,224,224`: the name and the shape, in which a letter is a symbol."""
    found = re.fullmatch(r"(?P<name>.+?)(?:=|:)(?P<shape>[^:=]*)", text.strip())
    if not found:
        raise click.UsageError(f"--input-shape takes NAME:SHAPE, as x:1x3x224x224, not {text!r}")
    inside = found["shape"].strip().removeprefix("[").removesuffix("]").removeprefix("(").removesuffix(")").strip()
    parts = [part.strip() for part in (inside.split(",") if "," in inside else inside.split("x"))] if inside else []
    shape: list[int | str] = []
    for part in parts:
        if part.isascii() and part.isdigit():
            shape.append(int(part))
        elif part.isidentifier():
            shape.append(part)
        else:
            raise click.UsageError(f"--input-shape {text!r}: {part!r} is neither a size nor a letter")
    return found["name"].strip(), tuple(shape)


def load_extension(name: str) -> None:
    """Run a Python file, or import a module, which defines operators of the user's own. Raises click.UsageError."""
    import runpy
    from importlib import import_module

    if name.endswith(".py"):
        if not Path(name).is_file():
            raise click.UsageError(f"--extension {name}: no such file")
        runpy.run_path(name)
        return
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # not what is asked for: something that it imports
            raise
        raise click.UsageError(f"--extension {name}: no such module; a file is given as FILE.py") from None


def check_output(path: str | None, model: str | None = None) -> None:
    """Find out before the work is done whether `path` can be written, and is not the model itself. Raises OSError."""
    if path is None:
        return
    if model is not None and os.path.exists(path) and os.path.exists(model) and os.path.samefile(path, model):
        raise click.UsageError(f"{path} is the model itself, which would be overwritten; give another -o")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise click.UsageError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write there", path)


# -- models ------------------------------------------------------------------------------------------------------------------


def read_source(model: str, session: Session, progress: Progress, inventory: list[SeenNode] | None = None) -> Source:
    """The model in a file: .dlc, Graph text or ONNX, told apart by their first bytes; or FILE.py:NAME, see `torch_model`.

    `inventory` receives the nodes of an ONNX file, also where it cannot be imported.
    """
    from dlcompiler.sources import TEXT_SUFFIXES
    from dlcompiler.sources import read_source as read

    progress.say("reading the model")
    if re.fullmatch(r".+\.py:\w+", model):
        module, inputs = torch_model(model)
        return read(module, inputs)
    fix = session.options.fix_batch
    source = read(model, dynamic_shapes=session.input_shapes or None, inventory=inventory, fix_batch=fix)
    if fix and (source.targets or model.endswith(TEXT_SUFFIXES)):
        logger.warning("--fix-batch is for .onnx files, and %s was imported before", model)
    return source


def torch_model(text: str) -> tuple[Any, tuple]:
    """What the function NAME of FILE.py gives: an nn.Module (or function) and a tuple of example inputs. Runs the user's file."""
    import runpy

    path, _, name = text.rpartition(":")
    if not Path(path).is_file():
        raise InvalidModelError(f"{path}: no such file", hint="check the path")
    # imported here, so that what the file defines is of the same torch
    import torch

    made = runpy.run_path(path).get(name)
    if not callable(made):
        raise InvalidModelError(f"{path} defines no function {name}")
    result = made()
    if not (isinstance(result, tuple) and len(result) == 2 and callable(result[0]) and isinstance(result[1], tuple)):
        raise InvalidModelError(f"{name} of {path} must give a module and a tuple of example inputs")
    if isinstance(result[0], torch.nn.Module):
        result[0].eval()
    return result[0], result[1]


def build(source: Source, session: Session, progress: Progress, observer: Observer | None = None, **changes: Any) -> Compiled:
    """Compile with the session's flags; `changes` are options that override them."""
    from dlcompiler.api import build as build_source

    options = Options.resolve({**source.options, **session.explicit, **changes})
    observers = [progress] if observer is None else [progress, observer]
    return build_source(source, session.target or source.target or "cpu", options, observe=Observers(*observers))


def open_model(model: str, session: Session, progress: Progress) -> tuple[Graph, Callable[[Sequence[Any]], Compiled]]:
    """A model to be run: its graph, and what compiles it for a call with some inputs.

    Where this machine has kept its program, the graph has the inputs only, and nothing is compiled.
    """
    from dlcompiler.compiled import KeptCompiled
    from dlcompiler.kept import Place, find, keep

    place = Place("run", session.target, session.options, session.input_shapes)

    def make(values: Sequence[Any] | None = None, source: Source | None = None) -> Compiled:
        compiled = build(source or read_source(model, session, progress), session, progress)
        if values is not None:
            check_plan(compiled, session, values)
        keep(place, compiled)
        return compiled

    found = find(place, model)
    if found is None:
        source = read_source(model, session, progress)
        return source.graph, lambda values: make(values, source)
    executable, names = found
    builder = Builder()
    for name, tensor in zip(names["inputs"], executable.program.inputs):
        builder.input(name, TensorType(DTYPES[tensor.dtype], tensor.shape), location=name)
    graph = builder.finish((), output_names=tuple(names["outputs"]))
    return graph, lambda values: KeptCompiled(executable, names, make)


# -- inputs ------------------------------------------------------------------------------------------------------------------


def read_inputs(path: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by input name from an .npz, or from an .npy for a model with one input. Raises InputError."""
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if not start.startswith((b"PK", b"\x93NUMPY")):
            raise InputError(f"{path} is no .npz or .npy file", hint="write one with numpy.savez")
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            if len(names) != 1:
                raise InputError(f"{path} holds one array, and the model takes {len(names)} inputs", hint="save an .npz by name")
            return {names[0]: found}
        with found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise InputError(f"{path} is no readable .npz or .npy file ({str(error).splitlines()[0]})") from None


def make_inputs(graph: Graph, given: Mapping[str, np.ndarray], session: Session, fill: str | None, seed: int) -> list[Any]:
    """Every input of a call: those given, converted where the file's format has no dtype for them, the rest filled.

    A size that nothing says is made up too, with a warning: 1, or the least that the model takes. Raises InputError naming what
    is missing or unknown, and UnsupportedError for one that is no tensor of numbers, or for inputs that no memory holds.
    """
    names = names_of_inputs(graph)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}", hint=f"its inputs are {', '.join(names) or 'none'}")
    missing = [name for name in names if name not in given]
    if missing and fill is None:
        raise InputError(f"no value for input {', '.join(map(repr, missing))}", hint="give -i FILE, or --fill zeros|ones|random")
    for name, node in zip(names, graph.inputs):
        if isinstance(node.type, HostType):
            raise UnsupportedError(
                f"input {name!r} is {node.type.name}, and the command line takes arrays of numbers only",
                items=(node.type.name,),
                hint="dlcompiler.compile(path)(...) takes it in Python",
            )
    bindings = _bindings(graph, names, given, session.input_shapes)
    shapes = _shapes(graph, names, given, bindings)
    check_memory(graph, session, bindings)
    generator = np.random.default_rng(seed)
    values: list[Any] = []
    for name, node in zip(names, graph.inputs):
        if name in given:
            values.append(_as_expected(name, node, given[name]))
        elif node.op.name == "size":
            values.append(bindings[node.attributes["symbol"]])
        else:
            values.append(filled(node, shapes[name], fill or "zeros", generator))
    return values


def _shapes(graph: Graph, names: Sequence[str], given: Mapping[str, Any], bindings: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs to be made up. Sizes that nothing says are added to the bindings."""
    found: dict[str, tuple[int, ...]] = {}
    for name, node in zip(names, graph.inputs):
        if name in given:
            continue
        least = {str(number): lowest for number, lowest, _ in node.attributes.get("limits", ())}
        if node.op.name == "size":
            _sized(node.attributes["symbol"], name, bindings, least)
        else:
            found[name] = tuple(_evaluate(dim, bindings, name, least) for dim in node.shape)
    return found


def check_memory(graph: Graph, session: Session, bindings: Mapping[str, int], planned: int | None = None) -> None:
    """Before anything large is allocated: raises UnsupportedError for a file whose tensors this process cannot have in memory.

    Where --input-shape says how large they are, that is the caller's doing and not the file's: MemoryError.
    """
    from dlcompiler.demand import require_memory

    try:
        require_memory(graph, bindings, planned or 0)
    except UnsupportedError as error:
        if session.input_shapes:
            raise MemoryError(error.message) from None
        raise


def check_plan(compiled: Compiled, session: Session, values: Sequence[Any]) -> None:
    """The same for what a compiled model plans to use for these inputs."""
    names = names_of_inputs(compiled.graph)
    bindings = _bindings(compiled.graph, names, dict(zip(names, values)), {})
    place = getattr(compiled.executable, "placement", None)  # of a single program
    planned = place(bindings).arena_bytes if place is not None else compiled.report().planned_peak
    check_memory(compiled.graph, session, bindings, planned)


def _bindings(graph: Graph, names: Sequence[str], given: Mapping[str, Any], shapes: Mapping[str, tuple]) -> dict[str, int]:
    """Sizes known from the inputs given and from --input-shape."""
    bindings: dict[str, int] = {}
    for name, node in zip(names, graph.inputs):
        if node.op.name == "size":
            if name in given:
                bindings[node.attributes["symbol"]] = int(given[name])
            continue
        shape: Sequence[Any] = np.shape(given[name]) if name in given else shapes.get(name, ())
        for dim, size in zip(node.shape, shape):
            symbol = symbol_name(dim)
            if symbol is not None and isinstance(size, int):
                bindings.setdefault(symbol, size)
    return bindings


def _sized(symbol: str, name: str, bindings: dict[str, int], least: Mapping[str, int]) -> int:
    """A size, made up where nothing says what it is: the least that the model takes."""
    if symbol not in bindings:
        bindings[symbol] = size = max(1, least.get(symbol, 1))
        told = f"--input-shape {name}:SHAPE says another"
        logger.warning("the size %s of input %r is not known; taking %d (%s)", symbol, name, size, told)
    return bindings[symbol]


def _evaluate(dim: Dim, bindings: dict[str, int], name: str, least: Mapping[str, int]) -> int:
    return evaluate(dim, {symbol: _sized(symbol, name, bindings, least) for symbol in sorted(symbols(dim))})


def _as_expected(name: str, node: Node, value: np.ndarray) -> Any:
    if node.op.name == "size":
        return int(value)
    expected = node.dtype.numpy
    if node.dtype.name == "bf16" and value.dtype != expected:
        # .npz knows no bfloat16: it reads as two plain bytes, or was saved as float32
        if value.dtype == np.dtype("V2"):
            return value.view(expected)
        if value.dtype == np.float32:
            return value.astype(expected)
    return value


def filled(node: Node, shape: tuple[int, ...], fill: str, generator: np.random.Generator) -> np.ndarray:
    """An array for an input. Random floats are normal; random integers are 0 or 1, which any table of at least 2 rows has."""
    dtype = node.dtype
    if fill == "zeros":
        return np.zeros(shape, dtype.numpy)
    if fill == "ones":
        return np.ones(shape, dtype.numpy)
    if dtype.kind == "complex":
        return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(dtype.numpy)
    if dtype.is_float:
        return generator.standard_normal(shape, dtype=np.float32).astype(dtype.numpy)
    return generator.integers(0, 2, shape, dtype=np.uint8).astype(dtype.numpy)


# -- results -----------------------------------------------------------------------------------------------------------------


def print_json(document: Any) -> None:
    """The one JSON document of a command."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz whole. bfloat16 is widened to float32, which the format can say and which holds it exactly; texts too."""
    plain = {name: _plain(array) for name, array in arrays.items()}
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **plain))


def _plain(array: np.ndarray) -> np.ndarray:
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array.astype(str) if array.dtype == object else array


def write_text(path: str, text: str) -> None:
    """Write a text whole."""
    write_atomically(path, lambda file: file.write(text.encode()))


def table(rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Rows in columns; the first `left` are text, the others numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [cell.ljust(width) if k < left else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def require_file(path: str) -> None:
    """Raises InvalidModelError for a model that is not there."""
    if not Path(path).exists():
        raise InvalidModelError(f"{path}: no such file", hint="check the path")
