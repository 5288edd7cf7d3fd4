"""`torch.compile(model, backend="dlcompiler")`: AOTAutograd's graphs through our compiler.

torch finds `backend` by the entry-point group `torch_dynamo_backends` and calls it with what Dynamo captured. AOTAutograd makes
that functional, decomposes it, lifts parameters to inputs, and for training cuts it into a forward and a backward graph; each
is imported and compiled. Results have eager's strides; mutated inputs are written back by our programs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dlcompiler.codegen.target import SCANNED, Target
from dlcompiler.devices import target_of_devices
from dlcompiler.frontends.fx import (
    View,
    compute_normalized_again,
    decompositions,
    import_fx,
    keep_recurrent_layers_whole,
    leave_out_views,
    number_draws,
    own_arguments,
    result_kinds,
    share_memory,
)
from dlcompiler.frontends.fx_host import HostPart, take_host_part
from dlcompiler.frontends.fx_location import input_names
from dlcompiler.frontends.fx_partition import pad_again, take_log_softmax_apart
from dlcompiler.frontends.fx_saved import leave_saved_results_open, report_strides, restrided, saved_positions
from dlcompiler.garbage import collecting_later
from dlcompiler.ir.errors import OptionError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.options import Options
from dlcompiler.report import Timings, record_fallback
from dlcompiler.settling import SettlingForward

logger = logging.getLogger("dlcompiler")

# Rules of the partitioner that are off: that what backward's products read, and what is made of something read at two distant
# places, is never computed again. To write it anew costs one pass over it, in a kernel that reads the same operands for its
# derivative; to hold it takes memory until then.
CHEAP_AGAIN = {"ban_recompute_materialized_backward": False, "ban_recompute_used_far_apart": False}

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
        forwards: list[SettlingForward] = []
        # our runtime for CPUs frees and packs as passes of a training step go
        frees = not on_gpu and self.compile is _compile_graph

        def compiler(part: str) -> Callable[..., Any]:
            suffix = f"_{part}" if part else ""

            def compile_part(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
                is_backward = part == "backward"
                is_training = frees and part == "forward"
                mine, parameters = ((), ()) if is_backward else (called, _parameters(is_training))
                own_key = f"{key}{suffix}" if key else None
                whole = _Part(part, name + suffix, own_key, mine, parameters, forwards)
                host = None if part else take_host_part(module)
                if host is None:
                    return self._compile_part(module, inputs, whole, resolved)
                run = self._compile_part(host.device, inputs, _of_device(whole, host, len(inputs)), resolved)
                return _joined(host, run)

            return compile_part

        budget = resolved.activation_memory_budget
        # on a GPU it is bytes that cost: what is computed again there reads more than it would if it were held
        holds_all = not frees or "recompute" in resolved.disabled_passes or (budget is not None and budget >= 1)
        ours = aot_autograd(
            fw_compiler=compiler("forward"),
            bw_compiler=compiler("backward"),
            inference_compiler=compiler(""),
            decompositions=decompositions(resolved.numerics),
            partition_fn=partial(_partition, holds_all=holds_all, pads_again=not frees),
            keep_inference_input_mutations=True,
        )
        # tokens that order effects are made in the graph and not passed to it
        settings: dict[str, Any] = {"unlift_effect_tokens": True, **({} if holds_all else CHEAP_AGAIN)}
        if resolved.activation_memory_budget is not None:
            settings["activation_memory_budget"] = resolved.activation_memory_budget
        with functorch_config.patch(settings), own_arguments(), collecting_later():
            return ours(graph_module, example_inputs)

    def _compile_part(
        self, module: torch.fx.GraphModule, inputs: Sequence[Any], part: _Part, options: Options
    ) -> Callable[..., Any]:
        """One of AOTAutograd's graphs as a boxed function: a list of arguments, which it empties, to a list of results."""
        timings, places, views = Timings(), None, None
        is_backward = part.kind == "backward"
        try:
            target = options.configure(_target_of(module))
            with timings.stage("import"):
                if not part.kind:
                    views, places = leave_out_views(module), share_memory(module)
                marks = _marks(module, part.kind) if target.kind == "cpu" and self.compile is _compile_graph else None
                graph = import_fx(
                    module,
                    inputs=inputs if is_backward else None,
                    name=part.name,
                    called=part.called,
                    parameters=part.parameters,
                    marks=marks,
                    numerics=options.numerics,
                    saved=saved_positions(result_kinds(module)) if part.kind == "forward" else (),
                )
                if marks is not None and is_backward:
                    _allow_another_backward()
                kinds = result_kinds(module)
                if part.kind == "forward":
                    graph = leave_saved_results_open(graph, kinds)
            run = self.compile(graph, target, options, timings, part.key)
            program = getattr(run, "program", None)
            report_strides(graph, program, kinds)
        except UnsupportedError as error:
            if options.strict:
                raise
            call = restrided(_run_by_torch(module, part.name, error, options), module, inputs)
        else:
            if part.kind == "forward" and marks and program is not None:

                def compile_again(settled: Graph) -> Run:
                    return self.compile(settled, target, options, Timings(), None)

                run = SettlingForward(run, graph, program, compile_again)
                part.forwards.append(run)
            call = _boxed(run, kinds)
        if is_backward:
            call = _noting(call, part.forwards)
        call = call if places is None else _in_place(call, places)
        return call if views is None else _with_views(call, views)


@dataclass(frozen=True)
class _Part:
    """One of the graphs that AOTAutograd makes of one of Dynamo's.

    kind        "forward", "backward" (whose inputs lie as the forward program left them) or "" where no gradient is wanted, and
                results may be views of the same memory; else AOTAutograd sees to that
    key         the user's code, see `_names`
    called      what the user calls each input
    parameters  positions of inputs that are the same tensors in nearly every call
    forwards    forward programs, which are told when their backward pass runs
    """

    kind: str
    name: str
    key: str | None
    called: Sequence[str]
    parameters: Collection[int]
    forwards: list[SettlingForward]


def _of_device(whole: _Part, host: HostPart, count: int) -> _Part:
    """What is known of a graph of so many inputs, of the part of it that the device runs."""
    named = len(whole.called) == count
    called = [whole.called[k] for k in host.device_inputs] + ["numbers of the host"] * host.rows if named else ()
    parameters = [at for at, k in enumerate(host.device_inputs) if k in whole.parameters]
    return replace(whole, called=called, parameters=parameters)


def _joined(host: HostPart, on_device: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A boxed function of both parts of a graph: the host's first, whose numbers go to the device without waiting for it.

    torch computes the host's few numbers: where there is a GPU, there need not be what compiles for its CPU.
    """

    def call(arguments: list[Any]) -> list[Any]:
        given = [arguments[k] for k in host.device_inputs]
        with torch.no_grad():
            of_host = host.host(*(arguments[k] for k in host.host_inputs))
        arguments.clear()
        of_device = on_device(given + [rows.to(host.place, non_blocking=True) for rows in of_host[: host.rows]])
        return [(of_host if is_host else of_device)[k] for is_host, k in host.results]

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _partition(joint: torch.fx.GraphModule, inputs: Sequence[Any], *, holds_all: bool, pads_again: bool, **settings: Any) -> Any:
    """The forward and the backward graph, which share the seed of their random numbers and not the numbers, logits of a loss and
    not their softmax, if it `pads_again` images and not padded ones; unless it `holds_all`, what normalised values are made of.
    """
    from functorch.compile import min_cut_rematerialization_partition

    number_draws(joint)
    if not holds_all:
        compute_normalized_again(joint)
    take_log_softmax_apart(joint)
    if pads_again:
        pad_again(joint)
    return min_cut_rematerialization_partition(joint, inputs, **settings)


def _parameters(is_training: bool) -> Collection[int]:
    """Positions of the inputs of the forward graph being compiled that are a module's own tensors and hold the same for long.

    What is trained does not: an optimizer writes it before the next call, so that what is made of it is of use only once.
    """
    kept = _static_inputs(is_trained=False)
    return kept if is_training else kept | _static_inputs(is_trained=True)


def _static_inputs(is_trained: bool) -> frozenset[int]:
    """Positions of the inputs of the forward graph being compiled that are a module's own tensors, trained or not."""
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    if metadata is None:
        return frozenset()
    static = metadata.static_input_indices or ()
    return frozenset(k for k in static if metadata.input_info[k].requires_grad == is_trained)


def _marks(module: torch.fx.GraphModule, part: str) -> Mapping[int, Collection[str]]:
    """What is known of inputs of a graph of a training step.

    Those of the backward graph that are not the user's, what the forward graph has computed, and gradients, are its own.
    """
    if part == "forward":
        return dict.fromkeys(_static_inputs(is_trained=True), ("trained",))
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    return {k: ("owned",) for k, name in enumerate(names) if part == "backward" and not name.startswith("primals")}


def _allow_another_backward() -> None:
    """Let torch keep a graph for a second backward pass: it refuses to where memory of saved tensors may be overwritten.

    Ours is only where a call finds that nobody else holds it.
    """
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []


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


def _with_views(run: Callable[[list[Any]], list[Any]], views: Sequence[View | None]) -> Callable[[list[Any]], list[Any]]:
    """A boxed function whose results are those of `run`, and views of arguments by the numbers that it gives for them."""

    def call(arguments: list[Any]) -> list[Any]:
        sources = [arguments[0 if view is None else view.argument] for view in views]
        given = iter(run(arguments))
        return [next(given) if view is None else view.of(source, given) for view, source in zip(views, sources)]

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _noting(call: Callable[[list[Any]], Any], forwards: Sequence[SettlingForward]) -> Callable[[list[Any]], Any]:
    """A boxed function of a backward graph that tells forward programs of its call."""

    def noted(arguments: list[Any]) -> Any:
        for forward in forwards:
            forward.note_backward()
        return call(arguments)

    noted._boxed_call = True  # type: ignore[attr-defined]
    return noted


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
