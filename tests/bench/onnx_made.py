"""ONNX files as ONNX Runtime's own tools make them, against ONNX Runtime: whether they are taken, right, and how quick they are.

    python -m tests.bench.onnx_made [--only 'bert-*'] [--time] [--large]

Models with random weights are exported by torch, then saved by ONNX Runtime at each level of optimisation, fused by its
optimiser of transformers, quantised (dynamically, statically to QDQ and to quantised operators, to 4 bits in blocks) or made
float16; quantised ones are also saved optimised. Each is compiled and compared with ONNX Runtime, which runs the file as it was
before it was saved optimised, with no optimisations: `error` is the largest difference over the largest result, `theirs` that of
its own run of the file with all optimisations. `--time` adds the median times of calls, in turns, with two threads.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Tool = Callable[[Path, Path], None]
PLAIN, FULL = "ORT_DISABLE_ALL", "ORT_ENABLE_ALL"


def session(file: Path, level: str, saved: Path | None = None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 2
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if saved is not None:
        settings.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def models(large: bool) -> dict[str, tuple[Any, dict[str, np.ndarray]]]:
    """Name -> (module, inputs by name)."""
    import torch
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    text = {"num_hidden_layers": 6} if large else {"vocab_size": 99, **small}
    picture = {} if large else {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
    side = 224 if large else 64
    images = torch.randn(1, 3, side, side).numpy()
    ids = torch.randint(2, 99, (1, 128 if large else 12)).numpy()
    return {
        "resnet": (transformers.ResNetModel(transformers.ResNetConfig(**picture)), {"pixel_values": images}),
        "bert": (transformers.BertModel(transformers.BertConfig(**text, attn_implementation="eager")), {"input_ids": ids}),
    }


def export(module: Any, inputs: dict[str, np.ndarray], file: Path) -> None:
    import torch

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module.eval()

        def forward(self, x: Any) -> Any:
            return self.inner(x)[0]

    given = tuple(torch.from_numpy(x) for x in inputs.values())
    torch.onnx.export(First(), given, str(file), input_names=list(inputs), output_names=["y"], opset_version=17, dynamo=False)


def tools(inputs: dict[str, np.ndarray], kind: str) -> Iterator[tuple[str, Tool]]:
    """Names of tools with what writes a file made of another."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [inputs] * 2

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    def static(format: Any, weights: Any, by_channel: bool) -> Tool:
        settings = {"quant_format": format, "activation_type": QuantType.QUInt8, "weight_type": weights}
        return lambda file, made: quantize_static(str(file), str(made), Samples(), per_channel=by_channel, **settings)

    def saved(level: str) -> Tool:
        return lambda file, made: session(file, level, made) and None

    yield "basic", saved("ORT_ENABLE_BASIC")
    yield "extended", saved("ORT_ENABLE_EXTENDED")
    yield "all", saved(FULL)
    yield "float16", _float16
    yield "dynamic", lambda file, made: quantize_dynamic(str(file), str(made), weight_type=QuantType.QUInt8)
    yield "qdq", static(QuantFormat.QDQ, QuantType.QInt8, True)
    yield "operators", static(QuantFormat.QOperator, QuantType.QUInt8, False)
    if kind == "bert":
        yield "blocks", _blocks
        yield "fused", _fused


def _float16(file: Path, made: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), made)


def _blocks(file: Path, made: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(file), 32, True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(made), False)


def _fused(file: Path, made: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(file), model_type="bert", num_heads=0, hidden_size=0, opt_level=0).save_model_to_file(str(made))


def apart(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference over the largest result."""
    scale = max(float(np.abs(w).max()) for w in wanted)
    return max(float(np.abs(np.asarray(f, np.float64) - w).max()) for w, f in zip(wanted, found)) / scale


def row(name: str, file: Path, source: Path, inputs: dict[str, np.ndarray], timed: bool) -> str:
    """One line of the table; `source` is the file before it was saved optimised."""
    from dlcompiler.ir.errors import CompilerError

    import dlcompiler

    wanted = session(source, PLAIN).run(None, inputs)
    theirs = session(file, FULL)
    try:
        compiled = dlcompiler.compile(str(file))
    except CompilerError as error:
        return f"{name:32} refused: {error}"

    def ours() -> list[np.ndarray]:
        result = compiled(*inputs.values())
        return list(result) if isinstance(result, tuple) else [result]

    line = f"{name:32} error {apart(wanted, ours()):8.1e}  theirs {apart(wanted, theirs.run(None, inputs)):8.1e}"
    report = compiled.report()
    line += f"  host {len(report.host)}  library {sum(report.library.values())}"
    if not timed:
        return line
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(15):
        for who, call in (("ours", ours), ("theirs", lambda: theirs.run(None, inputs))):
            start = time.perf_counter()
            call()
            times[who].append(time.perf_counter() - start)
    mine, other = (statistics.median(each[3:]) * 1e3 for each in times.values())
    return f"{line}  {mine:8.2f} ms  ONNX Runtime {other:8.2f} ms  {other / mine:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names of files, as a pattern")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--large", action="store_true", help="ResNet-50 and six layers of BERT-base")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (module, inputs) in models(options.large).items():
            base = Path(folder) / f"{kind}.onnx"
            export(module, inputs, base)
            for tool, make in tools(inputs, kind):
                made = base.with_name(f"{kind}-{tool}.onnx")
                again = made.with_name(f"{made.stem}-all.onnx")
                if not (fnmatch.fnmatch(made.stem, options.only) or fnmatch.fnmatch(again.stem, options.only)):
                    continue
                make(base, made)
                is_saved = tool in ("basic", "extended", "all")
                if fnmatch.fnmatch(made.stem, options.only):
                    print(row(made.stem, made, base if is_saved else made, inputs, options.time), flush=True)
                if not is_saved and fnmatch.fnmatch(again.stem, options.only):
                    session(made, FULL, again)
                    print(row(again.stem, again, made, inputs, options.time), flush=True)


if __name__ == "__main__":
    main()
