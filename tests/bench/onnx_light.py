"""The nine light models packaged in `onnx`, by the command line, against their packaged outputs; and two exported models.

    python -m tests.bench.onnx_light [--only '*resnet*'] [--json FILE]

Each light model has a packaged expected output for one input: the numbers 0, 1/n, 2/n ... in the input's shape. Most of
those outputs are one constant, so `verify` compares with onnxruntime on random input too. BERT-base and ResNet-50 are exported by
torch.onnx.export and compared with onnxruntime.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import harness
from tests.bench.systems import TOLERANCE, Context, export_onnx

EXPORTED = ("bert-base", "resnet50")
# onnx's own runner allows these (rtol 1e-3, densenet 2e-3, atol 1e-7)
RELATIVE, RELATIVE_DENSENET, ABSOLUTE = 1e-3, 2e-3, 1e-7


def light_models() -> dict[str, Path]:
    """Name and file of each packaged light model."""
    import onnx.backend.test

    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    return {path.stem.removeprefix("light_"): path for path in sorted(folder.glob("light_*.onnx"))}


@dataclass(frozen=True)
class Expected:
    """One output: its value and the error that is allowed at each element."""

    value: Any
    allowed: Any


def packaged_case(path: Path, relative: float) -> tuple[dict[str, Any], dict[str, Expected]]:
    """The inputs that onnx's runner feeds and the outputs it expects, by name."""
    import numpy
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    feeds = {}
    for value in graph.input:
        if value.name not in constants:
            shape = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
            count = int(numpy.prod(shape))
            feeds[value.name] = (numpy.arange(count).reshape(shape) / count).astype(numpy.float32)
    expected = {}
    for position, output in enumerate(graph.output):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.with_name(f"{path.stem}_output_{position}.pb").read_bytes())
        array = onnx.numpy_helper.to_array(tensor)
        expected[output.name] = Expected(array, ABSOLUTE + relative * numpy.abs(array))
    return feeds, expected


def command_line(*arguments: str) -> tuple[str, float]:
    """Runs ``python -m dlcompiler``; returns "" or the reason of its failure, and the seconds it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "dlcompiler", *arguments]
    done = subprocess.run(command, cwd=harness.REPOSITORY, env=harness.worker_environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [""]
    return (f"exit {done.returncode}: {lines[-1]}" if done.returncode else ""), seconds


def run_and_compare(model: Path, feeds: dict[str, Any], expected: dict[str, Expected], folder: Path) -> dict[str, Any]:
    """`dlcompiler run` on the file; the worst error as a share of what is allowed (above 1 is wrong)."""
    import numpy

    numpy.savez(folder / "in.npz", **feeds)
    produced = folder / "out.npz"
    reason, seconds = command_line("run", str(model), "-i", str(folder / "in.npz"), "-o", str(produced))
    if reason:
        return {"run": reason}
    with numpy.load(produced) as archive:
        outputs = {name: archive[name] for name in archive.files}
    shapes = {name: output.shape for name, output in outputs.items()}
    if shapes != {name: wanted.value.shape for name, wanted in expected.items()}:
        return {"run": f"outputs {shapes}, expected { ({name: wanted.value.shape for name, wanted in expected.items()}) }"}
    worst = max(
        float((numpy.abs(outputs[name].astype(float) - wanted.value) / wanted.allowed).max()) for name, wanted in expected.items()
    )
    return {"run": "right" if worst <= 1 else "WRONG", "share": worst, "seconds": seconds}


def light_row(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """One light model: run against the packaged output, then verify against onnxruntime on random input."""
    feeds, expected = packaged_case(path, RELATIVE_DENSENET if name == "densenet121" else RELATIVE)
    result = run_and_compare(path, feeds, expected, folder)
    reason, _ = command_line("verify", str(path), "--against", "onnxruntime")
    return {"model": name, **result, "verify": reason or "agrees"}


def exported_row(name: str, folder: Path) -> dict[str, Any]:
    """One zoo model through torch.onnx.export: max|ours - onnxruntime| must be at most 1e-4 of max|onnxruntime|."""
    import onnxruntime
    import torch

    from tests import zoo

    model = zoo.build(name)
    context = Context(folder, name)
    with torch.no_grad():
        export_onnx(model, context.onnx_path)
    session = onnxruntime.InferenceSession(str(context.onnx_path), providers=["CPUExecutionProvider"])
    feeds = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), model.inputs)}
    names = [node.name for node in session.get_outputs()]
    expected = {
        name: Expected(value, TOLERANCE * float(abs(value).max())) for name, value in zip(names, session.run(None, feeds))
    }
    result = run_and_compare(context.onnx_path, feeds, expected, folder)
    reason, _ = command_line("verify", str(context.onnx_path), "--against", "onnxruntime")
    return {"model": f"{name} (exported)", **result, "verify": reason or "agrees"}


def main() -> int:
    """Prints one row a model; the exit status is 1 when any is not right."""
    parser = harness.parser(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    models = light_models()
    rows = []
    with tempfile.TemporaryDirectory(prefix="dlcompiler-onnx-") as folder:
        for name in harness.chosen([*models, *EXPORTED], arguments.only):
            harness.log(f"  {name}")
            rows.append(light_row(name, models[name], Path(folder)) if name in models else exported_row(name, Path(folder)))
    harness.print_machine()
    cells = [
        [row["model"], row["run"], *(f"{row[key]:.2g}" if key in row else "–" for key in ("share", "seconds")), row["verify"]]
        for row in rows
    ]
    print(harness.table(["model", "run", "error / allowed", "seconds", "verify"], cells))
    harness.write_json(arguments.json, rows)
    return int(any(row["run"] != "right" or row["verify"] != "agrees" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
