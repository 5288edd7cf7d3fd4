"""`dlcompiler.compile`, `load` and `reset`: what a Python program uses.

compiled = dlcompiler.compile(module, (x,))          # or an ExportedProgram, an ONNX model, a path
y = compiled(x)
compiled.save("model.dlc")

What is heavy is imported where it is needed: a file whose program this machine has kept runs without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlcompiler.compiled import ByName, Compiled, KeptCompiled
from dlcompiler.kept import Place, find, keep
from dlcompiler.options import Options

if TYPE_CHECKING:
    from dlcompiler.observe import Observer
    from dlcompiler.sources import Source

__all__ = ["ByName", "Compiled", "build", "compile", "load", "reset"]


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str = "cpu",
    dynamic_shapes: Any = None,
    options: Options | Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile a model for `target`.

    model           an nn.Module or function (with `example_inputs`, a tuple of its arguments), a torch.export.ExportedProgram, an
                    onnx.ModelProto, or the path of an .onnx, .dlc or Graph text file
    target          cpu, cpu:x86-64-v3, cuda (this machine's GPU, else sm_90), cuda:sm_90; no GPU is needed to compile for one
    dynamic_shapes  for torch models as in torch.export; for ONNX `{input name: shape}`, where a str is a size known when called
    options         names and values of `dlcompiler.Options`

    Raises OptionError, InvalidModelError, UnsupportedError (its `items` lists all that is not supported), InputError.
    """
    resolved = Options.resolve(options)

    def make() -> Compiled:
        from dlcompiler.codegen.target import parse_target
        from dlcompiler.sources import all_dynamic, read_source

        parse_target(target)
        sizes = dynamic_shapes
        if resolved.dynamic and sizes is None and example_inputs is not None:
            sizes = all_dynamic(example_inputs)
        source = read_source(model, example_inputs, sizes, fix_batch=resolved.fix_batch, numerics=resolved.numerics)
        return build(source, target, resolved)

    if isinstance(model, str | os.PathLike) and example_inputs is None and is_plain(dynamic_shapes):
        return found_or_made(Place("compile", target, resolved, dynamic_shapes), os.fspath(model), make)
    return make()


def found_or_made(place: Place, path: str, make: Callable[[], Compiled]) -> Compiled:
    """The model in a file, as this machine has kept it, else compiled and kept."""
    found = find(place, path)
    if found is not None:
        return KeptCompiled(*found, make)
    compiled = make()
    keep(place, compiled)
    return compiled


def is_plain(shapes: Any) -> bool:
    """Whether shapes of inputs are names and numbers, as those of an ONNX model, and no torch dimensions."""
    return shapes is None or (
        isinstance(shapes, Mapping)
        and all(isinstance(d, int | str) for shape in shapes.values() if isinstance(shape, tuple | list) for d in shape)
        and all(isinstance(shape, tuple | list) for shape in shapes.values())
    )


def build(source: Source, target: str, options: Options, observe: Observer | None = None) -> Compiled:
    """Compile a model that was read. `observe` is told of every stage."""
    from dlcompiler.devices import target_here
    from dlcompiler.recorded import compile_recorded
    from dlcompiler.report import Timings

    parsed = options.configure(target_here(target))
    executable, report = compile_recorded(source.graph, parsed, options, timings=Timings(source.timings.seconds), observe=observe)
    return Compiled(source, executable, executable.program, parsed, options, report)


def load(path: str | os.PathLike[str], *, target: str | None = None, options: Mapping[str, Any] | None = None) -> Compiled:
    """The model saved in a `.dlc`, for one of the targets it was saved for unless another is given.

    Of several targets the one for this machine's GPU is taken, else the first for a CPU, else the first. Its weights are mapped,
    not read. Kernels for a GPU that the file carries are used as they are, and run on the GPU when the model is called: load such
    a file only from whom you would take a program. Raises InvalidModelError for a file that is missing, damaged or of another
    format version.

    On the machine that has compiled it once before, the program it became then runs as it is, and a call with NumPy arrays needs
    no torch. It comes from the cache folder (`DLCOMPILER_CACHE_DIR`), never out of the file.
    """
    name = os.fspath(path)

    def make() -> Compiled:
        from dlcompiler.report import Timings
        from dlcompiler.sources import best_target, read_artifact

        source = read_artifact(name, Timings())
        chosen = best_target(source.targets) if target is None else target
        return build(source, chosen, Options.resolve({**source.options, **(options or {})}))

    return found_or_made(Place("load", target, Options.resolve(options), None), name, make)


def reset() -> None:
    """Forget compiled kernels and reports. Programs that are still held go on working."""
    from dlcompiler import report
    from dlcompiler.recorded import forget_kernels

    report.clear()
    forget_kernels()
