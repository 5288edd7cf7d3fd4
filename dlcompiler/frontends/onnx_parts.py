"""Parts of an ONNX model as models of their own: up to some nodes, with values between as outputs; one node alone.

Nothing refers to a file any more: external data that a part needs is in it. So a part has less than 2 GiB.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner, numpy_helper

from dlcompiler.frontends.onnx_load import LARGEST_MESSAGE, TensorReader, printable, read_model
from dlcompiler.frontends.onnx_order import captured, ordered
from dlcompiler.ir.errors import InputError, UnsupportedError


@dataclass(frozen=True)
class FileNode:
    """A node of the model's own graph: `version` of its operator set; `read` and `made` are names of values.

    `read` includes what graphs inside the node take from around it. `made` are the results that somebody asks for: others need
    not exist.
    """

    proto: NodeProto
    name: str
    domain: str
    version: int
    read: tuple[str, ...]
    made: tuple[str, ...]

    @property
    def described(self) -> str:
        """`Softmax [ai.onnx 13]`"""
        return f"{printable(self.proto.op_type)} [{printable(self.domain)} {self.version}]"


class Parts:
    """A model in a file, its functions inlined, to be taken apart. Raises InvalidModelError as reading the model does."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        model = read_model(path)
        self.reader = TensorReader(Path(path).parent)
        self.model = inliner.inline_local_functions(model) if model.functions else model
        graph = self.model.graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [info.name for info in graph.input if info.name not in self._initializers]
        self._outputs = {info.name: info for info in graph.output}
        versions = {entry.domain or "ai.onnx": entry.version for entry in self.model.opset_import}
        known = {*self.inputs, *self._initializers, *(s.values.name for s in graph.sparse_initializer)}
        protos = ordered(graph.node, known.__contains__, os.fspath(path))
        reads = [tuple(dict.fromkeys([*filter(None, node.input), *sorted(captured(node))])) for node in protos]
        asked = {name for read in reads for name in read} | set(self._outputs)
        self.nodes = [_file_node(node, read, asked, versions) for node, read in zip(protos, reads)]

    def whole(self) -> ModelProto:
        """The model with its external data in it."""
        return self.up_to(len(self.nodes), list(self._outputs))

    def up_to(self, last: int, outputs: Sequence[str]) -> ModelProto:
        """The first `last` nodes as far as they lead to `outputs`, which it gives. The model's inputs stay."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes[:last]):
            if wanted.intersection(node.made):
                kept.append(node)
                wanted.update(node.read)
        infos = [info for info in self.model.graph.input if info.name in self.inputs]
        return self._made([node.proto for node in reversed(kept)], infos, outputs, wanted)

    def alone(self, node: FileNode, values: Mapping[str, np.ndarray], fixed: Collection[str] = ()) -> ModelProto:
        """One node, which reads `values` as inputs; those in `fixed` are constants of the model."""
        given = [name for name in node.read if name in values]
        infos = [_described_value(name, values[name]) for name in given if name not in fixed]
        constants = [numpy_helper.from_array(np.asarray(values[name]), name) for name in given if name in fixed]
        model = self._made([node.proto], infos, node.made, set(node.read))
        model.graph.initializer.extend(constants)
        return model

    def _made(
        self, nodes: Iterable[NodeProto], infos: Iterable[ValueInfoProto], outputs: Sequence[str], read: set[str]
    ) -> ModelProto:
        tensors = [tensor for name, tensor in self._initializers.items() if name in read]
        tensors = [self.reader.inlined(tensor) for tensor in tensors]
        size = sum(tensor.ByteSize() for tensor in tensors)
        if size >= LARGEST_MESSAGE - (64 << 20):
            raise UnsupportedError(f"parts of a model of {size:,} bytes of weights: an ONNX message has less than 2 GiB")
        made = ModelProto(ir_version=self.model.ir_version, producer_name=self.model.producer_name)
        made.opset_import.extend(self.model.opset_import)
        graph = made.graph
        graph.name = self.model.graph.name or "part"
        graph.node.extend(nodes)
        graph.input.extend(infos)
        graph.initializer.extend(tensors)
        sparse = self.model.graph.sparse_initializer
        graph.sparse_initializer.extend(tensor for tensor in sparse if tensor.values.name in read)
        graph.output.extend(self._outputs.get(name) or ValueInfoProto(name=name) for name in outputs)
        return made


def _file_node(node: NodeProto, read: tuple[str, ...], asked: set[str], versions: Mapping[str, int]) -> FileNode:
    domain = node.domain or "ai.onnx"
    name = printable(node.name or f"{node.op_type}:{next(iter(filter(None, node.output)), '')}")
    return FileNode(node, name, domain, versions.get(domain, 0), read, tuple(name for name in node.output if name in asked))


def _described_value(name: str, value: np.ndarray) -> ValueInfoProto:
    array = np.asarray(value)
    code = TensorProto.STRING if array.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, code, array.shape)


def describe_outputs(model: ModelProto, values: Mapping[str, Any]) -> None:
    """Write the types of the outputs into the model, where `values` holds arrays for them."""
    infos = [
        _described_value(info.name, values[info.name]) if isinstance(values.get(info.name), np.ndarray) else info
        for info in model.graph.output
    ]
    del model.graph.output[:]
    model.graph.output.extend(infos)


def run_by_onnx(model: ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs of a model by onnx's own reference evaluator, which is slow.

    Raises UnsupportedError for what it has not, InputError where it does not take these values.
    """
    from onnx.reference import ReferenceEvaluator

    try:
        return list(ReferenceEvaluator(model).run(None, dict(feeds)))
    except (NotImplementedError, ImportError) as error:
        raise UnsupportedError(f"onnx's reference evaluator cannot run the model: {error}", items=(str(error),)) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"onnx's reference evaluator does not take these values: {error}") from error
