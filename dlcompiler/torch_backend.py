"""`torch.compile(model, backend="dlcompiler")`: AOTAutograd's graphs through our compiler.

torch finds `backend` by the entry-point group `torch_dynamo_backends` and calls it with what Dynamo captured. AOTAutograd makes
that functional, decomposes it, lifts parameters to inputs, and for training cuts it into a forward and a backward graph; each
is imported and compiled. Results have eager's strides; mutated inputs are written back by our programs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from dlcompiler.codegen.target import SCANNED, Target
from dlcompiler.devices import target_of_devices
from dlcompiler.frontends.fx import (
    decompositions,
    import_fx,
    keep_recurrent_layers_whole,
    number_draws,
    own_arguments,
    result_kinds,
    share_memory,
)
from dlcompiler.frontends.fx_location import input_names
from dlcompiler.frontends.fx_partition import take_log_softmax_apart
from dlcompiler.frontends.fx_saved import leave_saved_results_open, report_strides, restrided
from dlcompiler.garbage import collecting_later
from dlcompiler.ir.errors import OptionError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.options import Options
from dlcompiler.report import Timings, record_fallback

logger = logging.getLogger("dlcompiler")

Run = Callable[[Sequence[Any]], list[Any]]
# (graph, target, options, timings, code key) -> what runs it: flat inputs to the Graph's outputs
Compile = Callable[[Graph, Target, Options, Timings, "str | None"], Run]


def backend(
    graph_module: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | Options | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """What torch.compile calls: a function of the graph's inputs.

    mode      one of torch's four names; options: names and values of `dlcompiler.Options`
    Raises OptionError for an unknown option or mode.
    """
    return Backend()(graph_module, example_inputs, mode=mode, options=options, **unknown)


def reset() -> None:
    """Forget compiled kernels and reports; `torch._dynamo.reset()` comes here too."""
    from dlcompiler.api import reset as reset_all

    reset_all()


backend.reset = reset  # type: ignore[attr-defined]


class Backend:
    """A torch.compile backend around a way of compiling graphs, which tests replace by an interpreter."""

    def __init__(self, compile: Compile | None = None) -> None:
        self.compile = compile or _compile_graph

    def __call__(
        self,
        graph_module: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | Options | None = None,
        **unknown: Any,
    ) -> Callable[..., Any]:
        """See `backend`."""
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch import config as functorch_config

        resolved = _resolve(mode, options, unknown)
        name, key = _names(graph_module)
        called = input_names(graph_module)
        on_gpu = any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in example_inputs)
        keep_recurrent_layers_whole(graph_module, SCANNED["cuda" if on_gpu else "cpu"])

        def compiler(part: str) -> Callable[..., Any]:
            suffix = f"_{part}" if part else ""

            def compile_part(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
                mine, parameters = ((), ()) if part == "backward" else (called, _parameters())
                own_key = f"{key}{suffix}" if key else None
                return self._compile_part(module, inputs, part, name + suffix, own_key, resolved, mine, parameters)

            return compile_part

        ours = aot_autograd(
            fw_compiler=compiler("forward"),
            bw_compiler=compiler("backward"),
            inference_compiler=compiler(""),
            decompositions=decompositions(resolved.numerics),
            partition_fn=_partition,
            keep_inference_input_mutations=True,
        )
        # tokens that order effects are made in the graph and not passed to it
        settings: dict[str, Any] = {"unlift_effect_tokens": True}
        if resolved.activation_memory_budget is not None:
            settings["activation_memory_budget"] = resolved.activation_memory_budget
        with functorch_config.patch(settings), own_arguments(), collecting_later():
            return ours(graph_module, example_inputs)

    def _compile_part(
        self,
        module: torch.fx.GraphModule,
        inputs: Sequence[Any],
        part: str,
        name: str,
        key: str | None,
        options: Options,
        called: Sequence[str],
        parameters: Collection[int],
    ) -> Callable[..., Any]:
        """One of AOTAutograd's graphs as a boxed function: a list of arguments, which it empties, to a list of results.

        part  "forward", "backward" (whose inputs lie as the forward program left them) or "" where no gradient is wanted, and
              results may be views of the same memory; else AOTAutograd sees to that
        """
        timings, places = Timings(), None
        try:
            target = options.configure(_target_of(module))
            with timings.stage("import"):
                places = None if part else share_memory(module)
                given = inputs if part == "backward" else None
                graph = import_fx(module, inputs=given, name=name, called=called, parameters=parameters)
                kinds = result_kinds(module)
                if part == "forward":
                    graph = leave_saved_results_open(graph, kinds)
            run = self.compile(graph, target, options, timings, key)
            report_strides(graph, getattr(run, "program", None), kinds)
        except UnsupportedError as error:
            if options.strict:
                raise
            call = restrided(_run_by_torch(module, name, error, options), module, inputs)
        else:
            call = _boxed(run, kinds)
        return call if places is None else _in_place(call, places)


def _partition(joint: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
    """The forward and the backward graph, which share the seed of their random numbers and not the numbers, and logits of a
    loss and not their softmax.
    """
    from functorch.compile import min_cut_rematerialization_partition

    number_draws(joint)
    take_log_softmax_apart(joint)
    return min_cut_rematerialization_partition(joint, inputs, **settings)


def _parameters() -> Collection[int]:
    """Positions of the inputs of the forward graph being compiled that AOTAutograd knows as a module's own tensors."""
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    return () if metadata is None else frozenset(metadata.static_input_indices or ())


def _compile_graph(graph: Graph, target: Target, options: Options, timings: Timings, key: str | None) -> Run:
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from dlcompiler.recorded import compile_recorded
    from dlcompiler.runtime.executable import Executable

    # Dynamo traces under fake tensors; what a program holds (constants, packed weights) is real
    with unset_fake_temporarily():
        executable, _ = compile_recorded(graph, target, options, timings=timings, code_key=key)
        if isinstance(executable, Executable):
            executable.reserve()  # torch is not done yet, and then calls it
    return executable


def _resolve(mode: str | None, options: Mapping[str, Any] | Options | None, unknown: Mapping[str, Any]) -> Options:
    if unknown:
        raise OptionError(
            f"the backend takes mode= and options=, not {', '.join(unknown)}", hint="put compiler options into options={...}"
        )
    if isinstance(options, Options):
        return options
    given = dict(options or {})
    if mode is not None:
        given.setdefault("mode", mode)
    return Options.resolve(given)


def _names(module: torch.fx.GraphModule) -> tuple[str, str | None]:
    """A name for the graph, as `BertModel_0` (frame 0), and the key of the user's code, equal when it is compiled again."""
    root = "graph"
    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            kind = next(iter(stack.values()))[1]
            root = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            break
    compile_id = torch._guards.CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_id is None:
        return root, None
    again = f"_{compile_id.frame_compile_id}" if compile_id.frame_compile_id else ""
    return f"{root}_{compile_id.frame_id}{again}", f"frame {compile_id.frame_id}"


def _target_of(module: torch.fx.GraphModule) -> Target:
    """Where the graph's inputs are. Raises UnsupportedError if that is not one kind of device that we compile for.

    Numbers on the CPU (0-d tensors) among inputs on a GPU are copied there by each call.
    """
    devices, on_cpu = set(), []
    for node in module.graph.nodes:
        example = node.meta.get("val")
        if not isinstance(example, torch.Tensor):
            continue
        if example.device.type == "cpu" and node.op == "placeholder" and example.dim() == 0:
            on_cpu.append(example.device)
        else:
            devices.add(example.device)
    return target_of_devices(devices or on_cpu)


def _boxed(run: Run, kinds: Sequence[str]) -> Callable[[list[Any]], list[Any]]:
    """`run` by AOTAutograd's calling convention; the results that are not tensors are put in place."""
    plain = all(kind == "tensor" for kind in kinds)

    def call(arguments: list[Any]) -> list[Any]:
        outputs = run(arguments)
        arguments.clear()
        if plain:
            return outputs
        given = iter(outputs)
        return [None if kind == "none" else next(given) if kind == "tensor" else next(given).item() for kind in kinds]

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _in_place(run: Callable[[list[Any]], list[Any]], places: Sequence[tuple[int, Any]]) -> Callable[[list[Any]], list[Any]]:
    """A boxed function whose results are those that `run` gives, or views of them."""

    def call(arguments: list[Any]) -> list[Any]:
        outputs = run(arguments)
        return [outputs[k] if view is None else outputs[k].as_strided(*view) for k, view in places]

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _run_by_torch(module: torch.fx.GraphModule, name: str, error: UnsupportedError, options: Options) -> Callable[..., Any]:
    """The graph run op by op by torch, since it holds something that we cannot; said once, and in the report."""
    from functorch.compile import make_boxed_func

    calls = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
    record_fallback(name, calls, str(error), options)
    _warn_once(f"{name} runs in torch, not compiled: {error}")
    return make_boxed_func(module.forward)


_warned: set[str] = set()
_warned_lock = threading.Lock()


def _warn_once(message: str) -> None:
    with _warned_lock:
        new = message not in _warned
        _warned.add(message)
    if new:
        logger.warning("%s", message)
