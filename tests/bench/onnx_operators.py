"""The page `docs/onnx.md`: what becomes of every operator, read from the code, and the conformance tables.

python -m tests.bench.onnx_operators              # the operators' tables alone
python -m tests.bench.onnx_conformance --write docs/onnx.md
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dlcompiler.frontends.onnx_host import is_implemented
from dlcompiler.frontends.onnx_import import CONTROL_FLOW
from dlcompiler.frontends.onnx_registry import ELEMENT_TYPES, OPERATORS, TAKES_HOST_VALUES
from dlcompiler.frontends.onnx_schema import schema_of

OLDEST = 7  # operator set
DOMAINS = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "ai.onnx.preview.training": "ai.onnx.preview.training"}
INTRODUCTION = """# ONNX

The tables of this page are read from the code: `python -m tests.bench.onnx_conformance --write docs/onnx.md` writes it.

An operator becomes one of these:

* **graph**: an entry of our own writes it in Graph ops, which become kernels; where an entry leaves a case (unusual attributes,
  say) it goes on as the next lines say.
* **control flow**: a region op; a branch or body is a program of its own, compiled once and run as often as the model says.
* **function**: the body in the operator's own schema is inlined.
* **host**: onnx's reference evaluator, or our own function, runs it between programs; the report names it, `strict` refuses it.

Texts, sequences and optionals are values of the host. Sizes that only data tells (of `NonZero`, `Unique`, or a `ConstantOfShape`
of computed numbers) are symbols that are bound while the model runs, so what follows is compiled once for all of them. Versions
of the operator set from 7 on are taken; an operator's own versions are told apart by its schema. Types of fewer than 16 bits are
stored one a byte and converted in the kernels that read or write them.

**Quantised models.** QDQ and QLinear forms whose operands are bytes are sums of products of bytes (int8 x int8 to int32),
requantised in the same kernel. Weights of 2, 4 or 8 bits with a scale for each block stay so narrow: `MatMulNBits`, a
`DequantizeLinear` with `block_size` or the same arithmetic written out, transposed or reshaped on the way to its `MatMul`, become
one op (`block_linear`), and rows that a `Gather` takes from such a table are made floats alone. Activations are not rounded for
it: `accuracy_level` of `MatMulNBits` says how much accuracy is enough, and float32 is always enough. (ONNX Runtime takes 4, 8 bit
activations, for a `DequantizeLinear` that it turns into `MatMulNBits`, unless told otherwise: its results are then off by some
0.5 %.) `DynamicQuantizeLSTM` is an LSTM of floats with the weights that its bytes say, for the same reason.

**Files that tools make.** What ONNX Runtime's optimisers, quantisers and float16 converters write is taken as it is: products and
convolutions with an activation inside, images with channels last, quantised operators, tables in blocks of few bits. A file saved
with all optimisations holds images in blocks of channels (`com.microsoft.nchwc`), of a size that suits the processor which saved
it and that the file does not tell: it is read as ONNX Runtime reads it on this machine.

**Sizes.** Dimensions without a name (or called `?`, `None` and the like) are sizes of their own. Where a node takes its inputs
only if two open sizes are equal they are one: the columns of a table that are inputs of their own, the past of keys and of
values, a mask as long as past and new words together. A call with others is refused.

**Pipelines of scikit-learn.** Scales, linear models, trees and the kernels of support vectors are kernels of ours: all samples
walk all trees at once, a level a step. Texts, dictionaries (`ZipMap`) and vocabularies are the host's.
"""


def how(name: str, domain: str, version: int) -> str:
    """What becomes of an operator."""
    schema = schema_of(name, version, domain)
    if domain == "" and name in CONTROL_FLOW:
        return "control flow"
    if (domain, name) in OPERATORS:
        return "graph"
    if schema is not None and schema.has_function:
        return "function"
    return "host" if is_implemented(name, domain, version) else "none"


def table(domain: str) -> list[str]:
    """A row for each operator that a model of opset 7 or newer may hold."""
    newest: dict[str, int] = {}
    versions: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == domain and not schema.deprecated:
            versions.setdefault(schema.name, set()).add(schema.since_version)
            newest[schema.name] = max(newest.get(schema.name, 0), schema.since_version)
    rows: dict[str, list[str]] = {}
    for name in sorted(versions):
        rows.setdefault(how(name, domain, newest[name]), []).append(f"{name} ({', '.join(map(str, sorted(versions[name])))})")
    lines = ["| how | operators | names, with the versions of their schemas |", "| --- | ---: | --- |"]
    for kind in ("graph", "control flow", "function", "host", "none"):
        if kind in rows:
            lines.append(f"| {kind} | {len(rows[kind])} | {', '.join(rows[kind])} |")
    return lines


def page(conformance: Sequence[str] = ()) -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for domain, shown in DOMAINS.items():
        lines += [f"## `{shown}`", "", *table(domain), ""]
    for contributed in ("com.microsoft", "com.microsoft.nchwc"):
        names = sorted(name for domain, name in OPERATORS if domain == contributed)
        lines += [f"## `{contributed}`", "", "As ONNX Runtime documents them: " + ", ".join(f"`{n}`" for n in names) + ".", ""]
    lines += ["## Element types", "", ", ".join(f"`{d}`" for d in dict.fromkeys(d.name for d in ELEMENT_TYPES.values())) + "; "
              f"texts on the host. Values of the host are also taken by {', '.join(sorted(TAKES_HOST_VALUES))}.", ""]  # fmt: skip
    if conformance:
        lines += [f"## Conformance (onnx {onnx.__version__})", "", *conformance, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
