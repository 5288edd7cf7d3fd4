"""dlcompiler as a backend of the onnx package: `onnx.backend.base.Backend`.

>>> from dlcompiler.onnx_backend import Backend
>>> outputs = Backend.prepare(model).run([x])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.backend import base

import dlcompiler
from dlcompiler.frontends.onnx import NeedsValuesError, import_onnx
from dlcompiler.ir.errors import InputError, UnsupportedError


def _value(value: Any) -> Any:
    """An array; a sequence or an empty optional as it is."""
    return value if value is None or isinstance(value, list) else np.asarray(value)


class BackendRep(base.BackendRep):
    """A compiled model.

    A model that reads a shape, or another number that a program must have fixed, from an input is compiled for each value of
    that input that it is called with.
    """

    def __init__(self, model: ModelProto, options: Mapping[str, Any] | None = None) -> None:
        self._model, self._options = model, options
        initialized = {t.name for t in model.graph.initializer}
        self.input_names = tuple(i.name for i in model.graph.input if i.name not in initialized)
        self.output_names = tuple(o.name for o in model.graph.output)
        self._fixed: tuple[str, ...] = ()  # inputs whose values are compiled in
        self._programs: dict[tuple[Any, ...], dlcompiler.Compiled] = {}
        self._newest: dlcompiler.Compiled | None = None
        try:
            self._program({})
        except NeedsValuesError as error:
            self._fixed = error.inputs

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs, by position or by name. `inputs`: a sequence in the model's order, a mapping by name, or one array."""
        feeds = self._feeds(inputs)
        program = self._program(feeds)
        results = program(*(feeds[name] for name in program.input_names))
        outputs = results if isinstance(results, tuple) else (results,)
        return base.namedtupledict("Outputs", self.output_names)(*outputs)

    def _feeds(self, inputs: Any) -> dict[str, np.ndarray]:
        if isinstance(inputs, np.ndarray):
            inputs = (inputs,)
        if isinstance(inputs, Mapping):
            missing = [name for name in self.input_names if name not in inputs]
            unknown = [name for name in inputs if name not in self.input_names]
            if missing or unknown:
                raise InputError(f"the model takes {', '.join(self.input_names)}, not {', '.join(inputs)}")
            return {name: _value(inputs[name]) for name in self.input_names}
        if len(inputs) != len(self.input_names):
            raise InputError(
                f"{len(inputs)} inputs given, the model takes {len(self.input_names)}: {', '.join(self.input_names)}"
            )
        return {name: _value(value) for name, value in zip(self.input_names, inputs)}

    def _program(self, feeds: Mapping[str, np.ndarray]) -> dlcompiler.Compiled:
        """The program for these values of the fixed inputs. More inputs are fixed if the import asks for them."""
        while True:
            values = {name: feeds[name] for name in self._fixed}
            key = tuple((v.shape, v.dtype.str, v.tobytes()) for v in values.values())
            if key not in self._programs:
                try:
                    graph = import_onnx(self._model, input_values=values)
                except NeedsValuesError as error:
                    if not feeds or set(error.inputs) <= set(self._fixed):
                        raise
                    self._fixed = tuple(dict.fromkeys((*self._fixed, *error.inputs)))
                    self._programs.clear()
                    continue
                self._programs[key] = dlcompiler.compile(graph, options=self._options)
            self._newest = self._programs[key]
            return self._newest

    def report(self) -> dlcompiler.Report:
        """What was compiled, for the values of the last call. Raises InputError for a model that waits for values."""
        if self._newest is None:
            raise InputError(f"the model is compiled for values of {', '.join(self._fixed)}, so at its first call")
        return self._newest.report()


class Backend(base.Backend):
    """What `onnx.backend.test` and other tools drive a backend by."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator and element type of the model is supported."""
        try:
            import_onnx(model)
        except NeedsValuesError:
            pass
        except UnsupportedError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        """Compile a model. `options=` is handed to `dlcompiler.compile`. Raises UnsupportedError, InvalidModelError."""
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device}", items=(device,), hint="use CPU")
        return BackendRep(model, kwargs.get("options"))

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Compile a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Compile and run one node. `opset_version=` is the operator set it belongs to, the newest if not given."""
        names = [name for name in dict.fromkeys(node.input) if name]
        if isinstance(inputs, np.ndarray):
            inputs = (inputs,)
        arrays = [np.asarray(inputs[name]) for name in names] if isinstance(inputs, Mapping) else [np.asarray(x) for x in inputs]
        if len(arrays) != len(names):
            raise InputError(f"{len(arrays)} inputs given, the node takes {len(names)}: {', '.join(names)}")
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, arrays)
        ]
        wanted = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opsets = [helper.make_opsetid(node.domain, kwargs["opset_version"])] if "opset_version" in kwargs else None
        model = helper.make_model(helper.make_graph([node], node.op_type, given, wanted), opset_imports=opsets)
        return cls.run_model(model, arrays, device, **({"options": kwargs["options"]} if "options" in kwargs else {}))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU, as `CPU` or `CPU:0`."""
        return device.partition(":")[0] == "CPU"


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
