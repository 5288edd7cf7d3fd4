"""`dlcompiler.train_step`: forward, loss, backward and the optimizer's update as one program.

step = dlcompiler.train_step(model, loss_fn, optimizer, example_batch)
for batch in batches:
    loss = step(batch)

Dynamo captures `loss_fn(model, batch)` and guards what it depends on; our part begins with its graph (`joint`), to which the
update is appended (`assemble`). The program writes into the user's own parameters, buffers and optimizer state.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import _global_backward_hooks, _global_backward_pre_hooks

from dlcompiler.codegen.target import Target
from dlcompiler.frontends.fx_types import TO_TORCH
from dlcompiler.garbage import collecting_later
from dlcompiler.ir.errors import CompilerError, InputError, OptionError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.options import Options
from dlcompiler.report import Report, Timings
from dlcompiler.training.assemble import Assembler, Clipping
from dlcompiler.training.hyperparameters import Division, Hyperparameters
from dlcompiler.training.joint import Joint, joint_graph
from dlcompiler.training.optimizers import RULES
from dlcompiler.training.programs import States, StepProgram, compile_step, zeros_ahead
from dlcompiler.training.refusals import choose_target, parameters_of, reasons_against, refuse
from dlcompiler.training.scaling import Scaling, refusals

LossFunction = Callable[[Any, Any], Tensor]

_numbers = itertools.count()  # of the steps of this process


def train_step(
    model: Any,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    example_batch: Any,
    *,
    target: str | None = None,
    options: Options | Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
) -> TrainStep:
    """Compile a training step. Nothing is trained before the result is called.

    model          an nn.Module, or whatever `loss_fn` takes for one
    loss_fn        `loss_fn(model, batch)`: a float tensor of one element
    optimizer      SGD, Adam, AdamW, Adagrad, RMSprop or Adadelta of torch.optim; its parameters are trained, no others
    example_batch  what `loss_fn` takes: tensors, or a tuple, list or dict of them
    clip_norm      limit of the 2-norm of all gradients together, as `torch.nn.utils.clip_grad_norm_`
    clip_value     limit of each number in them, as `torch.nn.utils.clip_grad_value_`
    target         as for `dlcompiler.compile`; None: where the parameters are. One for a GPU compiles without a GPU, too: such
                   a step can be simulated, and its reports read
    accumulate     update in every so manieth call, with the mean of the gradients of these calls
    scaler         of a loss under float16 autocast. A call does `scale`, `unscale_`, `step` and `update` of it: where a gradient
                   is not finite, nothing is updated and the scale falls. One that is not enabled changes nothing

    Raises UnsupportedError, before anything has run, for what cannot be one program: another optimizer, hooks on parameters or on
    the optimizer, sparse or complex parameters, a loss function that Dynamo cannot capture whole.
    """
    resolved = Options.resolve(options)
    if accumulate < 1:
        raise OptionError(f"accumulate takes an integer of at least 1, not {accumulate!r}")
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    _refuse(model, optimizer, scaler)
    clipping = Clipping(clip_norm, clip_value)
    scaling = None if scaler is None else Scaling(scaler)
    chosen = resolved.configure(choose_target(target, optimizer))
    settings = _Settings(resolved, chosen, clipping, accumulate, scaling)
    step = TrainStep(model, loss_fn, optimizer, settings)
    step.prepare(example_batch)
    return step


def _refuse(model: Any, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Raises UnsupportedError for what would make a compiled step differ from an eager one."""
    parameters = parameters_of(optimizer)
    reasons = reasons_against(optimizer)
    reasons += [] if scaler is None else refusals(scaler, parameters)
    if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in parameters):
        reasons.append("hooks on parameters")
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        if getattr(module, "sparse", False) is True:
            reasons.append(f"sparse gradients of {type(module).__name__}")
        if module._backward_hooks or module._backward_pre_hooks:
            reasons.append(f"backward hooks of {type(module).__name__}")
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            reasons.append("DistributedDataParallel, whose gradients are exchanged by hooks")
    if _global_backward_hooks or _global_backward_pre_hooks:
        reasons.append("backward hooks of all modules")
    refuse("a training step", reasons, 'compile the loss function alone with torch.compile(..., backend="dlcompiler")')


@dataclass(frozen=True)
class _Settings:
    options: Options
    target: Target
    clipping: Clipping
    accumulate: int
    scaling: Scaling | None = None


class TrainStep:
    """A compiled training step; see `train_step`. `step(batch)` trains once and returns the loss, detached.

    reports         of every program that was compiled for it
    gradient_norm   of the last update, before it was limited; None without `clip_norm`
    """

    def __init__(self, model: Any, loss_fn: LossFunction, optimizer: torch.optim.Optimizer, settings: _Settings) -> None:
        self.model, self.optimizer = model, optimizer
        self.settings = settings
        self.reports: list[Report] = []
        self.gradient_norm: Tensor | None = None
        self._calls = 0  # since the last update
        self._preparing = self._simulating = False

        def loss_of(model: Any, batch: Any) -> Tensor:
            return loss_fn(model, batch)

        # Dynamo keeps what it compiled, and counts how often, with the code, and what sizes it has seen by the code's name: both
        # are of this step alone, lest another's batches make its sizes unknown
        loss_of.__code__ = loss_of.__code__.replace(co_name=f"loss_of_step_{next(_numbers)}")
        self.zeros = zeros_ahead(optimizer, RULES[type(optimizer)])
        self._run = torch.compile(loss_of, backend=self._backend, fullgraph=True)

    def prepare(self, batch: Any) -> None:
        """Compile for a batch like this one without training on it."""
        self._preparing = True
        try:
            with collecting_later():
                self._call(batch)
        finally:
            self._preparing = False

    def __call__(self, batch: Any) -> Tensor:
        """Train on one batch. A batch of other shapes is compiled for first."""
        return self._call(batch)

    def simulate(self, batch: Any) -> Tensor:
        """As a call, on the CPU: a step for a GPU trains once, its kernels run by Triton's interpreter.

        Raises UnsupportedError for a step that is for a CPU, and runs as it is.
        """
        if self.settings.target.kind != "cuda":
            raise UnsupportedError(f"simulate runs steps for GPUs, and this one is for {self.settings.target}", hint="call it")
        self._simulating = True
        try:
            return self._call(batch)
        finally:
            self._simulating = False

    def _call(self, batch: Any) -> Tensor:
        try:
            # Dynamo leaves the layers of nn.LSTM and its kin alone otherwise, and gives up at a logger and at a mask
            settings = {
                "allow_rnn": True,
                "ignore_logging_functions": _logging_functions(),
                "capture_scalar_outputs": True,
                "capture_dynamic_output_shape_ops": True,
            }
            with torch._dynamo.config.patch(settings), torch.enable_grad():
                return self._run(self.model, batch)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
            reason = _reason(error)
            raise UnsupportedError(
                f"the loss function cannot be captured whole: {reason}", items=(reason,), hint="compile the model instead"
            ) from error
        except torch._dynamo.exc.BackendCompilerFailed as error:
            if isinstance(error.inner_exception, CompilerError):
                raise error.inner_exception from None
            raise
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            limit = torch._dynamo.config.recompile_limit
            raise UnsupportedError(
                f"more than {limit} variants of the loss function",
                items=("recompilations",),
                hint="pad batches to fewer shapes, or raise torch._dynamo.config.recompile_limit",
            ) from error

    def _backend(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., tuple[Tensor]]:
        captured = _Captured(self, module, inputs)

        def run(*arguments: Any) -> tuple[Tensor]:
            if self._preparing:
                captured.prepare(arguments)
                return (torch.zeros(()),)
            return (self._train(captured, arguments),)

        return run

    def _train(self, captured: _Captured, arguments: Sequence[Any]) -> Tensor:
        self._calls += 1
        if self._calls < self.settings.accumulate:
            return captured.accumulate(arguments)
        self._calls = 0
        loss, *norm = captured.update(arguments)
        self.gradient_norm = norm[0] if norm else None
        # what learning-rate schedulers look at to see that the optimizer came first
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        return loss


class _Captured:
    """One of Dynamo's graphs: the loss for batches of certain shapes, and the programs made of it."""

    def __init__(self, step: TrainStep, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.step, self.settings = step, step.settings
        self.timings = Timings()
        ours = {id(p) for group in step.optimizer.param_groups for p in group["params"] if p.requires_grad}
        candidates = [k for k, value in enumerate(inputs) if id(value) in ours]
        if not candidates:
            raise InputError("the loss function uses no parameter of the optimizer")
        with self.timings.stage("capture"):
            settings, name = self.settings, _name_of(step.model)
            scaled, numerics = settings.scaling is not None, settings.options.numerics
            scanned = settings.target.scanned_dtypes
            self.joint: Joint = joint_graph(module, inputs, candidates, name, scaled, numerics, scanned)
        self.trained = sorted(self.joint.gradients)
        self.hyperparameters = Hyperparameters(step.optimizer, [inputs[k] for k in self.trained])
        self.states = States(self.hyperparameters, step.zeros)
        self.programs: dict[Division | None, StepProgram] = {}

    # -- a call ----------------------------------------------------------------------------------------------------------------

    def prepare(self, arguments: Sequence[Any]) -> None:
        """Compile what the first calls will run."""
        parameters = [arguments[k] for k in self.trained]
        division, _ = self.hyperparameters.divide(parameters)
        sums = [torch.empty_like(p) for p in parameters] if self.settings.accumulate > 1 else []
        if sums:
            self._accumulating(sums)
        states = self.states.get(parameters, types_only=True)
        self._updating(division, parameters, self.states.read(states), sums)

    def accumulate(self, arguments: Sequence[Any]) -> Tensor:
        """Add the gradients of one batch to `parameter.grad`; the loss."""
        sums = self._sums([arguments[k] for k in self.trained])
        (loss,) = self._run(self._accumulating(sums), [*arguments, *self._scale(), *sums])
        return loss

    def update(self, arguments: Sequence[Any]) -> list[Tensor]:
        """Train on one batch; the loss, and the norm of the gradients if it is limited."""
        parameters = [arguments[k] for k in self.trained]
        division, numbers = self.hyperparameters.divide(parameters)
        states = self.states.get(parameters)
        read = self.states.read(states)
        sums = self._sums(parameters) if self.settings.accumulate > 1 else []
        program = self._updating(division, parameters, read, sums)
        program.fill(numbers)
        tensors = [tensor for state in read for tensor in state.values()]
        scaling = self.settings.scaling
        inverse = [torch.tensor(scaling.factors()[1])] if scaling else []
        results = self._run(program, [*arguments, *self._scale(), *sums, *tensors, *program.vectors, *inverse])
        skipped = scaling is not None and not results.pop(1)
        if scaling is not None:
            scaling.update(skipped)
        if not skipped:
            self.states.keep(parameters, states)
        if sums:
            for parameter in parameters:
                parameter.grad = None
        return results

    def _run(self, program: StepProgram, arguments: Sequence[Any]) -> list[Tensor]:
        if self.step._simulating:
            from dlcompiler.simulated import simulated

            return simulated(program.executable)(arguments)
        return program.executable(arguments)

    def _scale(self) -> list[Tensor]:
        """What the loss's derivative is multiplied by, if it is, as the graph's input wants it."""
        if self.settings.scaling is None:
            return []
        given = self.joint.graph.inputs[-1].tensor
        return [torch.full(given.known_shape, self.settings.scaling.factors()[0], dtype=TO_TORCH[given.dtype])]

    def _sums(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    # -- compiling -------------------------------------------------------------------------------------------------------------

    def _accumulating(self, sums: Sequence[Tensor]) -> StepProgram:
        if None not in self.programs:
            self.programs[None] = self._compile(self._assembler().accumulating(sums))
        return self.programs[None]

    def _updating(
        self, division: Division, parameters: Sequence[Tensor], states: list[dict[str, Tensor]], sums: Sequence[Tensor]
    ) -> StepProgram:
        program = self.programs.get(division)
        if program is None:
            graph = self._assembler().updating(self.hyperparameters.rule, division, states, sums, self.settings.clipping)
            program = self.programs[division] = self._compile(graph)
            program.make_vectors(division, parameters[0].device)
        return program

    def _assembler(self) -> Assembler:
        return Assembler(self.joint, self.trained, self.settings.accumulate)

    def _compile(self, graph: Graph) -> StepProgram:
        timings = Timings(self.timings.seconds)
        program, report = compile_step(graph, self.settings.target, self.settings.options, timings)
        self.step.reports.append(report)
        return program


def _reason(error: Exception) -> str:
    """What Dynamo says in its first line, and what it found there."""
    text = str(error).strip()
    found = re.search(r"Developer debug context: (.+)", text)
    first = text.partition("\n")[0]
    return f"{first}: {found[1].strip()}" if found else first


class _Unlisted(set):
    """A set whose copies are empty: some releases of torch log a copy of all settings, and sort what is in each."""

    def __deepcopy__(self, memo: Any) -> set[Any]:
        return set()


def _logging_functions() -> set[Callable[..., Any]]:
    """What loss functions may call to log: left out of a step, as torch.export leaves it out.

    Among them what other packages have added to Logger, as transformers did with `warning_once`.
    """
    functions = {value for name, value in vars(logging.Logger).items() if callable(value) and not name.startswith("_")}
    return _Unlisted(functions | torch._dynamo.config.ignore_logging_functions)


def _name_of(model: Any) -> str:
    return f"{type(model).__name__}_step"
